"""What of a group's collateral to sell, and which of its debts to buy back, when closing positions was not enough.

Debt counts ``liability_weight`` times and credit with a haircut, so turning credit into a paid debt raises equity
without any price moving. The sales are spot orders on the assets' price symbols; what they did comes back as
transfers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext

from streams.margin.fixed_point import EXACT, divide_ceiling
from streams.margin.health import Marks, price_of
from streams.margin.parameters import AssetRules, RiskParameters

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Conversion:
    """Change of one asset's balance: ``quantity`` < 0 is sold collateral, > 0 a debt bought back.

    ``weight`` is the one at which the last unit counted: at ``weight`` times its mark a trade leaves equity as it was.
    """

    asset: AssetRules
    quantity: Decimal
    weight: Decimal


def convert_collateral(
    balances: Mapping[str, Decimal], shortage: Decimal, marks: Marks, parameters: RiskParameters
) -> tuple[Conversion, ...]:
    """The conversions that raise equity by ``shortage`` (> 0) at the marks, or as far as they can.

    Debts with the highest weight are paid first, out of the credit with the lowest; moving a value v from one to the
    other raises equity by v * (weight of the debt - weight of the credit). Quantities are whole minor units, rounded up
    but never beyond the balance. Assets without a price symbol need no order to be spent or owed; one that is priced by
    a derivative has no spot market here and is left alone.

    Raises:
        InputError: a mark or an asset is missing.
    """
    rules = {asset: parameters.asset(asset) for asset, amount in balances.items() if amount}
    held = {asset: balances[asset] for asset in rules if rules[asset].price_symbol not in parameters.instruments}
    prices = {asset: price_of(rules[asset], marks) for asset in held}
    changed = dict.fromkeys(held, _ZERO)
    weights: dict[str, Decimal] = {}
    with localcontext(EXACT):
        while shortage > 0:
            debt = max(_debts(held, changed), key=lambda a: (rules[a].liability_weight, a), default=None)
            credit = min(
                _credits(held, changed), key=lambda a: (rules[a].weight_below(held[a] + changed[a]), a), default=None
            )
            if debt is None or credit is None:
                break
            weights[debt] = rules[debt].liability_weight
            weights[credit] = rules[credit].weight_below(held[credit] + changed[credit])
            gain = weights[debt] - weights[credit]
            if gain <= 0:
                break
            left = held[credit] + changed[credit]
            value = min(-(held[debt] + changed[debt]) * prices[debt], _in_tier(rules[credit], left) * prices[credit])
            value = min(value, divide_ceiling(shortage, gain, Decimal(1).scaleb(-rules[credit].decimals)))
            changed[debt] += _units(value, prices[debt], rules[debt], -(held[debt] + changed[debt]))
            changed[credit] -= _units(value, prices[credit], rules[credit], left)
            shortage -= value * gain
    return tuple(
        Conversion(rules[asset], quantity, weights[asset])
        for asset, quantity in sorted(changed.items())
        if quantity and rules[asset].price_symbol is not None
    )


def _debts(held: Mapping[str, Decimal], changed: Mapping[str, Decimal]) -> list[str]:
    return [asset for asset in held if held[asset] + changed[asset] < 0]


def _credits(held: Mapping[str, Decimal], changed: Mapping[str, Decimal]) -> list[str]:
    return [asset for asset in held if held[asset] + changed[asset] > 0]


def _in_tier(rules: AssetRules, quantity: Decimal) -> Decimal:
    """How much of ``quantity`` counts at its last unit's weight."""
    return quantity - max(step.quantity_floor for step in rules.steps if step.quantity_floor < quantity)


def _units(value: Decimal, price: Decimal, rules: AssetRules, most: Decimal) -> Decimal:
    return min(divide_ceiling(value, price, Decimal(1).scaleb(-rules.decimals)), most)
