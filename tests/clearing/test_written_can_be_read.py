"""What a shard writes can be read: with every limit reached at once, and whatever it is given."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.codec import MESSAGE_BYTES_MAX, Decoder, encode
from schemas.messages import (
    AccountRow,
    Alert,
    CommandOrder,
    EventFrame,
    Evidence,
    FillColumns,
    GroupRow,
    JournalRecord,
    LiquidationCommand,
    Mark,
    MarkFrame,
    OpenCommand,
    OpenOrder,
    ParkedTransfer,
    PositionRow,
    Range,
    ReportColumns,
    TransferColumns,
    WaitingFill,
)
from schemas.parameters import AssetParameters, InstrumentParameters, MarginTier, Parameter, PolicyParameters, Scale
from schemas.types import TIME_US_MAX
from streams.clearing.account import PARKED_MAX, REFUSED_PLACES_MAX, WAITING_FILLS_MAX, account_row
from streams.clearing.awaited import AWAITED_MAX
from streams.clearing.journal import COMMAND_NAMES_BYTES_MAX
from streams.clearing.shard import Output, Shard
from streams.clearing.transfers import GAPS_MAX
from streams.errors import ParameterError
from streams.margin.limits import (
    ACCOUNT_ORDERS_MAX,
    ASSETS_MAX,
    ISOLATED_ASSETS_MAX,
    ISOLATED_GROUPS_MAX,
    OPEN_INTEREST_SYMBOLS_MAX,
    POOLS_MAX,
    POSITIONS_MAX,
)
from streams.margin.parameters import RiskParameters
from streams.margin.plan import ORDERS_MAX
from tests.properties import examples

MOST = 2**63 - 1
ACCOUNT = "~" * 128
DECIMAL = "9" * 18 + "." + "9" * 18
SIGNED = "-" + DECIMAL
DERIVED = "-" + "9" * 60 + "." + "9" * 18
UNSIGNED = DERIVED[1:]
RATE = "0." + "9" * 18
RANGE = Range(first=MOST, next=MOST)


def symbol(number: int) -> str:
    return f"{number:06d}".ljust(32, "X")


def asset(number: int) -> str:
    return f"{number:06d}".ljust(16, "X")


def position(number: int) -> PositionRow:
    return PositionRow(symbol=symbol(number), quantity=SIGNED, cash=SIGNED)


def command(orders: int) -> OpenCommand:
    order = OpenOrder(
        order_id=f"{ACCOUNT}:{MOST}:511",
        quantity=DECIMAL,
        filled=UNSIGNED,
        final=DECIMAL,
        symbol=symbol(0),
        order_side="sell",
        status="partly_filled",
        mark_price=DECIMAL,
        liquidation_fee=RATE,
        insurance_fee=RATE,
    )
    return OpenCommand(
        command_id=f"{ACCOUNT}:{MOST}",
        stage="deleverage",
        expires_at=TIME_US_MAX,
        orders=(order,) * orders,
        status="partly_filled",
        withdrawn_by=f"{ACCOUNT}:{MOST}",
    )


def group(margin: str, assets: int, positions: range, orders: int) -> GroupRow:
    return GroupRow(
        margin=margin,
        status="margin_call",
        balances={asset(number): SIGNED for number in range(assets)},
        positions=tuple(map(position, positions)),
        margin_call_level="9" * 18,
        command=command(orders),
        told_undecided=False,
        liquidation_started=False,
    )


def test_a_row_with_every_limit_reached_can_be_read() -> None:
    """One group has all the orders that there may be, each of the others the one it always gets."""
    cross = group("cross", ASSETS_MAX, range(POSITIONS_MAX), ACCOUNT_ORDERS_MAX)
    isolated = [
        group(symbol(number), ISOLATED_ASSETS_MAX + 1, range(number, number + 1), 1)
        for number in range(ISOLATED_GROUPS_MAX)
    ]
    parked = ParkedTransfer(
        transfer_id="~" * 128, sequence=MOST, margin=symbol(0), asset=asset(0), amount=SIGNED, offset=MOST
    )
    waiting = WaitingFill(
        trade_id=MOST,
        order_id="~" * 192,
        margin=symbol(0),
        symbol=symbol(0),
        quantity=SIGNED,
        price=DECIMAL,
        fee=SIGNED,
        offset=MOST,
    )
    row = AccountRow(
        account=ACCOUNT,
        status="margin_call",
        groups=(cross, *isolated),
        liquidation_sequence=MOST,
        transfer_sequence=MOST,
        alert_sequence=MOST,
        unapplied=MOST,
        unapplied_credits=MOST,
        transfer_digest=2**32 - 1,
        suspended_reason='"' * 1000,
        told_liquidatable=False,
        parked=(parked,) * PARKED_MAX,
        transfer_gaps=(RANGE,) * GAPS_MAX,
        transfer_floor=MOST,
        waiting_fills=(waiting,) * WAITING_FILLS_MAX,
        refused={f"{number:03d}".ljust(128, "x") + ":2147483647": MOST for number in range(REFUSED_PLACES_MAX)},
    )
    assert Decoder[AccountRow](AccountRow)(encode(row)) == row


def test_a_command_with_every_limit_reached_can_be_read() -> None:
    order = CommandOrder(
        order_id=f"{ACCOUNT}:{MOST}:511",
        symbol=symbol(0),
        position_side="short",
        order_side="sell",
        quantity=DECIMAL,
        reduce_only=False,
        limit_price=DERIVED,
        mark_price=DECIMAL,
        liquidation_fee=RATE,
        insurance_fee=RATE,
    )
    symbols = [symbol(number) for number in range(POSITIONS_MAX + ASSETS_MAX)]
    evidence = Evidence(
        equity=DERIVED,
        maintenance_margin=UNSIGNED,
        health_ratio=DERIVED,
        shard=1023,
        events_offset=MOST,
        marks_offset=MOST,
        parameters_version=MOST,
        marks=dict.fromkeys(symbols, DECIMAL),
        reason="equity_below_maintenance",
        scales={f"instrument:{name}": "1000000000000" for name in symbols},
        debt=UNSIGNED,
        unweighted_equity=DERIVED,
        stale_bounds=dict.fromkeys(symbols, "1000000"),
    )
    longest = LiquidationCommand(
        command_id=f"{ACCOUNT}:{MOST}",
        account=ACCOUNT,
        margin=symbol(0),
        sequence=MOST,
        stage="deleverage",
        supersedes=f"{ACCOUNT}:{MOST - 1}",
        cancel_open_orders=False,
        issued_at=TIME_US_MAX,
        expires_at=TIME_US_MAX,
        orders=(order,) * min(ACCOUNT_ORDERS_MAX, ORDERS_MAX),
        evidence=evidence,
    )
    assert Decoder[LiquidationCommand](LiquidationCommand)(encode(longest)) == longest


def test_a_journal_record_with_every_limit_reached_can_be_read() -> None:
    kinds = ("undecided", "unsellable", "insolvent", "suspended", "parked", "waiting", "unapplied")
    name = f"{ACCOUNT}:{MOST}"
    record = JournalRecord(
        kind="commit",
        shard=1023,
        claim=MOST,
        sequence=MOST,
        previous=MOST,
        events=RANGE,
        marks=RANGE,
        parameters=RANGE,
        marks_before=MOST,
        marks_full=MOST,
        clock=TIME_US_MAX,
        rules_next=MOST,
        accounts=MOST,
        commands=(name,) * (COMMAND_NAMES_BYTES_MAX // (len(name) + 3)),
        open_interest={symbol(number): UNSIGNED for number in range(OPEN_INTEREST_SYMBOLS_MAX)},
        worker="w" * 300,
        command_count=MOST,
        alert_sequence=MOST,
        not_live={symbol(number): TIME_US_MAX for number in range(AWAITED_MAX)},
        told_not_live=tuple(symbol(number) for number in range(AWAITED_MAX)),
        skewed={"events": TIME_US_MAX, "marks": TIME_US_MAX},
        unread=MOST,
        unreached=dict.fromkeys(kinds, MOST),
        unreached_notional=dict.fromkeys(kinds, UNSIGNED),
        pools={symbol(number): {asset(0): UNSIGNED} for number in range(POOLS_MAX)},
    )
    assert Decoder[JournalRecord](JournalRecord)(encode(record)) == record


# --- what leads there ------------------------------------------------------------------------------------------------


def instrument(name: str, **changes: Any) -> InstrumentParameters:
    fields: dict[str, Any] = {
        "symbol": name,
        "settle_asset": "USDC",
        "price_increment": "0.1",
        "quantity_increment": "0.001",
        "margin_tiers": (MarginTier(notional_floor="0", maintenance_rate="0.05", initial_rate="0.1"),),
        "max_order_notional": "1",
    }
    return InstrumentParameters(**{**fields, **changes})


def rules(*records: Parameter) -> RiskParameters:
    policy = PolicyParameters(slices_open_max=512)
    return RiskParameters.build([AssetParameters(asset="USDC", decimals=6), policy, *records])


def read_back(output: Output) -> None:
    """Everything in ``output`` is what its decoder reads."""
    for row in output.rows.values():
        assert row is None or encode(Decoder[AccountRow](AccountRow)(row)) == row
    for one in output.commands:
        assert Decoder[LiquidationCommand](LiquidationCommand)(encode(one)) == one
    for alert in output.alerts:
        assert Decoder[Alert](Alert)(encode(alert)) == alert
    for letter in output.unapplied:
        Decoder[EventFrame](EventFrame)(letter.frame)
    assert Decoder[JournalRecord](JournalRecord)(encode(output.journal)) == output.journal


def events(shard: Shard, **columns: Any) -> Output:
    shard.apply_events(shard.events_next, EventFrame(time=shard.clock_us, **columns))
    shard.decide_touched()
    output = shard.take("test", with_open_interest=True)
    read_back(output)
    return output


def marks(shard: Shard, prices: dict[str, str], status: str = "live") -> Output:
    time = shard.clock_us + 250_000
    new_marks = tuple(
        Mark(symbol=name, price=price, status=status, publish_time=time)  # type: ignore[arg-type]
        for name, price in prices.items()
    )
    shard.apply_marks(shard.marks_next, MarkFrame(time=time, full=True, marks=new_marks))
    output = shard.take("test", with_open_interest=True)
    read_back(output)
    return output


def transfers(*rows: tuple[str, str, str, str, int]) -> TransferColumns:
    accounts, margins, assets, amounts, sequences = ([row[index] for row in rows] for index in range(5))
    return TransferColumns(
        account=accounts,  # type: ignore[arg-type]
        margin=margins,  # type: ignore[arg-type]
        asset=assets,  # type: ignore[arg-type]
        amount=amounts,  # type: ignore[arg-type]
        sequence=sequences,  # type: ignore[arg-type]
        transfer_id=["t"] * len(rows),
    )


def fills(*rows: tuple[str, str, str, str, str, str, str]) -> FillColumns:
    names = ("account", "margin", "symbol", "quantity", "price", "fee", "order_id")
    columns: dict[str, Any] = {name: [row[index] for row in rows] for index, name in enumerate(names)}
    return FillColumns(**columns, trade_id=list(range(len(rows))))


def same_rows(shard: Shard, rows: dict[str, bytes]) -> None:
    """A shard restored from ``rows`` has the same rows."""
    again = Shard(0, shard.parameters)
    for account, row in rows.items():
        again.restore(account, row)
        kept = account_row(again.accounts[account], again.portfolio.ledger)
        assert kept is not None
        assert encode(kept) == row
    assert again.unread == {}


@pytest.mark.parametrize("unknown_count", [1_200, pytest.param(12_000, marks=pytest.mark.long)])
def test_groups_are_only_those_of_instruments_and_as_many_as_a_row_holds(unknown_count: int) -> None:
    names = [f"S{number}-PERP" for number in range(ISOLATED_GROUPS_MAX + 50)]
    shard = Shard(0, rules(*map(instrument, names)))
    marks(shard, {"S0-PERP": "100"})
    unknown = [("alice", f"any-{number}", "USDC", "1", number) for number in range(unknown_count)]
    for first in range(0, len(unknown), len(unknown) // 3):
        events(shard, transfers=transfers(*unknown[first : first + len(unknown) // 3]))
    assert set(shard.accounts["alice"].groups) <= {"cross"}
    known = [("bob", name, "USDC", "1", number) for number, name in enumerate(names)]
    output = events(shard, transfers=transfers(*known))
    assert len(shard.accounts["bob"].groups) == ISOLATED_GROUPS_MAX
    assert (len(shard.accounts["bob"].parked), output.unapplied) == (50, [])
    output = events(shard, transfers=transfers(("bob", names[-1], "USDC", "-2", len(names))))
    assert shard.accounts["bob"].suspended, "a debit that no credit covers"


def test_an_account_of_more_positions_than_a_row_holds_is_suspended() -> None:
    names = [symbol(number) for number in range(POSITIONS_MAX + 10)]
    shard = Shard(0, rules(*map(instrument, names)))
    marks(shard, {names[0]: "100"})
    output = events(shard, fills=fills(*(("alice", "cross", name, "1", "100", "0", "o") for name in names)))
    state = shard.accounts["alice"]
    assert (len(output.unapplied), state.unapplied.events) == (10, 10)
    assert len(shard.portfolio.positions(state.groups["cross"].row)) == POSITIONS_MAX


def test_the_commands_of_an_account_share_the_orders_that_its_row_holds() -> None:
    names = [f"S{number}-PERP" for number in range(20)]
    shard = Shard(0, rules(*map(instrument, names)))
    prices = dict.fromkeys(names, "100")
    marks(shard, prices)
    rows = [(ACCOUNT, name, "USDC", "6000", number) for number, name in enumerate(names)]
    events(shard, transfers=transfers(*rows))
    events(shard, fills=fills(*((ACCOUNT, name, name, "1000", "100", "0", "o") for name in names)))
    output = marks(shard, dict.fromkeys(names, "98"))
    assert len(output.commands) == len(names)
    sizes = [len(one.orders) for one in output.commands]
    assert sum(sizes) <= ACCOUNT_ORDERS_MAX + len(names)
    assert min(sizes) == 1 < max(sizes)
    (row,) = output.rows.values()
    assert row is not None
    assert len(row) <= MESSAGE_BYTES_MAX
    same_rows(shard, {ACCOUNT: row})


def test_parameters_name_no_more_than_a_row_and_a_record_hold() -> None:
    full = rules(*(AssetParameters(asset=asset(number)) for number in range(ASSETS_MAX - 1)))
    assert full.with_record(AssetParameters(asset=asset(0), decimals=2)).assets[asset(0)].decimals == 2
    with pytest.raises(ParameterError, match="the most there may be"):
        full.with_record(AssetParameters(asset="ONE-MORE"))
    pools = rules(*(instrument(symbol(number), fund=f"pool-{number}") for number in range(POOLS_MAX)))
    pools = pools.with_record(instrument(symbol(0), fund="another")).with_record(instrument("ONE-MORE", fund="pool-1"))
    with pytest.raises(ParameterError, match=f"more than {POOLS_MAX} pools"):
        pools.with_record(instrument("TWO-MORE", fund="pool-0"))
    fewer = pools.with_encoded(f"instrument:{symbol(0)}".encode(), None)
    assert fewer.with_record(instrument("TWO-MORE", fund="pool-0")).instruments["TWO-MORE"].fund == "pool-0"


ACCOUNTS = st.sampled_from(["a", "~" * 128, "!" * 127, "a:1", "a:alert:1", "x" * 100])
NAMES = st.sampled_from(["BTC-PERP", "X" * 32, "NEW-PERP", "cross"])
NUMBERS = st.sampled_from(["1", "-1", "0.001", "-0.0005", "9" * 18, "-" + "9" * 18, DECIMAL, SIGNED, "0.1", "100"])
ODD = st.sampled_from(["", "1e5", "NaN", "x" * 50, "-0", "00", "1" * 19, "é"])
ORDERS = st.sampled_from(["o", "~" * 192, "a:1:0", "~" * 128 + ":1:0"])


@st.composite
def batches(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Frames as they may come from anybody who can write to the topic and is decoded."""
    given_batches = []
    for _ in range(draw(st.integers(1, 6))):
        rows = draw(st.lists(st.tuples(ACCOUNTS, NAMES, st.sampled_from(["USDC", "BTC", "NEW"]), NUMBERS), max_size=5))
        trades = draw(
            st.lists(
                st.tuples(
                    ACCOUNTS, NAMES | ODD, NAMES | ODD, NUMBERS | ODD, NUMBERS | ODD, NUMBERS | ODD, ORDERS | ODD
                ),
                max_size=6,
            )
        )
        reports = draw(
            st.lists(st.tuples(ACCOUNTS, ORDERS, st.sampled_from(["filled", "rejected", "accepted"])), max_size=3)
        )
        given_batches.append(
            {
                "transfers": transfers(*((*row, draw(st.integers(0, 12) | st.just(MOST))) for row in rows)),
                "fills": fills(*trades),
                "reports": ReportColumns(
                    account=[row[0] for row in reports],
                    command_id=["a:1" for _ in reports],
                    order_id=[row[1] for row in reports],
                    status=[row[2] for row in reports],  # type: ignore[misc]
                    filled_quantity=["0" for _ in reports],
                ),
            }
        )
    return given_batches


@settings(deadline=None, max_examples=examples(150), suppress_health_check=[HealthCheck.too_slow])
@given(batches(), st.lists(st.sampled_from(["1", "60000", "0.1", "9" * 18]), min_size=1, max_size=6))
def test_whatever_a_shard_is_given_it_can_read_what_it_wrote(frames: list[dict[str, Any]], prices: list[str]) -> None:
    scale = Scale(reference="1")
    known = rules(
        AssetParameters(asset="BTC", decimals=8, price_symbol="BTC-USD", liquidation_fee="0.01"),
        instrument("BTC-PERP", open_interest_scale=scale),
        AssetParameters(asset="WIDE"),
        instrument("X" * 32, settle_asset="WIDE", price_increment="0.00000001", quantity_increment="0.00000001"),
    )
    shard = Shard(0, known)
    rows: dict[str, bytes] = {}
    for index, frame in enumerate(frames):
        decoded = Decoder[EventFrame](EventFrame)
        try:
            columns = decoded(encode(EventFrame(time=0, **frame)))
        except ValueError:
            continue  # the frame as a whole is refused when it is read
        price = prices[index % len(prices)]
        given_prices = {"BTC-PERP": price, "BTC-USD": price, "X" * 32: price}
        for output in (
            events(shard, transfers=columns.transfers, fills=columns.fills, reports=columns.reports),
            marks(shard, given_prices, "live" if index % 3 else "stale"),
        ):
            rows |= {account: row for account, row in output.rows.items() if row is not None}
    shard.apply_parameters(0, known.with_record(instrument("NEW-PERP")).with_record(AssetParameters(asset="NEW")))
    shard.decide_touched(everything=True)
    output = shard.take("test")
    read_back(output)
    rows |= {account: row for account, row in output.rows.items() if row is not None}
    msgspec.json.decode(encode(output.journal))
    same_rows(shard, rows)
