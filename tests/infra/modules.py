"""The project's Python modules, for tests that hold all of them to a rule."""

import ast
import subprocess
from collections.abc import Iterator

from tests.conftest import ROOT


def modules(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """Path and syntax tree of each Python module that git knows of, or would; in ``folders``, or everywhere."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for path in listed.stdout.splitlines():
        if path.endswith(".py") and (ROOT / path).exists():
            yield path, ast.parse((ROOT / path).read_text(encoding="utf-8"))
