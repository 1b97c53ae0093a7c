"""The documented range (streams/margin/README.md): at its corners everything is exact and inside the float bound, or
refused with an InputError and nothing changed. No other exception, no overflow, no underflow, no warning."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, Inexact, localcontext
from typing import Any

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
    Scale,
    ScanOffset,
)
from streams.errors import InputError, ParameterError
from streams.margin.bands import TriggerIndex
from streams.margin.fixed_point import EXACT, INT64_MAX, format_decimal, parse_decimal
from streams.margin.health import bankruptcy_prices, evaluate, liquidation_price
from streams.margin.parameters import RiskParameters
from streams.margin.plan import ORDERS_MAX, make_plan
from streams.margin.portfolio import Portfolio
from streams.margin.rules import SCENARIOS
from tests.margin.conftest import rules
from tests.properties import examples

LEAST, MOST = "0.000000000000000001", "999999999999999999.999999999999999999"
INCREMENTS = st.sampled_from(
    [
        (LEAST, "1"),
        ("1", LEAST),
        ("0.000000001", "0.000000001"),
        ("0.01", "0.001"),
        ("0.0025", "7"),
        ("0.00000001", "1000000"),
        ("0.01", "99999999999999999.9"),
        ("999999999999999999", "0.00000001"),
        ("1", "1"),
    ]
)
"""Of price and quantity; together at most 18 decimals."""
POSITIVE = st.sampled_from([LEAST, "0.00001", "0.5", "1", "100.25", "999999999999999999", MOST])
AMOUNT = st.sampled_from(
    [
        LEAST,
        "0.00000001",
        "0.01",
        "1",
        "9.223372036854775807",
        "9.3",
        "92233720368.54775807",
        "92233720368.54775808",
        "1000000",
        "999999999999999999",
        MOST,
    ]
)
RATE = st.sampled_from([LEAST, "0.004", "0.5", "0.999999999999999999"])
FRACTION = st.sampled_from(["0", LEAST, "0.02", "0.5", "0.999999999999999999"])
SCALE = st.sampled_from(["0.01", "0.37", "1", "4", "1000000000000"])
SYMBOLS = ("A", "B")
PRICING = ("A-SETTLE", "C-SPOT")


@st.composite
def tiers(draw: st.DrawFn) -> tuple[MarginTier, ...]:
    floors = ["0", *sorted(draw(st.sets(POSITIVE, max_size=3)), key=Decimal)]
    rates = sorted(draw(st.lists(RATE, min_size=len(floors), max_size=len(floors))), key=Decimal)
    return tuple(
        MarginTier(notional_floor=floor, maintenance_rate=rate, initial_rate="1")
        for floor, rate in zip(floors, rates, strict=True)
    )


@st.composite
def haircuts(draw: st.DrawFn) -> tuple[CollateralTier, ...]:
    floors = ["0", *sorted(draw(st.sets(POSITIVE, max_size=3)), key=Decimal)]
    weight = st.sampled_from(["0", LEAST, "0.5", "0.95", "1"])
    weights = sorted(draw(st.lists(weight, min_size=len(floors), max_size=len(floors))), key=Decimal, reverse=True)
    return tuple(CollateralTier(quantity_floor=f, weight=w) for f, w in zip(floors, weights, strict=True))


STEEPEST = {"depth_notional": LEAST, "impact_rate": "0.999999999999999999"}


@st.composite
def scans(draw: st.DrawFn) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "scan_group": draw(st.sampled_from([None, "G"])),
        "scan_range": draw(POSITIVE),
        "scan_floor_rate": draw(RATE),
    }
    if draw(st.booleans()):
        profit = POSITIVE.flatmap(lambda text: st.sampled_from([text, f"-{text}", "0"]))
        fields["scan_array"] = tuple(draw(st.lists(profit, min_size=SCENARIOS, max_size=SCENARIOS)))
    return fields


@st.composite
def corner_records(draw: st.DrawFn) -> list[Parameter]:
    """Records whose every number is at a corner of what the contract can say. Not every set of them is allowed."""
    debt = st.sampled_from(["1", "1.000000000000000001", "1000000", MOST])
    assets: list[Parameter] = [
        AssetParameters(
            asset=asset,
            price_symbol=price_symbol,
            liability_weight=draw(debt),
            collateral_tiers=draw(haircuts()),
            liquidation_fee=draw(st.none() | FRACTION),
            decimals=draw(st.sampled_from([AssetParameters(asset=asset).decimals, coarse, 18])),
        )
        for asset, price_symbol, coarse in (("USD", None, 8), ("EUR", "A-SETTLE", 8), ("COIN", "C-SPOT", 0))
    ]
    increments = {symbol: draw(INCREMENTS) for symbol in SYMBOLS}
    instruments: list[Parameter] = [
        InstrumentParameters(
            symbol=symbol,
            settle_asset=draw(st.sampled_from(["USD", "EUR"])),
            price_increment=increments[symbol][0],
            quantity_increment=increments[symbol][1],
            margin_tiers=draw(tiers()),
            liquidation_fee=draw(FRACTION),
            insurance_fee="0",
            max_order_notional=draw(st.none() | POSITIVE),
            **draw(
                st.sampled_from([dict[str, Any](), {"depth_notional": LEAST, "impact_rate": "0.999999999999999999"}])
            ),
            **(draw(scans()) if draw(st.booleans()) else {}),
        )
        for symbol in SYMBOLS
    ]
    policy = PolicyParameters(
        liquidation_buffer_rate=draw(FRACTION),
        margin_call_levels=("999999999999999999", "1.5", "1.000001"),
        portfolio_margin_accounts=draw(st.sampled_from([(), ("a",)])),
        scan_extreme_multiple=draw(POSITIVE),
        scan_extreme_weight=draw(FRACTION),
        scan_offsets=(ScanOffset(first="A", second="B", rate=draw(FRACTION)),),
    )
    return [*assets, *instruments, policy]


SIGNED = st.tuples(st.sampled_from(["", "-"]), AMOUNT).map("".join)
FILL = st.tuples(
    st.just("fill"),
    st.sampled_from(SYMBOLS),
    st.integers(-3, 3).filter(bool) | st.sampled_from([10**9, -(10**9), INT64_MAX, -INT64_MAX, 2**63]),
    st.sampled_from([1, 1, 3, 10**6, 10**17]),
    st.sampled_from(["0", "0", "0.01", "-0.00000001", "999999999999999999"]),
)
TRANSFER = st.tuples(st.just("transfer"), st.sampled_from(["USD", "EUR", "COIN"]), SIGNED)
MARK = st.tuples(st.just("mark"), st.sampled_from([*SYMBOLS, *PRICING]), POSITIVE)
RULES = st.tuples(st.just("rules"), corner_records(), SCALE)
ACTIONS = st.lists(FILL | FILL | TRANSFER | TRANSFER | MARK | MARK | RULES, min_size=2, max_size=10)


@dataclass
class Corner:
    """A portfolio of two rows at the corners, its index, and how often something was refused and something stood."""

    portfolio: Portfolio
    index: TriggerIndex
    done: int = 0
    refused: int = 0

    @property
    def rows(self) -> range:
        return range(self.portfolio.row_count)

    def state(self) -> list[Any]:
        return [(self.portfolio.balances(row), self.portfolio.positions(row)) for row in self.rows]

    def attempt(self, change: Callable[[], None]) -> bool:
        """``change`` is made, or refused with an InputError and nothing is changed."""
        before, parameters = self.state(), self.portfolio.parameters
        try:
            change()
        except InputError:
            assert self.state() == before
            assert self.portfolio.parameters is parameters
            self.refused += 1
            return False
        self.done += 1
        return True

    def act(self, action: tuple[Any, ...]) -> None:
        match action:
            case "fill", symbol, lots, ticks, fee:
                rule = self.portfolio.parameters.instruments[symbol]
                with localcontext(EXACT):
                    quantity, price = lots * rule.quantity_increment, ticks * rule.price_increment
                texts = format_decimal(quantity), format_decimal(price)
                self.attempt(lambda: self.portfolio.ledger.apply_fill(0, symbol, *texts, fee))
            case "transfer", asset, amount:
                self.attempt(lambda: self.portfolio.ledger.apply_transfer(0, asset, amount))
            case "mark", symbol, price:
                self.portfolio.set_mark(symbol, price, True)
                self.index.update(self.index.crossed(symbol, price))
            case _, records, scale:
                self.attempt(lambda: self.portfolio.set_parameters(scaled(records, scale)))
                self.index.rebuild()
        self.index.update(np.array([0], dtype=np.int64))

    def check(self) -> None:
        """What is held can be written, read again, screened, judged, planned: exactly."""
        portfolio = self.portfolio
        for row in self.rows:
            balances, positions = portfolio.balances(row), portfolio.positions(row)
            for text in (*balances.values(), *(text for _, *texts in positions for text in texts)):
                parse_decimal(text)
            portfolio.ledger.load_group(1, balances, positions)
            assert (portfolio.balances(1), portfolio.positions(1)) == (balances, positions)
            self._judge(row)
        self.index.update(np.arange(portfolio.row_count, dtype=np.int64))

    def _judge(self, row: int) -> None:
        portfolio, parameters = self.portfolio, self.portfolio.parameters
        columns, group = portfolio.evaluate(np.array([row])), portfolio.group(row)
        health = evaluate(group, portfolio.marks, parameters)
        assert np.isfinite(columns.equity[0])
        assert np.isfinite(columns.maintenance[0])
        assert np.isfinite(columns.error[0])
        equity, maintenance, error = (
            Decimal.from_float(float(column[0])) for column in (columns.equity, columns.maintenance, columns.error)
        )
        with localcontext(EXACT):
            assert abs(equity - health.equity) + abs(maintenance - health.maintenance_margin) <= error
        if health.health_ratio is not None:
            parse_decimal(format_decimal(health.health_ratio))
        for symbol in (*SYMBOLS, *PRICING):
            price = liquidation_price(group, symbol, portfolio.marks, parameters)
            if price is not None:
                assert not evaluate(group, {**portfolio.marks, symbol: price}, parameters).liquidatable
        prices = bankruptcy_prices(health, portfolio.marks, parameters)
        assert prices.keys() <= {position.symbol for position in group.positions}
        plan = make_plan(group, health, portfolio.marks, parameters)
        held = {position.symbol: abs(position.quantity) for position in group.positions}
        assert len(plan.orders) <= ORDERS_MAX + len(parameters.assets)
        assert all(order.quantity <= held.get(order.symbol, order.quantity) for order in plan.orders)


def scaled(records: list[Parameter], scale: str) -> RiskParameters:
    factor = Decimal(scale)
    return RiskParameters.build(records).with_scales({"instrument:A": factor, "asset:EUR": factor})


def corner_of(records: list[Parameter], scale: str) -> Corner | None:
    """None if the records are refused."""
    try:
        parameters = scaled(records, scale)
    except ParameterError:
        return None
    portfolio = Portfolio(parameters)
    for symbol in (*SYMBOLS, *PRICING):
        portfolio.set_mark(symbol, "1", True)
    for account in "ab":
        portfolio.ledger.open_group(account, "cross")
    return Corner(portfolio, TriggerIndex(portfolio))


@settings(max_examples=examples(60))
@given(corner_records(), SCALE, ACTIONS)
def test_every_corner_of_the_range_is_exact_or_refused(
    records: list[Parameter], scale: str, actions: list[Any]
) -> None:
    corner = corner_of(records, scale)
    if corner is None:
        return
    for action in actions:
        corner.act(action)
    corner.check()


# --- the borders by name ---------------------------------------------------------------------------------------------


def one(price_increment: str, quantity_increment: str, **asset: Any) -> Portfolio:
    record = rules(price_increment=price_increment, quantity_increment=quantity_increment).records
    portfolio = Portfolio(RiskParameters.build([AssetParameters(asset="USD", **asset), record["instrument:X-PERP"]]))
    portfolio.ledger.open_group("a", "cross")
    return portfolio


@pytest.mark.parametrize(
    ("decimals", "most", "beyond"),
    [
        (0, "999999999999999999", "1"),
        (1, "999999999999999999.9", "0.1"),
        (6, "999999999999999999.999999", "0.000001"),
        (8, "999999999999999999.99999999", "0.00000001"),
        (18, "999999999999999999.999999999999999999", LEAST),
    ],
)
def test_a_balance_ends_where_the_page_says(decimals: int, most: str, beyond: str) -> None:
    portfolio = Portfolio(RiskParameters.build([AssetParameters(asset="USD", decimals=decimals)]))
    row = portfolio.ledger.open_group("a", "cross")
    for sign in ("", "-"):
        portfolio.ledger.apply_transfer(row, "USD", sign + most)
        with pytest.raises(InputError, match="leaves the ledger"):
            portfolio.ledger.apply_transfer(row, "USD", sign + beyond)
        assert portfolio.balances(row) == {"USD": sign + most}
        portfolio.ledger.apply_transfer(row, "USD", ("-" if not sign else "") + most)
    assert portfolio.ledger.is_empty(row)


@pytest.mark.parametrize(
    ("increment", "most"),
    [
        ("1", "999999999999999999"),
        ("0.001", "999999999999999999.999"),
        ("0.0025", "999999999999999999.9975"),
        ("0.03", "999999999999999999.99"),
        ("1000000", "999999999999000000"),
    ],
)
def test_a_position_ends_where_its_quantity_can_no_longer_be_written(increment: str, most: str) -> None:
    """Past the border a position would be held that its own changelog row could not bring back."""
    portfolio = one("0.00000001", increment)
    portfolio.ledger.load_group(0, {}, [("X-PERP", most, "0")])
    assert portfolio.positions(0) == [("X-PERP", most, "0")]
    with pytest.raises(InputError, match=f"leaves the ledger: {most} of it"):
        portfolio.ledger.apply_fill(0, "X-PERP", increment, "0.00000001", "0")
    assert portfolio.positions(0) == [("X-PERP", most, "0")]
    portfolio.ledger.load_group(0, *_reloaded(portfolio))


def _reloaded(portfolio: Portfolio) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    return portfolio.balances(0), portfolio.positions(0)


@pytest.mark.parametrize("field", ["price_increment", "quantity_increment"])
def test_an_increment_that_no_ledger_unit_holds_is_refused_with_its_record(field: str) -> None:
    fields: dict[str, Any] = {"price_increment": "1", "quantity_increment": "1", field: "999999999999999999.9"}
    with pytest.raises(ParameterError, match=f"instrument:X-PERP: {field}: .*64 bits"):
        rules(**fields)


def test_a_change_of_increment_across_the_whole_range_is_restated() -> None:
    portfolio = one("1", "1000000000")
    held = [("X-PERP", "999999999000000000", "-0.5")]
    portfolio.ledger.load_group(0, {}, held)
    record = portfolio.parameters.records["asset:USD"]
    for increment in (LEAST, "0.000000001", "0.0025", "1000000000"):
        changed = rules(price_increment="1", quantity_increment=increment).records["instrument:X-PERP"]
        portfolio.set_parameters(RiskParameters.build([record, changed]))
        assert portfolio.positions(0) == held


@pytest.mark.parametrize("price", ["1E+18", "1E-19", "1000000000000000000", "0.0000000000000000001"])
def test_a_mark_outside_the_contract_is_refused(price: str) -> None:
    portfolio = one("1", "1")
    with pytest.raises(InputError, match="X-PERP"):
        portfolio.set_mark("X-PERP", Decimal(price), True)
    assert "X-PERP" not in portfolio.marks


def test_a_health_ratio_is_held_within_what_a_message_can_carry() -> None:
    portfolio = one("0.01", "0.01")
    portfolio.set_mark("X-PERP", LEAST, True)
    for cash, ratio in (("1000000", "999999999999999999"), ("-1000000", "-999999999999999999")):
        portfolio.ledger.load_group(0, {}, [("X-PERP", "0.01", cash)])
        health = evaluate(portfolio.group(0), portfolio.marks, portfolio.parameters)
        assert health.health_ratio == Decimal(ratio)
        assert health.liquidatable == (cash < "0")


def test_a_scale_has_a_largest_cap() -> None:
    def capped(cap: str) -> RiskParameters:
        return rules(volatility_scale=Scale(reference="1", cap=cap))

    assert capped("1000000").instruments["X-PERP"].volatility_scale is not None
    with pytest.raises(ParameterError, match="volatility_scale: cap must be at most 1000000"):
        capped("1000000.1")


def test_no_instrument_has_the_name_of_the_cross_group() -> None:
    with pytest.raises(ParameterError, match="instrument:cross"):
        rules(symbol="cross")


def test_the_exact_context_is_wide_enough_for_the_largest_product_and_raises_beyond() -> None:
    """Twelve numbers of 36 digits: equity times a scanned margin, as a bankruptcy price needs them, has fewer."""
    widest = Decimal(MOST)
    with localcontext(EXACT):
        product = Decimal(1)
        for _ in range(12):
            product *= widest
        total = product * 10**18 + Decimal(LEAST) ** 12
        assert total - Decimal(LEAST) ** 12 == product * 10**18
        with pytest.raises(Inexact):
            product**3
