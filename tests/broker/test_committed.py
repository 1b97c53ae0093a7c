"""Waiting for what a group has committed, and seeking: what passes by itself is waited for, and nothing else."""

from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.broker.committed import RETRIABLE, committed_offsets, committed_steps, metadata_of, seek
from streams.errors import BrokerError

PLACES = [TopicPartition("t", 0)]


class FailingConsumer:
    """A consumer that answers with ``errors`` first: those below zero fail the call, or a place, if ``in_place``."""

    def __init__(self, errors: list[int], *, in_place: bool = False) -> None:
        self.errors = errors
        self.timeouts: list[float] = []
        self.places: list[TopicPartition] = []
        self._in_place = in_place

    def committed(self, places: list[TopicPartition], timeout: float) -> list[Any]:
        self.timeouts.append(timeout)
        error = KafkaError(self.errors.pop(0)) if self.errors else None
        if error is not None and not self._in_place:
            raise KafkaException(error)
        return [_Answer(place, error) for place in places]

    def seek(self, place: TopicPartition) -> None:
        if self.errors:
            raise KafkaException(KafkaError(self.errors.pop(0)))
        self.places.append(place)


class _Answer:
    def __init__(self, place: TopicPartition, error: KafkaError | None) -> None:
        self.topic, self.partition, self.offset, self.error = place.topic, place.partition, 7, error


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("code", sorted(RETRIABLE))
def test_what_passes_by_itself_is_asked_again(code: int, in_place: bool) -> None:
    group = FailingConsumer([code], in_place=in_place)
    assert [place.offset for place in committed_offsets(cast(Consumer, group), PLACES, 30.0)] == [7]
    assert len(group.timeouts) == 2


def test_a_request_that_timed_out_is_asked_again_in_steps_as_well() -> None:
    """An engine asks in steps; one slow broker must not cost it the shards that it holds."""
    group = FailingConsumer([KafkaError.REQUEST_TIMED_OUT] * 4)
    steps = committed_steps(cast(Consumer, group), PLACES, 30.0, call_s_max=0.25)
    for _ in range(4):
        next(steps)
    with pytest.raises(StopIteration) as done:
        next(steps)
    assert [place.offset for place in done.value.value] == [7]
    assert group.timeouts == [0.05, 0.1, 0.2, 0.25, 0.25], "no call blocks for longer than it may"


def test_what_never_passes_is_an_error_at_once() -> None:
    group = FailingConsumer([KafkaError.GROUP_AUTHORIZATION_FAILED] * 2)
    with pytest.raises(BrokerError, match=r"committed offsets cannot be read.*GROUP_AUTHORIZATION_FAILED"):
        committed_offsets(cast(Consumer, group), PLACES, 30.0)
    assert len(group.timeouts) == 1


def test_a_coordinator_that_stays_away_is_an_error_when_time_is_up() -> None:
    group = FailingConsumer([KafkaError.COORDINATOR_NOT_AVAILABLE] * 100)
    with pytest.raises(BrokerError, match="committed offsets cannot be read"):
        committed_offsets(cast(Consumer, group), PLACES, 0.01)
    assert len(group.timeouts) == 2


def test_a_partition_that_has_not_begun_is_sought_again() -> None:
    group = FailingConsumer([KafkaError._STATE] * 2)
    seek(cast(Consumer, group), TopicPartition("t", 0, 5), 30.0)
    assert [place.offset for place in group.places] == [5]


def test_a_partition_that_is_not_assigned_cannot_be_sought() -> None:
    group = FailingConsumer([KafkaError._UNKNOWN_PARTITION])
    with pytest.raises(BrokerError, match=r"t\[0\]: cannot seek"):
        seek(cast(Consumer, group), TopicPartition("t", 0, 5), 30.0)
    with pytest.raises(BrokerError, match=r"t\[0\]: cannot seek"):
        seek(cast(Consumer, FailingConsumer([KafkaError._STATE] * 100)), TopicPartition("t", 0, 5), 0.0)


class Unreadable:
    """A committed offset beside which somebody has written what is no UTF-8."""

    @property
    def metadata(self) -> str:
        return b"\xff\xfe".decode()


def test_a_text_beside_an_offset_that_is_no_text_is_none() -> None:
    assert metadata_of(TopicPartition("topic", 0, 1, "hé😀")) == "hé😀"
    assert metadata_of(TopicPartition("topic", 0, 1)) is None
    assert metadata_of(cast(TopicPartition, Unreadable())) is None
