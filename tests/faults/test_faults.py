"""Every kind of fault once, under load, on one real broker and one real table server; then the independent verdict.

The rounds run with ``pytest --long``. More of them: ``python -m tests.faults`` (see the README beside this file).
"""

from collections.abc import Iterator

import pytest

from tests.faults.clean import assert_clean
from tests.faults.faults import FAULTS, ROWS, SHORT, Fault
from tests.faults.injections import INJECTIONS
from tests.faults.pipeline import NUMBERS_OF_SHARDS, running
from tests.faults.rescale_strikes import STRIKES
from tests.faults.rounds import Run, schedule

SEED = 1


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with running(SEED) as pipeline:
        yield Run(pipeline, SEED)


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
def test_the_fault_happens_and_everything_works_again(run: Run, name: str) -> None:
    outcome = run.round(name)
    assert not outcome.problem
    assert outcome.evidence
    assert outcome.recovered_s is not None


@pytest.mark.long
def test_nothing_was_lost_repeated_or_made_up_and_everybody_left_in_order(run: Run) -> None:
    assert_clean(run.finish())


# --- the rows --------------------------------------------------------------------------------------------------------


def test_the_short_run_has_every_kind_that_is_not_a_variant_of_another() -> None:
    variants = {"kill_while_starting", "kill_at_random", "redis_client_pause"}
    assert {FAULTS[name].kind for name in SHORT} == INJECTIONS.keys() - variants


def test_every_row_has_a_name_of_its_own_and_can_be_injected() -> None:
    assert len(FAULTS) == len(ROWS)
    assert {fault.kind for fault in FAULTS.values()} == INJECTIONS.keys()


def rows_of(kind: str) -> Iterator[Fault]:
    return (fault for fault in FAULTS.values() if fault.kind == kind)


def test_workers_die_at_every_point_of_a_commit() -> None:
    killed = {(fault.role, fault.point) for fault in rows_of("kill_at_point")}
    transaction = {"before_produce", "after_produce", "after_offsets", "after_commit"}
    assert {point for role, point in killed if role == "router"} == transaction
    assert {point for role, point in killed if role == "engine"} == transaction | {
        "before_redis_write",
        "within_redis_write",
        "after_redis_write",
    }
    assert {point for role, point in killed if role == "oracle"} >= {"before_send", "after_send"}


def test_whoever_moves_accounts_dies_while_they_move_and_a_full_run_ends_with_as_many_shards_as_it_began() -> None:
    rows = list(rows_of("rescale"))
    assert {fault.whom for fault in rows} == STRIKES.keys()
    assert len(rows) % len(NUMBERS_OF_SHARDS) == 0


def test_a_schedule_is_drawn_from_the_seed_and_has_every_fault_before_any_comes_again() -> None:
    assert schedule(None, [], 7) == schedule(None, [], 7) != schedule(None, [], 8)
    assert sorted(schedule(None, [], 7)) == sorted(FAULTS)
    assert sorted(schedule(4, ["a", "b"], 1)[:2]) == ["a", "b"]
    assert len(schedule(5, ["a", "b"], 1)) == 5
