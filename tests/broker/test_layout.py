"""Over how many shards accounts are spread: written once, read by everybody, learned from the rows where it is not."""

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import ShardLayout
from schemas.partitioning import shard_of
from schemas.topics import ACCOUNTS, EVENTS, LAYOUT
from streams.broker.layout import KEYS_LOOKED_AT, LAYOUT_KEY, read_layout, require_shards, spread_clauses, spread_over
from streams.errors import TopicError
from streams.memory.scheduler import EPOCH_US
from tests.given_log import GivenLog


def rows(accounts: Iterable[str], shards: int, partitions: int) -> tuple[GivenLog, dict[str, int]]:
    """A log in which ``accounts`` are spread over ``shards``, in topics of ``partitions``."""
    log = GivenLog(shards=partitions)
    for account in accounts:
        log.append(ACCOUNTS, b"{}", key=account, partition=shard_of(account, shards))
    return log, {ACCOUNTS: partitions, EVENTS: partitions}


def test_what_is_written_is_read_the_last_of_it() -> None:
    log = GivenLog(shards=3)
    assert read_layout(log) == ShardLayout(shards=3, time=EPOCH_US), "as a new cluster has it"
    log.append_raw(LAYOUT, b"other", b'{"shards":9,"time":1}', None)
    log.append_raw(LAYOUT, LAYOUT_KEY, b'{"shards":2,"time":1}', None)
    assert require_shards(log) == 2


@pytest.mark.parametrize("value", [b"", b"{}", b'{"shards":0,"time":1}', b'{"shards":"4","time":1}', b"\xff"])
def test_what_cannot_be_read_is_an_error_and_no_number(value: bytes) -> None:
    log = GivenLog(shards=3)
    log.append_raw(LAYOUT, LAYOUT_KEY, value, None)
    with pytest.raises(TopicError, match=f"{LAYOUT} does not say"):
        require_shards(log)


def test_nothing_is_no_number() -> None:
    log = GivenLog(shards=3)
    log.append_raw(LAYOUT, LAYOUT_KEY, None, None)
    assert read_layout(log) is None
    with pytest.raises(TopicError, match="`margin-clearing topics` writes it"):
        require_shards(log)


@given(
    st.lists(st.text(min_size=1, max_size=20), min_size=60, max_size=90, unique=True),
    st.integers(1, 12),
    st.integers(0, 8),
)
def test_the_rows_say_over_how_many_shards_they_are_spread(accounts: list[str], shards: int, more: int) -> None:
    """Whatever the topics have grown to, and whatever was asked for."""
    log, counts = rows(accounts, shards, shards + more)
    assert spread_over(log, counts, wanted=shards + more + 1) == shards


def test_without_rows_it_is_what_was_asked_for() -> None:
    log, counts = rows([], 4, 8)
    assert spread_over(log, counts, wanted=5) == 5


def test_rows_that_fit_no_number_of_shards_are_refused() -> None:
    """As after a version that sent accounts to the shards of a topic that had grown."""
    log, counts = rows(map(str, range(200)), 4, 5)
    for account in map(str, range(200, 400)):
        log.append(ACCOUNTS, b"{}", key=account, partition=shard_of(account, 5))
    with pytest.raises(TopicError, match="some have their rows in the wrong shard"):
        spread_over(log, counts, wanted=5)


def test_few_rows_that_fit_several_numbers_are_in_their_shards_by_each() -> None:
    """Then all of them were looked at, so that no account is anywhere else."""
    chosen = random.Random(5)
    for _ in range(300):
        shards, partitions = chosen.randrange(1, 6), chosen.randrange(6, 9)
        accounts = [f"account-{chosen.randrange(10**6)}" for _ in range(chosen.randrange(1, 4))]
        log, counts = rows(accounts, shards, partitions)
        said = spread_over(log, counts, wanted=shards)
        assert [shard_of(account, said) for account in accounts] == [shard_of(account, shards) for account in accounts]
    assert len(accounts) < KEYS_LOOKED_AT


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (ShardLayout(shards=4, time=1), "accounts are spread over 4 shards"),
        (
            ShardLayout(shards=4, time=1, version=2, target=6, used=6),
            "accounts are spread over 4 shards; they are moving to 6",
        ),
        (
            ShardLayout(shards=4, time=1, version=9, target=4, used=6),
            "accounts are spread over 4 shards; shards 4 to 5 have had accounts and stay, empty",
        ),
    ],
)  # fmt: skip
def test_it_is_said_in_words(layout: ShardLayout, said: str) -> None:
    assert "; ".join(spread_clauses(layout)) == said
