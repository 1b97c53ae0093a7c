"""Whether topics are still what they were: one that is deleted and made anew has another id and begins at 0 again.

A client does not notice: it waits for offsets that come again only when the new log is as long as the old one was.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from streams.broker import config
from streams.broker.admin import topic_ids
from streams.errors import BrokerError
from streams.logs import event
from streams.runtime import Runtime
from streams.settings import Settings

log = logging.getLogger(__name__)

LOOK_S = 3.0
"""So often the ids are asked for, in one request."""
_ANSWER_S_MAX = 5.0


class TopicWatch(Protocol):
    """Watches some topics from when it was made."""

    @property
    def ids(self) -> Mapping[str, str]:
        """The ids that the topics had at first, by name."""
        ...

    def check(self) -> None:
        """Look now and then, without waiting for an answer.

        Raises:
            BrokerError: a topic is another one by now.
        """
        ...

    def close(self) -> None:
        """Ask no more."""
        ...


class KafkaTopicWatch:
    """:class:`TopicWatch` of a cluster.

    Raises:
        BrokerError: it does not say which ids the topics have.
    """

    def __init__(self, settings: Settings, client_id: str, topics: Sequence[str], runtime: Runtime) -> None:
        self.ids: Mapping[str, str] = topic_ids(settings, topics)
        self._properties = config.common(settings.kafka, client_id)
        self._admin: Any = None
        self._runtime = runtime
        self._looked_at = runtime.monotonic()
        self._asked: dict[str, Future[Any]] = {}

    def check(self) -> None:
        """See :class:`TopicWatch`. An answer that does not come, or says that a topic is not known, says nothing: the
        next one will, and whoever reads or writes a topic that is gone is told so."""
        if self._asked:
            if not all(future.done() for future in self._asked.values()):
                return
            asked, self._asked = self._asked, {}
            present: dict[str, str] = {}
            for topic, future in asked.items():
                try:
                    present[topic] = str(future.result().topic_id)
                except KafkaException as error:
                    self._admin = None  # librdkafka waits for the broker that it holds for the controller, dead or not
                    event(log, logging.DEBUG, "topic_id_unknown", topic=topic, reason=str(error))
            require_same(self.ids, present)
        now = self._runtime.monotonic()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            if self._admin is None:
                self._admin = config.created(AdminClient, self._properties)
            names = TopicCollection(list(self.ids))
            self._asked = self._admin.describe_topics(names, request_timeout=_ANSWER_S_MAX)

    def close(self) -> None:
        """See :class:`TopicWatch`."""
        self._asked, self._admin = {}, None


def require_same(before: Mapping[str, str], present: Mapping[str, str]) -> None:
    """
    Raises:
        BrokerError: a topic in ``present`` has another id than ``before``.
    """
    anew = [topic for topic, topic_id in present.items() if topic_id != before[topic]]
    if anew:
        raise BrokerError(
            f"{', '.join(anew)} was deleted and made anew while this process ran: nothing is read or written any more "
            "that follows from the old one. Started again, this role says what is missing and what to do"
        )
