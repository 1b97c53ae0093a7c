"""``margin.marks.v1``, read in one way by everybody: its frames, the last full one, and how far back prices are known.

A record that is no frame is handed on with the reason, for the reader to pass over or to put aside. What a frame does
to an account is the reader's business.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from schemas.codec import DecodeError, Decoder
from schemas.messages import MarkFrame
from schemas.topics import MARKS
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
    """``record`` with its frame, or why it holds none."""
    try:
        return MarkRecord(record, _FRAME(record.value()))
    except DecodeError as error:
        return MarkRecord(record, None, error)


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


def last_full_frame(log: Log) -> MarkFrame | None:
    """The last full frame that is in force, all prices and scales of now, or None if there is none.

    Raises:
        BrokerError: Kafka does not answer.
    """
    return search_tail(log, MARKS, 0, lambda records, _: _last_full(records))


def _last_full(records: Iterable[Record]) -> MarkFrame | None:
    last: MarkFrame | None = None
    for mark in mark_records(records):
        frame = mark.frame
        if frame is not None and frame.full and (last is None or frame.epoch >= last.epoch):
            last = frame
    return last


class MarkFeed(Feed[MarkRecord]):
    """Follows ``margin.marks.v1`` for a role that runs."""

    def read(self, record: Record) -> MarkRecord:
        return mark_record(record)
