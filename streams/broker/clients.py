"""Where librdkafka's clients come from, and the time they are waited for in."""

import logging
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, Producer
from prometheus_client import Gauge

from streams.broker import config
from streams.errors import BrokerError
from streams.logs import event
from streams.runtime import SYSTEM, Event, Runtime

log = logging.getLogger(__name__)

LEFT_BEHIND = Gauge("margin_calls_left_behind", "Calls of librdkafka that have not returned, each with its client")
LEFT_BEHIND_MAX = 3
"""Each holds a thread and a client's memory and connections: a process with more of them ends."""


class Clients:
    """Makes librdkafka's consumers and producers. A run in memory overrides both."""

    def __init__(self, runtime: Runtime = SYSTEM) -> None:
        self.runtime = runtime
        self._left_behind: list[Event] = []

    def consumer(self, properties: Mapping[str, Any]) -> Consumer:
        """A consumer.

        Raises:
            SettingsError: librdkafka refuses a property.
        """
        return config.created(Consumer, dict(properties))

    def producer(self, properties: Mapping[str, Any]) -> Producer:
        """A producer; raises as :meth:`consumer`."""
        return config.created(Producer, dict(properties))

    def leave_behind(self, client_id: str, call: str, returned: Event) -> None:
        """Leave a call that does not return behind, with the client that it was made to; ``returned`` when it does.

        Raises:
            BrokerError: there are more than ``LEFT_BEHIND_MAX``, and the process must end.
        """
        self._left_behind = [each for each in self._left_behind if not each.is_set()] + [returned]
        count = len(self._left_behind)
        LEFT_BEHIND.set(count)
        event(log, logging.ERROR, "call_left_behind", client=client_id, call=call, left_behind=count)
        if count > LEFT_BEHIND_MAX:
            raise BrokerError(
                f"{client_id}: {call} does not return, and {count - 1} calls before it have not either: this process "
                "ends, and whatever runs it starts it again"
            )


CLIENTS = Clients()
"""Those of production."""
