"""An oracle on a machine whose clock is 90 s ahead, on a stack of its own: it tells that, and whom it does not hear."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from infra.local.ports import free_port
from infra.local.stack import LocalStack
from schemas import topics
from streams.broker import config
from streams.broker.admin import admin_client, ensure_topics
from streams.settings import Settings, load
from tests.integration.conftest import Topic, eventually, now_us

AHEAD = """
import time
machine = time.time_ns
time.time_ns = lambda: machine() + 90 * 10**9
from streams.cli import main
main()
"""


@pytest.fixture(scope="module")
def settings_of_its_own() -> Iterator[Settings]:
    with LocalStack.start() as stack:
        servers = {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url}
        settings = load({}, servers | {"topics.shards": 1, "topics.partitions": 1})
        assert not ensure_topics(settings).wrong
        entry = ConfigEntry("message.timestamp.type", "LogAppendTime", incremental_operation=AlterConfigOpType.SET)
        marks = ConfigResource(ResourceType.TOPIC, topics.MARKS, incremental_configs=[entry])
        admin = admin_client(settings)  # kept: its requests end with it
        for done in admin.incremental_alter_configs([marks]).values():
            done.result(timeout=10)
        yield settings


def test_an_oracle_whose_clock_is_ahead_says_so(settings_of_its_own: Settings, tmp_path: Path) -> None:
    settings, port, log = settings_of_its_own, free_port(), tmp_path / "oracle.log"
    marks = Topic(settings, topics.MARKS)
    producer = Producer(config.producer(settings.kafka, "test"))
    rules = {"type": "oracle", "symbol": "X", "sources": {"a": "1"}, "version": 1}
    producer.produce(topics.PARAMETERS, orjson.dumps(rules), key=b"oracle:X")
    assert producer.flush(10) == 0
    environment = {
        **os.environ,
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "MARGIN_REDIS__URL": settings.redis.url,
        "MARGIN_SERVICE__METRICS_PORT": str(port),
    }
    sequence = 0

    def told() -> bool:
        nonlocal sequence
        assert oracle.poll() is None, log.read_text()
        sequence += 1
        price = {"source": "a", "symbol": "X", "price": "1", "sequence": sequence, "publish_time": now_us()}
        producer.produce(topics.PRICES, orjson.dumps(price), key=b"X")
        producer.flush(10)
        return any(frame["uncounted"] == {"X": {"a": "late"}} for frame in marks.values(full=True))

    with log.open("wb") as file:
        oracle = subprocess.Popen([sys.executable, "-c", AHEAD, "oracle"], env=environment, stdout=file, stderr=file)
    try:
        eventually(told, "a full frame that says that the source's prices come late")
        offset: dict[str, Any] = eventually(lambda: _condition(port, "clock_offset_ms"), "the offset in /readyz")
    finally:
        oracle.kill()
        oracle.wait()
        marks.close()
    assert not offset["holds"]
    assert 80_000 <= offset["value"] <= 90_000
    events = [orjson.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [event["source"] for event in events if event["event"] == "price_does_not_count"] == ["a"]
    assert [event["limit_ms"] for event in events if event["event"] == "clock_is_off"] == [2_000]


def _condition(port: int, name: str) -> Any:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            body = error.read()
    return next((condition for condition in orjson.loads(body)["conditions"] if condition["name"] == name), None)
