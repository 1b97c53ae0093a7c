"""Frames say which records they cover, so a shard takes each row once, whoever routes it, and in whatever batches."""

from collections import defaultdict
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streams.routing.frames as frames_module
from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import EventFrame
from schemas.partitioning import shard_of
from schemas.topics import REPORTS, TRADES, TRANSFERS
from streams.feeds.sources import Sources
from streams.routing.split import Splitter
from streams.routing.trade_ids import TradeIds

Place = tuple[str, int]
Row = tuple[str, str, str]

SHARDS = 3
ACCOUNTS = [f"acct-{number}" for number in range(8)]
decode_frame = Decoder[EventFrame](EventFrame)


class Exchange:
    """Records of a few partitions in the order in which a router polls them: (topic, partition, offset, value)."""

    def __init__(self, kinds: list[tuple[str, int, str, str]], records: Any) -> None:
        self.records: list[tuple[str, int, int, bytes]] = []
        ends: dict[Place, int] = defaultdict(int)
        for number, (topic, partition, account, other) in enumerate(kinds):
            if topic == TRADES:
                symbol = f"S{partition}"
                value = records.trade(number, symbol=symbol, maker=records.side(account), taker=records.side(other))
            elif topic == TRANSFERS:
                value = records.transfer(account, number)
            else:
                value = records.report(account, number)
            data = b"{" if account == other and topic == TRANSFERS else orjson.dumps(value)
            self.records.append((topic, partition, ends[topic, partition], data))
            ends[topic, partition] += 1 + number % 3  # offsets have holes: markers, compaction


def routed(exchange: Exchange, first: int, batches: list[int]) -> list[list[tuple[int, EventFrame]]]:
    """The frames of each batch of a router that begins at record number ``first``, after whatever was routed before."""
    splitter, ids = (
        Splitter(SHARDS, {TRADES: "t", TRANSFERS: "c", REPORTS: "r"}),
        defaultdict[Place, TradeIds](TradeIds),
    )
    frames: list[list[tuple[int, EventFrame]]] = []
    begun: set[Place] = set()
    borders = {*batches, len(exchange.records)}
    for number, (topic, partition, offset, value) in enumerate(exchange.records):
        place = topic, partition
        if number >= first and place not in begun:
            begun.add(place)
            splitter.begin(topic, partition, offset)
        splitter.add(topic, value, ids[place], key=b"", partition=partition, offset=offset)
        if number + 1 == first:
            splitter.take(0)  # what it knows of trade ids comes from there, its frames do not
        elif number + 1 > first and number + 1 in borders:
            frames.append([(shard, decode_frame(data)) for shard, data in splitter.take(number)[0]])
    return frames


def rows(frame: EventFrame) -> list[tuple[Row, int]]:
    """Each row as what it says, with its offset."""
    said: list[tuple[Row, int]] = []
    for kind in ("transfers", "fills", "reports"):
        columns = getattr(frame, kind)
        for index, account in enumerate(columns.account):
            source = frame.sources[columns.source[index]]
            quantity = columns.quantity[index] if kind == "fills" else ""
            said.append(((f"{source.topic}:{source.partition}", account, quantity), columns.source_offset[index]))
    return said


KINDS = st.lists(
    st.tuples(
        st.sampled_from([TRADES, TRANSFERS, REPORTS]),
        st.integers(0, 1),
        st.sampled_from(ACCOUNTS),
        st.sampled_from(ACCOUNTS),
    ),
    max_size=40,
)


@given(kinds=KINDS, data=st.data(), rows_max=st.integers(2, 5), bytes_max=st.integers(600, 1_000))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_row_is_taken_once_however_often_it_is_routed(
    records: Any, kinds: list[tuple[str, int, str, str]], data: st.DataObject, rows_max: int, bytes_max: int
) -> None:
    exchange = Exchange(kinds, records)
    borders = st.lists(st.integers(1, max(1, len(kinds))), max_size=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames_module, "FRAME_ROWS_MAX", rows_max)
        patch.setattr(frames_module, "FRAME_BYTES_MAX", bytes_max)
        batches = sorted(set(data.draw(borders)))
        first_router = routed(exchange, 0, batches)
        done = data.draw(st.integers(0, len(batches)))  # so many batches are committed when another router takes over
        second_router = routed(exchange, ([0, *batches])[done], data.draw(borders))
    queue = [frame for batch in first_router[:done] for frame in batch]
    late, new = ([f for batch in b for f in batch] for b in (first_router[done:], second_router))
    while late or new:  # the frames of each come in their order, and between those of the other
        queue.append((late if late and (not new or data.draw(st.booleans())) else new).pop(0))

    taken: dict[int, list[tuple[Row, int]]] = defaultdict(list)
    shards: dict[int, Sources] = defaultdict(Sources)
    for shard, frame in queue:
        taken[shard] += rows(shards[shard].admit(frame))
    once: dict[int, list[tuple[Row, int]]] = defaultdict(list)
    for shard, frame in (frame for batch in first_router for frame in batch):
        once[shard] += rows(frame)
    for shard in range(SHARDS):
        assert sorted(taken[shard]) == sorted(once[shard])
        offsets: dict[str, int] = defaultdict(int)
        for (source, *_), offset in taken[shard]:
            assert offset >= offsets[source], "rows of a source come in its order"
            offsets[source] = offset


@given(kinds=KINDS, rows_max=st.integers(2, 5), bytes_max=st.integers(600, 1_000))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_frames_cover_their_sources_without_a_gap_and_hold_records_whole(
    records: Any, kinds: list[tuple[str, int, str, str]], rows_max: int, bytes_max: int
) -> None:
    exchange = Exchange(kinds, records)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames_module, "FRAME_ROWS_MAX", rows_max)
        patch.setattr(frames_module, "FRAME_BYTES_MAX", bytes_max)
        frames = [frame for batch in routed(exchange, 0, []) for frame in batch]
    told: dict[tuple[int, str, int], int] = {}
    where: dict[tuple[int, Place, int], int] = {}
    for number, (shard, frame) in enumerate(frames):
        suspensions = len(frame.suspensions)
        assert (
            suspensions + sum(len(each.account) for each in (frame.transfers, frame.fills, frame.reports)) <= rows_max
        )
        for source in frame.sources:
            key = (shard, source.topic, source.partition)
            assert source.first == told.get(key, 0)
            assert source.next >= source.first
            told[key] = source.next
        for (source_name, *_), offset in rows(frame):
            topic, partition = source_name.split(":")
            source = next(each for each in frame.sources if (each.topic, each.partition) == (topic, int(partition)))
            assert source.first <= offset < source.next
            assert where.setdefault((shard, (topic, int(partition)), offset), number) == number


def test_every_shard_hears_once_where_a_source_begins_and_up_to_where_it_has_been_told(records: Any) -> None:
    splitter = Splitter(SHARDS, {TRANSFERS: "c"})

    def told() -> list[tuple[int, list[tuple[int, int]], int]]:
        frames = [(shard, decode_frame(data)) for shard, data in splitter.take(0)[0]]
        return [(shard, [(s.first, s.next) for s in f.sources], len(f.transfers.account)) for shard, f in frames]

    splitter.begin(TRANSFERS, 0, 5)
    splitter.close(TRANSFERS, 0, 5)
    assert told() == [(shard, [(5, 5)], 0) for shard in range(SHARDS)]
    account = next(name for name in ACCOUNTS if shard_of(name, SHARDS) == 1)
    assert splitter.add(TRANSFERS, orjson.dumps(records.transfer(account, 1)), TradeIds(), offset=7) is None
    assert told() == [(1, [(5, 8)], 1)]
    splitter.close(TRANSFERS, 0, 8)
    assert told() == [(0, [(5, 8)], 0), (2, [(5, 8)], 0)]
    splitter.close(TRANSFERS, 0, 8)
    assert told() == []


def test_a_frame_whose_rows_come_from_no_source_of_it_is_no_frame(records: Any) -> None:
    splitter = Splitter(1)
    assert splitter.add(TRANSFERS, orjson.dumps(records.transfer("alice", 1)), TradeIds()) is None
    ((_, data),), _ = splitter.take(0)
    frame = decode_frame(data)
    frame.transfers.source = [1]
    with pytest.raises(DecodeError, match="a row came from a source"):
        decode_frame(encode(frame))
    frame.transfers.source = []
    with pytest.raises(DecodeError):
        decode_frame(encode(frame))
