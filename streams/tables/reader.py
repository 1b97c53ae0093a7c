"""Reading the tables: what a service or a person does that wants an account or the marks.

Reads only, and never waits: a table that is missing or being built is said, with what to do, instead of answered with
"no such account". What is read is committed and may be a little behind the changelog.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import redis

from schemas.codec import DecodeError, Decoder
from schemas.messages import AccountRow, Mark
from schemas.partitioning import shard_of
from streams.errors import TableError
from streams.settings import RedisSettings
from streams.tables.connection import connect
from streams.tables.keys import LAYOUT, MARKS, accounts_key, meta_key
from streams.tables.reach import address, why

T = TypeVar("T")

_ROW = Decoder[AccountRow](AccountRow)
_MARK = Decoder[Mark](Mark)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where accounts are: ``shard = murmur2(account) % shards``, or ``% target`` already while that number is changed.

    ``used`` is how many tables there are. Rows are copies of ``topic`` in that Kafka cluster.
    """

    shards: int
    target: int
    used: int
    topic: str
    cluster_id: str

    def homes(self, account: str) -> list[int]:
        """The shards that an account may be in. It is in the last one before it leaves the first."""
        return [shard_of(account, count) for count in dict.fromkeys((self.shards, self.target))]


@dataclass(frozen=True, slots=True)
class TableMeta:
    """Where the table of a shard stands: the claim of its owner, the changelog offset after the last row it reflects.

    ``building``: it does not hold every account yet. ``updated_at_ms`` is Redis's clock when the owner last wrote to it
    or confirmed it. Rows from ``stamp`` up to ``reach`` may be in it already.
    """

    token: int
    stamp: int
    building: bool
    updated_at_ms: int
    reach: int


class TableReader:
    """Reads accounts and marks. Use as a context manager."""

    def __init__(self, settings: RedisSettings) -> None:
        self._redis = connect(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._redis.close()

    def read_layout(self) -> Layout:
        """How the accounts are laid out.

        Raises:
            TableError: Redis does not answer, or no engine has ever written to it.
        """
        names = ["cluster", "topic", "shards", "target", "used"]
        cluster, topic, shards, target, used = self._run(lambda: self._redis.hmget(LAYOUT, names))
        if shards is None:
            raise TableError("Redis holds no tables; has an engine run against it? check MARGIN_REDIS__URL")
        count = int(shards)
        return Layout(
            count, int(target or count), int(used or count), (topic or b"").decode(), (cluster or b"").decode()
        )

    def shards(self) -> int:
        """The number of shards that have accounts, or have had some.

        Raises:
            TableError: Redis does not answer, or no engine has ever written to it.
        """
        return self.read_layout().used

    def table_meta(self, shard: int) -> TableMeta | None:
        """Where the table of ``shard`` stands, or None if there is none.

        Raises:
            TableError: Redis does not answer.
        """
        names = ["token", "stamp", "building", "updated_at", "writing"]
        token, stamp, building, updated_at, writing = self._run(lambda: self._redis.hmget(meta_key(shard), names))
        if stamp is None:
            return None
        reach = max(int(stamp), int(writing or 0))
        return TableMeta(int(token), int(stamp), building is not None, int(updated_at or 0), reach)

    def find_account(self, account: str) -> AccountRow | None:
        """The row of ``account``, or None if there is none.

        Raises:
            TableError: Redis does not answer, or its tables are missing, being built or unreadable.
        """
        homes = self.read_layout().homes(account)
        # One that moves between two looks was in the first before, or is in the last after.
        for shard in homes if len(homes) == 1 else (homes[-1], homes[0], homes[-1]):
            if (row := self._find_in(shard, account)) is not None:
                return row
        return None

    def _find_in(self, shard: int, account: str) -> AccountRow | None:
        with self._redis.pipeline(transaction=True) as both:
            both.hget(accounts_key(shard), account)
            both.hmget(meta_key(shard), ["stamp", "building"])
            value, (stamp, building) = self._run(both.execute)
        if value is not None:
            return _decoded(_ROW, value, f"account {account}")
        _require_whole(shard, stamp, building)
        return None

    def accounts(self, shard: int) -> Iterator[tuple[str, bytes]]:
        """Every account of a shard with its row's bytes, in no order, while the table may change.

        Raises:
            TableError: Redis does not answer, or the table is missing or being built.
        """
        stamp, building = self._run(lambda: self._redis.hmget(meta_key(shard), ["stamp", "building"]))
        _require_whole(shard, stamp, building)
        seen: set[bytes] = set()
        rows = self._redis.hscan_iter(accounts_key(shard), count=1000)
        while True:
            account_row = self._run(lambda: next(rows, None))
            if account_row is None:
                return
            account, row = account_row
            if account not in seen:  # a scan may return an account twice
                seen.add(account)
                yield account.decode("utf-8", "replace"), row

    def read_marks(self) -> dict[str, Mark]:
        """The latest mark of every symbol.

        Raises:
            TableError: Redis does not answer, or a mark is unreadable.
        """
        marks = self._run(lambda: self._redis.hgetall(MARKS))
        return {
            symbol.decode(): _decoded(_MARK, value, f"the mark of {symbol.decode()}") for symbol, value in marks.items()
        }

    def _run(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except redis.RedisError as error:
            where = address(self._redis)
            raise TableError(f"Redis at {where} {why(error, where)}") from error


def _require_whole(shard: int, stamp: bytes | None, building: bytes | None) -> None:
    if stamp is None:
        raise TableError(f"Redis holds no table of shard {shard}; does an engine run that owns it?")
    if building is not None:
        raise TableError(f"the table of shard {shard} is being built (at offset {int(stamp)}); try again in a moment")


def _decoded(decode: Decoder[T], value: bytes, what: str) -> T:
    try:
        return decode(value)
    except DecodeError as error:
        raise TableError(f"{what} in Redis cannot be read: {error}") from error
