"""What lies in a dead-letter topic is counted once, whatever it is, and it is said what was looked at."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas import headers
from schemas.topics import CONTRACT, EVENTS, PRICES, TRADES, TRANSFERS, dead_letter_topic
from streams.broker.letter_counts import (
    CLASSES_MAX,
    LETTER_TOPICS,
    NO_ERROR,
    OTHER,
    LetterCounts,
    count_letters,
    letter_lines,
    shortened,
)
from streams.broker.records import Record
from streams.errors import BrokerError
from tests.given_log import GivenLog
from tests.properties import examples

NO_PRICE = "Object missing required field `price`"


def refused(
    offset: int,
    *accounts: str,
    topic: str = TRADES,
    error: str = "DecodeError",
    reason: str = NO_PRICE,
    all_told: bool = True,
) -> headers.Headers:
    """The headers of the letter of a record at ``offset``, which names ``accounts``."""
    return headers.dead_letter(topic, 0, offset, 5, error, reason) + headers.told(accounts, all_told=all_told)


class Letters(GivenLog):
    """Logs with dead letters of one topic."""

    def __init__(self, topic: str = TRADES) -> None:
        super().__init__()
        self.topic = topic

    def letter(self, about: headers.Headers | None, value: bytes | None = b"v", key: bytes | None = b"k") -> "Letters":
        self.append_raw(dead_letter_topic(self.topic), key, value, about)
        return self

    def counted(self, letters_max: int | None = None, remembered_max: int = 1_000) -> LetterCounts:
        return count_letters(self, self.topic, letters_max, remembered_max=remembered_max)


def test_every_dead_letter_topic_of_the_contract_is_counted() -> None:
    assert {dead_letter_topic(topic) for topic in LETTER_TOPICS} == {
        topic.dlq for topic in CONTRACT if topic.dead_letters
    }


def test_letters_of_the_same_error_and_reason_are_one_class() -> None:
    log = Letters()
    log.letter(refused(3, "alice", "bob")).letter(refused(7, "bob", "carol"))
    log.letter(refused(9, "dave", error="InputError", reason="trade 17 of BTC-PERP was routed with other content"))
    log.letter(refused(11, "dave", error="InputError", reason="trade 18 of BTC-PERP was routed with other content"))
    log.letter(refused(12, "dave", error="InputError", reason="trade 19 of BTC-PERP was routed with other content"))
    counts = log.counted()
    assert (counts.count, counts.repeats, counts.unplaced, counts.is_complete) == (5, 0, 0, True)
    routed, missing = counts.classes
    assert (routed.error, routed.reason) == ("InputError", "trade # of BTC-PERP was routed with other content")
    assert (routed.count, routed.first, routed.last, routed.accounts, routed.untold) == (3, 2, 4, 1, 0)
    assert (missing.error, missing.reason) == ("DecodeError", NO_PRICE)
    assert (missing.count, missing.first, missing.last, missing.accounts) == (2, 0, 1, 3)
    assert letter_lines([counts]) == [
        "trades.v1.dlq: 5 dead letters, all that are there",
        "  InputError: trade # of BTC-PERP was routed with other content (3), offsets 2 to 4, 1 accounts told",
        f"  DecodeError: {NO_PRICE} (2), offsets 0 to 1, 3 accounts told",
    ]


def test_the_rest_is_summed_up() -> None:
    log = Letters()
    for number in range(CLASSES_MAX + 5):
        for _ in range(2 if number < CLASSES_MAX - 1 else 1):
            log.letter(refused(number, chr(97 + number), error=f"Error{chr(97 + number)}", all_told=False), bytes([_]))
    counts = log.counted()
    assert len(counts.classes) == CLASSES_MAX
    other = counts.classes[-1]
    assert (other.error, other.count, other.accounts, other.untold) == (OTHER, 6, 6, 6)
    assert (other.first, other.last) == (18, 23)
    assert sum(one.count for one in counts.classes) == counts.count == 24


@pytest.mark.parametrize("classes", [CLASSES_MAX, 2_000])
def test_no_class_is_lost_however_many_there_are(classes: int) -> None:
    log = Letters()
    for number in range(classes):
        log.letter(refused(number, reason="".join(chr(97 + int(digit)) for digit in str(number))))
    counts = log.counted()
    assert len(counts.classes) == CLASSES_MAX
    assert sum(one.count for one in counts.classes) == classes
    assert (counts.classes[-1].error == OTHER) == (classes > CLASSES_MAX)


def test_a_letter_that_was_written_again_counts_once() -> None:
    log = Letters()
    log.letter(refused(3, "alice")).letter(refused(4, "bob")).letter(refused(3, "alice")).letter(refused(3, "alice"))
    counts = log.counted()
    assert (counts.count, counts.repeats) == (2, 2)
    (one,) = counts.classes
    assert (one.count, one.first, one.last, one.accounts) == (2, 0, 1, 2)
    assert letter_lines([counts])[0] == "trades.v1.dlq: 2 dead letters, all that are there; 2 repeats left out"


def test_the_rows_of_one_frame_are_letters_of_their_own() -> None:
    log = Letters(EVENTS)
    for account in ("alice", "bob", "alice"):
        log.letter(refused(3, account, topic=EVENTS, error="InputError"), account.encode(), account.encode())
    counts = log.counted()
    assert (counts.count, counts.repeats, counts.classes[0].accounts) == (2, 1, 2)


def test_a_record_of_a_topic_that_was_created_anew_is_another() -> None:
    log = Letters().letter(refused(3), b"of the old topic").letter(refused(3), b"of the new topic")
    assert (log.counted().count, log.counted().repeats) == (2, 0)


def test_what_came_again_after_more_than_is_remembered_is_counted_again_and_this_is_said() -> None:
    log = Letters()
    for offset in (1, 2, 3, 1):
        log.letter(refused(offset))
    counts = log.counted(remembered_max=2)
    assert (counts.count, counts.repeats, counts.forgetful) == (4, 0, True)
    assert "what came again long after was counted again" in letter_lines([counts])[0]
    counts = log.counted(remembered_max=3)
    assert (counts.count, counts.repeats, counts.forgetful) == (3, 1, False)


def test_somebody_untold_is_counted_once_and_no_repeat_hides_them() -> None:
    log = Letters()
    log.letter(refused(1, "alice"))
    log.letter(refused(2, all_told=False)).letter(refused(2, all_told=False))
    log.letter(refused(1, "alice", all_told=False)).letter(refused(1, all_told=False))
    given: list[Record] = []
    counts = count_letters(log, TRADES, on_untold=given.append)
    assert [letter.offset() for letter in given] == [1, 3]
    assert counts.untold is not None
    assert (counts.untold.count, counts.untold.looked_at, counts.untold.first, counts.untold.last) == (2, 2, 1, 3)
    assert counts.repeats == 3
    assert letter_lines([counts])[1].endswith("2 with somebody untold")


def test_letters_that_concern_no_account_leave_nobody_untold() -> None:
    log = Letters(PRICES).letter(headers.dead_letter(PRICES, 0, 7, 5, "DecodeError", NO_PRICE))
    counts = log.counted()
    assert counts.untold is None
    assert letter_lines([counts])[1] == f"  DecodeError: {NO_PRICE} (1), offsets 0 to 0"


# --- what is looked at -----------------------------------------------------------------------------------------------


def test_it_is_said_what_was_not_looked_at() -> None:
    log = Letters()
    for offset in range(10):
        log.letter(refused(offset, "alice"))
        log.mark(dead_letter_topic(TRADES))
    log.cut(dead_letter_topic(TRADES), 3)
    counts = log.counted(letters_max=4)
    assert (counts.low, counts.first, counts.end, counts.count) == (3, 16, 20, 2)
    assert not counts.is_complete
    assert letter_lines([counts])[0] == (
        "trades.v1.dlq: 2 dead letters at the last 4 offsets; the 13 offsets before them were not looked at"
    )
    assert log.counted(letters_max=17).is_complete
    assert log.counted().count == 8


def test_offsets_without_a_letter_are_not_taken_for_an_empty_topic() -> None:
    log = Letters().letter(refused(1))
    for _ in range(4):
        log.mark(dead_letter_topic(TRADES))
    (line,) = letter_lines([log.counted(letters_max=4)])
    assert line.startswith("trades.v1.dlq: 0 dead letters at the last 4 offsets; the 1 offsets before them were not")


def test_topics_without_letters_are_named() -> None:
    log = Letters()
    log.mark(dead_letter_topic(TRADES))
    log.append(dead_letter_topic(TRANSFERS), b"gone")
    log.cut(dead_letter_topic(TRANSFERS), 1)
    counts = [count_letters(log, topic) for topic in (TRADES, TRANSFERS, PRICES)]
    assert letter_lines(counts) == [
        "no dead letters in trades.v1.dlq, collateral.transfers.v1.dlq, oracle.prices.v1.dlq"
    ]


class Unreadable(Letters):
    """One topic, or all, cannot be read: at once, or after its first record."""

    def __init__(self, unreadable: str, at_once: bool = True) -> None:
        super().__init__()
        self._unreadable, self._at_once = unreadable, at_once

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        if self._at_once and topic.endswith(self._unreadable):
            raise BrokerError(f"{topic}[{partition}]: watermarks: no such topic")
        return super().watermarks(topic, partition)

    def read_range(self, topic: str, partition: int, first: int, end: int | None = None) -> Iterator[Record]:
        yield next(super().read_range(topic, partition, first, end))
        raise BrokerError(f"{topic}[{partition}]: stuck")


def test_a_topic_that_is_gone_is_said_and_never_called_empty() -> None:
    counts = Unreadable(".dlq").counted()
    assert not counts.is_complete
    assert letter_lines([counts]) == [
        "trades.v1.dlq: 0 dead letters; not looked at to the end: trades.v1.dlq[0]: watermarks: no such topic"
    ]


def test_what_was_counted_before_the_reading_failed_counts() -> None:
    log = Unreadable("", at_once=False)
    log.letter(refused(1, "alice", all_told=False)).letter(refused(2, "bob"))
    counts = log.counted()
    assert (counts.count, counts.problem) == (1, "trades.v1.dlq[0]: stuck")
    assert counts.untold is not None


def test_a_kafka_that_does_not_answer_is_no_problem_of_one_topic() -> None:
    with pytest.raises(BrokerError, match=r"trades\.v1\[0\]: watermarks"):
        Unreadable("").counted()


# --- whatever is there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", LETTER_TOPICS)
def test_letters_that_are_none_of_ours_are_counted(topic: str) -> None:
    log = Letters(topic)
    log.letter(None).letter([]).letter(None, None).letter(None, None, None).letter([("dlq.error", b"")])
    counts = log.counted()
    assert (counts.count, counts.repeats, counts.unplaced) == (5, 0, 5)
    (one,) = counts.classes
    assert (one.error, one.reason, one.count) == (NO_ERROR, "", 5)
    assert "5 do not say which record they were" in letter_lines([counts])[0]


@pytest.mark.parametrize(
    "place",
    [
        {"dlq.offset": b""},
        {"dlq.offset": b"-1"},
        {"dlq.offset": b"1.5"},
        {"dlq.offset": b"\xff"},
        {"dlq.offset": "\u0663".encode()},
        {"dlq.offset": b"9" * 5_000},
        {"dlq.partition": b"one"},
        {"dlq.topic": b""},
    ],
    ids=str,
)
def test_a_place_that_is_none_makes_no_repeat(place: dict[str, bytes]) -> None:
    about = list((dict(refused(1)) | place).items())
    counts = Letters().letter(about).letter(about).counted()
    assert (counts.count, counts.repeats, counts.unplaced) == (2, 0, 2)


@pytest.mark.parametrize(
    "names",
    [b"", b"[", b'["alice"', b"\xff", b'["\xff"]', b"7", b"[7]", b"{}", b"[" * 100_000, b'["\\ud800"]'],
    ids=len,
)
def test_accounts_that_cannot_be_read_are_said(names: bytes) -> None:
    about = list((dict(refused(1)) | {"dlq.suspended": names}).items())
    counts = Letters().letter(about).counted()
    assert (counts.count, counts.accounts_unread, counts.classes[0].accounts) == (1, 1, 0)
    assert "1 name accounts that cannot be read" in letter_lines([counts])[0]


def test_what_is_shown_is_one_line_that_no_terminal_obeys() -> None:
    about = [("dlq.error", b"\xffError\x1b[31m"), ("dlq.reason", b"a\nb\x00\x07 \xfe" + b"z" * 5_000)]
    log = Letters().letter(about)
    counts = log.counted()
    (one,) = counts.classes
    assert one.error.isprintable()
    assert one.reason.isprintable()
    assert one.reason.startswith("a b ")
    assert len(one.reason) < 100
    assert counts.untold is not None
    assert counts.untold.reason.isprintable()


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        ("asset U99: no asset of that name", "asset #: no asset of that name"),
        ("transfer t-1 has sequence 11, as one that was applied", "transfer # has sequence #, as one that was applied"),
        ("1.5 is finer than 0 decimals", "# is finer than # decimals"),
        ("BTC-PERP: no instrument of that name", "BTC-PERP: no instrument of that name"),
        ("the record has no value", "the record has no value"),
    ],
)
def test_reasons_that_differ_in_numbers_and_ids_are_the_same(reason: str, short: str) -> None:
    assert shortened(reason) == short


HEADER_NAMES = st.sampled_from([name for name, _ in refused(1, "a", all_told=False)] + ["dlq.cut", "", "x"])
HEADER_VALUES = st.none() | st.binary(max_size=40) | st.sampled_from([b"1", b"[]", b'["a"]', b"DecodeError"])
LETTERS = st.tuples(
    st.none() | st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=8),
    st.none() | st.binary(max_size=20),
    st.none() | st.binary(max_size=5),
    st.sampled_from(["letter", "marker"]),
)


@given(st.sampled_from(LETTER_TOPICS), st.lists(LETTERS, max_size=30), st.none() | st.integers(1, 40))
@configure(max_examples=examples(200), deadline=None)
def test_whatever_is_there_is_counted_and_shown(
    topic: str,
    given_letters: list[tuple[list[tuple[str, bytes | None]] | None, bytes | None, bytes | None, str]],
    letters_max: int | None,
) -> None:
    log = Letters(topic)
    for about, value, key, kind in given_letters:
        if kind == "marker":
            log.mark(dead_letter_topic(topic))
        else:
            log.letter(about, value, key)  # type: ignore[arg-type]
    counts = log.counted(letters_max)
    read = list(log.read_range(dead_letter_topic(topic), 0, counts.first, counts.end))
    assert counts.count + counts.repeats == len(read)
    assert sum(one.count for one in counts.classes) == counts.count
    assert len(counts.classes) <= CLASSES_MAX
    lines = letter_lines([counts])
    assert all(line.isprintable() for line in lines)
    json.dumps([one.reason for one in counts.classes])
