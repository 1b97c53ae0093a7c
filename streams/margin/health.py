"""The verdict on one margin group at given marks, in exact decimals: this is what decides money.

Equity, debt, margins, the liquidation price of a symbol and the bankruptcy prices. It promises exact sums and products
and quotients rounded in a named direction; which groups are worth a verdict is the portfolio's and the bands' business.
All money is in the unit of account unless said otherwise.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext

from schemas.types import INTEGER_DIGITS_MAX
from streams.margin.fixed_point import EXACT, divide_ceiling, divide_floor
from streams.margin.group import Group
from streams.margin.models import Holding, model_of
from streams.margin.parameters import RiskParameters
from streams.margin.rules import HEALTH_RATIO_PLACES
from streams.margin.valuation import Marks, Valuation, counts, mark_of, price_of

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
    """A position's part: |quantity| * mark, and the margins it needs alone, all in the unit of account.

    Of a position whose marks are not live it is the least there may be: 0.
    """

    symbol: str
    quantity: Decimal
    notional: Decimal
    maintenance_margin: Decimal
    initial_margin: Decimal


@dataclass(frozen=True, slots=True)
class Health:
    """The verdict. ``liquidatable`` iff equity < maintenance_margin, strictly.

    ``debt`` is the weighted negative balances, ``unweighted_equity`` counts every balance at weight 1.
    ``health_ratio`` is (equity + debt) / (maintenance_margin + debt) rounded down to 8 places, so that it is below 1
    exactly when the group is liquidatable, and held within the 18 digits before the point that a message can carry;
    None where there is neither margin nor debt to fall below.

    ``bounds`` names the symbols, and their bounds, whose marks the verdict needed and that are not live: the figures
    are then those of the corner that is best for the account, and decide nothing but that it is liquidatable even so.
    ``bounded``: something bounds them; if nothing does, a position without any mark is left out of them, and the group
    is not liquidatable.
    """

    equity: Decimal
    maintenance_margin: Decimal
    initial_margin: Decimal
    liquidatable: bool
    health_ratio: Decimal | None
    positions: tuple[PositionHealth, ...]
    debt: Decimal
    unweighted_equity: Decimal
    bounded: bool
    bounds: Mapping[str, Decimal]


def evaluate(group: Group, marks: Marks, parameters: RiskParameters, *, stale: Collection[str] = frozenset()) -> Health:
    """Equity, debt, margins and the verdict on ``group``; the marks of the symbols in ``stale`` are not live.

    equity = sum of weighted(balance) * price(asset) + sum of (quantity * mark + cash) * price(settle asset); the
    margins are those of the account's model, by default sum of (N * r_n - D_n) * price(settle asset), N = |quantity|
    * mark. Each holding that needs a mark in ``stale`` enters at its best corner (:mod:`streams.margin.valuation`).

    Raises:
        InputError: an instrument, an asset, or the mark of a position that is not in ``stale`` is missing; the text
            names it.
    """
    return health_of(Valuation(group, marks, parameters, stale))


def health_of(valuation: Valuation) -> Health:
    """:func:`evaluate` of a group whose holdings have been valued."""
    margins, held = valuation.margins(), valuation.collateral(valuation.group.balances)
    with localcontext(EXACT):
        equity, unweighted = held.weighted + valuation.worth, held.unweighted + valuation.worth
        parts = []
        for valued, (maintenance, initial) in zip(valuation.positions, margins.by_holding, strict=True):
            notional = _ZERO
            if valued.live and valued.holding is not None:
                notional = abs(valued.holding.quantity) * valued.holding.mark * valued.holding.unit
            position = valued.position
            parts.append(PositionHealth(position.symbol, position.quantity, notional, maintenance, initial))
    return Health(
        equity=equity,
        maintenance_margin=margins.maintenance,
        initial_margin=margins.initial,
        liquidatable=valuation.bounded and equity < margins.maintenance,
        health_ratio=_ratio(equity, margins.maintenance, held.debt),
        positions=tuple(parts),
        debt=held.debt,
        unweighted_equity=unweighted,
        bounded=valuation.bounded,
        bounds=dict(valuation.bounds),
    )


def _ratio(equity: Decimal, maintenance: Decimal, debt: Decimal) -> Decimal | None:
    with localcontext(EXACT):
        held, needed = equity + debt, maintenance + debt
    if not needed:
        return None
    return max(min(divide_floor(held, needed, _RATIO_INCREMENT), _RATIO_MOST), -_RATIO_MOST)


def target_of(health: Health, parameters: RiskParameters) -> Decimal:
    """The equity that a liquidation aims at: maintenance + buffer * (notional + debt)."""
    with localcontext(EXACT):
        exposed = sum((part.notional for part in health.positions), health.debt)
        return health.maintenance_margin + parameters.policy.liquidation_buffer_rate * exposed


def holdings(group: Group, marks: Marks, parameters: RiskParameters) -> list[Holding]:
    """The positions of ``group`` as the margin models see them, in the same order.

    Raises:
        InputError: a mark, an instrument or an asset is missing; the text names it.
    """
    held = []
    for position in group.positions:
        instrument = parameters.instrument(position.symbol)
        settle = parameters.asset(instrument.settle_asset)
        mark, unit = mark_of(position.symbol, marks), price_of(settle, marks)
        held.append(Holding(instrument, position.quantity, mark, unit, settle.price_symbol))
    return held


def bankruptcy_prices(health: Health, marks: Marks, parameters: RiskParameters) -> dict[str, Decimal]:
    """The price of each position at which closing it, fees paid, uses up the unweighted equity that is allotted to it.

    ``health`` is the verdict at the same ``marks``; positions whose marks are not live have no such price.

    mark - E'_s / (q * u * (1 - f)) of a long and mark + E'_s / (|q| * u * (1 + f)) of a short, f being its fees and E'
    the unweighted equity less the fees of closing everything: of an E' above 0 a position is allotted
    E' * MM_s / (sum of MM + sum of H), H being the haircuts of the balances, and the collateral the rest; what is
    missing when it is below 0 is shared by the positions alone, E' * MM_s / sum of MM. So closing them all at these
    prices owes nothing. Rounded to the price increment in the fund's favour (a long's up, a short's down). It may be
    zero or negative for a short so far under water that no price would save the fund.

    Raises:
        InputError: a mark, an instrument or an asset is missing.
    """
    prices = {}
    left = left_by_closing(health, parameters)
    shares = shares_of(health, positions_alone=left < 0)
    for part in health.positions:
        if not part.maintenance_margin:
            continue
        with localcontext(EXACT):
            allotted = left * part.maintenance_margin
        fees = parameters.instrument(part.symbol).fees
        prices[part.symbol] = close_price(part, allotted, shares, marks, parameters, fees=fees)
    return prices


def left_by_closing(health: Health, parameters: RiskParameters) -> Decimal:
    """The unweighted equity less the fees of closing every position whose marks are live, at them.

    Raises:
        InputError: an instrument is missing.
    """
    with localcontext(EXACT):
        fees = (part.notional * parameters.instrument(part.symbol).fees for part in health.positions if part.notional)
        return health.unweighted_equity - sum(fees, _ZERO)


def shares_of(health: Health, *, positions_alone: bool) -> Decimal:
    """What equity is shared out over: the sum of the positions' margins and, unless it is for them alone, of the
    haircuts |value - weighted value| of all balances."""
    with localcontext(EXACT):
        margins = sum((part.maintenance_margin for part in health.positions), _ZERO)
        return margins if positions_alone else margins + health.unweighted_equity - health.equity


def close_price(
    part: PositionHealth,
    allotted: Decimal,
    shares: Decimal,
    marks: Marks,
    parameters: RiskParameters,
    *,
    fees: Decimal,
) -> Decimal:
    """The price at which closing all of ``part`` costs ``allotted`` / ``shares`` more than at its mark.

    A fee is a fraction of what is traded: closing at a price worse by x costs a long x * (1 - fees), a short
    x * (1 + fees) more. Rounded to the price increment, a long's up and a short's down.
    """
    instrument = parameters.instrument(part.symbol)
    with localcontext(EXACT):
        unit = price_of(parameters.asset(instrument.settle_asset), marks)
        # mark - allotted / (shares * q * unit * (1 -+ fees)) over one denominator; q carries the side
        kept = 1 - fees if part.quantity > 0 else 1 + fees
        denominator = shares * part.quantity * unit * kept
        numerator = mark_of(part.symbol, marks) * denominator - allotted
    divide = divide_ceiling if part.quantity > 0 else divide_floor
    return divide(numerator, denominator, instrument.price_increment)


def liquidation_price(group: Group, symbol: str, marks: Marks, parameters: RiskParameters) -> Decimal | None:
    """The mark of ``symbol`` at which equity equals the maintenance margin, every other mark held. Of a group that only
    owes it is where its collateral no longer covers its debt.

    As a function of this mark P alone, equity is a line and the margin convex, so f = equity - maintenance is concave
    and the least of its tangents; the group is safe between the highest root of the rising tangents and the lowest of
    the falling ones. Each end is found by cutting: take the tangent where the group should be safe and is not, move
    to its root, until it is. f has finitely many lines (tiers, scenarios), so this ends, and exactly.

    Of the two ends the one on the losing side is given: the lower for a long or for a symbol that only prices
    collateral, the upper for a short; the other one where that does not exist. It is rounded to 12 decimal places into
    the safe region: at the price returned the group is not liquidatable, one last place further it is.

    Returns:
        None if no positive mark of the symbol alone makes the group liquidatable, or none makes it safe.

    Raises:
        InputError: another mark, an instrument or an asset is missing.
    """
    region = _safe_region(_Section(group, symbol, marks, parameters))
    if region is None:
        return None
    lower, upper = region
    short = any(position.symbol == symbol and position.quantity < 0 for position in group.positions)
    if short and upper is not None:
        return upper
    return lower if lower > 0 else upper


def priced_balances(group: Group, marks: Marks, parameters: RiskParameters) -> list[tuple[str, str]]:
    """(asset, symbol that prices it) of each balance that counts and has a price, in order of asset.

    Raises:
        InputError: an asset is missing.
    """
    priced = []
    for asset, quantity in sorted(group.balances.items()):
        rules = parameters.asset(asset)
        if rules.price_symbol is not None and counts(rules, quantity, marks):
            priced.append((asset, rules.price_symbol))
    return priced


def symbols_of(group: Group, marks: Marks, parameters: RiskParameters) -> set[str]:
    """The symbols whose marks the figures of ``group`` depend on. A balance that counts for nothing needs none.

    Raises:
        InputError: an instrument or an asset is missing.
    """
    symbols = {symbol for _, symbol in priced_balances(group, marks, parameters)}
    for position in group.positions:
        settle = parameters.asset(parameters.instrument(position.symbol).settle_asset)
        symbols.add(position.symbol)
        if settle.price_symbol is not None:
            symbols.add(settle.price_symbol)
    return symbols


class _Section:
    """equity - maintenance of a group as a function of one mark, the others held."""

    def __init__(self, group: Group, symbol: str, marks: Marks, parameters: RiskParameters) -> None:
        self._symbol = symbol
        self._model = model_of(group.account, parameters)
        marks = {**marks, symbol: _ONE}
        self._holdings = holdings(group, marks, parameters)
        constant, slope = _ZERO, _ZERO
        with localcontext(EXACT):
            for asset, quantity in group.balances.items():
                rules = parameters.asset(asset)
                if not counts(rules, quantity, marks):
                    continue
                if rules.price_symbol == symbol:
                    slope += rules.weighted(quantity)
                else:
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


__all__ = [
    "LIQUIDATION_PRICE_PLACES",
    "Health",
    "Marks",
    "PositionHealth",
    "bankruptcy_prices",
    "close_price",
    "evaluate",
    "health_of",
    "holdings",
    "liquidation_price",
    "mark_of",
    "price_of",
    "priced_balances",
    "shares_of",
    "symbols_of",
    "target_of",
]
