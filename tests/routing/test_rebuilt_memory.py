"""The memory of trade ids that is rebuilt for an accepted offset is that of a router that has routed up to there."""

from collections.abc import Iterator
from typing import Any, cast

import orjson
import pytest
from confluent_kafka import Consumer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.codec import Decoder, encode
from schemas.messages import AcceptedOffset, Trade
from schemas.topics import INPUTS, ROUTER, TRADES
from streams.broker.reader import LogReader
from streams.broker.records import Record
from streams.feeds.accepted import accepted_key
from streams.memory.clients import FakeMessage
from streams.memory.log import Cluster
from streams.memory.scheduler import Scheduler
from streams.routing.committed_at import CommittedAt
from streams.routing.ownership import Ownership, trade_ids_after
from streams.routing.split import Splitter
from streams.routing.trade_ids import REPEATED, RefusedTrade, SymbolMemory, TradeIds, memory_key
from streams.runtime import SYSTEM

IDS = dict.fromkeys(INPUTS, "an-id")

TRADED = st.tuples(st.sampled_from("ABC"), st.integers(0, 40), st.integers(0, 3))
"""A symbol, a trade id, and what is in the trade: ids repeat, contradict each other and begin anew."""


class Logs:
    """A reader of the in-memory cluster."""

    def __init__(self) -> None:
        self.cluster = Cluster(Scheduler(0), {TRADES: 1, ROUTER: 1}, lambda _: None)
        self.reads: list[tuple[str, int, int]] = []

    def partitions(self, topic: str) -> int:
        return len(self.cluster.topics[topic])

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        log = self.cluster.topics[topic][partition]
        return log.start, log.end

    def read_range(self, topic: str, partition: int, first: int, end: int) -> Iterator[Record]:
        self.reads.append((topic, first, end))
        log = self.cluster.topics[topic][partition]
        return (Record(FakeMessage((topic, partition), one, one.offset)) for one in log.committed(first, end))


class Group:
    """A consumer whose group has committed ``offset``."""

    def __init__(self, offset: int, text: str) -> None:
        self.offset, self.text = offset, text

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(place.topic, place.partition, self.offset, self.text) for place in partitions]


def published(records: Any, trades: list[tuple[str, int, int] | None]) -> Logs:
    logs = Logs()
    for traded in trades:
        if traded is None:
            logs.cluster.append(TRADES, b"key", b"{")
            continue
        symbol, trade_id, what = traded
        sides = {"maker": records.side(f"m{what}"), "taker": records.side("t")}
        at_us = 1_000_000_000 * (trade_id + what)
        trade = records.trade(trade_id, symbol=symbol, event_time=at_us, quantity=str(what + 1), **sides)
        logs.cluster.append(TRADES, symbol.encode(), orjson.dumps(trade))
    return logs


def routed(logs: Logs, end: int, batch: int) -> TradeIds:
    """The memory of a router that has routed what is below ``end``, and commits now and then."""
    memory, splitter = TradeIds(), Splitter(3, IDS)
    splitter.begin(TRADES, 0, 0)
    for record in logs.read_range(TRADES, 0, 0, end):
        splitter.add(TRADES, record.value(), memory, key=record.key(), offset=record.offset())
        if not record.offset() % batch:
            splitter.take(0)
            memory.written()
    return memory


def rows(memory: TradeIds) -> dict[str, bytes]:
    return {symbol: one.row() for symbol, one in memory.symbols.items()}


@given(trades=st.lists(st.none() | TRADED, max_size=60), batch=st.integers(1, 9), cut=st.floats(0, 1))
def test_it_is_folded_by_what_routes(
    records: Any, trades: list[tuple[str, int, int] | None], batch: int, cut: float
) -> None:
    logs = published(records, trades)
    end = int(cut * len(trades))
    assert rows(trade_ids_after(logs.read_range(TRADES, 0, 0, end))) == rows(routed(logs, end, batch))


@given(
    trades=st.lists(st.none() | TRADED, max_size=60),
    batch=st.integers(1, 9),
    stood=st.integers(0, 60),
    accepted=st.integers(0, 60),
    trusted=st.booleans(),
    old=st.booleans(),
)
def test_a_router_that_begins_at_an_accepted_offset_has_it_and_hands_it_on(
    records: Any,
    trades: list[tuple[str, int, int] | None],
    batch: int,
    stood: int,
    accepted: int,
    trusted: bool,
    old: bool,
) -> None:
    logs = published(records, trades)
    stood, accepted = min(stood, len(trades)), min(accepted, len(trades))
    before = routed(logs, stood, batch)
    before.changed = set(before.symbols)
    before.migrated = False
    if old:
        logs.cluster.append(ROUTER, memory_key(0), encode({"OLD": 7}))
    for symbol, row in before.rows():
        logs.cluster.append(ROUTER, memory_key(0, symbol), row)
    word = AcceptedOffset(offset=accepted, topic_id="an-id", reason="r", time=1)
    logs.cluster.append(ROUTER, accepted_key(TRADES, 0), encode(word))
    owned = Ownership(cast(LogReader, logs), 1.0, SYSTEM, IDS, lambda: IDS, "")
    group = Group(stood, CommittedAt("an-id").text() if trusted else "by hand")
    logs.reads.clear()
    (begun,) = owned.begin(cast(Consumer, group), [TopicPartition(TRADES, 0)])
    assert begun.offset == accepted
    assert [read for read in logs.reads if read[0] == ROUTER] == [(ROUTER, 0, logs.watermarks(ROUTER, 0)[1])]
    partition = owned.find(TRADES, 0)
    assert partition is not None
    stays = trusted and stood <= accepted
    expected = rows(before if stays else routed(logs, accepted, batch))
    if stays and old:
        expected["OLD"] = SymbolMemory(7).row()
    assert rows(partition.trade_ids) == expected
    for number, key, row in partition.rows_to_write():
        assert number == 0
        logs.cluster.append(ROUTER, key, row)
    again = Ownership(cast(LogReader, logs), 1.0, SYSTEM, IDS, lambda: IDS, "")
    again.begin(cast(Consumer, Group(accepted, CommittedAt("an-id").text())), [TopicPartition(TRADES, 0)])
    taken = again.find(TRADES, 0)
    assert taken is not None
    assert taken.accepted is None
    assert rows(taken.trade_ids) == expected


def test_a_long_log_is_folded_without_keeping_it(records: Any) -> None:
    logs = published(records, [("A", number, 0) for number in range(25_000)])
    assert trade_ids_after(logs.read_range(TRADES, 0, 0, 25_000)).last == {"A": 24_999}


def test_what_was_before_a_log_whose_first_records_are_gone_is_a_repeat(records: Any) -> None:
    """Everybody whose trades came again would be suspended otherwise."""
    trades: list[tuple[str, int, int] | None] = [("A", number, 0) for number in range(1, 30)]
    logs = published(records, trades)
    whole = logs.cluster.topics[TRADES][0].records
    memory = trade_ids_after(logs.read_range(TRADES, 0, 20, 29), is_cut_off=True)
    assert memory.last == {"A": 29}
    decode = Decoder[Trade](Trade)
    for record in whole:
        assert memory.accept(decode(record.value)) == REPEATED
    begun_anew = decode(published(records, [("A", 1, 3)]).cluster.topics[TRADES][0].records[0].value)
    with pytest.raises(RefusedTrade, match="the ids have begun anew"):
        memory.accept(replace(begun_anew, event_time=10**12))
    assert memory.accept(replace(begun_anew, symbol="NEW")) == 0
