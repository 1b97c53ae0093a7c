"""Every kind of fault of three brokers once, under load, and the independent verdict; and what measures them.

The rounds run with ``pytest --long``. More of them: ``python -m tests.faults --brokers 3``.
"""

from collections.abc import Iterator
from typing import get_args

import pytest

from tests.faults.broker_faults import BROKER_FAULTS, BROKER_ROWS, BROKER_SHORT, BrokerFaultKind, Victim, java_hash
from tests.faults.broker_rounds import BROKERS, BrokerRun
from tests.faults.clean import assert_clean
from tests.faults.pipeline import running
from tests.faults.silence import SilenceMeter

SEED = 1


@pytest.fixture(scope="module")
def run() -> Iterator[BrokerRun]:
    with running(SEED, BROKERS) as pipeline:
        yield BrokerRun(pipeline, SEED)


@pytest.mark.long
@pytest.mark.parametrize("name", BROKER_SHORT)
def test_no_process_ends_and_everything_works_again(run: BrokerRun, name: str) -> None:
    outcome = run.round(name)
    assert outcome.exits == []
    assert not outcome.problem
    assert outcome.evidence
    assert outcome.recovered_s is not None


@pytest.mark.long
def test_nothing_was_lost_or_repeated_and_every_journal_replays(run: BrokerRun) -> None:
    assert_clean(run.finish())


# --- the rows --------------------------------------------------------------------------------------------------------


def test_every_row_has_a_name_of_its_own_and_the_short_run_has_every_kind() -> None:
    assert len(BROKER_FAULTS) == len(BROKER_ROWS)
    assert {BROKER_FAULTS[name].kind for name in BROKER_SHORT} == set(get_args(BrokerFaultKind))
    assert {fault.victim for fault in BROKER_ROWS} == set(get_args(Victim))


# --- measuring -------------------------------------------------------------------------------------------------------


def test_a_group_is_coordinated_where_java_puts_it() -> None:
    """The values are those of ``"…".hashCode() & 0x7fffffff``."""
    assert [java_hash(text) for text in ("", "Aa", "hello", "polygenelubricants")] == [0, 2112, 99162322, 0]


def test_the_longest_silence_is_between_two_records_or_at_an_edge() -> None:
    meter = SilenceMeter()
    for seconds in (1.0, 2.0, 10.0, 3.0, 11.0):
        meter.note(seconds)
    assert meter.longest_s(2.5, 11.0) == 7.0
    assert meter.longest_s(5.0, 10.5) == 7.0, "it began before"
    assert meter.longest_s(10.5, 30.0) == 19.0, "it is not over"
    assert meter.longest_s(1.0, 2.0) == 1.0


def test_a_topic_without_records_was_silent_all_the_time() -> None:
    assert SilenceMeter().longest_s(5.0, 9.0) == 4.0
