"""The market of a bench: accounts with positions in a few symbols each, and trades drawn between them.

Everybody is far above the requirement and stays there, so that what is measured is the trades alone. All of it follows
from the seed.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from schemas.messages import Trade, TradeSide, Transfer
from schemas.parameters import (
    AssetParameters,
    InstrumentParameters,
    MarginTier,
    OracleParameters,
    Parameter,
    PolicyParameters,
)
from streams.bench.errors import BenchError

ASSET = "USDC"
PRICE = "100.0"
DEPOSIT = "1000000000"
SOURCE = "a"
MARK_AGE_MS = 60_000
TAKER_FEE = "0.01"
Drawn = Literal["uniform", "zipf"]
"""How often each account trades: all alike, or the n-th in proportion to 1/n."""

_TIERS = (MarginTier(notional_floor="0", maintenance_rate="0.005", initial_rate="0.01"),)


@dataclass(frozen=True, slots=True)
class Traders:
    """``accounts`` with ``positions`` each, over ``symbols``: account n is in the symbols n, n + 1, … (modulo).

    Raises:
        BenchError: there are too few symbols or accounts for that.
    """

    accounts: int
    symbols: int
    positions: int
    drawn: Drawn = "uniform"
    seed: int = 1

    def __post_init__(self) -> None:
        if self.positions > self.symbols:
            raise BenchError(f"{self.positions} positions of one account need as many symbols, not {self.symbols}")
        if self.accounts < 2 * self.symbols:
            raise BenchError(f"{self.symbols} symbols need at least {2 * self.symbols} accounts, not {self.accounts}")


def parameters(symbols: Sequence[str], policy: PolicyParameters | None = None) -> list[Parameter]:
    """The rules of a market in ``symbols``: one asset, one price source a symbol."""
    records: list[Parameter] = [AssetParameters(asset=ASSET, decimals=6), policy or PolicyParameters()]
    for symbol in symbols:
        records.append(
            InstrumentParameters(
                symbol=symbol,
                settle_asset=ASSET,
                price_increment="0.1",
                quantity_increment="0.001",
                margin_tiers=_TIERS,
            )
        )
        records.append(OracleParameters(symbol=symbol, sources={SOURCE: "1"}, max_age_ms=MARK_AGE_MS))
    return records


class DrawnExchange:
    """Draws what an exchange sends: a deposit for each account, the trades that open positions, and trades after that.

    Trade ids rise by one per symbol over everything that one exchange draws.
    """

    def __init__(self, population: Traders) -> None:
        self.population = population
        self.symbols = [f"S{number}-PERP" for number in range(population.symbols)]
        self._names = [f"account-{number}" for number in range(population.accounts)]
        self._next_id = [1] * population.symbols
        self._generator = np.random.default_rng(population.seed)
        weights = np.ones(population.accounts)
        if population.drawn == "zipf":
            weights /= np.arange(1, population.accounts + 1)
        self._shares = np.cumsum(weights) / weights.sum()

    def deposits(self) -> Iterator[Transfer]:
        """One large deposit for each account."""
        for name in self._names:
            yield Transfer(
                transfer_id=name, account=name, asset=ASSET, amount=DEPOSIT, sequence=1, event_time=_now_us()
            )

    def openings(self) -> list[Trade]:
        """The trades after which every account has its positions: its neighbour in the symbols has the other side."""
        count, symbols = self.population.accounts, self.population.symbols
        trades = []
        for number in range(count):
            if (number // symbols) % 2:
                continue  # it is the neighbour
            neighbour = number + symbols if number + symbols < count else number - symbols
            trades += [
                self._trade((number + offset) % symbols, number, neighbour, PRICE, "1.000", "buy")
                for offset in range(self.population.positions)
            ]
        return trades

    def trades(self, count: int) -> list[Trade]:
        """``count`` trades between accounts that are in the same symbol."""
        symbols, takers, makers = self._pairs(count)
        draw = self._generator
        prices, lots = draw.integers(950, 1051, count).tolist(), draw.integers(1, 101, count).tolist()
        sides = draw.integers(0, 2, count).tolist()
        return [
            self._trade(symbol, taker, maker, f"{price / 10}", f"{lot / 1000:.3f}", "buy" if side else "sell")
            for symbol, taker, maker, price, lot, side in zip(
                symbols.tolist(), takers.tolist(), makers.tolist(), prices, lots, sides, strict=True
            )
        ]

    def _pairs(self, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        symbols, positions = self.population.symbols, self.population.positions
        takers, others = self._draw_accounts(count), self._draw_accounts(count)
        traded = (takers + self._generator.integers(0, positions, count)) % symbols
        first = (traded - self._generator.integers(0, positions, count)) % symbols
        makers = others - (others - first) % symbols
        makers = np.where(makers < 0, makers + symbols, makers)
        further = np.where(makers + symbols < self.population.accounts, makers + symbols, makers - symbols)
        return traded, takers, np.where(makers == takers, further, makers)

    def _draw_accounts(self, count: int) -> npt.NDArray[np.int64]:
        drawn = np.searchsorted(self._shares, self._generator.random(count), side="right")
        return np.minimum(drawn, self.population.accounts - 1).astype(np.int64)

    def _trade(
        self, symbol: int, taker: int, maker: int, price: str, quantity: str, side: Literal["buy", "sell"]
    ) -> Trade:
        number = self._next_id[symbol]
        self._next_id[symbol] = number + 1
        return Trade(
            trade_id=number,
            symbol=self.symbols[symbol],
            price=price,
            quantity=quantity,
            aggressor_side=side,
            maker=TradeSide(account=self._names[maker], order_id=f"m{number}", fee="0"),
            taker=TradeSide(account=self._names[taker], order_id=f"t{number}", fee=TAKER_FEE),
            event_time=_now_us(),
        )


def _now_us() -> int:
    return time.time_ns() // 1000
