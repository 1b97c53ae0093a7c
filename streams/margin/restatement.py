"""What a ledger holds, expressed in other parameters, or the reason why it cannot be.

Everything is worked out in copies, so that a refused set of parameters leaves the ledger as it was; putting the columns
in place is the ledger's business.
"""

from collections.abc import Mapping

import numpy as np

from streams.errors import ParameterError
from streams.margin.amounts import Amounts
from streams.margin.fill_rules import BalanceColumn
from streams.margin.fixed_point import EXACT, fraction_digits
from streams.margin.parameters import RiskParameters
from streams.margin.rules import Instrument
from streams.margin.slots import SlotTable


class Restatement:
    """``lots`` and ``cash`` of the slots under the parameters ``after``, and by asset the ``balances`` that change.

    The first two are the columns that there were if no symbol's increments change.
    """

    def __init__(
        self,
        slots: SlotTable,
        columns: Mapping[str, BalanceColumn],
        symbol_ids: Mapping[str, int],
        row_count: int,
        *,
        before: RiskParameters,
        after: RiskParameters,
    ) -> None:
        """Express everything that rows below ``row_count`` hold.

        Raises:
            ParameterError: a symbol or asset that a group holds is gone or settled otherwise, or a quantity held is not
                a whole number of the new increment, or an amount not one of the asset's coarser units.
        """
        self._slots, self._columns, self._symbol_ids = slots, columns, symbol_ids
        self._rows, self._before, self._after = row_count, before, after
        self.lots, self.cash = slots.lots, slots.cash
        self.balances: dict[str, Amounts] = {}
        for asset in columns:
            self._check_held(asset)
        for symbol in self._symbols_restated():
            if self.lots is slots.lots:
                self.lots, self.cash = slots.lots.copy(), slots.cash.copy()
            self._restate_positions(symbol)
        for asset, column in columns.items():
            rules = after.assets.get(asset)
            if rules is not None and rules.decimals != column.decimals:
                self.balances[asset] = amounts = column.amounts.copy()
                amounts.rescale(np.arange(row_count, dtype=np.int64), column.decimals, rules.decimals)

    def _check_held(self, asset: str) -> None:
        """An asset that is held stays, and its minor unit does not become one that amounts held are no multiples of."""
        column, rules, cash = self._columns[asset], self._after.assets.get(asset), self._slots.cash
        if rules is not None and rules.decimals >= column.decimals:
            return
        rows = np.flatnonzero(column.amounts.held(slice(0, self._rows)))
        slots = {symbol: self._slots.of_symbol(self._symbol_ids[symbol]) for symbol, _ in self._settled_in(asset)}
        slots = {symbol: of_symbol[cash.held(of_symbol)] for symbol, of_symbol in slots.items()}
        if rules is None:
            if rows.size or any(of_symbol.size for of_symbol in slots.values()):
                raise ParameterError(f"asset {asset} is held and cannot be removed")
            return
        decimals = self._after.cash_decimals(asset)
        if column.amounts.finer_than(rows, column.decimals, decimals) or any(
            cash.finer_than(slots[symbol], instrument.cash_decimals, decimals)
            for symbol, instrument in self._settled_in(asset)
        ):
            raise ParameterError(f"asset {asset}: amounts held need more than {decimals} decimals")

    def _settled_in(self, asset: str) -> list[tuple[str, Instrument]]:
        instruments = self._before.instruments.items()
        return [(symbol, instrument) for symbol, instrument in instruments if instrument.settle_asset == asset]

    def _symbols_restated(self) -> list[str]:
        """Symbols with open positions that ``after`` holds otherwise than before.

        Raises:
            ParameterError: they are gone, or settled in another asset or in none.
        """
        changed = []
        for symbol, before in self._before.instruments.items():
            after = self._after.instruments.get(symbol)
            settled = after is not None and after.settle_asset == before.settle_asset in self._after.assets
            if settled and (after is before or _same_increments(before, after)):
                continue
            if not self._slots.of_symbol(self._symbol_ids[symbol]).size:
                continue
            if not settled:
                raise ParameterError(f"symbol {symbol} has open positions: it cannot be removed or settled otherwise")
            changed.append(symbol)
        return changed

    def _restate_positions(self, symbol: str) -> None:
        """Restate the slots of ``symbol`` in place in the copies."""
        before, after = self._before.instruments[symbol], self._after.instruments[symbol]
        slots = self._slots.of_symbol(self._symbol_ids[symbol])
        if before.quantity_increment != after.quantity_increment:
            digits = max(fraction_digits(rules.quantity_increment) for rules in (before, after))
            old, new = (int(rules.quantity_increment.scaleb(digits, EXACT)) for rules in (before, after))
            for slot in slots.tolist():
                restated, rest = divmod(self.lots.units(slot) * old, new)
                if rest:
                    raise ParameterError(f"symbol {symbol}: positions held are not whole numbers of the new increment")
                self.lots.put(slot, restated)
        self.cash.rescale(slots, before.cash_decimals, after.cash_decimals)


def _same_increments(before: Instrument, after: Instrument | None) -> bool:
    return after is not None and (
        (before.price_increment, before.quantity_increment) == (after.price_increment, after.quantity_increment)
    )
