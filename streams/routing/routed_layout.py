"""By which layout a router routes: another only once its group has let through a transaction that says so.

A router that has been replaced and does not know it must not tell any shard of a layout that its successor has not
reached: the successor's records would be taken for another shard's. So every router says, in a transaction with the
offsets of all its partitions, by which layout they are routed from there on, before it routes anything by it: when the
layout changes, and whenever it begins with partitions, once there has been more than one layout.
"""

from collections.abc import Sequence

from schemas.codec import encode
from schemas.topics import EVENTS
from streams.broker.layout import LayoutFollower
from streams.broker.producer import TransactionalProducer
from streams.broker.reader import LogReader
from streams.routing.ownership import Owned
from streams.routing.progress import ProgressTeller
from streams.routing.split import Splitter

_PLACES_PER_FRAME = 2_000


class RoutedLayout:
    """``is_unconfirmed``: nothing may be routed before :meth:`produce` has been committed."""

    def __init__(self, follower: LayoutFollower, splitter: Splitter, progress: ProgressTeller) -> None:
        self._follower = follower
        self._splitter = splitter
        self._progress = progress
        self.is_unconfirmed = False

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return self._follower.layout.shards_used

    def start(self, reader: LogReader) -> None:
        """Begin to follow the layout.

        Raises:
            TopicError: it cannot be read. BrokerError: Kafka does not answer.
        """
        self._follower.start(reader)

    def look(self) -> None:
        """See whether the layout has changed.

        Raises:
            BrokerError: the broker refuses for good.
        """
        self.is_unconfirmed |= self._follower.poll() is not None

    def begin(self, reader: LogReader) -> None:
        """Know the layout that stands, now that partitions are begun with.

        Raises:
            As :meth:`start`.
        """
        self._follower.catch_up(reader)
        self.is_unconfirmed = self._follower.layout.spread.version > 0

    def produce(self, producer: TransactionalProducer, all_owned: Sequence[Owned], time_us: int) -> None:
        """Tell every shard, in the transaction that is open, that all partitions are routed by the newest layout."""
        layout = self._follower.layout
        places = [(owned.topic, owned.partition, owned.next_offset) for owned in all_owned]
        for first in range(0, len(places), _PLACES_PER_FRAME):
            some = places[first : first + _PLACES_PER_FRAME]
            frame = encode(self._splitter.confirmation(layout.spread, some, time_us))
            for shard in range(layout.shards_used):
                producer.produce(EVENTS, frame, partition=shard)

    def confirmed(self) -> None:
        """That has been committed: route by it."""
        layout = self._follower.layout
        self._splitter.spread_over(layout.spread, layout.shards_used)
        self._progress.grow(layout.shards_used)
        self.is_unconfirmed = False

    def confirm_nothing(self, owned: int) -> None:
        """There is nothing to commit: if no partitions are ``owned``, there is nothing to confirm."""
        if self.is_unconfirmed and not owned:
            self.confirmed()

    def close(self) -> None:
        self._follower.close()
