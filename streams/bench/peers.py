"""The fills job done by this pipeline and by others: the same trades, each on a fresh Kafka, one after the other.

Each contender has two workers (processes, or threads of one; Faust one process) and has done a part of the trades
already when it is held still; then the rest is written, and it is let go. Time ends when the broker appended the last
state of an account. The figures of a contender stand only if the states of all accounts are what the trades add up to.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from infra.bench.peers.launch import PEERS, Peer
from infra.local.errors import MissingError
from infra.local.process import ManagedProcess
from schemas.messages import Trade
from schemas.topics import ACCOUNTS, TRADES
from streams.bench.beat import Beat
from streams.bench.bed import WAIT_S, Bed, Progress
from streams.bench.books import Books
from streams.bench.cpu import CpuMeter
from streams.bench.errors import BenchDiffers, BenchError
from streams.bench.fills import written
from streams.bench.market import ASSET, DrawnExchange, Traders, parameters
from streams.bench.router import trade_records
from streams.broker.admin import admin_client
from streams.broker.records import Record
from streams.errors import BrokerError

OURS = "ours"
WORKERS = 2
_NODE = "1"
_CALL_S = 30.0
_QUIET_S = 7.0
"""Longer than any contender waits before it commits."""
_QUIET_S_MAX = 60.0
"""So long after all trades are committed there must be no more states to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTimes:
    """One contender. Processor seconds are per million trades; ``records`` is how many states it wrote.

    ``others_share`` is the share of this machine's processors that others used.
    """

    name: str
    promise: str
    workers: int
    trades: int
    seconds: float
    fills_per_s: float
    cpu_s_per_million_trades: float
    broker_cpu_s_per_million_trades: float
    records: int
    others_share: float


@dataclass(frozen=True, slots=True)
class Compared:
    """All contenders, and why which of them were left out."""

    runs: list[PeerTimes] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Work:
    """What every contender is given: the population, the trades before the clock starts, and those after."""

    population: Traders
    before: list[Trade]
    measured: list[Trade]

    @property
    def trades(self) -> list[Trade]:
        return [*self.before, *self.measured]


def bench_peers(
    population: Traders, trades: int, before: int, names: Sequence[str], *, progress: Progress = lambda _: None
) -> Compared:
    """Measure this pipeline, and the peers that are named: one that cannot be had or does not get done is left out.

    Raises:
        BenchDiffers: a contender's states are not what the trades add up to.
        BenchError: it could not be run.
    """
    exchange = DrawnExchange(population)
    work = _Work(population, exchange.openings() + exchange.trades(before), exchange.trades(trades))
    compared = Compared()
    with _ours(exchange, work, progress) as contender:
        compared.runs.append(_measured(contender, work, progress))
    for name in names:
        try:
            with peer_at_work(PEERS[name](WORKERS, progress), progress) as contender:
                compared.runs.append(_measured(contender, work, progress))
        except (MissingError, BenchError) as error:
            compared.left_out[name] = str(error)
    return compared


# --- contenders ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contender:
    """Who does the job, running on its bed: its processes, the group that reads the trades, and where states are."""

    name: str
    promise: str
    bed: Bed
    processes: Mapping[str, ManagedProcess]
    group: str
    states: str
    workers: int
    account_of: Callable[[Record], str]
    row_of: Callable[[Any], Any]
    deposits: Books = field(default_factory=Books)


@contextmanager
def _ours(exchange: DrawnExchange, work: _Work, progress: Progress) -> Iterator[Contender]:
    """Router and engine, with accounts that have deposited: without, they would be liquidated."""
    with Bed.open(progress) as bed, Beat(bed.producer(), exchange.symbols):
        bed.publish_parameters(parameters(exchange.symbols))
        bed.start("router", "engine")
        deposits, books = list(exchange.deposits()), Books()
        books.deposit(deposits)
        bed.publish_transfers(deposits)
        bed.await_routed()
        bed.await_applied()
        yield Contender(
            name="margin-clearing, router and engine",
            promise="exactly once",
            bed=bed,
            processes={name: role.process for name, role in bed.roles.items()},
            group=bed.settings.router.group_id,
            states=ACCOUNTS,
            workers=WORKERS,
            account_of=lambda record: (record.key() or b"").decode(),
            row_of=lambda row: row,
            deposits=books,
        )


@contextmanager
def peer_at_work(peer: Peer, progress: Progress) -> Iterator[Contender]:
    """A peer that runs on a bed of its own, and is ended with it."""
    with Bed.open(progress) as bed:
        prepare(bed, peer.topics)
        with started(peer, bed) as contender:
            yield contender


@contextmanager
def started(peer: Peer, bed: Bed) -> Iterator[Contender]:
    """A peer that runs on ``bed``."""
    processes: dict[str, ManagedProcess] = {}
    try:
        for number in range(peer.processes):
            folder = bed.stack.folder / f"peer-{number}"
            folder.mkdir()
            processes[f"peer-{number}"] = ManagedProcess(
                peer.command,
                name=f"{peer.name} {number}",
                log_path=folder / "peer.log",
                folder=bed.stack.folder,
                env=peer.environment(
                    bed.settings.kafka.bootstrap_servers, TRADES, bed.settings.topics.partitions, folder
                ),
            )
        yield Contender(
            name=peer.name,
            promise=peer.promise,
            bed=bed,
            processes=processes,
            group=peer.group,
            states=peer.changelog,
            workers=peer.workers,
            account_of=_account_of_peer,
            row_of=_row_of_peer,
        )
    finally:
        for process in processes.values():
            process.kill()


def prepare(bed: Bed, topics: Sequence[str]) -> None:
    """Let every topic that is made from now on carry the broker's time, and make ``topics``."""
    resource = ConfigResource(ResourceType.BROKER, _NODE)
    resource.add_incremental_config(
        ConfigEntry("log.message.timestamp.type", "LogAppendTime", incremental_operation=AlterConfigOpType.SET)
    )
    admin = admin_client(bed.settings)
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(timeout=_CALL_S)
    wanted = [NewTopic(topic, num_partitions=bed.settings.topics.partitions) for topic in topics]
    for future in (admin.create_topics(wanted) if wanted else {}).values():
        future.result(timeout=_CALL_S)


def _account_of_peer(record: Record) -> str:
    """Quix puts the name of the value behind the key, Faust writes the key as JSON."""
    return (record.key() or b"").decode().partition("|")[0].strip('"')


def _row_of_peer(state: Any) -> Any:
    positions = [{"symbol": symbol, **position} for symbol, position in state["positions"].items()]
    return {"groups": [{"balances": {ASSET: f"-{state['fees']}"}, "positions": positions}]}


# --- measuring -------------------------------------------------------------------------------------------------------


def _measured(contender: Contender, work: _Work, progress: Progress) -> PeerTimes:
    bed, name = contender.bed, contender.name
    progress(f"{name}: {len(work.before):,} trades to get going")
    bed.publish(trade_records(work.before))
    await_done(contender)
    waiting = list(trade_records(work.measured))
    first = bed.ends(contender.states)
    pids = {key: process.pid for key, process in contender.processes.items()} | {"broker": bed.pids["broker"]}
    with CpuMeter(pids) as meter:
        with bed.held_still(*contender.processes.values()):
            bed.publish(waiting)
            progress(f"{name}: {len(work.measured):,} trades")
            started = time.time()
        await_done(contender)
    records, last_ms = written(bed, contender.states, first)
    books = contender.deposits
    books.trade(work.trades)
    if differences := books.differences(rows_of(contender)):
        raise BenchDiffers(name, differences)
    seconds = last_ms / 1000 - started
    used = meter.between(started, last_ms / 1000)
    count = len(work.measured)
    return PeerTimes(
        name=name,
        promise=contender.promise,
        workers=contender.workers,
        trades=count,
        seconds=seconds,
        fills_per_s=2 * count / seconds,
        cpu_s_per_million_trades=1e6 * sum(used[key] for key in contender.processes) / count,
        broker_cpu_s_per_million_trades=1e6 * used["broker"] / count,
        records=records,
        others_share=meter.others_share(started, last_ms / 1000),
    )


def await_done(contender: Contender) -> None:
    """Wait until all trades are committed, and no state has been written for a while."""
    bed, trades = contender.bed, contender.bed.ends(TRADES)
    _wait(contender, lambda: bed.has_committed(contender.group, TRADES, trades), "the trades to be committed")
    seen: tuple[list[int], float] = ([], 0.0)

    def is_quiet() -> bool:
        nonlocal seen
        try:
            ends = bed.ends(contender.states)
        except BrokerError:  # the peer has not made it yet
            return False
        if ends != seen[0]:
            seen = (ends, time.monotonic())
        return sum(ends) > 0 and time.monotonic() - seen[1] >= _QUIET_S

    _wait(contender, is_quiet, f"the states to be written to {contender.states}", _QUIET_S_MAX)


def _wait(contender: Contender, condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    def holds() -> bool:
        for process in contender.processes.values():
            if (code := process.poll()) is not None:
                raise BenchError(f"{process.name} ended with exit code {code}:\n{process.log_tail(30)}")
        return condition()

    try:
        contender.bed.wait_for(holds, what, timeout_s)
    except BenchError as error:
        tails = "\n".join(f"{each.name}: {each.log_tail(10)}" for each in contender.processes.values())
        raise BenchError(f"{contender.name}: {error}\n{tails}") from error


def rows_of(contender: Contender) -> dict[str, Any]:
    """The last state of each account."""
    rows: dict[str, Any] = {}
    for record in contender.bed.read(contender.states):
        if (value := record.value()) is not None:
            rows[contender.account_of(record)] = orjson.loads(value)
    return {account: contender.row_of(row) for account, row in rows.items()}
