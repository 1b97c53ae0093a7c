"""Every scenario of this folder gives its whole output to the byte, and what it says it shows."""

from typing import Any

import pytest

from schemas.topics import COMMANDS
from streams.memory.pipeline import WrittenRecord
from tests.scenarios.run import HERE, ScenarioFile, differences, outcome, scenario_files

SCENARIOS = scenario_files()
SAME = [scenario for scenario in SCENARIOS if scenario.same_commands]
OTHER_COUNTS = [(1, 1), (3, 1), (1, 2), (3, 2)]
"""Routers and engines."""


def name(scenario: ScenarioFile) -> str:
    return scenario.path.stem


@pytest.mark.parametrize("scenario", SCENARIOS, ids=name)
def test_a_scenario_gives_its_output_to_the_byte(scenario: ScenarioFile) -> None:
    records = scenario.run()
    assert b"".join(record.line() for record in records) == scenario.expected_path.read_bytes()
    assert list(differences(scenario.expected, outcome(records))) == []


@pytest.mark.parametrize("scenario", SAME, ids=name)
def test_what_is_decided_does_not_depend_on_the_number_of_processes(scenario: ScenarioFile) -> None:
    runs = [scenario.run(routers=routers, engines=engines) for routers, engines in OTHER_COUNTS]
    assert all(commands(records) == commands(runs[0]) for records in runs)
    held = [
        {name: outcome(records)[name] for name in ("balances", "positions", "suspended", "dead_letters")}
        for records in runs
    ]
    assert all(other == held[0] for other in held)


def test_every_output_belongs_to_a_scenario_and_says_something() -> None:
    assert len(SCENARIOS) >= 15
    assert {scenario.expected_path for scenario in SCENARIOS} == set(HERE.glob("*.expected.jsonl"))
    assert all(scenario.says.endswith(".") and scenario.expected for scenario in SCENARIOS)
    assert len(SAME) >= 15


def test_what_is_not_as_expected_is_named() -> None:
    got: dict[str, Any] = {"alerts": ["bankrupt"], "command_count": 1, "suspended": ["a"]}
    expected: dict[str, Any] = {
        "alerts": {"not": []},
        "command_count": {"at_least": 1},
        "suspended": {"contains": ["a"]},
    }
    assert list(differences(expected, got)) == []
    expected = {"alerts": {"not": ["bankrupt"]}, "command_count": {"at_least": 2}, "suspended": {"contains": ["b"]}}
    assert len(list(differences(expected, got))) == 3


def commands(records: list[WrittenRecord]) -> dict[str, Any]:
    """Commands by id, without what depends on how records fell into frames: the offset of the last event frame, and
    the time, by the microseconds that passed on the way."""
    by_id = {}
    for record in records:
        if record.topic != COMMANDS:
            continue
        assert record.value["command_id"] not in by_id
        evidence = {name: value for name, value in record.value["evidence"].items() if not name.endswith("_offset")}
        times = {"issued_at": None, "expires_at": None}
        by_id[record.value["command_id"]] = record.value | times | {"evidence": evidence}
    return by_id
