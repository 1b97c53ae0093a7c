"""A Valkey of their own for the tables' tests, which kill and flush it, and changelogs on the run's Kafka."""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping

import pytest
import redis
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient, NewTopic

from infra.local.valkey import ValkeyServer
from schemas.messages import ShardLayout
from streams.broker.kafka import Kafka
from streams.broker.producer import TransactionalProducer
from streams.settings import RedisSettings, Settings, load
from streams.tables.tables import Tables
from streams.tables.write_behind import TableWriter

DEADLINE_S = 30.0
_numbers = itertools.count()

Eventually = Callable[[Callable[[], object], str], None]


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Waits until a condition holds; fails with what was waited for."""

    def wait(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {DEADLINE_S:g} s: {what}")
            time.sleep(0.01)

    return wait


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_settings(valkey: ValkeyServer) -> RedisSettings:
    return RedisSettings(url=valkey.url)


@pytest.fixture
def client(valkey: ValkeyServer) -> Iterator[redis.Redis]:
    """A plain client, as any other service has; the server is empty at first."""
    with redis.Redis.from_url(valkey.url) as connected:
        connected.flushall()
        yield connected


class Changelog:
    """A compacted topic of two partitions, and the engine's part: a transaction, then the rows to the writer."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self.topic = topic
        self._producer = TransactionalProducer(settings.kafka, f"tables-test-{topic}")
        self._producer.init()

    def commit(self, shard: int, rows: Mapping[str, bytes | None]) -> int:
        """The stamp after ``rows``."""
        stamp = self._produce(shard, rows)
        self._producer.commit()
        return stamp[-1] + 1

    def abort(self, shard: int, rows: Mapping[str, bytes | None]) -> None:
        self._produce(shard, rows)
        self._producer.abort()

    def close(self) -> None:
        self._producer.close()

    def _produce(self, shard: int, rows: Mapping[str, bytes | None]) -> list[int]:
        offsets: list[int] = []

        def delivered(error: object, message: Message) -> None:
            assert error is None
            offsets.append(message.offset() or 0)

        self._producer.begin()
        for account, row in rows.items():
            self._producer.produce(self.topic, row, key=account, partition=shard, on_delivery=delivered)
        self._producer.flush()
        return offsets


@pytest.fixture
def new_changelog(settings: Settings) -> Iterator[Callable[..., Changelog]]:
    """Creates changelogs; given a name, one of that name."""
    made = []

    def create(name: str = "") -> Changelog:
        name = name or f"tables-test-{os.getpid()}-{next(_numbers)}"
        admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
        new = NewTopic(name, num_partitions=2, config={"cleanup.policy": "compact"})
        admin.create_topics([new])[name].result(timeout=30)
        made.append(Changelog(settings, name))
        return made[-1]

    yield create
    for changelog in made:
        changelog.close()


@pytest.fixture
def changelog(new_changelog: Callable[..., Changelog]) -> Changelog:
    return new_changelog()


@pytest.fixture
def new_writer(settings: Settings, valkey: ValkeyServer) -> Iterator[Callable[..., TableWriter]]:
    """Starts table writers of a changelog, with settings of their own."""
    started = []

    def start(changelog: Changelog, **overrides: object) -> TableWriter:
        own = load(
            {},
            {"kafka.bootstrap_servers": settings.kafka.bootstrap_servers, "redis.url": valkey.url}
            | {name.replace("__", "."): value for name, value in overrides.items()},
        )
        started.append(TableWriter(Tables(Kafka(own), "cluster", ShardLayout(shards=2, time=0), topic=changelog.topic)))
        started[-1].start()
        return started[-1]

    yield start
    for writer in started:
        writer.check()
        writer.close(deadline_s=1)
