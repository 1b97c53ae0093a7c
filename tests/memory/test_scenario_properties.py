"""Whatever is written down is run or refused with its place; the same file gives the same bytes."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.errors import ScenarioError
from streams.memory.given_records import INPUTS
from streams.memory.pipeline import BrokenProcess
from streams.memory.scenario import ScenarioOptions, run_scenario
from tests.memory.market import PARAMETER_RECORDS, TIER
from tests.properties import examples

ACCOUNTS = st.sampled_from(["ada", "bob", "cyd", "x" * 128, "margin-clearing:x"])
SYMBOLS = st.sampled_from(["BTC-PERP", "ETH-PERP", "BTC-USD"])
DECIMALS = st.sampled_from(["1", "0.001", "1000", "60000", "-5", "0", "1e5", "9" * 18, "0.0000001"])
NUMBERS = st.integers(0, 5)
TIMES = st.sampled_from([-100_000, 0, 100, 5_000, 90_000_000])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
SIDE = st.fixed_dictionaries({"account": ACCOUNTS, "order_id": st.just("o"), "fee": DECIMALS})
VALUES: dict[str, Any] = {
    "trades.v1": st.fixed_dictionaries(
        {
            "trade_id": NUMBERS,
            "symbol": SYMBOLS,
            "price": DECIMALS,
            "quantity": DECIMALS,
            "aggressor_side": st.sampled_from(["buy", "sell"]),
            "maker": SIDE,
            "taker": SIDE,
            "event_time_ms": TIMES,
        }
    ),
    "collateral.transfers.v1": st.fixed_dictionaries(
        {
            "transfer_id": st.just("t"),
            "account": ACCOUNTS,
            "asset": st.sampled_from(["USDC", "BTC", "EUR"]),
            "amount": DECIMALS,
            "sequence": NUMBERS,
            "age_ms": TIMES,
        }
    ),
    "oracle.prices.v1": st.fixed_dictionaries(
        {
            "source": st.sampled_from(["a", "b"]),
            "symbol": SYMBOLS,
            "price": DECIMALS,
            "sequence": NUMBERS,
            "publish_time_ms": TIMES,
        }
    ),
    "liquidation.reports.v1": st.fixed_dictionaries(
        {
            "command_id": st.just("ada:1"),
            "order_id": st.just("ada:1:0"),
            "account": ACCOUNTS,
            "status": st.sampled_from(["filled", "rejected"]),
            "filled_quantity": DECIMALS,
            "event_time_ms": TIMES,
        }
    ),
    "margin.marks.v1": st.fixed_dictionaries(
        {
            "marks": st.lists(
                st.fixed_dictionaries({"symbol": SYMBOLS, "price": DECIMALS}, optional={"age_ms": TIMES}), max_size=2
            )
        }
    ),
    "risk.parameters.v1": st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("asset"), "asset": st.sampled_from(["USDC", "BTC"]), "decimals": st.sampled_from([2, 6])}
        ),
        st.fixed_dictionaries(
            {
                "type": st.just("instrument"),
                "symbol": SYMBOLS,
                "settle_asset": st.sampled_from(["USDC", "EUR"]),
                "price_increment": st.sampled_from(["0.1", "1"]),
                "quantity_increment": st.just("0.001"),
                "margin_tiers": st.just([TIER]),
            }
        ),
        st.fixed_dictionaries({"type": st.just("oracle"), "symbol": SYMBOLS, "sources": st.just({"a": "1", "b": "1"})}),
        st.fixed_dictionaries({"type": st.just("policy"), "command_ttl_ms": st.sampled_from([1, 500])}),
    ),
    "margin.events.v1": st.fixed_dictionaries({"time_ms": TIMES, "repaired": st.booleans()}),
}


def records(topic: str) -> st.SearchStrategy[dict[str, Any]]:
    where = {"partition": st.just(0)} if topic == "margin.events.v1" else {}
    return st.one_of(
        st.fixed_dictionaries({"topic": st.just(topic), "value": VALUES[topic], **where}),
        st.fixed_dictionaries({"topic": st.just(topic), "value": ANYTHING, "partition": st.just(0)}),
        st.fixed_dictionaries({"topic": st.just(topic), "bytes": st.text(max_size=20), "partition": st.just(0)}),
        st.fixed_dictionaries({"topic": st.just(topic), "value": st.none(), "key": st.just("asset:USDC"), **where}),
    )


WORKER = st.sampled_from(["router:0", "router:1", "engine:0", "engine:1"])
FAULTS = st.one_of(
    st.fixed_dictionaries({"freeze": WORKER, "for_ms": st.sampled_from([1, 1_000, 20_000])}),
    st.fixed_dictionaries({"kill": WORKER}),
    st.fixed_dictionaries({"clock": WORKER, "ahead_ms": st.sampled_from([-3_600_000, 0, 90_000])}),
)
STEPS = st.one_of(FAULTS, *(records(topic) for topic in INPUTS))
PARAMETERS: list[dict[str, Any]] = [{"topic": "risk.parameters.v1", "value": value} for value in PARAMETER_RECORDS]
SCENARIOS = st.lists(st.tuples(st.integers(0, 700), STEPS), min_size=1, max_size=25)
OPTIONS = ScenarioOptions(shards=2, partitions=2, routers=2, engines=2)


def written_down(steps: list[tuple[int, dict[str, Any]]]) -> bytes:
    lines, at_ms = [{"at_ms": 0} | record for record in PARAMETERS], 0
    for pause_ms, step in steps:
        at_ms += pause_ms
        lines.append({"at_ms": at_ms} | step)
    return "\n".join(json.dumps(line) for line in lines).encode()


def refuse(broken: BrokenProcess) -> None:
    raise broken.error


def run(data: bytes) -> list[bytes]:
    return [record.line() for record in run_scenario(data, "x", OPTIONS, refuse)]


def refusal(data: bytes) -> str | None:
    """Why a file is refused; None if it runs."""
    try:
        run(data)
    except ScenarioError as error:
        return str(error)
    return None


@given(SCENARIOS)
@settings(max_examples=examples(25), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_scenario_runs_whatever_it_gives_and_twice_the_same(steps: list[tuple[int, dict[str, Any]]]) -> None:
    data = written_down(steps)
    first = run(data)
    assert first == run(data)
    assert all(json.loads(line)["topic"] for line in first)


@given(SCENARIOS, st.data())
@settings(max_examples=examples(40), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_damaged_file_is_refused_with_its_place_or_runs(
    steps: list[tuple[int, dict[str, Any]]], data: st.DataObject
) -> None:
    text = bytearray(written_down(steps[:6]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        match data.draw(st.sampled_from(["replace", "remove", "add", "cut"])):
            case "replace":
                text[at] = data.draw(st.integers(0, 255))
            case "remove":
                del text[at : at + data.draw(st.integers(1, 20))]
            case "add":
                text[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case _:
                del text[at:]
        if not text:
            break
    said = refusal(bytes(text))
    assert said is None or said.startswith("x line ")
