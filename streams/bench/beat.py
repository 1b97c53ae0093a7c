"""Marks without an oracle: the heartbeat that an engine needs, all symbols live at one price, every 250 ms."""

import time
from collections.abc import Sequence

from confluent_kafka import Producer

from schemas.codec import encode
from schemas.messages import Mark, MarkFrame
from schemas.topics import MARKS
from streams.bench.background import Background
from streams.bench.market import PRICE

_PERIOD_S = 0.25


class Beat(Background):
    """Publishes the marks of ``symbols`` while it is entered."""

    def __init__(self, producer: Producer, symbols: Sequence[str]) -> None:
        super().__init__()
        self._producer, self._symbols = producer, symbols

    def _run(self) -> None:
        while True:
            now = time.time_ns() // 1000
            marks = tuple(Mark(symbol=symbol, price=PRICE, status="live", publish_time=now) for symbol in self._symbols)
            self._producer.produce(MARKS, encode(MarkFrame(time=now, marks=marks, full=True)), partition=0)
            self._producer.flush(5)
            if self._stop.wait(_PERIOD_S):
                return
