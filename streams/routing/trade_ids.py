"""The memory of trade ids: which trades of a partition have been routed.

Pure: what is remembered goes to Kafka with the transaction that routes the trades, and comes back from there
(:mod:`streams.routing.ownership`), so a repeat is known over any restart.
"""

from dataclasses import dataclass, field

REPEATED = -1


@dataclass(slots=True)
class TradeIds:
    """The last trade id of every symbol of one partition of ``trades.v1``."""

    last: dict[str, int] = field(default_factory=dict)

    def accept(self, symbol: str, trade_id: int) -> int:
        """How many ids are missing before ``trade_id`` (0: it is the next one), or ``REPEATED`` if it is not newer.

        The first trade of a symbol has nothing before it to miss.
        """
        last = self.last.get(symbol)
        if last is None:
            self.last[symbol] = trade_id
            return 0
        if trade_id <= last:
            return REPEATED
        self.last[symbol] = trade_id
        return trade_id - last - 1
