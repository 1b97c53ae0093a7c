"""The one factory of a role's Kafka clients.

Production gives a role :class:`Kafka`; a run in memory gives it one whose clients are those of an in-memory cluster.
Everything above it (readers, producers, groups) is the same code either way.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer

from schemas.messages import ShardLayout
from schemas.topics import LAYOUT, Compression
from streams.broker import config
from streams.broker.admin import Topics, add_partitions, admin_client, require_topics, topic_ids
from streams.broker.clients import CLIENTS, Clients
from streams.broker.ends import EndOffsets, KafkaEndOffsets
from streams.broker.layout import LayoutFollower
from streams.broker.places import Places
from streams.broker.producer import IdempotentProducer, TransactionalProducer
from streams.broker.reader import FETCH_WAIT_MS, Follower, LogReader
from streams.broker.topic_watch import KafkaTopicWatch, TopicWatch
from streams.settings import Settings

_ANSWER_S_MAX = 30.0
_RARELY_MS = 500
"""Where there is something once in a month the broker need not be asked 50 times a second."""


class Kafka:
    """Clients of the cluster in ``settings`` for the process ``worker``, which others know by that name.

    What it returns is the caller's, to be closed by it. ``places`` sees to it that the places of its consumers move.
    """

    def __init__(self, settings: Settings, clients: Clients = CLIENTS, worker: str = "") -> None:
        self.settings = settings
        self.worker = worker or settings.worker_name
        self.clients = clients
        self.runtime = clients.runtime
        self.places = Places(clients.runtime, settings.service.stands_ms / 1000)

    def group_consumer(self, client_id: str, group_id: str, properties: Mapping[str, Any] | None = None) -> Consumer:
        """A consumer of a group, static if the settings name the instance; ``properties`` go over the usual ones."""
        usual = config.consumer(self.settings.kafka, client_id, group_id, instance_id=self.settings.service.instance_id)
        return self.clients.consumer(usual | dict(properties or {}))

    def transactional_producer(
        self, transactional_id: str, *, compression: Compression = "none"
    ) -> TransactionalProducer:
        """A producer that is not registered yet; its id is its client id, too."""
        return TransactionalProducer(
            self.settings.kafka, transactional_id, compression=compression, clients=self.clients
        )

    def idempotent_producer(
        self,
        client_id: str,
        *,
        compression: Compression = "none",
        linger_ms: int = 0,
        timeout_s: float | None = None,
    ) -> IdempotentProducer:
        """A producer without transactions. What it is given waits ``linger_ms`` for more, or until it is flushed."""
        return IdempotentProducer(
            self.settings.kafka,
            client_id,
            compression=compression,
            linger_ms=linger_ms,
            timeout_s=timeout_s,
            clients=self.clients,
        )

    def end_offsets(self, client_id: str, counts: Mapping[str, int]) -> EndOffsets:
        """Asks where the partitions of topics end; ``counts`` says how many each has."""
        return KafkaEndOffsets(self.settings.kafka, client_id, counts, self.runtime)

    def topic_watch(self, client_id: str, topics: Sequence[str]) -> TopicWatch:
        """Watches whether topics are made anew.

        Raises:
            BrokerError: Kafka does not say which they are.
        """
        return KafkaTopicWatch(self.settings, client_id, topics, self.runtime)

    def log_reader(self, client_id: str, on_progress: Callable[[], object] = lambda: None) -> LogReader:
        """A reader of any log by offset."""
        return LogReader(self.settings.kafka, client_id, on_progress=on_progress, clients=self.clients)

    def follower(
        self, client_id: str, topic: str, partition: int = 0, *, fetch_wait_ms: int = FETCH_WAIT_MS
    ) -> Follower:
        """A reader that follows one partition."""
        return Follower(
            self.settings.kafka,
            client_id,
            topic,
            partition,
            fetch_wait_ms=fetch_wait_ms,
            clients=self.clients,
            watch=self.places.watch(),
        )

    def layout_follower(self, client_id: str, layout: ShardLayout) -> LayoutFollower:
        """Follows how accounts are spread over shards; ``layout`` is what is known."""
        return LayoutFollower(self.follower(client_id, LAYOUT, fetch_wait_ms=_RARELY_MS), layout)

    def topics(self, group_id: str) -> Topics:
        """The topics of the contract, as a process of ``group_id`` may read them.

        Raises:
            TopicError: the topics are not as the contract has them. BrokerError: Kafka does not answer.
        """
        return require_topics(self.settings, f"{group_id}-{self.worker}")

    def add_partitions(self, counts: Mapping[str, int]) -> None:
        """Give topics more partitions, so that they have ``counts``.

        Raises:
            BrokerError: the cluster refuses, or does not answer.
        """
        add_partitions(self.settings, counts)

    def cluster_id(self) -> str:
        """The cluster's own id.

        Raises:
            KafkaException: Kafka does not answer.
        """
        return admin_client(self.settings).list_topics(timeout=_ANSWER_S_MAX).cluster_id or ""

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        """The ids of topics, which tell one from another of the same name.

        Raises:
            BrokerError: Kafka does not say.
        """
        return topic_ids(self.settings, topics)
