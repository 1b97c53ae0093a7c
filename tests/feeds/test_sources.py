"""What a shard has had of each source: as its frames tell it, and as it is known again from journal and frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streams.clearing.journal as journal_module
from schemas.codec import encode
from schemas.messages import EventFrame, JournalRecord, Lost, SourceRange, Suspension, TransferColumns
from schemas.topics import EVENTS, JOURNAL, TRADES, TRANSFERS
from streams.clearing.journal import Cursor, first_record
from streams.feeds.journal import journal_end
from streams.feeds.sources import Sources, missing_sentences, sources_as_of
from tests.given_log import GivenLog


def source(
    first: int, end: int, *, topic: str = TRANSFERS, partition: int = 0, topic_id: str = "id", lost: str = ""
) -> SourceRange:
    return SourceRange(topic=topic, topic_id=topic_id, partition=partition, first=first, next=end, lost=lost)


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
        (frame(7), []),
        (frame(3, 7, repaired=True), [3, 7]),
        (frame(3, 4, topic_id="made-anew"), []),
        (frame(3, 4, topic_id=""), [3, 4]),
    ],
    ids=[
        "had",
        "had in part",
        "next",
        "later",
        "repaired by hand",
        "another topic of the name",
        "of an earlier version",
    ],
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


# --- what is missing -------------------------------------------------------------------------------------------------

NAME = "collateral.transfers.v1:0:id"
ANEW = "collateral.transfers.v1:0:made-anew"


def told(sources: Sources) -> list[str]:
    return [kind for kind, _ in sources.take_told()]


def said(given_source: SourceRange) -> EventFrame:
    return EventFrame(time=0, sources=[given_source])


def test_what_does_not_follow_is_not_applied_until_a_frame_goes_on_where_the_shard_stands() -> None:
    sources = Sources()
    assert offsets_of(sources.admit(frame(3, 4))) == [3, 4], "of a source that is new nothing is known to be missing"
    assert offsets_of(sources.admit(frame(7, 8))) == []
    assert offsets_of(sources.admit(frame(9))) == []
    assert (sources.missing, sources.stuck) == ({NAME: 7}, {("collateral.transfers.v1", "id"): {0: 5}})
    assert told(sources) == ["input_missing"], "it is told once"
    assert offsets_of(sources.admit(frame(4, 5, 6))) == [5, 6]
    assert (sources.missing, sources.stuck, told(sources)) == ({}, {}, ["input_missing_cleared"])
    assert offsets_of(sources.admit(frame(7, 8, 9))) == [7, 8, 9]


def test_what_is_missing_of_one_partition_keeps_no_other_from_being_applied() -> None:
    sources = Sources()
    sources.admit(EventFrame(time=0, sources=[source(0, 5), source(0, 5, partition=1)]))
    both = frame(7, 8)
    both.sources.append(source(5, 6, partition=1))
    columns = both.transfers
    for name, value in {"account": "bob", "margin": "cross", "asset": "USDC", "amount": "1", "sequence": 5,
                        "transfer_id": "t", "source": 1, "source_offset": 5}.items():  # fmt: skip
        getattr(columns, name).append(value)
    assert sources.admit(both).transfers.account == ["bob"]
    assert sources.take_all() == {NAME: 5, "collateral.transfers.v1:1:id": 6}


@pytest.mark.parametrize("was_missing", [False, True])
def test_what_an_operator_says_to_be_lost_is_not_waited_for(was_missing: bool) -> None:
    sources = Sources()
    sources.admit(frame(0, 1))
    if was_missing:
        sources.admit(frame(7))
    sources.take_told()
    sources.admit(said(source(7, 7, lost="the disk burnt")))
    assert sources.lost == {NAME: Lost(records=5, reason="the disk burnt")}
    assert (sources.missing, told(sources)) == ({}, ["input_lost"])
    assert offsets_of(sources.admit(frame(7, 8))) == [7, 8]
    sources.admit(said(source(7, 7, lost="the disk burnt")))
    assert (sources.lost[NAME].records, told(sources)) == (5, []), "it lacks nothing of it: nothing more is lost"


def test_a_topic_made_anew_is_taken_at_an_operators_word_and_the_old_one_forgotten() -> None:
    sources = Sources({NAME: 50}, told_at=3)
    assert offsets_of(sources.admit(frame(0, 1, topic_id="made-anew"))) == []
    assert (sources.missing, told(sources)) == ({ANEW: 0}, ["input_missing"])
    sources.admit(said(source(0, 0, topic_id="made-anew", lost="moved to another cluster")))
    assert (sources.missing, sources.stuck, told(sources)) == ({}, {}, ["input_lost"])
    assert offsets_of(sources.admit(frame(0, 1, topic_id="made-anew"))) == [0, 1]
    assert sources.take_all() == {ANEW: 2}
    assert sources.told_at == -1, "the next record of the journal tells all, so that the old one is forgotten there"
    assert offsets_of(sources.admit(frame(50, 51))) == [], "a router that still reads the old one is too late"


def test_what_is_missing_and_lost_is_said_with_what_to_do() -> None:
    sentences = [*missing_sentences("shard 3", {NAME: 7}, {ANEW: Lost(records=0, reason="it burnt")})]
    assert "accept-offset collateral.transfers.v1 0 OFFSET" in sentences[0]
    assert (
        "records of collateral.transfers.v1:0:made-anew were never applied and will not be (it burnt)" in sentences[1]
    )


# --- as the journal has it -------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.integers(0, 2), st.integers(1, 9)),
        st.tuples(st.just("gap"), st.integers(0, 2), st.integers(1, 9)),
        st.tuples(st.just("lost"), st.integers(0, 2), st.integers(1, 9)),
        st.tuples(st.just("anew"), st.integers(0, 2), st.integers(1, 9)),
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
    ends, ids = dict.fromkeys(range(3), 0), dict.fromkeys(range(3), "0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "ALL_EVERY", every)
        for kind, which, count in [*steps, ("commit", True, None)]:
            if count is not None:
                if kind == "anew":
                    ids[which], ends[which] = str(int(ids[which]) + 1), 0
                first = ends[which] + (count if kind in {"gap", "lost"} else 0)
                ends[which] = first + count
                reason = "it burnt" if kind in {"lost", "anew"} else ""
                covered = source(first, ends[which], partition=which, topic_id=ids[which], lost=reason)
                given_frame = said(covered)
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
    had = cursor.sources
    assert known.take_all() == had.take_all()
    assert (known.missing, known.stuck, known.lost) == (had.missing, had.stuck, had.lost)
    assert known.take_told() == []


def _commit(cursor: Cursor) -> JournalRecord:
    return cursor.commit_record("w", held=0, accounts=0, commands=[], open_interest=None)


def test_where_a_journal_has_nothing_to_read_nothing_is_known() -> None:
    assert sources_as_of(GivenLog(), None, -1, 0).take_all() == {}
