"""Who of several oracles publishes: one at a time, each later one with a higher epoch, and none that was replaced."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from schemas.codec import Decoder
from schemas.messages import MarkFrame
from schemas.topics import MARKS
from streams.errors import BrokerError, LeadershipLost, TransactionAborted
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
    pause_s_before_poll: float = 0.0
    pause_s_before_claim: float = 0.0

    def run(self, kafka: MemoryKafka) -> None:
        leadership = Leadership(kafka)
        kafka.runtime.sleep(self.pause_s_before_poll)
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


def test_whoever_reads_for_longer_than_a_session_before_it_stands_by_leads_all_the_same(machines: Machines) -> None:
    """Many parameters take their time, and nothing has been claimed yet that could be lost."""
    only = Candidate(pause_s_before_poll=3 * SESSION_S)
    machines.start("only", only.run)
    machines.run(10 * SESSION_S)
    assert len(only.epochs) == 1
    assert machines.broken == {}


def test_whoever_could_not_claim_for_longer_than_a_session_claims_in_the_end(machines: Machines) -> None:
    epochs: list[int] = []

    def lead_late(kafka: MemoryKafka) -> None:
        leadership = Leadership(kafka)
        while not leadership.poll():
            kafka.runtime.sleep(0.1)
        kafka.runtime.sleep(3 * SESSION_S)
        while not leadership.poll():
            kafka.runtime.sleep(0.1)
        epochs.append(leadership.claim())

    machines.start("only", lead_late)
    machines.run(10 * SESSION_S)
    assert len(epochs) == 1


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


def claiming_again(epochs: list[int]) -> Callable[[MemoryKafka], None]:
    """A leader that claims again whenever it is unsure and may."""

    def body(kafka: MemoryKafka) -> None:
        leadership = Leadership(kafka)
        while True:
            if leadership.poll() and not epochs:
                epochs.append(leadership.claim())
            if leadership.lost and leadership.may_claim:
                with suppress(TransactionAborted):  # the group has not told it yet that it was expelled
                    epochs.append(leadership.claim())
                assert leadership.lost is (len(epochs) == 1)
            kafka.runtime.sleep(0.1)

    return body


def test_whoever_was_silent_for_its_session_and_was_not_replaced_claims_again_and_goes_on(machines: Machines) -> None:
    epochs: list[int] = []
    process = machines.start("only", claiming_again(epochs))
    machines.run(10)
    machines.freeze(process, 4 * SESSION_S)
    machines.run(10 * SESSION_S)
    assert len(epochs) == 2
    assert epochs[1] > epochs[0]
    assert machines.broken == {}


def test_whoever_was_replaced_meanwhile_may_not_go_on_even_if_it_is_given_the_right_again(machines: Machines) -> None:
    epochs: list[int] = []
    second = Candidate()
    process = machines.start("first", claiming_again(epochs))
    machines.run(10)
    machines.start("second", second.run)
    machines.run(10)
    machines.freeze(process, 4 * SESSION_S)
    machines.run(3 * SESSION_S)
    assert second.epochs > epochs, "the other has taken over"
    second.leave = True
    machines.run(10 * SESSION_S)
    assert isinstance(machines.broken["first"], LeadershipLost)
    assert len(epochs) == 1


def test_whoever_does_not_lead_knows_that_another_does(machines: Machines) -> None:
    first, seen = Candidate(), set()

    def stand_by(kafka: MemoryKafka) -> None:
        leadership = Leadership(kafka)
        while True:
            leadership.poll()
            seen.add((leadership.given_to_another, leadership.may_claim))
            kafka.runtime.sleep(0.1)

    machines.start("first", first.run)
    machines.run(10)
    machines.start("second", stand_by)
    machines.run(60)
    assert seen == {(False, False), (True, False)}


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
