"""The last full frame of ``margin.marks.v1``: all prices and scales in force, for whoever has not followed the log."""

from schemas.codec import DecodeError, Decoder
from schemas.messages import MarkFrame
from schemas.topics import MARKS
from streams.broker.reader import LogReader

_FRAME = Decoder[MarkFrame](MarkFrame)
_SPAN_FIRST = 256
_SPAN_GROWTH = 16


def last_full_frame(reader: LogReader) -> MarkFrame | None:
    """The last full frame that is in force, or None if there is none.

    Raises:
        BrokerError: Kafka does not answer.
    """
    low, end = reader.watermarks(MARKS, 0)
    span = _SPAN_FIRST
    while True:
        first = max(low, end - span)
        found: MarkFrame | None = None
        for message in reader.read_range(MARKS, 0, first, end):
            try:
                frame = _FRAME(message.value())
            except DecodeError:
                continue
            if frame.full and (found is None or frame.epoch >= found.epoch):
                found = frame
        if found is not None or first == low:
            return found
        span *= _SPAN_GROWTH
