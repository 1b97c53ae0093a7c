"""Many fills applied to a ledger's columns at once: those that are plain, which in a busy frame is nearly all of them.

The ledger is then what it would be if :meth:`Ledger.apply_fill` had taken them one by one, to the bit. Rows are taken
with all their fills or not at all: one is left where a fill opens a position, where a position becomes flat or may pass
a limit on the way, and where it is far down the row. Where one fill is not valid, or out of 64 bits, all are left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streams.margin.amounts import Bools, Floats, Ints
from streams.margin.decimal_columns import in_units, read_column
from streams.margin.fill_rules import FillRules
from streams.margin.ledger import Ledger
from streams.margin.slots import VACANT

_WALK_MAX = 16
_ROOM = 2.0**62
"""All that is added anywhere is less, taken together and as doubles: so no sum of them overflows 64 bits."""


class BulkFills:
    """Applies fills to ``ledger``, columns of them at a time."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._scales = _Scales(ledger.fill_rules, len(ledger.symbols))

    def apply(
        self,
        rows: Sequence[int],
        symbols: Sequence[str],
        quantities: Sequence[str],
        prices: Sequence[str],
        fees: Sequence[str],
    ) -> Bools:
        """bool[n]: which of n > 0 fills are in the ledger now. Those of ``rows`` below 0 are none of its business.

        The arguments are columns of one length, each as :meth:`Ledger.apply_fill` takes it.
        """
        ledger, row = self._ledger, np.array(rows, dtype=np.int64)
        is_taken = row >= 0
        fills = self._read(symbols, quantities, prices, fees) if is_taken.any() else None
        if fills is None:
            return np.zeros(row.size, dtype=np.bool_)
        slot = ledger.slots.find(np.where(is_taken, row, 0), fills.symbol, _WALK_MAX)
        is_left = np.zeros(ledger.row_count, dtype=np.bool_)
        is_left[row[is_taken & (slot < 0)]] = True
        is_taken &= ~is_left[row]
        chosen = np.flatnonzero(is_taken)
        if not chosen.size:
            return is_taken

        positions = _Groups(chosen, slot)
        asset = self._scales.asset[fills.symbol]
        owners = {number: _Groups(chosen[asset[chosen] == number], row) for number in set(asset[chosen].tolist())}
        is_left[row[positions.first[~self._stay_plain(positions, fills)]]] = True
        for number, paying in owners.items():
            column = ledger.columns[number]
            room = column.limit - paying.sums(np.abs(fills.paid))
            is_left[paying.at[~_is_within(column.amounts.low[paying.at], room)]] = True
        is_taken &= ~is_left[row]

        is_changed = is_taken[positions.first]
        slots = positions.at[is_changed]
        ledger.slots.lots.low[slots] += positions.sums(fills.lots)[is_changed]
        ledger.slots.cash.low[slots] += positions.sums(fills.cash)[is_changed]
        ledger.slots.note_changes(slots)
        for number, paying in owners.items():
            is_changed = is_taken[paying.first]
            ledger.columns[number].amounts.low[paying.at[is_changed]] -= paying.sums(fills.paid)[is_changed]
        return is_taken

    def _read(
        self, symbols: Sequence[str], quantities: Sequence[str], prices: Sequence[str], fees: Sequence[str]
    ) -> "_Fills | None":
        """The fills as whole numbers; None if one is no valid fill, or they are too large for 64 bits."""
        if self._scales.rules is not self._ledger.fill_rules:
            self._scales = _Scales(self._ledger.fill_rules, len(self._ledger.symbols))
        scales, known = self._scales, self._scales.rules
        symbol = np.array([known[name].symbol_id if name in known else VACANT for name in symbols], dtype=np.int64)
        if (symbol == VACANT).any():
            return None
        units = []
        for texts, decimals in (
            (quantities, scales.lot_digits),
            (prices, scales.price_digits),
            (fees, scales.decimals),
        ):
            column = read_column(texts)
            whole = None if column is None else in_units(*column, decimals[symbol])
            if whole is None:
                return None
            units.append(whole)
        quantity, price, paid = units
        if (quantity == 0).any() or (quantity % scales.lot[symbol]).any():
            return None
        if (price <= 0).any() or (price % scales.tick[symbol]).any():
            return None
        if max(_sizes(paid).sum(), _sizes(quantity).sum(), (_sizes(quantity) * price).sum()) >= _ROOM:
            return None
        return _Fills(symbol, quantity // scales.lot[symbol], -quantity * price, paid)

    def _stay_plain(self, positions: "_Groups", fills: "_Fills") -> Bools:
        """bool[k]: which positions neither become flat nor may pass a limit on the way."""
        slots, scales = self._ledger.slots, self._scales
        lots, cash = slots.lots.low[positions.at], slots.cash.low[positions.at]
        rules = [scales.by_id[symbol] for symbol in fills.symbol[positions.first].tolist()]
        lots_limit = np.array([each.lots_limit for each in rules], dtype=np.int64)
        cash_limit = np.array([each.cash_limit for each in rules], dtype=np.int64)
        changes = fills.lots[positions.order]
        added = np.cumsum(changes)
        before = lots - (added - changes)[positions.starts]
        held = added + np.repeat(before, np.diff(positions.starts, append=changes.size))
        return (
            ~np.logical_or.reduceat(held == 0, positions.starts)
            & _is_within(lots, lots_limit - positions.sums(np.abs(fills.lots)))
            & _is_within(cash, cash_limit - positions.sums(np.abs(fills.cash)))
        )


@dataclass(frozen=True, slots=True)
class _Fills:
    """int64[n] each: the ids of the symbols, and fills in the units of their rules."""

    symbol: Ints
    lots: Ints
    cash: Ints
    paid: Ints


class _Scales:
    """What units are, by symbol id: int64[symbols] each. ``rules`` by symbol, and ``by_id``."""

    __slots__ = ("asset", "by_id", "decimals", "lot", "lot_digits", "price_digits", "rules", "tick")

    def __init__(self, rules: Mapping[str, FillRules], symbols: int) -> None:
        self.rules = rules
        self.by_id = {each.symbol_id: each for each in rules.values()}
        self.lot_digits, self.lot, self.price_digits, self.tick, self.decimals, self.asset = (
            np.ones(symbols, dtype=np.int64) for _ in range(6)
        )
        for number, each in self.by_id.items():
            self.lot_digits[number], self.lot[number] = each.lot_digits, each.lot
            self.price_digits[number], self.tick[number] = each.price_digits, each.tick
            self.decimals[number], self.asset[number] = each.decimals, each.asset_id


class _Groups:
    """Fills grouped by a key, those of each in their order. int64 each: ``at``, the keys; ``first``, the fill that each
    begins with; ``order``, all the fills, group after group; ``starts``, where in it each group begins."""

    __slots__ = ("at", "first", "order", "starts")

    def __init__(self, chosen: Ints, keys: Ints) -> None:
        """``chosen``: the fills, at least one. ``keys``: of every fill there is."""
        self.order: Ints = chosen[np.argsort(keys[chosen], kind="stable")]
        ordered = keys[self.order]
        self.starts: Ints = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
        self.at: Ints = ordered[self.starts]
        self.first: Ints = self.order[self.starts]

    def sums(self, values: Ints) -> Ints:
        """What ``values`` of the fills of each group add up to."""
        summed: Ints = np.add.reduceat(values[self.order], self.starts)
        return summed


def _is_within(amounts: Ints, room: Ints) -> Bools:
    """bool[k]: whose size is at most ``room``."""
    is_within: Bools = (amounts <= room) & (amounts >= -room)
    return is_within


def _sizes(values: Ints) -> Floats:
    """float64[n]: how large ``values`` are, either way."""
    sizes: Floats = np.abs(values.astype(np.float64))
    return sizes
