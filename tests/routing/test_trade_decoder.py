"""The router's decoder of trades says of any bytes what ``Decoder[Trade]`` says: the same trade, or the same error."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.inspect import Metadata, StrType, StructType, type_info

from schemas.codec import MESSAGE_BYTES_MAX, DecodeError, Decoder
from schemas.messages import Trade
from streams.routing import trade_decoder
from streams.routing.trade_decoder import TradeDecoder
from tests.properties import examples

SIDE = {"account": "maker", "order_id": "m-1", "fee": "-0.010", "margin": "isolated"}
TRADE = {
    "trade_id": 7,
    "symbol": "BTC-PERP",
    "price": "61800.50",
    "quantity": "0.120",
    "aggressor_side": "buy",
    "maker": SIDE,
    "taker": {"account": "taker", "order_id": "t-1", "fee": "0"},
    "event_time": 1723161300000000,
}
TEXTS = ("symbol", "price", "quantity", "account", "order_id", "fee")

FAST, STRICT = TradeDecoder().decode, Decoder[Trade](Trade)


def said(decode: Callable[[bytes | None], Trade], data: bytes | None) -> Any:
    """What comes of ``data``: the values of the trade, or the text of the error."""
    try:
        return msgspec.to_builtins(decode(data))
    except DecodeError as error:
        return str(error)


def both_say(data: bytes | None) -> Any:
    fast, strict = said(FAST, data), said(STRICT, data)
    assert fast == strict
    return fast


# --- any record ------------------------------------------------------------------------------------------------------

DECIMALS = (
    *(
        "0",
        "1",
        "1.50",
        "-1.5",
        "-0",
        "0.0",
        "1.",
        ".5",
        "01",
        "+1",
        "1e3",
        "NaN",
        "١",
        "1_0",
        " 1",
        "1 ",
        "1\n",
        "1\u2028",
    ),
    *("9" * 18, "9" * 19, f"{'9' * 18}.{'9' * 18}", f"0.{'0' * 17}1", f"0.{'0' * 18}1", f"-{'9' * 40}"),
)
NAMES = (
    *("", "a b", "a\n", "\n", "ä", "a\x7f", "a\x00", "a\\", 'a"b', "margin", "cross", "BTC-PERP", "-PERP", "a:b/c"),
    *("margin-clearing:", "margin-clearing:x", "margin-clearing"),
    *("a" * length for length in (1, 32, 33, 128, 129, 192, 193)),
)
decimals = st.sampled_from(DECIMALS) | st.from_regex(r"\A-?0{0,2}[0-9]{0,20}\.?[0-9]{0,20}\n?\Z")
names = st.sampled_from(NAMES) | st.text(max_size=5)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64, 10**400])
    | st.floats()
    | decimals
    | names
    | st.sampled_from(["buy", "sell", "Buy", "cross", "isolated"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)
keys = st.sampled_from([*TRADE, *SIDE, '"margin', "Symbol", "maker.fee"]) | st.text(max_size=3)


@st.composite
def mutated(draw: st.DrawFn, record: dict[str, Any]) -> list[tuple[str, Any]]:
    """The fields of ``record`` in order, a few of them changed, left out, moved, or there more than once."""
    fields = list(record.items())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(fields)))
        change = draw(st.sampled_from(["replace", "replace", "replace", "insert", "remove", "double", "swap"]))
        if change == "insert":
            fields.insert(at, (draw(keys), draw(values)))
        elif at < len(fields):
            key, value = fields[at]
            if change == "replace":
                fields[at] = key, draw(decimals | names | values)
            elif change == "remove":
                del fields[at]
            elif change == "double":
                fields.insert(
                    draw(st.integers(0, len(fields))), (key, draw(st.just(value) | decimals | names | values))
                )
            else:
                fields.append(fields.pop(at))
    return fields


class Pairs(list[tuple[str, Any]]):
    """An object as it is written: its fields in order, any of them more than once."""


@st.composite
def trades(draw: st.DrawFn) -> Pairs:
    record: dict[str, Any] = dict(TRADE)
    for side in ("maker", "taker"):
        if draw(st.booleans()):
            margin = draw(st.sampled_from([{}, {"margin": "cross"}, {"margin": "isolated"}]))
            plain = {key: value for key, value in SIDE.items() if key != "margin"}
            record[side] = Pairs(draw(mutated(plain | margin)))
    return Pairs(draw(mutated(record)))


def written(value: Any, ascii_only: bool, gap: str) -> str:
    """``value`` as JSON. ``gap`` stands wherever JSON may have space."""
    if isinstance(value, Pairs | dict):
        items = value if isinstance(value, Pairs) else value.items()
        inner = f",{gap}".join(
            f"{json.dumps(key, ensure_ascii=ascii_only)}{gap}:{gap}{written(each, ascii_only, gap)}"
            for key, each in items
        )
        return f"{{{gap}{inner}{gap}}}"
    if isinstance(value, list):
        return f"[{f',{gap}'.join(written(each, ascii_only, gap) for each in value)}]"
    return json.dumps(value, ensure_ascii=ascii_only)


@given(trades(), st.booleans(), st.sampled_from(["", " ", "\n\t"]))
@settings(max_examples=examples(4000))
def test_of_any_record_both_say_the_same(record: Pairs, ascii_only: bool, gap: str) -> None:
    both_say(written(record, ascii_only, gap).encode("utf-8", "surrogatepass"))


@given(trades(), st.data())
@settings(max_examples=examples(1000))
def test_of_any_bytes_both_say_the_same(record: Pairs, data: st.DataObject) -> None:
    whole = bytearray(written(record, True, "").encode())
    for _ in range(data.draw(st.integers(0, 3))):
        first = data.draw(st.integers(0, len(whole)))
        whole[first : data.draw(st.integers(first, first + 3))] = data.draw(
            st.binary(max_size=3)
            | st.sampled_from([b'"', b"\\", b"\\u0022", b"\\n", b",", b"{", b"}", b"\xff", b"\xef"])
        )
    both_say(bytes(whole))


# --- what the drawn records may miss ---------------------------------------------------------------------------------


def compact(*fields: tuple[str, Any], **changed: Any) -> bytes:
    """The trade with fields changed, and others behind them."""
    return written(Pairs([*(TRADE | changed).items(), *fields]), True, "").encode()


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("margins", ["both", "one", "none"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_field_that_comes_twice_is_refused_if_either_text_is(name: str, margins: str, where: str) -> None:
    """With as many quotation marks as another valid trade may have."""
    plain = {key: value for key, value in SIDE.items() if key != "margin"}
    maker, taker = (plain if margins == "none" else SIDE), (SIDE if margins == "both" else plain)
    outer = name in TRADE
    for bad in ("not valid", "ok", "1"):
        double = [(name, bad), *(TRADE | {"maker": maker, "taker": taker} if outer else maker).items()]
        double = double if where == "first" else [*double[1:], double[0]]
        record = Pairs(double) if outer else Pairs((TRADE | {"maker": Pairs(double), "taker": taker}).items())
        result = both_say(written(record, True, "").encode())
        assert isinstance(result, str) or bad != "not valid"


@pytest.mark.parametrize("name", TEXTS)
def test_every_text_is_taken_within_the_same_limits(name: str) -> None:
    for text in (*DECIMALS, *NAMES):
        both_say(compact(**({name: text} if name in TRADE else {"taker": SIDE | {name: text}})))


def test_names_that_are_written_otherwise_are_not_missed() -> None:
    bad = b'{"\\u0073ymbol":"not valid",' + compact()[1:]
    assert isinstance(both_say(compact()), dict)
    assert isinstance(both_say(bad), str)
    # Names that look like those of the margins, in the number that makes up for the quotation marks of another symbol.
    assert isinstance(both_say(b'{"symbol":"not valid",' + compact(('"margin', 1), ('"margin', 2))[1:]), str)
    assert isinstance(both_say(b'{"symbol":"not valid",' + compact(("margin", 1), ("margin", 2))[1:]), str)


def test_what_is_no_value_or_too_long_is_refused_alike() -> None:
    for data in (None, b"", b" " * (MESSAGE_BYTES_MAX + 1), compact() + b" " * MESSAGE_BYTES_MAX, b"[" * 100_000):
        assert isinstance(both_say(data), str)
    deep = b'{"more":' + b"[" * 3_000 + b"]" * 3_000 + b"," + compact()[1:]
    both_say(deep)
    assert isinstance(both_say(compact() + b" " * (MESSAGE_BYTES_MAX - len(compact()))), dict)


# --- which records are decoded quickly -------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> TradeDecoder:
    """A decoder that must not need ``Decoder[Trade]``."""
    decoder = TradeDecoder()

    def strictly(data: bytes) -> Trade:
        raise AssertionError(f"decoded again: {data!r}")

    monkeypatch.setattr(decoder, "_strictly", strictly)
    return decoder


def test_what_an_exchange_sends_is_decoded_quickly(quick: TradeDecoder) -> None:
    plain = {key: value for key, value in SIDE.items() if key != "margin"}
    for maker in (SIDE, plain, SIDE | {"margin": "cross"}):
        for taker in (SIDE, plain):
            record = TRADE | {"maker": maker, "taker": taker}
            more = record | {"venue": "x", "flags": ["a", {"b": 1}]}
            for data in (orjson.dumps(record), json.dumps(record, indent=2).encode(), orjson.dumps(more)):
                assert said(quick.decode, data) == said(STRICT, data)


def test_its_types_are_those_of_the_contract_without_patterns() -> None:
    assert _without_forms(type_info(trade_decoder._Trade)) == _without_forms(type_info(Trade))


def _without_forms(kind: Any) -> Any:
    """``kind`` without what it says of texts, and of what else it says all."""
    if isinstance(kind, Metadata):
        return _without_forms(kind.type)
    if isinstance(kind, StructType):
        return [(field.name, field.required, field.default, _without_forms(field.type)) for field in kind.fields]
    return StrType() if isinstance(kind, StrType) else kind
