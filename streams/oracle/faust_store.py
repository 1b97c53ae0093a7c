"""A Faust table store in Redis, for ``store="redis://"`` (entry point ``faust.stores: redis``).

Faust prints a store's URL, so the URL only names this class: where Redis is, and the credentials, come by the table's
options, ``Table(…, options={"redis": RedisSettings(…)})``.

Reads are answered from memory; writes go to Redis behind the event loop, in order, coalesced by key. The table's
changelog topic stays the truth: the store remembers the changelog offset that Redis reflects, and Faust replays from
there at the next start. Redis slow or away therefore delays nothing and loses nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import redis
from faust.stores.base import SerializedStore
from faust.types import TP
from mode import Service

from streams.errors import SettingsError
from streams.logs import event
from streams.settings import RedisSettings
from streams.tables.connection import connect_asyncio

log = logging.getLogger(__name__)

BACKOFF_MAX_S = 2.0
PAUSE_S = 0.1
"""From one write to Redis to the next: what changes meanwhile is written together, each key once."""
URL = "redis://"
"""What an app's ``store`` must be."""
OPTION = "redis"
"""The table's option that holds the settings."""


class Store(SerializedStore[Any, Any]):
    """Keys and values as bytes in one hash a table, changelog offsets in another."""

    def __post_init__(self) -> None:
        self._data: dict[bytes, bytes] = {}
        self._offsets: dict[TP, int] = {}
        self._changed: dict[bytes, bytes | None] = {}
        self._changed_offsets: dict[TP, int] = {}
        self._wake = asyncio.Event()

    async def on_start(self) -> None:
        """Load what Redis holds. A Redis that does not answer is an empty one: the changelog has everything.

        Raises:
            SettingsError: the table's options do not say where Redis is.
        """
        settings = (self.options or {}).get(OPTION)
        if not isinstance(settings, RedisSettings):
            raise SettingsError(f"a table in Redis needs options={{{OPTION!r}: RedisSettings(…)}}")
        tag = f"{{{self.app.conf.id}:{self.table_name}}}"
        self._key, self._offset_key = f"faust:{tag}", f"faust:{tag}:offsets"
        self._redis = connect_asyncio(settings)
        try:
            rows: dict[Any, Any] = await self._redis.hgetall(self._key)
            offsets: dict[Any, Any] = await self._redis.hgetall(self._offset_key)
            self._data = dict(rows)
            self._offsets = {_tp(name): int(offset) for name, offset in offsets.items()}
        except redis.RedisError as error:
            event(log, logging.WARNING, "faust_store_not_loaded", table=self.table_name, reason=str(error))

    async def on_stop(self) -> None:
        """Write what can still be written."""
        with contextlib.suppress(redis.RedisError):
            await self._flush()
        await self._redis.aclose()

    @Service.task
    async def _write_behind(self) -> None:
        backoff_s = 0.05
        while not self.should_stop:
            try:
                await asyncio.wait_for(self._wake.wait(), 1.0)
            except TimeoutError:
                continue
            self._wake.clear()
            try:
                await self._flush()
                backoff_s = 0.05
                await self.sleep(PAUSE_S)
            except redis.RedisError as error:
                if backoff_s == 0.05:
                    event(log, logging.WARNING, "faust_store_write_failed", table=self.table_name, reason=str(error))
                await self.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
                self._wake.set()

    async def _flush(self) -> None:
        """Write the changes and the offsets they reflect together; keep them if Redis refuses."""
        changed, self._changed = self._changed, {}
        offsets, self._changed_offsets = self._changed_offsets, {}
        if not changed and not offsets:
            return
        try:
            pipeline = self._redis.pipeline(transaction=True)
            kept = {key: value for key, value in changed.items() if value is not None}
            gone = [key for key, value in changed.items() if value is None]
            if kept:
                pipeline.hset(self._key, mapping=dict(kept.items()))
            if gone:
                pipeline.hdel(self._key, *gone)
            if offsets:
                pipeline.hset(self._offset_key, mapping={_name(tp): offset for tp, offset in offsets.items()})
            await pipeline.execute()
        except redis.RedisError:
            self._changed = changed | self._changed
            self._changed_offsets = offsets | self._changed_offsets
            raise

    # --- what Faust asks of a store ----------------------------------------------------------------------------------

    def persisted_offset(self, tp: TP) -> int | None:
        """The changelog offset that Redis reflects."""
        return self._offsets.get(tp)

    def set_persisted_offset(self, tp: TP, offset: int) -> None:
        self._offsets[tp] = offset
        self._changed_offsets[tp] = offset
        self._wake.set()

    async def need_active_standby_for(self, tp: TP) -> bool:
        """Redis is shared: no standby is needed."""
        return False

    def _get(self, key: bytes) -> bytes | None:
        return self._data.get(key)

    def _set(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._del(key)
            return
        self._data[key] = self._changed[key] = value
        self._wake.set()

    def _del(self, key: bytes) -> None:
        self._data.pop(key, None)
        self._changed[key] = None
        self._wake.set()

    def _iterkeys(self) -> Iterator[bytes]:
        return iter(list(self._data))

    def _itervalues(self) -> Iterator[bytes | None]:
        return iter(list(self._data.values()))

    def _iteritems(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(list(self._data.items()))

    def _size(self) -> int:
        return len(self._data)

    def _contains(self, key: bytes) -> bool:
        return key in self._data

    def _clear(self) -> None:
        for key in list(self._data):
            self._del(key)

    def reset_state(self) -> None:
        """Forget what memory and Redis hold; the changelog refills it."""
        self._clear()
        self._offsets.clear()

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Nothing to move: every partition's rows are in the one hash."""

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        """Nothing to drop."""

    async def backup_partition(self, tp: Any, flush: bool = True, purge: bool = False, keep: int = 1) -> None:
        """Redis has its own backups."""

    def restore_backup(self, tp: Any, latest: bool = True, backup_id: int = 0) -> None:
        """Redis has its own backups."""


def _name(tp: TP) -> str:
    return f"{tp.topic}:{tp.partition}"


def _tp(name: bytes) -> TP:
    topic, _, partition = name.decode().rpartition(":")
    return TP(topic, int(partition))
