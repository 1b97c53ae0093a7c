"""What Faust makes of batches: it commits what was acknowledged, all of it and nothing more, whatever is in the log."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust.transport.consumer import Consumer
from faust.transport.utils import DefaultSchedulingStrategy
from faust.types.tuples import TP
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from schemas.topics import ORACLE, PRICES
from streams.oracle import faust_batches
from streams.oracle.faust_app import faust_app
from streams.oracle.faust_batches import BATCH_RECORDS_MAX, BatchConsumer, BatchMessage, FetchedBatch, batches
from streams.settings import load
from tests.properties import examples

PARTITION = TP(PRICES, 0)


@dataclass(frozen=True)
class Fetched:
    """A record as aiokafka has it."""

    offset: int
    topic: str = PRICES
    partition: int = 0
    timestamp: int = 1_700_000_000_123
    timestamp_type: int = 0
    key: bytes | None = b"X"
    value: bytes | None = b"{}"


class Beheaded(BatchConsumer):
    """The consumer without a thread, a client or an app: what it does about offsets, as Faust has it.

    ``offsets`` are those in the one partition, ``fetched_to`` where Kafka's client fetches on.
    """

    batched = frozenset({PRICES})

    def __init__(self, committed: int | None, offsets: Sequence[int] = ()) -> None:
        topics = SimpleNamespace(acks_enabled_for=lambda topic: topic == PRICES)
        vars(self).update(
            app=SimpleNamespace(
                consumer_generation_id=3,
                topics=topics,
                rebalancing=False,
                prices_fetched_at=None,
                monitor=SimpleNamespace(track_tp_end_offset=lambda *_: None),
            ),
            offsets=list(offsets),
            fetched_to=committed or 0,
            in_kafka=committed,
            scheduler=cast(Any, DefaultSchedulingStrategy)(),
            flow_active=True,
            _thread=SimpleNamespace(getmany=self.fetch),
            _stopped=SimpleNamespace(is_set=lambda: False),
            _buffered_partitions=set(),
            _next={},
            _began={},
            _doubted=set(),
            _eras={},
            _read_otherwise=set(),
            _acked=defaultdict(list),
            _acked_index=defaultdict(set),
            _gap=defaultdict(list),
            _committed_offset=defaultdict(lambda: committed),
            _read_offset=defaultdict(lambda: committed),
            _unacked_messages=set(),
            _waiting_for_ack=None,
            _n_acked=0,
        )
        if committed is not None:
            self._next[PARTITION] = committed

    should_stop = False
    offsets: list[int]
    fetched_to: int

    async def _wait_next_records(self, timeout: float) -> tuple[Any, set[TP]]:
        """``timeout`` is how many records come."""
        return await self._getmany({PARTITION}, timeout), {PARTITION}

    async def fetch(self, partitions: set[TP], timeout: float) -> dict[TP, list[Fetched]]:
        """As Kafka's client does."""
        came = [offset for offset in self.offsets if offset >= self.fetched_to][: int(timeout)]
        if came:
            self.fetched_to = came[-1] + 1
        return {PARTITION: at(*came)}

    def highwater(self, tp: TP) -> int:
        return 0

    async def _seek(self, partition: TP, offset: int) -> None:
        self.fetched_to = offset

    async def seek_to_committed(self) -> Any:
        if self.in_kafka:
            self.fetched_to = self.in_kafka
        return {PARTITION: self.in_kafka}

    def deliver(self, records: Sequence[Fetched]) -> BatchMessage | None:
        """What the agent gets of a batch, as Faust's loop over messages does it; None if it drops it."""
        message = self._to_message(PARTITION, FetchedBatch(records))
        assert isinstance(message, BatchMessage)
        if not self._is_next(PARTITION, message):
            return None
        self._hand_out(PARTITION, message)
        assert message.offset == self._read_offset[PARTITION], "Faust sees no gap and drops nothing"
        return message

    def committed(self) -> int | None:
        """The offset that Faust would commit now, if it would."""
        offset: int | None = self._new_offset(PARTITION)
        if offset is not None and self._should_commit(PARTITION, offset):
            self._committed_offset[PARTITION] = offset
            self.in_kafka = offset
        return self._committed_offset[PARTITION]


def at(*offsets: int) -> list[Fetched]:
    return [Fetched(offset) for offset in offsets]


@settings(max_examples=examples(200), deadline=None)
@given(st.data())
def test_what_is_acknowledged_is_committed_and_nothing_else(data: st.DataObject) -> None:
    """Offsets with holes, as compaction and transactions leave them, in batches of any size, acknowledged in order."""
    committed = data.draw(st.none() | st.integers(0, 3))
    offsets = sorted(data.draw(st.sets(st.integers(committed or 0, 40), min_size=1)))
    consumer, delivered = Beheaded(committed), []
    while offsets:
        size = data.draw(st.integers(1, 8))
        message = consumer.deliver(at(*offsets[:size]))
        assert message is not None
        delivered.append(message)
        offsets = offsets[size:]
    last = committed
    for message in delivered:
        assert consumer.ack(message)
        last = message.offset + 1
        if data.draw(st.booleans()):
            assert consumer.committed() == last, "all of it, and no batch after it"
    assert consumer.committed() == last
    assert not consumer.ack(delivered[-1]), "once"


def test_a_batch_that_is_not_acknowledged_keeps_its_place() -> None:
    consumer = Beheaded(5)
    first, second = consumer.deliver(at(5, 6, 7)), consumer.deliver(at(8, 9))
    assert first is not None
    assert second is not None
    consumer.ack(second)
    assert consumer.committed() == 5
    consumer.ack(first)
    assert consumer.committed() == 10


def test_what_was_read_before_is_not_handed_out_again() -> None:
    consumer = Beheaded(5)
    consumer.deliver(at(5, 6, 7))
    again = consumer.deliver(at(6, 7, 8, 9))
    assert again is not None
    assert [record.offset for record in again.records] == [8, 9]
    assert consumer.deliver(at(3, 4)) is None


def two_by_two(records: Sequence[Any]) -> list[FetchedBatch]:
    """Batches small enough that some are in hand while a rebalance comes."""
    return [FetchedBatch(records[first : first + 2]) for first in range(0, len(records), 2)]


class Lives(RuleBasedStateMachine):
    """Faust's reader, its rebalances and the agent, in any order that one event loop allows.

    A rebalance empties the queues when it begins and when it ends, and seeks to the committed offset in between; the
    reader may be anywhere in what it fetched before. The log has holes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(faust_batches, "batches", two_by_two)
        self.patched.setattr(faust_batches, "_REBALANCING_S", 0.0)
        self.queue: list[BatchMessage] = []
        self.reader: Any = None
        self.handled: set[int] = set()
        self.sought = False

    def teardown(self) -> None:
        try:
            if hasattr(self, "consumer"):
                self.finish()
        finally:
            self.patched.undo()
            self.loop.close()

    @initialize(offsets=st.sets(st.integers(0, 60), min_size=10), committed=st.none() | st.integers(0, 3))
    def start(self, offsets: set[int], committed: int | None) -> None:
        self.consumer = Beheaded(committed, sorted(offsets))
        self.first = committed or 0

    @rule(records=st.integers(1, 9))
    def read(self, records: int) -> None:
        """Take the next message of what was fetched, or fetch."""
        if self.reader is None:
            self.reader = self.consumer.getmany(records)
        try:
            _, message = self.loop.run_until_complete(anext(self.reader))
        except StopAsyncIteration:
            self.reader = None
        else:
            self.queue.append(message)

    @precondition(lambda self: self.queue)
    @rule()
    def handle(self) -> None:
        message = self.queue.pop(0)
        self.handled |= {record.offset for record in message.records}
        self.consumer.ack(message)

    @rule()
    def commit(self) -> None:
        self.consumer.committed()

    @precondition(lambda self: not self.consumer.app.rebalancing)
    @rule()
    def revoke(self) -> None:
        self.consumer.app.rebalancing, self.sought = True, False
        for state in ("_acked", "_acked_index", "_read_offset", "_committed_offset"):
            getattr(self.consumer, state).pop(PARTITION, None)
        vars(self.consumer)["_committed_offset"] = defaultdict(lambda: None)
        self.queue.clear()

    @precondition(lambda self: self.consumer.app.rebalancing and not self.sought)
    @rule(place=st.integers(0, 60))
    def faust_sets_its_place_late(self, place: int) -> None:
        """After a message whose delivery it gave up."""
        self.consumer._read_offset[PARTITION] = place

    @precondition(lambda self: self.consumer.app.rebalancing)
    @rule()
    def seek(self) -> None:
        self.loop.run_until_complete(self.consumer.perform_seek())
        self.sought = True

    @precondition(lambda self: self.sought and self.consumer.app.rebalancing)
    @rule()
    def resume(self) -> None:
        self.queue.clear()
        self.consumer.app.rebalancing = False

    @invariant()
    def nothing_is_committed_that_was_not_handled(self) -> None:
        if hasattr(self, "consumer"):
            passed = {
                offset for offset in self.consumer.offsets if self.first <= offset < (self.consumer.in_kafka or 0)
            }
            assert passed <= self.handled

    def finish(self) -> None:
        """Whatever happened, all of the log is handled in the end, and committed."""
        if self.consumer.app.rebalancing:
            self.seek()
            self.resume()
        for _ in range(4 * len(self.consumer.offsets)):
            self.read(9)
            while self.queue:
                self.handle()
        self.commit()
        due = {offset for offset in self.consumer.offsets if offset >= self.first}
        assert due <= self.handled
        assert not due or (self.consumer.in_kafka or 0) > max(due)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=examples(400), deadline=None, stateful_step_count=40)


def after(*steps: Callable[[Lives], object]) -> None:
    """Go through ``steps`` on a log without holes of which 3 records are committed, and on to the end."""
    life = Lives()
    life.start(set(range(20)), 3)
    try:
        for step in steps:
            step(life)
            life.nothing_is_committed_that_was_not_handled()
    finally:
        life.teardown()


def test_what_was_handed_out_before_the_queues_were_emptied_comes_again() -> None:
    after(Lives.revoke, Lives.seek, lambda life: life.read(5), Lives.resume, lambda life: life.read(5), Lives.commit)


def test_what_was_fetched_before_a_rebalance_is_no_hole_after_it() -> None:
    """The second half of what came before it begins beyond what is committed."""
    both = lambda life: life.read(8)  # noqa: E731
    after(both, Lives.revoke, Lives.seek, Lives.resume, both, lambda life: life.queue and life.handle(), Lives.commit)


def test_the_first_record_of_all_is_not_lost_between_the_seek_and_the_end_of_a_rebalance() -> None:
    life = Lives()
    life.start(set(range(20)), None)
    for step in (Lives.revoke, Lives.seek, lambda each: each.read(1), Lives.resume):
        step(life)
    life.teardown()


def test_a_place_that_faust_sets_late_skips_nothing() -> None:
    late = lambda life: life.faust_sets_its_place_late(40)  # noqa: E731
    after(lambda life: life.read(4), Lives.revoke, late, Lives.seek, Lives.resume, lambda life: life.read(4))


def test_a_message_of_many_stands_where_its_last_record_does() -> None:
    message = Beheaded(None).deliver(at(11, 12))
    assert message is not None
    assert (message.topic, message.partition, message.offset) == (PRICES, 0, 12)
    assert (message.timestamp, message.generation_id, message.tp) == (1_700_000_000.123, 3, PARTITION)


def test_records_are_batched_as_they_came_and_never_more_than_the_limit() -> None:
    records = at(*range(2 * BATCH_RECORDS_MAX + 1))
    parts = batches(records)
    assert [len(part) for part in parts] == [BATCH_RECORDS_MAX, BATCH_RECORDS_MAX, 1]
    assert [record for part in parts for record in part] == records
    assert batches([]) == []


def test_only_prices_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: dict[TP, list[Any]] = {PARTITION: at(1, 2), TP(ORACLE, 0): at(3, 4), TP(PRICES, 1): []}

    async def getmany(*_: object) -> dict[TP, list[Any]]:
        return fetched

    monkeypatch.setattr("faust.transport.drivers.aiokafka.Consumer._getmany", getmany)
    handed = asyncio.run(Beheaded(None)._getmany(None, 1.0))
    assert handed == {PARTITION: [FetchedBatch(at(1, 2))], TP(ORACLE, 0): at(3, 4), TP(PRICES, 1): []}


def test_the_app_takes_prices_in_batches() -> None:
    transport = faust_app(load({"MARGIN_KAFKA__BOOTSTRAP_SERVERS": "a:1"})).transport
    consumer: Any = transport.Consumer
    assert issubclass(consumer, BatchConsumer)
    assert issubclass(consumer, Consumer)
    assert consumer.batched == {PRICES}
