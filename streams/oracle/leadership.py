"""Which of several oracle processes publishes: the member of a consumer group that is given the one partition of marks.

Kafka decides it, not Redis, so that marks go on while Redis is away. The partition is never read, only held. What a
process sends after it was replaced and before it knows is void, because its claim stands before its successor's in the
log (:meth:`Leadership.claim`).

A process that was silent for a session, or whose group had to form anew, does not know whether another one publishes.
It publishes nothing until it is given the partition again, and claims it again. It goes on if nobody has claimed it
meanwhile; whoever did has other prices.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaError, Message, TopicPartition

from schemas.codec import encode
from schemas.messages import MarkFrame
from schemas.topics import MARKS
from streams.broker.kafka import Kafka
from streams.broker.places import PlaceWatch
from streams.broker.producer import group_metadata
from streams.broker.rejoining import RejoiningConsumer
from streams.errors import LeadershipLost
from streams.feeds.marks import MARKS_LOOKBACK, read_marks


class Leadership:
    """Membership of the group. :meth:`poll` often: it keeps the membership and says who publishes.

    ``membership`` tells what a claim is bound to: the consumer's membership at that moment. ``name`` is its client id,
    ``rebalances`` how often the group has given its partition to somebody since it joined.
    """

    def __init__(self, kafka: Kafka, membership: Callable[[Consumer], Any] = group_metadata) -> None:
        self._kafka = kafka
        self._membership = membership
        self._settings = settings = kafka.settings
        self._runtime = kafka.runtime
        self.name = f"{settings.oracle.app_id}-{kafka.worker}"
        self._held = False
        self._lost = False
        self.rebalances = 0
        self._given_to_another = False
        self._epoch: int | None = None
        self._polled = self._runtime.monotonic()
        self._lease_s = settings.kafka.session_timeout_ms / 1000
        self._group = RejoiningConsumer(
            partial(kafka.group_consumer, self.name, settings.oracle.leader_group),
            settings.outside_group_s_max,
            kafka.runtime,
            PlaceWatch(kafka.runtime, is_read=lambda *_: False),
        )
        self._group.subscribe([MARKS], on_assign=self._on_assign, on_revoke=self._on_lost, on_lost=self._on_lost)

    def poll(self) -> bool:
        """Whether this process holds the right to publish, now.

        Raises:
            BrokerError: it is no member of the group any more and never will be.
        """
        paused = self.age_s > self._lease_s
        for _ in self._group.poll(0, 1):
            pass
        self._group.require_member()
        self._polled = self._runtime.monotonic()
        if paused:
            self._doubt()
        return self._held and not self._lost

    @property
    def age_s(self) -> float:
        """Seconds since the last poll."""
        return self._runtime.monotonic() - self._polled

    def claim(self) -> int:
        """Claim the right to publish in the marks' log; the epoch, to be carried by every frame from now on.

        The claim is an empty frame, and its offset is the epoch. It is written in one transaction with the group's
        offset, so Kafka refuses it of a process that has been replaced: whoever leads later claims later.

        Raises:
            BrokerError: Kafka refuses the claim or does not answer. LeadershipLost: it was claimed before, and another
                process has claimed it since.
        """
        self._lost = False
        before = self._epoch
        try:
            self._epoch = self._write_claim()
        except BaseException:
            self._lost = before is not None
            raise
        if before is not None and self._was_claimed_between(before, self._epoch):
            self._lost = True
            raise LeadershipLost("another oracle process has published meanwhile")
        return self._epoch

    def _was_claimed_between(self, before: int, epoch: int) -> bool:
        """Whether a frame of another process lies between two claims of this one."""
        first = max(before + 1, epoch - MARKS_LOOKBACK)
        with self._kafka.log_reader(f"{self.name}-claims") as reader:
            return any(
                mark.frame is not None and mark.frame.epoch != before for mark in read_marks(reader, first, epoch)
            )

    def _write_claim(self) -> int:
        offsets: list[int] = []

        def claimed(error: KafkaError | None, message: Message) -> None:
            if error is None:
                offsets.append(message.offset() or 0)

        producer = self._kafka.transactional_producer(self.name)
        try:
            producer.init()
            producer.begin()
            frame = MarkFrame(time=self._runtime.time_ns() // 1000, marks=())
            producer.produce(MARKS, encode(frame), partition=0, on_delivery=claimed)
            producer.send_offsets([TopicPartition(MARKS, 0, 0)], self._membership(self._group.consumer))
            producer.commit()
        finally:
            producer.close()
        return offsets[0]

    @property
    def lost(self) -> bool:
        """Whether the right was claimed and is gone, or may be: nobody asked for a whole session timeout, or the group
        had to form anew. Nothing may be published until it is claimed again."""
        return self._lost

    @property
    def may_claim(self) -> bool:
        """Whether the partition is this process's, whatever was before."""
        return self._held

    @property
    def given_to_another(self) -> bool:
        """Whether the group is at rest and the partition is not this process's."""
        return self._given_to_another and not self._held

    def stand_by(self) -> None:
        """Forget what was held and claimed: whoever leads next begins from what is in Kafka."""
        self._lost, self._epoch = False, None

    def close(self) -> None:
        """Leave the group at once."""
        self._group.leave(self._settings.service.instance_id, self._settings.kafka.handover_s)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Nothing is to be fetched. There always is an end; an offset that is not there would be an error.
        consumer.incremental_assign([TopicPartition(MARKS, place.partition, OFFSET_END) for place in partitions])
        self._given_to_another = not partitions
        self.rebalances += 1
        if partitions:
            consumer.pause(partitions)
            self._held = True

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        if partitions:
            self._doubt()
            self._held = False

    def _doubt(self) -> None:
        """The right may be gone. What was not claimed yet cannot be lost: Kafka refuses the claim if it is."""
        self._lost = self._lost or (self._held and self._epoch is not None)
