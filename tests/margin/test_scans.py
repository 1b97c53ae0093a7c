"""Portfolio margin as columns: screens within their error of the exact scan, and bands that miss nothing."""

import random
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from schemas.parameters import AssetParameters, PolicyParameters, ScanOffset
from streams.margin.health import evaluate
from streams.margin.parameters import RiskParameters
from streams.margin.portfolio import Portfolio
from tests.margin.conftest import rules
from tests.margin.test_bands import LEVELS, Watch, follow
from tests.margin.test_portfolio import assert_within_error


def hedged(count: int, seed: int, scanned: int | None = None) -> Portfolio:
    """``count`` accounts long and short of two underlyings whose groups offset each other; the first ``scanned`` of
    them (all if not given) are under portfolio margin."""
    chosen = random.Random(seed)
    scans = [("S0", "G"), ("S1", "G"), ("S2", "H"), ("S3", None)]
    instruments = [
        rules(
            symbol=symbol,
            tiers=((0, "0.05", "0.1"), (20_000, "0.1", "0.2")),
            **(dict[str, Any](scan_group=group, scan_range="0.08", scan_floor_rate="0.01") if group else {}),
        ).records[f"instrument:{symbol}"]
        for symbol, group in scans
    ]
    policy = PolicyParameters(
        margin_call_levels=LEVELS,
        portfolio_margin_accounts=tuple(f"account-{number}" for number in range(count if scanned is None else scanned)),
        scan_offsets=(ScanOffset(first="G", second="H", rate="0.5"),),
    )
    portfolio = Portfolio(RiskParameters.build([policy, AssetParameters(asset="USD"), *instruments]))
    for symbol, _ in scans:
        portfolio.set_mark(symbol, "100", True)
    for number in range(count):
        held = chosen.sample(scans, chosen.randint(1, 4))
        lots = {symbol: chosen.choice([-1, 1]) * chosen.randint(1, 300) for symbol, _ in held}
        equity = chosen.uniform(0.01, 0.4) * sum(map(abs, lots.values())) * 100
        portfolio.ledger.load_group(
            portfolio.ledger.open_group(f"account-{number}", "cross"),
            {"USD": f"{equity:.2f}"},
            [(symbol, str(quantity), str(-quantity * 100)) for symbol, quantity in lots.items()],
        )
    return portfolio


def test_a_long_walk_of_hedged_accounts_is_followed_and_few_are_looked_at_in_vain() -> None:
    watch = Watch(hedged(50, seed=3))
    assert follow(watch, ["S0", "S1", "S2", "S3"], seed=7, steps=200) > 15
    assert watch.looked_at < 200 * 50 / 6


def test_scanned_and_tiered_rows_are_screened_together_within_a_small_error() -> None:
    portfolio = hedged(400, seed=5, scanned=200)
    chosen = random.Random(2)
    liquidatable = 0
    for _ in range(3):
        for symbol in ("S0", "S1", "S2", "S3"):
            portfolio.set_mark(symbol, f"{chosen.uniform(85, 115):.4f}", True)
        columns = portfolio.evaluate()
        liquidatable += assert_within_error(portfolio, list(range(400)), columns)
        some = np.array(chosen.sample(range(400), 60))
        assert_within_error(portfolio, some.tolist(), portfolio.evaluate(some))
        assert columns.error.max() < 1e-5
    assert 50 < liquidatable < 1150


def test_an_account_changes_its_model_with_the_policy() -> None:
    portfolio = hedged(4, seed=1)
    scanned = portfolio.evaluate().maintenance
    portfolio.set_parameters(portfolio.parameters.with_record(PolicyParameters()))
    tiered = portfolio.evaluate().maintenance
    for row in range(4):
        exact = evaluate(portfolio.group(row), portfolio.marks, portfolio.parameters).maintenance_margin
        assert abs(float(exact) - tiered[row]) < 1e-6
    assert (scanned != tiered).any()


@pytest.mark.parametrize(("lots", "move"), [({"A": "1", "B": "-2"}, Decimal(-1)), ({"A": "-1"}, Decimal(1))])
def test_a_book_that_grows_dearer_as_it_loses_is_woken_where_it_crosses(lots: dict[str, str], move: Decimal) -> None:
    """One group, range 50 %. Short 1 of A, or long 1 against 2 of B: when A moves d against it, equity falls by d and
    the margin, 50 at first, rises by d / 2. With equity 70 it crosses at d = 13.33: the band may end there, no later.
    """
    scan: dict[str, Any] = {"scan_group": "G", "scan_range": "0.5", "scan_floor_rate": "0.001"}
    instruments = [rules(symbol=symbol, **scan).records[f"instrument:{symbol}"] for symbol in "AB"]
    policy = PolicyParameters(portfolio_margin_accounts=("a",))
    portfolio = Portfolio(RiskParameters.build([policy, AssetParameters(asset="USD"), *instruments]))
    positions = [(symbol, lot, str(-100 * int(lot))) for symbol, lot in lots.items()]
    portfolio.ledger.load_group(portfolio.ledger.open_group("a", "cross"), {"USD": "70"}, positions)
    for distance, crosses in (("1", False), ("13.2", False), ("13.34", True)):
        portfolio.set_mark("A", "100", True)
        portfolio.set_mark("B", "100", True)
        watch = Watch(portfolio)
        before = watch.known
        watch.move({"A": 100 + move * Decimal(distance)})
        assert (watch.known != before) is crosses
