"""How long an engine takes to restore a large shard, from the changelog and from Redis, and in what steps.

A local Kafka and Valkey, the accounts of one shard in the changelog, and an engine that restores it, then another
one that does so from Redis. Measured is the longest cycle meanwhile, which is what other shards of the engine would
wait at most, and how long the restoring took as a whole. After each the table in Redis must hold every row as it was
written.

Kafka Streams beside it restores as many states of the same accounts into its RocksDB, which takes bytes as they come.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import orjson

from infra.bench.peers.launch import kafka_streams
from infra.local.process import ManagedProcess
from schemas.codec import encode
from schemas.messages import AccountRow, GroupRow, PositionRow
from schemas.topics import ACCOUNTS
from streams.bench.beat import Beat
from streams.bench.bed import Bed, Progress
from streams.bench.errors import BenchDiffers, BenchError
from streams.bench.market import parameters
from streams.bench.peers import prepare, started
from streams.broker.kafka import Kafka
from streams.clearing.engine import Engine
from streams.settings import Settings
from streams.tables.reader import TableReader
from streams.watchdog import Watchdog

SHARD = 0
SYMBOLS = 20
_NAMES = [f"S{number}-PERP" for number in range(SYMBOLS)]
_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class RestoreTimes:
    """One restoring of the shard: seconds as a whole, and, of an engine, cycles meanwhile and the longest of them in
    milliseconds."""

    source: str
    seconds: float
    cycles: int = 0
    longest_ms: float = 0.0


class MeasuredEngine(Engine):
    """An engine that notes how long its cycles take while it has a shard to restore (``durations_s``)."""

    durations_s: tuple[float, ...] = ()

    @property
    def has_to_restore(self) -> bool:
        """Whether a shard that is assigned does not run yet."""
        return any(condition.name == "shards_to_take" and not condition.holds for condition in self.readiness())

    def cycle(self) -> None:
        is_restoring, started = self.has_to_restore, time.perf_counter()
        super().cycle()
        if is_restoring:
            self.durations_s += (time.perf_counter() - started,)


def bench_restore(accounts: int, *, progress: Progress = lambda _: None) -> list[RestoreTimes]:
    """Restore a shard of ``accounts`` accounts from the changelog, and again from Redis.

    Raises:
        BenchDiffers: the table is not what was written.
        BenchError: it could not be run.
    """
    with Bed.open(progress, shards=1) as bed:
        progress(f"{accounts:,} accounts of three positions are written")
        bed.publish_parameters(parameters(_NAMES))
        rows = dict(_rows(accounts))
        bed.publish((ACCOUNTS, account.encode(), row, SHARD) for account, row in rows.items())
        with Beat(bed.producer(), _NAMES):
            return [_measure(bed.settings, source, rows, progress) for source in ("changelog", "Redis")]


def bench_streams_restore(accounts: int, *, progress: Progress = lambda _: None) -> RestoreTimes:
    """Let Kafka Streams restore ``accounts`` states of one partition.

    Raises:
        MissingError: there is no JDK, or its jars cannot be had.
        BenchDiffers: it restored others than were written.
        BenchError: it could not be run.
    """
    peer = kafka_streams(1, progress)
    with Bed.open(progress, partitions=1) as bed:
        prepare(bed, [peer.changelog, f"{peer.group}-fills-repartition"])
        progress(f"{accounts:,} states of three positions are written")
        bed.publish((peer.changelog, account.encode(), state, 0) for account, state in _states(accounts))
        with started(peer, bed) as contender:
            (process,) = contender.processes.values()
            bed.wait_for(lambda: "restored" in _said(process) or process.poll() is not None, "the states")
            said = _said(process)
            if "restored" not in said:
                raise BenchError(f"{peer.name} ended:\n{process.log_tail(30)}")
    (_, _, _, began), (_, _, count, ended) = said["restoring"], said["restored"]
    if int(count) != accounts:
        raise BenchDiffers(peer.name, [f"{count} states were restored, not {accounts:,}"])
    return RestoreTimes(peer.name, (int(ended) - int(began)) / 1000)


def _said(process: ManagedProcess) -> dict[str, list[str]]:
    """The last line of each first word in what a process said, as words."""
    return {words[0]: words for line in process.log_tail(200).splitlines() if (words := line.split())}


def _measure(settings: Settings, source: str, rows: Mapping[str, bytes], progress: Progress) -> RestoreTimes:
    """Time an engine that restores the shard; it is ended when its table is in Redis."""
    progress(f"an engine restores them, from {source}")
    stop = threading.Event()
    engine = MeasuredEngine.build(Kafka(settings), stop, Watchdog())
    thread = threading.Thread(target=engine.run)
    thread.start()
    try:
        _await(lambda: bool(engine.durations_s) and not engine.has_to_restore, "the shard")
        _await(lambda: _is_in_redis(settings), "the table")
    finally:
        stop.set()
        thread.join()
    with TableReader(settings.redis) as tables:
        in_redis = dict(tables.accounts(SHARD))
    if in_redis != rows:
        wrong = [account for account in rows.keys() | in_redis.keys() if rows.get(account) != in_redis.get(account)]
        raise BenchDiffers(f"restore from {source}", [f"{account} is not as it was written" for account in wrong])
    return RestoreTimes(source, sum(engine.durations_s), len(engine.durations_s), 1000 * max(engine.durations_s))


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {_WAIT_S:g} s: {what}")
        time.sleep(0.05)


def _is_in_redis(settings: Settings) -> bool:
    with TableReader(settings.redis) as tables:
        meta = tables.table_meta(SHARD)
    return meta is not None and not meta.building


def _rows(accounts: int) -> Iterator[tuple[str, bytes]]:
    """Accounts of three positions each, with their rows of the changelog."""
    for account, symbols in _holdings(accounts):
        positions = tuple(PositionRow(symbol=symbol, quantity="1", cash="-100") for symbol in symbols)
        group = GroupRow(margin="cross", status="normal", balances={"USDC": "1000"}, positions=positions)
        row = AccountRow(account=account, status="normal", groups=(group,), liquidation_sequence=0, transfer_sequence=1)
        yield account, encode(row)


def _states(accounts: int) -> Iterator[tuple[str, bytes]]:
    """The same accounts with their states as the peer writes them."""
    for account, symbols in _holdings(accounts):
        positions = {symbol: {"quantity": "1", "cash": "-100"} for symbol in symbols}
        yield account, orjson.dumps({"fills": 3, "fees": "0", "positions": positions})


def _holdings(accounts: int) -> Iterator[tuple[str, list[str]]]:
    symbols = itertools.cycle(_NAMES)
    for number in range(accounts):
        yield f"account-{number:07d}", sorted(itertools.islice(symbols, 3))
