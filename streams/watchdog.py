"""Ends a process in which a loop makes no progress, so that the orchestrator starts another one.

Whatever may stand still says :meth:`Watchdog.beat` whenever it gets further, with what it turns to next, and
:meth:`Watchdog.forget` when nothing is expected of it any more. A loop that has not got further for the limit is logged
with since when and what it was doing, followed by the stack of every thread; then the process exits at once with
``EXIT_CODE``: a call that does not return can be neither interrupted nor trusted. What it had not committed is read
again from the log.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from streams.logs import event

log = logging.getLogger(__name__)

EXIT_CODE = 70
"""The exit code of a process that the watchdog ended. A hang in which no Python code can run at all ends with 1."""
ROUNDS = 20
"""The loops are looked at so many times within the limit."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop that is watched: what it does, and for how many seconds now."""

    name: str
    doing: str
    seconds: float


def _exit() -> None:
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    sys.stderr.flush()
    os._exit(EXIT_CODE)


class Watchdog:
    """Watches the loops of one process. :meth:`beat` may be called from any thread, however often.

    Time during which the whole process stood still (suspended, frozen, starved of its processor) is nobody's: it is
    not counted.
    """

    def __init__(self, limit_s: float = 60.0, *, end: Callable[[], None] = _exit) -> None:
        self.limit_s = limit_s
        self._end = end
        self._beats: dict[str, tuple[float, str]] = {}
        self._looked_at: float | None = None

    def beat(self, name: str, doing: str = "") -> None:
        """``name`` has got further, and does ``doing`` from here on."""
        self._beats[name] = (time.monotonic(), doing)

    def forget(self, name: str) -> None:
        """Expect nothing more of ``name``."""
        self._beats.pop(name, None)

    def loops(self) -> list[Loop]:
        """Every loop that is watched, the one that is longest without progress first."""
        now = time.monotonic()
        loops = [Loop(name, doing, now - since) for name, (since, doing) in self._beats.copy().items()]
        return sorted(loops, key=lambda loop: -loop.seconds)

    def overdue(self) -> list[Loop]:
        """The loops that have made no progress for the limit."""
        return [loop for loop in self.loops() if loop.seconds > self.limit_s]

    def start(self) -> None:
        """Watch from a thread of its own until the process ends."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def look(self) -> None:
        """One look at every loop: end the process if one of them hangs."""
        self._forgive_standstill()
        if overdue := self.overdue():
            for loop in overdue:
                event(
                    log,
                    logging.ERROR,
                    "watchdog_no_progress",
                    loop=loop.name,
                    doing=loop.doing,
                    since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - loop.seconds)),
                    seconds=round(loop.seconds, 1),
                    limit_s=self.limit_s,
                )
            self._end()

    def _run(self) -> None:
        while True:
            # The backstop: a call that keeps the interpreter to itself stops this thread too, but not that timer.
            faulthandler.dump_traceback_later(2 * self.limit_s, exit=True)
            time.sleep(self.limit_s / ROUNDS)
            self.look()

    def _forgive_standstill(self) -> None:
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        stood_still_s = 0.0 if before is None else now - before - 2 * self.limit_s / ROUNDS
        if stood_still_s > 0:
            for name, (since, doing) in self._beats.copy().items():
                if since <= now - stood_still_s and self._beats.get(name) == (since, doing):
                    self._beats[name] = (since + stood_still_s, doing)
