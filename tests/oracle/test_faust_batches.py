"""What Faust makes of batches: it commits what was acknowledged, all of it and nothing more, whatever is in the log."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from faust.transport.consumer import Consumer
from faust.types.tuples import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.topics import ORACLE, PRICES
from streams.oracle.faust_app import faust_app
from streams.oracle.faust_batches import BATCH_RECORDS_MAX, BatchConsumer, BatchMessage, FetchedBatch, batches
from streams.settings import load
from tests.properties import examples

PARTITION = TP(PRICES, 0)


@dataclass(frozen=True)
class Fetched:
    """A record as aiokafka has it."""

    offset: int
    topic: str = PRICES
    partition: int = 0
    timestamp: int = 1_700_000_000_123
    timestamp_type: int = 0
    key: bytes | None = b"X"
    value: bytes | None = b"{}"


class Beheaded(BatchConsumer):
    """The consumer without a thread, a client or an app: what it does about offsets, as Faust has it."""

    batched = frozenset({PRICES})

    def __init__(self, committed: int | None) -> None:
        topics = SimpleNamespace(acks_enabled_for=lambda topic: topic == PRICES)
        vars(self).update(
            app=SimpleNamespace(consumer_generation_id=3, topics=topics),
            _acked=defaultdict(list),
            _acked_index=defaultdict(set),
            _gap=defaultdict(list),
            _committed_offset=defaultdict(lambda: committed),
            _read_offset=defaultdict(lambda: committed),
            _unacked_messages=set(),
            _waiting_for_ack=None,
            _n_acked=0,
        )

    def deliver(self, records: Sequence[Fetched]) -> BatchMessage | None:
        """What the agent gets of a batch, as Faust's loop over messages does it; None if it drops it."""
        message = self._to_message(PARTITION, FetchedBatch(records))
        assert isinstance(message, BatchMessage)
        self._read_on(PARTITION, message)
        read = self._read_offset[PARTITION]
        if read is not None and message.offset < read:
            return None
        assert message.offset == read, "Faust sees no gap"
        return message

    def committed(self) -> int | None:
        """The offset that Faust would commit now, if it would."""
        offset: int | None = self._new_offset(PARTITION)
        if offset is not None and self._should_commit(PARTITION, offset):
            self._committed_offset[PARTITION] = offset
        return self._committed_offset[PARTITION]


def at(*offsets: int) -> list[Fetched]:
    return [Fetched(offset) for offset in offsets]


@settings(max_examples=examples(200), deadline=None)
@given(st.data())
def test_what_is_acknowledged_is_committed_and_nothing_else(data: st.DataObject) -> None:
    """Offsets with holes, as compaction and transactions leave them, in batches of any size, acknowledged in order."""
    committed = data.draw(st.none() | st.integers(0, 3))
    offsets = sorted(data.draw(st.sets(st.integers(committed or 0, 40), min_size=1)))
    consumer, delivered = Beheaded(committed), []
    while offsets:
        size = data.draw(st.integers(1, 8))
        message = consumer.deliver(at(*offsets[:size]))
        assert message is not None
        delivered.append(message)
        offsets = offsets[size:]
    last = committed
    for message in delivered:
        assert consumer.ack(message)
        last = message.offset + 1
        if data.draw(st.booleans()):
            assert consumer.committed() == last, "all of it, and no batch after it"
    assert consumer.committed() == last
    assert not consumer.ack(delivered[-1]), "once"


def test_a_batch_that_is_not_acknowledged_keeps_its_place() -> None:
    consumer = Beheaded(5)
    first, second = consumer.deliver(at(5, 6, 7)), consumer.deliver(at(8, 9))
    assert first is not None
    assert second is not None
    consumer.ack(second)
    assert consumer.committed() == 5
    consumer.ack(first)
    assert consumer.committed() == 10


def test_what_was_read_before_is_not_handed_out_again() -> None:
    consumer = Beheaded(5)
    consumer.deliver(at(5, 6, 7))
    again = consumer.deliver(at(6, 7, 8, 9))
    assert again is not None
    assert [record.offset for record in again.records] == [7, 8, 9], "Faust hands out the last one twice, too"
    assert consumer.deliver(at(3, 4)) is None


def test_a_message_of_many_stands_where_its_last_record_does() -> None:
    message = Beheaded(None).deliver(at(11, 12))
    assert message is not None
    assert (message.topic, message.partition, message.offset) == (PRICES, 0, 12)
    assert (message.timestamp, message.generation_id, message.tp) == (1_700_000_000.123, 3, PARTITION)


def test_records_are_batched_as_they_came_and_never_more_than_the_limit() -> None:
    records = at(*range(2 * BATCH_RECORDS_MAX + 1))
    parts = batches(records)
    assert [len(part) for part in parts] == [BATCH_RECORDS_MAX, BATCH_RECORDS_MAX, 1]
    assert [record for part in parts for record in part] == records
    assert batches([]) == []


def test_only_prices_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: dict[TP, list[Any]] = {PARTITION: at(1, 2), TP(ORACLE, 0): at(3, 4), TP(PRICES, 1): []}

    async def getmany(*_: object) -> dict[TP, list[Any]]:
        return fetched

    monkeypatch.setattr("faust.transport.drivers.aiokafka.Consumer._getmany", getmany)
    handed = asyncio.run(Beheaded(None)._getmany(None, 1.0))
    assert handed == {PARTITION: [FetchedBatch(at(1, 2))], TP(ORACLE, 0): at(3, 4), TP(PRICES, 1): []}


def test_the_app_takes_prices_in_batches() -> None:
    transport = faust_app(load({"MARGIN_KAFKA__BOOTSTRAP_SERVERS": "a:1"})).transport
    consumer: Any = transport.Consumer
    assert issubclass(consumer, BatchConsumer)
    assert issubclass(consumer, Consumer)
    assert consumer.batched == {PRICES}
