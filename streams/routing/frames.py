"""Splitting and sharding, without Kafka: decoded messages in, one frame of columns a shard out.

A trade becomes two fills. Per symbol the last trade id is remembered: a repeat is dropped, a gap is counted. What an
account's events are applied to is the engine's business.
"""

from dataclasses import dataclass, field

from schemas.codec import encode
from schemas.messages import FRAME_ROWS_MAX, EventFrame, LiquidationReport, Trade, TradeSide, Transfer
from schemas.partitioning import shard_of
from schemas.types import CROSS

ACCOUNTS_REMEMBERED_MAX = 1_000_000


@dataclass(slots=True)
class TradeMemory:
    """The last trade id of every symbol of one partition of ``trades.v1``."""

    last: dict[str, int] = field(default_factory=dict)

    def accept(self, trade: Trade) -> int:
        """How many ids are missing before ``trade`` (0: it is the next one), or -1 if it is a repeat.

        The first trade of a symbol has nothing before it to miss.
        """
        last = self.last.get(trade.symbol)
        if last is not None and trade.trade_id <= last:
            return -1
        self.last[trade.symbol] = trade.trade_id
        return 0 if last is None else trade.trade_id - last - 1


class ShardFrames:
    """Collects events and cuts them into frames of at most ``FRAME_ROWS_MAX`` rows a shard, in the order they came."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self._open: dict[int, EventFrame] = {}
        self._rows: dict[int, int] = {}
        self._full: list[tuple[int, EventFrame]] = []
        self._shard_of: dict[str, int] = {}

    def add_trade(self, trade: Trade) -> None:
        """Both sides of a trade: the buyer's quantity positive, the seller's negative."""
        taker_buys = trade.aggressor_side == "buy"
        self._add_fill(trade, trade.taker, trade.quantity if taker_buys else f"-{trade.quantity}")
        self._add_fill(trade, trade.maker, f"-{trade.quantity}" if taker_buys else trade.quantity)

    def add_transfer(self, transfer: Transfer) -> None:
        columns = self._frame(transfer.account).transfers
        columns.account.append(transfer.account)
        columns.margin.append(transfer.margin)
        columns.asset.append(transfer.asset)
        columns.amount.append(transfer.amount)
        columns.sequence.append(transfer.sequence)
        columns.transfer_id.append(transfer.transfer_id)

    def add_report(self, report: LiquidationReport) -> None:
        columns = self._frame(report.account).reports
        columns.account.append(report.account)
        columns.command_id.append(report.command_id)
        columns.order_id.append(report.order_id)
        columns.status.append(report.status)
        columns.filled_quantity.append(report.filled_quantity)

    def take(self, time_us: int) -> list[tuple[int, bytes]]:
        """The frames collected so far as (shard, bytes), stamped with ``time_us``; begins anew."""
        frames = self._full + list(self._open.items())
        self._full, self._open, self._rows = [], {}, {}
        for _, frame in frames:
            frame.time = time_us
        return [(shard, encode(frame)) for shard, frame in frames]

    def _add_fill(self, trade: Trade, side: TradeSide, quantity: str) -> None:
        columns = self._frame(side.account).fills
        columns.account.append(side.account)
        columns.margin.append(CROSS if side.margin == "cross" else trade.symbol)
        columns.symbol.append(trade.symbol)
        columns.quantity.append(quantity)
        columns.price.append(trade.price)
        columns.fee.append(side.fee)
        columns.order_id.append(side.order_id)
        columns.trade_id.append(trade.trade_id)

    def _frame(self, account: str) -> EventFrame:
        shard = self._shard_of.get(account)
        if shard is None:
            if len(self._shard_of) >= ACCOUNTS_REMEMBERED_MAX:
                self._shard_of.clear()
            shard = self._shard_of[account] = shard_of(account, self.shards)
        rows = self._rows.get(shard, 0)
        if rows >= FRAME_ROWS_MAX:
            self._full.append((shard, self._open.pop(shard)))
            rows = 0
        self._rows[shard] = rows + 1
        frame = self._open.get(shard)
        if frame is None:
            frame = self._open[shard] = EventFrame(time=0)
        return frame
