"""The walls between the rooms are real: the import contracts hold, and each fails where something reaches through."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOUSE = "The house"
PURE = "The risk mathematics is pure"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of everything that the contracts are about."""
    copied = tmp_path_factory.mktemp("tree")
    for package in ("streams", "schemas", "infra"):
        shutil.copytree(ROOT / package, copied / package, ignore=shutil.ignore_patterns("__pycache__", "*.gz"))
    shutil.copy(ROOT / "pyproject.toml", copied)
    return copied


@pytest.fixture
def opened(tree: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The copy with a line added to one of its files, as the test's parameter says, until the test has ended."""
    name, line = request.param
    file = tree / name
    before = file.read_text() if file.exists() else None
    file.write_text(f"{before or ''}\n{line}\n")
    yield tree
    if before is None:
        file.unlink()
    else:
        file.write_text(before)


def broken(tree: Path) -> tuple[list[str], str]:
    """The contracts that do not hold in ``tree``, and all that is said."""
    linted = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = linted.stdout + linted.stderr
    assert re.search(r"^Contracts: \d+ kept, \d+ broken\.$", said, re.MULTILINE), said
    contracts = re.findall(r"^(.*) BROKEN$", said, re.MULTILINE)
    assert (linted.returncode == 0) == (not contracts), said
    return contracts, said


def test_every_contract_holds(tree: Path) -> None:
    assert broken(tree)[0] == []


@pytest.mark.parametrize(
    ("opened", "contract", "named"),
    [
        (("streams/margin/levels.py", "import time, redis"), PURE, "streams.margin is not allowed to import time"),
        (("streams/margin/levels.py", "import time, redis"), PURE, "streams.margin is not allowed to import redis"),
        (("streams/margin/bands.py", "def now():\n    from datetime import datetime"), PURE, "import datetime"),
        (("streams/margin/plan.py", "import logging.handlers"), PURE, "import logging"),
        (("streams/errors.py", "from threading import Lock"), PURE, "streams.errors -> threading"),
        (("schemas/types.py", "import socket"), PURE, "schemas.types -> socket"),
        (("streams/margin/plan.py", "from streams.clearing import shard"), HOUSE, "to import streams.clearing:"),
        (("streams/tables/keys.py", "import streams.feeds.marks"), HOUSE, "streams.tables is not allowed to import"),
        (("streams/routing/split.py", "from streams.oracle import marks"), HOUSE, "streams.routing is not allowed"),
        (("streams/settings.py", "import streams.margin.limits"), HOUSE, "streams.settings is not allowed to import"),
        (("streams/odds_and_ends.py", "ENDS = ()"), HOUSE, "streams.odds_and_ends"),
        (("infra/local/ports.py", "from streams import settings"), "What runs things", "infra.local.ports"),
        (
            ("streams/demo/run_records.py", "import streams.margin.amounts"),
            "What judges the demo",
            "streams.demo.checks",
        ),
        (("streams/console/show.py", "import streams.clearing.account"), "The console", "streams.console.show"),
        (("schemas/topics.py", "import streams.errors"), "The contract depends", "schemas.topics"),
    ],
    indirect=["opened"],
    ids=str,
)
def test_whatever_reaches_through_a_wall_is_named(opened: Path, contract: str, named: str) -> None:
    contracts, said = broken(opened)
    assert any(name.startswith(contract) for name in contracts), said
    assert re.sub(r"\s+", " ", named) in re.sub(r"\s+", " ", said), said
