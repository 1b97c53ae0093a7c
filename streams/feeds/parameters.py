"""``risk.parameters.v1``, read in one way by everybody: which parameters its records form, and which are refused.

A record that breaks a rule is refused and leaves those before it in force; so the parameters at an offset are a
function of the records below it, and all readers agree. What a reader does with them is its own business.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

from schemas.codec import DecodeError
from schemas.parameters import Parameter
from schemas.topics import PARAMETERS
from streams.broker.reader import Follower
from streams.broker.records import Log, Record
from streams.errors import InputError
from streams.margin.parameters import ParametersInTheMaking, RiskParameters

POLLED_MAX = 10_000
"""Records that are put in force together at most."""

_PUT_MAX = 1_000
"""Records from which the parameters after one of them are formed again at most."""

REFUSED_MAX = 256
"""Refused records that a feed remembers."""


@dataclass(frozen=True)
class ParameterStep:
    """A record and the parameters after it: those before it, if it was refused. ``refused`` is why, or None.

    ``made`` forms the parameters when they are asked for: of many records in a row hardly any but the last are.
    """

    record: Record
    made: Callable[[], RiskParameters]
    refused: DecodeError | InputError | None = None

    @property
    def offset(self) -> int:
        return self.record.offset()

    @cached_property
    def parameters(self) -> RiskParameters:
        return self.made()

    @property
    def in_force(self) -> Parameter | None:
        """The record of the same key that is in force now: an earlier one if this one was refused."""
        return self.parameters.records.get(self.record.key_text or "")


class ParameterFold:
    """The parameters that records form, added one by one in the order of the log.

    ``parameters`` are those of the records before, if there were any. ``next_offset`` is the first not added.
    """

    def __init__(self, parameters: RiskParameters | None = None) -> None:
        self._begin(RiskParameters.empty() if parameters is None else parameters)
        self.next_offset = 0

    @property
    def parameters(self) -> RiskParameters:
        """The parameters after the last record."""
        return self._making.parameters

    def add(self, record: Record) -> ParameterStep:
        """Put a record in force, or refuse it."""
        self.next_offset = record.offset() + 1
        if len(self._put) >= _PUT_MAX:
            self._begin(self.parameters)
        refused: DecodeError | InputError | None = None
        try:
            self._making.put_encoded(record.key(), record.value())
        except (DecodeError, InputError) as error:
            refused = error
        else:
            self._put.append(record)
        return ParameterStep(record, partial(self._after, self._begun, self._put, len(self._put)), refused)

    def _begin(self, parameters: RiskParameters) -> None:
        self._begun, self._making = parameters, ParametersInTheMaking(parameters)
        self._put: list[Record] = []

    def _after(self, begun: RiskParameters, put: list[Record], count: int) -> RiskParameters:
        """The parameters after the first ``count`` records of those ``put`` since ``begun``."""
        if put is self._put and count == len(put):
            return self.parameters
        making = ParametersInTheMaking(begun)
        for record in put[:count]:
            making.put_encoded(record.key(), record.value())
        return making.parameters


def parameter_steps(log: Log, end: int | None = None) -> Iterator[ParameterStep]:
    """Every record below offset ``end`` (None: now's end) and the parameters after it, from the beginning.

    Raises:
        BrokerError: Kafka does not answer.
    """
    fold = ParameterFold()
    for record in log.read_range(PARAMETERS, 0, 0, end):
        yield fold.add(record)


class ParameterFeed:
    """Follows the topic for a role that runs: what has come is polled, then added record by record. Not thread-safe.

    Records that were polled and not added are polled again after :meth:`restart`.
    """

    def __init__(self, follower: Follower, parameters: RiskParameters | None = None) -> None:
        self._follower = follower
        self._fold = ParameterFold(parameters)
        self._refused: deque[ParameterStep] = deque(maxlen=REFUSED_MAX)

    @property
    def parameters(self) -> RiskParameters:
        """The parameters after the records added so far."""
        return self._fold.parameters

    @property
    def next_offset(self) -> int:
        """The first offset that was not added."""
        return self._fold.next_offset

    def poll(self) -> list[Record]:
        """The records that have come, without waiting; each is to be given to :meth:`add`.

        Raises:
            BrokerError: the broker refuses for good.
        """
        return self._follower.poll(0, POLLED_MAX)

    def add(self, record: Record) -> ParameterStep:
        """Put a record in force, or refuse it."""
        step = self._fold.add(record)
        if step.refused is not None:
            self._refused.append(step)
        return step

    def catch_up(self, log: Log, add_all: Callable[[list[Record]], object]) -> None:
        """Read to the topic's end, as of now, and follow from there; ``add_all`` is given the records up to it.

        Raises:
            BrokerError: Kafka does not answer.
        """
        end = log.watermarks(PARAMETERS, 0)[1]
        if end > self.next_offset:
            add_all(list(log.read_range(PARAMETERS, 0, self.next_offset, end)))
            self._fold.next_offset = end  # the log may end with a marker, which is no record
            self._follower.start(end)

    def restart(self) -> None:
        """Begin, or begin again, to follow at the first record that was not added."""
        self._follower.start(self.next_offset)

    def refused(self, first: int, end: int) -> list[tuple[Record, Exception]]:
        """The refused records from offset ``first`` up to, not including, ``end``, as far as they are remembered, and
        why."""
        return [
            (step.record, step.refused)
            for step in self._refused
            if step.refused is not None and first <= step.offset < end
        ]

    def close(self) -> None:
        self._follower.close()


class ParameterHistory:
    """Every record that is still in the topic, and the parameters in force at any offset.

    ``absent`` counts the offsets below the last record that hold none: compacted away, or a transaction's marker.
    """

    def __init__(self, log: Log) -> None:
        self._records = list(log.read_range(PARAMETERS, 0, 0))
        self.absent = self._records[-1].offset() + 1 - len(self._records) if self._records else 0
        self._reached, self._asked = 0, 0
        self._fold = ParameterFold()

    def at(self, end: int) -> RiskParameters:
        """The parameters that the records below offset ``end`` form. While ``end`` rises, each is read once."""
        if end < self._asked:
            self._reached, self._fold = 0, ParameterFold()
        while self._reached < len(self._records) and self._records[self._reached].offset() < end:
            self._fold.add(self._records[self._reached])
            self._reached += 1
        self._asked = end
        return self._fold.parameters

    def offsets(self, first: int, end: int) -> list[int]:
        """The offsets of the records from ``first`` up to, not including, ``end``."""
        return [offset for record in self._records if first <= (offset := record.offset()) < end]

    def last_of(self, key: str, end: int) -> int | None:
        """The offset of the last record below ``end`` with this key."""
        offsets = [record.offset() for record in self._records if record.offset() < end and record.key_text == key]
        return offsets[-1] if offsets else None
