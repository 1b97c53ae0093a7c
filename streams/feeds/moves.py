"""Which rows of its frames are a shard's while accounts move between shards, as its frames tell and its journal keeps.

Routers change from one layout to the next each at its own time, and one that has been replaced may go on with the old
one. So it is not the layout of a frame alone that says whose a row is, but the row's own offset:

- The old shard has its accounts until every source is confirmed to be routed by the new layout, and takes all rows of
  them that come until then. Then it sends them away, with the offset up to which it had been told each source when that
  was confirmed: the *floors*.
- The new shard sets the rows aside that come before the accounts (they are *early*). From the floors on rows are its
  own; those before are in the accounts that have come.

A source is confirmed to be routed by a layout in a transaction that its owner's group has let through, at the offset
where the owner is. That owner sends all from there on as the layout says, and so does every later one, since each reads
the layout before it begins and routes nothing before a transaction of its own. What others still send of that source by
an older layout is left out as a whole, and what they have sent of it beyond that offset before is no reason to leave
anything out but rows of accounts that were here already. So no row from a floor on is missing at the new
shard, and none from before one at the old.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from schemas.messages import (
    ROW_KINDS,
    Arrival,
    Arrived,
    Departure,
    Early,
    EventFrame,
    Floor,
    ShardMoves,
    Spread,
    Suspension,
    rows_of,
)
from schemas.partitioning import change_of, home_of, place_of
from streams.feeds.source_names import name_of, source_name

NOT_MOVED = Spread(version=0, shards=1, target=1)
"""What a shard knows whose frames have named no layout: whatever comes to it is its own."""

_NOTHING_YET = ShardMoves(spread=NOT_MOVED)
Holding = Literal["own", "kept", "other"]
"""``own``: the shard decides the account. ``kept``: it has sent the account away, and its row stays until the other
shard has it. ``other``: it is another shard's."""

_OURS, _EARLY, _NOT_OURS = "ours", "early", "not ours"

_place_of = lru_cache(maxsize=100_000)(place_of)

Floors = dict[tuple[Literal["came", "here"], Spread, str], dict[str, int]]
"""Offsets by source; of which accounts, as a :class:`schemas.messages.Floor` says it."""


@dataclass(frozen=True, slots=True)
class Come:
    """Accounts that have come, whole: the parts that they came in, and the rows that came before them."""

    parts: list[Arrival]
    early: list[tuple[int, EventFrame]]


def holding_at(moves: "ShardMoves | Moves", step: int) -> Holding:
    """What a shard still has of its accounts that go to another one with a step of the change that ``moves`` are of."""
    if step <= moves.left:
        return "other"
    departure = moves.departure
    return "kept" if moves.sent and departure is not None and departure.spread.step == step else "own"


class Moves:
    """Where one shard is with the moving of accounts. All but ``early_rows`` and ``parts`` is in its journal.

    ``early_rows`` are the frames, by offset, with the rows of accounts that are still to come; ``parts`` is what has
    come of the next accounts, if it is not all of it.
    """

    def __init__(self, shard: int, said: ShardMoves | msgspec.UnsetType = msgspec.UNSET) -> None:
        said = said or _NOTHING_YET
        self._shard = shard
        self.spread = said.spread
        self._versions = dict(_by_source(said.versions))
        self._cuts = dict(_by_source(said.cuts))
        self.left, self.arrived = said.left, said.arrived
        self.departure, self.sent = said.departure, said.sent
        self.early = said.early
        self._floors = _floors(said.floors)
        self._cut_floors = _floors(said.cut_floors)
        self.early_rows: list[tuple[int, EventFrame]] = []
        self.parts: list[Arrival] = []
        self._come: list[Come] = []
        self._acknowledged = False
        self._strays: list[str] = []

    @property
    def versions(self) -> Mapping[str, int]:
        """By which version of the layout each source is confirmed to be routed, of those that are."""
        return self._versions

    @property
    def is_moving(self) -> bool:
        """Whether accounts are on their way to another number of shards."""
        return self.spread.shards != self.spread.target

    def record(self) -> ShardMoves | msgspec.UnsetType:
        """What the journal keeps; nothing as long as the number of shards has never been changed."""
        return msgspec.UNSET if self.spread.version == 0 else self._said(self.early)

    def before(self, offset: int, known: Mapping[str, int], missing: Mapping[str, int]) -> Early:
        """How everything stands before the frame at ``offset``."""
        return Early(
            offset=offset,
            next=dict(sorted(known.items())),
            missing=dict(sorted(missing.items())),
            moves=self._said(None),
        )

    def _said(self, early: Early | None) -> ShardMoves:
        return ShardMoves(
            spread=self.spread,
            versions=_by_topic(self._versions),
            cuts=_by_topic(self._cuts),
            left=self.left,
            arrived=self.arrived,
            departure=self.departure,
            sent=self.sent,
            early=early,
            floors=_listed(self._floors),
            cut_floors=_listed(self._cut_floors),
        )

    # --- sources -----------------------------------------------------------------------------------------------------

    def may_concern(self, frame: EventFrame) -> bool:
        """Whether anything has to be asked of a frame: not as long as there has been one layout only."""
        if self.spread.version:
            return True
        words = (frame.spread, frame.departure, frame.arrival, frame.arrived)
        return any(word is not msgspec.UNSET for word in words)

    def may_begin(self, frame: EventFrame) -> bool:
        """Whether the first of what is early may be in a frame: then how it stood before is asked for."""
        if self.early is not None:
            return False
        if isinstance(frame.spread, Spread) and frame.spread.shards != frame.spread.target:
            return True
        return self.is_moving or frame.arrival is not msgspec.UNSET

    def is_outdated(self, source: str, frame: EventFrame) -> bool:
        """Whether what ``frame`` holds of a source was sent by somebody who had been replaced."""
        return _version(frame) < self._versions.get(source, 0)

    def confirms(self, source: str, frame: EventFrame) -> bool:
        """Whether ``frame`` confirms, for the first time, that a source is routed by its layout."""
        return bool(frame.confirmed) and _version(frame) > self._versions.get(source, 0)

    def confirm(self, source: str, frame: EventFrame, had: int, first: int) -> None:
        """A source is routed by the layout of ``frame`` from ``first`` on; the shard had been told it up to ``had``."""
        assert not isinstance(frame.spread, msgspec.UnsetType)
        self._learn(frame.spread)
        self._versions[source] = frame.spread.version
        if frame.spread == self.spread:
            self._cuts[source] = had
            for key, offsets in self._floors.items():
                if offsets.get(source, 0) > had:
                    self._cut_floors.setdefault(key, {})[source] = offsets[source]
        if had > first:
            self._floors.setdefault(("here", frame.spread, ""), {})[source] = had

    def _learn(self, spread: Spread) -> None:
        before = self.spread
        if spread.version <= before.version:
            return
        if change_of(before) != change_of(spread):
            self.left = self.arrived = 0
        self.spread = spread
        self._cuts.clear()
        self._cut_floors.clear()

    # --- what frames say ---------------------------------------------------------------------------------------------

    def apply(self, offset: int, frame: EventFrame, admitted: EventFrame, before: Early | None) -> EventFrame:
        """Do what the ``frame`` at ``offset`` says of moves; of its ``admitted`` rows, those that are the shard's.

        ``before`` is how everything stood before the frame, if :meth:`may_begin` asks for it.
        """
        if frame.spread is not msgspec.UNSET:
            self._learn(frame.spread)
        if frame.departure is not msgspec.UNSET:
            self._note_departure(frame.departure)
        if frame.arrival is not msgspec.UNSET:
            self._take(frame.arrival, before)
        if frame.arrived is not msgspec.UNSET:
            self._note_arrived(frame.arrived)
        return self._split(offset, admitted, before)

    def take_come(self) -> list[Come]:
        """The accounts that have come, since the last call."""
        come, self._come = self._come, []
        return come

    def take_acknowledged(self) -> bool:
        """Whether the other shard has said that it has the accounts that were sent away, since the last call."""
        acknowledged, self._acknowledged = self._acknowledged, False
        return acknowledged

    # --- accounts that go --------------------------------------------------------------------------------------------

    def _note_departure(self, departure: Departure) -> None:
        """A word that comes again says nothing new."""
        self._learn(departure.spread)
        if departure.spread == self.spread and departure.spread.step > self.left and not self.sent:
            self.departure = departure

    def waits_for(self, missing: Mapping[str, int]) -> list[str]:
        """The sources that are not routed yet by the layout by which accounts are to be sent away, or of which the
        shard is ``missing`` something."""
        if self.departure is None or self.sent:
            return []
        return [name for name in self.departure.sources if name not in self._cuts or name in missing]

    def is_due(self, missing: Mapping[str, int]) -> bool:
        """Whether accounts are to be sent away now."""
        return self.departure is not None and not self.sent and not self.waits_for(missing)

    def leave(self) -> dict[str, int]:
        """They are sent away now; by source, the offsets below which all rows are in them."""
        self.sent = True
        return dict(sorted(self._cuts.items()))

    def beyond(self, account: str) -> dict[str, int]:
        """By source, the offsets below which all rows are in an account that is sent away, where they are beyond the
        others'."""
        offsets_of: dict[str, int] = {}
        for key, offsets in self._cut_floors.items():
            if self._is_of(account, *key):
                offsets_of |= {name: offset for name, offset in offsets.items() if offset > offsets_of.get(name, 0)}
        return offsets_of

    def _note_arrived(self, arrived: Arrived) -> None:
        if self.departure is not None and self.sent and self.departure.spread == arrived.spread:
            self.left, self.departure, self.sent = arrived.spread.step, None, False
            self._acknowledged = True

    def has_left(self, account: str) -> bool:
        """Whether an account has been sent away."""
        old, _, step = _place_of(account, self.spread)
        return self._is_sent(old, step)

    def elsewhere(self, account: str) -> list[str]:
        """The sources of which a shard may lack what comes of an account that it has: the account is about to go, and
        rows of it come to the other shard already."""
        if not self.is_moving or not self._cuts:
            return []
        old, _, step = _place_of(account, self.spread)
        if not step or step != self.spread.step or old != self._shard or self._is_sent(old, step):
            return []
        return sorted(self._cuts)

    def is_departing(self, account: str) -> bool:
        """Whether an account goes with the departure that is due."""
        assert self.departure is not None
        old, _, step = _place_of(account, self.spread)
        return old == self._shard and step == self.departure.spread.step

    def _is_sent(self, old: int, step: int) -> bool:
        return step > 0 and old == self._shard and holding_at(self, step) != "own"

    # --- accounts that come ------------------------------------------------------------------------------------------

    def _take(self, arrival: Arrival, before: Early | None) -> None:
        """Take in what has come of accounts, in order; all of it, with what was early, once it is whole."""
        self._learn(arrival.spread)
        spread, of = self.spread, arrival.spread
        if change_of(of) != change_of(spread) or of.step <= self.arrived or arrival.part != len(self.parts):
            return
        self.early = self.early or before
        self.parts.append(arrival)
        if len(self.parts) < arrival.parts:
            return
        parts, self.parts = self.parts, []
        self.arrived = of.step
        self._floors["came", of, ""] = dict(arrival.floors)
        for part in parts:
            self._floors |= {("came", of, account): dict(offsets) for account, offsets in part.beyond.items()}
        early, self.early_rows = self.early_rows, []
        come: list[tuple[int, EventFrame]] = []
        for offset, frame in early:
            ours, later = self._rows(frame)
            come.append((offset, ours))
            if later is not None:
                self.early_rows.append((offset, later))
        if not self.early_rows:
            self.early = None
        self._come.append(Come(parts, come))

    # --- whose rows --------------------------------------------------------------------------------------------------

    def _split(self, offset: int, frame: EventFrame, before: Early | None) -> EventFrame:
        if frame.repaired:
            return self._repaired(frame)
        if not frame.sources:
            return frame
        is_older = _version(frame) < self.spread.version
        if not (self.is_moving or is_older or self._floors):
            return frame
        ours, early = self._rows(frame)
        if early is not None:
            self.early = self.early or before
            self.early_rows.append((offset, early))
        return ours

    def _repaired(self, frame: EventFrame) -> EventFrame:
        """What of a repaired frame is for accounts that are here; the others are noted."""
        kept: dict[str, Any] = {}
        for kind in ROW_KINDS:
            columns = getattr(frame, kind)
            here = [index for index, account in enumerate(columns.account) if self.holds(account)]
            if len(here) < len(columns.account):
                kept[kind] = rows_of(columns, here)
                self._strays += [account for account in columns.account if not self.holds(account)]
        return replace(frame, **kept) if kept else frame

    def holds(self, account: str) -> bool:
        """Whether an account is here now, if it is anywhere."""
        return self._whose(account) is _OURS

    def take_strays(self) -> list[str]:
        """The accounts that are not here of which a repaired event has come, since the last call."""
        strays, self._strays = self._strays, []
        return strays

    def _rows(self, frame: EventFrame) -> tuple[EventFrame, EventFrame | None]:
        """The rows of a frame that are the shard's now, and those that will be, if there are any."""
        names = [source_name(source) for source in frame.sources]
        now: dict[str, Any] = {}
        later: dict[str, Any] = {}
        for kind in ROW_KINDS:
            columns = getattr(frame, kind)
            rows = zip(columns.account, columns.source, columns.source_offset, strict=True)
            verdicts = [self._verdict(account, names[source], offset) for account, source, offset in rows]
            mine = [index for index, verdict in enumerate(verdicts) if verdict is _OURS]
            if len(mine) < len(verdicts):
                now[kind] = rows_of(columns, mine)
            if early := [index for index, verdict in enumerate(verdicts) if verdict is _EARLY]:
                later[kind] = rows_of(columns, early)
        told = [(each, self._verdict(each.account, _source_of(each, frame), each.offset)) for each in frame.suspensions]
        if any(verdict is not _OURS for _, verdict in told):
            now["suspensions"] = [each for each, verdict in told if verdict is _OURS]
            if waiting := [each for each, verdict in told if verdict is _EARLY]:
                later["suspensions"] = waiting
        ours = replace(frame, **now) if now else frame
        return ours, EventFrame(time=frame.time, sources=frame.sources, **later) if later else None

    def _verdict(self, account: str, source: str, offset: int) -> str:
        if (whose := self._whose(account)) is not _OURS:
            return whose
        for key, offsets in self._floors.items():
            if offset < offsets.get(source, 0) and self._is_of(account, *key):
                return _NOT_OURS
        return _OURS

    def _whose(self, account: str) -> str:
        """Whose an account is, whatever has been had of its rows."""
        old, new, step = _place_of(account, self.spread)
        if new == self._shard and step > self.arrived:
            return _EARLY
        return _NOT_OURS if self._shard not in (old, new) or self._is_sent(old, step) else _OURS

    def _is_of(self, account: str, kind: str, spread: Spread, only: str) -> bool:
        """Whether a floor is one of ``account``."""
        if only:
            return account == only
        if kind == "here":
            return home_of(account, replace(spread, step=spread.step - 1)) == self._shard
        old, new, step = _place_of(account, spread)
        return step == spread.step and new == self._shard != old

    def forget_floors(self, known: Mapping[str, int]) -> None:
        """Forget what the shard has passed: what is before it is a repeat in any case."""
        for key, offsets in list(self._floors.items()):
            left = {name: offset for name, offset in offsets.items() if known.get(name, 0) < offset}
            if left:
                self._floors[key] = left
            else:
                del self._floors[key]


def _version(frame: EventFrame) -> int:
    return 0 if isinstance(frame.spread, msgspec.UnsetType) else frame.spread.version


def _source_of(suspension: Suspension, frame: EventFrame) -> str:
    """The source of the record that has suspended an account."""
    for source in frame.sources:
        if (source.topic, source.partition) == (suspension.topic, suspension.partition):
            return source_name(source)
    return ""


def _floors(said: Sequence[Floor]) -> Floors:
    return {(floor.kind, floor.spread, floor.account): dict(floor.next) for floor in said}


def _listed(floors: Floors) -> tuple[Floor, ...]:
    ordered = sorted(floors.items(), key=lambda item: (item[0][1].version, item[0][0], item[0][2]))
    return tuple(
        Floor(kind=kind, spread=spread, account=account, next=dict(sorted(offsets.items())))
        for (kind, spread, account), offsets in ordered
    )


def _by_topic(numbers: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Numbers of sources as lists by topic and its id, -1 where there is none."""
    lists: dict[str, list[int]] = {}
    for name in sorted(numbers):
        topic, partition, topic_id = name.split(":", 2)
        held = lists.setdefault(f"{topic}:{topic_id}", [])
        held += [-1] * (int(partition) + 1 - len(held))
        held[int(partition)] = numbers[name]
    return {name: tuple(held) for name, held in lists.items()}


def _by_source(lists: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, int]]:
    for name, held in lists.items():
        topic, topic_id = name.split(":", 1)
        yield from ((name_of(topic, topic_id, number), each) for number, each in enumerate(held) if each >= 0)
