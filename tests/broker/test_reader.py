"""What of a consumer's errors passes by itself, and what ends a process."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError

from streams.broker.reader import poll_batch
from streams.errors import BrokerError


def polled(error: KafkaError) -> list[Any]:
    message = SimpleNamespace(error=lambda: error, topic=lambda: "t", partition=lambda: 0)
    return list(poll_batch(cast(Consumer, SimpleNamespace(poll=lambda _: message)), 0, 1))


def test_what_librdkafka_mends_by_itself_passes() -> None:
    assert polled(KafkaError(KafkaError._TRANSPORT)) == []


def test_a_consumer_that_has_ended_for_good_says_so_instead_of_being_polled_in_vain() -> None:
    """librdkafka says it once, without the flag."""
    with pytest.raises(BrokerError, match="ended for good: fenced"):
        polled(KafkaError(KafkaError._FATAL, "fenced"))


def test_what_will_not_pass_names_its_place() -> None:
    with pytest.raises(BrokerError, match=r"t\[0\]"):
        polled(KafkaError(KafkaError._UNKNOWN_PARTITION))
