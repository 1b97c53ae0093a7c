"""The verdict on one margin group at given marks, in exact decimals: this is what decides money.

Equity, margins, the liquidation price of a symbol and the bankruptcy prices. It promises exact sums and products and
quotients rounded in a named direction; which groups are worth a verdict is the portfolio's and the bands' business.
All money is in the unit of account unless said otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext

from streams.errors import InputError
from streams.margin.fixed_point import EXACT, divide_ceiling, divide_floor
from streams.margin.group import Group, Position
from streams.margin.parameters import HEALTH_RATIO_PLACES, AssetRules, Instrument, RiskParameters

Marks = Mapping[str, Decimal]

LIQUIDATION_PRICE_PLACES = 12
"""Decimal places of a liquidation price. Not the price increment: a mark need not be a multiple of it."""

_RATIO_INCREMENT = Decimal(1).scaleb(-HEALTH_RATIO_PLACES)
_PRICE_INCREMENT = Decimal(1).scaleb(-LIQUIDATION_PRICE_PLACES)
_ZERO = Decimal(0)
_ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class PositionHealth:
    """A position's part: |quantity| * mark, and the margins on it, all in the unit of account."""

    symbol: str
    quantity: Decimal
    notional: Decimal
    maintenance_margin: Decimal
    initial_margin: Decimal


@dataclass(frozen=True, slots=True)
class Health:
    """The verdict. ``liquidatable`` iff maintenance_margin > 0 and equity < maintenance_margin, strictly.

    ``health_ratio`` is equity / maintenance_margin rounded down to 8 places, None without a maintenance margin.
    """

    equity: Decimal
    maintenance_margin: Decimal
    initial_margin: Decimal
    liquidatable: bool
    health_ratio: Decimal | None
    positions: tuple[PositionHealth, ...]


def evaluate(group: Group, marks: Marks, parameters: RiskParameters) -> Health:
    """Equity, margins and the verdict on ``group``.

    equity = sum of weighted(balance) * price(asset) + sum of (quantity * mark + cash) * price(settle asset);
    maintenance = sum of (N * r_n - D_n) * price(settle asset), N = |quantity| * mark.

    Raises:
        InputError: a mark, an instrument or an asset is missing; the text names it.
    """
    with localcontext(EXACT):
        equity = collateral_value(group.balances, marks, parameters)
        parts = []
        for position in group.positions:
            instrument = parameters.instrument(position.symbol)
            unit = price_of(parameters.asset(instrument.settle_asset), marks)
            mark = mark_of(position.symbol, marks)
            notional = abs(position.quantity) * mark
            equity += (position.quantity * mark + position.cash) * unit
            parts.append(
                PositionHealth(
                    position.symbol,
                    position.quantity,
                    notional * unit,
                    instrument.maintenance(notional) * unit,
                    instrument.initial(notional) * unit,
                )
            )
        maintenance = sum((part.maintenance_margin for part in parts), _ZERO)
        initial = sum((part.initial_margin for part in parts), _ZERO)
    ratio = divide_floor(equity, maintenance, _RATIO_INCREMENT) if maintenance > 0 else None
    return Health(equity, maintenance, initial, maintenance > 0 and equity < maintenance, ratio, tuple(parts))


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

    mark - side * equity * (MM_s / MM_total) / |q|: each position is allotted equity by its share of the maintenance
    margin. Rounded to the price increment in the fund's favour (a long's up, a short's down). It may be zero or
    negative for a short so far under water that no price would save the fund.

    Raises:
        InputError: a mark, an instrument or an asset is missing.
    """
    return bankruptcy_prices_of(evaluate(group, marks, parameters), marks, parameters)


def bankruptcy_prices_of(health: Health, marks: Marks, parameters: RiskParameters) -> dict[str, Decimal]:
    """:func:`bankruptcy_prices` of a group whose verdict at the same marks is known."""
    prices = {}
    for part in health.positions:
        if not part.quantity:
            continue
        instrument = parameters.instrument(part.symbol)
        with localcontext(EXACT):
            unit = price_of(parameters.asset(instrument.settle_asset), marks)
            # mark - equity * MM_s / (MM_total * q * unit) over one denominator; q carries the side
            denominator = health.maintenance_margin * part.quantity * unit
            numerator = mark_of(part.symbol, marks) * denominator - health.equity * part.maintenance_margin
        divide = divide_ceiling if part.quantity > 0 else divide_floor
        prices[part.symbol] = divide(numerator, denominator, instrument.price_increment)
    return prices


def liquidation_price(group: Group, symbol: str, marks: Marks, parameters: RiskParameters) -> Decimal | None:
    """The mark of ``symbol`` at which equity equals the maintenance margin, every other mark held.

    As a function of this mark P alone, equity - maintenance is the least of the lines

        a_n + b_n * P,  a_n = A + u * D_n,  b_n = B - u * r_n * |q|,  one for each tier n of the symbol,

    because a margin with rising rates is the greatest of its tiers' lines. ``u`` is the price of the settle asset, A
    and B collect what does not and what does move with P: balances and settle assets priced by ``symbol`` are in B.
    So the group is safe between the highest root of the rising lines and the lowest of the falling ones.

    Of the two ends the one on the losing side is given: the lower for a long or for a symbol that only prices
    collateral, the upper for a short; the other one where that does not exist. It is rounded to 12 decimal places
    into the safe region: at the price returned the group is not liquidatable, one last place further it is.

    Returns:
        None if no positive mark of the symbol alone makes the group liquidatable, none makes it safe, or the group
        has no maintenance margin.

    Raises:
        InputError: another mark, an instrument or an asset is missing.
    """
    lines = _lines(group, symbol, marks, parameters)
    if not lines:
        return None
    lower, upper = _ZERO, None
    for constant, slope in lines:
        if slope > 0:
            lower = max(lower, divide_ceiling(-constant, slope, _PRICE_INCREMENT))
        elif slope < 0:
            bound = divide_floor(-constant, slope, _PRICE_INCREMENT)
            upper = bound if upper is None else min(upper, bound)
        elif constant < 0:
            return None
    if upper is not None and (upper <= 0 or upper < lower):
        return None
    short = any(position.symbol == symbol and position.quantity < 0 for position in group.positions)
    if short and upper is not None:
        return upper
    return lower if lower > 0 else upper


def _lines(group: Group, symbol: str, marks: Marks, parameters: RiskParameters) -> list[tuple[Decimal, Decimal]]:
    """(a_n, b_n) of :func:`liquidation_price`; empty if the group has no maintenance margin."""
    with localcontext(EXACT):
        constant, slope = _ZERO, _ZERO
        margin_steps: tuple[tuple[Decimal, Decimal], ...] = ()
        for asset, quantity in group.balances.items():
            rules = parameters.asset(asset)
            if quantity and rules.price_symbol == symbol:
                slope += rules.weighted(quantity)
            elif quantity:
                constant += rules.weighted(quantity) * price_of(rules, marks)
        for position in group.positions:
            instrument = parameters.instrument(position.symbol)
            settle = parameters.asset(instrument.settle_asset)
            if position.symbol == symbol:
                unit = price_of(settle, marks)
                constant += position.cash * unit
                slope += position.quantity * unit
                size = abs(position.quantity) * unit
                margin_steps = tuple(
                    (unit * step.maintenance_deduction, size * step.maintenance_rate) for step in instrument.steps
                )
            else:
                surplus = _surplus(position, instrument, marks)
                if settle.price_symbol == symbol:
                    slope += surplus
                else:
                    constant += surplus * price_of(settle, marks)
        if margin_steps:
            return [(constant + deduction, slope - rate) for deduction, rate in margin_steps]
        return [(constant, slope)] if any(position.quantity for position in group.positions) else []


def _surplus(position: Position, instrument: Instrument, marks: Marks) -> Decimal:
    """Value less maintenance margin of a position at its mark, in its settle asset."""
    mark = mark_of(position.symbol, marks)
    value = position.quantity * mark + position.cash
    return value - instrument.maintenance(abs(position.quantity) * mark)
