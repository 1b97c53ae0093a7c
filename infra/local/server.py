"""What the two servers have in common: a process on a fixed port of 127.0.0.1 with its data in a folder.

A server keeps its port and its folder through stop, kill and restart, so a client that reconnects finds the same one.
"""

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

from infra.local.errors import MissingError, StartError
from infra.local.ports import free_port, refusal
from infra.local.process import ORPHAN_GRACE_S, ManagedProcess

_PAUSE_S = 0.01


class LocalServer(ABC):
    """One server. Not started by its constructor; its output goes to ``log_path``.

    ``port`` 0 takes a free one. With ``keep_data`` it ends in order when its owner ends unexpectedly; without, its data
    is worth nothing then and it is killed.

    Raises:
        MissingError: the ``port`` that was asked for cannot be had: no port, taken, or not allowed.
    """

    name: ClassVar[str]

    def __init__(self, folder: Path, *, port: int = 0, keep_data: bool = False) -> None:
        if port and (reason := refusal(port)) is not None:
            raise MissingError(f"port {port} for {self.name} cannot be had: {reason}; choose another")
        self.folder = folder
        self.port = port or free_port()
        self.keep_data = keep_data
        self.log_path = folder / f"{self.name.lower()}.log"
        self._process: ManagedProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def process(self) -> ManagedProcess:
        """The server's process.

        Raises:
            StartError: it has not been started.
        """
        if self._process is None:
            raise StartError(f"{self.name} has not been started: call start() first")
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = 60.0) -> None:
        """Start it and wait until it is ready; nothing if it runs.

        Raises:
            MissingError: something it needs cannot be had, or its folder cannot be written.
            StartError: it ended, or is not ready in ``timeout_s``; shows the end of its log. It does not run then.
        """
        if self.running:
            return
        self.launch()
        self.await_ready(timeout_s)

    def launch(self) -> None:
        """Start its process and do not wait; :meth:`await_ready` does. It must not run.

        Raises:
            MissingError: as :meth:`start`.
        """
        grace_s = ORPHAN_GRACE_S if self.keep_data else 0.0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            argv = self._prepare()
            self._process = ManagedProcess(
                argv, name=self.name, log_path=self.log_path, folder=self.folder, orphan_grace_s=grace_s
            )
        except OSError as error:
            raise MissingError(
                f"{self.name} cannot be set up in {self.folder}: {error}; choose another folder, or make room"
            ) from error

    def await_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until it is ready; raises as :meth:`start`, and it does not run then."""
        try:
            self._await_ready(time.monotonic() + timeout_s)
        except BaseException:
            self.process.kill()
            raise

    def stop(self, grace_s: float = 10.0) -> None:
        """Stop it in order, kill -9 after ``grace_s`` seconds; nothing if it does not run."""
        if self._process is not None:
            self._process.terminate(grace_s)

    def kill(self) -> None:
        """kill -9; nothing if it does not run."""
        if self._process is not None:
            self._process.kill()

    def restart(self, timeout_s: float = 60.0) -> None:
        """Stop it if it runs, and start it with the same port and data. Raises as :meth:`start` does."""
        self.stop()
        self.start(timeout_s)

    def pause(self) -> None:
        """SIGSTOP: it holds its connections and answers nobody."""
        self.process.pause()

    def resume(self) -> None:
        """SIGCONT."""
        self.process.resume()

    @abstractmethod
    def healthy(self, timeout_s: float = 2.0) -> bool:
        """Whether it answers a client within ``timeout_s``."""

    @abstractmethod
    def _prepare(self) -> list[str]:
        """Bring what it needs, write its settings, and return its command."""

    @abstractmethod
    def _await_ready(self, deadline: float) -> None:
        """Return when it is ready; call :meth:`_still_starting` between attempts."""

    def _still_starting(self, deadline: float) -> None:
        """Wait a moment.

        Raises:
            StartError: it has ended, or ``deadline`` (monotonic) has passed.
        """
        code = self.process.poll()
        if code is not None:
            raise StartError(f"{self.name} ended with {code} while starting; {self._log_end()}")
        if time.monotonic() > deadline:
            raise StartError(f"{self.name} is not ready in time; if the machine is busy, try again; {self._log_end()}")
        time.sleep(_PAUSE_S)

    def _log_end(self) -> str:
        return f"the end of {self.log_path}:\n{self.process.log_tail(30)}"
