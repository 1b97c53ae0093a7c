"""Decimal strings, exact numbers and minor units: nothing is ever lost on the way from one to another."""

from decimal import ROUND_CEILING, Decimal, Inexact, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import InputError
from streams.margin.fixed_point import (
    EXACT,
    INT64_MAX,
    decimal_units,
    divide_ceiling,
    divide_floor,
    format_decimal,
    fraction_digits,
    from_units,
    parse_decimal,
    parse_units,
    to_units,
    units_limit,
)

NO_NUMBERS = [
    "",
    "-",
    ".",
    "+1",
    "1e5",
    " 1",
    "1 ",
    "1\n",
    "01",
    "-01",
    ".5",
    "5.",
    "1_0",
    "0x1",
    "NaN",
    "Infinity",
    "٣",
]
UNITS = st.integers(-(10**18) + 1, 10**18 - 1)
DECIMALS = st.integers(0, 18)


@pytest.mark.parametrize("text", [*NO_NUMBERS, "1" * 19, "0." + "1" * 19, None, 5, 1.5, b"1"])
def test_what_is_not_a_decimal_string_of_the_contract_is_refused(text: str) -> None:
    for parse in (parse_decimal, lambda value: parse_units(value, 18), lambda value: to_units(value, 18)):
        with pytest.raises(InputError):
            parse(text)


def test_minus_zero_is_zero() -> None:
    assert str(parse_decimal("-0.00")) == "0"
    assert to_units("-0.0", 3) == 0
    assert format_decimal(Decimal("-0.000")) == from_units(0, 5) == "0"


@given(UNITS, DECIMALS)
def test_units_survive_the_way_through_a_string(units: int, decimals: int) -> None:
    text = from_units(units, decimals)
    assert to_units(text, decimals) == parse_units(text, decimals) == to_units(Decimal(text), decimals) == units
    assert Decimal(text) == decimal_units(units, decimals)
    assert format_decimal(Decimal(text)) == text


@given(UNITS, DECIMALS, st.integers(0, 17))
def test_an_amount_finer_than_a_unit_is_refused(units: int, decimals: int, coarser: int) -> None:
    text = from_units(units, decimals)
    exact = units * 10**coarser % 10**decimals == 0
    if exact:
        assert Fraction(parse_units(text, coarser), 10**coarser) == Fraction(units, 10**decimals)
    else:
        with pytest.raises(InputError, match="finer"):
            parse_units(text, coarser)


@pytest.mark.parametrize("decimals", [0, 1, 8, 18])
def test_the_ledger_ends_where_int64_or_the_contract_does(decimals: int) -> None:
    limit = units_limit(decimals)
    assert to_units(decimal_units(limit, decimals), decimals) == limit <= INT64_MAX
    for beyond in (limit + 1, -limit - 1):
        with pytest.raises(InputError):
            to_units(decimal_units(beyond, decimals), decimals)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1E+900", "1E-900"])
def test_numbers_no_ledger_holds_are_refused(value: str) -> None:
    with pytest.raises(InputError):
        to_units(Decimal(value), 8)


@given(UNITS, st.integers(-(10**9), 10**9).filter(bool), st.integers(0, 12))
def test_a_quotient_is_rounded_in_the_direction_named(numerator: int, denominator: int, places: int) -> None:
    increment = Decimal(1).scaleb(-places)
    low = divide_floor(Decimal(numerator), Decimal(denominator), increment)
    high = divide_ceiling(Decimal(numerator), Decimal(denominator), increment)
    exact = Fraction(numerator, denominator)
    assert Fraction(low) <= exact <= Fraction(high)
    assert Fraction(high) - Fraction(low) <= Fraction(increment)
    assert (low == high) == (Fraction(low) == exact)
    assert Fraction(low) % Fraction(increment) == Fraction(high) % Fraction(increment) == 0


def test_a_result_that_would_need_rounding_raises() -> None:
    with localcontext(EXACT), pytest.raises(Inexact):
        Decimal(1) / Decimal(3)


def test_formatting_keeps_to_the_places_the_contract_holds() -> None:
    assert format_decimal(Decimal("1E+3")) == "1000"
    assert format_decimal(Decimal("1.2300")) == "1.23"
    assert format_decimal(Decimal("-0.0000000000000000001")) == "-0.000000000000000001"
    assert format_decimal(Decimal("1.239"), 2) == "1.23"
    assert format_decimal(Decimal("1.231"), 2, ROUND_CEILING) == "1.24"
    assert fraction_digits(Decimal("0.0500")) == 2
    with pytest.raises(InputError):
        format_decimal(Decimal("NaN"))
