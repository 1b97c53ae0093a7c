"""A child process that cannot outlive its owner, however the owner ends.

The command runs under :mod:`infra.local.supervisor`; ``pid`` is the command's own process id, so that a test can kill
or pause it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.local.errors import LocalStackError

_ROOT = Path(__file__).resolve().parents[2]


class ManagedProcess:
    """``argv`` running with its output in ``log_path``. Stopped by :meth:`terminate`, or with its owner."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        remove: Path | None = None,
    ) -> None:
        self.name, self.log_path = name, log_path
        self._supervisor = _supervise(argv, log_path, env, remove)
        assert self._supervisor.stdout is not None
        line = self._supervisor.stdout.readline()
        if not line.strip():
            raise LocalStackError(f"{name} could not be started: {self.log_tail()}")
        self.pid = int(line)

    def poll(self) -> int | None:
        """The exit code, or None while it runs. A signal's is 128 plus its number."""
        return self._supervisor.poll()

    def wait(self, timeout_s: float) -> int:
        """The exit code.

        Raises:
            LocalStackError: still running after ``timeout_s``.
        """
        try:
            return self._supervisor.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LocalStackError(f"{self.name} is still running after {timeout_s:g} s") from None

    def signal(self, number: int) -> None:
        """Send a signal to the process itself; nothing if it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> int:
        """kill -9, and the exit code."""
        self.signal(signal.SIGKILL)
        return self._reap()

    def terminate(self, grace_s: float = 10.0) -> int:
        """SIGTERM, kill -9 after ``grace_s``, and the exit code."""
        if self.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while self.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
        if self.poll() is None:
            self.signal(signal.SIGKILL)
        return self._reap()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its output."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no output)"

    def _reap(self) -> int:
        code = self._supervisor.wait(20)
        for stream in (self._supervisor.stdin, self._supervisor.stdout):
            if stream is not None:
                stream.close()
        return code


class Remover:
    """Removes ``folder`` when :meth:`close` is called or the owner ends."""

    def __init__(self, folder: Path) -> None:
        self._supervisor = _supervise([], Path(os.devnull), None, folder)

    def close(self) -> None:
        assert self._supervisor.stdin is not None
        assert self._supervisor.stdout is not None
        self._supervisor.stdin.close()
        self._supervisor.wait(30)
        self._supervisor.stdout.close()


def _supervise(
    argv: Sequence[str], log_path: Path, env: Mapping[str, str] | None, remove: Path | None
) -> "subprocess.Popen[bytes]":
    options = ["--remove", str(remove)] if remove else []
    command = ["--", *argv] if argv else []
    environment = dict(os.environ if env is None else env)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH", "")]))
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "infra.local.supervisor", *options, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
