"""Nobody is out of reach: whoever is below the requirement has a command, or somebody has been told why not."""

from decimal import Decimal

import pytest

from schemas.messages import Mark, MarkFrame
from schemas.parameters import (
    AssetParameters,
    CollateralTier,
    InstrumentParameters,
    MarginTier,
    OracleParameters,
    Parameter,
    PolicyParameters,
)
from streams.clearing.shard import Output
from streams.margin.parameters import RiskParameters
from tests.clearing.test_held_back import Recorder
from tests.clearing.test_shard import T0, kinds


def instrument(symbol: str) -> InstrumentParameters:
    return InstrumentParameters(
        symbol=symbol,
        settle_asset="USDC",
        price_increment="0.01",
        quantity_increment="0.001",
        margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.05", initial_rate="0.1"),),
        liquidation_fee="0.005",
    )


RECORDS: list[Parameter] = [
    AssetParameters(asset="USDC", decimals=6),
    AssetParameters(
        asset="BTC",
        decimals=8,
        price_symbol="BTC-USD",
        collateral_tiers=(CollateralTier(quantity_floor="0", weight="0.9"),),
    ),
    AssetParameters(asset="USDT", decimals=6, collateral_tiers=(CollateralTier(quantity_floor="0", weight="0.9"),)),
    instrument("BTC-PERP"),
    instrument("ETH-PERP"),
    PolicyParameters(margin_call_levels=("1.5",), undecided_alert_ms=5000),
    *(OracleParameters(symbol=symbol, sources={"a": "1"}) for symbol in ("BTC-PERP", "ETH-PERP", "BTC-USD")),
]
PRICES = {"BTC-PERP": "100", "ETH-PERP": "10", "BTC-USD": "100"}


class Market(Recorder):
    """A shard with two perpetuals and two collateral assets beside the settle asset, USDT without a market."""

    def __init__(self) -> None:
        super().__init__(RiskParameters.build(RECORDS))
        self.prices, self.statuses = dict(PRICES), dict.fromkeys(PRICES, "live")

    def marks(self, after_ms: int = 250, **prices: str) -> Output:
        """One full frame; the names are those of the symbols with ``_`` for ``-``."""
        self.time += 1000 * after_ms
        self.prices |= {name.replace("_", "-"): price for name, price in prices.items()}
        frame = MarkFrame(
            time=self.time,
            full=True,
            marks=tuple(
                Mark(
                    symbol=symbol,
                    price=price,
                    status=self.statuses[symbol],  # type: ignore[arg-type]
                    publish_time=self.time,
                )
                for symbol, price in self.prices.items()
            ),
        )
        self.last = frame
        self.shard.apply_marks(self.shard.marks_next, frame)
        return self.commit()

    def set_status(self, status: str, *symbols: str) -> None:
        self.statuses |= dict.fromkeys(symbols, status)

    def restart(self) -> None:
        marks_next = self.shard.marks_next
        super().restart()
        self.shard.recall_marks(marks_next - 1, self.last)

    def status(self, account: str = "a") -> str:
        return self.row(account).groups[0].status


@pytest.fixture
def market() -> Market:
    market = Market()
    market.marks()
    return market


def told(output: Output) -> list[tuple[str, str]]:
    return [(alert.account, alert.kind) for alert in output.alerts]


# --- nothing to trade ------------------------------------------------------------------------------------------------


def test_a_debt_with_nothing_against_it_is_insolvent(market: Market) -> None:
    market.transfer("a", "1000")
    output = market.transfer("a", "-5000")
    assert (kinds(output), output.commands) == (["insolvent"], [])
    assert (market.status(), market.row().status) == ("insolvent", "insolvent")
    assert output.journal.unreached == {"insolvent": 1}


def test_a_state_is_told_once_an_entry(market: Market) -> None:
    market.transfer("a", "-5")
    for _ in range(3):
        assert kinds(market.marks()) == []
        market.restart()
    assert kinds(market.transfer("a", "1")) == []
    assert kinds(market.transfer("a", "4")) == ["recovered"]
    assert kinds(market.transfer("a", "-1")) == ["insolvent"]


def test_a_debt_against_what_nobody_buys_is_unsellable(market: Market) -> None:
    market.transfer("a", "100", asset="USDT")
    output = market.transfer("a", "-95")
    assert kinds(output) == ["unsellable"]
    assert kinds(market.transfer("a", "-10")) == ["insolvent"], "it owes more than it has now"
    assert kinds(market.transfer("a", "10")) == ["unsellable"]
    assert kinds(market.transfer("a", "50")) == ["recovered"]


def test_a_debt_against_what_can_be_sold_is_a_liquidation(market: Market) -> None:
    market.transfer("a", "1", asset="BTC")
    assert kinds(market.transfer("a", "-80")) == ["margin_call"]
    output = market.marks(BTC_USD="88")
    (command,) = output.commands
    assert [(order.symbol, order.order_side) for order in command.orders] == [("BTC-USD", "sell")]
    assert kinds(output) == ["liquidation_started"]
    assert "liquidation_completed" in kinds(market.transfer("a", "80")) + kinds(market.marks(after_ms=6000))


def test_parameters_lead_out_of_a_state(market: Market) -> None:
    market.transfer("a", "100", asset="USDT")
    market.transfer("a", "-95")
    assert kinds(market.publish(AssetParameters(asset="USDT", decimals=6))) == ["recovered", "margin_call"]


def test_a_liquidation_that_ends_with_nothing_left_is_completed_when_the_debt_is_paid(market: Market) -> None:
    market.transfer("a", "10")
    market.fill("a", "1", "100")
    (command,) = market.marks(BTC_PERP="80").commands
    output = market.fill("a", "-1", "80", order_id=command.orders[0].order_id)
    assert kinds(output) == ["liquidation_fee", "insolvent"]
    assert (
        output.alerts[0].reason
        == "0 USDC insurance fee and 0 USDC liquidation fee of 0.4 due to pool default: the group has no more"
    )
    market.restart()
    assert kinds(market.transfer("a", "10")) == ["liquidation_completed"]


def test_a_group_without_orders_gets_a_command_as_soon_as_there_is_something_to_trade(market: Market) -> None:
    market.transfer("a", "-50")
    output = market.transfer("a", "0.5", asset="BTC")
    assert kinds(output) == ["liquidation_started"]
    assert len(output.commands) == 1


# --- marks that are not live -----------------------------------------------------------------------------------------


def test_a_halted_position_does_not_shield_what_is_lost_even_so(market: Market) -> None:
    market.transfer("a", "20")
    market.fill("a", "1", "100")
    market.fill("a", "0.001", "10", symbol="ETH-PERP")
    market.set_status("halted", "ETH-PERP")
    assert market.marks().commands == []
    (command,) = market.marks(BTC_PERP="70").commands
    assert [order.symbol for order in command.orders] == ["BTC-PERP"]
    assert command.evidence.stale_bounds == {"ETH-PERP": "9"}


def test_below_whatever_the_price_and_nothing_to_trade_is_undecided(market: Market) -> None:
    """1 BTC is worth 1,000 at most, and counts 900 then: not enough for a debt of 950."""
    market.transfer("a", "1", asset="BTC")
    market.set_status("halted", "BTC-USD")
    market.marks()
    output = market.transfer("a", "-950")
    assert kinds(output) == ["undecided"]
    assert "BTC-USD" in (output.alerts[0].reason or "")
    assert market.status() == "undecided"
    market.restart()
    market.set_status("live", "BTC-USD")
    output = market.marks()
    assert len(output.commands) == 1
    assert {"undecided_cleared", "liquidation_started"} <= set(kinds(output))


def test_a_symbol_that_somebody_needs_is_told_after_a_while_and_when_it_is_back(market: Market) -> None:
    market.transfer("a", "100")
    market.fill("a", "1", "10", symbol="ETH-PERP")
    market.set_status("stale", "ETH-PERP")
    market.marks()
    assert told(market.marks(after_ms=4900)) == []
    output = market.marks(after_ms=100)
    assert told(output) == [("margin-clearing:shard:0", "undecided")]
    assert output.alerts[0].symbol == "ETH-PERP"
    assert output.alerts[0].alert_id == "margin-clearing:shard:0:alert:1"
    assert output.journal.told_not_live == ("ETH-PERP",)
    assert told(market.marks(after_ms=5000)) == []
    market.restart()
    assert told(market.marks(after_ms=5000)) == []
    market.set_status("live", "ETH-PERP")
    output = market.marks()
    assert told(output) == [("margin-clearing:shard:0", "undecided_cleared")]
    assert (output.journal.not_live, output.journal.told_not_live, output.journal.alert_sequence) == ({}, (), 2)


def test_a_symbol_that_nobody_needs_is_not_told(market: Market) -> None:
    market.transfer("a", "100")
    market.set_status("stale", "ETH-PERP")
    for _ in range(10):
        assert told(market.marks(after_ms=1000)) == []


def test_a_symbol_that_is_not_needed_any_more_is_cleared(market: Market) -> None:
    market.transfer("a", "100")
    market.fill("a", "1", "10", symbol="ETH-PERP")
    market.set_status("stale", "ETH-PERP")
    market.marks()
    assert told(market.marks(after_ms=6000)) == [("margin-clearing:shard:0", "undecided")]
    market.fill("a", "-1", "10", symbol="ETH-PERP")
    output = market.marks(after_ms=1000)
    assert told(output) == [("margin-clearing:shard:0", "undecided_cleared")]
    assert "not needed any more" in (output.alerts[0].reason or "")


def test_a_symbol_that_never_had_a_price_is_told_if_somebody_holds_it(market: Market) -> None:
    market.publish(instrument("SOL-PERP"))
    market.transfer("a", "100")
    market.fill("a", "1", "10", symbol="SOL-PERP")
    output = market.marks(after_ms=5000)
    assert told(output) == [("margin-clearing:shard:0", "undecided")]
    assert output.alerts[0].symbol == "SOL-PERP"


def test_an_oracle_that_says_nothing_is_told_as_soon_as_time_passes(market: Market) -> None:
    market.transfer("a", "100")
    market.fill("a", "1", "10", symbol="ETH-PERP")
    market.time += 6_000_000
    market.transfer("a", "1")
    market.time += 5_000_000
    assert ("margin-clearing:shard:0", "undecided") in told(market.transfer("a", "1"))


def test_only_a_group_that_is_below_at_the_last_prices_is_told(market: Market) -> None:
    for account, deposit in (("poor", "1"), ("rich", "1000")):
        market.transfer(account, deposit)
        market.fill(account, "1", "10", symbol="ETH-PERP")
    market.set_status("halted", "ETH-PERP")
    market.marks(ETH_PERP="9")
    output = market.marks(after_ms=5000)
    assert told(output) == [("margin-clearing:shard:0", "undecided"), ("poor", "undecided")]
    assert (market.status("poor"), market.status("rich")) == ("undecided", "normal")
    assert output.journal.unreached == {"undecided": 1}
    assert told(market.marks(after_ms=5000)) == []
    assert told(market.transfer("poor", "50")) == [("poor", "undecided_cleared")]
    assert market.status("poor") == "normal"


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_new_owner_tells_no_sooner_that_a_group_is_undecided_no_more(market: Market, is_restarted: bool) -> None:
    """Another mark than the one it waits for has ended it: that is looked at once a second, whoever owns the shard."""
    market.transfer("a", "1")
    market.fill("a", "1", "10", symbol="ETH-PERP")
    market.fill("a", "0.001", PRICES["BTC-PERP"])
    market.set_status("halted", "ETH-PERP")
    market.marks(ETH_PERP="9")
    assert ("a", "undecided") in told(market.marks(after_ms=5000))
    if is_restarted:
        market.restart()
        market.shard.stand()
    assert told(market.marks(after_ms=250, BTC_PERP=str(5000 + Decimal(PRICES["BTC-PERP"])))) == []
    assert told(market.marks(after_ms=1000)) == [("a", "undecided_cleared")]


def test_one_that_falls_below_later_is_told_within_a_second(market: Market) -> None:
    market.transfer("a", "5")
    market.fill("a", "1", "10", symbol="ETH-PERP")
    market.set_status("halted", "ETH-PERP")
    market.marks()
    market.marks(after_ms=5000)
    assert told(market.transfer("a", "-5")) == []
    assert told(market.marks(after_ms=1000)) == [("a", "undecided")]


def test_what_is_at_stake_is_told_with_the_open_interest(market: Market) -> None:
    market.transfer("poor", "1")
    market.fill("poor", "2", "10", symbol="ETH-PERP")
    market.transfer("debtor", "-7")
    market.transfer("gone", "3")
    market.fill("gone", "-1", "100")
    market.fill("gone", "1", "1", symbol="NO-PERP")
    market.set_status("halted", "ETH-PERP")
    market.marks(ETH_PERP="9")
    market.marks(after_ms=5000)
    journal = market.shard.take(with_open_interest=True).journal
    assert journal.unreached == {"undecided": 1, "insolvent": 1, "suspended": 1, "waiting": 1}
    assert journal.unreached_notional == {"undecided": "18", "insolvent": "7", "suspended": "100"}
    assert market.shard.take().journal.unreached_notional == journal.unreached_notional


def test_more_symbols_than_are_told_one_by_one_are_told_as_room_comes(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.clearing.awaited.AWAITED_MAX", 2)
    market.publish(*(instrument(f"S{number}") for number in range(4)))
    for number in range(4):
        market.fill("a", "1", "10", symbol=f"S{number}")
    output = market.marks(after_ms=5000)
    assert [alert.symbol for alert in output.alerts] == ["S0", "S1"]


def test_times_are_the_pipelines(market: Market) -> None:
    market.transfer("a", "-5")
    assert market.time > T0
    assert all(alert.event_time == market.time for alert in market.transfer("a", "-5").alerts)
