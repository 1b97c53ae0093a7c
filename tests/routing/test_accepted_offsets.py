"""A router begins where a router has committed or an operator says so, and nowhere else; a word is spent once."""

from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
import pytest

from schemas.messages import AcceptedOffset, SourceRange
from schemas.topics import INPUTS, REPORTS, ROUTER, TRADES, TRANSFERS
from streams.broker.producer import TransactionalProducer
from streams.errors import BrokerError, OperatorError
from streams.feeds.accepted import AcceptedOffsets, accepted_key
from streams.feeds.reasons import REASON_CHARACTERS_MAX
from streams.routing.accepting import Accepted, accept_committed, accept_offset
from streams.routing.committed_at import CommittedAt
from tests.routing.router_bench import SHARDS, RouterBench

REASON = "it is known where it stood"


class Market(RouterBench):
    """A bench to which trades are published."""

    def __init__(self, records: Any) -> None:
        super().__init__()
        self.records = records
        self.trade_id = 0

    def trades(self, count: int) -> None:
        """Trades whose accounts are in every shard."""
        for _ in range(count):
            self.trade_id += 1
            number = self.trade_id
            sides = {"maker": self.records.side(f"m{number}"), "taker": self.records.side(f"t{number}")}
            self.publish(TRADES, self.records.trade(number, symbol=f"S{number % 3}", **sides))

    def accept(self, offset: int, topic: str = TRADES) -> Accepted:
        done: Accepted = self.operate(lambda kafka: accept_offset(kafka, topic, 0, offset, REASON))
        return done

    def move(self, offset: int, text: str = "") -> None:
        self.cluster.move_offset(self.group, (TRADES, 0), offset, text)

    def assert_told_first(self, begun: list[int], first: int, lost: str = REASON, times: int = 1) -> None:
        """Each shard, from where its log ended at ``begun`` on, was first told that what lies before is lost."""
        for shard in range(SHARDS):
            said = self.ranges(shard, begun[shard])
            topic_id = self.cluster.topic_id(TRADES)
            told = SourceRange(topic=TRADES, topic_id=topic_id, partition=0, first=first, next=first, lost=lost)
            assert said[0] == told
            assert said.count(told) == times
            frames = [frame for frame in self.frames(shard, begun[shard]) if told in frame.sources]
            assert all(frame.sources == [told] and not frame.fills.account for frame in frames)
            assert [one.first for one in said if one.lost] == [first] * times

    def offsets_routed(self, begun: list[int]) -> set[int]:
        """The records of which frames hold rows."""
        frames = [frame for shard in range(SHARDS) for frame in self.frames(shard, begun[shard])]
        return {offset for frame in frames for offset in frame.fills.source_offset}


@pytest.fixture
def market(records: Any) -> Iterator[Market]:
    with Market(records) as market:
        yield market


def moved_forward(market: Market) -> int:
    market.trades(10)
    market.move(25)
    return 25


def moved_back(market: Market) -> int:
    market.move(5)
    return 5


def made_anew(market: Market) -> int:
    market.cluster.make_anew(TRADES)
    market.trades(10)
    return 4


def records_gone(market: Market) -> int:
    market.trades(10)
    market.cluster.topics[TRADES][0].delete_before(24)
    return 24


def end_cut_off(market: Market) -> int:
    del market.cluster.topics[TRADES][0].records[12:]
    return 12


SCENARIOS = {
    "moved forward by hand": (moved_forward, "it was moved by hand"),
    "moved back by hand": (moved_back, "it was moved by hand"),
    "made anew": (made_anew, "was deleted and made anew"),
    "records gone": (records_gone, "the records from 20 to 23 are gone"),
    "end cut off": (end_cut_off, "has committed 20 but the log ends at 12"),
}


@pytest.fixture(params=SCENARIOS, ids=list(SCENARIOS))
def astray(market: Market, request: pytest.FixtureRequest) -> tuple[Market, int]:
    """20 trades are routed and committed, then something happens that no router goes on after; where to go on."""
    market.trades(20)
    market.routed()
    happen, said = SCENARIOS[request.param]
    offset = happen(market)
    begun = market.ends()
    for _ in range(2):
        assert said in market.start().refusal()
    assert market.ends() == begun, "nothing is routed"
    return market, offset


def test_what_no_router_goes_on_after_is_accepted_once(astray: tuple[Market, int]) -> None:
    market, offset = astray
    assert len(market.accept(offset).written) == 1
    begun, end = market.ends(), market.cluster.topics[TRADES][0].end
    market.routed()
    market.assert_told_first(begun, offset)
    assert min(market.offsets_routed(begun), default=end) == (offset if offset < end else end)
    assert market.words() == {accepted_key(TRADES, 0): None}, "it is spent"
    assert CommittedAt.parse(market.text()) == CommittedAt(
        market.cluster.topic_id(TRADES), memory_id=market.cluster.topic_id(ROUTER)
    )
    begun = market.ends()
    market.trades(3)
    market.routed()
    assert {one.lost for shard in range(SHARDS) for one in market.ranges(shard, begun[shard])} == {""}
    assert market.offsets_routed(begun) == {end, end + 1, end + 2}


def test_a_router_that_ends_before_its_commit_does_not_spend_the_word(
    astray: tuple[Market, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    market, offset = astray
    market.accept(offset)
    committed, begun = market.committed(), market.ends()
    for _ in range(2):
        router = market.start()
        with monkeypatch.context() as patch:
            patch.setattr(TransactionalProducer, "commit", lambda _: router.process.crash("with all sent"))  # noqa: B023
            market.wait(lambda: router.process.dead, "the router has come to its commit")  # noqa: B023
        router.kill()
        assert market.words()[accepted_key(TRADES, 0)] is not None
        assert market.committed() == committed
    market.routed()
    market.assert_told_first(begun, offset, times=3)
    assert market.words() == {accepted_key(TRADES, 0): None}


@pytest.mark.parametrize("fault", ["abortable", "fatal", "undelivered", "commit_answer_lost", "commit_lost"])
def test_what_fails_is_done_again_as_long_as_the_word_is_not_spent(market: Market, fault: str) -> None:
    market.trades(20)
    market.routed()
    market.move(8)
    market.accept(8)
    begun = market.ends()
    router = market.start()
    market.wait(lambda: router.router is not None, "the router is built")
    router.rates.once(fault)
    market.wait(lambda: market.all_committed() and not any(market.words().values()), "the word is spent")
    router.stop()
    assert router.rates.counts[fault] == 1
    for shard in range(SHARDS):
        said = market.ranges(shard, begun[shard])
        assert said[0].lost == REASON
        assert all(one.lost == REASON for one in said if one.first == 8 == one.next)
    assert market.offsets_routed(begun) == set(range(8, 20))


def test_of_two_partitions_one_is_refused_and_no_other_is_lost(records: Any) -> None:
    with RouterBench(partitions=2) as bench:
        for partition in range(2):
            bench.publish(TRADES, records.trade(1, symbol=f"S{partition}"), partition)
        bench.routed()
        for partition in range(2):
            bench.cluster.move_offset(bench.group, (TRADES, partition), 0)
        said = bench.start().refusal()
        assert "trades.v1[0]: the group's offset 0" in said
        assert "trades.v1[1]: the group's offset 0" in said
        bench.operate(lambda kafka: accept_offset(kafka, TRADES, 1, 1, REASON))
        said = bench.start().refusal()
        assert "trades.v1[0]: the group's offset 0" in said
        assert "trades.v1[1]" not in said
        bench.operate(lambda kafka: accept_offset(kafka, TRADES, 0, 0, REASON))
        bench.routed()
        assert not any(bench.words().values())


def test_a_word_about_a_topic_that_is_no_more_is_none(market: Market) -> None:
    market.trades(20)
    market.routed()
    market.accept(3)
    market.cluster.make_anew(TRADES)
    market.trades(10)
    assert "was deleted and made anew" in market.start().refusal()
    assert market.words()[accepted_key(TRADES, 0)] is not None


def test_a_word_that_the_log_has_outlived_is_refused(market: Market) -> None:
    market.trades(20)
    market.routed()
    market.accept(3)
    market.cluster.topics[TRADES][0].delete_before(5)
    assert "the offset 3 was accepted" in market.start().refusal()
    market.accept(5)
    market.routed()


def test_a_word_that_cannot_be_read_is_none(market: Market) -> None:
    market.trades(20)
    market.routed()
    market.move(3)
    for value in (b"{", b"", b'{"offset":-1,"topic_id":"x","reason":"y","time":1}', b"\xff"):
        market.cluster.append(ROUTER, accepted_key(TRADES, 0), value, 0)
        assert "it was moved by hand" in market.start().refusal()
    market.accept(3)
    market.routed()


def test_a_topic_that_is_made_anew_while_a_router_runs_ends_it(market: Market) -> None:
    market.trades(20)
    router = market.start()
    market.wait(market.all_committed, "everything is committed")
    market.cluster.make_anew(TRADES)
    market.cluster.group(market.group).rebalance()
    assert router.router is not None
    with pytest.raises(BrokerError, match="made anew while this router ran"):
        market.operate(lambda _: router.router._ownership._require_same_topics({TRADES}))  # type: ignore[union-attr]


def test_without_trades_the_word_is_spent_as_well(market: Market) -> None:
    """The commit that covers the place need not move it."""
    for topic in (TRANSFERS, REPORTS):
        market.cluster.move_offset(market.group, (topic, 0), 0)
        market.accept(0, topic)
    router = market.start()
    market.wait(lambda: list(market.words().values()) == [None, None], "both are spent")
    router.stop()
    for topic in (TRANSFERS, REPORTS):
        assert CommittedAt.parse(market.text((topic, 0))) == CommittedAt(market.cluster.topic_id(topic))
        assert market.committed((topic, 0)) == 0
        assert [one.lost for one in market.ranges(0, topic=topic)] == [REASON]


# --- the memory of trade ids -----------------------------------------------------------------------------------------


def rows(market: Market) -> dict[str, bytes]:
    return {symbol: memory.row() for symbol, memory in market.memory().symbols.items()}


@pytest.mark.parametrize("offset", [0, 7, 20, 41])
def test_what_is_routed_again_gives_the_same_memory(market: Market, records: Any, offset: int) -> None:
    """And nothing of it is a repeat: the shards know by the offsets what they have had."""
    market.trades(20)
    market.publish(TRADES, records.trade(77, symbol="LATE"))
    market.trades(20)
    market.routed()
    before, begun = rows(market), market.ends()
    market.accept(offset)
    market.routed()
    assert rows(market) == before
    assert market.offsets_routed(begun) == set(range(offset, 41))


def test_a_symbol_that_comes_later_is_forgotten(market: Market, records: Any) -> None:
    """Its row is removed with the commit that spends the word, so that its trades are routed anew."""
    market.trades(4)
    market.routed()
    before = rows(market)
    market.publish(TRADES, records.trade(77, symbol="LATE"))
    market.routed()
    market.accept(4)
    market.cluster.topics[TRADES][0].records.pop()  # as if an unclean election had taken it
    router = market.start()
    market.wait(lambda: not any(market.words().values()), "the word is spent")
    router.stop()
    assert rows(market) == before


def test_moved_forward_the_memory_stays(market: Market) -> None:
    market.trades(4)
    market.routed()
    before = rows(market)
    market.trades(6)
    market.accept(10)
    market.routed()
    assert rows(market) == before


# --- what the operator may say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trades", 0, 0, REASON), "'trades' is no topic that a router reads: trades.v1, collateral.transfers.v1"),
        (("margin.events.v1", 0, 0, REASON), "is no topic that a router reads"),
        ((TRADES, 1, 0, REASON), "has no partition 1: it has the partition 0"),
        ((TRADES, -1, 0, REASON), "has no partition -1"),
        ((TRADES, 0, 6, REASON), r"trades.v1\[0\] holds the offsets 2 to 5 \(the next record's\), and 6 is not"),
        ((TRADES, 0, 1, REASON), "and 1 is not among them"),
        ((TRADES, 0, -1, REASON), "and -1 is not among them"),
        ((TRADES, 0, 3, " \n"), "--reason is empty"),
        ((TRADES, 0, 3, "x" * (REASON_CHARACTERS_MAX + 1)), "--reason has 1,025 characters and may have 1,024"),
        ((TRADES, 0, 3, "\udcff"), "no text in UTF-8"),
    ],
)
def test_a_word_that_cannot_be_is_refused(market: Market, arguments: tuple[Any, ...], said: str) -> None:
    market.trades(5)
    market.cluster.topics[TRADES][0].delete_before(2)
    with pytest.raises(OperatorError, match=said):
        market.operate(lambda kafka: accept_offset(kafka, *arguments))
    assert market.words() == {}


def test_a_word_as_it_stands(market: Market) -> None:
    market.trades(5)
    reason = "é" * REASON_CHARACTERS_MAX
    market.operate(lambda kafka: accept_offset(kafka, TRADES, 0, 5, f" {reason} "))
    (value,) = market.words().values()
    said = orjson.loads(value or b"")
    assert said.pop("time") > 1_000_000_000_000_000
    assert said == {"offset": 5, "topic_id": market.cluster.topic_id(TRADES), "reason": reason}


def test_after_an_upgrade_all_that_was_committed_is_accepted_and_the_memory_stays(market: Market, records: Any) -> None:
    market.trades(5)
    market.publish(TRANSFERS, records.transfer("alice"))
    market.routed()
    before = rows(market)
    for topic, offset in ((TRADES, 5), (TRANSFERS, 1)):
        market.cluster.move_offset(market.group, (topic, 0), offset)
    assert "an earlier version committed it" in market.start().refusal()
    done = market.operate(lambda kafka: accept_committed(kafka, "upgrade"))
    assert done.written == [
        "trades.v1[0]: the router goes on at 5, as committed",
        "collateral.transfers.v1[0]: the router goes on at 1, as committed",
    ]
    assert done.needless == ["liquidation.reports.v1[0]: nothing is committed, the router begins at 0"]
    assert not done.refused
    market.cluster.topics[TRADES][0].delete_before(4)  # what the memory is of may be gone
    market.trades(2)
    market.routed()
    assert market.offsets_routed([0] * SHARDS) == {0, 1, 2, 3, 4, 5, 6}
    assert market.memory().last == {"S0": 6, "S1": 7, "S2": 5}
    assert set(before) == set(rows(market))
    again = market.operate(lambda kafka: accept_committed(kafka, "upgrade"))
    assert (again.written, again.refused) == ([], [])


def test_of_all_that_was_committed_only_what_can_be_is_accepted(market: Market) -> None:
    market.trades(5)
    market.move(9)
    market.cluster.move_offset(market.group, (TRANSFERS, 0), 0, CommittedAt("another").text())
    done = market.operate(lambda kafka: accept_committed(kafka, "upgrade"))
    assert done.written == []
    assert [line.partition(",")[0] for line in done.refused] == [
        "trades.v1[0]: 9 is committed",
        "collateral.transfers.v1[0]: 0 is committed of another topic of this name: to begin with the new one accept 0 "
        "for it alone",
    ]
    assert market.words() == {}


def test_a_word_that_stands_is_kept_by_an_upgrade_and_replaced_by_another(market: Market) -> None:
    market.trades(5)
    market.move(4)
    assert "instead" not in market.accept(3).written[0]
    done = market.operate(lambda kafka: accept_committed(kafka, "upgrade"))
    assert done.written == []
    assert done.needless[0] == f"trades.v1[0]: 3 was accepted before ({REASON})"
    assert market.accept(2).written[0].endswith(f", instead of at 3 as accepted before ({REASON})")
    market.routed()
    assert market.offsets_routed([0] * SHARDS) == {2, 3, 4}
    market.cluster.make_anew(TRADES)
    market.trades(3)
    assert "instead" not in market.accept(1).written[0]


@pytest.mark.parametrize(
    "key",
    [None, b"", b"trades.v1:0:S", b"accepted", b"accepted:", b"accepted:trades.v1", b"accepted:trades.v1:x",
     b"accepted:trades.v1:" + b"9" * 5000, b"accepted:\xff:0", b"accepted:nothing:0", b"accepted:trades.v1:-1"],
)  # fmt: skip
@pytest.mark.parametrize("value", [None, b"", b"{}", b"\xff"])
def test_whatever_stands_beside_the_words_is_survived(key: bytes | None, value: bytes | None) -> None:
    words = AcceptedOffsets()
    assert words.take(key, value) == bool(key and key.startswith(b"accepted:"))
    assert (words.words, words.unread) == ({}, {})


def test_the_last_word_about_a_place_counts() -> None:
    words, key = AcceptedOffsets(), accepted_key(REPORTS, 3)
    values = [AcceptedOffset(offset=offset, topic_id="t", reason="r", time=1) for offset in (1, 2)]
    for value in values:
        words.take(key, orjson.dumps(msgspec.to_builtins(value)))
    assert words.words == {(REPORTS, 3): values[1]}
    words.take(key, b"nothing")
    assert (words.words, list(words.unread)) == ({}, [(REPORTS, 3)])
    words.take(key, None)
    assert (words.words, words.unread) == ({}, {})
    assert {accepted_key(topic, 0) for topic in INPUTS} == {f"accepted:{topic}:0".encode() for topic in INPUTS}


# --- the topic of the memory -----------------------------------------------------------------------------------------


def memory_made_anew(market: Market) -> None:
    market.cluster.make_anew(ROUTER)


def memory_deleted(market: Market) -> None:
    log = market.cluster.topics[ROUTER][0]
    log.delete_before(log.end)


@pytest.mark.parametrize(
    ("happen", "said"),
    [(memory_made_anew, "is another topic of this name"), (memory_deleted, "lacks what was below")],
    ids=["made anew", "deleted"],
)
def test_a_router_whose_memory_is_gone_begins_at_a_word_with_one_folded_anew(
    market: Market, happen: Any, said: str
) -> None:
    market.trades(20)
    market.routed()
    before = rows(market)
    happen(market)
    low = market.cluster.topics[ROUTER][0].start
    for _ in range(2):
        refusal = market.start().refusal()
        assert said in refusal
        assert f"margin-clearing accept-offset margin.router.v1 0 {low} " in refusal
    assert market.accept(low, ROUTER).written == [f"{ROUTER}[0]: what was before {low} is gone, and is done without"]
    router = market.start()
    market.wait(lambda: rows(market) == before, "the memory is folded anew")
    router.stop()
    market.trades(1)
    router = market.start()
    market.wait(market.all_committed, "the next router goes on with it, at the same word")
    router.stop()


def test_only_the_first_offset_of_the_memory_can_be_accepted(market: Market) -> None:
    market.trades(1)
    market.routed()
    with pytest.raises(OperatorError, match="is read whole, so only its first offset can be accepted, 0 now"):
        market.accept(1, ROUTER)
