"""Child processes and temporary folders that cannot outlive their owner, however the owner ends.

Each runs under, or is, a :mod:`infra.local.supervisor` that notices the end of this process by the end of a pipe.
That works from any thread, and needs no clean-up code to be reached: kill -9 is an end like any other.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from infra.local.errors import StartError, StillRunning

ORPHAN_GRACE_S = 5.0
_REAP_S = 20.0
_STOP_S = 5.0
_LOOK_S = 0.001
_SUPERVISOR = Path(__file__).with_name("supervisor.py")


class ManagedProcess:
    """``argv`` running with its output appended to ``log_path``, until :meth:`terminate` or its owner's end.

    ``pid`` is the command's own process id, so that a test can kill or pause it. The command leads its own session, so
    Ctrl-C in a terminal reaches the owner only, and what the command starts itself ends with it. When the owner ends,
    it gets SIGTERM and ``orphan_grace_s`` seconds; 0 is kill -9 at once. ``folder`` (default: the log's) is not removed
    by a :class:`TemporaryFolder` before the command has ended.

    Raises:
        StartError: there is no such program.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        orphan_grace_s: float = ORPHAN_GRACE_S,
    ) -> None:
        self.name, self.log_path = name, log_path
        with log_path.open("ab") as log:
            self._supervisor = _Supervisor(
                ["run", str(orphan_grace_s), str(folder or log_path.parent), *argv], env=env, stderr=log.fileno()
            )
        kind, _, text = self._supervisor.answer.partition(" ")
        if kind != "pid":
            self._supervisor.wait(_REAP_S)
            raise StartError(f"{name} could not be started: {text or self.log_tail()}")
        self.pid = int(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def poll(self) -> int | None:
        """The exit code (128 + n for signal n), or None while it runs."""
        return self._supervisor.poll()

    def wait(self, timeout_s: float) -> int:
        """The exit code.

        Raises:
            StillRunning: it has not ended in ``timeout_s``.
        """
        try:
            return self._supervisor.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise StillRunning(f"{self.name} (process {self.pid}) is still running after {timeout_s:g} s") from None

    def signal(self, number: int) -> None:
        """Send a signal to the process itself; nothing if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def pause(self) -> None:
        """SIGSTOP: it keeps its sockets and does nothing until :meth:`resume`.

        A thread that was running stops only when it has its turn again, and may answer a question until then; so all of
        them are waited for, where the system tells.
        """
        self.signal(signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_S
        while not self._is_stopped() and time.monotonic() < deadline:
            time.sleep(_LOOK_S)

    def _is_stopped(self) -> bool:
        """Whether every thread has stopped, or nobody can say."""
        try:
            stats = [task.joinpath("stat").read_text() for task in Path(f"/proc/{self.pid}/task").iterdir()]
        except OSError:  # no such folder here, or a thread has ended meanwhile
            return not Path(f"/proc/{self.pid}").exists()
        return all(stat.rpartition(")")[2].split()[0] in "TtZX" for stat in stats)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def kill(self) -> int:
        """kill -9, and the exit code."""
        self.signal(signal.SIGKILL)
        return self._reap()

    def terminate(self, grace_s: float = 10.0) -> int:
        """SIGTERM, kill -9 after ``grace_s`` seconds, and the exit code."""
        self.resume()
        self.signal(signal.SIGTERM)
        try:
            return self.wait(grace_s)
        except StillRunning:
            return self.kill()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its output."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no output)"

    def _reap(self) -> int:
        try:
            return self._supervisor.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            raise StillRunning(f"{self.name} (process {self.pid}) has not ended {_REAP_S:g} s after kill -9") from None


class TemporaryFolder:
    """A new folder at ``path``, removed by :meth:`close` or when the owner ends, after the processes that use it."""

    def __init__(self, prefix: str = "margin-clearing-") -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._supervisor = _Supervisor(["remove", str(self.path)], env=None, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it, waiting up to 30 s for the processes that use it."""
        self._supervisor.release()
        self._supervisor.wait(None)


class _Supervisor:
    """The supervising process, and the pipe whose end tells it that this process has ended."""

    def __init__(self, arguments: list[str], *, env: Mapping[str, str] | None, stderr: int) -> None:
        self._lock = threading.Lock()
        listening, self._lifeline = os.pipe()
        _lifelines.add(self._lifeline)
        answer, answering = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SUPERVISOR), *arguments],
                stdin=listening,
                stdout=answering,
                stderr=stderr,
                env=env,
                start_new_session=True,
            )
        except BaseException:
            os.close(answer)
            self.release()
            raise
        finally:
            os.close(listening)
            os.close(answering)
        with os.fdopen(answer, errors="replace") as stream:
            self.answer = stream.readline().strip()

    def poll(self) -> int | None:
        code = self._process.poll()
        return None if code is None else self._ended(code)

    def wait(self, timeout_s: float | None) -> int:
        return self._ended(self._process.wait(timeout_s))

    def release(self) -> None:
        """Close the pipe, once: to the supervisor this is the owner's end."""
        with self._lock:
            if self._lifeline in _lifelines:  # not so in a fork of the owner
                _lifelines.discard(self._lifeline)
                os.close(self._lifeline)
            self._lifeline = -1

    def _ended(self, code: int) -> int:
        self.release()
        return 128 - code if code < 0 else code


_lifelines: set[int] = set()


def _drop_lifelines() -> None:
    """A fork of the owner must not keep the owner's processes alive."""
    for lifeline in _lifelines:
        with contextlib.suppress(OSError):
            os.close(lifeline)
    _lifelines.clear()


os.register_at_fork(after_in_child=_drop_lifelines)
