"""How long accounts are not decided while they move to another number of shards, and how long all of it takes.

A local Kafka and Valkey, accounts with positions, a router, an engine, trades that go on; then the number of shards
changes. An account is not decided from the commit with which its old shard sends it away to the commit with which the
new one has it. In the end every account must have one row, in the shard that it is in by then, with every trade in it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka import Producer

from schemas.codec import Decoder, encode
from schemas.messages import JournalRecord
from schemas.partitioning import moves_at, shard_of, steps_of
from schemas.topics import ACCOUNTS, JOURNAL, TRADES
from streams.bench.background import Background
from streams.bench.beat import Beat
from streams.bench.bed import Bed, Progress
from streams.bench.books import Books
from streams.bench.errors import BenchDiffers
from streams.bench.fills import account_rows
from streams.bench.market import DrawnExchange, Traders, parameters
from streams.broker.kafka import Kafka
from streams.feeds.account_rows import live_rows
from streams.rescaling.rescaling import RescalePlan, Rescaling, drive
from streams.runtime import SYSTEM

SYMBOLS, POSITIONS = 20, 3
_AT_ONCE_S = 0.1

_JOURNAL = Decoder[JournalRecord](JournalRecord)


@dataclass(frozen=True, slots=True)
class PairPause:
    """How long the accounts that went from one shard to another at a step were not decided."""

    step: int
    pair: str
    accounts: int
    pause_ms: float


@dataclass(frozen=True, slots=True)
class RescaleTimes:
    """One change: how many accounts moved, seconds as a whole, and the pause of each pair of shards."""

    moved: int
    seconds: float
    pauses: list[PairPause]


class _Trading(Background):
    """Trades at a steady rate until it is left."""

    def __init__(self, producer: Producer, exchange: DrawnExchange, books: Books, per_s: int) -> None:
        super().__init__()
        self._producer = producer
        self._exchange = exchange
        self._books = books
        self._per_s = per_s

    def _run(self) -> None:
        count, due = max(1, int(self._per_s * _AT_ONCE_S)), time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            trades = self._exchange.trades(count)
            self._books.trade(trades)
            for trade in trades:
                self._producer.produce(TRADES, encode(trade), key=trade.symbol)
            self._producer.poll(0)
            due += count / self._per_s
        self._producer.flush(30)


def bench_rescale(
    accounts: int, shards: int, target: int, *, trades_per_s: int, progress: Progress = lambda _: None
) -> RescaleTimes:
    """Move ``accounts`` accounts from ``shards`` to ``target`` shards while trades go on.

    Raises:
        BenchDiffers: a row is not where or what it must be. BenchError: it could not be run.
    """
    exchange, books = DrawnExchange(Traders(accounts, SYMBOLS, POSITIONS)), Books()
    with Bed.open(progress, shards=shards) as bed:
        bed.publish_parameters(parameters(exchange.symbols))
        with Beat(bed.producer(), exchange.symbols):
            bed.start("router", "engine")
            progress(f"{accounts:,} accounts of {POSITIONS} positions are made")
            deposits, openings = list(exchange.deposits()), exchange.openings()
            books.deposit(deposits)
            books.trade(openings)
            bed.publish_transfers(deposits)
            bed.await_routed()
            bed.publish((TRADES, trade.symbol.encode(), encode(trade), -1) for trade in openings)
            bed.await_routed()
            bed.await_applied()
            with _Trading(bed.producer(), exchange, books, trades_per_s):
                progress(f"from {shards} to {target} shards")
                began = time.monotonic()
                plan = _rescale(bed, target)
                seconds = time.monotonic() - began
            bed.await_routed()
            bed.await_applied()
        progress("every row is compared")
        if wrong := _wrong_places(bed, target) or books.differences(account_rows(bed)):
            raise BenchDiffers("rescale", wrong)
        return RescaleTimes(sum(plan.accounts.values()), seconds, list(_pauses(bed, plan)))


def _rescale(bed: Bed, target: int) -> RescalePlan:
    """Change the number of shards; as it was planned."""
    rescaling = Rescaling(Kafka(bed.settings), target)
    try:
        plan = rescaling.plan()
        rescaling.begin(plan)
        drive(rescaling, SYSTEM, lambda _: None)
    finally:
        rescaling.close()
    return plan


def _wrong_places(bed: Bed, target: int) -> list[str]:
    return [
        f"{account} has a row in shard {shard} and not in {shard_of(account, target)}"
        for shard, account in live_rows(bed.read(ACCOUNTS))
        if shard != shard_of(account, target)
    ]


def _pauses(bed: Bed, plan: RescalePlan) -> Iterator[PairPause]:
    """From the journals, by the broker's times."""
    sent: dict[tuple[int, int], int] = {}
    come: dict[tuple[int, int], int] = {}
    for record in bed.read(JOURNAL):
        moves = _JOURNAL(record.value()).moves or None
        if moves is None or moves.spread.target == moves.spread.shards:
            continue
        if moves.sent and moves.departure is not None:
            sent.setdefault((moves.departure.spread.step, record.partition()), record.appended_us)
        for step in range(1, moves.arrived + 1):
            come.setdefault((step, record.partition()), record.appended_us)
    for step in steps_of(plan.spread):
        for old, new in moves_at(step, plan.spread):
            pause_ms = (come[step, new] - sent[step, old]) / 1000
            yield PairPause(step, f"{old} to {new}", plan.accounts.get((old, new, step), 0), pause_ms)
