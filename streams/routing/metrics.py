"""The router's Prometheus metrics.

Everything about records is counted when it is acknowledged; what is routed again after a failure counts again.
"""

import logging
from collections import defaultdict
from collections.abc import Collection

import msgspec
from prometheus_client import Counter, Gauge, Histogram

from streams.broker.records import Record
from streams.logs import event
from streams.routing.split import Counts, RefusedRecord
from streams.routing.trade_ids import RefusedTrade

log = logging.getLogger(__name__)

RECORDS = Counter("margin_router_records", "Records routed, dead letters and repeats included", ["topic"])
FILLS = Counter("margin_router_fills", "Fills sent to the shards, two a trade")
REPEATS = Counter("margin_router_repeated_trades", "Trades dropped because their id had been seen")
GAPS = Counter("margin_router_missing_trades", "Trade ids that never came")
DEAD_LETTERS = Counter("margin_router_dead_letters", "Records that could not be read", ["topic"])
SUSPENSIONS = Counter("margin_router_suspensions", "Accounts told of dead letters that name them")
CONTRADICTIONS = Counter("margin_router_contradictions", "Trades refused because they contradict what was routed")
UNTOLD = Counter("margin_router_untold_dead_letters", "Dead letters that concern somebody who is not known", ["topic"])
WRITES = Histogram(
    "margin_router_write_seconds",
    "Time from writing a batch's frames to the acknowledgement of the last",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
COMMITS = Histogram(
    "margin_router_commit_seconds",
    "Transaction time, from its begin to its commit",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
DROPPED_BATCHES = Counter("margin_router_dropped_batches", "Times that all partitions were begun again after a failure")
PROGRESS = Counter("margin_router_progress", "Records of progress written")
PROGRESS_NOT_TOLD = Counter("margin_router_progress_not_told", "Times that progress could not be written")
PARTITIONS = Gauge("margin_router_partitions", "Input partitions owned")


class Letter(msgspec.Struct, frozen=True, gc=False):
    """A dead letter of a batch: the record, and why it was refused."""

    record: Record
    refused: RefusedRecord


def count(letters: Collection[Letter], counts: Counts) -> None:
    """Count what a batch held, and log what is not as it should be."""
    by_topic: dict[str, int] = defaultdict(int)
    untold: dict[str, int] = defaultdict(int)
    suspensions = contradictions = 0
    for letter in letters:
        topic, refused, whom = letter.record.topic(), letter.refused, letter.refused.whom
        by_topic[topic] += 1
        untold[topic] += not whom.complete
        suspensions += len(whom.accounts)
        contradictions += refused.kind is RefusedTrade
    SUSPENSIONS.inc(suspensions)
    CONTRADICTIONS.inc(contradictions)
    for topic, letters_of_topic in by_topic.items():
        DEAD_LETTERS.labels(topic).inc(letters_of_topic)
        UNTOLD.labels(topic).inc(untold[topic])
    FILLS.inc(counts.fills)
    if counts.repeats:
        REPEATS.inc(counts.repeats)
        event(log, logging.WARNING, "trades_repeated", count=counts.repeats)
    if counts.missing:
        GAPS.inc(counts.missing)
        event(log, logging.WARNING, "trades_missing", count=counts.missing, gaps=counts.gaps)
