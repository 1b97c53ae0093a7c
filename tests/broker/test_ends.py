"""Where partitions end: asked without waiting, and unknown rather than wrong where a leader does not say."""

from collections.abc import Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.topics import INPUTS, TRADES, TRANSFERS
from streams.broker import config
from streams.broker.ends import UNKNOWN, KafkaEndOffsets
from streams.runtime import SYSTEM, Runtime
from streams.settings import KafkaSettings, Settings
from tests.integration.conftest import eventually


class Leaders:
    """An admin client whose answers are given by hand."""

    def __init__(self) -> None:
        self.asked: Mapping[TopicPartition, Future[Any]] = {}
        self.described: dict[str, Future[Any]] = {}

    def list_offsets(self, places: Mapping[TopicPartition, Any], **_: Any) -> Mapping[TopicPartition, Future[Any]]:
        self.asked = {place: Future() for place in places}
        return self.asked

    def describe_topics(self, topics: Any, **_: Any) -> dict[str, Future[Any]]:
        self.described = {TRADES: Future()}
        return self.described

    def answer(self, *answers: int | KafkaException) -> None:
        for future, answer in zip(self.asked.values(), answers, strict=True):
            if isinstance(answer, KafkaException):
                future.set_exception(answer)
            else:
                future.set_result(SimpleNamespace(offset=answer))


class Clock:
    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def leaders(monkeypatch: pytest.MonkeyPatch) -> Leaders:
    leaders = Leaders()
    monkeypatch.setattr(config, "created", lambda *_: cast(AdminClient, leaders))
    return leaders


def test_a_client_that_nobody_answers_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be stranded; then it would never get an answer."""
    made: list[Leaders] = []

    def created(*_: object) -> AdminClient:
        made.append(Leaders())
        return cast(AdminClient, made[-1])

    monkeypatch.setattr(config, "created", created)
    ends = asking(clock := Clock())
    silence = KafkaException(KafkaError(KafkaError._TIMED_OUT))
    for one in (silence, 5, silence, silence):
        ends.ask()
        made[-1].answer(silence, one, silence)
        ends.answer()
        clock.now_s += 6
    assert len(made) == 1
    ends.ask()
    assert len(made) == 2
    made[-1].answer(1, 2, 3)
    assert ends.answer() == {TRADES: [1, 2, 3]}


def asking(clock: Clock) -> KafkaEndOffsets:
    return KafkaEndOffsets(KafkaSettings(), "test", {TRADES: 3}, cast(Runtime, clock))


def test_what_no_leader_tells_is_unknown(leaders: Leaders) -> None:
    """A negative number of librdkafka's own is no offset either: no record of ours may hold it."""
    asked = asking(Clock())
    asked.ask()
    assert (asked.is_asked, asked.answer()) == (True, None)
    leaders.answer(7, KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)), OFFSET_INVALID)
    assert asked.answer() == {TRADES: [7, UNKNOWN, UNKNOWN]}
    assert (asked.is_asked, asked.answer()) == (False, None)


def test_partitions_that_are_added_are_asked_for_within_seconds(leaders: Leaders) -> None:
    clock = Clock()
    asked = asking(clock)
    for now_s, count in ((4.9, 3), (5.0, 3), (5.1, 5)):
        clock.now_s = now_s
        asked.ask()
        assert len(leaders.asked) == count
        leaders.answer(*[1] * count)
        assert asked.answer() == {TRADES: [1] * count}
        if leaders.described and not leaders.described[TRADES].done():
            leaders.described[TRADES].set_result(SimpleNamespace(partitions=range(5)))


def test_a_cluster_tells_where_its_partitions_end(settings: Settings) -> None:
    offsets: list[int | None] = []
    producer = Producer(config.producer(settings.kafka, "test"))
    producer.produce(TRANSFERS, b"{}", partition=0, on_delivery=lambda _, message: offsets.append(message.offset()))
    assert producer.flush(10) == 0
    asked = KafkaEndOffsets(settings.kafka, "test", dict.fromkeys(INPUTS, 1), SYSTEM)
    asked.ask()
    answer = eventually(asked.answer, "the answer")
    assert answer[TRANSFERS][0] > (offsets[0] or 0)
