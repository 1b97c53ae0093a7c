"""What one fill of a liquidation costs its group: the insurance fee and the liquidation fee, in exact decimals.

Both are fractions of the notional filled, and neither may make a group owe what it does not have.
"""

from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Self

from streams.margin.fixed_point import EXACT, divide_ceiling, divide_floor
from streams.margin.group import Group
from streams.margin.parameters import RiskParameters
from streams.margin.rules import Instrument
from streams.margin.valuation import Marks, counts, price_of

_ZERO = Decimal(0)
_ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class FeeRates:
    """Fractions of the notional filled."""

    insurance: Decimal
    liquidation: Decimal

    @classmethod
    def of(cls, instrument: Instrument) -> Self:
        """Those of an instrument."""
        return cls(insurance=instrument.insurance_fee, liquidation=instrument.liquidation_fee)

    def __bool__(self) -> bool:
        return bool(self.insurance or self.liquidation)


@dataclass(frozen=True, slots=True)
class Fees:
    """Amounts of the settle asset, whole minor units of it. ``due``: what both rates make, whatever the group has; that
    may not be ``known``."""

    insurance: Decimal
    liquidation: Decimal
    due: Decimal
    known: bool = True

    @property
    def total(self) -> Decimal:
        """Both together."""
        with localcontext(EXACT):
            return self.insurance + self.liquidation


def fees_of_fill(
    group: Group, marks: Marks, parameters: RiskParameters, symbol: str, notional: Decimal, rates: FeeRates
) -> Fees:
    """The fees of a fill of ``notional`` (>= 0, in the settle asset of ``symbol``); ``group`` is as it stands after it.

    Each is ceil(rate * notional) in minor units of the settle asset, but of both together at most
    floor(max(0, unweighted equity / price of the settle asset)), at the last ``marks``, whether or not they are live.
    The insurance fee comes first. A group of which a mark that it needs, or that of the settle asset, was never seen
    pays nothing: what it has is not known.

    Raises:
        InputError: an instrument or an asset is missing.
    """
    settle = parameters.asset(parameters.instrument(symbol).settle_asset)
    unit = _ONE.scaleb(-settle.decimals)
    with localcontext(EXACT):
        wanted = [divide_ceiling(rate * notional, _ONE, unit) for rate in (rates.insurance, rates.liquidation)]
        equity = None
        if settle.price_symbol is None or settle.price_symbol in marks:
            equity = equity_at_last_marks(group, marks, parameters)
        if equity is None:
            return Fees(_ZERO, _ZERO, wanted[0] + wanted[1], known=False)
        left = divide_floor(equity, price_of(settle, marks), unit) if equity > 0 else _ZERO
        insurance = min(wanted[0], left)
        return Fees(insurance, min(wanted[1], left - insurance), wanted[0] + wanted[1])


def equity_at_last_marks(group: Group, marks: Marks, parameters: RiskParameters) -> Decimal | None:
    """The unweighted equity at the last marks, in the unit of account: positions, and balances at full price. None if
    a position or a debt has never had a price. Credit that counts for nothing is left out.

    Raises:
        InputError: an instrument or an asset is missing.
    """
    equity = _ZERO
    with localcontext(EXACT):
        for asset, quantity in group.balances.items():
            rules = parameters.asset(asset)
            if counts(rules, quantity, marks):
                equity += quantity * price_of(rules, marks)
            elif quantity < 0:
                return None
        for position in group.positions:
            settle = parameters.asset(parameters.instrument(position.symbol).settle_asset)
            mark = marks.get(position.symbol)
            if mark is None or not (settle.price_symbol is None or settle.price_symbol in marks):
                return None
            equity += (position.quantity * mark + position.cash) * price_of(settle, marks)
    return equity


__all__ = ["FeeRates", "Fees", "equity_at_last_marks", "fees_of_fill"]
