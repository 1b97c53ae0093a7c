"""What a record of ``risk.parameters.v1`` must fulfil, and what a set of them promises."""

from decimal import Decimal
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.parameters import (
    AssetParameters,
    CollateralTier,
    InstrumentParameters,
    MarginTier,
    OracleParameters,
    Parameter,
    PolicyParameters,
)
from streams.errors import InputError, ParameterError
from streams.margin.parameters import ParametersInTheMaking, RiskParameters


def instrument(*tiers: tuple[str, str, str], **fields: Any) -> InstrumentParameters:
    named = {"symbol": "X-PERP", "settle_asset": "USD", "price_increment": "0.01", "quantity_increment": "0.001"}
    margin_tiers = tuple(
        MarginTier(notional_floor=floor, maintenance_rate=rate, initial_rate=initial) for floor, rate, initial in tiers
    )
    return InstrumentParameters(margin_tiers=margin_tiers or (MarginTier(**TIER),), **{**named, **fields})


def asset(*tiers: tuple[str, str], **fields: Any) -> AssetParameters:
    collateral_tiers = tuple(CollateralTier(quantity_floor=floor, weight=weight) for floor, weight in tiers)
    return AssetParameters(**{"asset": "USD", **({"collateral_tiers": collateral_tiers} if tiers else {}), **fields})


def oracle(**fields: Any) -> OracleParameters:
    return OracleParameters(**{"symbol": "X-PERP", "sources": {"a": "1"}, **fields})


TIER = {"notional_floor": "0", "maintenance_rate": "0.01", "initial_rate": "0.02"}

REFUSED: dict[str, Parameter] = {
    "first notional_floor": instrument(("1", "0.01", "0.02")),
    "notional_floor must increase": instrument(("0", "0.01", "0.02"), ("5", "0.02", "0.04"), ("5", "0.03", "0.06")),
    "maintenance_rate must not decrease": instrument(("0", "0.02", "0.04"), ("5", "0.01", "0.05")),
    "initial_rate must not decrease": instrument(("0", "0.01", "0.04"), ("5", "0.02", "0.03")),
    "initial_rate must be at least": instrument(("0", "0.02", "0.01")),
    "maintenance_rate must be below 1": instrument(("0", "1", "1")),
    "maintenance_rate must be above 0": instrument(("0", "0", "0.1")),
    "initial_rate must be at most 1": instrument(("0", "0.5", "1.1")),
    r"liquidation_fee \+ insurance_fee": instrument(liquidation_fee="0.5", insurance_fee="0.5"),
    "price_increment must be above 0": instrument(price_increment="0"),
    "more than the ledger's 18": instrument(price_increment="0.0000000001", quantity_increment="0.000000001"),
    "not a decimal string": instrument(liquidation_fee="1e-3"),
    "impact_rate must be below 1": instrument(depth_notional="1000", impact_rate="1"),
    "impact_rate needs a depth_notional": instrument(impact_rate="0.1"),
    "depth_notional must be above 0": instrument(depth_notional="0"),
    "min_order_notional 7 is above max_order_notional 5": instrument(min_order_notional="7", max_order_notional="5"),
    "min_order_notional must be above 0": instrument(min_order_notional="0"),
    "min_order_notional needs a price_symbol": asset(min_order_notional="5"),
    "stale_bound must be above 0": instrument(stale_bound="0"),
    "first quantity_floor": asset(("1", "1")),
    "quantity_floor must increase": asset(("0", "1"), ("2", "0.9"), ("1", "0.8")),
    "weight must not increase": asset(("0", "0.8"), ("1", "0.9")),
    "weight must be from 0 to 1": asset(("0", "1.1")),
    "liability_weight must be at least 1": asset(liability_weight="0.9"),
    "liquidation_buffer_rate": PolicyParameters(liquidation_buffer_rate="1"),
    "margin_call_levels must be above 1": PolicyParameters(margin_call_levels=("1.5", "1")),
    "margin_call_levels must decrease": PolicyParameters(margin_call_levels=("1.2", "1.5")),
    "incomplete_hold_ms must be 0 or at least": PolicyParameters(incomplete_hold_ms=999),
    "margin_call_levels have at most": PolicyParameters(margin_call_levels=("1.123456789",)),
    "minimum_sources": oracle(minimum_sources=2),
    "max_confidence_ratio": oracle(max_confidence_ratio="2"),
    "max_jump must be above 0": oracle(max_jump="0"),
    "max_deviation must be above 0": oracle(max_deviation="0"),
    "sources.a must be above 0": oracle(sources={"a": "0"}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_record_that_breaks_a_rule_is_refused_and_the_set_stays(reason: str) -> None:
    record = REFUSED[reason]
    before = RiskParameters.build([instrument(), asset()])
    with pytest.raises(ParameterError, match=reason) as refused:
        before.with_record(record)
    assert record.key in str(refused.value)
    assert set(before.records) == {"instrument:X-PERP", "asset:USD"}
    with pytest.raises(ParameterError, match=reason):
        RiskParameters.build([record])


def test_an_unchecked_struct_with_no_tiers_is_refused() -> None:
    with pytest.raises(ParameterError, match="must not be empty"):
        RiskParameters.build([AssetParameters(asset="USD", collateral_tiers=())])
    with pytest.raises(ParameterError, match="must not be empty"):
        RiskParameters.build([InstrumentParameters(**{**as_fields(instrument()), "margin_tiers": ()})])


def as_fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def test_a_cash_amount_must_be_whole_minor_units_where_the_asset_fixes_them() -> None:
    coarse, fine = asset(decimals=4), asset(decimals=5)
    unlike: list[Parameter] = [instrument(), coarse]
    for records in permutations(unlike):
        with pytest.raises(ParameterError, match="has 5 decimals, the asset 4"):
            RiskParameters.build(records)
        with pytest.raises(ParameterError, match="has 5 decimals, the asset 4"):
            RiskParameters.empty().with_record(records[0]).with_record(records[1])
    assert RiskParameters.build([instrument(), fine]).cash_decimals("USD") == 5


def test_an_asset_that_leaves_its_decimals_open_is_held_as_fine_as_its_instruments_need() -> None:
    parameters = RiskParameters.build([asset(), instrument(quantity_increment="0.000000001")])
    assert parameters.assets["USD"].decimals == 8
    assert parameters.cash_decimals("USD") == 11


def test_an_instrument_must_not_price_its_own_settle_asset() -> None:
    circular: list[Parameter] = [instrument(), asset(price_symbol="X-PERP")]
    for records in permutations(circular):
        with pytest.raises(ParameterError, match="not linear"):
            RiskParameters.empty().with_record(records[0]).with_record(records[1])


def test_the_order_of_records_does_not_matter() -> None:
    records: list[Parameter] = [instrument(), asset(), asset(asset="BTC"), PolicyParameters(), oracle()]
    sets = []
    for order in permutations(records):
        parameters = RiskParameters.empty()
        for record in order:
            parameters = parameters.with_record(record)
        sets.append(parameters)
    assert all(parameters.records == sets[0].records == RiskParameters.build(records).records for parameters in sets)
    assert all(
        set(parameters.instruments) == {"X-PERP"} and set(parameters.assets) == {"USD", "BTC"} for parameters in sets
    )


def test_a_later_record_replaces_the_one_with_its_key_and_a_tombstone_removes_it() -> None:
    parameters = RiskParameters.build(
        [asset(), instrument(), PolicyParameters(liquidation_buffer_rate="0.1"), oracle()]
    )
    replaced = parameters.with_record(instrument(("0", "0.3", "0.4")))
    assert replaced.instruments["X-PERP"].steps[0].maintenance_rate == Decimal("0.3")
    assert parameters.instruments["X-PERP"].steps[0].maintenance_rate == Decimal("0.01")
    assert not replaced.without("instrument:X-PERP").instruments
    assert replaced.without("policy:default").policy.liquidation_buffer_rate == 0
    assert not replaced.without("asset:USD").assets
    assert not replaced.without("oracle:X-PERP").oracle
    assert replaced.without("asset:NONE") is replaced


def test_deductions_make_the_margin_continuous() -> None:
    tiers = ("0", "0.005", "0.01"), ("2000000", "0.0056", "0.0112"), ("2600000", "0.0063", "0.0126")
    rules = RiskParameters.build([instrument(*tiers), asset()]).instruments["X-PERP"]
    assert [step.maintenance_deduction for step in rules.steps] == [0, 1200, 3020]
    tiny = Decimal("0.000001")
    for step in rules.steps[1:]:
        below, above = (rules.maintenance(step.notional_floor + side * tiny) for side in (-1, 1))
        assert 0 < above - below < tiny
        assert 0 < rules.initial(step.notional_floor + tiny) - rules.initial(step.notional_floor - tiny) < tiny


def test_credit_counts_tier_by_tier_and_debt_in_full() -> None:
    rules = RiskParameters.build([asset(("0", "0.9"), ("10", "0.5"), ("20", "0"), liability_weight="1.1")]).assets[
        "USD"
    ]
    assert rules.weighted(Decimal(5)) == Decimal("4.5")
    assert rules.weighted(Decimal(15)) == Decimal("11.5")
    assert rules.weighted(Decimal(30)) == rules.weighted(Decimal(20)) == 14
    assert rules.weighted(Decimal(-10)) == -11
    assert [rules.weight_below(Decimal(q)) for q in (-1, 0, 5, 10, 11, 21)] == [
        Decimal(weight) for weight in ("1.1", "1.1", "0.9", "0.9", "0.5", "0")
    ]


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(InputError, match="symbol Y-PERP"):
        RiskParameters.empty().instrument("Y-PERP")
    with pytest.raises(InputError, match="asset EUR"):
        RiskParameters.empty().asset("EUR")


@pytest.mark.parametrize(
    "bounded",
    [
        instrument(stale_bound="0.3"),
        asset(asset="BTC", price_symbol="X-PERP", stale_bound="0.3"),
    ],
)
def test_a_bound_that_a_jump_may_pass_is_refused_whichever_record_comes_last(bounded: Parameter) -> None:
    for records in permutations([bounded, oracle(max_jump="0.3")]):
        parameters = RiskParameters.build([asset(), instrument()]).with_record(records[0])
        with pytest.raises(
            ParameterError, match=r"stale_bound 0\.3 is not above max_jump 0\.3 of oracle:X-PERP"
        ) as refused:
            parameters.with_record(records[1])
        assert bounded.key in str(refused.value)
    for other in (oracle(max_jump="0.29"), oracle(symbol="Y-PERP", max_jump="0.5")):
        RiskParameters.build([asset(), instrument(), other]).with_record(bounded)


def test_an_asset_of_which_no_weight_counts_is_no_collateral_however_it_is_scaled() -> None:
    parameters = RiskParameters.build(
        [asset(("0", "0")), asset(("0", "0.5"), ("1", "0"), asset="BTC", price_symbol="BTC-USD")]
    )
    assert not parameters.assets["USD"].collateral
    scaled = parameters.with_scales({"asset:BTC": Decimal(3)})
    assert scaled.assets["BTC"].weighted(Decimal(1)) == 0
    assert scaled.assets["BTC"].collateral


PUT: dict[str, list[Parameter]] = {
    "instrument:X-PERP": [instrument(), instrument(("0", "0.3", "0.4"))],
    "asset:USD": [asset(), asset(("0", "0.5"))],
    "oracle:X-PERP": [oracle(), oracle(max_age_ms=5)],
    "policy:default": [PolicyParameters(), PolicyParameters(liquidation_buffer_rate="0.1")],
}
SCALES = {"instrument:X-PERP": Decimal("1.5"), "asset:USD": Decimal("1.2")}


def _contents(parameters: RiskParameters) -> list[str]:
    """All that a set holds, and what becomes of it at other scales."""
    sets = [parameters, parameters.with_scales(SCALES), parameters.with_scales({})]
    return [
        repr([sorted(rules.items()) for rules in (each.records, each.instruments, each.assets, each.oracle)])
        + repr(each.policy)
        for each in sets
    ]


@given(st.lists(st.tuples(st.sampled_from(sorted(PUT)), st.sampled_from([None, 0, 1]), st.booleans()), max_size=12))
def test_a_set_stays_as_it_is_whatever_is_put_in_later(steps: list[tuple[str, int | None, bool]]) -> None:
    """An engine decides by one set while the next is being made."""
    making = ParametersInTheMaking(RiskParameters.empty())
    taken: list[tuple[RiskParameters, list[str]]] = []
    for key, which, is_taken in steps:
        if which is None:
            making.remove(key)
        else:
            making.put(PUT[key][which])
        if is_taken:
            taken.append((making.parameters, _contents(making.parameters)))
    for parameters, contents in taken:
        assert _contents(parameters) == contents
