"""Twenty thousand symbols: their full frames come in parts, which every reader and a restarted oracle can read."""

from collections.abc import Iterator
from dataclasses import dataclass

import orjson
import pytest
from confluent_kafka import Producer

from infra.local.stack import LocalStack
from schemas.codec import MESSAGE_BYTES_MAX
from schemas.messages import MarkFrame
from schemas.topics import MARKS, PARAMETERS, PRICES
from streams.broker import config
from streams.broker.admin import ensure_topics
from streams.broker.reader import LogReader
from streams.feeds.marks import last_full_frame
from streams.settings import Settings, load
from streams.tables.reader import TableReader
from tests.integration.conftest import Role, eventually, now_us

SYMBOLS, SOURCES = 20_000, "abc"
DEADLINE_S = 240.0


def produce(producer: Producer, topic: str, value: dict[str, object], key: str) -> None:
    """Queue a record, waiting for room."""
    while True:
        try:
            producer.produce(topic, orjson.dumps(value), key=key)
            return
        except BufferError:
            producer.poll(0.1)


@dataclass
class Exchange:
    """The roles, and a producer of prices: each round of them is a millionth above the one before."""

    settings: Settings
    oracle: Role
    engine: Role
    producer: Producer
    rounds: int = 0

    def price_all(self) -> str:
        """A price of every source for every symbol; what it is."""
        self.rounds += 1
        price = f"100.{self.rounds:06d}"
        for number in range(SYMBOLS):
            for source in SOURCES:
                said = {"source": source, "symbol": f"S{number}-PERP", "price": price, "sequence": self.rounds}
                produce(self.producer, PRICES, {**said, "publish_time": now_us()}, f"S{number}-PERP")
        assert self.producer.flush(60) == 0
        return price

    def last_full(self) -> MarkFrame | None:
        for role in (self.oracle, self.engine):
            role.assert_running()
        with LogReader(self.settings.kafka, "test") as reader:
            return last_full_frame(reader)


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with LocalStack.start() as stack:
        servers = {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url}
        settings = load({}, servers | {"topics.shards": 1, "topics.partitions": 1})
        assert not ensure_topics(settings).wrong
        folder = tmp_path_factory.mktemp("roles")
        producer = Producer(config.producer(settings.kafka, "test"))
        for number in range(SYMBOLS):
            symbol = f"S{number}-PERP"
            rules = {"type": "oracle", "symbol": symbol, "sources": dict.fromkeys(SOURCES, "1"), "version": 1}
            rules |= {"minimum_sources": 2, "max_age_ms": 3_600_000}
            produce(producer, PARAMETERS, rules, f"oracle:{symbol}")
        assert producer.flush(60) == 0
        oracle, engine = (Role(name, settings, folder / f"{name}.log") for name in ("oracle", "engine"))
        try:
            started = Exchange(settings, oracle, engine, producer)
            yield started
        finally:
            for role in (oracle, engine):
                role.kill()


def test_all_of_them_are_marked_and_every_reader_has_them(exchange: Exchange) -> None:
    eventually(exchange.last_full, "a first heartbeat", DEADLINE_S)
    price = ""

    def live() -> bool:
        nonlocal price
        price = price if exchange.rounds > 1 else exchange.price_all()  # the first may be from before it listened
        frame = exchange.last_full()
        return frame is not None and [mark.price for mark in frame.marks if mark.status == "live"] == [price] * SYMBOLS

    eventually(live, "every symbol is live", DEADLINE_S)
    with LogReader(exchange.settings.kafka, "test") as reader:
        low, end = reader.watermarks(MARKS, 0)
        sizes = [len(record.value() or b"") for record in reader.read_range(MARKS, 0, max(low, end - 50), end)]
    assert 500_000 < max(sizes) <= MESSAGE_BYTES_MAX

    def in_the_table() -> bool:
        with TableReader(exchange.settings.redis) as tables:
            return [mark.price for mark in tables.read_marks().values()] == [price] * SYMBOLS

    eventually(in_the_table, "the engine has written every mark to the table", DEADLINE_S)


def test_a_restarted_oracle_knows_them_all(exchange: Exchange) -> None:
    before = exchange.last_full()
    assert before is not None
    exchange.oracle.kill()
    exchange.oracle.restart()

    def again() -> bool:
        frame = exchange.last_full()
        return frame is not None and frame.epoch > before.epoch and len(frame.marks) == SYMBOLS

    eventually(again, "a full frame of the next process", DEADLINE_S)
    after = exchange.last_full()
    assert after is not None
    assert {mark.symbol: (mark.price, mark.status) for mark in after.marks} == {
        mark.symbol: (mark.price, mark.status) for mark in before.marks
    }


def test_a_restarted_engine_goes_on_with_them(exchange: Exchange) -> None:
    assert exchange.engine.stop() == 0
    exchange.engine.restart()
    price = exchange.price_all()

    def in_the_table() -> bool:
        exchange.last_full()
        with TableReader(exchange.settings.redis) as tables:
            return [mark.price for mark in tables.read_marks().values()] == [price] * SYMBOLS

    eventually(in_the_table, "the engine has written every mark to the table", DEADLINE_S)
