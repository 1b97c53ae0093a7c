"""Frames without the rows that were there before, without a line of the engine's code for it."""

from typing import Any

import msgspec

from schemas.messages import EventFrame
from streams.memory.scheduler import Violation

Told = dict[tuple[str, int], int]
"""Up to which offset of each input partition a shard has been told."""


def without_repeats(frame: EventFrame, told: Told) -> EventFrame:
    """``frame`` without its repeated rows; ``told`` goes on.

    Raises:
        Violation: the frame begins beyond what has been told.
    """
    places = [(source.topic, source.partition) for source in frame.sources]
    had = [told.get(place, 0) for place in places]
    for source, place, before in zip(frame.sources, places, had, strict=True):
        if source.first > before:
            raise Violation(f"a frame begins where its shard has been told: {source}, told {before}")
        told[place] = max(before, source.next)
    floor = dict(zip(places, had, strict=True))
    kept: dict[str, Any] = {
        "suspensions": [s for s in frame.suspensions if s.offset >= floor.get((s.topic, s.partition), 0)]
    }
    for kind in ("transfers", "fills", "reports"):
        columns = getattr(frame, kind)
        fields = {name: getattr(columns, name) for name in columns.__struct_fields__}
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
        ("report", r, (r.order_id, r.status, r.filled_quantity)),
    ):
        for source, offset, *row in zip(columns.source, columns.source_offset, *values, strict=True):
            place = frame.sources[source]
            events.append(((place.topic, place.partition, offset), (kind, *row)))
    return events
