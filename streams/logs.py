"""Structured logs: one JSON object a line on standard error (or plain text for a person), never a secret.

Roles log an event name and fields, ``log.info("shard_taken", extra={"fields": {...}})``, through :func:`event`. What
others log, and the traceback of whatever nobody caught, goes through the same :func:`streams.redaction.redacted`.
"""

import logging
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any

import orjson

from streams.redaction import redacted


def configure(level: str, form: str, worker: str) -> None:
    """Send the root logger's records to standard error at ``level`` in ``form`` (``json`` or ``text``)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter(worker)
        if form == "json"
        else _TextFormatter("%(asctime)s %(levelname)s %(name)s %(message)s%(tail)s")
    )
    handler.addFilter(_tail)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def guard_output() -> None:
    """Have no secret in what is printed without :func:`configure`: tracebacks, and what libraries warn of."""
    sys.excepthook = _print_traceback
    threading.excepthook = lambda args: _print_traceback(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _print_traceback(args.exc_type, args.exc_value, args.exc_traceback)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_TextFormatter("%(message)s"))


def event(logger: logging.Logger, level: int, name: str, /, **fields: Any) -> None:
    """Log ``name`` with ``fields``."""
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"fields": fields})


def _tail(record: logging.LogRecord) -> bool:
    fields = getattr(record, "fields", None) or {}
    record.tail = "".join(f" {key}={value}" for key, value in fields.items())
    return True


def _print_traceback(kind: type[BaseException], error: BaseException | None, where: TracebackType | None, /) -> None:
    if sys.stderr is not None:
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, where))))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class _JsonFormatter(logging.Formatter):
    """Masks values, not whole lines, so that a line stays JSON whatever a secret looks like."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "worker": self._worker,
            "logger": record.name,
            "event": redacted(record.getMessage()),
        }
        line.update(_masked(getattr(record, "fields", None) or {}))
        if record.exc_info:
            line["exception"] = redacted(self.formatException(record.exc_info))
        return orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS).decode()


def _masked(value: Any) -> Any:
    """``value`` with every text in it masked; what JSON does not know becomes text."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, dict):
        return {_masked(name): _masked(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(each) for each in value]
    return redacted(value if isinstance(value, str) else str(value))
