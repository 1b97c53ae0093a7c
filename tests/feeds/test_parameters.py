"""The parameters are a function of the records below an offset, however they are read."""

import time
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from schemas.codec import DecodeError, encode
from schemas.parameters import AssetParameters, InstrumentParameters, MarginTier, PolicyParameters
from schemas.topics import PARAMETERS
from streams.broker.reader import Follower
from streams.broker.records import Record
from streams.errors import ParameterError
from streams.feeds.parameters import REFUSED_MAX, ParameterFeed, ParameterFold, ParameterHistory, parameter_steps
from streams.margin.parameters import ParametersInTheMaking, RiskParameters
from tests.given_log import GivenLog

INSTRUMENT = InstrumentParameters(
    symbol="X",
    settle_asset="USD",
    price_increment="1",
    quantity_increment="1",
    margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.1", initial_rate="0.2"),),
)


@pytest.fixture
def log() -> GivenLog:
    """An asset, an instrument, a record that breaks a rule, a marker, one that is no JSON, and a second asset."""
    new_log = GivenLog()
    new_log.append(PARAMETERS, encode(AssetParameters(asset="USD")), key="asset:USD")
    new_log.append(PARAMETERS, encode(INSTRUMENT), key="instrument:X")
    new_log.append(PARAMETERS, encode(PolicyParameters(margin_call_levels=("0.5",))), key="policy:default")
    new_log.mark(PARAMETERS)
    new_log.append(PARAMETERS, b"nonsense", key="instrument:X")
    new_log.append(PARAMETERS, encode(AssetParameters(asset="EUR")), key="asset:EUR")
    return new_log


@dataclass
class Following:
    """A follower of what a log holds, that counts how often it was started."""

    log: GivenLog
    position: int = 0
    starts: list[int] = field(default_factory=list)

    def start(self, offset: int) -> None:
        self.position = offset
        self.starts.append(offset)

    def poll(self, timeout_s: float, records_max: int = 1000) -> list[Record]:
        records: list[Record] = list(self.log.read_range(PARAMETERS, 0, self.position))
        self.position = self.log.watermarks(PARAMETERS, 0)[1]
        return records


def followed(log: GivenLog) -> tuple[ParameterFeed, Following]:
    follower = Following(log)
    return ParameterFeed(cast(Follower, follower)), follower


def test_a_refused_record_leaves_those_before_it_in_force(log: GivenLog) -> None:
    steps = list(parameter_steps(log))
    assert [step.offset for step in steps] == [0, 1, 2, 4, 5]
    assert [type(step.refused) for step in steps] == [type(None), type(None), ParameterError, DecodeError, type(None)]
    assert steps[2].parameters.records == steps[3].parameters.records == steps[1].parameters.records
    assert steps[3].in_force == INSTRUMENT, "its key keeps what stood there before"
    assert steps[2].in_force is None
    assert steps[-1].parameters.records.keys() == {"asset:USD", "instrument:X", "asset:EUR"}


def test_an_end_leaves_out_what_stands_behind_it(log: GivenLog) -> None:
    assert [step.offset for step in parameter_steps(log, 2)] == [0, 1]


@pytest.mark.parametrize("asked", [range(7), range(6, -1, -1), [6, 0, 3, 3, 1, 5, 2, 4]])
def test_the_parameters_at_an_offset_depend_on_no_question_before(log: GivenLog, asked: Any) -> None:
    history = ParameterHistory(log)
    for end in asked:
        fold = ParameterFold()
        for record in log.read_range(PARAMETERS, 0, 0, end):
            fold.add(record)
        assert history.at(end).records == fold.parameters.records


def test_a_history_knows_where_records_stand_and_what_is_absent(log: GivenLog) -> None:
    history = ParameterHistory(log)
    assert history.absent == 1
    assert history.offsets(1, 5) == [1, 2, 4]
    assert history.last_of("instrument:X", 6) == 4
    assert history.last_of("instrument:X", 4) == 1
    assert history.last_of("instrument:Y", 6) is None


def test_catching_up_reads_to_the_end_and_follows_from_there(log: GivenLog) -> None:
    feed, follower = followed(log)
    log.mark(PARAMETERS)
    came: list[int] = []

    def add_all(records: list[Record]) -> None:
        came.extend(feed.add(record).offset for record in records)

    feed.catch_up(log, add_all)
    assert came == [0, 1, 2, 4, 5]
    assert feed.next_offset == 7, "behind the marker"
    assert follower.starts == [7]
    feed.catch_up(log, add_all)
    assert follower.starts == [7], "nothing was missing"


def test_what_was_polled_and_not_added_is_polled_again_after_a_restart(log: GivenLog) -> None:
    feed, follower = followed(log)
    first, *_ = feed.poll()
    feed.add(first)
    assert feed.poll() == []
    feed.restart()
    assert follower.starts == [1]
    assert [record.offset() for record in feed.poll()] == [1, 2, 4, 5]


def test_a_feed_remembers_a_bounded_number_of_refused_records(log: GivenLog) -> None:
    feed, _ = followed(log)
    for record in feed.poll():
        feed.add(record)
    assert [record.offset() for record, _ in feed.refused(0, 6)] == [2, 4]
    assert feed.refused(3, 4) == []
    for _ in range(2 * REFUSED_MAX):
        feed.add(log.append(PARAMETERS, b"nonsense", key="asset:USD", partition=0))
    assert len(feed.refused(0, feed.next_offset)) == REFUSED_MAX


def test_parameters_that_are_asked_for_late_are_those_of_their_record(log: GivenLog) -> None:
    """Of many records in a row hardly any but the last are asked for: the others are formed again then."""
    late = list(parameter_steps(log))
    fold = ParameterFold()
    for step in late:
        fold.add(step.record)
        asked_at_once = fold.parameters
        assert step.parameters.records == asked_at_once.records
        assert step.parameters.instruments.keys() == asked_at_once.instruments.keys()
        assert step.parameters.assets.keys() == asked_at_once.assets.keys()


def test_many_records_are_put_in_force_without_a_copy_of_all_for_each() -> None:
    """Publishing thousands of records again must not stop an engine: what one costs does not grow with their number."""

    def cpu_s(count: int) -> float:
        tiers = (MarginTier(notional_floor="0", maintenance_rate="0.005", initial_rate="0.01"),)
        records = [
            InstrumentParameters(
                symbol=f"S{number}",
                settle_asset="USD",
                price_increment="0.01",
                quantity_increment="0.001",
                margin_tiers=tiers,
            )
            for number in range(count)
        ]
        making = ParametersInTheMaking(RiskParameters.empty())
        began = time.process_time()
        for record in records:
            making.put(record)
        assert len(making.parameters.instruments) == count
        return time.process_time() - began

    cpu_s(100)
    few, many = min(cpu_s(500) for _ in range(3)), cpu_s(8_000)
    assert many / few < 5 * 8_000 / 500
