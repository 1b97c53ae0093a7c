"""Every fill of a command's order pays the fees that the command stated, whenever it comes, once; nobody else does."""

from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from schemas.messages import BookedFees, FillColumns
from schemas.parameters import AssetParameters, CollateralTier, InstrumentParameters
from streams.clearing.shard import Output
from streams.margin.parameters import RiskParameters
from tests.clearing.test_held_back import Recorder
from tests.clearing.test_shard import RULES, kinds

ORDER = "alice:1:0"


def changed(**fields: Any) -> InstrumentParameters:
    """BTC-PERP with other fields."""
    before = RULES.records["instrument:BTC-PERP"]
    assert isinstance(before, InstrumentParameters)
    return replace(before, version=9, **fields)


def booked(output: Output) -> list[BookedFees]:
    return [alert.fees for alert in output.alerts if alert.fees]


def paid(output: Output) -> list[tuple[str, str]]:
    """Insurance and liquidation fee of each fill."""
    return [(fees.insurance_fee, fees.liquidation_fee) for fees in booked(output)]


@pytest.fixture
def driver() -> Recorder:
    """Alice's long is being reduced by alice:1, one order to sell 0.096 BTC-PERP at 9,450."""
    driver = Recorder(RULES)
    driver.long()
    (command,) = driver.mark("9450").commands
    (order,) = command.orders
    assert (order.order_id, order.quantity) == (ORDER, "0.096")
    assert (order.liquidation_fee, order.insurance_fee) == ("0.005", "0.001"), "the command states the rates"
    return driver


def sell(driver: Recorder, *quantities: str, price: str = "9450", order_id: str = ORDER) -> Output:
    """Fills in one frame."""
    count = len(quantities)
    columns = {"account": "alice", "margin": "cross", "symbol": "BTC-PERP", "price": price, "fee": "0"}
    return driver.frame(
        fills=FillColumns(
            **{name: [value] * count for name, value in columns.items()},  # type: ignore[arg-type]
            quantity=[f"-{quantity}" for quantity in quantities],
            order_id=[order_id] * count,
            trade_id=list(range(count)),
        )
    )


def test_a_fill_pays_a_pool_and_its_account_is_told(driver: Recorder) -> None:
    before = Decimal(driver.balances("alice")["USDC"])
    output = sell(driver, "0.096")
    (fees,) = booked(output)
    assert (fees.insurance_fee, fees.liquidation_fee, fees.due) == ("0.9072", "4.536", "5.4432")
    assert (fees.pool, fees.asset, fees.order_id, fees.after_command) == ("default", "USDC", ORDER, 1)
    (alert,) = (alert for alert in output.alerts if alert.fees)
    assert alert.reason == "0.9072 USDC insurance fee and 4.536 USDC liquidation fee of 5.4432 due to pool default"
    assert Decimal(driver.balances("alice")["USDC"]) == before - Decimal("5.4432")
    assert output.journal.pools == {"default": {"USDC": "5.4432"}}


def test_what_the_pools_have_is_the_next_owners_too(driver: Recorder) -> None:
    sell(driver, "0.05")
    driver.restart()
    driver.mark("9450")
    assert sell(driver, "0.046").journal.pools == {"default": {"USDC": "5.4432"}}


def test_a_fill_of_anybody_elses_order_pays_nothing(driver: Recorder) -> None:
    output = driver.fill("alice", "-0.096", "9450")
    assert (booked(output), bool(output.journal.pools)) == ([], False)
    assert booked(driver.fill("bob", "-0.096", "9450", order_id=ORDER)) == [], "it is an order of alice"
    assert booked(driver.fill("alice", "0.096", "9450", order_id=ORDER)) == [], "the order is to sell"


def test_late_fills_and_those_beyond_the_quantity_pay_all_the_same(driver: Recorder) -> None:
    assert paid(sell(driver, "0.1")) == [("0.945", "4.725")]
    assert paid(sell(driver, "0.01")) == [("0.0945", "0.4725")], "the command is done"
    driver.tick(70_000)
    assert not driver.row("alice").groups[0].ended
    output = sell(driver, "0.01")
    assert "late_fill" in kinds(output)
    assert paid(output) == [("0.0945", "0.4725")], "the command is not remembered: the rates in force"
    assert booked(sell(driver, "0.01", order_id="alice:9:0")) == [], "there was no such command"


def test_the_commands_rates_hold_until_it_is_forgotten(driver: Recorder) -> None:
    driver.publish(changed(liquidation_fee="0.01", insurance_fee="0"))
    assert paid(sell(driver, "0.01")) == [("0.0945", "0.4725")]
    driver.restart()
    driver.mark("9450")
    assert paid(sell(driver, "0.01")) == [("0.0945", "0.4725")], "also those of a shard that was taken anew"
    driver.mark("9450", after_ms=6_000)
    driver.mark("10000", after_ms=70_000)
    assert paid(sell(driver, "0.01", price="10000")) == [("0", "1")]


def test_each_fill_pays_of_what_those_before_it_have_left(driver: Recorder) -> None:
    """At 9,008 alice has 8 USDC left of the 1,000: 1,000 - 992 of loss."""
    driver.mark("9008")
    output = sell(driver, "0.2", "0.2", "0.2", price="9008")
    assert paid(output) == [("1.8016", "6.1984"), ("0", "0"), ("0", "0")]
    reasons = [alert.reason or "" for alert in output.alerts if alert.fees]
    assert all(reason.endswith("of 10.8096 due to pool default: the group has no more") for reason in reasons)
    assert output.journal.pools == {"default": {"USDC": "8"}}


def test_a_group_that_owes_pays_nothing_and_owes_no_more(driver: Recorder) -> None:
    driver.mark("8900")
    output = sell(driver, "1", price="8900")
    assert paid(output) == [("0", "0")]
    assert driver.balances("alice") == {"USDC": "-100"}
    assert not output.journal.pools


def test_the_last_mark_counts_when_it_is_not_live(driver: Recorder) -> None:
    driver.mark("9450", status="halted")
    assert paid(sell(driver, "0.2", price="9008")) == [("1.8016", "9.008")], "at 9,450 she has more than enough"


def test_an_instrument_names_its_pool(driver: Recorder) -> None:
    sell(driver, "0.01")
    driver.publish(changed(fund="alts"))
    (fees,) = booked(output := sell(driver, "0.01"))
    assert fees.pool == "alts"
    assert output.journal.pools == {"alts": {"USDC": "0.567"}, "default": {"USDC": "0.567"}}
    driver.restart()
    driver.mark("9450")
    assert sell(driver, "0.01").journal.pools == {"alts": {"USDC": "1.134"}, "default": {"USDC": "0.567"}}


def test_without_rates_nothing_is_booked_or_told() -> None:
    free = changed(liquidation_fee="0", insurance_fee="0")
    records = [record for record in RULES.records.values() if record.key != free.key]
    driver = Recorder(RiskParameters.build([*records, free]))
    driver.long()
    (command,) = driver.mark("9400").commands
    assert (command.orders[0].liquidation_fee, command.orders[0].insurance_fee) == ("0", "0")
    output = sell(driver, command.orders[0].quantity, price="9400")
    assert "liquidation_fee" not in kinds(output)
    assert not output.journal.pools


EURX = AssetParameters(
    asset="EURX",
    decimals=6,
    price_symbol="EUR-USD",
    collateral_tiers=(CollateralTier(quantity_floor="0", weight="0.9"),),
)


def test_a_fill_whose_settle_asset_has_no_mark_yet_is_applied_and_pays_nothing_and_that_is_said() -> None:
    """The marks are gone with their topic, and the fill that closes the last position comes before new ones."""
    records = [record for record in RULES.records.values() if record.key != "instrument:BTC-PERP"]
    driver = Recorder(RiskParameters.build([*records, EURX, changed(settle_asset="EURX")]))
    driver.long()
    state = driver.shard.accounts["alice"]
    state.liquidation_sequence = 1
    assert "BTC-PERP" in driver.shard.portfolio.marks
    output = sell(driver, "1", price="10000")
    assert paid(output) == [("0", "0")]
    (alert,) = (alert for alert in output.alerts if alert.fees)
    assert (alert.reason or "").endswith("of 60 due to pool default: what the group has is not known")
    assert output.unapplied == []
    assert state.groups["cross"].command is None


def test_a_waiting_fill_pays_when_it_is_applied_and_is_in_no_dead_letter() -> None:
    driver = Recorder(RULES)
    driver.long()
    driver.mark("9450")
    output = sell(driver, "0.01", price="9450.05")
    assert (kinds(output), booked(output)) == (["suspended", "suspended_liquidatable"], [])
    output = driver.publish(changed(price_increment="0.01"))
    assert paid(output) == [("0.094501", "0.472503")], "rounded up to 6 places"
    assert output.unapplied == []
    assert driver.row("alice").unapplied == 0
