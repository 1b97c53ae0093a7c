"""The topics of the contract on a real broker: what a topic lacks stops every role, and says what to do."""

import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from schemas.topics import (
    EVENTS,
    MARKS,
    PARAMETERS,
    PRICES,
    PROGRESS,
    RECORD_BYTES_MAX,
    REPORTS,
    ROUTER,
    TRADES,
    TRANSFERS,
    all_topics,
    dead_letter_topic,
)  # fmt: skip
from streams.broker import admin, config
from streams.broker.admin import admin_client, ensure_topics, require_topics
from streams.broker.kafka import Kafka
from streams.broker.reader import LogReader
from streams.broker.records import UNSTAMPED
from streams.errors import BrokerError, NoAnswer, TopicError
from streams.runtime import SystemRuntime
from streams.settings import Settings, load


def set_config(settings: Settings, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = admin_client(settings)  # kept: its requests end with it
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(timeout=30)
    deadline = time.monotonic() + 30
    plain = ConfigResource(ResourceType.TOPIC, topic)
    while admin.describe_configs([plain])[plain].result(timeout=30)[name].value != value:
        assert time.monotonic() < deadline, "the broker does not take the configuration in"
        time.sleep(0.02)


@contextmanager
def altered(settings: Settings, topic: str, name: str, value: str, before: str) -> Iterator[None]:
    set_config(settings, topic, name, value)
    try:
        yield
    finally:
        set_config(settings, topic, name, before)


def test_our_own_topics_carry_the_brokers_time() -> None:
    unstamped = {topic.name for topic in all_topics() if not topic.required().get("message.timestamp.type")}
    assert unstamped == {TRADES, TRANSFERS, REPORTS, PRICES, PARAMETERS}, "what the exchange writes"


@pytest.mark.parametrize("topic", [EVENTS, MARKS, PROGRESS])
def test_a_topic_that_carries_its_senders_time_stops_every_role(settings: Settings, topic: str) -> None:
    require_topics(settings, "margin-test")
    with (
        altered(settings, topic, "message.timestamp.type", "CreateTime", "LogAppendTime"),
        pytest.raises(TopicError) as refused,
    ):
        require_topics(settings, "margin-test")
    said = str(refused.value)
    assert f"{topic} has message.timestamp.type=CreateTime and must have LogAppendTime" in said
    assert (
        f"kafka-configs --bootstrap-server {settings.kafka.bootstrap_servers} --alter --entity-type topics "
        f"--entity-name {topic} --add-config message.timestamp.type=LogAppendTime"
    ) in said
    require_topics(settings, "margin-test")


def test_how_many_shards_there_are_is_no_setting(settings: Settings) -> None:
    shards = settings.topics.shards
    asked = msgspec.structs.replace(settings, topics=msgspec.structs.replace(settings.topics, shards=shards + 1))
    assert Kafka(asked).topics("margin-test").shards == ensure_topics(asked).shards == shards


def test_a_topic_that_forgets_what_it_must_keep_is_named(settings: Settings) -> None:
    with altered(settings, ROUTER, "cleanup.policy", "delete", "compact"):
        (fault,) = ensure_topics(settings, create=False).wrong
    assert fault.startswith(f"{ROUTER} has cleanup.policy=delete and must have compact: kafka-configs")


def test_a_topic_that_would_refuse_a_dead_letter_for_its_size_stops_every_role(settings: Settings) -> None:
    topic, least = dead_letter_topic(PRICES), str(RECORD_BYTES_MAX)
    with altered(settings, topic, "max.message.bytes", "1000000", least), pytest.raises(TopicError) as refused:
        require_topics(settings, "test")
    assert f"{topic} has max.message.bytes=1000000 and must have at least {least}, because" in str(refused.value)
    with altered(settings, topic, "max.message.bytes", "9000000", least):
        require_topics(settings, "test")


def test_whatever_a_sender_says_the_record_has_the_brokers_time_or_none(settings: Settings) -> None:
    """What was written before the topic was set right keeps its sender's time."""
    topic, ahead_ms = f"stamped-{os.getpid()}", time.time_ns() // 1_000_000 + 1_800_000  # it takes an hour at most
    admin = admin_client(settings)
    admin.create_topics([NewTopic(topic, num_partitions=1)])[topic].result(timeout=30)
    producer = Producer(config.producer(settings.kafka, "test"))
    for kind in ("CreateTime", "LogAppendTime"):
        set_config(settings, topic, "message.timestamp.type", kind)
        producer.produce(topic, b"1", partition=0, timestamp=ahead_ms)
        assert producer.flush(30) == 0
    with LogReader(settings.kafka, "test") as reader:
        unstamped, stamped = reader.read_range(topic, 0, 0)
    assert unstamped.timestamp() == (TIMESTAMP_CREATE_TIME, ahead_ms)
    assert unstamped.appended_us == UNSTAMPED
    assert stamped.timestamp()[0] == TIMESTAMP_LOG_APPEND_TIME
    assert 0 < stamped.appended_us < 1000 * ahead_ms
    admin.delete_topics([topic])[topic].result(timeout=30)  # readers are shown the contract's topics only


# --- the ids of topics -----------------------------------------------------------------------------------------------


class AskedForIds:
    """An admin client whose answers about topics are ``answers``, in turn; an exception is raised."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def describe_topics(self, topics: Any, request_timeout: float) -> dict[str, Future[Any]]:
        future: Future[Any] = Future()
        if isinstance(self._answer, BaseException):
            future.set_exception(self._answer)
        else:
            future.set_result(SimpleNamespace(topic_id=self._answer))
        return {"t": future}


def given_answers(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[AskedForIds]:
    """The clients that are made one after the other, each with one answer; the last one's comes again and again."""
    made: list[AskedForIds] = []

    def client(_: Settings) -> AskedForIds:
        made.append(AskedForIds(answers[min(len(made), len(answers) - 1)]))
        return made[-1]

    monkeypatch.setattr(admin, "admin_client", client)
    return made


class PassingSeconds(SystemRuntime):
    """A second passes whenever somebody looks at the clock."""

    def __init__(self) -> None:
        self._seconds = itertools.count()

    def monotonic(self) -> float:
        return float(next(self._seconds))

    def sleep(self, seconds: float) -> None: ...


NO_ANSWER = KafkaException(KafkaError(KafkaError._TIMED_OUT))
UNKNOWN_TOPIC = KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))


@pytest.mark.parametrize("error", [NO_ANSWER, UNKNOWN_TOPIC])
def test_the_ids_of_topics_are_asked_for_with_a_new_client_if_one_gets_no_answer(
    monkeypatch: pytest.MonkeyPatch, error: KafkaException
) -> None:
    """One that holds a dead broker for the controller would wait for it in vain."""
    made = given_answers(monkeypatch, error, error, "an-id")
    assert admin.topic_ids(load({}), ["t"], PassingSeconds()) == {"t": "an-id"}
    assert len(made) == 3


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (NO_ANSWER, NoAnswer),
        (UNKNOWN_TOPIC, BrokerError),
        (KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)), BrokerError),
    ],
)
def test_ids_that_are_not_told_are_an_error(
    monkeypatch: pytest.MonkeyPatch, error: KafkaException, raised: type[BrokerError]
) -> None:
    given_answers(monkeypatch, error)
    with pytest.raises(BrokerError, match="t: their ids cannot be read") as refused:
        admin.topic_ids(load({}), ["t"], PassingSeconds())
    assert type(refused.value) is raised
