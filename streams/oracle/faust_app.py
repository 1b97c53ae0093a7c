"""The Faust app of the oracle: told what every other client is told, and nothing by the environment.

Owns how Faust and aiokafka are configured. What the app does is :mod:`streams.oracle.app`.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import faust
from faust.tables.manager import TableManager
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from schemas.codec import MESSAGE_BYTES_MAX
from schemas.topics import PRICES
from streams.access import tls
from streams.logs import event
from streams.oracle import faust_store
from streams.oracle.faust_batches import BATCH_RECORDS_MAX, FoundRecord, PriceGap, batch_transport
from streams.oracle.faust_store import Store
from streams.oracle.rebootstrap import find_brokers_again
from streams.settings import KafkaSettings, Settings

log = logging.getLogger(__name__)

_LIMITS: dict[str, Any] = {
    "broker_request_timeout": 90.0,
    # So much waits for the answer to a partition's last request. At aiokafka's 16 KiB every other frame waited itself.
    "producer_max_batch_size": 1 << 19,
    "producer_max_request_size": MESSAGE_BYTES_MAX + 4096,  # a frame may have all that a message holds
}


class KnownTables(TableManager):
    """Faust's tables without its second of waiting for those that are not declared yet: marks wait for it."""

    async def on_start(self) -> None:
        """Find the tables' changelogs and read them."""
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


class BatchApp(faust.App):
    """Faust with batches of prices, and without its folders.

    It would make them in the working folder, and only its RocksDB store writes there.

    ``prices_fetched_at`` is when prices were fetched last, or looked for and not there, in seconds of the machine's
    monotonic clock; ``on_gap`` is told of prices that will never be read; ``read_records`` reads records in another
    way than aiokafka, which cannot read all of them.
    """

    prices_fetched_at: float | None = None
    on_gap: Callable[[PriceGap], object]
    read_records: Callable[[str, int, int, int], Sequence[FoundRecord]]

    def _create_directories(self) -> None:
        pass

    def _new_transport(self) -> Any:
        return batch_transport(frozenset({PRICES}))(self.conf.broker_consumer, self)

    def _new_producer(self) -> Any:
        producer = super()._new_producer()
        producer.buffer.max_messages = (
            2 * BATCH_RECORDS_MAX
        )  # rows of a batch; with more it reads on when they are sent
        return producer


def faust_app(settings: Settings) -> BatchApp:
    """The app, told what every other client is told. Redis is none of its business: a table's options say where it is.

    Raises:
        SettingsError: a certificate or key cannot be used.
    """
    kafka = settings.kafka
    find_brokers_again()
    stores = faust.stores.STORES
    stores.get_alias("memory")  # reads the stores that installed packages have, which go before what is there already
    stores.aliases["redis"] = f"{Store.__module__}:{Store.__name__}"
    session_s = kafka.session_timeout_ms / 1000
    given = kafka.properties
    if given.tuning:
        event(log, logging.INFO, "options_of_librdkafka_alone", names=sorted(given.tuning))
    client: dict[str, Any] = _LIMITS | given.faust
    # Faust refuses a session that is longer than a request may take.
    client["broker_request_timeout"] = max(client["broker_request_timeout"], session_s)
    return BatchApp(
        settings.oracle.app_id,
        env={},  # else BROKER_URL, TOPIC_PARTITIONS and their like in the environment go before what is given here
        broker=[f"aiokafka://{server}" for server in kafka.servers],
        broker_credentials=_credentials(kafka),
        store=faust_store.URL,
        key_serializer="raw",
        value_serializer="raw",
        web_enabled=bool(settings.oracle.web_port),
        web_port=settings.oracle.web_port or 6066,
        web_tables_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        producer_linger=0.0,
        producer_acks=-1,
        consumer_auto_offset_reset="none",  # the consumer of batches goes on elsewhere, and tells of it
        broker_commit_interval=1.0,
        broker_session_timeout=session_s,
        broker_heartbeat_interval=max(0.1, kafka.session_timeout_ms / 10_000),
        broker_max_poll_records=4 * BATCH_RECORDS_MAX,
        stream_wait_empty=False,
        autodiscover=False,
        TableManager=KnownTables,
        **client,
    )


def aiokafka_properties(kafka: KafkaSettings) -> dict[str, Any]:
    """How a client of aiokafka that is not Faust's reaches the cluster.

    Raises:
        SettingsError: a certificate or key cannot be used.
    """
    return {"bootstrap_servers": list(kafka.servers), **credentials_to_aiokafka_auth(_credentials(kafka))}


def _credentials(kafka: KafkaSettings) -> Any:
    """What Faust hands to aiokafka for every client of its own; None is PLAINTEXT."""
    context = None if kafka.tls is None else tls.context(kafka.tls)
    if kafka.sasl_mechanism:
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.sasl_password,
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context=context)
