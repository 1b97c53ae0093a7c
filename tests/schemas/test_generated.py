"""What is generated for other languages is current, complete and readable by what they read it with."""

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from schemas import generate
from schemas.topics import CONTRACT, PARAMETERS, TRADES, all_topics
from streams.clearing import commit

DOCUMENT = generate.asyncapi()


def test_the_generated_files_are_current() -> None:
    assert generate.stale_files() == []


def test_the_check_names_a_file_that_is_not_current(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert generate.main(["--check"]) == 0
    monkeypatch.setattr(generate, "_pretty", lambda _: "changed")
    assert generate.main(["--check"]) == 1
    assert "not current: schemas/json/trades.v1.schema.json" in capsys.readouterr().err


def test_the_asyncapi_document_is_read_as_it_was_meant() -> None:
    assert yaml.safe_load((generate.HERE / "asyncapi.yaml").read_text(encoding="utf-8")) == DOCUMENT


def test_every_topic_is_a_channel_of_the_asyncapi_document() -> None:
    assert {channel["address"] for channel in DOCUMENT["channels"].values()} == {t.name for t in all_topics()}


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [ref for item in node.values() for ref in references(item)]
    return [ref for item in node for ref in references(item)] if isinstance(node, list) else []


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    all_references = references(DOCUMENT)
    assert all_references
    for reference in all_references:
        if not reference.startswith("#/"):
            assert (generate.HERE / reference).exists(), reference
            continue
        node: Any = DOCUMENT
        for name in reference.removeprefix("#/").split("/"):
            node = node[name]


def test_every_topic_is_received_and_sent_by_those_who_do() -> None:
    sent = {topic for role in generate.PARTICIPANTS for topic in role.sends}
    received = {topic for role in generate.PARTICIPANTS for topic in role.receives}
    assert sent | received <= {topic.name for topic in all_topics()}
    for topic in CONTRACT:
        inside = topic.name in sent
        assert (generate.WRITERS[topic.name] in {role.name for role in generate.PARTICIPANTS}) == inside, topic.name
        assert topic.name in received or topic.name in generate.READERS, topic.name
        assert not topic.dead_letters or topic.dlq in sent, topic.name


def test_the_event_types_are_those_the_engine_writes() -> None:
    assert set(generate.EVENT_TYPES.values()) == {commit.COMMAND_EVENT, commit.ALERT_EVENT, commit.ACCOUNT_EVENT}


@pytest.mark.parametrize("topic", generate.MESSAGE_TYPES)
def test_every_message_has_a_schema_and_a_sample(topic: str) -> None:
    schema = orjson.loads(generate.schema_path(topic).read_bytes())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert generate.samples(topic)


def test_schemas_allow_fields_they_do_not_know() -> None:
    for topic in generate.MESSAGE_TYPES:
        assert '"additionalProperties":false' not in orjson.dumps(generate.json_schema(topic)).decode()


def patterns(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["pattern"]} if isinstance(node.get("pattern"), str) else set()
        return own.union(*(patterns(item) for item in node.values()))
    return set().union(*(patterns(item) for item in node)) if isinstance(node, list) else set()


def test_patterns_mean_the_same_to_ecma_262() -> None:
    """No syntax that only Python knows, and none that ECMA's unicode mode refuses (escapes of ordinary characters)."""
    all_patterns = set().union(*(patterns(generate.json_schema(topic)) for topic in generate.MESSAGE_TYPES))
    assert all_patterns
    for pattern in all_patterns:
        re.compile(pattern)
        assert pattern.isascii()
        assert pattern.startswith("^")
        assert not re.search(r"\(\?(?![:=!])", pattern), "a group that is not (?: (?= (?!"
        assert set(re.findall(r"\\(.)", pattern)) <= {".", "-", "n"}, "an escape that ECMA does not know"
        assert "$" not in pattern.removesuffix(r"$(?!\n)")


def test_the_readme_names_every_topic() -> None:
    readme = generate.README.read_text(encoding="utf-8")
    for topic in CONTRACT:
        assert f"`{topic.name}`" in readme


def test_golden_samples_belong_to_a_topic() -> None:
    known = {path for topic in generate.MESSAGE_TYPES for path in generate.samples(topic)}
    assert {path for path in generate.GOLDEN.glob("*.json") if path.name != "partitions.json"} == known
    assert len(generate.samples(PARAMETERS)) >= 4
    assert generate.samples(TRADES)


TEXT = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Cn", "Zl", "Zp"), exclude_characters="\ufeff"), max_size=12
)
WORDS = st.sampled_from(
    ["true", "No", "null", "on", "~", "1", "1e3", "a: b", "a #b", "- a", "$ref", "a b", " a", "a ", ""]
)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT | WORDS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | WORDS, inner, max_size=4), max_leaves=20
)


@given(VALUES)
def test_yaml_is_read_as_it_was_meant(value: Any) -> None:
    assert yaml.safe_load(generate.yaml_text(value)) == value
