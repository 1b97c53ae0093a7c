"""Every scenario of this folder gives its whole output to the byte, in the contract's form, and shows what it says."""

import json
from typing import Any

import orjson
import pytest

from schemas.codec import DecodeError, Decoder, encode
from schemas.generate import EVENT_TYPES, MESSAGE_TYPES
from schemas.topics import ACCOUNTS, COMMANDS, CONTRACT, EVENTS, INPUTS
from streams.memory.pipeline import WrittenRecord
from tests.scenarios.run import HERE, ScenarioFile, differences, outcome, scenario_files

SCENARIOS = scenario_files()
SAME = [scenario for scenario in SCENARIOS if scenario.same_commands]
DECODERS = {topic: Decoder[Any](message) for topic, message in MESSAGE_TYPES.items()}
FROM_LETTERS = {topic.dlq: topic.name for topic in CONTRACT if topic.dead_letters}
"""The topic of each dead-letter topic."""
WHERE = {"dlq.topic", "dlq.partition", "dlq.offset", "dlq.timestamp", "dlq.error", "dlq.reason"}
OTHER_COUNTS = [(1, 1), (3, 1), (1, 2), (3, 2)]
"""Routers and engines."""


def name(scenario: ScenarioFile) -> str:
    return scenario.path.stem


@pytest.mark.parametrize("scenario", SCENARIOS, ids=name)
def test_a_scenario_gives_its_output_to_the_byte(scenario: ScenarioFile) -> None:
    records = scenario.run()
    assert b"".join(record.line() for record in records) == scenario.expected_path.read_bytes()
    assert list(differences(scenario.expected, outcome(records))) == []


@pytest.mark.parametrize("scenario", SAME, ids=name)
def test_what_is_decided_does_not_depend_on_the_number_of_processes(scenario: ScenarioFile) -> None:
    runs = [scenario.run(routers=routers, engines=engines) for routers, engines in OTHER_COUNTS]
    assert all(commands(records) == commands(runs[0]) for records in runs)
    held = [
        {name: outcome(records)[name] for name in ("balances", "positions", "suspended", "dead_letters")}
        for records in runs
    ]
    assert all(other == held[0] for other in held)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=name)
def test_every_record_of_an_output_is_of_its_topics_form(scenario: ScenarioFile) -> None:
    for line in scenario.expected_path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["topic"] in FROM_LETTERS:
            check_letter(FROM_LETTERS[record["topic"]], record)
        elif record["value"] is not None or record["topic"] != ACCOUNTS:  # a row that is gone has no value
            check_message(record)


def test_every_output_belongs_to_a_scenario_and_says_something() -> None:
    assert len(SCENARIOS) >= 15
    assert {scenario.expected_path for scenario in SCENARIOS} == set(HERE.glob("*.expected.jsonl"))
    assert all(scenario.says.endswith(".") and scenario.expected for scenario in SCENARIOS)
    assert len(SAME) >= 15


def test_the_table_says_what_the_scenarios_say() -> None:
    table = [line for line in (HERE / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert table == [f"| `{name(scenario)}` | {scenario.says} |" for scenario in SCENARIOS]


def test_what_is_not_as_expected_is_named() -> None:
    got: dict[str, Any] = {"alerts": ["bankrupt"], "command_count": 1, "suspended": ["a"]}
    expected: dict[str, Any] = {
        "alerts": {"not": []},
        "command_count": {"at_least": 1},
        "suspended": {"contains": ["a"]},
    }
    assert list(differences(expected, got)) == []
    expected = {"alerts": {"not": ["bankrupt"]}, "command_count": {"at_least": 2}, "suspended": {"contains": ["b"]}}
    assert len(list(differences(expected, got))) == 3


def check_message(record: dict[str, Any]) -> None:
    """It decodes as its topic's message, which holds all that the record says."""
    message = DECODERS[record["topic"]](orjson.dumps(record["value"]))
    assert json.loads(encode(message)) == record["value"]
    assert record.get("headers", {}).get("ce_type") == EVENT_TYPES.get(record["topic"])


def check_letter(topic: str, record: dict[str, Any]) -> None:
    """It says where it stood, why it is here and whom it concerns; it cannot be decoded if that is what it says."""
    headers = record["headers"]
    about_accounts = {"dlq.suspended"} if topic in (*INPUTS, EVENTS) else set()
    assert headers.keys() - {"dlq.untold"} == WHERE | about_accounts
    assert headers["dlq.topic"] == topic
    assert all(int(headers[f"dlq.{number}"]) >= 0 for number in ("partition", "offset", "timestamp"))
    assert headers["dlq.reason"]
    assert headers["dlq.error"].isidentifier()
    assert all(isinstance(account, str) for account in json.loads(headers.get("dlq.suspended", "[]")))
    assert headers.get("dlq.untold", "1") == "1"
    try:
        DECODERS[topic](bytes_of(record))
    except DecodeError:
        assert headers["dlq.error"] == "DecodeError"
    else:
        assert headers["dlq.error"] != "DecodeError"


def bytes_of(record: dict[str, Any]) -> bytes | None:
    if "bytes" in record:
        return str(record["bytes"]).encode("utf-8", "surrogateescape")
    return None if record["value"] is None else orjson.dumps(record["value"])


def commands(records: list[WrittenRecord]) -> dict[str, Any]:
    """Commands by id, without what depends on how records fell into frames: the offset of the last event frame, and
    the time, by the microseconds that passed on the way."""
    by_id = {}
    for record in records:
        if record.topic != COMMANDS:
            continue
        assert record.value["command_id"] not in by_id
        evidence = {name: value for name, value in record.value["evidence"].items() if not name.endswith("_offset")}
        times = {"issued_at": None, "expires_at": None}
        by_id[record.value["command_id"]] = record.value | times | {"evidence": evidence}
    return by_id
