"""Everything a run left behind, as it lies in the topics (committed records only) and in Redis. Judges nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson
import redis
from confluent_kafka import Consumer, TopicPartition

from schemas import topics
from schemas.codec import Decoder
from schemas.messages import ShardLayout
from schemas.partitioning import home_of, shard_of
from streams.broker import config
from streams.broker.layout import require_layout
from streams.broker.reader import LogReader
from streams.broker.records import Record
from streams.settings import Settings
from streams.tables.keys import accounts_key, meta_key
from tests.faults.load import POISON

Place = tuple[str, int]
"""Topic and partition."""

_LAYOUT = Decoder[ShardLayout](ShardLayout)


@dataclass(frozen=True, slots=True)
class TopicRecord:
    """A committed record."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes] = field(default_factory=dict)
    appended_ms: int = 0

    @property
    def is_poison(self) -> bool:
        """Whether the load made it unreadable, by its own account."""
        return self.key is not None and self.key.startswith(POISON)

    def json(self) -> Any:
        return orjson.loads(self.value or b"")


@dataclass
class RunRecords:
    """What one run left behind. ``shards`` counts those that have ever had accounts."""

    shards: int
    logs: dict[str, list[TopicRecord]] = field(default_factory=dict)
    committed: dict[Place, int] = field(default_factory=dict)
    """By what a group reads (a topic of the contract is read by one group): its committed offset."""

    tables: dict[int, dict[str, bytes]] = field(default_factory=dict)
    metas: dict[int, dict[str, str]] = field(default_factory=dict)

    def of(self, topic: str, partition: int | None = None) -> list[TopicRecord]:
        """In the order of the log; of all partitions, one after the other."""
        return [record for record in self.logs.get(topic, []) if partition in (None, record.partition)]

    def readable(self, topic: str, partition: int | None = None) -> Iterator[tuple[TopicRecord, Any]]:
        """The records that are not poison, with their JSON."""
        return ((record, record.json()) for record in self.of(topic, partition) if not record.is_poison)

    @cached_property
    def layouts(self) -> list[ShardLayout]:
        """Over which shards accounts were spread, one layout after the other; the last is that of the end."""
        written = [_LAYOUT(record.value or b"") for record in self.of(topics.LAYOUT)]
        return written or [ShardLayout(shards=self.shards, time=0)]

    @property
    def has_moved(self) -> bool:
        """Whether the number of shards has ever been changed."""
        return self.layouts[-1].spread.version > 0

    def home(self, account: str) -> int:
        """The shard of ``account`` at the end."""
        return home_of(account, self.layouts[-1].spread)

    def homes(self, account: str) -> set[int]:
        """The shards that ``account`` may ever have belonged to."""
        return {shard_of(account, count) for count in self._counts}

    @cached_property
    def _counts(self) -> set[int]:
        return {count for layout in self.layouts for count in (layout.shards, layout.spread.target)}

    def rows_by_place(self) -> dict[tuple[int, str], bytes]:
        """The last row of every account in every partition of the changelog that has one of it."""
        rows: dict[tuple[int, str], bytes] = {}
        for record in self.of(topics.ACCOUNTS):
            place = record.partition, (record.key or b"").decode()
            if record.value is None:
                rows.pop(place, None)
            else:
                rows[place] = record.value
        return rows

    def rows(self) -> dict[str, bytes]:
        """Every account's last row in the changelog, of the shard that it belongs to if several have one."""
        places = self.rows_by_place()
        ordered = sorted(places, key=lambda place: place[0] == self.home(place[1]))
        return {account: places[shard, account] for shard, account in ordered}


def collect(settings: Settings) -> RunRecords:
    """Read it all back."""
    with LogReader(settings.kafka, "faults-checker") as reader:
        records = RunRecords(require_layout(reader).shards_used)
        for topic in topics.all_topics():
            records.logs[topic.name] = [
                TopicRecord(partition, m.offset() or 0, _bytes(m.key()), m.value(), _headers(m), m.timestamp()[1])
                for partition in range(reader.partitions(topic.name))
                for m in reader.read_range(topic.name, partition, 0)
            ]
        places = {topic: reader.partitions(topic) for topic in (*topics.INPUTS, topics.EVENTS)}
    for name, count in places.items():
        group = settings.engine.group_id if name == topics.EVENTS else settings.router.group_id
        records.committed |= committed(settings, group, name, count)
    with redis.Redis.from_url(settings.redis.url) as client:
        for shard in range(records.shards):
            rows: dict[Any, Any] = client.hgetall(accounts_key(shard))
            meta: dict[Any, Any] = client.hgetall(meta_key(shard))
            records.tables[shard] = {name.decode(): row for name, row in rows.items()}
            records.metas[shard] = {name.decode(): value.decode() for name, value in meta.items()}
    return records


def unrouted(settings: Settings) -> list[str]:
    """The partitions of the exchange's topics up to whose ends no router has committed."""
    behind: list[str] = []
    with LogReader(settings.kafka, "faults-checker") as reader:
        for topic in topics.INPUTS:
            offsets = committed(settings, settings.router.group_id, topic, reader.partitions(topic))
            ends = {place: reader.watermarks(*place)[1] for place in offsets}
            behind += [f"{topic}[{p}] at {offsets[topic, p]} of {end}" for (_, p), end in ends.items()
                       if offsets[topic, p] < end]  # fmt: skip
    return behind


def committed(settings: Settings, group: str, topic: str, count: int) -> dict[Place, int]:
    """The offsets that a group has committed of a topic of ``count`` partitions; negative where it has none."""
    consumer = Consumer(config.common(settings.kafka, "faults-checker") | {"group.id": group})
    try:
        places = [TopicPartition(topic, partition) for partition in range(count)]
        return {(place.topic, place.partition): place.offset for place in consumer.committed(places, timeout=30)}
    finally:
        consumer.close()


def _headers(message: Record) -> dict[str, bytes]:
    return {name: _bytes(value) or b"" for name, value in dict(message.headers() or []).items()}


def _bytes(key: bytes | str | None) -> bytes | None:
    return key.encode() if isinstance(key, str) else key
