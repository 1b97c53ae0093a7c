"""What a router tells the engines of its progress: how far its partitions are routed, and where all partitions end.

One record of ``margin.progress.v1`` is asked for, written and acknowledged before the next is begun: how far the router
is, then the question where the partitions end, then the record. It holds up nothing else.
"""

import logging
from collections.abc import Iterable, Mapping

from schemas.codec import encode
from schemas.messages import PartitionOffset, RouterProgress, TopicProgress
from schemas.topics import INPUTS, PROGRESS
from streams.broker.admin import Topics
from streams.broker.ends import Ends
from streams.broker.kafka import Kafka
from streams.errors import NotDelivered
from streams.logs import event
from streams.machine_clock import MachineClock
from streams.routing import metrics
from streams.routing.ownership import Owned

log = logging.getLogger(__name__)

HEARTBEATS = 10
"""A router of which nothing has changed says so once in so many times ``progress_ms``."""


class ProgressTeller:
    """Tells the engines how far one router is, in a cluster that has ``topics``.

    ``frames`` holds the offset of its last frame by shard.
    """

    def __init__(self, kafka: Kafka, client_id: str, topics: Topics, topic_ids: Mapping[str, str]) -> None:
        self._kafka = kafka
        self._client_id = f"{client_id}-progress"
        self._runtime = kafka.runtime
        self._clock = MachineClock(kafka.runtime.time_ns)
        self._topic_ids = topic_ids
        self._interval_s = kafka.settings.router.progress_ms / 1000
        self._process = f"{kafka.worker}:{self._clock.now_us()}"
        self._ends = kafka.end_offsets(self._client_id, {topic: topics.partitions[topic] for topic in INPUTS})
        self._producer = kafka.idempotent_producer(self._client_id, compression="lz4")
        self.frames = [-1] * topics.shards
        self._snapshot: tuple[dict[str, list[PartitionOffset]], list[int]] | None = None
        self._said: tuple[dict[str, list[PartitionOffset]], list[int]] | None = None
        self._asked_at = float("-inf")
        self._has_news = True

    def wrote(self, shard: int, offset: int) -> None:
        """A frame to ``shard`` is acknowledged."""
        self.frames[shard] = max(offset, self.frames[shard])

    def grow(self, shards: int) -> None:
        """There are ``shards`` by now."""
        self.frames += [-1] * (shards - len(self.frames))

    def close(self) -> None:
        """Let go of it; what is not acknowledged may be written or not."""
        self._producer.close()

    def wait_s(self, longest_s: float) -> float:
        """How long one may wait for something else, at most ``longest_s``, before :meth:`tell` has something to do."""
        if self._ends.is_asked or self._producer.waiting:
            return min(longest_s, 0.002)
        interval_s = self._interval_s if self._has_news else HEARTBEATS * self._interval_s
        return max(0.0, min(longest_s, self._asked_at + interval_s - self._runtime.monotonic()))

    def tell(self, owned: Iterable[Owned]) -> None:
        """Go one step further with telling how far ``owned`` are; everything below their next offsets has been told."""
        try:
            self._producer.poll()
            if self._ends.is_asked:
                if (ends := self._ends.answer()) is not None:
                    self._write(ends)
            elif not self._producer.waiting:
                self._ask(owned)
        except NotDelivered as error:
            event(log, logging.WARNING, "progress_not_told", reason=str(error))
            metrics.PROGRESS_NOT_TOLD.inc()
            self._producer.close()
            self._producer = self._kafka.idempotent_producer(self._client_id, compression="lz4")

    def _ask(self, owned: Iterable[Owned]) -> None:
        now = self._runtime.monotonic()
        places: dict[str, list[PartitionOffset]] = {topic: [] for topic in INPUTS}
        for place in owned:
            places[place.topic].append(PartitionOffset(partition=place.partition, offset=place.next_offset))
        snapshot = places, list(self.frames)
        self._has_news = snapshot != self._said
        if now - self._asked_at < (self._interval_s if self._has_news else HEARTBEATS * self._interval_s):
            return
        self._asked_at, self._snapshot = now, snapshot
        self._ends.ask()

    def _write(self, ends: Ends) -> None:
        assert self._snapshot is not None
        places, frames = self._said = self._snapshot
        topics = [
            TopicProgress(topic=topic, topic_id=self._topic_ids.get(topic, ""), next=places[topic], ends=list(said))
            for topic, said in ends.items()
        ]
        progress = RouterProgress(router=self._process, time=self._clock.now_us(), topics=topics, frames=frames)
        self._producer.produce(PROGRESS, encode(progress), partition=0)
        metrics.PROGRESS.inc()
