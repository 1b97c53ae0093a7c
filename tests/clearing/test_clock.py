"""Whose time counts in a shard: no clock of a host stops or hastens a decision, and one that is off is told once."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas.messages import (
    Alert,
    EventFrame,
    FillColumns,
    JournalRecord,
    Mark,
    MarkFrame,
    SourceRange,
    Suspension,
    TransferColumns,
)
from schemas.parameters import (
    AssetParameters,
    InstrumentParameters,
    MarginTier,
    OracleParameters,
    PolicyParameters,
)
from schemas.topics import TRADES, TRANSFERS
from schemas.types import shard_account
from streams.broker.records import UNSTAMPED
from streams.clearing.clock import CLOCK_RIGHT_US, bounded_us
from streams.clearing.shard import Output, Shard
from streams.margin.parameters import RiskParameters

T0 = 1_700_000_000_000_000
SECOND = 1_000_000
YEAR = 365 * 86_400 * SECOND
SKEW = 2 * SECOND
RULES = RiskParameters.build(
    [
        AssetParameters(asset="USDC", decimals=6),
        InstrumentParameters(
            symbol="BTC-PERP",
            settle_asset="USDC",
            price_increment="0.1",
            quantity_increment="0.001",
            margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.05", initial_rate="0.1"),),
        ),
        PolicyParameters(liquidation_buffer_rate="0.002"),
        OracleParameters(symbol="BTC-PERP", sources={"a": "1"}, max_age_ms=5000),
    ]
)


class Pipeline:
    """A shard between a router and an oracle whose hosts' clocks may be off; ``now`` is the brokers' time."""

    def __init__(self) -> None:
        self.shard = Shard(0, RULES)
        self.now = T0
        self.alerts: list[Alert] = []
        self.commands: list[str] = []
        self.journal: JournalRecord | None = None
        self.rows: dict[str, bytes] = {}

    def taken(self) -> Output:
        output = self.shard.take("test")
        self.alerts += output.alerts
        self.commands += [command.command_id for command in output.commands]
        self.journal = output.journal
        for account, row in output.rows.items():
            if row is None:
                self.rows.pop(account, None)
            else:
                self.rows[account] = row
        return output

    def event(self, *, off: int = 0, stamped: bool = True, **columns: Any) -> Output:
        frame = EventFrame(time=self.now + off, **columns)
        self.shard.apply_events(self.shard.events_next, frame, self.now if stamped else UNSTAMPED)
        self.shard.decide_touched()
        return self.taken()

    def mark(
        self, price: str, *, off: int = 0, source_off: int = 0, stamped: bool = True, after: int = SECOND // 4
    ) -> Output:
        self.now += after
        mark = Mark(symbol="BTC-PERP", price=price, status="live", publish_time=self.now + source_off)
        frame = MarkFrame(time=self.now + off, marks=(mark,), full=True)
        self.shard.apply_marks(self.shard.marks_next, frame, self.now if stamped else UNSTAMPED)
        return self.taken()

    def beat(self, *, off: int = 0, after: int = SECOND // 4) -> Output:
        """The oracle's heartbeat, without a mark."""
        self.now += after
        self.shard.apply_marks(self.shard.marks_next, MarkFrame(time=self.now + off, marks=()), self.now)
        return self.taken()

    def open(self, account: str = "alice", deposit: str = "1000") -> None:
        self.mark("10000")
        self.event(transfers=transfer(account, deposit))
        self.event(fills=fill(account, "1", "10000"))

    def restart(self) -> None:
        """A new owner stands where the journal left off."""
        assert self.journal is not None
        shard = Shard(0, RULES)
        shard.resume(self.journal)
        for account, row in self.rows.items():
            shard.restore(account, row)
        self.shard = shard

    def told(self) -> list[str]:
        return [alert.kind for alert in self.alerts if alert.account == shard_account(0)]


def transfer(account: str, amount: str, sequence: int = 1) -> TransferColumns:
    return TransferColumns(
        account=[account], margin=["cross"], asset=["USDC"], amount=[amount], sequence=[sequence], transfer_id=["t"]
    )


def fill(account: str, quantity: str, price: str) -> FillColumns:
    return FillColumns(
        account=[account],
        margin=["cross"],
        symbol=["BTC-PERP"],
        quantity=[quantity],
        price=[price],
        fee=["0"],
        order_id=["o"],
        trade_id=[1],
    )


@given(st.integers(0, 2**52), st.integers(0, 2**52), st.integers(1, 10**10))
@configure(deadline=None)
def test_a_time_counts_as_far_as_the_brokers_bears_it_out(time: int, appended: int, skew: int) -> None:
    bounded = bounded_us(time, appended, skew)
    assert abs(bounded - appended) <= skew
    assert bounded == time or abs(time - appended) > skew


@pytest.mark.parametrize("off", [3 * SECOND, 90 * SECOND, 3600 * SECOND, YEAR])
def test_a_router_that_is_ahead_keeps_nobody_from_being_liquidated(off: int) -> None:
    pipeline = Pipeline()
    pipeline.open()
    pipeline.event(off=off, transfers=transfer("zed", "1"))
    pipeline.mark("9000")
    assert pipeline.commands == ["alice:1"]
    assert pipeline.shard.clock_us <= pipeline.now + SKEW


def test_nor_after_a_restart() -> None:
    pipeline = Pipeline()
    pipeline.open()
    pipeline.event(off=YEAR, transfers=transfer("zed", "1"))
    pipeline.restart()
    assert pipeline.shard.cursor.clock.skewed.keys() == {"events"}
    pipeline.mark("9000")
    assert pipeline.commands == ["alice:1"]
    assert pipeline.told() == ["clock_skew"], "told before the restart, and not again"


@pytest.mark.parametrize("off", [YEAR, 90 * SECOND, -90 * SECOND, -YEAR])
def test_an_oracle_whose_host_is_off_is_walked_in_the_brokers_time(off: int) -> None:
    pipeline = Pipeline()
    pipeline.open()
    pipeline.mark("9000", off=off)
    assert pipeline.commands == ["alice:1"]
    assert abs(pipeline.shard.clock_us - pipeline.now) <= SKEW


@pytest.mark.parametrize("off", [0, -90 * SECOND, -YEAR], ids=["right", "behind", "a year behind"])
def test_a_silent_oracle_makes_its_marks_stale_whatever_the_routers_clock_says(off: int) -> None:
    pipeline = Pipeline()
    pipeline.open(deposit="4000")
    pipeline.now += 8 * SECOND
    pipeline.event(off=off, transfers=transfer("alice", "-3900", sequence=2))
    assert pipeline.commands == [], "the mark is too old by the brokers' time"
    pipeline.mark("10000")
    assert pipeline.commands == ["alice:1"]


def test_a_source_that_is_ahead_does_not_keep_its_mark_live() -> None:
    pipeline = Pipeline()
    pipeline.open(deposit="4000")
    pipeline.mark("10000", source_off=YEAR)
    pipeline.now += 8 * SECOND
    pipeline.event(transfers=transfer("alice", "-3900", sequence=2))
    assert pipeline.commands == []


def test_what_is_within_the_policy_is_nobodys_business() -> None:
    pipeline = Pipeline()
    pipeline.open()
    for off in (SKEW, -SKEW):
        pipeline.event(off=off)
        pipeline.beat(off=off)
    assert pipeline.told() == []


def test_it_is_told_once_and_once_more_when_it_has_been_right_for_a_while() -> None:
    pipeline = Pipeline()
    pipeline.open()
    for _ in range(5):
        pipeline.event(off=90 * SECOND)
        pipeline.event()
        pipeline.beat()
    assert pipeline.told() == ["clock_skew"], "two routers, and one of them is off"
    (alert,) = [alert for alert in pipeline.alerts if alert.kind == "clock_skew"]
    assert alert.alert_id == f"{shard_account(0)}:alert:1"
    assert "the clock of a router is 90.000 s ahead of the broker's" in (alert.reason or "")
    pipeline.now += CLOCK_RIGHT_US + 1
    pipeline.beat()
    assert pipeline.told() == ["clock_skew"], "nobody knows of the router yet"
    pipeline.event()
    assert pipeline.told() == ["clock_skew", "clock_skew_cleared"]
    assert pipeline.journal is not None
    assert pipeline.journal.skewed == {}
    assert pipeline.journal.alert_sequence == 2


def test_each_kind_of_frames_has_a_clock_of_its_own() -> None:
    pipeline = Pipeline()
    pipeline.open()
    pipeline.event(off=-3 * SECOND)
    pipeline.beat(off=3 * SECOND)
    assert pipeline.told() == ["clock_skew", "clock_skew"]
    reasons = [alert.reason or "" for alert in pipeline.alerts]
    assert "a router is 3.000 s behind" in reasons[-2]
    assert "the oracle is 3.000 s ahead of" in reasons[-1]
    assert pipeline.journal is not None
    assert list(pipeline.journal.skewed) == ["events", "marks"]


def test_a_mark_frame_without_the_brokers_time_decides_nothing_and_is_told() -> None:
    pipeline = Pipeline()
    pipeline.open()
    pipeline.mark("9000", stamped=False)
    assert pipeline.commands == []
    assert pipeline.told() == ["clock_skew"]
    assert "margin-clearing topics" in (pipeline.alerts[-1].reason or "")
    pipeline.mark("9000")
    assert pipeline.commands == ["alice:1"]


def test_the_events_of_a_frame_without_the_brokers_time_are_not_lost() -> None:
    pipeline = Pipeline()
    pipeline.open()
    clock = pipeline.shard.clock_us
    pipeline.event(off=YEAR, stamped=False, transfers=transfer("bob", "7"))
    assert pipeline.shard.clock_us == clock
    assert pipeline.shard.portfolio.balances(pipeline.shard.accounts["bob"].groups["cross"].row) == {"USDC": "7"}
    assert pipeline.told() == ["clock_skew"]


def test_without_a_brokers_time_the_next_mark_shows_that_a_router_was_ahead() -> None:
    pipeline = Pipeline()
    shard = pipeline.shard
    pipeline.open()
    shard.apply_events(shard.events_next, EventFrame(time=pipeline.now + YEAR, transfers=transfer("zed", "1")))
    shard.decide_touched()
    pipeline.taken()
    pipeline.mark("9000")
    assert pipeline.commands == ["alice:1"]


# --- suspensions -----------------------------------------------------------------------------------------------------


def suspension(account: str = "alice", offset: int = 7, topic: str = TRADES, partition: int = 0) -> Suspension:
    return Suspension(account=account, topic=topic, partition=partition, offset=offset, reason="price is below 0")


def test_an_account_that_a_refused_record_names_is_suspended_and_told() -> None:
    pipeline = Pipeline()
    pipeline.open()
    output = pipeline.event(suspensions=[suspension()])
    (alert,) = output.alerts
    assert (alert.account, alert.kind) == ("alice", "suspended")
    assert alert.reason == f"{TRADES}[0] offset 7: price is below 0"
    pipeline.mark("9000")
    assert pipeline.commands == []
    assert pipeline.shard.accounts["alice"].unapplied.events == 1


def test_an_account_that_was_never_heard_of_is_suspended_from_its_first_event_on() -> None:
    pipeline = Pipeline()
    pipeline.event(suspensions=[suspension("new")], transfers=transfer("new", "5"))
    assert pipeline.shard.accounts["new"].suspended
    pipeline.restart()
    assert pipeline.shard.accounts["new"].suspended


def test_a_record_that_is_read_again_suspends_nobody_again() -> None:
    pipeline = Pipeline()
    pipeline.open()
    pipeline.event(suspensions=[suspension(offset=7), suspension(offset=9)])
    pipeline.restart()
    pipeline.event(suspensions=[suspension(offset=7), suspension(offset=9)])
    assert pipeline.shard.accounts["alice"].unapplied.events == 2
    others = [suspension(offset=10), suspension(offset=7, partition=1), suspension(offset=7, topic=TRANSFERS)]
    pipeline.event(suspensions=others)
    assert pipeline.shard.accounts["alice"].unapplied.events == 5


def test_a_repaired_record_ends_it_for_good() -> None:
    pipeline = Pipeline()
    pipeline.open()
    pipeline.mark("10000")
    pipeline.event(suspensions=[suspension()])
    repaired = fill("alice", "-1", "10000")
    repaired.source, repaired.source_offset = [0], [7]
    record = SourceRange(topic=TRADES, topic_id="", partition=0, first=7, next=8)
    pipeline.event(repaired=True, sources=[record], fills=repaired)
    assert not pipeline.shard.accounts["alice"].suspended
    pipeline.event(suspensions=[suspension()])
    assert not pipeline.shard.accounts["alice"].suspended, "the record was read again after it was repaired"


def test_a_record_that_is_no_frame_is_told_for_the_shard() -> None:
    pipeline = Pipeline()
    pipeline.open()
    offset = pipeline.shard.events_next
    pipeline.shard.skip_events(offset, "JSON is malformed")
    pipeline.shard.decide_touched()
    (alert,) = pipeline.taken().alerts
    assert (alert.account, alert.kind) == (shard_account(0), "unreadable")
    assert f"margin.events.v1[0] offset {offset} is no frame" in (alert.reason or "")
