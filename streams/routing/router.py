"""The router's loop: the exchange's topics in, frames by shard out, one transaction a batch.

One transaction holds the frames, the memory of trade ids, the dead letters and the offsets, so after any crash the next
owner of a partition begins exactly where the last committed batch ended, and knows the trade ids that were in it.
"""

import logging
import signal
import threading
import time
from types import FrameType

import orjson
from confluent_kafka import Consumer, Message, TopicPartition
from prometheus_client import Counter, Histogram, start_http_server

from schemas.codec import DecodeError, Decoder
from schemas.messages import LiquidationReport, Trade, Transfer
from schemas.topics import EVENTS, REPORTS, ROUTER, TRADES, TRANSFERS
from streams.broker import config
from streams.broker.admin import require_topics
from streams.broker.dead_letters import produce_dead_letter
from streams.broker.producer import TransactionalProducer
from streams.broker.reader import LogReader, poll_batch
from streams.errors import BrokerError, ProducerFenced, TransactionAborted
from streams.logs import event
from streams.routing.frames import ShardFrames, TradeMemory
from streams.settings import Settings

log = logging.getLogger(__name__)

RECORDS = Counter("margin_router_records", "Records routed", ["topic"])
REPEATS = Counter("margin_router_repeated_trades", "Trades dropped because their id had been seen")
GAPS = Counter("margin_router_missing_trades", "Trade ids that never came")
DEAD_LETTERS = Counter("margin_router_dead_letters", "Records that could not be read", ["topic"])
COMMITS = Histogram(
    "margin_router_commit_seconds", "Transaction time", buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)
)

_INPUTS = [TRADES, TRANSFERS, REPORTS]
_IDLE_POLL_S = 0.1
_FAILURES_MAX = 10

Place = tuple[str, int]


class Router:
    """One router process. :meth:`run` returns when ``stop`` is set and the batch in hand is committed."""

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._client_id = f"{settings.router.group_id}-{settings.worker_name}"
        self._trade = Decoder[Trade](Trade)
        self._transfer = Decoder[Transfer](Transfer)
        self._report = Decoder[LiquidationReport](LiquidationReport)
        self._memory: dict[int, TradeMemory] = {}
        self._next: dict[Place, int] = {}
        self._touched: set[Place] = set()
        self._clock_us = 0
        self._failures = 0

    def run(self) -> None:
        """Route until told to stop.

        Raises:
            MarginClearingError: what cannot be mended by reading the log again; the process should exit and restart.
        """
        counts = require_topics(self._settings)
        self._frames = ShardFrames(counts[EVENTS])
        self._producer = self._new_producer()
        self._reader = LogReader(self._settings.kafka, self._client_id)
        self._consumer = Consumer(
            config.consumer(
                self._settings.kafka,
                self._client_id,
                self._settings.router.group_id,
                instance_id=self._settings.service.instance_id,
            )
        )
        try:
            self._consumer.subscribe(
                _INPUTS, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )
            event(log, logging.INFO, "router_started", shards=counts[EVENTS])
            while not self._stop.is_set():
                self._cycle()
        finally:
            self._consumer.close()
            self._producer.close()
            self._reader.close()
            event(log, logging.INFO, "router_stopped")

    def _cycle(self) -> None:
        batch = self._collect()
        if not batch:
            return
        try:
            self._route(batch)
            self._failures = 0
        except (TransactionAborted, ProducerFenced) as error:
            self._recover(error)

    def _collect(self) -> list[Message]:
        """Records for one batch: until it is full or has been open for ``linger_ms``."""
        most = self._settings.router.batch_records_max
        batch = poll_batch(self._consumer, _IDLE_POLL_S, most)
        deadline = time.monotonic() + self._settings.router.linger_ms / 1000
        while batch and len(batch) < most and (left := deadline - time.monotonic()) > 0:
            batch += poll_batch(self._consumer, left, most - len(batch))
        return batch

    def _route(self, batch: list[Message]) -> None:
        started = time.monotonic()
        letters = [(message, error) for message in batch if (error := self._add(message)) is not None]
        if not self._touched:
            return
        self._clock_us = max(self._clock_us + 1, time.time_ns() // 1000)
        producer = self._producer
        producer.begin()
        for shard, frame in self._frames.take(self._clock_us):
            producer.produce(EVENTS, frame, partition=shard)
        for topic, partition in self._touched:
            if topic == TRADES:
                memory = self._memory[partition].last
                producer.produce(ROUTER, orjson.dumps(memory), key=_memory_key(partition), partition=partition)
        for message, error in letters:
            DEAD_LETTERS.labels(message.topic()).inc()
            produce_dead_letter(producer, message, error)
        producer.send_offsets(
            [TopicPartition(topic, partition, self._next[topic, partition]) for topic, partition in self._touched],
            self._consumer.consumer_group_metadata(),
        )
        producer.commit()
        self._touched.clear()
        COMMITS.observe(time.monotonic() - started)

    def _add(self, message: Message) -> DecodeError | None:
        """Take one record into the frames; the reason if it cannot be read."""
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        assert topic is not None
        assert partition is not None
        assert offset is not None
        place = (topic, partition)
        if place not in self._next or offset < self._next[place]:
            return None
        self._next[place] = offset + 1
        self._touched.add(place)
        RECORDS.labels(topic).inc()
        try:
            if topic == TRADES:
                self._add_trade(partition, self._trade(message.value()))
            elif topic == TRANSFERS:
                self._frames.add_transfer(self._transfer(message.value()))
            else:
                self._frames.add_report(self._report(message.value()))
        except DecodeError as error:
            return error
        return None

    def _add_trade(self, partition: int, trade: Trade) -> None:
        missing = self._memory[partition].accept(trade)
        if missing < 0:
            REPEATS.inc()
            event(log, logging.INFO, "trade_repeated", symbol=trade.symbol, trade_id=trade.trade_id)
            return
        if missing:
            GAPS.inc(missing)
            event(log, logging.WARNING, "trades_missing", symbol=trade.symbol, before=trade.trade_id, missing=missing)
        self._frames.add_trade(trade)

    # --- owning partitions -------------------------------------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Begin at the committed offsets, with the memory that was committed beside them."""
        self._begin_at_committed(partitions)
        consumer.incremental_assign(
            [TopicPartition(p.topic, p.partition, self._next[p.topic, p.partition]) for p in partitions]
        )

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        """Nothing is in hand here: a batch is committed, or dropped, before the consumer is polled again."""
        for found in partitions:
            self._next.pop((found.topic, found.partition), None)
            if found.topic == TRADES:
                self._memory.pop(found.partition, None)

    def _begin_at_committed(self, partitions: list[TopicPartition]) -> None:
        committed = self._consumer.committed(partitions, timeout=60)
        for found in committed:
            if found.error is not None:
                raise BrokerError(f"{found.topic}[{found.partition}]: no committed offset: {found.error.str()}")
            low, _ = self._reader.watermarks(found.topic, found.partition)
            self._next[found.topic, found.partition] = max(found.offset, low)
            if found.topic == TRADES:
                self._memory[found.partition] = self._remember(found.partition)

    def _remember(self, partition: int) -> TradeMemory:
        memory = TradeMemory()
        for message in self._reader.read_range(ROUTER, partition, 0):
            if message.key() == _memory_key(partition) and message.value() is not None:
                memory = TradeMemory(orjson.loads(message.value() or b"{}"))
        return memory

    def _recover(self, error: BrokerError) -> None:
        """Forget what is in memory, and the producer if it may be fenced; begin again at the committed offsets."""
        self._failures += 1
        event(log, logging.WARNING, "batch_dropped", reason=str(error), failures=self._failures)
        if self._failures > _FAILURES_MAX:
            raise BrokerError(f"no batch could be committed in {_FAILURES_MAX} attempts; the last: {error}") from error
        self._stop.wait(min(0.02 * 2**self._failures, 2.0))
        try:
            if isinstance(error, ProducerFenced):
                raise error
            self._producer.abort()
        except (ProducerFenced, TransactionAborted):
            self._producer.close()
            self._producer = self._new_producer()
        self._frames.take(0)
        self._touched.clear()
        places = self._consumer.assignment()
        self._next.clear()
        self._begin_at_committed(places)
        for place in places:
            self._consumer.seek(TopicPartition(place.topic, place.partition, self._next[place.topic, place.partition]))

    def _new_producer(self) -> TransactionalProducer:
        producer = TransactionalProducer(self._settings.kafka, self._client_id)
        producer.init()
        return producer


def run(settings: Settings) -> None:
    """Run one router process until SIGTERM or SIGINT."""
    stop = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        event(log, logging.INFO, "stopping", signal=signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    if settings.service.metrics_port:
        start_http_server(settings.service.metrics_port)
    Router(settings, stop).run()


def _memory_key(partition: int) -> bytes:
    return f"{TRADES}:{partition}".encode()
