"""Where a partition goes on: at the committed offset and nowhere else, or not at all."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.codec import MESSAGE_BYTES_MAX, encode
from schemas.messages import Trade, TradeSide
from schemas.topics import INPUTS, REPORTS, ROUTER, TRADES
from streams.broker.reader import LogReader
from streams.errors import BrokerError, NoAnswer, TopicError
from streams.routing.committed_at import CommittedAt
from streams.routing.ownership import Ownership
from streams.routing.trade_ids import MIGRATED_SLACK_US, REPEATED, RefusedTrade, TradeIds, memory_key
from streams.runtime import SYSTEM

IDS = dict.fromkeys(INPUTS, "an-id")
OURS = CommittedAt("an-id", 3).text()
T0 = 1_700_000_000_000_000


class Row:
    """A record of ``margin.router.v1``."""

    def __init__(self, key: bytes, value: bytes | None) -> None:
        self._key, self._value = key, value

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes | None:
        return self._value


class Log:
    """A reader of logs that are given: topic -> rows from offset ``low`` on (None: an offset without a record)."""

    def __init__(self, low: int, high: int, rows: list[Row | None] | None = None, partitions: int = 3) -> None:
        self.low, self.high, self.rows, self.count = low, high, rows or [], partitions
        self.reads: list[tuple[int, int]] = []

    def partitions(self, topic: str) -> int:
        return self.count

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        return (0, len(self.rows)) if topic == ROUTER else (self.low, self.high)

    def read_range(self, topic: str, partition: int, first: int, end: int) -> Iterator[Row]:
        self.reads.append((first, end))
        return (row for row in self.rows[first:end] if row is not None)


class CommittedConsumer:
    """A consumer whose group has committed ``offset``, after ``errors`` answers that it cannot say."""

    def __init__(self, offset: int, errors: list[int] | None = None, text: str = OURS) -> None:
        self.offset, self.errors, self.text = offset, errors or [], text

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        if self.errors:
            raise KafkaException(KafkaError(self.errors.pop(0)))
        return [TopicPartition(place.topic, place.partition, self.offset, self.text) for place in partitions]


def begin(
    log: Log, group: CommittedConsumer, topic: str = REPORTS, partition: int = 0, timeout_s: float = 30.0
) -> tuple[Ownership, int]:
    owned = Ownership(cast(LogReader, log), timeout_s, SYSTEM, IDS, lambda: IDS, "kafka-1:9092")
    (place,) = owned.begin(cast(Consumer, group), [TopicPartition(topic, partition)])
    return owned, place.offset


@pytest.mark.parametrize(
    ("committed", "low", "high", "begins"),
    [(-1001, 0, 10, 0), (-1001, 7, 10, 7), (3, 0, 10, 3), (7, 7, 10, 7), (10, 0, 10, 10), (0, 0, 0, 0)],
)
def test_a_partition_goes_on_at_the_committed_offset(committed: int, low: int, high: int, begins: int) -> None:
    owned, first = begin(Log(low, high), CommittedConsumer(committed))
    partition = owned.find(REPORTS, 0)
    assert first == begins
    assert partition is not None
    assert partition.next_offset == begins


def test_records_that_are_gone_before_they_were_routed_stop_the_router() -> None:
    with pytest.raises(BrokerError, match=r"liquidation.reports.v1\[0\]: the records from 3 to 6 are gone"):
        begin(Log(7, 10), CommittedConsumer(3))


def test_a_topic_that_was_created_anew_stops_the_router() -> None:
    with pytest.raises(BrokerError, match="committed 30 but the log ends at 10"):
        begin(Log(0, 10), CommittedConsumer(30))


def test_a_coordinator_that_is_away_for_a_moment_is_asked_again() -> None:
    _, first = begin(Log(0, 10), CommittedConsumer(3, [KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError._TIMED_OUT]))
    assert first == 3


def test_a_coordinator_that_stays_away_is_an_error() -> None:
    with pytest.raises(BrokerError, match="committed offsets cannot be read"):
        begin(Log(0, 10), CommittedConsumer(3, [KafkaError.COORDINATOR_NOT_AVAILABLE] * 10_000), timeout_s=0.01)


def test_a_log_that_gives_no_answer_may_be_asked_again() -> None:
    """Beside one that is refused, too: the router begins all of them again."""

    class Silent(Log):
        def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
            if partition == 1:
                raise NoAnswer("no answer in time")
            return super().watermarks(topic, partition)

    owned = Ownership(cast(LogReader, Silent(7, 10)), 30.0, SYSTEM, IDS, lambda: IDS, "kafka-1:9092")
    places = [TopicPartition(REPORTS, number) for number in range(2)]
    with pytest.raises(NoAnswer, match="no answer in time"):
        owned.begin(cast(Consumer, CommittedConsumer(3)), places)
    assert owned.all() == []


def test_a_group_that_may_not_be_read_is_an_error_at_once() -> None:
    group = CommittedConsumer(3, [KafkaError.GROUP_AUTHORIZATION_FAILED] * 2)
    with pytest.raises(BrokerError, match="committed offsets cannot be read"):
        begin(Log(0, 10), group)
    assert len(group.errors) == 1


def trade(trade_id: int, symbol: str = "A", **changes: Any) -> Trade:
    side = TradeSide(account="alice", order_id="o", fee="0")
    return Trade(
        **{
            "trade_id": trade_id,
            "symbol": symbol,
            "price": "1",
            "quantity": "1",
            "aggressor_side": "buy",
            "maker": side,
            "taker": side,
            "event_time": T0 + trade_id,
            **changes,
        }
    )


def row(symbol: str, trade_id: int, partition: int = 0) -> Row:
    """The row of a symbol whose only trade is the given one."""
    memory = TradeIds()
    memory.accept(trade(trade_id, symbol))
    return Row(memory_key(partition, symbol), memory.symbols[symbol].row())


def old_row(last: dict[str, int], partition: int = 0) -> Row:
    return Row(memory_key(partition), encode(last))


def recalled(rows: list[Row | None]) -> TradeIds:
    owned, _ = begin(Log(0, 10, rows), CommittedConsumer(3), TRADES)
    partition = owned.find(TRADES, 0)
    assert partition is not None
    return partition.trade_ids


@pytest.mark.parametrize(
    ("rows", "last"),
    [
        ([], {}),
        ([row("A", 1)], {"A": 1}),
        ([row("A", 1), None, row("A", 2), row("B", 1), None], {"A": 2, "B": 1}),
        ([row("A", 1), *[None] * 5000], {"A": 1}),
        ([row("A", 2), row("A", 9, partition=1)], {"A": 2}),
        ([row("A", 1), Row(memory_key(0, "A"), None)], {}),
        ([old_row({"A": 1, "B": 7})], {"A": 1, "B": 7}),
        ([old_row({"A": 1, "B": 7}), row("B", 8)], {"A": 1, "B": 8}),
        ([old_row({"A": 1}), row("A", 2), old_row({"A": 1, "C": 3})], {"A": 2, "C": 3}),
    ],
    ids=[
        "none yet",
        "one",
        "the last one of each",
        "before many aborted ones",
        "of another partition",
        "one that was removed",
        "the form before",
        "the form before and what came since",
        "the form before again",
    ],
)
def test_the_memory_of_trade_ids_is_the_last_row_of_each_symbol(rows: list[Row | None], last: dict[str, int]) -> None:
    assert recalled(rows).last == last


def test_a_memory_of_the_form_before_is_written_anew_symbol_by_symbol() -> None:
    memory = recalled([old_row({"A": 4, "B": 7}), row("B", 8)])
    assert memory.changed == {"A", "B"}
    assert memory.migrated
    again = TradeIds()
    for symbol in memory.changed:
        again.recall(symbol, memory.symbols[symbol].row())
    assert again.last == {"A": 4, "B": 8}


def test_a_repeat_is_known_by_its_id_alone_where_the_form_before_knows_no_more() -> None:
    memory = recalled([old_row({"A": 10})])
    assert memory.accept(trade(9)) == REPEATED
    assert memory.accept(trade(12)) == 1
    assert memory.accept(trade(9)) == REPEATED
    with pytest.raises(RefusedTrade, match="the ids have begun anew"):
        memory.accept(trade(1, event_time=T0 + 12 + MIGRATED_SLACK_US + 1))


def test_a_memory_row_that_cannot_be_read_refuses_its_symbol_only(caplog: pytest.LogCaptureFixture) -> None:
    memory = recalled([row("A", 1), Row(memory_key(0, "B"), b"[]"), row("B", 3, partition=1)])
    assert memory.accept(trade(2)) == 0
    assert memory.accept(trade(1, "C")) == 0
    with pytest.raises(RefusedTrade, match="the memory of the trade ids of B cannot be read"):
        memory.accept(trade(9, "B"))
    assert "B" not in memory.last
    (said,) = [record.__dict__["fields"] for record in caplog.records if record.message == "trade_ids_unreadable"]
    assert said["key"] == "trades.v1:0:B"
    assert "write a null value under the key 'trades.v1:0:B'" in said["reason"]


def test_an_old_memory_row_that_cannot_be_read_refuses_the_symbols_without_a_row_of_their_own() -> None:
    memory = recalled([Row(memory_key(0), b"[]"), row("A", 1)])
    assert memory.accept(trade(2)) == 0
    with pytest.raises(RefusedTrade, match="the memory of the trade ids of all symbols cannot be read"):
        memory.accept(trade(9, "B"))
    assert not memory.migrated
    assert recalled([Row(memory_key(0), b"[]"), Row(memory_key(0), None)]).accept(trade(9, "B")) == 0


@pytest.mark.parametrize(
    "data", [b"{", b"{}", b'{"last":-1}', b'{"last":1,"window":"AA=="}', b'{"last":1,"window":"?"}']
)
def test_what_is_no_row_of_a_symbol_is_not_read_as_one(data: bytes) -> None:
    memory = TradeIds()
    memory.recall("A", data)
    assert memory.unread.keys() == {"A"}


SYMBOLS = 45_000


def test_a_partition_of_many_symbols_is_taken_again() -> None:
    """Options and prediction markets list thousands a month, all into the partitions of one topic."""
    names = [f"BTC-{number % 28 + 1}DEC26-{number}-C" for number in range(SYMBOLS)]
    memory = TradeIds()
    for trade_id in range(1, 4):
        for name in names:
            memory.accept(trade(trade_id, name))
    rows: list[Row | None] = [Row(memory_key(0, name), memory.symbols[name].row()) for name in names]
    assert max(len(record.value() or b"") for record in rows if record is not None) < 1_000
    again = recalled(rows)
    assert again.last == dict.fromkeys(names, 3)
    assert again.accept(trade(3, names[7])) == REPEATED
    assert again.accept(trade(4, names[7])) == 0
    assert again.changed == {names[7]}


def test_an_old_row_of_more_symbols_than_a_message_may_hold_is_read() -> None:
    last = {f"BTC-{number % 28 + 1}DEC26-{number}-C": 1_000_000 + number for number in range(SYMBOLS)}
    assert len(encode(last)) > MESSAGE_BYTES_MAX
    assert recalled([old_row(last)]).last == last


def test_a_trades_partition_without_a_place_for_its_memory_stops_the_router() -> None:
    with pytest.raises(TopicError, match=r"trades.v1 has a partition 3 and margin.router.v1 has 3 partitions"):
        begin(Log(0, 10), CommittedConsumer(3), TRADES, partition=3)


def test_a_dropped_partition_is_owned_no_more() -> None:
    owned, _ = begin(Log(0, 10), CommittedConsumer(3))
    owned.drop([TopicPartition(REPORTS, 0), TopicPartition(REPORTS, 1)])
    assert owned.find(REPORTS, 0) is None
    assert len(owned) == 0


def test_no_partitions_are_asked_about_when_none_are_assigned() -> None:
    owned = Ownership(cast(LogReader, None), 1, SYSTEM, IDS, lambda: IDS, "")
    assert owned.begin(cast(Any, None), []) == []
