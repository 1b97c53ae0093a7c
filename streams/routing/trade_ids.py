"""The memory of trade ids: which trades of a partition have been routed, and what was in the last of them.

Pure: what is remembered goes to Kafka with the transaction that routes the trades, one small row per symbol, and comes
back from there (:mod:`streams.routing.ownership`). So a repeat, and a trade that contradicts one that was routed, are
known over any restart. Where a router begins at an accepted offset it may be folded anew from the log.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import Range, Trade
from schemas.topics import TRADES
from schemas.types import Sequence

REPEATED = -1

WINDOW = 16
"""How many of a symbol's last trades are known by content."""

STRAY_IDS = 1_000_000
"""An id that leaves out more may be a stray one: then the symbol's own go on in the gap before it."""

OPEN_GAPS_MAX = 8
"""Such gaps of one symbol that stay open. Beyond, the lower and the upper half of them do: ids may be times."""

MIGRATED_SLACK_US = 60_000_000
"""How far the times of trades may be out of the order of their ids, where only the last id is known."""

_DIGEST_BYTES = 8
_ENTRY = struct.Struct(f">Q{_DIGEST_BYTES}s")
_ENTRY_BYTES = _ENTRY.size
_WINDOW_BYTES = WINDOW * _ENTRY_BYTES
_NOTHING_SAID = blake2b(digest_size=_DIGEST_BYTES)


class RefusedTrade(DecodeError):
    """The trade is readable and must not be applied: it contradicts what was routed before, or what that was is not
    known. The text says which and why."""


class SymbolMoved(Exception):
    """A symbol that is new to the partition has a memory in another one, and nothing of it is routed before that."""

    def __init__(self, symbol: str) -> None:
        super().__init__(symbol)
        self.symbol = symbol


def _nowhere(_: str) -> bool:
    return False


class _Row(msgspec.Struct, kw_only=True):
    """The memory of one symbol as it stands in ``margin.router.v1``, ``window`` in base64."""

    last: Sequence
    window: bytes = b""
    until: int = -1
    latest: int = -1
    open: tuple[Range, ...] = ()


_ROW = Decoder[_Row](_Row)
_OLD_ROW = msgspec.json.Decoder(dict[str, int])


class SymbolMemory:
    """What is known of the trades of one symbol that were routed.

    Ids rise strictly, so an id above ``last``, the highest that was routed, is new. The gap before one that is far
    above the others stays open: what is in it is new, too. Of all other ids the last ``WINDOW`` that were routed are
    known by content, and none of those before has an event time after ``until_us``.
    """

    __slots__ = ("_latest_us", "_open", "_until_us", "_window", "last")

    def __init__(
        self,
        last: int,
        window: bytes = b"",
        until_us: int = -1,
        latest_us: int = -1,
        open_gaps: Iterable[tuple[int, int]] = (),
    ) -> None:
        self.last = last
        self._window = window
        self._until_us = until_us
        self._latest_us = latest_us
        self._open = tuple(open_gaps)

    def row(self) -> bytes:
        """Its row."""
        gaps = tuple(Range(first=first, next=following) for first, following in self._open)
        return encode(
            _Row(last=self.last, window=self._window, until=self._until_us, latest=self._latest_us, open=gaps)
        )

    @classmethod
    def of_row(cls, data: bytes) -> "SymbolMemory":
        """The memory that :meth:`row` gave ``data`` of.

        Raises:
            DecodeError: it is no such row.
        """
        row = _ROW(data)
        if len(row.window) % _ENTRY_BYTES or any(number > row.last for number in _ids(row.window)):
            raise DecodeError("the window does not hold the last trades up to the last id")
        return cls(row.last, row.window, row.until, row.latest, ((gap.first, gap.next) for gap in row.open))

    def is_new(self, trade_id: int) -> bool:
        """Whether no trade of this id can have been routed."""
        return trade_id > self.last or any(first <= trade_id < following for first, following in self._open)

    def extend(self, trade: Trade) -> int:
        """Take in ``trade``, whose id is new; how many ids it leaves out."""
        trade_id, time_us, window = trade.trade_id, trade.event_time, self._window
        last, latest_us = self.last, self._latest_us
        if not window:
            # Of a symbol without a memory nothing was routed before. Of one that has been migrated, or whose first
            # trades are gone, nothing is known of the trades before but the last id: they are older, more or less.
            self._until_us = time_us + MIGRATED_SLACK_US if last >= 0 else -1
        elif len(window) >= _WINDOW_BYTES:
            window = window[_ENTRY_BYTES:]
            self._until_us = max(self._until_us, latest_us)
        if time_us > latest_us:
            self._latest_us = time_us
        self._window = window + trade_id.to_bytes(8, "big") + _digest(trade)
        if trade_id == last + 1:
            self.last = trade_id
            return 0
        left_out = self._left_out(trade_id)
        self.last = max(last, trade_id)
        return left_out

    def _left_out(self, trade_id: int) -> int:
        """How many ids before a new one are left out; from now on they are closed, unless they are very many."""
        if trade_id > self.last:
            left_out = trade_id - self.last - 1 if self.last >= 0 else 0
            if left_out > STRAY_IDS:
                self._open += ((self.last + 1, trade_id),)
                if len(self._open) > OPEN_GAPS_MAX:
                    self._open = self._open[: OPEN_GAPS_MAX // 2] + self._open[OPEN_GAPS_MAX // 2 + 1 :]
            return left_out
        gap = next((first, following) for first, following in self._open if first <= trade_id < following)
        rest = (
            (first, following) if (first, following) != gap else (trade_id + 1, following)
            for first, following in self._open
        )
        self._open = tuple((first, following) for first, following in rest if first < following)
        return trade_id - gap[0]

    def check_repeat(self, trade: Trade) -> None:
        """``trade``, whose id is not new, must be one that was routed.

        Raises:
            RefusedTrade: it cannot be.
        """
        for number, digest in _ENTRY.iter_unpack(self._window):
            if number == trade.trade_id:
                if digest == _digest(trade):
                    return
                raise RefusedTrade(
                    f"trade {trade.trade_id} of {trade.symbol} was routed with other content: the same id names two "
                    "trades"
                )
        if not self._window:
            return
        lowest = self._known_from(trade.trade_id)
        if lowest is not None and trade.trade_id > lowest:
            raise RefusedTrade(
                f"trade {trade.trade_id} of {trade.symbol} comes after trade {self.last} and was not routed before: "
                "ids rise strictly"
            )
        if trade.event_time > self._until_us:
            raise RefusedTrade(
                f"trade {trade.trade_id} of {trade.symbol} comes after trade {self.last} and is newer than the trades "
                f"before trade {_ids(self._window)[0]}: the ids have begun anew"
            )

    def _known_from(self, trade_id: int) -> int | None:
        """The id from which on, up to ``trade_id``, all that were routed are in the window; None: it is not known.

        Between two open gaps ids rise, so they left the window in their order.
        """
        first = max((following for _, following in self._open if following <= trade_id), default=0)
        end = min((start for start, _ in self._open if start > trade_id), default=self.last + 1)
        known = [number for number in _ids(self._window) if first <= number < end]
        return known[0] if known and known == sorted(known) else None


@dataclass(slots=True)
class TradeIds:
    """The memory of one partition of ``trades.v1``: that of every symbol that was ever traded there.

    ``changed`` are the symbols whose rows must be written, ``removed`` those whose rows must be removed, ``migrated``
    says that a row of the form before must be removed, with the next transaction. ``unread`` says why the memory of a
    symbol, or, under the empty name, of every symbol without a row of its own, cannot be read: no trade of it is
    routed. ``is_cut_off``: trades before the first one of a symbol may have been routed, and are not known.
    ``is_elsewhere``: whether there is a memory of a symbol with another partition.
    """

    symbols: dict[str, SymbolMemory] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    unread: dict[str, str] = field(default_factory=dict)
    migrated: bool = False
    is_cut_off: bool = False
    is_elsewhere: Callable[[str], bool] = _nowhere

    @property
    def last(self) -> dict[str, int]:
        """The last trade id of every symbol."""
        return {symbol: memory.last for symbol, memory in self.symbols.items()}

    def accept(self, trade: Trade) -> int:
        """How many ids are missing before ``trade`` (0: it is the next one), or ``REPEATED`` if it was routed before.

        The first trade of a symbol has nothing before it to miss.

        Raises:
            RefusedTrade: it contradicts what was routed, or that is not known. Nothing was taken in.
            SymbolMoved: :meth:`adopt` must be called before.
        """
        symbol = trade.symbol
        memory = self.symbols.get(symbol)
        if self.unread and (reason := self._unknown(symbol, memory)) is not None:
            raise RefusedTrade(reason)
        if memory is None:
            if self.is_elsewhere(symbol):
                raise SymbolMoved(symbol)
            memory = self.symbols[symbol] = SymbolMemory(trade.trade_id - 1 if self.is_cut_off else -1)
        elif trade.trade_id <= memory.last and not memory.is_new(trade.trade_id):
            memory.check_repeat(trade)
            return REPEATED
        self.changed.add(symbol)
        return memory.extend(trade)

    def adopt(self, symbol: str, memory: SymbolMemory) -> None:
        """Begin with the memory that there is of ``symbol`` elsewhere. It must be committed before a trade is."""
        self.symbols[symbol] = memory
        self.changed.add(symbol)

    def replace(self, before: "TradeIds") -> None:
        """Stand in Kafka instead of ``before`` with the next transaction: all of this one, and no row of the other."""
        self.changed = set(self.symbols)
        self.removed = (before.symbols.keys() | before.unread.keys()) - {""}
        self.migrated = before.migrated or "" in before.unread

    def rows(self) -> Iterator[tuple[str, bytes | None]]:
        """What must be written with the next transaction: the row of each symbol, None to remove it; the symbol is
        empty for the row of the form before."""
        for symbol in sorted(self.changed):
            yield symbol, self.symbols[symbol].row()
        for symbol in sorted(self.removed - self.symbols.keys()):
            yield symbol, None
        if self.migrated:
            yield "", None

    def written(self) -> None:
        """All of it is in Kafka."""
        self.changed.clear()
        self.removed.clear()
        self.migrated = False

    def recall_from(self, partition: int, key: bytes | None, row: bytes | None) -> None:
        """Take in a record of ``margin.router.v1``, if it is a row of the memory of ``partition``."""
        prefix = memory_key(partition)
        if key == prefix:
            self.recall_old(row)
        elif key is not None and key.startswith(prefix + b":"):
            self.recall(key[len(prefix) + 1 :].decode("utf-8", "replace"), row)

    def recall(self, symbol: str, row: bytes | None) -> None:
        """Take in the row of a symbol (None: it was removed); one that cannot be read leaves the symbol ``unread``."""
        self.symbols.pop(symbol, None)
        self.unread.pop(symbol, None)
        if row is None:
            return
        try:
            self.symbols[symbol] = SymbolMemory.of_row(row)
        except DecodeError as error:
            self.unread[symbol] = f"the memory of the trade ids of {symbol} cannot be read ({error})"

    def recall_old(self, row: bytes | None) -> None:
        """Take in a row of the form before: the last id of every symbol of the partition, and nothing else of them.

        All of it is written again in rows of the symbols' own.
        """
        self.unread.pop("", None)
        self.migrated = False
        if row is None:
            return
        try:
            last_ids = _OLD_ROW.decode(row)  # without the codec's limit: such a row may be longer than that
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.unread[""] = f"the memory of the trade ids of all symbols cannot be read ({error})"
            return
        self.migrated = True
        for symbol, last in last_ids.items():
            if symbol not in self.symbols or self.symbols[symbol].last < last:
                self.symbols[symbol] = SymbolMemory(last)
                self.changed.add(symbol)

    def _unknown(self, symbol: str, memory: SymbolMemory | None) -> str | None:
        return self.unread.get(symbol) or (self.unread.get("") if memory is None else None)


def memory_key(partition: int, symbol: str = "") -> bytes:
    """The key in ``margin.router.v1`` of the memory of a symbol, or of the partition's in the form before."""
    return f"{TRADES}:{partition}{':' if symbol else ''}{symbol}".encode()


def _ids(window: bytes) -> list[int]:
    return [number for number, _ in _ENTRY.iter_unpack(window)]


def _digest(trade: Trade) -> bytes:
    """Eight bytes that stand for what the trade says, however its numbers were written."""
    maker, taker = trade.maker, trade.taker
    price, quantity, made, taken = trade.price, trade.quantity, maker.fee, taker.fee
    # Without the zeros that say nothing; written out, because this is done for every trade.
    if "." in price:
        price = price.rstrip("0").rstrip(".")
    if "." in quantity:
        quantity = quantity.rstrip("0").rstrip(".")
    if "." in made:
        made = made.rstrip("0").rstrip(".")
    if "." in taken:
        taken = taken.rstrip("0").rstrip(".")
    digest = _NOTHING_SAID.copy()  # quicker than a new one
    digest.update(
        f"{price} {quantity} {trade.aggressor_side} {trade.event_time} "
        f"{maker.account} {maker.order_id} {made} {maker.margin} "
        f"{taker.account} {taker.order_id} {taken} {taker.margin}".encode()
    )
    return digest.digest()
