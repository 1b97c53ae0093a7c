"""Partitions that a client is told do not exist, which may only be so for a moment.

A broker that has just started, or one that has not heard of the last changes, may know less of the topics than there
is, and librdkafka hands on what it says. By itself it goes on as soon as another answer names the partition. So such a
word is believed only when Kafka, asked again after a while, still does not know the partition.
"""

import logging
from collections.abc import Collection

from confluent_kafka import Consumer, KafkaError, KafkaException

from streams.errors import BrokerError
from streams.logs import event
from streams.runtime import SYSTEM, Runtime

log = logging.getLogger(__name__)

MISSING = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC})
"""Codes that say of a partition that there is none."""

MISSING_S = 15.0
"""So long what is said to be missing is waited for before Kafka is asked."""

_ANSWER_S = 5.0

Place = tuple[str, int]
"""Topic and partition; a negative number is the topic as a whole."""


class MissingPartitions:
    """What one consumer was told is missing, until it is there again or Kafka has confirmed it."""

    def __init__(self, runtime: Runtime = SYSTEM, patience_s: float = MISSING_S) -> None:
        self._runtime = runtime
        self._patience_s = patience_s
        self._since: dict[Place, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def note(self, topic: str, partition: int, text: str) -> None:
        """Somebody says that there is no such partition."""
        if (topic, partition) not in self._since:
            self._since[topic, partition] = self._runtime.monotonic()
            event(log, logging.WARNING, "partition_missing", topic=topic, partition=partition, reason=text)

    def forget(self, topic: str, partition: int) -> None:
        """It is there: a record of it has come."""
        if self._since and self._since.pop((topic, partition), None) is not None:
            event(log, logging.INFO, "partition_there_again", topic=topic, partition=partition)

    def look(self, consumer: Consumer) -> None:
        """Ask Kafka for what has been missing for long.

        Raises:
            BrokerError: it does not know one either.
        """
        if not self._since:
            return
        now = self._runtime.monotonic()
        overdue = [place for place, since in self._since.items() if now - since >= self._patience_s]
        for topic, partition in overdue:
            there = partitions_there(consumer, topic)
            if there is None:  # nobody to ask
                self._since[topic, partition] = now
            elif not there or (partition >= 0 and partition not in there):
                raise BrokerError(
                    f"{topic}[{partition}]: there has been no such partition for {self._patience_s:g} s; "
                    "`margin-clearing topics --verify` says what is wrong with the topics"
                )
            else:
                self.forget(topic, partition)


def partitions_there(consumer: Consumer, topic: str) -> Collection[int] | None:
    """The partitions of ``topic`` that Kafka knows now; None if it does not answer."""
    try:
        metadata = consumer.list_topics(topic, timeout=_ANSWER_S).topics[topic]
    except KafkaException:
        return None
    if metadata.error is not None and metadata.error.code() not in MISSING:
        return None
    return list(metadata.partitions)
