"""A consumer's place in its group: how far it is behind, and leaving.

:class:`Lag` reads librdkafka's own statistics, so asking it costs no request and waits for nobody.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaException

_STATISTICS_MS = 1_000


class _Partition(msgspec.Struct):
    app_offset: int = -1
    next_offset: int = -1
    ls_offset: int = -1
    fetchq_cnt: int = 0


class _Topic(msgspec.Struct):
    partitions: dict[str, _Partition] = {}


class _Statistics(msgspec.Struct):
    topics: dict[str, _Topic] = {}


_DECODE = msgspec.json.Decoder(_Statistics).decode


class Lag:
    """How many records of each owned partition are committed in its log and were not consumed yet.

    Control records count only until they are passed, so the lag of a log that was read to its end is 0.
    """

    def __init__(self) -> None:
        self._partitions: Mapping[tuple[str, int], _Partition] = {}

    def properties(self) -> dict[str, Any]:
        """What a consumer must be configured with to feed this."""
        return {"statistics.interval.ms": _STATISTICS_MS, "stats_cb": self.take_in}

    def take_in(self, statistics: str) -> None:
        """Take in one of librdkafka's statistics documents; a consumer does it while it polls."""
        self._partitions = {
            (topic, int(partition)): found
            for topic, partitions in _DECODE(statistics).topics.items()
            for partition, found in partitions.partitions.items()
        }

    def of(self, topic: str, partition: int) -> int | None:
        """Records behind in one partition; None as long as nothing has been fetched from it."""
        found = self._partitions.get((topic, partition))
        if found is None or found.ls_offset < 0:
            return None
        # Where nothing has been consumed since the assignment, what was fetched says how far it is.
        place = found.app_offset if found.app_offset >= 0 else found.next_offset - found.fetchq_cnt
        return None if place < 0 else max(0, found.ls_offset - place)


def leave_group(consumer: Consumer, instance_id: str, timeout_s: float) -> None:
    """Leave the group at once and let go of the consumer, after the rebalance callbacks have given up what it owned.

    ``close`` alone leaves only as a dynamic member. A static one is kept a place until its session ends, and its
    partitions stand still for that long; unsubscribing before gives the place up.
    """
    if instance_id:
        with suppress(KafkaException):  # a consumer that was fenced has no place to give up
            consumer.unsubscribe()
            deadline = time.monotonic() + timeout_s
            while consumer.assignment() and time.monotonic() < deadline:
                consumer.poll(0.01)
    consumer.close()
