"""Writing a shard's table: one script a write, fenced and stamped. Knows no threads and no Kafka.

Every write carries the writer's token and a stamp. A token lower than the table's is refused (a newer owner has
written), a stamp that is not newer is ignored, and rows and stamp change in the same script, so a reader never sees a
stamp whose rows are missing.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import redis

from streams.errors import TableError, TableFenced
from streams.settings import RedisSettings
from streams.tables.keys import LAYOUT, MARKS, accounts_key, meta_key

ROWS_PER_SCRIPT_MAX = 2_000
"""A larger write is cut, so that one script never holds Redis for long; the last part moves the stamp."""

_OPEN = """
local cluster, topic, token = ARGV[1], ARGV[2], tonumber(ARGV[3])
local meta = redis.call('HMGET', KEYS[2], 'cluster', 'topic', 'token', 'stamp')
if meta[1] ~= cluster or meta[2] ~= topic then
  redis.call('DEL', KEYS[1], KEYS[2])
  meta = {cluster, topic, false, false}
end
if meta[3] and tonumber(meta[3]) > token then return -1 end
local stamp = meta[4] or '0'
redis.call('HSET', KEYS[2], 'cluster', cluster, 'topic', topic, 'token', ARGV[3], 'stamp', stamp)
return tonumber(stamp)
"""

_WRITE = """
local token, stamp = tonumber(ARGV[1]), tonumber(ARGV[2])
local meta = redis.call('HMGET', KEYS[2], 'token', 'stamp')
if not meta[1] then return -2 end
if tonumber(meta[1]) > token then return -1 end
if stamp <= tonumber(meta[2]) then return 0 end
for i = 4, #ARGV, 2 do
  if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[i])
  else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
if ARGV[3] == '1' then redis.call('HSET', KEYS[2], 'token', ARGV[1], 'stamp', ARGV[2]) end
return 1
"""

_CLEAR = """
local meta = redis.call('HGET', KEYS[2], 'token')
if meta and tonumber(meta) > tonumber(ARGV[1]) then return -1 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[2], 'stamp', '0')
return 1
"""

_FENCED, _GONE = -1, -2


class AccountTable:
    """The tables of all shards in one Redis."""

    def __init__(self, settings: RedisSettings, cluster_id: str, topic: str, shards: int) -> None:
        timeout_s = settings.timeout_ms / 1000
        self._redis = redis.Redis.from_url(
            settings.url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry_on_timeout=False
        )
        self._cluster_id, self._topic, self._shards = cluster_id, topic, shards
        self._open_script = self._redis.register_script(_OPEN)
        self._write_script = self._redis.register_script(_WRITE)
        self._clear_script = self._redis.register_script(_CLEAR)

    def publish_layout(self) -> None:
        """Tell readers how accounts are spread: ``shard = murmur2(account) % shards``."""
        self._run(
            lambda: self._redis.hset(
                LAYOUT, mapping={"shards": self._shards, "cluster": self._cluster_id, "topic": self._topic}
            )
        )

    def open(self, shard: int, token: int) -> int:
        """Fence every older owner out and return the stamp to catch up from.

        A table of another cluster or topic is cleared first: its rows say nothing about this one.

        Raises:
            TableFenced: a newer owner has it. TableError: Redis does not answer.
        """
        stamp = int(
            self._run(lambda: self._open_script(keys=_keys(shard), args=[self._cluster_id, self._topic, token]))
        )
        if stamp == _FENCED:
            raise TableFenced(f"shard {shard}: a newer owner than {token} has its table")
        return stamp

    def write(self, shard: int, token: int, stamp: int, rows: Mapping[str, bytes | None]) -> bool:
        """Write rows (None removes one) and move the stamp; False if the table already reflects ``stamp``.

        Raises:
            TableFenced: a newer owner has it. TableError: Redis does not answer, or has lost the table.
        """
        items = iter(rows.items())
        left = len(rows)
        applied = False
        while True:
            part = list(islice(items, ROWS_PER_SCRIPT_MAX))
            left -= len(part)
            arguments: list[str | bytes | int] = [token, stamp, 0 if left else 1]
            for account, row in part:
                arguments += [account, b"" if row is None else row]
            outcome = int(self._run(partial(self._write_script, keys=_keys(shard), args=arguments)))
            if outcome == _FENCED:
                raise TableFenced(f"shard {shard}: a newer owner than {token} has its table")
            if outcome == _GONE:
                raise TableError(f"shard {shard}: its table is gone from Redis")
            applied = applied or outcome == 1
            if not left:
                return applied

    def clear(self, shard: int, token: int) -> None:
        """Empty the table, to fill it from the changelog's beginning.

        Raises:
            TableFenced: a newer owner has it. TableError: Redis does not answer.
        """
        if int(self._run(lambda: self._clear_script(keys=_keys(shard), args=[token]))) == _FENCED:
            raise TableFenced(f"shard {shard}: a newer owner than {token} has its table")

    def write_marks(self, marks: Mapping[str, bytes]) -> None:
        """Write the latest mark of each symbol.

        Raises:
            TableError: Redis does not answer.
        """
        self._run(lambda: self._redis.hset(MARKS, mapping={**marks}))

    def close(self) -> None:
        self._redis.close()

    def _run(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except redis.RedisError as error:
            raise TableError(f"Redis: {type(error).__name__}: {error}") from error


def _keys(shard: int) -> list[str]:
    return [accounts_key(shard), meta_key(shard)]
