"""Router and engine under faults, from seeds: nothing lost, nothing twice, and every bug put back by hand is found.

More seeds than fit here: ``python -m tests.simulation --seeds 10000``.
"""

import os
import subprocess
import sys

import pytest

from streams.broker.clients import Clients
from streams.runtime import SystemRuntime
from tests.simulation.campaign import run_each
from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.production import with_constants
from tests.simulation.scenario import MODES, Mode, Scenario
from tests.simulation.world import Result, run

SEEDS, ALL_SEEDS = 30, 120
FOUND_LATE = {
    "a_shard_is_taken_with_old_parameters", "an_expelled_member_commits", "an_expelled_member_does_not_hear_of_it",
    "the_claims_token_is_not_checked", "a_held_account_is_decided_where_it_comes", "early_rows_are_not_read_again",
    "what_a_replaced_router_sends_is_believed",
}  # fmt: skip
"""What takes many seeds to find."""


@pytest.mark.parametrize("first_to_last", [range(SEEDS), pytest.param(range(SEEDS, ALL_SEEDS), marks=pytest.mark.long)])
def test_nothing_is_lost_and_nothing_happens_twice(first_to_last: range) -> None:
    """Safety: the invariants hold at every commit. Liveness: all is done soon after the last fault."""
    seeds: list[tuple[int, Mode]] = [(seed, mode) for mode in MODES for seed in first_to_last]
    results = [result for chunk in run_each(seeds, jobs=2) for result in chunk]
    assert len(results) == len(seeds)
    failed = [result for result in results if result.failure is not None]
    assert not failed, _described(failed[0])
    assert sum(result.commands for result in results) > len(seeds)
    assert {fault for result in results for fault, count in result.faults.items() if count} >= {
        "crash", "freeze", "cut", "commit_answer_lost", "commit_lost", "commit_delayed", "abortable", "fatal",
        "redis down", "redis flushed", "redis rolled back", "redis evicts", "redis_answer_lost", "slow_markers",
    }  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_replays_the_same_run(mode: Mode) -> None:
    first, second = run(7, mode), run(7, mode)
    assert first.steps > 100
    assert (first.digest, first.steps, first.faults) == (second.digest, second.steps, second.faults)
    assert run(8, mode).digest != first.digest


def test_a_seed_replays_the_same_run_in_another_process() -> None:
    """Whatever Python's hash seed: no order of a set or of addresses has a say."""
    last_lines = []
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--trace", "11", "--mode", "safety"]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        last_lines.append(done.stdout.splitlines()[-1])
    assert "digest" in last_lines[0]
    assert last_lines[0] == last_lines[1]


@pytest.mark.parametrize(
    "mutation",
    [pytest.param(each, id=each.name, marks=pytest.mark.long if each.name in FOUND_LATE else ()) for each in MUTATIONS],
)
def test_a_bug_is_found(mutation: Mutation) -> None:
    failures = []
    with mutation.put_in():
        for seed in range(mutation.seeds):
            if mutation.rescaled and not Scenario.draw(seed, mutation.mode).is_rescaled:
                continue
            result = run(seed, mutation.mode, rates=mutation.rates)
            if result.failure is not None and any(text in result.failure for text in mutation.found_by):
                return
            failures += [result.failure] if result.failure is not None else []
    pytest.fail(f"not found in {mutation.seeds} seeds; other failures: {failures[:3]}")


def test_what_is_found_late_is_there() -> None:
    assert {mutation.name for mutation in MUTATIONS} >= FOUND_LATE


def test_a_run_uses_neither_real_time_nor_real_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("a simulated process has touched the real world")

    for name in ("monotonic", "time_ns", "sleep", "event", "condition", "thread"):
        monkeypatch.setattr(SystemRuntime, name, touched)
    for name in ("consumer", "producer"):
        monkeypatch.setattr(Clients, name, touched)
    for seed in range(10):
        assert run(seed, MODES[seed % len(MODES)]).failure is None


def test_a_name_that_production_no_longer_has_is_an_error() -> None:
    with pytest.raises(LookupError, match="_NO_SUCH_S"), with_constants({"streams.clearing.engine._NO_SUCH_S": 1}):
        pass


def _described(result: Result) -> str:
    lines = "\n".join(result.trace)
    return f"python -m tests.simulation --mode {result.mode} --trace {result.seed}\n{lines}\n{result.failure}"
