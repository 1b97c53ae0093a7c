"""The search of a log's tail reads no further back than it must, and the whole log if it must."""

from collections.abc import Iterator

import pytest

from schemas.topics import JOURNAL
from streams.broker.records import Record
from streams.broker.tail import search_tail
from tests.given_log import GivenLog

TOPIC = JOURNAL


def searched(length: int, wanted: int | None, low: int = 0) -> tuple[int | None, list[int]]:
    """What is found of record ``wanted`` in a log, and the first offset of every tail that was looked at."""
    log = GivenLog()
    for number in range(length):
        log.append(TOPIC, str(number).encode())
    log.cut(TOPIC, low)
    firsts: list[int] = []

    def find(records: Iterator[Record], is_all: bool) -> int | None:
        offsets = [record.offset() for record in records]
        firsts.append(offsets[0] if offsets else low)
        assert is_all == (firsts[-1] == low)
        assert offsets == list(range(firsts[-1], length)), "a tail reaches the end"
        return wanted if wanted in offsets else None

    return search_tail(log, TOPIC, 0, find), firsts


@pytest.mark.parametrize("wanted", [9_999, 9_936])
def test_a_record_near_the_end_is_found_in_the_first_tail(wanted: int) -> None:
    assert searched(10_000, wanted) == (wanted, [9_936])


def test_a_record_further_back_is_found_in_a_longer_tail() -> None:
    assert searched(10_000, 9_935) == (9_935, [9_936, 9_488])


def test_a_record_that_is_not_there_is_looked_for_in_the_whole_log() -> None:
    assert searched(10_000, None, low=3_000) == (None, [9_936, 9_488, 5_904, 3_000])


def test_an_empty_log_is_looked_at_once() -> None:
    assert searched(0, None) == (None, [0])
