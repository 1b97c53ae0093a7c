"""What a reader can hold in the head: no class over 350 lines, no function over 60."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLASS_LINES_MAX, FUNCTION_LINES_MAX = 350, 60

Node = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def too_long(source: str) -> list[str]:
    """Name and lines of each class and function in ``source`` that is longer than it may be."""
    findings = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, Node):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > (CLASS_LINES_MAX if isinstance(node, ast.ClassDef) else FUNCTION_LINES_MAX):
            findings.append(f"{node.name} {lines}")
    return findings


def test_a_long_one_is_noticed() -> None:
    body = "\n".join(f"    a{number} = {number}" for number in range(FUNCTION_LINES_MAX))
    assert too_long(f"def f():\n{body}\n") == [f"f {FUNCTION_LINES_MAX + 1}"]
    assert too_long(f"class C:\n{body}\n") == []
    body = "\n".join(f"    a{number} = {number}" for number in range(CLASS_LINES_MAX))
    assert too_long(f"class C:\n{body}\n") == [f"C {CLASS_LINES_MAX + 1}"]


def test_no_class_and_no_function_is_too_long() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    paths = [path for path in listed.stdout.splitlines() if (ROOT / path).exists()]
    assert len(paths) > 300
    findings = [f"{path}: {each}" for path in paths for each in too_long((ROOT / path).read_text())]
    assert findings == []
