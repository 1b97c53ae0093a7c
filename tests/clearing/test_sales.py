"""Sales of collateral end: by transfers that carry the order's id, or by trades on the asset's price symbol."""

from decimal import Decimal

import pytest

from schemas.messages import Mark, MarkFrame, OpenOrder, TransferColumns
from schemas.parameters import AssetParameters, CollateralTier, PolicyParameters
from streams.clearing.shard import Output
from streams.margin.parameters import RiskParameters
from tests.clearing.test_held_back import Recorder
from tests.clearing.test_shard import RULES, kinds

ORDER = "alice:1:0"
BTC = AssetParameters(
    asset="BTC",
    decimals=8,
    price_symbol="BTC-USD",
    collateral_tiers=(CollateralTier(quantity_floor="0", weight="0.9"),),
    liquidation_fee="0",
)


class Lender(Recorder):
    """Alice owes 8,900 USDC against 1 BTC, which counts 0.9 of its price."""

    def price(self, price: str) -> Output:
        self.time += 250_000
        mark = Mark(symbol="BTC-USD", price=price, status="live", publish_time=self.time)
        frame = MarkFrame(time=self.time, marks=(mark,), full=True, scales={})
        self.shard.apply_marks(self.shard.marks_next, frame)
        return self.commit()

    def move(self, **amounts: str) -> Output:
        """Transfers of these amounts of assets for the order, in one frame."""
        count, first = len(amounts), self.sequence + 1
        self.sequence += count
        return self.frame(
            transfers=TransferColumns(
                account=["alice"] * count,
                margin=["cross"] * count,
                asset=list(amounts),
                amount=list(amounts.values()),
                sequence=list(range(first, first + count)),
                transfer_id=[f"t{first + index}" for index in range(count)],
                order_id=[ORDER] * count,
            )
        )

    def order(self) -> OpenOrder:
        (group,) = self.row("alice").groups
        commands = [*(group.ended or ()), *([] if group.command is None else [group.command])]
        return next(order for command in commands for order in command.orders if order.order_id == ORDER)


@pytest.fixture
def lender() -> Lender:
    policy = PolicyParameters(liquidation_buffer_rate="0.002", command_ttl_ms=5000)
    lender = Lender(RiskParameters.build([*RULES.records.values(), BTC, policy]))
    lender.price("10000")
    lender.transfer("alice", "1", asset="BTC")
    lender.transfer("alice", "-8900", sequence=2)
    (command,) = lender.price("9800").commands
    (order,) = command.orders
    assert (order.order_id, order.symbol, order.order_side) == (ORDER, "BTC-USD", "sell")
    return lender


def test_a_sale_ends_with_the_transfers_that_carry_its_order_id(lender: Lender) -> None:
    sold = Decimal(lender.order().quantity)
    assert lender.move(BTC="-0.05", USDC="490").commands == []
    assert (lender.order().status, lender.order().filled) == ("partly_filled", "0.05")
    assert lender.move(BTC=str(Decimal("0.05") - sold), USDC="468.8").commands == []
    (group,) = lender.row("alice").groups
    assert (lender.order().status, group.status, group.command) == ("filled", "normal", None)


def test_a_sale_ends_with_trades_on_its_spot_market_that_change_no_balance(lender: Lender) -> None:
    before = lender.row("alice").groups[0].balances
    lender.fill("alice", f"-{lender.order().quantity}", "9800.5", symbol="BTC-USD", order_id=ORDER)
    assert lender.order().status == "filled"
    row = lender.row("alice")
    assert (row.groups[0].balances, row.unapplied, row.suspended_reason) == (before, 0, None)
    lender.fill("bob", "1", "9800", symbol="BTC-USD", order_id="o")
    assert "bob" not in lender.rows or lender.row("bob").status == "normal"


def test_of_a_trade_and_a_transfer_of_one_sale_the_greater_counts(lender: Lender) -> None:
    lender.fill("alice", "-0.02", "9800", symbol="BTC-USD", order_id=ORDER)
    lender.move(BTC="-0.01")
    assert lender.order().filled == "0.02"
    lender.restart()
    lender.price("9800")
    lender.move(BTC="-0.02")
    assert lender.order().filled == "0.03"


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        ("0.01", "the order is to sell BTC-USD"),
        ("-9", "9 filled of"),
    ],
)
def test_a_transfer_that_is_not_the_orders_moves_the_ledger_and_is_told(lender: Lender, amount: str, said: str) -> None:
    output = lender.move(BTC=amount)
    (alert,) = (alert for alert in output.alerts if alert.kind == "fill_mismatch")
    assert said in (alert.reason or "")
    assert Decimal(lender.row("alice").groups[0].balances["BTC"]) == 1 + Decimal(amount)


@pytest.mark.parametrize("quantity", ["x", "0", "1e5", ""])
def test_a_trade_of_no_quantity_suspends_as_any_other(lender: Lender, quantity: str) -> None:
    output = lender.fill("alice", quantity, "9800", symbol="BTC-USD", order_id=ORDER)
    assert "suspended" in kinds(output)
