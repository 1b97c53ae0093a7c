"""Whose time counts: a host's clock is believed as far as the broker that appended its frame bears it out.

Owns the bound of :attr:`PolicyParameters.clock_skew_ms_max` and the clock of a shard. Whom the shard tells of a clock
that is off is the shard's business.
"""

from collections.abc import Mapping

from schemas.topics import EVENTS, MARKS
from schemas.types import AlertKind
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


class ShardClock:
    """The time of a shard, in microseconds: that of its frames, as far as the broker's bears it out.

    ``skewed`` holds the hosts' clocks that have been told to be off, and the broker's time when each was last seen so.
    ``is_journaled``: a journal record said what the time was, under the policy of then.
    """

    def __init__(self) -> None:
        self.now_us = 0
        self.skewed: dict[str, int] = {}
        self.is_journaled = False
        self._borne_out_us = 0

    def resume(self, now_us: int, skewed: Mapping[str, int], *, is_journaled: bool) -> None:
        """Go on from what a journal record says."""
        self.now_us = self._borne_out_us = now_us
        self.skewed = dict(skewed)
        self.is_journaled = is_journaled

    def is_doubtful(self, time_us: int, skew_us: int) -> bool:
        """Whether a frame without a broker's time is further ahead than what has been borne out."""
        return time_us > max(self._borne_out_us, self.now_us) + skew_us

    def believe(self, time_us: int) -> None:
        """Advance to a frame's own time, which no broker's bears out: it holds until the times that come disagree."""
        self.now_us = max(self.now_us, time_us)

    def advance(self, time_us: int, appended_us: int, skew_us: int) -> None:
        """Advance to a frame's time, as far as the broker's bears it out."""
        time_us = bounded_us(time_us, appended_us, skew_us)
        self._borne_out_us = max(self._borne_out_us, time_us)
        if self.now_us > time_us + skew_us:
            self.now_us = self._borne_out_us
        self.now_us = max(self.now_us, time_us)

    def watch(
        self, clock: str, place: str, time_us: int, appended_us: int, skew_us: int
    ) -> tuple[AlertKind, str] | None:
        """What is to be told, once when the clock of a kind of frames is off and once when it has been right again for
        a while: the kind of alert and the reason."""
        if is_off(time_us, appended_us, skew_us):
            is_new = clock not in self.skewed
            self.skewed[clock] = self.now_us if appended_us == UNSTAMPED else appended_us
            return ("clock_skew", skew_reason(clock, place, time_us, appended_us, skew_us)) if is_new else None
        if clock in self.skewed and appended_us > self.skewed[clock] + CLOCK_RIGHT_US:
            del self.skewed[clock]
            return "clock_skew_cleared", f"{place}: the times of {clock} are the broker's again"
        return None
