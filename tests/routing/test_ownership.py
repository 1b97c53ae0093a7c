"""Where a partition goes on: at the committed offset and nowhere else, or not at all."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.topics import REPORTS, ROUTER, TRADES
from streams.broker.reader import LogReader
from streams.errors import BrokerError, TopicError
from streams.routing import ownership
from streams.routing.ownership import Ownership, memory_key


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


class Group:
    """A consumer whose group has committed ``offset``, after ``errors`` answers that it cannot say."""

    def __init__(self, offset: int, errors: list[int] | None = None) -> None:
        self.offset, self.errors = offset, errors or []

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        if self.errors:
            raise KafkaException(KafkaError(self.errors.pop(0)))
        return [TopicPartition(place.topic, place.partition, self.offset) for place in partitions]


def begin(
    log: Log, group: Group, topic: str = REPORTS, partition: int = 0, timeout_s: float = 30.0
) -> tuple[Ownership, int]:
    owned = Ownership(cast(LogReader, log), timeout_s)
    (place,) = owned.begin(cast(Consumer, group), [TopicPartition(topic, partition)])
    return owned, place.offset


@pytest.mark.parametrize(
    ("committed", "low", "high", "begins"),
    [(-1001, 0, 10, 0), (-1001, 7, 10, 7), (3, 0, 10, 3), (7, 7, 10, 7), (10, 0, 10, 10), (0, 0, 0, 0)],
)
def test_a_partition_goes_on_at_the_committed_offset(committed: int, low: int, high: int, begins: int) -> None:
    owned, first = begin(Log(low, high), Group(committed))
    found = owned.find(REPORTS, 0)
    assert first == begins
    assert found is not None
    assert found.next_offset == begins


def test_records_that_are_gone_before_they_were_routed_stop_the_router() -> None:
    with pytest.raises(BrokerError, match=r"liquidation.reports.v1\[0\]: the records from 3 to 6 are gone"):
        begin(Log(7, 10), Group(3))


def test_a_topic_that_was_created_anew_stops_the_router() -> None:
    with pytest.raises(BrokerError, match="committed 30 but the log ends at 10"):
        begin(Log(0, 10), Group(30))


def test_a_coordinator_that_is_away_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_BACKOFF_FIRST_S", 0.001)
    _, first = begin(Log(0, 10), Group(3, [KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError._TIMED_OUT]))
    assert first == 3


def test_a_coordinator_that_stays_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_BACKOFF_FIRST_S", 0.001)
    with pytest.raises(BrokerError, match="committed offsets cannot be read"):
        begin(Log(0, 10), Group(3, [KafkaError.COORDINATOR_NOT_AVAILABLE] * 10_000), timeout_s=0.01)


def test_a_group_that_may_not_be_read_is_an_error_at_once() -> None:
    group = Group(3, [KafkaError.GROUP_AUTHORIZATION_FAILED] * 2)
    with pytest.raises(BrokerError, match="committed offsets cannot be read"):
        begin(Log(0, 10), group)
    assert len(group.errors) == 1


def row(last: dict[str, int], partition: int = 0) -> Row:
    return Row(memory_key(partition), str(last).replace("'", '"').encode())


@pytest.mark.parametrize(
    ("rows", "last"),
    [
        ([], {}),
        ([row({"A": 1})], {"A": 1}),
        ([row({"A": 1}), None, row({"A": 2, "B": 1}), None], {"A": 2, "B": 1}),
        ([row({"A": 1}), *[None] * 5000], {"A": 1}),
        ([row({"A": 2}), row({"A": 9}, partition=1)], {"A": 2}),
    ],
    ids=["none yet", "one", "the last one", "before many aborted ones", "of another partition"],
)
def test_the_memory_of_trade_ids_is_the_last_row(rows: list[Row | None], last: dict[str, int]) -> None:
    owned, _ = begin(Log(0, 10, rows), Group(3), TRADES)
    found = owned.find(TRADES, 0)
    assert found is not None
    assert found.trade_ids.last == last


def test_a_long_memory_log_is_read_from_its_end() -> None:
    log = Log(0, 10, [row({"A": n}) for n in range(10_000)])
    owned, _ = begin(log, Group(3), TRADES)
    found = owned.find(TRADES, 0)
    assert found is not None
    assert found.trade_ids.last == {"A": 9999}
    assert log.reads == [(9936, 10_000)]


def test_a_memory_row_that_cannot_be_read_stops_the_router() -> None:
    with pytest.raises(BrokerError, match=r"margin.router.v1\[0\]: the memory of trade ids cannot be read"):
        begin(Log(0, 10, [Row(memory_key(0), b"[]")]), Group(3), TRADES)


def test_a_trades_partition_without_a_place_for_its_memory_stops_the_router() -> None:
    with pytest.raises(TopicError, match=r"trades.v1 has a partition 3 and margin.router.v1 has 3 partitions"):
        begin(Log(0, 10), Group(3), TRADES, partition=3)


def test_a_dropped_partition_is_owned_no_more() -> None:
    owned, _ = begin(Log(0, 10), Group(3))
    owned.drop([TopicPartition(REPORTS, 0), TopicPartition(REPORTS, 1)])
    assert owned.find(REPORTS, 0) is None
    assert len(owned) == 0


def test_no_partitions_are_asked_about_when_none_are_assigned() -> None:
    assert Ownership(cast(LogReader, None), 1).begin(cast(Any, None), []) == []
