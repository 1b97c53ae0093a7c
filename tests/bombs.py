"""Batches that a broker takes and that no client of librdkafka can read, or only with much memory."""

from confluent_kafka import KafkaError, Message, Producer

from streams.settings import Settings

UNREADABLE_BYTES = 40_000_000
"""Three records of so many zeros are more than ``receive.message.max.bytes``, up to which librdkafka unpacks zstd."""


def send_batch(settings: Settings, topic: str, partition: int, values: list[bytes], codec: str) -> list[int]:
    """Send ``values`` as one batch that is packed with ``codec``; their offsets.

    Raises:
        AssertionError: the broker refuses it.
    """
    offsets: list[int] = []
    refused: list[str] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            refused.append(error.str())
        elif (offset := message.offset()) is not None:
            offsets.append(offset)

    producer = Producer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "compression.type": codec,
            "message.max.bytes": 1_000_000_000,
            "batch.size": 2_000_000_000,
            "queue.buffering.max.kbytes": 2_000_000,
            "linger.ms": 60_000,
        }
    )
    for value in values:
        producer.produce(topic, value, key=b"of a batch", partition=partition, on_delivery=delivered)
    assert producer.flush(60) == 0
    assert not refused, refused
    return offsets


def send_unreadable(settings: Settings, topic: str, partition: int) -> list[int]:
    """Send a batch of three records, a few KB packed, that can be unpacked by no client of ours; their offsets."""
    offsets = send_batch(settings, topic, partition, [bytes(UNREADABLE_BYTES)] * 3, "zstd")
    assert offsets == list(range(offsets[0], offsets[0] + 3)), offsets
    return offsets
