"""Faust's consumer of Kafka, which hands the records of some topics to their agent many at a time.

Owns what a batch is for Faust: consecutive records of one partition that were there together, as one message. It has
the place of its last record and is acknowledged as a whole, so all that Faust does for a message (100 us) it does once
a batch. No batch waits for a record that has not come.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from aiokafka.errors import IllegalStateError, NoOffsetForPartitionError, OffsetOutOfRangeError
from faust.transport.drivers import aiokafka
from faust.types.tuples import TP, ConsumerMessage, Message

from streams.errors import BrokerError
from streams.logs import event

log = logging.getLogger(__name__)

BATCH_RECORDS_MAX = 250
"""So many records are handled before anything else of the process has its turn: a few milliseconds."""

LOOKBACK_RECORDS_MAX = 100_000
"""So many of a partition's last records are read where the place in it is lost: a few seconds of work."""

_REBALANCING_S = 0.02
"""A look at whether a rebalance is over."""


@dataclass(frozen=True, slots=True)
class PriceGap:
    """Records of a partition that will never be read: ``place`` was next, reading goes on at ``goes_on``.

    ``reason`` says in words what happened to those between; ``records`` is how many they are, if that is known.
    """

    topic: str
    partition: int
    place: int
    goes_on: int
    records: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record that another client has read, with what is used of one of aiokafka's."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None


class FetchedBatch(tuple[Any, ...]):
    """Records of one partition in their order, as aiokafka has them; never none."""

    __slots__ = ()


class BatchMessage(ConsumerMessage):
    """Faust's message of a whole batch: the place of its last record, its ``records`` and the ``first`` offset.

    Faust sees neither key nor value, so neither can trouble it. ``era`` is how often the place had been lost by then.
    """

    __slots__ = ("era", "first", "records")

    def __init__(self, tp: TP, records: FetchedBatch, generation_id: int | None, era: int = 0) -> None:
        last = records[-1]
        super().__init__(
            last.topic,
            last.partition,
            last.offset,
            (last.timestamp or 0) / 1000,
            last.timestamp_type,
            None,
            None,
            b"",
            None,
            tp=tp,
            generation_id=generation_id,
        )
        self.first: int = records[0].offset
        self.records = records
        self.era = era


class BatchConsumer(aiokafka.Consumer):
    """Hands out the records of the topics in ``batched`` as batches, those of others one by one.

    It keeps the place where each of those partitions is to be read on, because Faust's own place and what it has
    fetched part ways around a rebalance: Faust seeks to the committed offset while it reads, sets its place to that of
    a message whose delivery it gave up, and empties its queues when all is done. What it skipped so would pass for a
    hole in the log and be acknowledged with the next batch. So nothing is handed out while a rebalance lasts, and
    after one a batch that begins too late is read again from where it ought to begin, before its hole is believed.

    Where the log does not hold that place any more (it was deleted before it was read, or the partition ends below),
    reading goes on with the last records that are there, and the app's ``on_gap`` is told.
    """

    batched: frozenset[str] = frozenset()
    app: Any  # a BatchApp

    def on_init(self) -> None:
        """Forget every place; Faust does so when it makes a consumer, and when it starts one again."""
        super().on_init()
        self._next: dict[TP, int] = {}
        self._began: dict[TP, int] = {}
        self._doubted: set[TP] = set()
        self._eras: dict[TP, int] = {}
        self._read_otherwise: set[TP] = set()

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
        try:
            fetched: Mapping[TP, Sequence[Any]] = await super()._getmany(active_partitions, timeout)
        except OffsetOutOfRangeError as error:
            (places,) = error.args
            for place in places:
                await self._go_on_elsewhere(TP(place.topic, place.partition))
            return {}
        except NoOffsetForPartitionError as error:
            (place,) = error.args
            await self._begin(TP(place.topic, place.partition))
            return {}
        except UnicodeDecodeError:
            fetched = await self._read_by_another_client()
        if any(tp.topic in self.batched for tp in active_partitions or ()):
            self.app.prices_fetched_at = monotonic()
        return {tp: batches(records) if tp.topic in self.batched else list(records) for tp, records in fetched.items()}

    async def _begin(self, tp: TP) -> None:
        """Begin a partition in which nothing was committed: with what comes from now on."""
        if tp.topic not in self.batched:  # a changelog: Faust seeks there itself before it reads
            return
        end = (await self.highwaters(tp))[tp] or 0
        self._next.setdefault(tp, end)
        self._began.setdefault(tp, end)
        await self._go_to(tp)

    async def _go_on_elsewhere(self, tp: TP) -> None:
        """Go on where there are records, and tell of those that there are not, if the log lacks the place."""
        if tp.topic not in self.batched:
            return
        first, end = (await self.earliest_offsets(tp))[tp] or 0, (await self.highwaters(tp))[tp] or 0
        place = self._next.get(tp)
        if place is None or first <= place <= end:
            self._next[tp] = end if place is None else place
            await self._go_to(tp)
            return
        goes_on = max(first, end - LOOKBACK_RECORDS_MAX)
        if place < first:
            records, reason = goes_on - place, f"deleted before they were read: the log begins at {first}"
        else:
            records, reason = None, f"the partition was made anew or has lost records: it ends at {end}"
        self._forget_acknowledged(tp, goes_on)
        await self._go_to(tp)
        self.app.on_gap(PriceGap(tp.topic, tp.partition, place, goes_on, records, reason))

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing: Faust would log every few seconds that nobody handles the records of its own table, which it has
        read to the end. Prices that nobody fetches or handles end the process (:mod:`streams.oracle.fetch_watch`)."""

    def _forget_acknowledged(self, tp: TP, place: int) -> None:
        """Be at ``place``, and let Faust commit from there on, be it below what was committed."""
        self._next[tp] = self._began[tp] = place
        self._eras[tp] = self._eras.get(tp, 0) + 1
        self._doubted.discard(tp)
        self._read_offset[tp] = place or None
        self._committed_offset[tp] = place or None
        for kept in (self._acked, self._acked_index, self._gap):
            kept.pop(tp, None)

    async def _read_by_another_client(self) -> dict[TP, Sequence[Any]]:
        """What comes next in every partition of batches: aiokafka cannot read one of these records.

        It gives up where the name of a header is no text, and forgets what it had read of the partition.
        """
        came: dict[TP, Sequence[Any]] = {}
        for tp in sorted(tp for tp in self.assignment() if tp.topic in self.batched and tp in self._next):
            place = self._next[tp]
            with suppress(BrokerError):  # then aiokafka meets the record again, and so does this
                came[tp] = await asyncio.to_thread(
                    self.app.read_records, tp.topic, tp.partition, place, place + BATCH_RECORDS_MAX
                )
            records = came.get(tp)
            if not records:
                came.pop(tp, None)
                await self._go_to(tp)
                continue
            with suppress(IllegalStateError):
                await self._seek(tp, records[-1].offset + 1)
            if tp not in self._read_otherwise:
                self._read_otherwise.add(tp)
                event(log, logging.WARNING, "headers_unreadable", partition=tp.partition, offset=place)
        return came

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if isinstance(record, FetchedBatch):
            return BatchMessage(tp, record, self.app.consumer_generation_id, self._eras.get(tp, 0))
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
        if isinstance(message, BatchMessage) and message.era != self._eras.get(message.tp, 0):
            message.acked = True  # of a log that is no more: its offsets mean nothing here
            self._unacked_messages.discard(message)
            return False
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
