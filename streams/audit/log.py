"""What an audit reads: the logs, any number of them at a time, each once and in order."""

from collections.abc import Iterator
from typing import Self

from streams.broker.kafka import Kafka
from streams.broker.reader import LogReader
from streams.broker.records import Log, Record

CLIENT = "margin-audit"


class KafkaLog:
    """The logs in Kafka; a consumer is kept for every read that goes on at the same time. Use as a context manager."""

    def __init__(self, kafka: Kafka) -> None:
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
        """See :class:`streams.broker.records.Log`.

        Raises:
            BrokerError: no answer, or no such partition.
        """
        reader = self._borrow()
        try:
            return reader.watermarks(topic, partition)
        finally:
            self._idle.append(reader)

    def partitions(self, topic: str) -> int:
        """See :class:`streams.broker.records.Log`.

        Raises:
            BrokerError: no answer, or no such topic.
        """
        reader = self._borrow()
        try:
            return reader.partitions(topic)
        finally:
            self._idle.append(reader)

    def read_range(self, topic: str, partition: int, first: int, end: int | None = None) -> Iterator[Record]:
        """See :class:`streams.broker.records.Log`.

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
        reader = self._kafka.log_reader(CLIENT)
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
            if record.offset() >= end:
                self._ahead = record
                return
            yield record
