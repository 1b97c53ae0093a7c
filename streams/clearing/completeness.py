"""What a shard knows of what it lacks: has everything come that Kafka had acknowledged before a frame was written?

Nothing orders two topics, nor two partitions of one: a trade may come before the deposit that was acknowledged before
the trade was published. A router therefore says how far it is, and then asks where the exchange's partitions end
(``margin.progress.v1``). Those ends are a *cut*: whatever had been acknowledged before a record in one of the frames
that the router had written by then was published lies below it, and a cut that the shard has been told up to in every
source is reached. What follows for an account is decided elsewhere.

All of this follows from the records of progress alone, in their order and at the broker's times of them; no clock of a
host takes part, nor the shard's.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from schemas.messages import Behind, RouterProgress
from schemas.topics import PROGRESS
from streams.feeds.progress import frame_of
from streams.feeds.source_names import name_of
from streams.feeds.sources import Told

Topic = tuple[str, str]
"""A topic's name and id."""

Offsets = npt.NDArray[np.int64]

BEHIND_US = 250_000
"""A source is known to be behind when a cut has waited for it for so long."""

CUTS_MAX = 64
_SPACING_US = 100_000
"""Cuts that say nothing of a new frame are so far apart, by the broker's time."""

_NO_LIMIT = 2**63 - 1
_COLUMNS_MAX = 512
_ROUTERS_MAX = 1024


@dataclass(frozen=True, slots=True)
class _Columns:
    """What a record says of one topic, as columns: the partitions that the router owns, how far it is in each, and
    where all of them end."""

    topic: Topic
    partitions: Offsets
    next: Offsets
    ends: Offsets


class _Sources:
    """The partitions of one topic: how far each has been told, when it last moved, and whether it is left out."""

    __slots__ = ("left_out", "moved_us", "next")

    def __init__(self) -> None:
        self.next: Offsets = np.zeros(0, dtype=np.int64)
        self.moved_us: Offsets = np.zeros(0, dtype=np.int64)
        self.left_out = np.zeros(0, dtype=np.bool_)

    def grow(self, count: int) -> None:
        """Have room for ``count`` partitions."""
        if (more := count - self.next.size) > 0:
            self.next = np.concatenate([self.next, np.zeros(more, dtype=np.int64)])
            self.moved_us = np.concatenate([self.moved_us, np.zeros(more, dtype=np.int64)])
            self.left_out = np.concatenate([self.left_out, np.zeros(more, dtype=np.bool_)])


@dataclass(slots=True)
class Cut:
    """Where the exchange's partitions ended when a router asked (-1: no leader has told yet).

    It asked after it had written all frames up to ``frame``, and after ``asked_after_us`` of the broker's time.
    ``offset`` is the place of the record, ``taken_us`` the broker's time of it.
    """

    offset: int
    frame: int
    asked_after_us: int
    taken_us: int
    ends: dict[Topic, Offsets]
    has_unknown: bool

    def is_below(self, topic: Topic, partition: int, offset: int) -> bool:
        """Whether a record was there when the ends were asked for."""
        ends = self.ends.get(topic)
        return ends is not None and partition < ends.size and offset < int(ends[partition])

    def learn(self, topic: Topic, ends: Offsets) -> None:
        """What could not be told then, a later record may say."""
        mine = self.ends.get(topic)
        if mine is not None:
            count = min(mine.size, ends.size)
            mine = mine.copy()
            mine[:count] = np.where(mine[:count] < 0, ends[:count], mine[:count])
            self.ends[topic] = mine
            self.has_unknown = any(bool((known < 0).any()) for known in self.ends.values())


class Completeness:
    """How far one shard is complete.

    ``reached`` are the cuts that were reached with the last record. ``is_silent``: no router says how far it is.
    """

    def __init__(self, shard: int, behind: Mapping[str, Behind] | None = None) -> None:
        self._shard = shard
        self.reached: list[Cut] = []
        self.is_silent = False
        self._frame, self._after_us, self._offset = -1, 0, -1
        self._newest_frame, self._newest_us = -1, -_SPACING_US
        self._cuts: deque[Cut] = deque()
        self._sources: dict[Topic, _Sources] = {}
        self._said_us: dict[str, int] = {}
        self._heard_us = self._now_us = self._silent_us = 0
        for name, source in (behind or {}).items():
            self._resume(name, source)

    def _resume(self, name: str, behind: Behind) -> None:
        if name == PROGRESS:
            self.is_silent, self._silent_us = True, behind.since
            return
        topic, partition, topic_id = name.split(":", 2)
        sources, number = self._of((topic, topic_id), int(partition) + 1), int(partition)
        sources.next[number], sources.moved_us[number] = behind.next, behind.since
        sources.left_out[number] = behind.left_out

    def _of(self, topic: Topic, count: int) -> _Sources:
        sources = self._sources.get(topic)
        if sources is None:
            sources = self._sources[topic] = _Sources()
        sources.grow(count)
        return sources

    # --- what comes --------------------------------------------------------------------------------------------------

    def hear(self, clock_us: int) -> None:
        """A frame of a router's has been applied at the shard's time ``clock_us``, whenever it was written."""
        self._heard_us = max(self._heard_us, clock_us)

    def is_quiet_for(self, us: int, appended_us: int) -> bool:
        """Whether nothing had come from a router for so long before ``appended_us``, or ever."""
        return appended_us - self._heard_us > us

    def walk(
        self,
        offset: int,
        progress: RouterProgress,
        appended_us: int,
        limit_us: int,
        stuck: Mapping[Topic, Mapping[int, int]],
    ) -> list[Told]:
        """Learn how far a router is, whose frames up to then have been applied. What is to be told of it.

        ``limit_us`` is how long a source that does not move is waited for. ``stuck``: where the shard stands in the
        partitions of which it misses something, however far the router is.
        """
        told: list[Told] = []
        self.reached.clear()
        self._now_us = max(self._now_us, appended_us)
        self._heard_us = max(self._heard_us, appended_us)
        if self.is_silent:
            self.is_silent = False
            told.append(("input_behind_cleared", "routers say again how far they are"))
        columns = _columns_of(progress)
        for said in columns:
            told += self._advance(said, stuck.get(said.topic))
            for cut in self._cuts:
                if cut.has_unknown:
                    cut.learn(said.topic, said.ends)
        self._take_cut(offset, progress, columns, appended_us)
        self._said_us[progress.router] = appended_us
        if len(self._said_us) > _ROUTERS_MAX:
            del self._said_us[min(self._said_us, key=lambda router: self._said_us[router])]
        while self._cuts and not self._is_waiting(self._cuts[0], limit_us, told):
            cut = self._cuts.popleft()
            self._frame, self._after_us = max(self._frame, cut.frame), max(self._after_us, cut.asked_after_us)
            self._offset = cut.offset
            self.reached.append(cut)
        return told

    def listen(self, clock_us: int) -> bool:
        """Count silence from ``clock_us`` of the shard's time if no router has been heard yet; whether that is so."""
        if self._heard_us:
            return False
        self._heard_us = clock_us
        return True

    def fall_silent(self, clock_us: int, limit_us: int) -> list[Told]:
        """Nobody is waited for if no router has written anything for ``limit_us``, at the shard's time ``clock_us``."""
        if self.is_silent or clock_us - self._heard_us <= limit_us:
            return []
        self.is_silent, self._silent_us = True, self._heard_us
        seconds = (clock_us - self._heard_us) / 1e6
        return [
            (
                "input_behind",
                f"no router has said for {seconds:.1f} s how far it is: commands are issued without knowing what is "
                "missing; start the routers, or see why they cannot write to " + PROGRESS,
            )
        ]

    # --- what is known -----------------------------------------------------------------------------------------------

    def has(self, frame: int, after_us: int = 0, offset: int = -1) -> bool:
        """Whether all has come that was acknowledged before ``frame`` was written and before ``after_us``, and a cut
        at ``offset`` of the progress or later was reached; or nobody can be waited for."""
        return self.is_silent or (self._frame >= frame and self._after_us >= after_us and self._offset >= offset)

    def cut_for(self, frame: int, after_us: int, offset: int) -> Cut | None:
        """The oldest cut that answers what :meth:`has` asks, if it is not reached, or was with the last record."""
        for cut in (*self.reached, *self._cuts):
            if cut.frame >= frame and cut.asked_after_us >= after_us and cut.offset >= offset:
                return cut
        return None

    def late_cut(self, limit_us: int) -> int | None:
        """The offset of the oldest cut if it has waited for long for a source which has not stood still for
        ``limit_us``."""
        if not self._cuts or self._now_us - self._cuts[0].taken_us < BEHIND_US:
            return None
        for sources, waiting, since_us in self._waited_for(self._cuts[0]):
            if bool((waiting & ~sources.left_out[: waiting.size] & (self._now_us - since_us < limit_us)).any()):
                return self._cuts[0].offset
        return None

    @property
    def left_out(self) -> tuple[str, ...]:
        """The sources that nobody waits for any more."""
        return tuple(sorted(name for name, behind in self.behind.items() if behind.left_out))

    @property
    def behind(self) -> dict[str, Behind]:
        """The sources that are left out, and those that the oldest cut has waited for for long, by name."""
        behind: dict[str, Behind] = {}
        if self.is_silent:
            behind[PROGRESS] = Behind(next=0, since=self._silent_us, left_out=True)
        for topic, sources in self._sources.items():
            for number in np.flatnonzero(sources.left_out).tolist():
                behind[name_of(*topic, number)] = _behind(sources, number, int(sources.moved_us[number]), left_out=True)
        if self._cuts:
            cut = self._cuts[0]
            for topic in cut.ends:
                sources, waiting, since_us = self._waited_for_of(cut, topic)
                late = waiting & ~sources.left_out[: waiting.size] & (self._now_us - since_us >= BEHIND_US)
                for number in np.flatnonzero(late).tolist():
                    behind[name_of(*topic, number)] = _behind(sources, number, int(since_us[number]), left_out=False)
        return dict(sorted(behind.items()))

    # --- cuts --------------------------------------------------------------------------------------------------------

    def _advance(self, said: _Columns, stuck: Mapping[int, int] | None) -> list[Told]:
        """Note how far a router is in its partitions of a topic; those that were left out and move are told."""
        if stuck:
            limits = [stuck.get(number, _NO_LIMIT) for number in said.partitions.tolist()]
            said = replace(said, next=np.minimum(said.next, np.array(limits, dtype=np.int64)))
        last = int(said.partitions.max(initial=-1))
        sources = self._of(said.topic, max(last + 1, said.ends.size))
        is_new = said.next > sources.next[said.partitions]
        if not is_new.any():
            return []
        moved = said.partitions[is_new]
        back = moved[sources.left_out[moved]].tolist()
        sources.next[moved], sources.moved_us[moved] = said.next[is_new], self._now_us
        sources.left_out[moved] = False
        return [("input_behind_cleared", f"{name_of(*said.topic, number)} moves again") for number in back]

    def _take_cut(self, offset: int, progress: RouterProgress, columns: list[_Columns], appended_us: int) -> None:
        frame, asked_after_us = frame_of(progress, self._shard), self._said_us.get(progress.router, 0)
        if frame <= self._newest_frame and asked_after_us < self._newest_us + _SPACING_US:
            return
        self._newest_frame = max(self._newest_frame, frame)
        self._newest_us = max(self._newest_us, asked_after_us)
        has_unknown = any(-1 in topic.ends for topic in progress.topics)
        ends = {said.topic: said.ends for said in columns}
        if len(self._cuts) >= CUTS_MAX:
            self._cuts.pop()
        self._cuts.append(Cut(offset, frame, asked_after_us, appended_us, ends, has_unknown))

    def _waited_for(self, cut: Cut) -> Iterator[tuple[_Sources, npt.NDArray[np.bool_], Offsets]]:
        for topic in cut.ends:
            yield self._waited_for_of(cut, topic)

    def _waited_for_of(self, cut: Cut, topic: Topic) -> tuple[_Sources, npt.NDArray[np.bool_], Offsets]:
        """Of one topic: its partitions, which of them ``cut`` waits for, and since when each has stood where it is."""
        ends = cut.ends[topic]
        sources = self._of(topic, ends.size)
        waiting = (ends > sources.next[: ends.size]) | (ends < 0)
        return sources, waiting, np.maximum(sources.moved_us[: ends.size], cut.taken_us)

    def _is_waiting(self, cut: Cut, limit_us: int, told: list[Told]) -> bool:
        """Whether a cut waits for any source; one that has not moved for ``limit_us`` is left out and told."""
        is_waiting = False
        for topic, ends in cut.ends.items():
            sources = self._of(topic, ends.size)
            if not cut.has_unknown and bool((ends <= sources.next[: ends.size]).all()):
                continue
            sources, waiting, since_us = self._waited_for_of(cut, topic)
            waiting &= ~sources.left_out[: ends.size]
            for number in np.flatnonzero(waiting & (self._now_us - since_us > limit_us)).tolist():
                sources.left_out[number], sources.moved_us[number], waiting[number] = True, since_us[number], False
                told.append(
                    (
                        "input_behind",
                        f"{name_of(*topic, number)} has stood at {int(sources.next[number])} for "
                        f"{(self._now_us - int(since_us[number])) / 1e6:.1f} s and holds more: commands are issued "
                        "without what is in it; see why no router goes on there",
                    )
                )
            is_waiting |= bool(waiting.any())
        return is_waiting


def _behind(sources: _Sources, number: int, since_us: int, *, left_out: bool) -> Behind:
    return Behind(next=int(sources.next[number]), since=since_us, left_out=left_out)


_columns: dict[int, tuple[RouterProgress, list[_Columns]]] = {}


def _columns_of(progress: RouterProgress) -> list[_Columns]:
    """What a record says as columns; all shards of a process walk the same records, so the last ones are kept."""
    known = _columns.get(id(progress))
    if known is not None and known[0] is progress:
        return known[1]
    columns = [
        _Columns(
            (said.topic, said.topic_id),
            np.array([place.partition for place in said.next], dtype=np.int64),
            np.array([place.offset for place in said.next], dtype=np.int64),
            np.array(said.ends, dtype=np.int64),
        )
        for said in progress.topics
    ]
    if len(_columns) >= _COLUMNS_MAX:
        _columns.clear()
    _columns[id(progress)] = (progress, columns)
    return columns
