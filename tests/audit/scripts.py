"""Inputs for a shard: a market of one contract, accounts that trade it, and the steps that a script is made of."""

from collections.abc import Callable, Iterable
from typing import Any

from schemas.messages import EventFrame, FillColumns, Mark, MarkFrame, ReportColumns, Suspension, TransferColumns
from schemas.parameters import (
    AssetParameters,
    InstrumentParameters,
    MarginTier,
    OracleParameters,
    Parameter,
    PolicyParameters,
)
from schemas.topics import TRADES
from schemas.types import ReportStatus
from tests.audit.memory import MemoryEngine, MemoryLog

T0 = 1_700_000_000_000_000
SYMBOL = "BTC-PERP"


def instrument(
    rate: str = "0.05", version: int = 1, *, symbol: str = SYMBOL, price_increment: str = "0.1"
) -> InstrumentParameters:
    tiers = (MarginTier(notional_floor="0", maintenance_rate=rate, initial_rate="0.3"),)
    return InstrumentParameters(
        symbol=symbol,
        settle_asset="USDC",
        price_increment=price_increment,
        quantity_increment="0.001",
        margin_tiers=tiers,
        liquidation_fee="0.005",
        insurance_fee="0.001",
        version=version,
    )


RECORDS: tuple[Parameter, ...] = (
    AssetParameters(asset="USDC", decimals=6),
    AssetParameters(asset="BTC", decimals=8, price_symbol="BTC-USD", liability_weight="1.1"),
    instrument(),
    PolicyParameters(liquidation_buffer_rate="0.002", margin_call_levels=("1.5", "1.2"), command_ttl_ms=1000),
    OracleParameters(symbol=SYMBOL, sources={"a": "1"}, max_age_ms=3000),
)


class Script:
    """An engine on logs in memory, and the inputs with the time they come at."""

    def __init__(self, *, shards: int = 1) -> None:
        self.log = MemoryLog(shards)
        self.time = T0
        self.sequence = 0
        self.trade_id = 0
        self.epoch = 0
        self.engine: MemoryEngine | None = None

    def begin(self, price: str = "10000") -> "Script":
        """Parameters, prices, and an engine that has taken the shards."""
        starting = MemoryEngine.__new__(MemoryEngine)
        starting.log = self.log
        starting.parameters(*RECORDS)
        self.engine = starting
        self.mark(price)
        self.engine = MemoryEngine(self.log)
        return self

    @property
    def running(self) -> MemoryEngine:
        assert self.engine is not None
        return self.engine

    def mark(
        self,
        price: str,
        *,
        after_ms: int = 250,
        full: bool = True,
        status: str = "live",
        off_us: int = 0,
        stamped: bool = True,
        **more: Any,
    ) -> None:
        """The oracle publishes; ``off_us``: its host's clock is off, ``stamped``: the record has the broker's time."""
        self.time += after_ms * 1000
        prices = {SYMBOL: price, "BTC-USD": price}
        marks = tuple(
            Mark(
                symbol=symbol,
                price=value,
                status=status,  # type: ignore[arg-type]
                publish_time=self.time,
                sources={"a": value},
            )
            for symbol, value in prices.items()
        )
        frame = MarkFrame(time=self.time + off_us, marks=marks, full=full, **{"epoch": self.epoch} | more)
        self.running.mark(frame, self.time, stamped=stamped)

    def tick(self, after_ms: int) -> None:
        """Time passes and no price comes."""
        self.time += after_ms * 1000
        self.running.mark(MarkFrame(time=self.time, marks=(), epoch=self.epoch))

    def suspend(self, account: str, offset: int, shard: int = 0) -> None:
        """A trade that names the account cannot be read."""
        told = Suspension(account=account, topic=TRADES, partition=0, offset=offset, reason="price must be positive")
        self.running.events(EventFrame(time=self.time, suspensions=[told]), shard)

    def new_oracle(self) -> None:
        """Another oracle leads: an empty frame of a higher epoch is its claim."""
        self.epoch += 1
        self.running.mark(MarkFrame(time=self.time, marks=(), epoch=self.epoch))

    def transfer(
        self,
        account: str,
        amount: str,
        *,
        asset: str = "USDC",
        shard: int = 0,
        margin: str = "cross",
        sequence: int | None = None,
    ) -> None:
        """``sequence`` None: the next one."""
        self.sequence += 1
        columns = TransferColumns(
            account=[account],
            margin=[margin],
            asset=[asset],
            amount=[amount],
            sequence=[self.sequence if sequence is None else sequence],
            transfer_id=[f"t{self.sequence}"],
        )
        self.running.events(EventFrame(time=self.time, transfers=columns), shard)

    def fill(
        self,
        account: str,
        quantity: str,
        price: str,
        *,
        order_id: str = "o",
        symbol: str = SYMBOL,
        shard: int = 0,
        margin: str = "cross",
    ) -> None:
        self.trade_id += 1
        columns = FillColumns(
            account=[account],
            margin=[margin],
            symbol=[symbol],
            quantity=[quantity],
            price=[price],
            fee=["0.01"],
            order_id=[order_id],
            trade_id=[self.trade_id],
        )
        self.running.events(EventFrame(time=self.time, fills=columns), shard)

    def report(self, account: str, order_id: str, status: ReportStatus, filled: str) -> None:
        columns = ReportColumns(
            account=[account],
            command_id=[order_id.rpartition(":")[0]],
            order_id=[order_id],
            status=[status],
            filled_quantity=[filled],
        )
        self.running.events(EventFrame(time=self.time, reports=columns))

    def cycle(self, *, commit: bool = True, idle: bool = False) -> None:
        self.running.cycle(commit=commit, idle=idle)


def opened() -> Script:
    """Alice is long one at 10,000 on 1,000, and Bob short against her."""
    script = Script().begin()
    script.transfer("alice", "1000")
    script.transfer("bob", "100000")
    script.cycle()
    script.fill("alice", "1", "10000")
    script.fill("bob", "-1", "10000")
    script.cycle()
    return script


def played(steps: Iterable[Callable[[Script], None]]) -> Script:
    """Whatever ``steps`` do to Alice with 1,000 and Bob with 30,000, applied and committed to the end."""
    script = Script().begin()
    script.transfer("alice", "1000")
    script.transfer("bob", "30000")
    for step in steps:
        step(script)
    script.running.settle()
    return script


def a_liquidation() -> Script:
    """Alice is long on thin margin and Bob short against her; the price falls and she is commanded to reduce."""
    script = opened()
    script.mark("9700")
    script.cycle()
    script.mark("9450")
    script.cycle()
    script.transfer("carol", "5")
    script.cycle()
    script.running.settle()
    return script
