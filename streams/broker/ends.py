"""Where the partitions of topics end, asked of their leaders without waiting for the answer."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from confluent_kafka import IsolationLevel, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from streams.broker import config
from streams.logs import event
from streams.runtime import Runtime
from streams.settings import KafkaSettings

log = logging.getLogger(__name__)

UNKNOWN = -1
"""The end of a partition that no leader has told."""

_LOOK_AGAIN_S = 5.0
_ANSWER_S_MAX = 2.0
_SILENT_S_MAX = 10.0

Ends = Mapping[str, Sequence[int]]
"""The ends of each topic's partitions, by number."""


class EndOffsets(Protocol):
    """Asks for the ends of all partitions of some topics, those that were added as well, one question at a time."""

    @property
    def is_asked(self) -> bool:
        """Whether an answer is on its way."""
        ...

    def ask(self) -> None:
        """Ask now. Records of open transactions count as written."""
        ...

    def answer(self) -> Ends | None:
        """The answer to the last question, once; None as long as it is on its way."""
        ...


class KafkaEndOffsets:
    """:class:`EndOffsets` of a cluster. A leader that does not answer in two seconds leaves its partitions ``UNKNOWN``.

    ``counts`` are the partitions that each topic has; they are looked at again every five seconds. A client that no
    leader has answered for ten seconds is replaced: it may be stranded (:mod:`streams.broker.stranded`).
    """

    def __init__(self, kafka: KafkaSettings, client_id: str, counts: Mapping[str, int], runtime: Runtime) -> None:
        self._properties = config.common(kafka, client_id)
        self._admin = config.created(AdminClient, self._properties)
        self._silent_since: float | None = None
        self._counts = dict(counts)
        self._runtime = runtime
        self._looked_at = runtime.monotonic()
        self._topics: dict[str, Future[Any]] = {}
        self._asked: dict[TopicPartition, Future[Any]] = {}

    @property
    def is_asked(self) -> bool:
        """See :class:`EndOffsets`."""
        return bool(self._asked)

    def ask(self) -> None:
        """See :class:`EndOffsets`."""
        if self._silent_since is not None and self._runtime.monotonic() - self._silent_since >= _SILENT_S_MAX:
            event(log, logging.WARNING, "ends_client_renewed", silent_s=_SILENT_S_MAX)
            self._admin, self._topics = config.created(AdminClient, self._properties), {}
            self._silent_since = None
        self._look_for_partitions()
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        places = {TopicPartition(topic, n): latest for topic, count in self._counts.items() for n in range(count)}
        self._asked = self._admin.list_offsets(
            places, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=_ANSWER_S_MAX
        )

    def answer(self) -> Ends | None:
        """See :class:`EndOffsets`."""
        if not self._asked or not all(future.done() for future in self._asked.values()):
            return None
        asked, self._asked = self._asked, {}
        ends = {topic: [UNKNOWN] * count for topic, count in self._counts.items()}
        for place, future in asked.items():
            try:
                # A leader that has just come may answer without an offset, by a negative number of librdkafka's own.
                ends[place.topic][place.partition] = max(future.result().offset, UNKNOWN)
            except KafkaException:
                continue
        if any(end != UNKNOWN for told in ends.values() for end in told):
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = self._runtime.monotonic()
        return ends

    def _look_for_partitions(self) -> None:
        if self._topics and all(future.done() for future in self._topics.values()):
            for topic, future in self._topics.items():
                if future.exception() is None:
                    self._counts[topic] = max(self._counts[topic], len(future.result().partitions))
            self._topics = {}
        now = self._runtime.monotonic()
        if not self._topics and now - self._looked_at >= _LOOK_AGAIN_S:
            self._looked_at = now
            names = TopicCollection(list(self._counts))
            self._topics = self._admin.describe_topics(names, request_timeout=_ANSWER_S_MAX)
