"""How long an engine takes to restore a large shard, from the changelog and from Redis, and in what steps.

``python -m streams.bench.restore [accounts]`` starts a local Kafka and Valkey, writes the accounts of one shard to the
changelog, and runs an engine that restores it, then another one that does so from Redis. Printed is the longest cycle
meanwhile, which is what other shards of the engine would wait at most, and how long the restoring took as a whole.
"""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import Producer

from infra.local.stack import LocalStack
from schemas.codec import encode
from schemas.messages import AccountRow, GroupRow, PositionRow
from schemas.topics import ACCOUNTS, PARAMETERS
from streams.bench.beat import Beat
from streams.bench.market import parameters
from streams.broker import config
from streams.broker.admin import ensure_topics
from streams.broker.kafka import Kafka
from streams.clearing.engine import Engine
from streams.settings import Settings, load
from streams.tables.reader import TableReader
from streams.watchdog import Watchdog

SHARD = 0
SYMBOLS = 20
_NAMES = [f"S{number}-PERP" for number in range(SYMBOLS)]
_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class RestoreMeasurement:
    """One restoring of the shard: seconds as a whole, cycles meanwhile, and the longest of them in milliseconds."""

    source: str
    seconds: float
    cycles: int
    longest_ms: float


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


def bench_restore(accounts: int = 100_000) -> list[RestoreMeasurement]:
    """Restore a shard of ``accounts`` accounts from the changelog, and again from Redis."""
    with LocalStack.start() as stack:
        settings = load(
            {},
            {
                "kafka.bootstrap_servers": stack.bootstrap_servers,
                "redis.url": stack.redis_url,
                "topics.shards": "1",
            },
        )
        ensure_topics(settings)
        _publish(settings, accounts)
        with Beat(Producer(config.producer(settings.kafka, "bench")), _NAMES):
            return [_measure(settings, source) for source in ("changelog", "Redis")]


def _measure(settings: Settings, source: str) -> RestoreMeasurement:
    """Time an engine that restores the shard; it is ended when its table is in Redis."""
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
    return RestoreMeasurement(source, sum(engine.durations_s), len(engine.durations_s), 1000 * max(engine.durations_s))


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_WAIT_S:g} s: {what}")
        time.sleep(0.05)


def _is_in_redis(settings: Settings) -> bool:
    with TableReader(settings.redis) as tables:
        meta = tables.table_meta(SHARD)
    return meta is not None and not meta.building


def _publish(settings: Settings, accounts: int) -> None:
    producer = Producer(config.producer(settings.kafka, "bench"))
    for record in parameters(_NAMES):
        producer.produce(PARAMETERS, encode(record), key=record.key)
    for number in range(accounts):
        account = f"account-{number:07d}"
        positions = tuple(
            PositionRow(symbol=_NAMES[(number + i) % SYMBOLS], quantity="1", cash="-100") for i in range(3)
        )
        group = GroupRow(margin="cross", status="normal", balances={"USDC": "1000"}, positions=positions)
        row = AccountRow(account=account, status="normal", groups=(group,), liquidation_sequence=0, transfer_sequence=1)
        producer.produce(ACCOUNTS, encode(row), key=account, partition=SHARD)
        producer.poll(0)
    producer.flush()


if __name__ == "__main__":
    for measurement in bench_restore(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000):
        print(
            f"from {measurement.source}: taken in {measurement.seconds:.2f} s, {measurement.cycles} cycles of "
            f"all shards meanwhile, the longest {measurement.longest_ms:.0f} ms"
        )
