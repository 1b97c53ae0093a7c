"""The messages: golden samples survive the codec byte for byte; what breaks a rule is refused, and the field named."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import generate
from schemas.codec import MESSAGE_BYTES_MAX, DecodeError, Decoder, encode
from schemas.messages import LiquidationCommand, Trade
from schemas.refusal import TEXT_CHARACTERS_MAX
from schemas.topics import COMMANDS, EVENTS, MARKS, PARAMETERS, PRICES, REPORTS, TRADES, TRANSFERS
from schemas.types import DERIVED_DIGITS_MAX, IN_WORDS, INTEGER_DIGITS_MAX, RESERVED_ACCOUNTS

DECODERS: dict[str, Decoder[Any]] = {topic: Decoder(kind) for topic, kind in generate.MESSAGE_TYPES.items()}
SAMPLES = [(topic, path) for topic in generate.MESSAGE_TYPES for path in generate.samples(topic)]
OTHERS_WRITE = {TRADES, TRANSFERS, PRICES, REPORTS, PARAMETERS}
Step = str | int


def sample(topic: str, which: str = "") -> dict[str, Any]:
    message: dict[str, Any] = json.loads((generate.GOLDEN / f"{topic}{which}.json").read_text(encoding="utf-8"))
    return message


def only_given(value: Any, given_value: Any) -> Any:
    """``value`` without the fields that ``given_value`` does not have (they have their defaults)."""
    if isinstance(value, dict) and isinstance(given_value, dict):
        return {name: only_given(item, given_value[name]) for name, item in value.items() if name in given_value}
    if isinstance(value, list) and isinstance(given_value, list):
        return [only_given(item, was) for item, was in zip(value, given_value, strict=True)]
    return value


# --- golden samples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("topic", "path"), SAMPLES, ids=[path.stem for _, path in SAMPLES])
def test_a_golden_sample_is_written_as_it_was_read(topic: str, path: Path) -> None:
    compact = orjson.dumps(orjson.loads(path.read_bytes()))
    written = encode(DECODERS[topic](compact))
    if topic in OTHERS_WRITE:
        written = orjson.dumps(only_given(orjson.loads(written), orjson.loads(compact)))
    assert written == compact


@pytest.mark.parametrize(("topic", "path"), SAMPLES, ids=[path.stem for _, path in SAMPLES])
def test_reading_what_was_written_changes_nothing(topic: str, path: Path) -> None:
    message = DECODERS[topic](path.read_bytes())
    assert DECODERS[topic](encode(message)) == message


def test_the_command_sample_is_the_one_in_the_design() -> None:
    command: LiquidationCommand = DECODERS[COMMANDS](orjson.dumps(sample(COMMANDS)))
    assert command.command_id == "acct-17:3" == f"{command.account}:{command.sequence}"
    assert [order.order_id for order in command.orders] == ["acct-17:3:0"]
    assert command.evidence.reason == "equity_below_maintenance"


@pytest.mark.parametrize(("topic", "path"), SAMPLES, ids=[path.stem for _, path in SAMPLES])
def test_fields_that_are_not_known_are_ignored(topic: str, path: Path) -> None:
    value = orjson.loads(path.read_bytes())
    assert DECODERS[topic](orjson.dumps(value | {"venue": {"x": [1]}})) == DECODERS[topic](orjson.dumps(value))


def test_a_side_of_a_trade_is_cross_unless_it_says_otherwise() -> None:
    trade = sample(TRADES)
    del trade["maker"]["margin"]
    decoded: Trade = DECODERS[TRADES](orjson.dumps(trade))
    assert decoded.maker.margin == "cross"


# --- variants that break a rule --------------------------------------------------------------------------------------


def resolved(schema: dict[str, Any], root: dict[str, Any], value: Any) -> list[dict[str, Any]]:
    """The alternatives of a schema that may describe ``value``, references followed."""
    if "$ref" in schema:
        return resolved(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root, value)
    variants = (
        [one for part in schema["anyOf"] for one in resolved(part, root, value)] if "anyOf" in schema else [schema]
    )
    if isinstance(value, dict) and "type" in value:
        tagged = [one for one in variants if value["type"] in one["properties"]["type"].get("enum", [])]
        return tagged or variants
    return variants


def nodes(schema: dict[str, Any], root: dict[str, Any], value: Any, path: tuple[Step, ...] = ()) -> Iterator[Any]:
    """Every place in ``value`` as (path, the schemas that describe it)."""
    alternatives = resolved(schema, root, value)
    yield path, alternatives
    for one in alternatives:
        if isinstance(value, dict) and one.get("type") == "object":
            for name, item in value.items():
                part = one.get("properties", {}).get(name) or one.get("additionalProperties")
                if isinstance(part, dict):
                    yield from nodes(part, root, item, (*path, name))
        elif isinstance(value, list) and one.get("type") == "array" and value:
            parts = one.get("prefixItems") or [one.get("items", {})] * len(value)
            yield from nodes(parts[0], root, value[0], (*path, 0))


def changed(value: Any, path: tuple[Step, ...], to: Any) -> Any:
    if not path:
        return to
    copy = deepcopy(value)
    inner = copy
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = to
    return copy


def without(value: Any, path: tuple[Step, ...], name: str) -> Any:
    copy = deepcopy(value)
    inner = copy
    for step in path:
        inner = inner[step]
    del inner[name]
    return copy


NOT_TEXT: list[Any] = [1, 1.5, True, [], {}]
NOT_DECIMAL = [
    *NOT_TEXT,
    "",
    " 1",
    "1 ",
    "1\n",
    "+1",
    "1e5",
    "1,5",
    ".5",
    "1.",
    "01",
    "NaN",
    "--1",
    "٣",
    "0." + "1" * 19,
]
NOT_ID = [*NOT_TEXT, "", "a b", "a\n", "ä", "\u0000"]
NOT_INTEGER: list[Any] = ["1", 1.5, True, [], {}]


def forbidden(alternatives: list[dict[str, Any]]) -> list[Any]:
    """Values that a place with these schemas must not have."""
    kinds = {one.get("type", "enum") for one in alternatives} - {"null"}
    one = next(one for one in alternatives if one.get("type", "enum") in kinds)
    about = one.get("description", "")
    if kinds == {"object"}:
        return [[], "x", 1]
    if kinds == {"array"}:
        return [{}, "x", 1]
    if kinds == {"integer"}:
        below, above = one.get("minimum"), one.get("maximum")
        return [*NOT_INTEGER, *([] if below is None else [below - 1]), *([] if above is None else [above + 1])]
    if kinds == {"boolean"}:
        return [1, "true", []]
    if kinds == {"enum"}:
        return [*NOT_TEXT, "x", ""]
    if about.startswith("decimal"):
        signed = ["-1"] if ">" in about else []
        digits = DERIVED_DIGITS_MAX if one["maxLength"] > 40 else INTEGER_DIGITS_MAX
        most = ["1" * (digits + 1)]
        return NOT_DECIMAL + most + signed + (["0", "0.000"] if "> 0" in about or "not 0" in about else [])
    if "pattern" not in one:
        return NOT_TEXT
    wrong = [*NOT_ID, "x" * (one["maxLength"] + 1)]
    return [value for value in wrong if value != "" or not re.match(one["pattern"], "")]


def broken(topic: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Variants of a sample that its JSON Schema forbids, one a place and rule."""
    value, root = orjson.loads(path.read_bytes()), generate.json_schema(topic)
    for place, alternatives in nodes(root, root, value):
        name = ".".join(map(str, place)) or "everything"
        if not any(one.get("type") == "null" for one in alternatives):
            yield f"{name}=None", changed(value, place, None)
        for item in forbidden(alternatives):
            yield f"{name}={item!r:.20}", changed(value, place, item)
        for field in sorted(set.intersection(*(set(one.get("required", ())) for one in alternatives))):
            yield f"{name}: no {field}", without(value, place, field)


BROKEN = [(topic, f"{path.stem} {what}", value) for topic, path in SAMPLES for what, value in broken(topic, path)]


def test_every_kind_of_rule_is_tried_on_every_topic_of_others() -> None:
    for topic in OTHERS_WRITE:
        tried = " ".join(what for broken_topic, what, _ in BROKEN if broken_topic == topic)
        assert all(rule in tried for rule in ("no ", "=1", "='1e5'", "='a b'", "='1'")), topic


@pytest.mark.parametrize("topic", generate.MESSAGE_TYPES)
def test_what_breaks_the_schema_is_refused(topic: str) -> None:
    taken = []
    for broken_topic, what, value in BROKEN:
        if broken_topic == topic:
            try:
                DECODERS[topic](json.dumps(value).encode())
            except DecodeError:
                continue
            taken.append(what)
    assert taken == []


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("price", 61800.3, r"Expected `str`, got `float` - at `\$.price`"),
        ("quantity", "0.000", r"\$.quantity"),
        ("trade_id", 2**63, r"\$.trade_id"),
        ("aggressor_side", "BUY", r"Invalid enum value 'BUY' - at `\$.aggressor_side`"),
        ("maker", {"account": "a", "order_id": "o", "fee": 1}, r"\$.maker.fee"),
        ("taker", {"account": "a", "order_id": "o", "fee": "1", "margin": "both"}, r"\$.taker.margin"),
        ("event_time", -1, r"\$.event_time"),
    ],
)
def test_the_reason_names_the_field(field: str, value: Any, named: str) -> None:
    with pytest.raises(DecodeError, match=named):
        DECODERS[TRADES](orjson.dumps(sample(TRADES) | {field: value}))


@pytest.mark.parametrize("value", ["9" * 18 + "." + "9" * 18, "0.000000000000000001", "1", "1.0", "10.50"])
def test_decimals_of_18_digits_on_either_side_are_kept_as_written(value: str) -> None:
    trade: Trade = DECODERS[TRADES](orjson.dumps(sample(TRADES) | {"price": value}))
    assert trade.price == value


def test_a_record_may_have_so_many_bytes_and_no_more() -> None:
    trade = orjson.dumps(sample(TRADES))
    assert DECODERS[TRADES](trade.ljust(MESSAGE_BYTES_MAX))
    with pytest.raises(DecodeError, match="1000001 bytes"):
        DECODERS[TRADES](trade.ljust(MESSAGE_BYTES_MAX + 1))


@given(st.binary(max_size=200))
def test_no_bytes_make_another_error(data: bytes) -> None:
    for decode in DECODERS.values():
        try:
            decode(data)
        except DecodeError:
            continue


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(JSON, st.sampled_from([(topic, path) for topic, path in SAMPLES if topic != EVENTS]), st.randoms())
def test_no_json_in_a_field_makes_another_error(value: Any, chosen: tuple[str, Path], random: Any) -> None:
    topic, path = chosen
    record = orjson.loads(path.read_bytes())
    record[random.choice(list(record))] = value
    try:
        DECODERS[topic](json.dumps(record).encode())
    except DecodeError:
        return


def test_deep_nesting_is_refused_without_a_crash() -> None:
    for decode in DECODERS.values():
        with pytest.raises(DecodeError):
            decode(b'{"a":' * 100_000)


# --- frames ----------------------------------------------------------------------------------------------------------

REPORT = {
    "account": "alice",
    "command_id": "c",
    "order_id": "o",
    "status": "filled",
    "filled_quantity": "1",
    "source": 0,
    "source_offset": 7,
}


def frame_with_reports() -> dict[str, Any]:
    return sample(EVENTS) | {"reports": {name: [value] for name, value in REPORT.items()}}


@pytest.mark.parametrize("kind", ["transfers", "fills", "reports"])
@pytest.mark.parametrize(
    "account", ["", "a b", "ä", "a\n", "x" * 129, f"{RESERVED_ACCOUNTS}shard:0"], ids=lambda text: f"{text!r:.20}"
)
def test_a_frame_names_only_what_can_be_an_account(kind: str, account: str) -> None:
    frame = frame_with_reports()
    DECODERS[EVENTS](orjson.dumps(frame))
    frame[kind]["account"][-1:] = [account]
    with pytest.raises(DecodeError, match="account"):
        DECODERS[EVENTS](orjson.dumps(frame))


@pytest.mark.parametrize("kind", ["transfers", "fills", "reports"])
def test_the_columns_of_a_frame_are_of_one_length(kind: str) -> None:
    for name in frame_with_reports()[kind]:
        frame = frame_with_reports()
        frame[kind][name] = frame[kind][name] * 2
        with pytest.raises(DecodeError, match="lengths"):
            DECODERS[EVENTS](orjson.dumps(frame))


# --- what is said of what is refused ---------------------------------------------------------------------------------

REGULAR_EXPRESSION = re.compile(r"regex|\(\?|\[0-9|\[!-~|\[A-Z|\\\\|\$\(|\{0,|\{1,")
FORMS = [
    (TRADES, "price", "0.1234567890123456789", "decimal string above 0"),
    (TRADES, "price", "1" * 41, "decimal string above 0"),
    (TRADES, "price", 1.5, "decimal string above 0"),
    (TRADES, "symbol", "BTC PERP", "symbol such as"),
    (TRANSFERS, "amount", "0", "other than 0"),
    (TRANSFERS, "asset", "us dollar", "asset such as"),
    (TRANSFERS, "transfer_id", "a b", "printable ASCII"),
    (PRICES, "confidence", "-1", "of at least 0"),
    (TRADES, "aggressor_side", "BUY", "one of buy, sell"),
]


@pytest.mark.parametrize(("topic", "field", "value", "said"), FORMS, ids=[f"{f}={v!r:.24}" for _, f, v, _ in FORMS])
def test_what_was_expected_is_said_in_words_with_the_place_and_the_value(
    topic: str, field: str, value: Any, said: str
) -> None:
    with pytest.raises(DecodeError) as refused:
        DECODERS[topic](orjson.dumps(sample(topic) | {field: value}))
    text = str(refused.value)
    assert said in text
    assert f"`$.{field}`" in text
    assert json.dumps(value)[:40] in text
    assert not REGULAR_EXPRESSION.search(text)


def test_a_value_of_a_mapping_is_shown_with_its_key_and_a_key_as_such() -> None:
    record = sample(PARAMETERS, ".oracle")
    with pytest.raises(DecodeError, match=r'`\$.sources\["bad"\]`, got "1e5"'):
        DECODERS[PARAMETERS](orjson.dumps(record | {"sources": {"good": "1", "bad": "1e5"}}))
    frame = sample(MARKS)
    with pytest.raises(DecodeError, match=r'`\$.scales` \(a key\), got "no key"'):
        DECODERS[MARKS](orjson.dumps(frame | {"scales": {"instrument:A": "1", "no key": "1"}}))


def patterns_of(kind: Any) -> set[str]:
    return set(re.findall(r'"pattern":"((?:[^"\\]|\\.)*)"', orjson.dumps(msgspec.json.schema(kind)).decode()))


def test_every_pattern_of_the_contract_has_words() -> None:
    known = {orjson.dumps(pattern).decode()[1:-1] for pattern in IN_WORDS}
    for kind in generate.MESSAGE_TYPES.values():
        assert patterns_of(kind) <= known


AWKWARD = st.sampled_from(
    ["", "1e5", "0.1234567890123456789", "x" * 5000, "é" * 50, "a`b", "`$.x`", "' - at `$.y`", "\n", "[...]", -1, 2**70]
)


@given(st.one_of(AWKWARD, JSON), st.sampled_from(SAMPLES), st.randoms())
def test_no_refusal_shows_a_regular_expression_or_is_longer_than_a_reader_takes(
    value: Any, chosen: tuple[str, Path], random: Any
) -> None:
    topic, path = chosen
    record = orjson.loads(path.read_bytes())
    places = list(places_of(record))
    try:
        DECODERS[topic](json.dumps(changed(record, random.choice(places), value)).encode())
    except DecodeError as error:
        said = str(error)
        assert len(said) <= TEXT_CHARACTERS_MAX
        assert "regex" not in said
        assert "(?" not in said.replace(json.dumps(value), "")


def places_of(value: Any, path: tuple[Step, ...] = ()) -> Iterator[tuple[Step, ...]]:
    if path:
        yield path
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        yield from places_of(item, (*path, step))
