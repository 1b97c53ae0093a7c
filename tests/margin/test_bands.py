"""The trigger index: whatever the marks do, no group passes an edge unseen, and few are looked at in vain."""

import random
from collections.abc import Collection, Mapping
from decimal import Decimal, localcontext
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.parameters import AssetParameters, CollateralTier, PolicyParameters
from streams.margin import bands
from streams.margin.bands import TriggerIndex
from streams.margin.fixed_point import EXACT, format_decimal
from streams.margin.group import Group
from streams.margin.health import evaluate
from streams.margin.levels import decision_edges
from streams.margin.parameters import RiskParameters
from streams.margin.portfolio import Portfolio
from streams.margin.slots import Rows
from tests.margin.conftest import SYMBOLS, books, parameter_sets, rules
from tests.properties import examples

LEVELS = ("1.5", "1.2", "1.05")
PRICED = (*SYMBOLS, "EUR-USD")


def bracket(portfolio: Portfolio, row: int) -> int:
    """How many edges the exact health ratio of a row has reached; -1 without margin and debt, -2 and -3 if it needs a
    mark that is not live and is, or is not, liquidatable all the same."""
    return bracket_of(portfolio.group(row), portfolio.marks, portfolio.parameters, portfolio.stale)


def bracket_of(
    group: Group, marks: Mapping[str, Decimal], parameters: RiskParameters, stale: Collection[str] = frozenset()
) -> int:
    """:func:`bracket` of a group at any marks."""
    health = evaluate(group, marks, parameters, stale=stale)
    if health.bounds:
        return -2 if health.liquidatable else -3
    if health.health_ratio is None:
        return -1
    with localcontext(EXACT):
        edges = decision_edges(parameters.policy.margin_call_levels)
        needed = health.maintenance_margin + health.debt
        return sum(health.equity + health.debt >= edge * needed for edge in edges)


class Watch:
    """A portfolio, its index, and the bracket in which each row was when it was last looked at."""

    def __init__(self, portfolio: Portfolio) -> None:
        self.portfolio = portfolio
        self.index = TriggerIndex(portfolio)
        self.known = self.brackets()
        self.looked_at = 0

    def brackets(self) -> list[int]:
        return [bracket(self.portfolio, row) for row in range(self.portfolio.row_count)]

    def move(self, moves: dict[str, Decimal]) -> Rows:
        """Set marks; every row that changed its bracket must be among those found."""
        stale = self.portfolio.stale & self.portfolio.marks.keys()
        for symbol, mark in moves.items():
            self.portfolio.set_mark(symbol, mark, symbol not in stale)
        rows = self.index.crossed_all(moves)
        if dim := stale & moves.keys():
            rows = np.union1d(rows, self.portfolio.rows_with(dim))
        now = self.brackets()
        missed = {row for row in range(len(now)) if now[row] != self.known[row]} - set(rows.tolist())
        assert not missed
        self.index.update(rows)
        self.known = now
        self.looked_at += rows.size
        return rows

    def flip(self, symbols: set[str], live: bool) -> None:
        """Marks that begin or cease to be live: their holders are looked at."""
        for symbol in symbols:
            self.portfolio.set_live(symbol, live)
        self.index.update(self.portfolio.rows_with(symbols))
        self.known = self.brackets()

    def touch(self, rows: list[int]) -> None:
        """Rows whose ledger changed: the caller looks at them and updates them."""
        self.index.update(np.array(rows, dtype=np.int64))
        self.known = self.brackets()

    def set_parameters(self, parameters: RiskParameters) -> None:
        self.portfolio.set_parameters(parameters)
        self.index.rebuild()
        self.known = self.brackets()


FACTOR = st.one_of(
    st.floats(0.999, 1.001), st.floats(0.98, 1.02), st.floats(0.7, 1.4), st.sampled_from([0.5, 0.05, 2.0, 20.0, 1.0])
)
MOVE = st.tuples(st.just("move"), st.dictionaries(st.sampled_from(PRICED), FACTOR, min_size=1, max_size=4))
FILL = st.tuples(
    st.just("fill"), st.tuples(st.integers(0, 5), st.sampled_from(SYMBOLS), st.integers(-5, 5).filter(bool))
)
FLIP = st.tuples(st.just("flip"), st.tuples(st.sets(st.sampled_from(PRICED), min_size=1, max_size=2), st.booleans()))
CHANGE = st.tuples(st.just("parameters"), parameter_sets())


def step(watch: Watch, action: str, detail: Any) -> None:
    portfolio = watch.portfolio
    if action == "move":
        with localcontext() as context:
            context.prec = 40
            moves = {
                symbol: Decimal(format_decimal(portfolio.marks.get(symbol, Decimal(50)) * Decimal(factor), 10))
                for symbol, factor in detail.items()
            }
        watch.move({symbol: mark for symbol, mark in moves.items() if mark > 0})
    elif action == "flip":
        watch.flip(*detail)
    elif action == "fill":
        row, symbol, lots = detail
        row %= portfolio.row_count
        rule = portfolio.parameters.instruments[symbol]
        price = (portfolio.marks.get(symbol, Decimal(50)) // rule.price_increment + 1) * rule.price_increment
        portfolio.ledger.apply_fill(
            row, symbol, format_decimal(lots * rule.quantity_increment), format_decimal(price), "0.01"
        )
        watch.touch([row])
    else:
        same_lots = [record for key, record in portfolio.parameters.records.items() if key.startswith("instrument")]
        changed = RiskParameters.build([*detail.records.values(), *same_lots, *with_levels().records.values()])
        watch.set_parameters(changed)


def with_levels() -> RiskParameters:
    return RiskParameters.build([PolicyParameters(margin_call_levels=LEVELS)])


@settings(max_examples=examples(250))
@given(
    st.lists(books(positions_min=0), min_size=1, max_size=5),
    st.lists(MOVE | MOVE | MOVE | FLIP | FILL | CHANGE, min_size=1, max_size=12),
    st.sampled_from(["0.3", "2"]),
    st.booleans(),
    st.sets(st.sampled_from(PRICED), max_size=1),
)
def test_no_walk_of_marks_fills_and_rules_carries_a_group_past_an_edge_unseen(
    group_books: list[Any], actions: list[Any], bound: str, scanned: bool, never: set[str]
) -> None:
    parameters = group_books[0].parameters.with_record(
        PolicyParameters(
            margin_call_levels=LEVELS,
            portfolio_margin_accounts=("account-0", "account-2", "account-3") if scanned else (),
        )
    )
    for record in parameters.records.values():
        if not isinstance(record, PolicyParameters):
            parameters = parameters.with_record(msgspec.structs.replace(record, stale_bound=bound))
    portfolio = Portfolio(parameters)
    for symbol, mark in group_books[0].marks.items():
        if symbol not in never:
            portfolio.set_mark(symbol, mark, True)
    for number, book in enumerate(group_books):
        row = portfolio.ledger.open_group(f"account-{number}", "cross")
        lots = {name: rule.quantity_increment for name, rule in parameters.instruments.items()}
        positions = [
            (p.symbol, format_decimal(p.quantity // lots[p.symbol] * lots[p.symbol]), format_decimal(p.cash))
            for p in book.group.positions
            if p.quantity // lots[p.symbol]
        ]
        portfolio.ledger.load_group(row, {a: format_decimal(q) for a, q in book.group.balances.items()}, positions)
    watch = Watch(portfolio)
    for action, detail in actions:
        step(watch, action, detail)


def crowd(count: int, seed: int, *, priced_cash: bool = False) -> Portfolio:
    """``count`` groups of one to three positions at 100, their equity 1 to 40 % of the notional."""
    chosen = random.Random(seed)
    tiers = ((0, "0.01", "0.02"), (20_000, "0.05", "0.1"))
    parameters = RiskParameters.build(
        [
            PolicyParameters(margin_call_levels=LEVELS),
            AssetParameters(asset="USD", price_symbol="USD-EUR" if priced_cash else None),
            *(rules(symbol=f"S{n}", tiers=tiers).records[f"instrument:S{n}"] for n in range(4)),
        ]
    )
    portfolio = Portfolio(parameters)
    portfolio.set_mark("USD-EUR", "1", True)
    for n in range(4):
        portfolio.set_mark(f"S{n}", "100", True)
    for number in range(count):
        held = chosen.sample(range(4), chosen.randint(1, 3))
        lots = {n: chosen.choice([-1, 1]) * chosen.randint(1, 400) for n in held}
        equity = chosen.uniform(0.01, 0.4) * sum(map(abs, lots.values())) * 100
        portfolio.ledger.load_group(
            portfolio.ledger.open_group(f"account-{number}", "cross"),
            {"USD": f"{equity:.2f}"},
            [(f"S{n}", str(quantity), str(-quantity * 100)) for n, quantity in lots.items()],
        )
    return portfolio


def follow(watch: Watch, names: list[str], *, seed: int, steps: int) -> int:
    """Walk one of the marks a step, now and then by a large one; how often a group has changed its bracket."""
    chosen = random.Random(seed)
    changes = 0
    for _ in range(steps):
        symbol = chosen.choice(names)
        size = chosen.choice([0.0005, 0.0005, 0.0005, 0.01])
        mark = Decimal(f"{float(watch.portfolio.marks[symbol]) * (1 + chosen.gauss(0, size)):.6f}")
        before = watch.known
        watch.move({symbol: mark})
        changes += sum(one != other for one, other in zip(before, watch.known, strict=True))
    return changes


@pytest.mark.parametrize("priced_cash", [False, True])
def test_a_long_walk_of_many_groups_is_followed_and_few_are_looked_at_in_vain(priced_cash: bool) -> None:
    watch = Watch(crowd(150, seed=4, priced_cash=priced_cash))
    names = [*(f"S{n}" for n in range(4)), *(["USD-EUR"] if priced_cash else [])]
    assert follow(watch, names, seed=9, steps=400) > 50
    assert watch.looked_at < 400 * 150 / 10


def test_a_mark_that_stays_in_every_band_wakes_nobody() -> None:
    watch = Watch(crowd(150, seed=5))
    near = {row for row in range(150) if _distance(watch.portfolio, row) < 0.01}
    rows = watch.move({"S1": Decimal("100.001")})
    assert set(rows.tolist()) <= near


def _distance(portfolio: Portfolio, row: int) -> float:
    health = evaluate(portfolio.group(row), portfolio.marks, portfolio.parameters)
    assert health.health_ratio is not None
    edges = decision_edges(portfolio.parameters.policy.margin_call_levels)
    return min(abs(float(health.health_ratio) / float(edge) - 1) for edge in edges)


def test_only_the_losing_side_of_a_safe_position_has_a_trigger() -> None:
    parameters = rules(tiers=((0, "0.05", "0.1"),))
    portfolio = Portfolio(parameters)
    portfolio.set_mark("X-PERP", "100", True)
    portfolio.ledger.load_group(portfolio.ledger.open_group("a", "cross"), {"USD": "20"}, [("X-PERP", "1", "-100")])
    portfolio.ledger.load_group(portfolio.ledger.open_group("b", "cross"), {"USD": "20"}, [("X-PERP", "-1", "100")])
    watch = Watch(portfolio)
    assert watch.move({"X-PERP": Decimal("85")}).tolist() == []
    assert watch.move({"X-PERP": Decimal("84.22")}).tolist() == []
    assert watch.move({"X-PERP": Decimal("84.2")}).tolist() == [0]
    assert watch.move({"X-PERP": Decimal("114.2")}).tolist() == [0]
    assert watch.move({"X-PERP": Decimal("114.3")}).tolist() == [1]


def test_one_symbol_alone_triggers_at_its_liquidation_price() -> None:
    from streams.margin.health import liquidation_price

    portfolio = Portfolio(rules(tiers=((0, "0.05", "0.1"),)))
    portfolio.set_mark("X-PERP", "100", True)
    row = portfolio.ledger.open_group("a", "cross")
    portfolio.ledger.load_group(row, {"USD": "20"}, [("X-PERP", "1", "-100")])
    price = liquidation_price(portfolio.group(row), "X-PERP", portfolio.marks, portfolio.parameters)
    assert price is not None
    index = TriggerIndex(portfolio)
    with localcontext(EXACT):
        assert index.crossed("X-PERP", price + Decimal("0.000001")).tolist() == []
    assert index.crossed("X-PERP", price).tolist() == [row]


def test_in_a_crash_rows_wait_awake_for_their_bands_and_are_reported_until_they_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bands, "REBAND_LEAST", 20)
    watch = Watch(crowd(150, seed=6))
    rows = watch.move({f"S{n}": Decimal(70) for n in range(4)})
    assert rows.size > 60
    waiting = [watch.index.awake_count]
    assert waiting[0] == rows.size - 20
    while waiting[-1]:
        watch.move({"S0": watch.portfolio.marks["S0"] + Decimal("0.0001")})
        waiting.append(watch.index.awake_count)
    assert waiting == sorted(waiting, reverse=True)
    assert len(waiting) < 12


def test_bands_made_anew_again_and_again_do_not_pile_up_at_a_symbol_that_rests() -> None:
    portfolio = crowd(50, seed=8)
    index = TriggerIndex(portfolio)
    rows = np.arange(50)
    counts = []
    for _ in range(2000):
        index.update(rows)
        counts.append(index.trigger_count)
    assert max(counts) < 600 * counts[0]
    assert max(counts[1000:]) <= max(counts[:1000]) + 2 * counts[0]


def test_a_first_mark_concerns_everyone_who_needs_it() -> None:
    portfolio = Portfolio(rules())
    portfolio.ledger.load_group(portfolio.ledger.open_group("a", "cross"), {"USD": "1"}, [("X-PERP", "1", "-100")])
    index = TriggerIndex(portfolio)
    portfolio.set_mark("X-PERP", "100", True)
    assert index.crossed("X-PERP", "100").tolist() == [0]
    assert index.crossed("unheard-of", "1").tolist() == []


def test_new_rows_and_new_symbols_join_an_index_already_there() -> None:
    portfolio = crowd(10, seed=1)
    watch = Watch(portfolio)
    more = rules(symbol="NEW").records["instrument:NEW"]
    watch.set_parameters(portfolio.parameters.with_record(more))
    portfolio.set_mark("NEW", "100", True)
    assert watch.index.crossed("NEW", "100").size == 0
    rows = [portfolio.ledger.open_group(f"new-{number}", "cross") for number in range(40)]
    for row in rows:
        portfolio.ledger.load_group(row, {"USD": "10"}, [("NEW", "1", "-100")])
    watch.touch(rows)
    assert watch.move({"NEW": Decimal(94)}).tolist() == rows


# --- every point of a grid, reached in one move ----------------------------------------------------------------------

TIERS = {
    "flat": ((0, "0.05", "0.1"),),
    "steep above 90": ((0, "0.01", "0.02"), (90, "0.5", "0.9")),
    "steep above 110": ((0, "0.01", "0.02"), (110, "0.5", "0.9")),
    "steep above 150": ((0, "0.01", "0.02"), (150, "0.5", "0.9")),
}
STEPS = [
    0.02,
    0.3,
    0.6,
    0.8,
    0.86,
    0.9,
    0.95,
    0.97,
    0.99,
    1.0,
    1.01,
    1.05,
    1.1,
    1.135,
    1.2,
    1.24,
    1.26,
    1.4,
    1.58,
    1.8,
    2.5,
]

GRIDS = {
    "long whose margin shrinks slower below": ("steep above 90", "USD", ("1", "-100"), {"USD": "40"}),
    "short whose margin grows faster soon": ("steep above 110", "USD", ("-1", "100"), {"USD": "15"}),
    "short whose margin grows faster far away": ("steep above 150", "USD", ("-1", "100"), {"USD": "60"}),
    "short that recovers out of a steep tier": ("steep above 90", "USD", ("-1", "100"), {"USD": "2"}),
    "long in a settle asset that rises": ("flat", "EUR", ("1", "-100"), {"USD": "20"}),
    "winning long in a settle asset": ("flat", "EUR", ("1", "-94"), {"USD": "20"}),
    "losing short in a settle asset": ("flat", "EUR", ("-1", "90"), {"USD": "40"}),
    "short against collateral it prices": ("flat", "EUR", ("-1", "100"), {"COIN": "1", "USD": "8"}),
    "long financed by a debt it prices": ("flat", "EUR", ("1", "-100"), {"COIN": "-1", "USD": "110"}),
    "short with cash in its settle asset": ("flat", "EUR", ("-1", "100"), {"EUR": "15"}),
}


@pytest.mark.parametrize("case", GRIDS)
def test_no_point_of_a_grid_is_reached_unseen(case: str) -> None:
    tiers, settle, (quantity, cash), balances = GRIDS[case]
    record = rules(tiers=TIERS[tiers]).records["instrument:X-PERP"]
    parameters = RiskParameters.build(
        [
            msgspec.structs.replace(record, settle_asset=settle),
            AssetParameters(asset="USD"),
            AssetParameters(asset="EUR", price_symbol="EUR-USD"),
            AssetParameters(asset="COIN", price_symbol="X-PERP"),
        ]
    )
    portfolio = Portfolio(parameters)
    row = portfolio.ledger.open_group("a", "cross")
    portfolio.ledger.load_group(row, balances, [("X-PERP", quantity, cash)])
    seen = 0
    for own in STEPS:
        for other in STEPS if settle == "EUR" else [1.0]:
            portfolio.set_mark("X-PERP", "100", True)
            portfolio.set_mark("EUR-USD", "1", True)
            watch = Watch(portfolio)
            start = watch.known
            watch.move({"X-PERP": Decimal(f"{100 * own:.2f}"), "EUR-USD": Decimal(f"{other:.2f}")})
            seen += watch.known != start
    assert seen


DIM_GRIDS = {
    "half-live position, its own mark live": ("EUR", ("1", "-100"), {"USD": "-30", "EUR": "3"}, {"EUR-USD"}),
    "half-live short, its own mark live": ("EUR", ("-1", "130"), {"USD": "-40"}, {"EUR-USD"}),
    "half-live position, its settle asset live": ("EUR", ("1", "-180"), {"USD": "-30"}, {"X-PERP"}),
    "half-live short, its settle asset live": ("EUR", ("-1", "40"), {"USD": "-40"}, {"X-PERP"}),
    "dust beside a position": ("USD", ("1", "-100"), {"USD": "6", "COIN": "0.01"}, {"COIN-USD"}),
    "debt that may be worth nothing": ("USD", ("-1", "100"), {"USD": "9", "COIN": "-0.5"}, {"COIN-USD"}),
}


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("case", DIM_GRIDS)
def test_no_point_of_a_grid_is_reached_unseen_with_a_mark_that_is_not_live(case: str, scanned: bool) -> None:
    settle, (quantity, cash), balances, stale = DIM_GRIDS[case]
    scan: dict[str, Any] = {"scan_range": "0.2", "scan_floor_rate": "0.01"} if scanned else {}
    record = rules(tiers=TIERS["steep above 110"], stale_bound="0.5", **scan).records["instrument:X-PERP"]
    parameters = RiskParameters.build(
        [
            msgspec.structs.replace(record, settle_asset=settle),
            rules(symbol="Y-PERP", tiers=TIERS["flat"], stale_bound="0.5", **scan).records["instrument:Y-PERP"],
            AssetParameters(asset="USD"),
            AssetParameters(asset="EUR", price_symbol="EUR-USD", stale_bound="0.5"),
            AssetParameters(asset="COIN", price_symbol="COIN-USD", stale_bound="0.5"),
            PolicyParameters(margin_call_levels=LEVELS, portfolio_margin_accounts=("a",)),
        ]
    )
    portfolio = Portfolio(parameters)
    row = portfolio.ledger.open_group("a", "cross")
    portfolio.ledger.load_group(row, balances, [("X-PERP", quantity, cash), ("Y-PERP", "0.5", "-30")])
    seen = 0
    for own in STEPS:
        for other in STEPS:
            for symbol, mark in (("X-PERP", "100"), ("EUR-USD", "1"), ("COIN-USD", "10"), ("Y-PERP", "100")):
                portfolio.set_mark(symbol, mark, symbol not in stale)
            watch = Watch(portfolio)
            start = watch.known
            first, second = [name for name in ("X-PERP", "EUR-USD", "Y-PERP") if name not in stale][:2]
            moves = ((first, own), (second, other))
            watch.move({symbol: portfolio.marks[symbol] * Decimal(f"{part:.3f}") for symbol, part in moves})
            seen += watch.known != start
    assert seen


DEBT_GRIDS = {
    "debt that grows": {"USD": "200", "SOL": "-1"},
    "debt beside a haircut": {"EUR": "150", "SOL": "-1", "USD": "40"},
    "collateral against a plain debt": {"EUR": "150", "USD": "-80"},
    "debt below its requirement": {"USD": "100", "SOL": "-1"},
    "debt between two levels": {"USD": "125", "SOL": "-1"},
    "debt and a position": {"USD": "220", "SOL": "-1"},
}


@pytest.mark.parametrize("case", DEBT_GRIDS)
def test_no_level_of_a_debt_is_passed_unseen(case: str) -> None:
    haircut = (CollateralTier(quantity_floor="0", weight="0.9"), CollateralTier(quantity_floor="100", weight="0.5"))
    parameters = RiskParameters.build(
        [
            AssetParameters(asset="USD"),
            AssetParameters(asset="EUR", price_symbol="EUR-USD", collateral_tiers=haircut, liability_weight="1.1"),
            AssetParameters(asset="SOL", price_symbol="SOL-USD", liability_weight="1.1"),
            rules(tiers=TIERS["steep above 110"]).records["instrument:X-PERP"],
            PolicyParameters(margin_call_levels=LEVELS),
        ]
    )
    portfolio = Portfolio(parameters)
    positions = [("X-PERP", "1", "-100")] if "position" in case else []
    portfolio.ledger.load_group(portfolio.ledger.open_group("a", "cross"), DEBT_GRIDS[case], positions)
    brackets = set()
    for own in (*STEPS, 0.942):
        for other in STEPS:
            for symbol, mark in (("SOL-USD", "100"), ("EUR-USD", "1"), ("X-PERP", "100")):
                portfolio.set_mark(symbol, mark, True)
            watch = Watch(portfolio)
            second = "EUR-USD" if "EUR" in DEBT_GRIDS[case] else "X-PERP"
            moves = (("SOL-USD", own), (second, other))
            watch.move({symbol: portfolio.marks[symbol] * Decimal(f"{part:.3f}") for symbol, part in moves})
            brackets |= set(watch.known)
    assert len(brackets) > 2


def test_a_position_that_ceases_to_be_unbounded_is_seen() -> None:
    """Its settle asset never had a price: while it gains nothing bounds it, when it loses it is worth nothing."""
    record = rules(symbol="Y-PERP").records["instrument:Y-PERP"]
    parameters = rules(more=(AssetParameters(asset="EUR", price_symbol="EUR-USD"),)).with_record(
        msgspec.structs.replace(record, settle_asset="EUR")
    )
    portfolio = Portfolio(parameters)
    portfolio.ledger.load_group(
        portfolio.ledger.open_group("a", "cross"), {"USD": "4"}, [("X-PERP", "1", "-100"), ("Y-PERP", "1", "-100")]
    )
    for symbol, mark in (("X-PERP", "100"), ("Y-PERP", "101")):
        portfolio.set_mark(symbol, mark, True)
    watch = Watch(portfolio)
    assert watch.known == [-3]
    watch.move({"Y-PERP": Decimal(99)})
    assert watch.known == [-2]
    watch.move({"Y-PERP": Decimal(102)})
    assert watch.known == [-3]
