"""A consumer that its group has forgotten while the broker answers does not poll in vain for ever."""

import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, NewTopic

from infra.local.kafka import KafkaServer
from infra.local.ports import free_port
from streams.broker import config
from streams.broker.group import GroupPlace
from streams.errors import BrokerError
from streams.settings import KafkaSettings
from tests.faults.proxy import JOIN_GROUP, Proxy, Rule

DEADLINE_S = 60.0


def poll_until(consumer: Consumer, group: GroupPlace, deadline: float) -> None:
    while time.monotonic() < deadline:
        consumer.poll(0.1)
        group.require_member()


def test_a_consumer_whose_join_is_never_answered_ends_and_says_why(tmp_path: Path) -> None:
    proxy_port = free_port()
    with KafkaServer(tmp_path, proxy_port=proxy_port) as kafka, Proxy(proxy_port, kafka.proxied_port) as proxy:
        settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{proxy_port}", session_timeout_ms=6_000)
        admin = AdminClient(config.common(settings, "admin"))
        admin.create_topics([NewTopic("held", 1)])["held"].result(timeout=30)
        proxy.add(Rule(JOIN_GROUP, "response", delay_s=4 * DEADLINE_S, client="held"))
        group = GroupPlace(outside_s_max=3.0)
        consumer = Consumer(config.consumer(settings, "held", "held") | group.properties())
        consumer.subscribe(["held"])
        try:
            with pytest.raises(BrokerError, match=r"outside its group .* wait-join"):
                poll_until(consumer, group, time.monotonic() + DEADLINE_S)
        finally:
            proxy.clear()
            consumer.close()
