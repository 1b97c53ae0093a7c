"""Faust's consumer of Kafka, which hands the records of some topics to their agent many at a time.

Owns what a batch is for Faust: consecutive records of one partition that were there together, as one message. It has
the place of its last record and is acknowledged as a whole, so all that Faust does for a message (100 us) it does once
a batch. No batch waits for a record that has not come.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from faust.transport.drivers import aiokafka
from faust.types.tuples import TP, ConsumerMessage, Message

BATCH_RECORDS_MAX = 250
"""So many records are handled before anything else of the process has its turn: a few milliseconds."""


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
    """Hands out the records of the topics in ``batched`` as batches, those of others one by one."""

    batched: frozenset[str] = frozenset()

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Any]]:
        fetched = await super()._getmany(active_partitions, timeout)
        return {tp: batches(records) if tp.topic in self.batched else records for tp, records in fetched.items()}

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if isinstance(record, FetchedBatch):
            return BatchMessage(tp, record, self.app.consumer_generation_id)
        return super()._to_message(tp, record)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:
        """What has come, in messages of one record or of many."""
        async for tp, message in super().getmany(timeout):
            if isinstance(message, BatchMessage):
                self._read_on(tp, message)
            yield tp, message

    def _read_on(self, tp: TP, message: BatchMessage) -> None:
        """Let Faust be where the batch ends, as if its records had come one by one.

        Else it took those before the last for a hole in the log, which nobody has to acknowledge. A hole before the
        batch, as compaction and transactions leave them, is acknowledged with it.
        """
        read = self._read_offset[tp]
        if read is not None:
            new = FetchedBatch(record for record in message.records if record.offset >= read)
            if not new:
                return  # Faust drops the message
            message.records = new
            message.first = min(read + 1, new[0].offset)
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
