"""Dynamic scales: rates follow their targets slowly and within limits."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.parameters import AssetParameters, CollateralTier, PolicyParameters, ScaleLimits
from streams.errors import InputError, ParameterError
from streams.margin.parameters import Limits, RiskParameters
from streams.margin.scales import ScaleTarget, step_scales
from tests.margin.conftest import decimals, rules

LIMITS = Limits(Decimal(1), Decimal(4), Decimal("0.5"))
MINUTE_US = 60_000_000


def target(volatility: str, open_interest: str = "1") -> dict[str, ScaleTarget]:
    return {"instrument:S": ScaleTarget(Decimal(volatility), Decimal(open_interest))}


def test_a_scale_approaches_the_product_of_its_targets_no_faster_than_allowed() -> None:
    scales: dict[str, Decimal] = {}
    path = []
    for _ in range(5):
        scales = step_scales(scales, target("1.5", "1.4"), MINUTE_US, LIMITS)
        path.append(scales["instrument:S"])
    assert path == [Decimal(value) for value in ("1.5", "2", "2.1", "2.1", "2.1")]


def test_a_scale_without_a_target_goes_back_to_one_and_is_forgotten_there() -> None:
    scales = step_scales({"instrument:S": Decimal("1.7")}, {}, MINUTE_US, LIMITS)
    assert scales == {"instrument:S": Decimal("1.2")}
    assert step_scales(scales, {}, MINUTE_US, LIMITS) == {}


def test_a_target_is_held_between_floor_and_cap() -> None:
    hour_us = 60 * MINUTE_US
    assert step_scales({}, target("9"), hour_us, LIMITS) == {"instrument:S": Decimal(4)}
    assert step_scales({}, target("0.2"), hour_us, LIMITS) == {}


@given(decimals("0.01", "9", 2), st.lists(st.integers(0, 3 * MINUTE_US), max_size=6))
def test_many_short_steps_go_no_further_than_one_long_one(volatility: Decimal, steps_us: list[int]) -> None:
    scales: dict[str, Decimal] = {}
    targets = {"instrument:S": ScaleTarget(volatility)}
    for elapsed_us in steps_us:
        scales = step_scales(scales, targets, elapsed_us, LIMITS)
    at_once = step_scales({}, targets, sum(steps_us), LIMITS)
    short, long = (found.get("instrument:S", Decimal(1)) for found in (scales, at_once))
    assert 1 <= short <= long <= 4
    assert long - short <= len(steps_us) * Decimal("0.000001")


@pytest.mark.parametrize("volatility", ["0", "-1", "NaN", "Infinity"])
def test_a_scale_that_is_no_factor_is_refused(volatility: str) -> None:
    with pytest.raises(InputError, match="instrument:S"):
        step_scales({}, target(volatility), 1, LIMITS)
    with pytest.raises(ParameterError, match="instrument:S"):
        RiskParameters.empty().with_scales({"instrument:S": Decimal(volatility)})


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(InputError, match="-1"):
        step_scales({}, {}, -1, LIMITS)


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


def test_limits_are_the_policys() -> None:
    policy = PolicyParameters(scale_limits=ScaleLimits(floor="0.5", cap="2", change_per_minute="1"))
    assert RiskParameters.build([policy]).policy.scale_limits == Limits(Decimal("0.5"), Decimal(2), Decimal(1))
    with pytest.raises(ParameterError, match="floor must be at most cap"):
        RiskParameters.build([PolicyParameters(scale_limits=ScaleLimits(floor="3", cap="2"))])
