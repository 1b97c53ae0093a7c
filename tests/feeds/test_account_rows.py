"""Which rows of accounts stand once accounts have gone from shard to shard, read one partition after the other."""

from collections.abc import Iterator

import pytest

from schemas.messages import Spread
from schemas.topics import ACCOUNTS
from streams.broker.records import Record
from streams.feeds.account_rows import by_account, live_rows
from tests.given_log import GivenLog

# From two shards to one: alice and carol go from partition 1 to partition 0, bob is in 0 and stays there.
BOB, ALICE, CAROL = "account-1", "account-0", "account-3"


def spread(step: int) -> Spread:
    return Spread(version=2, shards=2, target=1, step=step)


def read(log: GivenLog) -> Iterator[Record]:
    """All of it, each partition after the one before."""
    return (record for partition in range(2) for record in log.read_range(ACCOUNTS, partition, 0))


@pytest.fixture
def log() -> GivenLog:
    """Alice's row is in the new partition and in the old one; the others' are where they were."""
    given = GivenLog(2)
    for account, partition in ((BOB, 0), (ALICE, 1), (CAROL, 1)):
        given.append(ACCOUNTS, b"before", key=account, partition=partition)
    given.append(ACCOUNTS, b"after", key=ALICE)
    return given


def test_a_row_that_is_deleted_from_the_old_partition_stands_in_the_new_one(log: GivenLog) -> None:
    log.append_raw(ACCOUNTS, ALICE.encode(), None, None, partition=1)
    rows = live_rows(read(log))
    assert rows == {(0, BOB): b"before", (0, ALICE): b"after", (1, CAROL): b"before"}
    assert by_account(rows, spread(1)) == {BOB: b"before", ALICE: b"after", CAROL: b"before"}


def test_of_two_rows_the_one_counts_that_is_where_the_account_goes(log: GivenLog) -> None:
    rows = live_rows(read(log))
    assert (rows[0, ALICE], rows[1, ALICE]) == (b"after", b"before")
    assert by_account(rows, spread(1))[ALICE] == b"after"
    assert by_account(rows, Spread(version=3, shards=1, target=1))[ALICE] == b"after"


def test_a_deletion_in_the_last_partition_that_has_a_row_ends_the_account(log: GivenLog) -> None:
    log.append_raw(ACCOUNTS, CAROL.encode(), None, None, partition=1)
    assert CAROL not in by_account(live_rows(read(log)), spread(1))


def test_a_record_whose_key_is_no_text_is_no_account(log: GivenLog) -> None:
    before = live_rows(read(log))
    log.append_raw(ACCOUNTS, b"\xff\xfe", b"{}", None)
    log.append_raw(ACCOUNTS, None, b"{}", None)
    assert live_rows(read(log)) == before
