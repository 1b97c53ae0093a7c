"""What the routers say of their progress, kept for each shard until it has applied the frames that were written before.

What a record means for a shard is the shard's business.
"""

from collections import deque
from collections.abc import Callable, Mapping

from prometheus_client import Counter

from streams.broker.records import Record
from streams.clearing.commit import DEAD_LETTER_SHARD
from streams.clearing.shard import Shard
from streams.feeds.progress import ProgressFeed, ProgressRecord

ROUTER_PROGRESS = Counter("margin_engine_router_progress", "Records of the routers' progress walked, by all shards")


class ProgressBacklog:
    """The records of ``margin.progress.v1`` that have come and that shards have yet to walk."""

    def __init__(self, feed: ProgressFeed) -> None:
        self._feed = feed
        self._waiting: dict[int, deque[ProgressRecord]] = {}

    @property
    def next_offset(self) -> int:
        """The offset of the next record that comes."""
        return self._feed.next_offset

    def start(self, offset: int) -> None:
        """Begin to follow at ``offset``."""
        self._feed.start(offset)

    def restart(self) -> None:
        """No shard is followed any more."""
        self._waiting.clear()

    def follow(self, shard: int) -> None:
        """Keep what comes from now on for a shard, too."""
        self._waiting[shard] = deque()

    def forget(self, shard: int) -> None:
        """The shard is gone."""
        self._waiting.pop(shard, None)

    def walk(self, shards: Mapping[int, Shard], put_aside: Callable[[tuple[Record, Exception]], object]) -> None:
        """Let each of ``shards`` walk what has come, as far as it has applied the frames that were written before.

        What cannot be read is put aside by shard ``DEAD_LETTER_SHARD``.

        Raises:
            BrokerError: the broker refuses for good.
        """
        for record in self._feed.poll(0):
            for waiting in self._waiting.values():
                waiting.append(record)
        for number, shard in shards.items():
            waiting = self._waiting.get(number, deque())
            while waiting and waiting[0].frame(number) < shard.events_next:
                said = waiting.popleft()
                if said.offset < shard.cursor.progress_next:
                    continue
                if said.refused is not None and number == DEAD_LETTER_SHARD:
                    put_aside((said.record, said.refused))
                shard.apply_progress(said.offset, said.progress, said.appended_us)
                ROUTER_PROGRESS.inc()

    def close(self) -> None:
        self._feed.close()
