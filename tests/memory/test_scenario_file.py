"""The form of a scenario: what each line becomes, and that whatever is wrong is named by line and field."""

import json
from typing import Any

import pytest

from schemas import messages
from schemas.topics import EVENTS, MARKS, PARAMETERS, PRICES, REPORTS, TRADES, TRANSFERS
from streams.errors import ScenarioError
from streams.memory.given_records import INPUTS, ON_THE_CLOCK, GivenRecord
from streams.memory.pipeline import partition_counts
from streams.memory.scenario_file import ClockError, Freeze, Kill, ScenarioScript, WorkerName, read_scenario
from streams.memory.scheduler import EPOCH_US

COUNTS = partition_counts(shards=4, partitions=3)
TRADE = {"at_ms": 0, "topic": TRADES, "value": {"symbol": "BTC-PERP"}}


def read(*lines: dict[str, Any] | str, **counts: int | None) -> ScenarioScript:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return read_scenario(text.encode(), "x.jsonl", COUNTS, **counts)


def record(line: dict[str, Any]) -> GivenRecord:
    given = read({"at_ms": 0} | line).lines[0].what
    assert isinstance(given, GivenRecord)
    return given


# --- what lines become -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "value", "key"),
    [
        (TRADES, {"symbol": "BTC-PERP"}, b"BTC-PERP"),
        (PRICES, {"symbol": "BTC-USD"}, b"BTC-USD"),
        (TRANSFERS, {"account": "ada"}, b"ada"),
        (REPORTS, {"account": "ada"}, b"ada"),
        (PARAMETERS, {"type": "instrument", "symbol": "BTC-PERP"}, b"instrument:BTC-PERP"),
        (PARAMETERS, {"type": "oracle", "symbol": "BTC-PERP"}, b"oracle:BTC-PERP"),
        (PARAMETERS, {"type": "asset", "asset": "USDC"}, b"asset:USDC"),
        (PARAMETERS, {"type": "policy"}, b"policy:default"),
        (PARAMETERS, {"type": "other"}, None),
        (PARAMETERS, {"type": ["asset"], "asset": "USDC"}, None),
        (TRADES, {"symbol": 7}, None),
        (TRADES, [], None),
        (MARKS, {"marks": []}, None),
    ],
)
def test_a_record_without_a_key_has_the_contracts(topic: str, value: Any, key: bytes | None) -> None:
    assert record({"topic": topic, "value": value}).key == key


def test_a_key_and_a_partition_that_are_given_count() -> None:
    given = record(TRADE | {"key": "other", "partition": 2})
    assert (given.key, given.partition) == (b"other", 2)
    assert record(TRADE | {"key": None}).key is None


def test_a_record_without_a_partition_is_where_its_key_belongs() -> None:
    partitions = {record({"topic": TRANSFERS, "value": {"account": f"a{n}"}}).partition for n in range(50)}
    assert partitions == {0, 1, 2}
    assert record({"topic": TRANSFERS, "value": {}}).partition == 0


def test_times_on_the_scenarios_clock_become_the_contracts_at_any_depth() -> None:
    value = {"event_time_ms": 1500, "deep": [{"publish_time_ms": -2, "other_ms": 3}], "time_ms": 0.5}
    message = json.loads(record(TRADE | {"value": value}).value or b"")
    assert message == {
        "event_time": EPOCH_US + 1_500_000,
        "deep": [{"publish_time": EPOCH_US - 2_000, "other_ms": 3}],
        "time": EPOCH_US + 500,
    }


@pytest.mark.parametrize(
    ("topic", "field"),
    [(TRADES, "event_time"), (TRANSFERS, "event_time"), (REPORTS, "event_time"), (PRICES, "publish_time")],
)
def test_an_age_counts_back_from_the_line(topic: str, field: str) -> None:
    given = record({"at_ms": 700, "topic": topic, "value": {"age_ms": 200}})
    assert json.loads(given.value or b"") == {field: EPOCH_US + 500_000}


def test_the_ages_of_marks_are_those_of_their_prices() -> None:
    given = record({"at_ms": 700, "topic": MARKS, "value": {"marks": [{"symbol": "X", "age_ms": 200}]}})
    assert given.message == {"marks": [{"symbol": "X", "publish_time": EPOCH_US + 500_000}]}


def test_settings_in_milliseconds_stay_what_they_are() -> None:
    value = {"type": "oracle", "symbol": "X", "max_age_ms": 5, "jump_confirm_ms": 6}
    assert json.loads(record({"topic": PARAMETERS, "value": value}).value or b"") == value


def test_every_time_of_a_message_from_outside_can_be_given_on_the_scenarios_clock() -> None:
    inputs = (messages.Trade, messages.Transfer, messages.OraclePrice, messages.LiquidationReport, messages.EventFrame)
    inputs += (messages.MarkFrame, messages.Mark)  # type: ignore[assignment]
    times = {name for kind in inputs for name in kind.__struct_fields__ if name == "time" or name.endswith("_time")}
    assert times == set(ON_THE_CLOCK.values())


def test_bytes_are_taken_as_they_are() -> None:
    assert record({"topic": TRADES, "bytes": "nö {"}).value == "nö {".encode()
    assert record({"topic": TRADES, "bytes": "\udcff\udc80"}).value == b"\xff\x80"
    assert record({"topic": TRADES, "bytes": ""}).value == b""


def test_a_value_is_written_as_json_whatever_it_holds() -> None:
    assert (
        record({"topic": TRADES, "value": {"a": "ö\ud800", "n": 10**30}}).value
        == '{"a":"ö\\ud800","n":1%s}'.replace("%s", "0" * 30).encode()
    )
    assert record({"topic": PARAMETERS, "key": "asset:X", "value": None}).value is None


def test_faults_are_read() -> None:
    script = read(
        TRADE,
        {"at_ms": 1, "freeze": "router:1", "for_ms": 3000},
        {"at_ms": 2.5, "kill": "engine:0"},
        {"at_ms": 3, "clock": "oracle:0", "ahead_ms": -90000},
    )
    assert [line.what for line in script.lines[1:]] == [
        Freeze(WorkerName("router", 1), 3_000_000),
        Kill(WorkerName("engine", 0)),
        ClockError(WorkerName("oracle", 0), -90_000_000),
    ]
    assert [line.at_us for line in script.lines] == [0, 1000, 2500, 3000]


def test_there_are_as_many_processes_as_are_named_or_said() -> None:
    killed = {"at_ms": 0, "kill": "engine:2"}
    assert read(TRADE).workers == {"router": 1, "engine": 1, "oracle": 1}
    assert read(killed).workers == {"router": 1, "engine": 3, "oracle": 1}
    assert read(killed, routers=2, engines=5).workers == {"router": 2, "engine": 5, "oracle": 1}


def test_where_marks_are_given_no_oracle_runs() -> None:
    script = read(TRADE, {"at_ms": 0, "topic": MARKS, "bytes": "x"})
    assert script.marks_given
    assert script.workers["oracle"] == 0


@pytest.mark.parametrize(
    "text", ['\ufeff{"at_ms":0,"kill":"engine:0"}', '\n\n# says nothing\r\n {"at_ms":0,"kill":"engine:0"}\r\n\n']
)
def test_blank_lines_comments_and_line_ends_say_nothing(text: str) -> None:
    assert len(read(text).lines) == 1


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any] | str, str]] = [
    ("{", "line 2: not JSON"),
    ("[]", "line 2: not a JSON object"),
    ('{"at_ms":1,"at_ms":2}', "at_ms"),
    ('{"at_ms":NaN,"kill":"engine:0"}', "NaN"),
    ('{"at_ms":1e999,"kill":"engine:0"}', "too large"),
    ("[" * 100_000, "nested deeper than 100"),
    ('{"at_ms":10,"topic":"trades.v1","value":' + "[" * 101 + "]" * 101 + "}", "nested deeper than 100"),
    ({"at_ms": 10}, "field topic: a line has exactly one of topic, freeze, kill, clock, delete"),
    ({"at_ms": 10, "kill": "engine:0", "freeze": "engine:0"}, "field kill: a line has exactly one"),
    ({"topic": TRADES, "value": {}}, "field at_ms: missing"),
    ({"at_ms": 9, "topic": TRADES, "value": {}}, "field at_ms: 9 comes after 10"),
    ({"at_ms": -1, "topic": TRADES, "value": {}}, "field at_ms: must be from 0"),
    ({"at_ms": 10**400, "topic": TRADES, "value": {}}, "field at_ms: must be within"),
    ({"at_ms": 86_400_001, "topic": TRADES, "value": {}}, "field at_ms: must be from 0 to 86400000"),
    ({"at_ms": "10", "topic": TRADES, "value": {}}, 'field at_ms: must be a number of milliseconds, got "10"'),
    ({"at_ms": True, "topic": TRADES, "value": {}}, "field at_ms"),
    ({"at_ms": 10, "topic": "trades", "value": {}}, f"there are {', '.join(INPUTS)}"),
    ({"at_ms": 10, "topic": "liquidation.commands.v1", "value": {}}, "field topic"),
    ({"at_ms": 10, "topic": ["trades.v1"], "value": {}}, "field topic"),
    ({"at_ms": 10, "topic": TRADES}, "field value: give either value (JSON) or bytes (text)"),
    ({"at_ms": 10, "topic": TRADES, "value": {}, "bytes": ""}, "field value: give either value (JSON) or bytes"),
    ({"at_ms": 10, "topic": TRADES, "bytes": 7}, "field bytes: must be text"),
    ({"at_ms": 10, "topic": TRADES, "bytes": "\ud800"}, "field bytes: character 0 is half of a pair"),
    ({"at_ms": 10, "topic": TRADES, "value": {}, "key": 7}, "field key: must be text or null, got 7"),
    ({"at_ms": 10, "topic": TRADES, "value": {}, "partition": 3}, "field partition: trades.v1 has the partitions"),
    ({"at_ms": 10, "topic": TRADES, "value": {}, "partition": "0"}, "field partition"),
    ({"at_ms": 10, "topic": TRADES, "value": {}, "partition": True}, "field partition"),
    ({"at_ms": 10, "topic": PARAMETERS, "value": {}, "partition": 1}, "field partition"),
    ({"at_ms": 10, "topic": EVENTS, "value": {}}, "field partition: margin.events.v1 has no keys: give the"),
    ({"at_ms": 10, "topic": TRADES, "value": {}, "headers": {}}, "field headers: unknown; a line with topic may have"),
    ({"at_ms": 10, "topic": TRADES, "value": {"event_time_ms": "1"}}, "field value.event_time_ms: must be a number"),
    ({"at_ms": 10, "topic": TRADES, "value": {"a": [{"time_ms": None}]}}, "field value.a[0].time_ms"),
    ({"at_ms": 10, "topic": TRADES, "value": {"event_time": 1, "event_time_ms": 1}}, "event_time is given twice"),
    ({"at_ms": 10, "topic": TRADES, "value": {"age_ms": 1, "event_time_ms": 1}}, "event_time is given twice"),
    ({"at_ms": 10, "freeze": "router:0"}, "field for_ms: missing"),
    ({"at_ms": 10, "freeze": "router:0", "for_ms": 0}, "field for_ms: must be above 0"),
    ({"at_ms": 10, "freeze": "router:0", "for_ms": "1"}, "field for_ms"),
    ({"at_ms": 10, "freeze": "router:0", "for_ms": 1, "ahead_ms": 1}, "field ahead_ms: unknown"),
    ({"at_ms": 10, "kill": "engine"}, "field kill: must name a process"),
    ({"at_ms": 10, "kill": "engine:"}, "field kill"),
    ({"at_ms": 10, "kill": "engine:-1"}, "field kill"),
    ({"at_ms": 10, "kill": "engine:²"}, "field kill"),
    ({"at_ms": 10, "kill": "engine:64"}, "field kill"),
    ({"at_ms": 10, "kill": "broker:0"}, "field kill"),
    ({"at_ms": 10, "kill": 0}, "field kill"),
    ({"at_ms": 10, "clock": "router:0"}, "field ahead_ms: missing"),
    ({"at_ms": 10, "kill": "oracle:1"}, "field kill: no oracle:1: there is oracle:0"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "said"), REFUSED)
def test_what_is_wrong_is_named_by_line_and_field(line: dict[str, Any] | str, said: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        read(TRADE | {"at_ms": 10}, line)
    assert str(refused.value).startswith("x.jsonl line 2")
    assert said in str(refused.value)


def test_a_process_that_there_is_not_is_refused() -> None:
    with pytest.raises(
        ScenarioError, match=r"^x.jsonl line 3, field kill: no engine:2: there are engine:0 to engine:1$"
    ):
        read(TRADE, "", {"at_ms": 0, "kill": "engine:2"}, engines=2)
    with pytest.raises(ScenarioError, match=r"line 2, field freeze: no oracle:0: no oracle runs where margin.marks.v1"):
        read(
            {"at_ms": 0, "topic": MARKS, "value": {"marks": []}},
            {"at_ms": 0, "freeze": "oracle:0", "for_ms": 1},
        )


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_an_empty_file_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError, match=r"x.jsonl line 1: the file is empty"):
        read(text)


def test_a_file_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"x.jsonl line 2: not UTF-8 at byte 1"):
        read_scenario(b'{"at_ms":0,"kill":"engine:0"}\n"\xff"', "x.jsonl", COUNTS)
