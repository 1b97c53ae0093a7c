"""Inputs for a shard: a market of one contract, accounts that trade it, and the steps that a script is made of."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from schemas.codec import encode
from schemas.messages import (
    EventFrame,
    FillColumns,
    Mark,
    MarkFrame,
    PartitionOffset,
    ReportColumns,
    RouterProgress,
    SourceRange,
    Suspension,
    TopicProgress,
    Trade,
    TradeSide,
    Transfer,
)  # fmt: skip
from schemas.parameters import AssetParameters, OracleParameters, Parameter, PolicyParameters
from schemas.partitioning import shard_of
from schemas.topics import EVENTS, INPUTS, MARKS, PROGRESS, REPORTS, TRADES, TRANSFERS
from schemas.types import MarkStatus, ReportStatus
from streams.audit.explain import Explanation, explain
from streams.memory.log import LogRecord
from tests.clearing.engine_bench import DUE_MS, SYMBOL, Bench, EngineProcess, instrument

_ROUTER = "router"
_IDLE_MS = 3 * DUE_MS
_TRANSACTION_US = 10_000_000

RECORDS: tuple[Parameter, ...] = (
    AssetParameters(asset="USDC", decimals=6),
    AssetParameters(asset="BTC", decimals=8, price_symbol="BTC-USD", liability_weight="1.1"),
    instrument(),
    PolicyParameters(liquidation_buffer_rate="0.002", margin_call_levels=("1.5", "1.2"), command_ttl_ms=1000),
    OracleParameters(symbol=SYMBOL, sources={"a": "1"}, max_age_ms=3000),
)


class Script(Bench):
    """An engine on logs in memory, and the inputs with the time they come at."""

    running: EngineProcess

    def __init__(self, *, shards: int = 1) -> None:
        super().__init__(shards, topics__partitions=3, engine__journal_interval_ms=_IDLE_MS)
        self.fee = "0.01"
        self.epoch = 0
        self.routed: dict[str, int] = {}
        """How far the router is by topic; empty until it tells of it."""
        self._transfers_end = 0
        self._told_next: dict[tuple[str, int], int] = {}
        self._router = self.cluster.init(_ROUTER)

    # --- the engine --------------------------------------------------------------------------------------------------

    def begin(self, price: str = "10000") -> "Script":
        """Parameters, prices, and an engine that has taken the shards."""
        self.parameters(*RECORDS)
        self.mark(price)
        self.running = self.owner()
        return self

    def cycle(self, *, commit: bool = True, idle: bool = False) -> None:
        """One turn of the engine; ``commit``: what waits is due, ``idle``: quiet shards journal as well."""
        self.advance(_IDLE_MS if idle else DUE_MS if commit else 0)
        self.running.cycle(due=False)

    def settle(self) -> None:
        """Turn until everything in the logs is applied and committed."""
        self.running.settle()

    def restart(self) -> None:
        """A new process: nothing in memory."""
        self.running = self.running.restart()

    # --- inputs ------------------------------------------------------------------------------------------------------

    def mark(
        self,
        price: str,
        *,
        full: bool = True,
        epoch: int | None = None,
        after_ms: float = 250,
        status: MarkStatus = "live",
        off_us: int = 0,
        stamped: bool = True,
        scales: dict[str, str] | None = None,
    ) -> None:
        """The oracle publishes; ``off_us``: its host's clock is off, ``stamped``: the record has the broker's time."""
        self.advance(after_ms)
        marks = [
            Mark(symbol=symbol, price=price, status=status, publish_time=self.now_us, sources={"a": price})
            for symbol in (SYMBOL, "BTC-USD")
        ]
        self.marks(*marks, full=full, epoch=epoch, off_us=off_us, stamped=stamped, scales=scales)

    def marks(
        self,
        *marks: Mark,
        full: bool = False,
        epoch: int | None = None,
        off_us: int = 0,
        stamped: bool = True,
        scales: dict[str, str] | None = None,
    ) -> None:
        """A frame of these marks is published."""
        frame = MarkFrame(
            time=self.now_us + off_us,
            marks=marks,
            full=full,
            epoch=self.epoch if epoch is None else epoch,
            scales=scales or {},
        )
        with self._stamping(MARKS, stamped):
            self.cluster.append(MARKS, None, encode(frame))

    def tick(self, after_ms: float) -> None:
        """Time passes and no price comes."""
        self.advance(after_ms)
        self.marks()

    def new_oracle(self) -> None:
        """Another oracle leads: an empty frame of a higher epoch is its claim."""
        self.epoch += 1
        self.marks()

    def events(self, frame: EventFrame, shard: int = 0, *, stamped: bool = True) -> None:
        """A frame comes to a shard in a transaction of its own."""
        if self.routed and not frame.sources:
            frame = self._with_sources(frame, shard)
        with self._stamping(EVENTS, stamped):
            place = self.partition(EVENTS, shard)
            self.cluster.produce(_ROUTER, self._router, _TRANSACTION_US, place, None, encode(frame), None)
        self.cluster.end(_ROUTER, self._router, commit=True)
        self.advance(0)

    def suspend(self, account: str, offset: int, shard: int = 0) -> None:
        """A trade that names the account cannot be read."""
        told = Suspension(account=account, topic=TRADES, partition=0, offset=offset, reason="price must be positive")
        self.events(EventFrame(time=self.now_us, suspensions=[told]), shard)

    def repair(self, account: str, offset: int, quantity: str, *, shard: int = 0) -> None:
        """Somebody sends the account's side of that trade again."""
        fill = FillColumns(
            account=[account],
            margin=["cross"],
            symbol=[SYMBOL],
            quantity=[quantity],
            price=["10000"],
            fee=["0"],
            order_id=["o"],
            trade_id=[offset],
            source=[0],
            source_offset=[offset],
        )
        source = SourceRange(topic=TRADES, topic_id="", partition=0, first=offset, next=offset + 1)
        self.events(EventFrame(time=self.now_us, repaired=True, fills=fill, sources=[source]), shard)

    def report(self, account: str, order_id: str, status: ReportStatus, filled: str) -> None:
        columns = ReportColumns(
            account=[account],
            command_id=[order_id.rpartition(":")[0]],
            order_id=[order_id],
            status=[status],
            filled_quantity=[filled],
        )
        self.events(EventFrame(time=self.now_us, reports=columns))

    def router_progress(self, behind: int = 0) -> None:
        """The router tells every shard and the progress how far it is: ``behind`` transfers are not routed yet.

        Those that it was behind before are routed by now, and were none. From then on its frames say where their rows
        come from.
        """
        self.routed = self.routed or dict.fromkeys(INPUTS, 0)
        self.routed[TRANSFERS] = max(self.routed[TRANSFERS], self._transfers_end)
        self._transfers_end = self.routed[TRANSFERS] + behind
        for shard in range(len(self.cluster.topics[EVENTS])):
            self.events(EventFrame(time=self.now_us, sources=[self._told(topic, shard) for topic in INPUTS]), shard)
        topics = [
            TopicProgress(
                topic=topic,
                topic_id="1",
                next=[PartitionOffset(partition=0, offset=routed)],
                ends=[self._transfers_end if topic == TRANSFERS else routed],
            )
            for topic, routed in self.routed.items()
        ]
        frames = [len(partition.records) - 1 for partition in self.cluster.topics[EVENTS]]
        said = RouterProgress(router="router-0:1", time=self.now_us, topics=topics, frames=frames)
        self.cluster.append(PROGRESS, None, encode(said))

    def input_gap(self, *, lost: bool = False) -> None:
        """The router goes on three transfers further: they are gone; ``lost``: at an operator's word."""
        if not self.routed:
            self.router_progress()
        self.routed[TRANSFERS] += 3
        for shard in range(len(self.cluster.topics[EVENTS])):
            self._told_next[TRANSFERS, shard] = self.routed[TRANSFERS]
            range_told = msgspec.structs.replace(self._told(TRANSFERS, shard), lost="it burnt" if lost else "")
            self.events(EventFrame(time=self.now_us, sources=[range_told]), shard)

    def input_again(self) -> None:
        """A router reads the transfers from the first one on, and finds none that have rows."""
        if self.routed:
            for shard in range(len(self.cluster.topics[EVENTS])):
                self._told_next[TRANSFERS, shard] = 0
            self.router_progress()

    def _told(self, topic: str, shard: int) -> SourceRange:
        """What the next frame tells a shard of the first partition of a topic."""
        first, following = self._told_next.get((topic, shard), 0), self.routed[topic]
        self._told_next[topic, shard] = following
        return SourceRange(topic=topic, topic_id="1", partition=0, first=first, next=following)

    def _with_sources(self, frame: EventFrame, shard: int) -> EventFrame:
        """The frame, each of its rows from a record of its own."""
        changes: dict[str, Any] = {"sources": []}
        for topic, kind in ((TRANSFERS, "transfers"), (TRADES, "fills"), (REPORTS, "reports")):
            columns = getattr(frame, kind)
            if rows := len(columns.account):
                offsets = range(self.routed[topic], self.routed[topic] + rows)
                self.routed[topic] += rows
                source = [len(changes["sources"])] * rows
                changes[kind] = msgspec.structs.replace(columns, source=source, source_offset=[*offsets])
                changes["sources"].append(self._told(topic, shard))
        return msgspec.structs.replace(frame, **changes)

    @contextmanager
    def _stamping(self, topic: str, stamped: bool) -> Iterator[None]:
        """``stamped`` False: the topic's records carry the sender's time."""
        if not stamped:
            self.cluster.append_time.discard(topic)
        try:
            yield
        finally:
            self.cluster.append_time.add(topic)

    # --- outputs -----------------------------------------------------------------------------------------------------

    def place_of(self, topic: str, record: LogRecord) -> str:
        """A record's place as findings name it."""
        (number,) = [log.number for log in self.cluster.topics[topic] if record in log.records]
        return f"{topic}[{number}]@{record.offset}"

    def explained(self, command_id: str) -> Explanation:
        """What an audit finds that explains a command."""
        return self.audit(lambda log: explain(log, command_id))


class Market(Script):
    """A script whose inputs are also in the exchange's topics, as a router would have split them."""

    def home(self, account: str, topic: str) -> int:
        """Where the routers of ``topic`` send the account's rows."""
        return shard_of(account, len(self.cluster.topics[EVENTS]))

    def deposit(self, account: str, amount: str) -> None:
        self.transfer(account, amount, shard=self.home(account, TRANSFERS))
        record = Transfer(
            transfer_id=f"t{self.sequence}",
            account=account,
            asset="USDC",
            amount=amount,
            sequence=self.sequence,
            event_time=self.now_us,
        )
        self.cluster.append(TRANSFERS, account.encode(), encode(record))

    def trade(self, buyer: str, seller: str, quantity: str, price: str, order_id: str = "o") -> None:
        for account, signed in ((buyer, quantity), (seller, f"-{quantity}")):
            self.fill(account, signed, price, order_id=order_id, shard=self.home(account, TRADES))
        side: dict[str, Any] = {"order_id": order_id, "fee": self.fee}
        record = Trade(
            trade_id=self.trade_id,
            symbol=SYMBOL,
            price=price,
            quantity=quantity,
            aggressor_side="buy",
            maker=TradeSide(account=seller, **side),
            taker=TradeSide(account=buyer, **side),
            event_time=self.now_us,
        )
        self.cluster.append(TRADES, SYMBOL.encode(), encode(record))


def value(record: LogRecord) -> bytes:
    """A record's value, nothing for a tombstone."""
    return record.value or b""


def event_id(record: LogRecord) -> str:
    """The id in a record's headers."""
    return dict(record.headers or ())["ce_id"].decode()


def alter(record: LogRecord, old: bytes, new: bytes) -> None:
    """Put ``new`` in the place of ``old``, which must be there, in a record that has been written."""
    assert old in value(record)
    record.value = value(record).replace(old, new)


def drop(record: LogRecord) -> None:
    """Let a record be gone; its offset stays empty."""
    record.compacted = True


def opened(script: Script) -> None:
    """Alice is long one at 10,000 on 1,000, and Bob short against her."""
    script.transfer("alice", "1000")
    script.transfer("bob", "100000")
    script.cycle()
    script.fill("alice", "1", "10000")
    script.fill("bob", "-1", "10000")
    script.cycle()


def liquidated(script: Script) -> None:
    """Alice is long on thin margin and Bob short against her; the price falls and she is commanded to reduce."""
    opened(script)
    script.mark("9700")
    script.cycle()
    script.mark("9450")
    script.cycle()
    script.transfer("carol", "5")
    script.cycle()
    script.settle()


@contextmanager
def played(steps: Iterable[Callable[[Script], None]]) -> Iterator[Script]:
    """Whatever ``steps`` do to Alice with 1,000 and Bob with 30,000, applied and committed to the end."""
    with Script() as script:
        script.begin()
        script.transfer("alice", "1000")
        script.transfer("bob", "30000")
        for step in steps:
            step(script)
        script.settle()
        yield script
