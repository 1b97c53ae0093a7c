"""Columns of amounts: every amount is what was put, in whatever units, and its double is near it."""

from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.types import FRACTION_DIGITS_MAX
from streams.margin.amounts import Amounts, fine_step, high_most
from streams.margin.fixed_point import INT64_MAX, from_units, parse_units

MOST = 10**36 - 1
"""The largest amount that a decimal string says, in units of 10**-18."""

AMOUNT = (
    st.integers(0, 36).flatmap(lambda digits: st.integers(-(10**digits) + 1, 10**digits - 1))
    | st.builds(
        lambda word, near, scale: max(-MOST, min(MOST, (word * 2**63 + near) * 10**scale)),
        st.integers(-20, 20),
        st.integers(-2, 2),
        st.integers(0, 18),
    )
    | st.sampled_from([MOST, -MOST])
)
"""In units of 10**-18: of every size, and where the words of 64 bits end."""
DECIMALS = st.integers(0, FRACTION_DIGITS_MAX)


def column_of(amounts: list[int], decimals: int) -> Amounts:
    column = Amounts(len(amounts))
    for index, amount in enumerate(amounts):
        column.put(index, *divmod(amount, fine_step(decimals)))
    return column


@given(st.lists(AMOUNT, min_size=1, max_size=6), DECIMALS)
def test_what_is_put_is_there(amounts: list[int], decimals: int) -> None:
    column = column_of(amounts, decimals)
    for index, amount in enumerate(amounts):
        assert column.exact(index, decimals) == amount
        assert column.units(index) == amount // fine_step(decimals)
        assert parse_units(column.text(index, decimals), FRACTION_DIGITS_MAX) == amount
        assert column.text(index, decimals) == from_units(amount, FRACTION_DIGITS_MAX)
        assert Fraction(column.decimal(index, decimals)) == Fraction(amount, 10**18)
        assert bool(column.held(slice(index, index + 1))[0]) == (amount != 0)
        assert not column.is_plain(index) or column.view[index] * fine_step(decimals) == amount
    assert column.held(slice(0, len(amounts))).tolist() == [amount != 0 for amount in amounts]
    copied = column.copy()
    column.resize(2 * len(amounts))
    column.clear(0)
    assert not column.held(slice(0, 1)).any()
    assert copied.exact(0, decimals) == amounts[0]
    assert [column.exact(index, decimals) for index in range(1, 2 * len(amounts))] == amounts[1:] + [0] * len(amounts)


@given(st.lists(AMOUNT, min_size=1, max_size=6), DECIMALS, DECIMALS)
def test_other_units_change_no_amount(amounts: list[int], before: int, after: int) -> None:
    column = column_of(amounts, before)
    at = np.arange(0, len(amounts), 2, dtype=np.int64)
    assert column.finer_than(at, before, after) == any(amount % fine_step(after) for amount in amounts[::2])
    column.rescale(at, before, after)
    for index, amount in enumerate(amounts):
        assert column.exact(index, before if index % 2 else after) == amount
    assert all(column.units(index) == amounts[index] // fine_step(after) for index in at.tolist())


@given(st.lists(AMOUNT, min_size=1, max_size=6), DECIMALS, st.data())
def test_a_double_is_within_its_bound_and_has_the_sign_of_its_amount(
    amounts: list[int], decimals: int, data: st.DataObject
) -> None:
    column = column_of(amounts, decimals)
    step = fine_step(decimals)
    choices: list[int | np.ndarray[Any, np.dtype[np.int64]]] = [step, np.full(len(amounts), step, dtype=np.int64)]
    steps = data.draw(st.sampled_from(choices))
    for value, amount in zip(column.doubles(slice(None), steps).tolist(), amounts, strict=True):
        exact = Fraction(amount, step)
        assert (value > 0, value < 0) == (exact > 0, exact < 0)
        assert abs(Fraction(value) - exact) <= abs(exact) * Fraction(92, 10 * 2**53)


@given(st.integers(1, 10**36))
def test_no_low_word_passes_what_can_be_written_while_the_high_one_is_within_its_bound(units: int) -> None:
    high = high_most(units)
    assert high == 0 or high * 2**64 + INT64_MAX < -(-high * 2**64 - 2**63) <= units
    assert (high + 1) * 2**64 + 2**63 > units


@given(st.lists(AMOUNT, min_size=1, max_size=6), DECIMALS, st.integers(0, 3))
def test_high_words_above_a_bound_are_found(amounts: list[int], decimals: int, most: int) -> None:
    highs = [((amount // fine_step(decimals)) + 2**63) >> 64 for amount in amounts]
    assert column_of(amounts, decimals).passes(slice(None), most) == any(abs(high) > most for high in highs)


@given(st.lists(AMOUNT, min_size=1, max_size=6), DECIMALS)
def test_what_is_owed_is_added_up_exactly(amounts: list[int], decimals: int) -> None:
    column = column_of(amounts, decimals)
    at = np.arange(0, len(amounts), 2, dtype=np.int64)
    assert column.below_zero(at, decimals) == sum(amount for amount in amounts[::2] if amount < 0)
    units = [amount // fine_step(decimals) for amount in amounts[::2]]
    assert column.within(at, INT64_MAX).tolist() == [-INT64_MAX <= count <= INT64_MAX for count in units]
