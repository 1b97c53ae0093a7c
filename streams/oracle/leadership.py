"""Which of several oracle processes publishes: the member of a consumer group that is given the one partition of marks.

Kafka decides it, not Redis, so that marks go on while Redis is away. The partition is never read, only held. Losing it
ends the process: another one has begun to publish.
"""

import time

from confluent_kafka import Consumer, TopicPartition

from schemas.topics import MARKS
from streams.broker import config
from streams.settings import Settings


class Leadership:
    """Membership of the group. :meth:`poll` often: it keeps the membership and says who publishes."""

    def __init__(self, settings: Settings) -> None:
        self._held = False
        self._lost = False
        self._polled = time.monotonic()
        self._lease_s = settings.kafka.session_timeout_ms / 1000
        self._consumer = Consumer(
            config.consumer(
                settings.kafka,
                f"{settings.oracle.app_id}-{settings.worker_name}",
                f"{settings.oracle.app_id}-leader",
                instance_id=settings.service.instance_id,
            )
        )
        self._consumer.subscribe([MARKS], on_assign=self._on_assign, on_revoke=self._on_lost, on_lost=self._on_lost)

    def poll(self) -> bool:
        """Whether this process holds the right to publish, now."""
        paused = time.monotonic() - self._polled > self._lease_s
        self._consumer.poll(0)
        self._polled = time.monotonic()
        if paused and self._held:
            self._lost = True
        return self._held and not self._lost

    @property
    def lost(self) -> bool:
        """Whether the right was held and is gone, or may be, because nobody asked for a whole session timeout."""
        return self._lost

    def close(self) -> None:
        self._consumer.close()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        if partitions:
            consumer.pause(partitions)
            self._held = True

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        if partitions:
            self._lost = self._held
