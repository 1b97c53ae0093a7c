"""librdkafka configuration from settings: one place, so that every client pins the same choices and says why."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from confluent_kafka import KafkaException

from schemas.topics import Compression
from streams.broker.client_log import ClientLog
from streams.errors import SettingsError
from streams.settings import MAX_POLL_INTERVAL_MS, KafkaSettings

log = logging.getLogger(__name__)

Client = TypeVar("Client")

SOCKET_MS_MIN = 2_000
"""librdkafka refuses less than a second more than a fetch waits."""


def created(client: Callable[[dict[str, Any]], Client], properties: dict[str, Any]) -> Client:
    """A confluent-kafka client with ``properties``.

    Raises:
        SettingsError: librdkafka knows no such property, or its value is out of range.
    """
    try:
        return client(properties)
    except KafkaException as error:
        raise SettingsError(f"librdkafka refuses the Kafka settings: {error.args[0].str()}") from error


def common(kafka: KafkaSettings, client_id: str) -> dict[str, Any]:
    """What every client has: addresses, security, and errors that go to our log."""
    config: dict[str, Any] = {
        "bootstrap.servers": ",".join(kafka.servers),
        "client.id": client_id,
        "security.protocol": kafka.security_protocol.lower(),
        "logger": ClientLog(log),
        "log.connection.close": False,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        # 60,000: so long a broker that stands still, with its connections open, is waited for. Within a session there
        # must be time to find the next coordinator.
        "socket.timeout.ms": max(SOCKET_MS_MIN, kafka.session_timeout_ms // 2),
        # 10,000 and 30,000: so long a new connection waits for a broker that stands still, of which the others say for
        # a while yet that it is the coordinator. They are asked again only then.
        "api.version.request.timeout.ms": max(SOCKET_MS_MIN, kafka.session_timeout_ms // 8),
        "socket.connection.setup.timeout.ms": max(2 * SOCKET_MS_MIN, kafka.session_timeout_ms // 4),
    }
    if kafka.sasl_mechanism:
        config |= {
            "sasl.mechanism": kafka.sasl_mechanism,
            "sasl.username": kafka.sasl_username,
            "sasl.password": kafka.sasl_password,
        }
    if kafka.tls is not None:
        files = {
            "ssl.ca.location": kafka.ssl_ca_location,
            "ssl.certificate.location": kafka.ssl_certificate_location,
            "ssl.key.location": kafka.ssl_key_location,
            "ssl.key.password": kafka.ssl_key_password,
        }
        config |= {name: value for name, value in files.items() if value}
    return config | kafka.properties.librdkafka


def producer(
    kafka: KafkaSettings, client_id: str, transactional_id: str | None = None, *, compression: Compression = "none"
) -> dict[str, Any]:
    """Producer configuration.

    ``compression`` is none wherever others read: not every client knows lz4, and every client knows no compression.

    ``partitioner=murmur2_random`` puts a key where a Java producer would. ``retry.backoff.ms=2``: at librdkafka's
    default of 100 the small transactions of a quiet shard wait out whole back-offs and take 97 ms instead of 6.
    """
    config = common(kafka, client_id) | {
        "partitioner": "murmur2_random",
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 0,
        "retry.backoff.ms": 2,
        "retry.backoff.max.ms": 100,
        "compression.type": compression,
        "message.max.bytes": 4_000_000,
        "queue.buffering.max.messages": 1_000_000,
        "queue.buffering.max.kbytes": 524_288,
        "message.timeout.ms": kafka.transaction_timeout_ms,
    }
    if transactional_id is not None:
        config |= {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": kafka.transaction_timeout_ms,
        }
        if "socket.timeout.ms" not in kafka.properties.librdkafka:
            # The longest that librdkafka takes. After a shorter one it would ask anew to end the transaction, begin the
            # next under the same epoch, and the first request, come late, would end that half-way (KIP-890). When the
            # transaction's time is up, whoever owns the producer registers anew, with another epoch.
            config["socket.timeout.ms"] = kafka.transaction_timeout_ms
    return config


def consumer(kafka: KafkaSettings, client_id: str, group_id: str, *, instance_id: str = "") -> dict[str, Any]:
    """Consumer configuration: committed records only, offsets in our hands.

    An offset that the log no longer holds is an error: going on from elsewhere would skip records without a word.
    A cooperative-sticky classic group: a rebalance stops only the partitions that move. Members learn of one with
    their next heartbeat, so the heartbeats are what a handover waits for.
    ``fetch.queue.backoff.ms=5``: at
    librdkafka's default of 1000 a consumer that takes all that is queued at once waits up to a second for more
    (63,000 records/s instead of 1,700,000).
    """
    config = common(kafka, client_id) | {
        "group.id": group_id,
        "group.protocol": "classic",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": kafka.session_timeout_ms,
        "heartbeat.interval.ms": max(100, kafka.session_timeout_ms // 30),
        "max.poll.interval.ms": MAX_POLL_INTERVAL_MS,
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "fetch.wait.max.ms": 50,
        "fetch.error.backoff.ms": 20,
        "fetch.queue.backoff.ms": 5,
        "queued.min.messages": 20_000,
        "queued.max.messages.kbytes": 65_536,
        "enable.partition.eof": False,
        "allow.auto.create.topics": False,
        "topic.metadata.refresh.interval.ms": 5_000,  # partitions that are added are found within it
    }
    if instance_id:
        config["group.instance.id"] = instance_id
    return config


def reader(kafka: KafkaSettings, client_id: str) -> dict[str, Any]:
    """Configuration of a consumer that is assigned by hand and never commits."""
    return consumer(kafka, client_id, f"{client_id}-reader") | {
        "enable.partition.eof": True,
    }
