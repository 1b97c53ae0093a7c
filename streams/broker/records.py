"""A record of a log, and the logs as whoever reads them sees them.

Every record that this room hands out is a :class:`Record`: the client's message with its place known for certain.
"""

from collections.abc import Callable, Iterator
from operator import methodcaller
from typing import Any, Protocol

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME

from schemas.headers import Received

UNSTAMPED = -1
"""Stands for the broker's time of a record that carries none: its topic lacks ``LogAppendTime``."""


class Delivered(Protocol):
    """What a Kafka client hands out: its message, of which nothing is certain."""

    def topic(self) -> str | None: ...
    def partition(self) -> int | None: ...
    def offset(self) -> int | None: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def timestamp(self) -> tuple[int, int]: ...
    def headers(self) -> Received: ...


_ask_for_headers: Callable[[Delivered], Received] = methodcaller("headers")
"""The interpreter calls methods of C without looking for an error beside a result; this looks."""


class _WithoutHeaders:
    """A message whose headers cannot be had."""

    __slots__ = ("_message",)

    def __init__(self, message: Delivered) -> None:
        self._message = message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)

    def headers(self) -> None:
        return None


class Record:
    """A record at its place in a log. The methods are those of the client's message, which it stands before."""

    __slots__ = ("_message",)

    def __init__(self, message: Delivered) -> None:
        self._message = message

    def topic(self) -> str:
        topic = self._message.topic()
        assert topic is not None
        return topic

    def partition(self) -> int:
        partition = self._message.partition()
        assert partition is not None
        return partition

    def offset(self) -> int:
        offset = self._message.offset()
        assert offset is not None
        return offset

    def key(self) -> bytes | None:
        return self._message.key()

    def value(self) -> bytes | None:
        return self._message.value()

    def timestamp(self) -> tuple[int, int]:
        """The kind of the timestamp, and milliseconds."""
        return self._message.timestamp()

    def leader_epoch(self) -> int | None:
        """The epoch of the leader who gave it; None where the client does not say."""
        said = getattr(self._message, "leader_epoch", None)
        epoch: int | None = said() if said is not None else None
        return epoch

    def headers(self) -> Received:
        """None also if the name of one is no text: the client can give none of them then.

        confluent-kafka returns a broken list beside the error that it sets, and the same list, without an error, when
        it is asked again: it is asked in a way that notices, and once.
        """
        try:
            return _ask_for_headers(self._message)
        except (UnicodeDecodeError, SystemError):
            self._message = _WithoutHeaders(self._message)
            return None

    def header(self, name: str) -> str:
        """A header's text, empty if there is none."""
        value = dict(self.headers() or ()).get(name) or b""
        return value if isinstance(value, str) else value.decode("utf-8", "replace")

    @property
    def key_text(self) -> str | None:
        """The key as text; None if there is none, or one that is no text (no record of ours has)."""
        try:
            return (self.key() or b"").decode() or None
        except UnicodeDecodeError:
            return None

    @property
    def key_shown(self) -> str:
        """The key as text for a person to read, whatever its bytes are."""
        return (self.key() or b"").decode("utf-8", "replace")

    @property
    def appended_us(self) -> int:
        """When the broker appended it in microseconds, or ``UNSTAMPED`` if the time it carries is the sender's."""
        kind, milliseconds = self.timestamp()
        return 1000 * milliseconds if kind == TIMESTAMP_LOG_APPEND_TIME else UNSTAMPED


class Log(Protocol):
    """The logs of one cluster, read by offset; :class:`streams.broker.reader.LogReader` is the one in Kafka."""

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset of a partition and the next to be written, open transactions included."""
        ...

    def partitions(self, topic: str) -> int:
        """The partition count of ``topic``."""
        ...

    def read_range(self, topic: str, partition: int, first: int, end: int | None = None) -> Iterator[Record]:
        """The committed records from offset ``first`` up to, not including, ``end`` (None: now's end)."""
        ...
