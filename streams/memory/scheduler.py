"""Virtual time, simulated processes and the one scheduler that decides who runs next.

A simulated process is one or more greenlets. Every call on a fake client suspends its greenlet for a latency drawn from
the seed's generator, so the order in which processes run is a function of the seed. A crash throws :class:`Killed` into
the greenlets of a process; from then on every call it makes raises :class:`Killed` again.
"""

import random
import zlib
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from greenlet import getcurrent, greenlet

EPOCH_US = 1_700_000_000_000_000
"""Wall-clock time (us) at virtual time 0."""


class Killed(BaseException):
    """The process has crashed: thrown into its greenlets and raised by everything it calls afterwards."""


class Violation(AssertionError):
    """An invariant does not hold."""


class Task:
    """One greenlet of a process. ``token`` tells the present suspension from older ones."""

    __slots__ = ("done", "greenlet", "name", "process", "started", "token")

    def __init__(self, process: "Process", name: str, body: Callable[[], None], hub: greenlet) -> None:
        self.process = process
        self.name = name
        self.token = 0
        self.done = False
        self.started = False
        self.greenlet = greenlet(body, hub)  # whoever starts it, its end goes back to the scheduler


class Process:
    """One simulated operating-system process.

    ``silent_until`` is when its heartbeats reach the coordinators again (frozen, or cut off from them).
    """

    def __init__(self, scheduler: "Scheduler", name: str) -> None:
        self.scheduler = scheduler
        self.name = name
        self.dead = False
        self.frozen_until = 0
        self.cut_until = 0
        self.silent_since = 0
        self.skew_us = 0
        self.crash_rate = 0.0
        self.tasks: list[Task] = []
        self.clients: list[Any] = []
        self.on_end: Callable[[BaseException | None], None] = lambda _: None
        self.on_kill: Callable[[], None] = lambda: None

    @property
    def silent_until(self) -> int:
        return max(self.frozen_until, self.cut_until)

    def alive(self) -> None:
        """Raise what a call of a crashed process raises."""
        if self.dead:
            raise Killed

    def call(self, what: str, low_us: int = 30, high_us: int = 900) -> None:
        """A switch point: time passes and others run; the process may crash here."""
        scheduler = self.scheduler
        if self.dead:
            raise Killed
        scheduler.note(self.name, what)
        if self.crash_rate and scheduler.random.random() < self.crash_rate:
            self.crash(what)
        scheduler.sleep(int(low_us + (high_us - low_us) * scheduler.random.random() ** 3))

    def crash(self, where: str) -> None:
        """Crash from within the running task of this process."""
        self.kill(where)
        raise Killed

    def kill(self, where: str) -> None:
        """Crash: clients are inert at once, the greenlets unwind as soon as the scheduler runs."""
        if self.dead:
            return
        self.dead = True
        self.silent_since = self.silent_since if self.silent_until > self.scheduler.now else self.scheduler.now
        self.scheduler.note(self.name, f"KILLED {where}")
        self.on_kill()
        self.scheduler.after(0, self.unwind)

    def unwind(self) -> None:
        """Throw :class:`Killed` into every greenlet that has not ended (from the scheduler only)."""
        self.dead = True
        for task in self.tasks:
            self.scheduler.throw(task)

    def go_silent(self, *, frozen_us: int = 0, cut_us: int = 0) -> None:
        """Stop running for ``frozen_us``, or lose the coordinators for ``cut_us``."""
        now = self.scheduler.now
        if self.silent_until <= now:
            self.silent_since = now
        if frozen_us:
            self.frozen_until = max(self.frozen_until, now + frozen_us)
        if cut_us:
            self.cut_until = max(self.cut_until, now + cut_us)


class Scheduler:
    """A heap of what happens when. Actions run in the scheduler itself, tasks in their greenlets."""

    def __init__(self, seed: int, trace_lines: int | None = 120) -> None:
        self.random = random.Random(seed)
        self.now = 0
        self.steps = 0
        self.digest = 0
        self.current: Task | None = None
        self.failure: BaseException | None = None
        self.lines: deque[tuple[int, str, str]] = deque(maxlen=trace_lines)
        self._heap: list[tuple[int, int, Any, int]] = []
        self._count = 0
        self._hub = getcurrent()
        self._until_us = 0

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace and to its digest."""
        self.digest = zlib.crc32(f"{self.now} {who} {what}".encode(), self.digest)
        self.lines.append((self.now, who, what))

    def fail(self, error: BaseException) -> None:
        """Remember the first failure; the run ends at the next step, whoever swallows ``error`` meanwhile."""
        if self.failure is None:
            self.failure = error

    def after(self, delay_us: int, action: Callable[[], None]) -> None:
        """Run ``action`` in the scheduler, ``delay_us`` from now."""
        self._count += 1
        heappush(self._heap, (self.now + delay_us, self._count, action, -1))

    def spawn(self, process: Process, name: str, function: Callable[[], None]) -> Task:
        """Begin a task of ``process``."""

        def body() -> None:
            error: BaseException | None = None
            try:
                function()
            except Killed:
                pass
            except BaseException as raised:
                error = raised
            task.done = True
            if isinstance(error, Violation):
                self.fail(error)
            if not process.dead and task is process.tasks[0]:
                process.on_end(error)
            elif error is not None and not process.dead:
                self.fail(error)

        task = Task(process, name, body, self._hub)
        process.tasks.append(task)
        self._resume_at(task, self.now)
        return task

    def sleep(self, delay_us: int) -> None:
        """Suspend the running task. If nothing else is due before it goes on, it goes on at once, only later."""
        task = self.current
        assert task is not None
        time_us = self.now + delay_us
        alone = self._heap[0][0] > time_us <= self._until_us
        if alone and task.process.frozen_until <= time_us and self.failure is None and not task.process.dead:
            self.now = time_us
            self.steps += 1
            return
        self._resume_at(task, time_us)
        self._suspend(task)

    def wait(self, waiters: list[Task], timeout_s: float | None) -> None:
        """Suspend the running task until it is woken from ``waiters`` or the time has passed."""
        task = self.current
        assert task is not None
        if task.process.dead:
            raise Killed
        waiters.append(task)
        if timeout_s is not None:
            self._resume_at(task, self.now + int(timeout_s * 1e6))
        try:
            self._suspend(task)
        finally:
            if task in waiters:
                waiters.remove(task)

    def wake(self, waiters: list[Task]) -> None:
        """Let every task in ``waiters`` go on."""
        for task in waiters:
            self._resume_at(task, self.now + self.random.randrange(50))
        waiters.clear()

    def throw(self, task: Task) -> None:
        """End a task with :class:`Killed`."""
        if task.done:
            return
        task.token += 1
        if not task.started:
            task.done = True
            return
        before, self.current = self.current, task
        task.greenlet.throw(Killed)
        self.current = before

    def run(self, until_us: int, steps_max: int) -> None:
        """Run until ``until_us``, or a failure.

        Raises:
            Violation: more than ``steps_max`` steps, or what a task or an action has raised.
        """
        heap = self._heap
        self._until_us = until_us
        while heap:
            time_us, _, what, token = heap[0]
            if time_us > until_us:
                break
            heappop(heap)
            self.now = max(self.now, time_us)
            if token < 0:
                what()
            elif what.token == token and not what.done:
                if what.process.frozen_until > self.now:
                    self._resume_at(what, what.process.frozen_until + self.random.randrange(300))
                    continue
                self.steps += 1
                if self.steps > steps_max:
                    raise Violation(f"more than {steps_max} steps")
                what.token += 1
                what.started = True
                self.current = what
                what.greenlet.switch()
                self.current = None
            if self.failure is not None:
                raise self.failure
        self.now = max(self.now, until_us)

    def _resume_at(self, task: Task, time_us: int) -> None:
        self._count += 1
        heappush(self._heap, (time_us, self._count, task, task.token))

    def _suspend(self, task: Task) -> None:
        self._hub.switch()
        if task.process.dead:
            raise Killed


# --- time and threads ------------------------------------------------------------------------------------------------


class VirtualRuntime:
    """:class:`streams.runtime.Runtime` on the virtual clock: a thread is a greenlet of the process that starts it.

    Sleeping and starting threads are for running tasks only.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def monotonic(self) -> float:
        return 1000.0 + self._scheduler.now / 1e6

    def time_ns(self) -> int:
        task = self._scheduler.current
        skew_us = 0 if task is None else task.process.skew_us
        return (EPOCH_US + self._scheduler.now + skew_us) * 1000

    def sleep(self, seconds: float) -> None:
        task = self._scheduler.current
        assert task is not None
        task.process.alive()
        self._scheduler.sleep(int(seconds * 1e6))

    def event(self) -> "VirtualEvent":
        return VirtualEvent(self._scheduler)

    def condition(self) -> "VirtualCondition":
        return VirtualCondition(self._scheduler)

    def thread(self, target: Callable[[], None], name: str) -> "VirtualThread":
        return VirtualThread(self._scheduler, target, name)


class VirtualEvent:
    """``threading.Event``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False
        self._waiters: list[Task] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._scheduler.wake(self._waiters)

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            self._scheduler.wait(self._waiters, timeout)
        return self._set


class VirtualCondition:
    """``threading.Condition``. Nothing switches while its lock is held, so taking the lock is only a switch point."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiters: list[Task] = []

    def __enter__(self) -> "VirtualCondition":
        task = self._scheduler.current
        if task is not None:
            task.process.alive()
            if self._scheduler.random.random() < 0.1:
                self._scheduler.sleep(self._scheduler.random.randrange(200))
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def notify_all(self) -> None:
        self._scheduler.wake(self._waiters)

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        scheduler = self._scheduler
        deadline = None if timeout is None else scheduler.now + int(timeout * 1e6)
        while not predicate():
            left = None if deadline is None else (deadline - scheduler.now) / 1e6
            if left is not None and left <= 0:
                return predicate()
            scheduler.wait(self._waiters, left)
        return True


class VirtualThread:
    """``threading.Thread``."""

    def __init__(self, scheduler: Scheduler, target: Callable[[], None], name: str) -> None:
        self._scheduler = scheduler
        self._target = target
        self._name = name
        self._ended: list[Task] = []
        self._task: Task | None = None

    def start(self) -> None:
        current = self._scheduler.current
        assert current is not None

        def body() -> None:
            try:
                self._target()
            finally:
                self._scheduler.wake(self._ended)

        self._task = self._scheduler.spawn(current.process, self._name, body)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done

    def join(self, timeout: float | None = None) -> None:
        if self.is_alive():
            self._scheduler.wait(self._ended, timeout)
