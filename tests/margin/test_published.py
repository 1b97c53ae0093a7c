"""Examples that exchanges and protocols have published, through the same code as ``margin-clearing evaluate``."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from streams.margin.evaluate import evaluate_request

FILES = ("published.json", "further.json")
VECTORS = [vector for name in FILES for vector in json.loads((Path(__file__).parent / "vectors" / name).read_text())]
FIGURES = ("equity", "maintenance_margin", "initial_margin", "health_ratio")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_published_example_comes_out_as_published(vector: dict[str, Any]) -> None:
    """``expect`` is about the only group there is, ``expect_groups`` about each by its margin."""
    answers = json.loads(evaluate_request(json.dumps(vector["input"]).encode()))["groups"]
    if "expect" in vector:
        (answer,) = answers
        _check(answer, vector["expect"], Decimal(vector["tolerance"]))
    else:
        assert {answer["margin"] for answer in answers} == vector["expect_groups"].keys()
        for answer in answers:
            _check(answer, vector["expect_groups"][answer["margin"]], Decimal(vector["tolerance"]))


def test_every_example_names_its_source_and_has_a_name_of_its_own() -> None:
    assert len({vector["name"] for vector in VECTORS}) == len(VECTORS)
    assert all(vector["source"] for vector in VECTORS)


def _check(answer: dict[str, Any], expected: dict[str, Any], tolerance: Decimal) -> None:
    figures, wanted = _figures(answer), _figures_expected(expected)
    assert wanted.keys() <= figures.keys()
    for name, value in wanted.items():
        assert abs(figures[name] - value) <= tolerance, name
    if "liquidatable" in expected:
        assert answer["liquidatable"] is expected["liquidatable"]
    if "stage" in expected:
        assert answer["plan"]["stage"] == expected["stage"]
    assert wanted or "liquidatable" in expected


def _figures(answer: dict[str, Any]) -> dict[str, Decimal]:
    figures = {name: Decimal(answer[name]) for name in FIGURES if answer[name] is not None}
    for position in answer["positions"]:
        for name in ("liquidation_price", "bankruptcy_price"):
            if position[name] is not None:
                figures[f"{name} {position['symbol']}"] = Decimal(position[name])
    for order in answer["plan"]["orders"] if answer["plan"] else ():
        name = f"close {order['symbol']}"
        figures[name] = figures.get(name, Decimal(0)) + Decimal(order["quantity"])
    return figures


def _figures_expected(expected: dict[str, Any]) -> dict[str, Decimal]:
    figures = {name: Decimal(expected[name]) for name in FIGURES if name in expected}
    for field, name in (
        ("liquidation_prices", "liquidation_price"),
        ("bankruptcy_prices", "bankruptcy_price"),
        ("close_quantities", "close"),
    ):
        figures |= {f"{name} {symbol}": Decimal(value) for symbol, value in expected.get(field, {}).items()}
    return figures
