"""The events of the shards that run, gathered into batches: this member's place in the group and what it has polled.

What a frame does, and when a batch is committed, is the engine's business.
"""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from schemas.codec import DecodeError, Decoder
from schemas.messages import EventFrame
from schemas.topics import EVENTS
from streams.broker.committed import seek
from streams.broker.kafka import Kafka
from streams.broker.producer import group_metadata
from streams.broker.records import Record
from streams.broker.rejoining import RejoiningConsumer
from streams.clearing.shard import Shard
from streams.errors import BrokerError, ShardError

Callback = Callable[[Consumer, list[TopicPartition]], None]

_EVENT_FRAME = Decoder[EventFrame](EventFrame)
_FRAMES_PER_POLL = 16


class Inbox:
    """The consumer of ``margin.events.v1`` and the records it has given that are not applied yet."""

    def __init__(self, kafka: Kafka, client_id: str) -> None:
        self._settings = kafka.settings
        self._runtime = kafka.runtime
        self._fetched: set[int] = set()
        self._member = RejoiningConsumer(
            partial(kafka.group_consumer, client_id, kafka.settings.engine.group_id),
            kafka.settings.outside_group_s_max,
            kafka.runtime,
            kafka.places.watch(lambda _, shard: shard in self._fetched),
        )
        self._held: deque[Record] = deque()
        self._drained_frames = self._drained_bytes = 0

    @property
    def consumer(self) -> Consumer:
        """That of the moment: it may be made anew in any :meth:`poll`."""
        return self._member.consumer

    # --- the group ---------------------------------------------------------------------------------------------------

    def join(self, *, on_assign: Callback, on_revoke: Callback, on_lost: Callback) -> None:
        """Join the group; the callbacks run inside :meth:`poll`."""
        self._member.subscribe([EVENTS], on_assign=on_assign, on_revoke=on_revoke, on_lost=on_lost)

    def require_member(self) -> None:
        """Join the group anew if it has been without this member for too long."""
        self._member.require_member()

    @property
    def missing(self) -> int:
        """How many partitions are said not to exist, and are waited for."""
        return self._member.missing

    def membership(self) -> Any:
        """The membership under which offsets are sent (:func:`group_metadata`)."""
        return group_metadata(self.consumer)

    def lag(self, shard: int) -> int | None:
        """How many records of a shard have not been polled; None if it is not known."""
        return self._member.lag(EVENTS, shard)

    def is_unreadable(self, shard: int) -> bool:
        """Whether the client has said that what comes next of a shard can be read at no time."""
        return self._member.watch.is_unreadable(EVENTS, shard)

    def leave(self) -> None:
        """Leave the group at once: every shard is revoked."""
        self._member.leave(self._settings.service.instance_id, self._settings.kafka.handover_s)

    # --- fetching ----------------------------------------------------------------------------------------------------

    def resume(self, shard: Shard) -> None:
        """Fetch the shard's events from where its log says.

        Raises:
            ShardError: it is not assigned, or its fetching has not begun in time.
        """
        self.drop([shard.shard])
        place = TopicPartition(EVENTS, shard.shard, shard.events_next)
        try:
            seek(self.consumer, place, self._settings.kafka.call_ms_max / 1000, self._runtime)
        except BrokerError as error:
            raise ShardError(f"shard {shard.shard}: {error}") from error
        self.consumer.resume([place])
        self._fetched.add(shard.shard)

    def pause(self, shards: Iterable[int]) -> None:
        """Fetch nothing of ``shards`` and forget everything that has been polled."""
        self.consumer.pause([TopicPartition(EVENTS, shard) for shard in shards])
        self._held.clear()
        self._fetched.clear()

    # --- batches -----------------------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether nothing polled is waiting."""
        return not self._held

    @property
    def is_full(self) -> bool:
        """Whether what is waiting, and has been drained since the last commit, is as large as a commit may be."""
        engine = self._settings.engine
        waiting = sum(len(message.value() or b"") for message in self._held)
        return (
            self._drained_frames + len(self._held) >= engine.batch_frames_max
            or self._drained_bytes + waiting >= 1024 * engine.batch_kbytes_max
        )

    def note_commit(self) -> None:
        """What has been drained is committed, or forgotten."""
        self._drained_frames = self._drained_bytes = 0

    def poll(self, timeout_s: float, frames_max: int) -> int:
        """Poll for at most ``frames_max`` frames; how many have come.

        Rebalance callbacks run inside the poll and may replace the deque, so it is read afterwards.
        """
        polled = list(self._member.poll(timeout_s, frames_max))
        self._held.extend(polled)
        return len(polled)

    def fill(self, timeout_s: float) -> None:
        """Add what arrives within ``timeout_s`` to the batch, until that is full or there is nothing more."""
        while self.poll(timeout_s, _FRAMES_PER_POLL) == _FRAMES_PER_POLL and not self.is_full:
            timeout_s = 0.0

    def drain(self) -> list[tuple[Record, EventFrame | DecodeError]]:
        """Everything that is waiting, in the order of the log of each shard, decoded."""
        frames = [(message, _decoded(message)) for message in self._held]
        self._drained_frames += len(frames)
        self._drained_bytes += sum(len(message.value() or b"") for message in self._held)
        self._held.clear()
        return frames

    def drop(self, shards: Iterable[int]) -> None:
        """Forget what has been polled of ``shards``."""
        gone = set(shards)
        self._fetched -= gone
        self._held = deque(message for message in self._held if message.partition() not in gone)


def _decoded(message: Record) -> EventFrame | DecodeError:
    try:
        return _EVENT_FRAME(message.value())
    except DecodeError as error:
        return error
