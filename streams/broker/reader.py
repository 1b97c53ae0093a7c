"""Reading a log by offset, outside any consumer group: what restoring, following and auditing need.

:func:`read_range` reads a partition's records up to an end; :class:`Follower` follows one partition for ever.
Both see committed records only.
"""

import time
from collections.abc import Iterator
from typing import Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from streams.broker import config
from streams.errors import BrokerError
from streams.settings import KafkaSettings

_READ_UNCOMMITTED = {"isolation.level": "read_uncommitted"}


class LogReader:
    """A hand-assigned consumer for bounded reads and watermarks. Use as a context manager."""

    def __init__(self, kafka: KafkaSettings, client_id: str) -> None:
        self._kafka = kafka
        self._client_id = client_id
        self._consumer = Consumer(config.reader(kafka, client_id))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._consumer.close()

    def watermarks(self, topic: str, partition: int, timeout_s: float = 30.0) -> tuple[int, int]:
        """The first offset and the next offset to be written (uncommitted records included).

        Raises:
            BrokerError: no answer in ``timeout_s``, or no such partition.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                low, high = self._consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=max(0.1, deadline - time.monotonic())
                )
                return int(low), int(high)
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise BrokerError(f"{topic}[{partition}]: watermarks: {error.args[0].str()}") from error
                time.sleep(0.05)

    def partitions(self, topic: str, timeout_s: float = 30.0) -> int:
        """The partition count of ``topic``.

        Raises:
            BrokerError: no such topic, or no answer.
        """
        metadata = self._consumer.list_topics(topic, timeout=timeout_s).topics[topic]
        if metadata.error is not None:
            raise BrokerError(f"{topic}: {metadata.error.str()}; create the topics with `margin-clearing topics`")
        return len(metadata.partitions)

    def read_range(
        self, topic: str, partition: int, first: int, end: int | None = None, timeout_s: float = 120.0
    ) -> Iterator[Message]:
        """The committed records from offset ``first`` up to, not including, ``end`` (now's end if None).

        The end is a position in the log, uncommitted records included: what is open there must be decided before this
        returns, so nothing that commits later below ``end`` can be missed. ``timeout_s`` bounds a wait without progress.

        Raises:
            BrokerError: no progress for ``timeout_s``, or the broker refuses.
        """
        low, high = self.watermarks(topic, partition)
        stop = high if end is None else min(end, high)
        position = max(first, low)
        if position >= stop:
            return
        self._consumer.assign([TopicPartition(topic, partition, position)])
        try:
            deadline = time.monotonic() + timeout_s
            while position < stop:
                messages = self._consumer.consume(1000, timeout=0.02)
                for message in messages:
                    error = message.error()
                    if error is None:
                        offset = message.offset()
                        assert offset is not None
                        if offset >= stop:
                            return
                        yield message
                    elif error.code() != KafkaError._PARTITION_EOF and not error.retriable():
                        raise BrokerError(f"{topic}[{partition}]: {error.str()}")
                here = self._consumer.position([TopicPartition(topic, partition)])[0].offset
                reached = _end_of_partition(messages)
                if reached is not None:
                    here = max(here, reached)
                if here > position:
                    position, deadline = here, time.monotonic() + timeout_s
                elif time.monotonic() > deadline:
                    raise BrokerError(f"{topic}[{partition}]: stuck at {position} before {stop} for {timeout_s:g} s")
        finally:
            self._consumer.unassign()


def _end_of_partition(messages: list[Message]) -> int | None:
    for message in reversed(messages):
        error = message.error()
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            return message.offset()
    return None


class Follower:
    """Follows one partition from an offset on; never in a group, never commits."""

    def __init__(self, kafka: KafkaSettings, client_id: str, topic: str, partition: int = 0) -> None:
        self.topic, self.partition = topic, partition
        self._consumer = Consumer(
            config.reader(kafka, client_id) | {"enable.partition.eof": False, "fetch.wait.max.ms": 20}
        )

    def start(self, offset: int = OFFSET_BEGINNING) -> None:
        """Begin (or begin again) at ``offset``."""
        self._consumer.assign([TopicPartition(self.topic, self.partition, offset)])

    def poll(self, timeout_s: float, records_max: int = 1000) -> list[Message]:
        """What has arrived: waits up to ``timeout_s`` for the first record, then takes what is there.

        Raises:
            BrokerError: the broker refuses for good.
        """
        return poll_batch(self._consumer, timeout_s, records_max)

    def close(self) -> None:
        self._consumer.close()


def poll_batch(consumer: Consumer, timeout_s: float, records_max: int) -> list[Message]:
    """Wait for the first record, then drain: ``consume(n, t)`` alone would wait ``t`` unless ``n`` records are there.

    Raises:
        BrokerError: an error that will not pass by itself.
    """
    first = consumer.poll(timeout_s)
    if first is None:
        return []
    batch = [first, *consumer.consume(records_max - 1, timeout=0)] if records_max > 1 else [first]
    good = []
    for message in batch:
        error = message.error()
        if error is None:
            good.append(message)
        elif error.fatal() or error.code() in _FOR_GOOD:
            raise BrokerError(f"{message.topic()}[{message.partition()}]: {error.str()}")
    return good


_FOR_GOOD = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._AUTHENTICATION,
    KafkaError.FENCED_INSTANCE_ID,
}
