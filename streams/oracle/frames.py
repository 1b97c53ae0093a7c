"""The bytes of a mark frame, within what a message may hold."""

import logging

import msgspec

from schemas.codec import MESSAGE_BYTES_MAX
from schemas.messages import MarkFrame
from streams.errors import InputError
from streams.logs import event

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode  # the bytes of schemas.codec.encode, which makes a dict of each mark first


def encoded_frame(frame: MarkFrame) -> bytes:
    """The bytes of ``frame``, without what only explains its marks if a message could not hold that.

    Raises:
        InputError: even so it is larger than a message may be: there are too many symbols for one frame.
    """
    data = _encode(frame)
    if len(data) <= MESSAGE_BYTES_MAX:
        return data
    event(log, logging.WARNING, "frame_without_sources", marks=len(frame.marks), bytes=len(data))
    bare = tuple(msgspec.structs.replace(mark, sources={}) for mark in frame.marks)
    data = _encode(msgspec.structs.replace(frame, marks=bare, uncounted={}))
    if len(data) > MESSAGE_BYTES_MAX:
        raise InputError(
            f"a frame of {len(frame.marks):,} marks has {len(data):,} bytes, more than the {MESSAGE_BYTES_MAX:,} of a "
            "message: take oracle records of symbols that are not used any more out of risk.parameters.v1"
        )
    return data
