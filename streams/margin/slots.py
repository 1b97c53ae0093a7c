"""The open positions of all rows: one table of slots, those of a row chained from its head.

A fill costs a walk along its row's chain, and a full evaluation one pass over the columns. The table knows symbols by
their ids and amounts in the units they are in; what a lot or a unit of cash is worth is left to the ledger.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streams.margin.amounts import Amounts, Ints, grown, scalars
from streams.margin.fixed_point import INT64_MAX

Rows = npt.NDArray[np.int64]
"""Rows, each a group."""

VACANT = 0
"""Symbol id of a slot that holds nothing: always live, worth nothing."""

_SLOTS_START = 4096


class SlotTable:
    """``row``, ``symbol``: int64[slots], whose the slot is and the id of its symbol, :data:`VACANT` if it is free.

    ``lots``, ``cash``: the amounts. Slots from ``used`` on have never held anything. The views are for scalars; adding
    a slot or a row may replace them, and the columns.

    ``texts``: what a reader has written about a row, for itself, and behind it the slots whose amounts have changed
    since. It is gone when the row has other slots than then. Whoever sets amounts says so here.
    """

    __slots__ = (
        "_following", "_free", "_head", "_row_view", "cash", "cash_view", "following_view", "head_view", "lots",
        "lots_view", "row", "symbol", "symbol_view", "texts", "used",
    )  # fmt: skip

    def __init__(self, rows: int) -> None:
        self.used = 0
        self._free = -1
        self._head = np.full(rows, -1, dtype=np.int64)
        self._following = np.full(_SLOTS_START, -1, dtype=np.int64)
        self.row = np.zeros(_SLOTS_START, dtype=np.int64)
        self.symbol = np.zeros(_SLOTS_START, dtype=np.int64)
        self.lots, self.cash = Amounts(_SLOTS_START), Amounts(_SLOTS_START)
        self.texts: dict[int, list[Any]] = {}
        self._view()

    @property
    def wide(self) -> bool:
        """Whether any amount may need more than 64 bits."""
        return self.lots.wide or self.cash.wide

    # --- slots of a row ----------------------------------------------------------------------------------------------

    def chain(self, row: int) -> list[int]:
        """The slots of ``row``."""
        slots = []
        slot = self.head_view[row]
        while slot >= 0:
            slots.append(slot)
            slot = self.following_view[slot]
        return slots

    def chains(self, rows: Rows) -> tuple[Ints, Ints]:
        """The slots of ``rows`` and, for each, the index into ``rows`` of its owner, the latter first."""
        index = np.arange(rows.size, dtype=np.int64)
        slot = self._head[rows]
        owners, slots = [], []
        while (held := slot >= 0).any():
            index, slot = index[held], slot[held]
            owners.append(index)
            slots.append(slot)
            slot = self._following[slot]
        if not slots:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        return np.concatenate(owners), np.concatenate(slots)

    def find(self, rows: Rows, symbols: Ints, most: int) -> Ints:
        """int64[n]: the slot of each of ``rows`` with the symbol id beside it, -1 if none of its first ``most`` is."""
        places = np.full(rows.size, -1, dtype=np.int64)
        index, slot = np.arange(rows.size), self._head[rows]
        for _ in range(most):
            is_there = self.symbol[slot] == symbols[index]
            is_there &= slot >= 0
            places[index[is_there]] = slot[is_there]
            goes_on = (slot >= 0) & ~is_there
            index, slot = index[goes_on], self._following[slot[goes_on]]
            if not index.size:
                break
        return places

    def add(self, row: int, symbol_id: int, first: int) -> int:
        """A slot for ``row``, whose first one is ``first`` (-1: it has none). Its amounts are 0."""
        slot = self._free
        if slot >= 0:
            self._free = self.following_view[slot]
        else:
            slot = self.used
            if slot == self.row.size:
                self._grow()
            self.used = slot + 1
        self.texts.pop(row, None)
        self._row_view[slot] = row
        self.symbol_view[slot] = symbol_id
        self.following_view[slot] = first
        self.head_view[row] = slot
        return slot

    def add_all(self, row: int, held: Sequence[tuple[int, int, int]]) -> None:
        """Slots for ``row``, which has none: (symbol id, lots, cash) of each, ordinary amounts of 64 bits."""
        first, slot = -1, self.used
        if self._free >= 0 or slot + len(held) > self.row.size:
            for symbol_id, lots, cash in held:
                first = self.add(row, symbol_id, first)
                self.lots_view[first], self.cash_view[first] = lots, cash
            return
        rows, symbols, following = self._row_view, self.symbol_view, self.following_view
        lots_view, cash_view = self.lots_view, self.cash_view
        for symbols[slot], lots_view[slot], cash_view[slot] in held:
            rows[slot] = row
            following[slot] = first
            first = slot
            slot += 1
        self.head_view[row], self.used = first, slot

    def move_first(self, row: int, slot: int, before: int, first: int) -> None:
        """Symbols traded lately are found soonest: what keeps a market maker's fills cheap."""
        self.following_view[before] = self.following_view[slot]
        self.following_view[slot] = first
        self.head_view[row] = slot

    def remove(self, row: int, slot: int, before: int) -> None:
        """Free a slot of ``row``; ``before`` is the one that it follows, -1 if it is the first."""
        following = self.following_view[slot]
        if before < 0:
            self.head_view[row] = following
        else:
            self.following_view[before] = following
        self.symbol_view[slot] = VACANT
        self.texts.pop(row, None)
        self._row_view[slot] = self.lots_view[slot] = self.cash_view[slot] = 0
        if self.lots.wide or self.cash.wide:
            self.lots.clear(slot)
            self.cash.clear(slot)
        self.following_view[slot] = self._free
        self._free = slot

    def clear(self, row: int) -> None:
        """Free every slot of ``row``."""
        while (slot := self.head_view[row]) >= 0:
            self.remove(row, slot, -1)

    def note_change(self, slot: int) -> None:
        """The amounts of ``slot`` are set."""
        if (written := self.texts.get(self._row_view[slot])) is not None:
            written.append(slot)

    def note_changes(self, slots: Ints) -> None:
        """The amounts of ``slots`` are set."""
        if self.texts:
            texts = self.texts
            for row, slot in zip(self.row[slots].tolist(), slots.tolist(), strict=True):
                if (written := texts.get(row)) is not None:
                    written.append(slot)

    # --- slots of a symbol -------------------------------------------------------------------------------------------

    def of_symbol(self, symbol_id: int) -> Ints:
        """int64[k], ascending: the slots with that symbol."""
        return np.flatnonzero(self.symbol[: self.used] == symbol_id)

    def lots_by_symbol(self, slots: Ints, symbols: int, *, shorts: bool) -> list[int]:
        """By symbol id, below ``symbols``: the lots of the long positions in ``slots``, and of the short ones."""
        lots, symbol = self.lots.low[slots], self.symbol[slots]
        wide = ~self.lots.within(slots, INT64_MAX)
        lots = np.where(wide, 0, np.abs(lots) if shorts else np.maximum(lots, 0))
        halves = np.zeros((2, symbols), dtype=np.int64)  # apart, so that no sum can overflow
        np.add.at(halves[0], symbol, lots >> 32)
        np.add.at(halves[1], symbol, lots & 0xFFFFFFFF)
        totals = [(high << 32) + low for high, low in zip(*halves.tolist(), strict=True)]
        for slot in slots[wide].tolist():
            held = self.lots.units(slot)
            totals[self.symbol_view[slot]] += abs(held) if shorts else max(held, 0)
        return totals

    # --- columns -----------------------------------------------------------------------------------------------------

    def resize_rows(self, rows: int) -> None:
        """Make room for so many rows, the new ones without a slot."""
        self._head = grown(self._head, rows, -1)
        self._view()

    def replace(self, lots: Amounts, cash: Amounts) -> None:
        """Hold ``lots`` and ``cash``: the amounts there were, in other units. What is written of them still holds."""
        self.lots, self.cash = lots, cash
        self._view()

    def _grow(self) -> None:
        slots = 2 * self.row.size
        self.row = grown(self.row, slots)
        self.symbol = grown(self.symbol, slots)
        self._following = grown(self._following, slots, -1)
        self.lots.resize(slots)
        self.cash.resize(slots)
        self._view()

    def _view(self) -> None:
        self.head_view = scalars(self._head)
        self.following_view = scalars(self._following)
        self._row_view = scalars(self.row)
        self.symbol_view = scalars(self.symbol)
        self.lots_view, self.cash_view = self.lots.view, self.cash.view
