"""What of a consumer's errors passes by itself, and what ends a process."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from streams.broker import config
from streams.broker.reader import LogReader, poll_batch
from streams.errors import BrokerError
from streams.settings import load


def polled(error: KafkaError) -> list[Any]:
    message = SimpleNamespace(error=lambda: error, topic=lambda: "t", partition=lambda: 0)
    return list(poll_batch(cast(Consumer, SimpleNamespace(poll=lambda _: message)), 0, 1))


def test_what_librdkafka_mends_by_itself_passes() -> None:
    assert polled(KafkaError(KafkaError._TRANSPORT)) == []


def test_a_consumer_that_has_ended_for_good_says_so_instead_of_being_polled_in_vain() -> None:
    """librdkafka says it once, without the flag."""
    with pytest.raises(BrokerError, match="ended for good: fenced"):
        polled(KafkaError(KafkaError._FATAL, "fenced"))


def test_what_will_not_pass_names_its_place() -> None:
    with pytest.raises(BrokerError, match=r"t\[0\]"):
        polled(KafkaError(KafkaError._UNKNOWN_PARTITION))


class OneRecord:
    """A consumer of partitions that hold one record each; what it was asked for, in order."""

    def __init__(self, asked: list[str]) -> None:
        self._asked = asked
        self._topic = ""

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, 1

    def list_topics(self, topic: str, timeout: float) -> None:
        self._asked.append(f"where is {topic}")

    def assign(self, places: list[TopicPartition]) -> None:
        self._topic = places[0].topic
        self._asked.append(f"read {self._topic}")

    def unassign(self) -> None: ...

    def consume(self, most: int, timeout: float) -> list[Any]:
        return [SimpleNamespace(error=lambda: None, offset=lambda: 0, value=self._topic.encode)]


def test_a_topic_is_looked_up_once_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise librdkafka waits a second before it looks: a shard that is taken would wait for each of its logs."""
    asked: list[str] = []
    monkeypatch.setattr(config, "created", lambda *_: OneRecord(asked))
    reader = LogReader(load({}).kafka, "test")
    for topic in ("a", "b", "a"):
        assert [message.value() for message in reader.read_range(topic, 0, 0)] == [topic.encode()]
    assert asked == ["where is a", "read a", "where is b", "read b", "read a"]
