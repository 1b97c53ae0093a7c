"""Whom a refused record names is found whatever else is wrong with it, and told by the frames of its shard."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas.codec import Decoder
from schemas.messages import EventFrame
from schemas.partitioning import shard_of
from schemas.topics import REPORTS, TRADES, TRANSFERS
from streams.routing.concerned import concerned
from streams.routing.split import REASON_MAX, Splitter
from streams.routing.trade_ids import TradeIds

SHARDS = 4
_FRAME = Decoder[EventFrame](EventFrame)


def sides(maker: str = '"alice"', taker: str = '"bob"') -> str:
    return f'"maker":{{"account":{maker},"order_id":"m","fee":"0"}},"taker":{{"account":{taker},"order_id":"t"}}'


@pytest.mark.parametrize(
    "value",
    [
        "{" + sides() + "}",
        '{"price":-37.63,' + sides() + "}",
        '{"price":NaN,"quantity":-Infinity,' + sides() + "}",
        '{"trade_id":' + "9" * 6000 + "," + sides() + "}",
        '{"price":"1","price":"2",' + sides() + "}",
        '{"x":1e999999,"maker":null,' + sides() + "}",
        '{"maker":[1],"maker":{"fee":1},' + sides() + "}",
        '{"symbol":"no symbol at all","text":"\t\n",' + sides() + "}",
        "\ufeff{" + sides() + "}",
        "[{" + sides() + "}]",
        '{"trade":{' + sides() + "}}",
        "{" + sides() + ',"price":',
        "{" + sides() + "} trailing",
        "{" + sides() + ',"x":' + "[" * 100_000,
    ],
    ids=lambda value: value[:40],
)
def test_both_sides_of_a_trade_are_found_whatever_else_is_wrong_with_it(value: str) -> None:
    whom = concerned(TRADES, b"BTC-PERP", value.encode())
    assert (whom.accounts, whom.complete) == (("alice", "bob"), True)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_in_other_encodings_too(encoding: str) -> None:
    assert concerned(TRADES, None, ("{" + sides() + "}").encode(encoding)).accounts == ("alice", "bob")


def test_beside_bytes_of_no_encoding() -> None:
    value = b'{"note":"\xff\xfe\x80",' + sides().encode() + b"}"
    assert concerned(TRADES, None, value).accounts == ("alice", "bob")


@pytest.mark.parametrize(
    ("maker", "accounts"),
    [
        ("7", ("bob",)),
        ("null", ("bob",)),
        ('""', ("bob",)),
        ('"with space"', ("bob",)),
        (f'"{"x" * 129}"', ("bob",)),
        ('"\\ud800"', ("bob",)),
        ('"margin-clearing:shard:0"', ("bob",)),
        ('"bob"', ("bob",)),
        ('"alice","account":"carol"', ("alice", "bob", "carol")),
    ],
)
def test_what_is_no_account_is_none(maker: str, accounts: tuple[str, ...]) -> None:
    whom = concerned(TRADES, None, ("{" + sides(maker) + "}").encode())
    assert whom.accounts == accounts
    assert whom.complete is (maker in ('"bob"', '"alice","account":"carol"'))


def test_other_accounts_in_a_record_are_not_meant_if_the_contract_names_some() -> None:
    value = '{"desk":{"account":"desk"},' + sides() + "}"
    assert concerned(TRADES, None, value.encode()).accounts == ("alice", "bob")


@pytest.mark.parametrize(
    ("key", "value", "accounts"),
    [
        (b"alice", b'{"account":"alice","amount":3}', ("alice",)),
        (b"alice", b'{"account":"carol"}', ("carol",)),
        (b"alice", b"\x00\x01", ("alice",)),
        (b"alice", None, ("alice",)),
        (b"al ice", b"{", ()),
        (None, b"{}", ()),
        (b"margin-clearing:shard:0", b"{}", ()),
    ],
)
def test_a_transfer_concerns_its_account_or_its_key(key: bytes, value: bytes | None, accounts: tuple[str, ...]) -> None:
    whom = concerned(TRANSFERS, key, value)
    assert (whom.accounts, whom.complete) == (accounts, bool(accounts))


def test_a_report_moves_nothing_so_it_suspends_nobody() -> None:
    whom = concerned(REPORTS, b"alice", b'{"account":"alice"}')
    assert (whom.accounts, whom.complete) == ((), False)


@given(st.binary(max_size=200))
@configure(deadline=None)
def test_no_bytes_are_too_much(value: bytes) -> None:
    for topic in (TRADES, TRANSFERS, REPORTS):
        concerned(topic, value[:20], value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=20,
    ),
    st.sampled_from(["price", "quantity", "trade_id", "event_time", "aggressor_side", "symbol", "more"]),
)
@configure(deadline=None)
def test_any_field_may_be_anything(records: Any, junk: Any, name: str) -> None:
    value = json.dumps(records.trade(1) | {name: junk}).encode()
    splitter = Splitter(SHARDS)
    if splitter.add(TRADES, value, TradeIds()) is not None:
        told = [s.account for _, data in splitter.take(1)[0] for s in _FRAME(data).suspensions]
        assert sorted(told) == ["maker", "taker"]


NAMES = ["alice", "bob", "with space", "margin-clearing:x", "", "account", "maker", "é", 7, {}]
PARTY = st.fixed_dictionaries(
    {},
    optional={
        "account": st.sampled_from(NAMES),
        "maker": st.sampled_from(["alice", {"account": "carol"}]),
        "fee": st.none(),
    },
)
SIDES = {"maker": PARTY, "taker": PARTY, "account": st.just("dan"), "x": PARTY}
SHAPE = PARTY | st.fixed_dictionaries({}, optional=SIDES)


@given(SHAPE | st.lists(SHAPE, max_size=2), st.sampled_from([TRADES, TRANSFERS]), st.sampled_from(["", " ", ",", "}"]))
@configure(deadline=None)
def test_a_record_is_read_the_short_way_as_it_is_the_long_way(shape: Any, topic: str, end: str) -> None:
    """An escape keeps a record from the short way."""
    value = json.dumps([shape, None]) if isinstance(shape, list) else json.dumps(shape | {"z": None})
    long_way = value.replace("null", '"\\u0041"')
    assert concerned(topic, b"key", (value + end).encode()) == concerned(topic, b"key", (long_way + end).encode())


@given(SHAPE, st.integers(1, 200), st.sampled_from([TRADES, TRANSFERS]))
@configure(deadline=None)
def test_a_record_that_is_cut_off_concerns_whom_its_text_names(shape: Any, lost: int, topic: str) -> None:
    value = json.dumps(shape).encode()[:-lost]
    assert concerned(topic, b"key", value) == concerned(topic, b"key", b"no JSON " + value)


def test_the_frames_of_each_accounts_shard_tell_it_with_the_place_of_the_record(records: Any) -> None:
    splitter = Splitter(SHARDS)
    value = orjson.dumps(records.trade(1, price="-37.63"))
    refused = splitter.add(TRADES, value, TradeIds(), partition=3, offset=41)
    assert refused is not None
    assert refused.whom.complete
    splitter.add(TRANSFERS, orjson.dumps(records.transfer("maker")), TradeIds())
    frames, counts = splitter.take(5)
    suspensions = [(shard, told) for shard, data in frames for told in _FRAME(data).suspensions]
    assert sorted((told.account, told.topic, told.partition, told.offset) for _, told in suspensions) == [
        ("maker", TRADES, 3, 41),
        ("taker", TRADES, 3, 41),
    ]
    for shard, told in suspensions:
        assert shard == shard_of(told.account, SHARDS)
        assert "price" in told.reason
        assert len(told.reason) <= REASON_MAX
    assert counts.fills == 0


@pytest.mark.parametrize("topic", [TRADES, TRANSFERS])
def test_no_account_may_have_a_reserved_name(records: Any, topic: str) -> None:
    reserved = "margin-clearing:shard:0"
    record = records.trade(1, maker=records.side(reserved)) if topic == TRADES else records.transfer(reserved)
    splitter = Splitter(SHARDS)
    refused = splitter.add(topic, orjson.dumps(record), TradeIds())
    assert refused is not None
    assert "margin-clearing" in refused.reason
    assert refused.whom.accounts == (("taker",) if topic == TRADES else ())
    assert not refused.whom.complete
