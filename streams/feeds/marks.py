"""``margin.marks.v1``, read in one way by everybody: its frames, the last full one, and how far back prices are known.

A record that is no frame is handed on with the reason, for the reader to pass over or to put aside. What a frame does
to an account is the reader's business.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from schemas.codec import DecodeError, Decoder
from schemas.messages import MarkFrame
from schemas.topics import MARKS
from streams.broker.reader import Follower
from streams.broker.records import Log, Record
from streams.broker.tail import search_tail

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


class MarkFeed:
    """Follows the topic for a role that runs. ``next_offset`` is the first record that was not handed out.

    Records that were polled and not handed out are polled again after :meth:`restart`.
    """

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

    def poll(self, timeout_s: float) -> Iterator[MarkRecord]:
        """What has come, waiting up to ``timeout_s`` for the first; the place moves on with each that is handed out.

        Raises:
            BrokerError: the broker refuses for good.
        """
        for record in self._follower.poll(timeout_s):
            self.next_offset = record.offset() + 1
            yield mark_record(record)

    def close(self) -> None:
        self._follower.close()
