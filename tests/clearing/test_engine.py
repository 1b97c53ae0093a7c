"""The engine's loop beside its shards: what it says of itself, what it gives up, and what it never lets grow."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message, TopicPartition

from schemas.codec import encode
from schemas.messages import EventFrame, FillColumns, Mark, MarkFrame, TransferColumns
from schemas.parameters import AssetParameters, InstrumentParameters, MarginTier, OracleParameters, PolicyParameters
from schemas.topics import EVENTS, MARKS, PARAMETERS
from streams.broker import records
from streams.broker.kafka import Kafka
from streams.clearing import engine as engine_module
from streams.clearing.engine import Engine
from streams.clearing.restore import TakenShard
from streams.clearing.shard import Shard
from streams.errors import ProducerFenced, ShardError, TransactionAborted
from streams.feeds.parameters import REFUSED_MAX, ParameterFeed
from streams.margin.parameters import RiskParameters
from streams.runtime import SYSTEM
from streams.settings import load
from streams.tables.restore_point import RestorePoint
from streams.tables.write_behind import TableWriter
from streams.watchdog import Watchdog

T0 = 1_700_000_000_000_000
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
        PolicyParameters(),
        OracleParameters(symbol="BTC-PERP", sources={"a": "1"}, max_age_ms=5000),
    ]
)


class Record(records.Record):
    """A record as the consumer hands it over."""

    def __init__(self, topic: str, partition: int, offset: int, value: bytes, key: bytes | None = None) -> None:
        self._all = (topic, partition, offset, value, key)

    def topic(self) -> str:
        return self._all[0]

    def partition(self) -> int:
        return self._all[1]

    def offset(self) -> int:
        return self._all[2]

    def value(self) -> bytes:
        return self._all[3]

    def key(self) -> bytes | None:
        return self._all[4]

    def error(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (TIMESTAMP_LOG_APPEND_TIME, T0 // 1000)


class Log:
    """A followed log or a consumer: hands over what was put in."""

    def __init__(self) -> None:
        self.waiting: list[Record] = []
        self.started: int | None = None
        self.paused: list[int] = []

    def start(self, offset: int) -> None:
        self.started = offset

    def poll(self, timeout_s: float = 0, records_max: int = 1000) -> list[Record]:
        found, self.waiting = self.waiting, []
        return found

    def pause(self, places: list[TopicPartition]) -> None:
        self.paused = [place.partition for place in places]

    def seek(self, place: TopicPartition) -> None:
        pass

    def resume(self, places: list[TopicPartition]) -> None:
        pass

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        pass

    def consumer_group_metadata(self) -> str:
        return "generation"

    def memberid(self) -> str:
        return "me"


class Producer:
    """A transactional producer whose calls can be made to fail."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.calls: list[str] = []
        self.deadline_s: float | None = None
        self.produced: list[tuple[str, bytes | None]] = []
        self._deliveries: list[Callable[[], None]] = []

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        self.deadline_s = seconds
        yield
        self.deadline_s = None

    def init(self) -> None: ...

    def begin(self) -> None:
        self.calls.append("begin")

    def produce(self, topic: str, value: bytes | None, *, on_delivery: Any = None, **_: Any) -> None:
        self.produced.append((topic, value))
        if on_delivery is not None:
            self._deliveries.append(lambda: on_delivery(None, Record(topic, 0, len(self.produced), b"")))

    def send_offsets(self, *_: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.calls.append("offsets")

    def commit(self) -> None:
        for deliver in self._deliveries:
            deliver()
        self._deliveries.clear()
        self.calls.append("commit")

    def abort(self) -> None:
        self.calls.append("abort")

    def close(self) -> None:
        self.calls.append("close")


class Tables:
    """The table writer's part that the engine calls."""

    def __init__(self) -> None:
        self.released: list[tuple[int, bool]] = []
        self.marks: list[str] = []

    def submit(self, *_: Any) -> None:
        pass

    def submit_marks(self, marks: tuple[Mark, ...]) -> None:
        self.marks += [mark.price for mark in marks]

    def restore(self, shard: int, token: int) -> None:
        pass

    def release(self, shard: int, *, flush: bool = True) -> None:
        self.released.append((shard, flush))

    def check(self) -> None:
        pass


class Bench:
    """An engine with everything round it replaced. Shards are put in, not taken, unless the test says how."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self.settings = load({}, {"engine.commit_interval_ms": 1} | changes)
        self.watchdog = Watchdog()
        self.stop = threading.Event()
        self.marks, self.events, self.parameters = Log(), Log(), Log()
        self.new_producer = self.producer = Producer()
        self.tables = Tables()
        self.engine = engine = Engine(
            cast(Kafka, self), cast(TableWriter, self.tables), cast(RestorePoint, None), self.stop, self.watchdog
        )
        found = cast(Any, engine)
        found._parameter_log = ParameterFeed(cast(Any, self.parameters), RULES)
        self.inside: Any = engine
        monkeypatch.setattr(engine_module, "poll_batch", self._poll_batch)

    # --- what the engine takes for Kafka

    runtime = SYSTEM
    worker = "engine-0"

    def transactional_producer(self, transactional_id: str) -> Producer:
        found, self.new_producer = self.new_producer, Producer()
        return found

    def log_reader(self, *_: Any) -> Any:
        return SimpleNamespace(watermarks=lambda topic, partition: (0, 0))

    def follower(self, client_id: str, topic: str) -> Log:
        return self.marks if topic == MARKS else self.parameters

    def group_consumer(self, *_: Any) -> Log:
        return self.events

    def _poll_batch(self, consumer: Log, timeout_s: float, records_max: int) -> list[Message]:
        found, consumer.waiting = consumer.waiting[:records_max], consumer.waiting[records_max:]
        return cast(list[Message], found)

    def own(self, *shards: int) -> None:
        for shard in shards:
            self.inside._shards[shard] = Shard(shard, RULES)

    def frame(self, shard: int, offset: int, account: str = "alice") -> None:
        transfers = TransferColumns(
            account=[account],
            margin=["cross"],
            asset=["USDC"],
            amount=["10"],
            sequence=[offset + 1],
            transfer_id=["t"],
        )
        self.events.waiting.append(Record(EVENTS, shard, offset, encode(EventFrame(time=T0, transfers=transfers))))

    def mark(self, offset: int, price: str = "100", epoch: int = -1) -> None:
        mark = Mark(symbol="BTC-PERP", price=price, status="live", publish_time=T0)
        frame = MarkFrame(time=T0, marks=(mark,), full=True, epoch=epoch)
        self.marks.waiting.append(Record(MARKS, 0, offset, encode(frame)))

    def cycle(self) -> None:
        self.inside._last_commit = 0.0
        self.inside._places_seen = 0.0
        self.inside.cycle()

    def conditions(self) -> dict[str, bool]:
        return {condition.name: condition.holds for condition in self.engine.readiness()}

    def watched(self) -> set[str]:
        return {loop.name for loop in self.watchdog.loops()}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def taken(bench: Bench, shard: int) -> TakenShard:
    return TakenShard(Shard(shard, RULES), [], bench.inside._parameter_log.next_offset)


def take_in_steps(bench: Bench, monkeypatch: pytest.MonkeyPatch, steps: int, error: Exception | None = None) -> None:
    """Let every taking last ``steps`` steps, and then fail with ``error`` if there is one."""

    def take_shard(shard_id: int, **_: Any) -> Iterator[None]:
        for _ in range(steps):
            yield
        if error is not None:
            raise error
        return taken(bench, shard_id)  # type: ignore[return-value]

    monkeypatch.setattr(engine_module, "take_shard", take_shard)


# --- taking ----------------------------------------------------------------------------------------------------------


def test_the_other_shards_go_on_while_one_is_taken(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.own(0)
    take_in_steps(bench, monkeypatch, 10)
    bench.inside._on_assign(bench.events, [TopicPartition(EVENTS, 1)])
    for offset in range(10):
        bench.frame(0, offset)
        bench.mark(offset)
        bench.cycle()
    shard = bench.inside._shards[0]
    assert (shard.events_next, shard.marks_next) == (10, 10)
    assert 1 not in bench.inside._shards
    bench.cycle()
    assert sorted(bench.inside._shards) == [0, 1]
    assert bench.inside._to_take == []


def test_a_shard_that_goes_away_while_it_is_taken_is_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.own(0)
    take_in_steps(bench, monkeypatch, 3)
    bench.inside._on_assign(bench.events, [TopicPartition(EVENTS, 1), TopicPartition(EVENTS, 2)])
    bench.cycle()
    bench.inside._on_revoke(bench.events, [TopicPartition(EVENTS, 1)])
    for _ in range(5):
        bench.cycle()
    assert sorted(bench.inside._shards) == [0, 2]
    assert "taking of shard 1" not in bench.watched()


def test_a_member_that_was_expelled_hears_of_it_before_it_takes_a_shard(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it does not poll it cannot join again, and every claim is refused."""
    take_in_steps(bench, monkeypatch, 0, TransactionAborted("the group has expelled this member"))
    places = [TopicPartition(EVENTS, 1)]
    bench.inside._on_assign(bench.events, places)

    def poll_batch(consumer: Log, *_: Any) -> list[Message]:
        if bench.inside._to_take:
            bench.inside._on_lost(consumer, places)
        return []

    monkeypatch.setattr(engine_module, "poll_batch", poll_batch)
    bench.cycle()
    assert (bench.inside._to_take, bench.inside._retakes) == ([], 0)


def test_parameters_that_came_while_a_shard_was_taken_are_in_force_in_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_in_steps(bench, monkeypatch, 3)
    bench.inside._on_assign(bench.events, [TopicPartition(EVENTS, 0)])
    bench.cycle()
    value = encode(PolicyParameters(margin_call_levels=("3",), version=2))
    bench.parameters.waiting.append(Record(PARAMETERS, 0, 7, value, b"policy:default"))
    bench.parameters.waiting.append(Record(PARAMETERS, 0, 8, b"nonsense", b"policy:default"))
    for _ in range(4):
        bench.cycle()
    shard = bench.inside._shards[0]
    assert shard.parameters.policy.margin_call_levels == (Decimal(3),)
    assert shard.parameters_next == 9
    bench.cycle()
    letters = [value for topic, value in bench.producer.produced if topic == f"{PARAMETERS}.dlq"]
    assert letters == [b"nonsense"], "written once, by the owner of shard 0"


def test_a_shard_that_cannot_be_taken_ends_the_engine_though_others_can(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_shard(shard_id: int, **_: Any) -> Iterator[None]:
        yield
        if shard_id == 1:
            raise ShardError("shard 1: its rows cannot be restored")
        return taken(bench, shard_id)  # type: ignore[return-value]

    monkeypatch.setattr(engine_module, "take_shard", take_shard)
    bench.stop.set()  # no backing off
    bench.inside._on_assign(bench.events, [TopicPartition(EVENTS, 0), TopicPartition(EVENTS, 1)])

    def run() -> None:
        for offset in range(1000):
            bench.frame(0, offset)
            bench.cycle()

    with pytest.raises(ShardError, match=r"could not be kept in 10 attempts; .* shard 1: its rows"):
        run()


# --- handing over ----------------------------------------------------------------------------------------------------


def test_a_revoke_commits_within_its_deadline_and_releases_the_shard(bench: Bench) -> None:
    bench.own(0, 1)
    seen: list[float | None] = []
    commit = bench.producer.commit
    bench.producer.commit = lambda: (seen.append(bench.producer.deadline_s), commit())[1]  # type: ignore[method-assign]
    bench.inside._on_revoke(bench.events, [TopicPartition(EVENTS, 1)])
    assert seen == [bench.settings.kafka.handover_s]
    assert bench.settings.kafka.handover_s * 1000 < bench.settings.kafka.session_timeout_ms
    assert bench.tables.released == [(1, True)]
    assert list(bench.inside._shards) == [0]


@pytest.mark.parametrize("error", [ProducerFenced("no answer in time"), TransactionAborted("aborted")])
def test_a_revoke_that_cannot_commit_asks_nothing_more_of_kafka(bench: Bench, error: Exception) -> None:
    bench.own(0, 1)
    bench.producer.failure = error
    bench.inside._on_revoke(bench.events, [TopicPartition(EVENTS, 1)])
    assert bench.producer.calls == ["begin"], "neither an abort nor a new producer while the group waits"
    assert bench.inside._shards == {}
    assert bench.inside._to_take == [0], "what stays is taken again from the log; what goes is its next owner's"
    assert (1, True) not in bench.tables.released
    assert 0 in bench.events.paused


def test_the_cycle_after_it_mends_the_producer_and_takes_the_rest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_in_steps(bench, monkeypatch, 1)
    bench.own(0)
    bench.producer.failure = TransactionAborted("aborted")
    bench.inside._hand_over()
    bench.producer.failure = None
    bench.cycle()
    assert bench.producer.calls == ["begin", "abort"]
    bench.cycle()
    assert list(bench.inside._shards) == [0]


def test_what_was_polled_with_the_record_at_which_a_commit_failed_is_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: Any) -> None:
        raise TransactionAborted("aborted")

    commands = iter([False, True])
    monkeypatch.setattr(Shard, "has_command", property(lambda _: next(commands, True)))
    monkeypatch.setattr(bench.inside, "_commit", fails)
    bench.own(0)
    for offset in range(3):
        bench.mark(offset)
    bench.cycle()
    assert bench.marks.started == 2, "the third mark was polled, and not walked"


# --- watching itself -------------------------------------------------------------------------------------------------


def test_a_shard_that_moves_or_has_nothing_to_move_for_is_beaten_for(bench: Bench) -> None:
    bench.own(3)
    bench.cycle()
    assert {"engine", "marks of shard 3", "events of shard 3"} <= bench.watched()
    before = dict(bench.watchdog._beats)
    bench.mark(0)
    bench.cycle()
    assert all(bench.watchdog._beats[name] > before[name] for name in before)


def test_a_shard_whose_marks_do_not_move_while_marks_arrive_is_not(bench: Bench) -> None:
    bench.own(3)
    bench.cycle()
    bench.inside._shards[3].apply_marks = lambda offset, frame, appended: None
    bench.mark(0)
    bench.cycle()
    before = bench.watchdog._beats["marks of shard 3"]
    bench.cycle()
    assert bench.watchdog._beats["marks of shard 3"] == before


def test_a_shard_whose_events_do_not_move_while_events_wait_is_not(bench: Bench) -> None:
    bench.own(3)
    bench.cycle()
    statistics = '{"topics":{"margin.events.v1":{"partitions":{"3":{"app_offset":%d,"ls_offset":9}}}}}'
    bench.inside._group.note(statistics % 0)
    before = bench.watchdog._beats["events of shard 3"]
    bench.cycle()
    assert bench.watchdog._beats["events of shard 3"] == before
    bench.inside._group.note(statistics % 9)
    bench.cycle()
    assert bench.watchdog._beats["events of shard 3"] > before


def test_nothing_is_expected_of_a_shard_that_has_left(bench: Bench) -> None:
    bench.own(3)
    bench.cycle()
    bench.inside._on_revoke(bench.events, [TopicPartition(EVENTS, 3)])
    assert bench.watched() == {"engine"}


# --- readiness -------------------------------------------------------------------------------------------------------


def test_it_is_ready_when_its_shards_are_restored_and_its_inputs_fresh(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_in_steps(bench, monkeypatch, 1)
    assert not any(bench.conditions()[name] for name in ("is_in_group", "marks_age_ms")), (
        "nothing is known before the start"
    )
    bench.inside._on_assign(bench.events, [TopicPartition(EVENTS, 0)])
    assert not bench.conditions()["shards_to_take"]
    bench.mark(0)
    bench.cycle()
    bench.cycle()
    assert bench.conditions() == {
        "is_in_group": True,
        "shards_to_take": True,
        "marks_age_ms": True,
        "events_lag_frames": False,
    }, "the lag is not known before the first statistics"
    statistics = '{"topics":{"margin.events.v1":{"partitions":{"0":{"app_offset":0,"ls_offset":%d}}}}}'
    bench.inside._group.note(statistics % 0)
    assert all(bench.conditions().values())
    bench.inside._group.note(statistics % 1001)
    assert not bench.conditions()["events_lag_frames"]


def test_marks_that_stop_make_it_not_ready(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.mark(0)
    bench.cycle()
    assert bench.conditions()["marks_age_ms"]
    bench.inside._marks_seen -= 1 + bench.settings.service.ready_age_ms / 1000
    assert not bench.conditions()["marks_age_ms"]


def test_an_engine_that_lost_its_group_is_not_ready(bench: Bench) -> None:
    bench.inside._on_assign(bench.events, [])
    assert bench.conditions()["is_in_group"], "a spare one without shards is"
    bench.inside._on_lost(bench.events, [])
    assert not bench.conditions()["is_in_group"]


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_a_full_batch_is_committed_instead_of_held(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, **{"engine.batch_frames_max": 4, "engine.commit_interval_ms": 2000})
    bench.own(0)
    for offset in range(100):
        bench.frame(0, offset)
    longest = 0
    for _ in range(200):
        bench.inside._last_commit = SYSTEM.monotonic()  # no commit is due
        bench.inside.cycle()
        longest = max(longest, len(bench.inside._held))
    assert bench.inside._shards[0].events_next >= 96
    assert longest <= 4


def test_a_batch_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, **{"engine.batch_kbytes_max": 1})
    bench.own(0)
    values = {"account": "alice", "margin": "cross", "symbol": "BTC-PERP", "quantity": "0.001", "price": "100"}
    values |= {"fee": "0", "order_id": "o", "trade_id": 1}
    columns = FillColumns(**{name: [value] * 60 for name, value in values.items()})  # type: ignore[arg-type]
    for offset in range(64):
        bench.events.waiting.append(Record(EVENTS, 0, offset, encode(EventFrame(time=T0, fills=columns))))
    bench.inside._hold_events()
    assert len(bench.inside._held) == 16, "one poll's worth, not all there is"


def test_refused_parameters_are_kept_up_to_a_bound(bench: Bench) -> None:
    for offset in range(3 * REFUSED_MAX):
        bench.parameters.waiting.append(Record(PARAMETERS, 0, offset, b"nonsense", b"policy:default"))
    bench.cycle()
    assert len(bench.inside._parameter_log.refused(0, 3 * REFUSED_MAX)) == REFUSED_MAX


# --- marks -----------------------------------------------------------------------------------------------------------


def test_the_tables_do_not_get_the_marks_of_a_replaced_oracle(bench: Bench) -> None:
    bench.own(0)
    bench.mark(0, "100", epoch=20)
    bench.mark(1, "50", epoch=10)
    bench.mark(2, "101", epoch=20)
    bench.cycle()
    assert bench.tables.marks == ["100", "101"]


def test_a_mark_record_that_is_no_frame_is_walked_and_dead_lettered_with_its_offset(bench: Bench) -> None:
    bench.own(0)
    bench.marks.waiting.append(Record(MARKS, 0, 5, b"nonsense"))
    bench.cycle()
    assert bench.inside._shards[0].marks_next == 6
    assert (f"{MARKS}.dlq", b"nonsense") in bench.producer.produced
