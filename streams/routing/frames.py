"""Collecting events as columns by shard, and cutting them into frames.

Pure: decoded messages in, the bytes of ``margin.events.v1`` out. Events of one kind and account stay in the order in
which they came. All that a trade, transfer or report holds for a shard stays in one frame, and each frame says which
records it covers. Which messages are collected is the splitter's business.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from schemas.codec import encode
from schemas.messages import (
    FRAME_ROWS_MAX,
    ROW_KINDS,
    EventFrame,
    FillColumns,
    LiquidationReport,
    SourceRange,
    Spread,
    Suspension,
    Trade,
    TradeSide,
    Transfer,
    rows_of,
)
from schemas.partitioning import home_of
from schemas.types import CROSS

FRAME_BYTES_MAX = 900_000
"""Largest frame: a record must stay below the 1,048,588 bytes that a topic takes by default."""

ACCOUNTS_REMEMBERED_MAX = 1_000_000
"""How many accounts' shards are kept at hand; beyond that they are computed anew (about 2 us each)."""

_SUSPENSION_ROWS = 2
"""A suspension takes the room of so many rows: with its reason it is longer, and a frame that is too long is encoded
again in parts."""

_FILL_COLUMNS = FillColumns.__struct_fields__


@dataclass(eq=False, slots=True)
class Source:
    """A partition of an input topic that is routed from ``first`` on."""

    topic: str
    topic_id: str
    partition: int
    first: int


class ShardFrames:
    """Collects events and cuts them into frames of at most ``FRAME_ROWS_MAX`` rows and ``FRAME_BYTES_MAX`` bytes.

    Every event comes from a ``source`` at an ``offset``, in the order of the source.
    """

    def __init__(self, shards: int) -> None:
        self._shards = [_ShardRows() for _ in range(shards)]
        self._spread = Spread(version=0, shards=shards, target=shards)
        self._home: dict[str, _ShardRows] = {}

    def spread_over(self, spread: Spread, shards: int) -> None:
        """What is added from now on goes where ``spread`` says, to ``shards`` altogether."""
        for rows in self._shards:
            rows.route_by(spread)
        for _ in range(len(self._shards), shards):
            self._shards.append(_ShardRows())
            self._shards[-1].route_by(spread)
        self._spread = spread
        self._home.clear()

    def add_trade(self, trade: Trade, source: Source, offset: int) -> None:
        """Both sides of a trade, the taker's first: the buyer's quantity positive, the seller's negative."""
        maker, taker = trade.maker, trade.taker
        home = self._home
        makers = home.get(maker.account) or self._home_of(maker.account)
        takers = home.get(taker.account) or self._home_of(taker.account)
        bought, sold = trade.quantity, "-" + trade.quantity
        taken, made = (bought, sold) if trade.aggressor_side == "buy" else (sold, bought)
        takers.reserve(2 if makers is takers else 1)
        takers.add_fill(trade, taker, taken, source, offset)
        if makers is not takers:
            makers.reserve(1)
        makers.add_fill(trade, maker, made, source, offset)

    def add_transfer(self, transfer: Transfer, source: Source, offset: int) -> None:
        """A transfer into or out of an account."""
        home = self._home_of(transfer.account)
        home.reserve(1)
        columns = home.open.transfers
        columns.account.append(transfer.account)
        columns.margin.append(transfer.margin)
        columns.asset.append(transfer.asset)
        columns.amount.append(transfer.amount)
        columns.sequence.append(transfer.sequence)
        columns.transfer_id.append(transfer.transfer_id)
        if columns.order_id is not UNSET:
            columns.order_id.append(transfer.order_id or "")
        elif transfer.order_id is not None:
            columns.order_id = [""] * (len(columns.account) - 1) + [transfer.order_id]
        columns.source.append(home.cover(source, offset))
        columns.source_offset.append(offset)

    def add_report(self, report: LiquidationReport, source: Source, offset: int) -> None:
        """What became of an order of a command."""
        home = self._home_of(report.account)
        home.reserve(1)
        columns = home.open.reports
        columns.account.append(report.account)
        columns.command_id.append(report.command_id)
        columns.order_id.append(report.order_id)
        columns.status.append(report.status)
        columns.filled_quantity.append(report.filled_quantity)
        columns.source.append(home.cover(source, offset))
        columns.source_offset.append(offset)

    def add_suspension(self, suspension: Suspension, source: Source) -> None:
        """An account whose record could not be read.

        Those of one record may be in several frames: a shard that is told twice is told once.
        """
        home = self._home.get(suspension.account) or self._home_of(suspension.account)
        home.reserve(_SUSPENSION_ROWS)
        home.cover(source, suspension.offset)
        home.open.suspensions.append(suspension)

    def close(self, source: Source, next_offset: int) -> None:
        """Tell every shard that has not heard it yet that it knows everything of ``source`` below ``next_offset``."""
        for rows in self._shards:
            if rows.told.get(source, -1) < next_offset:
                rows.cover(source, next_offset - 1)

    def tell_lost(self, source: Source, reason: str) -> None:
        """Tell every shard, before anything else of ``source``, that what it has not had from before it is lost."""
        for rows in self._shards:
            rows.tell_lost(source, reason)

    def drop(self, source: Source) -> None:
        """Forget how far ``source`` has been covered. None of its events may be waiting."""
        for rows in self._shards:
            rows.told.pop(source, None)

    def take(self, time_us: int) -> list[tuple[int, bytes]]:
        """The frames collected so far as (shard, bytes), in order within a shard, all of ``time_us``; begins anew."""
        taken = []
        for shard, rows in enumerate(self._shards):
            for frame in rows.take():
                frame.time = time_us
                taken += [(shard, data) for data in _encoded(frame)]
        return taken

    def _home_of(self, account: str) -> "_ShardRows":
        home = self._home.get(account)
        if home is None:
            if len(self._home) >= ACCOUNTS_REMEMBERED_MAX:
                self._home.clear()
            home = self._home[account] = self._shards[home_of(account, self._spread)]
        return home


class _ShardRows:
    """One shard's frames: those that are full, and the open one with its count of rows and the sources in it.

    ``told`` is the offset up to which the frames of a source have covered it. The fills are the open frame's only when
    it is cut: until then they are one list, row by row, because a column for each value costs more than the values.
    """

    __slots__ = ("_fills", "_indexes", "_next", "_spread", "full", "open", "rows", "told")

    def __init__(self) -> None:
        self._spread: Spread | UnsetType = UNSET
        self.full: list[EventFrame] = []
        self.open = EventFrame(time=0)
        self.rows = 0
        self._indexes: dict[Source, int] = {}
        self._next: list[int] = []
        self._fills: list[Any] = []
        self.told: dict[Source, int] = {}

    def route_by(self, spread: Spread) -> None:
        """What comes from now on is routed by ``spread``, and says so."""
        if self._indexes:
            self._cut()
        self._spread = spread
        self.open = self._new()

    def _new(self) -> EventFrame:
        return EventFrame(time=0, spread=self._spread)

    def reserve(self, rows: int) -> None:
        """Have the open frame take ``rows`` more."""
        if self.rows + rows > FRAME_ROWS_MAX:
            self._cut()
        self.rows += rows

    def cover(self, source: Source, offset: int) -> int:
        """The number of ``source`` in the open frame, which covers the record at ``offset``."""
        index = self._indexes.get(source)
        if index is None:
            index = self._indexes[source] = len(self._next)
            self._next.append(0)
        self._next[index] = offset + 1
        return index

    def add_fill(self, trade: Trade, side: TradeSide, quantity: str, source: Source, offset: int) -> None:
        symbol = trade.symbol
        self._fills += (  # in the order of _FILL_COLUMNS
            side.account,
            CROSS if side.margin == "cross" else symbol,
            symbol,
            quantity,
            trade.price,
            side.fee,
            side.order_id,
            trade.trade_id,
            self.cover(source, offset),
            offset,
        )

    def tell_lost(self, source: Source, reason: str) -> None:
        """A frame of its own, which holds nothing but this."""
        if self._indexes:
            self._cut()
        said = SourceRange(
            topic=source.topic,
            topic_id=source.topic_id,
            partition=source.partition,
            first=source.first,
            next=source.first,
            lost=reason,
        )
        self.full.append(EventFrame(time=0, sources=[said], spread=self._spread))
        self.told[source] = source.first

    def take(self) -> list[EventFrame]:
        if self._indexes:
            self._cut()
        taken, self.full = self.full, []
        return taken

    def _cut(self) -> None:
        for source, next_offset in zip(self._indexes, self._next, strict=True):
            first = self.told.get(source, source.first)
            self.told[source] = next_offset
            self.open.sources.append(
                SourceRange(
                    topic=source.topic,
                    topic_id=source.topic_id,
                    partition=source.partition,
                    first=first,
                    next=next_offset,
                )
            )
        self._indexes.clear()
        self._next.clear()
        columns = self.open.fills
        for number, name in enumerate(_FILL_COLUMNS):
            setattr(columns, name, self._fills[number :: len(_FILL_COLUMNS)])
        self._fills.clear()
        self.full.append(self.open)
        self.open = self._new()
        self.rows = 0


def _encoded(frame: EventFrame) -> Iterator[bytes]:
    """The bytes of ``frame``, or of its parts if they would be too many."""
    data = encode(frame)
    if len(data) <= FRAME_BYTES_MAX:
        yield data
        return
    places = [(-1, suspension.offset) for suspension in frame.suspensions]
    for kind in ROW_KINDS:
        columns = getattr(frame, kind)
        places += zip(columns.source, columns.source_offset, strict=True)
    half = len(places) // 2
    if half and places[half - 1] == places[half] and places[half][0] >= 0:
        half += 1  # the sides of a trade, which stay together
    if not 0 < half < len(places):
        yield data
        return
    first, rest = _slice(frame, 0, half), _slice(frame, half, len(places))
    for index, source in enumerate(frame.sources):
        beyond = [offset for number, offset in places[half:] if number == index]
        border = min(beyond, default=source.next)
        first.sources.append(replace(source, next=border))
        rest.sources.append(replace(source, first=border))
    yield from _encoded(first)
    yield from _encoded(rest)


def _slice(frame: EventFrame, first: int, end: int) -> EventFrame:
    """The rows ``[first, end)`` of ``frame``, counted in the order in which the engine applies them."""
    part = EventFrame(time=frame.time, repaired=frame.repaired, spread=frame.spread)
    count = len(frame.suspensions)
    part.suspensions = frame.suspensions[first : max(end, 0)]
    for kind in ROW_KINDS:
        first, end = first - count, end - count
        columns = getattr(frame, kind)
        count = len(columns.account)
        setattr(part, kind, rows_of(columns, range(max(first, 0), max(min(end, count), 0))))
    return part
