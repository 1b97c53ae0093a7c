"""The bytes of a frame: those of the codec, of a thousand symbols too, and no more than a message, of 20,000 too."""

import logging

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec import MESSAGE_BYTES_MAX, Decoder, encode
from schemas.messages import FramePart, Mark, MarkFrame
from schemas.types import Uncounted
from streams.feeds.marks import FullFrames
from streams.oracle import frames
from streams.oracle.faust_app import faust_app
from streams.oracle.frames import EncodedFrame, FrameLog, encoded_frame
from streams.settings import load
from tests.properties import examples

NOW = 1_700_000_000_000_000
LONGEST = "123456789012345678.123456789012345678"


def frame_of(symbols: int) -> MarkFrame:
    """Marks of three sources each, with long names and the longest prices."""
    marks = tuple(
        Mark(
            symbol=f"SYMBOL-{number:04d}-PERPETUAL",
            price=LONGEST,
            status="live",
            publish_time=NOW,
            sources={f"a-source-of-prices-{source}": LONGEST for source in "abc"},
        )
        for number in range(symbols)
    )
    uncounted: dict[str, dict[str, Uncounted]] = {mark.symbol: {"another-source": "silent"} for mark in marks}
    return MarkFrame(time=NOW, marks=marks, full=True, epoch=7, scales={"instrument:X": "1.5"}, uncounted=uncounted)


def test_the_bytes_are_those_of_the_codec() -> None:
    for frame in (frame_of(0), frame_of(3), MarkFrame(time=NOW, marks=frame_of(2).marks)):
        assert encoded_frame(frame) == EncodedFrame((encode(frame),))


def test_a_full_frame_of_a_thousand_symbols_says_all() -> None:
    frame = frame_of(1_000)
    assert encoded_frame(frame) == EncodedFrame((encode(frame),))


def read(encoded: EncodedFrame) -> list[MarkFrame]:
    assert all(len(message) <= MESSAGE_BYTES_MAX for message in encoded.messages)
    return [Decoder[MarkFrame](MarkFrame)(message) for message in encoded.messages]


def test_a_full_frame_of_twenty_thousand_symbols_comes_in_parts_that_make_it_again() -> None:
    frame = frame_of(20_000)
    frame = msgspec.structs.replace(
        frame,
        scales={f"instrument:{mark.symbol}": "1.234567890123456789" for mark in frame.marks},
        uncounted={mark.symbol: {"another-source": "silent"} for mark in frame.marks[:1_000]},
    )
    parts = read(encoded_frame(frame))
    assert [part.part for part in parts] == [FramePart(number=n + 1, of=len(parts)) for n in range(len(parts))]
    assert len(parts) < 8, "no more than it takes"
    full_frames = FullFrames()
    completed = [full_frames.add(offset, part) for offset, part in enumerate(parts, 100)]
    assert completed[:-1] == [None] * (len(parts) - 1)
    full = completed[-1]
    assert full is not None
    assert full.first == 100
    bare = tuple(msgspec.structs.replace(mark, sources={}) for mark in frame.marks)
    assert full.frame == msgspec.structs.replace(frame, marks=bare)


def test_changed_marks_that_no_message_holds_come_in_several_frames_that_are_no_parts() -> None:
    frame = msgspec.structs.replace(frame_of(20_000), full=False, scales={}, uncounted={})
    several = read(encoded_frame(frame))
    assert len(several) > 1
    assert [mark.symbol for one in several for mark in one.marks] == [mark.symbol for mark in frame.marks]
    assert all((one.time, one.epoch, one.full, one.part) == (NOW, 7, False, msgspec.UNSET) for one in several)


def test_a_mark_of_more_sources_than_a_message_holds_is_sent_without_them() -> None:
    mark = msgspec.structs.replace(frame_of(1).marks[0], sources={f"source-{n}": LONGEST for n in range(30_000)})
    (only,) = read(encoded_frame(MarkFrame(time=NOW, marks=(mark,))))
    assert only.marks == (msgspec.structs.replace(mark, sources={}),)


@settings(max_examples=examples(50), deadline=None)
@given(st.data())
def test_parts_are_one_frame_whatever_comes_between_and_only_if_none_is_missing(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "MESSAGE_BYTES_MAX", 1_500)
        patch.setattr(frames, "ENTRIES_BYTES_MAX", 500)
        wanted = msgspec.structs.replace(frame_of(data.draw(st.integers(20, 40))), uncounted={})
        parts = read(encoded_frame(wanted))
    changed = MarkFrame(time=NOW + 1, marks=frame_of(1).marks, epoch=7)
    lost = data.draw(st.sets(st.integers(0, len(parts) - 1), max_size=1))
    written: list[MarkFrame] = []
    for number, part in enumerate(parts):
        written += [changed] * data.draw(st.integers(0, 2))
        written += [] if number in lost else [part]
        written += [part] * (number not in lost and data.draw(st.booleans()))  # twice, as a producer may
    full_frames = FullFrames()
    completed = [full for offset, one in enumerate(written) if (full := full_frames.add(offset, one)) is not None]
    assert len(completed) == (0 if lost else 1)
    for full in completed:
        assert [mark.symbol for mark in full.frame.marks] == [mark.symbol for mark in wanted.marks]
        assert written[full.first] == parts[0]


def test_it_is_said_once_that_frames_lack_something_and_once_that_they_do_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    told = FrameLog()
    for symbols in (3, 3, 20_000, 20_000, 3, 3):
        frame = frame_of(symbols)
        told.tell(frame, encoded_frame(frame))
    assert [record.getMessage() for record in caplog.records] == ["frame_without_sources", "frame_is_whole"]


def test_what_a_message_may_hold_the_client_sends() -> None:
    conf = faust_app(load({"MARGIN_KAFKA__BOOTSTRAP_SERVERS": "a:1"})).conf
    assert conf.producer_max_request_size > MESSAGE_BYTES_MAX + 1_000
    assert conf.producer_max_batch_size < MESSAGE_BYTES_MAX, "a request holds a batch, and a broker takes no larger one"
