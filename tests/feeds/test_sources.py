"""What a shard has had of each source: as its frames tell it, and as it is known again from journal and frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streams.clearing.journal as journal_module
from schemas.codec import encode
from schemas.messages import EventFrame, JournalRecord, SourceRange, Suspension, TransferColumns
from schemas.topics import EVENTS, JOURNAL, TRADES, TRANSFERS
from streams.clearing.journal import Cursor, first_record
from streams.feeds.journal import journal_end
from streams.feeds.sources import Sources, source_name, sources_as_of
from tests.given_log import GivenLog


def source(first: int, end: int, *, topic: str = TRANSFERS, partition: int = 0, topic_id: str = "id") -> SourceRange:
    return SourceRange(topic=topic, topic_id=topic_id, partition=partition, first=first, next=end)


def frame(*offsets: int, first: int | None = None, repaired: bool = False, topic_id: str = "id") -> EventFrame:
    """A transfer of each of ``offsets``, from ``first`` on."""
    covered = source(min(offsets) if first is None else first, max(offsets) + 1, topic_id=topic_id)
    count = len(offsets)
    columns = TransferColumns(
        account=["alice"] * count,
        margin=["cross"] * count,
        asset=["USDC"] * count,
        amount=["1"] * count,
        sequence=list(offsets),
        transfer_id=["t"] * count,
        source=[0] * count,
        source_offset=list(offsets),
    )
    return EventFrame(time=0, transfers=columns, sources=[covered], repaired=repaired)


def offsets_of(given_frame: EventFrame) -> list[int]:
    return given_frame.transfers.source_offset


# --- what is a repeat ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_frame", "new"),
    [
        (frame(0, 4), []),
        (frame(3, 4, 5, 9), [5, 9]),
        (frame(5, 6), [5, 6]),
        (frame(7), [7]),
        (frame(3, 7, repaired=True), [3, 7]),
        (frame(3, 4, topic_id="made anew"), [3, 4]),
    ],
    ids=["had", "had in part", "next", "later", "repaired by hand", "another topic of the name"],
)
def test_a_row_from_below_what_the_shard_has_had_is_dropped(given_frame: EventFrame, new: list[int]) -> None:
    sources = Sources()
    sources.admit(frame(0, 1, 4))
    assert offsets_of(sources.admit(given_frame)) == new
    assert offsets_of(sources.admit(given_frame)) == (new if given_frame.repaired else [])


def test_a_suspension_that_was_told_is_dropped() -> None:
    def refused(offset: int) -> EventFrame:
        suspension = Suspension(account="alice", topic=TRADES, partition=3, offset=offset, reason="no trade")
        return EventFrame(
            time=0, suspensions=[suspension], sources=[source(offset, offset + 1, topic=TRADES, partition=3)]
        )

    sources = Sources()
    assert len(sources.admit(refused(5)).suspensions) == 1
    assert len(sources.admit(refused(5)).suspensions) == 0
    assert len(sources.admit(refused(6)).suspensions) == 1


def test_what_is_known_of_one_partition_says_nothing_of_another() -> None:
    sources = Sources()
    sources.admit(EventFrame(time=0, sources=[source(0, 9), source(0, 4, partition=1), source(0, 2, topic=TRADES)]))
    assert sources.take_all() == {
        "collateral.transfers.v1:0:id": 9,
        "collateral.transfers.v1:1:id": 4,
        "trades.v1:0:id": 2,
    }


def test_frames_of_earlier_versions_are_taken_as_they_come() -> None:
    sources, old = Sources(), EventFrame(time=0, transfers=TransferColumns())
    assert sources.admit(old) is old
    assert sources.take_all() == {}


# --- as the journal has it -------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.integers(0, 2), st.integers(1, 9)),
        st.tuples(st.just("commit"), st.booleans(), st.none()),
        st.tuples(st.just("claim"), st.booleans(), st.none()),
    ),
    max_size=30,
)


@given(steps=STEPS, every=st.integers(1, 4))
def test_what_a_shard_has_had_is_known_again_from_the_log(
    steps: list[tuple[str, int | bool, int | None]], every: int
) -> None:
    """Whatever records of the journal can be read: frames tell what those say that cannot."""
    log, cursor, frames = GivenLog(), Cursor(0), 0
    cursor.resume(first_record(0, events_next=0, marks_next=0, parameters_next=0))
    ends = dict.fromkeys(range(3), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "ALL_EVERY", every)
        for kind, which, count in [*steps, ("commit", True, None)]:
            if kind == "frame":
                assert count is not None
                covered = source(ends[which], ends[which] + count, partition=which)
                ends[which] += count
                given_frame = EventFrame(time=0, sources=[covered])
                log.append(EVENTS, encode(given_frame))
                cursor.sources.admit(given_frame)
                frames = cursor.events_next = frames + 1
                continue
            record = cursor.claim_record("w", 0, 0) if kind == "claim" else _commit(cursor)
            offset = log.append(JOURNAL, encode(record) if which else b"nonsense").offset()
            log.mark(JOURNAL)
            if kind == "claim":
                cursor.claimed(record, offset)
            else:
                cursor.committed(offset)
    end = journal_end(log, 0)
    assert end is not None
    known = sources_as_of(log, end.record, end.last.offset(), frames)
    assert known.take_all() == {
        source_name(source(0, 0, partition=which)): ends[which] for which in ends if ends[which]
    }


def _commit(cursor: Cursor) -> JournalRecord:
    return cursor.commit_record(
        "w", marks_before=0, progress_before=0, held=0, accounts=0, commands=[], open_interest=None
    )


def test_where_a_journal_has_nothing_to_read_nothing_is_known() -> None:
    assert sources_as_of(GivenLog(), None, -1, 0).take_all() == {}
