"""Over how many shards accounts are spread: a fact of the log, in ``margin.layout.v1``, and nobody's setting.

``margin-clearing topics`` writes it once. The topics of the shards may get more partitions later: those are not used.
"""

import time
from collections.abc import Iterator, Mapping
from itertools import islice

from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import ShardLayout
from schemas.partitioning import partition_of
from schemas.topics import ACCOUNTS, EVENTS, LAYOUT
from streams.broker.producer import IdempotentProducer
from streams.broker.records import Log
from streams.errors import TopicError
from streams.settings import KafkaSettings

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


def require_shards(log: Log) -> int:
    """Over how many shards accounts are spread.

    Raises:
        TopicError: nobody has written it, or it cannot be read. BrokerError: Kafka does not answer.
    """
    layout = read_layout(log)
    if layout is None:
        raise TopicError(
            f"{LAYOUT} does not say over how many shards accounts are spread; `margin-clearing topics` writes it"
        )
    return layout.shards


def write_layout(kafka: KafkaSettings, client_id: str, shards: int) -> None:
    """Write that accounts are spread over ``shards``.

    Raises:
        NotDelivered: Kafka does not take it.
    """
    producer = IdempotentProducer(kafka, client_id)
    try:
        layout = ShardLayout(shards=shards, time=time.time_ns() // 1000)
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
