"""What stands in for confluent-kafka's ``Producer``, ``Consumer`` and ``Message``, on the in-memory cluster.

They behave as librdkafka does where the pipeline can see it: records are sent in the background, delivery callbacks run
within calls, rebalance callbacks run within ``poll`` and ``consume``, and errors carry librdkafka's flags. Faults are
drawn here, from the rates of the seed.
"""

import json
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    TIMESTAMP_CREATE_TIME,
    TIMESTAMP_LOG_APPEND_TIME,
    TIMESTAMP_NOT_AVAILABLE,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from streams.memory.groups import HEARTBEAT_US, Place
from streams.memory.log import Cluster, Concurrent, Fenced, InvalidState, LogRecord, Partition
from streams.memory.scheduler import Process


@dataclass(slots=True)
class Rates:
    """How often what goes wrong, as probabilities per call, and how often it did."""

    crash_call: float = 0.0
    crash_commit: float = 0.0
    commit_lost: float = 0.0
    commit_answer_lost: float = 0.0
    commit_delayed: float = 0.0
    abortable: float = 0.0
    fatal: float = 0.0
    undelivered: float = 0.0
    retriable: float = 0.0
    committed_error: float = 0.0
    buffer_full: float = 0.0
    seek_state: float = 0.0
    watermark_error: float = 0.0
    slow_fetch: float = 0.0
    redis_error: float = 0.0
    redis_answer_lost: float = 0.0
    slow_markers: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    due: Counter[str] = field(default_factory=Counter)
    """How many times each is yet to happen whatever its rate; see :meth:`once`."""

    def once(self, name: str) -> None:
        """Let the fault ``name`` happen at its next opportunity, whatever its rate."""
        self.due[name] += 1

    def stop(self) -> None:
        """No more faults."""
        self.due.clear()
        for name in FAULTS:
            setattr(self, name, 0.0)

    def strikes(self, name: str, draw: float) -> bool:
        """Whether a draw from [0, 1) makes the fault ``name`` happen; counts it."""
        if self.due[name] > 0:
            self.due[name] -= 1
        elif draw >= getattr(self, name):
            return False
        self.counts[name] += 1
        return True


FAULTS = tuple(name for name in Rates.__slots__ if name not in ("counts", "due"))
"""What :class:`Rates` can do."""


def error(
    code: int, reason: str = "simulated", *, fatal: bool = False, retriable: bool = False, abort: bool = False
) -> KafkaException:
    """The exception that confluent-kafka would raise."""
    return KafkaException(
        KafkaError(code, reason, fatal=fatal, retriable=retriable, txn_requires_abort=abort),
    )


class FakeMessage:
    """``confluent_kafka.Message``."""

    __slots__ = ("_error", "_offset", "_place", "_record")

    def __init__(self, place: Place, record: LogRecord | None, offset: int, cause: KafkaError | None = None) -> None:
        self._place = place
        self._record = record
        self._offset = offset
        self._error = cause

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return None if self._record is None else self._record.key

    def value(self) -> bytes | None:
        return None if self._record is None else self._record.value

    def headers(self) -> list[tuple[str, bytes]] | None:
        return None if self._record is None else self._record.headers

    def timestamp(self) -> tuple[int, int]:
        if self._record is None:
            return (TIMESTAMP_NOT_AVAILABLE, 0)
        return (TIMESTAMP_LOG_APPEND_TIME if self._record.stamped else TIMESTAMP_CREATE_TIME, self._record.time_ms)


class _Metadata:
    """What ``list_topics`` answers: the topics with their partitions."""

    def __init__(self, cluster: Cluster) -> None:
        self.topics = {name: _TopicMetadata(len(partitions)) for name, partitions in cluster.topics.items()}


class _TopicMetadata:
    error = None

    def __init__(self, count: int) -> None:
        self.partitions = dict.fromkeys(range(count))


# --- the producer ----------------------------------------------------------------------------------------------------


class FakeProducer:
    """A transactional producer, or, without a ``transactional.id``, an idempotent one."""

    def __init__(self, cluster: Cluster, process: Process, rates: Rates, properties: dict[str, Any]) -> None:
        self._cluster = cluster
        self._process = process
        self._rates = rates
        self._random = cluster.scheduler.random
        self._id: str = properties.get("transactional.id", "")
        self._timeout_us = int(properties["message.timeout.ms"]) * 1000
        self._epoch = -1
        self._queue: dict[Partition, deque[tuple[Any, ...]]] = {}
        self._reports: list[tuple[Any, KafkaError | None, FakeMessage]] = []
        self._failed: KafkaError | None = None
        self._fatal: KafkaError | None = None
        self._begun = False
        self._sent = False
        process.clients.append(self)

    def init_transactions(self, timeout: float) -> None:
        self._enter("init", crash=True)
        deadline = self._cluster.scheduler.now + int(timeout * 1e6)
        while True:
            self._reach(deadline)
            try:
                self._epoch = self._cluster.init(self._id)
                break
            except Concurrent:
                self._wait(deadline)
        if self._rates.strikes("commit_answer_lost", self._random.random()):
            self._time_out(deadline)
        self._fatal = self._failed = None

    def begin_transaction(self) -> None:
        self._process.alive()
        if self._fatal is not None:
            raise KafkaException(self._fatal)
        if self._begun:
            raise error(KafkaError._STATE, "a transaction is open already")
        self._begun, self._sent, self._failed = True, False, None

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | str | None = None,
        partition: int = -1,
        headers: list[tuple[str, bytes]] | None = None,
        on_delivery: Callable[[KafkaError | None, FakeMessage], None] | None = None,
    ) -> None:
        self._process.alive()
        draw = self._random.random()
        if self._rates.strikes("buffer_full", draw):
            raise BufferError("Local: Queue full")
        if draw > 0.8:
            self._enter("produce")
            if draw > 0.9:
                self._send(part=True)
        if self._fatal is not None:
            raise KafkaException(self._fatal)
        if self._failed is not None:
            raise error(KafkaError._STATE, "the transaction has failed")
        if self._id and not self._begun:
            raise error(KafkaError._STATE, "no transaction is open")
        encoded = key.encode() if isinstance(key, str) else key
        place = self._cluster.partition(topic, encoded, partition)
        copied = None if headers is None else list(headers)
        self._queue.setdefault(place, deque()).append((encoded, value, copied, on_delivery))

    def poll(self, timeout: float = -1) -> int:
        self._enter("producer poll")
        self._send(part=True)
        return self._report()

    def flush(self, timeout: float = -1) -> int:
        self._enter("flush")
        self._send(part=False)
        self._report()
        return sum(len(waiting) for waiting in self._queue.values())

    def send_offsets_to_transaction(self, offsets: list[TopicPartition], metadata: Any, timeout: float) -> None:
        self._enter("send offsets", crash=True)
        deadline = self._cluster.scheduler.now + int(timeout * 1e6)
        self._check()
        self._maybe_fail()
        self._send(part=True)
        group, member = metadata
        places = {(place.topic, place.partition): place.offset for place in offsets}
        texts = {(place.topic, place.partition): place.metadata or "" for place in offsets}
        while True:
            self._reach(deadline)
            try:
                refused = self._cluster.add_offsets(
                    self._id, self._epoch, self._timeout_us, group, places, member, texts
                )
                break
            except Concurrent:
                self._wait(deadline)
            except Fenced:
                raise self._fence() from None
        if refused is not None:
            self._failed = KafkaError(refused, "the group refuses", txn_requires_abort=True)
            raise KafkaException(self._failed)
        self._sent = True
        if self._rates.strikes("retriable", self._random.random()):
            raise error(KafkaError._TIMED_OUT, "send offsets", retriable=True)

    def commit_transaction(self, timeout: float) -> None:
        self._enter("commit", crash=True)
        deadline = self._cluster.scheduler.now + int(timeout * 1e6)
        self._check()
        self._maybe_fail()
        self._send(part=False)
        self._check()
        self._report()
        if not self._begun:
            raise error(KafkaError._STATE, "no transaction is open")
        self._reach(deadline)
        self._lose_commit(deadline)
        self._end(commit=True)
        self._process.call("committed", 20, 200)
        if self._rates.strikes("crash_commit", self._random.random()):
            self._process.crash("after commit")
        self._begun = False

    def abort_transaction(self, timeout: float) -> None:
        self._enter("abort", crash=True)
        deadline = self._cluster.scheduler.now + int(timeout * 1e6)
        if self._fatal is not None:
            raise KafkaException(self._fatal)
        purged = KafkaError(KafkaError._PURGE_QUEUE, "purged")
        for place, waiting in self._queue.items():
            for _, _, _, on_delivery in waiting:
                self._note_delivery(on_delivery, purged, place, None)
        self._queue.clear()
        self._report()
        self._reach(deadline)
        if self._sent:
            self._end(commit=False)
        self._begun, self._failed = False, None

    # --- what its background does ------------------------------------------------------------------------------------

    def die(self) -> None:
        """The process is gone; requests on their way still arrive."""
        if self._random.random() < 0.5:
            self._deliver(self._random.randrange(8))

    def _enter(self, what: str, *, crash: bool = False) -> None:
        self._process.call(what)
        if crash and self._rates.strikes("crash_commit", self._random.random()):
            self._process.crash(what)

    def _check(self) -> None:
        if self._fatal is not None:
            raise KafkaException(self._fatal)
        if self._failed is not None:
            raise KafkaException(self._failed)

    def _maybe_fail(self) -> None:
        if self._rates.strikes("abortable", self._random.random()):
            self._failed = KafkaError(KafkaError._MSG_TIMED_OUT, "not delivered", txn_requires_abort=True)
            raise KafkaException(self._failed)
        if self._rates.strikes("fatal", self._random.random()):
            self._fatal = KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "simulated", fatal=True)
            raise KafkaException(self._fatal)
        if self._rates.strikes("retriable", self._random.random()):
            raise error(KafkaError._TRANSPORT, "simulated", retriable=True)

    def _fails(self) -> bool:
        """Whether a record of an idempotent producer is not delivered."""
        return self._rates.strikes("undelivered", self._random.random())

    def _fence(self) -> KafkaException:
        self._fatal = KafkaError(KafkaError._FENCED, "a newer producer has the transactional id", fatal=True)
        return KafkaException(self._fatal)

    def _reach(self, deadline_us: int) -> None:
        """Reach the coordinator, or raise after the call's time."""
        cut_for = self._process.cut_until - self._cluster.scheduler.now
        if cut_for > 0:
            left = deadline_us - self._cluster.scheduler.now
            self._cluster.scheduler.sleep(max(0, min(cut_for, left)))
            if cut_for > left:
                raise error(KafkaError._TIMED_OUT, "the coordinator does not answer", retriable=True)

    def _wait(self, deadline_us: int) -> None:
        if self._cluster.scheduler.now > deadline_us:
            raise error(KafkaError._TIMED_OUT, "the last transaction is not completed", retriable=True)
        self._process.call("concurrent", 500, 4000)

    def _time_out(self, deadline_us: int) -> None:
        """The answer is lost, and perhaps the coordinator for a while."""
        longest = 1.4 * self._timeout_us if self._random.random() < 0.5 else 30_000.0
        self._process.go_silent(cut_us=int(longest * self._random.random()) + 1)
        self._cluster_watch()
        left = deadline_us - self._cluster.scheduler.now
        self._cluster.scheduler.sleep(max(0, min(left, self._process.cut_until - self._cluster.scheduler.now)))
        raise error(KafkaError._TIMED_OUT, "no answer", retriable=True)

    def _cluster_watch(self) -> None:
        for group in self._cluster.groups.values():
            group.watch(self._process)

    def _lose_commit(self, deadline_us: int) -> None:
        rates, cluster = self._rates, self._cluster
        if rates.strikes("commit_lost", self._random.random()):
            cluster.scheduler.note(self._process.name, "commit lost")
            self._time_out(deadline_us)
        if rates.strikes("commit_answer_lost", self._random.random()):
            self._end(commit=True)
            cluster.scheduler.note(self._process.name, "commit's answer lost")
            self._time_out(deadline_us)
        if rates.strikes("commit_delayed", self._random.random()):
            producer, epoch, txn = self._id, self._epoch, cluster.transaction(self._id)

            def arrive() -> None:
                try:
                    if cluster.transaction(producer) is not txn:
                        raise InvalidState  # with transactions of version 1 it could end a later one (KIP-890)
                    cluster.end(producer, epoch, commit=True)
                except (Fenced, InvalidState):
                    cluster.scheduler.note("kafka", f"{producer}@{epoch}: a late commit is refused")

            cluster.scheduler.after(self._random.randrange(2 * self._timeout_us), arrive)
            cluster.scheduler.note(self._process.name, "commit delayed")
            self._time_out(deadline_us)

    def _end(self, *, commit: bool) -> None:
        try:
            self._cluster.end(self._id, self._epoch, commit=commit)
        except Fenced:
            raise self._fence() from None
        except InvalidState:
            self._fatal = KafkaError(KafkaError.INVALID_TXN_STATE, "simulated", fatal=True)
            raise KafkaException(self._fatal) from None

    def _send(self, *, part: bool) -> None:
        """Send what waits, or some of it. A fenced producer finds out here and says so at the next call."""
        if not self._queue or self._fatal is not None or self._failed is not None:
            return
        if part and self._random.random() < 0.5:
            return
        while self._queue and not self._deliver(self._random.randrange(6) if part else 1_000_000):
            self._process.call("sending", 500, 4000)
        if not part and self._random.random() < 0.3:
            self._process.call("sent")

    def _deliver(self, most: int) -> bool:
        """Hand up to ``most`` records to the brokers, partition by partition; False if they must wait."""
        places = list(self._queue)
        self._random.shuffle(places)
        for place in places:
            waiting = self._queue[place]
            while waiting and most > 0:
                key, value, headers, on_delivery = waiting[0]
                if not self._id and self._fails():
                    cause = KafkaError(KafkaError._MSG_TIMED_OUT, "simulated")
                    if self._random.random() < 0.5:
                        self._write(place, key, value, headers)  # only the acknowledgement is lost
                    waiting.popleft()
                    self._note_delivery(on_delivery, cause, place, None)
                    continue
                try:
                    record = self._write(place, key, value, headers)
                except Fenced:
                    self._fence()
                    return True
                except Concurrent:
                    return False
                self._sent = True
                waiting.popleft()
                most -= 1
                self._note_delivery(on_delivery, None, place, record)
            if not waiting:
                del self._queue[place]
        return True

    def _write(self, place: Partition, key: bytes | None, value: bytes | None, headers: Any) -> LogRecord:
        if not self._id:
            return self._cluster.append(place.topic, key, value, place.number, headers)
        return self._cluster.produce(self._id, self._epoch, self._timeout_us, place, key, value, headers)

    def _note_delivery(
        self, on_delivery: Any, cause: KafkaError | None, place: Partition, record: LogRecord | None
    ) -> None:
        if on_delivery is not None:
            message = FakeMessage(
                (place.topic, place.number), record, OFFSET_INVALID if record is None else record.offset
            )
            self._reports.append((on_delivery, cause, message))

    def _report(self) -> int:
        reports, self._reports = self._reports, []
        for on_delivery, cause, message in reports:
            on_delivery(cause, message)
        return len(reports)


# --- the consumer ----------------------------------------------------------------------------------------------------


class _Position:
    __slots__ = ("eof", "next", "paused")

    def __init__(self, offset: int | None) -> None:
        self.next = offset
        self.paused = False
        self.eof = -1


class FakeConsumer:
    """A consumer: assigned by hand, or a member of a group."""

    def __init__(self, cluster: Cluster, process: Process, rates: Rates, properties: dict[str, Any]) -> None:
        self.process = process
        self.instance: str = properties.get("group.instance.id", "")
        self.topics: list[str] = []
        self.closed = False
        self._cluster = cluster
        self._rates = rates
        self._random = cluster.scheduler.random
        self._group_id: str = properties["group.id"]
        self._uncommitted = properties["isolation.level"] == "read_uncommitted"
        self._says_end = bool(properties["enable.partition.eof"])
        self._earliest = properties["auto.offset.reset"] == "earliest"
        self._session_us = int(properties["session.timeout.ms"]) * 1000
        self._tell_statistics: Callable[[str], object] | None = properties.get("stats_cb")
        self._statistics_us = int(properties.get("statistics.interval.ms", 0)) * 1000
        self._statistics_at = cluster.scheduler.now + self._statistics_us
        self._positions: dict[Place, _Position] = {}
        self._callbacks: dict[str, Any] = {}
        self._waiting: deque[tuple[str, list[Place]]] = deque()
        self._serving = False
        self._rejoin = False
        self._member = ""
        self._generation = -1
        self._fenced = False
        self._expelled = False
        self._asked = False
        self._lost: set[str] = set()
        process.clients.append(self)

    def _enter(self, what: str) -> None:
        self.process.call(what)
        if self.closed:
            raise RuntimeError("Consumer closed")

    # --- fetching ----------------------------------------------------------------------------------------------------

    def assign(self, places: list[TopicPartition]) -> None:
        self._enter("assign")
        self._positions = {}
        for place in places:
            begin = self._cluster.topics[place.topic][place.partition].start
            offset = begin if place.offset == OFFSET_BEGINNING else place.offset
            self._positions[place.topic, place.partition] = _Position(offset)

    def unassign(self) -> None:
        """Neither a switch point nor an end: a reader's generator may be closed anywhere, even after a crash."""
        if self.closed:
            raise RuntimeError("Consumer closed")
        self._positions = {}

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        self._enter("incremental assign")
        for place in places:
            self._positions[place.topic, place.partition] = _Position(place.offset if place.offset >= 0 else None)

    def assignment(self) -> list[TopicPartition]:
        self._enter("assignment")
        return [TopicPartition(*place) for place in sorted(self._positions)]

    def position(self, places: list[TopicPartition]) -> list[TopicPartition]:
        self._enter("position")
        positions = []
        for place in places:
            position = self._positions.get((place.topic, place.partition))
            offset = OFFSET_INVALID if position is None or position.next is None else position.next
            positions.append(TopicPartition(place.topic, place.partition, offset))
        return positions

    def pause(self, places: list[TopicPartition]) -> None:
        self._pause(places, True)

    def resume(self, places: list[TopicPartition]) -> None:
        self._pause(places, False)

    def _pause(self, places: list[TopicPartition], paused: bool) -> None:
        self._enter("pause" if paused else "resume")
        for place in places:
            position = self._positions.get((place.topic, place.partition))
            if position is not None:
                position.paused = paused

    def seek(self, place: TopicPartition) -> None:
        self._enter("seek")
        position = self._positions.get((place.topic, place.partition))
        if position is None:
            raise error(KafkaError._UNKNOWN_PARTITION, "not assigned")
        if self._rates.strikes("seek_state", self._random.random()):
            raise error(KafkaError._STATE, "not begun yet")
        position.next, position.eof = place.offset, -1

    def poll(self, timeout: float = -1) -> FakeMessage | None:
        self._enter("poll")
        self._serve()
        messages = self._fetch(1)
        if not messages and timeout > 0:
            self._cluster.scheduler.sleep(int(timeout * 1e6))
            self._serve()
            messages = self._fetch(1)
        return messages[0] if messages else None

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[FakeMessage]:
        self._enter("consume")
        self._serve()
        messages = self._fetch(num_messages)
        if not messages and timeout > 0:
            self._cluster.scheduler.sleep(int(timeout * 1e6))
            self._serve()
            messages = self._fetch(num_messages)
        return messages

    def _fetch(self, most: int) -> list[FakeMessage]:
        if self._fenced:
            self._fenced = False
            fenced = KafkaError(KafkaError.FENCED_INSTANCE_ID, "replaced by another of this instance", fatal=True)
            return [FakeMessage(("", -1), None, OFFSET_INVALID, fenced)]
        messages: list[FakeMessage] = []
        places = list(self._positions.items())
        if len(places) > 1:
            self._random.shuffle(places)
        for place, position in places:
            if position.paused or len(messages) >= most:
                continue
            may_be_slow = self._rates.slow_fetch or self._rates.due["slow_fetch"]
            if may_be_slow and self._rates.strikes("slow_fetch", self._random.random()):
                continue
            if position.next is None and not self._begin_at_committed(place, position):
                continue
            assert position.next is not None
            partition = self._cluster.topics[place[0]][place[1]]
            if self._earliest and position.next < partition.start:
                position.next = partition.start
            if not partition.start <= position.next <= partition.end:
                reset = KafkaError(KafkaError._AUTO_OFFSET_RESET, "the offset is out of range")
                return [FakeMessage(place, None, position.next, reset)]
            records, position.next = partition.read(position.next, most - len(messages))
            messages += [FakeMessage(place, record, record.offset) for record in records]
            if (
                self._says_end
                and len(messages) < most
                and position.next == partition.stable_end
                and position.eof != position.next
            ):
                position.eof = position.next
                ended = KafkaError(KafkaError._PARTITION_EOF, "end")
                messages.append(FakeMessage(place, None, position.next, ended))
        return messages

    def _statistics(self) -> str:
        """librdkafka's statistics, as far as they tell of partitions: what was consumed, and where each log ends."""
        topics: dict[str, dict[str, dict[str, Any]]] = {}
        for (topic, number), position in self._positions.items():
            offset = OFFSET_INVALID if position.next is None else position.next
            log = self._cluster.topics[topic][number]
            said = {"app_offset": offset, "next_offset": offset, "ls_offset": log.stable_end, "hi_offset": log.end}
            state = "stopped" if position.paused else "active"
            topics.setdefault(topic, {"partitions": {}})["partitions"][str(number)] = said | {"fetch_state": state}
        return json.dumps({"topics": topics})

    def _begin_at_committed(self, place: Place, position: _Position) -> bool:
        offsets = self._cluster.committed_offsets(self._group_id, [place])
        if offsets is None:
            return False
        position.next = max(offsets[0], 0)
        return True

    def get_watermark_offsets(self, place: TopicPartition, timeout: float = -1) -> tuple[int, int]:
        self._enter("watermarks")
        if self._rates.strikes("watermark_error", self._random.random()):
            raise error(KafkaError._TRANSPORT, "watermarks")
        partition = self._cluster.topics[place.topic][place.partition]
        return partition.start, partition.end if self._uncommitted else partition.stable_end

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> _Metadata:
        self.process.alive()
        return _Metadata(self._cluster)

    def committed(self, places: list[TopicPartition], timeout: float = -1) -> list[TopicPartition]:
        self._enter("committed offsets")
        scheduler = self._cluster.scheduler
        deadline = scheduler.now + int(timeout * 1e6)
        if self._rates.strikes("committed_error", self._random.random()):
            raise error(KafkaError._WAIT_COORD, "committed")
        asked = [(wanted.topic, wanted.partition) for wanted in places]
        while True:
            reachable = self.process.cut_until <= scheduler.now
            offsets = self._cluster.committed_offsets(self._group_id, asked) if reachable else None
            if offsets is not None:
                self.process.call("committed offsets answered")
                return [
                    TopicPartition(*place, offset, self._cluster.committed_metadata(self._group_id, place))
                    if offset >= 0
                    else TopicPartition(*place, OFFSET_INVALID)
                    for place, offset in zip(asked, offsets, strict=True)
                ]
            if scheduler.now > deadline:
                raise error(KafkaError._TIMED_OUT, "committed")
            self.process.call("unstable offsets", 2_000, 20_000)

    def close(self) -> None:
        self._enter("close")
        if self.topics:
            self._leave()
        self.closed = True
        self._positions = {}

    # --- the group ---------------------------------------------------------------------------------------------------

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self._enter("subscribe")
        self.topics = topics
        self._callbacks = {"assign": on_assign, "revoke": on_revoke, "lost": on_lost}
        self._group.session_us = self._session_us
        self._join_later()

    def unsubscribe(self) -> None:
        """Give up what it owns, and leave the group: a static member does so only here, not in ``close``."""
        self._enter("unsubscribe")
        if self.topics:
            self._leave(for_good=True)
        self.topics, self._positions = [], {}

    def memberid(self) -> str:
        self._enter("member id")
        return self._member

    def consumer_group_metadata(self) -> tuple[str, tuple[str, int, str]]:
        self._enter("group metadata")
        return self._group_id, (self._member, self._generation, self.instance)

    @property
    def _group(self) -> Any:
        return self._cluster.group(self._group_id)

    def owned(self) -> set[Place]:
        return set(self._positions)

    def busy(self) -> bool:
        return bool(self._waiting) or self._serving or self._expelled

    def rejoin_later(self) -> None:
        self._rejoin = True

    def settled(self) -> bool:
        return bool(self._member) and not self.busy() and not self._rejoin and self.process.silent_until <= self._now()

    def _now(self) -> int:
        return self._cluster.scheduler.now

    def joined(self, member: str, generation: int) -> None:
        self._member, self._generation, self._asked = member, generation, False

    def assigned(self, member: str, generation: int, places: set[Place]) -> None:
        if member != self._member or generation != self._generation:
            return
        revoked, added = set(self._positions) - places, places - set(self._positions)
        if revoked:
            self._waiting.append(("revoke", sorted(revoked)))
            self._rejoin = True
        if added or not revoked:
            self._waiting.append(("assign", sorted(added)))

    def lose(self, member: str, *, fenced: bool = False) -> None:
        if self.closed or member in self._lost or (self._member and member != self._member):
            return
        self._cluster.scheduler.note(self.process.name, "finds itself expelled")
        self._lost.add(member)
        self._member, self._generation, self._asked = "", -1, False
        self._fenced = fenced
        if fenced:
            return
        self._expelled = True
        self._give_up()

    def _give_up(self) -> None:
        """Let the application hear that it has lost what it has, then join again.

        librdkafka leaves a rebalance that is in progress alone; the next heartbeat says it again.
        """
        if self._serving:
            self._group.background(self, self._random.randrange(HEARTBEAT_US), self._give_up)
            return
        self._expelled = False
        if self._positions or self._waiting:
            self._waiting.append(("lost", []))
            self._rejoin = True
        else:
            self._join_later()

    def _join_later(self) -> None:
        group = self._group

        def join() -> None:
            if self.busy():  # what was lost meanwhile must be given up first
                self._rejoin = True
            elif self._member:
                group.join(self, self._member)
            elif not self._asked:
                self._asked = True
                group.join(self, "")

        group.background(self, self._random.randrange(1_000, HEARTBEAT_US // 2), join)

    def _serve(self) -> None:
        """Run the callbacks that wait, as librdkafka does within the application's poll: statistics, rebalances."""
        if self._tell_statistics is not None and self._now() >= self._statistics_at:
            self._statistics_at = self._now() + self._statistics_us
            self._tell_statistics(self._statistics())
        if not self._waiting or self._serving:
            return
        self._serving = True
        try:
            while self._waiting:
                kind, places = self._waiting.popleft()
                if kind != "assign" and not self._member:
                    kind, places = "lost", sorted(self._positions) if kind == "lost" else places
                self._call_back(kind, places)
        finally:
            self._serving = False
        if self._rejoin:
            self._rejoin = False
            self._join_later()

    def _call_back(self, kind: str, places: list[Place]) -> None:
        self._cluster.scheduler.note(self.process.name, f"on_{kind} {places}")
        if self._rates.strikes("crash_commit", self._random.random()):
            self.process.crash(f"on_{kind}")
        if kind == "lost" and not places:
            return
        self._callbacks[kind](self, [TopicPartition(*place) for place in places])
        if kind != "assign":
            for place in places:
                self._positions.pop(place, None)

    def _leave(self, *, for_good: bool = False) -> None:
        """Give up what is owned, and leave the group unless the membership is static and not given up ``for_good``."""
        self._waiting.clear()
        if self._positions:
            kind = "revoke" if self._member else "lost"
            self._serving = True
            self._call_back(kind, sorted(self._positions))
        member, group = self._member, self._group
        if (self.instance and not for_good) or not member:
            return
        self.process.call("leaving")
        if self.process.cut_until <= self._cluster.scheduler.now:
            group.leave(member)
