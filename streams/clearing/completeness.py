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
from dataclasses import dataclass, field

from schemas.messages import Behind, RouterProgress, TopicProgress
from schemas.topics import PROGRESS
from schemas.types import AlertKind
from streams.feeds.progress import frame_of
from streams.feeds.sources import name_of

Topic = tuple[str, str]
"""A topic's name and id."""

Told = tuple[AlertKind, str]
"""An alert about a shard: its kind and its reason."""

BEHIND_US = 250_000
"""A source is known to be behind when a cut has waited for it for so long."""

CUTS_MAX = 64
_SPACING_US = 100_000
"""Cuts that say nothing of a new frame are so far apart, by the broker's time."""


@dataclass(slots=True)
class Cut:
    """Where the exchange's partitions ended when a router asked.

    It asked after it had written all frames up to ``frame``, and after ``asked_after_us`` of the broker's time.
    ``offset`` is the place of the record, ``taken_us`` the broker's time of it. ``unknown`` are the ends that no leader
    told, with what a later record says of them (-1: none does).
    """

    offset: int
    frame: int
    asked_after_us: int
    taken_us: int
    topics: list[TopicProgress]
    unknown: dict[tuple[Topic, int], int] = field(default_factory=dict)

    def ends(self) -> Iterator[tuple[Topic, int, int]]:
        """Topic, partition and end of every partition; -1 where it is not known."""
        for topic in self.topics:
            key = (topic.topic, topic.topic_id)
            for partition, end in enumerate(topic.ends):
                yield key, partition, self.unknown[key, partition] if end < 0 else end

    def is_below(self, topic: Topic, partition: int, offset: int) -> bool:
        """Whether a record was there when the ends were asked for."""
        for said in self.topics:
            if (said.topic, said.topic_id) == topic and partition < len(said.ends):
                end = said.ends[partition]
                return offset < (self.unknown[topic, partition] if end < 0 else end)
        return False


class Completeness:
    """How far one shard is complete.

    ``reached`` are the cuts that were reached with the last record. ``behind`` are the sources that the oldest cut
    waits for, or that are left out, by name. ``is_silent``: no router says how far it is.
    """

    def __init__(self, shard: int, behind: Mapping[str, Behind] | None = None) -> None:
        self._shard = shard
        self.reached: list[Cut] = []
        self.behind: dict[str, Behind] = dict(behind or {})
        self.is_silent = PROGRESS in self.behind
        self._frame, self._after_us, self._offset = -1, 0, -1
        self._newest_frame, self._newest_us = -1, -_SPACING_US
        self._cuts: deque[Cut] = deque()
        self._waiting: list[tuple[Topic, int, int]] | None = None
        self._next: dict[Topic, dict[int, int]] = {}
        self._said_us: dict[str, int] = {}
        self._heard_us = 0
        self._now_us = 0

    # --- what comes --------------------------------------------------------------------------------------------------

    def hear(self, appended_us: int) -> None:
        """A router has written a frame."""
        self._heard_us = max(self._heard_us, appended_us)

    def is_quiet_for(self, us: int, appended_us: int) -> bool:
        """Whether nothing had come from a router for so long before ``appended_us``, or ever."""
        return appended_us - self._heard_us > us

    def walk(self, offset: int, progress: RouterProgress, appended_us: int, limit_us: int) -> list[Told]:
        """Learn how far a router is, whose frames up to then have been applied. What is to be told of it.

        ``limit_us`` is how long a source that does not move is waited for.
        """
        told: list[Told] = []
        self.reached.clear()
        self._now_us = max(self._now_us, appended_us)
        self._heard_us = max(self._heard_us, appended_us)
        if self.is_silent:
            self.is_silent = False
            self.behind.pop(PROGRESS, None)
            told.append(("input_behind_cleared", "routers say again how far they are"))
        for topic in progress.topics:
            reached = self._next.setdefault((topic.topic, topic.topic_id), {})
            for place in topic.next:
                if place.offset > reached.get(place.partition, -1):
                    reached[place.partition] = place.offset
            self._learn_unknown(topic)
        self._take_cut(offset, progress, appended_us)
        self._said_us[progress.router] = appended_us
        self._settle(limit_us, told)
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
        self.is_silent = True
        self.behind[PROGRESS] = Behind(next=0, since=self._heard_us, left_out=True)
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
        if self._cuts and self._now_us - self._cuts[0].taken_us >= BEHIND_US:
            for topic, partition, _ in self._waiting or ():
                behind = self.behind.get(name_of(*topic, partition))
                if behind is None or (not behind.left_out and self._now_us - behind.since < limit_us):
                    return self._cuts[0].offset
        return None

    @property
    def left_out(self) -> tuple[str, ...]:
        """The sources that nobody waits for any more."""
        return tuple(sorted(name for name, behind in self.behind.items() if behind.left_out))

    # --- cuts --------------------------------------------------------------------------------------------------------

    def _take_cut(self, offset: int, progress: RouterProgress, appended_us: int) -> None:
        frame, asked_after_us = frame_of(progress, self._shard), self._said_us.get(progress.router, 0)
        if frame <= self._newest_frame and asked_after_us < self._newest_us + _SPACING_US:
            return
        self._newest_frame = max(self._newest_frame, frame)
        self._newest_us = max(self._newest_us, asked_after_us)
        cut = Cut(offset, frame, asked_after_us, appended_us, progress.topics)
        for topic in progress.topics:
            if -1 in topic.ends:
                key = (topic.topic, topic.topic_id)
                cut.unknown |= {(key, number): -1 for number, end in enumerate(topic.ends) if end < 0}
        if len(self._cuts) >= CUTS_MAX:
            self._cuts.pop()
        self._cuts.append(cut)

    def _learn_unknown(self, topic: TopicProgress) -> None:
        """What a cut could not be told, a later record may say."""
        key = (topic.topic, topic.topic_id)
        for cut in self._cuts:
            for place, end in cut.unknown.items():
                if end < 0 and place[0] == key and place[1] < len(topic.ends):
                    cut.unknown[place] = topic.ends[place[1]]

    def _settle(self, limit_us: int, told: list[Told]) -> None:
        """Count every cut as reached that is, the oldest first; leave out what has not moved for too long."""
        for name in [name for name, behind in self.behind.items() if behind.left_out]:
            if self._reached_of(name) > self.behind[name].next:
                del self.behind[name]
                told.append(("input_behind_cleared", f"{name} moves again"))
        while self._cuts:
            cut = self._cuts[0]
            if self._waiting is None:
                self._waiting = list(cut.ends())
            self._waiting = [
                (topic, partition, cut.unknown[topic, partition] if end < 0 else end)
                for topic, partition, end in self._waiting
                if not self._is_reached(cut, topic, partition, end)
            ]
            self._watch(limit_us, told)
            if any(not self.behind[name_of(*topic, partition)].left_out for topic, partition, _ in self._waiting):
                return
            self._frame, self._after_us = max(self._frame, cut.frame), max(self._after_us, cut.asked_after_us)
            self._offset, self._waiting = cut.offset, None
            self.reached.append(self._cuts.popleft())
        self._forget_moving(())

    def _is_reached(self, cut: Cut, topic: Topic, partition: int, end: int) -> bool:
        if end < 0:
            end = cut.unknown[topic, partition]
        return 0 <= end <= self._next.get(topic, {}).get(partition, 0)

    def _watch(self, limit_us: int, told: list[Told]) -> None:
        """Note which sources the oldest cut waits for, and since when each stands where it is."""
        waiting = {name_of(*topic, partition): (topic, partition) for topic, partition, _ in self._waiting or ()}
        self._forget_moving(waiting)
        for name, (topic, partition) in waiting.items():
            at = self._next.get(topic, {}).get(partition, -1)
            behind = self.behind.get(name)
            if behind is None or (behind.next != at and not behind.left_out):
                behind = self.behind[name] = Behind(next=at, since=self._now_us)
            if not behind.left_out and self._now_us - behind.since > limit_us:
                self.behind[name] = Behind(next=at, since=behind.since, left_out=True)
                told.append(
                    (
                        "input_behind",
                        f"{name} has stood at {at} for {(self._now_us - behind.since) / 1e6:.1f} s and holds more: "
                        "commands are issued without what is in it; see why no router goes on there",
                    )
                )

    def _forget_moving(self, waiting: Mapping[str, object] | tuple[()]) -> None:
        for name in [name for name, behind in self.behind.items() if not behind.left_out and name not in waiting]:
            del self.behind[name]

    def _reached_of(self, name: str) -> int:
        topic, partition, topic_id = name.split(":", 2)
        return self._next.get((topic, topic_id), {}).get(int(partition), -1)
