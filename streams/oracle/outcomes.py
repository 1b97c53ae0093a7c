"""What became of prices, for whoever runs the oracle: every price is counted, every source is named once a reason."""

import logging
from collections import defaultdict

from prometheus_client import Counter

from schemas.messages import OraclePrice
from streams.logs import event
from streams.oracle.marks import Outcome

log = logging.getLogger(__name__)

PRICES_SEEN = Counter("margin_oracle_prices", "Source prices by what became of them", ["outcome"])

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
