"""The verdict on one margin group at given marks, in exact decimals: this is what decides money.

Equity, margins, the liquidation price of a symbol and the bankruptcy prices. It promises exact sums and products and
quotients rounded in a named direction; which groups are worth a verdict is the portfolio's and the bands' business.
All money is in the unit of account unless said otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext

from schemas.types import INTEGER_DIGITS_MAX
from streams.errors import InputError
from streams.margin.fixed_point import EXACT, divide_ceiling, divide_floor
from streams.margin.group import Group
from streams.margin.models import Holding, model_of
from streams.margin.parameters import HEALTH_RATIO_PLACES, AssetRules, RiskParameters

Marks = Mapping[str, Decimal]

LIQUIDATION_PRICE_PLACES = 12
"""Decimal places of a liquidation price. Not the price increment: a mark need not be a multiple of it."""

_RATIO_INCREMENT = Decimal(1).scaleb(-HEALTH_RATIO_PLACES)
_PRICE_INCREMENT = Decimal(1).scaleb(-LIQUIDATION_PRICE_PLACES)
_MARK_MOST = Decimal(10) ** INTEGER_DIGITS_MAX
_RATIO_MOST = Decimal(10**INTEGER_DIGITS_MAX - 1)
_ZERO = Decimal(0)
_ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class PositionHealth:
    """A position's part: |quantity| * mark, and the margins it needs alone, all in the unit of account."""

    symbol: str
    quantity: Decimal
    notional: Decimal
    maintenance_margin: Decimal
    initial_margin: Decimal


@dataclass(frozen=True, slots=True)
class Health:
    """The verdict. ``liquidatable`` iff maintenance_margin > 0 and equity < maintenance_margin, strictly.

    ``health_ratio`` is equity / maintenance_margin rounded down to 8 places and held within the 18 digits before the
    point that a message can carry; None without a maintenance margin.
    """

    equity: Decimal
    maintenance_margin: Decimal
    initial_margin: Decimal
    liquidatable: bool
    health_ratio: Decimal | None
    positions: tuple[PositionHealth, ...]


def evaluate(group: Group, marks: Marks, parameters: RiskParameters) -> Health:
    """Equity, margins and the verdict on ``group``.

    equity = sum of weighted(balance) * price(asset) + sum of (quantity * mark + cash) * price(settle asset); the
    margins are those of the account's model, by default sum of (N * r_n - D_n) * price(settle asset), N = |quantity|
    * mark.

    Raises:
        InputError: a mark, an instrument or an asset is missing; the text names it.
    """
    held = holdings(group, marks, parameters)
    margins = model_of(group.account, parameters).margins(held)
    with localcontext(EXACT):
        equity = collateral_value(group.balances, marks, parameters)
        parts = []
        for position, holding, (maintenance, initial) in zip(group.positions, held, margins.by_holding, strict=True):
            value = position.quantity * holding.mark
            equity += (value + position.cash) * holding.unit
            parts.append(
                PositionHealth(position.symbol, position.quantity, abs(value) * holding.unit, maintenance, initial)
            )
    total = margins.maintenance
    ratio = _ratio(equity, total) if total > 0 else None
    return Health(equity, total, margins.initial, total > 0 and equity < total, ratio, tuple(parts))


def _ratio(equity: Decimal, maintenance: Decimal) -> Decimal:
    return max(min(divide_floor(equity, maintenance, _RATIO_INCREMENT), _RATIO_MOST), -_RATIO_MOST)


def holdings(group: Group, marks: Marks, parameters: RiskParameters) -> list[Holding]:
    """The positions of ``group`` as the margin models see them, in the same order.

    Raises:
        InputError: a mark, an instrument or an asset is missing; the text names it.
    """
    found = []
    for position in group.positions:
        instrument = parameters.instrument(position.symbol)
        settle = parameters.asset(instrument.settle_asset)
        mark, unit = mark_of(position.symbol, marks), price_of(settle, marks)
        found.append(Holding(instrument, position.quantity, mark, unit, settle.price_symbol))
    return found


def mark_of(symbol: str, marks: Marks) -> Decimal:
    """The mark of ``symbol``.

    Raises:
        InputError: there is none, or it is not above zero.
    """
    mark = marks.get(symbol)
    if mark is None:
        raise InputError(f"symbol {symbol}: no mark")
    if not mark > 0:
        raise InputError(f"symbol {symbol}: the mark {mark} is not above zero")
    return mark


def price_of(asset: AssetRules, marks: Marks) -> Decimal:
    """One unit of ``asset`` in the unit of account: the mark of its price symbol, or 1 if it has none."""
    return _ONE if asset.price_symbol is None else mark_of(asset.price_symbol, marks)


def collateral_value(balances: Mapping[str, Decimal], marks: Marks, parameters: RiskParameters) -> Decimal:
    """What ``balances`` count for in equity: weighted quantities at their prices. A zero balance needs no mark."""
    with localcontext(EXACT):
        value = _ZERO
        for asset, quantity in balances.items():
            if quantity:
                rules = parameters.asset(asset)
                value += rules.weighted(quantity) * price_of(rules, marks)
        return value


def bankruptcy_prices(group: Group, marks: Marks, parameters: RiskParameters) -> dict[str, Decimal]:
    """The price of each position at which closing all of them leaves the group with nothing and owing nothing.

    mark - side * equity * (MM_s / sum of MM) / |q|: each position is allotted equity by its share of the maintenance
    margins. Rounded to the price increment in the fund's favour (a long's up, a short's down). It may be zero or
    negative for a short so far under water that no price would save the fund.

    Raises:
        InputError: a mark, an instrument or an asset is missing.
    """
    return bankruptcy_prices_of(evaluate(group, marks, parameters), marks, parameters)


def bankruptcy_prices_of(health: Health, marks: Marks, parameters: RiskParameters) -> dict[str, Decimal]:
    """:func:`bankruptcy_prices` of a group whose verdict at the same marks is known."""
    prices = {}
    with localcontext(EXACT):
        shares = sum((part.maintenance_margin for part in health.positions), _ZERO)
    for part in health.positions:
        if not part.quantity or not shares:
            continue
        instrument = parameters.instrument(part.symbol)
        with localcontext(EXACT):
            unit = price_of(parameters.asset(instrument.settle_asset), marks)
            # mark - equity * MM_s / (sum of MM * q * unit) over one denominator; q carries the side
            denominator = shares * part.quantity * unit
            numerator = mark_of(part.symbol, marks) * denominator - health.equity * part.maintenance_margin
        divide = divide_ceiling if part.quantity > 0 else divide_floor
        prices[part.symbol] = divide(numerator, denominator, instrument.price_increment)
    return prices


def liquidation_price(group: Group, symbol: str, marks: Marks, parameters: RiskParameters) -> Decimal | None:
    """The mark of ``symbol`` at which equity equals the maintenance margin, every other mark held.

    As a function of this mark P alone, equity is a line and the margin convex, so f = equity - maintenance is concave
    and the least of its tangents; the group is safe between the highest root of the rising tangents and the lowest of
    the falling ones. Each end is found by cutting: take the tangent where the group should be safe and is not, move
    to its root, until it is. f has finitely many lines (tiers, scenarios), so this ends, and exactly.

    Of the two ends the one on the losing side is given: the lower for a long or for a symbol that only prices
    collateral, the upper for a short; the other one where that does not exist. It is rounded to 12 decimal places into
    the safe region: at the price returned the group is not liquidatable, one last place further it is.

    Returns:
        None if no positive mark of the symbol alone makes the group liquidatable, none makes it safe, or the group has
        no maintenance margin.

    Raises:
        InputError: another mark, an instrument or an asset is missing.
    """
    if not any(position.quantity for position in group.positions):
        return None
    region = _safe_region(_Section(group, symbol, marks, parameters))
    if region is None:
        return None
    lower, upper = region
    short = any(position.symbol == symbol and position.quantity < 0 for position in group.positions)
    if short and upper is not None:
        return upper
    return lower if lower > 0 else upper


class _Section:
    """equity - maintenance of a group as a function of one mark, the others held."""

    def __init__(self, group: Group, symbol: str, marks: Marks, parameters: RiskParameters) -> None:
        self._symbol = symbol
        self._model = model_of(group.account, parameters)
        self._holdings = holdings(group, {**marks, symbol: _ONE}, parameters)
        constant, slope = _ZERO, _ZERO
        with localcontext(EXACT):
            for asset, quantity in group.balances.items():
                rules = parameters.asset(asset)
                if quantity and rules.price_symbol == symbol:
                    slope += rules.weighted(quantity)
                elif quantity:
                    constant += rules.weighted(quantity) * price_of(rules, marks)
            for position, holding in zip(group.positions, self._holdings, strict=True):
                if position.symbol == symbol:
                    constant += position.cash * holding.unit
                    slope += position.quantity * holding.unit
                elif holding.unit_symbol == symbol:
                    slope += position.quantity * holding.mark + position.cash
                else:
                    constant += (position.quantity * holding.mark + position.cash) * holding.unit
        self._constant, self._slope = constant, slope

    def tangent(self, mark: Decimal) -> tuple[Decimal, Decimal]:
        """(a, b): f is a + b * P at ``mark`` and nowhere more."""
        constant, slope = self._model.tangent([held.at(self._symbol, mark) for held in self._holdings], self._symbol)
        with localcontext(EXACT):
            return self._constant - constant, self._slope - slope


def _safe_region(section: _Section) -> tuple[Decimal, Decimal | None] | None:
    """(lower, upper): the marks at which f >= 0, in multiples of the last place; None if there are none.

    ``lower`` 0: every mark down to nothing; ``upper`` None: every mark the contract can hold.
    """
    lower: Decimal = _ZERO
    upper: Decimal | None = None
    while (cut := _cut(section, _MARK_MOST if upper is None else upper)) is not None:
        debt, slope = cut
        if slope >= 0:
            return None
        upper = divide_floor(debt, slope, _PRICE_INCREMENT)
        if upper <= 0:
            return None
    while (cut := _cut(section, lower or _PRICE_INCREMENT)) is not None:
        debt, slope = cut
        if slope <= 0:
            return None
        lower = divide_ceiling(debt, slope, _PRICE_INCREMENT)
        if upper is not None and upper < lower:
            return None
    return lower, upper


def _cut(section: _Section, mark: Decimal) -> tuple[Decimal, Decimal] | None:
    """(d, b): the tangent -d + b * P of f at ``mark`` if f is below zero there, else None. Its root is d / b."""
    constant, slope = section.tangent(mark)
    with localcontext(EXACT):  # the sign too: outside, a minus rounds to the 28 digits of the context in force
        return (-constant, slope) if constant + slope * mark < 0 else None
