"""Writes the oracle's dead letters, and what tells of prices that were never read: Kafka has them before it goes on.

They are written by a producer of their own, because aiokafka's takes no record without key and value, and because a
letter costs a tenth there.
"""

import asyncio
import logging
from collections.abc import Sequence

from prometheus_client import Counter

from streams.broker.dead_letters import DeadLetter, dead_letter
from streams.broker.producer import IdempotentProducer
from streams.errors import PricesMissed
from streams.logs import event
from streams.oracle.faust_batches import PriceGap

log = logging.getLogger(__name__)

_POLL_S = 0.002

GAPS = Counter("margin_oracle_price_gaps", "Times at which the place in a partition of prices was lost")


class LetterWriter:
    """Writes letters with ``producer``, which is its own from here on. For one event loop."""

    def __init__(self, producer: IdempotentProducer) -> None:
        self._producer = producer
        self._gaps: list[PriceGap] = []
        self._turn = asyncio.Lock()

    def tell(self, gap: PriceGap) -> None:
        """Prices will never be read: say so at once, and in a letter with the next :meth:`write`."""
        GAPS.inc()
        event(
            log,
            logging.ERROR,
            "prices_missed",
            topic=gap.topic,
            partition=gap.partition,
            offset=gap.place,
            goes_on=gap.goes_on,
            records=gap.records,
            reason=gap.reason,
        )
        self._gaps.append(gap)

    @property
    def has_gaps(self) -> bool:
        """Whether gaps were told that no letter says yet."""
        return bool(self._gaps)

    async def write(self, letters: Sequence[DeadLetter] = ()) -> None:
        """Write ``letters`` and what was told; when this returns, Kafka has them.

        Raises:
            NotDelivered: it has not taken them in its producer's time.
        """
        if not letters and not self._gaps:
            return
        async with self._turn:
            gaps, self._gaps = self._gaps, []
            for letter in (*letters, *map(_gap_letter, gaps)):
                self._producer.produce(letter.topic, letter.value, key=letter.key, headers=letter.headers)
            while self._producer.waiting:
                self._producer.poll()
                await asyncio.sleep(_POLL_S)  # not in a thread, which nobody could end while a broker is away

    def close(self) -> None:
        self._producer.close()


def _gap_letter(gap: PriceGap) -> DeadLetter:
    """What stands in the dead letters for prices that nobody has read, so that ``status`` and ``verify`` name them."""
    some = "an unknown number of" if gap.records is None else str(gap.records)
    reason = f"{some} prices from here on were not read: {gap.reason}; reading went on at {gap.goes_on}"
    return dead_letter(gap.topic, gap.partition, gap.place, -1, None, None, PricesMissed.__name__, reason)
