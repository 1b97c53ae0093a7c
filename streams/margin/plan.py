"""What to do with a group that is under water: the least that restores it, all of it, or hand it to the fund.

Pure and exact: the plan is a function of group, marks and parameters. Naming the orders, sending them and waiting for
their fills is the engine's business.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Literal

from schemas.types import FRACTION_DIGITS_MAX
from streams.margin.conversion import Conversion
from streams.margin.fixed_point import EXACT, divide_ceiling, divide_floor
from streams.margin.group import Group
from streams.margin.health import Health, PositionHealth, bankruptcy_prices, close_price, left_by_closing, shares_of
from streams.margin.parameters import RiskParameters
from streams.margin.reduction import Reduction, reduce_positions
from streams.margin.rules import Instrument
from streams.margin.valuation import Marks, Valuation, counts, mark_of, price_of

ORDERS_MAX = 512
"""Most orders of one plan. What a plan leaves unsliced for want of orders is planned again after its fills."""

PlanStage = Literal["reduce", "close", "takeover", "insolvent", "unsellable", "undecided"]

_SPOT_INCREMENT = Decimal(1).scaleb(-FRACTION_DIGITS_MAX)
"""A spot market's own price increment is not known: a limit there has every place that a message holds."""

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class PlannedOrder:
    """Close ``quantity`` (> 0) of a position at ``limit_price`` or better, which is at least one price increment.

    An order on the price symbol of an asset sells collateral (``long``, ``sell``) or buys back a debt (``short``,
    ``buy``). Closing everything at the limit prices of the last attempt, fees paid, leaves the unweighted equity at 0
    or above; those of an earlier attempt are nearer to the mark.
    """

    symbol: str
    position_side: Literal["long", "short"]
    order_side: Literal["buy", "sell"]
    quantity: Decimal
    limit_price: Decimal
    mark_price: Decimal


@dataclass(frozen=True, slots=True)
class Plan:
    """``reduce``: the orders restore the target. ``close``: they close every position that can be traded, and sell what
    helps. ``takeover``: the fund takes every position that can be traded at its limit price.

    The other stages have no orders, as there is nothing to trade: ``insolvent``, the unweighted equity is below 0;
    ``undecided``, something could be traded if its mark were live, or nothing bounds what the group is worth;
    ``unsellable``, nothing has a market.
    """

    stage: PlanStage
    orders: tuple[PlannedOrder, ...]


def make_plan(
    group: Group,
    health: Health,
    marks: Marks,
    parameters: RiskParameters,
    *,
    stale: Collection[str] = frozenset(),
    attempt: int = 0,
) -> Plan:
    """The liquidation plan of ``group`` at ``marks``; those of the symbols in ``stale`` are not live.

    ``health`` is the verdict on the group at the same marks, under the same parameters. ``attempt`` counts the plans
    before this one that came to nothing: ``policy.limit_ladder`` says how far from the mark each may trade.

    A group is taken over as a whole once every attempt has come to nothing, or if its unweighted equity does not pay
    the fees of closing everything and of the conversions planned, or is below ``policy.backstop_rate`` times its
    maintenance margin. Otherwise positions are reduced, and
    collateral is sold for debts where that is cheaper or where closing is not enough, until equity meets the target
    again (:func:`streams.margin.reduction.reduce_positions`). Closes are orders of at most ``max_order_notional`` each,
    sales and purchases of collateral are orders on the assets' price symbols. Only what needs no mark of ``stale`` is
    traded.

    A group without a shortage gets a plan without orders.

    Raises:
        InputError: an instrument, an asset, or the mark of a position that is not in ``stale`` is missing.
    """
    if not health.bounded:
        return Plan("undecided", ())
    valuation = Valuation(group, marks, parameters, stale)
    ladder = parameters.policy.limit_ladder
    planner = _OrderPlanner(valuation, health, ladder[min(attempt, len(ladder) - 1)])
    if planner.held and (attempt >= len(ladder) or planner.is_backstopped or planner.left(()) <= 0):
        return Plan("takeover", planner.takeover())
    reduction = reduce_positions(valuation)
    if planner.held and reduction.conversions and planner.left(reduction.conversions) <= 0:
        return Plan("takeover", planner.takeover())
    orders = planner.orders(reduction)
    if orders or not health.liquidatable:
        return Plan("close" if orders and _is_everything(reduction, planner.held) else "reduce", orders)
    if health.unweighted_equity < 0:
        return Plan("insolvent", ())
    return Plan("undecided" if _would_trade(valuation) else "unsellable", ())


def _is_everything(reduction: Reduction, held: Mapping[str, Decimal]) -> bool:
    """Whether every position is closed, or without any all that can be converted is."""
    return reduction.quantities == held if held else reduction.shortage > 0


def _would_trade(valuation: Valuation) -> bool:
    """Whether something could be traded if every mark were live."""
    if any(not valued.live for valued in valuation.positions):
        return True
    parameters = valuation.parameters
    held = [(parameters.asset(asset), quantity) for asset, quantity in valuation.group.balances.items()]
    return any(
        counts(rules, quantity, valuation.marks)
        and rules.price_symbol not in parameters.instruments
        and not valuation.is_live(rules)
        for rules, quantity in held
    )


def orders_at_once(plan: Plan, most: int) -> tuple[PlannedOrder, ...]:
    """The orders of ``plan`` of which a command is made first, in the order of the plan: at most ``most``, of each
    position as many slices as of any other; all of a takeover."""
    if plan.stage == "takeover" or len(plan.orders) <= most:
        return plan.orders
    slices_of: dict[str, int] = {}
    rounds: list[tuple[int, int]] = []
    for index, order in enumerate(plan.orders):
        slices_of[order.symbol] = number = slices_of.get(order.symbol, -1) + 1
        rounds.append((number, index))
    return tuple(plan.orders[index] for index in sorted(index for _, index in sorted(rounds)[:most]))


@dataclass(frozen=True, slots=True)
class _Allotment:
    """What the trades of a plan may cost beyond their fees: one that is ``share`` of ``shares`` may cost so much of
    ``equity``. Below 0 it is what they have to gain."""

    equity: Decimal
    shares: Decimal


class _OrderPlanner:
    """Prices the orders of one group's plan. ``held``: the quantities of the positions that can be traded."""

    def __init__(self, valuation: Valuation, health: Health, rung: Decimal) -> None:
        self._health, self._balances, self._rung = health, valuation.group.balances, rung
        self._marks, self._parameters = valuation.marks, valuation.parameters
        self._parts = {part.symbol: part for part in health.positions}
        self.held: dict[str, Decimal] = {
            valued.position.symbol: abs(valued.position.quantity)
            for valued in valuation.positions
            if valued.position.quantity and valued.live
        }

    @property
    def is_backstopped(self) -> bool:
        """Whether the unweighted equity is below the part of the maintenance margin at which nothing is tried."""
        health, rate = self._health, self._parameters.policy.backstop_rate
        with localcontext(EXACT):
            return health.unweighted_equity < rate * health.maintenance_margin

    def left(self, conversions: Collection[Conversion]) -> Decimal:
        """The unweighted equity that is left once the fees of closing everything and of ``conversions`` are paid."""
        with localcontext(EXACT):
            fees = (abs(one.quantity) * price_of(one.asset, self._marks) * _fee(one) for one in conversions)
            return left_by_closing(self._health, self._parameters) - sum(fees, _ZERO)

    def takeover(self) -> tuple[PlannedOrder, ...]:
        """Every position that can be traded, unsliced, at its bankruptcy price."""
        prices = bankruptcy_prices(self._health, self._marks, self._parameters)
        return tuple(self._close(symbol, quantity, prices[symbol]) for symbol, quantity in self.held.items())[
            :ORDERS_MAX
        ]

    def orders(self, reduction: Reduction) -> tuple[PlannedOrder, ...]:
        """The orders that do what ``reduction`` says: closes in slices, then conversions."""
        allotment = self._allotment(reduction)
        closes: list[PlannedOrder] = []
        for symbol in self.held:
            quantity = reduction.quantities.get(symbol)
            if quantity:
                price = self._close_limit(self._parts[symbol], allotment)
                instrument = self._parameters.instrument(symbol)
                parts = slices(quantity, mark_of(symbol, self._marks), instrument)
                closes += [self._close(symbol, part, price) for part in parts]
        converted = (self._convert(conversion, allotment) for conversion in reduction.conversions)
        return (*closes[:ORDERS_MAX], *(order for order in converted if order is not None))

    # --- prices ------------------------------------------------------------------------------------------------------

    def _allotment(self, reduction: Reduction) -> _Allotment:
        """The unweighted equity that is left once the fees of closing everything and of all conversions are paid, and
        what it is shared out over.

        Over all margins and haircuts, of which each trade has at most its own, and of that the part that the attempt
        may use. A group without positions may have less than the fees of its conversions: the rest has to come from
        better prices, from each by its value. Where there was nothing to begin with, nothing is sold for less than its
        mark.
        """
        equity, left = self._health.unweighted_equity, self.left(reduction.conversions)
        with localcontext(EXACT):
            if left < 0:
                values = (abs(one.quantity) * price_of(one.asset, self._marks) for one in reduction.conversions)
                return _Allotment(left if equity > 0 else _ZERO, sum(values, _ZERO))
            return _Allotment(left * self._rung, shares_of(self._health, positions_alone=False))

    def _close_limit(self, part: PositionHealth, allotment: _Allotment) -> Decimal:
        """The price at which closing all of a position costs what it is allotted."""
        fees = self._parameters.instrument(part.symbol).fees
        with localcontext(EXACT):
            allotted = allotment.equity * part.maintenance_margin
        return close_price(part, allotted, allotment.shares, self._marks, self._parameters, fees=fees)

    def _conversion_limit(self, conversion: Conversion, allotment: _Allotment) -> Decimal:
        """The price at which trading all of the balance costs what it is allotted."""
        rules, sold = conversion.asset, conversion.quantity < 0
        held = self._balances.get(rules.asset, _ZERO)
        price = price_of(rules, self._marks)
        with localcontext(EXACT):
            whole = max(abs(held), abs(conversion.quantity))
            haircut = (held - rules.weighted(held)) * price
            share = haircut if allotment.equity >= 0 else whole * price
            kept = whole * (1 - _fee(conversion) if sold else 1 + _fee(conversion))
            denominator = allotment.shares * kept
            if not denominator:
                return price
            change = allotment.equity * share
            numerator = price * denominator + (-change if sold else change)
        divide = divide_ceiling if sold else divide_floor
        return max(divide(numerator, denominator, _SPOT_INCREMENT), _SPOT_INCREMENT)

    # --- orders ------------------------------------------------------------------------------------------------------

    def _close(self, symbol: str, quantity: Decimal, price: Decimal) -> PlannedOrder:
        long = self._parts[symbol].quantity > 0
        return PlannedOrder(
            symbol=symbol,
            position_side="long" if long else "short",
            order_side="sell" if long else "buy",
            quantity=quantity,
            limit_price=max(price, self._parameters.instrument(symbol).price_increment),
            mark_price=mark_of(symbol, self._marks),
        )

    def _convert(self, conversion: Conversion, allotment: _Allotment) -> PlannedOrder | None:
        symbol, sold = conversion.asset.price_symbol, conversion.quantity < 0
        if symbol is None:
            return None
        return PlannedOrder(
            symbol=symbol,
            position_side="long" if sold else "short",
            order_side="sell" if sold else "buy",
            quantity=abs(conversion.quantity),
            limit_price=self._conversion_limit(conversion, allotment),
            mark_price=mark_of(symbol, self._marks),
        )


def _fee(conversion: Conversion) -> Decimal:
    return conversion.asset.liquidation_fee or _ZERO


def slices(quantity: Decimal, mark: Decimal, instrument: Instrument) -> list[Decimal]:
    """``quantity`` in parts of at most ``max_order_notional``, each a whole number of increments but for dust.

    None is below ``min_order_notional`` unless ``quantity`` is: a rest that would be takes what it lacks from the parts
    before it, as far as they stay above it, or else goes with the last of them, beyond the largest order. Where no
    whole number of increments is between the two, the smallest order goes before the largest.
    """
    if instrument.max_order_notional is None:
        return [quantity]
    increment = instrument.quantity_increment
    least = instrument.min_order_notional
    smallest = _ZERO if least is None else divide_ceiling(least, mark, increment)
    most = max(divide_floor(instrument.max_order_notional, mark, increment), smallest, increment)
    with localcontext(EXACT):
        whole = int(quantity // most)
        rest = quantity - whole * most
        if whole > ORDERS_MAX:  # the rest is never ordered
            return [most] * ORDERS_MAX
        parts = [most] * whole + ([rest] if rest else [])
        lacking = smallest - parts[-1]
        if lacking <= 0 or len(parts) == 1:
            return parts
        spare = most - smallest
        if spare * (len(parts) - 1) < lacking:
            return [*parts[:-2], parts[-2] + parts[-1]]
        for index in range(len(parts) - 2, -1, -1):
            moved = min(spare, lacking)
            parts[index] -= moved
            parts[-1] += moved
            lacking -= moved
        return parts
