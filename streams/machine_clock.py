"""The clock of the machine, as a role stamps its frames: never twice the same, and back only after a real step."""

import logging
import time
from collections.abc import Callable

from streams.logs import event

log = logging.getLogger(__name__)

STEP_BACK_MS_MAX = 2_000


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
