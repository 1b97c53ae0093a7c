"""The tables as a restore point: what a shard's new owner can take from Redis instead of reading the whole changelog.

Redis is never believed further than its stamp: the caller replays the changelog from there. A table that is missing,
being built, torn, of another log or too old to build upon is no restore point, and so is one that does not answer.
"""

import logging
import time

from streams.errors import BrokerError, TableError
from streams.logs import event
from streams.settings import Settings
from streams.tables.catch_up import can_be_built_upon
from streams.tables.write_behind import account_table
from streams.tables.writer import AccountTable, ShardTable

log = logging.getLogger(__name__)


class RestorePoint:
    """Reads shards' tables for their new owner. Not thread-safe."""

    def __init__(self, settings: Settings, cluster_id: str, shards: int) -> None:
        self._settings = settings
        self._cluster_id = cluster_id
        self._shards = shards
        self._table: AccountTable | None = None

    def read(self, shard: int, token: int, low: int, end: int) -> ShardTable | None:
        """The table of ``shard``, older owners fenced out with ``token`` first; None if it is no restore point.

        ``low`` and ``end`` are the changelog's first offset and the one after its last.
        """
        try:
            if self._table is None:
                self._table = account_table(self._settings, self._cluster_id, self._shards)
            state = self._table.open(shard, token)
            if not state.stamp or not can_be_built_upon(state, low, end, time.time_ns() // 1_000_000):
                return None
            return self._table.read_shard(shard)
        except (TableError, BrokerError) as error:
            event(log, logging.WARNING, "no_restore_point", shard=shard, reason=str(error))
            return None

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
