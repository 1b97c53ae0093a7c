"""``margin.marks.v1``, read in one way by everybody: its frames, the last full one, and how far back prices are known.

A record that is no frame is handed on with the reason, for the reader to pass over or to put aside. What a frame does
to an account is the reader's business.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from schemas.codec import DecodeError, Decoder
from schemas.messages import FramePart, Mark, MarkFrame
from schemas.topics import MARKS
from schemas.types import Uncounted
from streams.broker.records import Log, Record
from streams.broker.tail import search_tail
from streams.feeds.feed import Feed

_FRAME = Decoder[MarkFrame](MarkFrame)

MARKS_LOOKBACK = 500
"""How many mark records are read to know the current prices when a journal names no full frame."""


@dataclass(frozen=True, slots=True)
class MarkRecord:
    """A record and its frame; ``frame`` is None if it holds none, and ``refused`` says why."""

    record: Record
    frame: MarkFrame | None
    refused: DecodeError | None = None

    @property
    def offset(self) -> int:
        return self.record.offset()

    @property
    def appended_us(self) -> int:
        """See :attr:`streams.broker.records.Record.appended_us`."""
        return self.record.appended_us


def mark_record(record: Record) -> MarkRecord:
    """``record`` with its frame, or why it holds none.

    An epoch is an offset of this log, of a record before. Where it is not, an oracle has not noticed that the topic was
    made anew: no later oracle would be believed beside such an epoch.
    """
    try:
        frame = _FRAME(record.value())
    except DecodeError as error:
        return MarkRecord(record, None, error)
    if frame.epoch > record.offset():
        reason = f"its epoch {frame.epoch} is beyond its offset: it is of another topic that had this name"
        return MarkRecord(record, None, DecodeError(reason))
    return MarkRecord(record, frame)


def mark_records(records: Iterable[Record]) -> Iterator[MarkRecord]:
    """``records``, each with its frame when it is asked for."""
    return map(mark_record, records)


def read_marks(log: Log, first: int, end: int) -> Iterator[MarkRecord]:
    """The records from offset ``first`` up to, not including, ``end``.

    Raises:
        BrokerError: Kafka does not answer.
    """
    return mark_records(log.read_range(MARKS, 0, first, end))


def first_needed(marks_full: int, marks_next: int) -> int:
    """The first record that must be read to know the prices as of ``marks_next``; ``marks_full`` is the last full frame
    before, negative if it is not known."""
    return marks_full if marks_full >= 0 else max(0, marks_next - MARKS_LOOKBACK)


@dataclass(frozen=True, slots=True)
class FullFrame:
    """A full frame, whole or put together from its parts; ``first`` is the offset at which it begins."""

    first: int
    frame: MarkFrame


@dataclass(slots=True)
class FullFrames:
    """Finds the full frames among the frames of the log, given one after the other.

    Those that are void, because of a lower epoch than one before, are not to be given.
    """

    _first: int = 0
    _parts: list[MarkFrame] = field(default_factory=list)

    def add(self, offset: int, frame: MarkFrame) -> FullFrame | None:
        """The full frame that ``frame``, at ``offset``, is or completes; None if it is neither."""
        if frame.full:
            return FullFrame(offset, frame)
        if not isinstance(part := frame.part, FramePart):
            return None
        if self._parts and self._parts[-1] == frame:  # a producer may write one twice
            return None
        if part.number == 1:
            self._first, self._parts = offset, []
        elif not self._is_next(frame, part):
            self._parts = []
            return None
        self._parts.append(frame)
        if part.number < part.of:
            return None
        parts, self._parts = self._parts, []
        return FullFrame(self._first, _joined(parts))

    def _is_next(self, frame: MarkFrame, part: FramePart) -> bool:
        if not self._parts:
            return False
        last = self._parts[-1]
        of_one = (last.time, last.epoch) == (frame.time, frame.epoch)
        return of_one and part.number == len(self._parts) + 1 and part.of == _of(last)


def _of(frame: MarkFrame) -> int:
    return frame.part.of if isinstance(frame.part, FramePart) else 1


def _joined(parts: list[MarkFrame]) -> MarkFrame:
    """The full frame whose parts these are."""
    marks: dict[str, Mark] = {}
    scales: dict[str, str] = {}
    uncounted: dict[str, dict[str, Uncounted]] = {}
    for one in parts:
        marks |= {mark.symbol: mark for mark in one.marks}
        scales |= one.scales
        uncounted |= one.uncounted
    return msgspec.structs.replace(
        parts[-1], marks=tuple(marks.values()), scales=scales, uncounted=uncounted, full=True, part=msgspec.UNSET
    )


def last_full_frame(log: Log) -> MarkFrame | None:
    """The last full frame that is in force, all prices and scales of now, or None if there is none.

    Raises:
        BrokerError: Kafka does not answer.
    """
    return search_tail(log, MARKS, 0, lambda records, _: _last_full(records))


def _last_full(records: Iterable[Record]) -> MarkFrame | None:
    last: MarkFrame | None = None
    full_frames, epoch = FullFrames(), -1
    for mark in mark_records(records):
        frame = mark.frame
        if frame is None or frame.epoch < epoch:
            continue
        if frame.full or frame.part is not msgspec.UNSET:  # an empty frame that claims the right has none yet
            epoch = frame.epoch
        full = full_frames.add(mark.offset, frame)
        if full is not None:
            last = full.frame
    return last


class MarkFeed(Feed[MarkRecord]):
    """Follows ``margin.marks.v1`` for a role that runs."""

    def read(self, record: Record) -> MarkRecord:
        return mark_record(record)
