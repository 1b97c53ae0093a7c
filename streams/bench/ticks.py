"""How long a tick takes: the trigger index beside a full re-evaluation of the same accounts, in the same run.

Time is measured round everything a new mark costs in the engine's arithmetic: setting it, finding the rows it carries
out of their bands, screening those, giving them new bands.

The accounts are taken out of the garbage collector's sight first, as a process that keeps a million of them should do:
one collection over them takes as long as twenty ticks.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from schemas.parameters import AssetParameters, InstrumentParameters, MarginTier, PolicyParameters
from schemas.types import CROSS
from streams.errors import MarginClearingError
from streams.margin.bands import TriggerIndex
from streams.margin.parameters import RiskParameters
from streams.margin.portfolio import Portfolio

_MARK = 100.0
_CALM_MOVE = 1e-4
_CRASH_MOVE = -0.10
_TIERS = ((0, "0.005", "0.01"), (50_000, "0.01", "0.02"), (250_000, "0.02", "0.04"), (1_000_000, "0.05", "0.1"))


@dataclass(frozen=True, slots=True)
class TickTimes:
    """Milliseconds per tick, and what it covered. ``full_ms``: the median of nine full re-evaluations.
    ``after_crash_max_ms``: the dearest of ten ticks after the crash."""

    accounts: int
    positions: int
    symbols: int
    full_ms: float
    index_ms: float
    calm_ticks: int
    calm_p50_ms: float
    calm_p99_ms: float
    calm_max_ms: float
    calm_rows_per_tick: float
    accounts_covered_per_s: float
    rows_evaluated_per_s: float
    rows_evaluated_per_s_full: float
    symbol_crash_ms: float
    symbol_crash_rows: int
    market_crash_ms: float
    market_crash_rows: int
    after_crash_max_ms: float


def bench_ticks(
    accounts: int = 100_000,
    positions: int = 3,
    symbols: int = 50,
    seed: int = 1,
    calm_ticks: int = 5_000,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> TickTimes:
    """Measure a calm walk (a symbol per tick, a basis point each) and two crashes of 10 %: of a symbol, of the market.

    Each account has ``positions`` positions, long or short, and so much collateral that a move of 0 to 50 %, all
    distances equally likely, against all of them at once liquidates it. ``progress`` is told what is begun.

    Raises:
        MarginClearingError: fewer symbols than positions.
    """
    if symbols < positions:
        raise MarginClearingError(f"{positions} positions of one account need as many symbols, not {symbols}")
    generator = np.random.default_rng(seed)
    progress(f"drawing {accounts:,} accounts with {positions} positions each over {symbols} symbols")
    portfolio = _population(accounts, positions, symbols, generator)
    gc.collect()
    gc.freeze()
    try:
        return _measured(portfolio, accounts, positions, symbols, generator, calm_ticks, progress)
    finally:
        gc.unfreeze()


def _measured(
    portfolio: Portfolio,
    accounts: int,
    positions: int,
    symbols: int,
    generator: np.random.Generator,
    calm_ticks: int,
    progress: Callable[[str], None],
) -> TickTimes:
    progress("evaluating all of them, then building the index")
    full_ms = float(np.median([_timed(portfolio.evaluate) for _ in range(9)]))
    started = time.perf_counter()
    index = TriggerIndex(portfolio)
    index_ms = 1e3 * (time.perf_counter() - started)
    market = _Market(portfolio, index, np.full(symbols, _MARK))
    progress(f"walking {calm_ticks:,} calm ticks, then the crashes")
    market.shake(generator)
    moved, moves = generator.integers(symbols, size=calm_ticks).tolist(), generator.normal(0, _CALM_MOVE, calm_ticks)
    calm = np.array([market.tick([symbol], move) for symbol, move in zip(moved, moves.tolist(), strict=True)])
    symbol_ms, symbol_rows = market.tick([0], _CRASH_MOVE)
    market_ms, market_rows = market.tick(list(range(symbols)), _CRASH_MOVE)
    after_ms = max(market.tick([symbol], _CALM_MOVE)[0] for symbol in generator.integers(symbols, size=10).tolist())
    times_ms, rows = calm[:, 0], calm[:, 1]
    seconds = float(times_ms.sum()) / 1e3
    return TickTimes(
        accounts=accounts,
        positions=positions,
        symbols=symbols,
        full_ms=full_ms,
        index_ms=index_ms,
        calm_ticks=calm_ticks,
        calm_p50_ms=float(np.percentile(times_ms, 50)),
        calm_p99_ms=float(np.percentile(times_ms, 99)),
        calm_max_ms=float(times_ms.max()),
        calm_rows_per_tick=float(rows.mean()),
        accounts_covered_per_s=accounts * calm_ticks / seconds,
        rows_evaluated_per_s=float(rows.sum()) / seconds,
        rows_evaluated_per_s_full=accounts / (full_ms / 1e3),
        symbol_crash_ms=symbol_ms,
        symbol_crash_rows=symbol_rows,
        market_crash_ms=market_ms,
        market_crash_rows=market_rows,
        after_crash_max_ms=after_ms,
    )


def show_ticks(console: Console, times: TickTimes) -> None:
    """Print the times as a table, each beside the full re-evaluation of the same run."""
    console.print(
        f"{times.accounts:,} accounts, {times.positions} positions each, {times.symbols} symbols; "
        f"building the index took {times.index_ms:,.0f} ms",
        highlight=False,
    )
    table = Table("", "ms per tick", "of a full one", "accounts re-evaluated", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    rows = [
        ("full re-evaluation, NumPy", times.full_ms, f"{times.accounts:,}"),
        ("calm walk, p50", times.calm_p50_ms, ""),
        ("calm walk, p99", times.calm_p99_ms, f"{times.calm_rows_per_tick:,.1f} per tick"),
        ("calm walk, max", times.calm_max_ms, ""),
        ("crash of one symbol", times.symbol_crash_ms, f"{times.symbol_crash_rows:,}"),
        ("crash of the market", times.market_crash_ms, f"{times.market_crash_rows:,}"),
        ("ten ticks after it, max", times.after_crash_max_ms, ""),
    ]
    for name, time_ms, evaluated in rows:
        table.add_row(name, f"{time_ms:,.3f}", f"{time_ms / times.full_ms:.4f}", evaluated)
    console.print(table)
    console.print(
        f"accounts covered/s in the calm walk {times.accounts_covered_per_s:,.0f}; accounts re-evaluated/s "
        f"{times.rows_evaluated_per_s:,.0f}, in a full re-evaluation {times.rows_evaluated_per_s_full:,.0f}",
        highlight=False,
    )


@dataclass(slots=True)
class _Market:
    portfolio: Portfolio
    index: TriggerIndex
    prices: npt.NDArray[np.float64]

    def tick(self, symbols: list[int], move: float) -> tuple[float, int]:
        """Move ``symbols`` by ``move``; milliseconds, and how many rows were evaluated."""
        self.prices[symbols] *= 1 + move
        marks = {f"S{symbol}-PERP": Decimal(f"{self.prices[symbol]:.6f}") for symbol in symbols}
        started = time.perf_counter()
        for symbol, mark in marks.items():
            self.portfolio.set_mark(symbol, mark, True)
        rows = self.index.crossed_all(marks)
        if rows.size:
            self.index.update(rows, self.portfolio.evaluate(rows))
        return 1e3 * (time.perf_counter() - started), rows.size

    def shake(self, generator: np.random.Generator) -> None:
        """Let the market move until bands have been left and made anew: a start all at once is no steady state."""
        for move in generator.normal(0, _CALM_MOVE, 500):
            self.tick(list(range(self.prices.size)), move)


def _population(accounts: int, positions: int, symbols: int, generator: np.random.Generator) -> Portfolio:
    tiers = tuple(
        MarginTier(notional_floor=str(floor), maintenance_rate=rate, initial_rate=initial)
        for floor, rate, initial in _TIERS
    )
    instruments = [
        InstrumentParameters(
            symbol=f"S{symbol}-PERP",
            settle_asset="USDC",
            price_increment="0.01",
            quantity_increment="0.001",
            margin_tiers=tiers,
        )
        for symbol in range(symbols)
    ]
    policy = PolicyParameters(margin_call_levels=("1.5", "1.2", "1.05"))
    portfolio = Portfolio(RiskParameters.build([AssetParameters(asset="USDC", decimals=6), policy, *instruments]))
    for symbol in range(symbols):
        portfolio.set_mark(f"S{symbol}-PERP", str(_MARK), True)
    held = np.argpartition(generator.random((accounts, symbols)), positions, axis=1)[:, :positions]
    lots = np.maximum(1, np.exp(generator.normal(9, 1.5, held.shape))).astype(np.int64)
    side = generator.choice([-1, 1], held.shape)
    distance = generator.uniform(0.0, 0.5, accounts)
    rows = [portfolio.ledger.open_group(f"account-{number}", CROSS) for number in range(accounts)]
    for row, symbol, quantity in zip(
        np.repeat(rows, positions).tolist(), held.ravel().tolist(), (lots * side).ravel().tolist(), strict=True
    ):
        portfolio.ledger.apply_fill(row, f"S{symbol}-PERP", f"{quantity / 1000:.3f}", f"{_MARK:.2f}", "0")
    gross = lots.sum(axis=1) * _MARK / 1000
    collateral = portfolio.evaluate().maintenance + distance * gross
    for row, amount in zip(rows, collateral.tolist(), strict=True):
        portfolio.ledger.apply_transfer(row, "USDC", f"{amount:.6f}")
    return portfolio


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)
