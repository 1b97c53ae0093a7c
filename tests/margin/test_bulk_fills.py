"""Fills in bulk beside fills one by one, at every scale; columns of decimals beside decimals one by one."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.parameters import AssetParameters, InstrumentParameters
from streams.errors import InputError, ParameterError
from streams.margin.bulk_fills import BulkFills
from streams.margin.decimal_columns import in_units, read_column
from streams.margin.fixed_point import parse_units
from streams.margin.ledger import Ledger
from streams.margin.parameters import RiskParameters
from tests.margin.test_ledger import FILL, SETTLED, TIERS, parameter_sets, text_of, written
from tests.properties import examples

GROUPS = (("a", "cross"), ("b", "cross"), ("a", "A"))
Fill = tuple[int, str, str, str, str]

decimals = st.one_of(
    st.from_regex(r"-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,6})?", fullmatch=True),
    st.from_regex(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?", fullmatch=True),
)
not_decimals = st.one_of(
    st.sampled_from(
        [
            "",
            "-",
            ".",
            "1.",
            ".5",
            "-.5",
            "1,2",
            "--1",
            "1-",
            "1-2",
            "1.2.3",
            "01",
            "-01",
            "00",
            "1e3",
            " 1",
            "1 ",
            "１",
        ]
    ),
    st.text(alphabet="0123456789.-,", max_size=6),
    st.text(max_size=3),
)


def parsed(texts: list[str], digits: int) -> list[int] | None:
    try:
        return [parse_units(text, digits) for text in texts]
    except InputError:
        return None


@settings(max_examples=examples(1000))
@given(st.lists(decimals, min_size=1, max_size=8), st.lists(not_decimals, max_size=1), st.integers(0, 18))
def test_a_column_is_what_its_decimals_are_one_by_one(texts: list[str], wrong: list[str], digits: int) -> None:
    column = [*texts, *wrong]
    read = read_column(column)
    units = None if read is None else in_units(*read, np.full(len(column), digits, dtype=np.int64))
    expected = parsed(column, digits)
    if units is not None:
        assert units.tolist() == expected
    elif expected is not None:  # it is left where 64 bits may be too few
        assert max(map(abs, expected)) >= 2**61 or any(len(text.strip("-").replace(".", "")) > 18 for text in column)


def test_a_column_of_short_decimals_is_not_left() -> None:
    read = read_column(["0", "-0.05", "12.50", "7", "-120"])
    assert read is not None
    assert [part.tolist() for part in read] == [[0, -5, 1250, 7, -120], [0, 2, 2, 0, 0]]


def open_ledger(parameters: RiskParameters) -> Ledger:
    ledger = Ledger(parameters)
    ledger.open_group("other", "cross")
    for account, margin in GROUPS:
        ledger.open_group(account, margin)
    return ledger


def held(ledger: Ledger) -> list[Any]:
    return [(ledger.balances(row), ledger.positions(row)) for row in range(ledger.row_count)]


def apply_each(ledger: Ledger, fills: list[Fill]) -> list[str]:
    refused = []
    for fill in fills:
        try:
            ledger.apply_fill(*fill)
        except InputError as error:
            refused.append(str(error))
    return sorted(refused)


def apply_bulk(ledger: Ledger, bulk: BulkFills, fills: list[Fill]) -> list[str]:
    applied = bulk.apply(*(list(column) for column in zip(*fills, strict=True)))
    return apply_each(
        ledger, [fill for fill, is_applied in zip(fills, applied.tolist(), strict=True) if not is_applied]
    )


def fill_of(parameters: RiskParameters, drawn: tuple[Any, ...], row: int) -> Fill | None:
    _, symbol, size, ticks, (side, fee_units) = drawn
    rules = parameters.instruments[symbol]
    quantity = Fraction(rules.quantity_increment) * (1 if size == "close" else size[0] * size[1])
    price = ticks * Fraction(rules.price_increment)
    fee = Fraction(side * fee_units, 10 ** parameters.assets[rules.settle_asset].decimals)
    if not all(map(written, (quantity, price, fee))):
        return None
    return row, symbol, text_of(quantity), text_of(price), text_of(fee)


@settings(max_examples=examples(600))
@given(
    parameter_sets(),
    st.lists(st.lists(st.tuples(FILL, st.integers(1, 3)), min_size=1, max_size=12), min_size=1, max_size=5),
    parameter_sets() | st.none(),
)
def test_the_ledger_is_the_same_in_bulk(
    parameters: RiskParameters, frames: list[list[Any]], later: RiskParameters | None
) -> None:
    each, bulk = open_ledger(parameters), open_ledger(parameters)
    in_bulk = BulkFills(bulk)
    for number, drawn in enumerate(frames):
        fills = [fill for one, row in drawn if (fill := fill_of(each.parameters, one, row)) is not None]
        if fills:
            assert apply_bulk(bulk, in_bulk, fills) == apply_each(each, fills)
            assert held(bulk) == held(each)
        if number == 0 and later is not None:
            taken = []
            for ledger in (each, bulk):
                try:
                    ledger.set_parameters(later)
                    taken.append(True)
                except ParameterError:
                    taken.append(False)
            assert taken[0] == taken[1]


small = st.tuples(
    st.integers(1, 3),
    st.sampled_from(sorted(SETTLED)),
    st.integers(-3, 3).filter(bool),
    st.integers(1, 5),
    st.integers(-2, 2),
)


@settings(max_examples=examples(600))
@given(parameter_sets(), st.lists(st.lists(small, min_size=1, max_size=30), min_size=2, max_size=4))
def test_positions_that_open_and_close_are_the_same_in_bulk(
    parameters: RiskParameters, frames: list[list[tuple[int, str, int, int, int]]]
) -> None:
    each, bulk = open_ledger(parameters), open_ledger(parameters)
    in_bulk = BulkFills(bulk)
    for drawn in frames:
        fills = []
        for row, symbol, lots, ticks, fee in drawn:
            rules = parameters.instruments[symbol]
            unit = Fraction(1, 10 ** parameters.assets[rules.settle_asset].decimals)
            texts = (lots * Fraction(rules.quantity_increment), ticks * Fraction(rules.price_increment), fee * unit)
            fills.append((row, symbol, *map(text_of, texts)))
        assert apply_bulk(bulk, in_bulk, fills) == apply_each(each, fills)  # type: ignore[arg-type]
        assert held(bulk) == held(each)


BORDER = "9223372036854.775807"
"""The most that 64 bits hold of an asset, or of a position's cash, with six decimals."""


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("held_at_border", ["balance", "cash", "quantity"])
def test_what_passes_64_bits_is_left_to_the_exact_way(held_at_border: str, sign: str) -> None:
    record = InstrumentParameters(
        symbol="A",
        settle_asset="USD",
        price_increment="1",
        quantity_increment="0.000001",
        margin_tiers=TIERS,
    )
    parameters = RiskParameters.build([record, AssetParameters(asset="USD", decimals=6)])
    border = f"{sign}{BORDER}"
    balances = {"USD": border if held_at_border == "balance" else "0"}
    quantity = border if held_at_border == "quantity" else "5"
    cash = border if held_at_border == "cash" else "0"
    # Fees and cash leave the sign of what is added to them, and no position is closed on the way.
    fills = [(1, "A", "-2" if sign == "-" and held_at_border == "quantity" else "2", "1", "-1")] * 10
    if (held_at_border, sign) in (("cash", ""), ("balance", "-")):
        fills = [(1, "A", "-0.1", "1", "1")] * 10
    each, bulk = open_ledger(parameters), open_ledger(parameters)
    for ledger in (each, bulk):
        ledger.load_group(1, balances, [("A", quantity, cash)])
    assert not BulkFills(bulk).apply(*(list(column) for column in zip(*fills, strict=True))).any()
    assert apply_bulk(bulk, BulkFills(bulk), fills) == apply_each(each, fills)
    assert held(bulk) == held(each)
