"""The tables as a restore point: what a shard's new owner can take from Redis instead of reading the whole changelog.

Redis is never believed further than its stamp: the caller replays the changelog from there. A table that is missing,
being built, torn, of another log or too old to build upon is no restore point, and so is one that does not answer or
answers slowly: no shard waits for Redis when it could read the changelog.
"""

import logging
from collections.abc import Generator

from streams.errors import BrokerError, TableError
from streams.logs import event
from streams.runtime import Runtime
from streams.settings import RedisSettings
from streams.tables.catch_up import can_be_built_upon
from streams.tables.tables import Tables
from streams.tables.writer import AccountTable, ShardTable

log = logging.getLogger(__name__)

ROWS_PER_S_MIN = 20_000
"""A Redis that takes its timeout longer than this pace allows is given up for the changelog, which is read faster."""
AWAY_S = 10.0
"""For so long after it did not answer Redis is not asked again: shards that are taken one after another wait once."""


class RestorePoint:
    """Reads shards' tables for their new owner. Not thread-safe."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._settings: RedisSettings = tables.kafka.settings.redis
        self._runtime: Runtime = tables.kafka.runtime
        self._table: AccountTable | None = None
        self._away_until = float("-inf")

    def read(self, shard: int, token: int, low: int, end: int) -> Generator[None, None, ShardTable | None]:
        """The table of ``shard``, older owners fenced out with ``token`` first; None if it is no restore point.

        ``low`` and ``end`` are the changelog's first offset and the one after its last. Yields between calls.
        """
        if self._runtime.monotonic() < self._away_until:
            return None
        try:
            if self._table is None:
                self._table = self._tables.connected(attempts=1)
            state = self._table.open(shard, token)
            if not state.stamp or not can_be_built_upon(state, low, end, self._runtime.time_ns() // 1_000_000):
                return None
            return (yield from self._read(self._table, shard))
        except (TableError, BrokerError) as error:
            self._away_until = self._runtime.monotonic() + AWAY_S
            event(log, logging.WARNING, "no_restore_point", shard=shard, reason=str(error))
            return None

    def _read(self, table: AccountTable, shard: int) -> Generator[None, None, ShardTable | None]:
        """The whole table, unless the waits for Redis add up to more than its timeout and the pace allow."""
        waited_s = 0.0
        steps = table.read_in_steps(shard)
        while True:
            asked = self._runtime.monotonic()
            try:
                rows = next(steps)
            except StopIteration as done:
                whole: ShardTable | None = done.value
                return whole
            waited_s += self._runtime.monotonic() - asked
            allowed_s = self._settings.timeout_ms / 1000 + rows / ROWS_PER_S_MIN
            if waited_s > allowed_s:
                raise TableError(f"Redis is slow: {rows:,} rows took {waited_s:.1f} s")
            yield

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
