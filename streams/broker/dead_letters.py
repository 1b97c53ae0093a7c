"""Dead letters: a record that cannot be read or applied goes, as it came, to ``<topic>.dlq`` with the reason.

A dead letter always fits what its topic takes (``schemas.topics.RECORD_BYTES_MAX``), however large the record was that
its own topic took: key and value are cut where they must be, which ``dlq.cut`` (their length before) and ``dlq.sha256``
(of the value before) say. Were a letter refused, whoever writes it could never go on. The original stands where the
other headers say.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from schemas import headers
from schemas.codec import DecodeError
from schemas.topics import EVENTS, RECORD_BYTES_MAX, dead_letter_topic
from streams.broker.producer import IdempotentProducer, TransactionalProducer
from streams.broker.records import Record
from streams.logs import Repeated, event

log = logging.getLogger(__name__)

REPEATED = Repeated(log)
"""Of each topic and class of error some letters a minute are logged, the rest is counted. A loop that writes letters
has to let it tell."""

DEAD_LETTER_BYTES_MAX = 1_040_000
"""Most bytes of key and value together; what is left of ``RECORD_BYTES_MAX`` is for headers and framing."""
_HEADER_BYTES = 8_000
"""Headers of more take the rest from key and value."""
_FRAMING_BYTES = 30
"""Most that stands round the name and the value of a header."""
_WHOLE_BYTES = DEAD_LETTER_BYTES_MAX - headers.SUSPENDED_BYTES_MAX
"""Key and value of no more are whole, whatever the headers are."""
ACCOUNTS_LOGGED_MAX = 10


class DeadLetter(NamedTuple):
    """A record for the dead-letter topic ``topic``, which takes it."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: headers.Headers


def dead_letter(
    topic: str,
    partition: int,
    offset: int,
    timestamp_ms: int,
    key: bytes | None,
    value: bytes | None,
    error: str,
    reason: str,
    *,
    suspended: Sequence[str] | None = None,
    all_told: bool = False,
) -> DeadLetter:
    """The dead letter of the record at a place of ``topic``: as it came, and why: the error's class and its words.

    ``suspended``, if it concerns accounts, are those that are suspended for it; ``all_told``: it concerns nobody else.
    """
    where = headers.dead_letter(topic, partition, offset, timestamp_ms, error, reason)
    told = [] if suspended is None else headers.told(suspended, all_told=all_told)
    about = where + told
    length = len(key or b"") + len(value or b"")
    if length > _WHOLE_BYTES and length > (room := _room(about)):
        about += [("dlq.cut", str(length).encode()), ("dlq.sha256", sha256(value or b"").hexdigest().encode())]
        key = None if key is None else key[:room]
        value = None if value is None else value[: room - len(key or b"")]
    return DeadLetter(dead_letter_topic(topic), key, value, about)


def _room(about: headers.Headers) -> int:
    """How many bytes of key and value there may be beside these headers."""
    taken = sum(len(name) + len(value) + _FRAMING_BYTES for name, value in about)
    room = DEAD_LETTER_BYTES_MAX - max(0, taken - _HEADER_BYTES)
    assert _WHOLE_BYTES <= room < RECORD_BYTES_MAX, "headers are bounded"
    return room


def produce_dead_letter(
    producer: TransactionalProducer | IdempotentProducer,
    record: Record,
    error: str,
    reason: str,
    *,
    suspended: Sequence[str] | None = None,
    all_told: bool = False,
) -> None:
    """Produce ``record`` to its dead-letter topic, in the open transaction if there is one: as it came, and why: the
    error's class and its words.

    ``suspended``, if it concerns accounts, are those that are suspended for it; ``all_told``: it concerns nobody else.
    """
    topic, partition, offset = record.topic(), record.partition(), record.offset()
    letter = dead_letter(
        topic,
        partition,
        offset,
        record.timestamp()[1],
        record.key(),
        record.value(),
        error,
        reason,
        suspended=suspended,
        all_told=all_told,
    )
    producer.produce(letter.topic, letter.value, key=letter.key, headers=letter.headers)
    if REPEATED.may_name("dead_letter", topic, error):
        event(
            log,
            logging.WARNING if suspended is None or all_told else logging.ERROR,
            "dead_letter",
            topic=topic,
            partition=partition,
            offset=offset,
            reason=reason,
            suspended=None if suspended is None else list(suspended[:ACCOUNTS_LOGGED_MAX]),
            suspended_count=None if suspended is None else len(suspended),
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
