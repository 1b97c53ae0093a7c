"""The first record that a reader of a partition has not had: how old it is, or why it can be read at no time."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from schemas.topics import INPUTS
from streams.broker.reader import LogReader
from streams.console.figures import age
from streams.errors import BrokerError, UnreadableError

_SILENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class FirstWaiting:
    """The first record behind a place. ``age_ms`` is by its own timestamp.

    ``problem``, if it can be read at no time, is why; ``goes_on`` is then the first offset behind what cannot be read.
    """

    topic: str
    partition: int
    offset: int
    age_ms: int | None = None
    problem: str = ""
    goes_on: int | None = None


def first_waiting(reader: LogReader, topic: str, partition: int, first: int, end: int) -> FirstWaiting | None:
    """The first record from offset ``first`` up to ``end``; None if there is none, or it is not committed yet.

    Raises:
        BrokerError: Kafka does not answer.
    """
    if first >= end:
        return None
    try:
        with closing(reader.read_range(topic, partition, first, end, timeout_s=_SILENCE_S)) as records:
            record = next(records, None)
    except UnreadableError as error:
        goes_on = reader.first_behind(error)
        return FirstWaiting(topic, partition, error.offset, problem=error.cause, goes_on=goes_on)
    except BrokerError:  # what follows is in a transaction that is still open
        return None
    if record is None:
        return None
    age_ms = max(0, time.time_ns() // 1_000_000 - record.timestamp()[1])
    return FirstWaiting(topic, partition, record.offset(), age_ms)


def waiting_sentences(waiting: FirstWaiting | None, what: str, limit_ms: int, advice: str) -> Iterator[str]:
    """What is wrong with a place, if anything: ``what`` its records are to its reader, ``advice`` if they only wait."""
    if waiting is None:
        return
    place = f"{waiting.topic}:{waiting.partition}"
    if waiting.problem:
        yield (
            f"{place} stands at offset {waiting.offset}, which can be read at no time ({waiting.problem}): "
            f"{_how_to_go_on(waiting)}"
        )
    elif waiting.age_ms is not None and waiting.age_ms > limit_ms:
        yield (
            f"The oldest {what} of {place} is {age(waiting.age_ms)} old (at most {age(limit_ms)}), at offset "
            f"{waiting.offset}: {advice}"
        )


def _how_to_go_on(waiting: FirstWaiting) -> str:
    goes_on = waiting.goes_on
    if waiting.topic in INPUTS:
        return (
            f"say that the router goes on behind it (margin-clearing accept-offset {waiting.topic} {waiting.partition} "
            f"{goes_on} --reason TEXT), start the routers again, and let the exchange publish what was in the offsets "
            f"{waiting.offset} to {(goes_on or 0) - 1} again."
        )
    return (
        f"take away what is before offset {goes_on} with kafka-delete-records, start the processes that read it again, "
        "and see what `margin-clearing verify` says is missing."
    )
