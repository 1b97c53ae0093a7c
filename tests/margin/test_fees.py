"""The fees of a liquidation's fill: rounded up, the insurance fee first, and never more than the group has."""

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.parameters import AssetParameters, CollateralTier
from streams.errors import InputError
from streams.margin.fees import FeeRates, Fees, equity_at_last_marks, fees_of_fill
from streams.margin.fixed_point import EXACT
from streams.margin.group import Group
from streams.margin.parameters import RiskParameters
from tests.margin.conftest import group, rules

MARKS = {"X-PERP": Decimal(100), "BTC-USD": Decimal(20_000)}
RATES = FeeRates(insurance=Decimal("0.001"), liquidation=Decimal("0.005"))
BTC = AssetParameters(asset="BTC", decimals=8, price_symbol="BTC-USD")
NO_COLLATERAL = AssetParameters(
    asset="AIR", price_symbol="BTC-USD", collateral_tiers=(CollateralTier(quantity_floor="0", weight="0"),)
)


def fees(held: Group, notional: str, marks: Mapping[str, Decimal] = MARKS, rates: FeeRates = RATES) -> Fees:
    return fees_of_fill(held, marks, rules(more=(BTC, NO_COLLATERAL)), "X-PERP", Decimal(notional), rates)


@pytest.mark.parametrize(
    ("balance", "position", "notional", "insurance", "liquidation"),
    [
        ("100", "100", "1000", "1", "5"),
        ("4", "100", "1000", "1", "3"),  # equity 4: the insurance fee first
        ("0.4", "100", "1000", "0.4", "0"),
        ("0", "100", "1000", "0", "0"),
        ("100", "99", "1000", "1", "5"),  # the mark is above the entry: open profit counts
        ("1000", "1099", "1000", "1", "0"),  # 1,000 less a loss of 999
        ("1000", "1101", "1000", "0", "0"),  # it owes 1 and pays nothing
        ("-5", "90", "1000", "1", "4"),  # a debt of 5 against an open profit of 10
        ("100", "100", "0.000000010", "0.00000001", "0.00000001"),  # rounded up to the asset's smallest unit
        ("0.000000019", "100", "1000", "0.00000001", "0"),  # what it has is rounded down
    ],
)
def test_what_a_fill_costs(balance: str, position: str, notional: str, insurance: str, liquidation: str) -> None:
    cost = fees(group({"USD": balance}, ("X-PERP", "1", position)), notional)
    assert (cost.insurance, cost.liquidation) == (Decimal(insurance), Decimal(liquidation))
    assert cost.total == Decimal(insurance) + Decimal(liquidation)


def test_what_is_due_does_not_depend_on_what_there_is() -> None:
    assert fees(group({"USD": "1"}), "1000").due == fees(group({"USD": "1000"}), "1000").due == 6


def test_other_collateral_counts_at_full_price_and_what_is_none_does_not() -> None:
    assert fees(group({"BTC": "0.0002"}), "1000").total == 4, "0.0002 BTC at 20,000, whatever its weight"
    assert fees(group({"AIR": "7"}), "1000").total == 0
    assert fees(group({"USD": "2", "BTC": "-0.0001"}), "1000").total == 0, "2 less a debt of 2"


def test_a_group_of_which_a_mark_was_never_seen_pays_nothing() -> None:
    never = {"BTC-USD": Decimal(20_000)}
    held = group({"USD": "1000"}, ("X-PERP", "1", "100"))
    assert equity_at_last_marks(held, never, rules(more=(BTC,))) is None
    assert fees(held, "1000", never) == Fees(Decimal(0), Decimal(0), Decimal(6), known=False)
    owing = group({"USD": "1000", "BTC": "-0.01"})
    assert fees(owing, "1000", {"X-PERP": Decimal(100)}).total == 0
    holding = group({"USD": "1000", "BTC": "0.01"})
    assert fees(holding, "1000", {"X-PERP": Decimal(100)}).total == 6, "what it holds beside is not needed"


def test_a_settle_asset_with_a_price_pays_in_its_own_units() -> None:
    plain = rules(more=(BTC,)).records
    inverse = replace(plain["instrument:X-PERP"], settle_asset="BTC")
    parameters = RiskParameters.build([*(plain[key] for key in plain if key != inverse.key), inverse])
    held = group({"USD": "70"})
    cost = fees_of_fill(held, MARKS, parameters, "X-PERP", Decimal(1), RATES)
    assert (cost.insurance, cost.liquidation, cost.due) == (Decimal("0.001"), Decimal("0.0025"), Decimal("0.006"))
    poorer = fees_of_fill(group({"USD": "50"}), MARKS, parameters, "X-PERP", Decimal(1), RATES)
    assert (poorer.insurance, poorer.liquidation) == (Decimal("0.001"), Decimal("0.0015")), "50 are 0.0025 BTC"
    unpriced = fees_of_fill(held, {}, parameters, "X-PERP", Decimal(1), RATES)
    assert (unpriced.known, unpriced.total) == (False, Decimal(0)), "nothing else that it holds needs that mark"


def test_an_instrument_that_is_not_known_is_an_error() -> None:
    with pytest.raises(InputError, match="Z-PERP"):
        fees_of_fill(group({"USD": "1"}), MARKS, rules(), "Z-PERP", Decimal(1), RATES)


AMOUNTS = st.decimals(-10_000, 10_000, places=8)
RATE = st.decimals(0, "0.4", places=6)


@given(AMOUNTS, AMOUNTS, st.decimals(-50, 50, places=3), st.decimals("0.01", 500, places=2), RATE, RATE)
def test_fees_are_what_is_due_or_all_there_is_and_leave_nobody_owing(
    usd: Decimal, btc: Decimal, quantity: Decimal, price: Decimal, insurance: Decimal, liquidation: Decimal
) -> None:
    parameters, rates = rules(more=(BTC,)), FeeRates(insurance, liquidation)
    held = group({"USD": str(usd), "BTC": str(btc / 20_000)}, *([("X-PERP", str(quantity), "100")] if quantity else []))
    notional, unit = abs(quantity) * price, Decimal("0.00000001")
    due = [(rate * notional).quantize(unit, rounding=ROUND_CEILING) for rate in (insurance, liquidation)]
    with localcontext(EXACT):
        cost = fees_of_fill(held, MARKS, parameters, "X-PERP", notional, rates)
        before = equity_at_last_marks(held, MARKS, parameters)
        assert before is not None
        left = before - cost.total
        assert 0 <= cost.insurance <= due[0]
        assert 0 <= cost.liquidation <= due[1]
        assert cost.due == sum(due)
        assert cost.total == 0 or left >= 0, "nobody owes for a fee"
        assert cost.total == cost.due or left < unit, "less is paid only by those who have no more"
        assert not cost.liquidation or cost.insurance == due[0], "the insurance fee comes first"
