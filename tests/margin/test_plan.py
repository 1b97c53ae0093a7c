"""Liquidation plans: the least that restores the target, in whole increments, never more than the position."""

from dataclasses import replace
from decimal import Decimal, localcontext
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.parameters import AssetParameters, CollateralTier, PolicyParameters
from streams.margin.conversion import Conversion, Converting
from streams.margin.fixed_point import EXACT
from streams.margin.group import Group
from streams.margin.health import bankruptcy_prices, collateral_value, evaluate
from streams.margin.parameters import RiskParameters
from streams.margin.plan import ORDERS_MAX, Plan, make_plan
from streams.margin.reduction import _Reducing
from tests.margin.conftest import Book, books, closed, decimals, group, rules, underwater

MARKS = {"X-PERP": Decimal(100), "Y-PERP": Decimal(100)}


def totals(plan: Plan) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for order in plan.orders:
        found[order.symbol] = found.get(order.symbol, Decimal(0)) + order.quantity
    return found


def shortage(book: Book, after: Group) -> Decimal:
    """Target less equity, from the verdict alone."""
    health = evaluate(after, book.marks, book.parameters)
    with localcontext(EXACT):
        buffer = sum((part.notional for part in health.positions), Decimal(0))
        return health.maintenance_margin + buffer * book.parameters.policy.liquidation_buffer_rate - health.equity


def after_closing(book: Book, quantities: dict[str, Decimal]) -> Group:
    return closed(book, quantities, book.marks, fees=True)


@settings(max_examples=300)
@given(underwater(plain=True))
def test_a_reduction_restores_the_target_and_one_increment_less_does_not(book: Book) -> None:
    assume(evaluate(book.group, book.marks, book.parameters).equity > 0)
    plan = make_plan(book.group, book.marks, book.parameters)
    assume(plan.stage == "reduce")
    quantities = totals(plan)
    assert shortage(book, after_closing(book, quantities)) <= 0

    def one_less(symbol: str) -> dict[str, Decimal]:
        return {**quantities, symbol: quantities[symbol] - book.parameters.instruments[symbol].quantity_increment}

    assert any(shortage(book, after_closing(book, one_less(symbol))) > 0 for symbol in quantities)


@given(underwater())
def test_a_plan_of_any_book_restores_the_target_or_closes_everything(book: Book) -> None:
    health = evaluate(book.group, book.marks, book.parameters)
    plan = make_plan(book.group, book.marks, book.parameters)
    everything = {position.symbol: abs(position.quantity) for position in book.group.positions}
    closes = {symbol: amount for symbol, amount in totals(plan).items() if symbol in everything}
    if plan.stage == "reduce":
        assert shortage(book, after_closing(book, closes)) <= 0
        assert totals(plan) == closes != everything
    else:
        assert closes == everything
        assert (plan.stage == "takeover") == (health.equity <= 0)
        if closes != totals(plan):
            assert shortage(book, after_closing(book, closes)) > 0


@given(books())
def test_orders_close_positions_in_whole_increments_at_their_bankruptcy_price(book: Book) -> None:
    plan = make_plan(book.group, book.marks, book.parameters)
    prices = bankruptcy_prices(book.group, book.marks, book.parameters)
    sides = {position.symbol: position.quantity for position in book.group.positions}
    assert plan.orders or shortage(book, book.group) <= 0 or not sides
    for order in plan.orders:
        rule = book.parameters.instruments[order.symbol]
        long = sides[order.symbol] > 0
        assert (order.position_side, order.order_side) == (("long", "sell") if long else ("short", "buy"))
        assert order.limit_price == max(prices[order.symbol], rule.price_increment) > 0
        assert order.mark_price == book.marks[order.symbol]
        assert order.quantity % rule.quantity_increment == 0
    assert all(0 < amount <= abs(sides[symbol]) for symbol, amount in totals(plan).items())


def test_a_group_with_nothing_short_gets_no_orders() -> None:
    assert make_plan(group({"USD": "100"}, ("X-PERP", "1", "100")), MARKS, rules()) == Plan("reduce", ())


def test_a_fee_that_eats_what_a_close_frees_closes_everything() -> None:
    parameters = rules(liquidation_fee="0.03", insurance_fee="0.02")
    plan = make_plan(group({"USD": "4"}, ("X-PERP", "1", "100")), MARKS, parameters)
    assert (plan.stage, totals(plan)) == ("close", {"X-PERP": Decimal(1)})


@pytest.mark.parametrize("equity", ["0", "-5"])
def test_a_group_without_equity_is_taken_over_whole_and_unsliced(equity: str) -> None:
    parameters = rules(max_order_notional="10")
    plan = make_plan(group({"USD": equity}, ("X-PERP", "-3", "100")), MARKS, parameters)
    assert plan.stage == "takeover"
    assert [(order.order_side, order.quantity) for order in plan.orders] == [("buy", 3)]


def test_a_short_too_far_under_water_is_taken_over_at_the_least_price_there_is() -> None:
    plan = make_plan(group({"USD": "-500"}, ("X-PERP", "-1", "100")), MARKS, rules())
    assert plan.orders[0].limit_price == Decimal("0.01")


def test_no_order_is_larger_than_the_limit_and_together_they_are_the_plan() -> None:
    whole = make_plan(group({"USD": "8"}, ("X-PERP", "2", "100")), MARKS, rules())
    sliced = make_plan(group({"USD": "8"}, ("X-PERP", "2", "100")), MARKS, rules(max_order_notional="7.05"))
    assert totals(whole) == totals(sliced) == {"X-PERP": Decimal("0.4")}
    assert [order.quantity for order in sliced.orders] == [Decimal("0.07")] * 5 + [Decimal("0.05")]


def test_a_limit_below_one_increment_still_lets_one_increment_through() -> None:
    plan = make_plan(group({"USD": "8"}, ("X-PERP", "2", "100")), MARKS, rules(max_order_notional="0.01"))
    assert {order.quantity for order in plan.orders} == {Decimal("0.001")}
    assert len(plan.orders) == 400


def test_a_plan_has_a_bounded_number_of_orders() -> None:
    plan = make_plan(group({"USD": "1"}, ("X-PERP", "20", "100")), MARKS, rules(max_order_notional="0.1"))
    assert len(plan.orders) == ORDERS_MAX


@given(st.integers(1, 999))
def test_dust_below_an_increment_can_be_closed(thousandths: int) -> None:
    dust = Decimal(thousandths).scaleb(-6)
    book = group({"USD": format(dust, "f")}, ("X-PERP", format(dust, "f"), "100"))
    plan = make_plan(book, MARKS, rules(quantity_increment="0.001"))
    assert (plan.stage, totals(plan)) == ("close", {"X-PERP": dust})


def test_the_position_that_frees_most_margin_for_its_fee_is_closed_first() -> None:
    cheap, dear = rules(tiers=((0, "0.05", "0.1"),)), rules(tiers=((0, "0.1", "0.2"),), symbol="Y-PERP")
    parameters = cheap.with_record(dear.records["instrument:Y-PERP"])
    book = group({"USD": "14"}, ("X-PERP", "1", "100"), ("Y-PERP", "1", "100"))
    assert totals(make_plan(book, MARKS, parameters)) == {"Y-PERP": Decimal("0.1")}
    fee = replace_fee(parameters, "Y-PERP", "0.04")
    assert totals(make_plan(book, MARKS, fee)) == {"X-PERP": Decimal("0.2")}


def replace_fee(parameters: RiskParameters, symbol: str, fee: str) -> RiskParameters:
    record = parameters.records[f"instrument:{symbol}"]
    return parameters.with_record(msgspec.structs.replace(record, liquidation_fee=fee))


def test_a_settle_asset_with_a_haircut_is_charged_what_the_fee_really_costs() -> None:
    """The fee leaves a debt that counts 1.2 times: 10 % - 5 % x 1.2 = 4 % of the notional is freed, not 5 %."""
    parameters = rules(tiers=((0, "0.1", "0.2"),), liquidation_fee="0.05").with_record(
        AssetParameters(asset="USD", liability_weight="1.2")
    )
    book = group({"USD": "0"}, ("X-PERP", "1", "90"))
    book = replace(book, positions=(replace(book.positions[0], cash=Decimal(-91)),))
    plan = make_plan(book, MARKS, parameters)
    assert totals(plan) == {"X-PERP": Decimal("0.25")}


# --- thin markets ----------------------------------------------------------------------------------------------------


def thin(depths: tuple[str | None, ...], tiers: tuple[tuple[int, str, str], ...], fee: str = "0.001") -> RiskParameters:
    """One instrument a depth: S0-PERP, S1-PERP ... at an impact of 1 % for the depth."""
    found = RiskParameters.build([AssetParameters(asset="USD")])
    for index, depth in enumerate(depths):
        impact = {} if depth is None else {"depth_notional": depth, "impact_rate": "0.01"}
        one = rules(symbol=f"S{index}-PERP", tiers=tiers, liquidation_fee=fee, quantity_increment="1", **impact)
        found = found.with_record(one.records[f"instrument:S{index}-PERP"])
    return found


def expected_cost(parameters: RiskParameters, quantities: dict[str, Decimal], mark: Decimal) -> Decimal:
    """Fees and slippage: fees * x + impact * x**2 / (2 * depth) for a notional x."""
    total = Decimal(0)
    for symbol, quantity in quantities.items():
        rule, notional = parameters.instruments[symbol], quantity * mark
        total += rule.fees * notional
        if rule.depth_notional is not None:
            total += rule.impact_rate * notional * notional / (2 * rule.depth_notional)
    return total


ONE_TIER = ((0, "0.05", "0.1"),)
TWO_TIERS = ((0, "0.05", "0.1"), (3000, "0.08", "0.16"))


@pytest.mark.parametrize("tiers", [ONE_TIER, TWO_TIERS])
@pytest.mark.parametrize("depths", [("10000", "10000"), ("1000", "9000"), ("500", None), (None, None)])
@pytest.mark.parametrize("equity", ["60", "300", "450"])
def test_a_plan_costs_no_more_than_any_other_that_restores_the_target(
    tiers: tuple[tuple[int, str, str], ...], depths: tuple[str | None, ...], equity: str
) -> None:
    parameters = thin(depths, tiers)
    marks = {"S0-PERP": Decimal(100), "S1-PERP": Decimal(100)}
    held = group({"USD": equity}, ("S0-PERP", "50", "100"), ("S1-PERP", "-50", "100"))
    book = Book(parameters, held, marks)
    found = totals(make_plan(held, marks, parameters))
    assert shortage(book, after_closing(book, found)) <= 0
    others = (
        {"S0-PERP": Decimal(first), "S1-PERP": Decimal(second)}
        for first in range(0, 51, 2)
        for second in range(0, 51, 2)
    )
    restoring = [other for other in others if shortage(book, after_closing(book, other)) <= 0]
    assert restoring
    one_increment = expected_cost(parameters, {"S0-PERP": Decimal(50)}, Decimal(100)) / 20
    best = min(expected_cost(parameters, other, Decimal(100)) for other in restoring)
    assert expected_cost(parameters, found, Decimal(100)) <= best + one_increment


def test_equally_thin_markets_share_a_close_and_a_deeper_one_takes_its_part_more() -> None:
    marks = {"S0-PERP": Decimal(100), "S1-PERP": Decimal(100)}
    held = group({"USD": "300"}, ("S0-PERP", "50", "100"), ("S1-PERP", "50", "100"))
    even = totals(make_plan(held, marks, thin(("10000", "10000"), ONE_TIER, fee="0")))
    assert even == {"S0-PERP": Decimal(20), "S1-PERP": Decimal(20)}
    deeper = totals(make_plan(held, marks, thin(("10000", "30000"), ONE_TIER, fee="0")))
    assert deeper == {"S0-PERP": Decimal(10), "S1-PERP": Decimal(30)}


def test_a_thin_scanned_book_is_planned_in_few_steps_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step judges the whole book anew, so their number must not grow with the quantity."""
    fields = {"scan_range": "0.1", "scan_floor_rate": "0.01", "depth_notional": "1000000", "impact_rate": "0.01"}
    parameters = rules(quantity_increment="0.000001", liquidation_fee="0.005", **fields).with_record(
        PolicyParameters(portfolio_margin_accounts=("a",), liquidation_buffer_rate="0.002")
    )
    steps = []
    advance = _Reducing._advance

    def counted(reducing: _Reducing, *args: Any) -> bool:
        steps.append(args)
        return advance(reducing, *args)

    monkeypatch.setattr(_Reducing, "_advance", counted)
    plan = make_plan(group({"USD": "600000"}, ("X-PERP", "1000000", "100")), MARKS, parameters)
    assert plan.stage == "reduce"
    assert totals(plan)["X-PERP"] > 900_000
    assert 10 < len(steps) <= 32


# --- collateral for debts --------------------------------------------------------------------------------------------


def weighted(weight: str, liability_weight: str = "1", **fields: str) -> AssetParameters:
    return AssetParameters(
        collateral_tiers=(CollateralTier(quantity_floor="0", weight=weight),),
        liability_weight=liability_weight,
        **fields,
    )


def convert(
    balances: dict[str, Decimal], missing: Decimal, marks: dict[str, Decimal], parameters: RiskParameters
) -> tuple[Conversion, ...]:
    """Exchange until equity has risen by ``missing``, or as far as it can."""
    converting = Converting(marks, parameters)
    held = dict(balances)
    before = collateral_value(balances, marks, parameters)
    while True:
        with localcontext(EXACT):
            left = before + missing - collateral_value(held, marks, parameters)
        exchange = converting.cheapest(held, declared=False)
        if left <= 0 or exchange is None:
            return converting.conversions
        converting.make(exchange, left, held)
        held = {asset: amount + converting.changed.get(asset, Decimal(0)) for asset, amount in balances.items()}


def test_a_debt_is_bought_back_as_drift_does() -> None:
    """drift-labs/protocol-v2 math/liquidation/tests.rs, zero_asset_and_liability_fee: shortage 10, weights 0.8, 1.2."""
    parameters = RiskParameters.build(
        [weighted("0.8", asset="USDC"), weighted("1", "1.2", asset="SOL", price_symbol="SOL-USD", decimals=9)]
    )
    balances = {"USDC": Decimal(100), "SOL": Decimal(-1)}
    (bought,) = convert(balances, Decimal(10), {"SOL-USD": Decimal(100)}, parameters)
    assert (bought.asset.asset, bought.quantity, bought.weight) == ("SOL", Decimal("0.25"), Decimal("1.2"))


def test_fees_are_inside_the_formula_of_a_conversion() -> None:
    """Paying 1 of debt costs 1.05 / 0.95 of collateral: 1.2 - 0.8 * 1.05 / 0.95 = 0.3157... of equity for each."""
    parameters = RiskParameters.build(
        [
            weighted("0.8", asset="BTC", price_symbol="BTC-USD", liquidation_fee="0.05"),
            weighted("1", "1.2", asset="SOL", price_symbol="SOL-USD", liquidation_fee="0.05", decimals=6),
        ]
    )
    balances = {"BTC": Decimal(1), "SOL": Decimal(-1)}
    made = convert(balances, Decimal(6), {"BTC-USD": Decimal(100), "SOL-USD": Decimal(100)}, parameters)
    changes = {conversion.asset.asset: conversion.quantity for conversion in made}
    assert changes == {"SOL": Decimal("0.19"), "BTC": Decimal("-0.21")}


@given(books(), decimals("0.01", "10000", 2))
def test_conversions_raise_equity_by_the_shortage_or_use_up_a_side(book: Book, missing: Decimal) -> None:
    balances = dict(book.group.balances)
    made = convert(balances, missing, dict(book.marks), book.parameters)
    before = collateral_value(balances, book.marks, book.parameters)
    with localcontext(EXACT):
        paid = Decimal(0)
        for conversion in made:
            asset = conversion.asset
            assert asset.price_symbol is not None
            balances[asset.asset] += conversion.quantity
            paid -= conversion.quantity * book.marks[asset.price_symbol]
        balances["USD"] = balances.get("USD", Decimal(0)) + paid
        gained = collateral_value(balances, book.marks, book.parameters) - before
    for asset, amount in balances.items():
        if asset != "USD":
            assert amount * book.group.balances[asset] >= 0, "no balance changes its sign"
    spot = {asset: amount for asset, amount in balances.items() if asset != "BTC"}
    debts, credits = ([a for a, q in spot.items() if sign * q > Decimal("0.01")] for sign in (-1, 1))
    weights = book.parameters.assets
    worth = any(
        weights[debt].liability_weight > weights[credit].weight_below(balances[credit])
        for debt in debts
        for credit in credits
    )
    assert gained >= missing - Decimal("0.01") or not worth
    assert gained >= 0 or not made


def test_collateral_is_sold_when_closing_everything_leaves_a_shortage() -> None:
    """Equity 0.2 after haircuts; closing costs 0.5 of fees; the missing 0.3 come from BTC sold to pay the USD debt."""
    parameters = rules(liquidation_fee="0.05").with_record(weighted("0.9", asset="BTC", price_symbol="BTC-USD"))
    held = group({"USD": "-89.8", "BTC": "0.001"}, ("X-PERP", "0.1", "100"))
    marks = {"X-PERP": Decimal(100), "BTC-USD": Decimal(100_000)}
    plan = make_plan(held, marks, parameters)
    assert plan.stage == "close"
    assert [(order.symbol, order.order_side, order.quantity) for order in plan.orders] == [
        ("X-PERP", "sell", Decimal("0.1")),
        ("BTC-USD", "sell", Decimal("0.00003")),
    ]
    assert plan.orders[1].limit_price == 90_000


def borrowed(fee: str | None, *, position_fee: str = "0.01") -> tuple[RiskParameters, Group, dict[str, Decimal]]:
    """1 BTC at weight 0.9 against a debt of 85,000 beside a position of 20,000 that needs 1,000; equity is 100 less."""
    parameters = rules(liquidation_fee=position_fee).with_record(
        weighted("0.9", asset="BTC", price_symbol="BTC-USD", **({} if fee is None else {"liquidation_fee": fee}))
    )
    held = group({"USD": "-89100", "BTC": "1"}, ("X-PERP", "200", "100"))
    return parameters, held, {"X-PERP": Decimal(100), "BTC-USD": Decimal(100_000)}


def test_where_debts_are_the_problem_collateral_is_sold_and_no_position_closed() -> None:
    """Selling 1,000 of BTC costs 1 and restores 100 - 1: 0.01 a unit; closing costs 0.01 / (0.05 - 0.01) = 0.25."""
    parameters, held, marks = borrowed("0.001")
    plan = make_plan(held, marks, parameters)
    assert plan.stage == "reduce"
    (order,) = plan.orders
    assert (order.symbol, order.order_side, order.position_side) == ("BTC-USD", "sell", "long")
    sold = order.quantity * 100_000
    assert sold * Decimal("0.999") - sold * Decimal("0.9") >= 100
    assert (sold - 1) * Decimal("0.099") < 100


@pytest.mark.parametrize("fee", ["0.05", None])
def test_a_sale_that_costs_more_than_a_close_or_has_no_market_is_not_made(fee: str | None) -> None:
    parameters, held, marks = borrowed(fee)
    assert set(totals(make_plan(held, marks, parameters))) == {"X-PERP"}


@settings(max_examples=150)
@given(underwater(positions=2), st.sampled_from(["0", "0.002", "0.05"]), st.sampled_from([None, "20000"]))
def test_closes_and_sales_together_restore_the_target(book: Book, fee: str, depth: str | None) -> None:
    """The group after the orders of a plan, fees paid, meets its target, or everything that helps has been done."""
    assume(evaluate(book.group, book.marks, book.parameters).equity > 0)
    parameters = book.parameters
    for key, record in parameters.records.items():
        if isinstance(record, AssetParameters):
            parameters = parameters.with_record(msgspec.structs.replace(record, liquidation_fee=fee))
        elif depth is not None and key.startswith("instrument"):
            thin_market = msgspec.structs.replace(record, depth_notional=depth, impact_rate="0.01")
            parameters = parameters.with_record(thin_market)
    book = replace(book, parameters=parameters)
    plan = make_plan(book.group, book.marks, parameters)
    closes = {symbol: amount for symbol, amount in totals(plan).items() if symbol != "EUR-USD"}
    after = after_closing(book, closes)
    balances = dict(after.balances)
    with localcontext(EXACT):
        for order in plan.orders:
            if order.symbol == "EUR-USD":
                side, price = (1 if order.order_side == "buy" else -1), book.marks["EUR-USD"]
                paid = order.quantity * price * (1 + side * Decimal(fee))
                balances["EUR"] = balances.get("EUR", Decimal(0)) + side * order.quantity
                balances["USD"] = balances.get("USD", Decimal(0)) - side * paid
    missing = shortage(book, replace(after, balances=balances))
    assert missing <= Decimal("0.000001") or plan.stage == "close"
