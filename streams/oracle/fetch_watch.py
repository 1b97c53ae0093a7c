"""Watches that prices are fetched: a rebalance of the oracle's group that never ends would let the marks go stale.

While Faust rebalances it fetches no prices, and nothing of it says for how long. Whoever runs this looks with every
heartbeat: the age is in ``/readyz`` and the metrics, it is logged when it is too high, and beyond the watchdog's limit
the process ends, so that the orchestrator starts another one.
"""

import logging
from collections.abc import Callable

from prometheus_client import Gauge

from streams import probes
from streams.logs import event
from streams.watchdog import Watchdog

log = logging.getLogger(__name__)

FETCH_AGE = Gauge("margin_oracle_fetch_age_seconds", "Seconds since prices were fetched, or looked for and not there")

LOOP = "price fetcher"


class FetchWatch:
    """Looks at when prices were fetched last.

    Args:
        fetched_at: when that was, in seconds as ``monotonic`` gives them; None before the first time.
        rebalancing: whether the group is in a rebalance.
        watchdog: is told of every progress, and ends the process without.
        told_s: beyond so many seconds it is logged.
    """

    def __init__(
        self,
        fetched_at: Callable[[], float | None],
        rebalancing: Callable[[], bool],
        watchdog: Watchdog,
        *,
        monotonic: Callable[[], float],
        told_s: float,
    ) -> None:
        self._fetched_at = fetched_at
        self._rebalancing = rebalancing
        self._watchdog = watchdog
        self._monotonic = monotonic
        self._told_s = told_s
        self._began = monotonic()
        self._seen: float | None = None
        self._told = False
        watchdog.beat(LOOP, "joining the group")

    @property
    def age_s(self) -> float:
        """Seconds since prices were fetched last, or since it was begun to."""
        at = self._fetched_at()
        return self._monotonic() - (self._began if at is None else at)

    def look(self) -> None:
        """See how long ago it was; to be called with every heartbeat."""
        at, age_s = self._fetched_at(), self.age_s
        FETCH_AGE.set(age_s)
        if at is not None and at != self._seen:
            self._seen = at
            self._watchdog.beat(LOOP, "fetching prices, which a rebalance of the group keeps it from")
        late = age_s > self._told_s
        if late != self._told:
            self._told = late
            level, name = (logging.ERROR, "prices_not_fetched") if late else (logging.INFO, "prices_fetched_again")
            limit_s = self._watchdog.limit_s
            event(log, level, name, seconds=round(age_s, 1), rebalancing=self._rebalancing(), ends_after_s=limit_s)

    def condition(self, limit_ms: int) -> probes.Condition:
        """What ``/readyz`` says of it; from any thread."""
        return probes.Condition("prices_fetched_age_ms", round(1000 * self.age_s), limit_ms)

    def end(self) -> None:
        """Nothing is to be fetched any more."""
        self._watchdog.forget(LOOP)
