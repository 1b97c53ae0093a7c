"""The ledger in columns: exact or refused, and its screens never further from the truth than they say."""

import random
from collections.abc import Iterable
from dataclasses import fields
from decimal import Decimal, localcontext
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.parameters import (
    AssetParameters,
    CollateralTier,
    InstrumentParameters,
    MarginTier,
    Parameter,
    PolicyParameters,
)
from streams.errors import InputError, ParameterError
from streams.margin.fixed_point import EXACT, format_decimal
from streams.margin.health import evaluate
from streams.margin.parameters import RiskParameters
from streams.margin.portfolio import Portfolio
from streams.margin.screens import Columns
from tests.margin.conftest import SYMBOLS, Book, books
from tests.properties import examples

TIERS = (
    MarginTier(notional_floor="0", maintenance_rate="0.01", initial_rate="0.02"),
    MarginTier(notional_floor="5000", maintenance_rate="0.05", initial_rate="0.1"),
    MarginTier(notional_floor="50000", maintenance_rate="0.2", initial_rate="0.4"),
)


def instrument(symbol: str, settle: str = "USD", **fields: Any) -> InstrumentParameters:
    named = {"price_increment": "0.01", "quantity_increment": "0.001", "margin_tiers": TIERS}
    return InstrumentParameters(symbol=symbol, settle_asset=settle, **{**named, **fields})


RECORDS: tuple[Parameter, ...] = (
    AssetParameters(asset="USD"),
    AssetParameters(asset="EUR", price_symbol="EUR-USD", decimals=6, liability_weight="1.1"),
    AssetParameters(
        asset="BTC",
        price_symbol="A-PERP",
        liability_weight="1.2",
        collateral_tiers=(
            CollateralTier(quantity_floor="0", weight="0.95"),
            CollateralTier(quantity_floor="2", weight="0.9"),
            CollateralTier(quantity_floor="5", weight="0.5"),
        ),
    ),
    instrument("A-PERP"),
    instrument("B-PERP", price_increment="0.5", quantity_increment="5"),
    instrument("C-PERP", "EUR"),
)
RULES = RiskParameters.build(RECORDS)
MARKS = {"A-PERP": "100", "B-PERP": "20.5", "C-PERP": "7.77", "EUR-USD": "1.1"}


def build_portfolio(marks: dict[str, str] | None = None) -> Portfolio:
    portfolio = Portfolio(RULES)
    for symbol, mark in (MARKS if marks is None else marks).items():
        portfolio.set_mark(symbol, mark, True)
    return portfolio


def state(portfolio: Portfolio, row: int) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    return portfolio.balances(row), portfolio.positions(row)


def money(portfolio: Portfolio, rows: Iterable[int], asset: str, settled: set[str]) -> Decimal:
    """Everything of ``asset``: balances and the cash of positions settled in it."""
    with localcontext(EXACT):
        return sum(
            (
                Decimal(portfolio.balances(row).get(asset, "0"))
                + sum((Decimal(c) for s, _, c in portfolio.positions(row) if s in settled), Decimal(0))
                for row in rows
            ),
            Decimal(0),
        )


# --- fills and transfers ---------------------------------------------------------------------------------------------


def test_a_fill_moves_quantity_and_cash_and_charges_its_fee() -> None:
    portfolio = build_portfolio()
    row = portfolio.ledger.open_group("a", "cross")
    portfolio.ledger.apply_transfer(row, "USD", "1000")
    portfolio.ledger.apply_fill(row, "A-PERP", "2.5", "100.01", "0.25")
    portfolio.ledger.apply_fill(row, "A-PERP", "-1", "101", "-0.1")
    assert state(portfolio, row) == ({"USD": "999.85"}, [("A-PERP", "1.5", "-149.025")])


def test_a_flat_position_leaves_its_cash_in_the_balance() -> None:
    portfolio = build_portfolio()
    row = portfolio.ledger.open_group("a", "cross")
    portfolio.ledger.apply_fill(row, "C-PERP", "-10", "7", "0")
    portfolio.ledger.apply_fill(row, "C-PERP", "10", "6.5", "0.000001")
    assert state(portfolio, row) == ({"EUR": "4.999999"}, [])
    portfolio.ledger.apply_fill(row, "A-PERP", "-1", "100", "0")
    portfolio.ledger.apply_fill(row, "A-PERP", "3", "90", "0")
    assert state(portfolio, row) == ({"EUR": "4.999999"}, [("A-PERP", "2", "-170")])


REFUSED = {
    "unknown symbol": ("Z-PERP", "1", "100", "0", "Z-PERP"),
    "part of a lot": ("A-PERP", "0.0005", "100", "0", "finer"),
    "not a multiple of the increment": ("B-PERP", "7", "20", "0", "multiple of 5"),
    "not a multiple of the tick": ("B-PERP", "5", "20.3", "0", "multiple of 0.5"),
    "zero quantity": ("A-PERP", "0", "100", "0", "quantity 0"),
    "zero price": ("A-PERP", "1", "0", "0", "price not above 0"),
    "negative price": ("A-PERP", "1", "-1", "0", "price not above 0"),
    "fee finer than the asset": ("C-PERP", "1", "7", "0.0000001", "finer"),
    "exponent": ("A-PERP", "1e3", "100", "0", "decimal string"),
    "no number": ("A-PERP", "1", "", "0", "decimal string"),
    "not a string": ("A-PERP", 1, "100", "0", "decimal string"),
    "a list": ("A-PERP", ["1"], "100", "0", "A-PERP"),
    "cash of 19 digits": ("A-PERP", "999999999999999", "999999999999", "0", "leaves the ledger: .* are the most"),
    "balance of 19 digits": ("A-PERP", "1", "100", "-999999999999999999", "leaves the ledger: .* are the most"),
    "a position of 19 digits": ("A-PERP", "999999999999999999", "0.01", "0", "leaves the ledger: .*99.999 of it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_fill_that_cannot_be_applied_changes_nothing(case: str) -> None:
    symbol, quantity, price, fee, reason = REFUSED[case]
    portfolio = build_portfolio()
    row = portfolio.ledger.open_group("a", "cross")
    portfolio.ledger.apply_transfer(row, "USD", "50")
    portfolio.ledger.apply_fill(row, "A-PERP", "1", "100", "1")
    before = state(portfolio, row)
    with pytest.raises(InputError, match=reason):
        portfolio.ledger.apply_fill(row, symbol, quantity, price, fee)  # type: ignore[arg-type]
    assert state(portfolio, row) == before


@pytest.mark.parametrize(
    ("asset", "amount", "reason"),
    [
        ("GBP", "1", "GBP"),
        ("EUR", "0.0000001", "EUR"),
        ("USD", "x", "USD"),
        ("USD", "999999910000000000", "leaves the ledger: 999999999999999999.999999999999999999 is the most"),
    ],
)
def test_a_transfer_that_cannot_be_applied_changes_nothing(asset: str, amount: str, reason: str) -> None:
    portfolio = build_portfolio()
    row = portfolio.ledger.open_group("a", "cross")
    portfolio.ledger.apply_transfer(row, "USD", "90000000000")
    with pytest.raises(InputError, match=reason):
        portfolio.ledger.apply_transfer(row, asset, amount)
    assert portfolio.balances(row) == {"USD": "90000000000"}


def test_a_symbol_whose_settle_asset_has_not_arrived_takes_no_fill_until_it_has() -> None:
    portfolio = Portfolio(RiskParameters.build([instrument("A-PERP")]))
    row = portfolio.ledger.open_group("a", "cross")
    with pytest.raises(InputError, match="asset USD"):
        portfolio.ledger.apply_fill(row, "A-PERP", "1", "100", "0")
    portfolio.set_parameters(portfolio.parameters.with_record(AssetParameters(asset="USD")))
    portfolio.ledger.apply_fill(row, "A-PERP", "1", "100", "0")
    assert portfolio.positions(row) == [("A-PERP", "1", "-100")]


FILL = st.tuples(
    st.sampled_from(["A-PERP", "C-PERP"]),
    st.integers(-3, 3).filter(bool).map(str),
    st.integers(9000, 11000).map(lambda ticks: format_decimal(Decimal(ticks) / 100)),
    st.integers(-50, 50).map(lambda cents: format_decimal(Decimal(cents) / 100)),
)


@given(st.lists(FILL, max_size=12).flatmap(lambda fills: st.tuples(st.just(fills), st.permutations(fills))))
def test_fills_in_any_order_come_to_the_same(orders: tuple[list[Any], list[Any]]) -> None:
    portfolio = build_portfolio()
    ends = []
    for account, fills in zip("ab", orders, strict=True):
        row = portfolio.ledger.open_group(account, "cross")
        for fill in fills:
            portfolio.ledger.apply_fill(row, *fill)
        columns = portfolio.evaluate(np.array([row]))
        quantities = [(symbol, quantity) for symbol, quantity, _ in portfolio.positions(row)]
        cash = [money(portfolio, [row], asset, {symbol}) for asset, symbol in (("USD", "A-PERP"), ("EUR", "C-PERP"))]
        ends.append((quantities, cash, columns.maintenance.tolist()))
    assert ends[0] == ends[1]


@given(st.lists(FILL, max_size=12), st.sets(st.integers(0, 12)))
def test_a_group_saved_and_loaded_between_any_two_fills_ends_the_same(fills: list[Any], cuts: set[int]) -> None:
    through, restarted = build_portfolio(), build_portfolio()
    row, other = through.ledger.open_group("a", "cross"), restarted.ledger.open_group("a", "cross")
    for index, fill in enumerate(fills):
        through.ledger.apply_fill(row, *fill)
        restarted.ledger.apply_fill(other, *fill)
        if index in cuts:
            saved = state(restarted, other)
            restarted = build_portfolio()
            other = restarted.ledger.open_group("a", "cross")
            restarted.ledger.load_group(other, *saved)
    assert state(through, row) == state(restarted, other)


@given(st.lists(st.tuples(FILL, st.permutations(range(4))), max_size=20))
def test_money_is_conserved(trades: list[Any]) -> None:
    """Both sides of every trade: all that is missing in the end are the fees."""
    portfolio = build_portfolio()
    rows = [portfolio.ledger.open_group(account, "cross") for account in "abcd"]
    fees = {"A-PERP": Decimal(0), "C-PERP": Decimal(0)}
    for (symbol, quantity, price, fee), sides in trades:
        portfolio.ledger.apply_fill(rows[sides[0]], symbol, quantity, price, fee)
        portfolio.ledger.apply_fill(rows[sides[1]], symbol, format_decimal(-Decimal(quantity)), price, fee)
        fees[symbol] += 2 * Decimal(fee)
    assert money(portfolio, rows, "USD", {"A-PERP"}) == -fees["A-PERP"]
    assert money(portfolio, rows, "EUR", {"C-PERP"}) == -fees["C-PERP"]
    open_quantity = sum(Decimal(quantity) for row in rows for _, quantity, _ in portfolio.positions(row))
    assert open_quantity == 0


# --- groups ----------------------------------------------------------------------------------------------------------


def test_groups_are_dropped_and_their_rows_reused() -> None:
    portfolio = build_portfolio()
    cross, isolated = portfolio.ledger.open_group("a", "cross"), portfolio.ledger.open_group("a", "B-PERP")
    other = portfolio.ledger.open_group("b", "cross")
    assert len({cross, isolated, other}) == 3
    rows = portfolio.ledger.rows
    assert (rows.account(isolated), rows.margin(isolated)) == ("a", "B-PERP")
    portfolio.ledger.apply_transfer(isolated, "USD", "1")
    with pytest.raises(InputError, match="not empty"):
        portfolio.ledger.drop_group(isolated)
    portfolio.ledger.apply_transfer(isolated, "USD", "-1")
    portfolio.ledger.drop_group(isolated)
    portfolio.ledger.drop_group(isolated)
    assert [(rows.account(row), rows.margin(row)) for row in (cross, isolated)] == [("a", "cross"), ("", "")]
    assert portfolio.ledger.open_group("c", "cross") == isolated != other
    assert (rows.account(isolated), rows.margin(isolated)) == ("c", "cross")
    assert portfolio.ledger.open_group("d", "cross") not in (cross, isolated, other), "a row is free once"


def test_a_group_is_empty_without_positions_and_balances() -> None:
    portfolio = build_portfolio()
    row = portfolio.ledger.open_group("a", "cross")
    assert portfolio.ledger.is_empty(row)
    portfolio.ledger.apply_fill(row, "A-PERP", "1", "100", "0")
    assert not portfolio.ledger.is_empty(row)
    portfolio.ledger.apply_fill(row, "A-PERP", "-1", "100", "0")
    assert portfolio.ledger.is_empty(row)


@pytest.mark.parametrize(
    ("balances", "positions"),
    [
        ({"GBP": "1"}, []),
        ({"USD": "x"}, []),
        ({"USD": "1000000000000000000"}, []),
        ({}, [("Z-PERP", "1", "0")]),
        ({}, [("A-PERP", "0", "0")]),
        ({}, [("A-PERP", "0.0001", "0")]),
        ({}, [("A-PERP", "1", "0"), ("A-PERP", "2", "0")]),
        ({}, [("A-PERP", "1", "1e5")]),
    ],
)
def test_a_row_that_cannot_be_loaded_changes_nothing(balances: dict[str, str], positions: list[Any]) -> None:
    portfolio = build_portfolio()
    row = portfolio.ledger.open_group("a", "cross")
    portfolio.ledger.load_group(row, {"USD": "5", "BTC": "1"}, [("A-PERP", "2", "-200")])
    before = state(portfolio, row)
    with pytest.raises(InputError):
        portfolio.ledger.load_group(row, balances, positions)
    assert state(portfolio, row) == before


def test_loading_replaces_what_the_row_held() -> None:
    portfolio = build_portfolio()
    row = portfolio.ledger.open_group("a", "cross")
    portfolio.ledger.load_group(row, {"USD": "5", "BTC": "1"}, [("A-PERP", "2", "-200")])
    portfolio.ledger.load_group(row, {"EUR": "0.5"}, [("B-PERP", "-5", "100")])
    assert state(portfolio, row) == ({"EUR": "0.5"}, [("B-PERP", "-5", "100")])


def test_many_rows_and_many_symbols_keep_their_own_books() -> None:
    """Past every initial size, and with chains long enough to be reordered."""
    symbols = [f"S{index}-PERP" for index in range(40)]
    portfolio = Portfolio(RiskParameters.build([AssetParameters(asset="USD"), *map(instrument, symbols)]))
    chosen = random.Random(3)
    expected: dict[tuple[int, str], int] = {}
    rows = [portfolio.ledger.open_group(f"account-{index}", "cross") for index in range(3000)]
    for _ in range(20_000):
        row, symbol, lots = chosen.choice(rows), chosen.choice(symbols), chosen.choice([-2, -1, 1, 2])
        if chosen.random() < 0.3:
            row = rows[0]
        portfolio.ledger.apply_fill(row, symbol, str(lots), "10", "0")
        expected[row, symbol] = expected.get((row, symbol), 0) + lots
    for row in rows:
        held = {symbol: lots for (owner, symbol), lots in expected.items() if owner == row and lots}
        assert portfolio.positions(row) == [
            (symbol, str(held[symbol]), str(-10 * held[symbol])) for symbol in sorted(held)
        ]
    assert sum(len(portfolio.positions(row)) for row in rows) == sum(1 for lots in expected.values() if lots)


# --- parameters ------------------------------------------------------------------------------------------------------


def with_book() -> tuple[Portfolio, int]:
    portfolio = build_portfolio()
    row = portfolio.ledger.open_group("a", "cross")
    portfolio.ledger.load_group(
        row, {"USD": "5.25", "EUR": "0.000001"}, [("A-PERP", "2.5", "-200.123"), ("C-PERP", "1", "-7")]
    )
    return portfolio, row


@pytest.mark.parametrize(
    "record",
    [
        instrument("A-PERP", quantity_increment="0.0001"),
        instrument("A-PERP", quantity_increment="0.5"),
        instrument("A-PERP", quantity_increment="0.25", price_increment="0.3"),
        instrument("A-PERP", price_increment="0.0000000001"),
        AssetParameters(asset="USD", decimals=12),
        AssetParameters(asset="EUR", price_symbol="EUR-USD", decimals=9),
        PolicyParameters(liquidation_buffer_rate="0.1"),
        instrument("NEW-PERP", quantity_increment="0.0000001"),
        instrument("NEW-PERP", price_increment="0.00000001", quantity_increment="0.00000001"),
        instrument("A-PERP", price_increment="100"),
        AssetParameters(asset="USD", decimals=18),
    ],
)
def test_new_increments_leave_the_book_what_it_was(record: Parameter) -> None:
    portfolio, row = with_book()
    before = state(portfolio, row)
    portfolio.set_parameters(RULES.with_record(record))
    assert state(portfolio, row) == before
    view = portfolio.group(row)
    assert {position.symbol: position.quantity for position in view.positions} == {
        "A-PERP": Decimal("2.5"),
        "C-PERP": Decimal(1),
    }
    assert np.all(portfolio.evaluate().decidable)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (instrument("A-PERP", quantity_increment="1"), "A-PERP: positions held are not whole"),
        (instrument("A-PERP", settle="EUR"), "A-PERP has open positions"),
        (AssetParameters(asset="EUR", price_symbol="EUR-USD", decimals=5), "asset EUR"),
        ("instrument:A-PERP", "A-PERP has open positions"),
        ("asset:EUR", "asset EUR is held"),
    ],
)
def test_a_change_the_book_cannot_be_held_in_is_refused_whole(change: Any, reason: str) -> None:
    portfolio, row = with_book()
    before = state(portfolio, row)
    parameters = RULES.without(change) if isinstance(change, str) else RULES.with_record(change)
    with pytest.raises(ParameterError, match=reason):
        portfolio.set_parameters(parameters)
    assert portfolio.parameters is RULES
    assert state(portfolio, row) == before
    portfolio.ledger.apply_fill(row, "A-PERP", "0.001", "100", "0")


def test_a_symbol_without_positions_can_be_removed_and_come_back() -> None:
    portfolio, row = with_book()
    portfolio.set_parameters(RULES.without("instrument:B-PERP"))
    with pytest.raises(InputError, match="B-PERP"):
        portfolio.ledger.apply_fill(row, "B-PERP", "5", "20", "0")
    portfolio.set_parameters(RULES)
    portfolio.ledger.apply_fill(row, "B-PERP", "5", "20", "0")
    assert ("B-PERP", "5", "-100") in portfolio.positions(row)


def test_amounts_written_under_finer_rules_can_still_be_loaded() -> None:
    portfolio = build_portfolio()
    row = portfolio.ledger.open_group("a", "cross")
    portfolio.ledger.load_group(row, {"USD": "1.0000000001"}, [("A-PERP", "1", "-0.00000000001")])
    assert state(portfolio, row) == ({"USD": "1.0000000001"}, [("A-PERP", "1", "-0.00000000001")])
    portfolio.ledger.apply_fill(row, "A-PERP", "-1", "100", "0.5")
    assert state(portfolio, row) == ({"USD": "100.50000000009"}, [])


# --- marks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("price", ["0", "-1", "x", Decimal("NaN"), Decimal(0)])
def test_a_mark_that_is_no_price_is_refused(price: str | Decimal) -> None:
    portfolio = build_portfolio()
    with pytest.raises(InputError):
        portfolio.set_mark("A-PERP", price, True)
    assert portfolio.marks["A-PERP"] == 100


def test_a_row_is_decidable_only_while_every_mark_it_needs_is_live() -> None:
    portfolio = build_portfolio(marks={})
    rows = [portfolio.ledger.open_group(account, "cross") for account in "abcde"]
    portfolio.ledger.apply_fill(rows[0], "A-PERP", "1", "100", "0")
    portfolio.ledger.apply_fill(rows[1], "C-PERP", "1", "7", "0")
    portfolio.ledger.apply_transfer(rows[2], "BTC", "1")
    portfolio.ledger.apply_transfer(rows[3], "USD", "1")
    assert portfolio.evaluate().decidable.tolist() == [False, False, True, True, True]
    assert portfolio.evaluate().equity[2] == 0, "an asset that never had a price counts for nothing and needs no mark"
    portfolio.set_mark("A-PERP", "100", True)
    assert portfolio.evaluate().decidable.tolist() == [True, False, True, True, True]
    portfolio.set_mark("C-PERP", "7", True)
    assert portfolio.evaluate().decidable.tolist() == [True, False, True, True, True]
    portfolio.set_mark("EUR-USD", "1.1", True)
    assert portfolio.evaluate().decidable.all()
    portfolio.set_live("A-PERP", False)
    assert portfolio.evaluate(np.array([2, 3, 0])).decidable.tolist() == [False, True, False]
    portfolio.set_live("A-PERP", True)
    portfolio.set_mark("EUR-USD", "1.2", False)
    assert portfolio.evaluate().decidable.tolist() == [True, False, True, True, True]


def test_rows_with_a_symbol_are_those_whose_value_it_moves() -> None:
    portfolio = build_portfolio()
    rows = [portfolio.ledger.open_group(account, "cross") for account in "abcde"]
    portfolio.ledger.apply_fill(rows[0], "A-PERP", "1", "100", "0")
    portfolio.ledger.apply_fill(rows[1], "C-PERP", "1", "7", "0")
    portfolio.ledger.apply_transfer(rows[2], "BTC", "1")
    portfolio.ledger.apply_transfer(rows[3], "EUR", "-1")
    assert portfolio.rows_with(["A-PERP"]).tolist() == [0, 2]
    assert portfolio.rows_with(["EUR-USD"]).tolist() == [1, 3]
    assert portfolio.rows_with({"C-PERP", "B-PERP"}).tolist() == [1]
    assert portfolio.rows_with(["unheard-of"]).tolist() == []


# --- screens ---------------------------------------------------------------------------------------------------------


def load(portfolio: Portfolio, account: str, book: Book) -> int:
    row = portfolio.ledger.open_group(account, "cross")
    portfolio.ledger.load_group(
        row,
        {asset: format_decimal(amount) for asset, amount in book.group.balances.items()},
        [(p.symbol, format_decimal(p.quantity), format_decimal(p.cash)) for p in book.group.positions],
    )
    return row


def assert_within_error(portfolio: Portfolio, rows: list[int], columns: Columns) -> int:
    """Every row's screen is within its error of the exact verdict; the number of liquidatable rows."""
    liquidatable = 0
    for index, row in enumerate(rows):
        health = evaluate(portfolio.group(row), portfolio.marks, portfolio.parameters, stale=portfolio.stale)
        equity, maintenance, debt, error = (
            Decimal(float(column[index]))
            for column in (columns.equity, columns.maintenance, columns.debt, columns.error)
        )
        assert columns.decidable[index] == (not health.bounds)
        assert columns.bounded[index] or not health.bounded
        with localcontext(EXACT):
            off = abs(equity - health.equity) + abs(maintenance - health.maintenance_margin) + abs(debt - health.debt)
            assert off <= error
            if health.liquidatable:
                liquidatable += 1
                assert columns.equity[index] - columns.maintenance[index] < columns.error[index]
    return liquidatable


@settings(max_examples=examples(100))
@given(books())
def test_the_screen_of_any_book_is_within_its_error(book: Book) -> None:
    portfolio = Portfolio(book.parameters)
    for symbol, mark in book.marks.items():
        portfolio.set_mark(symbol, mark, True)
    row = load(portfolio, "a", book)
    assert portfolio.group(row).positions == book.group.positions
    assert_within_error(portfolio, [row], portfolio.evaluate())


@settings(max_examples=examples(400))
@given(
    st.lists(books(positions_min=0), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from([*SYMBOLS, "EUR-USD"]), st.sampled_from(["live", "stale", "never"])),
    st.sampled_from(["0.3", "2", "9"]),
)
def test_the_screen_of_what_is_not_live_is_within_its_error_of_the_exact_bounds(
    group_books: list[Book], states: dict[str, str], bound: str
) -> None:
    """In a full pass and in one over some rows; a position that nothing bounds is bounded in no screen."""
    parameters = RiskParameters.build(
        record if isinstance(record, PolicyParameters) else msgspec.structs.replace(record, stale_bound=bound)
        for record in group_books[0].parameters.records.values()
    )
    portfolio = Portfolio(parameters)
    rows = []
    for number, book in enumerate(group_books):
        row = portfolio.ledger.open_group("ab"[number % 2], f"group-{number}")
        lots = {name: rule.quantity_increment for name, rule in parameters.instruments.items()}
        positions = [
            (p.symbol, format_decimal(p.quantity // lots[p.symbol] * lots[p.symbol]), format_decimal(p.cash))
            for p in book.group.positions
            if p.quantity // lots[p.symbol]
        ]
        portfolio.ledger.load_group(row, {a: format_decimal(q) for a, q in book.group.balances.items()}, positions)
        rows.append(row)
    for symbol, mark in group_books[0].marks.items():
        if states.get(symbol) != "never":
            portfolio.set_mark(symbol, mark, states.get(symbol) != "stale")
    assert_within_error(portfolio, rows, portfolio.evaluate())
    assert_within_error(portfolio, rows[-1:], portfolio.evaluate(np.array(rows[-1:])))


def test_thousands_of_books_are_screened_within_their_error_at_any_marks() -> None:
    chosen = random.Random(11)
    portfolio = build_portfolio()
    rows = []
    for index in range(3000):
        row = portfolio.ledger.open_group(f"account-{index}", "cross")
        rows.append(row)
        for asset, places in (("USD", 8), ("EUR", 6), ("BTC", 8)):
            if chosen.random() < 0.7:
                amount = chosen.randint(-(10 ** chosen.randint(1, 13)), 10 ** chosen.randint(1, 13))
                portfolio.ledger.apply_transfer(row, asset, format_decimal(Decimal(amount).scaleb(-places)))
        for symbol, lot in (("A-PERP", 1), ("B-PERP", 5000), ("C-PERP", 1)):
            for _ in range(chosen.randint(0, 2)):
                lots = chosen.choice([-1, 1]) * chosen.randint(1, 10 ** chosen.randint(1, 6)) * lot
                price = Decimal(chosen.randint(1, 400)) / 2
                portfolio.ledger.apply_fill(
                    row, symbol, format_decimal(Decimal(lots).scaleb(-3)), format_decimal(price), "0.01"
                )
    total = 0
    for _ in range(3):
        for symbol in MARKS:
            portfolio.set_mark(symbol, format_decimal(Decimal(chosen.randint(1, 10**9)).scaleb(-6)), True)
        columns = portfolio.evaluate()
        total += assert_within_error(portfolio, rows, columns)
        some = np.array(chosen.sample(rows, 500))
        part = portfolio.evaluate(some)
        assert_within_error(portfolio, some.tolist(), part)
        assert part.decidable.all()
    assert 300 < total < 8700


def test_many_rows_are_picked_out_of_a_full_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    portfolio, row = with_book()
    rows = np.array([portfolio.ledger.open_group("b", "cross"), row])
    portfolio.ledger.load_group(int(rows[0]), {"BTC": "-3"}, [("B-PERP", "-10", "210")])
    picked = portfolio.evaluate(rows)
    monkeypatch.setattr("streams.margin.screens._SPARSE_ROWS", 0)
    passed = portfolio.evaluate(rows)
    for name in ("equity", "maintenance", "error", "decidable", "debt", "bounded"):
        np.testing.assert_allclose(getattr(picked, name), getattr(passed, name), rtol=1e-14)
    assert picked.equity[0] < 0 < picked.equity[1]


def test_the_error_is_small_beside_the_book() -> None:
    portfolio, row = with_book()
    columns = portfolio.evaluate(np.array([row]))
    assert 0 < columns.error[0] < 1e-11 * 1000


def test_no_rows_are_screened_as_no_rows() -> None:
    columns = build_portfolio().evaluate()
    assert {getattr(columns, field.name).size for field in fields(columns)} == {0}
    portfolio, _ = with_book()
    assert portfolio.evaluate(np.empty(0, dtype=np.int64)).equity.dtype == np.float64


def test_a_reused_slot_tells_nothing_of_its_former_owner() -> None:
    portfolio, row = with_book()
    other = portfolio.ledger.open_group("b", "cross")
    portfolio.set_live("C-PERP", False)
    portfolio.ledger.load_group(row, {}, [])
    assert portfolio.evaluate().decidable.all()
    portfolio.ledger.apply_fill(other, "A-PERP", "1", "100", "0")
    columns = portfolio.evaluate()
    assert np.all(np.abs(columns.equity) <= columns.error)
    assert np.all(columns.error < 1e-9)
