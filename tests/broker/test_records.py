"""A record stands before the client's message, and is sure of its place."""

from typing import cast

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, Message

from streams.broker.records import UNSTAMPED, Delivered, Record


def message(key: bytes | None = b"k", kind: int = TIMESTAMP_LOG_APPEND_TIME) -> Message:
    return Message(
        topic="t", partition=3, offset=7, key=key, value=b"v", headers=[("a", b"1"), ("b", None)], timestamp=(kind, 5)
    )


def test_what_the_client_delivers_is_handed_on() -> None:
    record = Record(message())
    assert (record.topic(), record.partition(), record.offset()) == ("t", 3, 7)
    assert (record.key(), record.value()) == (b"k", b"v")
    assert (record.header("a"), record.header("b"), record.header("c")) == ("1", "", "")


class OddHeaders:
    """A message with a header whose name is no text: it may be asked for them once."""

    def __init__(self, error: Exception) -> None:
        self._errors = [error]

    def headers(self) -> None:
        raise self._errors.pop()

    def offset(self) -> int:
        return 7


@pytest.mark.parametrize(
    "error", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text"), SystemError("a result with an exception set")]
)
def test_headers_that_the_client_cannot_give_are_none_and_not_asked_for_again(error: Exception) -> None:
    record = Record(cast(Delivered, OddHeaders(error)))
    assert record.headers() is None
    assert record.headers() is None
    assert record.header("a") == ""
    assert record.offset() == 7


@pytest.mark.parametrize(("key", "text", "shown"), [(b"k", "k", "k"), (None, None, ""), (b"\xff", None, "\ufffd")])
def test_a_key_is_text_or_none(key: bytes | None, text: str | None, shown: str) -> None:
    record = Record(message(key))
    assert (record.key_text, record.key_shown) == (text, shown)


def test_only_the_brokers_time_counts() -> None:
    assert Record(message()).appended_us == 5_000
    assert Record(message(kind=TIMESTAMP_CREATE_TIME)).appended_us == UNSTAMPED
