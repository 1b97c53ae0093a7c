"""What the tests share: one real local stack a run, with the contract's topics."""

import os
from collections.abc import Iterator

import pytest

from infra.local.stack import LocalStack
from streams.broker.admin import ensure_topics
from streams.settings import Settings, load

SHARDS = 4

for _name in [name for name in os.environ if name.startswith("MARGIN_")]:
    if _name not in ("MARGIN_KAFKA__BOOTSTRAP_SERVERS", "MARGIN_REDIS__URL"):
        del os.environ[_name]


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalStack]:
    """A real Kafka and a real Valkey, or those that the environment names."""
    with LocalStack.start() as started:
        yield started


@pytest.fixture(scope="session")
def settings(stack: LocalStack) -> Settings:
    """Settings that point at the stack; every topic of the contract exists."""
    found = load(
        {},
        {
            "kafka.bootstrap_servers": stack.bootstrap_servers,
            "redis.url": stack.redis_url,
            "topics.shards": SHARDS,
            "topics.partitions": 3,
        },
    )
    report = ensure_topics(found)
    assert not report.wrong, report.wrong
    return found
