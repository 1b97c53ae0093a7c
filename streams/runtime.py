"""Time and threads, as whoever waits or works in the background is given them.

Production gets ``SYSTEM``; a run in memory gets one in which time is virtual and a thread is scheduled by hand.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol


class Event(Protocol):
    """What is used of ``threading.Event``."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class ConditionVariable(Protocol):
    """What is used of ``threading.Condition``."""

    def __enter__(self) -> object: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...
    def notify_all(self) -> None: ...
    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool: ...


class Thread(Protocol):
    """What is used of ``threading.Thread``."""

    def start(self) -> None: ...
    def is_alive(self) -> bool: ...
    def join(self, timeout: float | None = None) -> None: ...


class Runtime(Protocol):
    """A clock, and what runs beside the caller."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def time_ns(self) -> int:
        """The machine's clock, nanoseconds since 1970."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        ...

    def event(self) -> Event:
        """An event that is not set."""
        ...

    def condition(self) -> ConditionVariable:
        """A condition with a lock of its own."""
        ...

    def thread(self, target: Callable[[], None], name: str) -> Thread:
        """A thread, not started, that does not keep the process from ending."""
        ...


class SystemRuntime:
    """The machine's clock and the interpreter's threads."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time_ns(self) -> int:
        return time.time_ns()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def event(self) -> Event:
        return threading.Event()

    def condition(self) -> ConditionVariable:
        return threading.Condition()

    def thread(self, target: Callable[[], None], name: str) -> Thread:
        return threading.Thread(target=target, name=name, daemon=True)


SYSTEM: Runtime = SystemRuntime()
