"""Logs in memory, and the real engine on them: what it writes is what an audit must be able to run again."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, cast

from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, TopicPartition

from schemas.codec import encode
from schemas.messages import EventFrame, MarkFrame
from schemas.parameters import Parameter
from schemas.partitioning import partition_of
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, EVENTS, JOURNAL, MARKS, PARAMETERS, TRANSFERS
from streams.broker.kafka import Kafka
from streams.broker.records import Record
from streams.clearing.engine import Engine
from streams.errors import TransactionAborted
from streams.runtime import SYSTEM
from streams.settings import load
from streams.tables.restore_point import RestorePoint
from streams.tables.write_behind import TableWriter
from streams.watchdog import Watchdog

COUNTS = {COMMANDS: 3, ALERTS: 3, TRANSFERS: 2}


@dataclass
class MemoryRecord(Record):
    """A record with the methods of a client's message."""

    log_topic: str
    log_partition: int
    log_offset: int
    log_key: bytes | None
    log_value: bytes | None
    log_headers: list[tuple[str, bytes]]
    appended_ms: int = 0
    stamped: bool = True

    def topic(self) -> str:
        return self.log_topic

    def partition(self) -> int:
        return self.log_partition

    def offset(self) -> int:
        return self.log_offset

    def key(self) -> bytes | None:
        return self.log_key

    def value(self) -> bytes | None:
        return self.log_value

    def headers(self) -> list[tuple[str, bytes]]:
        return self.log_headers

    def timestamp(self) -> tuple[int, int]:
        return (TIMESTAMP_LOG_APPEND_TIME if self.stamped else TIMESTAMP_CREATE_TIME), self.appended_ms

    def error(self) -> None:
        return None


class MemoryLog:
    """Partitions of records; an offset that holds none is a transaction's marker or compacted away."""

    def __init__(self, shards: int = 1, logs: "dict[tuple[str, int], list[MemoryRecord | None]] | None" = None) -> None:
        self.shards = shards
        self.logs = {} if logs is None else logs
        self.lows: dict[tuple[str, int], int] = {}

    def partitions(self, topic: str) -> int:
        return COUNTS.get(topic, self.shards if topic in (EVENTS, ACCOUNTS, JOURNAL) else 1)

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        place = (topic, partition)
        return self.lows.get(place, 0), len(self.logs.get(place, []))

    def read_range(self, topic: str, partition: int, first: int, end: int | None = None) -> Iterator[MemoryRecord]:
        low, high = self.watermarks(topic, partition)
        for record in self.logs.get((topic, partition), [])[max(first, low) : high if end is None else min(end, high)]:
            if record is not None:
                yield record

    def records(self, topic: str) -> list[MemoryRecord]:
        """Every record of every partition."""
        return [m for partition in range(self.partitions(topic)) for m in self.read_range(topic, partition, 0)]

    def append(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: str | bytes | None = None,
        partition: int = -1,
        headers: Sequence[tuple[str, bytes]] = (),
        appended_us: int = 0,
    ) -> MemoryRecord:
        data = key.encode() if isinstance(key, str) else key
        if partition < 0:
            partition = partition_of(data or b"", self.partitions(topic))
        records = self.logs.setdefault((topic, partition), [])
        record = MemoryRecord(topic, partition, len(records), data, value, list(headers), appended_us // 1000)
        records.append(record)
        return record

    def mark(self, topic: str, partition: int) -> None:
        """Take an offset that no reader sees, as a transaction's marker does."""
        self.logs.setdefault((topic, partition), []).append(None)

    def change(self, record: MemoryRecord, value: bytes | None) -> None:
        """Put another value in a record's place."""
        record.log_value = value

    def drop(self, record: MemoryRecord) -> None:
        """Let a record be gone, as compaction does."""
        self.logs[record.log_topic, record.log_partition][record.log_offset] = None

    def cut(self, topic: str, partition: int, low: int) -> None:
        """Let everything below an offset be gone, as retention does."""
        self.lows[topic, partition] = low


@dataclass
class _Producer:
    log: MemoryLog
    committed: dict[int, int]
    fail: bool = False
    _queued: list[tuple[dict[str, Any], Callable[..., None] | None]] = field(default_factory=list)
    _offsets: list[TopicPartition] = field(default_factory=list)

    def begin(self) -> None:
        self._queued, self._offsets = [], []

    def abort(self) -> None:
        self.begin()

    def close(self) -> None:
        self.begin()

    def produce(self, topic: str, value: bytes | None, **arguments: Any) -> None:
        delivered = arguments.pop("on_delivery", None)
        arguments["headers"] = list(arguments.pop("headers", None) or [])
        self._queued.append(({"topic": topic, "value": value, **arguments}, delivered))

    def send_offsets(self, offsets: list[TopicPartition], group_metadata: object) -> None:
        self._offsets = offsets

    def commit(self) -> None:
        if self.fail:
            self.fail = False
            raise TransactionAborted("a failure that the test asked for")
        places = set()
        for arguments, delivered in self._queued:
            record = self.log.append(**arguments)
            places.add((record.log_topic, record.log_partition))
            if delivered is not None:
                delivered(None, record)
        for topic, partition in places:
            self.log.mark(topic, partition)
        self.committed |= {place.partition: place.offset for place in self._offsets}


@dataclass
class _Consumer:
    log: MemoryLog
    committed_offsets: dict[int, int]
    positions: dict[int, int] = field(default_factory=dict)

    def consume(self, records_max: int, timeout: float) -> list[MemoryRecord]:
        found = []
        for partition, position in self.positions.items():
            for record in self.log.read_range(EVENTS, partition, position):
                if len(found) < records_max:
                    found.append(record)
                    self.positions[partition] = record.log_offset + 1
        return found

    def poll(self, timeout: float) -> MemoryRecord | None:
        return next(iter(self.consume(1, timeout)), None)

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [
            TopicPartition(EVENTS, place.partition, self.committed_offsets.get(place.partition, -1001))
            for place in places
        ]

    def seek(self, place: TopicPartition) -> None:
        self.positions[place.partition] = place.offset

    def resume(self, places: list[TopicPartition]) -> None: ...

    def pause(self, places: list[TopicPartition]) -> None:
        for place in places:
            self.positions.pop(place.partition, None)

    def consumer_group_metadata(self) -> object:
        return None

    def memberid(self) -> str:
        return "member"


@dataclass
class _Follower:
    log: MemoryLog
    topic: str
    position: int = 0

    def start(self, offset: int) -> None:
        self.position = offset

    def poll(self, timeout_s: float) -> list[MemoryRecord]:
        found = list(self.log.read_range(self.topic, 0, self.position))
        self.position = found[-1].log_offset + 1 if found else self.position
        return found


class _Tables:
    def check(self) -> None: ...
    def restore(self, shard: int, claim: int) -> None: ...
    def release(self, shard: int, *, flush: bool) -> None: ...
    def submit(self, shard: int, token: int, stamp: int, rows: Mapping[str, bytes | None]) -> None: ...
    def submit_marks(self, marks: object) -> None: ...


class _NoRestorePoint:
    def read(self, shard: int, token: int, low: int, end: int) -> Generator[None, None, None]:
        yield


class MemoryEngine:
    """One engine that owns every shard of a :class:`MemoryLog`; each step is one turn of its cycle."""

    def __init__(self, log: MemoryLog) -> None:
        self.log = log
        self.committed: dict[int, int] = {}
        self.start()

    def start(self) -> None:
        """A new process: nothing in memory."""
        log = self.log
        self.settings = load({}, {"topics.shards": log.shards, "service.instance_id": "memory"})
        self.producer = _Producer(log, self.committed)
        engine: Any = Engine(
            cast(Kafka, self), cast(TableWriter, _Tables()), cast(RestorePoint, _NoRestorePoint()), Event(), Watchdog()
        )
        engine._marks_log.start(log.watermarks(MARKS, 0)[1])
        engine._catch_up_parameters()
        engine._to_take = list(range(log.shards))
        self._engine = engine
        while engine._to_take:
            self.cycle(commit=False)

    # --- what the engine takes for Kafka

    runtime = SYSTEM
    worker = "memory"

    def transactional_producer(self, transactional_id: str) -> _Producer:
        return self.producer

    def log_reader(self, *_: Any) -> MemoryLog:
        return self.log

    def follower(self, client_id: str, topic: str) -> _Follower:
        return _Follower(self.log, topic)

    def group_consumer(self, *_: Any) -> _Consumer:
        return _Consumer(self.log, self.committed)

    def cycle(self, *, commit: bool = True, idle: bool = False) -> None:
        """One turn; ``commit``: what waits is due, ``idle``: quiet shards journal as well."""
        engine = cast(Any, self._engine)
        engine._last_commit = time.monotonic() + (-1e6 if commit else 1e6)
        engine._last_journal = time.monotonic() + (-1e6 if idle else 1e6)
        engine.cycle()

    def settle(self) -> None:
        """Turn until everything in the logs is applied and committed."""
        for _ in range(4 * self.log.shards + 4):
            self.cycle(idle=True)

    def fail_next_commit(self) -> None:
        self.producer.fail = True

    # --- inputs ------------------------------------------------------------------------------------------------------

    def parameters(self, *records: Parameter) -> None:
        for record in records:
            self.log.append(PARAMETERS, encode(record), key=record.key, partition=0)

    def events(
        self, frame: EventFrame, shard: int = 0, appended_us: int | None = None, *, stamped: bool = True
    ) -> None:
        at_us = frame.time if appended_us is None else appended_us
        self.log.append(EVENTS, encode(frame), partition=shard, appended_us=at_us).stamped = stamped
        self.log.mark(EVENTS, shard)

    def mark(self, frame: MarkFrame, appended_us: int | None = None, *, stamped: bool = True) -> None:
        at_us = frame.time if appended_us is None else appended_us
        self.log.append(MARKS, encode(frame), partition=0, appended_us=at_us).stamped = stamped
