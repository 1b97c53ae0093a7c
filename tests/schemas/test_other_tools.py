"""The generated schemas load in the tools that other teams use: AsyncAPI's parser, ajv in its strict mode, kafkajs.

The parser's rules are AsyncAPI's own JSON Schema. What ajv's strict mode refuses is listed in its documentation
(unknown keywords and formats, tuples without an end, unions of types), and here it is looked for.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
import yaml

from schemas import generate
from schemas.topics import CONTRACT, EVENTS, PROGRESS, ROUTER, all_topics
from streams.broker import config
from streams.settings import KafkaSettings

ASYNCAPI = orjson.loads((Path(__file__).parent / "asyncapi" / "3.0.0.schema.json").read_bytes())
DOCUMENT: dict[str, Any] = yaml.safe_load((generate.HERE / "asyncapi.yaml").read_text(encoding="utf-8"))
SAMPLES = [(topic, path) for topic in generate.MESSAGE_TYPES for path in generate.samples(topic)]
SCHEMAS = {path.name: orjson.loads(path.read_bytes()) for path in sorted((generate.HERE / "json").glob("*.json"))}


def with_payloads(node: Any) -> Any:
    """``node`` with the schemas of other files in the place of their references, as a parser sees it."""
    if isinstance(node, list):
        return [with_payloads(item) for item in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref", "#")
    if not reference.startswith("#"):
        return orjson.loads((generate.HERE / reference).read_bytes())
    return {name: with_payloads(item) for name, item in node.items()}


def faults(document: Any) -> list[str]:
    validator = jsonschema.Draft7Validator(ASYNCAPI)
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message:.300}" for error in validator.iter_errors(document)
    ]


def test_the_document_is_valid_asyncapi_as_it_stands_and_with_its_payloads() -> None:
    assert faults(DOCUMENT) == []
    assert faults(with_payloads(DOCUMENT)) == []


def test_what_the_parser_refuses_is_refused_here() -> None:
    channel = next(iter(DOCUMENT["channels"].values()))
    wrong = with_payloads(DOCUMENT)
    wrong["channels"] = {
        "a": {**channel, "messages": {"record": {"payload": {"discriminator": {"propertyName": "type"}}}}}
    }
    assert faults(wrong)
    assert faults({**DOCUMENT, "servers": {"a": {"host": "kafka"}}})


def test_servers_and_their_security_are_named_for_every_way_that_the_settings_know() -> None:
    protocols = {text["description"].split(":")[0].split(",")[0] for text in DOCUMENT["servers"].values()}
    assert protocols == {"PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"}
    schemes = DOCUMENT["components"]["securitySchemes"]
    used = {
        ref["$ref"].rsplit("/", 1)[1] for server in DOCUMENT["servers"].values() for ref in server.get("security", ())
    }
    assert used == set(schemes)
    assert {scheme["type"] for scheme in schemes.values()} == {"plain", "scramSha256", "scramSha512", "X509"}


@pytest.mark.parametrize(("topic", "path"), SAMPLES, ids=[path.stem for _, path in SAMPLES])
def test_examples_of_messages_and_golden_samples_are_valid(topic: str, path: Path) -> None:
    schema = SCHEMAS[generate.schema_path(topic).name]
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(orjson.loads(path.read_bytes()))] == []
    examples = DOCUMENT["channels"][topic.replace(".", "_")]["messages"]["record"]["examples"]
    assert orjson.loads(path.read_bytes()) in [example["payload"] for example in examples]


# --- ajv -------------------------------------------------------------------------------------------------------------

KEYWORDS = {
    "$schema", "$defs", "$ref", "title", "description", "default", "type", "enum", "const", "anyOf", "allOf", "oneOf",
    "properties", "required", "additionalProperties", "propertyNames", "minProperties", "maxProperties", "items",
    "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
}  # fmt: skip
OF_TYPE = {
    "object": {"properties", "required", "additionalProperties", "propertyNames", "minProperties", "maxProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}


def schemas_in(schema: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(schema, dict):
        return
    yield schema
    for name in ("properties", "$defs"):
        for inner in schema.get(name, {}).values():
            yield from schemas_in(inner)
    for name in ("anyOf", "allOf", "oneOf", "prefixItems"):
        for inner in schema.get(name, ()):
            yield from schemas_in(inner)
    for name in ("items", "additionalProperties"):
        yield from schemas_in(schema.get(name))
    if "propertyNames" in schema:
        yield from schemas_in({"type": "string", **schema["propertyNames"]})


def refused_by_strict_mode(schema: dict[str, Any]) -> list[str]:
    refusals = []
    for part in schemas_in(schema):
        refusals += [f"unknown keyword {name}" for name in part.keys() - KEYWORDS]
        kind = "number" if part.get("type") == "integer" else part.get("type")
        if isinstance(kind, list):
            refusals.append(f"a union of types {kind}")
        for of, names in OF_TYPE.items():
            refusals += [f"{name} without type {of}" for name in part.keys() & names if kind != of]
        if "prefixItems" in part and not part["minItems"] == part["maxItems"] == len(part["prefixItems"]):
            refusals.append("a tuple without an end")
        refusals += [
            f"{name} is required and not a property"
            for name in part.get("required", ())
            if name not in part["properties"]
        ]
    return refusals


@pytest.mark.parametrize("name", SCHEMAS)
def test_strict_ajv_has_nothing_to_refuse(name: str) -> None:
    assert refused_by_strict_mode(SCHEMAS[name]) == []


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [], "discriminator": {"propertyName": "type"}},
        {"type": "string", "format": "decimal"},
        {"type": ["string", "null"]},
        {"type": "array", "prefixItems": [{}], "minItems": 1, "maxItems": 2},
        {"$defs": {"A": {"minimum": 0}}},
    ],
)
def test_what_strict_ajv_refuses_is_found(schema: dict[str, Any]) -> None:
    assert refused_by_strict_mode(schema)


# --- compression -----------------------------------------------------------------------------------------------------


def test_what_others_read_is_not_compressed_and_says_so() -> None:
    read_by_others = {*generate.READERS, *(topic.dlq for topic in CONTRACT if topic.dead_letters)}
    for topic in all_topics():
        described = DOCUMENT["channels"][topic.name.replace(".", "_")]["description"]
        if topic.name in read_by_others:
            assert topic.compression == "none", topic.name
            assert topic.config()["compression.type"] == "uncompressed"
            assert described.endswith("Compression: none.")
        assert "Compression: " in described
    assert {topic.name for topic in CONTRACT if topic.compression == "lz4"} == {EVENTS, PROGRESS, ROUTER}


def test_a_producer_does_not_compress_unless_it_is_told_to() -> None:
    assert config.producer(KafkaSettings(), "a")["compression.type"] == "none"
    assert config.producer(KafkaSettings(), "a", compression="lz4")["compression.type"] == "lz4"
