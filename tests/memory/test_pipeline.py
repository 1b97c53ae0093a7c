"""The pipeline as a Python API: an execution service's test in a few lines, and what each call promises."""

import re
from pathlib import Path
from typing import Any

import pytest

from schemas.messages import Transfer
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, JOURNAL, MARKS, PARAMETERS, PRICES, TRADES, TRANSFERS
from streams.errors import ScenarioError
from streams.memory import Pipeline
from streams.memory import pipeline as pipeline_module
from streams.memory.scheduler import EPOCH_US
from tests.memory.market import PARAMETER_RECORDS


def deposit(account: str, amount: str, sequence: int = 1) -> dict[str, Any]:
    return {
        "transfer_id": f"{account}-{sequence}",
        "account": account,
        "asset": "USDC",
        "amount": amount,
        "sequence": sequence,
        "age_ms": 0,
    }


def bought(account: str, quantity: str, price: str, trade_id: int = 1) -> dict[str, Any]:
    return {
        "trade_id": trade_id,
        "symbol": "BTC-PERP",
        "price": price,
        "quantity": quantity,
        "aggressor_side": "buy",
        "maker": {"account": "desk", "order_id": "m", "fee": "0"},
        "taker": {"account": account, "order_id": "t", "fee": "0"},
        "age_ms": 0,
    }


def printed(price: str, sequence: int) -> dict[str, Any]:
    return {"source": "a", "symbol": "BTC-PERP", "price": price, "sequence": sequence, "age_ms": 0}


def give_parameters(to: Pipeline) -> None:
    for record in PARAMETER_RECORDS:
        to.send(PARAMETERS, record)


class Venue:
    """An execution service that finds nobody to trade with."""

    def execute(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                "command_id": command["command_id"],
                "order_id": order["order_id"],
                "account": command["account"],
                "status": "cancelled",
                "filled_quantity": "0",
                "age_ms": 0,
            }
            for order in command["orders"]
        ]


def test_the_example_of_the_documentation_is_one_and_runs() -> None:
    docstring = pipeline_module.__doc__ or ""
    code = re.findall(r"(?:^    .*\n|^\n)+", docstring[docstring.index("ten lines:") :], re.MULTILINE)[0]
    readme = (Path(pipeline_module.__file__).parent / "README.md").read_text(encoding="utf-8")
    lines = [line.removeprefix("    ") for line in code.strip("\n").splitlines()]
    assert "\n".join(lines) in readme
    names = {
        "scene": [
            *((PARAMETERS, record) for record in PARAMETER_RECORDS),
            (TRANSFERS, deposit("desk", "1000000")),
            (TRANSFERS, deposit("ada", "10000")),
            (TRADES, bought("ada", "1", "60000")),
            (PRICES, printed("60000", 1)),
        ],
        "crash": printed("52000", 2),
        "my_service": Venue(),
    }
    exec(compile("\n".join(lines), "example", "exec"), names)
    command = names["command"]
    assert isinstance(command, dict)
    assert command["account"] == "ada"
    pipeline = names["pipeline"]
    assert isinstance(pipeline, Pipeline)
    (group,) = pipeline.records(ACCOUNTS)[-1].value["groups"]
    reported = group["command"] or group["ended"][-1]
    assert reported["command_id"] == command["command_id"] == "ada:1"
    assert [order["final"] for order in reported["orders"]] == ["0"]


def test_time_stands_still_but_for_advance() -> None:
    with Pipeline() as pipeline:
        assert pipeline.now_ms == 0
        pipeline.send(TRANSFERS, deposit("ada", "5"))
        assert pipeline.records(ACCOUNTS) == []
        pipeline.advance(1_500)
        assert pipeline.now_ms == 1_500
        with pytest.raises(ScenarioError, match="time does not go back"):
            pipeline.advance(-1)


def test_what_is_sent_is_seen_with_key_and_partition_of_the_contract() -> None:
    with Pipeline(partitions=3) as pipeline:
        pipeline.advance(7)
        pipeline.send(TRANSFERS, deposit("ada", "5"))
        pipeline.send(TRANSFERS, b"\xff", key=None, partition=2)
        pipeline.send(PARAMETERS, None, key="asset:X")
        first, second = pipeline.records(TRANSFERS)
        tombstone = pipeline.records(PARAMETERS)[0]
    assert (first.at_ms, first.key, first.value["event_time"]) == (7, "ada", EPOCH_US + 7_000)
    assert (second.key, second.partition, second.value, second.text) == (None, 2, None, "\udcff")
    assert (tombstone.key, tombstone.value, tombstone.text) == ("asset:X", None, None)
    assert first.partition in range(3)
    assert pipeline.partitions[TRANSFERS] == 3


def test_messages_of_the_contract_can_be_sent() -> None:
    transfer = Transfer(transfer_id="t", account="ada", asset="USDC", amount="5", sequence=1, event_time=EPOCH_US)
    with Pipeline() as pipeline:
        give_parameters(pipeline)
        pipeline.send(TRANSFERS, transfer)
        pipeline.advance(500)
        row = pipeline.records(ACCOUNTS)[-1].value
    assert row["groups"][0]["balances"] == {"USDC": "5"}


def test_marks_can_be_given_where_no_oracle_runs() -> None:
    with Pipeline(oracle=False) as pipeline:
        give_parameters(pipeline)
        pipeline.send(TRANSFERS, deposit("ada", "10000"))
        pipeline.send(TRADES, bought("ada", "1", "60000"))
        pipeline.advance(200)
        pipeline.send(MARKS, {"marks": [{"symbol": "BTC-PERP", "price": "52000"}]})
        pipeline.advance(1_000)
        assert [record.key for record in pipeline.records(COMMANDS)] == ["ada"]
        beats = pipeline.records(MARKS)
    last = beats[-1].value
    assert last["full"]
    assert last["marks"][0]["publish_time"] == EPOCH_US + 200_000
    assert last["time"] > EPOCH_US + 900_000
    with Pipeline() as pipeline, pytest.raises(ScenarioError, match="oracle=False"):
        pipeline.send(MARKS, {"marks": []})


def test_faults_strike_one_process() -> None:
    with Pipeline(engines=2) as pipeline:
        give_parameters(pipeline)
        pipeline.kill("engine:0")
        pipeline.freeze("engine:1", 500)
        pipeline.set_clock("router:0", 90_000)
        for number in range(8):
            pipeline.send(TRANSFERS, deposit(f"acct-{number}", "5"))
        pipeline.advance(400)
        assert pipeline.records(ACCOUNTS) == []
        pipeline.advance(3_000)
        assert len(pipeline.records(ACCOUNTS)) == 8
        assert {record.value["kind"] for record in pipeline.records(ALERTS)} == {"clock_skew"}
        for wrong in ("engine:2", "broker:0", "engine", "engine:x"):
            with pytest.raises(ScenarioError, match="there are router:0, engine:0, engine:1, oracle:0"):
                pipeline.kill(wrong)


def test_what_cannot_be_sent_or_read_is_refused() -> None:
    with Pipeline() as pipeline:
        with pytest.raises(ScenarioError, match=r"^topic: \"liquidation.commands.v1\" is not written from outside"):
            pipeline.send(COMMANDS, {})
        with pytest.raises(ScenarioError, match=r"^partition: trades.v1 has the partitions 0 to 3, got 4$"):
            pipeline.send(TRADES, {}, partition=4)
        with pytest.raises(ScenarioError, match="there is no topic 'orders'"):
            pipeline.records("orders")


def test_the_same_calls_give_the_same_records() -> None:
    def run() -> list[bytes]:
        with Pipeline(routers=2, engines=2) as pipeline:
            give_parameters(pipeline)
            for number in range(10):
                pipeline.send(TRANSFERS, deposit(f"acct-{number}", "10000"))
                pipeline.send(TRADES, bought(f"acct-{number}", "1", "60000", number))
            pipeline.send(PRICES, printed("60000", 1))
            pipeline.advance(500)
            pipeline.kill("engine:1")
            pipeline.send(PRICES, printed("52000", 2))
            pipeline.advance(5_000)
        assert not pipeline.broken
        return [record.line() for record in pipeline.records()]

    assert run() == run()


def test_nothing_is_shown_from_before_the_beginning() -> None:
    with Pipeline() as pipeline:
        pipeline.advance(6_000)
        assert pipeline.records(MARKS)
        assert all(record.at_ms >= 0 for record in pipeline.records())
        assert pipeline.records(JOURNAL)


def test_processes_own_everything_at_the_beginning() -> None:
    with Pipeline(shards=16, partitions=8, routers=3, engines=4) as pipeline:
        give_parameters(pipeline)
        for number in range(64):
            pipeline.send(TRANSFERS, deposit(f"acct-{number}", "5"))
        pipeline.advance(250)
        assert len({record.key for record in pipeline.records(ACCOUNTS)}) == 64
