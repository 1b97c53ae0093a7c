"""Groups of ordinary amounts into the columns, the short way: for a shard that takes a hundred thousand of them.

An amount is ordinary that is a whole number of the units of its column and fits 64 bits. What is read here is exactly
what :meth:`Ledger.load_group` reads of the same strings; of a group with anything else nothing is read, and it goes
that way, which also says what is wrong with it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from streams.errors import InputError
from streams.margin.amounts import Amounts
from streams.margin.fill_rules import BalanceColumn, FillRules, UnitCaches
from streams.margin.fixed_point import INT64_MAX
from streams.margin.slots import SlotTable

PlainGroup = tuple[Sequence[tuple[Amounts, int]], Sequence[tuple[int, int, int]]]
"""Balances (column, units) and positions (symbol id, lots, units of cash)."""


class PositionText(Protocol):
    """A position as a row says it: decimal strings, if it is a row."""

    @property
    def symbol(self) -> str: ...
    @property
    def quantity(self) -> str: ...
    @property
    def cash(self) -> str: ...


class PlainGroups:
    """Reads and loads groups under the parameters that were in force when it was made; to be dropped when all are in.

    ``columns`` are those of the assets of the parameters, ``rules`` those of the instruments that can be held.
    """

    def __init__(self, columns: Mapping[str, BalanceColumn], rules: Mapping[str, FillRules], slots: SlotTable) -> None:
        caches = UnitCaches()  # its own: amounts are hardly ever seen again
        self._columns = {asset: (column.amounts, caches(column.decimals, 1, 1)) for asset, column in columns.items()}
        self._rules = {
            symbol: (each.symbol_id, each.lots, caches(each.cash_decimals, 1, 1)) for symbol, each in rules.items()
        }
        self._slots = slots

    def read(self, balances: Mapping[str, str], positions: Iterable[PositionText]) -> PlainGroup | None:
        """A group as it is loaded; None if it is not ordinary, or none at all. Nothing is changed."""
        columns, rules = self._columns, self._rules
        amounts, held = [], []
        try:
            for asset, text in balances.items():
                column, units_of = columns[asset]
                units = units_of[text]
                if not -INT64_MAX <= units <= INT64_MAX:
                    return None
                amounts.append((column, units))
            for position in positions:
                symbol_id, lots_of, units_of = rules[position.symbol]
                lots, units = lots_of[position.quantity], units_of[position.cash]
                if not lots or not (-INT64_MAX <= lots <= INT64_MAX and -INT64_MAX <= units <= INT64_MAX):
                    return None
                held.append((symbol_id, lots, units))
        except (KeyError, InputError):
            return None
        if len(held) > 1 and len({symbol_id for symbol_id, _, _ in held}) < len(held):
            return None
        return amounts, held

    def load(self, row: int, group: PlainGroup) -> None:
        """Make ``row``, which holds nothing, hold ``group``."""
        for column, units in group[0]:
            column.view[row] = units
        slots, first = self._slots, -1
        for symbol_id, lots, cash in group[1]:
            first = slots.add(row, symbol_id, first)
            slots.lots_view[first] = lots
            slots.cash_view[first] = cash
