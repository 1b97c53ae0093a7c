"""Faust's consumer of Kafka, which hands the records of some topics to their agent many at a time.

Owns what a batch is for Faust: consecutive records of one partition that were there together, as one message. It has
the place of its last record and is acknowledged as a whole, so all that Faust does for a message (100 us) it does once
a batch. No batch waits for a record that has not come.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiokafka.errors import IllegalStateError
from faust.transport.drivers import aiokafka
from faust.types.tuples import TP, ConsumerMessage, Message

from streams.logs import event

log = logging.getLogger(__name__)

BATCH_RECORDS_MAX = 250
"""So many records are handled before anything else of the process has its turn: a few milliseconds."""

_REBALANCING_S = 0.02
"""A look at whether a rebalance is over."""


class FetchedBatch(tuple[Any, ...]):
    """Records of one partition in their order, as aiokafka has them; never none."""

    __slots__ = ()


class BatchMessage(ConsumerMessage):
    """Faust's message of a whole batch: its last record, but for ``records`` and the ``first`` offset."""

    __slots__ = ("first", "records")

    def __init__(self, tp: TP, records: FetchedBatch, generation_id: int | None) -> None:
        last = records[-1]
        super().__init__(
            last.topic,
            last.partition,
            last.offset,
            last.timestamp / 1000,
            last.timestamp_type,
            None,
            None,
            last.value,
            None,
            tp=tp,
            generation_id=generation_id,
        )
        self.first: int = records[0].offset
        self.records = records


class BatchConsumer(aiokafka.Consumer):
    """Hands out the records of the topics in ``batched`` as batches, those of others one by one.

    It keeps the place where each of those partitions is to be read on, because Faust's own place and what it has
    fetched part ways around a rebalance: Faust seeks to the committed offset while it reads, sets its place to that of
    a message whose delivery it gave up, and empties its queues when all is done. What it skipped so would pass for a
    hole in the log and be acknowledged with the next batch. So nothing is handed out while a rebalance lasts, and
    after one a batch that begins too late is read again from where it ought to begin, before its hole is believed.
    """

    batched: frozenset[str] = frozenset()

    def on_init(self) -> None:
        """Forget every place; Faust does so when it makes a consumer, and when it starts one again."""
        super().on_init()
        self._next: dict[TP, int] = {}
        self._began: dict[TP, int] = {}
        self._doubted: set[TP] = set()

    async def perform_seek(self) -> None:
        """Go to what is committed, or to the first record that ever came; what was fetched before may come after."""
        await super().perform_seek()
        for tp, committed in list(self._read_offset.items()):
            if tp.topic in self.batched:
                self._doubted.add(tp)
                place = self._began.get(tp) if committed is None else committed
                if place is not None:
                    self._next[tp] = place
                    if not committed:  # then Faust seeks nowhere
                        await self._go_to(tp)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:
        if self.app.rebalancing and active_partitions is not None:  # what came would not be handed out
            active_partitions = {tp for tp in active_partitions if tp.topic not in self.batched}
            if not active_partitions:
                await asyncio.sleep(_REBALANCING_S)
                return {}
        fetched = await super()._getmany(active_partitions, timeout)
        return {tp: batches(records) if tp.topic in self.batched else records for tp, records in fetched.items()}

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if isinstance(record, FetchedBatch):
            return BatchMessage(tp, record, self.app.consumer_generation_id)
        return super()._to_message(tp, record)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:
        """What has come, in messages of one record or of many."""
        sent_back: set[TP] = set()
        async for tp, message in super().getmany(timeout):
            if isinstance(message, BatchMessage):
                if tp in sent_back or not self._is_next(tp, message):
                    continue
                if self._begins_too_late(tp, message):
                    # Nothing else is fetched meanwhile: a hole that shows itself once more is one of the log.
                    sent_back.add(tp)
                    self._doubted.discard(tp)
                    event(log, logging.INFO, "prices_read_again", partition=tp.partition, offset=self._next[tp])
                    await self._go_to(tp)
                    continue
                self._hand_out(tp, message)
            yield tp, message

    def _is_next(self, tp: TP, message: BatchMessage) -> bool:
        """Whether the agent may have this message, without the records that were read before."""
        began = self._began.setdefault(tp, message.records[0].offset)
        if self.app.rebalancing:  # Faust seeks and then empties the queues before that ends
            self._next.setdefault(tp, began)
            self._doubted.add(tp)
            return False
        place = self._next.get(tp, 0)
        message.records = FetchedBatch(record for record in message.records if record.offset >= place)
        return bool(message.records)

    def _begins_too_late(self, tp: TP, message: BatchMessage) -> bool:
        return tp in self._doubted and tp in self._next and message.records[0].offset > self._next[tp]

    async def _go_to(self, tp: TP) -> None:
        """Read on from the place, if the partition is still here; else Faust seeks before it is here again."""
        with suppress(IllegalStateError):
            await self._seek(tp, self._next[tp])

    def _hand_out(self, tp: TP, message: BatchMessage) -> None:
        """Be where the batch ends, and let Faust be there, as if its records had come one by one.

        Else it took those before the last for a hole, which nobody has to acknowledge. A hole before the batch, as
        compaction and transactions leave them, is acknowledged with it.
        """
        first = message.records[0].offset
        message.first = min(self._next.get(tp, first), first)
        self._next[tp] = message.offset + 1
        self._read_offset[tp] = message.offset

    def ack(self, message: Message) -> bool:
        """Mark a message, with all its records, as one that may be committed."""
        is_new: bool = super().ack(message)
        if is_new and isinstance(message, BatchMessage):
            acked = self._acked_index[message.tp]
            before = set(range(message.first, message.offset)) - acked
            self._acked[message.tp].extend(before)
            acked |= before
        return is_new


def batches(records: Sequence[Any]) -> list[FetchedBatch]:
    """``records`` in batches of ``BATCH_RECORDS_MAX`` at most."""
    return [
        FetchedBatch(records[first : first + BATCH_RECORDS_MAX]) for first in range(0, len(records), BATCH_RECORDS_MAX)
    ]


def batch_transport(topics: frozenset[str]) -> type[aiokafka.Transport]:
    """Faust's transport to Kafka, its consumer handing out the records of ``topics`` in batches."""
    consumer = type("Consumer", (BatchConsumer,), {"batched": topics})
    return type("Transport", (aiokafka.Transport,), {"Consumer": consumer})
