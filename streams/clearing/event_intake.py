"""Takes event frames into an engine: applied in order, a batch of each shard decided together.

Before a batch the engine learns what a frame needs that it does not have: parameters that name what is in it, and, for
accounts that come from another shard, the marks on which they were decided there.
"""

from collections.abc import Callable, Sequence

from msgspec import UNSET
from prometheus_client import Counter

from schemas.codec import DecodeError
from schemas.messages import EventFrame
from streams.broker.records import Record
from streams.clearing.assignment import Assignment
from streams.clearing.clock import is_off
from streams.clearing.commit import Committer
from streams.clearing.shard import Shard
from streams.feeds.parameters import ParameterFeed
from streams.margin.parameters import RiskParameters

EVENT_FRAMES = Counter("margin_engine_event_frames", "Event frames applied")
FILLS = Counter("margin_engine_fills", "Fills applied")
CLOCK_SKEWED = Counter(
    "margin_engine_clock_skewed_frames", "Frames whose time is off by more than clock_skew_ms_max", ["clock"]
)
UNREADABLE_FRAMES = Counter("margin_engine_unreadable_frames", "Event records that are no frames")
SUSPENSIONS = Counter("margin_engine_suspensions", "Accounts named by records that could not be read")


class EventIntake:
    """``catch_up_parameters`` reads the parameters to their end, ``catch_up_marks`` walks marks until what it is given
    says that it is enough."""

    def __init__(
        self,
        assignment: Assignment,
        committer: Committer,
        parameters: ParameterFeed,
        catch_up_parameters: Callable[[], None],
        catch_up_marks: Callable[[Callable[[], bool]], None],
    ) -> None:
        self._assignment = assignment
        self._committer = committer
        self._parameters = parameters
        self._catch_up_parameters = catch_up_parameters
        self._catch_up_marks = catch_up_marks

    def take(self, frames: Sequence[tuple[Record, EventFrame | DecodeError]]) -> None:
        """Apply ``frames`` to the shards that run and have not had them; then decide what they touched."""
        to_apply = [
            (shard, frame)
            for message, frame in frames
            if isinstance(frame, EventFrame) and (shard := self._to_apply(message)) is not None
        ]
        lack_marks = [(shard, frame) for shard, frame in to_apply if _lacks_marks(shard, frame)]
        if lack_marks or not all(shard.admits(frame) for shard, frame in to_apply):
            self._catch_up_parameters()
        if lack_marks:
            self._catch_up_marks(lambda: not any(_lacks_marks(shard, frame) for shard, frame in lack_marks))
        for number in {number for message, frame in frames if (number := self._apply(message, frame)) is not None}:
            self._assignment.running[number].decide_touched()

    def _to_apply(self, message: Record) -> Shard | None:
        """The shard that has not applied ``message`` yet; None if it has, or is not owned."""
        shard = self._assignment.running.get(message.partition())
        return None if shard is None or message.offset() < shard.events_next else shard

    def _apply(self, message: Record, frame: EventFrame | DecodeError) -> int | None:
        shard = self._to_apply(message)
        if shard is None:
            return None
        if isinstance(frame, DecodeError):
            shard.skip_events(message.offset(), str(frame))
            self._committer.put_aside((message, frame))
            UNREADABLE_FRAMES.inc()
        else:
            appended = message.appended_us
            shard.apply_events(message.offset(), frame, appended)
            count_skew(self._parameters.parameters, "events", frame.time, appended)
            EVENT_FRAMES.inc()
            FILLS.inc(len(frame.fills.account))
            SUSPENSIONS.inc(len(frame.suspensions))
        return shard.shard


def _lacks_marks(shard: Shard, frame: EventFrame) -> bool:
    """Whether accounts come with ``frame`` that have been decided on later marks than the shard has walked."""
    return frame.arrival is not UNSET and frame.arrival.marks > shard.marks_next


def count_skew(parameters: RiskParameters, clock: str, time_us: int, appended: int) -> None:
    """Count a frame whose time is off."""
    if is_off(time_us, appended, 1000 * parameters.policy.clock_skew_ms_max):
        CLOCK_SKEWED.labels(clock).inc()
