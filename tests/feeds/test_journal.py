"""Where a shard's journal ends, whatever stands behind the last record that can be read."""

from schemas.codec import encode
from schemas.messages import JournalRecord, Range
from schemas.topics import JOURNAL
from streams.feeds.journal import journal_end, read_journal
from tests.given_log import GivenLog

PLACE = Range(first=0, next=0)


def record(sequence: int, shard: int = 0) -> bytes:
    return encode(
        JournalRecord(
            kind="commit",
            shard=shard,
            claim=0,
            sequence=sequence,
            previous=-1,
            events=PLACE,
            marks=PLACE,
            parameters=PLACE,
        )
    )


def written(*values: bytes) -> GivenLog:
    log = GivenLog(2)
    for value in values:
        log.append(JOURNAL, value)
        log.mark(JOURNAL)
    return log


def test_a_journal_without_records_has_no_end() -> None:
    assert journal_end(written(), 0) is None
    log = GivenLog()
    log.mark(JOURNAL)
    assert journal_end(log, 0) is None


def test_the_end_is_the_last_record() -> None:
    end = journal_end(written(record(1), record(2)), 0)
    assert end is not None
    assert end.record is not None
    assert (end.record.sequence, end.last.offset(), end.unread) == (2, 2, 0)


def test_what_cannot_be_read_behind_it_is_counted() -> None:
    end = journal_end(written(record(1), b"nonsense", record(2, shard=1)), 0)
    assert end is not None
    assert end.record is not None
    assert (end.record.sequence, end.last.offset(), end.unread) == (1, 4, 2)


def test_the_last_readable_record_is_found_however_far_back_it_stands() -> None:
    end = journal_end(written(record(1), *[b"nonsense"] * 300), 0)
    assert end is not None
    assert end.record is not None
    assert (end.record.sequence, end.unread) == (1, 300)


def test_a_journal_of_which_nothing_can_be_read_has_an_end_all_the_same() -> None:
    end = journal_end(written(b"nonsense", b"{}"), 0)
    assert end is not None
    assert (end.record, end.last.offset(), end.unread) == (None, 2, 2)


def test_entries_say_what_is_wrong_with_them() -> None:
    first, second = read_journal(written(record(1), b"nonsense"), 0, 0, 4)
    assert first.record is not None
    assert first.data == record(1)
    assert second.record is None
    assert second.reason
