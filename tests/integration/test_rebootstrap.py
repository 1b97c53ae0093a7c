"""The oracle's client of Kafka finds the brokers again when none answers of those that it knows."""

import asyncio

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.structs import BrokerMetadata

from streams.oracle.rebootstrap import find_brokers_again
from streams.settings import Settings

NOBODYS_PORT = 1
"""Below those that are given out: nobody listens there."""


@pytest.mark.parametrize("known", [1, 3])
def test_a_client_that_knows_dead_brokers_only_finds_those_that_live(settings: Settings, known: int) -> None:
    find_brokers_again()

    async def main() -> None:
        client = AIOKafkaClient(bootstrap_servers=settings.kafka.bootstrap_servers, request_timeout_ms=5_000)
        try:
            await client.bootstrap()
            alive = {broker.port for broker in client.cluster.brokers()}
            dead = {node: BrokerMetadata(node, "127.0.0.1", NOBODYS_PORT, None) for node in range(101, 101 + known)}
            client.cluster._brokers = dead
            assert await asyncio.wait_for(client.force_metadata_update(), 60)
            assert {broker.port for broker in client.cluster.brokers()} == alive
        finally:
            await client.close()

    asyncio.run(main())


def test_one_that_is_closed_asks_nobody(settings: Settings) -> None:
    find_brokers_again()

    async def main() -> None:
        client = AIOKafkaClient(bootstrap_servers=settings.kafka.bootstrap_servers)
        await client.bootstrap()
        await client.close()
        client.cluster._brokers = {101: BrokerMetadata(101, "127.0.0.1", NOBODYS_PORT, None)}
        assert not await client._metadata_update(client.cluster, [])
        assert client._sync_task is None

    asyncio.run(main())
