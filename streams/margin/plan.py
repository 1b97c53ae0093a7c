"""What to do with a group that is under water: the least that restores it, all of it, or hand it to the fund.

Pure and exact: the plan is a function of group, marks and parameters. Naming the orders, sending them and waiting for
their fills is the engine's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Literal

from streams.margin.fixed_point import EXACT, divide_ceiling, divide_floor
from streams.margin.group import Group, Position
from streams.margin.health import (
    Marks,
    bankruptcy_prices_of,
    collateral_value,
    evaluate,
    mark_of,
    price_of,
)
from streams.margin.parameters import AssetRules, Instrument, RiskParameters

ORDERS_MAX = 512
"""Most orders of one plan. What a plan leaves unsliced for want of orders is planned again after its fills."""

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class PlannedOrder:
    """Close ``quantity`` (> 0) of a position. ``limit_price`` is the bankruptcy price, at least one price increment."""

    symbol: str
    position_side: Literal["long", "short"]
    order_side: Literal["buy", "sell"]
    quantity: Decimal
    limit_price: Decimal
    mark_price: Decimal


@dataclass(frozen=True, slots=True)
class Plan:
    """``reduce``: closing the orders' quantities restores the target. ``close``: everything is closed. ``takeover``:
    the fund takes every position at its limit price."""

    stage: Literal["reduce", "close", "takeover"]
    orders: tuple[PlannedOrder, ...]


def make_plan(group: Group, marks: Marks, parameters: RiskParameters) -> Plan:
    """The liquidation plan of ``group`` at ``marks``.

    The target is sum of N * (r + buffer) - D. Closing q of a position at its mark P changes the shortage (target -
    equity) by -q * P * (r + buffer - fees * w), ``w`` being the weight at which the fee leaves the settle asset's
    balance (1 for plain cash). Positions are closed from where a unit of shortage costs least, tier by tier, rounded
    up to the quantity increment, never past flat. A group whose equity is not positive is taken over as a whole.

    A group without a shortage gets a plan without orders.

    Raises:
        InputError: a mark, an instrument or an asset is missing.
    """
    health = evaluate(group, marks, parameters)
    prices = bankruptcy_prices_of(health, marks, parameters)
    held: Mapping[str, Decimal] = {
        position.symbol: abs(position.quantity) for position in group.positions if position.quantity
    }
    if health.equity <= 0:
        return Plan("takeover", _orders(group, held, prices, marks, parameters, sliced=False))
    closed = _Reduction(group, marks, parameters).run()
    orders = _orders(group, closed, prices, marks, parameters, sliced=True)
    return Plan("close" if held and closed == held else "reduce", orders)


@dataclass(slots=True)
class _Leg:
    """One position being closed. Money in its settle asset but for ``unit``, the price of that asset."""

    position: Position
    instrument: Instrument
    settle: AssetRules
    mark: Decimal
    unit: Decimal
    size: Decimal
    closed: Decimal = _ZERO

    @property
    def left(self) -> Decimal:
        return self.size - self.closed


class _Reduction:
    """Closes, in exact steps, until the shortage is gone.

    Between two kinks (a tier's floor, flat) the shortage is convex in the quantity closed, so a step along its slope
    never goes past the point where it is gone: rounded up to the increment, the last step is the least that restores
    the target.
    """

    def __init__(self, group: Group, marks: Marks, parameters: RiskParameters) -> None:
        self._group, self._marks, self._parameters = group, marks, parameters
        self._buffer = parameters.policy.liquidation_buffer_rate
        self._legs = [self._leg(position) for position in group.positions if position.quantity]

    def run(self) -> Mapping[str, Decimal]:
        """Quantities to close by symbol."""
        with localcontext(EXACT):
            while (shortage := self._shortage()) > 0:
                leg = self._cheapest()
                if leg is None:
                    return {each.position.symbol: each.size for each in self._legs}
                leg.closed += self._step(leg, shortage)
        return {leg.position.symbol: leg.closed for leg in self._legs if leg.closed}

    def _leg(self, position: Position) -> _Leg:
        instrument = self._parameters.instrument(position.symbol)
        settle = self._parameters.asset(instrument.settle_asset)
        mark = mark_of(position.symbol, self._marks)
        return _Leg(position, instrument, settle, mark, price_of(settle, self._marks), abs(position.quantity))

    def _shortage(self) -> Decimal:
        """Target less equity once every leg's ``closed`` is closed at its mark and the fees are paid."""
        balances = self._balances()
        shortage = -collateral_value(balances, self._marks, self._parameters)
        for leg in self._legs:
            if leg.left:
                notional = leg.left * leg.mark
                target = leg.instrument.maintenance(notional) + self._buffer * notional
                value = leg.position.quantity * leg.mark + leg.position.cash
                shortage += (target - value) * leg.unit
        return shortage

    def _balances(self) -> dict[str, Decimal]:
        balances = dict(self._group.balances)
        for leg in self._legs:
            change = -leg.closed * leg.mark * leg.instrument.fees
            if not leg.left:
                change += leg.position.quantity * leg.mark + leg.position.cash
            if change:
                asset = leg.settle.asset
                balances[asset] = balances.get(asset, _ZERO) + change
        return balances

    def _cheapest(self) -> _Leg | None:
        """The leg whose next increment restores most for its cost, None if none restores anything."""
        ranked = []
        for leg in self._legs:
            restored = self._restored(leg)
            if leg.left and restored > 0:
                cost = divide_floor(leg.instrument.fees, restored, Decimal("1e-18"))
                ranked.append((cost, -restored, leg.position.symbol, leg))
        return min(ranked)[3] if ranked else None

    def _restored(self, leg: _Leg) -> Decimal:
        """Shortage restored per notional closed, from where the leg stands."""
        rate = leg.instrument.step_of(leg.left * leg.mark).maintenance_rate
        weight = leg.settle.weight_below(self._balances().get(leg.settle.asset, _ZERO))
        return rate + self._buffer - leg.instrument.fees * weight

    def _step(self, leg: _Leg, shortage: Decimal) -> Decimal:
        """How much more of ``leg`` to close: at most to the end of its tier, to flat, or until the shortage is gone."""
        increment = leg.instrument.quantity_increment
        wanted = divide_ceiling(shortage, leg.mark * leg.unit * self._restored(leg), increment)
        floor = leg.instrument.step_of(leg.left * leg.mark).notional_floor
        in_tier = divide_ceiling(leg.left * leg.mark - floor, leg.mark, increment)
        return min(wanted, in_tier, leg.left)


def _orders(
    group: Group,
    closed: Mapping[str, Decimal],
    prices: Mapping[str, Decimal],
    marks: Marks,
    parameters: RiskParameters,
    *,
    sliced: bool,
) -> tuple[PlannedOrder, ...]:
    orders: list[PlannedOrder] = []
    for position in group.positions:
        quantity = closed.get(position.symbol, _ZERO)
        if not quantity:
            continue
        instrument = parameters.instrument(position.symbol)
        mark = mark_of(position.symbol, marks)
        long = position.quantity > 0
        for part in _slices(quantity, mark, instrument) if sliced else (quantity,):
            if len(orders) == ORDERS_MAX:
                return tuple(orders)
            orders.append(
                PlannedOrder(
                    symbol=position.symbol,
                    position_side="long" if long else "short",
                    order_side="sell" if long else "buy",
                    quantity=part,
                    limit_price=max(prices[position.symbol], instrument.price_increment),
                    mark_price=mark,
                )
            )
    return tuple(orders)


def _slices(quantity: Decimal, mark: Decimal, instrument: Instrument) -> list[Decimal]:
    """``quantity`` in parts of at most ``max_order_notional``, each a whole number of increments but for dust."""
    if instrument.max_order_notional is None:
        return [quantity]
    increment = instrument.quantity_increment
    most = max(divide_floor(instrument.max_order_notional, mark, increment), increment)
    with localcontext(EXACT):
        whole = int(quantity // most)
        rest = quantity - whole * most
    parts = [most] * min(whole, ORDERS_MAX)
    return [*parts, rest] if rest else parts
