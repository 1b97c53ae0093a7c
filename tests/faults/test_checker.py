"""The checker passes records that are right, and finds the one thing that was changed in them."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from schemas import topics
from schemas.partitioning import shard_of
from tests.faults.checker import CHECKS, judge
from tests.faults.load import POISON
from tests.faults.records import RunRecords, TopicRecord

SYMBOL = "X-PERP"
SHARDS = 2


def account_of(name: str, shard: int = 0) -> str:
    """``name`` with a number that puts it into ``shard``."""
    return next(account for n in itertools.count() if shard_of(account := f"{name}{n}", SHARDS) == shard)


ALICE, MAKER, STRANGER = account_of("alice"), account_of("maker"), account_of("stranger", 1)


def record(
    offset: int, value: Any, key: str = "", partition: int = 0, headers: dict[str, bytes] | None = None
) -> TopicRecord:
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    return TopicRecord(partition, offset, key.encode() or None, data, headers or {})


def letter_of(offset: int) -> dict[str, bytes]:
    """Headers of the dead letter of a record of partition 0."""
    return {"dlq.partition": b"0", "dlq.offset": str(offset).encode()}


def change(records: RunRecords, topic: str, index: int, **changes: Any) -> None:
    """Put ``changes`` into the JSON of one record."""
    old = records.logs[topic][index]
    value = old.json() | changes
    records.logs[topic][index] = TopicRecord(old.partition, old.offset, old.key, orjson.dumps(value), old.headers)


def trade(number: int, price: str, quantity: str, aggressor: str, order: str, fee: str) -> dict[str, Any]:
    return {
        "trade_id": number, "symbol": SYMBOL, "price": price, "quantity": quantity, "aggressor_side": aggressor,
        "maker": {"account": MAKER, "order_id": f"m{number}", "fee": "0"},
        "taker": {"account": ALICE, "order_id": order, "fee": fee},
    }  # fmt: skip


def transfer(account: str, amount: str, sequence: int) -> dict[str, Any]:
    return {"account": account, "asset": "USDC", "amount": amount, "sequence": sequence, "margin": "cross"}


def row(account: str, balance: str, quantity: str, cash: str, **fields: Any) -> dict[str, Any]:
    group = {
        "margin": "cross", "balances": {"USDC": balance}, "command": None,
        "positions": [{"symbol": SYMBOL, "quantity": quantity, "cash": cash}],
    }  # fmt: skip
    return {
        "account": account, "groups": [group], "liquidation_sequence": 0, "transfer_sequence": 1, "alert_sequence": 0,
        "unapplied": 0, "suspended_reason": None,
    } | fields  # fmt: skip


def fills(*rows: tuple[str, str, str, str, int]) -> dict[str, list[Any]]:
    accounts, quantities, prices, fees, numbers = (list(column) for column in zip(*rows, strict=True))
    same = {"margin": ["cross"] * len(rows), "symbol": [SYMBOL] * len(rows)}
    return {"account": accounts, "quantity": quantities, "price": prices, "fee": fees, "trade_id": numbers} | same


def frame(**kinds: Any) -> dict[str, Any]:
    nothing: dict[str, dict[str, list[Any]]] = {
        "transfers": {"account": [], "margin": [], "asset": [], "amount": [], "sequence": []},
        "fills": {
            "account": [], "margin": [], "symbol": [], "quantity": [], "price": [], "fee": [], "trade_id": [],
        },
        "reports": {"account": [], "order_id": []},
    }  # fmt: skip
    return nothing | kinds


def marks(time: int, price: str, status: str = "live") -> dict[str, Any]:
    mark = {"symbol": SYMBOL, "price": price, "status": status, "publish_time": time}
    return {"time": time, "full": True, "epoch": 1, "marks": [mark]}


def journal(sequence: int, previous: int, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "commit", "claim": 0, "sequence": sequence, "previous": previous, "events": [0, 0], "marks": [0, 0],
        "parameters": [2, 2], "marks_before": fields.get("marks", [0, 0])[0], "accounts": 0, "commands": [],
    } | fields  # fmt: skip


# --- a run that is right ---------------------------------------------------------------------------------------------

ORDER = f"{ALICE}:1:0"
DEPOSITS = [transfer(ALICE, "100", 1), transfer(MAKER, "10000", 1), transfer(ALICE, "100", 1)]
LAST_ROWS = {
    ALICE: row(ALICE, "99", "8", "-812", liquidation_sequence=1, alert_sequence=1),
    MAKER: row(MAKER, "10000", "-8", "812"),
}


def inputs() -> dict[str, list[TopicRecord]]:
    """The logs from outside, and the dead letters of what could not be read."""
    opening, closing = trade(1, "100", "10", "buy", "o1", "0"), trade(2, "94", "2", "sell", ORDER, "1")
    poison = POISON.decode() + "0"
    tier = {"notional_floor": "0", "maintenance_rate": "0.05", "initial_rate": "0.1"}
    return {
        topics.PARAMETERS: [
            record(0, {"asset": "USDC", "price_symbol": None}, "asset:USDC"),
            record(1, {"settle_asset": "USDC", "margin_tiers": [tier]}, f"instrument:{SYMBOL}"),
            record(2, b"{", poison),
        ],
        topics.dead_letter_topic(topics.PARAMETERS): [record(0, b"{", poison, headers=letter_of(2))],
        topics.TRANSFERS: [record(offset, value) for offset, value in enumerate(DEPOSITS)],
        topics.TRADES: [
            record(0, opening), record(1, opening), record(2, b"{", poison), record(3, closing),
        ],
        topics.dead_letter_topic(topics.TRADES): [record(0, b"{", poison, headers=letter_of(2))],
        topics.PRICES: [record(2, b"nope", poison)],
        topics.dead_letter_topic(topics.PRICES): [record(n, b"nope", poison, headers=letter_of(2)) for n in (0, 1)],
        topics.REPORTS: [record(0, {"account": ALICE, "order_id": ORDER, "status": "filled"})],
    }  # fmt: skip


def routed() -> list[TopicRecord]:
    """The frames that the router makes of the inputs."""
    columns = ("account", "margin", "asset", "amount", "sequence")
    opened = frame(
        transfers={name: [deposit[name] for deposit in DEPOSITS] for name in columns},
        fills=fills((ALICE, "10", "100", "0", 1), (MAKER, "-10", "100", "0", 1)),
    )
    closed = frame(
        fills=fills((ALICE, "-2", "94", "1", 2), (MAKER, "2", "94", "0", 2)),
        reports={"account": [ALICE], "order_id": [ORDER]},
    )
    return [record(0, opened), record(2, closed)]


def outputs() -> dict[str, list[TopicRecord]]:
    """The logs of the oracle and of the engine."""
    command = {
        "command_id": f"{ALICE}:1", "account": ALICE, "margin": "cross", "sequence": 1,
        "evidence": {
            "equity": "40", "maintenance_margin": "47", "health_ratio": "0.85106382", "shard": 0,
            "events_offset": 0, "marks_offset": 1, "parameters_version": 1, "marks": {SYMBOL: "94"},
        },
    }  # fmt: skip
    return {
        topics.MARKS: [record(0, marks(10, "100")), record(1, marks(20, "94")), record(2, marks(30, "95"))],
        topics.COMMANDS: [record(0, command)],
        topics.ALERTS: [record(0, {"alert_id": f"{ALICE}:alert:1", "account": ALICE})],
        topics.ACCOUNTS: [
            record(0, row(ALICE, "100", "10", "-1000"), ALICE), record(1, row(MAKER, "10000", "-10", "1000"), MAKER),
            record(3, LAST_ROWS[ALICE], ALICE), record(4, LAST_ROWS[MAKER], MAKER),
        ],
        topics.JOURNAL: [
            record(0, journal(1, -1, kind="claim", claim=-1)),
            record(2, journal(2, 0, events=[0, 1], marks=[0, 2], accounts=2, commands=[f"{ALICE}:1"])),
            record(4, journal(3, 2, events=[1, 3], marks=[2, 3], accounts=2)),
            record(0, journal(1, -1, kind="claim", claim=-1), partition=1),
            record(2, journal(2, 0, marks=[0, 3]), partition=1),
        ],
    }  # fmt: skip


@pytest.fixture
def right() -> RunRecords:
    """Alice is long 10 at 100 on 100; at 94 she is below maintenance; 2 are sold at 94 for a fee of 1.

    Her transfer and the first trade came twice; one trade and one price could not be read.
    """
    return RunRecords(
        SHARDS,
        logs=inputs() | {topics.EVENTS: routed()} | outputs(),
        committed={
            (topics.TRADES, 0): 4,
            (topics.TRANSFERS, 0): 3,
            (topics.EVENTS, 0): 3,
            (topics.EVENTS, 1): 0,
        },
        tables={0: {account: orjson.dumps(value) for account, value in LAST_ROWS.items()}, 1: {}},
        metas={0: {"token": "0"}, 1: {"token": "0"}},
    )


def test_records_that_are_right_pass_every_check(right: RunRecords) -> None:
    verdict = judge(right)
    assert verdict.differences == {name: [] for name in CHECKS}
    assert (verdict.passed, verdict.commands, verdict.lost, verdict.repeated) == (True, 1, 0, 0)


# --- tampering -------------------------------------------------------------------------------------------------------


def lose_a_fill(records: RunRecords) -> None:
    change(records, topics.EVENTS, 1, fills=fills((ALICE, "-2", "94", "1", 2)))


def route_a_trade_twice(records: RunRecords) -> None:
    both = [(ALICE, "-2", "94", "1", 2), (MAKER, "2", "94", "0", 2)]
    change(records, topics.EVENTS, 1, fills=fills(*both, *both))


def route_a_trade_to_another_shard(records: RunRecords) -> None:
    old = records.logs[topics.EVENTS][1]
    records.logs[topics.EVENTS][1] = TopicRecord(1, old.offset, old.key, old.value)


def lose_a_report(records: RunRecords) -> None:
    change(records, topics.EVENTS, 1, reports={"account": [], "order_id": []})


def state_fees_and_book_none(records: RunRecords) -> None:
    change(records, topics.COMMANDS, 0, orders=[{"order_id": ORDER, "liquidation_fee": "0.005"}])


def book_fees_of_no_fill(records: RunRecords) -> None:
    fees = {"order_id": ORDER, "price": "94", "quantity": "-7", "asset": "USDC", "after_command": 1}
    fees |= {"liquidation_fee": "0", "insurance_fee": "0"}
    change(records, topics.ALERTS, 0, margin="cross", fees=fees)


def lose_a_unit(records: RunRecords) -> None:
    changed = row(ALICE, "98.999999", "8", "-812", liquidation_sequence=1, alert_sequence=1)
    records.logs[topics.ACCOUNTS][2] = record(3, changed, ALICE)
    records.tables[0][ALICE] = orjson.dumps(changed)


def apply_a_transfer_twice(records: RunRecords) -> None:
    change(records, topics.ACCOUNTS, 3, transfer_sequence=2)


def lose_poison(records: RunRecords) -> None:
    records.logs[topics.dead_letter_topic(topics.TRADES)].clear()


def repeat_poison(records: RunRecords) -> None:
    records.logs[topics.dead_letter_topic(topics.PARAMETERS)] *= 2


def change_poison(records: RunRecords) -> None:
    letters = records.logs[topics.dead_letter_topic(topics.TRADES)]
    letters[0] = TopicRecord(0, 0, letters[0].key, b"}", letters[0].headers)


def refuse_a_readable_record(records: RunRecords) -> None:
    letters = records.logs[topics.dead_letter_topic(topics.TRADES)]
    letters.append(record(1, trade(1, "100", "10", "buy", "o1", "0"), headers=letter_of(1)))


def lose_a_price_letter(records: RunRecords) -> None:
    records.logs[topics.dead_letter_topic(topics.PRICES)].clear()


def leave_a_record_unread(records: RunRecords) -> None:
    records.committed[topics.TRADES, 0] = 3


def commit_another_offset_than_the_journal(records: RunRecords) -> None:
    records.committed[topics.EVENTS, 0] = 4


def drop_a_command(records: RunRecords) -> None:
    records.logs[topics.COMMANDS].clear()


def repeat_a_command(records: RunRecords) -> None:
    records.logs[topics.COMMANDS] *= 2


def skip_a_command_number(records: RunRecords) -> None:
    change(records, topics.COMMANDS, 0, sequence=2, command_id=f"{ALICE}:2")


def issue_a_command_the_journal_does_not_know(records: RunRecords) -> None:
    change(records, topics.JOURNAL, 1, commands=[])


def drop_an_alert(records: RunRecords) -> None:
    records.logs[topics.ALERTS].clear()


def repeat_an_alert(records: RunRecords) -> None:
    records.logs[topics.ALERTS] *= 2


def change_evidence(records: RunRecords, **changes: Any) -> None:
    change(records, topics.COMMANDS, 0, evidence=records.logs[topics.COMMANDS][0].json()["evidence"] | changes)


def liquidate_a_healthy_account(records: RunRecords) -> None:
    change_evidence(records, marks_offset=0)


def misstate_equity(records: RunRecords) -> None:
    change_evidence(records, equity="40.01")


def invent_a_mark(records: RunRecords) -> None:
    change_evidence(records, marks={SYMBOL: "93"})


def liquidate_on_a_halted_mark(records: RunRecords) -> None:
    records.logs[topics.MARKS][1] = record(1, marks(20, "94", "halted"))


def liquidate_on_an_old_mark(records: RunRecords) -> None:
    change(records, topics.MARKS, 1, time=10_000_000)


def withdraw_from_a_group_below_maintenance(records: RunRecords) -> None:
    change(records, topics.COMMANDS, 0, stage="withdrawn", supersedes="x:1", orders=[])


def leave_somebody_below_maintenance(records: RunRecords) -> None:
    records.logs[topics.MARKS].append(record(3, marks(40, "90")))


def suspend_somebody(records: RunRecords) -> None:
    change(records, topics.ACCOUNTS, 3, unapplied=1, suspended_reason="unknown symbol")


def break_a_journal_link(records: RunRecords) -> None:
    change(records, topics.JOURNAL, 2, previous=1)


def skip_a_journal_record(records: RunRecords) -> None:
    change(records, topics.JOURNAL, 2, sequence=4)


def skip_a_mark(records: RunRecords) -> None:
    change(records, topics.JOURNAL, 2, marks=[3, 3])


def apply_events_twice(records: RunRecords) -> None:
    change(records, topics.JOURNAL, 2, events=[0, 3])


def commit_under_a_claim_that_was_superseded(records: RunRecords) -> None:
    records.logs[topics.JOURNAL][2:3] = [
        record(4, journal(3, 2, kind="claim", events=[1, 1], marks=[2, 2])),
        record(6, journal(4, 4, events=[1, 3], marks=[2, 3], accounts=2)),
    ]


def let_a_claim_cover_inputs(records: RunRecords) -> None:
    change(records, topics.JOURNAL, 0, marks=[0, 1])


def write_a_row_the_journal_does_not_know(records: RunRecords) -> None:
    records.logs[topics.ACCOUNTS].insert(0, records.logs[topics.ACCOUNTS][0])


def change_redis(records: RunRecords) -> None:
    records.tables[0][ALICE] += b" "


def lose_a_row_in_redis(records: RunRecords) -> None:
    del records.tables[0][MAKER]


def keep_a_row_too_many_in_redis(records: RunRecords) -> None:
    records.tables[1][STRANGER] = b"{}"


def leave_an_old_token_in_redis(records: RunRecords) -> None:
    records.metas[0]["token"] = "-1"


def leave_a_table_half_built(records: RunRecords) -> None:
    records.metas[1]["building"] = "1"


def put_a_row_into_the_wrong_table(records: RunRecords) -> None:
    records.tables[1][MAKER] = records.tables[0].pop(MAKER)


def leave_accounts_on_their_way(records: RunRecords) -> None:
    records.logs[topics.LAYOUT] = [record(0, {"shards": SHARDS, "time": 1, "target": SHARDS + 1, "step": 0})]


Tamper = Callable[[RunRecords], None]
TAMPERED: dict[str, list[Tamper]] = {
    "every_trade_is_routed_once": [lose_a_fill, route_a_trade_twice, route_a_trade_to_another_shard],
    "every_transfer_and_report_is_routed_once": [lose_a_report],
    "ledger_equals_recomputation": [lose_a_unit, apply_a_transfer_twice],
    "fees_are_booked_once": [state_fees_and_book_none, book_fees_of_no_fill],
    "poison_is_in_the_dead_letters": [
        lose_poison,
        repeat_poison,
        change_poison,
        refuse_a_readable_record,
        lose_a_price_letter,
    ],
    "groups_have_read_everything": [leave_a_record_unread, commit_another_offset_than_the_journal],
    "commands_are_unique_and_gapless": [
        drop_a_command,
        repeat_a_command,
        skip_a_command_number,
        issue_a_command_the_journal_does_not_know,
    ],
    "alerts_are_unique_and_gapless": [drop_an_alert, repeat_an_alert],
    "every_command_is_justified": [
        liquidate_a_healthy_account,
        misstate_equity,
        invent_a_mark,
        liquidate_on_a_halted_mark,
        liquidate_on_an_old_mark,
        withdraw_from_a_group_below_maintenance,
    ],
    "nobody_is_left_liquidatable": [leave_somebody_below_maintenance],
    "only_whom_poison_names_is_suspended": [suspend_somebody],
    "journal_is_contiguous": [
        break_a_journal_link,
        skip_a_journal_record,
        skip_a_mark,
        apply_events_twice,
        commit_under_a_claim_that_was_superseded,
        let_a_claim_cover_inputs,
    ],
    "journal_accounts_for_every_row": [write_a_row_the_journal_does_not_know],
    "redis_equals_changelog": [
        change_redis,
        lose_a_row_in_redis,
        keep_a_row_too_many_in_redis,
        leave_an_old_token_in_redis,
        leave_a_table_half_built,
        put_a_row_into_the_wrong_table,
    ],
    "every_account_has_arrived": [leave_accounts_on_their_way],
}
CASES = [(check, tamper) for check, tampers in TAMPERED.items() for tamper in tampers]


@pytest.mark.parametrize(("check", "tamper"), CASES, ids=[tamper.__name__ for _, tamper in CASES])
def test_a_check_finds_what_was_changed(right: RunRecords, check: str, tamper: Tamper) -> None:
    changed = copy.deepcopy(right)
    tamper(changed)
    verdict = judge(changed)
    assert verdict.differences[check]
    assert not verdict.passed
    assert not any("cannot be judged" in text for text in verdict.differences[check]), "found, not stumbled over"


def test_every_check_is_put_to_the_test() -> None:
    assert TAMPERED.keys() == CHECKS.keys()


@pytest.mark.parametrize(
    ("tamper", "lost", "repeated"),
    [(drop_a_command, True, False), (repeat_a_command, False, True), (lose_poison, True, False)],
)
def test_what_is_lost_and_what_is_repeated_is_counted(
    right: RunRecords, tamper: Tamper, lost: bool, repeated: bool
) -> None:
    tamper(right)
    verdict = judge(right)
    assert (verdict.lost > 0, verdict.repeated > 0) == (lost, repeated)


def test_an_open_command_excuses_a_group_below_maintenance(right: RunRecords) -> None:
    leave_somebody_below_maintenance(right)
    groups = right.logs[topics.ACCOUNTS][2].json()["groups"]
    groups[0]["command"] = {"command_id": f"{ALICE}:1"}
    change(right, topics.ACCOUNTS, 2, groups=groups)
    assert CHECKS["nobody_is_left_liquidatable"](right) == []


def test_records_that_cannot_be_judged_are_a_difference(right: RunRecords) -> None:
    right.logs[topics.COMMANDS] = [record(0, {})]
    assert any("cannot be judged" in text for text in judge(right).differences["every_command_is_justified"])
