"""The oracle without Faust: production's leadership, mark book and scales, fed from the in-memory Kafka.

Owns the order in which prices, parameters and heartbeats are taken. Unlike Faust's oracle it reads the parameters that
have come before the prices that have come, and not only with a heartbeat, so a price that is given together with its
symbol's parameters counts.
"""

from typing import Any

import msgspec
from confluent_kafka import TopicPartition

from schemas import headers
from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import Mark, MarkFrame, OraclePrice
from schemas.topics import JOURNAL, MARKS, ORACLE, PARAMETERS, PRICES, dead_letter_topic
from streams.broker import config
from streams.broker.kafka import Kafka
from streams.broker.reader import poll_batch
from streams.broker.records import Record
from streams.errors import BrokerError
from streams.feeds.journal import JournalFollower
from streams.feeds.marks import last_full_frame
from streams.feeds.parameters import ParameterFeed
from streams.machine_clock import MachineClock
from streams.memory.brokers import VisibleCluster
from streams.oracle.leadership import Leadership
from streams.oracle.marks import HEARD, MarkBook, SymbolState
from streams.oracle.scales import ScaleBook

_PRICE = Decoder[OraclePrice](OraclePrice)
_SYMBOL = Decoder[SymbolState](SymbolState)
_LEADERSHIP_POLL_S = 0.1
_RECORDS_MAX = 500


class MemoryOracle:
    """One oracle process. ``places``, how far prices were read, outlives it as committed offsets do."""

    def __init__(self, kafka: Kafka, cluster: VisibleCluster, places: dict[int, int]) -> None:
        self._kafka = kafka
        self._settings = kafka.settings
        self._cluster = cluster
        self._time = kafka.runtime
        self._clock = MachineClock(kafka.runtime.time_ns)
        self._places = places
        self._shards = len(cluster.topics[JOURNAL])
        self._book = MarkBook()
        self._scales = ScaleBook(self._shards)
        self._remembered: dict[str, int] = {}
        self._epoch = -1

    def run(self) -> None:
        """Claim the leadership and publish, until the process ends.

        Raises:
            BrokerError: another process publishes now.
        """
        leadership = Leadership(self._kafka)
        while not leadership.poll():
            self._time.sleep(_LEADERSHIP_POLL_S)
        self._epoch = leadership.claim()
        self._restore()
        prices = self._price_consumer()
        period_s = self._settings.oracle.heartbeat_ms / 1000
        due = self._time.monotonic()
        while True:
            records = poll_batch(prices, max(0.0, due - self._time.monotonic()), _RECORDS_MAX)
            self._poll_parameters()
            for record in records:
                self._places[record.partition()] = record.offset() + 1
                self._on_price(record)
            if self._time.monotonic() < due:
                continue
            if not leadership.poll():
                raise BrokerError("another oracle process publishes now")
            self._beat()
            due = max(due + period_s, self._time.monotonic())

    # --- what must be known before the first price -------------------------------------------------------------------

    def _restore(self) -> None:
        kafka, name = self._kafka, self._settings.oracle.app_id
        self._parameters = ParameterFeed(kafka.follower(name, PARAMETERS))
        self._journals = JournalFollower(kafka, f"{name}-journals", self._shards)
        with kafka.log_reader(name) as reader:
            self._parameters.restart()
            self._parameters.catch_up(reader, self._add_parameters)
            self._set_rules()
            for partition in range(len(self._cluster.topics[ORACLE])):
                for record in reader.read_range(ORACLE, partition, 0):
                    self._restore_symbol(record)
            frame = last_full_frame(reader)
        if frame is not None:
            self._scales.restore(frame.scales)
            for mark in frame.marks:
                self._book.remember(mark)

    def _restore_symbol(self, record: Record) -> None:
        state, symbol = _SYMBOL(record.value()), (record.key() or b"").decode()
        self._book.restore(symbol, state)
        if state.volatility is not None:
            self._scales.restore_volatility(symbol, state.volatility)

    def _price_consumer(self) -> Any:
        consumer = self._kafka.clients.consumer(
            config.reader(self._settings.kafka, self._settings.oracle.app_id) | {"enable.partition.eof": False}
        )
        partitions = range(len(self._cluster.topics[PRICES]))
        consumer.assign([TopicPartition(PRICES, number, self._places.get(number, 0)) for number in partitions])
        return consumer

    def _poll_parameters(self) -> None:
        records = self._parameters.poll()
        self._add_parameters(records)
        if records:
            self._set_rules()

    def _add_parameters(self, records: list[Record]) -> None:
        for record in records:
            self._parameters.add(record)

    def _set_rules(self) -> None:
        rules = self._parameters.rules
        priced = {asset.price_symbol for asset in rules.assets.values() if asset.price_symbol is not None}
        self._book.set_rules(rules.oracle, kept={*rules.instruments, *priced})
        self._scales.set_parameters(rules)

    # --- prices in, marks out ----------------------------------------------------------------------------------------

    def _on_price(self, record: Record) -> None:
        try:
            price = _PRICE(record.value())
        except DecodeError as error:
            about = headers.dead_letter(
                PRICES, record.partition(), record.offset(), record.timestamp()[1], type(error).__name__, str(error)
            )
            self._cluster.write(dead_letter_topic(PRICES), record.value(), key=record.key(), headers=about)
            return
        clock = self._clock.now_us()
        if self._book.accept(price, clock) not in HEARD:
            return
        mark = self._book.form(price.symbol, clock)
        if mark is not None:
            self._send(MarkFrame(time=clock, marks=(mark,), epoch=self._epoch))
        self._remember(price.symbol, clock, at_once=mark is not None and mark.status != "live")

    def _remember(self, symbol: str, clock: int, *, at_once: bool) -> None:
        age = clock - self._remembered.get(symbol, 0)
        if at_once or not 0 <= age < 1000 * self._settings.oracle.heartbeat_ms:
            self._remembered[symbol] = clock
            state = msgspec.structs.replace(self._book.state(symbol), volatility=self._scales.volatility(symbol))
            place = self._cluster.partition(ORACLE, symbol.encode())
            self._cluster.write(ORACLE, encode(state), key=symbol.encode(), number=place.number)

    def _beat(self) -> None:
        marks = self._book.form_all(clock := self._clock.now_us())
        self._scale(marks, clock)
        self._send(
            MarkFrame(
                time=clock,
                marks=marks,
                full=True,
                scales=self._scales.scales,
                epoch=self._epoch,
                uncounted=self._book.uncounted(clock),
            )
        )

    def _scale(self, marks: tuple[Mark, ...], clock: int) -> None:
        for shard, quantities in self._journals.open_interest():
            self._scales.observe_open_interest(shard, quantities)
        self._scales.observe_marks(marks, clock)
        self._scales.step(marks, clock)

    def _send(self, frame: MarkFrame) -> None:
        self._cluster.write(MARKS, encode(frame))
