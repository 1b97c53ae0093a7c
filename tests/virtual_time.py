"""Virtual time for a test that drives processes on the in-memory cluster by hand."""

from collections.abc import Callable
from typing import TypeVar

from streams.memory.scheduler import Process, Scheduler

STEPS_MAX = 1_000_000_000
WAIT_S = 120
"""Virtual seconds within which whatever is waited for must have come about."""

T = TypeVar("T")


class VirtualTime:
    """A scheduler that goes on only when a test lets it."""

    scheduler: Scheduler

    def advance(self, ms: float) -> None:
        """Let time pass."""
        self.scheduler.run(self.scheduler.now + int(1000 * ms), STEPS_MAX)

    def wait(self, holds: Callable[[], bool], what: str) -> None:
        """Let time pass until ``holds``."""
        deadline_us = self.scheduler.now + 1_000_000 * WAIT_S
        while not holds():
            assert self.scheduler.now < deadline_us, f"not in {WAIT_S} s: {what}"
            self.advance(0.1)

    def do(self, process: Process, function: Callable[[], T]) -> T:
        """What ``function`` returns, or raises, in ``process``."""
        results: list[T] = []
        errors: list[Exception] = []

        def body() -> None:
            try:
                results.append(function())
            except Exception as error:
                errors.append(error)

        task = self.scheduler.spawn(process, "main", body)
        self.wait(lambda: task.done, f"{process.name} has done what it was told to")
        if errors:
            raise errors[0]
        return results[0]
