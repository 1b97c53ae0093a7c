"""One record that nobody can use must not stop the oracle: on a stack of its own, its broker as it is by default."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c
from confluent_kafka import Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from infra.local.stack import LocalStack
from schemas.codec import MESSAGE_BYTES_MAX
from schemas.topics import MARKS, PARAMETERS, PRICES, RECORD_BYTES_MAX, dead_letter_topic
from streams.broker import config
from streams.broker.admin import admin_client, ensure_topics
from streams.settings import Settings, load
from tests.integration.conftest import Role, Topic, eventually, now_us

INPUT_BYTES_MAX = 10_000_000
"""What an operator has set the input topics to; the broker and the topics of ours are at their defaults."""
NAME_IN_BATCH, NAME_NO_TEXT = b"header-name", b"\xff\xfe\x80der-name"


def configure(settings: Settings, topic: str, **values: str) -> None:
    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in values.items()
    ]
    admin = admin_client(settings)  # kept: its requests end with it
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(timeout=10)


@dataclass
class Market:
    """An oracle and one symbol with one source, whose price is another each time."""

    settings: Settings
    oracle: Role
    marks: Topic
    letters: Topic
    producer: Producer
    prices: Iterator[int] = field(default_factory=lambda: count(1))

    def send(self, value: bytes | None, key: bytes | None = b"X", **arguments: Any) -> None:
        self.producer.produce(PRICES, value, key=key, **arguments)
        assert self.producer.flush(30) == 0

    def price(self, number: int) -> bytes:
        """Price ``number`` of the source."""
        price = {"source": "a", "symbol": "X", "price": str(number), "sequence": number, "publish_time": now_us()}
        return orjson.dumps(price)

    def next_is_marked(self) -> None:
        """The oracle runs, and makes a mark of a price that is sent from now on."""
        sent: set[str] = set()

        def marked() -> bool:
            self.oracle.assert_running()
            number = next(self.prices)
            sent.add(str(number))
            self.send(self.price(number))
            return self.is_marked(*sent)

        eventually(marked, "a mark of a price")
        self.marks.records.clear()

    def is_marked(self, *prices: str) -> bool:
        """Whether one of ``prices`` has become a live mark."""
        marks = [mark for frame in self.marks.values() for mark in frame["marks"]]
        return any(mark["price"] in prices and mark["status"] == "live" for mark in marks)

    def letter_of(self, offset: int) -> tuple[bytes | None, bytes | None, dict[str, bytes]]:
        """The dead letter of the price record at ``offset``."""

        def found() -> Any:
            return next((one for one in self.letters.read() if one[2]["dlq.offset"] == str(offset).encode()), None)

        letter: tuple[bytes | None, bytes | None, dict[str, bytes]] = eventually(found, f"the letter of {offset}")
        return letter

    def end(self) -> int:
        """The offset of the next price."""
        return self.marks.end_of(PRICES)


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with LocalStack.start() as stack:
        servers = {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url}
        settings = load({}, servers | {"topics.shards": 1, "topics.partitions": 1})
        assert not ensure_topics(settings).wrong
        configure(settings, PRICES, max_message_bytes=str(INPUT_BYTES_MAX))
        producer = Producer(config.producer(settings.kafka, "test") | {"message.max.bytes": INPUT_BYTES_MAX})
        rules = {"type": "oracle", "symbol": "X", "sources": {"a": "1"}, "version": 1}
        rules |= {"max_jump": "1", "minimum_sources": 1}
        producer.produce(PARAMETERS, orjson.dumps(rules), key=b"oracle:X")
        assert producer.flush(10) == 0
        marks, letters = Topic(settings, MARKS), Topic(settings, dead_letter_topic(PRICES))
        oracle = Role("oracle", settings, tmp_path_factory.mktemp("oracle") / "oracle.log")
        try:
            started = Market(settings, oracle, marks, letters, producer)
            started.next_is_marked()
            yield started
        finally:
            oracle.kill()
            marks.close()
            letters.close()


HUGE = "9" * 100_000
POISON: dict[str, tuple[bytes | None, bytes | None]] = {
    "neither key nor value": (None, None),
    "no key": (None, b"{}"),
    "a tombstone": (b"X", None),
    "empty": (b"", b""),
    "a key that is no text": (b"\xff\xfe", b"{}"),
    "deep": (b"X", b"[" * 900_000),
    "deep in a price": (b"X", b'{"price":' + b'{"a":' * 150_000),
    "a huge integer": (b"X", f'{{"source":"a","symbol":"X","price":"1","sequence":{HUGE},"publish_time":1}}'.encode()),
    "a huge exponent": (b"X", b'{"source":"a","symbol":"X","price":"1e999999999","sequence":1,"publish_time":1}'),
    "NaN": (b"X", b'{"source":"a","symbol":"X","price":NaN,"sequence":1,"publish_time":1}'),
    "no UTF-8": (b"X", b'{"source":"\xff"}'),
    "one byte more than a message has": (b"X", b"x" * (MESSAGE_BYTES_MAX + 3)),
    "a key of a megabyte": (b"k" * 1_040_000, b"{}"),
    "more than the dead letters take": (b"X", b"x" * 1_200_000),
    "as much as the topic takes": (b"X", b"x" * (INPUT_BYTES_MAX - 2_000)),
}


@pytest.mark.parametrize(("key", "value"), POISON.values(), ids=POISON.keys())
def test_a_record_that_is_no_price_is_a_dead_letter_and_the_next_is_priced(
    market: Market, key: bytes | None, value: bytes | None
) -> None:
    offset = market.end()
    market.send(value, key)
    market.next_is_marked()
    got_key, got_value, headers = market.letter_of(offset)
    if "dlq.cut" not in headers:
        assert (got_key, got_value) == (key, value)
        return
    assert int(headers["dlq.cut"]) == len(key or b"") + len(value or b"")
    assert headers["dlq.sha256"] == sha256(value or b"").hexdigest().encode()
    assert (key or b"").startswith(got_key or b"")
    assert (value or b"").startswith(got_value or b"")


@pytest.mark.parametrize("timestamp_ms", [1, 4_000_000_000_000, 2**62])
def test_a_price_counts_whatever_its_timestamp(market: Market, timestamp_ms: int) -> None:
    configure(market.settings, PRICES, message_timestamp_after_max_ms=str(2**63 - 1))
    market.send(b"no price", timestamp=timestamp_ms)
    market.next_is_marked()


def test_headers_of_any_shape_are_nothing_to_the_oracle(market: Market) -> None:
    market.send(b"no price", headers=[("", None), ("a", b""), ("a", b"\xff"), ("dlq.topic", b"x" * 10_000)])
    market.next_is_marked()


def test_a_header_whose_name_is_no_text_is_nothing_to_the_oracle(market: Market) -> None:
    for _ in range(3):
        number = next(market.prices)
        asyncio.run(send_with_odd_header(market.settings, market.price(number)))
        eventually(lambda: market.is_marked(str(number)), "a mark of the price itself")  # noqa: B023
        market.next_is_marked()
    assert market.oracle.log().count("headers_unreadable") == 1


async def send_with_odd_header(settings: Settings, value: bytes) -> None:
    """A record with a header name that no client of ours would write: the bytes of its batch are changed."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
    await producer.start()
    try:
        batch = producer.create_batch()
        batch.append(key=b"X", value=value, timestamp=None, headers=[(NAME_IN_BATCH.decode(), b"")])
        build = batch._build

        def built() -> bytearray:
            data = bytearray(bytes(build()).replace(NAME_IN_BATCH, NAME_NO_TEXT))
            data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
            return data

        batch._build = built
        await (await producer.send_batch(batch, PRICES, partition=0))
    finally:
        await producer.stop()


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_a_price_counts_in_any_compression(market: Market, codec: str) -> None:
    number = next(market.prices)
    producer = Producer(config.producer(market.settings.kafka, "test") | {"compression.type": codec})
    producer.produce(PRICES, market.price(number), key=b"X" * 1_000)
    assert producer.flush(30) == 0
    eventually(lambda: market.is_marked(str(number)), f"a mark of a price in {codec}")
    market.next_is_marked()


@pytest.mark.parametrize(("key", "value"), POISON.values(), ids=POISON.keys())
def test_a_parameter_record_that_is_none_does_not_stop_it(
    market: Market, key: bytes | None, value: bytes | None
) -> None:
    if key is None or len(key) + len(value or b"") > RECORD_BYTES_MAX - 100:
        pytest.skip("a compacted topic at its defaults refuses it")
    market.producer.produce(PARAMETERS, value, key=key.replace(b"X", b"oracle:Y"))
    assert market.producer.flush(30) == 0
    market.next_is_marked()


def test_its_log_stays_small(market: Market) -> None:
    """Of all of the above, each record of up to 10 MB."""
    assert len(market.oracle.log()) < 500_000
