"""How many fills one router makes of trades a second, from trades that lie in Kafka to frames that lie there.

The router runs and has routed the opening trades when it is held still; then the trades are written, and it is let go.
Time ends when the broker appended the last frame with a fill. The figures stand only if the frames hold the two fills
of every trade, each once, and no other.
"""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from schemas.codec import encode
from schemas.messages import Trade
from schemas.topics import EVENTS, TRADES
from streams.bench.bed import Bed, Outgoing, Progress
from streams.bench.cpu import CpuMeter
from streams.bench.errors import BenchDiffers
from streams.bench.market import DrawnExchange, Traders, parameters

_COMMITS = "margin_router_commit_seconds_count"

Fill = tuple[str, int, str, str, str]
"""Symbol, trade id, account, signed quantity, order id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterTimes:
    """One run. Processor seconds are per million trades, two fills each.

    ``others_share`` is the share of this machine's processors that others used.
    """

    accounts: int
    symbols: int
    trades: int
    seconds: float
    fills_per_s: float
    router_cpu_s_per_million_trades: float
    broker_cpu_s_per_million_trades: float
    frames: int
    frame_bytes_per_fill: float
    transactions_per_s: float
    router_cpu_share: float
    others_share: float
    trades_checked: int


def bench_router(population: Traders, trades: int, *, progress: Progress = lambda _: None) -> RouterTimes:
    """Measure one router.

    Raises:
        BenchDiffers: the frames are not the fills of the trades.
        BenchError: it could not be run.
    """
    exchange = DrawnExchange(population)
    openings, measured = exchange.openings(), exchange.trades(trades)
    with Bed.open(progress) as bed:
        bed.publish_parameters(parameters(exchange.symbols))
        bed.start("router")
        bed.publish(trade_records(openings))
        bed.await_routed()
        router, first = bed.roles["router"], bed.ends(EVENTS)
        waiting = list(trade_records(measured))
        commits = router.metrics()[_COMMITS]
        with CpuMeter(bed.pids) as meter:
            with bed.held_still(router.process):
                bed.publish(waiting)
                progress(f"routing {trades:,} trades")
                started = time.time()
            bed.await_routed()
        commits = router.metrics()[_COMMITS] - commits
        fills, frames = FrameFills(), 0
        for record in bed.read(EVENTS):
            is_measured = record.offset() >= first[record.partition()]
            frames += fills.add(record.value(), record.timestamp()[1], is_measured=is_measured)
    if differences := fills.differences((*openings, *measured)):
        raise BenchDiffers("router", differences)
    seconds = fills.last_ms / 1000 - started
    used = meter.between(started, fills.last_ms / 1000)
    return RouterTimes(
        accounts=population.accounts,
        symbols=population.symbols,
        trades=trades,
        seconds=seconds,
        fills_per_s=2 * trades / seconds,
        router_cpu_s_per_million_trades=1e6 * used["router"] / trades,
        broker_cpu_s_per_million_trades=1e6 * used["broker"] / trades,
        frames=frames,
        frame_bytes_per_fill=fills.measured_bytes / (2 * trades),
        transactions_per_s=commits / seconds,
        router_cpu_share=used["router"] / seconds,
        others_share=meter.others_share(started, fills.last_ms / 1000),
        trades_checked=len(openings) + trades,
    )


def trade_records(trades: Iterable[Trade]) -> Iterable[Outgoing]:
    """Trades as an exchange publishes them: under their symbols."""
    return ((TRADES, trade.symbol.encode(), encode(trade), -1) for trade in trades)


class FrameFills:
    """The fills of frames, counted."""

    def __init__(self) -> None:
        self._seen: Counter[Fill] = Counter()
        self.last_ms = 0
        self.measured_bytes = 0

    def add(self, value: bytes | None, appended_ms: int, *, is_measured: bool) -> bool:
        """Count a frame's fills; whether it has any and is measured."""
        fills: Any = orjson.loads(value or b"{}").get("fills", {})
        columns = (fills.get(name, ()) for name in ("symbol", "trade_id", "account", "quantity", "order_id"))
        held: list[Fill] = list(zip(*columns, strict=True))
        self._seen.update(held)
        if not held or not is_measured:
            return False
        self.last_ms = max(self.last_ms, appended_ms)
        self.measured_bytes += len(value or b"")
        return True

    def differences(self, trades: Iterable[Trade]) -> list[str]:
        """What is not there once, or should not be there at all."""
        left, differing = self._seen, []
        for fill in _fills_of(trades):
            count = left.pop(fill, 0)
            if count != 1:
                differing.append(f"{count} times instead of once in the frames: {_shown(fill)}")
        return differing + [f"of no trade that was sent: {_shown(fill)}" for fill in left]


def _fills_of(trades: Iterable[Trade]) -> Iterable[Fill]:
    for trade in trades:
        bought, sold = trade.quantity, f"-{trade.quantity}"
        taken, made = (bought, sold) if trade.aggressor_side == "buy" else (sold, bought)
        for side, quantity in ((trade.taker, taken), (trade.maker, made)):
            yield trade.symbol, trade.trade_id, side.account, quantity, side.order_id


def _shown(fill: Fill) -> str:
    symbol, trade_id, account, quantity, _ = fill
    return f"{quantity} of {account} in trade {trade_id} of {symbol}"
