"""What is said not to exist is believed when Kafka says so again after a while."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException

from streams.broker.missing import MISSING, MISSING_S, MissingPartitions
from streams.broker.places import PlaceWatch
from streams.broker.reader import poll_records
from streams.errors import BrokerError
from streams.runtime import Runtime


class Asked:
    """A consumer that is given errors and records, and a cluster of which it can ask how many partitions there are."""

    def __init__(self, partitions: int | None) -> None:
        self.now = 0.0
        self.partitions = partitions
        self.asked = 0
        self.given: list[Any] = []
        self.missing = MissingPartitions(cast(Runtime, SimpleNamespace(monotonic=lambda: self.now)))

    def list_topics(self, topic: str, timeout: float) -> SimpleNamespace:
        self.asked += 1
        if self.partitions is None:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        error = None if self.partitions else KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        known = dict.fromkeys(range(self.partitions))
        return SimpleNamespace(topics={topic: SimpleNamespace(error=error, partitions=known)})

    def poll(self, timeout: float) -> Any:
        return self.given.pop(0) if self.given else None

    def says(self, code: int | None) -> int:
        """The records that come of one poll in which the partition has this error, or a record."""
        error = None if code is None else KafkaError(code)
        message = SimpleNamespace(
            error=lambda: error, topic=lambda: "t", partition=lambda: 1, offset=lambda: 7, timestamp=lambda: (0, 0)
        )
        self.given.append(message)
        consumer: Any = self
        records = list(poll_records(cast(Consumer, consumer), 0, 1, PlaceWatch(), missing=self.missing))
        self.missing.look(consumer)
        return len(records)


@pytest.mark.parametrize("code", sorted(MISSING))
def test_what_is_there_after_all_passes(code: int) -> None:
    asked = Asked(partitions=2)
    assert asked.says(code) == 0
    assert (len(asked.missing), asked.asked) == (1, 0), "librdkafka may mend it by itself"
    asked.now = MISSING_S + 1
    assert asked.says(code) == 0
    assert (len(asked.missing), asked.asked) == (0, 1)


def test_a_record_of_it_shows_that_it_is_there() -> None:
    asked = Asked(partitions=0)
    asked.says(KafkaError._UNKNOWN_PARTITION)
    assert asked.says(None) == 1
    assert len(asked.missing) == 0
    asked.now = MISSING_S + 1
    asked.missing.look(cast(Any, asked))
    assert asked.asked == 0


@pytest.mark.parametrize("partitions", [0, 1])
def test_what_kafka_does_not_know_either_ends_whoever_reads_it(partitions: int) -> None:
    asked = Asked(partitions)
    asked.says(KafkaError.UNKNOWN_TOPIC_OR_PART)
    asked.now = MISSING_S + 1
    with pytest.raises(BrokerError, match=r"t\[1\]: there has been no such partition for 15 s; .*topics --verify"):
        asked.says(KafkaError.UNKNOWN_TOPIC_OR_PART)


def test_while_nobody_answers_nothing_is_known() -> None:
    asked = Asked(partitions=None)
    asked.says(KafkaError._UNKNOWN_TOPIC)
    for _ in range(3):
        asked.now += MISSING_S + 1
        asked.says(KafkaError._UNKNOWN_TOPIC)
    assert (len(asked.missing), asked.asked) == (1, 3)
