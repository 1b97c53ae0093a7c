"""The pipeline's workers as processes that are killed, stopped, sent away and brought back."""

import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.local.errors import StillRunning
from infra.local.process import ManagedProcess
from infra.local.stack import child_environment
from tests.faults.points import LISTENING, PASSED, Orders

Role = Literal["engine", "router", "oracle"]
Membership = Literal["static", "dynamic"]

KILLED = 128 + signal.SIGKILL
_GRACE_S = 20.0


class Worker:
    """One place in the fleet: a process at a time. A static one keeps its name in the group over restarts."""

    def __init__(self, role: Role, name: str, membership: Membership, folder: Path, environment: Mapping[str, str]):
        self.role, self.name, self.membership = role, name, membership
        self.log_path = folder / f"{name}.log"
        self._orders = folder / f"{name}.orders"
        self._environment = child_environment(environment)
        if membership == "static":
            self._environment["MARGIN_SERVICE__INSTANCE_ID"] = name
        self._process: ManagedProcess | None = None
        self._started_at = 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of the process that was started last; None while it runs and before the first."""
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def member_name(self) -> str:
        """The worker's name in its logs, in Kafka's client ids and in the journal."""
        return self.name if self.membership == "static" else f"{socket.gethostname()}-{self.pid}"

    def start(self, orders: Orders | None = None) -> None:
        self._write(orders)
        self._started_at = self.log_end()
        command = [sys.executable, "-m", "tests.faults.worker", self.role, str(self._orders)]
        self._process = ManagedProcess(
            command, name=self.name, log_path=self.log_path, env=self._environment, orphan_grace_s=0
        )

    @property
    def listening(self) -> bool:
        """Whether the process takes orders; before, SIGUSR1 would end it."""
        return self.running and LISTENING in self.log()

    def ambush(self, orders: Orders | None) -> None:
        """Give a running worker its orders, or take them back."""
        self._write(orders)
        self.signal(signal.SIGUSR1)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()

    def wait(self) -> int:
        """Wait for its end, and the exit code; it is killed if it takes too long."""
        assert self._process is not None
        try:
            return self._process.wait(_GRACE_S)
        except StillRunning:
            return self._process.kill()

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    @property
    def stopped(self) -> bool:
        """Whether it stands still by SIGSTOP."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except OSError:
            return False

    def log_end(self) -> int:
        """Where the log ends now, for :meth:`log_since`."""
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def log(self) -> str:
        """What the process that was started last has written."""
        return self.log_since(self._started_at)

    def log_since(self, position: int) -> str:
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(position)
            return log.read().decode(errors="replace")

    def ambushed_since(self, position: int) -> bool:
        return any(line.startswith(PASSED) for line in self.log_since(position).splitlines())

    def _write(self, orders: Orders | None) -> None:
        if orders is None:
            self._orders.unlink(missing_ok=True)
        else:
            orders.write(self._orders)


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker that ended without having been told to."""

    name: str
    exit_code: int
    last_lines: str

    @property
    def is_a_defect(self) -> bool:
        """A traceback is nobody's intention; an error that says what is wrong and to start again is."""
        return any(line.startswith("Traceback (most recent") for line in self.last_lines.splitlines())


class Fleet:
    """Every worker by name. ``ended`` holds what ended by itself."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._workers: dict[str, Worker] = {}
        self.ended: list[Ended] = []

    def add(self, role: Role, name: str, membership: Membership) -> Worker:
        """A place, not filled yet."""
        worker = self._workers[name] = Worker(role, name, membership, self._folder, self._environment)
        return worker

    def remove(self, worker: Worker) -> None:
        """Give up a place whose process has ended."""
        assert not worker.running
        del self._workers[worker.name]

    def of(self, role: Role, membership: Membership | None = None) -> list[Worker]:
        return [
            worker
            for worker in self._workers.values()
            if worker.role == role and membership in (None, worker.membership)
        ]

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    def bring_back(self) -> None:
        """Start whoever has ended, as an orchestrator does, and note those that nobody has killed."""
        for worker in self:
            if worker.running:
                continue
            code = worker.exit_code
            if code not in (None, 0, KILLED):
                self.ended.append(Ended(worker.name, code, worker.log()[-6000:]))
            worker.start()

    def say_where(self) -> None:
        """Have every worker that takes orders write into its log where its threads are."""
        for worker in self:
            if worker.listening and not worker.stopped:
                worker.signal(signal.SIGUSR2)

    def stop(self) -> dict[str, int]:
        """SIGTERM to all at once; the exit codes."""
        running = [worker for worker in self if worker.running]
        for worker in running:
            worker.signal(signal.SIGTERM)
        return {worker.name: worker.wait() for worker in running}

    def kill(self) -> None:
        for worker in self:
            if worker.running:
                worker.kill()
