"""The bytes of mark frames, each within what a message may hold, however many symbols there are.

A frame that fits is one message. One that does not is written without what only explains its marks (``sources`` and
``uncounted``); and where even that is too much, in several messages: changed marks in several frames, a full frame in
parts, which have room for ``uncounted`` again.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from schemas.codec import MESSAGE_BYTES_MAX
from schemas.messages import FramePart, Mark, MarkFrame
from schemas.types import Uncounted
from streams.logs import event

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode  # the bytes of schemas.codec.encode, which makes a dict of each mark first

ENTRIES_BYTES_MAX = MESSAGE_BYTES_MAX - 1_000
"""Most bytes of the marks, scales and sources in one of several frames; the rest is for the frame itself."""


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """The messages of a frame, to be sent in this order. ``bare``: they lack what only explains the marks."""

    messages: tuple[bytes, ...]
    bare: bool = False


def encoded_frame(frame: MarkFrame) -> EncodedFrame:
    """The bytes of ``frame``; each message has ``MESSAGE_BYTES_MAX`` at most."""
    data = _encode(frame)
    if len(data) <= MESSAGE_BYTES_MAX:
        return EncodedFrame((data,))
    marks = tuple(msgspec.structs.replace(mark, sources={}) for mark in frame.marks)
    data = _encode(msgspec.structs.replace(frame, marks=marks, uncounted={}))
    if len(data) <= MESSAGE_BYTES_MAX:
        return EncodedFrame((data,), bare=True)
    entries = list(_entries(frame, marks))
    several = [
        MarkFrame(
            time=frame.time,
            epoch=frame.epoch,
            marks=tuple(some.marks),
            scales=some.scales,
            uncounted=some.uncounted,
        )
        for some in entries
    ]
    if frame.full:
        several = [
            msgspec.structs.replace(one, part=FramePart(number=number, of=len(several)))
            for number, one in enumerate(several, 1)
        ]
    return EncodedFrame(tuple(map(_encode, several)), bare=True)


@dataclass(slots=True)
class _Entries:
    """What stands in one of several frames, and about how many bytes that is."""

    marks: list[Mark] = field(default_factory=list)
    scales: dict[str, str] = field(default_factory=dict)
    uncounted: dict[str, dict[str, Uncounted]] = field(default_factory=dict)
    size: int = 0


def _entries(frame: MarkFrame, marks: Iterable[Mark]) -> Iterator[_Entries]:
    """``marks`` and what else ``frame`` says, as much together as a message holds."""
    filled = _Entries()

    def room_for(entry: Any) -> Iterator[_Entries]:
        nonlocal filled
        size = len(_encode(entry)) + 1
        if filled.size and filled.size + size > ENTRIES_BYTES_MAX:
            yield filled
            filled = _Entries()
        filled.size += size

    for mark in marks:
        yield from room_for(mark)
        filled.marks.append(mark)
    for key, scale in frame.scales.items():
        yield from room_for({key: scale})
        filled.scales[key] = scale
    for symbol, reasons in frame.uncounted.items():
        if len(_encode(reasons)) > MESSAGE_BYTES_MAX // 2:  # names in the rules that no price can have
            continue
        yield from room_for({symbol: reasons})
        filled.uncounted[symbol] = reasons
    yield filled


class FrameLog:
    """Says once that full frames lack what explains their marks or come in parts, and once that they do no more."""

    def __init__(self) -> None:
        self._told = (False, 1)

    def tell(self, frame: MarkFrame, encoded: EncodedFrame) -> None:
        """Log how the full frame ``frame`` was written if that is news."""
        how = encoded.bare, len(encoded.messages)
        if how == self._told:
            return
        self._told = how
        level, name = (logging.WARNING, "frame_without_sources") if encoded.bare else (logging.INFO, "frame_is_whole")
        event(log, level, name, marks=len(frame.marks), bytes=sum(map(len, encoded.messages)), parts=how[1])
