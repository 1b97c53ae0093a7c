"""A running pipeline: router, oracle and engine as the processes a user starts, on the run's one real stack."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from infra.local.stack import LocalStack
from streams.broker import config
from streams.broker.admin import ensure_topics
from streams.broker.reader import LogReader
from streams.settings import Settings, load

DEADLINE_S = 60.0
OWN_SHARDS = 2


def now_us() -> int:
    return time.time_ns() // 1000


def eventually(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of ``condition``; fails with ``what`` after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.02)


class Topic:
    """Everything committed in a topic since the reader was made, as (key, value bytes, headers)."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._consumer = Consumer(config.reader(settings.kafka, "test") | {"enable.partition.eof": False})
        with LogReader(settings.kafka, "test") as log:
            ends = [log.watermarks(topic, partition)[1] for partition in range(log.partitions(topic))]
        self._consumer.assign([TopicPartition(topic, partition, end) for partition, end in enumerate(ends)])
        self.records: list[tuple[bytes | None, bytes | None, dict[str, bytes]]] = []

    def read(self) -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]:
        for message in self._consumer.consume(1000, timeout=0.05):
            if message.error() is None:
                headers: Any = message.headers() or ()
                self.records.append((message.key(), message.value(), dict(headers)))
        return self.records

    def values(self, **fields: Any) -> list[dict[str, Any]]:
        """The JSON values whose fields are as given."""
        decoded = [orjson.loads(value) for _, value, _ in self.read() if value is not None]
        return [value for value in decoded if all(value.get(name) == wanted for name, wanted in fields.items())]

    def end_of(self, topic: str, partition: int = 0) -> int:
        """The offset of the next record of a partition."""
        end: int = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1]
        return end

    def all_topics(self) -> list[str]:
        return list(self._consumer.list_topics(timeout=10).topics)

    def close(self) -> None:
        self._consumer.close()


class Role:
    """One role as a process."""

    def __init__(self, name: str, settings: Settings, log: Path, **environment: str) -> None:
        self.name, self._log = name, log
        self._environment = {
            **os.environ,
            "MARGIN_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
            "MARGIN_REDIS__URL": settings.redis.url,
            "MARGIN_KAFKA__SESSION_TIMEOUT_MS": "6000",
            **environment,
        }
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "streams.cli", self.name], env=self._environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start()

    def stop(self, deadline_s: float = 30.0) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=deadline_s)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def assert_running(self) -> None:
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.log()[-4000:]}"


class Pipeline:
    """The three roles, a producer for inputs, and readers of outputs. ``environment`` is for each role."""

    def __init__(self, settings: Settings, folder: Path, **environment: str) -> None:
        self.settings = settings
        self.router, self.oracle, self.engine = (
            Role(name, settings, folder / f"{name}.log", **environment) for name in ("router", "oracle", "engine")
        )
        self._producer = Producer({**config.producer(settings.kafka, "test")})
        self._readers: list[Topic] = []

    def send(self, topic: str, value: Any, key: str | bytes | None = None, *, partition: int = -1) -> None:
        """To the partition of ``key`` unless one is given."""
        data = value if isinstance(value, bytes) or value is None else orjson.dumps(value)
        self._producer.produce(topic, data, key=key, partition=partition)

    def flush(self) -> None:
        assert self._producer.flush(10) == 0

    def reader(self, topic: str) -> Topic:
        reader = Topic(self.settings, topic)
        self._readers.append(reader)
        return reader

    def assert_running(self) -> None:
        for role in (self.router, self.oracle, self.engine):
            role.assert_running()

    def close(self) -> None:
        for role in (self.router, self.oracle, self.engine):
            if role.process.poll() is None:
                role.kill()
        for reader in self._readers:
            reader.close()


@pytest.fixture(scope="module")
def pipeline(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    running = Pipeline(settings, tmp_path_factory.mktemp("roles"))
    yield running
    running.close()


@contextmanager
def stack_of_its_own() -> Iterator[Settings]:
    """A stack that nothing else writes to, with the topics of ``OWN_SHARDS`` shards."""
    with LocalStack.start() as stack:
        settings = load(
            {},
            {
                "kafka.bootstrap_servers": stack.bootstrap_servers,
                "redis.url": stack.redis_url,
                "topics.shards": OWN_SHARDS,
                "topics.partitions": 3,
            },
        )
        assert not ensure_topics(settings).wrong
        yield settings


@pytest.fixture(scope="module")
def own_settings() -> Iterator[Settings]:
    """A stack of a module's own: an audit looks at everything there is."""
    with stack_of_its_own() as settings:
        yield settings
