"""Where a shard's events stand until it runs: at a number, which a seek goes over for good."""

from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.topics import EVENTS
from streams.clearing.assignment import Assignment
from streams.runtime import SYSTEM


class Assigned:
    """What a consumer is told."""

    def __init__(self) -> None:
        self.offsets: dict[int, int] = {}
        self.paused: list[int] = []

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        assert timeout > 0
        if place.partition == 1:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return 3, 7

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        self.offsets |= {place.partition: place.offset for place in places}

    def pause(self, places: list[TopicPartition]) -> None:
        self.paused += [place.partition for place in places]


def test_no_offset_has_to_be_asked_for_before_the_seek() -> None:
    """An answer that comes after the seek has librdkafka ask again and go on at the end, past what is there."""
    consumer: Any = Assigned()
    assignment = Assignment(2, lambda: None, lambda shard, in_order: None, SYSTEM)
    assignment.on_assign(cast(Consumer, consumer), [TopicPartition(EVENTS, shard) for shard in range(3)])
    assert consumer.offsets == {0: 7, 1: 0, 2: 7}
    assert sorted(consumer.offsets) == consumer.paused == [0, 1, 2]
    assert assignment.to_restore == [0, 1], "the third partition is no shard's"
