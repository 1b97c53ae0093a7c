"""The frames of ``margin.marks.v1``: read in a range, followed, and the last full one found."""

from typing import Any, cast

import pytest
from msgspec import UNSET

from schemas.codec import encode
from schemas.messages import FramePart, Mark, MarkFrame
from schemas.topics import MARKS
from streams.broker.reader import Follower
from streams.feeds.marks import MARKS_LOOKBACK, MarkFeed, first_needed, last_full_frame, read_marks
from tests.given_log import GivenLog


def written(*frames: MarkFrame | bytes) -> GivenLog:
    log = GivenLog()
    for frame in frames:
        log.append(MARKS, frame if isinstance(frame, bytes) else encode(frame))
    return log


def frame(time: int, *, full: bool = False, epoch: int = -1) -> MarkFrame:
    return MarkFrame(time=time, marks=(), full=full, epoch=epoch)


def part(time: int, number: int, of: int = 3, *, epoch: int = -1) -> MarkFrame:
    mark = Mark(symbol=f"S{number}", price="1", status="live", publish_time=time)
    scales = {f"instrument:S{number}": "2"}
    return MarkFrame(time=time, marks=(mark,), scales=scales, epoch=epoch, part=FramePart(number=number, of=of))


def parts(time: int, epoch: int = -1) -> list[MarkFrame]:
    return [part(time, number, epoch=epoch) for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("frames", "time"),
    [
        (parts(1), 1),
        ([*parts(1), *parts(2)[:2]], 1),
        ([*parts(1), *parts(2)[1:]], 1),
        ([frame(1, full=True), *parts(2), frame(3)], 2),
        ([*parts(1), frame(2, full=True)], 2),
        (parts(1)[1:], None),
        ([*parts(1, epoch=0), *parts(2, epoch=-1)], 1),
        ([part(1, 1), part(1, 2, epoch=1), part(1, 3)], None),
        ([part(1, 1), part(2, 2), part(1, 3)], None),
        ([part(1, 1), part(1, 2, of=2)], None),
        ([part(1, 2, of=1)], None),
        ([part(1, 1, of=1)], 1),
        ([*parts(1), *[frame(2)] * 700], 1),
        ([part(1, 1), *[frame(2)] * 62, part(1, 2), part(1, 3)], 1),
    ],
)
def test_the_last_full_frame_in_parts_is_found(frames: list[MarkFrame], time: int | None) -> None:
    last = last_full_frame(written(*frames))
    assert (None if last is None else last.time) == time
    if last is not None and last.marks:
        assert last.full
        assert last.part is UNSET
        assert {f"instrument:{mark.symbol}" for mark in last.marks} == last.scales.keys()


def test_a_record_that_is_no_frame_is_handed_on_with_the_reason() -> None:
    first, second, third = read_marks(written(frame(1), b"nonsense", frame(3)), 0, 3)
    assert (first.frame, third.frame) == (frame(1), frame(3))
    assert (second.offset, second.frame) == (1, None)
    assert second.refused is not None


def test_a_frame_whose_epoch_is_no_offset_before_it_is_of_another_topic_of_the_name() -> None:
    own, other = read_marks(written(frame(1, epoch=0), frame(2, epoch=7)), 0, 2)
    assert own.frame == frame(1, epoch=0)
    assert other.frame is None
    assert "another topic that had this name" in str(other.refused)


@pytest.mark.parametrize(
    ("frames", "time"),
    [
        ([], None),
        ([frame(1), frame(2)], None),
        ([frame(1, full=True), frame(2, full=True), frame(3)], 2),
        ([frame(0)] * 5 + [frame(1, full=True, epoch=5), frame(2, full=True, epoch=4)], 1),
        ([frame(1, full=True, epoch=0), frame(2, full=True, epoch=5)], 1),
        ([frame(1, full=True), b"nonsense"], 1),
        ([frame(1, full=True), *[frame(2)] * 700], 1),
    ],
)
def test_the_last_full_frame_that_is_in_force_is_found(frames: list[Any], time: int | None) -> None:
    last = last_full_frame(written(*frames))
    assert (None if last is None else last.time) == time


def test_prices_are_known_from_the_last_full_frame_or_a_look_back() -> None:
    assert first_needed(7, 2_000) == 7
    assert first_needed(-1, 2_000) == 2_000 - MARKS_LOOKBACK
    assert first_needed(-1, 3) == 0


def test_a_feed_goes_on_at_what_it_has_not_handed_out() -> None:
    log = written(frame(1), frame(2), frame(3))
    starts: list[int] = []

    class Following:
        def start(self, offset: int) -> None:
            starts.append(offset)

        def poll(self, timeout_s: float) -> list[Any]:
            return list(log.read_range(MARKS, 0, starts[-1]))

    feed = MarkFeed(cast(Follower, Following()))
    feed.start(0)
    for mark in feed.poll(0):
        if mark.offset == 1:
            break  # what came with it is not handed out
    assert feed.next_offset == 2
    feed.restart()
    assert [mark.offset for mark in feed.poll(0)] == [2]
    assert starts == [0, 2]
