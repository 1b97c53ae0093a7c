"""The Redis tables on a real server: fenced, stamped, caught up from the changelog, readable by any client."""

import itertools
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from confluent_kafka import Producer
from hypothesis import HealthCheck, given
from hypothesis import settings as configure
from hypothesis import strategies as st

from infra.local.valkey import ValkeyServer
from schemas import topics
from schemas.messages import Mark
from streams.errors import TableError, TableFenced
from streams.settings import RedisSettings, Settings, load
from streams.tables.keys import accounts_key, meta_key
from streams.tables.reader import TableReader
from streams.tables.write_behind import TableWriter
from streams.tables.writer import ROWS_PER_SCRIPT_MAX, AccountTable

_shards = itertools.count(1000)
_tokens = itertools.count(10_000_000)


@pytest.fixture
def table(settings: Settings) -> Iterator[AccountTable]:
    found = AccountTable(settings.redis, "cluster", "topic", 4)
    yield found
    found.close()


@pytest.fixture
def client(settings: Settings) -> Iterator["redis.Redis[bytes]"]:
    found = redis.Redis.from_url(settings.redis.url)
    yield found
    found.close()


@pytest.fixture
def shard() -> int:
    return next(_shards)


def rows_of(client: "redis.Redis[bytes]", shard: int) -> dict[bytes, bytes]:
    return client.hgetall(accounts_key(shard))


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not in time: {what}")
        time.sleep(0.02)


def test_rows_and_stamp_are_written_together(table: AccountTable, client: "redis.Redis[bytes]", shard: int) -> None:
    assert table.open(shard, 1) == 0
    assert table.write(shard, 1, 10, {"a": b"1", "b": b"2"})
    assert rows_of(client, shard) == {b"a": b"1", b"b": b"2"}
    assert client.hget(meta_key(shard), "stamp") == b"10"


def test_a_tombstone_removes_the_row(table: AccountTable, client: "redis.Redis[bytes]", shard: int) -> None:
    table.open(shard, 1)
    table.write(shard, 1, 1, {"a": b"1", "b": b"2"})
    table.write(shard, 1, 2, {"a": None})
    assert rows_of(client, shard) == {b"b": b"2"}


def test_an_older_owner_is_refused(table: AccountTable, client: "redis.Redis[bytes]", shard: int) -> None:
    table.open(shard, 1)
    table.open(shard, 2)
    with pytest.raises(TableFenced):
        table.write(shard, 1, 5, {"a": b"old"})
    with pytest.raises(TableFenced):
        table.open(shard, 1)
    with pytest.raises(TableFenced):
        table.clear(shard, 1)
    assert rows_of(client, shard) == {}


def test_an_older_stamp_is_ignored(table: AccountTable, client: "redis.Redis[bytes]", shard: int) -> None:
    table.open(shard, 1)
    table.write(shard, 1, 5, {"a": b"new"})
    assert not table.write(shard, 1, 5, {"a": b"same"})
    assert not table.write(shard, 1, 4, {"a": b"old"})
    assert rows_of(client, shard) == {b"a": b"new"}


def test_a_table_of_another_cluster_is_cleared(settings: Settings, client: "redis.Redis[bytes]", shard: int) -> None:
    first = AccountTable(settings.redis, "one", "topic", 4)
    first.open(shard, 50)
    first.write(shard, 50, 100, {"a": b"1"})
    second = AccountTable(settings.redis, "two", "topic", 4)
    assert second.open(shard, 3) == 0
    assert rows_of(client, shard) == {}
    first.close()
    second.close()


def test_a_large_write_is_cut_and_stamped_last(table: AccountTable, client: "redis.Redis[bytes]", shard: int) -> None:
    table.open(shard, 1)
    rows = {f"account-{n}": b"row" for n in range(2 * ROWS_PER_SCRIPT_MAX + 1)}
    assert table.write(shard, 1, 7, rows)
    assert client.hlen(accounts_key(shard)) == len(rows)
    assert client.hget(meta_key(shard), "stamp") == b"7"


def test_a_table_that_is_gone_is_noticed(table: AccountTable, client: "redis.Redis[bytes]", shard: int) -> None:
    table.open(shard, 1)
    client.delete(meta_key(shard))
    with pytest.raises(TableError, match="gone"):
        table.write(shard, 1, 1, {"a": b"1"})


def test_redis_away_is_a_table_error(shard: int) -> None:
    away = AccountTable(RedisSettings(url="redis://127.0.0.1:1/0"), "cluster", "topic", 4)
    with pytest.raises(TableError):
        away.open(shard, 1)
    with (
        TableReader(RedisSettings(url="redis://127.0.0.1:1/0")) as reader,
        pytest.raises(TableError, match="MARGIN_REDIS__URL"),
    ):
        reader.find_account("a")


@configure(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(1, 6), st.sampled_from("ab")), max_size=12))
def test_any_interleaving_of_two_owners_ends_with_the_newer_ones_state(
    table: AccountTable, client: "redis.Redis[bytes]", writes: list[tuple[int, int, str]]
) -> None:
    shard = next(_shards)
    table.open(shard, 1)
    expected: dict[bytes, bytes] = {}
    newest, reached = 1, 0
    for token, stamp, account in writes:
        value = f"{token}:{stamp}".encode()
        if token > newest:
            table.open(shard, token)
            newest = token
        if token < newest:
            with pytest.raises(TableFenced):
                table.write(shard, token, stamp, {account: value})
        elif table.write(shard, token, stamp, {account: value}):
            assert stamp > reached
            reached = stamp
            expected[account.encode()] = value
    assert rows_of(client, shard) == expected


def test_the_writer_follows_the_changelog(settings: Settings, client: "redis.Redis[bytes]") -> None:
    shard = 1
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    producer.produce(topics.ACCOUNTS, b"before", key=b"caught-up", partition=shard)
    producer.flush()
    writer = TableWriter(settings, f"cluster-{next(_tokens)}", 4)
    token = next(_tokens)
    writer.restore(shard, token)
    eventually(lambda: client.hget(accounts_key(shard), "caught-up") == b"before", "the changelog's row")
    stamp = int(client.hget(meta_key(shard), "stamp") or 0)
    writer.submit(shard, token, stamp + 1, {"later": b"1"})
    writer.submit(shard, token, stamp + 2, {"later": b"2"})
    eventually(lambda: client.hget(accounts_key(shard), "later") == b"2", "the submitted row")
    writer.submit_marks([Mark(symbol="X", price="1", status="live", publish_time=1)])
    with TableReader(settings.redis) as reader:
        eventually(lambda: "X" in reader.read_marks(), "the mark")
        assert reader.shards() == 4
    writer.check()
    writer.close()


def test_a_backlog_over_its_bound_is_caught_up_from_the_changelog(settings: Settings) -> None:
    shard = 2
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    for number in range(20):
        producer.produce(topics.ACCOUNTS, b"row", key=f"bound-{number}".encode(), partition=shard)
    producer.flush()
    bounded = load(
        {},
        {
            "kafka.bootstrap_servers": settings.kafka.bootstrap_servers,
            "redis.url": settings.redis.url,
            "engine.redis_backlog_rows_max": 5,
        },
    )
    writer = TableWriter(bounded, f"cluster-{next(_tokens)}", 4)
    token = next(_tokens)
    writer.restore(shard, token)
    writer.submit(shard, token, 2**40, {f"bound-{number}": b"row" for number in range(20)})
    with redis.Redis.from_url(settings.redis.url) as client:
        eventually(lambda: client.hget(accounts_key(shard), "bound-19") == b"row", "the rows from the changelog")
    writer.close()


def test_redis_killed_flushed_and_back_the_table_is_whole_again(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shard = 3
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    producer.produce(topics.ACCOUNTS, b"kept", key=b"survivor", partition=shard)
    producer.flush()
    server = ValkeyServer(tmp_path_factory.mktemp("valkey"))
    server.start()
    own = load({}, {"kafka.bootstrap_servers": settings.kafka.bootstrap_servers, "redis.url": server.url})
    writer = TableWriter(own, "cluster", 4)
    writer.restore(shard, 1)
    with redis.Redis.from_url(server.url) as client:
        eventually(lambda: client.hget(accounts_key(shard), "survivor") == b"kept", "the first row")
        stamp = int(client.hget(meta_key(shard), "stamp") or 0)
    server.kill()
    writer.submit(shard, 1, stamp, {"survivor": b"kept"})
    server.start()  # empty: it keeps nothing
    with redis.Redis.from_url(server.url) as client:
        eventually(lambda: client.hget(accounts_key(shard), "survivor") == b"kept", "the row after the restart")
    writer.check()
    writer.close()
    server.stop()
