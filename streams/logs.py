"""Structured logs: one JSON object a line on standard error (or plain text for a person), never a secret.

Roles log an event name and fields, ``log.info("shard_taken", extra={"fields": {...}})``, through :func:`event`. What
others log, and the traceback of whatever nobody caught, goes through the same :func:`streams.redaction.redacted`.
"""

import json
import logging
import sys
import threading
import time
import traceback
from itertools import islice
from types import TracebackType
from typing import Any

import orjson

from streams.redaction import redacted

TEXT_CHARACTERS_MAX = 2_000
"""So much of a text is logged: whatever somebody sends may be quoted in one."""
TRACEBACK_CHARACTERS_MAX = 20_000
ITEMS_MAX = 1_000
"""So many items of a list or a mapping are logged."""


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
    record.tail = "".join(f" {key}={_cut(str(_masked(value)))}" for key, value in fields.items())
    return True


def _cut(text: str, most: int = TEXT_CHARACTERS_MAX) -> str:
    """``text``, its middle left out if it is longer than ``most``: an exception says what it is at its end."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} … ({len(text) - 2 * half} characters left out) … {text[-half:]}"


def _print_traceback(kind: type[BaseException], error: BaseException | None, where: TracebackType | None, /) -> None:
    if sys.stderr is not None:
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, where))))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _cut(redacted(super().format(record)), TRACEBACK_CHARACTERS_MAX)


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
            "event": _cut(redacted(record.getMessage())),
        }
        line.update(_masked(getattr(record, "fields", None) or {}))
        if record.exc_info:
            line["exception"] = _cut(redacted(self.formatException(record.exc_info)), TRACEBACK_CHARACTERS_MAX)
        try:
            return orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:  # a text that has no UTF-8
            return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace").decode()


def _masked(value: Any) -> Any:
    """``value`` with every text in it masked and bounded; what JSON does not know becomes text."""
    if isinstance(value, int) and value.bit_length() > 63:
        return f"a whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, dict):
        return {_masked(name): _masked(each) for name, each in islice(value.items(), ITEMS_MAX)}
    if isinstance(value, (list, tuple)):
        return [_masked(each) for each in value[:ITEMS_MAX]]
    return _cut(redacted(value if isinstance(value, str) else str(value)))
