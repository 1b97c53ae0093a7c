"""What applying a fill or a transfer needs, compiled from the parameters: caches of what is parsed, scales and limits.

A fill is applied in 64 bits while it stays within the limits here, which leave no sum wrong and nothing held that a
decimal string of the contract cannot say. Applying it, one way or the other, is the ledger's business.
"""

from schemas.types import FRACTION_DIGITS_MAX, INTEGER_DIGITS_MAX
from streams.errors import InputError
from streams.margin.amounts import Amounts, high_most
from streams.margin.fixed_point import INT64_MAX, fraction_digits, from_units, parse_units, to_units
from streams.margin.rules import Instrument
from streams.margin.slots import SlotTable

_CACHE_ENTRIES_MAX = 1 << 15


def _written_most(decimals: int) -> int:
    """The largest number of units of ``10**-decimals`` that a decimal string of the contract can say."""
    most: int = 10 ** (INTEGER_DIGITS_MAX + decimals) - 1
    return most


_AMOUNT_MOST = _written_most(FRACTION_DIGITS_MAX)

AMOUNT_MOST_TEXT = from_units(_AMOUNT_MOST, FRACTION_DIGITS_MAX)
"""The most that the ledger holds of anything."""


def is_written(amount: int) -> bool:
    """Whether a decimal string of the contract can say ``amount`` units of 10**-18."""
    return -_AMOUNT_MOST <= amount <= _AMOUNT_MOST


def _short_limit(decimals: int) -> int:
    return min(INT64_MAX, _written_most(decimals))


class UnitCache(dict[str, int]):
    """Decimal strings seen lately and the whole number of units they are. A hit costs a dictionary look-up."""

    __slots__ = ("_decimals", "_factor", "_step")

    def __init__(self, decimals: int, step: int, factor: int) -> None:
        """A string must be a multiple of ``step`` * 10**-decimals; it maps to that multiple times ``factor``."""
        super().__init__()
        self._decimals, self._step, self._factor = decimals, step, factor

    def __missing__(self, text: str) -> int:
        steps, rest = divmod(parse_units(text, self._decimals), self._step)
        if rest:
            raise InputError(f"{text} is not a multiple of {from_units(self._step, self._decimals)}")
        if len(self) >= _CACHE_ENTRIES_MAX:
            self.clear()
        self[text] = units = steps * self._factor
        return units


class UnitCaches:
    """Symbols with the same increments share what has been parsed."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], UnitCache] = {}

    def __call__(self, decimals: int, step: int, factor: int) -> UnitCache:
        return self._known.setdefault((decimals, step, factor), UnitCache(decimals, step, factor))


class BalanceColumn:
    """The balances of one asset by row, in units of its own ``decimals``.

    ``limit``: as far as its 64 bits go on the short way, -1 while that is closed because of a balance whose ``high`` is
    above ``high_most``.
    """

    __slots__ = ("amounts", "asset", "asset_id", "decimals", "high_most", "limit")

    def __init__(self, asset: str, asset_id: int, decimals: int, rows: int) -> None:
        self.asset, self.asset_id = asset, asset_id
        self.amounts = Amounts(rows)
        self.rescale(decimals)

    def rescale(self, decimals: int) -> None:
        """Let the amounts, which are given in them, count in units of ``decimals``."""
        self.decimals, self.limit = decimals, _short_limit(decimals)
        self.high_most = high_most(_written_most(decimals))

    def holds(self, row: int) -> bool:
        """Whether the balance of ``row`` is not 0."""
        amounts = self.amounts
        return amounts.view[row] != 0 or (amounts.wide and not amounts.is_plain(row))

    def text(self, row: int) -> str:
        """The balance of ``row`` as a canonical decimal string, empty if it is 0."""
        if self.amounts.wide:
            return self.amounts.text(row, self.decimals) if self.holds(row) else ""
        units = self.amounts.view[row]
        return from_units(units, self.decimals) if units else ""


class FillRules:
    """What applying a fill of one symbol needs.

    A fill stays on the short way while its 64 bits stay within ``lots_limit``, ``cash_limit`` and ``balance_limit``;
    -1 closes it. ``lots_most``, ``lots_high`` and ``cash_high``: the most lots, and the largest ``high`` of lots and
    cash with which the short way is open. ``balance_scale`` is what a unit of cash is in units of the balance, 0 where
    it is less than one.
    """

    __slots__ = (
        "asset_id", "balance", "balance_limit", "balance_scale", "cash_decimals", "cash_high", "cash_limit",
        "cash_per_lot", "compiled_from", "decimals", "increment", "lot", "lot_digits", "lots", "lots_high",
        "lots_limit", "lots_most", "price_digits", "symbol_id", "tick",
    )  # fmt: skip

    balance: "memoryview[int]"
    """The balance column of the settle asset; the ledger keeps it and ``balance_limit`` current."""
    balance_limit: int

    def __init__(self, instrument: Instrument, symbol_id: int, settle: BalanceColumn, caches: UnitCaches) -> None:
        self.price_digits = fraction_digits(instrument.price_increment)
        self.tick = to_units(instrument.price_increment, self.price_digits)
        self.increment = instrument.quantity_increment
        self.lot_digits = fraction_digits(instrument.quantity_increment)
        self.lot = to_units(instrument.quantity_increment, self.lot_digits)
        self.compiled_from = (instrument, settle.decimals)
        self.symbol_id = symbol_id
        self.asset_id = settle.asset_id
        self.decimals = settle.decimals
        self.cash_decimals = self.price_digits + self.lot_digits
        finer = self.cash_decimals - self.decimals
        self.balance_scale: int = 0 if finer > 0 else 10**-finer
        self.lots = caches(self.lot_digits, self.lot, 1)
        self.lots_most = _written_most(self.lot_digits) // self.lot
        self.lots_high = high_most(self.lots_most)
        self.cash_high = high_most(_written_most(self.cash_decimals))
        self.lots_limit = min(INT64_MAX, self.lots_most)
        self.cash_limit = _short_limit(self.cash_decimals)
        self.cash_per_lot = caches(self.price_digits, self.tick, self.tick * self.lot)

    @property
    def most_text(self) -> str:
        """The largest position, as a quantity."""
        return from_units(self.lots_most * self.lot, self.lot_digits)

    def texts(self, table: SlotTable, slot: int) -> tuple[str, str]:
        """Quantity and cash of the position in ``slot``, as canonical decimal strings."""
        lots, cash, decimals = table.lots, table.cash, self.cash_decimals
        units = lots.units(slot) if lots.wide else lots.view[slot]
        cash_text = cash.text(slot, decimals) if cash.wide else from_units(cash.view[slot], decimals)
        return from_units(units * self.lot, self.lot_digits), cash_text
