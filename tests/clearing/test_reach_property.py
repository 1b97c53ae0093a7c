"""No reachable state leaves a group that is below its requirement within the bounds without a command or an alert.

What is below is recomputed here from the ledger's rows in plain decimals, without a line of the risk mathematics.
"""

from collections import defaultdict
from decimal import Decimal

from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas.messages import AccountRow, GroupRow
from schemas.parameters import AssetParameters, CollateralTier
from streams.clearing.account import WITHOUT_ORDERS
from streams.clearing.shard import Output
from tests.clearing.test_held_back import EUR
from tests.clearing.test_reach import Market, instrument
from tests.properties import examples

ACCOUNTS = ("a", "b")
MARKED = ("BTC-PERP", "ETH-PERP", "BTC-USD")
UNLISTED = "SOL-PERP"
BOUND = Decimal(9)
RATE = Decimal("0.05")
WEIGHTS = {"USDC": Decimal(1), "USDT": Decimal("0.9")}

Step = tuple[str, str, str, int]

amounts = st.integers(-150, 150).filter(bool)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("transfer"), st.sampled_from(ACCOUNTS), st.sampled_from(["USDC", "USDT", "BTC", "EUR"]), amounts),
    st.tuples(st.just("fill"), st.sampled_from(ACCOUNTS), st.sampled_from(["BTC-PERP", "ETH-PERP", UNLISTED]), amounts),
    st.tuples(st.just("status"), st.sampled_from(["live", "halted", "stale"]), st.sampled_from(MARKED), st.just(0)),
    st.tuples(st.just("price"), st.just(""), st.sampled_from(MARKED), st.integers(1, 300)),
    st.tuples(st.just("time"), st.just(""), st.just(""), st.integers(1, 8000)),
    st.tuples(st.just("publish"), st.just(""), st.sampled_from(["EUR", "SOL", "weight"]), st.integers(0, 10)),
    st.tuples(st.just("restart"), st.just(""), st.just(""), st.just(0)),
)


class Watched(Market):
    """A market that remembers which kinds of alerts each account has had."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Decimal("0.9")
        self.told: dict[str, set[str]] = defaultdict(set)
        self.marks()

    def commit(self) -> Output:
        output = super().commit()
        for alert in output.alerts:
            self.told[alert.account].add(alert.kind)
        return output

    def step(self, step: Step) -> None:
        kind, name, other, number = step
        if kind == "transfer":
            amount = Decimal(number) / (100 if other == "BTC" else 1)
            self.transfer(name, f"{amount}", asset=other)
        elif kind == "fill":
            price = self.prices.get(other, "10")
            self.fill(name, f"{Decimal(number) / 50}", price, symbol=other)
        elif kind == "status":
            self.set_status(name, other)
            self.marks()
        elif kind == "price":
            self.marks(250, **{other.replace("-", "_"): str(number)})
        elif kind == "time":
            self.time += 1000 * number
            self.transfer("clock", "1")
        elif kind == "restart":
            self.restart()
        elif other == "weight":
            self.weight = Decimal(number) / 10
            tiers = (CollateralTier(quantity_floor="0", weight=f"{self.weight}"),)
            record = AssetParameters(asset="BTC", decimals=8, price_symbol="BTC-USD", collateral_tiers=tiers)
            self.publish(record)
        else:
            self.publish(EUR if other == "EUR" else instrument(UNLISTED))

    # --- the recomputation -------------------------------------------------------------------------------------------

    def prices_of(self, symbol: str) -> tuple[Decimal, Decimal | None]:
        """What its price may be at least and at most (None: anything)."""
        if symbol not in self.shard.portfolio.marks:
            return Decimal(0), None
        last = Decimal(self.prices[symbol])
        return (last, last) if self.shard.has_live(symbol) else (Decimal(0), (1 + BOUND) * last)

    def headroom(self, group: GroupRow) -> Decimal | None:
        """The most that equity less maintenance may be; None if nothing bounds it."""
        most = Decimal(0)
        for asset, text in group.balances.items():
            amount = Decimal(text)
            if asset in WEIGHTS:
                most += amount * (WEIGHTS[asset] if amount > 0 else 1)
            elif asset == "BTC" and (amount < 0 or self.weight):
                low, high = self.prices_of("BTC-USD")
                assert high is not None
                most += amount * self.weight * high if amount > 0 else amount * low
            elif asset == "EUR":
                most += amount
        for position in group.positions:
            quantity, cash = Decimal(position.quantity), Decimal(position.cash)
            low, high = self.prices_of(position.symbol)
            if quantity > 0 and high is None:
                return None
            price = high if quantity > 0 and high is not None else low
            most += quantity * price + cash
            most -= RATE * abs(quantity) * low if low == high else 0
        return most

    def is_reached(self, row: AccountRow, group: GroupRow) -> bool:
        if row.status == "suspended":
            return "suspended_liquidatable" in self.told[row.account] and row.told_liquidatable
        if group.command is not None:
            return True
        return group.status in WITHOUT_ORDERS and group.status in self.told[row.account]


@given(st.lists(STEPS, max_size=25))
@configure(max_examples=examples(300), deadline=None)
def test_nobody_is_out_of_reach(steps: list[Step]) -> None:
    market = Watched()
    for step in steps:
        market.step(step)
        for account in market.rows:
            row = market.row(account)
            for group in row.groups:
                headroom = market.headroom(group)
                if headroom is not None and headroom < 0:
                    assert market.is_reached(row, group), (account, group, headroom, row.status)


@given(st.lists(STEPS, max_size=25))
@configure(max_examples=examples(100), deadline=None)
def test_nobody_is_liquidated_who_may_not_be_below(steps: list[Step]) -> None:
    """The other way round: a command is only issued if the group is below its requirement whatever the prices are, and
    withdrawn if it is not."""
    market = Watched()
    before: dict[tuple[str, str], tuple[str, str | None]] = {}
    for step in steps:
        market.step(step)
        for account in market.rows:
            row = market.row(account)
            for group in row.groups:
                if group.command is None:
                    continue
                command = group.command.command_id, group.command.withdrawn_by or None
                if before.get((account, group.margin)) == command:
                    continue
                before[account, group.margin] = command
                headroom = market.headroom(group)
                assert headroom is not None, (account, row)
                assert (headroom >= 0) == bool(group.command.withdrawn_by), (account, row)
