"""``margin.progress.v1``, read in one way by everybody: how far the routers are, and where the exchange's topics end.

What follows from it for an account is the engine's business.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from schemas.codec import DecodeError, Decoder
from schemas.messages import RouterProgress
from streams.broker.reader import Follower
from streams.broker.records import UNSTAMPED, Record

_PROGRESS = Decoder[RouterProgress](RouterProgress)


@dataclass(frozen=True, slots=True)
class ProgressRecord:
    """A record and what it says; ``progress`` is None if it says nothing that can be read, ``refused`` says why."""

    record: Record
    progress: RouterProgress | None
    refused: DecodeError | None = None

    @property
    def offset(self) -> int:
        return self.record.offset()

    @property
    def appended_us(self) -> int:
        """When the broker appended it, in microseconds; the router's time if the topic lacks ``LogAppendTime``."""
        appended = self.record.appended_us
        if appended == UNSTAMPED and self.progress is not None:
            return self.progress.time
        return appended

    def frame(self, shard: int) -> int:
        """The router's last frame to a shard; whoever reads this must have read that before (-1: there is none)."""
        return -1 if self.progress is None else frame_of(self.progress, shard)


def frame_of(progress: RouterProgress, shard: int) -> int:
    """The offset of the router's last frame to ``shard``; -1 if it has written none."""
    return progress.frames[shard] if shard < len(progress.frames) else -1


def progress_record(record: Record) -> ProgressRecord:
    """``record`` with what it says, or why it says nothing."""
    try:
        return ProgressRecord(record, _PROGRESS(record.value()))
    except DecodeError as error:
        return ProgressRecord(record, None, error)


def progress_records(records: Iterable[Record]) -> Iterator[ProgressRecord]:
    """``records``, each with what it says when it is asked for."""
    return map(progress_record, records)


class ProgressFeed:
    """Follows the topic for a role that runs. ``next_offset`` is the first record that was not handed out."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self.next_offset = 0

    def start(self, offset: int) -> None:
        """Begin to follow at ``offset``."""
        self.next_offset = offset
        self.restart()

    def restart(self) -> None:
        """Begin again to follow at the first record that was not handed out."""
        self._follower.start(self.next_offset)

    def poll(self) -> Iterator[ProgressRecord]:
        """What has come, without waiting.

        Raises:
            BrokerError: the broker refuses for good.
        """
        for record in self._follower.poll(0):
            self.next_offset = record.offset() + 1
            yield progress_record(record)

    def close(self) -> None:
        self._follower.close()
