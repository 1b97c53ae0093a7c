"""Logs of given records, for what reads logs by offset: the in-memory cluster's, read at once and without a process."""

from collections.abc import Iterator

from streams.broker.records import Record
from streams.memory.clients import FakeMessage
from streams.memory.log import Cluster, Headers, Partition
from streams.memory.pipeline import partition_counts
from streams.memory.scheduler import Scheduler


class GivenLog:
    """A :class:`streams.broker.records.Log` over the topics of the contract, each with ``shards`` partitions or one."""

    def __init__(self, shards: int = 1) -> None:
        self._cluster = Cluster(Scheduler(0), partition_counts(shards, 1), lambda _: None)

    def partitions(self, topic: str) -> int:
        return len(self._cluster.topics[topic])

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        log = self._cluster.topics[topic][partition]
        return log.start, log.end

    def read_range(self, topic: str, partition: int, first: int, end: int | None = None) -> Iterator[Record]:
        log = self._cluster.topics[topic][partition]
        for record in log.committed(first, log.end if end is None else end):
            yield Record(FakeMessage((topic, partition), record, record.offset))

    def append(self, topic: str, value: bytes, *, key: str | None = None, partition: int = 0) -> Record:
        """Write a record."""
        record = self._cluster.append(topic, None if key is None else key.encode(), value, partition)
        return Record(FakeMessage((topic, partition), record, record.offset))

    def append_raw(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers | None, partition: int = 0
    ) -> None:
        """Write a record with headers, a tombstone if there is no value."""
        self._cluster.append(topic, key, value, partition, headers)

    def grow(self, topic: str, partitions: int) -> None:
        """Give a topic more partitions."""
        logs = self._cluster.topics[topic]
        logs += [Partition(topic, number) for number in range(len(logs), partitions)]

    def mark(self, topic: str, partition: int = 0) -> None:
        """Take an offset that no reader sees, as a transaction's marker does."""
        self._cluster.append(topic, None, None, partition).control = True

    def cut(self, topic: str, low: int, partition: int = 0) -> None:
        """Let everything below an offset be gone, as retention does."""
        self._cluster.topics[topic][partition].delete_before(low)
