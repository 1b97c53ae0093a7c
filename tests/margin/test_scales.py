"""Dynamic scales: rates follow their measures slowly and within limits."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.parameters import AssetParameters, CollateralTier, InstrumentParameters, MarginTier, Scale
from streams.errors import InputError, ParameterError
from streams.margin.parameters import RiskParameters
from streams.margin.rules import ScaleRules
from streams.margin.scales import largest_change, step_scale, target_scale
from tests.margin.conftest import decimals, rules

MINUTE_US = 60_000_000


def scale_rules(reference: str = "0.04", floor: str = "1", cap: str = "4", change: str = "0.5") -> ScaleRules:
    return ScaleRules(Decimal(reference), Decimal(floor), Decimal(cap), Decimal(change))


def test_a_target_is_the_measure_by_its_reference_between_floor_and_cap() -> None:
    targets = [target_scale([(scale_rules(), Decimal(measure))]) for measure in ("0", "0.04", "0.0601", "0.1", "9")]
    assert targets == [1, 1, Decimal("1.51"), Decimal("2.5"), 4]
    assert target_scale([(scale_rules(floor="0.5"), Decimal("0.03"))]) == Decimal("0.75")


def test_measures_multiply_and_an_unknown_one_leaves_the_target_unknown() -> None:
    one, other = (scale_rules(), Decimal("0.06")), (scale_rules(reference="100"), Decimal(140))
    assert target_scale([one, other]) == Decimal("2.1")
    assert target_scale([one, (scale_rules(), None)]) is None


def test_the_slowest_rules_limit_the_change() -> None:
    measured = [(scale_rules(change="0.5"), None), (scale_rules(change="0.12"), None)]
    assert largest_change(measured, MINUTE_US) == Decimal("0.12")
    assert largest_change(measured, MINUTE_US // 6) == Decimal("0.02")
    assert largest_change(measured, MINUTE_US // 60) == 0


def test_a_scale_approaches_its_target_from_either_side_and_stays_there() -> None:
    path = [Decimal(1)]
    for target in ("1.7", "1.7", "1.7", "1.2", "1.2"):
        path.append(step_scale(path[-1], Decimal(target), Decimal("0.4")))
    assert path == [Decimal(scale) for scale in ("1", "1.4", "1.7", "1.7", "1.3", "1.2")]


@given(decimals("0", "1", 4), st.lists(st.integers(0, 3 * MINUTE_US), max_size=6))
def test_many_short_steps_go_no_further_than_one_long_one(measure: Decimal, steps_us: list[int]) -> None:
    measured = [(scale_rules(), measure)]
    target = target_scale(measured)
    assert target is not None
    scale = Decimal(1)
    for elapsed_us in steps_us:
        scale = step_scale(scale, target, largest_change(measured, elapsed_us))
    at_once = step_scale(Decimal(1), target, largest_change(measured, sum(steps_us)))
    assert 1 <= scale <= at_once <= 4


@pytest.mark.parametrize("measure", ["-1", "NaN", "Infinity"])
def test_what_is_no_measure_is_refused(measure: str) -> None:
    with pytest.raises(InputError, match=r"measure of -?\w+ is no"):
        target_scale([(scale_rules(), Decimal(measure))])


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(InputError, match="-1"):
        largest_change([(scale_rules(), None)], -1)


# --- in force --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["0", "-1", "NaN", "Infinity"])
def test_a_scale_that_is_no_factor_is_refused(scale: str) -> None:
    with pytest.raises(ParameterError, match="instrument:S"):
        RiskParameters.empty().with_scales({"instrument:S": Decimal(scale)})


def test_scaled_rates_stay_margin_rates() -> None:
    parameters = rules(tiers=((0, "0.1", "0.2"), (1000, "0.4", "0.8")), symbol="S")
    steps = parameters.with_scales({"instrument:S": Decimal(3)}).instruments["S"].steps
    assert [(step.maintenance_rate, step.initial_rate) for step in steps] == [
        (Decimal("0.3"), Decimal("0.6")),
        (Decimal("0.99"), Decimal(1)),
    ]
    assert steps[1].maintenance_deduction == 690


def test_a_scaled_haircut_weighs_credit_less_and_debt_more() -> None:
    record = AssetParameters(
        asset="BTC",
        collateral_tiers=(
            CollateralTier(quantity_floor="0", weight="0.9"),
            CollateralTier(quantity_floor="10", weight="0.5"),
        ),
        liability_weight="1.1",
    )
    rule = RiskParameters.build([record]).with_scales({"asset:BTC": Decimal("2.5")}).assets["BTC"]
    assert [step.weight for step in rule.steps] == [Decimal("0.75"), 0]
    assert rule.liability_weight == Decimal("1.25")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"reference": "0"}, "volatility_scale.reference must be above 0"),
        ({"reference": "1", "floor": "3", "cap": "2"}, "volatility_scale: floor must be at most cap"),
        ({"reference": "1", "change_per_minute": "0"}, "volatility_scale.change_per_minute must be above 0"),
    ],
)
def test_scale_rules_that_make_no_sense_are_refused(fields: dict[str, str], reason: str) -> None:
    record = InstrumentParameters(
        symbol="S",
        settle_asset="USD",
        price_increment="1",
        quantity_increment="1",
        margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.1", initial_rate="0.2"),),
        volatility_scale=Scale(**fields),
    )
    with pytest.raises(ParameterError, match=reason):
        RiskParameters.build([record])


def test_an_asset_without_a_price_has_no_volatility_to_follow() -> None:
    with pytest.raises(ParameterError, match="volatility_scale needs a price_symbol"):
        RiskParameters.build([AssetParameters(asset="USD", volatility_scale=Scale(reference="1"))])
