"""Whether the places at which this process reads move: a place with something to read that stands still is a fault.

librdkafka mends nearly every error by asking again. What it cannot mend it asks for again for ever, at the same offset,
and says so each time: a batch that cannot be decompressed, a transaction that is never decided, a leader that does not
answer. :class:`PlaceWatch` sees to one client by its statistics and its errors, :class:`Places` to those of a process.
Each first error at a place, and each place that has stood too long, is an ERROR in the log, once a minute; how long the
place stands is a metric and a condition of being ready.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
from confluent_kafka import KafkaError, Message
from prometheus_client import Gauge

from streams import probes
from streams.broker.client_log import in_words
from streams.broker.stranded import TimeInState
from streams.logs import event
from streams.runtime import SYSTEM, Runtime

log = logging.getLogger(__name__)

STANDS = Gauge(
    "margin_place_stands_seconds",
    "So long a place of which there is more to read has not moved; 0 once it does",
    ["topic", "partition"],
)
ERRORS = Gauge("margin_place_errors", "Errors that the client has repeated at the place", ["topic", "partition"])

STANDS_S_MAX = 15.0
"""A place may stand for so long by default: longer than a transaction whose owner died stays open."""

_SAY_AGAIN_S = 60.0
_OPEN_TRANSACTION = "the next records belong to a transaction that is not decided yet"
_NO_CAUSE = "the client gives no cause"
_UNREADABLE = frozenset({KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG, KafkaError._NOT_IMPLEMENTED})

_NOT_ASKED_FOR = frozenset({"", "none", "stopping", "stopped"})
"""librdkafka's states of a partition that it does not fetch. One that is paused is in none of them."""

Place = tuple[str, int]
"""Topic and number of a partition."""


class PartitionStatistics(msgspec.Struct):
    """What librdkafka's statistics say of one partition; -1 (or -1001) is not known."""

    fetch_state: str = ""
    app_offset: int = -1
    next_offset: int = -1
    ls_offset: int = -1
    hi_offset: int = -1
    fetchq_cnt: int = 0

    @property
    def has_more(self) -> bool:
        """Whether there is something to read that the client does not have: also if it was told nothing yet."""
        return self.fetch_state not in _NOT_ASKED_FOR and not 0 <= self.hi_offset <= self.next_offset


class TopicStatistics(msgspec.Struct):
    """What they say of one topic: its partitions by number."""

    partitions: dict[str, PartitionStatistics] = {}


class _FetchStatistics(msgspec.Struct):
    topics: dict[str, TopicStatistics] = {}


_DECODE = msgspec.json.Decoder(_FetchStatistics).decode
_NO_PARTITION = "-1"
"""Under it librdkafka counts what is of no partition."""


def by_place(topics: Mapping[str, TopicStatistics]) -> dict[Place, PartitionStatistics]:
    """What the statistics say of each partition."""
    return {
        (topic, int(partition)): said
        for topic, partitions in topics.items()
        for partition, said in partitions.partitions.items()
        if partition != _NO_PARTITION
    }


def is_unreadable(error: KafkaError) -> bool:
    """Whether an error says that the bytes at a place can be read at no time: nobody but an operator goes on there."""
    return error.code() in _UNREADABLE


@dataclass(frozen=True, slots=True)
class StandingPlace:
    """A place that has not moved for ``seconds``, and why; ``is_unreadable``: it never will by itself."""

    topic: str
    partition: int
    offset: int
    seconds: float
    cause: str
    is_unreadable: bool = False

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition} at {self.offset}"


@dataclass(slots=True)
class _Watched:
    stands: TimeInState
    offset: int = -1
    cause: str = ""
    is_unreadable: bool = False
    errors: int = 0
    said: dict[str, float] = field(default_factory=dict)
    is_told: bool = False


class PlaceWatch:
    """Watches the places of one client. The client notes while it is polled; anybody may ask at any time.

    ``is_read`` says whether a partition of the client is read now: one that is paused stands for a reason.
    """

    def __init__(
        self,
        runtime: Runtime = SYSTEM,
        stands_s_max: float = STANDS_S_MAX,
        is_read: Callable[[str, int], bool] = lambda topic, partition: True,
    ) -> None:
        self._runtime = runtime
        self._is_read = is_read
        self._stands_s_max = stands_s_max
        self._watched: dict[Place, _Watched] = {}

    # --- what the client says ----------------------------------------------------------------------------------------

    def note(self, partitions: Mapping[Place, PartitionStatistics]) -> None:
        """Note what one of librdkafka's statistics documents says of all partitions of the client."""
        for place in self._watched.keys() - partitions.keys():
            self._forget(place)
        for place, said in partitions.items():
            self._note(place, said)

    def note_statistics(self, statistics: str) -> None:
        """As :meth:`note`, of the document as librdkafka gives it."""
        self.note(by_place(_DECODE(statistics).topics))

    def note_error(self, message: Message, error: KafkaError) -> None:
        """Note an error that the client has given for a partition; it goes on by itself, or tries to."""
        topic, partition = message.topic(), message.partition()
        if topic is None or partition is None or partition < 0:
            return  # about a broker: the client's own log tells it
        watched = self._at((topic, partition))
        watched.errors += 1
        watched.cause, watched.is_unreadable = in_words(error), is_unreadable(error)
        ERRORS.labels(topic, partition).set(watched.errors)
        if self._may_say(watched, f"error {error.code()}"):
            event(
                log,
                logging.ERROR,
                "fetch_failed",
                topic=topic,
                partition=partition,
                offset=message.offset(),
                reason=watched.cause,
                times=watched.errors,
            )

    # --- what follows ------------------------------------------------------------------------------------------------

    def standing(self) -> list[StandingPlace]:
        """The places that have stood for longer than they may, or that are known to be unreadable."""
        return [
            StandingPlace(*place, watched.offset, watched.stands.seconds, watched.cause, watched.is_unreadable)
            for place, watched in tuple(self._watched.items())
            if watched.stands.seconds > self._stands_s_max
        ]

    def is_unreadable(self, topic: str, partition: int) -> bool:
        """Whether the client has said that the bytes at its place cannot be read."""
        watched = self._watched.get((topic, partition))
        return watched is not None and watched.is_unreadable

    @property
    def seconds(self) -> float:
        """For how long the place has stood that has stood for the longest."""
        return max((watched.stands.seconds for watched in tuple(self._watched.values())), default=0.0)

    def is_read(self, topic: str, partition: int) -> bool:
        """Whether a place is read at present, and not only assigned."""
        return self._is_read(topic, partition)

    def forget_all(self) -> None:
        """The client is closed."""
        for place in tuple(self._watched):
            self._forget(place)

    # --- one place ---------------------------------------------------------------------------------------------------

    def _at(self, place: Place) -> _Watched:
        if (watched := self._watched.get(place)) is None:
            watched = self._watched[place] = _Watched(TimeInState(self._runtime))
        return watched

    def _forget(self, place: Place) -> None:
        self._watched.pop(place, None)
        for gauge in (STANDS, ERRORS):
            gauge.labels(*place).set(0)

    def _note(self, place: Place, said: PartitionStatistics) -> None:
        watched = self._at(place)
        # Errors wait in the queue as well as records do, which only the owner of the client has to fetch.
        is_fetched = bool(said.fetchq_cnt) and not watched.errors
        stands = said.has_more and said.next_offset == watched.offset and not is_fetched and self._is_read(*place)
        if not stands:
            if watched.is_told:
                event(
                    log, logging.INFO, "place_moves_again", topic=place[0], partition=place[1], offset=said.next_offset
                )
            if watched.errors and said.next_offset > watched.offset >= 0:
                watched.errors, watched.cause, watched.is_unreadable = 0, "", False
                ERRORS.labels(*place).set(0)
            watched.offset, watched.is_told = said.next_offset, False
        watched.stands.note(is_so=stands)
        STANDS.labels(*place).set(round(watched.stands.seconds, 3))
        if watched.stands.seconds <= self._stands_s_max:
            return
        if not watched.errors:
            watched.cause = _OPEN_TRANSACTION if 0 <= said.ls_offset <= said.next_offset else _NO_CAUSE
        watched.is_told = True
        if self._may_say(watched, "stands"):
            event(
                log,
                logging.ERROR,
                "place_stands",
                topic=place[0],
                partition=place[1],
                offset=watched.offset,
                seconds=round(watched.stands.seconds, 1),
                reason=watched.cause,
                errors=watched.errors,
            )

    def _may_say(self, watched: _Watched, what: str) -> bool:
        """Whether ``what`` was not said within the last minute; it is taken as said."""
        now = self._runtime.monotonic()
        if now - watched.said.get(what, -_SAY_AGAIN_S) < _SAY_AGAIN_S:
            return False
        watched.said[what] = now
        return True


class Places:
    """The watches of all clients of a process: one condition of being ready, and one for each place that stands."""

    def __init__(self, runtime: Runtime = SYSTEM, stands_s_max: float = STANDS_S_MAX) -> None:
        self._runtime = runtime
        self._stands_s_max = stands_s_max
        self._watches: list[PlaceWatch] = []

    def watch(self, is_read: Callable[[str, int], bool] = lambda topic, partition: True) -> PlaceWatch:
        """A watch for one more client; ``is_read`` as for :class:`PlaceWatch`."""
        self._watches.append(PlaceWatch(self._runtime, self._stands_s_max, is_read))
        return self._watches[-1]

    def standing(self) -> list[StandingPlace]:
        """The places that have stood for longer than they may; may be asked from any thread."""
        return [place for watch in tuple(self._watches) for place in watch.standing()]

    def conditions(self) -> list[probes.Condition]:
        """That no place stands, and each that does by its name; seconds. May be asked from any thread."""
        limit_s = self._stands_s_max
        longest = max((watch.seconds for watch in tuple(self._watches)), default=0.0)
        return [
            probes.Condition("places_stand_s", longest, limit_s),
            *(probes.Condition(f"stands_s {place}", place.seconds, limit_s) for place in self.standing()),
        ]
