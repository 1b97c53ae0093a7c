"""Margin models: tiers and scenario scans, and what verdicts, liquidation prices and plans rely on in both."""

from dataclasses import replace
from decimal import Decimal, localcontext
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from schemas.parameters import PolicyParameters, ScanOffset
from streams.errors import ParameterError
from streams.margin.fixed_point import EXACT
from streams.margin.health import evaluate
from streams.margin.health import holdings as holdings_of
from streams.margin.models import TIERED, Holding, MarginModel, ScannedMargin, model_of
from streams.margin.parameters import RiskParameters
from streams.margin.rules import SCENARIOS
from tests.margin.conftest import SYMBOLS, Book, books, decimals, group, rules

MARK = decimals("0.01", "5000", 2)


def held(book: Book, **marks: Decimal) -> tuple[MarginModel, list[Holding]]:
    holdings = holdings_of(book.group, {**book.marks, **marks}, book.parameters)
    return model_of(book.group.account, book.parameters), holdings


# --- what both models promise ----------------------------------------------------------------------------------------


@given(books(positions_min=2), st.sampled_from([*SYMBOLS, "EUR-USD"]), MARK)
def test_a_tangent_touches_the_margin_at_its_mark_and_lies_nowhere_above_it(
    book: Book, symbol: str, mark: Decimal
) -> None:
    model, holdings = held(book)
    constant, slope = model.tangent(holdings, symbol)
    _, moved = held(book, **{symbol: mark})
    with localcontext(EXACT):
        assert constant + slope * book.marks[symbol] == model.margins(holdings).maintenance
        assert constant + slope * mark <= model.margins(moved).maintenance


@given(books(positions_min=2), st.integers(0, 2), decimals("0.01", "1", 2))
def test_a_close_never_releases_more_than_its_first_bit_did(book: Book, index: int, part: Decimal) -> None:
    model, holdings = held(book)
    index %= len(holdings)
    holding = holdings[index]
    rate, _ = model.released(holdings, index)
    with localcontext(EXACT):
        rest = [*holdings]
        rest[index] = replace(holding, quantity=holding.quantity * (1 - part))
        if part == 1:
            del rest[index]
        released = model.margins(holdings).maintenance - model.margins(rest).maintenance
        assert released <= rate * abs(holding.quantity) * part * holding.mark * holding.unit


@given(books(positions_min=2), decimals("0", "1", 2))
def test_the_margin_of_a_part_of_every_position_is_at_most_that_part(book: Book, part: Decimal) -> None:
    model, holdings = held(book)
    with localcontext(EXACT):
        some = [replace(holding, quantity=holding.quantity * part) for holding in holdings if part]
        assert model.margins(some).maintenance <= model.margins(holdings).maintenance * part


@given(books(positions_min=2))
def test_portfolio_margin_is_between_its_floor_and_the_sum_of_its_legs(book: Book) -> None:
    """Every leg alone is at least its own floor, so the bounds never cross; what cannot be scanned counts in full."""
    model, holdings = held(book)
    assume(isinstance(model, ScannedMargin))
    margins = model.margins(holdings)
    with localcontext(EXACT):
        floor = tiers = legs = Decimal(0)
        for holding, (alone, initial) in zip(holdings, margins.by_holding, strict=True):
            notional = abs(holding.quantity) * holding.mark
            if holding.instrument.scan is None:
                tiers += holding.instrument.maintenance(notional) * holding.unit
            else:
                floor += holding.instrument.scan.floor_rate * notional * holding.unit
            assert model.margins([holding]).maintenance == alone
            assert initial == alone * book.parameters.policy.scan.initial_scale
            legs += alone
        assert floor + tiers <= margins.maintenance <= legs
        profits = book.parameters.policy.scan.profits
        worst = max(
            (
                sum(
                    (
                        -holding.quantity * holding.mark * holding.unit * profits(scan)[scenario]
                        for holding in holdings
                        if (scan := holding.instrument.scan) is not None
                    ),
                    Decimal(0),
                )
                for scenario in range(SCENARIOS)
            ),
        )
        assert margins.maintenance >= worst + tiers


# --- scans by hand ---------------------------------------------------------------------------------------------------


def scanned(policy: dict[str, Any] | None = None, **by_symbol: dict[str, Any]) -> RiskParameters:
    """Instruments of one tier of 20 %, with scan fields; account ``a`` is under portfolio margin."""
    parameters = RiskParameters.empty()
    for symbol, fields in by_symbol.items():
        given_fields = {"scan_floor_rate": "0.01", **fields} if fields else {}
        one = rules(tiers=((0, "0.2", "0.4"),), symbol=symbol, **given_fields)
        for key in ("asset:USD", f"instrument:{symbol}"):
            parameters = parameters.with_record(one.records[key])
    return parameters.with_record(PolicyParameters(portfolio_margin_accounts=("a",), **(policy or {})))


def maintenance(parameters: RiskParameters, *positions: tuple[str, str]) -> Decimal:
    marks = {symbol: Decimal(100) for symbol in parameters.instruments}
    book = group({"USD": "1000"}, *((symbol, quantity, "100") for symbol, quantity in positions))
    return evaluate(book, marks, parameters).maintenance_margin


def test_a_single_position_needs_the_range_or_the_weighted_extreme_whichever_is_more() -> None:
    narrow = {"scan_extreme_multiple": "2", "scan_extreme_weight": "0.35"}
    wide = {"scan_extreme_multiple": "3", "scan_extreme_weight": "0.5"}
    for quantity in ("2", "-2"):
        assert maintenance(scanned(narrow, S={"scan_range": "0.1"}), ("S", quantity)) == 20
        assert maintenance(scanned(wide, S={"scan_range": "0.1"}), ("S", quantity)) == 30


def test_positions_of_one_group_hedge_each_other_down_to_the_floor() -> None:
    near, far = {"scan_group": "BTC", "scan_range": "0.1"}, {"scan_group": "BTC", "scan_range": "0.12"}
    together = scanned(PERP=near, QUARTER=far)
    assert maintenance(together, ("PERP", "5"), ("QUARTER", "5")) == 50 + 60
    assert maintenance(together, ("PERP", "5"), ("QUARTER", "-5")) == 10
    assert maintenance(together, ("PERP", "6"), ("QUARTER", "-5")) == 5 + 6
    apart = scanned(PERP={"scan_range": "0.1"}, QUARTER={"scan_range": "0.12"})
    assert maintenance(apart, ("PERP", "5"), ("QUARTER", "-5")) == 50 + 60


def test_an_offset_forgives_opposite_groups_its_rate_and_equal_ones_nothing() -> None:
    offset = {"scan_offsets": (ScanOffset(first="BTC", second="ETH", rate="0.6"),)}
    parameters = scanned(
        offset, B={"scan_group": "BTC", "scan_range": "0.1"}, E={"scan_group": "ETH", "scan_range": "0.1"}
    )
    assert maintenance(parameters, ("B", "10"), ("E", "10")) == 200
    assert maintenance(parameters, ("B", "10"), ("E", "-10")) == 80
    assert maintenance(parameters, ("B", "10"), ("E", "-5")) == Decimal("0.4") * 150 + Decimal("0.6") * 50
    assert maintenance(parameters, ("B", "10")) == 100


def test_an_array_of_its_own_is_scanned_as_it_stands() -> None:
    array = ["0"] * SCENARIOS
    array[5], array[9] = "-0.07", "0.03"
    parameters = scanned(S={"scan_array": tuple(array)})
    assert maintenance(parameters, ("S", "1")) == 7
    assert maintenance(parameters, ("S", "-1")) == 3


def test_a_position_that_cannot_be_scanned_is_margined_by_its_tiers() -> None:
    parameters = scanned(S={"scan_range": "0.1"}, T={})
    assert maintenance(parameters, ("S", "1"), ("T", "-1")) == 10 + 20


def test_the_model_is_the_accounts_choice() -> None:
    parameters = scanned(S={"scan_range": "0.1"})
    book = group({"USD": "15"}, ("S", "1", "100"))
    marks = {"S": Decimal(100)}
    assert isinstance(model_of("a", parameters), ScannedMargin)
    assert model_of("b", parameters) is TIERED
    assert evaluate(book, marks, parameters).maintenance_margin == 10
    assert evaluate(book, marks, parameters).initial_margin == Decimal("12.5")
    assert evaluate(replace(book, account="b"), marks, parameters).maintenance_margin == 20


@pytest.mark.parametrize(
    ("policy", "fields", "reason"),
    [
        ({}, {"scan_array": ("0",) * 5}, "scan_array must have 16"),
        ({}, {"scan_range": "0.1", "scan_floor_rate": "0"}, "scan_floor_rate must be above 0"),
        ({}, {"scan_range": "0.1", "scan_floor_rate": "1"}, "scan_floor_rate must be below 1"),
        ({}, {"scan_range": "0"}, "scan_range must be above 0"),
        ({"scan_offsets": (ScanOffset(first="A", second="A", rate="1"),)}, {}, "cannot offset itself"),
        ({"scan_offsets": (ScanOffset(first="A", second="B", rate="1.1"),)}, {}, "rate must be at most 1"),
        (
            {"scan_offsets": tuple(ScanOffset(first="A", second=other, rate="1") for other in "BC")},
            {},
            "more than one offset",
        ),
        ({"scan_extreme_weight": "1.1"}, {}, "scan_extreme_weight"),
        ({"scan_initial_scale": "0.9"}, {}, "scan_initial_scale"),
    ],
)
def test_scan_parameters_that_make_no_sense_are_refused(
    policy: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ParameterError, match=reason):
        scanned(policy, S=fields)


def test_scales_reach_scans_as_well_as_tiers() -> None:
    parameters = scanned(S={"scan_range": "0.1"}, T={}).with_scales(
        {"instrument:S": Decimal("1.5"), "instrument:T": Decimal(2)}
    )
    assert maintenance(parameters, ("S", "1"), ("T", "1")) == 15 + 40
    record = parameters.records["instrument:T"]
    again = parameters.with_record(msgspec.structs.replace(record, version=2))
    assert maintenance(again, ("T", "1")) == 40
