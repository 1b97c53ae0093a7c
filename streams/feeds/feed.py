"""Following one partition of a topic of ours: the place moves on only with what has been handed out."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from streams.broker.reader import Follower
from streams.broker.records import Record

Read = TypeVar("Read")


class Feed(Generic[Read]):
    """Follows a topic for a role that runs. ``next_offset`` is the first record that was not handed out.

    Records that were polled and not handed out are polled again after :meth:`restart`.
    """

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self.next_offset = 0

    def read(self, record: Record) -> Read:
        """What ``record`` holds, or why that cannot be read; never raises."""
        raise NotImplementedError

    def start(self, offset: int) -> None:
        """Begin to follow at ``offset``."""
        self.next_offset = offset
        self.restart()

    def restart(self) -> None:
        """Begin again to follow at the first record that was not handed out."""
        self._follower.start(self.next_offset)

    def poll(self, timeout_s: float) -> Iterator[Read]:
        """What has come, waiting up to ``timeout_s`` for the first; the place moves on with each that is handed out.

        Raises:
            BrokerError: the broker refuses for good.
        """
        for record in self._follower.poll(timeout_s):
            self.next_offset = record.offset() + 1
            yield self.read(record)

    def close(self) -> None:
        self._follower.close()
