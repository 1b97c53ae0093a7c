"""What the routers say of their progress, kept for each shard until it has applied the frames that were written before.

What a record means for a shard is the shard's business.
"""

from collections import deque
from collections.abc import Iterator

from streams.clearing.shard import Shard
from streams.feeds.progress import ProgressFeed, ProgressRecord


class RouterProgress:
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

    def poll(self) -> None:
        """Take what has come, without waiting.

        Raises:
            BrokerError: the broker refuses for good.
        """
        for record in self._feed.poll():
            for waiting in self._waiting.values():
                waiting.append(record)

    def due(self, shard: Shard) -> Iterator[ProgressRecord]:
        """The records that ``shard`` may walk now, in order; it must have walked one before the next is asked for."""
        waiting = self._waiting.get(shard.shard)
        while waiting and waiting[0].frame(shard.shard) < shard.events_next:
            record = waiting.popleft()
            if record.offset >= shard.progress_next:
                yield record

    def close(self) -> None:
        self._feed.close()
