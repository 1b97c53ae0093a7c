"""A consumer's place in its group: how far it is behind, whether it is a member at all, and leaving.

:class:`GroupPlace` reads librdkafka's own statistics, so asking it costs no request and waits for nobody.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaException

from streams.broker.places import PartitionStatistics, Place, PlaceWatch, TopicStatistics, by_place
from streams.broker.stranded import STATISTICS_MS, BrokerStatistics, StrandedWatch, TimeInState
from streams.errors import MembershipLost
from streams.runtime import SYSTEM, Runtime

_MEMBER = "steady"
"""librdkafka's join state of a member that heartbeats, with or without partitions."""


class _GroupStatistics(msgspec.Struct):
    state: str = ""
    join_state: str = ""


class _Statistics(msgspec.Struct):
    topics: dict[str, TopicStatistics] = {}
    brokers: dict[str, BrokerStatistics] | None = None
    cgrp: _GroupStatistics | None = None


_DECODE = msgspec.json.Decoder(_Statistics).decode


class GroupPlace:
    """What librdkafka's statistics say of one consumer of a group: its lag, and whether it is a member.

    A consumer may stay outside its group for ever, without an error, while the broker answers it: a static member whose
    session timed out while the group's own log could not be written was seen to, and so was one that tried no broker
    any more. So :meth:`require_member` ends it.

    Args:
        outside_s_max: seconds that it may be outside its group while a broker is connected and it is polled.
        watch: what sees to it that the places move at which it reads.
    """

    def __init__(self, outside_s_max: float, runtime: Runtime = SYSTEM, watch: PlaceWatch | None = None) -> None:
        self.watch = PlaceWatch(runtime) if watch is None else watch
        self._outside_s_max = outside_s_max
        self._stranded = StrandedWatch(runtime)
        self._outside = TimeInState(runtime)
        self._outside_state = ""
        self._partitions: Mapping[Place, PartitionStatistics] = {}

    def properties(self) -> dict[str, Any]:
        """What a consumer must be configured with to feed this."""
        return {"statistics.interval.ms": STATISTICS_MS, "stats_cb": self.note}

    def note(self, statistics: str) -> None:
        """Note one of librdkafka's statistics documents; a consumer does it while it polls."""
        said = _DECODE(statistics)
        self._partitions = by_place(said.topics)
        self.watch.note(self._partitions)
        self._stranded.note_brokers(said.brokers)
        connected = any(broker.nodeid >= 0 and broker.state == "UP" for broker in (said.brokers or {}).values())
        is_outside = said.cgrp is not None and said.cgrp.join_state != _MEMBER and connected
        self._outside.note(is_so=is_outside)
        if said.cgrp is not None and is_outside:
            self._outside_state = f"{said.cgrp.state}, {said.cgrp.join_state}"

    def lag(self, topic: str, partition: int) -> int | None:
        """How many records of an owned partition are committed in its log and were not consumed yet.

        None as long as nothing has been fetched from it. Control records count only until they are passed, so the lag
        of a log that was read to its end is 0.
        """
        fetch = self._partitions.get((topic, partition))
        if fetch is None or fetch.ls_offset < 0:
            return None
        # Where nothing has been consumed since the assignment, what was fetched says how far it is.
        place = fetch.app_offset if fetch.app_offset >= 0 else fetch.next_offset - fetch.fetchq_cnt
        return None if place < 0 else max(0, fetch.ls_offset - place)

    def require_member(self) -> None:
        """Refuse to poll for ever in vain.

        Raises:
            MembershipLost: it has been outside its group for longer than a rebalance can take, or it tries no broker
                any more; only a new consumer helps.
        """
        if self._stranded.is_stranded:
            raise MembershipLost(
                "this consumer has lost its brokers, and librdkafka tries none any more; a new one does"
            )
        if (outside_s := self._outside.seconds) > self._outside_s_max:
            raise MembershipLost(
                f"this consumer has been outside its group for {outside_s:.0f} s while Kafka answers (librdkafka's "
                f"state: {self._outside_state}) and will not come back by itself; a new one joins again"
            )


def leave_group(consumer: Consumer, instance_id: str, timeout_s: float, runtime: Runtime = SYSTEM) -> None:
    """Leave the group at once and let go of the consumer, after the rebalance callbacks have given up what it owned.

    ``close`` alone leaves only as a dynamic member. A static one is kept a place until its session ends, and its
    partitions stand still for that long; unsubscribing before gives the place up.
    """
    if instance_id:
        with suppress(KafkaException):  # a consumer that was fenced has no place to give up
            consumer.unsubscribe()
            deadline = runtime.monotonic() + timeout_s
            while consumer.assignment() and runtime.monotonic() < deadline:
                consumer.poll(0.01)
    consumer.close()
