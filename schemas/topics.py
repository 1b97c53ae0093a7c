"""The one place that names topics and says what each must be.

Partition *n* of each of the ``shards`` topics belongs to shard *n*; ``margin.layout.v1`` says how many shards there
are, and nobody uses a partition beyond those. The exchange's topics may have any partition count, and take records of
any size. What we write ourselves fits ``RECORD_BYTES_MAX``, which Kafka's brokers take by default: a dead letter is cut
to it, and says so. ``margin.marks.v1``, ``margin.progress.v1`` and ``risk.parameters.v1`` have exactly one partition,
so that an offset in them is a global order.
"""

from dataclasses import dataclass
from typing import Literal

TRADES = "trades.v1"
TRANSFERS = "collateral.transfers.v1"
PRICES = "oracle.prices.v1"
PARAMETERS = "risk.parameters.v1"
REPORTS = "liquidation.reports.v1"
EVENTS = "margin.events.v1"
MARKS = "margin.marks.v1"
PROGRESS = "margin.progress.v1"
COMMANDS = "liquidation.commands.v1"
ALERTS = "margin.alerts.v1"
ACCOUNTS = "margin.accounts.v1"
JOURNAL = "margin.journal.v1"
LAYOUT = "margin.layout.v1"
ROUTER = "margin.router.v1"
ORACLE = "margin.oracle.v1"

INPUTS = (TRADES, TRANSFERS, REPORTS)
"""The exchange's topics that the router turns into frames."""

Partitioning = Literal["any", "shards", "one", "trades", "prices"]
Cleanup = Literal["delete", "compact"]
Compression = Literal["none", "lz4"]

RECORD_BYTES_MAX = 1_048_588
"""The largest record, with headers and framing, that a topic of ours must take: the default of Kafka's brokers."""

_DAY_MS = 86_400_000
_ROUTER_SEGMENT = 16 * 1024 * 1024
"""The open segment is never compacted, and whoever takes a partition reads it all."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of the contract. ``retention_ms`` is None where compaction keeps the last record of each key.

    ``append_time``: its records carry the time at which the broker appended them, whatever their sender's clock says.
    ``segment_bytes``: how much of it is written before it may be compacted, if not the broker's default.
    ``compression`` is how we write its records; None: others write it. What others read is not compressed, because not
    every client reads every codec (kafkajs knows gzip only).
    """

    name: str
    key: str
    partitioning: Partitioning
    cleanup: Cleanup = "delete"
    retention_ms: int | None = 7 * _DAY_MS
    dead_letters: bool = False
    append_time: bool = False
    segment_bytes: int | None = None
    compression: Compression | None = None

    @property
    def dlq(self) -> str:
        return dead_letter_topic(self.name)

    def config(self) -> dict[str, str]:
        """Topic configuration that creation sets; verification insists on what :meth:`required` gives."""
        config = self.required()
        if self.cleanup == "compact":
            config |= {"min.cleanable.dirty.ratio": "0.1", "segment.ms": str(_DAY_MS)}
        elif self.retention_ms is not None:
            config["retention.ms"] = str(self.retention_ms)
        if self.compression == "none":
            config["compression.type"] = "uncompressed"  # also for a dead letter in a batch of frames
        config |= {name: str(least) for name, least in self.at_least().items()}
        return config | ({} if self.segment_bytes is None else {"segment.bytes": str(self.segment_bytes)})

    def required(self) -> dict[str, str]:
        """The configuration without which the pipeline would go wrong."""
        stamped = {"message.timestamp.type": "LogAppendTime"} if self.append_time else {}
        return {"cleanup.policy": self.cleanup} | stamped

    def at_least(self) -> dict[str, int]:
        """The configuration that may be higher, not lower: whoever writes a topic must never be refused for a size."""
        return {} if self.compression is None else {"max.message.bytes": RECORD_BYTES_MAX}


def dead_letter_topic(topic: str) -> str:
    """Where the records of ``topic`` go that could not be read or applied."""
    return f"{topic}.dlq"


CONTRACT: tuple[Topic, ...] = (
    Topic(TRADES, "symbol", "any", dead_letters=True),
    Topic(TRANSFERS, "account", "any", dead_letters=True),
    Topic(PRICES, "symbol", "any", dead_letters=True, retention_ms=_DAY_MS),
    Topic(PARAMETERS, "type:id", "one", cleanup="compact", retention_ms=None, dead_letters=True),
    Topic(REPORTS, "account", "any", dead_letters=True),
    Topic(EVENTS, "none", "shards", dead_letters=True, compression="lz4", append_time=True),
    Topic(MARKS, "none", "one", dead_letters=True, compression="none", append_time=True),
    Topic(PROGRESS, "none", "one", dead_letters=True, compression="lz4", append_time=True),
    Topic(COMMANDS, "account", "any", compression="none", append_time=True),
    Topic(ALERTS, "account", "any", compression="none", append_time=True),
    Topic(ACCOUNTS, "account", "shards", cleanup="compact", retention_ms=None, compression="none", append_time=True),
    Topic(JOURNAL, "none", "shards", retention_ms=30 * _DAY_MS, compression="none", append_time=True),
    Topic(LAYOUT, "layout", "one", cleanup="compact", retention_ms=None, compression="none", append_time=True),
    Topic(
        ROUTER,
        "topic:partition:symbol",
        "trades",
        cleanup="compact",
        retention_ms=None,
        compression="lz4",
        segment_bytes=_ROUTER_SEGMENT,
        append_time=True,
    ),
    Topic(ORACLE, "symbol", "prices", cleanup="compact", retention_ms=None, compression="none", append_time=True),
)


def all_topics() -> tuple[Topic, ...]:
    """The contract's topics and their dead-letter topics."""
    letters = tuple(
        Topic(topic.dlq, topic.key, "one", retention_ms=30 * _DAY_MS, compression="none", append_time=True)
        for topic in CONTRACT
        if topic.dead_letters
    )
    return CONTRACT + letters
