"""What cannot be read costs a router a bounded multiple of what can, and its log stays bounded."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer

from infra.local.stack import LocalStack
from schemas.topics import TRADES
from streams import logs
from streams.broker import config
from streams.broker.admin import ensure_topics
from streams.broker.kafka import Kafka
from streams.routing.router import Router
from streams.settings import Settings, load
from streams.watchdog import Watchdog
from tests.routing.conftest import Records

RECORDS = 10_000
COST_MAX = 15.0
"""About 10 was measured for a price that is none, beside good records of 18 us each. To be brought to 3."""
LOG_BYTES_MAX = 100_000
DEADLINE_S = 300.0


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    with LocalStack.start() as stack:
        given = {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url}
        loaded = load({}, given | {"topics.partitions": 1})
        assert not ensure_topics(loaded).wrong
        yield loaded


def publish(settings: Settings, values: list[bytes], symbol: str) -> None:
    producer = Producer(config.producer(settings.kafka, "test"))
    for value in values:
        producer.produce(TRADES, value, key=symbol, partition=0)
    assert producer.flush(60) == 0


def cpu_s(router: Router, settings: Settings, values: list[bytes], symbol: str) -> float:
    """Processor seconds of this process in which the router routes ``values``, publishing left out."""
    publish(settings, values, symbol)
    began, routed, deadline = time.process_time(), 0, time.monotonic() + DEADLINE_S
    while routed < len(values):
        before = {owned.topic: owned.next_offset for owned in router.owned()}
        router.cycle()
        after = {owned.topic: owned.next_offset for owned in router.owned()}
        routed += after.get(TRADES, 0) - before.get(TRADES, 0)
        assert time.monotonic() < deadline
    return time.process_time() - began


def test_poison_costs_little_more_and_writes_little_log(
    settings: Settings, records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    router = Router.build(Kafka(settings), threading.Event(), Watchdog())
    router.register()
    router.join()
    deadline = time.monotonic() + DEADLINE_S
    while not router.owned():
        router.cycle()
        assert time.monotonic() < deadline
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    trade_ids = iter(range(1, 100 * RECORDS))

    def trades(change: Callable[[dict[str, Any]], Any]) -> list[bytes]:
        return [orjson.dumps(change(records.trade(next(trade_ids)))) for _ in range(RECORDS)]

    try:
        logs.configure("INFO", "json", "test")
        cpu_s(router, settings, trades(lambda trade: trade), "BTC-PERP")  # everything is imported and warm
        good = cpu_s(router, settings, trades(lambda trade: trade), "BTC-PERP")
        costs = {
            "a price that is none": trades(lambda trade: trade | {"price": "x"}),
            "cut off": [value[:-30] for value in trades(lambda trade: trade)],
            "no JSON": [b"\xff\xfe" * 150] * RECORDS,
            "contradicting": trades(lambda trade: trade | {"trade_id": RECORDS + 1, "price": str(trade["trade_id"])}),
        }
        told = {}
        for name, values in costs.items():
            capsys.readouterr()
            cost = cpu_s(router, settings, values, "BTC-PERP") / good
            log = capsys.readouterr().err
            told[name] = (round(cost, 2), len(log))
        print(told)
        assert all(cost <= COST_MAX for cost, _ in told.values()), told
        assert all(written <= LOG_BYTES_MAX for _, written in told.values()), told
    finally:
        router.close()
        root.setLevel(before[0])
        root.handlers[:] = before[1]
