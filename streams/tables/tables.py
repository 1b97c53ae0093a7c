"""Which tables there are: those of one Redis, as copies of one topic of one cluster. Opens connections to them."""

from collections.abc import Callable

import redis

from schemas.messages import ShardLayout
from schemas.topics import ACCOUNTS, JOURNAL
from streams.broker.kafka import Kafka
from streams.settings import RedisSettings
from streams.tables.connection import connect
from streams.tables.writer import AccountTable

Connect = Callable[[RedisSettings, int], redis.Redis]
"""Makes a client that tries a call so many times."""


class Tables:
    """The tables of the settings' Redis as copies of ``topic``, in which accounts lie as ``layout`` says, in
    ``kafka``."""

    def __init__(
        self, kafka: Kafka, cluster_id: str, layout: ShardLayout, *, topic: str = ACCOUNTS, connect: Connect = connect
    ) -> None:
        self.kafka = kafka
        self.topic = topic
        self._cluster_id = cluster_id
        self.layout = layout
        self._connect = connect

    def connected(self, *, attempts: int = 2, on_call: Callable[[], object] = lambda: None) -> AccountTable:
        """A connection of the caller's own; ``on_call`` is called before each call of Redis.

        Raises:
            BrokerError: Kafka does not say which topics these are.
        """
        ids = self.kafka.topic_ids((self.topic, JOURNAL))  # tokens are offsets of the journal
        redis_settings = self.kafka.settings.redis
        return AccountTable(
            self._connect(redis_settings, attempts),
            self._cluster_id,
            self.layout.founded or self.layout.shards,
            topic=self.topic,
            topic_id=f"{ids[self.topic]}/{ids[JOURNAL]}",
            on_call=on_call,
            runtime=self.kafka.runtime,
        )
