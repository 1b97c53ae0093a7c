"""Writing one shard's table: fenced by token, stamped with the rows, and never torn whatever dies when."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas.messages import ShardLayout
from streams.errors import TableError, TableFenced
from streams.settings import RedisSettings
from streams.tables import writer as writer_module
from streams.tables.connection import connect
from streams.tables.keys import LAYOUT, accounts_key, meta_key
from streams.tables.writer import ROWS_PER_SCRIPT_MAX, AccountTable, WriteOutcome
from tests.properties import examples

SHARD = 3
_shards = count(100)


@pytest.fixture
def new_table(redis_settings: RedisSettings) -> Iterator[Callable[..., AccountTable]]:
    made = []

    def make(cluster: str = "cluster", shards: int = 4, **log: Any) -> AccountTable:
        made.append(AccountTable(connect(redis_settings), cluster, shards, **log))
        return made[-1]

    yield make
    for table in made:
        table.close()


class Connection:
    """A connection that breaks after some calls, where it is told to."""

    def __init__(self) -> None:
        self._left: int | None = None

    def on_call(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise TableError("the connection broke")

    @contextmanager
    def breaking(self, after_calls: int) -> Iterator[None]:
        self._left = after_calls
        try:
            yield
        finally:
            self._left = None


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture
def table(new_table: Callable[..., AccountTable], connection: Connection, client: redis.Redis) -> AccountTable:
    return new_table(on_call=connection.on_call)


def rows_of(client: redis.Redis, shard: int = SHARD) -> dict[bytes, bytes]:
    rows: dict[Any, Any] = client.hgetall(accounts_key(shard))
    return rows


def stamp_of(client: redis.Redis, shard: int = SHARD) -> int:
    return int(client.hget(meta_key(shard), "stamp") or -1)


def test_the_keys_are_what_other_services_are_told() -> None:
    assert accounts_key(3) == "margin:{3}:accounts"
    assert meta_key(3) == "margin:{3}:meta"


def test_a_plain_client_reads_the_changelogs_bytes(table: AccountTable, client: redis.Redis) -> None:
    row = b'{"account":"a","note":"\xc3\xa9 \\u0000"}'
    table.open(SHARD, 7)
    assert table.write(SHARD, 7, 12, {"a": row}) is WriteOutcome.APPLIED
    assert client.hget("margin:{3}:accounts", "a") == row
    meta = client.hgetall("margin:{3}:meta")
    assert (meta[b"token"], meta[b"stamp"], meta[b"cluster"], meta[b"rows"]) == (b"7", b"12", b"cluster", b"1")


def test_the_layout_says_where_an_account_is(table: AccountTable, client: redis.Redis) -> None:
    table.publish_layout(ShardLayout(shards=4, time=0))
    assert client.hgetall(LAYOUT) == {
        b"cluster": b"cluster",
        b"topic": b"margin.accounts.v1",
        b"shards": b"4",
        b"partitioner": b"murmur2",
    }


def test_a_tombstone_removes_the_row(table: AccountTable, client: redis.Redis) -> None:
    table.open(SHARD, 1)
    table.write(SHARD, 1, 2, {"a": b"1", "b": b"2"})
    table.write(SHARD, 1, 4, {"a": None, "never-was": None, "c": b"3"})
    assert rows_of(client) == {b"b": b"2", b"c": b"3"}


def test_an_older_owner_is_refused_everything(table: AccountTable, client: redis.Redis) -> None:
    table.open(SHARD, 1)
    table.open(SHARD, 2)
    for refused in (
        lambda: table.write(SHARD, 1, 5, {"a": b"old"}),
        lambda: table.open(SHARD, 1),
        lambda: table.clear(SHARD, 1),
    ):
        with pytest.raises(TableFenced, match="shard 3"):
            refused()
    assert rows_of(client) == {}


def test_an_older_or_equal_stamp_is_ignored(table: AccountTable, client: redis.Redis) -> None:
    table.open(SHARD, 1)
    table.write(SHARD, 1, 5, {"a": b"new"})
    assert table.write(SHARD, 1, 5, {"a": b"same"}) is WriteOutcome.IGNORED
    assert table.write(SHARD, 1, 4, {"a": b"old"}) is WriteOutcome.IGNORED
    assert rows_of(client) == {b"a": b"new"}
    assert stamp_of(client) == 5


def test_a_new_owner_builds_on_what_the_old_one_wrote(table: AccountTable) -> None:
    table.open(SHARD, 1)
    table.write(SHARD, 1, 5, {"a": b"1"}, as_of_ms=77)
    state = table.open(SHARD, 2)
    assert (state.stamp, state.as_of_ms) == (5, 77)


def test_an_owner_that_has_not_opened_the_table_may_not_write(table: AccountTable, client: redis.Redis) -> None:
    assert table.write(SHARD, 1, 5, {"a": b"1"}) is WriteOutcome.LOST
    table.open(SHARD, 1)
    assert table.write(SHARD, 2, 5, {"a": b"1"}) is WriteOutcome.LOST
    assert rows_of(client) == {}


@pytest.mark.parametrize("other", [{"cluster": "other"}, {"topic": "other"}, {"topic_id": "other"}, {"shards": 5}])
def test_a_table_of_another_log_is_cleared_by_its_new_owner_and_lost_to_the_old_one(
    other: dict[str, str], new_table: Callable[..., AccountTable], client: redis.Redis
) -> None:
    ours, others = new_table(), new_table(**other)
    others.open(SHARD, 50)
    others.write(SHARD, 50, 100, {"a": b"1"})
    assert ours.open(SHARD, 3).stamp == 0
    assert rows_of(client) == {}
    with pytest.raises(TableFenced):
        others.write(SHARD, 50, 101, {"a": b"2"})


def test_a_large_write_is_cut_and_the_stamp_moves_last(table: AccountTable, client: redis.Redis) -> None:
    table.open(SHARD, 1)
    rows: dict[str, bytes | None] = {f"account-{n}": b"row" for n in range(3 * ROWS_PER_SCRIPT_MAX + 1)}
    assert table.write(SHARD, 1, 7, rows) is WriteOutcome.APPLIED
    assert client.hlen(accounts_key(SHARD)) == len(rows)
    assert stamp_of(client) == 7
    assert table.write(SHARD, 1, 8, dict.fromkeys(rows)) is WriteOutcome.APPLIED
    assert rows_of(client) == {}


def test_rows_that_are_long_are_cut_by_bytes(
    table: AccountTable, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "BYTES_PER_SCRIPT_MAX", 10)
    before = client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
    table.open(SHARD, 1)
    table.write(SHARD, 1, 7, dict.fromkeys("abc", b"x" * 20))
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] - before >= 4
    assert len(rows_of(client)) == 3


def test_scripts_that_redis_forgot_are_sent_again(table: AccountTable, client: redis.Redis) -> None:
    table.open(SHARD, 1)
    client.script_flush()
    assert table.write(SHARD, 1, 5, {"a": b"1"}) is WriteOutcome.APPLIED


def test_a_table_that_went_back_to_an_older_snapshot_is_lost(table: AccountTable, client: redis.Redis) -> None:
    table.open(SHARD, 1)
    table.write(SHARD, 1, 5, {"a": b"1"})
    snapshot = {key: client.dump(key) for key in (accounts_key(SHARD), meta_key(SHARD))}
    table.write(SHARD, 1, 9, {"a": b"2"}, after=5)
    for key, dump in snapshot.items():
        assert dump is not None
        client.restore(key, 0, dump, replace=True)
    assert table.write(SHARD, 1, 12, {"b": b"3"}, after=9) is WriteOutcome.LOST
    assert table.open(SHARD, 1).stamp == 5


@pytest.mark.parametrize("key", [accounts_key(SHARD), meta_key(SHARD)])
def test_a_table_that_redis_lost_a_part_of_is_lost_and_built_anew(
    key: str, table: AccountTable, client: redis.Redis
) -> None:
    table.open(SHARD, 1)
    table.write(SHARD, 1, 5, {"a": b"1"})
    client.delete(key)
    assert table.write(SHARD, 1, 9, {"b": b"2"}, after=5) is WriteOutcome.LOST
    assert table.open(SHARD, 1).stamp == 0
    assert rows_of(client) == {}


def test_redis_away_is_a_table_error() -> None:
    away = AccountTable(connect(RedisSettings(url="redis://127.0.0.1:1/0")), "cluster", 4)
    with pytest.raises(TableError, match="refused"):
        away.open(SHARD, 1)
    away.close()


# --- reading a whole shard -------------------------------------------------------------------------------------------


def test_a_shard_is_read_whole_with_its_stamp(table: AccountTable) -> None:
    table.open(SHARD, 4)
    rows = {f"account-{n}": b"row" for n in range(2_500)}
    table.write(SHARD, 4, 2_600, rows)
    whole = table.read_shard(SHARD)
    assert whole is not None
    assert (whole.token, whole.stamp, whole.rows) == (4, 2_600, rows)


def test_a_shard_that_is_missing_being_built_or_of_another_log_is_not_read(
    table: AccountTable, new_table: Callable[..., AccountTable]
) -> None:
    assert table.read_shard(SHARD) is None
    table.open(SHARD, 1)
    table.write(SHARD, 1, 5, {"a": b"1"}, complete=False)
    assert table.read_shard(SHARD) is None
    table.write(SHARD, 1, 5, {}, complete=True)
    assert table.read_shard(SHARD) is not None
    assert new_table("other").read_shard(SHARD) is None


def test_a_shard_whose_write_broke_off_is_not_read_before_it_was_caught_up(
    table: AccountTable, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "ROWS_PER_SCRIPT_MAX", 1)
    table.open(SHARD, 1)
    table.write(SHARD, 1, 5, {"a": b"1"})
    with pytest.raises(TableError, match="the connection broke"), connection.breaking(after_calls=1):
        table.write(SHARD, 1, 9, {"a": b"2", "b": b"2"})
    assert table.read_shard(SHARD) is None
    assert table.open(SHARD, 2).stamp == 5
    table.write(SHARD, 2, 7, {"c": b"3"})
    assert table.read_shard(SHARD) is None
    table.write(SHARD, 2, 9, {"a": b"2", "b": b"2"})
    whole = table.read_shard(SHARD)
    assert whole is not None
    assert whole.stamp == 9


def test_a_server_that_goes_back_to_a_snapshot_between_two_parts_of_a_write_is_not_given_the_rest(
    new_table: Callable[..., AccountTable], client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot has the stamp that the write began at, but not its first part."""
    monkeypatch.setattr(writer_module, "ROWS_PER_SCRIPT_MAX", 1)
    snapshot: dict[str, bytes | None] = {}
    calls: list[None] = []

    def go_back_before_the_second() -> None:
        calls.append(None)
        if len(calls) == 2:
            for key, value in snapshot.items():
                assert value is not None
                client.restore(key, 0, value, replace=True)

    table = new_table(on_call=go_back_before_the_second)
    table.open(SHARD, 1)
    table.write(SHARD, 1, 5, {"a": b"1", "b": b"1"})
    snapshot |= {key: client.dump(key) for key in (accounts_key(SHARD), meta_key(SHARD))}
    calls.clear()
    assert table.write(SHARD, 1, 9, {"a": b"2", "b": b"2"}) is WriteOutcome.LOST
    assert len(calls) == 2, "the first part was applied"
    assert rows_of(client) == {b"a": b"1", b"b": b"1"}
    assert stamp_of(client) == 5


# --- properties ------------------------------------------------------------------------------------------------------


Log = list[tuple[str, bytes | None]]


def replayed(log: Log, rows: dict[bytes, bytes]) -> dict[bytes, bytes]:
    by_account = dict(rows)
    for account, row in log:
        if row is None:
            by_account.pop(account.encode(), None)
        else:
            by_account[account.encode()] = row
    return by_account


class Owner:
    """An owner that writes what it committed, from where it knows the table to stand, in batches of any size."""

    def __init__(self, table: AccountTable, connection: Connection, shard: int, token: int, log: Log) -> None:
        self._table, self._connection, self._shard, self._token, self._log = table, connection, shard, token, log
        self._written = table.open(shard, token).stamp

    def write(self, entries: int, scripts: int) -> None:
        stamp = min(self._written + entries, len(self._log))
        rows = dict(self._log[self._written : stamp])
        try:
            with self._connection.breaking(scripts):
                outcome = self._table.write(self._shard, self._token, stamp, rows, after=self._written)
            assert outcome is not WriteOutcome.LOST
            self._written = stamp
        except TableFenced:
            raise
        except TableError:
            self._written = self._table.open(self._shard, self._token).stamp


_entries = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([None, b"1", b"2", b"3"])), max_size=12)


@configure(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    log=_entries,
    later=_entries,
    writes=st.lists(st.tuples(st.sampled_from(["old", "new", "open"]), st.integers(1, 5), st.integers(0, 4))),
)
def test_any_interleaving_of_two_owners_ends_with_the_newer_ones_state(
    table: AccountTable,
    connection: Connection,
    client: redis.Redis,
    log: Log,
    later: Log,
    writes: list[tuple[str, int, int]],
) -> None:
    """Connections break in the middle of any write. At every instant the log from the stamp on repairs the table."""
    shard = next(_shards)
    log = list(log)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "ROWS_PER_SCRIPT_MAX", 1)
        old, new = Owner(table, connection, shard, 10, log), None
        for who, entries, scripts in writes:
            if who == "old":
                try:
                    old.write(entries, scripts)
                    assert new is None, "the old owner was let in"
                except TableFenced:
                    assert new is not None
            elif new is None and who == "open":
                new = Owner(table, connection, shard, 20, log)
                log += later
            elif new is not None:
                new.write(entries, scripts)
            assert replayed(log[stamp_of(client, shard) :], rows_of(client, shard)) == replayed(log, {})
        last = new or old
        last.write(len(log), 100)
    assert rows_of(client, shard) == replayed(log, {})
    assert stamp_of(client, shard) == len(log)
