"""The command ``evaluate``: documents in, verdicts out, and nothing but the two errors whatever the bytes are."""

import json
from contextlib import suppress
from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec import DecodeError
from streams.errors import InputError, ParameterError
from streams.margin.evaluate import evaluate_request
from tests.properties import examples

TIERS = [{"notional_floor": "0", "maintenance_rate": "0.05", "initial_rate": "0.1"}]
PARAMETERS = [
    {"type": "asset", "asset": "USD"},
    {"type": "asset", "asset": "BTC", "price_symbol": "BTC-USD"},
    {"type": "policy", "liquidation_buffer_rate": "0.01"},
    *(
        {
            "type": "instrument",
            "symbol": symbol,
            "settle_asset": "USD",
            "price_increment": "0.01",
            "quantity_increment": "0.001",
            "margin_tiers": TIERS,
        }
        for symbol in ("X-PERP", "Y-PERP")
    ),
]
REQUEST: dict[str, Any] = {
    "parameters": PARAMETERS,
    "marks": {"X-PERP": "100", "Y-PERP": "50", "BTC-USD": "20000"},
    "account": {
        "account": "a",
        "balances": {"USD": "4", "BTC": "0"},
        "positions": [
            {"symbol": "X-PERP", "quantity": "1", "entry_price": "100"},
            {
                "symbol": "Y-PERP",
                "quantity": "-2",
                "entry_price": "50.333333333333",
                "margin": "isolated",
                "isolated_balances": {"BTC": "0.001"},
            },
        ],
    },
}
POSITION = REQUEST["account"]["positions"][0]


def ask(request: Any) -> Any:
    return json.loads(evaluate_request(json.dumps(request).encode()))


def changed(**paths: Any) -> dict[str, Any]:
    """The request with values replaced: ``account__positions__0__quantity="2"``."""
    request = deepcopy(REQUEST)
    for path, value in paths.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        target: Any = request
        for part in parents:
            target = target[part]
        target[last] = value
    return request


def test_each_group_is_judged_on_its_own() -> None:
    cross, isolated = ask(REQUEST)["groups"]
    assert cross == {
        "margin": "cross",
        "equity": "4",
        "unweighted_equity": "4",
        "debt": "0",
        "maintenance_margin": "5",
        "initial_margin": "10",
        "health_ratio": "0.8",
        "liquidatable": True,
        "stale_bounds": {},
        "bounded": True,
        "collateral": [],
        "positions": [
            {
                "symbol": "X-PERP",
                "quantity": "1",
                "notional": "100",
                "maintenance_margin": "5",
                "liquidation_price": "101.052631578948",
                "bankruptcy_price": "96",
            }
        ],
        "plan": {
            "stage": "reduce",
            "orders": [{"symbol": "X-PERP", "order_side": "sell", "quantity": "0.334", "limit_price": "99"}],
        },
    }
    assert (isolated["margin"], isolated["equity"], isolated["plan"]) == ("Y-PERP", "20.666666666666", None)


def test_debt_without_a_position_is_judged_planned_and_priced() -> None:
    request = changed(account__balances={"USD": "-19001", "BTC": "1"}, account__positions=[])
    request["parameters"][1]["collateral_tiers"] = [{"quantity_floor": "0", "weight": "0.95"}]
    (cross,) = ask(request)["groups"]
    assert {name: cross[name] for name in ("equity", "unweighted_equity", "debt", "maintenance_margin")} == {
        "equity": "-1",
        "unweighted_equity": "999",
        "debt": "19001",
        "maintenance_margin": "0",
    }
    assert cross["health_ratio"] == "0.99994737"
    assert cross["collateral"] == [{"asset": "BTC", "symbol": "BTC-USD", "liquidation_price": "20001.052631578948"}]
    assert cross["plan"]["stage"] == "reduce"
    assert [(order["symbol"], order["order_side"]) for order in cross["plan"]["orders"]] == [("BTC-USD", "sell")]
    request["account"]["balances"]["BTC"] = "0"
    assert ask(request)["groups"][0]["plan"] == {"stage": "insolvent", "orders": []}


def test_a_mark_that_is_not_live_is_bounded_and_the_bound_is_named() -> None:
    request = changed(account__balances={"USD": "4", "BTC": "0.000001"}, stale=["BTC-USD", "Y-PERP"])
    cross, isolated = ask(request)["groups"]
    assert (cross["liquidatable"], cross["equity"], cross["stale_bounds"]) == (True, "4.2", {"BTC-USD": "9"})
    assert cross["positions"][0]["liquidation_price"] is None
    assert cross["collateral"] == [{"asset": "BTC", "symbol": "BTC-USD", "liquidation_price": None}]
    assert [order["symbol"] for order in cross["plan"]["orders"]] == ["X-PERP"]
    assert (isolated["liquidatable"], isolated["stale_bounds"]) == (False, {"BTC-USD": "9", "Y-PERP": "9"})
    del request["marks"]["Y-PERP"]
    request["account"]["positions"][1]["quantity"] = "2"
    _, isolated = ask(request)["groups"]
    assert (isolated["bounded"], isolated["liquidatable"], isolated["plan"]) == (False, False, None)


def test_a_list_of_requests_gives_a_list_of_answers() -> None:
    assert ask([REQUEST, REQUEST]) == [ask(REQUEST)] * 2
    assert ask([]) == []


def test_an_empty_cross_group_is_left_out_unless_it_is_all_there_is() -> None:
    assert [group["margin"] for group in ask(changed(account__balances={}))["groups"]] == ["cross", "Y-PERP"]
    only_isolated = changed(account__balances={}, account__positions=[REQUEST["account"]["positions"][1]])
    assert [group["margin"] for group in ask(only_isolated)["groups"]] == ["Y-PERP"]
    assert [group["equity"] for group in ask(changed(account__balances={}, account__positions=[]))["groups"]] == ["0"]


@pytest.mark.parametrize(
    ("request_", "error", "reason"),
    [
        (changed(account__positions__0__symbol="Z-PERP"), InputError, "Z-PERP"),
        (changed(account__positions__0__quantity="0.0001"), InputError, "X-PERP.*finer"),
        (changed(account__positions__0__quantity="0"), DecodeError, r"positions\[0\]\.quantity"),
        (changed(account__positions__0__quantity=1), DecodeError, r"positions\[0\]\.quantity"),
        (
            changed(account__positions__0={**POSITION, "quantity": "0.001", "entry_price": "1.0000000000000001"}),
            InputError,
            "more than 18 decimals",
        ),
        (changed(account__positions__0__margin="other"), DecodeError, "margin"),
        (changed(account__positions__0__isolated_balances={"USD": "1"}), InputError, "not isolated"),
        (changed(account__positions=[REQUEST["account"]["positions"][0]] * 2), InputError, "given twice"),
        (changed(account__positions=[REQUEST["account"]["positions"][1]] * 2), InputError, "isolated twice"),
        (changed(account__balances={"GBP": "1"}), InputError, "GBP"),
        (changed(marks={"X-PERP": "100", "BTC-USD": "1"}), InputError, "symbol Y-PERP: no mark"),
        (changed(marks={"X-PERP": "0"}), DecodeError, "marks"),
        (changed(parameters__3__margin_tiers=[]), DecodeError, "margin_tiers"),
        (changed(parameters__3__liquidation_fee="1"), ParameterError, "instrument:X-PERP"),
        ([REQUEST, changed(account__balances={"GBP": "1"})], InputError, "request 1: .*GBP"),
        ({}, DecodeError, "parameters"),
        (None, DecodeError, "null"),
    ],
)
def test_a_bad_request_is_refused_with_its_field_and_reason(request_: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        ask(request_)


NUMBER = st.sampled_from(["0", "1", "-1", "1e5", "", "999999999999999999", "0.000000000000000001", "-0", "100"])
JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | NUMBER


RICH = deepcopy(REQUEST)
"""A request in which every rule there is has something to say."""
RICH["parameters"] = [
    {"type": "asset", "asset": "USD", "liability_weight": "1.1", "liquidation_fee": "0.001"},
    {
        "type": "asset",
        "asset": "BTC",
        "price_symbol": "BTC-USD",
        "decimals": 9,
        "liquidation_fee": "0.002",
        "collateral_tiers": [{"quantity_floor": "0", "weight": "0.95"}, {"quantity_floor": "1", "weight": "0.5"}],
    },
    {
        "type": "policy",
        "liquidation_buffer_rate": "0.01",
        "margin_call_levels": ["1.5", "1.2"],
        "portfolio_margin_accounts": ["a"],
        "scan_offsets": [{"first": "G", "second": "Y-PERP", "rate": "0.5"}],
        "scan_extreme_multiple": "3",
    },
    {"type": "oracle", "symbol": "X-PERP", "sources": {"venue": "1"}},
    {
        "type": "instrument",
        "symbol": "X-PERP",
        "settle_asset": "USD",
        "price_increment": "0.01",
        "quantity_increment": "0.001",
        "margin_tiers": [*TIERS, {"notional_floor": "50", "maintenance_rate": "0.1", "initial_rate": "0.2"}],
        "liquidation_fee": "0.005",
        "insurance_fee": "0.001",
        "max_order_notional": "7",
        "depth_notional": "1000",
        "impact_rate": "0.01",
        "scan_group": "G",
        "scan_range": "0.1",
        "scan_floor_rate": "0.01",
        "volatility_scale": {"reference": "0.04"},
    },
    {
        "type": "instrument",
        "symbol": "Y-PERP",
        "settle_asset": "BTC",
        "price_increment": "0.01",
        "quantity_increment": "0.001",
        "margin_tiers": TIERS,
        "scan_range": "0.2",
        "scan_floor_rate": "0.01",
        "scan_array": ["0.1"] * 8 + ["-0.1"] * 8,
    },
]
RICH["account"]["balances"] = {"USD": "-100", "BTC": "0.005"}
RICH["account"]["positions"] = [POSITION, {"symbol": "Y-PERP", "quantity": "-0.002", "entry_price": "50.25"}]


def test_the_rich_request_is_liquidated() -> None:
    """So that what is broken below breaks plans too."""
    (cross,) = ask(RICH)["groups"]
    assert cross["liquidatable"]
    assert cross["plan"]["orders"]


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """A request with some of its leaves, or whole branches, replaced by junk or by odd numbers."""
    whole = draw(st.sampled_from([REQUEST, RICH, RICH]))

    def walk(value: Any) -> Any:
        if draw(st.integers(0, 40)) == 0:
            return draw(JUNK | st.lists(JUNK, max_size=2) | st.dictionaries(st.text(max_size=3), JUNK, max_size=2))
        if isinstance(value, dict):
            return {name: walk(child) for name, child in value.items() if draw(st.integers(0, 60))}
        if isinstance(value, list):
            return [walk(child) for child in value]
        try:
            Decimal(value)
        except ArithmeticError:
            return value
        return draw(NUMBER) if draw(st.integers(0, 6)) == 0 else value

    return walk(whole)


@settings(max_examples=examples(500))
@given(broken())
def test_no_request_makes_another_error(request_: Any) -> None:
    with suppress(DecodeError, InputError):
        answer = ask(request_)
        assert isinstance(answer["groups"] if isinstance(answer, dict) else answer, list)


DOCUMENT = st.recursive(
    JUNK,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["parameters", "marks", "account", "positions", "type", "symbol"]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(DOCUMENT)
def test_no_json_document_makes_another_error(document: Any) -> None:
    with suppress(DecodeError, InputError):
        assert ask(document) == []


@pytest.mark.parametrize("opening", [b"[", b'{"account":', b'{"parameters":[{"x":'])
def test_a_document_nested_without_end_is_refused(opening: bytes) -> None:
    with pytest.raises(DecodeError):
        evaluate_request(opening * 20_000)


@given(st.binary(max_size=50) | st.text(max_size=50).map(str.encode))
def test_no_bytes_make_another_error(data: bytes) -> None:
    with suppress(DecodeError, InputError):
        assert json.loads(evaluate_request(data)) == json.loads(data) == []
