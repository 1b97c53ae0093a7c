"""Symbols that come to a partition of ``trades.v1`` they were not in before: what is known of their trades elsewhere.

A symbol moves when the topic gets more partitions. What was routed of it is remembered with the partition it was in,
and whoever sends its last trades again sends them to another one. So a router begins a symbol that is new to a
partition with the newest memory that is committed of it in any other, and commits the copy before it routes a trade:
what becomes of a trade follows from what is committed. It does not wait for what lies unrouted in the other partition,
for that one may wait for this one; a trade that is there as well would be routed twice, and the log says so.
"""

from collections.abc import Iterator

from confluent_kafka import Consumer, TopicPartition

from schemas.topics import ROUTER, TRADES
from streams.broker.committed import committed_offsets
from streams.broker.reader import LogReader
from streams.routing.trade_ids import SymbolMemory, TradeIds
from streams.runtime import Runtime


class Elsewhere:
    """The memory of every symbol in every partition, as it is committed. Not thread-safe.

    It is read when it is asked for, at most once between two calls of :meth:`refresh`.
    """

    def __init__(self, reader: LogReader, timeout_s: float, runtime: Runtime) -> None:
        self._reader = reader
        self._timeout_s = timeout_s
        self._runtime = runtime
        self._next: dict[int, int] = {}
        self._memories: dict[int, TradeIds] = {}
        self._is_fresh = False

    def refresh(self) -> None:
        """Read what has been committed since, when it is next asked for."""
        self._is_fresh = False

    def knows(self, partition: int, symbol: str) -> bool:
        """Whether another partition has a memory of ``symbol``.

        Raises:
            BrokerError: Kafka does not answer.
        """
        if not self._is_fresh:
            self._read()
        return any(True for _ in self._others(partition, symbol))

    def newest(self, consumer: Consumer, partition: int, symbol: str) -> tuple[SymbolMemory | None, int]:
        """The newest memory of ``symbol`` in other partitions, and how many records of these are not routed yet.

        There is none (None) if it was removed meanwhile: another router has folded its memory anew.

        Raises:
            BrokerError: Kafka does not answer.
        """
        self._read()
        known = dict(self._others(partition, symbol))
        if not known:
            return None, 0
        others = [TopicPartition(TRADES, other) for other in known]
        ends = [self._reader.watermarks(TRADES, place.partition)[1] for place in others]
        committed = committed_offsets(consumer, others, self._timeout_s, self._runtime)
        unrouted = sum(end - max(place.offset, 0) for place, end in zip(committed, ends, strict=True))
        newest = max(known.values(), key=lambda memory: memory.last)
        return SymbolMemory.of_row(newest.row()), unrouted

    def _others(self, partition: int, symbol: str) -> Iterator[tuple[int, SymbolMemory]]:
        for other, memory in self._memories.items():
            if other != partition and (known := memory.symbols.get(symbol)) is not None:
                yield other, known

    def _read(self) -> None:
        count = self._reader.partitions(TRADES)
        for partition in range(min(count, self._reader.partitions(ROUTER)) if count > 1 else 0):
            low, end = self._reader.watermarks(ROUTER, partition)
            first = max(low, self._next.get(partition, 0))
            memory = self._memories.setdefault(partition, TradeIds())
            if first < end:
                for message in self._reader.read_range(ROUTER, partition, first, end):
                    memory.recall_from(partition, message.key(), message.value())
            self._next[partition] = end
        self._is_fresh = True
