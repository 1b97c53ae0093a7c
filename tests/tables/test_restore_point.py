"""Redis that stalls or crawls never keeps a shard from being taken."""

import socket
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any, cast

import pytest

from streams.runtime import SYSTEM, Runtime, SystemRuntime
from streams.settings import load
from streams.tables.connection import connect
from streams.tables.restore_point import AWAY_S, ROWS_PER_S_MIN, RestorePoint
from streams.tables.tables import Tables
from streams.tables.writer import AccountTable, ShardTable, TableState

TIMEOUT_MS = 200


@pytest.fixture
def stalled() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        server.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


class Point:
    """What a restore point is given: how tables are connected to, and time."""

    def __init__(self, url: str, table: Any = None, runtime: Runtime = SYSTEM) -> None:
        self.settings = load({}, {"redis.url": url, "redis.timeout_ms": TIMEOUT_MS})
        self.kafka = self
        self.runtime = runtime
        self._table = table

    def connected(self, *, attempts: int) -> AccountTable:
        if self._table is not None:
            return cast(AccountTable, self._table)
        return AccountTable(connect(self.settings.redis, attempts), "cluster", 4)


def point(url: str, table: Any = None, runtime: Runtime = SYSTEM) -> RestorePoint:
    return RestorePoint(cast(Tables, Point(url, table, runtime)))


def read(restore_point: RestorePoint, shard: int = 0) -> ShardTable | None:
    steps: Generator[None, None, ShardTable | None] = restore_point.read(shard, 1, 0, 10)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            table: ShardTable | None = done.value
            return table


def test_a_stalled_redis_costs_its_timeout_once(stalled: str) -> None:
    restore_point = point(stalled)
    started = time.monotonic()
    assert read(restore_point) is None
    first = time.monotonic() - started
    assert TIMEOUT_MS / 1000 <= first < 5 * TIMEOUT_MS / 1000
    for shard in range(1, 100):
        assert read(restore_point, shard) is None
    assert time.monotonic() - started - first < TIMEOUT_MS / 1000, "the other shards do not wait for it again"
    restore_point.close()


class Crawling(SystemRuntime):
    """A table that answers each call after ``call_s`` of a clock that is its own."""

    def __init__(self, call_s: float, rows: int) -> None:
        self.call_s, self.rows = call_s, rows
        self.now = 0.0
        self.calls = 0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return 0

    def open(self, shard: int, token: int) -> TableState:
        return TableState(10, 0)

    def read_in_steps(self, shard: int) -> Generator[int, None, ShardTable | None]:
        for done in range(1000, self.rows + 1, 1000):
            self.now += self.call_s
            self.calls += 1
            yield done
        return ShardTable(1, 10, {})

    def close(self) -> None:
        pass


def test_a_redis_that_crawls_is_given_up_for_the_changelog() -> None:
    table = Crawling(call_s=0.15, rows=1_000_000)
    restore_point = point("redis://nowhere", table, table)
    table.now = 100.0
    assert read(restore_point) is None
    assert table.now - 100.0 < 2.5 * TIMEOUT_MS / 1000
    calls = table.calls
    assert read(restore_point) is None
    assert table.calls == calls, "not asked again at once"
    table.now += AWAY_S
    read(restore_point)
    assert table.calls > calls, "but later"


def test_a_large_table_of_a_healthy_redis_is_read() -> None:
    table = Crawling(call_s=0.9 * 1000 / ROWS_PER_S_MIN, rows=1_000_000)
    restore_point = point("redis://nowhere", table, table)
    assert read(restore_point) is not None
