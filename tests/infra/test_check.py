"""One entry runs every check, goes on after a failure, and says what failed and how to mend it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from infra.check import CHECKS, Check, check_all
from tests.conftest import ROOT


def test_every_check_runs_though_an_earlier_one_fails() -> None:
    ran: list[str] = []

    def run(command: Sequence[str], root: Path) -> int:
        ran.append(command[0])
        return 1 if command[0] in ("a", "c") else 0

    checks = [Check("first", ("a",)), Check("second", ("b",)), Check("third", ("c",))]
    assert [check.name for check in check_all(checks, Path(), run=run)] == ["first", "third"]
    assert ran == ["a", "b", "c"]


def test_what_mends_runs_before_and_only_when_told_to() -> None:
    ran: list[str] = []

    def run(command: Sequence[str], root: Path) -> int:
        ran.append(command[0])
        return 0

    checks = [Check("first", ("a",), ("mend",)), Check("second", ("b",))]
    check_all(checks, Path(), run=run)
    assert ran == ["a", "b"]
    ran.clear()
    check_all(checks, Path(), fix=True, run=run)
    assert ran == ["mend", "a", "b"]


def test_a_broken_tree_fails_and_the_last_lines_name_the_checks(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.ruff]\nline-length = 100\n[tool.mypy]\nfiles = ["wrong.py"]\n')
    (tmp_path / "wrong.py").write_text("import os\nx: int = 'a'\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "infra.check", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    assert {line.split(" (")[0] for line in failed} >= {"FAILED lint", "FAILED format", "FAILED types"}
    assert all("): " in line and not line.endswith("): ") for line in failed)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_check_says_how_to_mend_what_it_finds(check: Check) -> None:
    assert check.mend
    assert bool(check.fix) == ("--fix" in check.mend)
