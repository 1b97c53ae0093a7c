"""One shard's margin groups at their marks: a ledger, the prices it is looked at with, and its screens.

It finds the rows that something may have to be done about; whatever a screen leaves open is decided by ``health`` on
the exact view that :meth:`Portfolio.group` makes. What to do about a row is left to the caller, and so is telling the
ledger of fills and transfers.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal, localcontext
from types import MappingProxyType

import numpy as np

from schemas.types import FRACTION_DIGITS_MAX, INTEGER_DIGITS_MAX
from streams.errors import InputError
from streams.margin.amounts import Floats, fine_step
from streams.margin.fixed_point import EXACT, decimal_units, fraction_digits, parse_decimal
from streams.margin.group import Group
from streams.margin.ledger import Ledger
from streams.margin.parameters import RiskParameters
from streams.margin.prices import Exposures, PriceTables
from streams.margin.scans import ScanTables
from streams.margin.screens import Columns, Screens
from streams.margin.slots import Rows


class Portfolio:
    """``ledger``: what the groups hold; fills and transfers are applied to it. ``marks``: the last of each symbol."""

    def __init__(self, parameters: RiskParameters) -> None:
        self.ledger = Ledger(parameters)
        self._marks: dict[str, Decimal] = {}
        self._live: dict[str, bool] = {}
        self._stale: frozenset[str] | None = None
        self.marks: Mapping[str, Decimal] = MappingProxyType(self._marks)
        self._prices = PriceTables()
        self._adopt(parameters)

    # --- parameters --------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> RiskParameters:
        """The parameters in force."""
        return self.ledger.parameters

    def set_parameters(self, parameters: RiskParameters) -> None:
        """Put ``parameters`` in force and express the ledger in them.

        Raises:
            ParameterError: the ledger cannot be expressed in them. Everything stays as it was.
        """
        self.ledger.set_parameters(parameters)
        self._adopt(parameters)

    def _adopt(self, parameters: RiskParameters) -> None:
        self._stale = None
        self._prices.rebuild(parameters, self.ledger.symbol_ids)
        self._last_prices: PriceTables | None = None
        self._scans = ScanTables(parameters, self.ledger.symbol_ids)
        self._screens = Screens(self.ledger, self._prices, self._scans)
        self._prices.refresh(self._marks, self._live)

    # --- rows --------------------------------------------------------------------------------------------------------

    @property
    def row_count(self) -> int:
        """Rows given out so far, dropped ones included: every row is below."""
        return self.ledger.row_count

    def group(self, row: int) -> Group:
        """The exact view of a row (:meth:`Ledger.group`)."""
        return self.ledger.group(row)

    def balances(self, row: int) -> dict[str, str]:
        """Balances that are not zero, by asset in alphabetical order, as canonical decimal strings."""
        return self.ledger.balances(row)

    def positions(self, row: int) -> list[tuple[str, str, str]]:
        """(symbol, quantity, cash) of every position in order of symbol, as canonical decimal strings."""
        return self.ledger.positions(row)

    # --- marks -------------------------------------------------------------------------------------------------------

    def set_mark(self, symbol: str, price: str | Decimal, live: bool) -> None:
        """Learn the mark of ``symbol``. One that is not live is known but nothing may be decided on it.

        Raises:
            InputError: not a decimal above zero, or not one of the contract (18 digits before and after the point).
        """
        mark = price if isinstance(price, Decimal) else parse_decimal(price)
        if not mark.is_finite() or mark <= 0:
            raise InputError(f"symbol {symbol}: a mark of {price} is not above zero")
        if mark.adjusted() >= INTEGER_DIGITS_MAX or fraction_digits(mark) > FRACTION_DIGITS_MAX:
            raise InputError(f"symbol {symbol}: a mark of {price} has more digits than a price can have")
        self._marks[symbol] = mark
        self._set_live(symbol, live)

    def set_live(self, symbol: str, live: bool) -> None:
        """Say whether the mark of ``symbol`` may be decided on. Without a mark it never may."""
        self._set_live(symbol, live)

    def _set_live(self, symbol: str, live: bool) -> None:
        if self._last_prices is not None:
            self._last_prices.moved.add(symbol)
        if self._live.get(symbol) != live:
            self._live[symbol] = live
            self._stale = None
        self._prices.moved.add(symbol)

    @property
    def stale(self) -> frozenset[str]:
        """The symbols that a rule names and that have no live mark."""
        if self._stale is None:
            live = {symbol for symbol, is_live in self._live.items() if is_live and symbol in self._marks}
            self._stale = frozenset(self.ledger.symbols[1:]) - live
        return self._stale

    def _is_live(self, symbol: str) -> bool:
        return symbol in self._marks and self._live.get(symbol, False)

    def symbol_id(self, symbol: str) -> int | None:
        """The id under which :meth:`exposures` knows ``symbol``; None if no rule names it."""
        return self.ledger.symbol_ids.get(symbol)

    @property
    def symbol_count(self) -> int:
        """Every symbol id is below."""
        return len(self.ledger.symbols)

    @property
    def mark_column(self) -> Floats:
        """float64[symbol_count]: the nearest double of each mark, 0 where there is none."""
        self._prices.refresh(self._marks, self._live)
        return self._prices.mark

    # --- screens -----------------------------------------------------------------------------------------------------

    def evaluate(self, rows: Rows | None = None) -> Columns:
        """Screen ``rows`` (int64[n]; None: every row below ``row_count``) at the current marks."""
        self._prices.refresh(self._marks, self._live)
        return self._screens.evaluate(rows)

    def may_be_at_target(self, rows: Rows) -> Rows:
        """int64[k]: those of ``rows`` that a screen cannot rule out to be healthy at the target of a liquidation,
        equity >= maintenance + buffer * (notional + debt), with every mark live.

        The notional is a part of G, as :meth:`Screens.evaluate` calls it, so its own error is far below ``error``.
        """
        columns = self.evaluate(rows)
        buffer = float(self.parameters.policy.liquidation_buffer_rate)
        needed = columns.maintenance + buffer * (self._screens.notional(rows) + columns.debt)
        at_target: Rows = rows[columns.decidable & (columns.equity - needed >= -2 * columns.error)]
        return at_target

    def exposures(self, rows: Rows, reach: float) -> Exposures:
        """How equity, maintenance and debt of ``rows`` move with each live mark (see :class:`Exposures`)."""
        self._prices.refresh(self._marks, self._live)
        return self._screens.exposures(rows, reach)

    def rows_with(self, symbols: Iterable[str], among: Rows | None = None) -> Rows:
        """int64[k], ascending: rows with a position in one of ``symbols``, or with money priced by one.

        Only those of ``among`` (ascending) are looked at, if given.
        """
        ledger, parameters, wanted = self.ledger, self.parameters, set(symbols)
        assets = {name for name, rules in parameters.assets.items() if rules.price_symbol in wanted}
        hit = np.zeros(len(ledger.symbols), dtype=np.bool_)
        hit[[ledger.symbol_ids[symbol] for symbol in wanted if symbol in parameters.instruments]] = True
        for symbol, instrument in parameters.instruments.items() if assets else ():
            hit[ledger.symbol_ids[symbol]] |= instrument.settle_asset in assets
        if among is None:
            used = ledger.slots.used
            is_concerned = np.zeros(ledger.row_count, dtype=np.bool_)
            is_concerned[ledger.slots.row[:used][hit[ledger.slots.symbol[:used]]]] = True
            for asset in assets:
                is_concerned |= ledger.holds(asset, slice(0, ledger.row_count))
            return np.flatnonzero(is_concerned)
        owners, slots = ledger.slots.chains(among)
        is_concerned = np.zeros(among.size, dtype=np.bool_)
        is_concerned[owners[hit[ledger.slots.symbol[slots]]]] = True
        for asset in assets:
            is_concerned |= ledger.holds(asset, among)
        return among[is_concerned]

    def awaited(self, rows: Rows | None = None) -> set[str]:
        """The symbols that ``rows`` (None: all) need a live mark of and that have none."""
        self._prices.refresh(self._marks, self._live)
        ledger, parameters = self.ledger, self.parameters
        not_live: set[str] = set()
        if not self._prices.live.all():
            slots = slice(0, ledger.slots.used) if rows is None else ledger.slots.chains(rows)[1]
            symbols = ledger.slots.symbol[slots]
            for index in np.unique(symbols[~self._prices.live[symbols]]).tolist():
                symbol = ledger.symbols[index]
                settle = parameters.assets[parameters.instruments[symbol].settle_asset].price_symbol
                not_live.update(name for name in (symbol, settle) if name is not None and not self._is_live(name))
        for column in ledger.columns:
            if column.asset not in parameters.assets:  # taken back, so nobody holds any
                continue
            of = slice(0, ledger.row_count) if rows is None else rows
            units = column.amounts.doubles(of, fine_step(column.decimals))
            needing = self._prices.dim(column.asset, units)
            priced_by = parameters.assets[column.asset].price_symbol
            if needing is not None and needing.any() and priced_by is not None:
                not_live.add(priced_by)
        return not_live

    # --- at the last prices ------------------------------------------------------------------------------------------

    def below_at_last_prices(self, symbols: Iterable[str] | None) -> Rows:
        """int64[k]: of the rows that need one of ``symbols`` (None: any) and lack a live mark, those that may be below
        their requirement at the last prices. One that has never had a price leaves that open: its holders are not in.
        """
        rows = np.arange(self.row_count, dtype=np.int64) if symbols is None else self.rows_with(symbols)
        rows = rows[~self.evaluate(rows).decidable]
        if not rows.size:
            return rows
        if self._last_prices is None:
            self._last_prices = PriceTables()
            self._last_prices.rebuild(self.parameters, self.ledger.symbol_ids)
        self._last_prices.refresh(self._marks, dict.fromkeys(self._marks, True))
        columns = Screens(self.ledger, self._last_prices, self._scans).evaluate(rows)
        below: Rows = rows[columns.decidable & (columns.equity - columns.maintenance <= columns.error)]
        return below

    def worth_at_stake(self, rows: Rows) -> Decimal:
        """What ``rows`` hold in positions of either side, and owe, at the last prices, in the unit of account.

        Exact. What has never had a price is left out.
        """
        _, slots = self.ledger.slots.chains(rows)
        worth = Decimal(0)
        with localcontext(EXACT):
            for symbol, lots in self.ledger.lots_by_symbol(slots, shorts=True):
                instrument = self.parameters.instruments[symbol]
                unit = self._last_unit(instrument.settle_asset)
                worth += lots * instrument.quantity_increment * self._marks.get(symbol, Decimal(0)) * unit
            for column in self.ledger.columns:
                if column.asset in self.parameters.assets:
                    owed = column.amounts.below_zero(rows, column.decimals)
                    worth -= decimal_units(owed, FRACTION_DIGITS_MAX) * self._last_unit(column.asset)
        return worth

    def _last_unit(self, asset: str) -> Decimal:
        """One unit of ``asset`` at its last price, 0 if it has never had one."""
        symbol = self.parameters.assets[asset].price_symbol
        return Decimal(1) if symbol is None else self._marks.get(symbol, Decimal(0))
