"""``margin.progress.v1``, read in one way by everybody: how far the routers are, and where the exchange's topics end.

What follows from it for an account is the engine's business.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.codec import DecodeError, Decoder
from schemas.messages import Behind, RouterProgress
from schemas.topics import PROGRESS
from streams.broker.records import UNSTAMPED, Record
from streams.feeds.feed import Feed

_LONG_US = 2_000_000

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


def behind_sentences(shard: str, behind: Mapping[str, Behind], held: int = 0, now_us: int = 0) -> Iterator[str]:
    """What a journal says of the sources that a shard does not wait for any more, and what to do.

    ``held`` accounts wait for the others: that is said if one of them has not moved for a while at ``now_us``.
    """
    for name, source in behind.items():
        if source.left_out and name == PROGRESS:
            yield (
                f"{shard}: no router has said since {_time(source.since)} how far it is, so commands are given without "
                f"knowing what is missing: start the routers, or see why they cannot write to {PROGRESS}."
            )
        elif source.left_out:
            yield (
                f"{shard}: {name} has stood at {source.next} since {_time(source.since)} and holds more: commands go "
                "out without what is in it: see why no router goes on there."
            )
    waiting = [name for name, source in behind.items() if not source.left_out and now_us - source.since > _LONG_US]
    if held and waiting:
        yield (
            f"{shard}: {held} accounts below their requirement wait for what was sent before their last event "
            f"({', '.join(waiting)}): see why no router goes on there."
        )


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


class ProgressFeed(Feed[ProgressRecord]):
    """Follows ``margin.progress.v1`` for a role that runs."""

    def read(self, record: Record) -> ProgressRecord:
        return progress_record(record)
