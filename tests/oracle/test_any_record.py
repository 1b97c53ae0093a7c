"""Whatever comes as a record of prices, the oracle lives: a dead letter or a counted drop, and good prices count."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec import MESSAGE_BYTES_MAX
from schemas.parameters import OracleParameters
from schemas.topics import PRICES, RECORD_BYTES_MAX, dead_letter_topic
from streams.oracle.publisher import BatchResult, PriceRecord
from tests.oracle.test_publisher import T0, Stage, decode_frame, decode_state
from tests.properties import examples

LITERALS: tuple[str | bytes, ...] = (
    '"1"', '"100"', '"0"', '"-1"', '"1e5"', '"1e999999999"', '"NaN"', '"Infinity"', '"0.000000000000000001"',
    '"999999999999999999.999999999999999999"', '"' + "9" * 5_000 + '"', '"\ud800"'.encode("utf-8", "surrogatepass"),
    '"\\ud800"', '"X"', '"a"', '"b"', '"unknown"', '""', '"\\u0000"', "NaN", "1e999", "-1", "0", "1", "9" * 5_000,
    str(2**63 - 1), str(2**63), str(T0), str(T0 + 10**15), "253402300799999999", "null", "true", "[]", "{}",
    "[" * 50_000, "[" * 500 + "]" * 500,
)  # fmt: skip
FIELDS = ("source", "symbol", "price", "confidence", "sequence", "publish_time", "signature", "other")
USUAL = {"source": '"a"', "symbol": '"X"', "price": '"100"', "sequence": "1", "publish_time": str(T0)}


@st.composite
def almost_prices(draw: st.DrawFn) -> bytes:
    """A price with fields that are missing, there twice, or of any value."""
    fields: list[tuple[str, str | bytes]] = [
        (name, literal) for name, literal in USUAL.items() if draw(st.integers(0, 9))
    ]
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(fields)))
        fields.insert(place, (draw(st.sampled_from(FIELDS)), draw(st.sampled_from(LITERALS))))
    parts = [
        f'"{name}":'.encode() + (literal if isinstance(literal, bytes) else literal.encode())
        for name, literal in fields
    ]
    return b"{" + b",".join(parts) + b"}"


VALUES = (
    st.none()
    | st.binary(max_size=200)
    | almost_prices()
    | st.sampled_from((b"", b"[" * 1_000_000, b"{" * 1_000_001, b"x" * (RECORD_BYTES_MAX + 1), b"\xef\xbb\xbf{}"))
)
RECORDS = st.builds(
    PriceRecord,
    partition=st.integers(0, 3),
    offset=st.integers(0, 2**63 - 1),
    timestamp_ms=st.sampled_from((-1, 0, T0 // 1000, 2**63 - 1, -(2**63))),
    key=st.none() | st.binary(max_size=50),
    value=VALUES,
)


def good(number: int, price: str = "100") -> list[PriceRecord]:
    return [
        PriceRecord(0, number, T0 // 1000, b"G", orjson.dumps(
            {"source": source, "symbol": "G", "price": price, "sequence": number, "publish_time": T0 + number},
        ))
        for source in "ab"
    ]  # fmt: skip


def live(result: BatchResult) -> list[str]:
    marks = [mark for frame in result.frames for mark in decode_frame(frame).marks]
    return [mark.price for mark in marks if (mark.symbol, mark.status) == ("G", "live")]


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(RECORDS, max_size=8), st.booleans())
def test_whatever_comes_is_a_dead_letter_or_dropped_and_good_prices_count(
    records: list[PriceRecord], together: bool
) -> None:
    stage = Stage()
    stage.parameters.write("oracle:G", OracleParameters(symbol="G", sources={"a": "1", "b": "1"}))
    stage.publisher.follow_parameters()
    if together:
        result = stage.publisher.on_prices([*records, *good(1)])
        assert live(result) == ["100"]
        results = [result]
    else:
        results = [stage.publisher.on_prices([record]) for record in records]
        assert live(stage.publisher.on_prices(good(1))) == ["100"]
    outcomes = [outcome for result in results for outcome in result.outcomes][: len(records)]
    letters = [letter for result in results for letter in result.letters]
    refused = [record for record, outcome in zip(records, outcomes, strict=True) if outcome is None]
    assert len(letters) == len(refused)
    for letter, record in zip(letters, refused, strict=True):
        assert letter.topic == dead_letter_topic(PRICES)
        assert (letter.key, letter.value) == (record.key, record.value) or "dlq.cut" in dict(letter.headers)
    for result in results:
        for row in result.rows:
            decode_state(row.value)
    assert {mark.symbol for mark in stage.beat().marks} <= {"G", "X"}


def test_a_symbol_that_has_had_more_sources_than_a_record_holds_is_marked_and_not_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A symbol has 64 sources at most, but those that it has had stay known."""
    stage = Stage(rules=None)
    results = []
    for turn in range(120):
        sources = [f"source-{turn}-{number}-{'x' * 100}" for number in range(64)]
        stage.parameters.write("oracle:X", OracleParameters(symbol="X", sources=dict.fromkeys(sources, "1")))
        stage.publisher.follow_parameters()
        results += [stage.price(source, "100") for source in sources]
        stage.wait(1_000)
    assert {result.outcome for result in results} == {"accepted"}
    assert all(result.row is None or len(result.row.value) <= MESSAGE_BYTES_MAX for result in results)
    assert results[-64].row is None
    assert results[0].row is not None
    assert [record.getMessage() for record in caplog.records].count("symbol_not_kept") == 1
    assert [(mark.symbol, mark.status) for mark in stage.beat().marks] == [("X", "live")]
