"""Structured logs: one JSON object a line on standard error (or plain text for a person), never a secret.

A line is bounded: texts, lists and depth are cut, and say by how much. What cannot be seen is written out
(:mod:`streams.visible`), so a name from a record can neither steer a terminal nor begin a line. What may come as often
as records do goes through :class:`Repeated`, which names the first few and counts the rest; so does what libraries log.

Roles log an event name and fields, ``log.info("shard_taken", extra={"fields": {...}})``, through :func:`event`. What
others log, and the traceback of whatever nobody caught, goes through the same :func:`streams.redaction.redacted`.
"""

import json
import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from itertools import islice
from types import TracebackType
from typing import Any

from streams.redaction import redacted
from streams.visible import visible, visible_lines

TEXT_CHARACTERS_MAX = 2_000
TRACEBACK_CHARACTERS_MAX = 20_000
ITEMS_MAX = 100
DEPTH_MAX = 4
NAMED_MAX = 10
"""So many lines a minute of one kind name a record each."""
_PERIOD_S = 60.0
_OURS = {"streams", "schemas", "infra"}
_KIND_CHARACTERS = 200
"""Lines of a library are of one kind that begin alike, before anything is put in, at one level."""


def configure(level: str, form: str, worker: str) -> None:
    """Send the root logger's records to standard error at ``level`` in ``form`` (``json`` or ``text``)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter(worker)
        if form == "json"
        else _TextFormatter("%(asctime)s %(levelname)s %(name)s %(message)s%(tail)s")
    )
    handler.addFilter(_FewOfLibraries())
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


class Repeated:
    """Logs events that records may cause as often as they come: so many a minute of each kind, then a sum.

    Whoever writes calls :meth:`tell` now and then: the sum of a minute that is over is told then.
    Not thread-safe. ``now`` is a clock of seconds. Kinds are the writer's own names, a few of them.
    """

    def __init__(
        self, logger: logging.Logger, now: Callable[[], float] = time.monotonic, *, named_max: int = NAMED_MAX
    ) -> None:
        self._logger = logger
        self._now = now
        self._named_max = named_max
        self._began: dict[tuple[str, ...], float] = {}
        self._over = math.inf
        """When the first of these minutes is over."""
        self._counts: dict[tuple[str, ...], int] = {}

    def may_name(self, name: str, *kind: str) -> bool:
        """Whether one more ``name`` of a ``kind`` is to be logged with its fields; it is counted either way."""
        self.tell()
        key = (name, *kind)
        if key not in self._began:
            began = self._began[key] = self._now()
            self._over = min(self._over, began + _PERIOD_S)
        count = self._counts[key] = self._counts.get(key, 0) + 1
        return count <= self._named_max

    def tell(self) -> None:
        """Log how many of each kind were only counted in the minutes that are over."""
        now = self._now()
        if now < self._over:
            return
        for key in [key for key, began in self._began.items() if now >= began + _PERIOD_S]:
            del self._began[key]
            if (more := self._counts.pop(key) - self._named_max) > 0:
                name, *kind = key
                event(self._logger, logging.WARNING, f"{name}_counted", count=more, kind=kind, within_s=_PERIOD_S)
        self._over = min(self._began.values(), default=math.inf) + _PERIOD_S


class _FewOfLibraries(logging.Filter):
    """Lets a few lines a minute through of each that a library writes; what we write ourselves is bounded where it is
    written. A client whose broker is away may say so ten times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.RLock()  # the sums are lines of ours, written within
        self._lines = Repeated(logging.getLogger(__name__))

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] in _OURS or record.exc_info:
            return True
        said = record.msg[:_KIND_CHARACTERS] if isinstance(record.msg, str) else type(record.msg).__name__
        with self._turn:
            return self._lines.may_name("library_line", record.name, record.levelname, said)


def _tail(record: logging.LogRecord) -> bool:
    fields = _bounded(getattr(record, "fields", None) or {})
    record.tail = "".join(f" {key}={visible(str(value))}" for key, value in fields.items())
    return True


def _print_traceback(kind: type[BaseException], error: BaseException | None, where: TracebackType | None, /) -> None:
    if sys.stderr is not None:
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, where))))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _cut(visible_lines(redacted(super().format(record))), TRACEBACK_CHARACTERS_MAX)


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
        line.update(_bounded(getattr(record, "fields", None) or {}))
        if record.exc_info:
            line["exception"] = _cut(redacted(self.formatException(record.exc_info)), TRACEBACK_CHARACTERS_MAX)
        # All that is not ASCII is written as JSON's escapes.
        return json.dumps(line, separators=(",", ":")).replace("\x7f", "\\u007f")


def _bounded(value: Any, depth: int = DEPTH_MAX) -> Any:
    """``value`` with every text in it masked, and cut; what JSON does not know becomes text."""
    if isinstance(value, int) and value.bit_length() > 63:
        return f"a whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict) and depth:
        return {str(_bounded(name, 0)): _bounded(each, depth - 1) for name, each in islice(value.items(), ITEMS_MAX)}
    if isinstance(value, (list, tuple)) and depth:
        items = [_bounded(each, depth - 1) for each in value[:ITEMS_MAX]]
        return items if len(value) <= ITEMS_MAX else [*items, f"{len(value) - ITEMS_MAX:,} more"]
    return _cut(redacted(value if isinstance(value, str) else str(value)))


def _cut(text: str, most: int = TEXT_CHARACTERS_MAX) -> str:
    """``text``, its middle left out if it is longer than ``most``: an exception says what it is at its end.

    It is masked before: half a secret would not be known as one.
    """
    text = text.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair is no text to JSON
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} … ({len(text) - 2 * half} characters left out) … {text[-half:]}"
