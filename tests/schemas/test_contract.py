"""The contract: generated files are current, samples decode, what breaks a rule is refused and says where."""

import json
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

import schemas
from schemas import generate
from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import LiquidationCommand, Trade
from schemas.partitioning import murmur2, partition_of
from schemas.topics import COMMANDS, CONTRACT, PARAMETERS, TRADES, TRANSFERS, all_topics
from streams.broker import config
from streams.settings import Settings

GOLDEN = Path(schemas.__file__).parent / "golden"
SAMPLES = sorted(path for path in GOLDEN.glob("*.json") if path.name != "partitions.json")
PARTITIONS = json.loads((GOLDEN / "partitions.json").read_text(encoding="utf-8"))


def topic_of(path: Path) -> str:
    return next(topic for topic in generate.MESSAGE_TYPES if path.name.startswith(topic))


def sample(topic: str, name: str = "") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{topic}{name}.json").read_text())
    return found


def test_the_generated_files_are_current() -> None:
    assert generate.stale_files() == []


def test_every_topic_with_a_message_type_is_in_the_asyncapi_document() -> None:
    document = yaml.safe_load((GOLDEN.parent / "asyncapi.yaml").read_text())
    assert document == generate.asyncapi()
    assert {channel["address"] for channel in document["channels"].values()} == set(generate.MESSAGE_TYPES)
    for channel in document["channels"].values():
        assert (GOLDEN.parent / channel["messages"]["value"]["payload"]["$ref"]).exists()


def test_every_message_type_has_a_golden_sample() -> None:
    assert {topic_of(path) for path in SAMPLES} == set(generate.MESSAGE_TYPES)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_golden_sample_survives_the_codec(path: Path) -> None:
    compact = orjson.dumps(orjson.loads(path.read_bytes()))
    message = Decoder[Any](generate.MESSAGE_TYPES[topic_of(path)])(compact)
    assert Decoder[Any](generate.MESSAGE_TYPES[topic_of(path)])(encode(message)) == message
    if not path.name.startswith(PARAMETERS):  # optional parameters that are not given are written as their defaults
        assert encode(message) == compact


def test_unknown_fields_are_ignored() -> None:
    assert Decoder[Trade](Trade)(orjson.dumps(sample(TRADES) | {"venue": "x"})) == Decoder[Trade](Trade)(
        orjson.dumps(sample(TRADES))
    )


BAD_TRADES: list[tuple[str, Any]] = [
    ("price", 61800.3),
    ("price", 61800),
    ("price", "0"),
    ("price", "-1"),
    ("price", "1e5"),
    ("price", "01"),
    ("price", "1."),
    ("price", ".5"),
    ("price", "1\n"),
    ("price", " 1"),
    ("price", "NaN"),
    ("price", "1" * 19),
    ("quantity", "0.000"),
    ("quantity", None),
    ("trade_id", -1),
    ("trade_id", "5"),
    ("trade_id", 2**63),
    ("symbol", ""),
    ("symbol", "a b"),
    ("symbol", "x" * 33),
    ("aggressor_side", "BUY"),
    ("maker", {}),
    ("taker", {"account": "a", "order_id": "o", "fee": 1}),
    ("taker", {"account": "ä", "order_id": "o", "fee": "1"}),
    ("taker", {"account": "a", "order_id": "o", "fee": "1", "margin": "both"}),
    ("event_time", 1.5),
    ("event_time", -1),
]


@pytest.mark.parametrize(("field", "value"), BAD_TRADES)
def test_a_trade_that_breaks_a_rule_is_refused_and_the_field_named(field: str, value: Any) -> None:
    with pytest.raises(DecodeError, match=field):
        Decoder[Trade](Trade)(orjson.dumps(sample(TRADES) | {field: value}))


@pytest.mark.parametrize("field", ["amount", "sequence", "asset"])
def test_a_missing_field_is_refused(field: str) -> None:
    record = sample(TRANSFERS)
    del record[field]
    with pytest.raises(DecodeError, match=field):
        Decoder[Any](generate.MESSAGE_TYPES[TRANSFERS])(orjson.dumps(record))


@given(st.binary(max_size=200))
def test_no_bytes_make_another_error(data: bytes) -> None:
    for message_type in generate.MESSAGE_TYPES.values():
        try:
            Decoder[Any](message_type)(data)
        except DecodeError:
            continue


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda c: st.lists(c, max_size=3)))
def test_no_json_in_a_field_makes_another_error(value: Any) -> None:
    for field in sample(TRADES):
        record = json.dumps(sample(TRADES) | {field: value}).encode()
        try:
            Decoder[Trade](Trade)(record)
        except DecodeError:
            continue


def test_patterns_are_valid_for_ecma_262() -> None:
    patterns: set[str] = set()

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("pattern"), str):
                patterns.add(node["pattern"])
            for item in node.values():
                collect(item)
        elif isinstance(node, list):
            for item in node:
                collect(item)

    for topic in generate.MESSAGE_TYPES:
        collect(generate.json_schema(topic))
    assert patterns
    for pattern in patterns:
        re.compile(pattern)
        assert not re.search(r"\\A|\\Z|\(\?P|\(\?<[a-z]|\(\?i", pattern), pattern


def test_the_command_sample_is_a_command() -> None:
    command = Decoder[LiquidationCommand](LiquidationCommand)(orjson.dumps(sample(COMMANDS)))
    assert command.command_id == f"{command.account}:{command.sequence}"


def test_topics_of_one_shard_have_one_partition_count() -> None:
    assert {t.name for t in CONTRACT if t.partitioning == "shards"} == {
        "margin.events.v1",
        "margin.accounts.v1",
        "margin.journal.v1",
    }
    assert len({topic.name for topic in all_topics()}) == len(all_topics())


@pytest.mark.parametrize("golden", PARTITIONS, ids=[repr(found["key"][:20]) for found in PARTITIONS])
def test_partitions_are_those_of_the_java_client(golden: dict[str, Any]) -> None:
    key = golden["key"].encode()
    assert murmur2(key) == golden["murmur2"] & 0xFFFFFFFF
    for count, partition in golden["partitions"].items():
        assert partition_of(key, int(count)) == partition


def test_our_producers_put_keys_where_a_java_producer_would(settings: Settings) -> None:
    producer = Producer(config.producer(settings.kafka, "test"))
    found: dict[str, int] = {}
    count = len(producer.list_topics(COMMANDS, timeout=10).topics[COMMANDS].partitions)
    for golden in PARTITIONS:
        key = golden["key"]
        if key:  # librdkafka's murmur2_random spreads records without a key
            producer.produce(
                "margin.alerts.v1",
                b"{}",
                key=key.encode(),
                on_delivery=lambda _, message, key=key: found.update({key: message.partition()}),
            )
    assert producer.flush(10) == 0
    assert found == {g["key"]: partition_of(g["key"].encode(), count) for g in PARTITIONS if g["key"]}
