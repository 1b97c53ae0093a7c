"""Frames without the rows that were there before, without a line of the engine's code for it."""

from typing import Any

import msgspec
from msgspec import UNSET

from schemas.messages import EventFrame, Spread
from streams.memory.scheduler import Violation

Place = tuple[str, int]
"""Topic and partition."""
_NOTHING_OF_IT = 2**63
"""Beyond every offset."""


class Told:
    """What one shard has been told of each input partition: by which layout, and up to which offset.

    Where a partition is confirmed to be routed by another layout, all from there on is told again by that one, and what
    is still told by one before it says nothing. ``is_founder``: the shard has been there from the first record on;
    others are told from the offsets on that are confirmed.
    """

    def __init__(self, *, is_founder: bool) -> None:
        self.versions: dict[Place, int] = {}
        self.next: dict[Place, int] = {}
        self._is_founder = is_founder

    def knows(self, place: Place, end: int) -> bool:
        """Whether it knows everything of ``place`` below ``end``."""
        return self.next.get(place, 0) >= end

    def take(self, place: Place, version: int, first: int, end: int, *, confirmed: bool) -> int:
        """Take in a range; the offset below which its rows have been there before, or say nothing.

        Raises:
            Violation: it begins beyond what has been told, or by a layout of which nobody has said that it is followed.
        """
        known = self.versions.get(place, 0)
        if version < known or (version > known and first == end and not confirmed):
            return _NOTHING_OF_IT
        had = self.next.get(place, 0 if self._is_founder else first)
        if first > had:
            raise Violation(f"a frame begins where its shard has been told: {place} {first}, told {had}")
        if version > known:
            if not confirmed:
                raise Violation(f"a layout is followed once that is confirmed: {place} by {version}, confirmed {known}")
            self.versions[place], self.next[place] = version, first
            return had
        self.next[place] = max(had, end)
        return had


def version_of(frame: EventFrame) -> int:
    """The version of the layout by which the rows of ``frame`` were routed."""
    return frame.spread.version if isinstance(frame.spread, Spread) else 0


def without_repeats(frame: EventFrame, told: Told) -> EventFrame:
    """``frame`` without its repeated rows; ``told`` goes on.

    Raises:
        Violation: as :meth:`Told.take`.
    """
    places = [(source.topic, source.partition) for source in frame.sources]
    version, confirmed = version_of(frame), frame.confirmed is True
    had = [
        told.take(place, version, source.first, source.next, confirmed=confirmed)
        for source, place in zip(frame.sources, places, strict=True)
    ]
    floor = dict(zip(places, had, strict=True))
    kept: dict[str, Any] = {
        "suspensions": [s for s in frame.suspensions if s.offset >= floor.get((s.topic, s.partition), 0)]
    }
    for kind in ("transfers", "fills", "reports"):
        columns = getattr(frame, kind)
        fields = {name: values for name in columns.__struct_fields__ if (values := getattr(columns, name)) is not UNSET}
        new = [n for n, offset in enumerate(columns.source_offset) if offset >= had[columns.source[n]]]
        kept[kind] = type(columns)(**{name: [values[n] for n in new] for name, values in fields.items()})
    return msgspec.structs.replace(frame, **kept)


def events_of(frame: EventFrame) -> list[tuple[tuple[str, int, int], tuple[Any, ...]]]:
    """Every event of ``frame`` with the place of the record that it came from."""
    events: list[tuple[tuple[str, int, int], tuple[Any, ...]]] = [
        ((s.topic, s.partition, s.offset), ("suspension", s.account, s.topic, s.partition, s.offset))
        for s in frame.suspensions
    ]
    t, f, r = frame.transfers, frame.fills, frame.reports
    for kind, columns, values in (
        ("transfer", t, (t.account, t.margin, t.asset, t.amount, t.sequence)),
        ("fill", f, (f.account, f.margin, f.symbol, f.quantity, f.price, f.fee, f.order_id, f.trade_id)),
        ("report", r, (r.account, r.order_id, r.status, r.filled_quantity)),
    ):
        for source, offset, *row in zip(columns.source, columns.source_offset, *values, strict=True):
            place = frame.sources[source]
            events.append(((place.topic, place.partition, offset), (kind, *row)))
    return events
