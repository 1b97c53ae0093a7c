"""One shard's margin groups as columns: the exact integer ledger.

Applying a fill or a transfer is exact or refused with nothing changed. What the ledger holds is read row by row as
decimal strings and exact views, or as columns by the screens. It knows no mark; whose row is whose is the caller's to
remember.

Layout. A row is a group. Positions are slots of one table (``slots``). Balances are one dense column per asset.
Everything is whole numbers (``Amounts``): lots, which are quantity increments; position cash at the decimals of price
increment times quantity increment, a scale of the symbol's own; balances at the decimals of the asset. So what is
listed beside it changes nothing for an account. What does not fit 64 bits at its scale, or is finer, takes the exact
way: the same sums in Python's integers.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from operator import attrgetter

import numpy as np

from schemas.types import FRACTION_DIGITS_MAX
from streams.errors import InputError
from streams.margin.amounts import Bools, Floats, Ints, fine_step
from streams.margin.fill_rules import AMOUNT_MOST_TEXT, BalanceColumn, FillRules, UnitCaches, is_written
from streams.margin.fixed_point import EXACT, fraction_digits, from_units, parse_units, to_units
from streams.margin.group import Group, Position
from streams.margin.limits import POSITIONS_MAX
from streams.margin.parameters import RiskParameters
from streams.margin.restatement import Restatement
from streams.margin.rows import RowNames
from streams.margin.rules import Instrument
from streams.margin.slots import VACANT, Rows, SlotTable

_LONG_WALK = 8


class Ledger:
    """The margin groups of one shard. Rows are small integers, given by :meth:`open_group` and reused once dropped.

    ``rows``: whose they are. ``slots``: the positions. ``columns``: the balances, by asset id. ``symbols``: by symbol
    id. ``fill_rules``: by symbol. They are read by the screens and changed by nobody else but ``bulk_fills``.
    """

    def __init__(self, parameters: RiskParameters) -> None:
        self._parameters = RiskParameters.empty()
        self.rows = RowNames()
        self.symbol_ids: dict[str, int] = {"": VACANT}
        self.symbols: list[str] = [""]
        self.slots = SlotTable(self.rows.room)
        self.columns: list[BalanceColumn] = []
        self._listed: list[BalanceColumn] = []  # in order of asset
        self._column_of: dict[str, BalanceColumn] = {}
        self.fill_rules: dict[str, FillRules] = {}
        self._caches = UnitCaches()
        self._cash_steps: Ints = np.ones(1, dtype=np.int64)
        self.set_parameters(parameters)

    # --- parameters --------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> RiskParameters:
        """The parameters in force."""
        return self._parameters

    def set_parameters(self, parameters: RiskParameters) -> None:
        """Put ``parameters`` in force and express the ledger in them.

        Raises:
            ParameterError: what is held cannot be expressed in them (:class:`Restatement`). Everything stays as it was.
        """
        restated = Restatement(
            self.slots,
            self._column_of,
            self.symbol_ids,
            self.row_count,
            before=self._parameters,
            after=parameters,
        )
        self._parameters = parameters
        self.slots.replace(restated.lots, restated.cash)
        for asset, amounts in restated.balances.items():
            self._column_of[asset].amounts = amounts
        self._adopt_assets()
        self._adopt_symbols()

    def _adopt_assets(self) -> None:
        for asset, rules in self._parameters.assets.items():
            column = self._column_of.get(asset)
            if column is None:
                column = BalanceColumn(asset, len(self.columns), rules.decimals, self.rows.room)
                self._column_of[asset] = column
                self.columns.append(column)
                continue
            column.rescale(rules.decimals)
            if column.amounts.passes(slice(0, self.row_count), column.high_most):
                column.limit = -1
        self._listed = sorted(self.columns, key=_asset_of)

    def _adopt_symbols(self) -> None:
        parameters = self._parameters
        pricing = (rules.price_symbol for rules in parameters.assets.values() if rules.price_symbol is not None)
        for symbol in (*parameters.instruments, *pricing):
            if symbol not in self.symbol_ids:
                self.symbol_ids[symbol] = len(self.symbols)
                self.symbols.append(symbol)
        self.rows.scan(parameters.policy.portfolio_margin_accounts)
        self.fill_rules = {
            symbol: self._compiled(instrument)
            for symbol, instrument in parameters.instruments.items()
            if instrument.settle_asset in parameters.assets
        }
        self._cash_steps = np.ones(len(self.symbols), dtype=np.int64)
        for symbol, rules in self.fill_rules.items():
            self._cash_steps[self.symbol_ids[symbol]] = fine_step(rules.cash_decimals)
        self._view_balances()

    def _compiled(self, instrument: Instrument) -> FillRules:
        column, known = self._column_of[instrument.settle_asset], self.fill_rules.get(instrument.symbol)
        if known is not None and known.compiled_from == (instrument, column.decimals):
            return known
        rules = FillRules(instrument, self.symbol_ids[instrument.symbol], column, self._caches)
        if self.slots.wide:
            slots = self.slots.of_symbol(rules.symbol_id)
            if self.slots.lots.passes(slots, rules.lots_high) or self.slots.cash.passes(slots, rules.cash_high):
                rules.cash_limit = -1
        return rules

    def _view_balances(self) -> None:
        for rules in self.fill_rules.values():
            column = self.columns[rules.asset_id]
            rules.balance, rules.balance_limit = column.amounts.view, column.limit

    # --- rows --------------------------------------------------------------------------------------------------------

    def open_group(self, account: str, margin: str) -> int:
        """A row for a group that has none: ``margin`` is ``cross`` or the symbol of the isolated position."""
        room, row = self.rows.room, self.rows.open(account, margin)
        if self.rows.room > room:
            self.slots.resize_rows(self.rows.room)
            for column in self.columns:
                column.amounts.resize(self.rows.room)
            self._view_balances()
        return row

    def drop_group(self, row: int) -> None:
        """Forget an empty group; its row will be reused. Of a row that is dropped already nothing is left to forget.

        Raises:
            InputError: the group still holds something.
        """
        if not self.is_empty(row):
            raise InputError(f"account {self.rows.account(row)}: group {self.rows.margin(row)} is not empty")
        self.rows.drop(row)

    @property
    def row_count(self) -> int:
        """Rows given out so far, dropped ones included: every row is below."""
        return self.rows.count

    # --- changes -----------------------------------------------------------------------------------------------------

    def apply_fill(self, row: int, symbol: str, quantity: str, price: str, fee: str) -> None:
        """Add a fill of signed ``quantity`` at ``price``; ``fee`` (negative: a rebate) goes to the settle asset.

        A fill that makes the position exactly flat moves its cash to the balance of the settle asset.

        Raises:
            InputError: unknown symbol, no settle asset, not a whole number of increments or minor units, a quantity
                of 0, a price not above 0, outside int64. Nothing is changed.
        """
        try:
            rules = self.fill_rules[symbol]
        except KeyError:
            raise _unknown(symbol, self._parameters) from None
        try:
            lots = rules.lots[quantity]
            per_lot = rules.cash_per_lot[price]
            paid = parse_units(fee, rules.decimals)
        except (InputError, TypeError) as error:
            raise InputError(f"symbol {symbol}: a fill of {quantity} at {price}, fee {fee}: {error}") from None
        if per_lot <= 0 or not lots:
            raise InputError(f"symbol {symbol}: a fill of {quantity} at {price}: quantity 0 or price not above 0")
        table, symbol_id, balances = self.slots, rules.symbol_id, rules.balance
        symbols, following = table.symbol_view, table.following_view
        first = slot = table.head_view[row]
        before, steps = -1, 0
        while slot >= 0 and symbols[slot] != symbol_id:
            before, slot = slot, following[slot]
            steps += 1
        cash = -lots * per_lot
        if slot >= 0:
            lots += table.lots_view[slot]
            cash += table.cash_view[slot]
        balance = balances[row] - paid
        if not lots:
            scale = rules.balance_scale
            wide = table.lots.wide or table.cash.wide
            if not scale or (wide and not (table.lots.is_plain(slot) and table.cash.is_plain(slot))):
                return self._apply_exactly(rules, row, slot, before, (symbol, quantity, price, fee))
            balance, cash = balance + cash * scale, 0
        limit, room, most = rules.cash_limit, rules.balance_limit, rules.lots_limit
        if not (-limit <= cash <= limit and -room <= balance <= room and -most <= lots <= most):
            return self._apply_exactly(rules, row, slot, before, (symbol, quantity, price, fee))
        if not lots:
            table.remove(row, slot, before)
        else:
            if slot < 0:
                if steps >= POSITIONS_MAX:
                    raise _too_many(symbol)
                slot = table.add(row, symbol_id, first)
            elif steps > _LONG_WALK:
                table.move_first(row, slot, before, first)
            table.lots_view[slot] = lots
            table.cash_view[slot] = cash
            if (written := table.texts.get(row)) is not None:
                written.append(slot)
        balances[row] = balance
        return None

    def _apply_exactly(
        self, rules: FillRules, row: int, slot: int, before: int, fill: tuple[str, str, str, str]
    ) -> None:
        """Apply a fill that 64 bits do not hold. ``slot``: the position's, -1 if there is none; ``before`` it."""
        symbol, quantity, price, fee = fill
        filled, column = rules.lots[quantity], self.columns[rules.asset_id]
        lots, cash = filled, -filled * rules.cash_per_lot[price] * fine_step(rules.cash_decimals)
        if slot >= 0:
            lots += self.slots.lots.units(slot)
            cash += self.slots.cash.exact(slot, rules.cash_decimals)
        paid = parse_units(fee, rules.decimals) * fine_step(rules.decimals)
        balance = column.amounts.exact(row, rules.decimals) - paid
        if not lots:
            balance, cash = balance + cash, 0
        if abs(lots) > rules.lots_most or not (is_written(cash) and is_written(balance)):
            limits = (
                f"{rules.most_text} of it and {AMOUNT_MOST_TEXT} {column.asset} are the most that an account can hold"
            )
            raise InputError(f"symbol {symbol}: a fill of {quantity} at {price}, fee {fee} leaves the ledger: {limits}")
        if lots:
            if slot < 0:
                if len(self.slots.chain(row)) >= POSITIONS_MAX:
                    raise _too_many(symbol)
                slot = self.slots.add(row, rules.symbol_id, self.slots.head_view[row])
            self._put_position(rules, slot, lots, cash)
        elif slot >= 0:
            self.slots.remove(row, slot, before)
        self._put_balance(column, row, balance)

    def apply_transfer(self, row: int, asset: str, amount: str) -> None:
        """Add a signed ``amount`` to a balance.

        Raises:
            InputError: unknown asset, not a whole number of its minor units, more than the ledger holds. Nothing is
                changed.
        """
        column, decimals = self._column(asset), self._parameters.assets[asset].decimals
        try:
            change = parse_units(amount, decimals)
        except InputError as error:
            raise InputError(f"asset {asset}: {error}") from None
        view = column.amounts.view
        units = view[row] + change
        if -column.limit <= units <= column.limit:
            view[row] = units
            return
        balance = column.amounts.exact(row, column.decimals) + change * fine_step(column.decimals)
        if not is_written(balance):
            text = from_units(balance, FRACTION_DIGITS_MAX)
            most = f"{AMOUNT_MOST_TEXT} is the most that it holds"
            raise InputError(f"asset {asset}: a balance of {text} leaves the ledger: {most}")
        self._put_balance(column, row, balance)

    def load_group(self, row: int, balances: Mapping[str, str], positions: Iterable[tuple[str, str, str]]) -> None:
        """Make ``row`` hold exactly ``balances`` (asset: amount) and ``positions`` (symbol, quantity, cash).

        Amounts may be finer than the minor unit of their asset or the cash of a fill: an amount that was right when it
        was written stays right.

        Raises:
            InputError: unknown symbol or asset, a symbol twice, a quantity of 0 or not whole lots, more than the ledger
                holds. Nothing is changed.
        """
        amounts = [(self._column(asset), _exact(f"asset {asset}", text)) for asset, text in balances.items()]
        held: dict[int, tuple[FillRules, int, int]] = {}
        for symbol, quantity, cash in positions:
            rules = self.fill_rules.get(symbol)
            if rules is None:
                raise _unknown(symbol, self._parameters)
            try:
                lots = rules.lots[quantity]
            except InputError as error:
                raise InputError(f"symbol {symbol}: a position of {quantity}: {error}") from None
            if not lots or rules.symbol_id in held:
                raise InputError(f"symbol {symbol}: a position of {quantity}, or given twice, cannot be loaded")
            held[rules.symbol_id] = (rules, lots, _exact(f"symbol {symbol}: cash", cash))
        self.slots.clear(row)
        for column in self.columns:
            column.amounts.clear(row)
        for column, amount in amounts:
            self._put_balance(column, row, amount)
        for symbol_id, (rules, lots, amount) in held.items():
            self._put_position(rules, self.slots.add(row, symbol_id, self.slots.head_view[row]), lots, amount)

    def _put_position(self, rules: FillRules, slot: int, lots: int, cash: int) -> None:
        """``cash`` in units of 10**-18."""
        self.slots.note_change(slot)
        lots_high = self.slots.lots.put(slot, lots)
        cash_high = self.slots.cash.put(slot, *divmod(cash, fine_step(rules.cash_decimals)))
        if abs(lots_high) > rules.lots_high or abs(cash_high) > rules.cash_high:
            rules.cash_limit = -1

    def _put_balance(self, column: BalanceColumn, row: int, amount: int) -> None:
        """``amount`` in units of 10**-18."""
        high = column.amounts.put(row, *divmod(amount, fine_step(column.decimals)))
        if abs(high) > column.high_most and column.limit >= 0:
            column.limit = -1
            self._view_balances()

    def _column(self, asset: str) -> BalanceColumn:
        self._parameters.asset(asset)
        return self._column_of[asset]

    # --- what rows hold ----------------------------------------------------------------------------------------------

    def balances(self, row: int) -> dict[str, str]:
        """Balances that are not zero, by asset in alphabetical order, as canonical decimal strings."""
        return {column.asset: text for column in self._listed if (text := column.text(row))}

    def positions(self, row: int) -> list[tuple[str, str, str]]:
        """(symbol, quantity, cash) of every position in order of symbol, as canonical decimal strings."""
        return [self.position(slot) for slot, _, _ in self._positions_of(row)]

    def position(self, slot: int) -> tuple[str, str, str]:
        """(symbol, quantity, cash) of the position in ``slot``, as canonical decimal strings."""
        symbol = self.symbols[self.slots.symbol_view[slot]]
        return symbol, *self.fill_rules[symbol].texts(self.slots, slot)

    def is_empty(self, row: int) -> bool:
        """Whether the group has neither positions nor balances."""
        return self.slots.head_view[row] < 0 and not self._held_by(row)

    def group(self, row: int) -> Group:
        """The exact view of a row: positions in order of symbol, balances that are not zero in order of asset."""
        positions, lots, cash = [], self.slots.lots, self.slots.cash
        for slot, symbol, rules in self._positions_of(row):
            quantity = EXACT.multiply(Decimal(lots.units(slot)), rules.increment)
            positions.append(Position(symbol, quantity, cash.decimal(slot, rules.cash_decimals)))
        balances = {column.asset: column.amounts.decimal(row, column.decimals) for column in self._held_by(row)}
        return Group(self.rows.account(row), self.rows.margin(row), balances, tuple(positions))

    def _positions_of(self, row: int) -> list[tuple[int, str, FillRules]]:
        """(slot, symbol, rules) of every position of ``row`` in order of symbol."""
        symbols, ids, rules = self.symbols, self.slots.symbol_view, self.fill_rules
        held = [(symbols[ids[slot]], slot) for slot in self.slots.chain(row)]
        held.sort()
        return [(slot, symbol, rules[symbol]) for symbol, slot in held]

    def _held_by(self, row: int) -> list[BalanceColumn]:
        """The columns in which ``row`` holds something, in order of asset."""
        return [column for column in self._listed if column.holds(row)]

    # --- what columns hold -------------------------------------------------------------------------------------------

    def open_interest(self) -> dict[str, str]:
        """The quantity of all long positions by symbol, those without any left out."""
        quantities = {}
        for symbol, total in self.lots_by_symbol(np.arange(self.slots.used), shorts=False):
            instrument = self._parameters.instruments[symbol]
            digits = fraction_digits(instrument.quantity_increment)
            quantities[symbol] = from_units(total * to_units(instrument.quantity_increment, digits), digits)
        return quantities

    def lots_by_symbol(self, slots: Ints, *, shorts: bool) -> list[tuple[str, int]]:
        """(symbol, lots of the long positions in ``slots``, and of the short ones) in order of symbol, 0 left out."""
        totals = self.slots.lots_by_symbol(slots, len(self.symbols), shorts=shorts)
        named = [(symbol, totals[self.symbol_ids[symbol]]) for symbol in sorted(self._parameters.instruments)]
        return [(symbol, total) for symbol, total in named if total]

    def holds(self, asset: str, at: "Rows | slice") -> Bools:
        """bool[n]: which of the rows ``at`` have a balance in ``asset``."""
        return self._column_of[asset].amounts.held(at)

    def cash_units(self, slots: "Ints | slice", symbol: Ints) -> Ints | Floats:
        """The cash of ``slots``, whose symbols are ``symbol``, in units of its own decimals."""
        cash = self.slots.cash
        return cash.doubles(slots, 1 if cash.fine is None else self._cash_steps[symbol])


_asset_of = attrgetter("asset")


def _unknown(symbol: str, parameters: RiskParameters) -> InputError:
    try:
        parameters.asset(parameters.instrument(symbol).settle_asset)
    except InputError as error:
        return InputError(f"symbol {symbol}: {error}")
    return InputError(f"symbol {symbol}: not known to the ledger")


def _too_many(symbol: str) -> InputError:
    return InputError(f"symbol {symbol}: a margin group has at most {POSITIONS_MAX} positions")


def _exact(what: str, text: str) -> int:
    """``text`` in units of 10**-18.

    Raises:
        InputError: not a decimal string.
    """
    try:
        return parse_units(text, FRACTION_DIGITS_MAX)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
