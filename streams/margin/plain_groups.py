"""Groups of ordinary amounts into the columns, the short way: for a shard that takes a hundred thousand of them.

An amount is ordinary that is a whole number of the units of its column and fits 64 bits. What is read here is exactly
what :meth:`Ledger.load_group` reads of the same strings; of a group with anything else nothing is read, and it goes
that way, which also says what is wrong with it.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from streams.errors import InputError
from streams.margin.amounts import Amounts
from streams.margin.fill_rules import BalanceColumn, FillRules, UnitCache
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


class _PlainUnits(UnitCache):
    """Of what is not ordinary there is no entry, and none is made."""

    __slots__ = ("_least",)

    def __init__(self, decimals: int, step: int, least: int) -> None:
        """``least``: the fewest units either way that are ordinary."""
        super().__init__(decimals, step, 1)
        self._least = least

    def __missing__(self, text: str) -> int:
        units = super().__missing__(text)
        if not self._least <= abs(units) <= INT64_MAX:
            del self[text]
            raise InputError(f"{text} is not ordinary")
        return units


class PlainGroups:
    """Reads and loads groups under the parameters that were in force when it was made; to be dropped when all are in.

    ``columns`` are those of the assets of the parameters, ``rules`` those of the instruments that can be held.
    """

    def __init__(self, columns: Mapping[str, BalanceColumn], rules: Mapping[str, FillRules], slots: SlotTable) -> None:
        caches: dict[tuple[int, int, int], _PlainUnits] = {}  # its own: few amounts are ever seen again

        def cache(decimals: int, step: int, least: int) -> _PlainUnits:
            key = (decimals, step, least)
            return caches.setdefault(key, _PlainUnits(*key))

        self._columns = {asset: (each.amounts, cache(each.decimals, 1, 0)) for asset, each in columns.items()}
        self._rules = {
            symbol: (each.symbol_id, cache(each.lot_digits, each.lot, 1), cache(each.cash_decimals, 1, 0))
            for symbol, each in rules.items()
        }
        self._slots = slots

    def read(self, balances: Mapping[str, str], positions: Sequence[PositionText]) -> PlainGroup | None:
        """A group as it is loaded; None if it is not ordinary, or none at all. Nothing is changed."""
        columns, rules = self._columns, self._rules
        amounts, held = [], []
        try:
            for asset, text in balances.items():
                column, units_of = columns[asset]
                amounts.append((column, units_of[text]))
            for position in positions:
                symbol_id, lots_of, units_of = rules[position.symbol]
                held.append((symbol_id, lots_of[position.quantity], units_of[position.cash]))
        except (KeyError, InputError):
            return None
        if len(held) > 1 and len({symbol_id for symbol_id, _, _ in held}) < len(held):
            return None
        return amounts, held

    def load(self, row: int, group: PlainGroup) -> None:
        """Make ``row``, which holds nothing, hold ``group``."""
        amounts, held = group
        for column, units in amounts:
            column.view[row] = units
        if held:
            self._slots.add_all(row, held)
