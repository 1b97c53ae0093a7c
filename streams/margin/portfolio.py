"""One shard's margin groups as columns: the exact integer ledger, and its evaluation as float64 screens.

Applying a fill or a transfer is exact or refused with nothing changed. Evaluating gives equity and maintenance of any
rows in one pass of NumPy with a bound on their error, so that whatever is further from its limit than the bound needs
no exact decision; the rest is decided by ``health`` on the exact view that :meth:`Portfolio.group` makes. Which rows
to look at, and what to do about them, is left to the caller.

Layout. A row is a group. Positions are slots of one table, those of a row chained by ``next`` from the row's head, so a
fill costs a short walk and a full evaluation one sequential pass. Balances are one dense column an asset. Everything is
whole numbers (``Amounts``): lots, which are quantity increments; position cash at the decimals of price increment times
quantity increment, a scale of the symbol's own; balances at the decimals of the asset. So what is listed beside it
changes nothing for an account. What does not fit 64 bits at its scale, or is finer, takes the exact way: the same sums
in Python's integers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal, localcontext
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from schemas.types import CROSS, FRACTION_DIGITS_MAX, INTEGER_DIGITS_MAX
from streams.errors import InputError, ParameterError
from streams.margin.amounts import Amounts, fine_step, grown, high_most, scalars
from streams.margin.fixed_point import (
    EXACT,
    INT64_MAX,
    decimal_units,
    fraction_digits,
    from_units,
    parse_decimal,
    parse_units,
    to_units,
)
from streams.margin.group import Group, Position
from streams.margin.limits import POSITIONS_MAX
from streams.margin.parameters import AssetRules, Instrument, RiskParameters
from streams.margin.prices import VACANT, Bools, Exposures, Floats, Ints, PriceTables, sums
from streams.margin.scans import ScanTables

Rows = npt.NDArray[np.int64]

_CACHE_ENTRIES_MAX = 1 << 15
_ROWS_START = 1024
_SLOTS_START = 4096
_LONG_WALK = 8
_SPARSE, _SPARSE_ROWS = 14, 50_000
"""Picking rows costs 14 times as much a row as going through all of them, plus a start for small portfolios."""
_UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True, slots=True)
class Columns:
    """Screens of n rows, in the order asked for, in the unit of account.

    ``equity``, ``maintenance``, ``debt``: float64[n], debt being the weighted negative balances. ``error``: float64[n],
    a bound on |true - computed| of the three together. ``decidable``: bool[n], every mark the row needs is there and
    live. Where one is not, the figures are those of the corner that is best for the account, if anything bounds it:
    ``bounded``, bool[n].
    """

    equity: Floats
    maintenance: Floats
    error: Floats
    decidable: Bools
    debt: Floats
    bounded: Bools

    def of(self, rows: "Rows | slice") -> "Columns":
        """The screens of some of the rows, by their index here."""
        return Columns(*(getattr(self, name)[rows] for name in _COLUMNS))


_COLUMNS = tuple(field.name for field in fields(Columns))


class _Units(dict[str, int]):
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


class _Caches:
    """Symbols with the same increments share what has been parsed."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], _Units] = {}

    def __call__(self, decimals: int, step: int, factor: int) -> _Units:
        return self._known.setdefault((decimals, step, factor), _Units(decimals, step, factor))


class _Contract:
    """What applying a fill of one symbol needs, compiled from the parameters.

    A fill stays on the short way while its 64 bits stay within ``lots_limit``, ``cash_limit`` and ``balance_limit``;
    -1 closes it. ``lots_most``, ``lots_high`` and ``cash_high``: the most lots, and the largest ``high`` of lots and
    cash with which the short way is open. ``balance_scale`` is what a unit of cash is in units of the balance, 0 where
    it is less than one.
    """

    __slots__ = (
        "asset_id", "balance", "balance_limit", "balance_scale", "cash_decimals", "cash_high", "cash_limit",
        "cash_per_lot", "compiled_from", "decimals", "increment", "lot", "lot_digits", "lots", "lots_high",
        "lots_limit", "lots_most", "symbol_id",
    )  # fmt: skip

    balance: "memoryview[int]"
    """The balance column of the settle asset; the portfolio keeps it and ``balance_limit`` current."""
    balance_limit: int

    def __init__(self, instrument: Instrument, symbol_id: int, settle: "_Account", caches: "_Caches") -> None:
        price_digits = fraction_digits(instrument.price_increment)
        tick = to_units(instrument.price_increment, price_digits)
        self.increment = instrument.quantity_increment
        self.lot_digits = fraction_digits(instrument.quantity_increment)
        self.lot = to_units(instrument.quantity_increment, self.lot_digits)
        self.compiled_from = (instrument, settle.decimals)
        self.symbol_id = symbol_id
        self.asset_id = settle.asset_id
        self.decimals = settle.decimals
        self.cash_decimals = price_digits + self.lot_digits
        finer = self.cash_decimals - self.decimals
        self.balance_scale: int = 0 if finer > 0 else 10**-finer
        self.lots = caches(self.lot_digits, self.lot, 1)
        self.lots_most = _written_most(self.lot_digits) // self.lot
        self.lots_high = high_most(self.lots_most)
        self.cash_high = high_most(_written_most(self.cash_decimals))
        self.lots_limit = min(INT64_MAX, self.lots_most)
        self.cash_limit = _short_limit(self.cash_decimals)
        self.cash_per_lot = caches(price_digits, tick, tick * self.lot)


class _Account:
    """The balance column of one asset, in units of its own ``decimals``.

    ``limit``: as far as its 64 bits go on the short way, -1 while that is closed because of a balance whose ``high`` is
    above ``high_most``.
    """

    __slots__ = ("amounts", "asset", "asset_id", "decimals", "high_most", "limit")

    def __init__(self, asset: str, asset_id: int, decimals: int, rows: int) -> None:
        self.asset, self.asset_id = asset, asset_id
        self.amounts = Amounts(rows)
        self.rescale(decimals)

    def rescale(self, decimals: int) -> None:
        self.decimals, self.limit = decimals, _short_limit(decimals)
        self.high_most = high_most(_written_most(decimals))


class Portfolio:
    """The margin groups of one shard. Rows are small integers, given by :meth:`open_group` and reused once dropped."""

    def __init__(self, parameters: RiskParameters) -> None:
        self._parameters = RiskParameters.empty()
        self._marks: dict[str, Decimal] = {}
        self._live: dict[str, bool] = {}
        self._stale: frozenset[str] | None = None
        self.marks: Mapping[str, Decimal] = MappingProxyType(self._marks)
        self._accounts: list[str] = []
        self._margins: list[str] = []
        self._cross: dict[str, int] = {}
        self._isolated: dict[str, dict[str, int]] = {}
        self._free_rows: list[int] = []
        self._symbol_ids: dict[str, int] = {"": VACANT}
        self._symbols: list[str] = [""]
        self._ledger: dict[str, _Account] = {}
        self._ledger_by_id: list[_Account] = []
        self._contracts: dict[str, _Contract] = {}
        self._scanned: frozenset[str] = frozenset()
        self._row_scanned: Bools = np.zeros(_ROWS_START, dtype=np.bool_)
        self._caches = _Caches()
        self._slots_used = 0
        self._free_slot = -1
        self._head = np.full(_ROWS_START, -1, dtype=np.int64)
        self._slot_row = np.zeros(_SLOTS_START, dtype=np.int64)
        self._slot_symbol = np.zeros(_SLOTS_START, dtype=np.int64)
        self._slot_next = np.full(_SLOTS_START, -1, dtype=np.int64)
        self._lots = Amounts(_SLOTS_START)
        self._cash = Amounts(_SLOTS_START)
        self._cash_steps: Ints = np.ones(1, dtype=np.int64)
        self._view()
        self._prices = PriceTables()
        self._last_prices: PriceTables | None = None
        self._scans = ScanTables(self._parameters, self._symbol_ids)
        self.set_parameters(parameters)

    # --- parameters --------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> RiskParameters:
        """The parameters in force."""
        return self._parameters

    def set_parameters(self, parameters: RiskParameters) -> None:
        """Put ``parameters`` in force and express the ledger in them.

        Raises:
            ParameterError: a symbol or asset that a group holds is gone or settled otherwise, or a quantity held is not
                a whole number of the new increment, or an amount not one of the asset's coarser units. Everything stays
                as it was.
        """
        lots, cash, balances = self._lots, self._cash, {}
        for asset in self._ledger:
            self._check_held(asset, parameters)
        for symbol in self._symbols_restated(parameters):
            if lots is self._lots:
                lots, cash = lots.copy(), cash.copy()
            self._express_positions(symbol, parameters, lots, cash)
        for asset, account in self._ledger.items():
            rules = parameters.assets.get(asset)
            if rules is not None and rules.decimals != account.decimals:
                balances[asset] = self._expressed(account, rules.decimals)
        self._lots, self._cash = lots, cash
        for asset, amounts in balances.items():
            self._ledger[asset].amounts = amounts
        self._adopt(parameters)

    def _check_held(self, asset: str, parameters: RiskParameters) -> None:
        """An asset that is held stays, and its minor unit does not become one that amounts held are no multiples of."""
        account, rules = self._ledger[asset], parameters.assets.get(asset)
        if rules is not None and rules.decimals >= account.decimals:
            return
        rows = np.flatnonzero(account.amounts.held(slice(0, self.row_count)))
        slots = {symbol: self._slots_in(symbol) for symbol, _ in self._settled_in(asset)}
        slots = {symbol: found[self._cash.held(found)] for symbol, found in slots.items()}
        if rules is None:
            if rows.size or any(found.size for found in slots.values()):
                raise ParameterError(f"asset {asset} is held and cannot be removed")
            return
        decimals = parameters.cash_decimals(asset)
        if account.amounts.finer_than(rows, account.decimals, decimals) or any(
            self._cash.finer_than(slots[symbol], instrument.cash_decimals, decimals)
            for symbol, instrument in self._settled_in(asset)
        ):
            raise ParameterError(f"asset {asset}: amounts held need more than {decimals} decimals")

    def _settled_in(self, asset: str) -> list[tuple[str, Instrument]]:
        instruments = self._parameters.instruments.items()
        return [(symbol, instrument) for symbol, instrument in instruments if instrument.settle_asset == asset]

    def _slots_in(self, symbol: str) -> Ints:
        return np.flatnonzero(self._slot_symbol[: self._slots_used] == self._symbol_ids[symbol])

    def _symbols_restated(self, parameters: RiskParameters) -> list[str]:
        """Symbols with open positions that ``parameters`` hold otherwise than before.

        Raises:
            ParameterError: they are gone, or settled in another asset or in none.
        """
        found = []
        for symbol, before in self._parameters.instruments.items():
            after = parameters.instruments.get(symbol)
            settled = after is not None and after.settle_asset == before.settle_asset in parameters.assets
            if settled and (after is before or _same_increments(before, after)):
                continue
            if not self._slots_in(symbol).size:
                continue
            if not settled:
                raise ParameterError(f"symbol {symbol} has open positions: it cannot be removed or settled otherwise")
            found.append(symbol)
        return found

    def _express_positions(self, symbol: str, parameters: RiskParameters, lots: Amounts, cash: Amounts) -> None:
        """Restate the slots of ``symbol`` in place in the copies ``lots`` and ``cash``."""
        before, after = self._parameters.instruments[symbol], parameters.instruments[symbol]
        slots = self._slots_in(symbol)
        if before.quantity_increment != after.quantity_increment:
            digits = max(fraction_digits(rules.quantity_increment) for rules in (before, after))
            old, new = (int(rules.quantity_increment.scaleb(digits, EXACT)) for rules in (before, after))
            for slot in slots.tolist():
                restated, rest = divmod(lots.units(slot) * old, new)
                if rest:
                    raise ParameterError(f"symbol {symbol}: positions held are not whole numbers of the new increment")
                lots.put(slot, restated)
        cash.rescale(slots, before.cash_decimals, after.cash_decimals)

    def _expressed(self, account: _Account, decimals: int) -> Amounts:
        amounts = account.amounts.copy()
        amounts.rescale(np.arange(self.row_count, dtype=np.int64), account.decimals, decimals)
        return amounts

    def _adopt(self, parameters: RiskParameters) -> None:
        self._parameters = parameters
        for asset, rules in parameters.assets.items():
            if asset in self._ledger:
                account = self._ledger[asset]
                account.rescale(rules.decimals)
                if account.amounts.passes(slice(0, self.row_count), account.high_most):
                    account.limit = -1
            else:
                account = _Account(asset, len(self._ledger_by_id), rules.decimals, self._head.size)
                self._ledger[asset] = account
                self._ledger_by_id.append(account)
        pricing = (rules.price_symbol for rules in parameters.assets.values() if rules.price_symbol is not None)
        for symbol in (*parameters.instruments, *pricing):
            if symbol not in self._symbol_ids:
                self._symbol_ids[symbol] = len(self._symbols)
                self._symbols.append(symbol)
        self._stale = None
        if self._scanned != parameters.policy.portfolio_margin_accounts:
            self._scanned = parameters.policy.portfolio_margin_accounts
            self._row_scanned[: self.row_count] = [account in self._scanned for account in self._accounts]
        self._contracts = {
            symbol: self._contract(instrument)
            for symbol, instrument in parameters.instruments.items()
            if instrument.settle_asset in parameters.assets
        }
        self._cash_steps = np.ones(len(self._symbols), dtype=np.int64)
        for symbol, contract in self._contracts.items():
            self._cash_steps[self._symbol_ids[symbol]] = fine_step(contract.cash_decimals)
        self._view()
        self._prices.rebuild(parameters, self._symbol_ids)
        self._last_prices = None
        self._scans = ScanTables(parameters, self._symbol_ids)
        self._prices.refresh(self._marks, self._live)

    def _contract(self, instrument: Instrument) -> _Contract:
        account, known = self._ledger[instrument.settle_asset], self._contracts.get(instrument.symbol)
        if known is not None and known.compiled_from == (instrument, account.decimals):
            return known
        contract = _Contract(instrument, self._symbol_ids[instrument.symbol], account, self._caches)
        if self._lots.wide or self._cash.wide:
            slots = self._slots_in(instrument.symbol)
            if self._lots.passes(slots, contract.lots_high) or self._cash.passes(slots, contract.cash_high):
                contract.cash_limit = -1
        return contract

    # --- groups ------------------------------------------------------------------------------------------------------

    def open_group(self, account: str, margin: str) -> int:
        """The row of a group, made if it is not there."""
        row = self.find_group(account, margin)
        if row is not None:
            return row
        if self._free_rows:
            row = self._free_rows.pop()
            self._accounts[row], self._margins[row] = account, margin
        else:
            row = len(self._accounts)
            if row == self._head.size:
                self._grow_rows()
            self._accounts.append(account)
            self._margins.append(margin)
        self._row_scanned[row] = account in self._scanned
        if margin == CROSS:
            self._cross[account] = row
        else:
            self._isolated.setdefault(account, {})[margin] = row
        return row

    def find_group(self, account: str, margin: str) -> int | None:
        """The row of a group, None if there is none."""
        if margin == CROSS:
            return self._cross.get(account)
        isolated = self._isolated.get(account)
        return None if isolated is None else isolated.get(margin)

    def account_of(self, row: int) -> str:
        """The account that a row belongs to."""
        return self._accounts[row]

    def margin_of(self, row: int) -> str:
        """``cross`` or the symbol of the isolated position."""
        return self._margins[row]

    def groups_of(self, account: str) -> list[int]:
        """The rows of an account, cross first, then isolated ones by symbol."""
        isolated = self._isolated.get(account, {})
        cross = self._cross.get(account)
        rows = [isolated[margin] for margin in sorted(isolated)]
        return rows if cross is None else [cross, *rows]

    def drop_group(self, row: int) -> None:
        """Forget an empty group; its row will be reused.

        Raises:
            InputError: the group still holds something.
        """
        if not self.is_empty(row):
            raise InputError(f"account {self._accounts[row]}: group {self._margins[row]} is not empty")
        account, margin = self._accounts[row], self._margins[row]
        if self.find_group(account, margin) != row:
            return
        if margin == CROSS:
            del self._cross[account]
        else:
            del self._isolated[account][margin]
            if not self._isolated[account]:
                del self._isolated[account]
        self._accounts[row] = self._margins[row] = ""
        self._free_rows.append(row)

    @property
    def row_count(self) -> int:
        """Rows given out so far, dropped ones included: every row is below."""
        return len(self._accounts)

    @property
    def position_count(self) -> int:
        """Open positions of all groups."""
        return int(np.count_nonzero(self._slot_symbol[: self._slots_used]))

    def open_interest(self) -> dict[str, str]:
        """The quantity of all long positions by symbol, those without any left out."""
        found = {}
        for symbol, total in self._lots_by_symbol(np.arange(self._slots_used), shorts=False):
            instrument = self._parameters.instruments[symbol]
            digits = fraction_digits(instrument.quantity_increment)
            found[symbol] = from_units(total * to_units(instrument.quantity_increment, digits), digits)
        return found

    def _lots_by_symbol(self, slots: Ints, *, shorts: bool) -> list[tuple[str, int]]:
        """(symbol, lots of the long positions in ``slots``, and of the short ones) in order of symbol, 0 left out."""
        lots, symbols = self._lots.low[slots], self._slot_symbol[slots]
        wide = ~self._lots.within(slots, INT64_MAX)
        lots = np.where(wide, 0, np.abs(lots) if shorts else np.maximum(lots, 0))
        halves = np.zeros((2, len(self._symbols)), dtype=np.int64)  # apart, so that no sum can overflow
        np.add.at(halves[0], symbols, lots >> 32)
        np.add.at(halves[1], symbols, lots & 0xFFFFFFFF)
        totals = [(high << 32) + low for high, low in zip(*halves.tolist(), strict=True)]
        for slot in slots[wide].tolist():
            held = self._lots.units(slot)
            totals[self._slot_symbol_view[slot]] += abs(held) if shorts else max(held, 0)
        found = []
        for symbol in sorted(self._parameters.instruments):
            if total := totals[self._symbol_ids[symbol]]:
                found.append((symbol, total))
        return found

    def worth_at_stake(self, rows: Rows) -> Decimal:
        """What ``rows`` hold in positions of either side, and owe, at the last prices, in the unit of account.

        Exact. What has never had a price is left out.
        """
        _, slots = self._chains(rows)
        worth = Decimal(0)
        with localcontext(EXACT):
            for symbol, lots in self._lots_by_symbol(slots, shorts=True):
                instrument = self._parameters.instruments[symbol]
                unit = self._last_unit(instrument.settle_asset)
                worth += lots * instrument.quantity_increment * self._marks.get(symbol, Decimal(0)) * unit
            for account in self._ledger_by_id:
                if account.asset in self._parameters.assets:
                    owed = account.amounts.below_zero(rows, account.decimals)
                    worth -= decimal_units(owed, FRACTION_DIGITS_MAX) * self._last_unit(account.asset)
        return worth

    def _last_unit(self, asset: str) -> Decimal:
        """One unit of ``asset`` at its last price, 0 if it has never had one."""
        symbol = self._parameters.assets[asset].price_symbol
        return Decimal(1) if symbol is None else self._marks.get(symbol, Decimal(0))

    # --- the ledger --------------------------------------------------------------------------------------------------

    def apply_fill(self, row: int, symbol: str, quantity: str, price: str, fee: str) -> None:
        """Add a fill of signed ``quantity`` at ``price``; ``fee`` (negative: a rebate) goes to the settle asset.

        A fill that makes the position exactly flat moves its cash to the balance of the settle asset.

        Raises:
            InputError: unknown symbol, no settle asset, not a whole number of increments or minor units, a quantity
                of 0, a price not above 0, outside int64. Nothing is changed.
        """
        try:
            contract = self._contracts[symbol]
        except KeyError:
            raise self._no_contract(symbol) from None
        try:
            lots = contract.lots[quantity]
            per_lot = contract.cash_per_lot[price]
            paid = parse_units(fee, contract.decimals)
        except (InputError, TypeError) as error:
            raise InputError(f"symbol {symbol}: a fill of {quantity} at {price}, fee {fee}: {error}") from None
        if per_lot <= 0 or not lots:
            raise InputError(f"symbol {symbol}: a fill of {quantity} at {price}: quantity 0 or price not above 0")
        symbol_id, balances = contract.symbol_id, contract.balance
        symbols, following = self._slot_symbol_view, self._slot_next_view
        first = slot = self._head_view[row]
        before, steps = -1, 0
        while slot >= 0 and symbols[slot] != symbol_id:
            before, slot = slot, following[slot]
            steps += 1
        cash = -lots * per_lot
        if slot >= 0:
            lots += self._lots_view[slot]
            cash += self._cash_view[slot]
        balance = balances[row] - paid
        if not lots:
            scale = contract.balance_scale
            wide = self._lots.wide or self._cash.wide
            if not scale or (wide and not (self._lots.is_plain(slot) and self._cash.is_plain(slot))):
                return self._apply_exactly(contract, row, slot, before, (symbol, quantity, price, fee))
            balance, cash = balance + cash * scale, 0
        limit, room, most = contract.cash_limit, contract.balance_limit, contract.lots_limit
        if not (-limit <= cash <= limit and -room <= balance <= room and -most <= lots <= most):
            return self._apply_exactly(contract, row, slot, before, (symbol, quantity, price, fee))
        if slot < 0:
            if lots:
                if steps >= POSITIONS_MAX:
                    raise _too_many(symbol)
                slot = self._new_slot(row, symbol_id, first)
                self._lots_view[slot] = lots
                self._cash_view[slot] = cash
        elif lots:
            self._lots_view[slot] = lots
            self._cash_view[slot] = cash
            if steps > _LONG_WALK:
                self._move_first(row, slot, before, first)
        else:
            self._free(row, slot, before)
        balances[row] = balance
        return None

    def _apply_exactly(
        self, contract: _Contract, row: int, slot: int, before: int, fill: tuple[str, str, str, str]
    ) -> None:
        """Apply a fill that 64 bits do not hold. ``slot``: the position's, -1 if there is none; ``before`` it."""
        symbol, quantity, price, fee = fill
        filled, account = contract.lots[quantity], self._ledger_by_id[contract.asset_id]
        lots, cash = filled, -filled * contract.cash_per_lot[price] * fine_step(contract.cash_decimals)
        if slot >= 0:
            lots += self._lots.units(slot)
            cash += self._cash.exact(slot, contract.cash_decimals)
        paid = parse_units(fee, contract.decimals) * fine_step(contract.decimals)
        balance = account.amounts.exact(row, contract.decimals) - paid
        if not lots:
            balance, cash = balance + cash, 0
        if abs(lots) > contract.lots_most or not (_is_written(cash) and _is_written(balance)):
            limits = (
                f"{_most_quantity(contract)} of it and {_MOST} {account.asset} are the most that an account can hold"
            )
            raise InputError(f"symbol {symbol}: a fill of {quantity} at {price}, fee {fee} leaves the ledger: {limits}")
        if lots:
            if slot < 0:
                if len(self._slots_of(row)) >= POSITIONS_MAX:
                    raise _too_many(symbol)
                slot = self._new_slot(row, contract.symbol_id, self._head_view[row])
            self._put_position(contract, slot, lots, cash)
        elif slot >= 0:
            self._free(row, slot, before)
        self._put_balance(account, row, balance)

    def apply_transfer(self, row: int, asset: str, amount: str) -> None:
        """Add a signed ``amount`` to a balance.

        Raises:
            InputError: unknown asset, not a whole number of its minor units, more than the ledger holds. Nothing is
                changed.
        """
        account, rules = self._account(asset)
        try:
            change = parse_units(amount, rules.decimals)
        except InputError as error:
            raise InputError(f"asset {asset}: {error}") from None
        view = account.amounts.view
        units = view[row] + change
        if -account.limit <= units <= account.limit:
            view[row] = units
            return
        balance = account.amounts.exact(row, account.decimals) + change * fine_step(account.decimals)
        if not _is_written(balance):
            text = from_units(balance, FRACTION_DIGITS_MAX)
            raise InputError(f"asset {asset}: a balance of {text} leaves the ledger: {_MOST} is the most that it holds")
        self._put_balance(account, row, balance)

    def load_group(self, row: int, balances: Mapping[str, str], positions: Iterable[tuple[str, str, str]]) -> None:
        """Make ``row`` hold exactly ``balances`` (asset: amount) and ``positions`` (symbol, quantity, cash).

        Amounts may be finer than the minor unit of their asset or the cash of a fill: an amount that was right when it
        was written stays right.

        Raises:
            InputError: unknown symbol or asset, a symbol twice, a quantity of 0 or not whole lots, more than the ledger
                holds. Nothing is changed.
        """
        amounts = [(self._account(asset)[0], _exact(f"asset {asset}", text)) for asset, text in balances.items()]
        slots: dict[int, tuple[_Contract, int, int]] = {}
        for symbol, quantity, cash in positions:
            contract = self._contracts.get(symbol)
            if contract is None:
                raise self._no_contract(symbol)
            try:
                lots = contract.lots[quantity]
            except InputError as error:
                raise InputError(f"symbol {symbol}: a position of {quantity}: {error}") from None
            if not lots or contract.symbol_id in slots:
                raise InputError(f"symbol {symbol}: a position of {quantity}, or given twice, cannot be loaded")
            slots[contract.symbol_id] = (contract, lots, _exact(f"symbol {symbol}: cash", cash))
        self._clear(row)
        for account, amount in amounts:
            self._put_balance(account, row, amount)
        for symbol_id, (contract, lots, amount) in slots.items():
            self._put_position(contract, self._new_slot(row, symbol_id, self._head_view[row]), lots, amount)

    def _put_position(self, contract: _Contract, slot: int, lots: int, cash: int) -> None:
        """``cash`` in units of 10**-18."""
        lots_high = self._lots.put(slot, lots)
        cash_high = self._cash.put(slot, *divmod(cash, fine_step(contract.cash_decimals)))
        if abs(lots_high) > contract.lots_high or abs(cash_high) > contract.cash_high:
            contract.cash_limit = -1

    def _put_balance(self, account: _Account, row: int, amount: int) -> None:
        """``amount`` in units of 10**-18."""
        high = account.amounts.put(row, *divmod(amount, fine_step(account.decimals)))
        if abs(high) > account.high_most and account.limit >= 0:
            account.limit = -1
            self._view()

    def balances(self, row: int) -> dict[str, str]:
        """Balances that are not zero, by asset in alphabetical order, as canonical decimal strings."""
        held = sorted((account.asset, account) for account in self._held_by(row))
        return {asset: account.amounts.text(row, account.decimals) for asset, account in held}

    def positions(self, row: int) -> list[tuple[str, str, str]]:
        """(symbol, quantity, cash) of every position in order of symbol, as canonical decimal strings."""
        found = []
        for slot in self._slots_of(row):
            symbol_id = self._slot_symbol_view[slot]
            contract = self._contracts[self._symbols[symbol_id]]
            quantity = from_units(self._lots.units(slot) * contract.lot, contract.lot_digits)
            found.append((self._symbols[symbol_id], quantity, self._cash.text(slot, contract.cash_decimals)))
        return sorted(found)

    def is_empty(self, row: int) -> bool:
        """Whether the group has neither positions nor balances."""
        return self._head_view[row] < 0 and not self._held_by(row)

    def _held_by(self, row: int) -> list[_Account]:
        return [
            account
            for account in self._ledger_by_id
            if (amounts := account.amounts).view[row] or (amounts.wide and not amounts.is_plain(row))
        ]

    def group(self, row: int) -> Group:
        """The exact view of a row: positions in order of symbol, balances that are not zero in order of asset."""
        positions = []
        for slot in self._slots_of(row):
            symbol = self._symbols[self._slot_symbol_view[slot]]
            contract = self._contracts[symbol]
            quantity = EXACT.multiply(Decimal(self._lots.units(slot)), contract.increment)
            positions.append(Position(symbol, quantity, self._cash.decimal(slot, contract.cash_decimals)))
        positions.sort(key=lambda position: position.symbol)
        balances = {
            account.asset: account.amounts.decimal(row, account.decimals)
            for account in sorted(self._held_by(row), key=lambda account: account.asset)
        }
        return Group(self._accounts[row], self._margins[row], balances, tuple(positions))

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
            self._stale = frozenset(self._symbols[1:]) - live
        return self._stale

    # --- screens -----------------------------------------------------------------------------------------------------

    def rows_with(self, symbols: Iterable[str], among: Rows | None = None) -> Rows:
        """int64[k], ascending: rows with a position in one of ``symbols``, or with money priced by one.

        Only those of ``among`` (ascending) are looked at, if given.
        """
        wanted = set(symbols)
        assets = {name for name, rules in self._parameters.assets.items() if rules.price_symbol in wanted}
        hit = np.zeros(len(self._symbols), dtype=np.bool_)
        hit[[self._symbol_ids[symbol] for symbol in wanted if symbol in self._parameters.instruments]] = True
        for symbol, instrument in self._parameters.instruments.items() if assets else ():
            hit[self._symbol_ids[symbol]] |= instrument.settle_asset in assets
        if among is None:
            used = self._slots_used
            found = np.zeros(self.row_count, dtype=np.bool_)
            found[self._slot_row[:used][hit[self._slot_symbol[:used]]]] = True
            for asset in assets:
                found |= self._ledger[asset].amounts.held(slice(0, self.row_count))
            return np.flatnonzero(found)
        owners, slots = self._chains(among)
        found = np.zeros(among.size, dtype=np.bool_)
        found[owners[hit[self._slot_symbol[slots]]]] = True
        for asset in assets:
            found |= self._ledger[asset].amounts.held(among)
        return among[found]

    def awaited(self, rows: Rows | None = None) -> set[str]:
        """The symbols that ``rows`` (None: all) need a live mark of and that have none."""
        self._prices.refresh(self._marks, self._live)
        found: set[str] = set()
        if not self._prices.live.all():
            slots = slice(0, self._slots_used) if rows is None else self._chains(rows)[1]
            symbols = self._slot_symbol[slots]
            for index in np.unique(symbols[~self._prices.live[symbols]]).tolist():
                symbol = self._symbols[index]
                settle = self._parameters.assets[self._parameters.instruments[symbol].settle_asset].price_symbol
                found.update(name for name in (symbol, settle) if name is not None and not self._is_live(name))
        for account in self._ledger_by_id:
            if account.asset not in self._parameters.assets:  # taken back, so nobody holds any
                continue
            of = slice(0, self.row_count) if rows is None else rows
            units = account.amounts.doubles(of, fine_step(account.decimals))
            needing = self._prices.dim(account.asset, units)
            priced_by = self._parameters.assets[account.asset].price_symbol
            if needing is not None and needing.any() and priced_by is not None:
                found.add(priced_by)
        return found

    def _is_live(self, symbol: str) -> bool:
        return symbol in self._marks and self._live.get(symbol, False)

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
            self._last_prices.rebuild(self._parameters, self._symbol_ids)
        prices, self._prices = self._prices, self._last_prices
        live, self._live = self._live, dict.fromkeys(self._marks, True)
        try:
            columns = self.evaluate(rows)
        finally:
            self._prices, self._live = prices, live
        found: Rows = rows[columns.decidable & (columns.equity - columns.maintenance <= columns.error)]
        return found

    def evaluate(self, rows: Rows | None = None) -> Columns:
        """Screen ``rows`` (int64[n]; None: every row below ``row_count``) at the current marks.

        ``error`` bounds |true equity - equity| + |true maintenance - maintenance| + |true debt - debt|. With u = 2**-53
        and G the sum of the absolute values of all terms of a row (lots * value of a lot, cash, balances):

        - every table entry is an exact decimal rounded once (relative error u), every amount becomes a double with
          relative error at most 9.2u (``Amounts.doubles``), so a position's value or cash, a product of the two, is off
          by at most 11.3u of itself;
        - a margin is the greatest of its tiers' lines, |x| * r_n - D_n. Each line is off by at most 14.4u |x| r_n +
          2.1u D_n; a tier is only looked at where |x| is above its floor, so D_n <= |x| r_n (1 + 13u), and r_n < 1.
          Taking the greatest of them, or leaving out a tier whose floor |x| passes by less than 13u, adds no more than
          13u |x|: at most 30u |x|;
        - a balance's value is the least of its lines b * w_k + o_k, each off by at most 14.5u of its parts, with
          weights at most 1, times a liability weight L >= 1 for debt: at most 17u L |b|;
        - at a best corner a position's value takes two factors more, and its cash and a balance one, each rounded
          once: 15.4u and 19.1u; G then is the sum of the terms at the highest corner;
        - adding K terms one after the other is off by at most 1.01 (K - 1) u times the sum of their absolute values,
          for equity, maintenance and debt alike;
        - under portfolio margin the loss in a scenario is a sum of products of a value and a rate, each off by at most
          13.4u of itself; adding them up, worst cases, offsets and floors add no more than (16 + 2.02 K) u of the sum
          of |value| * largest rate, which is part of G; what marks that are not live take from it is a sum of products
          of three factors, (17 + 1.01 K) u of that sum, which then is part of G as well.

        So the three errors together are at most (16 + 30 + 20 + 5.05 K) u G, with K at most the number of symbols and
        assets and the debts in G taken times L. G itself is computed with a relative error far below one. The bound
        used is more than twice that, (140 + 11 K) u G.
        """
        self._prices.refresh(self._marks, self._live)
        if rows is None:
            used, n = self._slots_used, self.row_count
            return self._screen(self._slot_row[:used], slice(0, used), slice(0, n), n)
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size * _SPARSE > self.row_count + _SPARSE_ROWS:
            every = self.evaluate()
            return every.of(rows)
        owners, slots = self._chains(rows)
        return self._screen(owners, slots, rows, rows.size)

    def _screen(self, owners: Ints, slots: "Ints | slice", rows: "Rows | slice", n: int) -> Columns:
        """``owners`` is the index into the result of each of ``slots``; ``rows`` picks the balances."""
        prices = self._prices
        symbol = self._slot_symbol[slots]
        lots = self._lots.doubles(slots, 1)
        value = lots * prices.lot_value[symbol]
        cash = self._cash_units(slots, symbol) * prices.cash_value[symbol]
        size = np.abs(value)
        margin = prices.maintenance(symbol, size)
        worth, terms = value + cash, size + np.abs(cash)
        decidable, bounded = np.ones(n, dtype=np.bool_), np.ones(n, dtype=np.bool_)
        if not prices.live.all():
            dim = np.flatnonzero(~prices.live[symbol])
            best = prices.at_best(symbol[dim], lots[dim] > 0, value[dim], cash[dim])
            worth[dim], terms[dim], margin[dim] = best.worth, best.gross, 0
            decidable[owners[dim]] = False
            bounded[owners[dim[best.unbounded]]] = False
        equity = sums(owners, worth, n)
        maintenance = sums(owners, margin, n)
        gross = sums(owners, terms, n)
        scanned = self._row_scanned[rows]
        if scanned.any():
            gross += self._scan(scanned, owners, symbol, value, margin, maintenance)
        debt = np.zeros(n)
        for account in self._ledger_by_id:
            units = account.amounts.doubles(rows, fine_step(account.decimals))
            if not units.any():
                continue
            worth, counted = prices.collateral(account.asset, units)
            equity += worth
            gross += counted
            if units.min() < 0:
                debt -= np.minimum(worth, 0)
            needing = prices.dim(account.asset, units)
            if needing is not None:
                decidable[needing] = False
        summands = len(self._symbols) + len(self._ledger_by_id)
        error: Floats = gross * ((140 + 11 * summands) * _UNIT_ROUNDOFF)
        return Columns(equity, maintenance, error, decidable, debt, bounded)

    def _scan(
        self, scanned: Bools, owners: Ints, symbol: Ints, value: Floats, margin: Floats, maintenance: Floats
    ) -> Floats:
        """Put the margin by scenarios in the place of that by tiers where ``scanned`` (bool[n]).

        Returns float64[n], the sum of |value| * largest rate of those rows, and of what marks that are not live take.
        """
        held = np.flatnonzero(scanned[owners])
        numbers = np.cumsum(scanned) - 1
        owner, symbol, value = numbers[owners[held]], symbol[held], value[held]
        count = int(numbers[-1]) + 1
        sway, slack = np.abs(value) * self._scans.largest_rate[symbol], None
        if not self._prices.live.all():
            reach = np.where(self._scans.scanned[symbol], self._prices.reach[symbol], 0)
            lost = np.isinf(reach)
            taken = sway * np.where(lost, 0, reach)
            slack, sway = np.where(lost, np.inf, taken), sway + taken
        maintenance[scanned] = self._scans.maintenance(owner, symbol, value, margin[held], count, slack)
        swayed = np.zeros(scanned.size)
        swayed[scanned] = sums(owner, sway, count)
        return swayed

    def exposures(self, rows: Rows, reach: float) -> Exposures:
        """How equity, maintenance and debt of ``rows`` move with each live mark (see :class:`Exposures`)."""
        self._prices.refresh(self._marks, self._live)
        owners, slots = self._chains(rows)
        symbol = self._slot_symbol[slots]
        lots = self._lots.doubles(slots, 1)
        value = lots * self._prices.lot_value[symbol]
        cash = self._cash_units(slots, symbol) * self._prices.cash_value[symbol]
        sway_rate = np.where(self._row_scanned[rows][owners], self._scans.largest_rate[symbol], 0)
        parts, live = [], self._prices.live[symbol]
        if not live.all():
            dim = np.flatnonzero(~live)
            held = owners[dim], symbol[dim], lots[dim] > 0, value[dim], cash[dim], sway_rate[dim]
            parts += self._prices.dim_exposures(*held)
            owners, symbol, sway_rate = owners[live], symbol[live], sway_rate[live]
            value, cash = value[live], cash[live]
        parts += self._prices.exposures(owners, symbol, value, cash, sway_rate, reach)
        for account in self._ledger_by_id:
            units = account.amounts.doubles(rows, fine_step(account.decimals))
            part = self._prices.collateral_exposures(account.asset, units) if units.any() else None
            if part is not None:
                parts.append(part)
        return Exposures.merged(parts, len(self._symbols))

    def symbol_id(self, symbol: str) -> int | None:
        """The id under which :meth:`exposures` knows ``symbol``; None if no rule names it."""
        return self._symbol_ids.get(symbol)

    @property
    def symbol_count(self) -> int:
        """Every symbol id is below."""
        return len(self._symbols)

    @property
    def mark_column(self) -> Floats:
        """float64[symbol_count]: the nearest double of each mark, 0 where there is none."""
        self._prices.refresh(self._marks, self._live)
        return self._prices.mark

    def _cash_units(self, slots: "Ints | slice", symbol: Ints) -> Ints | Floats:
        """The cash of ``slots``, whose symbols are ``symbol``, in units of its own decimals."""
        plain = self._cash.fine is None
        return self._cash.doubles(slots, 1 if plain else self._cash_steps[symbol])

    def _chains(self, rows: Rows) -> tuple[Ints, Ints]:
        """The slots of ``rows`` and, for each, the index into ``rows`` of its owner."""
        index = np.arange(rows.size, dtype=np.int64)
        slot = self._head[rows]
        owners, slots = [], []
        while (held := slot >= 0).any():
            index, slot = index[held], slot[held]
            owners.append(index)
            slots.append(slot)
            slot = self._slot_next[slot]
        if not slots:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        return np.concatenate(owners), np.concatenate(slots)

    # --- slots -------------------------------------------------------------------------------------------------------

    def _slots_of(self, row: int) -> list[int]:
        slots = []
        slot = self._head_view[row]
        while slot >= 0:
            slots.append(slot)
            slot = self._slot_next_view[slot]
        return slots

    def _new_slot(self, row: int, symbol_id: int, first: int) -> int:
        slot = self._free_slot
        if slot >= 0:
            self._free_slot = self._slot_next_view[slot]
        else:
            slot = self._slots_used
            if slot == self._slot_row.size:
                self._grow_slots()
            self._slots_used = slot + 1
        self._slot_row_view[slot] = row
        self._slot_symbol_view[slot] = symbol_id
        self._slot_next_view[slot] = first
        self._head_view[row] = slot
        return slot

    def _move_first(self, row: int, slot: int, before: int, first: int) -> None:
        """Symbols traded lately are found soonest: what keeps a market maker's fills cheap."""
        self._slot_next_view[before] = self._slot_next_view[slot]
        self._slot_next_view[slot] = first
        self._head_view[row] = slot

    def _free(self, row: int, slot: int, before: int) -> None:
        following = self._slot_next_view[slot]
        if before < 0:
            self._head_view[row] = following
        else:
            self._slot_next_view[before] = following
        self._slot_symbol_view[slot] = VACANT
        self._slot_row_view[slot] = self._lots_view[slot] = self._cash_view[slot] = 0
        if self._lots.wide or self._cash.wide:
            self._lots.clear(slot)
            self._cash.clear(slot)
        self._slot_next_view[slot] = self._free_slot
        self._free_slot = slot

    def _clear(self, row: int) -> None:
        while (slot := self._head_view[row]) >= 0:
            self._free(row, slot, -1)
        for account in self._ledger_by_id:
            account.amounts.clear(row)

    # --- errors and growth -------------------------------------------------------------------------------------------

    def _no_contract(self, symbol: str) -> InputError:
        try:
            self._parameters.asset(self._parameters.instrument(symbol).settle_asset)
        except InputError as error:
            return InputError(f"symbol {symbol}: {error}")
        return InputError(f"symbol {symbol}: not known to the ledger")

    def _account(self, asset: str) -> tuple[_Account, AssetRules]:
        rules = self._parameters.asset(asset)
        return self._ledger[asset], rules

    def _grow_rows(self) -> None:
        rows = 2 * self._head.size
        self._head = grown(self._head, rows, -1)
        self._row_scanned = np.concatenate([self._row_scanned, np.zeros_like(self._row_scanned)])
        for account in self._ledger_by_id:
            account.amounts.resize(rows)
        self._view()

    def _grow_slots(self) -> None:
        slots = 2 * self._slot_row.size
        self._slot_row = grown(self._slot_row, slots)
        self._slot_symbol = grown(self._slot_symbol, slots)
        self._slot_next = grown(self._slot_next, slots, -1)
        self._lots.resize(slots)
        self._cash.resize(slots)
        self._view()

    def _view(self) -> None:
        self._head_view = scalars(self._head)
        self._slot_row_view = scalars(self._slot_row)
        self._slot_symbol_view = scalars(self._slot_symbol)
        self._slot_next_view = scalars(self._slot_next)
        self._lots_view = self._lots.view
        self._cash_view = self._cash.view
        for contract in self._contracts.values():
            account = self._ledger_by_id[contract.asset_id]
            contract.balance, contract.balance_limit = account.amounts.view, account.limit


# --- limits ----------------------------------------------------------------------------------------------------------


def _written_most(decimals: int) -> int:
    """The largest number of units of ``10**-decimals`` that a decimal string of the contract can say."""
    most: int = 10 ** (INTEGER_DIGITS_MAX + decimals) - 1
    return most


def _short_limit(decimals: int) -> int:
    return min(INT64_MAX, _written_most(decimals))


_AMOUNT_MOST = _written_most(FRACTION_DIGITS_MAX)
_MOST = from_units(_AMOUNT_MOST, FRACTION_DIGITS_MAX)


def _is_written(amount: int) -> bool:
    """Whether a decimal string of the contract can say ``amount`` units of 10**-18."""
    return -_AMOUNT_MOST <= amount <= _AMOUNT_MOST


def _most_quantity(contract: _Contract) -> str:
    return from_units(contract.lots_most * contract.lot, contract.lot_digits)


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


def _same_increments(before: Instrument, after: Instrument | None) -> bool:
    return after is not None and (
        (before.price_increment, before.quantity_increment) == (after.price_increment, after.quantity_increment)
    )
