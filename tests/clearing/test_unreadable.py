"""What cannot be read concerns whom it is about: a row its account, a journal's end what was decided since; never the
shard."""

import json
from typing import Any

import msgspec
import pytest

from schemas.codec import Decoder, encode
from schemas.messages import (
    AccountRow,
    EventFrame,
    FillColumns,
    JournalRecord,
    Mark,
    MarkFrame,
    Range,
    TransferColumns,
)
from schemas.parameters import AssetParameters, CollateralTier, InstrumentParameters, MarginTier, PolicyParameters
from schemas.types import shard_account
from streams.clearing.journal import COMMAND_NAMES_BYTES_MAX
from streams.clearing.restore import ALERTS_LEFT_OPEN, stand
from streams.clearing.shard import Output, Shard
from streams.feeds.journal import JournalEnd
from streams.margin.parameters import RiskParameters

T0 = 1_700_000_000_000_000
USDC = AssetParameters(asset="USDC", decimals=6)
GONE = AssetParameters(asset="GONE", decimals=6)
INSTRUMENT = InstrumentParameters(
    symbol="BTC-PERP",
    settle_asset="USDC",
    price_increment="0.1",
    quantity_increment="0.001",
    margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.05", initial_rate="0.1"),),
)
RULES = RiskParameters.build([USDC, INSTRUMENT, PolicyParameters()])
ROW = Decoder[AccountRow](AccountRow)


def row(account: str = "alice", **balances: str) -> dict[str, Any]:
    fields_of_row: dict[str, Any] = msgspec.to_builtins(
        AccountRow(
            account=account,
            status="normal",
            groups=(),
            liquidation_sequence=3,
            transfer_sequence=7,
            alert_sequence=5,
        )
    )
    group = {"margin": "cross", "status": "normal", "balances": balances or {"USDC": "1000"}, "positions": []}
    return fields_of_row | {"groups": [group]}


def with_group(**fields: Any) -> bytes:
    changed = row()
    changed["groups"][0] |= fields
    return encode(changed)


UNREADABLE = {
    "empty": b"",
    "not JSON": b'{"account": "alice", ',
    "no object": b"[1, 2]",
    "not UTF-8": b'{"account": "\xff\xfe"}',
    "another account's": encode(row("bob")),
    "a field is missing": encode({name: value for name, value in row().items() if name != "status"}),
    "an id too long": with_group(
        command={"command_id": "c" * 193, "stage": "reduce", "expires_at": 1, "orders": []},
    ),
    "a status of another version": with_group(status="restructured"),
    "a decimal with an exponent": with_group(balances={"USDC": "1E+3"}),
    "digits beyond those of a message": with_group(balances={"USDC": "1" * 19}),
    "an asset that is gone": encode(row(GONE="5")),
    "a symbol that is gone": with_group(positions=[{"symbol": "OLD-PERP", "quantity": "1", "cash": "-5"}]),
    "a quantity of half a lot": with_group(positions=[{"symbol": "BTC-PERP", "quantity": "0.0005", "cash": "-5"}]),
    "a number beyond 64 bits": encode(row()).replace(b'"alert_sequence":5', b'"alert_sequence":' + b"9" * 30),
    "a row that keeps what is no row": encode(row() | {"groups": [], "unread": "bm90IHpsaWI="}),
}


def decide(shard: Shard, price: str = "10000") -> Output:
    time = shard.clock_us + 250_000 if shard.clock_us else T0
    mark = Mark(symbol="BTC-PERP", price=price, status="live", publish_time=time)
    shard.apply_marks(shard.marks_next, MarkFrame(time=time, marks=(mark,), full=True))
    return shard.take("test")


def transfer(shard: Shard, account: str, amount: str, sequence: int) -> Output:
    columns = TransferColumns(
        account=[account], margin=["cross"], asset=["USDC"], amount=[amount], sequence=[sequence], transfer_id=["t"]
    )
    shard.apply_events(shard.events_next, EventFrame(time=shard.clock_us, transfers=columns))
    shard.decide_touched()
    return shard.take("test")


def fill(shard: Shard, account: str, quantity: str, price: str) -> Output:
    columns = FillColumns(
        account=[account],
        margin=["cross"],
        symbol=["BTC-PERP"],
        quantity=[quantity],
        price=[price],
        fee=["0"],
        order_id=["o"],
        trade_id=[1],
    )
    shard.apply_events(shard.events_next, EventFrame(time=shard.clock_us, fills=columns))
    shard.decide_touched()
    return shard.take("test")


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_a_row_that_cannot_be_read_suspends_its_account_alone(data: bytes) -> None:
    shard = Shard(0, RULES)
    shard.restore("alice", data)
    shard.restore("carol", encode(row("carol")))
    output = decide(shard)
    (alert,) = output.alerts
    assert (alert.kind, alert.account) == ("unreadable", shard_account(0))
    assert "account alice" in (alert.reason or "")
    kept = ROW(output.rows["alice"])
    assert (kept.status, kept.groups) == ("suspended", ())
    assert "carol" not in output.rows
    assert transfer(shard, "carol", "-900", 8).unapplied == []
    assert len(fill(shard, "carol", "0.3", "10000").commands) == 1


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_the_row_is_kept_and_told_of_once_over_any_number_of_owners(data: bytes) -> None:
    shard = Shard(0, RULES)
    shard.restore("alice", data)
    first = decide(shard).rows["alice"]
    assert first is not None
    for _ in range(3):
        shard = Shard(0, RULES)
        shard.restore("alice", first)
        output = decide(shard)
        assert (output.alerts, output.rows) == ([], {})
        assert shard.accounts["alice"].suspended
    assert shard.accounts["alice"].unread == data


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_what_comes_for_it_is_kept_in_the_dead_letters_and_counted(data: bytes) -> None:
    shard = Shard(0, RULES)
    shard.restore("alice", data)
    decide(shard)
    before = shard.accounts["alice"].unapplied.events
    outputs = [transfer(shard, "alice", "5", 8), fill(shard, "alice", "1", "10000")]
    assert [len(output.unapplied) for output in outputs] == [1, 1]
    assert [output.alerts for output in outputs] == [[], []]
    kept = ROW(outputs[-1].rows["alice"])
    assert (kept.unapplied, kept.groups) == (before + 2, ())
    assert shard.accounts["alice"].unread == data


def test_an_account_is_whole_again_once_parameters_hold_its_row() -> None:
    shard = Shard(0, RULES)
    shard.restore("alice", encode(row(GONE="5", USDC="7")))
    decide(shard)
    shard.apply_parameters(0, RULES.with_record(GONE))
    shard.decide_touched(everything=True)
    output = shard.take("test")
    state = shard.accounts["alice"]
    assert not state.suspended
    assert shard.portfolio.balances(state.groups["cross"].row) == {"GONE": "5", "USDC": "7"}
    whole = ROW(output.rows["alice"])
    assert (whole.unread, whole.liquidation_sequence, whole.transfer_sequence) == (None, 3, 7)
    assert transfer(shard, "alice", "1", 8).unapplied == []


def test_what_was_not_applied_meanwhile_keeps_it_suspended() -> None:
    shard = Shard(0, RULES)
    shard.restore("alice", encode(row(GONE="5")))
    decide(shard)
    transfer(shard, "alice", "1", 8)
    shard.apply_parameters(0, RULES.with_record(GONE))
    shard.decide_touched(everything=True)
    output = shard.take("test")
    state = shard.accounts["alice"]
    assert (state.unread, state.unapplied.events, state.suspended) == (None, 1, True)
    assert shard.portfolio.balances(state.groups["cross"].row) == {"GONE": "5"}
    again = Shard(0, RULES.with_record(GONE))
    assert output.rows["alice"] is not None
    again.restore("alice", output.rows["alice"])
    assert (again.accounts["alice"].unapplied.events, again.unread) == (1, {})


def test_nothing_of_a_row_that_fails_half_way_is_left_in_the_ledger() -> None:
    broken = row()
    broken["groups"].append(
        {"margin": "OLD-PERP", "status": "normal", "balances": {"GONE": "1"}, "positions": []},
    )
    shard = Shard(0, RULES)
    shard.restore("alice", encode(broken))
    rows = shard.portfolio.ledger.rows
    assert {rows.account(row) for row in range(rows.count)} == {""}


def test_behind_a_journal_that_cannot_be_read_everybody_is_decided_and_it_is_told() -> None:
    shard = Shard(0, RULES)
    at = Range(first=5, next=5)
    shard.resume(
        JournalRecord(
            kind="claim", shard=0, claim=-1, sequence=9, previous=8, events=at, marks=at, parameters=at, unread=2
        )
    )
    group = {
        "margin": "cross",
        "status": "normal",
        "balances": {"USDC": "100"},
        "positions": [{"symbol": "BTC-PERP", "quantity": "1", "cash": "-10000"}],
    }
    shard.restore("alice", encode(row() | {"groups": [group]}))
    mark = Mark(symbol="BTC-PERP", price="10000", status="live", publish_time=T0)
    shard.recall_marks(4, MarkFrame(time=T0, marks=(mark,), full=True))
    shard.stand()
    shard.apply_marks(5, MarkFrame(time=T0 + 1, marks=()))
    output = shard.take("test")
    assert [alert.kind for alert in output.alerts] == ["unreadable", "liquidation_started"]
    assert len(output.commands) == 1
    assert output.journal.alert_sequence == 1
    assert shard.cursor.unread == 0


def test_a_journal_record_names_as_many_commands_as_it_has_room_for_and_counts_all() -> None:
    shard = Shard(0, RULES)
    decide(shard)
    count = COMMAND_NAMES_BYTES_MAX // 125
    accounts = [f"{index:06d}{'x' * 120}" for index in range(count)]
    for account in accounts:
        group = {
            "margin": "cross",
            "status": "normal",
            "balances": {"USDC": "600"},
            "positions": [{"symbol": "BTC-PERP", "quantity": "1", "cash": "-10000"}],
        }
        shard.restore(account, json.dumps(row(account) | {"groups": [group]}).encode())
    output = decide(shard, "9000")
    assert len(output.commands) == count == output.journal.command_count
    named = output.journal.commands
    assert 0 < len(named) < count
    assert named == tuple(command.command_id for command in output.commands[: len(named)])
    assert Decoder[JournalRecord](JournalRecord)(encode(output.journal)) == output.journal


def test_whoever_was_below_the_requirement_when_the_shard_was_taken_is_decided_at_once() -> None:
    """As a version that did not judge debts without positions left it: normal, and no further fall leaves its band."""
    tiers = (CollateralTier(quantity_floor="0", weight="0.9"),)
    rules = RULES.with_record(AssetParameters(asset="BTC", price_symbol="BTC-USD", collateral_tiers=tiers))
    shard = Shard(0, rules)
    at = Range(first=5, next=5)
    shard.resume(
        JournalRecord(
            kind="commit", shard=0, claim=1, sequence=9, previous=8, events=at, marks=at, parameters=at, clock=T0
        )
    )
    shard.restore("alice", encode(row(BTC="1", USDC="-95")))

    def frame(price: str) -> MarkFrame:
        mark = Mark(symbol="BTC-USD", price=price, status="live", publish_time=T0)
        return MarkFrame(time=T0, marks=(mark,), full=True)

    shard.recall_marks(4, frame("100"))
    shard.stand()
    shard.apply_marks(5, frame("99"))
    assert len(shard.take("test").commands) == 1


def test_numbers_of_alerts_in_a_journal_that_cannot_be_read_are_left_open() -> None:
    at = Range(first=5, next=5)
    known = JournalRecord(
        kind="commit", shard=0, claim=1, sequence=9, previous=8, events=at, marks=at, parameters=at, alert_sequence=3
    )
    stood = stand(JournalEnd(known, None, 2), 7, known)  # type: ignore[arg-type]
    assert (stood.kind, stood.unread, stood.sequence) == ("claim", 2, 11)
    assert stood.alert_sequence == 3 + 2 * ALERTS_LEFT_OPEN
