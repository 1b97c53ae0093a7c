"""Who of several oracles publishes: one at a time, each later one with a higher epoch, and none that was replaced."""

from dataclasses import dataclass, field

from schemas.codec import Decoder
from schemas.messages import MarkFrame
from schemas.topics import MARKS
from streams.errors import BrokerError
from streams.memory.kafka import MemoryKafka
from streams.oracle.leadership import Leadership
from streams.settings import load
from tests.oracle.conftest import Machines

SESSION_S = load({}).kafka.session_timeout_ms / 1000

decode_frame = Decoder[MarkFrame](MarkFrame)


@dataclass
class Candidate:
    """Stands by, claims when it may, and holds until it is told to leave or loses."""

    epochs: list[int] = field(default_factory=list)
    holds: bool = False
    lost: bool = False
    leave: bool = False
    pause_s_before_claim: float = 0.0

    def run(self, kafka: MemoryKafka) -> None:
        leadership = Leadership(kafka)
        while not leadership.poll():
            kafka.runtime.sleep(0.1)
        self.holds = True
        kafka.runtime.sleep(self.pause_s_before_claim)
        self.epochs.append(leadership.claim())
        while not self.leave and leadership.poll():
            kafka.runtime.sleep(0.1)
        self.lost = leadership.lost
        leadership.close()


def test_one_leads_and_another_stands_by_until_it_leaves(machines: Machines) -> None:
    first, second = Candidate(), Candidate()
    machines.start("first", first.run)
    machines.run(10)
    machines.start("second", second.run)
    machines.run(60)
    assert (len(first.epochs), second.epochs, first.lost) == (1, [], False)
    first.leave = True
    machines.run(10)
    assert second.epochs
    assert second.epochs > first.epochs
    assert machines.broken == {}


def test_an_epoch_is_the_offset_of_an_empty_frame(machines: Machines) -> None:
    candidate = Candidate()
    machines.cluster.append(MARKS, None, b"{}")
    machines.start("oracle", candidate.run)
    machines.run(10)
    (epoch,) = candidate.epochs
    claim = machines.cluster.topics[MARKS][0].records[epoch]
    assert epoch >= 1
    assert decode_frame(claim.value).marks == ()


def test_whoever_was_frozen_for_longer_than_its_session_has_lost(machines: Machines) -> None:
    first, second = Candidate(), Candidate()
    process = machines.start("first", first.run)
    machines.run(10)
    machines.start("second", second.run)
    machines.run(10)
    machines.freeze(process, 4 * SESSION_S)
    machines.run(3 * SESSION_S)
    assert second.epochs > first.epochs, "the other has taken over"
    machines.run(2 * SESSION_S)
    assert first.lost
    assert not second.lost


def test_whoever_was_frozen_before_it_claimed_cannot_claim_after_the_next(machines: Machines) -> None:
    first, second = Candidate(pause_s_before_claim=SESSION_S), Candidate()
    process = machines.start("first", first.run)
    machines.run_until(lambda: first.holds, "the first to hold the right")
    machines.start("second", second.run)
    machines.freeze(process, 4 * SESSION_S)
    machines.run(5 * SESSION_S)
    assert (first.epochs, len(second.epochs)) == ([], 1)
    assert isinstance(machines.broken["first"], BrokerError)
    assert not second.lost


def test_it_says_how_long_ago_it_was_polled(machines: Machines) -> None:
    ages: list[float] = []

    def body(kafka: MemoryKafka) -> None:
        leadership = Leadership(kafka)
        leadership.poll()
        kafka.runtime.sleep(7)
        ages.append(leadership.age_s)

    machines.start("oracle", body)
    machines.run(10)
    assert [round(age) for age in ages] == [7]
