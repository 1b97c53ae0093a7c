"""Partitions added to the exchange's topics while a router runs, on a stack of their own: it routes what is in them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions

from infra.local.stack import LocalStack
from schemas import topics
from streams.broker import config
from streams.broker.admin import admin_client, ensure_topics
from streams.settings import Settings, load
from tests.integration.conftest import Topic, eventually, now_us

pytestmark = pytest.mark.long


@pytest.fixture
def settings_of_its_own() -> Iterator[Settings]:
    with LocalStack.start() as stack:
        servers = {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url}
        settings = load({}, servers | {"topics.shards": 1, "topics.partitions": 1})
        assert not ensure_topics(settings).wrong
        yield settings


def trade(number: int) -> bytes:
    sides = {name: {"account": name, "order_id": f"{name}-{number}", "fee": "0"} for name in ("maker", "taker")}
    record: dict[str, Any] = {
        "trade_id": number,
        "symbol": f"S{number}",
        "price": "1",
        "quantity": "1",
        "aggressor_side": "buy",
        "event_time": now_us(),
    }
    return orjson.dumps(record | sides)


def test_a_router_routes_what_comes_in_partitions_that_were_added(
    settings_of_its_own: Settings, tmp_path: Path
) -> None:
    settings, log = settings_of_its_own, tmp_path / "router.log"
    events = Topic(settings, topics.EVENTS)
    environment = {
        **os.environ,
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "MARGIN_REDIS__URL": settings.redis.url,
        "MARGIN_TOPICS__SHARDS": "1",
    }

    def routed() -> set[str]:
        assert router.poll() is None, log.read_text()
        return {symbol for frame in events.values() for symbol in frame["fills"]["symbol"]}

    def send(number: int, partition: int) -> None:
        producer = Producer(config.producer(settings.kafka, "test"))  # a new one knows of every partition
        producer.produce(topics.TRADES, trade(number), key=f"S{number}", partition=partition)
        assert producer.flush(10) == 0

    with log.open("wb") as file:
        router = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "router"], env=environment, stdout=file, stderr=file
        )
    try:
        send(1, 0)
        eventually(lambda: routed() == {"S1"}, "the trade of the first partition is routed")
        admin = admin_client(settings)  # kept: its requests end with it
        added = admin.create_partitions([NewPartitions(topics.ROUTER, 3), NewPartitions(topics.TRADES, 3)])
        for done in added.values():
            done.result(timeout=10)
        for number in (2, 3):
            send(number, number - 1)
        send(4, 0)
        eventually(lambda: routed() == {"S1", "S2", "S3", "S4"}, "what came in the new partitions is routed")
        frames = events.values()
        assert sorted(symbol for frame in frames for symbol in frame["fills"]["symbol"]) == sorted(
            ["S1", "S2", "S3", "S4"] * 2
        )
        sources = {(source["partition"], source["first"]) for frame in frames for source in frame["sources"]}
        assert {(1, 0), (2, 0)} <= sources, "from their first records on"
    finally:
        router.kill()
        router.wait()
        events.close()
