"""An aiokafka that finds its brokers again: once none of those that it knows answers, it asks those of the settings.

Kafka's own clients do so since KIP-899 (``metadata.recovery.strategy=rebootstrap``). aiokafka keeps to the brokers that
the last metadata named. Where those were given while the others were away, and are away when the others are back, it
asks them for ever: no request ends, and marks stand still until the watchdog ends the process.
"""

import asyncio
import logging
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from streams.logs import event

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0
"""A broker that stands still takes a connection and never answers; the next attempt asks another one first."""

_update = AIOKafkaClient._metadata_update


async def _update_or_begin_anew(client: Any, cluster: Any, topics: Any) -> bool:
    """As aiokafka's own: whether ``cluster`` is up to date for ``topics`` now."""
    if await _update(client, cluster, topics):
        return True
    if client._sync_task is None:  # it has not begun, or is being closed
        return False
    known = sorted(broker.nodeId for broker in client.cluster.brokers())
    try:
        await asyncio.wait_for(client.bootstrap(), _PATIENCE_S)
    except (TimeoutError, KafkaError, OSError):
        return False
    alive = sorted(broker.nodeId for broker in client.cluster.brokers())
    event(log, logging.WARNING, "brokers_found_again", client=client._client_id, known=known, brokers=alive)
    return bool(await _update(client, cluster, topics))


def find_brokers_again() -> None:
    """From now on every client of aiokafka in this process does; to be called any number of times."""
    AIOKafkaClient._metadata_update = _update_or_begin_anew
