"""How long it takes from the scheduled publication of what causes a liquidation command to a read_committed consumer.

An open loop: what is sent late counts from when it was due. First trades are the cause, each of an account that has
deposited too little for it. Then prices are: those of one symbol fall by a little at given times, and each makes
exactly one account fall below its requirement. Meanwhile nothing else happens, and in the last run others trade. The
figures stand only if there is one command for each cause, for the right account, and no other, and if the accounts are
what their records add up to.

Times are of this machine's clock, but for the broker's time of a command, which is in whole milliseconds: what is
called produced may be up to one too early.
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Self

import numpy as np
import orjson

from schemas.codec import encode
from schemas.messages import Trade, TradeSide, Transfer
from schemas.parameters import PolicyParameters
from schemas.topics import COMMANDS, MARKS, TRANSFERS
from streams.bench.arrivals import Arrivals
from streams.bench.bed import Bed, Outgoing, Progress
from streams.bench.books import Books
from streams.bench.errors import BenchDiffers
from streams.bench.fills import account_rows
from streams.bench.market import ASSET, DEPOSIT, PRICE, DrawnExchange, Traders, parameters
from streams.bench.pace import PRICES_PER_S, Due, Prices, due_trades, send_when_due
from streams.bench.router import trade_records
from streams.broker.records import Record

SYMBOL = "FALLING-PERP"
HOUSE = "house"
COMMAND_TTL_MS = 3_600_000
"""Nobody trades the commands, and none may be superseded within a run."""
_RATE = Decimal("0.005")
_TOO_LITTLE = "0.4"
"""Less than the requirement of one lot at the first price."""
_FALL = Decimal("0.4")
"""All the prices fall by so much together: less than what an account has left when its command is due."""
_PRICES_PER_S_IDLE = 1
_START_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Milliseconds."""

    p50: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Each is the least of ``seconds`` that so many do not exceed."""
        ordered = sorted(seconds)

        def at(share: float) -> float:
            return 1000 * ordered[max(0, math.ceil(share * len(ordered)) - 1)]

        return cls(p50=at(0.5), p99=at(0.99), p999=at(0.999), max=at(1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTimes:
    """One run. Of trades that are the ``cause`` there is no stage in between that could be told.

    ``late_ms``: how late this bench itself sent a record at most, which counts.
    """

    cause: Literal["trade", "price"]
    trades_per_s: float
    commands: int
    total: Quantiles
    price_to_mark: Quantiles | None = None
    mark_to_produced: Quantiles | None = None
    produced_to_visible: Quantiles | None = None
    late_ms: float


def bench_latency(
    population: Traders,
    probes: int,
    probes_per_s: float,
    trades_per_s: float,
    *,
    progress: Progress = lambda _: None,
) -> list[LatencyTimes]:
    """Measure ``probes`` trades and as many prices without load, and as many prices under ``trades_per_s``.

    Raises:
        BenchDiffers: the commands or the accounts are not what they must be.
        BenchError: it could not be run.
    """
    exchange, falling = DrawnExchange(population), _Falling(2 * probes)
    with Bed.open(progress) as bed:
        policy = PolicyParameters(command_ttl_ms=COMMAND_TTL_MS)
        bed.publish_parameters(parameters([SYMBOL, *exchange.symbols], policy))
        bed.start("router", "oracle", "engine")
        bench = _LatencyBench(bed, exchange, falling)
        progress(f"{population.accounts:,} accounts open positions, and {2 * probes:,} that will fall")
        bench.open()
        progress(f"{probes:,} trades of accounts that have too little, {probes / probes_per_s:.0f} s")
        runs = [bench.measure_trades(probes, probes_per_s)]
        for number, rate in enumerate((0.0, trades_per_s)):
            load = f"{rate:,.0f} trades/s" if rate else "no load"
            progress(f"{probes:,} prices under {load}, {probes / probes_per_s:.0f} s")
            part = falling.probes[number * probes : (number + 1) * probes]
            runs.append(bench.measure(part, probes_per_s, rate))
        if differences := bench.books.differences(account_rows(bed)):
            raise BenchDiffers("latency", differences)
    return runs


@dataclass(frozen=True, slots=True)
class Probe:
    """A price, and the account that falls below its requirement by it and by none before."""

    account: str
    price: Decimal
    collateral: str


class _Falling:
    """Accounts that hold one lot, bought at the first price, and collateral down to half-way between two prices."""

    def __init__(self, count: int) -> None:
        step, first = _FALL / count, Decimal(PRICE)
        self.probes = []
        for number in range(1, count + 1):
            edge = first - step * (2 * number - 1) / 2
            collateral = first - (1 - _RATE) * edge
            price = round(first - step * number, 9)
            self.probes.append(Probe(f"falling-{number}", price, f"{collateral:.6f}"))

    def deposits(self) -> Iterator[Transfer]:
        amounts = {probe.account: probe.collateral for probe in self.probes} | {HOUSE: DEPOSIT}
        return itertools.starmap(_transfer, amounts.items())

    def trades(self) -> Iterator[Trade]:
        return (bought(probe.account, number) for number, probe in enumerate(self.probes, 1))


def _transfer(account: str, amount: str) -> Transfer:
    return Transfer(transfer_id=account, account=account, asset=ASSET, amount=amount, sequence=1, event_time=_now_us())


def bought(account: str, trade_id: int) -> Trade:
    """One lot of the falling symbol for ``account``."""
    return Trade(
        trade_id=trade_id,
        symbol=SYMBOL,
        price=PRICE,
        quantity="1.000",
        aggressor_side="buy",
        maker=TradeSide(account=HOUSE, order_id=f"m{trade_id}", fee="0"),
        taker=TradeSide(account=account, order_id=f"t{trade_id}", fee="0"),
        event_time=_now_us(),
    )


class _LatencyBench:
    """What is running, and what has been sent to it."""

    def __init__(self, bed: Bed, exchange: DrawnExchange, falling: _Falling) -> None:
        self.bed, self.books = bed, Books()
        self._exchange, self._falling = exchange, falling
        # Trades wait for others a little, as an exchange with so many would have it; prices do not.
        self._trades, self._producer = bed.producer(linger_ms=5), bed.producer(linger_ms=0)
        self._prices = Prices(self._producer, exchange.symbols)

    def open(self) -> None:
        """Deposits, first prices, positions: each is in before the next is sent."""
        deposits = [*self._exchange.deposits(), *self._falling.deposits()]
        openings = [*self._exchange.openings(), *self._falling.trades()]
        self.books.deposit(deposits)
        self.books.trade(openings)
        now = time.time()
        self.bed.publish_transfers(deposits)
        self.bed.publish(self._prices.of(symbol, PRICE, now) for symbol in (SYMBOL, *self._exchange.symbols))
        self._await_quiet()
        self.bed.publish(trade_records(openings))
        self._await_quiet()

    def measure(self, probes: Sequence[Probe], probes_per_s: float, trades_per_s: float) -> LatencyTimes:
        """One run.

        Raises:
            BenchDiffers: the commands are not one for each price.
        """
        seconds = len(probes) / probes_per_s
        trades = self._exchange.trades(int(seconds * trades_per_s))
        self.books.trade(trades)
        first_mark = self.bed.ends(MARKS)
        with Arrivals(self.bed, COMMANDS, _account_of) as commands:
            start = time.time() + _START_S
            jitter = np.random.default_rng(len(trades)).random(len(probes))
            due = {
                probe.account: start + (number + share) / probes_per_s
                for number, (probe, share) in enumerate(zip(probes, jitter.tolist(), strict=True))
            }
            steady = PRICES_PER_S if trades else _PRICES_PER_S_IDLE
            streams = [self._falls(probes, due), self._prices.due(start, seconds, steady)]
            if trades:
                streams.append(due_trades(self._trades, trades, start, trades_per_s))
            late = send_when_due(streams)
            self._await_quiet()
            commands.await_all(due)
        if differences := commands.differences(due):
            raise BenchDiffers(f"latency under {trades_per_s:,.0f} trades/s", differences)
        return self._latencies(probes, due, commands, first_mark, trades_per_s, late)

    def measure_trades(self, count: int, per_s: float) -> LatencyTimes:
        """A run of trades that are the cause; each account has deposited a while before.

        Raises:
            BenchDiffers: the commands are not one for each trade.
        """
        # Half-way between two trades, so that no trade comes with the deposit of another.
        before = _START_S + 0.5 / per_s
        start, first_id = time.time() + 2 * before, len(self._falling.probes) + 1
        due = {f"short-{number}": start + number / per_s for number in range(count)}
        deposits = [_transfer(account, _TOO_LITTLE) for account in due]
        trades = [bought(account, first_id + number) for number, account in enumerate(due)]
        self.books.deposit(deposits)
        self.books.trade(trades)
        seconds = before + count / per_s
        with Arrivals(self.bed, COMMANDS, _account_of) as commands:
            late = send_when_due(
                [
                    self._prices.due(start - before, seconds, _PRICES_PER_S_IDLE, beside=[SYMBOL]),
                    zip(
                        (at - before for at in due.values()),
                        itertools.repeat(self._producer),
                        ((TRANSFERS, record.account.encode(), encode(record), -1) for record in deposits),
                    ),
                    zip(due.values(), itertools.repeat(self._producer), trade_records(trades)),
                ]
            )
            self._await_quiet()
            commands.await_all(due)
        if differences := commands.differences(due):
            raise BenchDiffers("latency by trade", differences)
        seen = [visible - due[account] for account, (_, visible) in commands.arrived.items()]
        return LatencyTimes(
            cause="trade", trades_per_s=0.0, commands=len(seen), total=Quantiles.of(seen), late_ms=1000 * late
        )

    def _await_quiet(self) -> None:
        self.bed.await_routed()
        self.bed.await_applied()

    def _falls(self, probes: Sequence[Probe], due: dict[str, float]) -> Iterator[Due]:
        for probe in probes:
            at = due[probe.account]
            record: Outgoing = self._prices.of(SYMBOL, str(probe.price), at)
            yield at, self._producer, record

    def _latencies(
        self,
        probes: Sequence[Probe],
        due: dict[str, float],
        commands: Arrivals,
        first_mark: list[int],
        trades_per_s: float,
        late: float,
    ) -> LatencyTimes:
        marked = _marked(self.bed, first_mark, probes)
        rows = [
            (due[account], marked[account], produced, seen) for account, (produced, seen) in commands.arrived.items()
        ]
        return LatencyTimes(
            cause="price",
            trades_per_s=trades_per_s,
            commands=len(rows),
            total=Quantiles.of([seen - at for at, _, _, seen in rows]),
            price_to_mark=Quantiles.of([mark - at for at, mark, _, _ in rows]),
            mark_to_produced=Quantiles.of([produced - mark for _, mark, produced, _ in rows]),
            produced_to_visible=Quantiles.of([seen - produced for _, _, produced, seen in rows]),
            late_ms=1000 * late,
        )


def _account_of(command: Record) -> str:
    return str(orjson.loads(command.value() or b"")["account"])


def _marked(bed: Bed, first: list[int], probes: Sequence[Probe]) -> dict[str, float]:
    """When the oracle made the first mark that is as low as each probe's price, by account."""
    times: dict[str, float] = {}
    waiting = iter(probes)
    probe = next(waiting, None)
    for record in bed.read(MARKS, first):
        frame: Any = orjson.loads(record.value() or b"{}")
        price = next((Decimal(mark["price"]) for mark in frame["marks"] if mark["symbol"] == SYMBOL), None)
        while price is not None and probe is not None and price <= probe.price:
            times[probe.account] = frame["time"] / 1e6
            probe = next(waiting, None)
    return times


def _now_us() -> int:
    return time.time_ns() // 1000
