"""An in-memory Kafka cluster: partitions, transactions, producer epochs, and offsets committed in transactions.

Every operation is one atomic step of the brokers; latencies, lost requests and lost answers are the clients' business.
As in Kafka, a transaction is decided at once by its coordinator, while the markers that make its records visible (or
skip them) are written to each partition a little later, each in its own time.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from schemas.codec import Decoder, encode
from schemas.messages import ShardLayout
from schemas.partitioning import partition_of
from schemas.topics import EVENTS, LAYOUT, all_topics
from streams.broker.layout import LAYOUT_KEY
from streams.memory.groups import GroupCoordinator
from streams.memory.scheduler import EPOCH_US, Scheduler

_LAYOUT = Decoder[ShardLayout](ShardLayout)
_partition_of = lru_cache(maxsize=10_000)(partition_of)

Place = tuple[str, int]
"""Topic and partition."""
Headers = list[tuple[str, bytes]]

OPEN, COMMITTED, ABORTED = "open", "committed", "aborted"


class Fenced(Exception):
    """The producer's epoch is not the present one."""


class Concurrent(Exception):
    """The last transaction of the producer is decided but not completed; try again in a moment."""


class InvalidState(Exception):
    """There is no such transaction to end, or it was ended the other way."""


class LogRecord:
    """A record of a partition; ``control`` and ``compacted`` ones take an offset and are never delivered.

    ``stamped``: its time is the brokers' (``LogAppendTime``), as :attr:`Cluster.append_time` had it.
    """

    __slots__ = ("compacted", "control", "decoded", "headers", "key", "offset", "stamped", "time_ms", "txn", "value")

    def __init__(
        self,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        time_ms: int,
        txn: "Transaction | None",
        stamped: bool,
        control: bool = False,
    ) -> None:
        self.offset = offset
        self.key = key
        self.value = value
        self.headers = headers
        self.time_ms = time_ms
        self.txn = txn
        self.stamped = stamped
        self.control = control
        self.compacted = False
        self.decoded: Any = None

    @property
    def readable(self) -> bool:
        """Whether a reader of committed records gets it, once it is below the last stable offset."""
        return not (self.control or self.compacted) and (self.txn is None or self.txn.state == COMMITTED)


class Partition:
    """One log. ``open`` holds the first offset of every transaction without a marker yet.

    ``start`` is the first offset that a reader may ask for; ``records`` holds those below it, too.
    """

    __slots__ = ("number", "open", "records", "start", "topic")

    def __init__(self, topic: str, number: int) -> None:
        self.topic = topic
        self.number = number
        self.records: list[LogRecord] = []
        self.start = 0
        self.open: dict[Transaction, int] = {}

    @property
    def end(self) -> int:
        return len(self.records)

    @property
    def stable_end(self) -> int:
        """The last stable offset: everything below it is decided."""
        return min(self.open.values(), default=len(self.records))

    def read(self, position: int, most: int) -> tuple[list[LogRecord], int]:
        """Up to ``most`` committed records from ``position`` on, and the position after them."""
        position, end, records = max(position, self.start), self.stable_end, self.records
        readable: list[LogRecord] = []
        while position < end and len(readable) < most:
            record = records[position]
            position += 1
            if record.readable:
                readable.append(record)
        return readable, position

    def compact(self) -> None:
        """Let only the last committed record of every key stay, as log compaction does; offsets do not change."""
        last: dict[bytes | None, LogRecord] = {}
        for record in self.committed(end=self.stable_end):
            if record.key is not None and record.key in last:
                last[record.key].compacted = True
            last[record.key] = record

    def delete_before(self, offset: int) -> None:
        """Let everything below ``offset`` be gone, as retention does.

        Raises:
            ValueError: the log does not reach so far.
        """
        if offset > self.stable_end:
            raise ValueError(f"{self.topic}[{self.number}] ends at {self.stable_end}, before {offset}")
        self.start = max(self.start, offset)

    def committed(self, first: int = 0, end: int | None = None) -> Iterator[LogRecord]:
        """The committed records in a range, decided or not being the coordinator's word, markers or not."""
        return (record for record in self.records[max(first, self.start) : end] if record.readable)


class Transaction:
    """One transaction: what it wrote and the offsets it carries, with the text beside each that has one."""

    __slots__ = ("epoch", "metadata", "offsets", "producer", "records", "state", "touched")

    def __init__(self, producer: str, epoch: int) -> None:
        self.producer = producer
        self.epoch = epoch
        self.state = OPEN
        self.records: list[tuple[Partition, LogRecord]] = []
        self.touched: dict[Partition, int] = {}
        self.offsets: dict[str, dict[Place, int]] = {}
        self.metadata: dict[str, dict[Place, str]] = {}


class _Identity:
    """What the transaction coordinator knows of one transactional id."""

    __slots__ = ("epoch", "last_commit", "txn")

    def __init__(self) -> None:
        self.epoch = -1
        self.txn: Transaction | None = None
        self.last_commit: bool | None = None


class Cluster:
    """The brokers, with the cluster id ``name``.

    ``on_decided`` is told of every transaction when its coordinator has decided it. ``shards`` is over how many shards
    accounts are spread at first, if not over all partitions of their topics. ``append_time`` are the topics whose
    records get the brokers' time (``message.timestamp.type``), those of the contract at first.
    """

    name = "in-memory"

    def __init__(
        self,
        scheduler: Scheduler,
        partitions: Mapping[str, int],
        on_decided: Callable[[Transaction], None],
        shards: int | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.topics = {
            topic: [Partition(topic, number) for number in range(count)] for topic, count in partitions.items()
        }
        self.append_time = {topic.name for topic in all_topics() if topic.append_time}
        self.offsets: dict[str, dict[Place, int]] = {}
        self.metadata: dict[str, dict[Place, str]] = {}
        self.marker_delay_us: Callable[[], int] = lambda: 0
        self.groups: dict[str, GroupCoordinator] = {}
        self.aborted = self.committed = self.timed_out = 0
        self._pending: dict[str, dict[Transaction, dict[Place, int]]] = {}
        self._identities: dict[str, _Identity] = {}
        self._on_decided = on_decided
        self._made_anew: dict[str, int] = {}
        if LAYOUT in partitions and EVENTS in partitions:
            layout = ShardLayout(shards=shards or partitions[EVENTS], time=EPOCH_US)
            Cluster._append(self, self.topics[LAYOUT][0], LAYOUT_KEY, encode(layout), None, None)  # nobody waits yet

    def group(self, name: str) -> GroupCoordinator:
        """The consumer group of that name."""
        if name not in self.groups:
            self.groups[name] = GroupCoordinator(
                self.scheduler, name, {topic: len(partitions) for topic, partitions in self.topics.items()}
            )
        return self.groups[name]

    def digest(self) -> int:
        """A checksum of every record of every partition: offset, time, key, value, headers and what became of it."""
        crc = 0
        for topic in sorted(self.topics):
            for partition in self.topics[topic]:
                for record in partition.records:
                    state = None if record.txn is None else record.txn.state
                    place = (topic, partition.number, record.offset, record.time_ms, state, record.control)
                    crc = zlib.crc32(repr((*place, record.key, record.value, record.headers)).encode(), crc)
        return crc

    def topic_id(self, topic: str) -> str:
        """The id of a topic, which tells it from another that had its name."""
        anew = self._made_anew.get(topic, 0)
        return f"id-of-{topic}" + (f"-{anew}" if anew else "")

    def add_partitions(self, counts: Mapping[str, int]) -> None:
        """Give topics more partitions, so that they have ``counts``."""
        for topic, count in counts.items():
            held = self.topics[topic]
            held += [Partition(topic, number) for number in range(len(held), count)]
            for group in self.groups.values():
                group.grow(topic, len(held))

    @property
    def layout(self) -> ShardLayout:
        """How accounts are spread over shards, as the last record of that topic says."""
        records = self.topics[LAYOUT][0].records
        return _LAYOUT(next(record.value for record in reversed(records) if record.readable))

    def make_anew(self, topic: str) -> None:
        """Delete a topic and create it again, with as many partitions. Nobody may be in a transaction there."""
        self._made_anew[topic] = self._made_anew.get(topic, 0) + 1
        self.topics[topic] = [Partition(topic, number) for number in range(len(self.topics[topic]))]

    # --- plain records -----------------------------------------------------------------------------------------------

    def partition(self, topic: str, key: bytes | None, number: int = -1) -> Partition:
        """Where a record goes: the given partition, or that of its key."""
        partitions = self.topics[topic]
        return partitions[number if number >= 0 else _partition_of(key or b"", len(partitions))]

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, number: int = -1, headers: Headers | None = None
    ) -> LogRecord:
        """Write a record outside any transaction."""
        return self._append(self.partition(topic, key, number), key, value, headers, None)

    def _append(
        self,
        partition: Partition,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        txn: Transaction | None,
        control: bool = False,
    ) -> LogRecord:
        time_ms = (EPOCH_US + self.scheduler.now) // 1000
        record = LogRecord(
            partition.end, key, value, headers, time_ms, txn, partition.topic in self.append_time, control
        )
        partition.records.append(record)
        return record

    # --- transactions ------------------------------------------------------------------------------------------------

    def init(self, producer: str) -> int:
        """Take over a transactional id: abort what is open, fence every older producer; the new epoch.

        Raises:
            Concurrent: what was open is not completed yet.
        """
        identity = self._identities.setdefault(producer, _Identity())
        if identity.txn is not None:
            if identity.txn.state == OPEN:
                identity.epoch += 1
                self._decide(identity, identity.txn, commit=False)
            if identity.txn is not None:
                raise Concurrent
        identity.epoch += 1
        identity.last_commit = None
        return identity.epoch

    def produce(
        self,
        producer: str,
        epoch: int,
        timeout_us: int,
        partition: Partition,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
    ) -> LogRecord:
        """Write a record in the producer's transaction, which begins with its first one.

        Raises:
            Fenced: the epoch is old. Concurrent: the last transaction is not completed yet.
        """
        txn = self._transaction(producer, epoch, timeout_us)
        record = self._append(partition, key, value, headers, txn)
        txn.records.append((partition, record))
        if partition not in txn.touched:
            txn.touched[partition] = partition.open[txn] = record.offset
        return record

    def add_offsets(
        self,
        producer: str,
        epoch: int,
        timeout_us: int,
        group: str,
        offsets: Mapping[Place, int],
        member: tuple[str, int, str],
        metadata: Mapping[Place, str] | None = None,
    ) -> int | None:
        """Add a group's offsets to the transaction, each with its text; the error code if the group refuses the member.

        Raises:
            Fenced: the epoch is old. Concurrent: the last transaction is not completed yet.
        """
        txn = self._transaction(producer, epoch, timeout_us)
        refused = self.group(group).refuses(*member)
        if refused is not None:
            return refused
        txn.offsets.setdefault(group, {}).update(offsets)
        txn.metadata.setdefault(group, {}).update({place: (metadata or {}).get(place, "") for place in offsets})
        self._pending.setdefault(group, {}).setdefault(txn, {}).update(offsets)
        return None

    def end(self, producer: str, epoch: int, *, commit: bool) -> None:
        """End the transaction; saying it again is answered as the first time.

        Raises:
            Fenced: the epoch is old. InvalidState: it was ended the other way, or there is none.
        """
        identity = self._identities[producer]
        if epoch != identity.epoch:
            raise Fenced
        txn = identity.txn
        if txn is not None and txn.state == OPEN:
            self._decide(identity, txn, commit=commit)
        elif identity.last_commit is not commit:
            raise InvalidState

    def transaction(self, producer: str) -> Transaction | None:
        """The present transaction of a transactional id."""
        return self._identities[producer].txn

    def _transaction(self, producer: str, epoch: int, timeout_us: int) -> Transaction:
        identity = self._identities[producer]
        if epoch != identity.epoch:
            raise Fenced
        txn = identity.txn
        if txn is None:
            txn = identity.txn = Transaction(producer, epoch)
            started = txn
            self.scheduler.after(timeout_us, lambda: self._time_out(identity, started))
        elif txn.state != OPEN:
            raise Concurrent
        return txn

    def _time_out(self, identity: _Identity, txn: Transaction) -> None:
        if txn.state == OPEN and identity.txn is txn:
            self.timed_out += 1
            self.scheduler.note("kafka", f"{txn.producer}: transaction timed out")
            identity.epoch += 1
            self._decide(identity, txn, commit=False)

    def _decide(self, identity: _Identity, txn: Transaction, *, commit: bool) -> None:
        txn.state = COMMITTED if commit else ABORTED
        identity.last_commit = commit
        if commit:
            self.committed += 1
        else:
            self.aborted += 1
        self.scheduler.note("kafka", f"{txn.producer}@{txn.epoch} {txn.state}")
        self._on_decided(txn)
        left: list[Partition | str] = [*txn.touched, *txn.offsets]
        if not left:
            identity.txn = None

        def mark(place: Partition | str) -> None:
            if isinstance(place, Partition):
                del place.open[txn]
                self._append(place, None, None, None, txn, control=True)
            else:
                offsets = self._pending[place].pop(txn)
                if commit:
                    self.offsets.setdefault(place, {}).update(offsets)
                    self.metadata.setdefault(place, {}).update(txn.metadata[place])
            left.remove(place)
            if not left:
                identity.txn = None

        for place in list(left):
            self.scheduler.after(self.marker_delay_us(), lambda place=place: mark(place))  # type: ignore[misc]

    # --- committed offsets -------------------------------------------------------------------------------------------

    def committed_offsets(self, group: str, places: list[Place]) -> list[int] | None:
        """The group's committed offsets (-1: none), or None while a transaction that carries one of them is open."""
        for pending in self._pending.get(group, {}).values():
            if any(place in pending for place in places):
                return None
        offsets = self.offsets.get(group, {})
        return [offsets.get(place, -1) for place in places]

    def committed_metadata(self, group: str, place: Place) -> str:
        """The text that was committed with the group's offset; empty if there is none."""
        return self.metadata.get(group, {}).get(place, "")

    def move_offset(self, group: str, place: Place, offset: int, metadata: str = "") -> None:
        """Let the group have committed ``offset``, as a tool of Kafka's does at an operator's word."""
        self.offsets.setdefault(group, {})[place] = offset
        self.metadata.setdefault(group, {})[place] = metadata
