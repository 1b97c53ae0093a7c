"""Every case holds; a case that takes a broker names the test that shows it."""

from pathlib import Path

import pytest

from tests.cases.run import HERE, differences, outcome, read_case

PATHS = sorted(HERE.glob("*.json"))


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_a_case_holds(path: Path) -> None:
    case = read_case(path)
    if case["kind"] == "stack":
        module, _, name = case["shown_by"].partition("::")
        source = HERE.parents[1] / module
        assert f"def {name}(" in source.read_text(encoding="utf-8")
        return
    assert list(differences(case, outcome(case))) == []


def test_what_is_not_as_expected_is_named() -> None:
    case = {"expected": {"alerts": {"not": []}, "command_count": {"at_least": 2}, "suspended": []}}
    assert list(differences(case, {"alerts": ["bankrupt"], "command_count": 2, "suspended": []})) == []
    assert len(list(differences(case, {"alerts": [], "command_count": 1, "suspended": ["a"]}))) == 3
    assert len(list(differences(case, {}))) == 2
