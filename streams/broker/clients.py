"""Where librdkafka's clients come from, and the time they are waited for in."""

from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, Producer

from streams.broker import config
from streams.runtime import SYSTEM, Runtime


class Clients:
    """Makes librdkafka's consumers and producers. A run in memory overrides both."""

    def __init__(self, runtime: Runtime = SYSTEM) -> None:
        self.runtime = runtime

    def consumer(self, properties: Mapping[str, Any]) -> Consumer:
        """A consumer.

        Raises:
            SettingsError: librdkafka refuses a property.
        """
        return config.created(Consumer, dict(properties))

    def producer(self, properties: Mapping[str, Any]) -> Producer:
        """A producer; raises as :meth:`consumer`."""
        return config.created(Producer, dict(properties))


CLIENTS = Clients()
"""Those of production."""
