"""The in-memory brokers as a scenario needs them: what a reader of committed records sees, and consumers that wake up.

A record is visible when everything below it in its partition is decided. Consumers wait for records instead of for
time, so that latencies are those of the work and not of a poll.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from streams.memory.clients import FakeConsumer, FakeMessage
from streams.memory.log import Cluster, Headers, LogRecord, Partition, Place, Transaction
from streams.memory.scheduler import Scheduler, Task


@dataclass(frozen=True, slots=True)
class VisibleRecord:
    """A committed record and when (microseconds of virtual time) it could be read."""

    at_us: int
    topic: str
    partition: int
    record: LogRecord


class VisibleCluster(Cluster):
    """A cluster that tells ``on_visible`` of every record in the order in which they can be read."""

    def __init__(
        self, scheduler: Scheduler, partitions: Mapping[str, int], on_visible: Callable[[VisibleRecord], None]
    ) -> None:
        super().__init__(scheduler, partitions, lambda _: None)
        self._on_visible = on_visible
        self._seen: dict[Partition, int] = {}
        self._sleepers: dict[Place, list[list[Task]]] = {}

    def sleep_until_visible(self, places: list[Place], sleepers: list[Task], timeout_s: float) -> None:
        """Suspend the running task until a record may have come to one of ``places``, or ``sleepers`` are woken."""
        for place in places:
            self._sleepers.setdefault(place, []).append(sleepers)
        try:
            self.scheduler.wait(sleepers, timeout_s)
        finally:
            for place in places:
                waiting = self._sleepers.get(place, [])
                if sleepers in waiting:
                    waiting[:] = [other for other in waiting if other is not sleepers]

    def _append(
        self,
        partition: Partition,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        txn: Transaction | None,
        control: bool = False,
    ) -> LogRecord:
        record = super()._append(partition, key, value, headers, txn, control)
        if txn is None or control:
            self._show(partition)
        return record

    def _show(self, partition: Partition) -> None:
        first, end = self._seen.get(partition, 0), partition.stable_end
        self._seen[partition] = end
        for record in partition.committed(first, end):
            self._on_visible(VisibleRecord(self.scheduler.now, partition.topic, partition.number, record))
        if end > first:
            for sleepers in self._sleepers.pop((partition.topic, partition.number), ()):
                self.scheduler.wake(sleepers)


class WaitingConsumer(FakeConsumer):
    """A consumer whose ``poll`` and ``consume`` end as soon as there is a record or a rebalance callback to run."""

    def __init__(self, cluster: VisibleCluster, *rest: Any) -> None:
        super().__init__(cluster, *rest)
        self._brokers = cluster
        self._sleepers: list[Task] = []

    def poll(self, timeout: float = -1) -> FakeMessage | None:
        self._enter("poll")
        messages = self._await(1, timeout)
        return messages[0] if messages else None

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[FakeMessage]:
        self._enter("consume")
        return self._await(num_messages, timeout)

    def assigned(self, member: str, generation: int, places: set[Place]) -> None:
        super().assigned(member, generation, places)
        self._wake()

    def _give_up(self) -> None:
        super()._give_up()
        self._wake()

    def _wake(self) -> None:
        self._brokers.scheduler.wake(self._sleepers)

    def _await(self, most: int, timeout_s: float) -> list[FakeMessage]:
        deadline_us = self._now() + int(timeout_s * 1e6)
        while True:
            self._serve()
            messages = self._fetch(most)
            left_us = deadline_us - self._now()
            if messages or left_us <= 0:
                return messages
            places = [place for place, position in self._positions.items() if not position.paused]
            self._brokers.sleep_until_visible(places, self._sleepers, left_us / 1e6)
