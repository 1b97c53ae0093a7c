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
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from infra.local.stack import LocalStack
from schemas.codec import MESSAGE_BYTES_MAX
from schemas.topics import MARKS, PARAMETERS, PRICES, RECORD_BYTES_MAX, dead_letter_topic
from streams.broker import config
from streams.broker.admin import admin_client, ensure_topics, group_state
from streams.broker.letter_counts import count_letters
from streams.broker.reader import LogReader
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


def new_producer(settings: Settings) -> Producer:
    return Producer(config.producer(settings.kafka, "test") | {"message.max.bytes": INPUT_BYTES_MAX})


def delete_records(settings: Settings, before: int) -> None:
    admin = admin_client(settings)
    for done in admin.delete_records([TopicPartition(PRICES, 0, before)]).values():
        done.result(timeout=10)


def make_anew(settings: Settings) -> None:
    admin = admin_client(settings)
    admin.delete_topics([PRICES])[PRICES].result(timeout=30)

    def created() -> bool:
        try:
            admin.create_topics([NewTopic(PRICES, num_partitions=1)])[PRICES].result(timeout=30)
        except KafkaException:  # it is not quite gone yet
            return False
        return True

    eventually(created, "the topic is made anew")


def commit(settings: Settings, offset: int) -> None:
    """Commit ``offset`` for the oracle, which does not run."""
    admin, group = admin_client(settings), settings.oracle.app_id
    place = ConsumerGroupTopicPartitions(group, [TopicPartition(PRICES, 0, offset)])
    eventually(lambda: group_state(settings, group).state == "EMPTY", "the group is empty")
    for done in admin.alter_consumer_group_offsets([place]).values():
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

        def letter_there() -> Any:
            return next((one for one in self.letters.read() if one[2]["dlq.offset"] == str(offset).encode()), None)

        letter: tuple[bytes | None, bytes | None, dict[str, bytes]] = eventually(
            letter_there, f"the letter of {offset}"
        )
        return letter

    def end(self) -> int:
        """The offset of the next price."""
        return self.marks.end_of(PRICES)

    def commits_again(self) -> None:
        """What is read is committed, wherever it is."""
        self.next_is_marked()
        end = self.end()

        def committed() -> bool:
            offsets = group_state(self.settings, self.settings.oracle.app_id).committed
            return offsets.get((PRICES, 0)) == end

        eventually(committed, f"offset {end} is committed")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with LocalStack.start() as stack:
        servers = {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url}
        settings = load({}, servers | {"topics.shards": 1, "topics.partitions": 1})
        assert not ensure_topics(settings).wrong
        configure(settings, PRICES, max_message_bytes=str(INPUT_BYTES_MAX))
        producer = new_producer(settings)
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


# --- prices that were gone before they were read ----------------------------------------------------------------------


def stopped(market: Market) -> int:
    """The oracle has stopped, with everything committed; where it would go on."""
    place = market.end()

    def committed() -> bool:
        offsets = group_state(market.settings, market.settings.oracle.app_id).committed
        return offsets.get((PRICES, 0)) == place

    eventually(committed, f"offset {place} is committed")
    assert market.oracle.stop() == 0
    return place


def gap_letter(market: Market, place: int) -> dict[str, bytes]:
    headers = market.letter_of(place)[2]
    assert headers["dlq.error"] == b"PricesMissed"
    return headers


def test_prices_deleted_before_they_were_read_are_told_and_the_marks_go_on(market: Market) -> None:
    place = stopped(market)
    for _ in range(10):
        market.send(b"never read")
    delete_records(market.settings, place + 8)
    market.oracle.restart()
    market.next_is_marked()
    reason = gap_letter(market, place)["dlq.reason"].decode()
    assert reason == (
        f"8 prices from here on were not read: deleted before they were read: the log begins at {place + 8}; "
        f"reading went on at {place + 8}"
    )
    market.letter_of(place + 8)
    market.letter_of(place + 9)
    assert market.oracle.log().count('"prices_missed"') == 1
    market.commits_again()


def test_a_topic_that_is_made_anew_ends_the_oracle_and_the_next_one_reads_it(market: Market) -> None:
    place = market.end()
    make_anew(market.settings)
    eventually(lambda: market.oracle.process.poll() is not None, "the oracle ends")
    assert "was deleted and made anew" in market.oracle.log()
    market.oracle.restart()
    market.producer = new_producer(market.settings)  # the one before knows that there is no such topic
    market.next_is_marked()
    market.commits_again()
    assert market.end() < place, "below what it had read"


def test_a_partition_that_ends_below_what_was_committed_is_read(market: Market) -> None:
    """As after an unclean election, which leaves the group's offset as it was."""
    place = stopped(market) + 1_000_000
    commit(market.settings, place)
    market.oracle.restart()
    market.next_is_marked()
    reason = gap_letter(market, place)["dlq.reason"].decode()
    assert reason.startswith("an unknown number of prices from here on were not read: the partition was made anew or")
    market.commits_again()


def test_status_names_the_prices_that_were_missed(market: Market) -> None:
    with LogReader(market.settings.kafka, "test") as reader:
        counts = count_letters(reader, PRICES, 4)  # the last ones: of many kinds some are summed up
    assert {kind.error for kind in counts.classes} >= {"PricesMissed"}
