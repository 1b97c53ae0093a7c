"""Reading the tables: what a service or a person does that wants an account or the marks."""

from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import redis

from schemas.codec import DecodeError, Decoder
from schemas.messages import AccountRow, Mark
from schemas.partitioning import shard_of
from streams.errors import TableError
from streams.settings import RedisSettings
from streams.tables.keys import LAYOUT, MARKS, accounts_key

T = TypeVar("T")

_ROW = Decoder[AccountRow](AccountRow)
_MARK = Decoder[Mark](Mark)


class TableReader:
    """Reads accounts and marks. Use as a context manager."""

    def __init__(self, settings: RedisSettings) -> None:
        timeout_s = settings.timeout_ms / 1000
        self._redis = redis.Redis.from_url(settings.url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.close()

    def shards(self) -> int:
        """The number of shards that accounts are spread over.

        Raises:
            TableError: Redis does not answer, or no engine has ever written to it.
        """
        found = self._run(lambda: self._redis.hget(LAYOUT, "shards"))
        if found is None:
            raise TableError("Redis holds no tables; has an engine run against it? check MARGIN_REDIS__URL")
        return int(found)

    def find_account(self, account: str) -> AccountRow | None:
        """The row of ``account``, or None.

        Raises:
            TableError: Redis does not answer or holds no tables.
        """
        shard = shard_of(account, self.shards())
        value = self._run(lambda: self._redis.hget(accounts_key(shard), account))
        return None if value is None else _decoded(_ROW, value, f"account {account}")

    def accounts(self, shard: int) -> Iterator[tuple[str, bytes]]:
        """Every account of a shard with its row's bytes, in no order."""
        for account, row in self._run(lambda: self._redis.hgetall(accounts_key(shard))).items():
            yield account.decode(), row

    def read_marks(self) -> dict[str, Mark]:
        """The latest mark of every symbol."""
        found = self._run(lambda: self._redis.hgetall(MARKS))
        return {symbol.decode(): _decoded(_MARK, value, f"mark {symbol!r}") for symbol, value in found.items()}

    def _run(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except redis.RedisError as error:
            raise TableError(f"Redis does not answer: {error}; check MARGIN_REDIS__URL") from error


def _decoded(decode: Decoder[T], value: bytes, what: str) -> T:
    try:
        return decode(value)
    except DecodeError as error:
        raise TableError(f"{what} in Redis cannot be read: {error}") from error
