"""What a shard decides, event by event: the rules a risk manager would read, on the engine's own state machine."""

from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas.codec import encode
from schemas.messages import (
    Batch,
    EventFrame,
    FillColumns,
    FramePart,
    Mark,
    MarkFrame,
    ReportColumns,
    TransferColumns,
)
from schemas.parameters import AssetParameters, InstrumentParameters, MarginTier, OracleParameters, PolicyParameters
from schemas.types import ReportStatus
from streams.clearing.account import account_row
from streams.clearing.shard import Output, Shard
from streams.feeds.marks import first_needed
from streams.margin.bands import TriggerIndex
from streams.margin.parameters import RiskParameters
from streams.margin.portfolio import Portfolio
from streams.margin.slots import Rows
from tests.properties import examples

T0 = 1_700_000_000_000_000
RULES = RiskParameters.build(
    [
        AssetParameters(asset="USDC", decimals=6),
        AssetParameters(asset="BTC", decimals=8, price_symbol="BTC-USD", liability_weight="1.1"),
        InstrumentParameters(
            symbol="BTC-PERP",
            settle_asset="USDC",
            price_increment="0.1",
            quantity_increment="0.001",
            margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.05", initial_rate="0.1"),),
            liquidation_fee="0.005",
            insurance_fee="0.001",
        ),
        PolicyParameters(liquidation_buffer_rate="0.002", margin_call_levels=("1.5", "1.2"), command_ttl_ms=5000),
        OracleParameters(symbol="BTC-PERP", sources={"a": "1"}, max_age_ms=5000),
    ]
)


class Driver:
    """A shard with the parameters in force, fed by hand; every step is taken as its own commit."""

    def __init__(self, rules: RiskParameters = RULES, index: type[TriggerIndex] = TriggerIndex) -> None:
        self.shard = Shard(0, rules, index=index)
        self.time = T0
        self.sequence = 0
        self.scales: dict[str, str] = {}

    def commit(self) -> Output:
        return self.shard.take("test")

    def frame(self, **columns: object) -> Output:
        self.shard.apply_events(self.shard.events_next, EventFrame(time=self.time, **columns))  # type: ignore[arg-type]
        self.shard.decide_touched()
        return self.commit()

    def transfer(
        self, account: str, amount: str, *, asset: str = "USDC", margin: str = "cross", sequence: int | None = None
    ) -> Output:
        self.sequence += 1
        return self.frame(
            transfers=TransferColumns(
                account=[account],
                margin=[margin],
                asset=[asset],
                amount=[amount],
                sequence=[self.sequence if sequence is None else sequence],
                transfer_id=[f"t{self.sequence}"],
            )
        )

    def fill(
        self,
        account: str,
        quantity: str,
        price: str,
        *,
        order_id: str = "o",
        margin: str = "cross",
        symbol: str = "BTC-PERP",
    ) -> Output:
        return self.frame(
            fills=FillColumns(
                account=[account],
                margin=[margin],
                symbol=[symbol],
                quantity=[quantity],
                price=[price],
                fee=["0"],
                order_id=[order_id],
                trade_id=[1],
            )
        )

    def report(self, account: str, order_id: str, status: ReportStatus, filled: str = "0") -> Output:
        return self.frame(
            reports=ReportColumns(
                account=[account],
                command_id=[order_id.rpartition(":")[0]],
                order_id=[order_id],
                status=[status],
                filled_quantity=[filled],
            )
        )

    def mark(self, price: str, *, status: str = "live", after_ms: int = 250, publish_time: int | None = None) -> Output:
        self.time += after_ms * 1000
        mark = Mark(
            symbol="BTC-PERP",
            price=price,
            status=status,  # type: ignore[arg-type]
            publish_time=self.time if publish_time is None else publish_time,
        )
        frame = MarkFrame(time=self.time, marks=(mark,), full=True, scales=dict(self.scales))
        self.shard.apply_marks(self.shard.marks_next, frame)
        return self.commit()

    def scale(self, price: str, **scales: str) -> Output:
        """The oracle publishes new scales of BTC-PERP (``instrument``) and BTC (``asset``)."""
        names = {"instrument": "instrument:BTC-PERP", "asset": "asset:BTC"}
        self.scales = {names[kind]: scale for kind, scale in scales.items()}
        return self.mark(price)

    def tick(self, after_ms: int) -> Output:
        """Time passes: a heartbeat that repeats no mark."""
        self.time += after_ms * 1000
        self.shard.apply_marks(self.shard.marks_next, MarkFrame(time=self.time, marks=()))
        return self.commit()

    def long(self, account: str = "alice", deposit: str = "1000", quantity: str = "1", price: str = "10000") -> None:
        self.mark(price)
        self.transfer(account, deposit)
        self.fill(account, quantity, price)


@pytest.fixture
def driver() -> Driver:
    return Driver()


def kinds(output: Output) -> list[str]:
    return [alert.kind for alert in output.alerts]


def test_a_group_below_maintenance_gets_a_command_with_its_evidence(driver: Driver) -> None:
    driver.long()
    output = driver.mark("9450")
    (command,) = output.commands
    assert command.command_id == "alice:1"
    assert command.stage == "reduce"
    assert command.supersedes is None
    assert command.issued_at == driver.time
    assert command.expires_at == driver.time + 5_000_000
    assert Decimal(command.evidence.equity) == 450
    assert Decimal(command.evidence.maintenance_margin) == Decimal("472.5")
    assert command.evidence.marks == {"BTC-PERP": "9450"}
    assert command.evidence.marks_offset == driver.shard.marks_next - 1
    (order,) = command.orders
    assert (order.order_id, order.order_side, order.position_side) == ("alice:1:0", "sell", "long")
    assert order.reduce_only
    # q = shortage / (P (r + buffer - fees)) with target 0.052 and fees 0.006: (491.4 - 450) / (9450 * 0.046)
    assert Decimal(order.quantity) == Decimal("0.096")
    assert "liquidation_started" in kinds(output)
    assert output.journal.commands == ("alice:1",)


def test_equity_equal_to_maintenance_is_not_liquidated(driver: Driver) -> None:
    driver.mark("10000")
    driver.transfer("alice", "500")
    driver.fill("alice", "1", "10000")
    assert driver.mark("10000").commands == []
    assert len(driver.mark("9999.9").commands) == 1


def test_a_fill_alone_can_make_a_group_liquidatable(driver: Driver) -> None:
    driver.mark("10000")
    driver.transfer("alice", "100")
    assert len(driver.fill("alice", "1", "10000").commands) == 1


def test_no_command_is_repeated_while_one_is_open(driver: Driver) -> None:
    driver.long()
    assert len(driver.mark("9450").commands) == 1
    assert driver.mark("9440").commands == []
    assert driver.mark("9300").commands == []


def test_fills_and_report_close_a_command(driver: Driver) -> None:
    driver.long()
    driver.mark("9450")
    assert driver.report("alice", "alice:1:0", "accepted").commands == []
    output = driver.fill("alice", "-0.096", "9450", order_id="alice:1:0")
    assert kinds(output) == ["liquidation_fee", "liquidation_completed", "margin_call"]
    assert driver.shard.accounts["alice"].groups["cross"].command is None


def test_a_report_that_overtakes_its_fills_does_not_close_the_command(driver: Driver) -> None:
    driver.long()
    driver.mark("9450")
    output = driver.report("alice", "alice:1:0", "filled", "0.096")
    assert output.commands == []
    assert driver.shard.accounts["alice"].groups["cross"].command is not None
    output = driver.fill("alice", "-0.096", "9450", order_id="alice:1:0")
    assert kinds(output)[:2] == ["liquidation_fee", "liquidation_completed"]


def test_a_partial_fill_then_cancel_leads_to_the_next_command_at_once(driver: Driver) -> None:
    driver.long()
    driver.mark("9450")
    driver.fill("alice", "-0.010", "9450", order_id="alice:1:0")
    (command,) = driver.report("alice", "alice:1:0", "cancelled", "0.010").commands
    assert (command.command_id, command.supersedes) == ("alice:2", None)


def test_an_expired_command_is_superseded(driver: Driver) -> None:
    driver.long()
    driver.mark("9450")
    driver.mark("9450", after_ms=4000)
    (command,) = driver.mark("9450", after_ms=2000).commands
    assert (command.command_id, command.supersedes) == ("alice:2", "alice:1")


def test_after_a_rejection_the_next_command_waits_for_retry_ms(driver: Driver) -> None:
    driver.long()
    driver.mark("9450")
    assert driver.report("alice", "alice:1:0", "rejected").commands == []
    assert driver.mark("9450", after_ms=900).commands == []
    (command,) = driver.mark("9450", after_ms=200).commands
    assert (command.command_id, command.supersedes, command.attempt) == ("alice:2", None, 1)


def test_a_command_of_a_group_that_is_healthy_at_its_target_again_is_withdrawn(driver: Driver) -> None:
    driver.long()
    driver.mark("9450")
    output = driver.mark("9900")
    (withdrawal,) = output.commands
    assert (withdrawal.command_id, withdrawal.stage, withdrawal.supersedes) == ("alice:2", "withdrawn", "alice:1")
    assert (withdrawal.orders, withdrawal.evidence.reason) == ((), "equity_at_target")
    assert kinds(output)[0] == "liquidation_completed"
    assert driver.mark("9900", after_ms=6000).commands == []


@pytest.mark.parametrize("status", ["stale", "halted"])
def test_no_liquidation_on_a_mark_that_is_not_live(driver: Driver, status: str) -> None:
    driver.long()
    assert driver.mark("9000", status=status).commands == []
    assert len(driver.mark("9000").commands) == 1


def test_a_mark_that_nobody_renews_is_not_live(driver: Driver) -> None:
    driver.long()
    driver.tick(6000)
    assert driver.fill("alice", "10", "10000").commands == []
    assert len(driver.mark("10000").commands) == 1


def test_a_mark_older_than_its_symbol_allows_is_not_live_on_arrival(driver: Driver) -> None:
    driver.long()
    assert driver.mark("9000", publish_time=driver.time - 10_000_000).commands == []


def test_equity_below_zero_is_a_takeover_and_a_bankruptcy(driver: Driver) -> None:
    driver.long()
    output = driver.mark("8900")
    (command,) = output.commands
    assert command.stage == "takeover"
    assert {"liquidation_started", "bankrupt"} <= set(kinds(output))
    assert Decimal(command.orders[0].quantity) == 1


def test_an_isolated_group_stands_alone(driver: Driver) -> None:
    driver.mark("10000")
    driver.transfer("alice", "1000000")
    driver.transfer("alice", "600", margin="BTC-PERP")
    driver.fill("alice", "1", "10000", margin="BTC-PERP")
    (command,) = driver.mark("9850").commands
    assert command.margin == "BTC-PERP"


def test_margin_calls_fall_through_the_levels_and_clear(driver: Driver) -> None:
    driver.long()
    first = driver.mark("9720")
    assert [(a.kind, a.level) for a in first.alerts] == [("margin_call", "1.5")]
    assert [(a.kind, a.level) for a in driver.mark("9560").alerts] == [("margin_call", "1.2")]
    assert kinds(driver.mark("10000")) == ["margin_call_cleared"]


# --- dynamic scales --------------------------------------------------------------------------------------------------


def test_new_scales_concern_everyone_who_holds_what_they_scale(driver: Driver) -> None:
    driver.long("alice", deposit="700")
    driver.long("bob", deposit="1300")
    assert driver.mark("10000").commands == []
    output = driver.scale("10000", instrument="1.5")
    (command,) = output.commands
    assert (command.account, command.evidence.maintenance_margin) == ("alice", "750")
    assert command.evidence.scales == {"instrument:BTC-PERP": "1.5"}
    assert [command.account for command in driver.scale("10000", instrument="2.7").commands] == ["bob"]


def test_scales_hold_until_the_next_full_frame_and_parameters_that_come_between_are_scaled(driver: Driver) -> None:
    driver.long(deposit="700")
    driver.scale("10000", instrument="1.3")
    driver.tick(250)
    rules = RULES.with_record(PolicyParameters(liquidation_buffer_rate="0.01"))
    driver.shard.apply_parameters(driver.shard.parameters_next, rules)
    driver.shard.decide_touched(everything=True)
    assert driver.commit().commands == []
    assert driver.shard.parameters.instruments["BTC-PERP"].steps[0].maintenance_rate == Decimal("0.065")
    assert [command.evidence.maintenance_margin for command in driver.mark("9900").commands] == ["643.5"]
    driver.scale("9900")
    assert driver.shard.parameters.instruments["BTC-PERP"].steps[0].maintenance_rate == Decimal("0.05")


def test_a_scaled_haircut_can_make_a_group_liquidatable(driver: Driver) -> None:
    """-0.05 BTC of debt at 1.1 counts -550; at 1.1 of the surplus 0.1 scaled by 4 it counts -700."""
    driver.shard.apply_marks(
        0,
        MarkFrame(
            time=T0,
            marks=(Mark(symbol="BTC-USD", price="10000", status="live", publish_time=T0 + 4_000_000),),
            full=True,
        ),
    )
    driver.transfer("alice", "-0.05", asset="BTC")
    driver.long(deposit="1100")
    assert driver.commit().commands == []
    (command,) = driver.scale("10000", asset="4").commands
    assert (command.evidence.equity, command.evidence.scales) == ("400", {"asset:BTC": "4"})


def test_a_shard_that_recalls_its_marks_knows_the_scales(driver: Driver) -> None:
    mark = Mark(symbol="BTC-PERP", price="10000", status="live", publish_time=T0)
    driver.shard.recall_marks(7, MarkFrame(time=T0, marks=(mark,), full=True, scales={"instrument:BTC-PERP": "2"}))
    driver.transfer("alice", "700")
    (command,) = driver.fill("alice", "1", "10000").commands
    assert command.evidence.maintenance_margin == "1000"


def parts_of(driver: Driver, time: int) -> list[MarkFrame]:
    """A full frame in three parts: two prices, and the scale in the last of them."""
    marks = [
        Mark(symbol=symbol, price=price, status="live", publish_time=time)
        for symbol, price in (("BTC-PERP", "10000"), ("BTC-USD", "10000"))
    ]
    said: list[dict[str, Any]] = [{"marks": (mark,)} for mark in marks]
    said.append({"marks": (), "scales": {"instrument:BTC-PERP": "2"}})
    return [
        MarkFrame(time=time, epoch=3, part=FramePart(number=number, of=3), **fields)
        for number, fields in enumerate(said, 1)
    ]


def maintenance(driver: Driver) -> Decimal:
    return driver.shard.parameters.instruments["BTC-PERP"].steps[0].maintenance_rate


def test_a_full_frame_in_parts_is_in_force_with_its_last_part(driver: Driver) -> None:
    shard = driver.shard
    shard.apply_marks(7, MarkFrame(time=driver.time, marks=(), full=True, epoch=3))
    usual, first = maintenance(driver), shard.marks_next
    for part in parts_of(driver, driver.time):
        assert (shard.cursor.marks_full, maintenance(driver)) == (7, usual)
        shard.apply_marks(shard.marks_next, part)
    assert (shard.cursor.marks_full, maintenance(driver)) == (first, 2 * usual), "reading begins at its first part"


@pytest.mark.parametrize("walked", [0, 1, 2, 3, 4, 5])
def test_a_shard_that_is_taken_amid_the_parts_goes_on_as_if_it_had_not_been(driver: Driver, walked: int) -> None:
    frames = parts_of(driver, T0) + parts_of(driver, T0 + 250_000)
    for offset, part in enumerate(frames[:walked]):
        driver.shard.apply_marks(offset, part)
    cursor = driver.shard.cursor
    taken = Driver(driver.shard.parameters)
    for offset in range(first_needed(cursor.marks_full, cursor.marks_next), cursor.marks_next):
        taken.shard.recall_marks(offset, frames[offset])
    for offset, part in enumerate(frames[walked:], walked):
        for shard in (driver.shard, taken.shard):
            shard.apply_marks(offset, part)
        assert taken.shard.cursor.marks_full == driver.shard.cursor.marks_full
        assert maintenance(taken) == maintenance(driver)
        assert taken.shard.portfolio.marks == driver.shard.portfolio.marks


def frame_of(epoch: int, price: str, driver: Driver, *, after_ms: int = 0) -> MarkFrame:
    """A full frame of an oracle with the given epoch; its time and its price are as new as they can be."""
    time = driver.time + 1000 * after_ms
    mark = Mark(symbol="BTC-PERP", price=price, status="live", publish_time=time)
    return MarkFrame(time=time, marks=(mark,), full=True, epoch=epoch, scales={"instrument:BTC-PERP": "9"})


def test_a_late_frame_of_a_replaced_oracle_changes_nothing(driver: Driver) -> None:
    driver.long()
    shard = driver.shard
    shard.apply_marks(shard.marks_next, MarkFrame(time=driver.time, marks=(), epoch=20))
    marks_next, clock, full = shard.marks_next, shard.clock_us, shard.cursor.marks_full
    shard.apply_marks(marks_next, frame_of(10, "5000", driver, after_ms=60_000))
    output = driver.commit()
    assert (output.commands, output.alerts, output.rows) == ([], [], {})
    assert (shard.clock_us, shard.cursor.marks_full) == (clock, full)
    assert shard.marks_next == marks_next + 1, "its offset is walked nevertheless"
    assert output.journal.marks.next == marks_next + 1
    shard.apply_marks(shard.marks_next, frame_of(20, "5000", driver))
    assert driver.commit().commands, "the same frame of the oracle in charge counts"


def test_a_shard_that_recalls_its_marks_knows_the_epoch(driver: Driver) -> None:
    driver.shard.recall_marks(7, frame_of(20, "10000", driver))
    driver.shard.recall_marks(8, frame_of(10, "1", driver))
    assert driver.shard.portfolio.marks["BTC-PERP"] == 10000
    driver.shard.apply_marks(9, frame_of(10, "1", driver))
    assert driver.shard.portfolio.marks["BTC-PERP"] == 10000


def test_a_journal_record_tells_the_open_interest_when_asked(driver: Driver) -> None:
    driver.long("alice", quantity="1.5")
    driver.fill("bob", "-1.5", "10000")
    driver.fill("carol", "0.25", "10000")
    assert driver.shard.take().journal.open_interest is None
    assert driver.shard.take(with_open_interest=True).journal.open_interest == {"BTC-PERP": "1.75"}


# --- transfers, suspensions, restoring -------------------------------------------------------------------------------


def test_a_repeated_transfer_is_dropped(driver: Driver) -> None:
    driver.transfer("alice", "10", sequence=5)
    driver.transfer("alice", "10", sequence=5)
    assert driver.shard.portfolio.balances(driver.shard.accounts["alice"].groups["cross"].row) == {"USDC": "10"}


def test_an_event_that_cannot_be_applied_suspends_until_it_is_repaired(driver: Driver) -> None:
    driver.long()
    output = driver.fill("alice", "0", "5")
    (letter,) = output.unapplied
    assert "quantity 0" in str(letter.error)
    assert kinds(output) == ["suspended"]
    assert driver.mark("9000").commands == [], "not liquidated on a state known to be wrong"
    repaired = msgspec.structs.replace(msgspec.json.decode(letter.frame, type=EventFrame), time=driver.time)
    repaired.fills.quantity[0] = "1"
    repaired.fills.price[0] = "9000"
    driver.shard.apply_events(driver.shard.events_next, repaired)
    driver.shard.decide_touched()
    assert len(driver.commit().commands) == 1
    assert not driver.shard.accounts["alice"].suspended


def test_an_input_that_breaks_the_rules_changes_nothing_of_the_others(driver: Driver) -> None:
    driver.frame(
        transfers=TransferColumns(
            account=["a", "b", "c"],
            margin=["cross"] * 3,
            asset=["USDC", "NOPE", "USDC"],
            amount=["1", "-1", "1"],
            sequence=[1, 1, 1],
            transfer_id=["x", "y", "z"],
        )
    )
    assert not driver.shard.accounts["a"].suspended
    assert driver.shard.accounts["b"].suspended
    assert not driver.shard.accounts["c"].suspended


def test_rows_restore_to_the_same_rows(driver: Driver) -> None:
    driver.long()
    rows = dict(driver.mark("9450").rows)
    restored = Shard(0, RULES)
    for account, row in rows.items():
        assert row is not None
        restored.restore(account, row)
    kept = {account: account_row(state, restored.portfolio.ledger) for account, state in restored.accounts.items()}
    assert {account: encode(row) for account, row in kept.items()} == rows


def test_events_after_a_decision_are_another_batch_of_the_same_commit(driver: Driver) -> None:
    frame, marks = EventFrame(time=driver.time), MarkFrame(time=driver.time, marks=())
    driver.shard.apply_marks(0, marks)
    for offset in (0, 1):
        driver.shard.apply_events(offset, frame)
    driver.shard.decide_touched()
    driver.shard.apply_marks(1, marks)
    driver.shard.apply_events(2, frame)
    driver.shard.decide_touched()
    driver.shard.apply_marks(2, marks)
    journal = driver.commit().journal
    rules = driver.shard.parameters_next
    assert journal.batches == (
        Batch(marks=1, progress=0, parameters=rules, events=2),
        Batch(marks=2, progress=0, parameters=rules, events=3),
    )
    assert (journal.marks_before, journal.marks.next, journal.events.next) == (1, 3, 3)
    driver.shard.apply_events(3, frame)
    driver.shard.decide_touched()
    assert driver.commit().journal.batches == (), "the record itself says it of one"


def test_the_journal_says_which_marks_were_walked_before_the_events(driver: Driver) -> None:
    frame = MarkFrame(time=driver.time, marks=())
    driver.shard.apply_marks(0, frame)
    driver.shard.apply_marks(1, frame)
    driver.shard.apply_events(0, EventFrame(time=driver.time))
    driver.shard.decide_touched()
    driver.shard.apply_marks(2, frame)
    journal = driver.commit().journal
    assert (journal.marks.first, journal.marks_before, journal.marks.next) == (0, 2, 3)
    assert (journal.events.first, journal.events.next) == (0, 1)
    driver.shard.apply_marks(3, frame)
    following = driver.commit().journal
    assert (following.sequence, following.marks.first, following.events.first) == (journal.sequence + 1, 3, 1)


class LooksAtEverything(TriggerIndex):
    """A trigger index without bands: every mark wakes every group."""

    def __init__(self, portfolio: Portfolio) -> None:
        self._rows_of = portfolio

    def crossed_all(self, prices: object) -> Rows:
        return np.arange(self._rows_of.row_count, dtype=np.int64)

    def update(self, rows: object, columns: object = None) -> None:
        """Nothing to keep."""

    def rebuild(self) -> None:
        """Nothing to keep."""


steps = st.lists(
    st.one_of(
        st.tuples(st.just("mark"), st.integers(8800, 11200), st.sampled_from([100, 250, 3000, 6000])),
        st.tuples(st.just("fill"), st.integers(-3, 3), st.sampled_from(["a", "b", "c"])),
        st.tuples(st.just("transfer"), st.integers(-400, 900), st.sampled_from(["a", "b", "c"])),
        st.tuples(st.just("stale"), st.just(0), st.just(0)),
        st.tuples(st.just("buffer"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("scale"), st.integers(1, 8), st.sampled_from(["instrument", "asset"])),
    ),
    max_size=30,
)


@given(steps)
@configure(max_examples=examples(150), deadline=None)
def test_waking_only_what_a_mark_crosses_decides_what_looking_at_everything_decides(
    walk: list[tuple[str, int, Any]],
) -> None:
    woken, everything = Driver(), Driver(index=LooksAtEverything)
    for driver in (woken, everything):
        driver.mark("10000")
    for kind, number, other in walk:
        outputs = [step(driver, kind, number, other) for driver in (woken, everything)]
        assert outputs[0] == outputs[1]


def step(driver: Driver, kind: str, number: int, other: Any) -> Output | None:
    if kind == "mark":
        return driver.mark(str(number), after_ms=other)
    if kind == "fill":
        return driver.fill(other, str(number), "10000") if number else None
    if kind == "transfer":
        return driver.transfer(other, str(number)) if number else None
    if kind == "stale":
        return driver.mark("9000", status="stale")
    if kind == "scale":
        return driver.scale("9800", **{other: f"{1 + number / 4:.2f}"})
    rules = driver.shard.parameters.with_record(PolicyParameters(liquidation_buffer_rate=f"0.0{number:02d}"))
    driver.shard.apply_parameters(driver.shard.parameters_next, rules)
    driver.shard.decide_touched(everything=True)
    return driver.commit()


def test_the_same_inputs_give_the_same_bytes() -> None:
    def run() -> list[Output]:
        driver = Driver()
        driver.long()
        return [driver.mark("9700"), driver.mark("9450"), driver.mark("9450", after_ms=6000), driver.mark("8000")]

    assert run() == run()
