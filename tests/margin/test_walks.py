"""Bands under everything the engine does with them: whatever happens in between, no decision is missed.

``Desk`` keeps the engine's protocol: it looks at the rows that the index reports, that the ledger touched, and that a
mark back to life or a new scale concerns, and decides those whose marks are live. A row that could be decided now must
never stand where it was not decided.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.parameters import PolicyParameters, ScanOffset
from streams.errors import InputError
from streams.margin.bands import REACH, TriggerIndex
from streams.margin.fixed_point import format_decimal
from streams.margin.parameters import RiskParameters
from streams.margin.portfolio import Portfolio
from streams.margin.slots import Rows
from tests.margin.conftest import SYMBOLS, Book, books, decimals, parameter_sets, underwater
from tests.margin.test_bands import FACTOR, LEVELS, PRICED, bracket, bracket_of
from tests.properties import examples

SCANNED = ("a0", "a2", "a4")
"""Every other account is under portfolio margin."""


def with_policy(parameters: RiskParameters, *, offset: str = "0.5") -> RiskParameters:
    offsets = (ScanOffset(first="G", second="H", rate=offset),)
    policy = PolicyParameters(
        margin_call_levels=LEVELS, portfolio_margin_accounts=SCANNED, scan_offsets=offsets, scan_extreme_weight="0.6"
    )
    return parameters.with_record(policy)


@dataclass
class Desk:
    """A portfolio with its index, and where each row stood when it was last decided."""

    portfolio: Portfolio
    index: TriggerIndex = field(init=False)
    stands: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.index = TriggerIndex(self.portfolio)
        self.look(np.arange(self.portfolio.row_count))

    def look(self, rows: Rows) -> None:
        columns = self.portfolio.evaluate(rows)
        self.index.update(rows, columns)
        for row in rows[columns.decidable].tolist():
            self.stands[row] = bracket(self.portfolio, row)

    def check(self) -> int:
        """No decidable row stands elsewhere than where it was decided; how many are decidable."""
        decidable = np.flatnonzero(self.portfolio.evaluate().decidable).tolist()
        for row in decidable:
            assert self.stands[row] == bracket(self.portfolio, row), row
        return len(decidable)

    def act(self, action: str, detail: Any) -> None:
        portfolio = self.portfolio
        match action:
            case "move":
                moves = {symbol: moved(portfolio.marks[symbol], factor) for symbol, factor in detail.items()}
                for symbol, mark in moves.items():
                    portfolio.set_mark(symbol, mark, portfolio_live(self, symbol))
                self.look(self.index.crossed_all(moves))
            case "brink":
                row, against = detail
                if factors := self.brink(row % portfolio.row_count, against):
                    self.act("move", factors)
            case "fill":
                row, symbol, lots = detail
                rule = portfolio.parameters.instruments[symbol]
                price = (portfolio.marks[symbol] // rule.price_increment + 1) * rule.price_increment
                quantity = format_decimal(lots * rule.quantity_increment)
                self.touch(
                    row, lambda touched: portfolio.ledger.apply_fill(touched, symbol, quantity, str(price), "0.01")
                )
            case "transfer":
                row, asset, amount = detail
                self.touch(row, lambda touched: portfolio.ledger.apply_transfer(touched, asset, str(amount)))
            case "live":
                symbol, live = detail
                self.live[symbol] = live
                portfolio.set_live(symbol, live)
                if live:
                    self.look(portfolio.rows_with([symbol]))
            case "scale":
                key, scale = detail
                scales = {**portfolio.parameters.scales, key: scale}
                portfolio.set_parameters(portfolio.parameters.with_scales(scales))
                kind, _, name = key.partition(":")
                rules = portfolio.parameters.assets.get(name)
                concerned = name if kind == "instrument" or rules is None else rules.price_symbol
                self.look(portfolio.rows_with([str(concerned)]))
            case "rules":
                kept = [rule for key, rule in portfolio.parameters.records.items() if key.startswith("instrument")]
                changed = RiskParameters.build([*detail.records.values(), *kept])
                portfolio.set_parameters(with_policy(changed, offset="0.9").with_scales(portfolio.parameters.scales))
                self.index.rebuild()
                self.look(np.arange(portfolio.row_count))

    live: dict[str, bool] = field(default_factory=dict)

    def brink(self, row: int, against: int) -> dict[str, float]:
        """The move of all marks together, in the proportions in which bands split the slack, that takes ``row`` just
        beyond its next edge: losing with ``against`` 1, winning with -1. Empty if there is none within 90 %."""
        portfolio = self.portfolio
        exposures = portfolio.exposures(np.array([row]), REACH)
        steep = np.abs(exposures.smooth) + exposures.margin_at + exposures.margin_sway
        named = {portfolio.symbol_id(symbol): symbol for symbol in PRICED}
        steps = {
            named[symbol]: -against * np.sign(smooth) / np.cbrt(slope)
            for symbol, smooth, slope in zip(exposures.symbol.tolist(), exposures.smooth, steep, strict=True)
            if slope > 0
        }
        longest = max(map(abs, steps.values()), default=0)
        group, start = portfolio.group(row), bracket(portfolio, row)
        if not longest:
            return {}

        def factors(part: float) -> dict[str, float]:
            return {symbol: float(1 + part * step / longest) for symbol, step in steps.items()}

        def passed(part: float) -> bool:
            marks = {symbol: moved(portfolio.marks[symbol], factor) for symbol, factor in factors(part).items()}
            return bracket_of(group, {**portfolio.marks, **marks}, portfolio.parameters) != start

        near, far = 0.0, 0.9
        if not passed(far):
            return {}
        for _ in range(40):
            middle = (near + far) / 2
            near, far = (near, middle) if passed(middle) else (middle, far)
        return factors(far * (1 + 1e-6))

    def touch(self, row: int, change: Any) -> None:
        row %= self.portfolio.row_count
        try:
            change(row)
        except InputError:
            return
        self.look(np.array([row]))


def portfolio_live(desk: Desk, symbol: str) -> bool:
    return desk.live.get(symbol, True)


def moved(mark: Decimal, factor: float) -> Decimal:
    return max(Decimal(f"{float(mark) * factor:.10f}"), Decimal("0.0000000001"))


BRINK = st.tuples(st.just("brink"), st.tuples(st.integers(0, 5), st.sampled_from([1, 1, -1])))

ACTION = st.one_of(
    st.tuples(st.just("move"), st.dictionaries(st.sampled_from(PRICED), FACTOR, min_size=1, max_size=4)),
    st.tuples(st.just("move"), st.dictionaries(st.sampled_from(PRICED), FACTOR, min_size=1, max_size=2)),
    BRINK,
    BRINK,
    BRINK,
    st.tuples(st.just("fill"), st.tuples(st.integers(0, 5), st.sampled_from(SYMBOLS), st.integers(-5, 5).filter(bool))),
    st.tuples(
        st.just("transfer"),
        st.tuples(st.integers(0, 5), st.sampled_from(["USD", "EUR", "BTC"]), decimals("-20000", "20000", 2)),
    ),
    st.tuples(st.just("live"), st.tuples(st.sampled_from(PRICED), st.booleans())),
    st.tuples(
        st.just("scale"),
        st.tuples(
            st.sampled_from([*(f"instrument:{symbol}" for symbol in SYMBOLS), "asset:EUR", "asset:BTC"]),
            st.sampled_from([Decimal("0.5"), Decimal("1.01"), Decimal("1.5"), Decimal(4)]),
        ),
    ),
    st.tuples(st.just("rules"), parameter_sets()),
)


def opened(group_books: list[Book]) -> Portfolio:
    """The books as accounts a0, a1, … under the rules and at the marks of the first."""
    portfolio = Portfolio(with_policy(group_books[0].parameters))
    for symbol, mark in group_books[0].marks.items():
        portfolio.set_mark(symbol, mark, True)
    lots = {name: rule.quantity_increment for name, rule in portfolio.parameters.instruments.items()}
    for number, book in enumerate(group_books):
        positions = [
            (p.symbol, format_decimal(p.quantity // lots[p.symbol] * lots[p.symbol]), format_decimal(p.cash))
            for p in book.group.positions
            if p.quantity // lots[p.symbol]
        ]
        balances = {asset: format_decimal(amount) for asset, amount in book.group.balances.items()}
        portfolio.ledger.load_group(portfolio.ledger.open_group(f"a{number}", "cross"), balances, positions)
    return portfolio


@settings(max_examples=examples(80))
@given(st.lists(books() | underwater(), min_size=2, max_size=5), st.lists(ACTION, min_size=2, max_size=14))
def test_whatever_happens_no_group_that_can_be_decided_stands_undecided(
    group_books: list[Book], actions: list[tuple[str, Any]]
) -> None:
    desk = Desk(opened(group_books))
    assert desk.check() == len(group_books)
    for action, detail in actions:
        desk.act(action, detail)
        desk.check()
    for symbol in PRICED:
        desk.act("live", (symbol, True))
    assert desk.check() == len(group_books)
