"""What a reader can hold in the head: no class over 350 lines, no function over 60."""

import ast

from tests.infra.modules import modules

CLASS_LINES_MAX, FUNCTION_LINES_MAX = 350, 60

Node = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def too_long(tree: ast.Module) -> list[str]:
    """Name and lines of each class and function in ``tree`` that is longer than it may be."""
    findings = []
    for node in ast.walk(tree):
        if not isinstance(node, Node):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > (CLASS_LINES_MAX if isinstance(node, ast.ClassDef) else FUNCTION_LINES_MAX):
            findings.append(f"{node.name} {lines}")
    return findings


def test_a_long_one_is_noticed() -> None:
    body = "\n".join(f"    a{number} = {number}" for number in range(FUNCTION_LINES_MAX))
    assert too_long(ast.parse(f"def f():\n{body}\n")) == [f"f {FUNCTION_LINES_MAX + 1}"]
    assert too_long(ast.parse(f"class C:\n{body}\n")) == []
    body = "\n".join(f"    a{number} = {number}" for number in range(CLASS_LINES_MAX))
    assert too_long(ast.parse(f"class C:\n{body}\n")) == [f"C {CLASS_LINES_MAX + 1}"]


def test_no_class_and_no_function_is_too_long() -> None:
    trees = dict(modules())
    assert len(trees) > 300
    findings = [f"{path}: {each}" for path, tree in trees.items() for each in too_long(tree)]
    assert findings == []
