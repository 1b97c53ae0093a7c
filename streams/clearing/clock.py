"""Whose time counts: a host's clock is believed as far as the broker that appended its frame bears it out.

Owns the bound of :attr:`PolicyParameters.clock_skew_ms_max` and where a record's broker time comes from. What a shard
does with its time, and whom it tells, is the shard's business.
"""

from schemas.topics import EVENTS, MARKS
from streams.broker.records import UNSTAMPED
from streams.feeds.journal import HOSTS

CLOCK_RIGHT_US = 10_000_000
"""A clock that was off counts as right again when none of its frames has been off for so long: a topic may have
several writers, and one whose clock is right says nothing of the others."""

_TOPICS = {"events": EVENTS, "marks": MARKS}


def bounded_us(time_us: int, appended_us: int, skew_us: int) -> int:
    """``time_us`` of a host's clock, but at most ``skew_us`` from the time at which the broker appended it."""
    return min(max(time_us, appended_us - skew_us), appended_us + skew_us)


def is_off(time_us: int, appended_us: int, skew_us: int) -> bool:
    """Whether a frame's time is further from the broker's than the policy allows, or has none to be compared with."""
    return appended_us == UNSTAMPED or abs(time_us - appended_us) > skew_us


def skew_reason(clock: str, place: str, time_us: int, appended_us: int, skew_us: int) -> str:
    """In words: whose clock is off, by how much, what counts instead and what to do."""
    if appended_us == UNSTAMPED:
        return (
            f"{place} carries no time of the broker, so its own counts for nothing: set message.timestamp.type of "
            f"{_TOPICS[clock]} to LogAppendTime (`margin-clearing topics --verify` says how)"
        )
    direction = "ahead of" if time_us > appended_us else "behind"
    return (
        f"{place}: the clock of {HOSTS[clock]} is {abs(time_us - appended_us) / 1e6:.3f} s {direction} the broker's, "
        f"more than the {skew_us // 1000} ms of clock_skew_ms_max: the broker's counts; set that host's clock right"
    )
