"""A consumer that cannot come back to its group is made anew in its process, but not for ever."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from streams.broker.places import STANDS_S_MAX
from streams.broker.rejoining import FENCED_MAX, RejoiningConsumer
from streams.broker.stranded import STRANDED_S
from streams.errors import BrokerError
from streams.runtime import Runtime

OUTSIDE_S_MAX = 80.0
STANDING = """{"topics": {"t": {"partitions": {"0": {"fetch_state": "active", "next_offset": 7, "hi_offset": 9}}}}}"""
STRANDED = """{"brokers": {"GroupCoordinator": {"source": "logical", "state": "TRY_CONNECT"}}}"""


class FencedConsumer:
    """A consumer that owns a partition once it has subscribed, and ends when it is told to."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        self.properties = properties
        self.owned: list[TopicPartition] = []
        self.callbacks: dict[str, Any] = {}
        self.closed = self.ends = False

    def subscribe(self, topics: list[str], **callbacks: Any) -> None:
        self.callbacks = callbacks
        self.owned = [TopicPartition(topics[0], 0)]
        callbacks["on_assign"](self, self.owned)

    def assignment(self) -> list[TopicPartition]:
        return self.owned

    def poll(self, timeout: float) -> Any:
        if not self.ends:
            return None
        error = KafkaError(KafkaError._FATAL, "Static consumer fenced")
        return SimpleNamespace(error=lambda: error, topic=lambda: None, partition=lambda: None)

    def close(self) -> None:
        self.closed = True
        self.callbacks["on_revoke"](self, self.owned)  # librdkafka says it on the way out


class Scene:
    """A place in a group, the consumers that have had it, and what its owner was told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.made: list[FencedConsumer] = []
        self.told: list[str] = []
        runtime = cast(Runtime, SimpleNamespace(monotonic=lambda: self.now))
        self.member = RejoiningConsumer(self._new, OUTSIDE_S_MAX, runtime)
        self.member.subscribe(
            ["t"], on_assign=self._note("assigned"), on_revoke=self._note("revoked"), on_lost=self._lost
        )

    def _new(self, properties: Mapping[str, Any]) -> Consumer:
        self.made.append(FencedConsumer(properties))
        return cast(Consumer, self.made[-1])

    def _note(self, what: str) -> Any:
        return lambda _, places: self.told.append(f"{what} {[place.partition for place in places]}")

    def _lost(self, consumer: Any, places: list[TopicPartition]) -> None:
        consumer.owned = []
        self._note("lost")(consumer, places)

    def fence(self) -> None:
        self.made[-1].ends = True
        assert list(self.member.poll(0, 10)) == []


def test_a_fenced_member_joins_again_and_what_it_owned_is_lost() -> None:
    scene = Scene()
    scene.fence()
    assert scene.told == ["assigned [0]", "lost [0]", "assigned [0]"], "nothing is committed on the way out"
    assert [consumer.closed for consumer in scene.made] == [True, False]
    assert cast(Any, scene.member.consumer) is scene.made[1]


def test_a_stranded_consumer_is_made_anew() -> None:
    scene = Scene()
    for _ in range(int(STRANDED_S) + 2):
        scene.made[0].properties["stats_cb"](STRANDED)
        scene.now += 1
    scene.member.require_member()
    assert [consumer.closed for consumer in scene.made] == [True, False]
    scene.member.require_member()
    assert len(scene.made) == 2, "the new one has its time"


def test_what_stood_is_told_of_every_consumer_and_forgotten_with_the_one_that_ended() -> None:
    scene = Scene()
    for made in (0, 1):
        assert scene.member.watch.standing() == []
        for _ in range(int(STANDS_S_MAX) + 3):
            scene.made[made].properties["stats_cb"](STANDING)
            scene.now += 1
        assert [str(place) for place in scene.member.watch.standing()] == ["t:0 at 7"]
        scene.fence()


def test_brokers_that_are_away_are_waited_for_however_long() -> None:
    scene = Scene()
    for _ in range(10 * FENCED_MAX):
        for _ in range(int(STRANDED_S) + 2):
            scene.made[-1].properties["stats_cb"](STRANDED)
            scene.now += 1
        scene.member.require_member()
    assert len(scene.made) == 10 * FENCED_MAX + 1


def test_a_member_that_is_fenced_again_and_again_has_a_competitor() -> None:
    scene = Scene()
    for _ in range(FENCED_MAX):
        scene.fence()
        scene.now += 1
    with pytest.raises(BrokerError, match=r"another process has the same MARGIN_SERVICE__INSTANCE_ID.*consumer fenced"):
        scene.fence()


def test_members_that_end_now_and_then_are_made_anew_as_often_as_it_takes() -> None:
    scene = Scene()
    for _ in range(10 * FENCED_MAX):
        scene.fence()
        scene.now += OUTSIDE_S_MAX / 2
    assert len(scene.made) == 10 * FENCED_MAX + 1
