"""A publisher on a whole in-memory Kafka: what it knows when it begins, and what it follows from there."""

from collections.abc import Callable

import pytest

from schemas.codec import Decoder, encode
from schemas.messages import JournalRecord, Mark, MarkFrame, OraclePrice, Range
from schemas.parameters import InstrumentParameters, MarginTier, OracleParameters, PolicyParameters, Scale
from schemas.topics import JOURNAL, MARKS, PARAMETERS
from streams.memory.kafka import MemoryKafka
from streams.oracle.clock import BrokerOffset
from streams.oracle.leadership import Leadership
from streams.oracle.publisher import PriceRecord, Publisher
from streams.oracle.wiring import open_publisher, read_last_frame
from tests.oracle.conftest import SHARDS, Machines

decode_frame = Decoder[MarkFrame](MarkFrame)

RECORDS = {
    "policy:default": PolicyParameters(scale_interval_ms=1000),
    "instrument:X": InstrumentParameters(
        symbol="X",
        settle_asset="USD",
        price_increment="0.01",
        quantity_increment="1",
        margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.1", initial_rate="0.2"),),
        open_interest_scale=Scale(reference="1000", change_per_minute="60"),
    ),
    "oracle:X": OracleParameters(symbol="X", sources={"a": "1"}),
}


def publish(machines: Machines, body: Callable[[MemoryKafka, Publisher], None]) -> None:
    """Run ``body`` in an oracle process that leads and has begun from the last frame."""

    def run(kafka: MemoryKafka) -> None:
        leadership = Leadership(kafka)
        with open_publisher(kafka, leadership, BrokerOffset()) as publisher:
            while not leadership.poll():
                kafka.runtime.sleep(0.1)
            publisher.claim()
            publisher.restore([], read_last_frame(kafka))
            body(kafka, publisher)
        leadership.close()

    machines.start("oracle", run)
    machines.run(60)
    for error in machines.broken.values():
        raise error


def write_parameters(machines: Machines) -> None:
    for key, record in RECORDS.items():
        machines.cluster.append(PARAMETERS, key.encode(), encode(record))


def price(kafka: MemoryKafka, publisher: Publisher, number: int) -> MarkFrame | None:
    now_us = kafka.runtime.time_ns() // 1000
    value = OraclePrice(source="a", symbol="X", price="100", sequence=number, publish_time=now_us)
    frames = publisher.on_prices([PriceRecord(0, number, now_us // 1000, b"X", encode(value))]).frames
    return decode_frame(frames[0]) if frames else None


def test_parameters_of_before_are_in_force_from_the_first_price(machines: Machines) -> None:
    write_parameters(machines)
    frames: list[MarkFrame | None] = []
    publish(machines, lambda kafka, publisher: frames.append(price(kafka, publisher, 1)))
    (frame,) = frames
    assert frame is not None
    assert [(mark.symbol, mark.status) for mark in frame.marks] == [("X", "live")]
    assert frame.epoch == 0, "the claim is the first record of the marks"


def test_parameters_that_come_later_are_followed(machines: Machines) -> None:
    frames: list[MarkFrame | None] = []

    def body(kafka: MemoryKafka, publisher: Publisher) -> None:
        frames.append(price(kafka, publisher, 1))
        write_parameters(machines)
        publisher.beat()
        frames.append(price(kafka, publisher, 2))

    publish(machines, body)
    assert [frame is not None for frame in frames] == [False, True]


def test_it_begins_from_the_last_full_frame_that_is_in_force(machines: Machines) -> None:
    write_parameters(machines)
    for epoch, text in ((0, "98"), (1, "99"), (0, "97")):  # the last one is of a process that was replaced
        mark = Mark(symbol="X", price=text, status="live", publish_time=1)
        machines.cluster.append(MARKS, None, encode(MarkFrame(time=1, marks=(mark,), full=True, epoch=epoch)))
    frames: list[MarkFrame] = []
    publish(machines, lambda _, publisher: frames.append(decode_frame(publisher.beat().frames[0])))
    assert [(mark.price, mark.status) for mark in frames[0].marks] == [("99", "stale")]


@pytest.mark.parametrize("told", [1, SHARDS])
def test_the_open_interest_in_the_journals_makes_scales_once_all_shards_have_told_it(
    machines: Machines, told: int
) -> None:
    write_parameters(machines)
    scales: list[dict[str, str]] = []
    places = Range(first=0, next=0)

    def body(kafka: MemoryKafka, publisher: Publisher) -> None:
        price(kafka, publisher, 1)
        for shard in range(told):
            record = JournalRecord(
                kind="commit",
                shard=shard,
                claim=0,
                sequence=1,
                previous=0,
                events=places,
                marks=places,
                parameters=places,
                open_interest={"X": "10"},
            )
            machines.cluster.append(JOURNAL, None, encode(record), shard)
        for number in (2, 3, 4):
            kafka.runtime.sleep(4)
            price(kafka, publisher, number)
            scales.append(decode_frame(publisher.beat().frames[0]).scales)

    publish(machines, body)
    assert scales[-1] == ({"instrument:X": "2"} if told == SHARDS else {})
