"""Accounts whose verdict waits: nobody is judged before what was sent before is in, and nobody waits for ever."""

import itertools
from collections import deque
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from schemas.codec import Decoder
from schemas.messages import (
    EventFrame,
    LiquidationCommand,
    Mark,
    MarkFrame,
    PartitionOffset,
    RouterProgress,
    TopicProgress,
)
from schemas.parameters import AssetParameters, InstrumentParameters, MarginTier, OracleParameters, PolicyParameters
from schemas.topics import TRADES, TRANSFERS
from streams.clearing.account import DEFERRED_MAX
from streams.clearing.progress import Progress
from streams.clearing.shard import Shard
from streams.feeds.progress import frame_of
from streams.margin.parameters import RiskParameters
from streams.routing.split import Splitter
from streams.routing.trade_ids import TradeIds
from tests.properties import examples

T0 = 1_700_000_000_000_000
IDS = {TRADES: "id-1", TRANSFERS: "id-2"}
TOPICS = (TRADES, TRANSFERS)
_FRAME = Decoder[EventFrame](EventFrame)


def rules(**policy: Any) -> RiskParameters:
    return RiskParameters.build(
        [
            AssetParameters(asset="USDC", decimals=6),
            InstrumentParameters(
                symbol="BTC-PERP",
                settle_asset="USDC",
                price_increment="0.1",
                quantity_increment="0.001",
                margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.05", initial_rate="0.1"),),
            ),
            PolicyParameters(command_ttl_ms=5000, **policy),
            OracleParameters(symbol="BTC-PERP", sources={"a": "1"}, max_age_ms=86_400_000),
        ]
    )


class Scene:
    """One shard, an exchange of one partition a topic, and a router for each of them; every step is a commit."""

    def __init__(self, **policy: int) -> None:
        self.rules = rules(**policy)
        self.shard = Shard(0, self.rules)
        self.logs: dict[str, list[dict[str, Any]]] = {topic: [] for topic in TOPICS}
        self.routed = dict.fromkeys(TOPICS, 0)
        self.splitters = {topic: Splitter(1, IDS) for topic in TOPICS}
        self.trade_ids = TradeIds()
        self.written = dict.fromkeys(TOPICS, -1)
        self.frames: deque[tuple[int, EventFrame]] = deque()
        self.said: deque[tuple[int, RouterProgress]] = deque()
        self.asked: dict[str, tuple[int, int, dict[str, int]] | None] = dict.fromkeys(TOPICS)
        self.time_us = T0
        self.events = self.progress = 0
        self.sequences: dict[str, itertools.count[int]] = {}
        self.commands: list[LiquidationCommand] = []
        self.alerts: list[tuple[str, str]] = []
        self.mark()

    # --- the exchange ------------------------------------------------------------------------------------------------

    def deposit(self, account: str, amount: str = "1000") -> None:
        sequence = next(self.sequences.setdefault(account, itertools.count(1)))
        self.logs[TRANSFERS].append(
            {
                "transfer_id": f"{account}-{sequence}",
                "account": account,
                "asset": "USDC",
                "amount": amount,
                "sequence": sequence,
                "event_time": T0,
            }
        )

    def trade(self, account: str, quantity: str = "1", price: str = "10000") -> None:
        self.logs[TRADES].append(
            {
                "trade_id": len(self.logs[TRADES]) + 1,
                "symbol": "BTC-PERP",
                "price": price,
                "quantity": quantity,
                "aggressor_side": "buy",
                "maker": {"account": "mm", "order_id": "m", "fee": "0"},
                "taker": {"account": account, "order_id": "t", "fee": "0"},
                "event_time": T0,
            }
        )

    # --- the routers -------------------------------------------------------------------------------------------------

    def route(self, topic: str, count: int = 1_000) -> None:
        """The topic's router writes a frame of its next records."""
        splitter, first = self.splitters[topic], self.routed[topic]
        for offset, value in enumerate(self.logs[topic][first : first + count], start=first):
            assert splitter.add(topic, orjson.dumps(value), self.trade_ids, offset=offset) is None
            self.routed[topic] = offset + 1
        for _, data in splitter.take(self.time_us)[0]:
            self.frames.append((self.events, _FRAME(data)))
            self.written[topic] = self.events
            self.events += 1

    def ask(self, topic: str) -> None:
        """The topic's router asks where the partitions end."""
        ends = {name: len(log) for name, log in self.logs.items()}
        self.asked[topic] = (self.routed[topic], self.written[topic], ends)

    def tell(self, topic: str, unknown: str = "") -> None:
        """It tells what it was answered."""
        if (asked := self.asked[topic]) is None:
            return
        self.asked[topic] = None
        routed, written, ends = asked
        topics = [
            TopicProgress(
                topic=name,
                topic_id=IDS[name],
                next=[PartitionOffset(partition=0, offset=routed)] if name == topic else [],
                ends=[-1 if name == unknown else end],
            )
            for name, end in ends.items()
        ]
        said = RouterProgress(router=topic, time=self.time_us, topics=topics, frames=[written])
        self.said.append((self.progress, said))
        self.progress += 1

    def say(self, topic: str, after_ms: int = 10) -> None:
        """Ask and tell at once, and let the shard read on."""
        self.time_us += 1000 * after_ms
        self.ask(topic)
        self.tell(topic)
        self.read()

    # --- the shard ---------------------------------------------------------------------------------------------------

    def read(self, frames: int = 1_000) -> None:
        for _ in range(min(frames, len(self.frames))):
            offset, frame = self.frames.popleft()
            self.shard.apply_events(offset, frame, self.time_us)
            self.shard.decide_touched()
            self.commit()
        while self.said and frame_of(self.said[0][1], 0) < self.shard.events_next:
            offset, said = self.said.popleft()
            self.shard.apply_progress(offset, said, self.time_us)
            self.commit()

    def mark(self, price: str = "10000", after_ms: int = 0) -> None:
        self.time_us += 1000 * after_ms
        mark = Mark(symbol="BTC-PERP", price=price, status="live", publish_time=self.time_us)
        self.shard.apply_marks(
            self.shard.marks_next, MarkFrame(time=self.time_us, marks=(mark,), full=True), self.time_us
        )
        self.commit()

    def commit(self) -> None:
        output = self.shard.take("test")
        self.shard.cursor.committed(output.journal.sequence)
        self.commands += output.commands
        self.alerts += [(alert.kind, alert.reason or "") for alert in output.alerts]

    def held(self, account: str = "alice") -> bool:
        return self.shard.accounts[account].held is not None

    def commanded(self) -> list[str]:
        return [command.account for command in self.commands if command.account != "mm"]


def short_of_its_deposit(**policy: int) -> Scene:
    """A deposit is acknowledged, then the trade that needs it is published; the trade is routed first."""
    scene = Scene(**policy)
    scene.deposit("mm", "1000000")
    scene.route(TRANSFERS)
    scene.say(TRANSFERS)
    scene.deposit("alice")
    scene.trade("alice")
    scene.route(TRADES)
    scene.read()
    return scene


def test_nobody_is_judged_before_the_deposit_that_was_acknowledged_before() -> None:
    scene = short_of_its_deposit()
    assert scene.held()
    scene.say(TRADES)
    assert scene.held()
    scene.route(TRANSFERS)
    scene.read()
    assert scene.held(), "that it is in is known only when its router says so"
    scene.say(TRANSFERS)
    assert not scene.held()
    assert not scene.commanded()


def test_who_is_below_its_requirement_with_all_of_it_has_a_command_then() -> None:
    scene = short_of_its_deposit()
    scene.logs[TRANSFERS][-1]["amount"] = "10"
    scene.say(TRADES)
    scene.route(TRANSFERS)
    scene.say(TRANSFERS)
    assert scene.commanded() == ["alice"]
    assert scene.commands[-1].evidence.left_out == ()


def test_an_account_that_is_never_at_rest_is_decided_and_what_came_later_is_applied_after() -> None:
    scene = short_of_its_deposit()
    scene.logs[TRANSFERS][-1]["amount"] = "10"
    scene.ask(TRADES)
    for _ in range(5):
        scene.trade("alice", "0.001")
        scene.route(TRADES)
        scene.read()
    scene.tell(TRADES)
    scene.route(TRANSFERS)
    scene.say(TRANSFERS)
    assert scene.commanded() == ["alice"]
    assert scene.commands[-1].evidence.deferred == tuple(f"{TRADES}:0:{IDS[TRADES]}:{offset}" for offset in range(1, 6))
    state = scene.shard.accounts["alice"]
    assert not state.deferred
    ((_, quantity, _),) = scene.shard.portfolio.positions(state.groups["cross"].row)
    assert str(quantity) == "1.005"


def test_what_was_there_when_the_ends_were_asked_for_is_applied_though_it_was_deferred() -> None:
    scene = short_of_its_deposit()
    scene.deposit("alice", "5")
    scene.ask(TRADES)
    scene.route(TRANSFERS)
    scene.read()
    assert len(scene.shard.accounts["alice"].deferred) == 2, "no cut is known yet"
    scene.tell(TRADES)
    scene.read()
    assert not scene.shard.accounts["alice"].deferred
    scene.say(TRANSFERS)
    assert not scene.commanded()


def test_more_than_can_be_deferred_is_applied_and_the_account_waits_for_a_later_cut() -> None:
    scene = short_of_its_deposit()
    scene.ask(TRADES)
    for _ in range(DEFERRED_MAX + 1):
        scene.trade("alice", "0.001")
    scene.route(TRADES)
    scene.read()
    state = scene.shard.accounts["alice"]
    assert not state.deferred
    assert state.held is not None
    assert state.held.frame == state.touched
    scene.tell(TRADES)
    scene.read()
    assert scene.held(), "those ends were asked for before"
    scene.route(TRANSFERS)
    scene.say(TRANSFERS)
    scene.say(TRADES)
    assert not scene.held()


def test_a_source_that_stands_still_is_left_out_after_the_bound_and_told() -> None:
    scene = short_of_its_deposit(incomplete_hold_ms=2_000)
    for _ in range(30):
        scene.say(TRADES, after_ms=100)
        scene.mark(after_ms=1)
    name = f"{TRANSFERS}:0:{IDS[TRANSFERS]}"
    assert scene.commanded() == ["alice"]
    assert list(scene.commands[-1].evidence.left_out) == [name]
    assert [kind for kind, reason in scene.alerts if kind.startswith("input") and name in reason] == ["input_behind"]
    assert list(scene.shard.cursor.completeness.left_out) == [name]
    scene.route(TRANSFERS)
    scene.say(TRANSFERS)
    assert [kind for kind, _ in scene.alerts if kind.startswith("input")] == ["input_behind", "input_behind_cleared"]
    assert not scene.shard.cursor.completeness.left_out


def short_of_a_frame(**policy: Any) -> Scene:
    """Alice has traded on a deposit whose frame is gone, and Bob's deposit has come after it."""
    scene = Scene(**policy)
    scene.deposit("carol")
    scene.route(TRANSFERS)
    scene.read()
    scene.deposit("alice")
    scene.route(TRANSFERS)
    scene.frames.pop()
    scene.deposit("bob")
    scene.trade("alice")
    scene.route(TRANSFERS)
    scene.route(TRADES)
    scene.read()
    return scene


def test_nobody_is_judged_while_a_frame_is_missing_and_nothing_after_it_is_applied() -> None:
    scene = short_of_a_frame()
    for _ in range(10):
        scene.say(TRANSFERS)
        scene.say(TRADES)
    assert scene.held()
    assert "bob" not in scene.shard.accounts
    assert [kind for kind, _ in scene.alerts if kind.startswith("input")] == ["input_missing"]
    Progress.show_unreached([scene.shard])
    assert REGISTRY.get_sample_value("margin_engine_missing_sources") == 1
    scene.routed[TRANSFERS], scene.splitters[TRANSFERS] = 0, Splitter(1, IDS)
    scene.route(TRANSFERS)
    for _ in range(2):
        scene.say(TRANSFERS)
        scene.say(TRADES)
    assert not scene.held()
    assert scene.commanded() == []
    assert "bob" in scene.shard.accounts
    assert [kind for kind, _ in scene.alerts if kind.startswith("input")] == ["input_missing", "input_missing_cleared"]


@pytest.mark.parametrize("hold_ms", [0, 2_000])
def test_a_command_without_what_is_missing_says_so(hold_ms: int) -> None:
    scene = short_of_a_frame(incomplete_hold_ms=hold_ms)
    for _ in range(30):
        scene.say(TRANSFERS, after_ms=100)
        scene.say(TRADES)
    assert scene.commanded() == ["alice"]
    assert list(scene.commands[-1].evidence.left_out) == [f"{TRANSFERS}:0:{IDS[TRANSFERS]}"]


def test_who_waits_and_for_whom_nobody_waits_can_be_seen_from_outside() -> None:
    scene = short_of_its_deposit(incomplete_hold_ms=2_000)
    for held, left_out, ticks in ((1, 0, 1), (0, 1, 30)):
        for _ in range(ticks):
            scene.say(TRADES, after_ms=100)
        Progress.show_unreached([scene.shard])
        assert (REGISTRY.get_sample_value("margin_engine_held_accounts"), scene.shard.cursor.held) == (held, held)
        assert REGISTRY.get_sample_value("margin_engine_left_out_sources") == left_out


def test_without_a_router_that_says_anything_nobody_waits_for_ever() -> None:
    scene = short_of_its_deposit(incomplete_hold_ms=2_000)
    for _ in range(30):
        scene.mark(after_ms=100)
    assert scene.commanded() == ["alice"]
    assert [kind for kind, _ in scene.alerts if kind.startswith("input")] == ["input_behind"]
    scene.say(TRADES)
    assert [kind for kind, _ in scene.alerts if kind.startswith("input")] == ["input_behind", "input_behind_cleared"]


def test_an_end_that_no_leader_tells_is_waited_for() -> None:
    scene = Scene()
    scene.deposit("mm", "1000000")
    scene.route(TRANSFERS)
    scene.say(TRANSFERS)
    scene.trade("alice")
    scene.route(TRADES)
    scene.ask(TRADES)
    scene.tell(TRADES, unknown=TRANSFERS)
    scene.read()
    assert scene.held()
    assert not scene.commanded()
    scene.say(TRANSFERS, after_ms=300)
    assert scene.commanded() == ["alice"]


@pytest.mark.parametrize("hold_ms", [0, 10_000])
def test_a_bound_of_0_holds_nobody(hold_ms: int) -> None:
    scene = short_of_its_deposit(incomplete_hold_ms=hold_ms)
    assert scene.commanded() == ([] if hold_ms else ["alice"])
    for _ in range(5):
        scene.say(TRADES, after_ms=300)
        scene.mark(after_ms=1)
    assert not [kind for kind, _ in scene.alerts if kind.startswith("input")], "nobody waits for anything too long"


def test_what_was_written_long_ago_comes_from_a_router_all_the_same() -> None:
    """A shard that was without an owner reads frames of minutes ago, at the marks of now."""
    scene = Scene()
    scene.mark(after_ms=600_000)
    scene.deposit("alice")
    scene.trade("alice")
    for topic in (TRADES, TRANSFERS):
        scene.route(topic)
        offset, frame = scene.frames.popleft()
        scene.shard.apply_events(offset, frame, T0 + 1_000)
        scene.shard.decide_touched()
        scene.commit()
        scene.mark(after_ms=100)
        assert scene.held()
    assert not [kind for kind, _ in scene.alerts if kind.startswith("input")]
    for topic in (TRADES, TRANSFERS):
        scene.say(topic)
    assert not scene.held()
    assert not scene.commanded()


def test_a_held_account_is_held_by_the_next_owner_too() -> None:
    scene = short_of_its_deposit()
    scene.logs[TRANSFERS][-1]["amount"] = "10"
    scene.trade("alice", "0.001")
    scene.route(TRADES)
    scene.read()
    before = scene.shard
    row = before._accounts.row("alice")
    assert row is not None
    claim = before.cursor.claim_record("other", scene.progress, before.marks_next)
    scene.shard = Shard(0, scene.rules)
    scene.shard.resume(claim, 100)
    scene.shard.cursor.claimed(claim, 100)
    scene.shard.restore("alice", row)
    scene.shard.recall_marks(
        0,
        MarkFrame(time=T0, marks=(Mark(symbol="BTC-PERP", price="10000", status="live", publish_time=T0),), full=True),
    )
    scene.shard.stand()
    assert scene.held()
    assert len(scene.shard.accounts["alice"].deferred) == 1
    scene.mark(after_ms=1)
    scene.route(TRANSFERS)
    scene.say(TRANSFERS)
    scene.say(TRADES)
    assert scene.commanded() == ["alice"]


def test_an_expired_command_is_superseded_once_all_is_in_that_was_sent_before_it_expired() -> None:
    scene = short_of_its_deposit()
    scene.logs[TRANSFERS][-1]["amount"] = "10"
    scene.route(TRANSFERS)
    scene.say(TRANSFERS)
    scene.say(TRADES)
    assert scene.commanded() == ["alice"]
    scene.mark(after_ms=5_100)
    assert scene.commanded() == ["alice"], "no router has said anything since"
    scene.say(TRADES)
    assert scene.commanded() == ["alice"], "it may have asked before"
    scene.say(TRADES, after_ms=110)
    assert scene.commanded() == ["alice", "alice"]


@pytest.mark.parametrize("stale_ms", [0, 1_000])
def test_a_command_that_a_mark_causes_waits_a_little_for_a_source_that_is_behind(stale_ms: int) -> None:
    scene = short_of_its_deposit(stale_input_hold_ms=stale_ms)
    scene.route(TRANSFERS)
    scene.say(TRANSFERS)
    scene.say(TRADES)
    scene.deposit("alice", "5000")
    for _ in range(5):
        scene.say(TRADES, after_ms=110)
    scene.mark("9000", after_ms=1)
    assert scene.commanded() == ([] if stale_ms else ["alice"])
    for _ in range(5):
        scene.mark("9000", after_ms=100)
        scene.say(TRADES, after_ms=1)
    assert scene.commanded() == ([] if stale_ms else ["alice"])
    scene.say(TRADES, after_ms=300)
    assert scene.commanded() == ["alice"], "the source has stood still for as long as it is waited for"


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.just(0)),
        st.tuples(st.sampled_from(["route", "ask", "tell"]), st.integers(0, 1)),
        st.tuples(st.just("read"), st.integers(1, 3)),
        st.tuples(st.just("mark"), st.integers(1, 200)),
    ),
    max_size=60,
)


@given(_STEPS)
@configure(max_examples=examples(150), deadline=None)
def test_in_whatever_order_it_comes_nobody_is_judged_too_early_and_everybody_in_the_end(
    steps: list[tuple[str, int]],
) -> None:
    """Accounts with even numbers have what they need, those with odd ones have not."""
    scene, numbers = Scene(), itertools.count()
    scene.deposit("mm", "1000000000")
    for step, argument in steps:
        scene.time_us += 1000
        if step == "publish":
            number = next(numbers)
            scene.deposit(f"a{number}", "10" if number % 2 else "1000")
            scene.trade(f"a{number}", "0.5")
            scene.trade(f"a{number}", "0.5")
        elif step == "read":
            scene.read(argument)
        elif step == "mark":
            scene.mark(after_ms=argument)
        else:
            getattr(scene, step)(TOPICS[argument], *((1,) if step == "route" else ()))
    for _ in range(3):
        for topic in TOPICS:
            scene.route(topic)
            scene.say(topic, after_ms=150)
    assert sorted(scene.commanded()) == sorted(f"a{number}" for number in range(next(numbers)) if number % 2)
