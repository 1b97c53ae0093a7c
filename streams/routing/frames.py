"""Collecting events as columns by shard, and cutting them into frames.

Pure: decoded messages in, the bytes of ``margin.events.v1`` out. Events of one kind and account stay in the order in
which they came. Which messages are collected is the splitter's business.
"""

from collections.abc import Iterator

from schemas.codec import encode
from schemas.messages import (
    FRAME_ROWS_MAX,
    EventFrame,
    FillColumns,
    LiquidationReport,
    ReportColumns,
    Suspension,
    Trade,
    TradeSide,
    Transfer,
    TransferColumns,
)
from schemas.partitioning import shard_of
from schemas.types import CROSS

FRAME_BYTES_MAX = 900_000
"""Largest frame: a record must stay below the 1,048,588 bytes that a topic takes by default."""

ACCOUNTS_REMEMBERED_MAX = 1_000_000
"""How many accounts' shards are kept at hand; beyond that they are computed anew (about 3 us each)."""

Columns = TransferColumns | FillColumns | ReportColumns


class ShardFrames:
    """Collects events and cuts them into frames of at most ``FRAME_ROWS_MAX`` rows and ``FRAME_BYTES_MAX`` bytes."""

    def __init__(self, shards: int) -> None:
        self._shards = [_ShardRows() for _ in range(shards)]
        self._home: dict[str, _ShardRows] = {}

    def add_trade(self, trade: Trade) -> None:
        """Both sides of a trade, the taker's first: the buyer's quantity positive, the seller's negative."""
        sold = "-" + trade.quantity
        if trade.aggressor_side == "buy":
            self._add_fill(trade, trade.taker, trade.quantity)
            self._add_fill(trade, trade.maker, sold)
        else:
            self._add_fill(trade, trade.taker, sold)
            self._add_fill(trade, trade.maker, trade.quantity)

    def add_transfer(self, transfer: Transfer) -> None:
        """A transfer into or out of an account."""
        columns = self._row_of(transfer.account).transfers
        columns.account.append(transfer.account)
        columns.margin.append(transfer.margin)
        columns.asset.append(transfer.asset)
        columns.amount.append(transfer.amount)
        columns.sequence.append(transfer.sequence)
        columns.transfer_id.append(transfer.transfer_id)

    def add_report(self, report: LiquidationReport) -> None:
        """What became of an order of a command."""
        columns = self._row_of(report.account).reports
        columns.account.append(report.account)
        columns.command_id.append(report.command_id)
        columns.order_id.append(report.order_id)
        columns.status.append(report.status)
        columns.filled_quantity.append(report.filled_quantity)

    def add_suspension(self, suspension: Suspension) -> None:
        """An account whose record could not be read."""
        self._row_of(suspension.account).suspensions.append(suspension)

    def take(self, time_us: int) -> list[tuple[int, bytes]]:
        """The frames collected so far as (shard, bytes), in order within a shard, all of ``time_us``; begins anew."""
        taken = []
        for shard, rows in enumerate(self._shards):
            for frame in rows.take():
                frame.time = time_us
                taken += [(shard, data) for data in _encoded(frame)]
        return taken

    def _add_fill(self, trade: Trade, side: TradeSide, quantity: str) -> None:
        account = side.account
        columns = self._row_of(account).fills
        columns.account.append(account)
        columns.margin.append(CROSS if side.margin == "cross" else trade.symbol)
        columns.symbol.append(trade.symbol)
        columns.quantity.append(quantity)
        columns.price.append(trade.price)
        columns.fee.append(side.fee)
        columns.order_id.append(side.order_id)
        columns.trade_id.append(trade.trade_id)

    def _row_of(self, account: str) -> EventFrame:
        """The frame that takes the next row of ``account``."""
        home = self._home.get(account)
        if home is None:
            if len(self._home) >= ACCOUNTS_REMEMBERED_MAX:
                self._home.clear()
            home = self._home[account] = self._shards[shard_of(account, len(self._shards))]
        if home.rows == FRAME_ROWS_MAX:
            home.cut()
        home.rows += 1
        return home.open


class _ShardRows:
    """One shard's frames: those that are full, and the open one with its count of rows."""

    __slots__ = ("full", "open", "rows")

    def __init__(self) -> None:
        self.full: list[EventFrame] = []
        self.open = EventFrame(time=0)
        self.rows = 0

    def cut(self) -> None:
        self.full.append(self.open)
        self.open = EventFrame(time=0)
        self.rows = 0

    def take(self) -> list[EventFrame]:
        if self.rows:
            self.cut()
        taken, self.full = self.full, []
        return taken


def _encoded(frame: EventFrame) -> Iterator[bytes]:
    """The bytes of ``frame``, or of its halves if they would be too many."""
    data = encode(frame)
    rows = len(frame.suspensions) + sum(len(_columns(frame, kind).account) for kind in _KINDS)
    if len(data) <= FRAME_BYTES_MAX or rows == 1:
        yield data
        return
    yield from _encoded(_slice(frame, 0, rows // 2))
    yield from _encoded(_slice(frame, rows // 2, rows))


def _slice(frame: EventFrame, first: int, end: int) -> EventFrame:
    """The rows ``[first, end)`` of ``frame``, counted in the order in which the engine applies them."""
    part = EventFrame(time=frame.time, repaired=frame.repaired)
    count = len(frame.suspensions)
    part.suspensions = frame.suspensions[first : max(end, 0)]
    first, end = first - count, end - count
    for kind in _KINDS:
        given, taken = _columns(frame, kind), _columns(part, kind)
        count = len(given.account)
        for name in given.__struct_fields__:
            setattr(taken, name, getattr(given, name)[max(first, 0) : max(end, 0)])
        first, end = first - count, end - count
    return part


_KINDS = ("transfers", "fills", "reports")


def _columns(frame: EventFrame, kind: str) -> Columns:
    columns: Columns = getattr(frame, kind)
    return columns
