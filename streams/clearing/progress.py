"""What the watchdog, ``/readyz`` and the metrics are told of an engine.

It changes nothing. :meth:`Progress.readiness` may be asked from any thread at any time.
"""

from collections.abc import Iterable

from prometheus_client import Gauge

from streams import probes
from streams.broker.places import Places
from streams.clearing.assignment import Assignment
from streams.clearing.inbox import Inbox
from streams.clearing.shard import Shard
from streams.feeds.marks import MarkFeed
from streams.feeds.unreached import KINDS
from streams.runtime import Runtime
from streams.settings import Settings
from streams.watchdog import Watchdog

UNREACHED = Gauge(
    "margin_engine_unreached",
    "What liquidation does not reach in the owned shards: undecided, unsellable and insolvent groups, suspended "
    "accounts, parked transfers, waiting fills, unapplied events",
    ["kind"],
)

HELD = Gauge("margin_engine_held_accounts", "Accounts in the owned shards whose verdict waits for what was sent before")
MISSING = Gauge("margin_engine_missing_sources", "Sources of which the owned shards lack something and apply nothing")
LOST = Gauge("margin_engine_lost_records", "Records that the owned shards go on without, by an operator's word")
LEFT_OUT = Gauge("margin_engine_left_out_sources", "Sources for which the owned shards do not wait any more")

LOOP = "engine"
"""What the watchdog knows the loop by."""

PARAMETERS_WAITING_MAX = 1_000
"""With more parameter records that are not in force yet an engine is not ready."""
_LOOK_AT_SHARDS_S = 1.0


class Progress:
    """How far an engine is."""

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        watchdog: Watchdog,
        assignment: Assignment,
        inbox: Inbox,
        marks: MarkFeed,
        places: Places,
    ) -> None:
        self._read_places = places
        self._parameters_waiting = 0
        self._settings = settings
        self._runtime = runtime
        self._watchdog = watchdog
        self._assignment = assignment
        self._inbox = inbox
        self._marks = marks
        self._marks_seen: float | None = None
        self._places: dict[str, int] = {}
        self._places_seen = 0.0

    # --- /readyz -----------------------------------------------------------------------------------------------------

    def readiness(self) -> list[probes.Condition]:
        """Whether the engine does its work now."""
        service, seen = self._settings.service, self._marks_seen
        age_ms = None if seen is None else round(1000 * (self._runtime.monotonic() - seen))
        lags = [self._inbox.lag(shard) for shard in tuple(self._assignment.running)]
        return [
            probes.Condition("is_in_group", int(self._assignment.has_joined), 1, "at_least"),
            probes.Condition("shards_to_take", len(self._assignment.to_restore), 0),
            probes.Condition("marks_age_ms", age_ms, service.ready_age_ms),
            probes.Condition(
                "events_lag_frames", _greatest(lags) if lags else 0, self._settings.engine.ready_lag_frames_max
            ),
            probes.Condition("partitions_missing", self._inbox.missing, 0),
            probes.Condition("parameters_to_put_in_force", self._parameters_waiting, PARAMETERS_WAITING_MAX),
            *self._read_places.conditions(),
        ]

    def saw_marks(self) -> None:
        """A mark frame has come."""
        self._marks_seen = self._runtime.monotonic()

    # --- the watchdog ------------------------------------------------------------------------------------------------

    def beat(self, doing: str) -> None:
        """The loop goes on, with this."""
        self._watchdog.beat(LOOP, doing)

    def look_at_shards(self) -> None:
        """Tell the watchdog of every shard that moves, or has nothing to move for."""
        if self._runtime.monotonic() - self._places_seen < _LOOK_AT_SHARDS_S:
            return
        self._places_seen = self._runtime.monotonic()
        for number, shard in self._assignment.running.items():
            marks, events = _places(number)
            self._look_at(marks, shard.marks_next, waiting=shard.marks_next < self._marks.next_offset)
            # What can be read at no time is told, and no new process would read it: the other shards go on.
            waiting = bool(self._inbox.lag(number)) and not self._inbox.is_unreadable(number)
            self._look_at(events, shard.events_next, waiting=waiting)

    def _look_at(self, place: str, offset: int, *, waiting: bool) -> None:
        if not waiting or offset != self._places.get(place):
            self._places[place] = offset
            self._watchdog.beat(place, f"at offset {offset}")

    def putting_in_force(self, records: int, doing: str) -> None:
        """So many parameter records are not in force yet; the loop goes on, and the shards wait for it alone."""
        self._parameters_waiting = records
        self.beat(doing)
        for place in self._places:
            self._watchdog.beat(place, doing)

    def beat_waiting(self) -> None:
        """Restoring has got further, and every shard that waits is nearer to its turn."""
        waiting = self._assignment.to_restore
        for shard in waiting:
            self._watchdog.beat(_taking(shard), f"shard {waiting[0]} is being taken")

    def forget(self, shard: int) -> None:
        """The shard runs from now on, or is gone: it is watched in another way, or not any more."""
        for place in (*_places(shard), _taking(shard)):
            self._places.pop(place, None)
            self._watchdog.forget(place)

    def end(self) -> None:
        """The loop has ended in good order."""
        self._watchdog.forget(LOOP)

    # --- metrics -----------------------------------------------------------------------------------------------------

    @staticmethod
    def show_unreached(shards: Iterable[Shard]) -> None:
        """Set the gauges of what liquidation does not reach in ``shards``, and of who waits."""
        owned = list(shards)
        for kind in KINDS:
            UNREACHED.labels(kind).set(sum(shard.unreached.get(kind, 0) for shard in owned))
        HELD.set(sum(shard.cursor.held for shard in owned))
        MISSING.set(len({source for shard in owned for source in shard.cursor.sources.missing}))
        LOST.set(sum(lost.records for shard in owned for lost in shard.cursor.sources.lost.values()))
        LEFT_OUT.set(len({source for shard in owned for source in shard.cursor.completeness.left_out}))


def _places(shard: int) -> tuple[str, str]:
    """What the watchdog knows an owned shard by: its walk of the marks, and its events."""
    return f"marks of shard {shard}", f"events of shard {shard}"


def _taking(shard: int) -> str:
    return f"taking of shard {shard}"


def _greatest(lags: list[int | None]) -> int | None:
    """The greatest lag; None as long as one is not known."""
    known = [lag for lag in lags if lag is not None]
    return max(known, default=0) if len(known) == len(lags) else None
