"""Leaving a group."""

from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException

from streams.broker.group import leave_group


class Fenced:
    """A static member whose place another one has taken."""

    closed = False

    def unsubscribe(self) -> None:
        raise KafkaException(KafkaError(KafkaError._FATAL, "Failed to remove subscription"))

    def close(self) -> None:
        self.closed = True


def test_a_member_that_was_fenced_lets_go_without_hiding_why_it_ends() -> None:
    consumer: Any = Fenced()
    leave_group(cast(Consumer, consumer), "static", 1.0)
    assert consumer.closed
