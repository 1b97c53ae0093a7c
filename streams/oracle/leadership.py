"""Which of several oracle processes publishes: the member of a consumer group that is given the one partition of marks.

Kafka decides it, not Redis, so that marks go on while Redis is away. The partition is never read, only held. Losing it
ends the process: another one has begun to publish. What a process sends after it was replaced and before it knows is
void, because its claim stands before its successor's in the log (:meth:`Leadership.claim`).
"""

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from schemas.codec import encode
from schemas.messages import MarkFrame
from schemas.topics import MARKS
from streams.broker.group import GroupPlace, leave_group
from streams.broker.kafka import Kafka
from streams.broker.producer import group_metadata
from streams.broker.reader import poll_batch


class Leadership:
    """Membership of the group. :meth:`poll` often: it keeps the membership and says who publishes."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._settings = settings = kafka.settings
        self._runtime = kafka.runtime
        self._name = f"{settings.oracle.app_id}-{kafka.worker}"
        self._held = False
        self._lost = False
        self._polled = self._runtime.monotonic()
        self._lease_s = settings.kafka.session_timeout_ms / 1000
        self._group = GroupPlace(settings.outside_group_s_max, kafka.runtime)
        self._consumer = kafka.group_consumer(self._name, f"{settings.oracle.app_id}-leader", self._group.properties())
        self._consumer.subscribe([MARKS], on_assign=self._on_assign, on_revoke=self._on_lost, on_lost=self._on_lost)

    def poll(self) -> bool:
        """Whether this process holds the right to publish, now.

        Raises:
            BrokerError: it is no member of the group any more and never will be.
        """
        paused = self._runtime.monotonic() - self._polled > self._lease_s
        poll_batch(self._consumer, 0, 1)
        self._group.require_member()
        self._polled = self._runtime.monotonic()
        if paused and self._held:
            self._lost = True
        return self._held and not self._lost

    @property
    def age_s(self) -> float:
        """Seconds since the last poll."""
        return self._runtime.monotonic() - self._polled

    def claim(self) -> int:
        """Claim the right to publish in the marks' log; the epoch, to be carried by every frame of this process.

        The claim is an empty frame, and its offset is the epoch. It is written in one transaction with the group's
        offset, so Kafka refuses it of a process that has been replaced: whoever leads later claims later.

        Raises:
            BrokerError: Kafka refuses the claim or does not answer.
        """
        offsets: list[int] = []

        def claimed(error: KafkaError | None, message: Message) -> None:
            if error is None:
                offsets.append(message.offset() or 0)

        producer = self._kafka.transactional_producer(self._name)
        try:
            producer.init()
            producer.begin()
            frame = MarkFrame(time=self._runtime.time_ns() // 1000, marks=())
            producer.produce(MARKS, encode(frame), partition=0, on_delivery=claimed)
            producer.send_offsets([TopicPartition(MARKS, 0, 0)], group_metadata(self._consumer))
            producer.commit()
        finally:
            producer.close()
        return offsets[0]

    @property
    def lost(self) -> bool:
        """Whether the right was held and is gone, or may be, because nobody asked for a whole session timeout."""
        return self._lost

    def close(self) -> None:
        leave_group(self._consumer, self._settings.service.instance_id, self._settings.kafka.handover_s, self._runtime)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        if partitions:
            consumer.pause(partitions)
            self._held = True

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        if partitions:
            self._lost = self._held
