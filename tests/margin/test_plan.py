"""Liquidation plans: the least that restores the target, in whole increments, never more than the position."""

from dataclasses import replace
from decimal import Decimal, localcontext
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.parameters import AssetParameters, CollateralTier, PolicyParameters
from streams.margin.conversion import Conversion, ExchangeBook
from streams.margin.fixed_point import EXACT, format_decimal
from streams.margin.group import Group
from streams.margin.health import evaluate, price_of
from streams.margin.models import ScannedMargin
from streams.margin.parameters import RiskParameters
from streams.margin.plan import ORDERS_MAX, Plan, PlannedOrder, orders_at_once, slices
from tests.margin.conftest import (
    SYMBOLS,
    Book,
    books,
    closed,
    collateral_value,
    decimals,
    group,
    left_after_fees,
    planned,
    rules,
    underwater,
)
from tests.properties import examples

MARKS = {"X-PERP": Decimal(100), "Y-PERP": Decimal(100)}


def totals(plan: Plan) -> dict[str, Decimal]:
    quantities: dict[str, Decimal] = {}
    for order in plan.orders:
        quantities[order.symbol] = quantities.get(order.symbol, Decimal(0)) + order.quantity
    return quantities


def shortage(book: Book, after: Group) -> Decimal:
    """Target less equity, from the verdict alone."""
    health = evaluate(after, book.marks, book.parameters)
    with localcontext(EXACT):
        buffer = sum((part.notional for part in health.positions), health.debt)
        return health.maintenance_margin + buffer * book.parameters.policy.liquidation_buffer_rate - health.equity


def after_closing(book: Book, quantities: dict[str, Decimal]) -> Group:
    return closed(book, quantities, book.marks, fees=True)


@settings(max_examples=examples(300))
@given(underwater(plain=True))
def test_a_reduction_restores_the_target_and_one_increment_less_does_not(book: Book) -> None:
    assume(evaluate(book.group, book.marks, book.parameters).equity > 0)
    plan = planned(book.group, book.marks, book.parameters)
    assume(plan.stage == "reduce")
    quantities = totals(plan)
    assert shortage(book, after_closing(book, quantities)) <= 0
    held = {position.symbol: abs(position.quantity) for position in book.group.positions}
    assume(all(amount > held[symbol] / 900 for symbol, amount in quantities.items()))
    assume(quantities.items().isdisjoint(held.items()))

    def one_less(symbol: str) -> dict[str, Decimal]:
        return {**quantities, symbol: quantities[symbol] - book.parameters.instruments[symbol].quantity_increment}

    assert any(shortage(book, after_closing(book, one_less(symbol))) > 0 for symbol in quantities)


@given(underwater())
def test_a_plan_of_any_book_restores_the_target_or_closes_everything(book: Book) -> None:
    health = evaluate(book.group, book.marks, book.parameters)
    plan = planned(book.group, book.marks, book.parameters)
    everything = {position.symbol: abs(position.quantity) for position in book.group.positions}
    closes = {symbol: amount for symbol, amount in totals(plan).items() if symbol in everything}
    if plan.stage == "reduce":
        assert shortage(book, after_closing(book, closes)) <= 0
        assert totals(plan) == closes != everything
    else:
        assert closes == everything
        if plan.stage == "takeover":
            assert left_after_fees(book, health, conversions=True) <= 0
        else:
            assert left_after_fees(book, health) > 0
        if closes != totals(plan):
            assert shortage(book, after_closing(book, closes)) > 0


@given(books())
def test_orders_close_positions_in_whole_increments(book: Book) -> None:
    plan = planned(book.group, book.marks, book.parameters)
    sides = {position.symbol: position.quantity for position in book.group.positions}
    assert plan.orders or shortage(book, book.group) <= 0
    closes = [order for order in plan.orders if order.symbol in sides]  # the others convert collateral
    assert {order.symbol for order in plan.orders} - sides.keys() <= book.marks.keys()
    for order in closes:
        rule = book.parameters.instruments[order.symbol]
        long = sides[order.symbol] > 0
        assert (order.position_side, order.order_side) == (("long", "sell") if long else ("short", "buy"))
        assert order.limit_price % rule.price_increment == 0 < order.limit_price
        assert order.mark_price == book.marks[order.symbol]
        assert order.quantity % rule.quantity_increment == 0
    assert all(0 < totals(plan)[order.symbol] <= abs(sides[order.symbol]) for order in closes)


def test_a_group_with_nothing_short_gets_no_orders() -> None:
    assert planned(group({"USD": "100"}, ("X-PERP", "1", "100")), MARKS, rules()) == Plan("reduce", ())


def test_a_group_that_cannot_pay_the_fees_of_its_close_is_taken_over() -> None:
    """The fees of closing 100 are 5 with the exchange's own: 5.01 pays them, 5 leaves nothing to anybody."""
    parameters = rules(tiers=((0, "0.1", "0.2"),), liquidation_fee="0.03", insurance_fee="0.01", close_fee_rate="0.01")
    for equity, stage in (("5.01", "reduce"), ("5", "takeover"), ("4", "takeover")):
        plan = planned(group({"USD": equity}, ("X-PERP", "1", "100")), MARKS, parameters)
        assert plan.stage == stage


@pytest.mark.parametrize(("equity", "stage"), [("3.34", "reduce"), ("3.33", "takeover")])
def test_a_group_below_the_backstop_is_taken_over(equity: str, stage: str) -> None:
    """Two thirds of a maintenance margin of 5, as of Hyperliquid's liquidator vault (docs, trading/liquidations)."""
    policy = PolicyParameters(backstop_rate="0.667", limit_ladder=("1",))
    parameters = rules(more=(policy,))
    assert planned(group({"USD": equity}, ("X-PERP", "1", "100")), MARKS, parameters).stage == stage


def test_limits_widen_with_every_attempt_and_then_the_group_is_taken_over() -> None:
    """A long of 1 at 100 with 4 has its bankruptcy price at 96, as nothing is owed in fees."""
    parameters = rules(more=(PolicyParameters(limit_ladder=("0.25", "0.5", "1")),))
    for quantity, limits in (("1", ["99", "98", "96"]), ("-1", ["101", "102", "104"])):
        held = group({"USD": "4"}, ("X-PERP", quantity, "100"))
        plans = [planned(held, MARKS, parameters, attempt=attempt) for attempt in range(5)]
        assert [plan.stage for plan in plans] == ["reduce"] * 3 + ["takeover"] * 2
        assert [plan.orders[0].limit_price for plan in plans[:3]] == [Decimal(limit) for limit in limits]


@given(books(), st.integers(0, 3))
def test_no_limit_is_on_the_wrong_side_of_its_mark_or_beyond_that_of_the_last_attempt(book: Book, attempt: int) -> None:
    ladder = PolicyParameters(limit_ladder=("0.1", "0.3", "0.6", "1"))
    parameters = book.parameters.with_record(ladder)
    plan = planned(book.group, book.marks, parameters, attempt=attempt)
    if plan.stage == "takeover":
        return
    last = {order.symbol: order.limit_price for order in planned(book.group, book.marks, parameters, attempt=3).orders}
    held = {position.symbol for position in book.group.positions}
    for order in plan.orders:
        if order.symbol not in held:
            continue
        least = book.parameters.instruments[order.symbol].price_increment
        side = 1 if order.order_side == "sell" else -1
        assert side * (order.mark_price - order.limit_price) > -least
        assert side * (order.limit_price - last[order.symbol]) >= 0


def test_a_command_takes_as_many_slices_of_each_position_as_of_any_other() -> None:
    other = rules(symbol="Y-PERP", max_order_notional="50").records["instrument:Y-PERP"]
    parameters = rules(max_order_notional="50", more=(other,))
    plan = planned(group({"USD": "1"}, ("X-PERP", "1", "100"), ("Y-PERP", "1", "100")), MARKS, parameters)
    assert len(plan.orders) > 2
    assert {order.symbol for order in orders_at_once(plan, 2)} == {order.symbol for order in plan.orders}
    assert orders_at_once(plan, len(plan.orders)) == plan.orders


@pytest.mark.parametrize("equity", ["0", "-5"])
def test_a_group_without_equity_is_taken_over_whole_and_unsliced(equity: str) -> None:
    parameters = rules(max_order_notional="10")
    plan = planned(group({"USD": equity}, ("X-PERP", "-3", "100")), MARKS, parameters)
    assert plan.stage == "takeover"
    assert [(order.order_side, order.quantity) for order in plan.orders] == [("buy", Decimal(3))]


def test_a_short_too_far_under_water_is_taken_over_at_the_least_price_there_is() -> None:
    plan = planned(group({"USD": "-500"}, ("X-PERP", "-1", "100")), MARKS, rules())
    assert plan.orders[0].limit_price == Decimal("0.01")


def test_no_order_is_larger_than_the_limit_and_together_they_are_the_plan() -> None:
    whole = planned(group({"USD": "8"}, ("X-PERP", "2", "100")), MARKS, rules())
    sliced = planned(group({"USD": "8"}, ("X-PERP", "2", "100")), MARKS, rules(max_order_notional="7.05"))
    assert totals(whole) == totals(sliced) == {"X-PERP": Decimal("0.4")}
    assert [order.quantity for order in sliced.orders] == [Decimal("0.07")] * 5 + [Decimal("0.05")]


def test_a_limit_below_one_increment_still_lets_one_increment_through() -> None:
    plan = planned(group({"USD": "8"}, ("X-PERP", "2", "100")), MARKS, rules(max_order_notional="0.01"))
    assert {order.quantity for order in plan.orders} == {Decimal("0.001")}
    assert len(plan.orders) == 400


def test_a_plan_has_a_bounded_number_of_orders() -> None:
    plan = planned(group({"USD": "1"}, ("X-PERP", "20", "100")), MARKS, rules(max_order_notional="0.1"))
    assert len(plan.orders) == ORDERS_MAX


@given(st.integers(1, 999))
def test_dust_below_an_increment_can_be_closed(thousandths: int) -> None:
    dust = Decimal(thousandths).scaleb(-6)
    book = group({"USD": format(dust, "f")}, ("X-PERP", format(dust, "f"), "100"))
    plan = planned(book, MARKS, rules(quantity_increment="0.001"))
    assert (plan.stage, totals(plan)) == ("close", {"X-PERP": dust})


def test_the_position_that_frees_most_margin_for_its_fee_is_closed_first() -> None:
    cheap, dear = rules(tiers=((0, "0.05", "0.1"),)), rules(tiers=((0, "0.1", "0.2"),), symbol="Y-PERP")
    parameters = cheap.with_record(dear.records["instrument:Y-PERP"])
    book = group({"USD": "14"}, ("X-PERP", "1", "100"), ("Y-PERP", "1", "100"))
    assert totals(planned(book, MARKS, parameters)) == {"Y-PERP": Decimal("0.1")}
    fee = replace_fee(parameters, "Y-PERP", "0.04")
    assert totals(planned(book, MARKS, fee)) == {"X-PERP": Decimal("0.2")}


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
    plan = planned(book, MARKS, parameters)
    assert totals(plan) == {"X-PERP": Decimal("0.25")}


# --- thin markets ----------------------------------------------------------------------------------------------------


def thin(depths: tuple[str | None, ...], tiers: tuple[tuple[int, str, str], ...], fee: str = "0.001") -> RiskParameters:
    """One instrument a depth: S0-PERP, S1-PERP ... at an impact of 1 % for the depth."""
    parameters = RiskParameters.build([AssetParameters(asset="USD")])
    for index, depth in enumerate(depths):
        impact: dict[str, Any] = {} if depth is None else {"depth_notional": depth, "impact_rate": "0.01"}
        one = rules(symbol=f"S{index}-PERP", tiers=tiers, liquidation_fee=fee, quantity_increment="1", **impact)
        parameters = parameters.with_record(one.records[f"instrument:S{index}-PERP"])
    return parameters


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
    quantities = totals(planned(held, marks, parameters))
    assert shortage(book, after_closing(book, quantities)) <= 0
    others = (
        {"S0-PERP": Decimal(first), "S1-PERP": Decimal(second)}
        for first in range(0, 51, 2)
        for second in range(0, 51, 2)
    )
    restoring = [other for other in others if shortage(book, after_closing(book, other)) <= 0]
    assert restoring
    one_increment = expected_cost(parameters, {"S0-PERP": Decimal(50)}, Decimal(100)) / 20
    best = min(expected_cost(parameters, other, Decimal(100)) for other in restoring)
    assert expected_cost(parameters, quantities, Decimal(100)) <= best + one_increment


def test_equally_thin_markets_share_a_close_and_a_deeper_one_takes_its_part_more() -> None:
    marks = {"S0-PERP": Decimal(100), "S1-PERP": Decimal(100)}
    held = group({"USD": "300"}, ("S0-PERP", "50", "100"), ("S1-PERP", "50", "100"))
    even = totals(planned(held, marks, thin(("10000", "10000"), ONE_TIER, fee="0")))
    assert even == {"S0-PERP": Decimal(20), "S1-PERP": Decimal(20)}
    deeper = totals(planned(held, marks, thin(("10000", "30000"), ONE_TIER, fee="0")))
    assert deeper == {"S0-PERP": Decimal(10), "S1-PERP": Decimal(30)}


def test_a_thin_scanned_book_is_planned_in_few_steps_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step asks the model once what this one position releases, so that must not grow with the quantity."""
    fields: dict[str, Any] = {
        "scan_range": "0.1",
        "scan_floor_rate": "0.01",
        "depth_notional": "1000000",
        "impact_rate": "0.01",
    }
    parameters = rules(quantity_increment="0.000001", liquidation_fee="0.005", **fields).with_record(
        PolicyParameters(portfolio_margin_accounts=("a",), liquidation_buffer_rate="0.002")
    )
    steps = []
    released = ScannedMargin.released

    def counted(model: ScannedMargin, *args: Any) -> tuple[Decimal, Decimal]:
        steps.append(args)
        return released(model, *args)

    monkeypatch.setattr(ScannedMargin, "released", counted)
    plan = planned(group({"USD": "600000"}, ("X-PERP", "1000000", "100")), MARKS, parameters)
    assert plan.stage == "reduce"
    assert totals(plan)["X-PERP"] > 900_000
    assert 10 < len(steps) <= 32


# --- collateral for debts --------------------------------------------------------------------------------------------


def weighted(weight: str, liability_weight: str = "1", **fields: Any) -> AssetParameters:
    return AssetParameters(
        collateral_tiers=(CollateralTier(quantity_floor="0", weight=weight),),
        liability_weight=liability_weight,
        **fields,
    )


def convert(
    balances: dict[str, Decimal], missing: Decimal, marks: dict[str, Decimal], parameters: RiskParameters
) -> tuple[Conversion, ...]:
    """Exchange until equity has risen by ``missing``, or as far as it can."""
    exchanges = ExchangeBook(marks, parameters)
    held = dict(balances)
    before = collateral_value(balances, marks, parameters)
    while True:
        with localcontext(EXACT):
            left = before + missing - collateral_value(held, marks, parameters)
        exchange = exchanges.cheapest(held, declared=False)
        if left <= 0 or exchange is None:
            return exchanges.conversions
        exchanges.make(exchange, left, held)
        held = {asset: amount + exchanges.changed.get(asset, Decimal(0)) for asset, amount in balances.items()}


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
    for name, amount in balances.items():
        if name != "USD":
            assert amount * book.group.balances[name] >= 0, "no balance changes its sign"
    spot = {asset: amount for asset, amount in balances.items() if asset != "BTC"}
    debts, credits = ([a for a, q in spot.items() if sign * q > Decimal("0.01")] for sign in (-1, 1))
    weights = book.parameters.assets
    worth = any(
        weights[debt].liability_weight > weights[credit].weight_below(balances[credit])
        for debt in debts
        for credit in credits
        if weights[credit].collateral  # what counts for nothing is not sold
    )
    assert gained >= missing - Decimal("0.01") or not worth
    assert gained >= 0 or not made


def test_collateral_is_sold_when_closing_everything_leaves_a_shortage() -> None:
    """Equity 0.2 after haircuts; closing costs 0.5 of fees; the missing 0.3 come from BTC sold to pay the USD debt.

    Of 10.2 unweighted, 9.7 are left after the fees, and 10 / (0.5 + 10) of that is what selling all BTC may cost.
    """
    parameters = rules(liquidation_fee="0.05").with_record(weighted("0.9", asset="BTC", price_symbol="BTC-USD"))
    held = group({"USD": "-89.8", "BTC": "0.001"}, ("X-PERP", "0.1", "100"))
    marks = {"X-PERP": Decimal(100), "BTC-USD": Decimal(100_000)}
    plan = planned(held, marks, parameters)
    assert plan.stage == "close"
    assert [(order.symbol, order.order_side, order.quantity) for order in plan.orders] == [
        ("X-PERP", "sell", Decimal("0.1")),
        ("BTC-USD", "sell", Decimal("0.00003")),
    ]
    assert plan.orders[1].limit_price == Decimal("90761.904761904761904762")


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
    plan = planned(held, marks, parameters)
    assert plan.stage == "reduce"
    (order,) = plan.orders
    assert (order.symbol, order.order_side, order.position_side) == ("BTC-USD", "sell", "long")
    sold = order.quantity * 100_000
    assert sold * Decimal("0.999") - sold * Decimal("0.9") >= 100
    assert (sold - 1) * Decimal("0.099") < 100


@pytest.mark.parametrize("fee", ["0.05", None])
def test_a_sale_that_costs_more_than_a_close_or_has_no_market_is_not_made(fee: str | None) -> None:
    parameters, held, marks = borrowed(fee)
    assert set(totals(planned(held, marks, parameters))) == {"X-PERP"}


@settings(max_examples=examples(150))
@given(underwater(positions_min=2), st.sampled_from(["0", "0.002", "0.05"]), st.sampled_from([None, "20000"]))
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
    plan = planned(book.group, book.marks, parameters)
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
    assert missing <= Decimal("0.000001") or plan.stage in ("close", "takeover")


# --- what orders may cost --------------------------------------------------------------------------------------------


def executed(book: Book, orders: tuple[PlannedOrder, ...]) -> Group:
    """The group after every order at its limit price, the stated fees paid; a spot market trades against USD."""
    spot = {rule.price_symbol: rule for rule in book.parameters.assets.values()}
    quantities: dict[str, Decimal] = {}
    prices = {}
    for order in orders:
        if order.symbol in book.parameters.instruments:
            quantities[order.symbol] = quantities.get(order.symbol, Decimal(0)) + order.quantity
            prices[order.symbol] = order.limit_price
    after = closed(book, quantities, prices, fees=True)
    balances = dict(after.balances)
    with localcontext(EXACT):
        for order in orders:
            if order.symbol in book.parameters.instruments:
                continue
            rule, side = spot[order.symbol], 1 if order.order_side == "buy" else -1
            paid = order.quantity * order.limit_price * (1 + side * (rule.liquidation_fee or 0))
            balances[rule.asset] = balances.get(rule.asset, Decimal(0)) + side * order.quantity
            balances["USD"] = balances.get("USD", Decimal(0)) - side * paid
    return replace(after, balances=balances)


def in_full(book: Book, held: Group) -> Decimal:
    """Everything at weight 1 at the marks."""
    with localcontext(EXACT):
        total = Decimal(0)
        for asset, amount in held.balances.items():
            total += amount * price_of(book.parameters.assets[asset], book.marks)
        for position in held.positions:
            settle = book.parameters.assets[book.parameters.instruments[position.symbol].settle_asset]
            value = position.quantity * book.marks[position.symbol] + position.cash
            total += value * price_of(settle, book.marks)
        return total


def with_fee(parameters: RiskParameters, fee: str | None, **fields: Any) -> RiskParameters:
    """Every asset at one ``liquidation_fee``."""
    for record in parameters.records.values():
        if isinstance(record, AssetParameters):
            changed = msgspec.structs.replace(record, liquidation_fee=fee)
            if record.price_symbol is not None:
                changed = msgspec.structs.replace(changed, **fields)
            parameters = parameters.with_record(changed)
    return parameters


@st.composite
def between(draw: st.DrawFn, *, positions: int = 0) -> Book:
    """A group below its requirement whose unweighted equity is above 0, by haircuts, debts or margin."""
    book = draw(books(positions_min=positions))
    book = replace(book, parameters=with_fee(book.parameters, draw(st.sampled_from([None, "0", "0.002", "0.05"]))))
    health = evaluate(book.group, book.marks, book.parameters)
    with localcontext(EXACT):
        gap = health.maintenance_margin - health.equity + health.unweighted_equity
        part = draw(decimals("0.01", "0.99", 2))
        moved = Decimal(format_decimal(gap * part - health.unweighted_equity, 2))
        balances = {**book.group.balances, "USD": book.group.balances.get("USD", Decimal(0)) + moved}
    return replace(book, group=replace(book.group, balances=balances))


@settings(max_examples=examples(300))
@given(between())
def test_all_orders_at_their_limits_leave_the_fund_nothing_to_pay(book: Book) -> None:
    health = evaluate(book.group, book.marks, book.parameters)
    plan = planned(book.group, book.marks, book.parameters)
    assume(health.liquidatable and health.unweighted_equity > 0 and plan.stage != "takeover")
    assert plan.stage in ("reduce", "close", "unsellable")
    left = in_full(book, executed(book, plan.orders)) - in_full(book, book.group)
    with localcontext(EXACT):
        assert health.unweighted_equity + left >= 0


def test_a_book_that_is_worth_something_unweighted_is_not_taken_over() -> None:
    """1 BTC at weight 0.9 against 95,000 beside a position: weighted -5,000, really +5,000."""
    parameters, held, marks = borrowed(None)
    held = replace(held, balances={"BTC": Decimal(1), "USD": Decimal(-95_000)})
    plan = planned(held, marks, parameters)
    assert plan.stage == "close"
    assert set(totals(plan)) == {"X-PERP", "BTC-USD"}
    held = replace(held, balances={"BTC": Decimal(1), "USD": Decimal(-100_000)})
    plan = planned(held, marks, parameters)
    assert (plan.stage, set(totals(plan))) == ("takeover", {"X-PERP"})


def test_limits_allot_what_is_left_after_fees_by_margin_and_haircut() -> None:
    """E = 100,000 - 95,000 = 5,000; margin 1,000, haircut 10,000; closing 200 at 100 costs 200."""
    parameters, held, marks = borrowed(None)
    held = replace(held, balances={"BTC": Decimal(1), "USD": Decimal(-95_000)})
    close, sale = planned(held, marks, parameters).orders
    assert close.quantity == 200
    left = Decimal(5000 - 200)
    assert abs(close.limit_price - (100 - left / 11 / 200 / Decimal("0.99"))) <= Decimal("0.01")
    assert abs(sale.limit_price - 100_000 * (1 - left * 10 / 11 / 100_000)) < Decimal("1e-9")


# --- debts, and what cannot be traded --------------------------------------------------------------------------------


def lent(usd: str, weight: str = "0.9", price_symbol: str = "BTC-USD", **fields: str) -> tuple[RiskParameters, Group]:
    parameters = RiskParameters.build(
        [AssetParameters(asset="USD"), weighted(weight, asset="BTC", price_symbol=price_symbol, **fields)]
    )
    return parameters, group({"BTC": "1", "USD": usd})


@pytest.mark.parametrize(
    ("usd", "stage", "orders"),
    [
        ("-89", "reduce", 0),
        ("-91", "reduce", 1),
        ("-99.99", "reduce", 1),
        ("-101", "close", 1),
    ],
)
def test_debt_without_a_position_is_paid_by_selling_collateral(usd: str, stage: str, orders: int) -> None:
    parameters, held = lent(usd)
    plan = planned(held, {"BTC-USD": Decimal(100)}, parameters)
    assert (plan.stage, len(plan.orders)) == (stage, orders)
    assert all(order.order_side == "sell" for order in plan.orders)


def test_collateral_of_an_insolvent_group_is_sold_at_its_mark_or_better() -> None:
    parameters, held = lent("-120")
    (order,) = planned(held, {"BTC-USD": Decimal(100)}, parameters).orders
    assert (order.limit_price, order.quantity) == (Decimal(100), Decimal(1))


@pytest.mark.parametrize(
    ("balances", "stale", "stage"),
    [
        ({"USD": "-5"}, set(), "insolvent"),
        ({"USD": "-5", "ZERO": "1"}, set(), "insolvent"),
        ({"USD": "-95", "BTC": "1"}, set(), "reduce"),
        ({"USD": "-950", "BTC": "1"}, {"BTC-USD"}, "undecided"),
        ({"USD": "-1001", "BTC": "1"}, {"BTC-USD"}, "insolvent"),
        ({"USD": "-95", "PERP": "1"}, set(), "unsellable"),
        ({"USD": "-101", "PERP": "1"}, set(), "insolvent"),
        ({"USD": "-950", "PERP": "1"}, {"X-PERP"}, "unsellable"),
        ({"USD": "-5", "NEW": "1"}, {"NEW-USD"}, "insolvent"),
    ],
)
def test_with_nothing_to_trade_there_is_no_order_and_a_stage_that_says_why(
    balances: dict[str, str], stale: set[str], stage: str
) -> None:
    parameters = rules(
        more=(
            weighted("0.9", asset="BTC", price_symbol="BTC-USD"),
            weighted("0", asset="ZERO", price_symbol="ZERO-USD"),
            weighted("0.9", asset="PERP", price_symbol="X-PERP"),
            weighted("1", asset="NEW", price_symbol="NEW-USD"),
        )
    )
    marks = {"BTC-USD": Decimal(100), "ZERO-USD": Decimal(1000), "X-PERP": Decimal(100)}
    plan = planned(group(balances), marks, parameters, stale=stale)
    assert plan.stage == stage
    assert bool(plan.orders) == (stage == "reduce")


@settings(max_examples=examples(200))
@given(books(), st.sets(st.sampled_from(["A-PERP", "B-PERP", "C-PERP", "EUR-USD"])))
def test_only_what_is_live_is_traded_and_there_are_orders_or_a_reason(book: Book, stale: set[str]) -> None:
    health = evaluate(book.group, book.marks, book.parameters, stale=stale)
    assume(health.liquidatable)
    plan = planned(book.group, book.marks, book.parameters, stale=stale)
    assert not totals(plan).keys() & stale
    assert bool(plan.orders) == (plan.stage not in ("insolvent", "unsellable", "undecided"))
    tradable = {
        position.symbol
        for position in book.group.positions
        if position.symbol not in stale and not (position.symbol == "C-PERP" and "EUR-USD" in stale)
    }
    if plan.stage == "takeover":
        assert left_after_fees(book, health, conversions=True) <= 0
        assert totals(plan).keys() == tradable
    elif tradable:
        assert plan.stage in ("reduce", "close")
    else:
        assert not set(SYMBOLS) & totals(plan).keys()


# --- the least order -------------------------------------------------------------------------------------------------


def test_a_shortage_of_a_hair_closes_a_thousandth_where_no_least_order_is_stated() -> None:
    plan = planned(group({"USD": "4.99999"}, ("X-PERP", "1", "100")), MARKS, rules(quantity_increment="0.000001"))
    assert totals(plan) == {"X-PERP": Decimal("0.001")}


@pytest.mark.parametrize(
    ("usd", "least", "closed_"),
    [
        ("4.99", "10", "0.1"),  # 0.002 would do
        ("4.9", "1", "0.02"),
        ("4.99", "60", "1"),  # less than 60 would be left
        ("0.5", "10", "0.9"),
        ("0.4", "10", "1"),  # 8 would be left
        ("4.99", "1000", "1"),  # all of it is less
        ("4.99", "10.01", "0.101"),
    ],
)
def test_no_close_is_below_the_least_order_and_none_leaves_less(usd: str, least: str, closed_: str) -> None:
    parameters = rules(min_order_notional=least)
    plan = planned(group({"USD": usd}, ("X-PERP", "1", "100")), MARKS, parameters)
    assert totals(plan) == {"X-PERP": Decimal(closed_)}
    assert plan.stage == ("close" if closed_ == "1" else "reduce")


@given(
    st.integers(1, 5000),
    st.integers(1, 300),
    st.integers(0, 300),
)
def test_no_slice_is_below_the_least_order(quantity: int, least: int, more: int) -> None:
    rule = rules(
        quantity_increment="1", min_order_notional=str(least), max_order_notional=str(least + more)
    ).instruments["X-PERP"]
    parts = slices(Decimal(quantity), Decimal(1), rule)
    assume(len(parts) < ORDERS_MAX)
    assert sum(parts) == quantity
    assert all(part >= min(least, quantity) for part in parts)
    if quantity <= least + more or len(parts) * (least + more) >= quantity >= -(-quantity // (least + more)) * least:
        assert all(part <= least + more for part in parts)
    assert sum(part > least + more for part in parts) <= 1


@settings(max_examples=examples(200))
@given(between(), st.sampled_from(["1", "500", "30000"]))
def test_no_order_of_a_plan_is_below_the_least_and_the_target_is_met_all_the_same(book: Book, least: str) -> None:
    parameters = book.parameters
    for record in list(parameters.records.values()):
        priced = isinstance(record, AssetParameters) and record.price_symbol is not None
        if priced or not isinstance(record, AssetParameters | PolicyParameters):
            parameters = parameters.with_record(msgspec.structs.replace(record, min_order_notional=least))
    book = replace(book, parameters=parameters)
    assume(evaluate(book.group, book.marks, parameters).liquidatable)
    plan = planned(book.group, book.marks, parameters)
    held = {position.symbol: abs(position.quantity) for position in book.group.positions}
    held["EUR-USD"] = abs(book.group.balances.get("EUR", Decimal(0)))
    for symbol, quantity in totals(plan).items():
        left = held[symbol] - quantity
        enough = Decimal(least) / book.marks[symbol]
        assert quantity >= enough or left <= 0 or symbol == "EUR-USD"
        assert left <= 0 or left >= enough or symbol == "EUR-USD"
    if plan.stage == "reduce" and "EUR-USD" not in totals(plan):
        assert shortage(book, after_closing(book, totals(plan))) <= 0


def test_a_sale_of_collateral_is_at_least_the_least_order_and_more_is_sold_for_a_larger_purchase() -> None:
    parameters, held = lent("-90.001", min_order_notional="20")
    (order,) = planned(held, {"BTC-USD": Decimal(100)}, parameters).orders
    assert order.quantity == Decimal("0.2")
    parameters = parameters.with_record(
        weighted("1", "1.1", asset="SOL", price_symbol="SOL-USD", min_order_notional="30", decimals=6)
    )
    held = group({"BTC": "1", "SOL": "-0.82"})
    marks = {"BTC-USD": Decimal(100), "SOL-USD": Decimal(100)}
    plan = planned(held, marks, parameters)
    assert {order.symbol: (order.order_side, order.quantity) for order in plan.orders} == {
        "BTC-USD": ("sell", Decimal("0.3")),
        "SOL-USD": ("buy", Decimal("0.3")),
    }


def test_an_order_names_whole_minor_units_where_a_balance_is_finer() -> None:
    """The cash of a closed position may leave less than a minor unit in a balance: no transfer could bring that."""
    parameters = RiskParameters.build(
        [
            weighted("1", asset="USDC"),
            weighted("0.9", "1.1", asset="BTC", price_symbol="BTC-USD", liquidation_fee="0.001"),
        ]
    )
    balances = {"BTC": Decimal("0.0099999997"), "USDC": Decimal(-615)}
    plan = planned(Group("a", "cross", balances, ()), {"BTC-USD": Decimal(61000)}, parameters)
    assert [order.quantity for order in plan.orders] == [Decimal("0.00999999")]


def test_less_than_a_minor_unit_is_not_converted() -> None:
    parameters = RiskParameters.build(
        [weighted("1", asset="USDC"), weighted("0.9", "1.1", asset="BTC", price_symbol="BTC-USD", decimals=2)]
    )
    balances = {"BTC": Decimal("0.004"), "USDC": Decimal(-500)}
    plan = planned(Group("a", "cross", balances, ()), {"BTC-USD": Decimal(60000)}, parameters)
    assert (plan.stage, plan.orders) == ("insolvent", ())


def test_a_book_too_large_for_one_decision_is_reduced_as_far_as_it_goes() -> None:
    """Each step looks at every position; what is left is planned again after the fills."""
    first = rules(liquidation_fee="0.001").instruments["X-PERP"]
    record = rules(liquidation_fee="0.001").records["instrument:X-PERP"]
    names = [f"P{number}" for number in range(700)]
    parameters = rules(more=tuple(msgspec.structs.replace(record, symbol=name) for name in names))
    book = group({"USD": "1500"}, *((name, "1", "100") for name in names))
    marks = dict.fromkeys(names, Decimal(100))
    assert first.fees
    plan = planned(book, marks, parameters)
    closed_now = totals(plan)
    assert plan.stage == "reduce"
    assert 0 < len(closed_now) < len(names)
    rest = group({"USD": "1500"}, *((name, "1", "100") for name in names if name not in closed_now))
    assert totals(planned(rest, marks, parameters)), "the rest is planned again"
