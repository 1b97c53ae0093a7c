"""Dead letters: a record that cannot be read or applied goes, as it came, to ``<topic>.dlq`` with the reason.

Only a record that the dead-letter topic would refuse for its size is cut, and says so (``dlq.cut``: its length before):
were it refused, the transaction could never commit. The original stands where the other headers say.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from schemas import headers
from schemas.codec import DecodeError
from schemas.topics import EVENTS, dead_letter_topic
from streams.broker.producer import IdempotentProducer, TransactionalProducer
from streams.broker.records import Record
from streams.logs import event

log = logging.getLogger(__name__)

DEAD_LETTER_BYTES_MAX = 1_040_000
"""Most bytes of key and value together: with the headers this fits the 1,048,588 that a topic takes by default."""


def produce_dead_letter(
    producer: TransactionalProducer | IdempotentProducer,
    record: Record,
    error: Exception,
    *,
    suspended: Sequence[str] | None = None,
    all_told: bool = False,
) -> None:
    """Produce ``record`` to its dead-letter topic, in the open transaction if there is one: as it came, and why.

    ``suspended``, if it concerns accounts, are those that are suspended for it; ``all_told``: it concerns nobody else.
    """
    topic, partition, offset = record.topic(), record.partition(), record.offset()
    key, value, cut = _fitting(record.key(), record.value())
    where = headers.dead_letter(topic, partition, offset, record.timestamp()[1], type(error).__name__, str(error))
    told = [] if suspended is None else headers.told(suspended, all_told=all_told)
    producer.produce(dead_letter_topic(topic), value, key=key, headers=where + cut + told)
    event(
        log,
        logging.WARNING if suspended is None or all_told else logging.ERROR,
        "dead_letter",
        topic=topic,
        partition=partition,
        offset=offset,
        reason=str(error),
        suspended=suspended,
    )


@dataclass(frozen=True, slots=True)
class UntoldLetters:
    """Dead letters of ``topic`` that concern somebody who could not be told.

    ``count`` of them among the last ``looked_at``; ``first`` and ``last`` are their offsets in the dead-letter topic.
    """

    topic: str
    count: int
    looked_at: int
    first: int
    last: int
    reason: str


def is_untold(topic: str, received: headers.Received) -> bool:
    """Whether a dead letter of ``topic`` with the headers ``received`` concerns somebody who could not be told."""
    values = dict(received or ())
    if topic == EVENTS:
        return values.get("dlq.error") == DecodeError.__name__.encode()
    return "dlq.untold" in values or "dlq.suspended" not in values


def _fitting(key: bytes | None, value: bytes | None) -> tuple[bytes | None, bytes | None, headers.Headers]:
    """Key and value as they are, or cut to what a topic takes, with the header that says so."""
    length = len(key or b"") + len(value or b"")
    if length <= DEAD_LETTER_BYTES_MAX:
        return key, value, []
    key = None if key is None else key[:DEAD_LETTER_BYTES_MAX]
    value = None if value is None else value[: DEAD_LETTER_BYTES_MAX - len(key or b"")]
    return key, value, [("dlq.cut", str(length).encode())]
