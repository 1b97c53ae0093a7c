"""The exact verdict: what equity, margins, liquidation prices and bankruptcy prices must fulfil on any book."""

from dataclasses import replace
from decimal import Decimal, localcontext

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streams.errors import InputError
from streams.margin.fixed_point import EXACT
from streams.margin.health import (
    LIQUIDATION_PRICE_PLACES,
    bankruptcy_prices,
    collateral_value,
    evaluate,
    liquidation_price,
    price_of,
)
from tests.margin.conftest import SYMBOLS, Book, books, closed, decimals, group, rules, value_less_margin

LAST_PLACE = Decimal(1).scaleb(-LIQUIDATION_PRICE_PLACES)
MARK = decimals("0.01", "5000", 2)
PRICED = st.sampled_from([*SYMBOLS, "EUR-USD"])


@given(books(), PRICED, MARK, MARK)
def test_value_less_margin_is_concave_in_every_mark(book: Book, symbol: str, first: Decimal, second: Decimal) -> None:
    with localcontext(EXACT):
        middle = (first + second) * Decimal("0.5")
        low, high, between = (value_less_margin(book, book.at(symbol, mark)) for mark in (first, second, middle))
        assert 2 * between >= low + high


@settings(max_examples=300)
@given(books(), PRICED)
def test_the_liquidation_price_is_where_the_verdict_flips(book: Book, symbol: str) -> None:
    price = liquidation_price(book.group, symbol, book.marks, book.parameters)
    assume(price is not None and price > LAST_PLACE)
    assert price is not None
    with localcontext(EXACT):
        beside = [price - LAST_PLACE, price + LAST_PLACE]
        at_price, below, above = (
            evaluate(book.group, book.at(symbol, mark), book.parameters).liquidatable for mark in (price, *beside)
        )
    assert not at_price
    assert below or above


@given(books(), PRICED, st.lists(MARK, min_size=2, max_size=8))
def test_without_a_liquidation_price_no_mark_changes_the_verdict(book: Book, symbol: str, marks: list[Decimal]) -> None:
    assume(liquidation_price(book.group, symbol, book.marks, book.parameters) is None)
    verdicts = {evaluate(book.group, book.at(symbol, mark), book.parameters).liquidatable for mark in marks}
    assert len(verdicts) == 1


@given(books(positions=2), PRICED)
def test_the_liquidation_price_does_not_depend_on_the_symbols_own_mark(book: Book, symbol: str) -> None:
    others = {name: mark for name, mark in book.marks.items() if name != symbol}
    assert liquidation_price(book.group, symbol, others, book.parameters) == liquidation_price(
        book.group, symbol, book.marks, book.parameters
    )


@settings(max_examples=300)
@given(books())
def test_closing_everything_at_the_bankruptcy_prices_costs_the_fund_nothing(book: Book) -> None:
    """Counted in full, without haircuts, what is left is not negative, and no more than the rounding of the prices."""
    prices = bankruptcy_prices(book.group, book.marks, book.parameters)
    health = evaluate(book.group, book.marks, book.parameters)
    with localcontext(EXACT):
        quantities = {position.symbol: abs(position.quantity) for position in book.group.positions}
        left = closed(book, quantities, prices, fees=False)
        assert not left.positions
        haircut = _in_full(book, book.group.balances) - collateral_value(
            book.group.balances, book.marks, book.parameters
        )
        rest = _in_full(book, left.balances) - haircut
        rounding = sum(
            amount
            * book.parameters.instruments[symbol].price_increment
            * price_of(book.parameters.assets[book.parameters.instruments[symbol].settle_asset], book.marks)
            for symbol, amount in quantities.items()
        )
        assert haircut >= 0
        assert 0 <= rest < rounding
    assert prices.keys() == {part.symbol for part in health.positions}


def _in_full(book: Book, balances: dict[str, Decimal] | object) -> Decimal:
    assert isinstance(balances, dict)
    return sum(
        (amount * price_of(book.parameters.assets[asset], book.marks) for asset, amount in balances.items()),
        Decimal(0),
    )


@given(books())
def test_a_group_is_liquidatable_only_strictly_below_a_margin(book: Book) -> None:
    health = evaluate(book.group, book.marks, book.parameters)
    assert health.liquidatable == (health.maintenance_margin > 0 and health.equity < health.maintenance_margin)
    assert health.maintenance_margin <= health.initial_margin
    assert health.health_ratio is not None
    with localcontext(EXACT):
        assert health.equity - health.health_ratio * health.maintenance_margin >= 0
        assert (health.health_ratio < 1) == health.liquidatable
        alone = sum(part.maintenance_margin for part in health.positions)
        if book.parameters.policy.portfolio_margin_accounts:
            assert health.maintenance_margin <= alone
        else:
            assert health.maintenance_margin == alone


def test_equal_equity_and_margin_is_safe_and_a_cent_less_is_not() -> None:
    parameters = rules(tiers=((0, "0.1", "0.2"),))
    marks = {"X-PERP": Decimal(100)}
    assert not evaluate(group({"USD": "10"}, ("X-PERP", "1", "100")), marks, parameters).liquidatable
    assert evaluate(group({"USD": "9.99"}, ("X-PERP", "1", "100")), marks, parameters).liquidatable


def test_debt_without_a_position_has_no_margin_to_fall_below() -> None:
    health = evaluate(group({"USD": "-5"}), {}, rules())
    assert (health.equity, health.liquidatable, health.health_ratio) == (-5, False, None)
    assert liquidation_price(group({"USD": "-5"}), "X-PERP", {}, rules()) is None


def test_a_book_between_two_prices_gives_the_one_on_its_losing_side() -> None:
    """0.9 BTC of collateral and a short of 0.9 in tiers of 5 % and 30 %: too low a mark cannot carry the debt of 100,
    too high a one not the margin. A short names the upper one, a long of the same sign of slope the lower one."""
    from schemas.parameters import AssetParameters

    parameters = rules(
        tiers=((0, "0.05", "0.1"), (1000, "0.3", "0.6")), more=(AssetParameters(asset="BTC", price_symbol="X-PERP"),)
    )
    short = group({"BTC": "1", "USD": "-910"}, ("X-PERP", "-0.9", "1000"))
    marks = {"X-PERP": Decimal(1000)}
    upper = liquidation_price(short, "X-PERP", marks, parameters)
    assert upper is not None
    assert upper > 1000
    lower = next(
        Decimal(mark)
        for mark in range(1, 1000)
        if not evaluate(short, {"X-PERP": Decimal(mark)}, parameters).liquidatable
    )
    assert lower > 1
    assert evaluate(short, {"X-PERP": upper + 1}, parameters).liquidatable


def test_a_liquidation_price_is_exact_beyond_the_digits_of_the_default_context() -> None:
    """A root of 34 digits: cut at a rounded one, the search would come back to the same mark for ever."""
    parameters = rules(tiers=((0, "0.000001", "1"), ("0.5", "0.99", "1")))
    book = group({"USD": "-0.030000000000000006"}, ("X-PERP", "2000000", "5000000000"))
    price = liquidation_price(book, "X-PERP", {}, parameters)
    assert price is not None
    with localcontext(EXACT):
        beside = price - LAST_PLACE
    assert not evaluate(book, {"X-PERP": price}, parameters).liquidatable
    assert evaluate(book, {"X-PERP": beside}, parameters).liquidatable


def test_what_is_missing_is_named() -> None:
    parameters = rules()
    book = group({"USD": "10"}, ("X-PERP", "1", "100"))
    with pytest.raises(InputError, match="symbol X-PERP: no mark"):
        evaluate(book, {}, parameters)
    with pytest.raises(InputError, match="not above zero"):
        evaluate(book, {"X-PERP": Decimal(0)}, parameters)
    with pytest.raises(InputError, match="symbol Y-PERP"):
        evaluate(group({}, ("Y-PERP", "1", "100")), {}, parameters)
    with pytest.raises(InputError, match="asset EUR"):
        evaluate(group({"EUR": "1"}), {}, parameters)


@given(books())
def test_a_zero_balance_needs_no_mark(book: Book) -> None:
    empty = replace(book.group, balances={**book.group.balances, "BTC": Decimal(0)})
    without = replace(book.group, balances={a: q for a, q in book.group.balances.items() if a != "BTC"})
    assert evaluate(empty, book.marks, book.parameters) == evaluate(without, book.marks, book.parameters)
