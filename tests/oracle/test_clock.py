"""The oracle's time: what a step of the machine's clock does, and how its distance from the broker's is told."""

import logging

import pytest

from streams.oracle.clock import OFFSET_MS_MAX, BrokerOffset, MachineClock

S = 1_000_000


def test_time_is_never_twice_the_same_and_waits_out_a_small_step_back() -> None:
    reads = iter([10 * S, 10 * S, 9 * S, 8 * S + 1, 11 * S])
    clock = MachineClock(lambda: 1000 * next(reads))
    assert [clock.now_us() for _ in range(5)] == [10 * S, 10 * S + 1, 10 * S + 2, 10 * S + 3, 11 * S]


def test_a_clock_that_was_far_ahead_is_followed_back_and_told(caplog: pytest.LogCaptureFixture) -> None:
    year = 31_536_000 * S
    reads = iter([year, 5 * S, 6 * S])
    clock = MachineClock(lambda: 1000 * next(reads))
    with caplog.at_level(logging.INFO):
        assert [clock.now_us() for _ in range(3)] == [year, 5 * S, 6 * S]
    assert [record.getMessage() for record in caplog.records] == ["clock_stepped_back"]


@pytest.mark.parametrize(
    ("sent_ms", "acknowledged_ms", "appended_ms", "offset_ms"),
    [
        (5_000, 5_100, 5_040, 0),
        (5_000, 5_100, 5_000, 0),
        (5_000, 5_100, 5_100, 0),
        (5_000, 9_000, 8_500, 0),  # a slow way is no offset
        (95_000, 95_100, 5_001, 89_998),
        (5_000, 5_100, 95_000, -89_900),
    ],
)
def test_the_offset_is_what_sending_and_acknowledgement_leave_no_doubt_of(
    sent_ms: int, acknowledged_ms: int, appended_ms: int, offset_ms: int
) -> None:
    offset = BrokerOffset()
    offset.observe(1000 * sent_ms, 1000 * acknowledged_ms, appended_ms, 1)
    assert offset.offset_ms == offset_ms


def test_a_time_that_is_the_producers_says_nothing() -> None:
    offset = BrokerOffset()
    offset.observe(95_000_000, 95_100_000, 5_000, 0)
    offset.observe(95_000_000, 95_100_000, None, 1)
    assert offset.offset_ms is None


def test_an_offset_is_told_once_and_once_when_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    offset = BrokerOffset()
    with caplog.at_level(logging.INFO):
        for ahead_ms in (0, OFFSET_MS_MAX, OFFSET_MS_MAX + 2, 90_000, 100, 0):
            offset.observe(1000 * (50_000 + ahead_ms), 1000 * (50_010 + ahead_ms), 50_000, 1)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "clock_is_off"),
        ("INFO", "clock_is_right_again"),
    ]
