"""Which of a group's collateral to sell and which of its debts to buy back with it, and what that restores.

Debt counts ``liability_weight`` times and credit with a haircut, so turning credit into a paid debt raises equity
without any price moving. The sales are spot orders on the assets' price symbols; what they did comes back as
transfers. Whether converting is cheaper than closing a position is the reduction's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext

from streams.margin.fixed_point import EXACT, divide_ceiling, divide_floor
from streams.margin.health import Marks, price_of
from streams.margin.parameters import AssetRules, RiskParameters

COST_INCREMENT = Decimal("1e-18")
"""Costs per restored unit that agree to this count as equal."""

_ZERO, _ONE = Decimal(0), Decimal(1)


@dataclass(frozen=True, slots=True)
class Conversion:
    """Change of one asset's balance: ``quantity`` < 0 is sold collateral, > 0 a debt bought back.

    ``weight`` is the one at which the last unit counted: at ``weight`` times its mark a trade leaves equity as it was.
    """

    asset: AssetRules
    quantity: Decimal
    weight: Decimal


@dataclass(frozen=True, slots=True)
class Exchange:
    """Credit of one asset for debt of another, for a volume x: credit of value (1 + fee of the debt's asset) * x is
    sold and debt of value (1 - fee of the credit's asset) * x is paid.

    ``gain`` is what x = 1 adds to equity, ``cost`` what it loses at the marks. No weight changes within ``most``.
    """

    debt: AssetRules
    credit: AssetRules
    gain: Decimal
    cost: Decimal
    most: Decimal

    @property
    def cost_per_gain(self) -> Decimal:
        """Expected cost of a restored unit, rounded down."""
        return divide_floor(self.cost, self.gain, COST_INCREMENT)


class Converting:
    """The exchanges made so far of the balances of one group. ``changed``: what they added, by asset."""

    def __init__(self, marks: Marks, parameters: RiskParameters) -> None:
        self._marks, self._parameters = marks, parameters
        self._weights: dict[str, Decimal] = {}
        self.changed: dict[str, Decimal] = {}

    @property
    def conversions(self) -> tuple[Conversion, ...]:
        """What there is to order, by asset. Assets without a price symbol need no order to be spent or owed."""
        return tuple(
            Conversion(rules, quantity, self._weights[asset])
            for asset, quantity in sorted(self.changed.items())
            if quantity and (rules := self._parameters.asset(asset)).price_symbol is not None
        )

    def cheapest(self, balances: Mapping[str, Decimal], *, declared: bool) -> Exchange | None:
        """The exchange that restores most for its cost, None if none restores anything. Of equals the greatest gain.

        ``declared``: only of assets whose record states a fee (or that need no order). An asset that is priced by a
        derivative has no spot market and is left alone.

        Raises:
            InputError: a mark or an asset is missing.
        """
        named = (self._parameters.asset(asset) for asset, amount in balances.items() if amount)
        held = [rules for rules in named if self._has_market(rules, declared)]
        found = [
            exchange
            for debt in held
            for credit in held
            if balances[debt.asset] < 0 < balances[credit.asset]
            and (exchange := self._exchange(debt, credit, balances)).gain > 0
        ]
        return min(
            found, key=lambda one: (one.cost_per_gain, -one.gain, one.debt.asset, one.credit.asset), default=None
        )

    def make(self, exchange: Exchange, shortage: Decimal, balances: Mapping[str, Decimal]) -> None:
        """Exchange as much as restores ``shortage`` (> 0), or ``most``: whole minor units, never beyond a balance."""
        debt, credit = exchange.debt, exchange.credit
        with localcontext(EXACT):
            volume = min(exchange.most, divide_ceiling(shortage, exchange.gain, COST_INCREMENT))
            kept, spent = _ONE - _fee(credit), _ONE + _fee(debt)
            debt_price, credit_price = price_of(debt, self._marks), price_of(credit, self._marks)
            paid = _units(volume * kept, debt_price, debt, -balances[debt.asset])
            sold = _units(paid * debt_price * spent, credit_price * kept, credit, balances[credit.asset])
            if debt.price_symbol is None:  # nothing is bought: all that was sold for counts
                paid = divide_floor(sold * credit_price * kept, _ONE, _ONE.scaleb(-debt.decimals))
            for rules, quantity in ((debt, paid), (credit, -sold)):
                self.changed[rules.asset] = self.changed.get(rules.asset, _ZERO) + quantity
        self._weights[debt.asset] = debt.liability_weight
        self._weights[credit.asset] = credit.weight_below(balances[credit.asset])

    def _has_market(self, rules: AssetRules, declared: bool) -> bool:
        if rules.price_symbol is None:
            return True
        return rules.price_symbol not in self._parameters.instruments and (
            rules.liquidation_fee is not None or not declared
        )

    def _exchange(self, debt: AssetRules, credit: AssetRules, balances: Mapping[str, Decimal]) -> Exchange:
        owed, left = -balances[debt.asset], balances[credit.asset]
        with localcontext(EXACT):
            kept, spent = _ONE - _fee(credit), _ONE + _fee(debt)
            in_tier = left - max(step.quantity_floor for step in credit.steps if step.quantity_floor < left)
            most = min(
                divide_ceiling(owed * price_of(debt, self._marks), kept, COST_INCREMENT),
                divide_ceiling(in_tier * price_of(credit, self._marks), spent, COST_INCREMENT),
            )
            gain = debt.liability_weight * kept - credit.weight_below(left) * spent
            return Exchange(debt, credit, gain, spent - kept, most)


def _fee(rules: AssetRules) -> Decimal:
    return rules.liquidation_fee or _ZERO


def _units(value: Decimal, price: Decimal, rules: AssetRules, most: Decimal) -> Decimal:
    """The quantity worth ``value``, rounded up to a minor unit."""
    return min(divide_ceiling(value, price, _ONE.scaleb(-rules.decimals)), most)
