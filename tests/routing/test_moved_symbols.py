"""A symbol that comes to another partition: what is sent again there is known, whoever routes what and dies when."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from schemas.codec import encode
from schemas.topics import ROUTER, TRADES
from streams.memory.kafka import MemoryKafka
from streams.routing.moved import Elsewhere
from streams.routing.trade_ids import memory_key
from tests.routing.router_bench import SHARDS, RouterBench


class Market(RouterBench):
    """A bench of three partitions of trades."""

    def __init__(self, records: Any) -> None:
        super().__init__(partitions=3)
        self.records = records

    def trades(self, trade_ids: range, partition: int, symbol: str = "S", quantity: str = "1") -> None:
        for number in trade_ids:
            sides = {"maker": self.records.side(f"m{number}"), "taker": self.records.side(f"t{number}")}
            self.publish(TRADES, self.records.trade(number, symbol=symbol, quantity=quantity, **sides), partition)

    def places(self) -> dict[int, set[tuple[int, int]]]:
        """Of which records the rows of each trade are that shards have got."""
        places: dict[int, set[tuple[int, int]]] = defaultdict(set)
        for shard in range(SHARDS):
            for frame in self.frames(shard):
                fills = frame.fills
                for trade_id, source, offset in zip(fills.trade_id, fills.source, fills.source_offset, strict=True):
                    places[trade_id].add((frame.sources[source].partition, offset))
        return places

    def assert_each_once(self, trade_ids: range) -> None:
        places = self.places()
        assert sorted(places) == list(trade_ids)
        assert {number: len(which) for number, which in places.items() if len(which) != 1} == {}


@pytest.fixture
def market(records: Any) -> Iterator[Market]:
    with Market(records) as market:
        yield market


@pytest.mark.parametrize("restarted", [False, True])
def test_trades_that_are_sent_again_to_another_partition_are_repeats(market: Market, restarted: bool) -> None:
    market.trades(range(1, 11), 0)
    if restarted:
        market.routed()
    router = market.start()
    market.wait(market.all_committed, "the first partition is routed")
    market.trades(range(6, 16), 2)
    market.wait(market.all_committed, "the other partition is routed")
    market.assert_each_once(range(1, 16))
    assert (market.memory(2).last, market.memory(0).last) == ({"S": 15}, {"S": 10})
    router.stop()


def test_what_the_same_router_has_yet_to_commit_is_known(market: Market) -> None:
    market.trades(range(1, 3), 0)
    market.routed()
    router = market.start()
    market.trades(range(3, 2_001), 0)
    market.wait(lambda: 2_000 in market.places(), "the first partition is routed, committed or not")
    market.trades(range(1_990, 2_011), 1)
    market.wait(market.all_committed, "the other partition is routed")
    market.assert_each_once(range(1, 2_011))
    router.stop()


def test_how_much_is_not_routed_where_a_symbol_came_from_is_told(market: Market) -> None:
    market.trades(range(1, 3), 0)
    market.routed()
    market.trades(range(3, 13), 0)

    def look(kafka: MemoryKafka) -> tuple[bool, int, int]:
        elsewhere = Elsewhere(kafka.log_reader("look", lambda: None), 5, kafka.runtime)
        is_known = elsewhere.knows(1, "S")
        memory, unrouted = elsewhere.newest(kafka.group_consumer("look", market.group, {}), 1, "S")
        assert memory is not None
        return is_known, memory.last, unrouted

    assert market.operate(look) == (True, 2, 10)


def test_a_memory_that_is_removed_while_it_is_looked_for_is_none(market: Market) -> None:
    market.trades(range(1, 3), 0)
    market.routed()

    def look(kafka: MemoryKafka) -> object:
        elsewhere = Elsewhere(kafka.log_reader("look", lambda: None), 5, kafka.runtime)
        assert elsewhere.knows(1, "S")
        market.cluster.append(ROUTER, memory_key(0, "S"), None, 0)
        return elsewhere.newest(kafka.group_consumer("look", market.group, {}), 1, "S")

    assert market.operate(look) == (None, 0)


def test_a_memory_of_the_form_before_is_known(market: Market) -> None:
    market.cluster.append(ROUTER, memory_key(0), encode({"S": 7}), 0)
    market.trades(range(6, 10), 1)
    market.routed()
    assert sorted(market.places()) == [8, 9]


def test_what_contradicts_a_trade_of_another_partition_is_refused(market: Market) -> None:
    market.trades(range(1, 5), 0)
    market.routed()
    market.trades(range(3, 6), 1, quantity="2")
    market.routed()
    letters = market.cluster.topics[f"{TRADES}.dlq"][0].committed()
    assert len(list(letters)) == 2
    market.assert_each_once(range(1, 6))


def test_another_symbol_begins_at_once(market: Market) -> None:
    market.trades(range(1, 5), 0)
    market.routed()
    market.trades(range(1, 5), 1, symbol="T")
    market.routed()
    assert (market.memory(1).last, market.memory(0).last) == ({"T": 4}, {"S": 4})
    assert all(len(which) == 2 for which in market.places().values())


@pytest.mark.parametrize("seed", range(12))
def test_whoever_dies_when_each_trade_is_routed_once(market: Market, seed: int) -> None:
    """Two routers; their partitions move while symbols do, and what was sent last is sent again."""
    random = Random(seed)
    market.trades(range(1, 4), 0)
    market.routed()
    routers = [market.start("one"), market.start("two")]
    ends = [0, 200, 400, 500]
    for partition, (first, end) in enumerate(pairwise(ends)):
        market.trades(range(max(1, first - 10), end), partition) if first else market.trades(range(4, end), 0)
        market.advance(random.randrange(200_000))
        if random.random() < 0.6:
            routers.pop(random.randrange(len(routers))).kill()
            routers.append(market.start(f"after {partition}"))
        market.wait(market.all_committed, "everything is routed")
    market.assert_each_once(range(1, 500))
