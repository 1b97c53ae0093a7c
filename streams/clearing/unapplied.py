"""What of an account lies in the dead letters, by the record it came from, until it is repaired.

A repair is applied once, and only for an event that is owed: what is sent twice, or for a record of which nothing is
missing, must move nothing.
"""

from collections.abc import Mapping
from typing import Any

from schemas.messages import EventFrame, FillColumns, OwedEvents, SourceRange, TransferColumns
from streams.feeds.source_names import source_name

PLACES_MAX = 256
"""Records of which an account remembers that it owes events of them; the events of further ones are only counted."""

_SIDES_OF_A_TRADE = 2


class Unapplied:
    """The events of one account that are in the dead letters.

    ``events`` is how many may make the account worse than it looks, ``credits`` how many others there are. ``by_place``
    says of which records they are; those of versions that did not say where an event came from, and those beyond
    ``PLACES_MAX`` records, are counted without. As long as there are such, the records that were repaired stay there,
    with nothing that is owed.
    """

    __slots__ = ("by_place", "credits", "events")

    def __init__(self, events: int = 0, credits: int = 0, by_place: Mapping[str, OwedEvents] | None = None) -> None:
        self.events = events
        self.credits = credits
        self.by_place: dict[str, OwedEvents] = dict(by_place or {})

    def __bool__(self) -> bool:
        return bool(self.events or self.credits)

    def add(self, place: str, *, credit: bool = False, whole: bool = False) -> None:
        """Owe one event more, of the record at ``place`` ("": it is not known of which).

        ``whole``: the record could not be read, so how many events of the account are in it is not known.
        """
        self.events += not credit
        self.credits += credit
        if not place or (place not in self.by_place and len(self.by_place) >= PLACES_MAX):
            return
        owed = self.by_place.get(place, OwedEvents())
        self.by_place[place] = OwedEvents(
            events=owed.events + (not credit), credits=owed.credits + credit, whole=owed.whole or whole
        )

    def owes(self, place: str) -> bool:
        """Whether an event of the record at ``place`` is owed, or one of which it is not known where it came from."""
        known = self._find(place)
        if known is None:
            return self._unplaced() != (0, 0)
        return bool(self.by_place[known].events or self.by_place[known].credits)

    def read(self, place: str, rows: int) -> None:
        """A record that could not be read turns out to have so many events of the account."""
        known = self._find(place)
        if known is not None and self.by_place[known].whole:
            self.events += rows - 1
            owed = self.by_place[known]
            self.by_place[known] = OwedEvents(events=owed.events + rows - 1, credits=owed.credits)

    def settle(self, place: str, *, credit: bool) -> None:
        """One event of the record at ``place`` has been applied."""
        known = self._find(place)
        owed = None if known is None else self.by_place[known]
        events, credits = self._unplaced() if owed is None else (owed.events, owed.credits)
        is_credit = bool(credits) and (credit or not events)
        self.credits -= is_credit
        self.events -= not is_credit
        if known is not None:
            self.by_place[known] = OwedEvents(events=events - (not is_credit), credits=credits - is_credit)
        elif place and len(self.by_place) < PLACES_MAX:
            self.by_place[place] = OwedEvents()
        if self._unplaced() == (0, 0):
            self.by_place = {place: owed for place, owed in self.by_place.items() if owed.events or owed.credits}

    def _find(self, place: str) -> str | None:
        """The place as it is remembered, None if nothing of it is owed."""
        if place in self.by_place:
            return place
        return next((known for known in self.by_place if place and is_same(known, place)), None)

    def _unplaced(self) -> tuple[int, int]:
        """How many events, and how many credits, are owed of which the place is not known."""
        placed = self.by_place.values()
        return self.events - sum(owed.events for owed in placed), self.credits - sum(owed.credits for owed in placed)


def place_of(source: SourceRange, offset: int) -> str:
    """``topic:partition:topic id@offset``, as accounts name a record."""
    return f"{source_name(source)}@{offset}"


def is_same(place: str, other: str) -> bool:
    """Whether two places are one record, as far as they say: routers of earlier versions did not say the topic's id."""
    mine, others = source_of(place), source_of(other)
    has_both_ids = mine.topic_id and others.topic_id
    return (mine.topic, mine.partition, mine.first) == (others.topic, others.partition, others.first) and (
        mine.topic_id == others.topic_id or not has_both_ids
    )


def place_of_row(frame: EventFrame, columns: Any, index: int) -> str:
    """The record that a row of ``columns`` of ``frame`` came from, "" if the frame does not say so."""
    return place_of(frame.sources[columns.source[index]], columns.source_offset[index]) if frame.sources else ""


def source_of(place: str) -> SourceRange:
    """The record at ``place`` as a range of its source."""
    name, _, offset = place.rpartition("@")
    topic, partition, topic_id = name.split(":", 2)
    return SourceRange(
        topic=topic, topic_id=topic_id, partition=int(partition), first=int(offset), next=int(offset) + 1
    )


def rows_at(frame: EventFrame, columns: TransferColumns | FillColumns, account: str, place: str) -> int:
    """How many rows of ``columns`` are events of ``account`` in the record at ``place``: no more than it can have."""
    count = sum(
        name == account and place_of_row(frame, columns, index) == place for index, name in enumerate(columns.account)
    )
    return min(count, 1 if isinstance(columns, TransferColumns) else _SIDES_OF_A_TRADE)
