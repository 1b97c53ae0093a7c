"""Over how many shards accounts are spread: a fact of the log, in ``margin.layout.v1``, and nobody's setting.

``margin-clearing topics`` writes it once, and ``margin-clearing rescale`` changes it, step by step. The topics of the
shards may get more partitions: those from ``ShardLayout.shards_used`` on are not used. Roles follow it while they run.
"""

import logging
from collections.abc import Iterator, Mapping
from itertools import islice

from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import ShardLayout
from schemas.partitioning import partition_of
from schemas.topics import ACCOUNTS, EVENTS, LAYOUT
from streams.broker.producer import IdempotentProducer
from streams.broker.reader import Follower, LogReader
from streams.broker.records import Log
from streams.errors import TopicError
from streams.logs import event
from streams.settings import KafkaSettings

log = logging.getLogger(__name__)

LAYOUT_KEY = b"layout"

KEYS_LOOKED_AT = 1_000
"""So many accounts of a partition say over how many shards an earlier version has spread them."""

_DECODE = Decoder[ShardLayout](ShardLayout)


def read_layout(log: Log) -> ShardLayout | None:
    """The layout that stands; None if there is none yet.

    Raises:
        TopicError: it cannot be read. BrokerError: Kafka does not answer.
    """
    low, high = log.watermarks(LAYOUT, 0)
    value: bytes | None = None
    for record in log.read_range(LAYOUT, 0, low, high):
        if record.key() == LAYOUT_KEY:
            value = record.value()
    if value is None:
        return None
    try:
        return _DECODE(value)
    except DecodeError as error:
        raise TopicError(f"{LAYOUT} does not say over how many shards accounts are spread: {error}") from error


def require_layout(log: Log) -> ShardLayout:
    """The layout that stands.

    Raises:
        TopicError: nobody has written it, or it cannot be read. BrokerError: Kafka does not answer.
    """
    layout = read_layout(log)
    if layout is None:
        raise TopicError(
            f"{LAYOUT} does not say over how many shards accounts are spread; `margin-clearing topics` writes it"
        )
    return layout


def require_shards(log: Log) -> int:
    """How many shards there are: those of accounts now, and those that have had accounts.

    Raises:
        TopicError: nobody has written it, or it cannot be read. BrokerError: Kafka does not answer.
    """
    return require_layout(log).shards_used


def spread_clauses(layout: ShardLayout) -> list[str]:
    """In words, over how many shards accounts are spread, to how many they are moving, and how many shards there are
    beside those."""
    clauses = [f"accounts are spread over {layout.shards} shards"]
    if layout.is_moving:
        clauses.append(f"they are moving to {layout.target}")
    homes = max(layout.shards, layout.target or 0)
    if layout.shards_used > homes:
        clauses.append(f"shards {homes} to {layout.shards_used - 1} have had accounts and stay, empty")
    return clauses


class LayoutFollower:
    """Follows the layout for a role that runs. ``layout`` is the newest that has come."""

    def __init__(self, follower: Follower, layout: ShardLayout) -> None:
        self._follower = follower
        self.layout = layout

    def start(self, reader: LogReader) -> None:
        """Know the layout that stands, and follow from there.

        Raises:
            TopicError: it cannot be read. BrokerError: Kafka does not answer.
        """
        end = reader.watermarks(LAYOUT, 0)[1]
        self.catch_up(reader)
        self._follower.start(end)

    def catch_up(self, reader: LogReader) -> None:
        """Know the layout that stands now, whatever has been followed.

        Raises:
            As :meth:`start`.
        """
        self._know(require_layout(reader))

    def _know(self, said: ShardLayout) -> bool:
        """Take in a layout, if it is newer than the one that is known; whether it was."""
        if said.spread.version <= self.layout.spread.version:
            return False
        self.layout, spread = said, said.spread
        event(log, logging.INFO, "layout_changed", version=spread.version, shards=spread.shards,
              target=spread.target, step=spread.step)  # fmt: skip
        return True

    def poll(self) -> ShardLayout | None:
        """The layout, if another has come since the last call.

        Raises:
            BrokerError: the broker refuses for good.
        """
        newest: ShardLayout | None = None
        for record in self._follower.poll(0):
            try:
                said = _DECODE(record.value())
            except DecodeError as error:
                event(log, logging.ERROR, "layout_unreadable", offset=record.offset(), reason=str(error))
                continue
            if record.key() == LAYOUT_KEY and self._know(said):
                newest = said
        return newest

    def close(self) -> None:
        self._follower.close()


def write_layout(kafka: KafkaSettings, client_id: str, layout: ShardLayout) -> None:
    """Write ``layout``.

    Raises:
        NotDelivered: Kafka does not take it.
    """
    producer = IdempotentProducer(kafka, client_id)
    try:
        producer.produce(LAYOUT, encode(layout), key=LAYOUT_KEY.decode(), partition=0)
        producer.flush()
    finally:
        producer.close()


def spread_over(log: Log, counts: Mapping[str, int], wanted: int) -> int:
    """Over how many shards accounts are spread where nobody has written it: as their rows say, which stand in the
    partitions of their shards, or ``wanted`` if there are none.

    ``counts`` are the partitions of the topics.

    Raises:
        TopicError: no number of shards has the accounts where they are. BrokerError: Kafka does not answer.
    """
    keys = [(partition, key) for partition in range(counts[ACCOUNTS]) for key in _accounts_in(log, partition)]
    if not keys:
        return wanted
    most = counts[EVENTS]
    fitting = [
        shards
        for shards in range(1, most + 1)
        if all(partition_of(key, shards) == partition for partition, key in keys)
    ]
    if not fitting:
        raise TopicError(
            f"the accounts in {ACCOUNTS} are not spread over the partitions of {EVENTS}, {most}, nor over fewer: some "
            "have their rows in the wrong shard; `margin-clearing verify` of the version that wrote them names them"
        )
    return most if most in fitting else wanted if wanted in fitting else fitting[-1]


def _accounts_in(log: Log, partition: int) -> Iterator[bytes]:
    low, high = log.watermarks(ACCOUNTS, partition)
    records = log.read_range(ACCOUNTS, partition, low, high)
    return (key for record in islice(records, KEYS_LOOKED_AT) if (key := record.key()))
