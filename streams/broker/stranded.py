"""Whether a client of librdkafka still tries to reach a broker.

It may stop for ever, without an error, after its broker was away for a while; seen with librdkafka 2.16.0 in two
forms. It drops the brokers that an answer about the cluster does not name, and one whose controller had fenced it
names none (told of 2.13.0 in confluentinc/librdkafka 5301): then it knows nobody to ask and does not go back to the
addresses it was given. Or it knows the broker and does not connect. Only a new client helps.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from streams.runtime import SYSTEM, Runtime

STRANDED_S = 5.0
"""Seconds without an attempt after which none will come: the longest pause between two is one second."""

STATISTICS_MS = 1_000
_COUNTED_S_MAX = 2.0
_LOGICAL = "logical"
"""What librdkafka's statistics call a broker that stands for a role, a group's coordinator, and has no address."""


class BrokerStatistics(msgspec.Struct):
    """What librdkafka's statistics say of one broker."""

    nodeid: int = -1
    state: str = ""
    source: str = ""

    @property
    def is_tried(self) -> bool:
        """Whether it is connected, or will be as soon as it answers."""
        return self.state == "UP" if self.source == _LOGICAL else self.state != "INIT"


class _StrandedStatistics(msgspec.Struct):
    brokers: dict[str, BrokerStatistics] | None = None


_DECODE = msgspec.json.Decoder(_StrandedStatistics).decode


class TimeInState:
    """For how long the statistics have said one thing, as far as the client was polled meanwhile.

    They come while it is polled. Who does not poll learns nothing, and keeps librdkafka from doing what it must: so a
    pause counts for two seconds at most, and documents that waited for the end of one count for nothing.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._noted_at: float | None = None
        self.seconds = 0.0

    def note(self, *, is_so: bool) -> None:
        """Note what a document says."""
        now = self._runtime.monotonic()
        if is_so and self._noted_at is not None:
            self.seconds += min(now - self._noted_at, _COUNTED_S_MAX)
        elif not is_so:
            self.seconds = 0.0
        self._noted_at = now if is_so else None


class StrandedWatch:
    """Watches one client that always has something to ask, by its statistics."""

    def __init__(self, runtime: Runtime = SYSTEM) -> None:
        self._idle = TimeInState(runtime)

    def properties(self) -> dict[str, Any]:
        """What a client must be configured with to feed this."""
        return {"statistics.interval.ms": STATISTICS_MS, "stats_cb": self.note}

    def note(self, statistics: str) -> None:
        """Note one of librdkafka's statistics documents; a client does it while it polls."""
        self.note_brokers(_DECODE(statistics).brokers)

    def note_brokers(self, brokers: Mapping[str, BrokerStatistics] | None) -> None:
        """Note the brokers of such a document; None if it does not speak of any."""
        self._idle.note(is_so=brokers is not None and not any(broker.is_tried for broker in brokers.values()))

    @property
    def is_stranded(self) -> bool:
        """Whether the client has tried no broker for so long that it never will."""
        return self._idle.seconds > STRANDED_S
