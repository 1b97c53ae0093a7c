"""What trades cost the whole pipeline at a steady rate, and which of given rates it keeps up with.

Trades are sent at a rate whether or not the pipeline keeps up, with prices beside them. A rate is sustained if, in the
second half of its time, the trades that were sent and not yet applied never were more than those of ``backlog_s``, and
if the sender itself was in time. Rates are tried from the lowest on, until one is not sustained. The figures stand only
if all accounts are what their records add up to.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.topics import ACCOUNTS, TRADES
from streams.bench.background import Background
from streams.bench.bed import Bed, BenchRole, Progress
from streams.bench.books import Books
from streams.bench.cpu import CpuMeter
from streams.bench.errors import BenchDiffers
from streams.bench.fills import account_rows, written
from streams.bench.market import PRICE, DrawnExchange, Traders, parameters
from streams.bench.pace import PRICES_PER_S, Prices, due_trades, send_when_due
from streams.bench.router import trade_records

ROLES = ("router", "oracle", "engine")
_LOOK_S = 1.0
_START_S = 0.5
_LATE_S_MAX = 0.5
_FILLS = "margin_engine_fills_total"
_COMMITS = {"router": "margin_router_commit_seconds_count", "engine": "margin_engine_commit_seconds_count"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTimes:
    """One rate. ``cpu_s_per_million_trades`` is by role, with broker and Valkey; ``transactions_per_s`` by role.

    ``backlog_max`` is in trades, of the second half of the time; ``late_s`` how late the sender was at most;
    ``others_share`` the share of this machine's processors that others used.
    """

    trades_per_s: float
    is_sustained: bool
    trades: int
    seconds: float
    backlog_max: int
    late_s: float
    cpu_s_per_million_trades: dict[str, float]
    cpu_share: dict[str, float]
    transactions_per_s: dict[str, float]
    rows_per_s: float
    others_share: float


def bench_pipeline(
    population: Traders,
    rates: Sequence[float],
    seconds: float,
    backlog_s: float = 1.0,
    *,
    progress: Progress = lambda _: None,
) -> list[RateTimes]:
    """Try ``rates`` from the lowest on, each for ``seconds``, until one is not sustained, which is the last.

    Raises:
        BenchDiffers: the accounts are not what their records add up to.
        BenchError: it could not be run.
    """
    exchange = DrawnExchange(population)
    with Bed.open(progress) as bed:
        bed.publish_parameters(parameters(exchange.symbols))
        bed.start(*ROLES)
        bench = _PipelineBench(bed, exchange)
        progress(f"{population.accounts:,} accounts deposit and open positions")
        bench.open()
        runs = []
        for rate in sorted(rates):
            progress(f"{rate:,.0f} trades/s for {seconds:.0f} s")
            runs.append(bench.measure(rate, seconds, backlog_s))
            if not runs[-1].is_sustained:
                break
        if differences := bench.books.differences(account_rows(bed)):
            raise BenchDiffers("pipeline", differences)
    return runs


class _PipelineBench:
    """What is running, and what has been sent to it."""

    def __init__(self, bed: Bed, exchange: DrawnExchange) -> None:
        self.bed, self.books = bed, Books()
        self._exchange = exchange
        self._trades = bed.producer(linger_ms=5)
        self._prices = Prices(bed.producer(linger_ms=0), exchange.symbols)

    def open(self) -> None:
        """Deposits, first prices, positions: each is in before the next is sent."""
        deposits, openings = list(self._exchange.deposits()), self._exchange.openings()
        self.books.deposit(deposits)
        self.books.trade(openings)
        now = time.time()
        self.bed.publish_transfers(deposits)
        self.bed.publish(self._prices.of(symbol, PRICE, now) for symbol in self._exchange.symbols)
        self._await_quiet()
        self.bed.publish(trade_records(openings))
        self._await_quiet()

    def measure(self, rate: float, seconds: float, backlog_s: float) -> RateTimes:
        """One rate, and wait until all of it is applied."""
        trades = self._exchange.trades(int(rate * seconds))
        self.books.trade(trades)
        commits, first = self._commits(), self.bed.ends(ACCOUNTS)
        with CpuMeter(self.bed.pids) as meter, _Backlog(self.bed.roles["engine"]) as backlog:
            start = time.time() + _START_S
            streams = [due_trades(self._trades, trades, start, rate), self._prices.due(start, seconds, PRICES_PER_S)]
            late_s = send_when_due(streams, backlog.sent)
            end = time.time()
        commits = {role: count - commits[role] for role, count in self._commits().items()}
        rows, _ = written(self.bed, ACCOUNTS, first)
        self._await_quiet()
        used = meter.between(start, end)
        backlog_max = backlog.highest_since(start + seconds / 2)
        return RateTimes(
            trades_per_s=rate,
            is_sustained=backlog_max <= rate * backlog_s and late_s <= _LATE_S_MAX,
            trades=len(trades),
            seconds=end - start,
            backlog_max=backlog_max,
            late_s=late_s,
            cpu_s_per_million_trades={name: 1e6 * used[name] / len(trades) for name in self.bed.pids},
            cpu_share={name: used[name] / (end - start) for name in self.bed.pids},
            transactions_per_s={role: count / (end - start) for role, count in commits.items()},
            rows_per_s=rows / (end - start),
            others_share=meter.others_share(start, end),
        )

    def _commits(self) -> dict[str, float]:
        return {role: self.bed.roles[role].metrics()[name] for role, name in _COMMITS.items()}

    def _await_quiet(self) -> None:
        self.bed.await_routed()
        self.bed.await_applied()


class _Backlog(Background):
    """Trades that were sent and are not applied yet, looked at once a second: a look costs the engine some work."""

    def __init__(self, engine: BenchRole) -> None:
        super().__init__()
        self._engine = engine
        self._sent: Counter[str] = Counter()
        self._before = engine.metrics()[_FILLS]
        self._seen: list[tuple[float, int]] = []

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._look()

    def sent(self, topic: str) -> None:
        """One more record was sent."""
        self._sent[topic] += 1

    def highest_since(self, moment: float) -> int:
        """The most that there were from a time of the wall clock on."""
        return max(waiting for at, waiting in self._seen if at >= moment)

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        sent = self._sent[TRADES]
        applied = self._engine.metrics()[_FILLS] - self._before
        self._seen.append((time.time(), max(0, sent - int(applied) // 2)))
