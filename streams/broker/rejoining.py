"""A consumer of a group that is made anew inside its process when it cannot come back to its group by itself.

librdkafka ends a consumer for good where a new one of the same name would go on at once: a static member whose request
to join was lost with its coordinator is fenced by the very place that the request made; a consumer may lose all of its
brokers, or stay outside its group. Whatever was owned is lost then, as if the session had ended, and a new consumer
with the same name joins. A member that is fenced again and again has a competitor, so that ends the process; brokers
that are away are waited for.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams.broker.group import GroupPlace, leave_group
from streams.broker.missing import MissingPartitions
from streams.broker.places import PlaceWatch
from streams.broker.reader import poll_records
from streams.broker.records import Record
from streams.errors import BrokerError, MembershipLost
from streams.logs import event
from streams.runtime import Runtime

log = logging.getLogger(__name__)

FENCED_MAX = 3
"""So often a member may be fenced within the time that it may be outside its group; then the process ends."""

RebalanceCallback = Callable[[Consumer, list[TopicPartition]], None]
NewConsumer = Callable[[Mapping[str, Any]], Consumer]
OnEnd = Callable[[str, int, int], object]


class RejoiningConsumer:
    """One process's place in a group. Not thread-safe, but for :meth:`lag` and ``missing``.

    ``consumer`` is the one of the moment: ask for it each time. Callbacks run inside :meth:`poll` and are given theirs.

    Args:
        new_consumer: makes a consumer with the properties that it is given beside its own.
        outside_s_max: seconds that a consumer may be outside its group (:class:`GroupPlace`).
        watch: what sees to it that the places move at which it reads, whichever consumer that is.
    """

    def __init__(
        self, new_consumer: NewConsumer, outside_s_max: float, runtime: Runtime, watch: PlaceWatch | None = None
    ) -> None:
        self.watch = PlaceWatch(runtime) if watch is None else watch
        self._new_consumer = new_consumer
        self._outside_s_max = outside_s_max
        self._runtime = runtime
        self._topics: list[str] = []
        self._callbacks: dict[str, RebalanceCallback] = {}
        self._fenced: deque[float] = deque()
        self._open()

    def _open(self) -> None:
        self._place = GroupPlace(self._outside_s_max, self._runtime, self.watch)
        self._missing = MissingPartitions(self._runtime)
        self.consumer = self._new_consumer(self._place.properties())

    def subscribe(
        self,
        topics: list[str],
        *,
        on_assign: RebalanceCallback,
        on_revoke: RebalanceCallback,
        on_lost: RebalanceCallback,
    ) -> None:
        """Join the group."""
        self._topics = topics
        self._callbacks = {"on_assign": on_assign, "on_revoke": on_revoke, "on_lost": on_lost}
        self._subscribe()

    def _subscribe(self) -> None:
        callbacks = {name: self._of_present(callback) for name, callback in self._callbacks.items()}
        self.consumer.subscribe(
            self._topics,
            on_assign=callbacks["on_assign"],
            on_revoke=callbacks["on_revoke"],
            on_lost=callbacks["on_lost"],
        )

    def _of_present(self, callback: RebalanceCallback) -> RebalanceCallback:
        """A consumer that is let go of has nothing to say any more."""
        mine = self.consumer

        def called(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            if self.consumer is mine:
                callback(consumer, partitions)

        return called

    def poll(self, timeout_s: float, records_max: int, on_end: OnEnd = lambda *_: None) -> Iterator[Record]:
        """As :func:`poll_records`; a consumer that has ended is made anew, and nothing has come then.

        Raises:
            BrokerError: an error that will not pass, or the member is fenced again and again.
        """
        try:
            yield from poll_records(self.consumer, timeout_s, records_max, self.watch, on_end, self._missing)
            self._missing.look(self.consumer)
        except MembershipLost as error:
            self._count_fenced(error)
            self._renew(error)

    def require_member(self) -> None:
        """Have a consumer made anew that has been outside its group for too long, or has lost its brokers."""
        try:
            self._place.require_member()
        except MembershipLost as error:
            self._renew(error)

    def lag(self, topic: str, partition: int) -> int | None:
        """See :meth:`GroupPlace.lag`."""
        return self._place.lag(topic, partition)

    @property
    def missing(self) -> int:
        """How many partitions are said not to exist, and are waited for."""
        return len(self._missing)

    def leave(self, instance_id: str, timeout_s: float) -> None:
        """See :func:`leave_group`."""
        leave_group(self.consumer, instance_id, timeout_s, self._runtime)

    def _count_fenced(self, error: MembershipLost) -> None:
        now = self._runtime.monotonic()
        while self._fenced and now - self._fenced[0] > self._outside_s_max:
            self._fenced.popleft()
        if len(self._fenced) >= FENCED_MAX:
            raise BrokerError(
                f"{FENCED_MAX + 1} consumers ended within {self._outside_s_max:g} s; if another process has the same "
                f"MARGIN_SERVICE__INSTANCE_ID, give it its own; the last: {error}"
            ) from error
        self._fenced.append(now)

    def _renew(self, error: MembershipLost) -> None:
        event(log, logging.WARNING, "consumer_renewed", topics=self._topics, reason=str(error))
        ended = self.consumer
        owned: list[TopicPartition] = []
        with suppress(KafkaException):
            owned = ended.assignment()
        if owned:
            self._callbacks["on_lost"](ended, owned)
        self._open()
        with suppress(KafkaException, RuntimeError):
            ended.close()
        self.watch.forget_all()
        self._subscribe()
