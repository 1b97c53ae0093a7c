"""Writing a shard's table: fenced, stamped, never torn. Knows no threads and no Kafka.

One thing holds at every instant, whoever writes and wherever a writer dies: replaying the changelog from the table's
stamp to the log's end over the table's rows gives the truth. A token lower than the table's is refused (a newer owner
has opened it), a stamp that is not newer is ignored, and a table that is not where its writer left it (Redis was
flushed or went back to an older snapshot) is reported, never papered over.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from importlib import resources
from typing import Any

import redis

from schemas.messages import ShardLayout
from schemas.topics import ACCOUNTS
from streams.errors import TableError, TableFenced
from streams.runtime import SYSTEM, Runtime
from streams.tables.keys import LAYOUT, MARKS, accounts_key, meta_key

ROWS_PER_SCRIPT_MAX = 1_000
BYTES_PER_SCRIPT_MAX = 1_000_000
"""A larger write is cut, so that one script never holds Redis for long; the last part moves the stamp."""

_READ_ATTEMPTS = 3
_SCAN_ROWS = 1_000


class WriteOutcome(Enum):
    """What became of a write."""

    APPLIED = "applied"
    IGNORED = "ignored"
    """The table reflects this stamp or a later one already."""
    LOST = "lost"
    """The table is gone or older than its writer knows it: open it again and catch up from its stamp."""


@dataclass(frozen=True, slots=True)
class TableState:
    """Where a table stands: ``stamp`` is the changelog offset after the last row it reflects (0: nothing yet).

    ``as_of_ms``: no change that was written to the log before this time is missing.
    """

    stamp: int
    as_of_ms: int


@dataclass(frozen=True, slots=True)
class ShardTable:
    """A whole table as of ``stamp``, rows as the changelog's bytes."""

    token: int
    stamp: int
    rows: dict[str, bytes]


class AccountTable:
    """The tables of all shards in one Redis, as copies of one log. Owns ``client``. Not thread-safe.

    ``shards`` is over how many shards accounts were spread at first: with those it is another log. ``topic_id`` tells a
    topic from one of the same name that was created anew. ``on_call`` is called before each call
    of Redis.
    """

    def __init__(
        self,
        client: redis.Redis,
        cluster_id: str,
        shards: int,
        *,
        topic: str = ACCOUNTS,
        topic_id: str = "",
        on_call: Callable[[], object] = lambda: None,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self.topic = topic
        self._on_call = on_call
        self._runtime = runtime
        self._redis = client
        self._log = (cluster_id, topic, topic_id, str(shards))
        self._open_script = self._redis.register_script(script_text("open.lua"))
        self._write_script = self._redis.register_script(script_text("write.lua"))

    def publish_layout(self, layout: ShardLayout) -> None:
        """Tell readers how accounts are spread: ``shard = murmur2(account) % shards``, or ``% target`` already.

        Raises:
            TableError: Redis does not answer or refuses.
        """
        cluster, topic, _, _ = self._log
        spread = layout.spread
        items: list[str | int] = ["cluster", cluster, "topic", topic, "shards", spread.shards, "partitioner", "murmur2"]
        if spread.version:
            items += ["target", spread.target, "used", layout.shards_used]
        self._run(lambda: self._redis.hset(LAYOUT, items=items))

    def open(self, shard: int, token: int) -> TableState:
        """Fence every older owner out and return where the table stands. To be repeated after ``LOST``.

        A table of another cluster or topic, or of another number of shards, is cleared: its rows say nothing about
        ours. Two clusters that share one Redis would clear each other's tables for ever.

        Raises:
            TableFenced: a newer owner has it. TableError: Redis does not answer or refuses.
        """
        return self._open(shard, token, clear=False)

    def clear(self, shard: int, token: int) -> TableState:
        """Open the table and empty it, to fill it from the changelog's beginning.

        Raises:
            TableFenced: a newer owner has it. TableError: Redis does not answer or refuses.
        """
        return self._open(shard, token, clear=True)

    def write(
        self,
        shard: int,
        token: int,
        stamp: int,
        rows: Mapping[str, bytes | None],
        *,
        after: int = -1,
        as_of_ms: int | None = None,
        complete: bool = True,
    ) -> WriteOutcome:
        """Write rows (None removes one) and move the stamp.

        ``rows`` must hold every account's last row in the changelog from ``after`` to ``stamp``: a table that does not
        reach ``after`` is lost. ``as_of_ms`` (now if None): when the rows were handed over; nothing written to the log
        before is missing. ``complete`` False leaves a table that is being built marked as such. Writing no rows at the
        table's own stamp confirms the table.

        Raises:
            TableFenced: a newer owner has it. TableError: Redis does not answer or refuses.
        """
        as_of_ms = self._runtime.time_ns() // 1_000_000 if as_of_ms is None else as_of_ms
        for number, (part, last) in enumerate(_parts(rows)):
            removed = [account for account, row in part if row is None]
            arguments: list[str | bytes | int] = [token, after, stamp, as_of_ms, int(last), int(complete), number]
            arguments += [*self._log, len(removed), *removed]
            for account, row in part:
                if row is not None:
                    arguments += (account, row)
            outcome = self._call(self._write_script, shard, arguments).decode()
            if outcome == "fenced":
                raise TableFenced(f"shard {shard}: its table has a newer owner than the one with claim {token}")
            if outcome != "applied":
                return WriteOutcome(outcome)
        return WriteOutcome.APPLIED

    def write_marks(self, marks: Mapping[str, bytes]) -> None:
        """Write the latest mark of each symbol.

        Raises:
            TableError: Redis does not answer or refuses.
        """
        self._run(lambda: self._redis.hset(MARKS, mapping=dict(marks.items())))

    def read_shard(self, shard: int) -> ShardTable | None:
        """The whole table of a shard as of one stamp, or None: it is missing, being built or written, or not our log's.

        Raises:
            TableError: Redis does not answer or refuses.
        """
        steps = self.read_in_steps(shard)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                table: ShardTable | None = done.value
                return table

    def read_in_steps(self, shard: int) -> Generator[int, None, ShardTable | None]:
        """As :meth:`read_shard`; yields after each call of Redis how many rows have been read."""
        for _ in range(_READ_ATTEMPTS):
            before = self._run(lambda: self._redis.hgetall(meta_key(shard)))
            log = tuple(before.get(name, b"").decode() for name in (b"cluster", b"topic", b"topic_id", b"shards"))
            if log != self._log or b"building" in before or b"writing" in before:
                return None
            rows: dict[str, bytes] = {}
            cursor = -1
            while cursor:
                scan = partial(self._redis.hscan, accounts_key(shard), cursor=max(cursor, 0), count=_SCAN_ROWS)
                cursor, values = self._run(scan)
                rows.update((account.decode("utf-8", "replace"), row) for account, row in values.items())
                yield len(rows)
            same = self._run(lambda: self._redis.hgetall(meta_key(shard))) == before
            if same and len(rows) == int(before[b"rows"]):  # Redis may evict the rows by themselves
                return ShardTable(int(before[b"token"]), int(before[b"stamp"]), rows)
        return None

    def close(self) -> None:
        self._redis.close()

    def _open(self, shard: int, token: int, *, clear: bool) -> TableState:
        outcome, *answers = self._call(self._open_script, shard, [token, int(clear), *self._log])
        if outcome == b"fenced":
            raise TableFenced(f"shard {shard}: its table is held by claim {answers[0].decode()}, newer than {token}")
        stamp, as_of_ms = answers
        return TableState(int(stamp), int(as_of_ms))

    def _call(self, script: Any, shard: int, arguments: list[Any]) -> Any:
        return self._run(lambda: script(keys=[accounts_key(shard), meta_key(shard)], args=arguments))

    def _run(self, call: Callable[[], Any]) -> Any:
        self._on_call()
        try:
            return call()
        except redis.RedisError as error:
            raise TableError(f"Redis: {type(error).__name__}: {error}") from error


@cache
def script_text(name: str) -> str:
    """The text of a script for Redis, by its file's name."""
    return resources.files("streams.tables").joinpath(name).read_text(encoding="utf-8")


def _parts(rows: Mapping[str, bytes | None]) -> Iterator[tuple[list[tuple[str, bytes | None]], bool]]:
    """Rows in parts that a script may hold Redis for, each with whether it is the last; one empty part if no rows."""
    part: list[tuple[str, bytes | None]] = []
    size = 0
    for account, row in rows.items():
        if len(part) >= ROWS_PER_SCRIPT_MAX or size >= BYTES_PER_SCRIPT_MAX:
            yield part, False
            part, size = [], 0
        part.append((account, row))
        size += len(account) + len(row or b"")
    yield part, True
