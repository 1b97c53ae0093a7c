"""Which records of the exchange's partitions a shard has had: told by its frames, kept in its journal.

A source is one partition of one topic; a topic that was made anew under its name has other sources. A frame says which
records of its sources it covers, so whatever is routed twice is dropped row by row, by the offset each row came from.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from schemas.codec import DecodeError, Decoder
from schemas.messages import ROW_KINDS, EventFrame, JournalRecord, Lost, SourceRange, rows_of
from schemas.topics import EVENTS, TRADES, TRANSFERS
from schemas.types import AlertKind
from streams.broker.records import Log
from streams.feeds.journal import read_journal
from streams.feeds.moves import Moves
from streams.feeds.source_names import source_name

ALL_EVERY = 1000
"""Every so many records of a journal, one names all sources; the others name those that moved."""

Told = tuple[AlertKind, str]
"""An alert about a shard: its kind and its reason."""

_ALL = 2**63
"""Beyond every offset."""

_EVENT_FRAME = Decoder[EventFrame](EventFrame)


class Sources:
    """What one shard has had of each source, by its name: everything before its next offset.

    Routers tell a shard every record of a partition, so a frame that begins beyond what the shard has had says that
    something is gone. Such a source is ``missing``, with the offset at which its frames go on: nothing of it is applied
    until a frame goes on where the shard stands, or an operator has said that what is missing is ``lost``. Nor is
    anything of a topic that was made anew under the name of one that is known. ``stuck`` says, by topic and partition,
    where the shard stands in the sources that are missing.

    ``told_at`` is the offset of the last journal record that names all sources (-1: none does). ``are_followed``: one
    of them is a partition of a topic that has an id, so routers say how far they are in it. ``moves`` says which rows
    are the shard's while accounts move between shards.
    """

    def __init__(
        self,
        next_offsets: Mapping[str, int] | None = None,
        told_at: int = -1,
        missing: Mapping[str, int] | None = None,
        lost: Mapping[str, Lost] | None = None,
        moves: Moves | None = None,
    ) -> None:
        self.moves = moves or Moves(-1)
        self.next: dict[str, int] = dict(next_offsets or {})
        self.missing: dict[str, int] = dict(missing or {})
        self.lost: dict[str, Lost] = dict(lost or {})
        self.told_at = told_at
        self._moved: set[str] = set()
        self._told: list[Told] = []
        self._lost_money: list[str] = []
        self._names: dict[tuple[str, int], str] = {}
        self.are_followed = False
        self.stuck: dict[tuple[str, str], dict[int, int]] = {}
        self.resume(self.next)

    def admit(self, frame: EventFrame, offset: int = -1) -> EventFrame:
        """``frame``, at ``offset``, without the rows that the shard has had, that do not follow what it has had, or
        that are another shard's.

        What is applied of it counts as had from here on. A repaired frame says where its rows came from, and covers
        nothing: it is sent by hand, to be applied.
        """
        moves = self.moves
        if not moves.may_concern(frame):
            return self._without_repeats(frame, self._take)
        before = moves.before(offset, self.next, self.missing) if moves.may_begin(frame) else None

        def take(source: SourceRange) -> int:
            name = source_name(source)
            if moves.is_outdated(name, frame):
                return _ALL
            is_first = moves.confirms(name, frame)
            had = self._take(source)
            if is_first and had != _ALL:
                moves.confirm(name, frame, had, source.first)
                self.next[name] = source.first  # all from here on is told again, as this layout says
                self._moved.add(name)
            return had

        return moves.apply(offset, frame, self._without_repeats(frame, take), before)

    def _without_repeats(self, frame: EventFrame, take: Callable[[SourceRange], int]) -> EventFrame:
        if frame.repaired or not frame.sources:
            return frame
        had = [take(source) for source in frame.sources]
        if all(source.first >= offset for source, offset in zip(frame.sources, had, strict=True)):
            return frame
        return _without(frame, had)

    def resume(self, next_offsets: Mapping[str, int]) -> None:
        """Stand at ``next_offsets``, which a journal says."""
        for name, offset in next_offsets.items():
            self.next[name] = offset
            self._know(name)
        self._find_stuck()

    def take_told(self) -> list[Told]:
        """The alerts about what is missing and what is lost, since the last call."""
        told, self._told = self._told, []
        return told

    def take_lost_money(self) -> list[str]:
        """What of trades and transfers an operator has said to be lost, since the last call: anybody may lack it."""
        lost, self._lost_money = self._lost_money, []
        return lost

    def take_moved(self) -> dict[str, int]:
        """The next offset of each source that moved since the last call."""
        moved = {name: self.next[name] for name in sorted(self._moved)}
        self._moved.clear()
        return moved

    def take_all(self) -> dict[str, int]:
        """The next offset of every source; none has moved since then."""
        self._moved.clear()
        return dict(sorted(self.next.items()))

    # --- one range ---------------------------------------------------------------------------------------------------

    def _take(self, source: SourceRange) -> int:
        """Count a range as had if it follows; the offset below which its rows are not to be applied."""
        name = source_name(source)
        known = self._names.get((source.topic, source.partition), name)
        is_other = known != name and bool(source.topic_id)
        had = self.next.get(name, source.first)
        if source.lost and (is_other or source.first > had):
            self._lose(known if is_other else name, source, had)
            had = source.first
        elif is_other or source.first > had:
            self._miss(name, known if is_other else "", source)
            return _ALL
        elif name in self.missing:
            del self.missing[name]
            self._find_stuck()
            self._told.append(("input_missing_cleared", f"{name} goes on at {had}, where this shard stands"))
        if source.next > self.next.get(name, -1):
            self.next[name] = source.next
            self._moved.add(name)
            self._know(name)
        return had

    def _miss(self, name: str, known: str, source: SourceRange) -> None:
        """Note that a range does not follow what the shard has had of it, or of ``known``, the topic of the name."""
        if name in self.missing:
            return
        self.missing[name] = source.first
        self._find_stuck()
        what = (
            f"{name} is another topic than {known}, of which this shard has had what is before {self.next[known]}"
            if known
            else f"{name} goes on at {source.first}, and this shard has had what is before {self.next[name]}"
        )
        self._told.append(("input_missing", f"{what}: nothing of it is applied until what is missing comes, or an "
                           "operator says that it is lost (margin-clearing accept-offset)"))  # fmt: skip

    def _lose(self, known: str, source: SourceRange, had: int) -> None:
        """Go on without what an operator has said to be lost: the rest of ``known``, or what is before the range."""
        name = source_name(source)
        before = self.lost.pop(known, Lost(records=0, reason=""))
        records = source.first - had if known == name else 0
        self.lost[name] = Lost(records=before.records + records, reason=source.lost)
        for gone in (name, known):
            self.missing.pop(gone, None)
        if known != name:
            del self.next[known]
            self._moved.discard(known)
            self.told_at = -1
        self._find_stuck()
        what = f"records {had} to {source.first - 1}" if known == name else f"what {known} held beyond"
        told = f"{name} goes on at {source.first} without {what}: {source.lost}"
        self._told.append(("input_lost", told))
        if source.topic in (TRADES, TRANSFERS):
            self._lost_money.append(told)

    def _know(self, name: str) -> None:
        topic, partition, topic_id = name.split(":", 2)
        if topic_id:  # routers of earlier versions did not say it
            self._names[topic, int(partition)] = name
            self.are_followed = True

    def _find_stuck(self) -> None:
        self.stuck.clear()
        for name in self.missing:
            topic, partition, topic_id = name.split(":", 2)
            self.stuck.setdefault((topic, topic_id), {})[int(partition)] = self.next.get(name, 0)


def sources_as_of(logs: Log, record: JournalRecord | None, end: int, events_next: int) -> Sources:
    """The sources of the shard that ``record`` is of, the last of its journal that can be read.

    ``end`` is the offset of the journal's last record, and ``events_next`` that of the first event frame that the shard
    has not had: frames tell what the journal does not.

    Raises:
        BrokerError: Kafka does not answer.
    """
    if record is None:
        return Sources()
    sources, known_next = Sources({}, end), record.events.next
    if record.sources_told_at >= 0:
        sources.told_at = record.sources_told_at
        before, is_whole = 0, True
        for entry in read_journal(logs, record.shard, record.sources_told_at, end):
            if entry.record is not None:
                sources.resume(entry.record.sources)
                before = entry.record.events.next if is_whole else before
            elif is_whole:
                is_whole, known_next = False, before
    sources.resume(record.sources)
    _admit_all(sources, logs, record.shard, known_next, record.events.next)
    known = Sources(sources.next, sources.told_at, record.missing, record.lost, Moves(record.shard, record.moves))
    _admit_all(known, logs, record.shard, record.events.next, events_next)
    _recall_early(known.moves, logs, record.shard, record.events.next)
    return known


def _recall_early(moves: Moves, logs: Log, shard: int, events_next: int) -> None:
    """Read again the rows that came before their accounts: no row of an account keeps them."""
    early = moves.early
    if early is None or early.offset >= events_next:
        return
    then = Sources(early.next, missing=early.missing, moves=Moves(shard, early.moves))
    _admit_all(then, logs, shard, early.offset, events_next)
    moves.early_rows, moves.parts = then.moves.early_rows, then.moves.parts


def _admit_all(sources: Sources, logs: Log, shard: int, first: int, end: int) -> None:
    """Count as had what the frames from ``first`` up to, not including, ``end`` tell; alerts have been given."""
    if first < end:
        for message in logs.read_range(EVENTS, shard, first, end):
            with suppress(DecodeError):  # it went to the dead letters as a whole
                sources.admit(_EVENT_FRAME(message.value()), message.offset())
    sources.take_told()
    sources.moves.take_come()
    sources.moves.take_acknowledged()


def _without(frame: EventFrame, had: list[int]) -> EventFrame:
    """``frame`` without the rows from before ``had``, the next offset of each of its sources."""
    places = {(source.topic, source.partition): offset for source, offset in zip(frame.sources, had, strict=True)}
    kept: dict[str, Any] = {
        "suspensions": [
            suspension
            for suspension in frame.suspensions
            if suspension.offset >= places.get((suspension.topic, suspension.partition), 0)
        ]
    }
    for kind in ROW_KINDS:
        columns = getattr(frame, kind)
        rows = zip(columns.source, columns.source_offset, strict=True)
        new = [index for index, (source, offset) in enumerate(rows) if offset >= had[source]]
        if len(new) < len(columns.account):
            kept[kind] = rows_of(columns, new)
    return replace(frame, **kept)


def missing_sentences(shard: str, missing: Mapping[str, int], lost: Mapping[str, Lost]) -> Iterator[str]:
    """What a journal says of what its shard was not told of the exchange's partitions, and what to do."""
    for name, goes_on in missing.items():
        topic, partition, _ = name.split(":", 2)
        yield (
            f"{shard}: frames of {name} go on at {goes_on}, beyond what it has had, and nothing of it is applied: if "
            "the records are there, have a router begin at them; if they are gone, say so, and check the accounts that "
            f"they concern (margin-clearing accept-offset {topic} {partition} OFFSET --reason TEXT)."
        )
    for name, gone in lost.items():
        count = f"{gone.records:,} records" if gone.records else "records"
        yield (
            f"{shard}: {count} of {name} were never applied and will not be ({gone.reason}): what the accounts hold "
            "that they concern is not known; check them against the exchange's books."
        )
