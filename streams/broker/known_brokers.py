"""Whether a client of librdkafka still knows a broker.

It drops the brokers that an answer about the cluster does not name. An answer may name none: its broker was fenced by
the controller (paused, or starting). Then the client has nobody to ask, does not go back to the addresses it was
given, and waits for ever, without an error. Seen with librdkafka 2.16.0, and told of 2.13.0 in
confluentinc/librdkafka 5301. Only a new client helps.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from streams.runtime import SYSTEM, Runtime

STRANDED_S = 5.0
"""Seconds without any broker after which none will come: going back to the given addresses takes one at most."""

_STATISTICS_MS = 1_000
_LOGICAL = "logical"
"""What librdkafka's statistics call a broker that stands for a role, a group's coordinator, and has no address."""


class BrokerStatistics(msgspec.Struct):
    """What librdkafka's statistics say of one broker."""

    nodeid: int = -1
    state: str = ""
    source: str = ""


class _KnownStatistics(msgspec.Struct):
    brokers: dict[str, BrokerStatistics] | None = None


_DECODE = msgspec.json.Decoder(_KnownStatistics).decode


class KnownBrokers:
    """Which brokers a client knows, as its statistics have it."""

    def __init__(self, runtime: Runtime = SYSTEM) -> None:
        self._runtime = runtime
        self._none_since: float | None = None

    def properties(self) -> dict[str, Any]:
        """What a client must be configured with to feed this."""
        return {"statistics.interval.ms": _STATISTICS_MS, "stats_cb": self.note}

    def note(self, statistics: str) -> None:
        """Note one of librdkafka's statistics documents; a client does it while it polls."""
        self.note_brokers(_DECODE(statistics).brokers)

    def note_brokers(self, brokers: Mapping[str, BrokerStatistics] | None) -> None:
        """Note the brokers of such a document; None if it does not speak of any."""
        if brokers is None or any(broker.source != _LOGICAL for broker in brokers.values()):
            self._none_since = None
        elif self._none_since is None:
            self._none_since = self._runtime.monotonic()

    @property
    def are_lost(self) -> bool:
        """Whether the client has known no broker for so long that it never will."""
        return self._none_since is not None and self._runtime.monotonic() - self._none_since > STRANDED_S
