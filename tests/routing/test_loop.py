"""The router's loop beside its partitions: how large a batch may grow, and what it says of itself."""

import threading
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, TopicPartition

from schemas.messages import ShardLayout
from schemas.topics import EVENTS, INPUTS, TRADES, TRANSFERS
from streams.broker.admin import Topics
from streams.broker.kafka import Kafka
from streams.broker.places import Places
from streams.broker.records import Record
from streams.routing.committed_at import CommittedAt
from streams.routing.router import Router
from streams.runtime import SYSTEM
from streams.settings import Settings, load
from streams.watchdog import Watchdog


class SizedMessage:
    """A record of so many bytes, or the end of its partition, as a client delivers it."""

    def __init__(self, size: int, place: tuple[str, int] = (TRADES, 0), *, is_end: bool = False) -> None:
        self._value, self._place, self._is_end = b"x" * size, place, is_end

    def value(self) -> bytes:
        return self._value

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return 100

    def error(self) -> KafkaError | None:
        return KafkaError(KafkaError._PARTITION_EOF) if self._is_end else None


class GroupConsumer:
    """A consumer: what has arrived, and the group's side of a membership."""

    def __init__(self, properties: dict[str, Any]) -> None:
        self.waiting: list[SizedMessage] = []
        self.polls_before_rebalance = -1
        self.timeouts: list[float] = []
        self.note_statistics = properties["stats_cb"]

    def poll(self, timeout: float) -> SizedMessage | None:
        return next(iter(self.consume(1, timeout)), None)

    def consume(self, num_messages: int, timeout: float) -> list[SizedMessage]:
        self.timeouts.append(timeout)
        if self.polls_before_rebalance == 0:
            self.lose((TRADES, 0))
            self.assign((TRADES, 0))
        self.polls_before_rebalance -= 1
        arrived = self.waiting[:num_messages]
        del self.waiting[:num_messages]
        return arrived

    def subscribe(self, topics: list[str], **callbacks: Any) -> None:
        self.callbacks = callbacks

    def assign(self, *places: tuple[str, int]) -> None:
        self.callbacks["on_assign"](self, [TopicPartition(*place) for place in places])

    def lose(self, *places: tuple[str, int]) -> None:
        self.callbacks["on_lost"](self, [TopicPartition(*place) for place in places])

    def incremental_assign(self, places: list[TopicPartition]) -> None: ...

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(place.topic, place.partition, 0, CommittedAt("an-id").text()) for place in places]


class EmptyLogs:
    """A reader of logs that hold nothing."""

    def partitions(self, topic: str) -> int:
        return 4

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        return 0, 0

    def read_range(self, *_: Any) -> Iterable[Record]:
        return ()


class Stub:
    """A Kafka whose topics are empty; the router's only consumer is at ``group``."""

    runtime = SYSTEM
    worker = "router-0"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.places = Places()

    def topics(self, _: str) -> Topics:
        return Topics({EVENTS: 4} | dict.fromkeys(INPUTS, 1), ShardLayout(shards=4, time=0))

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        return dict.fromkeys(topics, "an-id")

    def topic_watch(self, _: str, topics: Sequence[str]) -> SimpleNamespace:
        return SimpleNamespace(ids=self.topic_ids(topics), check=lambda: None)

    def transactional_producer(self, *_: Any, **__: Any) -> None: ...

    def idempotent_producer(self, *_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(waiting=0)

    def end_offsets(self, *_: Any) -> SimpleNamespace:
        return SimpleNamespace(is_asked=False)

    def layout_follower(self, _: str, layout: ShardLayout) -> SimpleNamespace:
        return SimpleNamespace(layout=layout, poll=lambda: None, catch_up=lambda _: None, start=lambda _: None)

    def log_reader(self, *_: Any) -> EmptyLogs:
        return EmptyLogs()

    def group_consumer(self, client_id: str, group_id: str, properties: dict[str, Any]) -> GroupConsumer:
        self.group = GroupConsumer(properties)
        return self.group


def built(**changes: int) -> tuple[Router, GroupConsumer]:
    kafka = Stub(load({}, {f"router.{name}": value for name, value in changes.items()}))
    router = Router.build(cast(Kafka, kafka), threading.Event(), Watchdog())
    return router, kafka.group


def collected(sizes: list[int], **changes: int) -> list[Record]:
    """The batch that a router collects of records of these sizes, all of which have arrived."""
    router, group = built(linger_ms=1_000, **changes)
    group.waiting = [SizedMessage(size) for size in sizes]
    return router.collect()


def test_a_batch_ends_at_its_most_records() -> None:
    assert len(collected([10] * 5_000, batch_records_max=2_500)) == 2_500


def test_a_batch_ends_at_its_most_bytes_but_for_one_poll() -> None:
    batch = collected([1_000] * 20_000, batch_kbytes_max=2_000)
    assert 2_000 * 1024 <= sum(len(message.value() or b"") for message in batch) < 2_000 * 1024 + 1_000 * 1_000


def test_what_comes_after_a_pause_waits_for_nothing_and_what_comes_next_for_more() -> None:
    router, group = built(linger_ms=50)
    for number, waits in enumerate((False, True)):
        group.waiting = [SizedMessage(10)]
        group.timeouts.clear()
        assert len(router.collect()) == 1
        assert any(timeout > 0 for timeout in group.timeouts[1:]) is waits, number


@pytest.mark.parametrize("polls_before_rebalance", [1, 2, 3])
@pytest.mark.parametrize("is_end", [False, True])
def test_what_was_polled_before_a_partition_was_lost_is_forgotten(polls_before_rebalance: int, is_end: bool) -> None:
    """It may be assigned again before the batch is full, and begins where it was committed: before what was polled."""
    router, group = built(linger_ms=50)
    router.join()
    group.assign((TRADES, 0), (TRANSFERS, 0))
    group.waiting = [SizedMessage(10, (TRANSFERS, 0))]
    router.collect()  # so that the next batch waits for more
    group.waiting = [SizedMessage(10, (TRADES, 0), is_end=is_end), SizedMessage(10, (TRANSFERS, 0))]
    group.polls_before_rebalance = polls_before_rebalance
    assert [message.topic() for message in router.collect()] == [TRANSFERS]
    router._pass_ends()
    owned = router._ownership.find(TRADES, 0)
    assert owned is not None
    assert owned.next_offset == 0


def test_it_is_ready_in_its_group_with_little_to_route() -> None:
    router, group = built(ready_lag_records_max=10)

    def conditions() -> dict[str, bool]:
        return {condition.name: condition.holds for condition in router.readiness()}

    router.join()
    assert not conditions()["is_in_group"]
    group.assign((TRADES, 0), (TRANSFERS, 1))
    assert conditions() == {
        "is_in_group": True,
        "inputs_lag_records": False,
        "partitions_missing": True,
        "places_stand_s": True,
    }, "its lag is not known yet"
    place = '{"partitions":{"%d":{"app_offset":%d,"ls_offset":20}}}'
    for consumed, ready in ((14, False), (15, True)):
        topics = f'"{TRADES}":{place % (0, 15)},"{TRANSFERS}":{place % (1, consumed)}'
        group.note_statistics(f'{{"topics":{{{topics}}}}}')
        assert conditions()["inputs_lag_records"] is ready
