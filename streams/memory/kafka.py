"""What a role is given in memory: Kafka's clients on the in-memory cluster, and Redis, for one simulated process."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import redis
from confluent_kafka import Consumer, Producer

from streams.broker.admin import Topics
from streams.broker.clients import Clients
from streams.broker.ends import EndOffsets, Ends
from streams.broker.kafka import Kafka
from streams.broker.topic_watch import LOOK_S, TopicWatch, require_same
from streams.memory.clients import FakeConsumer, FakeProducer, Rates
from streams.memory.log import Cluster
from streams.memory.redis import FakeRedis, Server
from streams.memory.scheduler import Process, VirtualRuntime
from streams.settings import RedisSettings, Settings
from streams.tables.tables import Connect


class MemoryClients(Clients):
    """Clients of ``cluster`` that live and die with ``process``."""

    def __init__(
        self, cluster: Cluster, process: Process, rates: Rates, new_consumer: Callable[..., FakeConsumer] = FakeConsumer
    ) -> None:
        super().__init__(VirtualRuntime(process.scheduler))
        self._cluster = cluster
        self._process = process
        self._rates = rates
        self._new_consumer = new_consumer

    def consumer(self, properties: Mapping[str, Any]) -> Consumer:
        self._process.alive()
        return cast(Consumer, self._new_consumer(self._cluster, self._process, self._rates, dict(properties)))

    def producer(self, properties: Mapping[str, Any]) -> Producer:
        self._process.alive()
        return cast(Producer, FakeProducer(self._cluster, self._process, self._rates, dict(properties)))


class MemoryKafka(Kafka):
    """The in-memory cluster as ``process`` sees it. ``rates`` says what goes wrong; without it, nothing does."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        process: Process,
        rates: Rates | None = None,
        new_consumer: Callable[..., FakeConsumer] = FakeConsumer,
    ) -> None:
        clients = MemoryClients(cluster, process, rates or Rates(), new_consumer)
        super().__init__(settings, clients, settings.service.instance_id or f"host-{process.name}")
        self._cluster = cluster
        self._process = process

    def topics(self, group_id: str) -> Topics:
        self._process.call("topics")
        return Topics(
            {topic: len(partitions) for topic, partitions in self._cluster.topics.items()}, self._cluster.layout
        )

    def end_offsets(self, client_id: str, counts: Mapping[str, int]) -> EndOffsets:
        return MemoryEndOffsets(self._cluster, self._process, list(counts))

    def topic_watch(self, client_id: str, topics: Sequence[str]) -> TopicWatch:
        return MemoryTopicWatch(self._cluster, self._process, topics)

    def add_partitions(self, counts: Mapping[str, int]) -> None:
        self._process.call("add partitions")
        self._cluster.add_partitions(counts)

    def cluster_id(self) -> str:
        return self._cluster.name

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        self._process.call("topic ids")
        return {name: self._cluster.topic_id(name) for name in topics}


class MemoryEndOffsets:
    """What stands in for :class:`streams.broker.ends.KafkaEndOffsets`. An answer takes a few milliseconds."""

    def __init__(self, cluster: Cluster, process: Process, topics: Sequence[str]) -> None:
        self._cluster = cluster
        self._process = process
        self._topics = topics
        self._answered_us: int | None = None

    @property
    def is_asked(self) -> bool:
        return self._answered_us is not None

    def ask(self) -> None:
        scheduler = self._process.scheduler
        self._answered_us = max(scheduler.now, self._process.cut_until) + scheduler.random.randrange(200, 3000)

    def answer(self) -> Ends | None:
        if self._answered_us is None or self._process.scheduler.now < self._answered_us:
            return None
        self._answered_us = None
        return {topic: [partition.end for partition in self._cluster.topics[topic]] for topic in self._topics}


class MemoryTopicWatch:
    """What stands in for :class:`streams.broker.topic_watch.KafkaTopicWatch`; asking takes no time."""

    def __init__(self, cluster: Cluster, process: Process, topics: Sequence[str]) -> None:
        self.ids: Mapping[str, str] = {topic: cluster.topic_id(topic) for topic in topics}
        self._cluster = cluster
        self._scheduler = process.scheduler
        self._looked_at = process.scheduler.now

    def check(self) -> None:
        if self._scheduler.now - self._looked_at >= 1e6 * LOOK_S:
            self._looked_at = self._scheduler.now
            require_same(self.ids, {topic: self._cluster.topic_id(topic) for topic in self.ids})

    def close(self) -> None:
        """Nothing is on its way."""


def memory_redis(server: Server, process: Process, rates: Rates | None = None) -> Connect:
    """Connections of ``process`` to ``server``."""

    def connect(_: RedisSettings, attempts: int) -> redis.Redis:
        return cast(redis.Redis, FakeRedis(server, process, rates or Rates()))

    return connect
