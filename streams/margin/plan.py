"""What to do with a group that is under water: the least that restores it, all of it, or hand it to the fund.

Pure and exact: the plan is a function of group, marks and parameters. Naming the orders, sending them and waiting for
their fills is the engine's business.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Literal

from streams.margin.conversion import Conversion
from streams.margin.fixed_point import EXACT, divide_floor
from streams.margin.group import Group
from streams.margin.health import Marks, bankruptcy_prices_of, evaluate, mark_of
from streams.margin.parameters import Instrument, RiskParameters
from streams.margin.reduction import reduce_positions

ORDERS_MAX = 512
"""Most orders of one plan. What a plan leaves unsliced for want of orders is planned again after its fills."""

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class PlannedOrder:
    """Close ``quantity`` (> 0) of a position. ``limit_price`` is the bankruptcy price, at least one price increment.

    An order on the price symbol of an asset sells collateral (``long``, ``sell``) or buys back a debt (``short``,
    ``buy``); its ``limit_price`` is the mark times the weight, at which the trade leaves equity as it was.
    """

    symbol: str
    position_side: Literal["long", "short"]
    order_side: Literal["buy", "sell"]
    quantity: Decimal
    limit_price: Decimal
    mark_price: Decimal


@dataclass(frozen=True, slots=True)
class Plan:
    """``reduce``: the orders restore the target. ``close``: every position is closed. ``takeover``: the fund takes
    every position at its limit price."""

    stage: Literal["reduce", "close", "takeover"]
    orders: tuple[PlannedOrder, ...]


def make_plan(group: Group, marks: Marks, parameters: RiskParameters) -> Plan:
    """The liquidation plan of ``group`` at ``marks``.

    A group whose equity is not positive is taken over as a whole. Otherwise positions are reduced, and collateral is
    sold for debts where that is cheaper or where closing is not enough, until equity meets the target again
    (:func:`streams.margin.reduction.reduce_positions`). Closes are orders of at most ``max_order_notional`` each, sales
    and purchases of collateral are orders on the assets' price symbols.

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
    reduction = reduce_positions(group, marks, parameters)
    orders = _orders(group, reduction.quantities, prices, marks, parameters, sliced=True)
    orders += _conversions(reduction.conversions, marks)
    return Plan("close" if held and reduction.quantities == held else "reduce", orders)


def _conversions(conversions: Iterable[Conversion], marks: Marks) -> tuple[PlannedOrder, ...]:
    found = []
    for conversion in conversions:
        symbol, sold = conversion.asset.price_symbol, conversion.quantity < 0
        if symbol is None:
            continue
        mark = mark_of(symbol, marks)
        with localcontext(EXACT):
            worth = mark * conversion.weight
        found.append(
            PlannedOrder(
                symbol=symbol,
                position_side="long" if sold else "short",
                order_side="sell" if sold else "buy",
                quantity=abs(conversion.quantity),
                limit_price=worth if worth > 0 else mark,
                mark_price=mark,
            )
        )
    return tuple(found)


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
