"""What of a consumer's errors passes by itself, and what ends a process."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.broker import config
from streams.broker.clients import Clients
from streams.broker.places import PlaceWatch
from streams.broker.reader import Follower, LogReader, poll_batch
from streams.broker.stranded import STRANDED_S
from streams.errors import BrokerError, MembershipLost
from streams.runtime import Runtime
from streams.settings import load


def polled(error: KafkaError) -> list[Any]:
    message = SimpleNamespace(error=lambda: error, topic=lambda: "t", partition=lambda: 0, offset=lambda: 7)
    return list(poll_batch(cast(Consumer, SimpleNamespace(poll=lambda _: message)), 0, 1, PlaceWatch()))


def test_what_librdkafka_mends_by_itself_passes() -> None:
    assert polled(KafkaError(KafkaError._TRANSPORT)) == []


def test_a_consumer_that_has_ended_for_good_says_so_instead_of_being_polled_in_vain() -> None:
    """librdkafka says it once, without the flag."""
    for code in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID):
        with pytest.raises(MembershipLost, match="ended for good: fenced"):
            polled(KafkaError(code, "fenced"))


def test_what_will_not_pass_names_its_place() -> None:
    with pytest.raises(BrokerError, match=r"t\[0\]"):
        polled(KafkaError(KafkaError._UNKNOWN_PARTITION))


class OneRecord:
    """A consumer of partitions that hold one record each; what it was asked for, in order.

    ``counts`` is how many partitions each topic has (1 if it is not in it), of which it knows once it has asked.
    """

    def __init__(self, asked: list[str], counts: dict[str, int] | None = None) -> None:
        self._asked = asked
        self._counts = {} if counts is None else counts
        self._known: dict[str, int] = {}
        self._topic = ""

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        if place.partition >= self._known.get(place.topic, 1):
            raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))
        return 0, 1

    def list_topics(self, topic: str, timeout: float) -> SimpleNamespace:
        self._asked.append(f"where is {topic}")
        count = self._known[topic] = self._counts.get(topic, 1)
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions=dict.fromkeys(range(count)))})

    def assign(self, places: list[TopicPartition]) -> None:
        self._topic = places[0].topic
        self._asked.append(f"read {self._topic}")

    def unassign(self) -> None: ...

    def poll(self, timeout: float) -> None: ...

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


def test_a_partition_that_was_added_is_looked_up_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    counts = {"a": 1}
    monkeypatch.setattr(config, "created", lambda *_: OneRecord(asked, counts))
    reader = LogReader(load({}).kafka, "test")
    assert len(list(reader.read_range("a", 0, 0))) == 1
    counts["a"] = 2
    assert len(list(reader.read_range("a", 1, 0))) == 1
    assert len(list(reader.read_range("a", 1, 0))) == 1
    assert asked[-3:] == ["where is a", "read a", "read a"]


class PassingTime(Clients):
    """Clients in a time that passes only while somebody sleeps."""

    def __init__(self, on_sleep: Callable[[], object] = lambda: None) -> None:
        self.now = 0.0
        self._on_sleep = on_sleep
        super().__init__(cast(Runtime, SimpleNamespace(monotonic=lambda: self.now, sleep=self._sleep)))

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self._on_sleep()


def test_a_partition_that_no_broker_knows_is_refused_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(config, "created", lambda *_: OneRecord(asked))
    clients = PassingTime()
    with pytest.raises(BrokerError, match=r"a\[1\]: watermarks"):
        LogReader(load({}).kafka, "test", clients=clients).watermarks("a", 1)
    assert set(asked) == {"where is a"}
    assert 1.5 < clients.now < 5


def test_a_partition_that_is_unknown_for_a_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a broker says that has just started."""
    counts = {"a": 1}

    def remember() -> None:
        if clients.now > 1:
            counts["a"] = 2

    monkeypatch.setattr(config, "created", lambda *_: OneRecord([], counts))
    clients = PassingTime(remember)
    assert LogReader(load({}).kafka, "test", clients=clients).watermarks("a", 1) == (0, 1)


class Forgetful(Clients):
    """Makes consumers that know no broker any more."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(cast(Runtime, SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)))
        self.made: list[Forgetting] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def consumer(self, properties: Mapping[str, Any]) -> Consumer:
        self.made.append(Forgetting(properties))
        return cast(Consumer, self.made[-1])


class Forgetting:
    """A consumer to which nothing comes."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        self.tell = properties.get("stats_cb", lambda _: None)
        self.assigned: list[int] = []
        self.answers: list[SimpleNamespace] = []
        self.closed = False

    def poll(self, timeout_s: float) -> SimpleNamespace | None:
        self.tell('{"brokers": {"GroupCoordinator": {"source": "logical"}}}')
        return self.answers.pop() if self.answers else None

    def consume(self, count: int, timeout: float) -> list[Any]:
        return []

    def assign(self, places: list[TopicPartition]) -> None:
        self.assigned.append(places[0].offset)

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def close(self) -> None:
        self.closed = True


def test_a_follower_that_is_stranded_goes_on_with_another_client() -> None:
    clients = Forgetful()
    follower = Follower(load({"MARGIN_KAFKA__BOOTSTRAP_SERVERS": "a:1"}).kafka, "c", "t", clients=clients)
    follower.start(4)
    (first,) = clients.made
    first.answers.append(
        SimpleNamespace(
            error=lambda: None, topic=lambda: "t", partition=lambda: 0, offset=lambda: 7, timestamp=lambda: (0, 0)
        )
    )
    assert len(follower.poll(0.1)) == 1
    for _ in range(int(STRANDED_S)):
        clients.now += 1
        assert follower.poll(0.1) == []
    assert len(clients.made) == 1
    clients.now += 1
    assert follower.poll(0.1) == []
    assert [made.closed for made in clients.made] == [True, False]
    assert clients.made[1].assigned == [8], "where it was"
    follower.poll(0.1)
    assert len(clients.made) == 2, "the new one has its time"


def test_a_reader_that_gets_no_answer_asks_with_another_client() -> None:
    clients = Forgetful()
    settings = load({"MARGIN_KAFKA__BOOTSTRAP_SERVERS": "a:1"}).kafka
    reader = LogReader(settings, "c", clients=clients, timeout_s=1.0)
    with pytest.raises(BrokerError, match="watermarks"):
        reader.watermarks("t", 0)
    assert [made.closed for made in clients.made] == [True, True, False, False]
