"""Structured logs: one JSON object a line on standard error (or plain text for a person), never a secret.

Roles log an event name and fields, ``log.info("shard_taken", extra={"fields": {...}})``, through :func:`event`.
"""

import logging
import sys
import time
from typing import Any

import orjson


def configure(level: str, form: str, worker: str) -> None:
    """Send the root logger's records to standard error at ``level`` in ``form`` (``json`` or ``text``)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter(worker)
        if form == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s%(tail)s")
    )
    handler.addFilter(_tail)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def event(logger: logging.Logger, level: int, name: str, /, **fields: Any) -> None:
    """Log ``name`` with ``fields``."""
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"fields": fields})


def _tail(record: logging.LogRecord) -> bool:
    fields = getattr(record, "fields", None) or {}
    record.tail = "".join(f" {key}={value}" for key, value in fields.items())
    return True


class _JsonFormatter(logging.Formatter):
    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "worker": self._worker,
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", None) or {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
