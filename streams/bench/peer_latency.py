"""How long it takes Kafka Streams from a trade to the state that it makes, at a read_committed consumer.

It judges nobody; so this is the least that a liquidation by a trade would take it. Trades are due at given times, one
for each of as many accounts, and count from when they were due.
"""

import itertools
import time
from dataclasses import dataclass, replace

from infra.bench.peers.launch import kafka_streams
from streams.bench.arrivals import Arrivals
from streams.bench.bed import Progress
from streams.bench.books import Books
from streams.bench.errors import BenchDiffers
from streams.bench.latency import Quantiles, bought
from streams.bench.pace import send_when_due
from streams.bench.peers import WORKERS, await_done, peer_at_work, rows_of
from streams.bench.router import trade_records

_START_S = 0.5
_WARM = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLatency:
    """One run, at a ``commit.interval.ms`` of ``commit_ms``."""

    name: str
    commit_ms: int
    states: int
    total: Quantiles
    late_ms: float


def bench_peer_latency(
    commit_ms: int, probes: int, probes_per_s: float, *, progress: Progress = lambda _: None
) -> PeerLatency:
    """Measure ``probes`` trades without other load, after some to get warm.

    Raises:
        MissingError: there is no JDK, or its jars cannot be had.
        BenchDiffers: the states are not what the trades add up to.
        BenchError: it could not be run.
    """
    peer = kafka_streams(WORKERS, progress)
    peer = replace(peer, variables={"PEER_COMMIT_MS": str(commit_ms)})
    with peer_at_work(peer, progress) as contender:
        bed = contender.bed
        warm = [bought(f"warm-{number % 100}", number + 1) for number in range(_WARM)]
        progress(f"{peer.name}, committing every {commit_ms} ms: {_WARM:,} trades to get warm")
        bed.publish(trade_records(warm))
        await_done(contender)
        trades = [bought(f"probed-{number}", _WARM + number + 1) for number in range(probes)]
        producer = bed.producer(linger_ms=0)
        progress(f"{probes:,} trades, {probes / probes_per_s:.0f} s")
        with Arrivals(bed, contender.states, contender.account_of) as states:
            start = time.time() + _START_S
            due = {trade.taker.account: start + number / probes_per_s for number, trade in enumerate(trades)}
            late = send_when_due([zip(due.values(), itertools.repeat(producer), trade_records(trades))])
            states.await_all(due)
        await_done(contender)
        books = Books()
        books.trade([*warm, *trades])
        if differences := states.missing(due) + books.differences(rows_of(contender)):
            raise BenchDiffers(f"{peer.name}, committing every {commit_ms} ms", differences)
    seen = [states.arrived[account][1] - at for account, at in due.items()]
    return PeerLatency(
        name=peer.name, commit_ms=commit_ms, states=len(seen), total=Quantiles.of(seen), late_ms=1000 * late
    )
