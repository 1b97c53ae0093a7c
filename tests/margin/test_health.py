"""The exact verdict: what equity, margins, liquidation prices and bankruptcy prices must fulfil on any book."""

from dataclasses import replace
from decimal import Decimal, localcontext
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.parameters import AssetParameters, CollateralTier, OracleParameters, PolicyParameters
from streams.errors import InputError
from streams.margin.fixed_point import EXACT
from streams.margin.health import (
    LIQUIDATION_PRICE_PLACES,
    bankruptcy_prices,
    evaluate,
    liquidation_price,
    price_of,
    target_of,
)
from streams.margin.parameters import RiskParameters
from tests.margin.conftest import (
    SYMBOLS,
    Book,
    books,
    closed,
    collateral_value,
    decimals,
    group,
    left_after_fees,
    rules,
    value_less_margin,
)
from tests.properties import examples

LAST_PLACE = Decimal(1).scaleb(-LIQUIDATION_PRICE_PLACES)
MARK = decimals("0.01", "5000", 2)
PRICED = st.sampled_from([*SYMBOLS, "EUR-USD"])


@given(books(), PRICED, MARK, MARK)
def test_value_less_margin_is_concave_in_every_mark(book: Book, symbol: str, first: Decimal, second: Decimal) -> None:
    with localcontext(EXACT):
        middle = (first + second) * Decimal("0.5")
        low, high, between = (value_less_margin(book, book.at(symbol, mark)) for mark in (first, second, middle))
        assert 2 * between >= low + high


@settings(max_examples=examples(300))
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


@given(books(positions_min=2), PRICED)
def test_the_liquidation_price_does_not_depend_on_the_symbols_own_mark(book: Book, symbol: str) -> None:
    others = {name: mark for name, mark in book.marks.items() if name != symbol}
    assert liquidation_price(book.group, symbol, others, book.parameters) == liquidation_price(
        book.group, symbol, book.marks, book.parameters
    )


@settings(max_examples=examples(300))
@given(books())
def test_closing_everything_at_the_bankruptcy_prices_costs_the_fund_nothing(book: Book) -> None:
    """Counted in full, what is left is what the haircuts were allotted, and no more than the rounding of the prices."""
    prices = bankruptcy_prices(evaluate(book.group, book.marks, book.parameters), book.marks, book.parameters)
    health = evaluate(book.group, book.marks, book.parameters)
    with localcontext(EXACT):
        quantities = {position.symbol: abs(position.quantity) for position in book.group.positions}
        left = closed(book, quantities, prices, fees=True)
        assert not left.positions
        counted = {a: q for a, q in book.group.balances.items() if q < 0 or book.parameters.assets[a].collateral}
        haircut = _in_full(book, counted) - collateral_value(book.group.balances, book.marks, book.parameters)
        margins = sum((part.maintenance_margin for part in health.positions), Decimal(0))
        worth = _in_full(book, left.balances) - _in_full(book, book.group.balances) + _in_full(book, counted)
        # what is left, and what of it the collateral was allotted, over the common denominator of both
        rest = worth * (margins + haircut) - max(left_after_fees(book, health), Decimal(0)) * haircut
        rounding = sum(
            amount
            * book.parameters.instruments[symbol].price_increment
            * (1 + book.parameters.instruments[symbol].fees)
            * price_of(book.parameters.assets[book.parameters.instruments[symbol].settle_asset], book.marks)
            for symbol, amount in quantities.items()
        )
        assert haircut >= 0
        assert health.unweighted_equity == health.equity + haircut
        assert 0 <= rest < rounding * (margins + haircut)
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
    assert health.liquidatable == (health.equity < health.maintenance_margin)
    assert health.maintenance_margin <= health.initial_margin
    assert health.health_ratio is not None
    with localcontext(EXACT):
        needed, ratio = health.maintenance_margin + health.debt, health.health_ratio
        assert 0 <= health.equity + health.debt - ratio * needed < needed * Decimal("1e-8")
        assert (ratio < 1) == health.liquidatable
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


def test_debt_without_a_position_is_liquidatable_when_it_is_not_covered() -> None:
    health = evaluate(group({"USD": "-5"}), {}, rules())
    assert (health.equity, health.debt, health.health_ratio) == (Decimal(-5), Decimal(5), Decimal(0))
    assert health.liquidatable
    assert liquidation_price(group({"USD": "-5"}), "X-PERP", {}, rules()) is None
    nothing = evaluate(group({"USD": "5"}), {}, rules())
    assert (nothing.liquidatable, nothing.health_ratio, nothing.debt) == (False, None, Decimal(0))


def coin(weight: str = "0.9", liability_weight: str = "1", **fields: Any) -> AssetParameters:
    return AssetParameters(
        asset="BTC",
        price_symbol="BTC-USD",
        collateral_tiers=(CollateralTier(quantity_floor="0", weight=weight),),
        liability_weight=liability_weight,
        **fields,
    )


def test_collateral_that_just_covers_a_debt_is_safe_and_a_cent_less_is_not() -> None:
    """1 BTC at weight 0.9 against 90 owed: at 100 equity and maintenance are 0, and 0 is not below 0."""
    parameters = rules(more=(coin(),))
    at_edge = evaluate(group({"BTC": "1", "USD": "-90"}), {"BTC-USD": Decimal(100)}, parameters)
    assert (at_edge.equity, at_edge.maintenance_margin, at_edge.health_ratio) == (Decimal(0), Decimal(0), Decimal(1))
    assert not at_edge.liquidatable
    below = evaluate(group({"BTC": "1", "USD": "-90"}), {"BTC-USD": Decimal("99.99")}, parameters)
    assert below.liquidatable
    assert below.health_ratio == Decimal("0.9999")
    assert liquidation_price(group({"BTC": "1", "USD": "-90"}), "BTC-USD", {}, parameters) == 100


def test_margin_and_debt_together_make_one_ratio() -> None:
    """Equity 100 - 80 + 10 = 30 against a margin of 5 and a debt of 80: (30 + 80) / (5 + 80)."""
    parameters = rules(more=(coin("1"),), buffer="0.01")
    held = group({"BTC": "1", "USD": "-80"}, ("X-PERP", "1", "90"))
    health = evaluate(held, {"BTC-USD": Decimal(100), "X-PERP": Decimal(100)}, parameters)
    assert (health.equity, health.maintenance_margin, health.debt) == (Decimal(30), Decimal(5), Decimal(80))
    assert health.health_ratio == Decimal("1.29411764")
    assert target_of(health, parameters) == 5 + Decimal("0.01") * (100 + 80)


@pytest.mark.parametrize(("asset", "amount"), [("BTC", "5"), ("NEW", "5"), ("NEW", "-5")])
def test_a_balance_that_counts_for_nothing_needs_no_mark(asset: str, amount: str) -> None:
    """BTC at weight 0 has no live mark, NEW never had one."""
    parameters = rules(more=(coin("0"), AssetParameters(asset="NEW", price_symbol="NEW-USD")))
    marks = {"X-PERP": Decimal(100), "BTC-USD": Decimal(7)}
    plain = group({"USD": "4"}, ("X-PERP", "1", "100"))
    more = replace(plain, balances={**plain.balances, asset: Decimal(amount)})
    stale = {"BTC-USD", "NEW-USD"}
    assert evaluate(more, marks, parameters, stale=stale) == evaluate(plain, marks, parameters)


def test_a_debt_in_an_asset_without_weight_counts() -> None:
    parameters = rules(more=(coin("0", "1.1"),))
    health = evaluate(group({"USD": "100", "BTC": "-1"}), {"BTC-USD": Decimal(100)}, parameters)
    assert (health.equity, health.debt, health.unweighted_equity) == (Decimal(-10), Decimal(110), Decimal(0))
    assert health.liquidatable


def test_a_book_between_two_prices_gives_the_one_on_its_losing_side() -> None:
    """0.9 BTC of collateral and a short of 0.9 in tiers of 5 % and 30 %: too low a mark cannot carry the debt of 100,
    too high a one not the margin. A short names the upper one, a long of the same sign of slope the lower one."""
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


# --- marks that are not live -----------------------------------------------------------------------------------------


def bounded_at(book: Book, bound: str) -> RiskParameters:
    """The rules of ``book`` with one bound for everything."""
    records = [
        record if isinstance(record, PolicyParameters) else msgspec.structs.replace(record, stale_bound=bound)
        for record in book.parameters.records.values()
        if not isinstance(record, OracleParameters)
    ]
    return RiskParameters.build(records)


@settings(max_examples=examples(400))
@given(
    books(),
    st.sets(PRICED, min_size=1),
    st.sampled_from(["0.2", "0.5", "2"]),
    st.lists(st.dictionaries(PRICED, decimals("0", "1", 3), min_size=4, max_size=4), min_size=1, max_size=6),
)
def test_bounds_bound_at_every_price_inside_the_box(
    book: Book, stale: set[str], bound: str, points: list[dict[str, Decimal]]
) -> None:
    """Equity less maintenance is nowhere above the bounded figure, and so is the unweighted equity."""
    parameters = bounded_at(book, bound)
    best = evaluate(book.group, book.marks, parameters, stale=stale)
    assert best.bounded
    assert best.bounds.keys() <= stale
    for point in points:
        with localcontext(EXACT):
            moved = {
                symbol: max(book.marks[symbol] * (1 + Decimal(bound)) * part, Decimal("1e-18"))
                for symbol, part in point.items()
                if symbol in stale
            }
            health = evaluate(book.group, {**book.marks, **moved}, parameters)
            slack = Decimal("1e-9")  # a mark of 10**-18 stands for one of 0
            assert health.equity - health.maintenance_margin <= best.equity - best.maintenance_margin + slack
            assert health.unweighted_equity <= best.unweighted_equity + slack
            assert health.liquidatable or not best.liquidatable


@given(books(), st.sets(PRICED))
def test_what_is_stale_but_not_needed_changes_nothing(book: Book, stale: set[str]) -> None:
    health = evaluate(book.group, book.marks, book.parameters, stale=stale)
    if not health.bounds:
        assert health == evaluate(book.group, book.marks, book.parameters)
    else:
        assert not health.bounds.keys() - stale


def test_a_long_that_never_had_a_price_is_bounded_by_nothing_and_a_short_by_its_cash() -> None:
    parameters = rules().with_record(rules(symbol="NEW").records["instrument:NEW"])
    marks = {"X-PERP": Decimal(100)}
    long = group({"USD": "4"}, ("X-PERP", "1", "100"), ("NEW", "0.001", "1"))
    health = evaluate(long, marks, parameters, stale={"NEW"})
    assert (health.bounded, health.liquidatable) == (False, False)
    for entry, liquidatable in (("900", True), ("1100", False)):
        short = group({"USD": "4"}, ("X-PERP", "1", "100"), ("NEW", "-0.001", entry))
        health = evaluate(short, marks, parameters, stale={"NEW"})
        assert (health.bounded, health.liquidatable) == (True, liquidatable)
        assert health.equity == 4 + Decimal(entry) / 1000
    with pytest.raises(InputError, match="symbol NEW: no mark"):
        evaluate(long, marks, parameters)


def test_dust_in_a_halted_symbol_shields_nobody_and_its_bound_is_named() -> None:
    parameters = rules().with_record(rules(symbol="DUST", stale_bound="3").records["instrument:DUST"])
    marks = {"X-PERP": Decimal(100), "DUST": Decimal(1)}
    for cash, liquidatable in (("4.9", True), ("4.997", False)):
        held = group({"USD": cash}, ("X-PERP", "1", "100"), ("DUST", "0.001", "1"))
        health = evaluate(held, marks, parameters, stale={"DUST"})
        assert (health.liquidatable, health.bounds) == (liquidatable, {"DUST": Decimal(3)})
        assert health.equity == Decimal(cash) + Decimal("0.003")
        assert health.maintenance_margin == 5
