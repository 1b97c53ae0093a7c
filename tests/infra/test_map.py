"""What a newcomer reads first names what is there, and nothing else."""

import re
from pathlib import Path

from tests.conftest import ROOT

STREAMS = ROOT / "streams"


def test_the_map_names_every_module_once() -> None:
    named = re.findall(r"^- `([a-z_/]+\.py)`: ", (STREAMS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    modules = {str(path.relative_to(STREAMS)) for path in STREAMS.rglob("*.py") if path.name != "__init__.py"}
    assert sorted(named) == sorted(modules)


def test_the_index_of_decisions_has_every_decision_under_its_title() -> None:
    folder = ROOT / "infra" / "decisions"
    rows = re.findall(r"^- \[(\d{4})\]\((.+\.md)\): (.+)$", (folder / "README.md").read_text("utf-8"), re.MULTILINE)
    files = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert [file for _, file, _ in rows] == files
    assert len({number for number, _, _ in rows}) == len(rows)
    for number, file, title in rows:
        assert _first_line(folder / file) == f"# {number}: {title}"


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0]
