"""librdkafka takes what the settings say, in whatever proportion they are."""

import pytest
from confluent_kafka import Consumer, Producer

from streams.broker import config
from streams.errors import SettingsError
from streams.settings import KafkaSettings


@pytest.mark.parametrize(("session_ms", "transaction_ms"), [(10_000, 10_000), (45_000, 1_500), (1_000, 60_000)])
def test_a_broker_that_stands_still_is_left_after_half_a_session_or_a_transaction(
    session_ms: int, transaction_ms: int
) -> None:
    kafka = KafkaSettings(session_timeout_ms=session_ms, transaction_timeout_ms=transaction_ms)
    assert config.producer(kafka, "c", "t")["socket.timeout.ms"] == transaction_ms
    for properties in (config.producer(kafka, "c"), config.consumer(kafka, "c", "g"), config.reader(kafka, "c")):
        assert properties["socket.timeout.ms"] == max(config.SOCKET_MS_MIN, session_ms / 2)
        assert properties["api.version.request.timeout.ms"] == max(config.SOCKET_MS_MIN, session_ms // 8)
        assert properties["socket.connection.setup.timeout.ms"] == max(2 * config.SOCKET_MS_MIN, session_ms // 4)
    config.created(Producer, config.producer(kafka, "c", "t"))
    config.created(Producer, config.producer(kafka, "c"))
    config.created(Consumer, config.consumer(kafka, "c", "g")).close()
    config.created(Consumer, config.reader(kafka, "c")).close()


def test_what_is_given_stays_and_is_refused_if_it_contradicts() -> None:
    given = KafkaSettings(options="socket.timeout.ms=20000", transaction_timeout_ms=30_000)
    assert int(config.producer(given, "c", "t")["socket.timeout.ms"]) == 20_000
    config.created(Producer, config.producer(given, "c", "t"))
    contradiction = KafkaSettings(options="socket.timeout.ms=20000", transaction_timeout_ms=10_000)
    with pytest.raises(SettingsError, match=r"socket\.timeout\.ms"):
        config.created(Producer, config.producer(contradiction, "c", "t"))
