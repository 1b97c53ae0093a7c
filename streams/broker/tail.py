"""The search of a log's tail: the last record that says something, without reading the whole log."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from streams.broker.records import Log, Record

_SPAN_FIRST = 64
_SPAN_GROWTH = 8

T = TypeVar("T")


def search_tail(log: Log, topic: str, partition: int, find: Callable[[Iterator[Record], bool], T | None]) -> T | None:
    """What ``find`` finds in the shortest tail of the log in which it finds anything; None if there is nothing.

    ``find`` is given the records of the log's last offsets, a few at first and then more each time, and whether these
    are all that there are. The end is the one at the first look: what is written meanwhile is not seen.

    Raises:
        BrokerError: Kafka does not answer.
    """
    low, end = log.watermarks(topic, partition)
    span = _SPAN_FIRST
    while True:
        first = max(low, end - span)
        answer = find(log.read_range(topic, partition, first, end), first == low)
        if answer is not None or first == low:
            return answer
        span *= _SPAN_GROWTH
