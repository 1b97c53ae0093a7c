"""The oracle without Faust: production's leadership and publisher, fed from the in-memory Kafka.

Owns the order in which prices, parameters and heartbeats are taken. Unlike Faust's oracle it reads the parameters that
have come before the prices that have come, and not only with a heartbeat, so a price that is given together with its
symbol's parameters counts.
"""

from collections.abc import Iterator

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, TopicPartition

from schemas.topics import MARKS, ORACLE, PRICES
from streams.broker import config
from streams.broker.kafka import Kafka
from streams.broker.reader import poll_batch
from streams.broker.records import Record
from streams.memory.brokers import VisibleCluster
from streams.oracle.clock import BrokerOffset
from streams.oracle.leadership import Leadership
from streams.oracle.publisher import BatchResult, PriceRecord, Publisher
from streams.oracle.wiring import open_publisher, read_last_frame

_LEADERSHIP_POLL_S = 0.1
_RECORDS_MAX = 500


class MemoryOracle:
    """One oracle process. ``places``, how far prices were read, outlives it as committed offsets do."""

    def __init__(self, kafka: Kafka, cluster: VisibleCluster, places: dict[int, int]) -> None:
        self._kafka = kafka
        self._cluster = cluster
        self._places = places

    def run(self) -> None:
        """Claim the leadership and publish, until the process ends.

        Raises:
            LeadershipLost: another process publishes now.
        """
        leadership = Leadership(self._kafka)
        with open_publisher(self._kafka, leadership, BrokerOffset()) as publisher:
            while not leadership.poll():
                self._kafka.runtime.sleep(_LEADERSHIP_POLL_S)
            publisher.claim()
            publisher.restore(self._rows(), read_last_frame(self._kafka))
            self._publish(publisher, self._price_consumer())

    def _publish(self, publisher: Publisher, prices: Consumer) -> None:
        watch = self._kafka.places.watch()
        while True:
            records = poll_batch(prices, publisher.wait_s, _RECORDS_MAX, watch)
            publisher.follow_parameters()
            for record in records:
                self._places[record.partition()] = record.offset() + 1
                self._send(publisher.on_prices((_price_record(record),)))
            if publisher.wait_s <= 0:
                heartbeat = publisher.beat()
                for frame in heartbeat.frames:
                    written = self._cluster.append(MARKS, None, frame, 0)
                publisher.acknowledge(heartbeat, written.time_ms, TIMESTAMP_LOG_APPEND_TIME)

    def _rows(self) -> Iterator[tuple[bytes, bytes]]:
        with self._kafka.log_reader(self._kafka.settings.oracle.app_id) as reader:
            for partition in range(len(self._cluster.topics[ORACLE])):
                for record in reader.read_range(ORACLE, partition, 0):
                    yield record.key() or b"", record.value() or b""

    def _price_consumer(self) -> Consumer:
        settings = self._kafka.settings
        properties = config.reader(settings.kafka, settings.oracle.app_id) | {"enable.partition.eof": False}
        consumer = self._kafka.clients.consumer(properties)
        partitions = range(len(self._cluster.topics[PRICES]))
        consumer.assign([TopicPartition(PRICES, number, self._places.get(number, 0)) for number in partitions])
        return consumer

    def _send(self, result: BatchResult) -> None:
        for letter in result.letters:
            self._cluster.append(letter.topic, letter.key, letter.value, 0, letter.headers)
        for frame in result.frames:
            self._cluster.append(MARKS, None, frame, 0)
        for row in result.rows:
            self._cluster.append(ORACLE, row.key, row.value)


def _price_record(record: Record) -> PriceRecord:
    return PriceRecord(record.partition(), record.offset(), record.timestamp()[1], record.key(), record.value())
