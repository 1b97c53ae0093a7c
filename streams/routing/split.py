"""From the bytes of the exchange's records to frames by shard: decode, drop repeats, split, count.

Pure, so the whole of what the router does to a record can be tested without a broker. Offsets, partitions and
transactions are the router's business.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from schemas.codec import DecodeError, Decoder
from schemas.messages import EventFrame, LiquidationReport, SourceRange, Spread, Suspension, Trade, Transfer
from schemas.topics import TRADES, TRANSFERS
from streams.routing.concerned import Concerned, concerned
from streams.routing.frames import ShardFrames, Source
from streams.routing.trade_decoder import TradeDecoder
from streams.routing.trade_ids import REPEATED, TradeIds

GAPS_NAMED_MAX = 20
REASON_MAX = 500


class RefusedRecord(msgspec.Struct, frozen=True, gc=False):
    """A record that cannot be routed: the class of the error, what it says, and whom the record concerns; those
    accounts are told by the frames.

    It holds no exception: the traceback of one keeps the frames of the calls and all that is in them. A batch may have
    thousands, and the garbage collector would walk through all of that again and again. So it is not asked of these
    either (``gc=False``): nothing in them leads back to them.
    """

    kind: type[DecodeError]
    reason: str
    whom: Concerned


@dataclass(slots=True)
class Gap:
    """Trade ids that were skipped: ``missing`` of them before ``trade_id``."""

    symbol: str
    trade_id: int
    missing: int


@dataclass(slots=True)
class Counts:
    """What one batch held. ``gaps`` names the first ``GAPS_NAMED_MAX``; ``missing`` counts the ids of all of them."""

    fills: int = 0
    repeats: int = 0
    missing: int = 0
    gaps: list[Gap] = field(default_factory=list)


class Splitter:
    """Collects records until :meth:`take`, which gives their frames and counts and begins anew.

    ``topic_ids`` tells the input topics from others that have had their names. :meth:`begin` says where a partition is
    routed from; without it that is its first record.
    """

    def __init__(self, shards: int, topic_ids: Mapping[str, str] | None = None) -> None:
        self._frames = ShardFrames(shards)
        self._topic_ids = topic_ids or {}
        self._sources: dict[tuple[str, int], Source] = {}
        self._counts = Counts()
        self._trade = TradeDecoder().decode
        self._transfer = Decoder[Transfer](Transfer)
        self._report = Decoder[LiquidationReport](LiquidationReport)

    def begin(self, topic: str, partition: int, first: int) -> None:
        """The next record of a partition is that at ``first`` or one behind it."""
        if (before := self._sources.get((topic, partition))) is not None:
            self._frames.drop(before)
        self._sources[topic, partition] = Source(topic, self._topic_ids.get(topic, ""), partition, first)

    def spread_over(self, spread: Spread, shards: int) -> None:
        """What is added from now on goes to the shards that ``spread`` says, of ``shards`` altogether."""
        self._frames.spread_over(spread, shards)

    def confirmation(self, spread: Spread, places: Iterable[tuple[str, int, int]], time_us: int) -> EventFrame:
        """The frame that says of ``places`` (topic, partition, next offset) that they are routed by ``spread``."""
        sources = [
            SourceRange(topic=topic, topic_id=self._sources[topic, partition].topic_id, partition=partition,
                        first=offset, next=offset)
            for topic, partition, offset in places
        ]  # fmt: skip
        return EventFrame(time=time_us, sources=sources, spread=spread, confirmed=True)

    def tell_lost(self, topic: str, partition: int, reason: str) -> None:
        """Let every shard know that what lies before the place where a partition begins, and was not told, never will
        be. To be called before the first record of the partition is added."""
        self._frames.tell_lost(self._sources[topic, partition], reason)

    def close(self, topic: str, partition: int, next_offset: int) -> None:
        """Let every shard know that all of a partition below ``next_offset`` has been routed."""
        self._frames.close(self._sources[topic, partition], next_offset)

    def add(
        self,
        topic: str,
        value: bytes | None,
        trade_ids: TradeIds,
        *,
        key: bytes | None = None,
        partition: int = 0,
        offset: int = 0,
    ) -> RefusedRecord | None:
        """Add one record of ``topic``; ``trade_ids`` is the memory of its partition.

        What is returned is refused: it is not a valid message, or contradicts one that was routed. Nothing of it was
        added, and the accounts that it names are suspended by the frames.

        Raises:
            SymbolMoved: as :meth:`TradeIds.accept`.
        """
        source = self._sources.get((topic, partition))
        if source is None:
            self.begin(topic, partition, 0)
            source = self._sources[topic, partition]
        try:
            if topic == TRADES:
                self._add_trade(self._trade(value), trade_ids, source, offset)
            elif topic == TRANSFERS:
                self._frames.add_transfer(self._transfer(value), source, offset)
            else:
                self._frames.add_report(self._report(value), source, offset)
        except DecodeError as error:
            refused = RefusedRecord(type(error), str(error), concerned(topic, key, value))
            self._suspend(refused, source, offset)
            return refused
        return None

    def take(self, time_us: int) -> tuple[list[tuple[int, bytes]], Counts]:
        """The frames as (shard, bytes), stamped with ``time_us``, and what was counted."""
        counts, self._counts = self._counts, Counts()
        return self._frames.take(time_us), counts

    def _add_trade(self, trade: Trade, trade_ids: TradeIds, source: Source, offset: int) -> None:
        missing = trade_ids.accept(trade)
        if missing == REPEATED:
            self._counts.repeats += 1
            return
        if missing:
            self._note_gap(trade, missing)
        self._frames.add_trade(trade, source, offset)
        self._counts.fills += 2

    def _suspend(self, refused: RefusedRecord, source: Source, offset: int) -> None:
        """Let the frames tell the accounts that a refused record names."""
        reason = refused.reason[:REASON_MAX]
        for account in refused.whom.accounts:
            self._frames.add_suspension(
                Suspension(
                    account=account,
                    topic=source.topic,
                    partition=source.partition,
                    offset=offset,
                    reason=reason,
                ),
                source,
            )

    def _note_gap(self, trade: Trade, missing: int) -> None:
        self._counts.missing += missing
        if len(self._counts.gaps) < GAPS_NAMED_MAX:
            self._counts.gaps.append(Gap(trade.symbol, trade.trade_id, missing))
