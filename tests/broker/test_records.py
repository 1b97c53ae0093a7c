"""A record stands before the client's message, and is sure of its place."""

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, Message

from streams.broker.records import UNSTAMPED, Record


def message(key: bytes | None = b"k", kind: int = TIMESTAMP_LOG_APPEND_TIME) -> Message:
    return Message(
        topic="t", partition=3, offset=7, key=key, value=b"v", headers=[("a", b"1"), ("b", None)], timestamp=(kind, 5)
    )


def test_what_the_client_delivers_is_handed_on() -> None:
    record = Record(message())
    assert (record.topic(), record.partition(), record.offset()) == ("t", 3, 7)
    assert (record.key(), record.value()) == (b"k", b"v")
    assert (record.header("a"), record.header("b"), record.header("c")) == ("1", "", "")


@pytest.mark.parametrize(("key", "text", "shown"), [(b"k", "k", "k"), (None, None, ""), (b"\xff", None, "\ufffd")])
def test_a_key_is_text_or_none(key: bytes | None, text: str | None, shown: str) -> None:
    record = Record(message(key))
    assert (record.key_text, record.key_shown) == (text, shown)


def test_only_the_brokers_time_counts() -> None:
    assert Record(message()).appended_us == 5_000
    assert Record(message(kind=TIMESTAMP_CREATE_TIME)).appended_us == UNSTAMPED
