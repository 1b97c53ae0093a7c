"""The oracle as a role, as far as it goes without Faust: it stands by, leaves when told to, and says why it failed."""

from dataclasses import dataclass

import pytest

from schemas.topics import MARKS, PARAMETERS
from streams.errors import BrokerError, OracleFailed
from streams.feeds.parameters import ParameterFeed
from streams.memory.kafka import MemoryKafka
from streams.oracle.app import Oracle
from streams.oracle.leadership import Leadership
from streams.runtime import Event
from streams.watchdog import Watchdog
from tests.oracle.conftest import Machines
from tests.oracle.test_leadership import Candidate


@dataclass
class StandBy:
    """An oracle beside one that leads."""

    stop: Event | None = None
    oracle: Oracle | None = None
    ended: bool = False

    def start(self, machines: Machines) -> None:
        leader = Candidate()
        machines.start("leader", leader.run)
        machines.run_until(lambda: bool(leader.epochs), "the first one leads")
        machines.start("oracle", self._run)

    def _run(self, kafka: MemoryKafka) -> None:
        self.stop = kafka.runtime.event()
        self.oracle = Oracle(kafka, self.stop, Watchdog())
        self.oracle.run()
        self.ended = True


def test_it_stands_by_and_ends_without_a_claim_when_told_to(machines: Machines) -> None:
    stand_by = StandBy()
    stand_by.start(machines)
    machines.run(1)
    assert not stand_by.ended
    assert stand_by.oracle is not None
    assert [condition.name for condition in stand_by.oracle.readiness()] == ["standing_by_age_ms"]
    assert stand_by.stop is not None
    claims = machines.cluster.topics[MARKS][0].end
    stand_by.stop.set()
    machines.run_until(lambda: stand_by.ended, "it has ended")
    assert machines.cluster.topics[MARKS][0].end == claims
    assert machines.broken == {}


def test_what_keeps_it_from_standing_by_is_said_as_it_is(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    def catch_up(self: ParameterFeed, *_: object) -> None:
        raise BrokerError(f"{PARAMETERS}[0]: no answer")

    monkeypatch.setattr(ParameterFeed, "catch_up", catch_up)
    stand_by = StandBy()
    stand_by.start(machines)
    machines.run_until(lambda: "oracle" in machines.broken, "it has ended")
    assert isinstance(machines.broken["oracle"], BrokerError)
    assert PARAMETERS in str(machines.broken["oracle"])


def test_what_it_cannot_mend_is_its_error(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    def poll(self: Leadership) -> bool:
        raise BrokerError("the group is without this member")

    stand_by = StandBy()
    stand_by.start(machines)
    machines.run(1)
    monkeypatch.setattr(Leadership, "poll", poll)
    machines.run_until(lambda: "oracle" in machines.broken, "it has ended")
    assert isinstance(machines.broken["oracle"], OracleFailed)
    assert "the group is without this member" in str(machines.broken["oracle"])
    assert stand_by.stop is not None
    assert stand_by.stop.is_set()
