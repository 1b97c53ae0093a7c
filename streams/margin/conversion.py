"""Which of a group's collateral to sell and which of its debts to buy back with it, and what that restores.

Debt counts ``liability_weight`` times and credit with a haircut, so turning credit into a paid debt raises equity
without any price moving. The sales are spot orders on the assets' price symbols; what they did comes back as
transfers. Whether converting is cheaper than closing a position is the reduction's business.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext

from streams.margin.fixed_point import EXACT, divide_ceiling, divide_floor
from streams.margin.parameters import RiskParameters
from streams.margin.rules import AssetRules
from streams.margin.valuation import Marks, counts, price_of

COST_INCREMENT = Decimal("1e-18")
"""Costs per restored unit that agree to this count as equal."""

PARTS_MOST = Decimal(1000)
"""Where a record states no least order, one is at least this part of what is held: less restores nothing that the next
tick does not take, and no venue trades it."""

_ZERO, _ONE = Decimal(0), Decimal(1)


def least_quantity(notional: Decimal | None, price: Decimal, held: Decimal, increment: Decimal) -> Decimal:
    """The smallest order in a holding of ``held``, in whole ``increment``: worth ``notional`` if that is stated."""
    if notional is None:
        return divide_ceiling(held, PARTS_MOST, increment)
    return divide_ceiling(notional, price, increment)


def at_least(quantity: Decimal, least: Decimal, held: Decimal) -> Decimal:
    """``quantity`` (> 0) of ``held``, or ``least`` if that is more; all of it where less than that would be left."""
    with localcontext(EXACT):
        raised = max(quantity, least)
        return held if held - raised < least else raised


@dataclass(frozen=True, slots=True)
class Conversion:
    """Change of one asset's balance: ``quantity`` < 0 is sold collateral, > 0 a debt bought back.

    ``weight`` is the one at which the last unit counted.
    """

    asset: AssetRules
    quantity: Decimal
    weight: Decimal


@dataclass(frozen=True, slots=True)
class Exchange:
    """Credit of one asset for debt of another, for a volume x: credit of value (1 + fee of the debt's asset) * x is
    sold and debt of value (1 - fee of the credit's asset) * x is paid.

    ``gain`` is what x = 1 takes off the shortage: what it adds to equity, and the buffer that the debt paid no longer
    needs. ``cost`` is what it loses at the marks. No weight changes within ``most``.
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


class ExchangeBook:
    """The exchanges made so far of the balances of one group. ``changed``: what they added, by asset."""

    def __init__(self, marks: Marks, parameters: RiskParameters, stale: Collection[str] = frozenset()) -> None:
        self._marks, self._parameters, self._stale = marks, parameters, stale
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
        derivative has no spot market, and one whose mark is not live is not traded: they are left alone.

        Raises:
            InputError: a mark or an asset is missing.
        """
        named = (self._parameters.asset(asset) for asset, amount in balances.items() if amount)
        held = [rules for rules in named if self._has_market(rules, balances[rules.asset], declared)]
        exchanges = [
            exchange
            for debt in held
            for credit in held
            if balances[debt.asset] < 0 < balances[credit.asset]
            and (exchange := self._exchange(debt, credit, balances)).gain > 0
        ]
        return min(
            exchanges, key=lambda one: (one.cost_per_gain, -one.gain, one.debt.asset, one.credit.asset), default=None
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

    def raise_to_least(self, balances: Mapping[str, Decimal]) -> None:
        """Make every order at least the smallest there may be; ``balances`` are those before any exchange.

        What more is bought is paid by selling more, as far as there is more, else by the cash at hand; what more is
        sold becomes cash.
        """
        with localcontext(EXACT):
            cash = _ZERO
            for conversion in self.conversions:
                rules, price = conversion.asset, price_of(conversion.asset, self._marks)
                if conversion.quantity > 0:
                    cash -= self._raise(rules, price, balances) * price * (_ONE + _fee(rules))
            for conversion in self.conversions:
                rules, price = conversion.asset, price_of(conversion.asset, self._marks)
                if conversion.quantity < 0:
                    if cash < 0:
                        left = max(balances[rules.asset] + self.changed[rules.asset], _ZERO)
                        more = _units(-cash, price * (_ONE - _fee(rules)), rules, left)
                        self.changed[rules.asset] -= more
                        cash += more * price * (_ONE - _fee(rules))
                    cash += self._raise(rules, price, balances) * price * (_ONE - _fee(rules))
            purse = self._cash_of(balances)
            if cash and purse is not None:
                place = _ONE.scaleb(-purse.decimals)
                self.changed[purse.asset] = self.changed.get(purse.asset, _ZERO) + divide_floor(cash, _ONE, place)

    def _raise(self, rules: AssetRules, price: Decimal, balances: Mapping[str, Decimal]) -> Decimal:
        """Raise one order to the least there may be; by how much."""
        quantity = self.changed[rules.asset]
        side = 1 if quantity > 0 else -1
        held = _whole(-side * balances[rules.asset], rules)
        if held <= 0:
            return _ZERO  # what is sold is still to come in by the closes
        least = least_quantity(rules.min_order_notional, price, held, _ONE.scaleb(-rules.decimals))
        raised = max(at_least(abs(quantity), least, held), abs(quantity))
        self.changed[rules.asset] = side * raised
        return raised - abs(quantity)

    def _cash_of(self, balances: Mapping[str, Decimal]) -> AssetRules | None:
        """The asset in which a surplus comes back: one without a price that was exchanged, or that is held."""
        for asset in (*sorted(self.changed), *sorted(balances)):
            rules = self._parameters.asset(asset)
            if rules.price_symbol is None:
                return rules
        return None

    def _has_market(self, rules: AssetRules, quantity: Decimal, declared: bool) -> bool:
        if not counts(rules, quantity, self._marks):
            return False
        symbol = rules.price_symbol
        if symbol is None:
            return True
        return (
            bool(_whole(abs(quantity), rules))
            and symbol not in self._parameters.instruments
            and symbol not in self._stale
            and (rules.liquidation_fee is not None or not declared)
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
            buffer = self._parameters.policy.liquidation_buffer_rate
            gain = debt.liability_weight * (1 + buffer) * kept - credit.weight_below(left) * spent
            return Exchange(debt, credit, gain, spent - kept, most)


def _fee(rules: AssetRules) -> Decimal:
    return rules.liquidation_fee or _ZERO


def _units(value: Decimal, price: Decimal, rules: AssetRules, most: Decimal) -> Decimal:
    """The quantity worth ``value``, rounded up to a minor unit, of ``most``."""
    return min(divide_ceiling(value, price, _ONE.scaleb(-rules.decimals)), _whole(most, rules))


def _whole(quantity: Decimal, rules: AssetRules) -> Decimal:
    """As much of ``quantity`` as an order can name: whole minor units of an asset that has a market.

    A balance may be finer, by the cash of a position that has been closed.
    """
    if rules.price_symbol is None:
        return quantity
    return divide_floor(quantity, _ONE, _ONE.scaleb(-rules.decimals))
