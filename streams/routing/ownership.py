"""The partitions that this router owns: where each goes on and, for trades, which ids it has routed.

Both are read from Kafka when a partition is assigned and again after anything has failed, never guessed: the
committed offset and the memory row come from one transaction. Where an offset may be taken is the business of
:mod:`streams.routing.beginning`. Writing them is the router's business.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec
from confluent_kafka import Consumer, TopicPartition

from schemas.codec import encode
from schemas.messages import AcceptedOffset
from schemas.topics import ROUTER, TRADES
from streams.broker.committed import committed_offsets, metadata_of
from streams.broker.reader import LogReader
from streams.broker.records import Record
from streams.errors import BrokerError, NoAnswer, TopicError
from streams.feeds.accepted import ACCEPTED_PARTITION, AcceptedOffsets, accepted_key
from streams.logs import event
from streams.routing.beginning import Beginning, Committed, Present, beginning
from streams.routing.committed_at import CommittedAt
from streams.routing.moved import Elsewhere
from streams.routing.split import Splitter
from streams.routing.trade_ids import TradeIds, memory_key
from streams.runtime import Runtime

log = logging.getLogger(__name__)

_FOLDED_AT_ONCE = 10_000
_REFUSALS_TOLD_MAX = 5


@dataclass(slots=True)
class Owned:
    """One owned partition.

    Everything below ``next_offset`` has been told to the shards, what is below ``committed`` has been committed (-1:
    it must be, wherever it goes on). ``routed`` records are in the batch at hand. ``is_new``: the shards have not been
    told that it goes on here. ``accepted`` is the operator's word by which it began, until that is spent; ``lost`` the
    reason in it, until the shards are told. ``leader_epoch`` is that of the last record. ``memory_id`` is the id of the
    topic that has its memory of trade ids, ``memory_word`` the operator's word by which that was folded anew, until it
    is spent. ``moved`` is a symbol that
    came here from another partition: nothing more is routed before its memory is here, too.
    """

    topic: str
    partition: int
    next_offset: int
    committed: int
    trade_ids: TradeIds = field(default_factory=TradeIds)
    routed: int = 0
    is_new: bool = True
    topic_id: str = ""
    leader_epoch: int | None = None
    accepted: AcceptedOffset | None = None
    lost: str = ""
    moved: str = ""
    memory_id: str = ""
    memory_word: AcceptedOffset | None = None

    @property
    def must_commit(self) -> bool:
        """Whether anything of it is not committed: how far it is, or a memory."""
        return self.next_offset > self.committed or bool(self.trade_ids.changed)

    def to_commit(self) -> TopicPartition:
        """Its offset as it is committed, so that it can be told from one that was moved by hand."""
        text = CommittedAt(self.topic_id, self.leader_epoch, self.memory_id).text()
        return TopicPartition(self.topic, self.partition, self.next_offset, text)

    def rows_to_write(self) -> Iterator[tuple[int, bytes, bytes | None]]:
        """What goes to ``margin.router.v1`` with its offset: partition, key and value."""
        if self.topic == TRADES:
            for symbol, row in self.trade_ids.rows():
                yield self.partition, memory_key(self.partition, symbol), row
        if self.memory_word is not None:
            spent = msgspec.structs.replace(self.memory_word, routed=True)
            yield ACCEPTED_PARTITION, accepted_key(ROUTER, self.partition), encode(spent)
        if self.accepted is not None:
            yield ACCEPTED_PARTITION, accepted_key(self.topic, self.partition), None

    def note_committed(self) -> None:
        """Offset and rows are committed."""
        self.committed = self.next_offset
        self.accepted = self.memory_word = None
        self.trade_ids.written()


class Ownership:
    """Every owned partition by topic and number. Not thread-safe.

    ``topic_ids`` are those of the input topics that are routed, ``ask_topic_ids`` says which they have now.
    ``timeout_s`` bounds each wait for Kafka; ``servers`` is where it is, for advice. ``memory_id`` is the id of the
    topic that has the memory of trade ids.
    """

    def __init__(
        self,
        reader: LogReader,
        timeout_s: float,
        runtime: Runtime,
        topic_ids: Mapping[str, str],
        ask_topic_ids: Callable[[], Mapping[str, str]],
        servers: str,
        memory_id: str = "",
    ) -> None:
        self._reader = reader
        self._memory_id = memory_id
        self._elsewhere = Elsewhere(reader, timeout_s, runtime)
        self._runtime = runtime
        self._timeout_s = timeout_s
        self._topic_ids = topic_ids
        self._ask_topic_ids = ask_topic_ids
        self._servers = servers
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
        """Own ``partitions`` from their committed offsets on, or from their first record if there are none; where there
        is an operator's word about one, from what it says.

        Returns the partitions with the offsets at which they go on.

        Raises:
            NoAnswer: Kafka does not say. BrokerError: one of them may go on nowhere without an operator's word. None is
                owned.
            TopicError: a partition has no place for its memory.
        """
        if not partitions:
            return []
        committed = committed_offsets(consumer, partitions, self._timeout_s, self._runtime)
        self._require_same_topics({place.topic for place in partitions})
        # Read after the offsets: a transaction that holds both has been decided by then.
        accepted, memories = self._recall({place.partition for place in partitions if place.topic == TRADES})
        begun: list[Owned] = []
        refusals: list[str] = []
        for place in committed:
            try:
                begun.append(self._begun(place, accepted, memories))
            except NoAnswer:  # whoever can wait asks again
                raise
            except BrokerError as refusal:
                refusals.append(str(refusal))
        if refusals:
            more = len(refusals) - _REFUSALS_TOLD_MAX
            told = refusals[:_REFUSALS_TOLD_MAX] + ([f"{more} more partitions alike"] if more > 0 else [])
            raise BrokerError("; ".join(told))
        for owned in begun:
            self._owned[owned.topic, owned.partition] = owned
        return [TopicPartition(owned.topic, owned.partition, owned.next_offset) for owned in begun]

    def look_again(self) -> None:
        """What other partitions know of symbols may have changed."""
        self._elsewhere.refresh()

    def adopt_moved(self, consumer: Consumer) -> list[Owned]:
        """Give the partitions that wait for it the memory of the symbol that moved there, to be committed; which.

        Raises:
            BrokerError: Kafka does not answer.
        """
        waited = [owned for owned in self._owned.values() if owned.moved]
        for owned in waited:
            memory, unrouted = self._elsewhere.newest(consumer, owned.partition, owned.moved)
            if memory is not None:
                owned.trade_ids.adopt(owned.moved, memory)
            event(
                log,
                logging.ERROR if unrouted or memory is None else logging.WARNING,
                "symbol_moved",
                symbol=owned.moved,
                to=f"{TRADES}[{owned.partition}]",
                last=None if memory is None else memory.last,
                unrouted_elsewhere=unrouted,
            )
            owned.moved = ""
        return waited

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

    def _require_same_topics(self, topics: set[str]) -> None:
        """Frames, progress and offsets name the topics by the ids that they had when the router started.

        Raises:
            BrokerError: one has another id now, or Kafka does not say.
        """
        present = self._ask_topic_ids()
        for topic in sorted(topics):
            if present[topic] != self._topic_ids[topic]:
                raise BrokerError(
                    f"{topic} was deleted and made anew while this router ran (its id was {self._topic_ids[topic]} and "
                    f"is {present[topic]}): start the router again"
                )

    def _begun(self, place: TopicPartition, accepted: AcceptedOffsets, memories: Mapping[int, TradeIds]) -> Owned:
        """The partition, which is not owned yet.

        Raises:
            BrokerError: it may go on nowhere, or Kafka does not say.
        """
        topic, partition = place.topic, place.partition
        present = Present(topic, partition, self._topic_ids[topic], *self._reader.watermarks(topic, partition))
        word = self._word(present, accepted)
        begins = beginning(present, Committed(place.offset, metadata_of(place)), word, self._servers)
        memory = memories[partition] if topic == TRADES else TradeIds()
        memory.is_elsewhere = partial(self._elsewhere.knows, partition)
        memory_word = self._memory_word(place, accepted) if topic == TRADES else None
        if topic == TRADES and (memory_word is not None or not begins.keeps_memory):
            memory = self._rebuilt(present, begins, memory)
        owned = Owned(topic, partition, begins.first, max(place.offset, 0), memory)
        if topic == TRADES:
            owned.memory_id, owned.memory_word = self._memory_id, memory_word
        if memory_word is not None:
            owned.committed = -1
        owned.topic_id, owned.leader_epoch = present.topic_id, begins.leader_epoch
        if word is not None:
            owned.accepted, owned.lost, owned.committed = word, word.reason, -1
            event(
                log,
                logging.WARNING,
                "begins_at_accepted_offset",
                partition=str(present),
                offset=begins.first,
                committed=place.offset,
                reason=word.reason,
                accepted_us=word.time,
            )
        return owned

    def _memory_word(self, place: TopicPartition, accepted: AcceptedOffsets) -> AcceptedOffset | None:
        """The operator's word that a partition's memory of trade ids is folded anew; None if it is whole, or was folded
        anew already.

        Raises:
            BrokerError: part of it is gone and there is no such word, or Kafka does not say.
        """
        known = CommittedAt.parse(metadata_of(place))
        low = self._reader.watermarks(ROUTER, place.partition)[0]
        is_anew = known is not None and bool(known.memory_id) and known.memory_id != self._memory_id
        if not low and not is_anew:
            return None
        word = accepted.words.get((ROUTER, place.partition))
        if word is None or (self._memory_id and word.topic_id != self._memory_id) or word.offset != low:
            what = "is another topic of this name (deleted and made anew)" if is_anew else f"lacks what was below {low}"
            raise BrokerError(
                f"{TRADES}[{place.partition}]: {ROUTER}[{place.partition}], the memory of the trade ids that were "
                f"routed, {what}: trades that come again would be routed twice. To have it folded anew from the trades "
                f"that are left type `margin-clearing accept-offset {ROUTER} {place.partition} {low} --reason 'WHY' "
                f"--bootstrap-servers {self._servers}`"
            )
        return None if word.routed else word

    def _word(self, present: Present, accepted: AcceptedOffsets) -> AcceptedOffset | None:
        """The operator's word about a partition, if it is about the topic that there is."""
        place = present.topic, present.partition
        if (reason := accepted.unread.get(place)) is not None:
            event(log, logging.ERROR, "accepted_offset_unreadable", partition=str(present), reason=reason)
        word = accepted.words.get(place)
        if word is not None and word.topic_id != present.topic_id:
            event(log, logging.WARNING, "accepted_offset_of_another_topic", partition=str(present), offset=word.offset)
            return None
        return word

    def _recall(self, partitions: set[int]) -> tuple[AcceptedOffsets, dict[int, TradeIds]]:
        """The operator's words, and the memory of each of ``partitions`` of trades: the last row of every symbol.

        A row that cannot be read keeps nobody from the rest: no trade of such a symbol is routed, and each says why.
        """
        count = self._reader.partitions(ROUTER)
        if partitions and (last := max(partitions)) >= count:
            raise TopicError(f"{TRADES} has a partition {last} and {ROUTER} has {count} partitions: give it as many")
        accepted, memories = AcceptedOffsets(), {}
        for partition in sorted({ACCEPTED_PARTITION} | partitions):
            started = self._runtime.monotonic()
            memory = TradeIds()
            low, high = self._reader.watermarks(ROUTER, partition)
            for message in self._reader.read_range(ROUTER, partition, low, high):
                if partition == ACCEPTED_PARTITION and accepted.take(message.key(), message.value()):
                    continue
                memory.recall_from(partition, message.key(), message.value())
            if partition in partitions:
                memories[partition] = memory
                self._tell(partition, memory, high - low, self._runtime.monotonic() - started)
        return accepted, memories

    def _rebuilt(self, present: Present, begins: Beginning, before: TradeIds) -> TradeIds:
        """The memory as of where a partition of trades begins, from the records before; it stands instead of
        ``before``."""
        started = self._runtime.monotonic()
        records = self._reader.read_range(TRADES, present.partition, present.low, begins.first)
        memory = trade_ids_after(records, is_cut_off=present.low > 0)
        memory.replace(before)
        memory.is_elsewhere = before.is_elsewhere
        event(
            log,
            logging.WARNING,
            "trade_ids_rebuilt",
            partition=present.partition,
            symbols=len(memory.symbols),
            removed=len(memory.removed - memory.symbols.keys()),
            records=begins.first - present.low,
            seconds=round(self._runtime.monotonic() - started, 3),
        )
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


def trade_ids_after(records: Iterable[Record], *, is_cut_off: bool = False) -> TradeIds:
    """The memory of a router that has routed ``records`` of a partition of trades.

    ``is_cut_off``: what was routed before is gone. Whatever was before the first trade of a symbol is then taken for a
    repeat if it is not newer, and else for a contradiction; it would suspend everybody whose trades come again.
    """
    memory, splitter = TradeIds(is_cut_off=is_cut_off), Splitter(1)
    for number, record in enumerate(records, start=1):
        splitter.add(  # whom one that is refused concerns was told when it was routed
            TRADES, record.value(), memory, key=record.key(), partition=record.partition(), offset=record.offset()
        )
        if not number % _FOLDED_AT_ONCE:
            splitter.take(0)  # nobody is told again
    memory.is_cut_off = False
    return memory
