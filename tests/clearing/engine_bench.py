"""Production's engines on the in-memory cluster, one cycle at a time: inputs go into its logs, outputs are read there.

Faults happen at the clients: :class:`streams.memory.clients.Rates` strikes their calls, ``cut`` keeps a process from
the coordinators, ``late`` withholds what polls would bring. Time is the scheduler's: nothing waits for a real clock.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Self

from confluent_kafka import TopicPartition
from msgspec.structs import replace

from schemas.codec import Decoder, encode
from schemas.messages import (
    AccountRow,
    Alert,
    EventFrame,
    FillColumns,
    JournalRecord,
    LiquidationCommand,
    Mark,
    MarkFrame,
    TransferColumns,
)
from schemas.parameters import (
    AssetParameters,
    InstrumentParameters,
    MarginTier,
    OracleParameters,
    Parameter,
    PolicyParameters,
)
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, EVENTS, JOURNAL, MARKS, PARAMETERS, dead_letter_topic
from streams.audit.log import KafkaLog
from streams.audit.replay import Replayed, replay
from streams.broker.records import Log
from streams.clearing.engine import Engine
from streams.memory.clients import FakeConsumer, FakeMessage, Rates
from streams.memory.kafka import MemoryKafka, memory_redis
from streams.memory.log import Cluster, LogRecord, Partition
from streams.memory.pipeline import partition_counts
from streams.memory.redis import Server
from streams.memory.scheduler import EPOCH_US, Process, Scheduler, Task, VirtualEvent
from streams.settings import load
from streams.watchdog import Watchdog
from tests.virtual_time import WAIT_S, T, VirtualTime

SYMBOL = "BTC-PERP"
SEED = 1
DUE_MS = 100
"""A commit is due, and quiet shards journal, so long after the last one."""
LOOK_MS = 1_100
"""The engine looks at its shards for the watchdog, and librdkafka tells its statistics, once a second."""


def instrument(rate: str = "0.05", **changes: Any) -> InstrumentParameters:
    """The contract's parameters with a maintenance rate of ``rate``."""
    values: dict[str, Any] = {
        "symbol": SYMBOL,
        "settle_asset": "USDC",
        "price_increment": "0.1",
        "quantity_increment": "0.001",
        "margin_tiers": (MarginTier(notional_floor="0", maintenance_rate=rate, initial_rate="0.3"),),
        "liquidation_fee": "0.005",
        "insurance_fee": "0.001",
    }
    return InstrumentParameters(**values | changes)


POLICY = PolicyParameters(liquidation_buffer_rate="0.002")

_DECODERS: dict[str, Callable[[bytes | None], Any]] = {
    COMMANDS: Decoder[LiquidationCommand](LiquidationCommand),
    ALERTS: Decoder[Alert](Alert),
    ACCOUNTS: Decoder[AccountRow](AccountRow),
    JOURNAL: Decoder[JournalRecord](JournalRecord),
}


class CountingWatchdog(Watchdog):
    """A watchdog that counts the beats of each loop."""

    def __init__(self) -> None:
        super().__init__()
        self.beats: Counter[str] = Counter()

    def beat(self, name: str, doing: str = "") -> None:
        super().beat(name, doing)
        self.beats[name] += 1

    @property
    def watched(self) -> set[str]:
        """The engine's own loops."""
        return {loop.name for loop in self.loops()} - {"table writer"}


class LateConsumer(FakeConsumer):
    """A consumer whose polls bring nothing yet of the topics in ``late``. Reading a range is not a poll."""

    def __init__(self, late: set[str], *rest: Any) -> None:
        super().__init__(*rest)
        self._late = late
        self._assigned: set[str] = set()

    def assign(self, places: list[TopicPartition]) -> None:
        self._assigned = {place.topic for place in places}
        super().assign(places)

    def poll(self, timeout: float = -1) -> FakeMessage | None:
        return None if self._late & self._assigned else super().poll(timeout)


class EngineProcess:
    """A process with one engine, which goes through its cycle when it is told to, or by itself from :meth:`run` on."""

    def __init__(self, bench: "Bench", name: str) -> None:
        self.name = name
        self.rates = Rates()
        self.late: set[str] = set()
        self.watchdog = CountingWatchdog()
        self.stop = VirtualEvent(bench.scheduler)
        self.process = Process(bench.scheduler, name)
        self.began = {shard: bench.partition(JOURNAL, shard).end for shard in bench.shards}
        self._bench = bench
        self._running: Task | None = None
        settings = replace(bench.settings, service=replace(bench.settings.service, instance_id=name))
        kafka = MemoryKafka(settings, bench.cluster, self.process, self.rates, partial(LateConsumer, self.late))
        redis = memory_redis(bench.redis, self.process, self.rates)
        self.engine = self.do(lambda: Engine.build(kafka, self.stop, self.watchdog, redis))

    def do(self, function: Callable[[], T]) -> T:
        """What ``function`` returns, or raises, in the process."""
        return self._bench.do(self.process, function)

    def join(self) -> Self:
        """Register and join the group; :meth:`cycle` takes what it assigns."""
        self.do(self.engine.register)
        self.do(self.engine.join)
        return self

    def run(self) -> Self:
        """Join, and go through the cycle by itself whenever time passes, until :meth:`leave`."""
        self._running = self._bench.scheduler.spawn(self.process, "main", self.engine.run)
        return self

    def cycle(self, times: int = 1, *, due: bool = True) -> None:
        """Go through the cycle; ``due``: what waits is to be committed."""
        for _ in range(times):
            if due:
                self._bench.advance(DUE_MS)
            if self._running is None:
                self.do(self.engine.cycle)

    def cycle_until(self, holds: Callable[[], bool], what: str = "") -> None:
        """Go through the cycle until ``holds``."""
        deadline_us = self._bench.scheduler.now + 1_000_000 * WAIT_S
        while not holds():
            assert self._bench.scheduler.now < deadline_us, f"not in {WAIT_S} s: {what or holds}"
            self.cycle()

    def settle(self) -> None:
        """Go through the cycle until everything in the logs is applied and committed."""
        self.cycle_until(self._bench.is_settled, "everything is applied and committed")
        self.cycle()

    def leave(self) -> None:
        """End as a process that runs does when it is told to."""
        running = self._running
        assert running is not None
        self.stop.set()
        self._bench.wait(lambda: running.done, f"{self.name} has ended")

    def kill(self) -> None:
        """End at once."""
        self.process.kill("by the test")
        self._bench.watch(self.process)

    def restart(self) -> "EngineProcess":
        """End at once; the process of the same name that owns every shard next."""
        self.kill()
        return self._bench.owner(self.name)

    def cut(self, for_ms: float) -> None:
        """Keep the process from the coordinators for so long; when its session ends it is expelled."""
        self.process.go_silent(cut_us=int(1000 * for_ms))
        self._bench.watch(self.process)

    def be_expelled(self) -> None:
        """Lose the group by silence for a session: the engine learns it when it polls, and joins again later."""
        session_ms = self._bench.settings.kafka.session_timeout_ms
        self.cut(session_ms + 5_000)
        self._bench.advance(session_ms + 1_000)

    def look(self) -> None:
        """Go through a cycle in which statistics come, and the engine looks at its shards for the watchdog."""
        self._bench.advance(LOOK_MS)
        self.do(self.engine.cycle)

    def conditions(self) -> dict[str, bool]:
        """Whether each condition of its readiness holds."""
        return {condition.name: condition.holds for condition in self.engine.readiness()}

    @property
    def to_take(self) -> int:
        """How many shards it has still to take."""
        values = {condition.name: condition.value for condition in self.engine.readiness()}
        return int(values["shards_to_take"] or 0)

    def calls(self) -> list[str]:
        """What its clients were asked, and told it, since :meth:`Bench.forget_calls`."""
        return [what for _, who, what in self._bench.scheduler.lines if who == self.name]


class Bench(VirtualTime):
    """An in-memory cluster of ``shards`` with an empty Redis; the settings of its engines, changed by ``changes``."""

    def __init__(self, shards: int = 1, **changes: Any) -> None:
        usual = {
            "topics.shards": shards,
            "topics.partitions": 1,
            "engine.commit_interval_ms": DUE_MS,
            "engine.journal_interval_ms": DUE_MS,
        }
        self.settings = load({}, usual | {name.replace("__", "."): value for name, value in changes.items()})
        self.scheduler = Scheduler(SEED, trace_lines=None)
        self.cluster = Cluster(
            self.scheduler, partition_counts(shards, self.settings.topics.partitions), lambda _: None
        )
        self.redis = Server(self.scheduler)
        self.fee = "0"
        """Of every fill."""
        self.trade_id = 0
        self.sequence = 0
        self._engines: list[EngineProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self._engines:
            engine.process.dead = True
            engine.process.unwind()

    # --- time and processes ------------------------------------------------------------------------------------------

    @property
    def now_us(self) -> int:
        """The brokers' time, microseconds since 1970."""
        return EPOCH_US + self.scheduler.now

    def engine(self, name: str = "engine") -> EngineProcess:
        """A new process; of processes with the same name a later one is the earlier one started again."""
        started = EngineProcess(self, name)
        self._engines.append(started)
        return started

    def owner(self, name: str = "engine") -> EngineProcess:
        """A new process that has joined and taken every shard."""
        started = self.engine(name).join()
        started.cycle_until(lambda: all(self.is_taken(shard, started) for shard in self.shards), "it has every shard")
        return started

    def watch(self, process: Process) -> None:
        """Let the groups expel the process when its session has ended."""
        for group in self.cluster.groups.values():
            group.watch(process)

    def forget_calls(self) -> None:
        """Begin a new trace of what clients are asked."""
        self.scheduler.lines.clear()

    # --- inputs ------------------------------------------------------------------------------------------------------

    def parameters(self, *records: Parameter) -> None:
        """Put records into the topic."""
        for record in records:
            self.cluster.append(PARAMETERS, record.key.encode(), encode(record))

    def market(self, policy: PolicyParameters = POLICY) -> Self:
        """Put the parameters of the market, and a first mark of 10,000, into the topics."""
        asset = AssetParameters(asset="USDC", decimals=6)
        self.parameters(
            asset, instrument(), policy, OracleParameters(symbol=SYMBOL, sources={"a": "1"}, max_age_ms=60_000)
        )
        self.mark("10000")
        return self

    def mark(self, price: str, *, full: bool = True, epoch: int = 0) -> None:
        """The oracle publishes a live mark."""
        mark = Mark(symbol=SYMBOL, price=price, status="live", publish_time=self.now_us, sources={"a": price})
        frame = MarkFrame(time=self.now_us, marks=(mark,), full=full, epoch=epoch)
        self.cluster.append(MARKS, None, encode(frame))

    def transfer(
        self,
        account: str,
        amount: str,
        *,
        asset: str = "USDC",
        margin: str = "cross",
        shard: int = 0,
        sequence: int | None = None,
    ) -> None:
        """A collateral transfer comes to a shard; ``sequence`` None: the next one."""
        self.sequence += 1
        columns = TransferColumns(
            account=[account],
            margin=[margin],
            asset=[asset],
            amount=[amount],
            sequence=[self.sequence if sequence is None else sequence],
            transfer_id=[f"t{self.sequence}"],
        )
        self.events(EventFrame(time=self.now_us, transfers=columns), shard)

    def fill(
        self,
        account: str,
        quantity: str,
        price: str = "10000",
        *,
        symbol: str = SYMBOL,
        margin: str = "cross",
        shard: int = 0,
        rows: int = 1,
        order_id: str = "o",
    ) -> None:
        """A frame of ``rows`` equal fills comes to a shard."""
        first, self.trade_id = self.trade_id + 1, self.trade_id + rows
        values = {"account": account, "margin": margin, "symbol": symbol, "quantity": quantity, "price": price}
        columns: dict[str, Any] = {name: [value] * rows for name, value in values.items()}
        columns |= {
            "fee": [self.fee] * rows,
            "order_id": [order_id] * rows,
            "trade_id": [*range(first, self.trade_id + 1)],
        }
        self.events(EventFrame(time=self.now_us, fills=FillColumns(**columns)), shard)

    def events(self, frame: EventFrame, shard: int = 0) -> None:
        """A frame comes to a shard."""
        self.cluster.append(EVENTS, None, encode(frame), shard)

    # --- outputs -----------------------------------------------------------------------------------------------------

    @property
    def shards(self) -> range:
        return range(len(self.cluster.topics[EVENTS]))

    def partition(self, topic: str, number: int = 0) -> Partition:
        """A log of the cluster."""
        return self.cluster.topics[topic][number]

    def records(self, topic: str, partition: int | None = None) -> list[LogRecord]:
        """What a reader of committed records sees, of one partition or of all."""
        logs = self.cluster.topics[topic]
        return [record for log in (logs if partition is None else [logs[partition]]) for record in log.committed()]

    def _decoded(self, topic: str) -> list[Any]:
        return [_DECODERS[topic](record.value) for record in self.records(topic) if record.value is not None]

    def journal(self, shard: int = 0, since: EngineProcess | None = None) -> list[JournalRecord]:
        """A shard's journal; with ``since`` what came after that process was started."""
        first = 0 if since is None else since.began[shard]
        return [_DECODERS[JOURNAL](record.value) for record in self.records(JOURNAL, shard) if record.offset >= first]

    def stands(self, shard: int = 0) -> JournalRecord:
        """The last record of a shard's journal."""
        return self.journal(shard)[-1]

    def claims(self, shard: int = 0) -> list[str]:
        """The processes that have claimed a shard, in order."""
        return [record.worker for record in self.journal(shard) if record.kind == "claim"]

    def is_taken(self, shard: int, by: EngineProcess) -> bool:
        """Whether ``by`` has claimed a shard, and committed in it since."""
        journal = self.journal(shard, since=by)
        return bool(journal) and (journal[-1].kind, journal[-1].worker) == ("commit", by.name)

    def is_settled(self) -> bool:
        """Whether the journals say that everything in the logs is applied."""
        return all(
            bool(self.journal(shard))
            and self.stands(shard).kind == "commit"
            and not self._is_left(EVENTS, self.stands(shard).events.next, shard)
            and not self._is_left(MARKS, self.stands(shard).marks.next)
            and not self._is_left(PARAMETERS, self.stands(shard).parameters.next)
            for shard in self.shards
        )

    def _is_left(self, topic: str, first: int, partition: int = 0) -> bool:
        return any(True for _ in self.partition(topic, partition).committed(first))

    def committed(self, shard: int = 0) -> int:
        """The group's committed offset of a shard's events."""
        return self.cluster.offsets.get(self.settings.engine.group_id, {}).get((EVENTS, shard), -1)

    def commands(self) -> list[LiquidationCommand]:
        return self._decoded(COMMANDS)

    def alerts(self) -> list[Alert]:
        return self._decoded(ALERTS)

    def row(self, account: str) -> AccountRow:
        """An account's last row in the changelog."""
        last: AccountRow = [row for row in self._decoded(ACCOUNTS) if row.account == account][-1]
        return last

    def dead_letters(self, topic: str) -> list[LogRecord]:
        return self.records(dead_letter_topic(topic))

    def audit(self, function: Callable[[Log], T]) -> T:
        """What ``function`` says, or raises, of the logs that an audit reads."""
        process = Process(self.scheduler, "auditor")

        def read() -> T:
            with KafkaLog(MemoryKafka(self.settings, self.cluster, process)) as log:
                return function(log)

        return self.do(process, read)

    def replayed(self, shard: int = 0, first: int | None = None, last: int | None = None) -> Replayed:
        """What an audit finds that runs the journal again."""
        return self.audit(lambda log: replay(log, shard, first=first, last=last))
