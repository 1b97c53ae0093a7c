"""Which fills and reports count for an order of a command: only those of its account, group, symbol and side."""

from typing import Any

import pytest

from schemas.messages import ReportColumns
from schemas.parameters import InstrumentParameters, MarginTier
from streams.clearing.shard import Output
from streams.margin.parameters import RiskParameters
from tests.clearing.test_held_back import Recorder
from tests.clearing.test_shard import RULES, kinds

ETH = InstrumentParameters(
    symbol="ETH-PERP",
    settle_asset="USDC",
    price_increment="0.1",
    quantity_increment="0.001",
    margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.05", initial_rate="0.1"),),
)


@pytest.fixture
def driver() -> Recorder:
    """Alice's long is being reduced by alice:1, one order to sell 0.096 BTC-PERP."""
    driver = Recorder(RiskParameters.build([*RULES.records.values(), ETH]))
    driver.long()
    (command,) = driver.mark("9450").commands
    (order,) = command.orders
    assert (order.order_id, order.symbol, order.order_side, order.quantity) == (
        "alice:1:0",
        "BTC-PERP",
        "sell",
        "0.096",
    )
    return driver


def is_open(driver: Recorder) -> bool:
    return driver.shard.accounts["alice"].groups["cross"].command is not None


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        ({"account": "alice", "quantity": "0.096"}, "the order is to sell BTC-PERP"),
        ({"account": "alice", "quantity": "-0.096", "symbol": "ETH-PERP"}, "the order is to sell BTC-PERP"),
        ({"account": "alice", "quantity": "-0.096", "margin": "BTC-PERP"}, "of another account or margin group"),
        ({"account": "bob", "quantity": "-0.096"}, "of another account or margin group"),
    ],
)
@pytest.mark.parametrize("restarted", [False, True])
def test_a_fill_that_is_not_the_orders_moves_the_ledger_and_is_told(
    driver: Recorder, fill: dict[str, Any], said: str, restarted: bool
) -> None:
    if restarted:
        driver.restart()
        driver.mark("9450")
    output = driver.fill(**({"price": "9450", "order_id": "alice:1:0"} | fill))
    alert = next(alert for alert in output.alerts if alert.kind == "fill_mismatch")
    assert (alert.account, alert.symbol) == (fill["account"], fill.get("symbol", "BTC-PERP"))
    assert said in (alert.reason or "")
    assert is_open(driver)
    held = {
        (group.margin, position.symbol): position.quantity
        for group in driver.row(fill["account"]).groups
        for position in group.positions
    }
    assert held[fill.get("margin", "cross"), fill.get("symbol", "BTC-PERP")] in ("1.096", "-0.096")


def test_a_fill_beyond_the_quantity_is_told_and_counts(driver: Recorder) -> None:
    output = driver.fill("alice", "-0.1", "9450", order_id="alice:1:0")
    assert kinds(output)[:3] == ["fill_mismatch", "liquidation_fee", "liquidation_completed"]
    assert "0.1 filled of 0.096" in (output.alerts[0].reason or "")


def test_a_fill_of_an_order_whose_command_is_closed_is_told(driver: Recorder) -> None:
    driver.fill("alice", "-0.096", "9450", order_id="alice:1:0")
    assert not is_open(driver)
    output = driver.fill("alice", "-0.001", "9450", order_id="alice:1:0")
    assert kinds(output) == ["late_fill", "liquidation_fee"], "it pays all the same"
    assert "whose command is filled: 0.097 filled of 0.096" in (output.alerts[0].reason or "")
    driver.tick(70_000)
    output = driver.fill("alice", "-0.001", "9450", order_id="alice:1:0")
    assert kinds(output)[:2] == ["late_fill", "liquidation_fee"]
    assert "not remembered any more" in (output.alerts[0].reason or "")


@pytest.mark.parametrize(
    "order_id", ["alice", "alice:", "alice:9:0", "alice:0:0", "alice:x:0", "alice:1", "alice-1:1:0"]
)
def test_other_ids_of_an_account_are_its_own(driver: Recorder, order_id: str) -> None:
    assert "fill_mismatch" not in kinds(driver.fill("alice", "-0.001", "9450", order_id=order_id))


def test_a_row_that_does_not_say_what_its_order_was_matches_as_it_did(driver: Recorder) -> None:
    driver.rows["alice"] = (
        driver.rows["alice"]
        .replace(b'"symbol":"BTC-PERP","order_side":"sell"', b'"symbol":null,"order_side":null')
        .replace(b'"liquidation_started":true', b'"liquidation_started":null')
    )
    driver.restart()
    driver.mark("9450")
    assert "liquidation_completed" in kinds(driver.fill("alice", "-0.096", "9450", order_id="alice:1:0"))


@pytest.mark.parametrize(("account", "command_id"), [("alice", "alice:2"), ("alice", "bob:1"), ("bob", "alice:1")])
def test_a_report_counts_only_with_its_command_and_account(driver: Recorder, account: str, command_id: str) -> None:
    def report(account: str, command_id: str) -> Output:
        return driver.frame(
            reports=ReportColumns(
                account=[account],
                command_id=[command_id],
                order_id=["alice:1:0"],
                status=["cancelled"],
                filled_quantity=["0.05"],
            )
        )

    driver.fill("alice", "-0.05", "9450", order_id="alice:1:0")
    assert report(account, command_id).commands == []
    assert is_open(driver)
    (after,) = report("alice", "alice:1").commands
    assert (after.command_id, after.supersedes) == ("alice:2", None)
