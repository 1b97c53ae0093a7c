"""Partitions added to the exchange's topics while a router runs, on a stack of their own: it routes what is in them."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions

from schemas import topics
from streams.broker import config
from streams.broker.admin import admin_client
from streams.settings import Settings
from tests.integration.conftest import Role, Topic, eventually, now_us

pytestmark = pytest.mark.long


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


def test_a_router_routes_what_comes_in_partitions_that_were_added(own_settings: Settings, tmp_path: Path) -> None:
    settings, before = own_settings, own_settings.topics.partitions
    events = Topic(settings, topics.EVENTS)

    def routed() -> set[str]:
        router.assert_running()
        return {symbol for frame in events.values() for symbol in frame["fills"]["symbol"]}

    def send(number: int, partition: int) -> None:
        producer = Producer(config.producer(settings.kafka, "test"))  # a new one knows of every partition
        producer.produce(topics.TRADES, trade(number), key=f"S{number}", partition=partition)
        assert producer.flush(10) == 0

    router = Role("router", settings, tmp_path / "router.log")
    try:
        send(1, 0)
        eventually(lambda: routed() == {"S1"}, "the trade of the first partition is routed")
        admin = admin_client(settings)  # kept: its requests end with it
        counts = [NewPartitions(topic, before + 2) for topic in (topics.ROUTER, topics.TRADES)]
        for done in admin.create_partitions(counts).values():
            done.result(timeout=10)
        for number in (2, 3):
            send(number, before + number - 2)
        send(4, 0)
        eventually(lambda: routed() == {"S1", "S2", "S3", "S4"}, "what came in the new partitions is routed")
        frames = events.values()
        assert sum(len(frame["fills"]["symbol"]) for frame in frames) == 8, "each trade once"
        sources = {(source["partition"], source["first"]) for frame in frames for source in frame["sources"]}
        assert {(before, 0), (before + 1, 0)} <= sources, "from their first records on"
    finally:
        router.kill()
        events.close()
