"""The partitions that this router owns: where each goes on and, for trades, which ids it has routed.

Both are read from Kafka when a partition is assigned and again after anything has failed, never guessed: the
committed offset and the memory row come from one transaction. Writing them is the router's business.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from confluent_kafka import Consumer, TopicPartition

from schemas.topics import ROUTER, TRADES
from streams.broker.committed import committed_offsets
from streams.broker.reader import LogReader
from streams.errors import BrokerError, TopicError
from streams.logs import event
from streams.routing.trade_ids import TradeIds
from streams.runtime import Runtime

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Owned:
    """One owned partition.

    Everything below ``next_offset`` has been told to the shards, what is below ``committed`` has been committed.
    ``routed`` records are in the batch at hand. ``is_new``: the shards have not been told that it goes on here.
    """

    topic: str
    partition: int
    next_offset: int
    committed: int
    trade_ids: TradeIds = field(default_factory=TradeIds)
    routed: int = 0
    is_new: bool = True


class Ownership:
    """Every owned partition by topic and number. Not thread-safe. ``timeout_s`` bounds each wait for Kafka."""

    def __init__(self, reader: LogReader, timeout_s: float, runtime: Runtime) -> None:
        self._reader = reader
        self._runtime = runtime
        self._timeout_s = timeout_s
        self._owned: dict[tuple[str, int], Owned] = {}

    def __len__(self) -> int:
        return len(self._owned)

    def find(self, topic: str, partition: int) -> Owned | None:
        """The partition if this router owns it."""
        return self._owned.get((topic, partition))

    def all(self) -> list[Owned]:
        """Every owned partition."""
        return list(self._owned.values())

    def begin(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Own ``partitions`` from their committed offsets on, or from their first record if there are none.

        Returns the partitions with the offsets at which they go on.

        Raises:
            BrokerError: Kafka does not say, or the log no longer holds what comes next.
            TopicError: a partition has no place for its memory.
        """
        begun = []
        for committed in committed_offsets(consumer, partitions, self._timeout_s, self._runtime) if partitions else []:
            place = (committed.topic, committed.partition)
            first = self._next_offset(committed)
            memory = self._trade_ids(committed.partition) if committed.topic == TRADES else TradeIds()
            self._owned[place] = Owned(*place, first, max(committed.offset, 0), memory)
            begun.append(TopicPartition(committed.topic, committed.partition, first))
        return begun

    def places(self) -> list[tuple[str, int]]:
        """Topic and number of every owned partition; may be asked from any thread."""
        return list(self._owned)

    def drop(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget ``partitions``."""
        for place in partitions:
            self._owned.pop((place.topic, place.partition), None)

    def clear(self) -> None:
        """Forget every partition."""
        self._owned.clear()

    def _next_offset(self, committed: TopicPartition) -> int:
        low, high = self._reader.watermarks(committed.topic, committed.partition)
        if committed.offset < 0:
            return low
        where = f"{committed.topic}[{committed.partition}]"
        if committed.offset < low:
            raise BrokerError(
                f"{where}: the records from {committed.offset} to {low - 1} are gone before they were routed "
                "(retention or deletion): the accounts they concern are wrong; to go on without them set the group's "
                f"offset to {low} with kafka-consumer-groups --reset-offsets"
            )
        if committed.offset > high:
            raise BrokerError(
                f"{where}: the group has committed {committed.offset} but the log ends at {high}: "
                "the topic was deleted and created anew; take another ROUTER__GROUP_ID or reset the group's offsets"
            )
        return committed.offset

    def _trade_ids(self, partition: int) -> TradeIds:
        """The memory of a trades partition: the last row of every symbol in its log.

        What cannot be read keeps nobody from the rest: no trade of such a symbol is routed, and each says why.
        """
        count = self._reader.partitions(ROUTER)
        if partition >= count:
            raise TopicError(
                f"{TRADES} has a partition {partition} and {ROUTER} has {count} partitions: give it as many"
            )
        started = self._runtime.monotonic()
        memory, prefix = TradeIds(), memory_key(partition)
        low, high = self._reader.watermarks(ROUTER, partition)
        for message in self._reader.read_range(ROUTER, partition, low, high):
            owner, _, symbol = (message.key() or b"").rpartition(b":")
            if message.key() == prefix:
                memory.recall_old(message.value())
            elif owner == prefix:
                memory.recall(symbol.decode("utf-8", "replace"), message.value())
        self._tell(partition, memory, high - low, self._runtime.monotonic() - started)
        return memory

    def _tell(self, partition: int, memory: TradeIds, records: int, seconds: float) -> None:
        event(
            log,
            logging.INFO,
            "trade_ids_recalled",
            partition=partition,
            symbols=len(memory.symbols),
            records=records,
            seconds=round(seconds, 3),
        )
        for symbol, reason in memory.unread.items():
            key = (memory_key(partition, symbol) if symbol else memory_key(partition)).decode()
            event(
                log,
                logging.ERROR,
                "trade_ids_unreadable",
                partition=partition,
                key=key,
                reason=f"{ROUTER}[{partition}]: {reason}: no trade of it is routed, each goes to the dead letters and "
                f"suspends its accounts; write a null value under the key {key!r} there to begin anew with the next "
                "trade, then restart the router",
            )


def memory_key(partition: int, symbol: str = "") -> bytes:
    """The key in ``margin.router.v1`` of the memory of a symbol, or of the partition's in the form before."""
    return f"{TRADES}:{partition}{':' if symbol else ''}{symbol}".encode()
