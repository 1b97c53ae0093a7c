"""Dead letters: a record that cannot be read or applied goes, as it came, to ``<topic>.dlq`` with the reason."""

import logging

from confluent_kafka import Message

from schemas import headers
from schemas.topics import dead_letter_topic
from streams.broker.producer import TransactionalProducer
from streams.logs import event

log = logging.getLogger(__name__)


def produce_dead_letter(producer: TransactionalProducer, message: Message, error: Exception) -> None:
    """Produce ``message`` to its dead-letter topic in the open transaction: key and bytes as they came, and why."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    producer.produce(
        dead_letter_topic(topic),
        message.value(),
        key=message.key(),
        headers=headers.dead_letter(topic, partition, offset, message.timestamp()[1], type(error).__name__, str(error)),
    )
    event(log, logging.WARNING, "dead_letter", topic=topic, partition=partition, offset=offset, reason=str(error))
