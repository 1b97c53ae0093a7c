"""What an audit reads: the logs, any number of them at a time, each once and in order."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, Self

from streams.broker.reader import LogReader
from streams.settings import KafkaSettings

CLIENT = "margin-audit"


class Record(Protocol):
    """A record as a Kafka client delivers it."""

    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def offset(self) -> int | None: ...
    def timestamp(self) -> tuple[int, int]: ...
    def headers(self) -> "Mapping[str, str | bytes | None] | Sequence[tuple[str, str | bytes | None]] | None": ...


class Log(Protocol):
    """The logs of one cluster. Reads that have begun may go on side by side."""

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset of a partition and the next to be written, open transactions included."""
        ...

    def partitions(self, topic: str) -> int:
        """The partition count of ``topic``."""
        ...

    def read_range(self, topic: str, partition: int, first: int, end: int | None = None) -> Iterator[Record]:
        """The committed records from offset ``first`` up to, not including, ``end`` (None: now's end)."""
        ...


class KafkaLog:
    """The logs in Kafka; a consumer is kept for every read that goes on at the same time. Use as a context manager."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._readers: list[LogReader] = []
        self._idle: list[LogReader] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self._readers.clear()
        self._idle.clear()

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """See :class:`Log`.

        Raises:
            BrokerError: no answer, or no such partition.
        """
        reader = self._borrow()
        try:
            return reader.watermarks(topic, partition)
        finally:
            self._idle.append(reader)

    def partitions(self, topic: str) -> int:
        """See :class:`Log`.

        Raises:
            BrokerError: no answer, or no such topic.
        """
        reader = self._borrow()
        try:
            return reader.partitions(topic)
        finally:
            self._idle.append(reader)

    def read_range(self, topic: str, partition: int, first: int, end: int | None = None) -> Iterator[Record]:
        """See :class:`Log`.

        Raises:
            BrokerError: no progress, or Kafka refuses.
        """
        reader = self._borrow()
        try:
            yield from reader.read_range(topic, partition, first, end)
        finally:
            self._idle.append(reader)

    def _borrow(self) -> LogReader:
        if self._idle:
            return self._idle.pop()
        reader = LogReader(self._kafka, CLIENT)
        self._readers.append(reader)
        return reader


class Tape:
    """One partition read forwards in pieces, whenever more of it is needed."""

    def __init__(self, log: Log, topic: str, partition: int, first: int) -> None:
        self._records = log.read_range(topic, partition, first)
        self._ahead: Record | None = None

    def until(self, end: int) -> Iterator[Record]:
        """The records below offset ``end`` that have not been read yet."""
        while True:
            record = self._ahead if self._ahead is not None else next(self._records, None)
            self._ahead = None
            if record is None:
                return
            if offset_of(record) >= end:
                self._ahead = record
                return
            yield record


def offset_of(record: Record) -> int:
    """Where the record stands in its partition."""
    offset = record.offset()
    assert offset is not None
    return offset


def header(record: Record, name: str) -> str:
    """A header's text, empty if there is none."""
    value = dict(record.headers() or ()).get(name) or b""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
