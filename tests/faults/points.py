"""Where a worker can be made to die or to stop: named points of a commit, laid round the production methods.

Production code has no hooks. A worker of the suite wraps the methods below before it calls the production entry point;
its orders are a file, read at the start and at every SIGUSR1, so that a running worker can be ambushed under load.
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

PASSED = "ambush at"
"""Begins the line that a worker writes to its log at the instant of its death or stop: the fault was injected."""

LISTENING = "ambush can be laid"
"""The line that a worker writes once it listens to SIGUSR1."""

ROWS_PER_SCRIPT = 2
"""Rows of one Redis script in a worker of this suite, so that a write has parts between which it can die."""


@dataclass(frozen=True, slots=True)
class Orders:
    """Send ``number`` to oneself at the ``passes``-th pass of ``point``."""

    point: str
    passes: int
    number: signal.Signals

    def write(self, path: Path) -> None:
        part = path.with_suffix(".part")
        part.write_text(f"{self.point} {self.passes} {self.number.name}")
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Orders | None":
        try:
            point, passes, number = path.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return cls(point, int(passes), signal.Signals[number])


class Ambush:
    """Counts the passes of one point and sends the signal at the last one. Any thread may pass."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._orders: Orders | None = None
        self._left = 0
        self.read()

    def read(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Take the orders in the file, which replace those before."""
        self._orders = None
        orders = Orders.read(self._path)
        if orders is not None:
            self._left, self._orders = orders.passes, orders

    def passing(self, point: str) -> None:
        orders = self._orders
        if orders is None or orders.point != point:
            return
        with self._lock:
            self._left -= 1
            if self._left or self._orders is not orders:
                return
            self._orders = None
        os.write(sys.stderr.fileno(), f"{PASSED} {point} {orders.number.name}\n".encode())
        # To this thread: sent to the process, another thread may take it and this one run past the point meanwhile.
        signal.pthread_kill(threading.get_ident(), orders.number)


Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


def lay(ambush: Ambush, role: str) -> None:
    """Put the points of ``role`` round its methods.

    Raises:
        KeyError: production has no such method any more.
    """
    if role == "oracle":
        from streams.oracle.app import PriceApp
        from streams.oracle.faust_store import Store

        _wrap(PriceApp, "_send_frame", _around_coroutine(ambush, "before_send", "after_send"))
        _wrap(PriceApp, "_write_row", _around(ambush, "before_table", "after_table"))
        _wrap(Store, "_flush", _around_coroutine(ambush, "before_redis_write", "after_redis_write"))
        return
    from streams.broker.producer import TransactionalProducer

    _wrap(TransactionalProducer, "begin", _around(ambush, "", "before_produce"))
    _wrap(TransactionalProducer, "send_offsets", _around(ambush, "after_produce", "after_offsets"))
    _wrap(TransactionalProducer, "commit", _around(ambush, "", "after_commit"))
    if role == "engine":
        from streams.tables import writer

        writer.ROWS_PER_SCRIPT_MAX = ROWS_PER_SCRIPT
        _wrap(writer.AccountTable, "write", _around(ambush, "before_redis_write", "after_redis_write"))
        _wrap(writer.AccountTable, "_call", _between_parts(ambush, "within_redis_write"))


def _wrap(owner: type, name: str, wrapper: Wrapper) -> None:
    method = owner.__dict__[name]
    setattr(owner, name, functools.wraps(method)(wrapper(method)))


def _around(ambush: Ambush, before: str, after: str) -> Wrapper:
    def wrapper(method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            ambush.passing(before)
            result = method(*arguments, **named)
            ambush.passing(after)
            return result

        return wrapped

    return wrapper


def _around_coroutine(ambush: Ambush, before: str, after: str) -> Wrapper:
    def wrapper(method: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapped(*arguments: Any, **named: Any) -> Any:
            ambush.passing(before)
            result = await method(*arguments, **named)
            ambush.passing(after)
            return result

        return wrapped

    return wrapper


def _between_parts(ambush: Ambush, point: str) -> Wrapper:
    """After a part of a table write that is not the last: the fifth argument of the script says so."""

    def wrapper(method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(table: Any, script: Any, shard: int, arguments: list[Any]) -> Any:
            result = method(table, script, shard, arguments)
            if arguments[4] == 0:
                ambush.passing(point)
            return result

        return wrapped

    return wrapper
