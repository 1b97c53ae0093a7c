"""How many fills engines apply a second, from frames that lie in Kafka to rows that are committed there.

The engines share the shards, by their group, and have applied deposits and opening positions when they are held still;
then the frames are written as the router writes them, and all are let go. Time ends when the broker appended the last
row of any shard, by the broker's time. The figures stand only if the rows of all accounts are what the trades add up
to, each in its shard, and if no shard went to another engine meanwhile.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME

from schemas.codec import encode
from schemas.messages import Trade, Transfer
from schemas.partitioning import partition_of, shard_of
from schemas.topics import ACCOUNTS, EVENTS, INPUTS, TRADES, TRANSFERS
from streams.bench.beat import Beat
from streams.bench.bed import Bed, Outgoing, Progress
from streams.bench.books import Books
from streams.bench.cpu import CpuMeter
from streams.bench.errors import BenchDiffers, BenchError
from streams.bench.market import DrawnExchange, Traders, parameters
from streams.broker.admin import topic_ids
from streams.feeds.account_rows import live_rows
from streams.routing.split import Splitter
from streams.routing.trade_ids import TradeIds

_FRAME_RECORDS = 20_000
"""So many records a batch, as a router with a backlog takes."""
_COMMITS = "margin_engine_commit_seconds_count"


@dataclass(frozen=True, slots=True, kw_only=True)
class FillTimes:
    """One run. Processor seconds are per million trades (two fills each); transactions and rows are those committed.

    What is said of the engine is the sum of all ``engines``: ``engine_cpu_share`` is in processors. ``others_share`` is
    the share of this machine's processors that others used.
    """

    shards: int
    engines: int
    accounts: int
    symbols: int
    positions: int
    drawn: str
    trades: int
    seconds: float
    fills_per_s: float
    engine_cpu_s_per_million_trades: float
    broker_cpu_s_per_million_trades: float
    valkey_cpu_s_per_million_trades: float
    transactions_per_s: float
    rows_per_s: float
    engine_cpu_share: float
    others_share: float
    accounts_checked: int


def bench_fills(
    population: Traders, trades: int, *, shards: int = 4, engines: int = 1, progress: Progress = lambda _: None
) -> FillTimes:
    """Measure one population, its accounts in ``shards`` shards that ``engines`` processes share.

    Raises:
        BenchDiffers: the accounts are not what the trades add up to.
        BenchError: it could not be run.
    """
    name = f"{population.positions} positions, {population.drawn}, shards {shards}, engines {engines}"
    exchange, books = DrawnExchange(population), Books()
    deposits, openings, measured = list(exchange.deposits()), exchange.openings(), exchange.trades(trades)
    books.deposit(deposits)
    books.trade([*openings, *measured])
    members = [f"engine-{number}" for number in range(1, engines + 1)]
    with Bed.open(progress, shards=shards) as bed, Beat(bed.producer(), exchange.symbols):
        frames = Frames(bed)
        bed.publish_parameters(parameters(exchange.symbols))
        bed.start(*members)
        shared = bed.await_shared(members)
        progress(f"{name}: {population.accounts:,} accounts deposit and open {len(openings):,} trades")
        for records in (deposits, openings):
            bed.publish(frames.of(records), compression="lz4")
            bed.await_applied()
        commits, first_rows = _commits(bed, members), bed.ends(ACCOUNTS)
        waiting = list(frames.of(measured))
        with CpuMeter(bed.pids) as meter:
            with bed.held_still(*(bed.roles[member].process for member in members)):
                bed.publish(waiting, compression="lz4")
                progress(f"{name}: applying {2 * trades:,} fills in {len(waiting):,} frames")
                started = time.time()
            bed.await_applied()
        commits = _commits(bed, members) - commits
        if (shared_since := bed.shards_of(members)) != shared:
            raise BenchError(f"{name}: shards went from engine to engine meanwhile, {shared} are {shared_since}")
        rows, last_ms = written(bed, ACCOUNTS, first_rows)
        if differences := books.differences(account_rows(bed)) or misplaced(bed):
            raise BenchDiffers(name, differences)
    seconds = last_ms / 1000 - started
    used = meter.between(started, last_ms / 1000)
    engine_s = sum(used[member] for member in members)
    return FillTimes(
        shards=shards,
        engines=engines,
        accounts=population.accounts,
        symbols=population.symbols,
        positions=population.positions,
        drawn=population.drawn,
        trades=trades,
        seconds=seconds,
        fills_per_s=2 * trades / seconds,
        engine_cpu_s_per_million_trades=1e6 * engine_s / trades,
        broker_cpu_s_per_million_trades=1e6 * used["broker"] / trades,
        valkey_cpu_s_per_million_trades=1e6 * used["valkey"] / trades,
        transactions_per_s=commits / seconds,
        rows_per_s=rows / seconds,
        engine_cpu_share=engine_s / seconds,
        others_share=meter.others_share(started, last_ms / 1000),
        accounts_checked=len(books.money),
    )


def _commits(bed: Bed, members: Iterable[str]) -> float:
    return sum(bed.roles[member].metrics()[_COMMITS] for member in members)


class Frames:
    """Records as the frames that a router makes of them, each partition of the exchange's topics after its last."""

    def __init__(self, bed: Bed) -> None:
        topics = bed.settings.topics
        self._partitions = topics.partitions
        self._splitter = Splitter(topics.shards, topic_ids(bed.settings, INPUTS))
        self._next: dict[tuple[str, int], int] = {}
        self._trade_ids = [TradeIds() for _ in range(topics.partitions)]

    def of(self, records: Iterable[Trade | Transfer]) -> Iterator[Outgoing]:
        """The frames of records, with their shards."""
        for number, record in enumerate(records, 1):
            topic, key = (TRADES, record.symbol) if isinstance(record, Trade) else (TRANSFERS, record.account)
            partition = partition_of(key.encode(), self._partitions)
            offset = self._next.get((topic, partition), 0)
            self._next[topic, partition] = offset + 1
            ids = self._trade_ids[partition]
            refused = self._splitter.add(topic, encode(record), ids, partition=partition, offset=offset)
            assert refused is None, "the bench draws valid records"
            if number % _FRAME_RECORDS == 0:
                yield from self._take()
        yield from self._take()

    def _take(self) -> Iterator[Outgoing]:
        for shard, frame in self._splitter.take(time.time_ns() // 1000)[0]:
            yield EVENTS, None, frame, shard


def account_rows(bed: Bed) -> dict[str, Any]:
    """The row of each account in the changelog, as JSON; nobody is on the way to another shard."""
    return {account: orjson.loads(row) for (_, account), row in live_rows(bed.read(ACCOUNTS)).items()}


def misplaced(bed: Bed) -> list[str]:
    """Which rows of the changelog are not in their account's shard."""
    shards = bed.settings.topics.shards
    return [
        f"{account} has a row in shard {shard} and not in {shard_of(account, shards)}"
        for account, shard in {(record.key_text or "", record.partition()) for record in bed.read(ACCOUNTS)}
        if shard != shard_of(account, shards)
    ]


def written(bed: Bed, topic: str, first: list[int]) -> tuple[int, int]:
    """How many records of a topic were committed from offsets on, and the broker's time of the last, in ms.

    Raises:
        BenchError: a record carries its sender's time.
    """
    count, last_ms = 0, 0
    for record in bed.read(topic, first):
        if record.timestamp()[0] != TIMESTAMP_LOG_APPEND_TIME:
            raise BenchError(f"{topic}: records carry the time of their sender, not of the broker")
        count, last_ms = count + 1, max(last_ms, record.timestamp()[1])
    return count, last_ms
