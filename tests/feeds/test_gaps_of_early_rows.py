"""Event frames that a shard has had are still needed while rows in them wait for accounts that are to come."""

from msgspec.structs import replace

from schemas.messages import Early, ShardMoves, Spread
from schemas.topics import ACCOUNTS, EVENTS, JOURNAL, MARKS, PARAMETERS
from streams.clearing.journal import first_record
from streams.feeds.gaps import KNOWN, PresentLog, find_gaps, standing_after

SPREAD = Spread(version=2, shards=2, target=3, step=1)
MOVES = ShardMoves(spread=SPREAD, early=Early(offset=40, next={}, moves=ShardMoves(spread=SPREAD)))
RECORD = replace(first_record(2, events_next=70, marks_next=5, parameters_next=1), moves=MOVES)


def present(first: int) -> dict[str, PresentLog]:
    ends = {EVENTS: (first, 90), MARKS: (0, 9), PARAMETERS: (0, 1), ACCOUNTS: (0, 5), JOURNAL: (0, 5)}
    return {topic: PresentLog("id", *ends.get(topic, (0, 0))) for topic in KNOWN}


def test_frames_with_early_rows_are_missed() -> None:
    assert find_gaps(RECORD, {}, present(40), marks_now=9) == {}
    gaps = find_gaps(RECORD, {}, present(41), marks_now=9)
    assert gaps.keys() == {EVENTS}
    assert (gaps[EVENTS].kind, gaps[EVENTS].first, gaps[EVENTS].next) == ("deleted", 40, 70)


def test_they_are_missed_once_and_the_shard_is_suspended() -> None:
    stands = standing_after(RECORD, find_gaps(RECORD, {}, present(60), marks_now=9), 2)
    assert stands.events.next == 70
    assert stands.suspension
    assert not stands.suspension.lifted
    assert find_gaps(stands, {}, present(60), marks_now=9) == {}


def test_frames_before_the_early_ones_are_not_needed() -> None:
    whole = replace(RECORD, moves=replace(MOVES, early=None))
    assert find_gaps(whole, {}, present(60), marks_now=9) == {}
