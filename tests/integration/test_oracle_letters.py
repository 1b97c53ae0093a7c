"""A broker that is away for longer than a transaction may last costs no dead letter of the oracle's, and no oracle."""

import asyncio
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import NewTopic

from infra.local.kafka import KafkaServer
from infra.local.stack import LocalStack
from schemas.topics import PRICES, dead_letter_topic
from streams.broker.admin import admin_client
from streams.broker.dead_letters import dead_letter
from streams.broker.kafka import Kafka
from streams.broker.reader import LogReader
from streams.errors import NotDelivered
from streams.oracle.letters import LetterWriter
from streams.settings import Settings, load

LETTERS = dead_letter_topic(PRICES)
TRANSACTION_S = 0.8


@pytest.fixture
def stack() -> Iterator[LocalStack]:
    """A broker; nothing here needs Redis."""
    with LocalStack.start(redis_url="redis://nobody.invalid") as stack:
        yield stack


@pytest.fixture
def kafka(stack: LocalStack) -> KafkaServer:
    assert stack.kafka is not None
    return stack.kafka


@pytest.fixture
def settings(stack: LocalStack) -> Settings:
    settings = load(stack.environment, {"kafka.transaction_timeout_ms": round(1000 * TRANSACTION_S)})
    admin = admin_client(settings)
    admin.create_topics([NewTopic(LETTERS, num_partitions=1)])[LETTERS].result(timeout=30)
    return settings


def test_letters_wait_for_a_broker_that_is_away(kafka: KafkaServer, settings: Settings) -> None:
    clients = Kafka(settings)
    letters = LetterWriter(clients.idempotent_producer("letters", timeout_s=settings.outside_group_s_max))
    others = clients.idempotent_producer("others")
    letter = dead_letter(PRICES, 0, 7, 1, b"X", b"no price", "DecodeError", "it is no price")

    async def main() -> None:
        await letters.write([letter])  # the client knows its broker
        kafka.pause()
        others.produce(LETTERS, b"given up")
        writing = asyncio.create_task(letters.write([letter]))
        with pytest.raises(NotDelivered):
            await asyncio.to_thread(others.flush)
        await asyncio.sleep(TRANSACTION_S)
        assert not writing.done()
        kafka.resume()
        await asyncio.wait_for(writing, 60)

    asyncio.run(main())
    letters.close()
    reader = LogReader(settings.kafka, "letters-reader")
    kept = [record for record in reader.read_range(LETTERS, 0, 0) if record.value() == b"no price"]
    reader.close()
    assert len(kept) == 2


def test_whoever_writes_letters_can_be_ended_while_a_broker_is_away(kafka: KafkaServer, settings: Settings) -> None:
    writer = LetterWriter(Kafka(settings).idempotent_producer("letters", timeout_s=settings.outside_group_s_max))

    async def main() -> None:
        kafka.pause()
        writing = asyncio.create_task(writer.write([dead_letter(PRICES, 0, 7, 1, None, b"", "DecodeError", "no")]))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing

    asyncio.run(main())  # would wait for its threads
    kafka.resume()
    writer.close()
