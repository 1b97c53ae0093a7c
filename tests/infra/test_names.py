"""One word, one sense: no two classes of one name, and no name that fits anything."""

import ast
from collections import defaultdict
from collections.abc import Iterator

from tests.infra.modules import modules

VAGUE = {"found", "result_", "tmp", "foo", "thing", "stuff"}


def bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The names that are given values: variables, parameters, functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name


def test_no_class_of_the_product_stands_twice() -> None:
    places = defaultdict(list)
    for path, tree in modules("streams", "schemas", "infra"):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path)
    assert len(places) > 200
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_a_vague_name_is_noticed() -> None:
    tree = ast.parse("def f(found):\n    for tmp in found:\n        a = found\n")
    assert [name for _, name in bound_names(tree) if name in VAGUE] == ["found", "tmp"]


def test_no_name_fits_anything() -> None:
    vague = [
        f"{path}:{line}: {name}"
        for path, tree in modules("streams", "schemas", "infra", "tests")
        for line, name in bound_names(tree)
        if name in VAGUE
    ]
    assert vague == []
