"""The oracle's time: the clock of its machine, and how far that is from the clock of Kafka's broker.

What is read here decides which prices are fresh, so a machine whose clock is off has to be told of: every frame is
appended at the broker's time (``LogAppendTime``), which lies between sending and acknowledgement if both clocks agree.
"""

import logging
import time
from collections.abc import Callable

from prometheus_client import Gauge

from schemas.parameters import PolicyParameters
from streams.logs import event

log = logging.getLogger(__name__)

CLOCK_OFFSET = Gauge(
    "margin_oracle_clock_offset_ms", "The oracle's clock less the broker's, by at least so much (0: none is seen)"
)

OFFSET_MS_MAX = PolicyParameters().clock_skew_ms_max
"""Beyond it a process is not ready, and says so."""
STEP_BACK_MS_MAX = 2_000
_LOG_APPEND_TIME = 1


class MachineClock:
    """Microseconds since the Unix epoch, never twice the same.

    A step back of up to ``STEP_BACK_MS_MAX`` is waited out. A larger one is followed: the clock was ahead and has been
    put right, and a time that stood still until then would make no price old.
    """

    def __init__(self, read_ns: Callable[[], int] = time.time_ns) -> None:
        self._read_ns = read_ns
        self._last_us = 0

    def now_us(self) -> int:
        read_us = self._read_ns() // 1000
        behind_ms = (self._last_us - read_us) // 1000
        if behind_ms > STEP_BACK_MS_MAX:
            event(log, logging.WARNING, "clock_stepped_back", by_ms=behind_ms)
            self._last_us = read_us
        else:
            self._last_us = max(self._last_us + 1, read_us)
        return self._last_us


class BrokerOffset:
    """How far the machine's clock is from the broker's, by the last frame that Kafka acknowledged.

    ``offset_ms`` is positive if the machine's clock is ahead; None before it is known, and where the topic does not
    have the broker's time. What the way to the broker and back takes is no offset.
    """

    def __init__(self) -> None:
        self.offset_ms: int | None = None
        self._told = False

    def observe(self, sent_us: int, acknowledged_us: int, timestamp_ms: int | None, timestamp_type: int) -> None:
        """Take in an acknowledgement: the machine's time before and after, the record's timestamp and its type."""
        if timestamp_type != _LOG_APPEND_TIME or timestamp_ms is None:
            return
        ahead_us = sent_us - (1000 * timestamp_ms + 999)  # the broker's clock says whole milliseconds
        behind_us = 1000 * timestamp_ms - acknowledged_us
        self.offset_ms = (max(0, ahead_us) - max(0, behind_us)) // 1000
        CLOCK_OFFSET.set(self.offset_ms)
        off = abs(self.offset_ms) > OFFSET_MS_MAX
        if off != self._told:
            self._told = off
            level, name = (logging.WARNING, "clock_is_off") if off else (logging.INFO, "clock_is_right_again")
            event(log, level, name, offset_ms=self.offset_ms, limit_ms=OFFSET_MS_MAX)
