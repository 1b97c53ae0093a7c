"""Which shards this member owns, and how far it is with each: waiting for its turn, being restored, or running."""

import logging
from collections.abc import Callable, Iterable
from enum import Enum

from confluent_kafka import Consumer, KafkaException, TopicPartition
from prometheus_client import Gauge

from schemas.topics import EVENTS
from streams.clearing.restore import Restoration, RestoredShard
from streams.clearing.shard import Shard
from streams.errors import ShardError
from streams.logs import event
from streams.runtime import Runtime

log = logging.getLogger(__name__)

SHARDS_OWNED = Gauge("margin_engine_shards", "Shards owned")

_ENDS_S = 2.0
"""So long the ends of the partitions that are taken are asked for, all together."""


class Stage(Enum):
    """How far a shard is; one that is not assigned has none."""

    WAITING = "waiting"
    RESTORING = "restoring"
    RUNNING = "running"


_TOLD_WITHIN_S = 0.025
"""So long an alert may wait: of a market that moves there are many, and mostly a command follows one."""

_MAY_BECOME: dict[Stage | None, frozenset[Stage]] = {
    None: frozenset({Stage.WAITING}),
    Stage.WAITING: frozenset({Stage.WAITING, Stage.RESTORING}),
    Stage.RESTORING: frozenset({Stage.WAITING, Stage.RUNNING}),
    Stage.RUNNING: frozenset({Stage.WAITING}),
}
"""Any shard may also leave, and whatever fails puts all of them back to waiting."""


class Assignment:
    """The shards that the group has assigned to this member, of ``shards`` altogether.

    A partition of the events beyond these is nobody's shard: the topic has more partitions than are used, for now.

    ``hand_over`` is called before shards are revoked and commits what can be; ``let_go`` is called with each shard that
    leaves and whether it is revoked in good order. Both are called inside a poll of the consumer.
    """

    def __init__(
        self, shards: int, hand_over: Callable[[], None], let_go: Callable[[int, bool], None], runtime: Runtime
    ) -> None:
        self._count = shards
        self._runtime = runtime
        self._hand_over = hand_over
        self._let_go = let_go
        self._stages: dict[int, Stage] = {}
        self._unused: set[int] = set()
        self._restoring: Restoration | None = None
        self.running: dict[int, Shard] = {}
        self.has_joined = False
        self._told_since = 0.0

    # --- what is there -----------------------------------------------------------------------------------------------

    @property
    def shards(self) -> list[int]:
        """All of them, in order."""
        return sorted(self._stages)

    @property
    def to_restore(self) -> list[int]:
        """The shards that do not run yet, in the order of their turns: the one being restored is the first."""
        return [shard for shard, stage in self._stages.items() if stage is not Stage.RUNNING]

    @property
    def is_restoring(self) -> bool:
        """Whether a shard is being restored."""
        return self._restoring is not None

    @property
    def has_command(self) -> bool:
        """Whether a command of a running shard waits to be committed."""
        return any(shard.has_command for shard in self.running.values())

    def is_urgent(self, now: float) -> bool:
        """Whether something is to be committed at once, at ``now`` of the monotonic clock: a command, or an alert or a
        dead letter that has waited for the others that often come with it."""
        if not any(shard.has_told for shard in self.running.values()):
            self._told_since = now
        return self.has_command or now - self._told_since >= _TOLD_WITHIN_S

    # --- rebalances --------------------------------------------------------------------------------------------------

    def on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Wait for the turn of each new shard; its events are not fetched before it runs.

        Where it is fetched from is said when it runs, by a seek. Until then it stands where its log ends now, given as
        a number: librdkafka would ask where an ``OFFSET_END`` is, and, if the answer comes after the seek, ask again
        and go on there, past everything between. A partition at which the log holds nothing cannot be sought.
        """
        until = self._runtime.monotonic() + _ENDS_S
        ends = [self._end_of(consumer, place, until) for place in partitions]
        consumer.incremental_assign(
            [TopicPartition(EVENTS, place.partition, end) for place, end in zip(partitions, ends, strict=True)]
        )
        consumer.pause(partitions)
        self.has_joined = True
        self._unused |= {place.partition for place in partitions if place.partition >= self._count}
        self._wait(place.partition for place in partitions if place.partition < self._count)

    def grow(self, shards: int) -> None:
        """There are ``shards`` by now: those of them wait for their turn whose partitions are assigned already."""
        self._count = max(self._count, shards)
        begun = sorted(shard for shard in self._unused if shard < self._count)
        self._unused.difference_update(begun)
        self._wait(begun)

    def _end_of(self, consumer: Consumer, place: TopicPartition, until: float) -> int:
        """Where a partition ends; 0 if nobody says in time."""
        try:
            left = max(0.01, until - self._runtime.monotonic())
            _, end = consumer.get_watermark_offsets(place, timeout=left)
        except KafkaException as error:
            event(log, logging.WARNING, "end_unknown", shard=place.partition, reason=str(error))
            return 0
        return int(end)

    def on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit what waits, then let go."""
        self._hand_over()
        self._leave(partitions, in_order=True)

    def on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Somebody else owns them already: nothing can be committed."""
        event(log, logging.WARNING, "shards_lost", shards=[place.partition for place in partitions])
        self.has_joined = False
        self._leave(partitions, in_order=False)

    def _leave(self, partitions: list[TopicPartition], *, in_order: bool) -> None:
        for place in partitions:
            shard = place.partition
            self._unused.discard(shard)
            if shard not in self._stages:
                continue
            if self._stages.get(shard) is Stage.RESTORING:
                self._stop_restoring()
            self._let_go(shard, in_order)
            self._stages.pop(shard, None)
            self.running.pop(shard, None)
            event(log, logging.INFO, "shard_left", shard=shard)
        SHARDS_OWNED.set(len(self.running))

    # --- from one stage to the next ----------------------------------------------------------------------------------

    def begin(self, shard: int, restoring: Restoration) -> None:
        """Restore a shard whose turn it is."""
        self._move(shard, Stage.RESTORING)
        self._restoring = restoring

    def restore(self) -> RestoredShard | None:
        """Go one step further with the shard being restored; the shard, which is running then, if it was the last."""
        assert self._restoring is not None
        try:
            next(self._restoring)
        except StopIteration as done:
            restored: RestoredShard = done.value
            self._restoring = None
            self._move(restored.shard.shard, Stage.RUNNING)
            self.running[restored.shard.shard] = restored.shard
            SHARDS_OWNED.set(len(self.running))
            return restored
        return None

    def abandon(self) -> None:
        """Forget what is in memory: no shard is running or being restored any more, and all of them wait."""
        self._stop_restoring()
        self.running.clear()
        for shard in self.shards:
            self._move(shard, Stage.WAITING)
        self._stages = dict(sorted(self._stages.items()))
        SHARDS_OWNED.set(0)

    def _wait(self, shards: Iterable[int]) -> None:
        for shard in shards:
            self._move(shard, Stage.WAITING)

    def _move(self, shard: int, stage: Stage) -> None:
        before = self._stages.get(shard)
        if stage not in _MAY_BECOME[before]:
            was = "not assigned" if before is None else before.value
            raise ShardError(f"shard {shard} is {was} and cannot be {stage.value}")
        self._stages[shard] = stage

    def _stop_restoring(self) -> None:
        if self._restoring is not None:
            self._restoring.close()
            self._restoring = None
