"""Records sent each at its time, whether or not anybody keeps up: an open loop."""

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from confluent_kafka import Producer

from schemas.codec import encode
from schemas.messages import OraclePrice, Trade
from schemas.topics import PRICES, TRADES
from streams.bench.bed import Outgoing
from streams.bench.errors import BenchError
from streams.bench.market import PRICE, SOURCE

_FLUSH_S = 30.0
PRICES_PER_S = 20

Due = tuple[float, Producer, Outgoing]
"""The wall clock's time at which a record is to be sent, with what, and the record."""


def send_when_due(streams: Sequence[Iterable[Due]], sent: Callable[[str], object] = lambda _: None) -> float:
    """Send every record at its time, each stream in its own order; by how many seconds the latest was late.

    ``sent`` is told the topic of each. All of them are acknowledged then.

    Raises:
        BenchError: one was not.
    """
    latest, producers = 0.0, set()
    for due, producer, (topic, key, value, partition) in heapq.merge(*streams, key=lambda each: each[0]):
        if (early := due - time.time()) > 0:
            time.sleep(early)
        latest = max(latest, -early)
        producer.produce(topic, value, key=key, partition=partition)
        producer.poll(0)
        producers.add(producer)
        sent(topic)
    if any(producer.flush(_FLUSH_S) for producer in producers):
        raise BenchError("what the bench sent was not acknowledged")
    return latest


def due_trades(producer: Producer, trades: Sequence[Trade], start: float, per_s: float) -> Iterator[Due]:
    """Trades at a steady rate. They are encoded here and now, not when they are due."""
    records: list[Outgoing] = [(TRADES, trade.symbol.encode(), encode(trade), -1) for trade in trades]
    return ((start + number / per_s, producer, record) for number, record in enumerate(records))


class Prices:
    """The prices of one source, all the same, in turn: marks stay live and move nobody."""

    def __init__(self, producer: Producer, symbols: Sequence[str]) -> None:
        self._producer, self._symbols = producer, symbols
        self._sequence = 0

    def due(self, start: float, seconds: float, per_s: float, *, beside: Sequence[str] = ()) -> Iterator[Due]:
        """A price at a time, at a steady rate, for so many seconds; also of symbols ``beside`` the usual ones."""
        symbols = (*self._symbols, *beside)
        for number in range(int(seconds * per_s)):
            at = start + number / per_s
            yield at, self._producer, self.of(symbols[number % len(symbols)], PRICE, at)

    def of(self, symbol: str, price: str, at: float) -> Outgoing:
        """A price as of ``at``."""
        self._sequence += 1
        record = OraclePrice(
            source=SOURCE, symbol=symbol, price=price, sequence=self._sequence, publish_time=int(1e6 * at)
        )
        return PRICES, symbol.encode(), encode(record), -1
