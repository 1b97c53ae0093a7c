"""What the pipeline's consumer groups have committed, and how far behind they are."""

from typing import Protocol

from schemas.topics import EVENTS, INPUTS
from streams.audit.log import CLIENT
from streams.broker.committed import group_offsets
from streams.broker.records import Log
from streams.settings import Settings

_TIMEOUT_S = 30.0
_LAG_COUNTED_MAX = 10_000


class Groups(Protocol):
    """The committed offsets of the pipeline's consumer groups, a negative one where there is none."""

    def router(self, topic: str) -> list[int]: ...
    def engine(self) -> list[int]: ...


class KafkaGroups:
    """The committed offsets in Kafka."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def router(self, topic: str) -> list[int]:
        """See :class:`Groups`.

        Raises:
            BrokerError: Kafka does not answer.
        """
        return group_offsets(self._settings.kafka, CLIENT, self._settings.router.group_id, topic, _TIMEOUT_S)

    def engine(self) -> list[int]:
        """See :class:`Groups`.

        Raises:
            BrokerError: Kafka does not answer.
        """
        return group_offsets(self._settings.kafka, CLIENT, self._settings.engine.group_id, EVENTS, _TIMEOUT_S)


class Backlog:
    """How much of the logs is not committed yet."""

    def __init__(self, log: Log, groups: Groups) -> None:
        self._log, self._groups = log, groups

    def to_route(self) -> int:
        """How many of the exchange's records the router has not committed yet."""
        return sum(
            self.records_after(topic, partition, max(committed, 0))
            for topic in INPUTS
            for partition, committed in enumerate(self._groups.router(topic))
        )

    def records_after(self, topic: str, partition: int, first: int) -> int:
        """The records from offset ``first`` on; beyond some thousands the offsets, markers included, are counted."""
        low, end = self._log.watermarks(topic, partition)
        if end - max(first, low) > _LAG_COUNTED_MAX:
            return end - max(first, low)
        return sum(1 for _ in self._log.read_range(topic, partition, first, end))
