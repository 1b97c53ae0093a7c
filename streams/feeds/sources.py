"""Which records of the exchange's partitions a shard has had: told by its frames, kept in its journal.

A source is one partition of one topic; a topic that was made anew under its name has other sources. A frame says which
records of its sources it covers, so whatever is routed twice is dropped row by row, by the offset each row came from.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from schemas.codec import DecodeError, Decoder
from schemas.messages import ROW_KINDS, EventFrame, JournalRecord, SourceRange, rows_of
from schemas.topics import EVENTS
from streams.broker.records import Log
from streams.feeds.journal import read_journal

ALL_EVERY = 1000
"""Every so many records of a journal, one names all sources; the others name those that moved."""

_EVENT_FRAME = Decoder[EventFrame](EventFrame)


class Sources:
    """The next offset of each source of one shard, by its name.

    ``told_at`` is the offset of the last journal record that names all of them (-1: none does). ``are_followed``: one
    of them is a partition of a topic that has an id, so routers say how far they are in it.
    """

    def __init__(self, next_offsets: Mapping[str, int] | None = None, told_at: int = -1) -> None:
        self.next: dict[str, int] = dict(next_offsets or {})
        self.told_at = told_at
        self._moved: set[str] = set()
        self.are_followed = any(_has_topic_id(name) for name in self.next)

    def admit(self, frame: EventFrame) -> EventFrame:
        """``frame`` without the rows that the shard has had; what it covers counts as had from here on.

        A repaired frame says where its rows came from, and covers nothing: it is sent by hand, to be applied.
        """
        if frame.repaired or not frame.sources:
            return frame
        had = [self.next.get(source_name(source), 0) for source in frame.sources]
        for source in frame.sources:
            self._advance(source_name(source), source.next)
        if all(source.first >= offset for source, offset in zip(frame.sources, had, strict=True)):
            return frame
        return _without(frame, had)

    def cover(self, frame: EventFrame) -> None:
        """Count what ``frame`` covers as had; it was applied before."""
        for source in () if frame.repaired else frame.sources:
            self._advance(source_name(source), source.next)

    def resume(self, next_offsets: Mapping[str, int]) -> None:
        """Stand at ``next_offsets`` or beyond; a journal says so already."""
        for name, offset in next_offsets.items():
            self.next[name] = max(offset, self.next.get(name, 0))
            self.are_followed |= _has_topic_id(name)

    def take_moved(self) -> dict[str, int]:
        """The next offset of each source that moved since the last call."""
        moved = {name: self.next[name] for name in sorted(self._moved)}
        self._moved.clear()
        return moved

    def take_all(self) -> dict[str, int]:
        """The next offset of every source; none has moved since then."""
        self._moved.clear()
        return dict(sorted(self.next.items()))

    def _advance(self, name: str, offset: int) -> None:
        if offset > self.next.get(name, 0):
            self.next[name] = offset
            self._moved.add(name)
            self.are_followed = self.are_followed or _has_topic_id(name)


def source_name(source: SourceRange) -> str:
    """What journals call the source of a range."""
    return name_of(source.topic, source.topic_id, source.partition)


def name_of(topic: str, topic_id: str, partition: int) -> str:
    """``topic:partition:topic id``, as journals name a source."""
    return f"{topic}:{partition}:{topic_id}"


def _has_topic_id(name: str) -> bool:
    return not name.endswith(":")


def sources_as_of(logs: Log, record: JournalRecord | None, end: int, events_next: int) -> Sources:
    """The sources of the shard that ``record`` is of, the last of its journal that can be read.

    ``end`` is the offset of the journal's last record, and ``events_next`` that of the first event frame that the shard
    has not had: frames tell what the journal does not.

    Raises:
        BrokerError: Kafka does not answer.
    """
    if record is None:
        return Sources()
    sources, known_next = Sources(record.sources, end), record.events.next
    if record.sources_told_at >= 0:
        sources.told_at = record.sources_told_at
        before, is_whole = 0, True
        for entry in read_journal(logs, record.shard, record.sources_told_at, end):
            if entry.record is not None:
                sources.resume(entry.record.sources)
                before = entry.record.events.next if is_whole else before
            elif is_whole:
                is_whole, known_next = False, before
    if known_next < events_next:
        for message in logs.read_range(EVENTS, record.shard, known_next, events_next):
            with suppress(DecodeError):  # it went to the dead letters as a whole
                sources.cover(_EVENT_FRAME(message.value()))
    return sources


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
