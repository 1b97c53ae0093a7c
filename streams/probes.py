"""What an orchestrator and Prometheus ask of a process, over HTTP on one port: ``/livez``, ``/readyz``, ``/metrics``.

``/livez`` is the watchdog's view: 503 means that a loop hangs. ``/readyz`` is the role's: it answers with every
condition, its value and its limit, and 503 unless all hold. Answering needs no lock and no other server, so a probe
neither waits for the role nor slows it down.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Literal
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import orjson
from prometheus_client import make_wsgi_app

from streams.errors import SettingsError
from streams.watchdog import Watchdog


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of being ready: ``value`` (None: not known yet) must be at most, or at least, ``limit``."""

    name: str
    value: float | None
    limit: float
    rule: Literal["at_most", "at_least"] = "at_most"

    @property
    def holds(self) -> bool:
        if self.value is None:
            return False
        return self.value <= self.limit if self.rule == "at_most" else self.value >= self.limit

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "holds": self.holds, "value": self.value, self.rule: self.limit}


Readiness = Callable[[], Sequence[Condition]]


def serve(port: int, watchdog: Watchdog, readiness: Readiness) -> Callable[[], None]:
    """Answer on ``port`` from threads of their own; what is returned stops it. Port 0 serves nothing.

    Raises:
        SettingsError: the port cannot be had.
    """
    if not port:
        return lambda: None
    try:
        server = make_server("", port, application(watchdog, readiness), _Server, _Handler)
    except OSError as error:
        raise SettingsError(f"MARGIN_SERVICE__METRICS_PORT={port}: {error.strerror}") from None
    threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop


def application(watchdog: Watchdog, readiness: Readiness) -> Callable[..., Iterable[bytes]]:
    """The three pages as a WSGI application."""
    metrics = make_wsgi_app()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            page: Iterable[bytes] = metrics(environ, start_response)
            return page
        if path == "/livez":
            well, body = _liveness(watchdog)
        elif path == "/readyz":
            conditions = readiness()
            well = all(condition.holds for condition in conditions)
            body = {"ready": well, "conditions": [condition.as_json() for condition in conditions]}
        else:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/livez, /readyz, /metrics\n"]
        start_response("200 OK" if well else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)]

    return answer


def _liveness(watchdog: Watchdog) -> tuple[bool, dict[str, Any]]:
    loops = [
        {"name": loop.name, "doing": loop.doing, "seconds": round(loop.seconds, 3), "at_most": watchdog.limit_s}
        for loop in watchdog.loops()
    ]
    live = not watchdog.overdue()
    return live, {"live": live, "loops": loops}


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """As ``WSGIServer``, without looking up this host's name, which may take seconds."""
        TCPServer.server_bind(self)  # also where answers of a process that has just ended are still closing
        self.server_name, self.server_port = "", self.server_address[1]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: probes come every few seconds."""
