"""What became of prices, for whoever runs the oracle: every price is counted, every source is named once a reason."""

import logging
from collections import defaultdict
from collections.abc import Callable

from prometheus_client import Counter

from schemas.messages import OraclePrice
from schemas.topics import PRICES
from streams.logs import event
from streams.oracle.marks import Outcome

log = logging.getLogger(__name__)

DEAD_LETTERS = Counter("margin_oracle_dead_letters", "Price records that could not be read")
PRICES_SEEN = Counter("margin_oracle_prices", "Source prices by what became of them", ["outcome"])

LETTERS_LOGGED_MAX = 20
"""So many dead letters are logged one by one in ``LETTERS_PERIOD_S``, the others are counted."""
LETTERS_PERIOD_S = 60.0

NAMES_MAX = 1_000
"""So many names are logged for each reason: anybody may send any name."""


class OutcomeLog:
    """Counts prices by outcome and logs each source, or unknown symbol, once for each that is not ``accepted``."""

    def __init__(self) -> None:
        self._told: defaultdict[Outcome, set[str]] = defaultdict(set)
        self._accepted = PRICES_SEEN.labels("accepted")

    def accepted(self, number: int) -> None:
        """Count so many prices that were ``accepted``, of which nothing is to be said."""
        self._accepted.inc(number)

    def tell(self, price: OraclePrice, outcome: Outcome, clock: int) -> None:
        """Count what became of ``price`` at ``clock`` (microseconds), and log it if that is news."""
        PRICES_SEEN.labels(outcome).inc()
        if outcome == "accepted":
            return
        name, told = price.symbol if outcome == "unknown_symbol" else price.source, self._told[outcome]
        if name in told or len(told) >= NAMES_MAX:
            return
        told.add(name)
        if outcome == "unknown_symbol":
            event(log, logging.WARNING, "price_of_unknown_symbol", symbol=price.symbol, source=price.source)
            return
        event(
            log,
            logging.INFO if outcome == "repeated" else logging.WARNING,  # after a restart prices are read again
            "source_counts_anew" if outcome == "restarted" else "price_does_not_count",
            reason=outcome,
            source=price.source,
            symbol=price.symbol,
            sequence=price.sequence,
            age_ms=(clock - price.publish_time) // 1000,
        )


class LetterLog:
    """Counts dead letters and logs them: the first of each period, and how many more there were when it is over.

    ``monotonic`` gives seconds since some moment. A sender of nonsense cannot fill the log.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._began = -LETTERS_PERIOD_S
        self._logged = 0
        self._more = 0
        self._last = ""

    def tell(self, partition: int, offset: int, reason: str) -> None:
        """A record of prices goes to the dead letters for ``reason``."""
        DEAD_LETTERS.inc()
        if self._logged >= LETTERS_LOGGED_MAX:
            self.sum_up()
        if self._logged >= LETTERS_LOGGED_MAX:
            self._more += 1
            self._last = f"{PRICES}[{partition}] offset {offset}: {reason}"
            return
        if not self._logged:
            self._began = self._monotonic()
        self._logged += 1
        event(log, logging.WARNING, "dead_letter", topic=PRICES, partition=partition, offset=offset, reason=reason)

    def sum_up(self) -> None:
        """Say how many were not logged one by one, once their period is over; to be called often."""
        if not self._logged or self._monotonic() - self._began < LETTERS_PERIOD_S:
            return
        if self._more:
            event(log, logging.WARNING, "dead_letters_more", topic=PRICES, count=self._more, last=self._last)
        self._logged = self._more = 0
