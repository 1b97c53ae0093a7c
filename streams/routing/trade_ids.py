"""The memory of trade ids: which trades of a partition have been routed, and what was in the last of them.

Pure: what is remembered goes to Kafka with the transaction that routes the trades, one small row per symbol, and comes
back from there (:mod:`streams.routing.ownership`). So a repeat, and a trade that contradicts one that was routed, are
known over any restart. Where a router begins at an accepted offset it may be folded anew from the log.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import Trade
from schemas.types import Sequence

REPEATED = -1

WINDOW = 16
"""How many of a symbol's last trades are known by content."""

MIGRATED_SLACK_US = 60_000_000
"""How far the times of trades may be out of the order of their ids, where only the last id is known."""

_DIGEST_BYTES = 8
_ENTRY_BYTES = 8 + _DIGEST_BYTES


class RefusedTrade(DecodeError):
    """The trade is readable and must not be applied: it contradicts what was routed before, or what that was is not
    known. The text says which and why."""


class _Row(msgspec.Struct, kw_only=True):
    """The memory of one symbol as it stands in ``margin.router.v1``, ``window`` in base64."""

    last: Sequence
    window: bytes = b""
    until: int = -1
    latest: int = -1


_ROW = Decoder[_Row](_Row)
_OLD_ROW = msgspec.json.Decoder(dict[str, int])


class SymbolMemory:
    """What is known of the trades of one symbol that were routed.

    Ids rise strictly, so an id above ``last`` is new, and of those at or below it: the last ``WINDOW`` that were routed
    are known by content, and none of those before has an event time after ``until_us``.
    """

    __slots__ = ("_latest_us", "_until_us", "_window", "last")

    def __init__(self, last: int, window: bytes = b"", until_us: int = -1, latest_us: int = -1) -> None:
        self.last = last
        self._window = window
        self._until_us = until_us
        self._latest_us = latest_us

    def row(self) -> bytes:
        """Its row."""
        return encode(_Row(last=self.last, window=self._window, until=self._until_us, latest=self._latest_us))

    @classmethod
    def of_row(cls, data: bytes) -> "SymbolMemory":
        """The memory that :meth:`row` gave ``data`` of.

        Raises:
            DecodeError: it is no such row.
        """
        row = _ROW(data)
        whole = not len(row.window) % _ENTRY_BYTES
        if not whole or (row.window and _id_at(row.window, len(row.window) - _ENTRY_BYTES) != row.last):
            raise DecodeError("the window does not end at the last id")
        return cls(row.last, row.window, row.until, row.latest)

    def extend(self, trade: Trade) -> None:
        """Take in ``trade``, whose id is above ``last``."""
        if not self._window:
            # Of a symbol without a memory nothing was routed before. Of one that has been migrated, or whose first
            # trades are gone, nothing is known of the trades before but the last id: they are older, more or less.
            self._until_us = trade.event_time + MIGRATED_SLACK_US if self.last >= 0 else -1
        elif len(self._window) >= WINDOW * _ENTRY_BYTES:
            self._window = self._window[_ENTRY_BYTES:]
            self._until_us = max(self._until_us, self._latest_us)
        self.last = trade.trade_id
        self._latest_us = max(self._latest_us, trade.event_time)
        self._window += trade.trade_id.to_bytes(8, "big") + _digest(trade)

    def check_repeat(self, trade: Trade) -> None:
        """``trade``, whose id is not above ``last``, must be one that was routed.

        Raises:
            RefusedTrade: it cannot be.
        """
        for at in range(0, len(self._window), _ENTRY_BYTES):
            if _id_at(self._window, at) == trade.trade_id:
                if self._window[at + 8 : at + _ENTRY_BYTES] == _digest(trade):
                    return
                raise RefusedTrade(
                    f"trade {trade.trade_id} of {trade.symbol} was routed with other content: the same id names two "
                    "trades"
                )
        if not self._window:
            return
        if trade.trade_id > _id_at(self._window, 0):
            raise RefusedTrade(
                f"trade {trade.trade_id} of {trade.symbol} comes after trade {self.last} and was not routed before: "
                "ids rise strictly"
            )
        if trade.event_time > self._until_us:
            raise RefusedTrade(
                f"trade {trade.trade_id} of {trade.symbol} comes after trade {self.last} and is newer than the trades "
                f"before trade {_id_at(self._window, 0)}: the ids have begun anew"
            )


@dataclass(slots=True)
class TradeIds:
    """The memory of one partition of ``trades.v1``: that of every symbol that was ever traded there.

    ``changed`` are the symbols whose rows must be written, ``removed`` those whose rows must be removed, ``migrated``
    says that a row of the form before must be removed, with the next transaction. ``unread`` says why the memory of a
    symbol, or, under the empty name, of every symbol without a row of its own, cannot be read: no trade of it is
    routed. ``is_cut_off``: trades before the first one of a symbol may have been routed, and are not known.
    """

    symbols: dict[str, SymbolMemory] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    unread: dict[str, str] = field(default_factory=dict)
    migrated: bool = False
    is_cut_off: bool = False

    @property
    def last(self) -> dict[str, int]:
        """The last trade id of every symbol."""
        return {symbol: memory.last for symbol, memory in self.symbols.items()}

    def accept(self, trade: Trade) -> int:
        """How many ids are missing before ``trade`` (0: it is the next one), or ``REPEATED`` if it was routed before.

        The first trade of a symbol has nothing before it to miss.

        Raises:
            RefusedTrade: it contradicts what was routed, or that is not known. Nothing was taken in.
        """
        symbol = trade.symbol
        memory = self.symbols.get(symbol)
        if self.unread and (reason := self._unknown(symbol, memory)) is not None:
            raise RefusedTrade(reason)
        if memory is None:
            memory = self.symbols[symbol] = SymbolMemory(trade.trade_id - 1 if self.is_cut_off else -1)
        elif trade.trade_id <= memory.last:
            memory.check_repeat(trade)
            return REPEATED
        missing = trade.trade_id - memory.last - 1 if memory.last >= 0 else 0
        memory.extend(trade)
        self.changed.add(symbol)
        return missing

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


def _id_at(window: bytes, at: int) -> int:
    return int.from_bytes(window[at : at + 8], "big")


def _digest(trade: Trade) -> bytes:
    """Eight bytes that stand for what the trade says, however its numbers were written."""
    maker, taker = trade.maker, trade.taker
    said = (
        f"{_plain(trade.price)} {_plain(trade.quantity)} {trade.aggressor_side} {trade.event_time} "
        f"{maker.account} {maker.order_id} {_plain(maker.fee)} {maker.margin} "
        f"{taker.account} {taker.order_id} {_plain(taker.fee)} {taker.margin}"
    )
    return blake2b(said.encode(), digest_size=_DIGEST_BYTES).digest()


def _plain(number: str) -> str:
    """A decimal without the zeros that say nothing."""
    return number.rstrip("0").rstrip(".") if "." in number else number
