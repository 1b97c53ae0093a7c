"""Keys go where Kafka's Java client puts them: by our own murmur2, and by the producers that we configure."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import NewTopic

from schemas import generate
from schemas.partitioning import murmur2, partition_of, shard_of
from schemas.topics import CONTRACT
from streams.broker import config
from streams.broker.admin import admin_client
from streams.settings import Settings

GOLDEN: list[dict[str, Any]] = json.loads((generate.GOLDEN / "partitions.json").read_text(encoding="utf-8"))
PARTITIONS = 7


def test_the_golden_keys_are_of_every_kind() -> None:
    keys = [golden["key"] for golden in GOLDEN]
    assert "" in keys
    assert any(not key.isascii() for key in keys)
    assert max(map(len, keys)) >= 1000
    assert {len(key.encode()) % 4 for key in keys} == {0, 1, 2, 3}
    assert all(set(golden["partitions"]) >= {"1", "3", "4", "7", "1024"} for golden in GOLDEN)


@pytest.mark.parametrize("golden", GOLDEN, ids=[repr(golden["key"][:20]) for golden in GOLDEN])
def test_our_partitions_are_those_of_the_java_client(golden: dict[str, Any]) -> None:
    key = golden["key"].encode()
    assert murmur2(key) == golden["murmur2"] & 0xFFFFFFFF
    for count, partition in golden["partitions"].items():
        assert partition_of(key, int(count)) == partition
        assert shard_of(golden["key"], int(count)) == partition


@pytest.fixture
def topic(settings: Settings) -> Iterator[str]:
    """A topic of its own, gone afterwards."""
    name = f"test.partitions.{os.getpid()}"
    admin = admin_client(settings)
    for future in admin.create_topics([NewTopic(name, num_partitions=PARTITIONS)]).values():
        future.result(timeout=30)
    yield name
    for future in admin.delete_topics([name]).values():
        future.result(timeout=30)


def test_our_producers_put_keys_where_a_java_producer_would(settings: Settings, topic: str) -> None:
    producer = Producer(config.producer(settings.kafka, "test"))
    partitions: dict[bytes, int | None] = {}

    def delivered(error: object, message: Message) -> None:
        assert error is None
        key = message.key()
        partitions[key if isinstance(key, bytes) else b""] = message.partition()

    for golden in GOLDEN:
        producer.produce(topic, b"{}", key=golden["key"].encode(), on_delivery=delivered)
    assert producer.flush(30) == 0
    assert partitions == {golden["key"].encode(): golden["partitions"][str(PARTITIONS)] for golden in GOLDEN}


def test_topics_of_one_shard_have_one_partition_count() -> None:
    assert {topic.name for topic in CONTRACT if topic.partitioning == "shards"} == {
        "margin.events.v1",
        "margin.accounts.v1",
        "margin.journal.v1",
    }
