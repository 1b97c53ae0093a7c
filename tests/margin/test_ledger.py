"""The ledger beside a model in exact fractions: what can be written is held, whatever else is listed, and nothing else
is. Scales, words and the short way of a fill are not to be seen from outside."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.parameters import AssetParameters, CollateralTier, InstrumentParameters, MarginTier
from streams.errors import InputError, ParameterError
from streams.margin.fixed_point import EXACT, format_decimal, fraction_digits, from_units, parse_decimal
from streams.margin.health import evaluate
from streams.margin.parameters import RiskParameters
from streams.margin.portfolio import Portfolio
from streams.margin.rules import DECIMALS_DEFAULT
from tests.properties import examples

MOST = "999999999999999999.999999999999999999"
LEAST = "0.000000000000000001"
SETTLED = {"A": "USD", "B": "USD", "C": "COIN"}
PRICED = {"USD": None, "COIN": "COIN-SPOT"}
TIERS = (
    MarginTier(notional_floor="0", maintenance_rate="0.01", initial_rate="0.02"),
    MarginTier(notional_floor="5000", maintenance_rate="0.05", initial_rate="0.1"),
    MarginTier(notional_floor="1000000000", maintenance_rate="0.2", initial_rate="0.4"),
)
HAIRCUTS = (
    CollateralTier(quantity_floor="0", weight="0.95"),
    CollateralTier(quantity_floor="1000", weight="0.9"),
    CollateralTier(quantity_floor="1000000000000", weight="0.3"),
)
INCREMENTS = st.sampled_from(
    [
        ("0.01", "0.001"),
        ("0.1", "0.0025"),
        ("0.00000001", "0.00000001"),
        (LEAST, "1"),
        ("1", LEAST),
        ("0.5", "1"),
        ("0.03", "0.03"),
        ("100", "1000"),
        ("1", "0.000000001"),
    ]
)


def instrument(symbol: str, price_increment: str, quantity_increment: str) -> InstrumentParameters:
    return InstrumentParameters(
        symbol=symbol,
        settle_asset=SETTLED[symbol],
        price_increment=price_increment,
        quantity_increment=quantity_increment,
        margin_tiers=TIERS,
    )


def asset(name: str, decimals: int) -> AssetParameters:
    return AssetParameters(
        asset=name, decimals=decimals, price_symbol=PRICED[name], liability_weight="1.1", collateral_tiers=HAIRCUTS
    )


@st.composite
def parameter_sets(draw: st.DrawFn) -> RiskParameters:
    """Any increments beside each other, any decimals of the assets that go with them."""
    instruments = [instrument(symbol, *draw(INCREMENTS)) for symbol in SETTLED]
    parameters = RiskParameters.build(instruments)
    for name in PRICED:
        needed = max(rules.cash_decimals for rules in parameters.instruments.values() if rules.settle_asset == name)
        parameters = parameters.with_record(asset(name, draw(st.just(DECIMALS_DEFAULT) | st.integers(needed, 18))))
    return parameters


def sized(digits_max: int) -> st.SearchStrategy[int]:
    """Whole numbers above 0 of every size alike."""
    return st.integers(1, digits_max).flatmap(lambda digits: st.integers(1, 10**digits - 1))


SIDE = st.sampled_from([-1, 1])
FILL = st.tuples(
    st.just("fill"),
    st.sampled_from(sorted(SETTLED)),
    st.tuples(SIDE, sized(20)) | st.just("close"),
    sized(12),
    st.tuples(SIDE, st.just(0) | sized(22)),
)
TRANSFER = st.tuples(st.just("transfer"), st.sampled_from(sorted(PRICED)), SIDE, sized(36))
MARK = st.tuples(st.just("mark"), st.sampled_from([*SETTLED, "COIN-SPOT"]), sized(36))
ACTIONS = st.lists(
    FILL
    | FILL
    | FILL
    | TRANSFER
    | TRANSFER
    | MARK
    | st.tuples(st.just("rules"), parameter_sets())
    | st.just(("save",)),
    max_size=14,
)


def text_of(amount: Fraction) -> str:
    units = amount * 10**18
    assert units.denominator == 1
    return from_units(units.numerator, 18)


def written(amount: Fraction) -> bool:
    return abs(amount) <= Fraction(MOST)


@dataclass
class Model:
    """One group in fractions."""

    parameters: RiskParameters
    balances: dict[str, Fraction] = field(default_factory=dict)
    positions: dict[str, tuple[Fraction, Fraction]] = field(default_factory=dict)

    def fill(self, symbol: str, quantity: Fraction, price: Fraction, fee: Fraction) -> bool:
        rules = self.parameters.instruments[symbol]
        held, cash = self.positions.get(symbol, (Fraction(0), Fraction(0)))
        balance = self.balances.get(rules.settle_asset, Fraction(0)) - fee
        held, cash = held + quantity, cash - quantity * price
        if not held:
            balance, cash = balance + cash, Fraction(0)
        if not (written(held) and written(cash) and written(balance)):
            return False
        self.positions[symbol] = held, cash
        if not held:
            del self.positions[symbol]
        self.balances[rules.settle_asset] = balance
        return True

    def transfer(self, asset: str, amount: Fraction) -> bool:
        balance = self.balances.get(asset, Fraction(0)) + amount
        if written(balance):
            self.balances[asset] = balance
        return written(balance)

    def takes(self, after: RiskParameters) -> bool:
        """Whether the book can be expressed in ``after``: whole lots, and no amount finer than a unit made coarser."""
        lots = (
            (held / Fraction(after.instruments[symbol].quantity_increment)).denominator == 1
            for symbol, (held, _) in self.positions.items()
        )
        return all(lots) and all(self._keeps_units(asset, after) for asset in PRICED)

    def _keeps_units(self, asset: str, after: RiskParameters) -> bool:
        if after.assets[asset].decimals >= self.parameters.assets[asset].decimals:
            return True
        cash = [cash for symbol, (_, cash) in self.positions.items() if SETTLED[symbol] == asset]
        unit = Fraction(1, 10 ** after.cash_decimals(asset))
        return all((amount / unit).denominator == 1 for amount in (*cash, self.balances.get(asset, Fraction(0))))

    def state(self) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
        balances = {asset: text_of(amount) for asset, amount in sorted(self.balances.items()) if amount}
        return balances, [
            (symbol, text_of(quantity), text_of(cash)) for symbol, (quantity, cash) in sorted(self.positions.items())
        ]


class Pair:
    """A portfolio and its model, kept in step."""

    def __init__(self, parameters: RiskParameters) -> None:
        self.model = Model(parameters)
        self.portfolio = Portfolio(parameters)
        self.portfolio.ledger.open_group("other", "cross")
        self.row = self.portfolio.ledger.open_group("a", "cross")
        for symbol in (*SETTLED, "COIN-SPOT"):
            self.portfolio.set_mark(symbol, "1", True)

    def act(self, action: tuple[Any, ...]) -> None:
        match action:
            case "fill", symbol, size, ticks, (side, fee_units):
                self._fill(symbol, size, ticks, side * fee_units)
            case "transfer", asset, side, units:
                amount = side * Fraction(units, 10 ** self.model.parameters.assets[asset].decimals)
                if written(amount):
                    text = text_of(amount)
                    self._agree(
                        self.model.transfer(asset, amount),
                        lambda: self.portfolio.ledger.apply_transfer(self.row, asset, text),
                    )
            case "mark", symbol, units:
                self.portfolio.set_mark(symbol, from_units(units, 18), True)
            case "rules", parameters:
                taken = self.model.takes(parameters)
                self._agree(taken, lambda: self.portfolio.set_parameters(parameters))
                self.model.parameters = parameters if taken else self.model.parameters
            case _:
                self.reload(self.model.parameters)
        self.check()

    def _fill(self, symbol: str, size: Any, ticks: int, fee_units: int) -> None:
        rules = self.model.parameters.instruments[symbol]
        decimals = self.model.parameters.assets[rules.settle_asset].decimals
        if size == "close":
            quantity = -self.model.positions.get(symbol, (Fraction(0),))[0]
        else:
            quantity = size[0] * size[1] * Fraction(rules.quantity_increment)
        price, fee = ticks * Fraction(rules.price_increment), Fraction(fee_units, 10**decimals)
        if not quantity or not all(map(written, (quantity, price, fee))):
            return
        texts = text_of(quantity), text_of(price), text_of(fee)
        applied = self.model.fill(symbol, quantity, price, fee)
        self._agree(applied, lambda: self.portfolio.ledger.apply_fill(self.row, symbol, *texts))

    def _agree(self, applied: bool, change: Any) -> None:
        if applied:
            change()
            return
        with pytest.raises((InputError, ParameterError)):
            change()

    def reload(self, parameters: RiskParameters) -> None:
        """Go on in a new process, under parameters that may have changed meanwhile."""
        marks, saved = dict(self.portfolio.marks), self.model.state()
        self.portfolio = Portfolio(parameters)
        self.portfolio.ledger.open_group("other", "cross")
        self.row = self.portfolio.ledger.open_group("a", "cross")
        self.portfolio.ledger.load_group(self.row, *saved)
        for symbol, mark in marks.items():
            self.portfolio.set_mark(symbol, mark, True)

    def check(self) -> None:
        assert (self.portfolio.balances(self.row), self.portfolio.positions(self.row)) == self.model.state()
        assert self.portfolio.ledger.is_empty(self.row) == (self.model.state() == ({}, []))
        longs = {symbol: text_of(held) for symbol, (held, _) in sorted(self.model.positions.items()) if held > 0}
        assert self.portfolio.ledger.open_interest() == longs
        assert Fraction(self.portfolio.worth_at_stake(np.array([self.row]))) == self._worth_at_stake()
        for text in self.portfolio.balances(self.row).values():
            assert format_decimal(parse_decimal(text)) == text
        group = self.portfolio.group(self.row)
        assert {name: Fraction(amount) for name, amount in group.balances.items()} == {
            name: amount for name, amount in self.model.balances.items() if amount
        }
        assert {p.symbol: (Fraction(p.quantity), Fraction(p.cash)) for p in group.positions} == self.model.positions
        for rows, index in ((None, self.row), (np.array([self.row]), 0)):
            self._check_screen(self.portfolio.evaluate(rows), index)

    def _worth_at_stake(self) -> Fraction:
        marks = {symbol: Fraction(mark) for symbol, mark in self.portfolio.marks.items()}
        unit = {asset: Fraction(1) if priced is None else marks[priced] for asset, priced in PRICED.items()}
        worth = sum(
            (abs(held) * marks[symbol] * unit[SETTLED[symbol]] for symbol, (held, _) in self.model.positions.items()),
            Fraction(0),
        )
        return worth + sum(-min(amount, Fraction(0)) * unit[asset] for asset, amount in self.model.balances.items())

    def _check_screen(self, columns: Any, index: int) -> None:
        health = evaluate(self.portfolio.group(self.row), self.portfolio.marks, self.model.parameters)
        equity, maintenance, error = (
            Decimal.from_float(float(column[index])) for column in (columns.equity, columns.maintenance, columns.error)
        )
        with localcontext(EXACT):
            assert abs(equity - health.equity) + abs(maintenance - health.maintenance_margin) <= error


@settings(max_examples=examples(200))
@given(parameter_sets(), ACTIONS)
def test_the_ledger_is_its_model_in_fractions(parameters: RiskParameters, actions: list[Any]) -> None:
    pair = Pair(parameters)
    pair.check()
    for action in actions:
        pair.act(action)


@settings(max_examples=examples(100))
@given(parameter_sets(), ACTIONS, parameter_sets())
def test_what_was_written_is_read_under_any_other_decimals_and_increments(
    parameters: RiskParameters, actions: list[Any], others: RiskParameters
) -> None:
    """Amounts always; quantities where they are whole lots."""
    pair = Pair(parameters)
    for action in actions:
        pair.act(action)
    increments = {symbol: rules.quantity_increment for symbol, rules in others.instruments.items()}
    for symbol, (held, _) in list(pair.model.positions.items()):
        if (held / Fraction(increments[symbol])).denominator != 1:
            del pair.model.positions[symbol]
    pair.model.parameters = others
    pair.reload(others)
    pair.check()
    for action in actions:
        pair.act(action)


# --- by name ---------------------------------------------------------------------------------------------------------


def holding(decimals: Mapping[str, int], *increments: tuple[str, str]) -> tuple[Portfolio, int]:
    """A portfolio of instruments S0, S1, ... settled in USD, with the increments given, and an empty row."""
    records = [
        InstrumentParameters(
            symbol=f"S{index}",
            settle_asset="USD",
            price_increment=price,
            quantity_increment=quantity,
            margin_tiers=TIERS[:1],
        )
        for index, (price, quantity) in enumerate(increments)
    ]
    assets = [AssetParameters(asset=name, decimals=places) for name, places in decimals.items()]
    portfolio = Portfolio(RiskParameters.build([*assets, *records]))
    for symbol in portfolio.parameters.instruments:
        portfolio.set_mark(symbol, "1", True)
    return portfolio, portfolio.ledger.open_group("a", "cross")


@pytest.mark.parametrize(
    ("decimals", "amount"),
    [
        (6, "1000000000000.000001"),
        (8, "1000000000.00000001"),
        (8, "1000000000000000.00000001"),
        (12, "1000000000000.000000000001"),
        (18, "1000000000.000000000000000001"),
        (18, "420690000000000.000000000000000001"),
        (0, "999999999999999999"),
    ],
)
def test_a_balance_is_held_whatever_is_listed_beside_it(decimals: int, amount: str) -> None:
    listed = [("0.00000001", "0.00000001"), (LEAST, "1"), ("1", LEAST)] if decimals in (8, 18) else []
    portfolio, row = holding({"USD": decimals}, *listed)
    for sign in ("", "-"):
        portfolio.ledger.apply_transfer(row, "USD", sign + amount)
        assert portfolio.balances(row) == {"USD": sign + amount}
        equity = Decimal(float(portfolio.evaluate().equity[row]))
        assert abs(equity - Decimal(sign + amount)) <= Decimal(float(portfolio.evaluate().error[row]))
        portfolio.ledger.apply_transfer(row, "USD", ("" if sign else "-") + amount)
    assert portfolio.ledger.is_empty(row)


def test_listing_the_finest_instrument_leaves_everybody_room() -> None:
    portfolio, row = holding({"USD": 8}, ("0.1", "0.001"))
    portfolio.ledger.apply_transfer(row, "USD", "90000")
    portfolio.ledger.apply_fill(row, "S0", "1000000", "60000", "12.5")
    fine = InstrumentParameters(
        symbol="PEPE",
        settle_asset="USD",
        price_increment="0.00000001",
        quantity_increment="0.00000001",
        margin_tiers=TIERS[:1],
    )
    portfolio.set_parameters(portfolio.parameters.with_record(fine))
    portfolio.ledger.apply_transfer(row, "USD", "1000000000")
    portfolio.ledger.apply_fill(row, "S0", "1000000", "70000", "12.5")
    portfolio.ledger.apply_fill(row, "PEPE", "90000000000.00000001", "0.00000007", "0.00000001")
    portfolio.ledger.apply_fill(row, "PEPE", "-0.00000001", "0.00000009", "0")
    assert portfolio.balances(row) == {"USD": "1000089974.99999999"}
    assert portfolio.positions(row) == [
        ("PEPE", "90000000000", "-6299.9999999999999998"),
        ("S0", "2000000", "-130000000000"),
    ]
    portfolio.ledger.apply_fill(row, "PEPE", "-90000000000", "0.00000007", "0")
    assert portfolio.balances(row) == {"USD": "1000089974.9999999900000002"}
    portfolio.ledger.apply_transfer(row, "USD", "-1000089974.99999999")
    assert portfolio.balances(row) == {"USD": "0.0000000000000002"}
    assert not portfolio.ledger.is_empty(row)


def test_debt_of_less_than_a_unit_is_screened_as_debt() -> None:
    portfolio, row = holding({"USD": 8}, ("0.00000001", "0.00000001"))
    portfolio.ledger.apply_fill(row, "S0", "0.00000001", "0.00000002", "0")
    portfolio.ledger.apply_fill(row, "S0", "-0.00000001", "0.00000001", "0")
    assert portfolio.balances(row) == {"USD": "-0.0000000000000001"}
    columns = portfolio.evaluate()
    assert -1.01e-16 < columns.equity[row] < -0.99e-16
    assert columns.error[row] < 1e-28


@pytest.mark.parametrize("decimals", [1, 6, 8, 18])
def test_many_small_steps_do_not_pass_the_border_that_one_may_not(decimals: int) -> None:
    """Near it no word of 64 bits may move unseen."""
    portfolio, row = holding({"USD": decimals}, ("1", "1"))
    unit = from_units(1, decimals)
    step = "400000000000000000" if decimals == 1 else from_units(4 * 10**18, decimals)
    with localcontext(EXACT):
        most = 10**18 - Decimal(unit)
        start = most - 2 * Decimal(step)
    portfolio.ledger.apply_transfer(row, "USD", format_decimal(start))
    for _ in range(2):
        portfolio.ledger.apply_fill(row, "S0", "1", "1", f"-{step}")
    assert portfolio.balances(row) == {"USD": format_decimal(most)}
    changes: tuple[Callable[[], object], ...] = (
        lambda: portfolio.ledger.apply_fill(row, "S0", "1", "1", f"-{unit}"),
        lambda: portfolio.ledger.apply_fill(row, "S0", "1", "1", f"-{step}"),
        lambda: portfolio.ledger.apply_transfer(row, "USD", unit),
        lambda: portfolio.ledger.apply_transfer(row, "USD", step),
    )
    for change in changes:
        with pytest.raises(InputError, match="leaves the ledger"):
            change()
    assert portfolio.balances(row) == {"USD": format_decimal(most)}
    portfolio.ledger.apply_fill(row, "S0", "1", "1", step)
    portfolio.set_parameters(portfolio.parameters.with_record(AssetParameters(asset="USD", decimals=18)))
    portfolio.ledger.apply_transfer(row, "USD", step)
    with pytest.raises(InputError, match="leaves the ledger"):
        portfolio.ledger.apply_transfer(row, "USD", step)
    assert portfolio.positions(row) == [("S0", "3", "-3")]


def test_many_small_fills_do_not_pass_the_border_of_a_position() -> None:
    portfolio, row = holding({"USD": 18}, ("1", LEAST))
    portfolio.ledger.load_group(row, {}, [("S0", "999999999999999998.5", "0")])
    portfolio.ledger.apply_fill(row, "S0", "0.5", "1", "0")
    with pytest.raises(InputError, match=f"{MOST} of it"):
        portfolio.ledger.apply_fill(row, "S0", "1", "1", "0")
    portfolio.ledger.apply_fill(row, "S0", "0.999999999999999999", "1", "0")
    assert portfolio.positions(row) == [("S0", MOST, "-1.499999999999999999")]
    assert portfolio.ledger.open_interest() == {"S0": MOST}


@pytest.mark.parametrize(
    ("balance", "position", "within", "beyond"),
    [
        ("999999999999999999", ("1", "0"), ("0.1", "1", "-0.5"), ("0.1", "1", "-0.5")),
        ("1", ("999999999999999999", "0"), ("0.5", "1", "0"), ("0.5", "1", "0")),
        ("1", ("1", "-999999999999999999"), ("0.5", "1", "0"), ("0.1", "5", "0")),
    ],
)
def test_the_borders_stand_where_other_units_bring_an_amount_near_to_them(
    balance: str, position: tuple[str, str], within: tuple[str, str, str], beyond: tuple[str, str, str]
) -> None:
    portfolio, row = holding({"USD": 0}, ("1", "1"))
    portfolio.ledger.load_group(row, {"USD": balance}, [("S0", *position)])
    finest = InstrumentParameters(
        symbol="S0", settle_asset="USD", price_increment="1", quantity_increment=LEAST, margin_tiers=TIERS[:1]
    )
    parameters = portfolio.parameters.with_record(AssetParameters(asset="USD", decimals=18)).with_record(finest)
    portfolio.set_parameters(parameters)
    portfolio.ledger.apply_fill(row, "S0", *within)
    before = portfolio.balances(row), portfolio.positions(row)
    with pytest.raises(InputError, match="leaves the ledger"):
        portfolio.ledger.apply_fill(row, "S0", *beyond)
    assert (portfolio.balances(row), portfolio.positions(row)) == before


def test_a_slot_that_held_much_is_empty_for_the_next() -> None:
    portfolio, row = holding({"USD": 18}, ("1", LEAST), ("1", "1"))
    portfolio.ledger.load_group(row, {"USD": "5000000000000"}, [("S0", "1000000000000", "-1000000000000.5")])
    portfolio.ledger.load_group(row, {}, [])
    portfolio.ledger.apply_fill(row, "S1", "1", "1", "0")
    assert (portfolio.balances(row), portfolio.positions(row)) == ({}, [("S1", "1", "-1")])
    portfolio.ledger.apply_fill(row, "S0", "1", "3", "0")
    assert portfolio.positions(row) == [("S0", "1", "-3"), ("S1", "1", "-1")]
    assert portfolio.evaluate().equity[row] == -2


def test_cash_finer_than_a_fill_can_make_it_is_kept_to_the_end() -> None:
    portfolio, row = holding({"USD": 8}, ("0.01", "1"))
    portfolio.ledger.load_group(row, {"USD": "0.0000000001"}, [("S0", "2", "-200.0000000000000009")])
    portfolio.ledger.apply_fill(row, "S0", "-1", "100", "0")
    assert portfolio.positions(row) == [("S0", "1", "-100.0000000000000009")]
    portfolio.ledger.apply_fill(row, "S0", "-1", "100", "0")
    assert (portfolio.balances(row), portfolio.positions(row)) == ({"USD": "0.0000000000999991"}, [])


def test_no_record_caps_what_an_account_can_hold() -> None:
    """The finest of everything beside each other: each still takes all that can be written."""
    listed = [(LEAST, "1"), ("1", LEAST), ("0.000000001", "0.000000001"), ("0.01", "0.001")]
    for decimals in (DECIMALS_DEFAULT, 18):
        portfolio, row = holding({"USD": decimals}, *listed)
        unit = from_units(1, decimals)
        with localcontext(EXACT):
            most = format_decimal(Decimal(10**18) - Decimal(unit))
        portfolio.ledger.apply_transfer(row, "USD", most)
        assert portfolio.balances(row) == {"USD": most}
        for index, (_, increment) in enumerate(listed):
            digits = fraction_digits(Decimal(increment))
            quantity = from_units(10 ** (18 + digits) - 1, digits)
            portfolio.ledger.load_group(row, {}, [(f"S{index}", quantity, f"-{MOST}")])
            assert portfolio.positions(row) == [(f"S{index}", quantity, f"-{MOST}")]
