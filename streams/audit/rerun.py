"""A shard's journal run again from the input topics: the engine's own state machine, driven by what the journal says.

Owns the order of a commit (its batches, each after the marks and progress that it names, the parameters before the
events; the marks and the progress in the turns that the journal names) and what a claim does to memory: everything that
is in no row is lost, the rows are loaded, the prices recalled, and newer parameters decide everything once. Choosing
where to begin and judging what comes out is the caller's business.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec

from schemas.codec import DecodeError, Decoder
from schemas.messages import (
    ROW_KINDS,
    Arrival,
    Arrived,
    Batch,
    Columns,
    Departure,
    EventFrame,
    JournalRecord,
    Mark,
    MarkFrame,
    Resumption,
    SourceRange,
    Spread,
    rows_of,
)
from schemas.partitioning import change_of, place_of
from schemas.topics import EVENTS, MARKS, PARAMETERS, PROGRESS
from streams.audit.log import Tape
from streams.broker.records import UNSTAMPED, Log
from streams.clearing.journal import Cursor
from streams.clearing.restore import recall_from
from streams.clearing.shard import Output, Shard
from streams.errors import InputError
from streams.feeds.gaps import logs_as_of, standing_after
from streams.feeds.journal import read_journal
from streams.feeds.marks import mark_records, read_marks
from streams.feeds.moves import NOT_MOVED, Moves
from streams.feeds.parameters import ParameterHistory
from streams.feeds.progress import progress_records
from streams.feeds.sources import sources_as_of

PROGRESS_LOOKBACK = 2_000
"""How many records of progress are read to know what was complete at a commit."""


class _FrameTime(msgspec.Struct):
    time: int
    repaired: bool = False
    sources: list[SourceRange] = []
    resumptions: tuple[Resumption, ...] | msgspec.UnsetType = msgspec.UNSET
    spread: Spread | msgspec.UnsetType = msgspec.UNSET
    confirmed: bool | msgspec.UnsetType = msgspec.UNSET
    departure: Departure | msgspec.UnsetType = msgspec.UNSET
    arrival: Arrival | msgspec.UnsetType = msgspec.UNSET
    arrived: Arrived | msgspec.UnsetType = msgspec.UNSET


_EVENT_FRAME = Decoder[EventFrame](EventFrame)
_FRAME_TIME = Decoder[_FrameTime](_FrameTime)


class Rerun:
    """One shard run again.

    ``known``, if given, are the accounts whose state is known; events of any other account are left out until
    :meth:`adopt` makes it known. Accounts do not touch each other, so the known ones come out as they did. With
    ``learns`` those become known that come from another shard while it is run: nothing of them is from before.

    ``observe`` is called after every step that may have decided something, with the kind and offset of its input.
    ``marks`` holds the last mark of each symbol and the offset of its frame.
    """

    def __init__(
        self,
        log: Log,
        shard: int,
        parameters: ParameterHistory,
        *,
        known: set[str] | None = None,
        learns: bool = False,
        observe: Callable[[str, int], None] = lambda kind, offset: None,
    ) -> None:
        self._log, self._id, self._parameters = log, shard, parameters
        self._known = known
        self._arrivals_known = _ArrivalsKnown(shard, known) if known is not None and learns else None
        self._observe = observe
        self.shard = Shard(shard)
        self.rows: dict[str, bytes] = {}
        self.marks: dict[str, tuple[int, Mark]] = {}
        self.lost: list[int] = []
        """Offsets of event frames that the journal names and the log does not hold."""
        self.arrivals: list[Arrival] = []
        """What has come of accounts from other shards; whoever has seen to it takes it away."""
        self._last: tuple[JournalRecord, int] | None = None
        self._events: Tape | None = None
        self._marks: Tape | None = None
        self._progress: Tape | None = None

    def begin(self, record: JournalRecord, offset: int, rows: Mapping[str, bytes]) -> None:
        """Stand where ``record``, at ``offset`` of the journal, left the shard, with ``rows`` as of then."""
        self.rows = dict(rows)
        self._restore(record, offset)
        moves = self.shard.cursor.sources.moves
        self.arrivals = list(moves.parts)
        if self._arrivals_known is not None:
            self._arrivals_known.begin(moves)

    def expected_claim(self, record: JournalRecord) -> JournalRecord:
        """The claim that must follow the last record, with the worker that ``record`` names."""
        assert self._last is not None
        last, offset = self._last
        if record.gone:
            known = last.gone or {}
            new = {topic: gap for topic, gap in record.gone.items() if known.get(topic) != gap}
            last = standing_after(last, new, self._id)
        cursor = Cursor(self._id).resume(last, offset)
        cursor.claim, cursor.logs = self.shard.cursor.claim, dict(record.logs or {})
        cursor.sources = self.shard.cursor.sources
        return cursor.claim_record(record.worker, record.progress.next, record.marks_now)

    def claim(self, record: JournalRecord, offset: int) -> None:
        """Take the shard anew, as the engine does that wrote the claim ``record`` at ``offset``."""
        self._restore(record, offset)

    def commit(self, record: JournalRecord, offset: int) -> Output:
        """Run what one commit covered; its output, which is not yet in :attr:`rows`."""
        shard, batches = self.shard, deque(_batches_of(record))
        for turn in record.turns:
            while batches and (turn.marks > batches[0].marks or turn.progress > batches[0].progress):
                self._apply_batch(batches.popleft())
            self._walk(turn.marks, turn.progress)
        for batch in batches:
            self._apply_batch(batch)
        self._walk(record.marks.next, record.progress.next)
        output = shard.take(record.worker, with_open_interest=record.open_interest is not None)
        if self._known is not None:  # which symbols are awaited, and what pools have, depends on all accounts
            shard.cursor.awaited.resume(record.not_live, record.told_not_live)
            shard.cursor.resume_pools(record)
        shard.cursor.committed(offset)
        self._last = (record, offset)
        for account, row in output.rows.items():
            if row is None:
                self.rows.pop(account, None)
            else:
                self.rows[account] = row
        return output

    def _apply_batch(self, batch: Batch) -> None:
        shard = self.shard
        self._walk(batch.marks, batch.progress)
        everything = self._adopt_parameters(batch.parameters)
        if self._apply_events(batch.events) or everything:
            shard.decide_touched(everything=everything)
            self._observe(*((PARAMETERS, shard.parameters_next - 1) if everything else (EVENTS, shard.events_next - 1)))

    def adopt(self, account: str, row: bytes) -> None:
        """Make an account known, whose row as of the last commit is ``row``."""
        assert self._known is not None
        self._known.add(account)
        self.rows[account] = row
        self.shard.restore(account, row)

    # --- restoring ---------------------------------------------------------------------------------------------------

    def _restore(self, record: JournalRecord, offset: int) -> None:
        parameters_end = record.rules_next if record.rules_next >= 0 else record.parameters.next
        self.shard = Shard(self._id, self._parameters.at(parameters_end))
        self.shard.resume(record, offset, sources_as_of(self._log, record, offset, record.events.next))
        self.shard.cursor.logs = dict(logs_as_of(self._log, record))
        if record.kind == "commit":
            self._recall_progress(record)
        self._last = (record, offset)
        for account in sorted(self.rows):
            self.shard.restore(account, self.rows[account])
        first, end = recall_from(self.shard.cursor), self.shard.marks_next
        for mark_record in read_marks(self._log, first, end):
            if mark_record.frame is not None:  # what is none was refused when it was walked
                self._remember(mark_record.offset, mark_record.frame, mark_record.appended_us)
                self.shard.recall_marks(mark_record.offset, mark_record.frame, mark_record.appended_us)
        self.shard.stand()
        if self._events is None or record.gone:
            self._events = Tape(self._log, EVENTS, self._id, record.events.next)
            self._marks = Tape(self._log, MARKS, 0, record.marks.next)
            self._progress = Tape(self._log, PROGRESS, 0, record.progress.next)

    def _recall_progress(self, record: JournalRecord) -> None:
        """Learn what was known of progress as of a commit, without deciding anything again."""
        first = record.progress.next - PROGRESS_LOOKBACK
        for claim in read_journal(self._log, self._id, record.claim, record.claim + 1):
            if claim.record is not None:
                first = max(first, claim.record.progress.next)
        limit_us, cursor = 1000 * self.shard.parameters.policy.incomplete_hold_ms, self.shard.cursor
        for said in progress_records(self._log.read_range(PROGRESS, 0, max(first, 0), record.progress.next)):
            if said.progress is not None:
                cursor.completeness.walk(said.offset, said.progress, said.appended_us, limit_us, cursor.sources.stuck)

    def _remember(self, offset: int, frame: MarkFrame, appended_us: int) -> None:
        if frame.epoch >= self.shard.marks_epoch and appended_us != UNSTAMPED:
            self.marks |= {mark.symbol: (offset, mark) for mark in frame.marks}

    # --- inputs ------------------------------------------------------------------------------------------------------

    def _walk(self, marks_end: int, progress_end: int) -> None:
        """Walk the marks below ``marks_end``, then the progress below ``progress_end``."""
        self._walk_marks(marks_end)
        assert self._progress is not None
        shard = self.shard
        if progress_end <= shard.cursor.progress_next:
            return
        for record in progress_records(self._progress.until(progress_end)):
            if record.offset >= shard.cursor.progress_next:
                shard.apply_progress(record.offset, record.progress, record.appended_us)
                self._observe(PROGRESS, record.offset)
        shard.apply_progress(progress_end - 1, None, 0)

    def _walk_marks(self, end: int) -> None:
        assert self._marks is not None
        shard = self.shard
        for mark_record in mark_records(self._marks.until(end)):
            if mark_record.offset < shard.marks_next:
                continue
            if mark_record.frame is None:
                shard.skip_marks(mark_record.offset)
                continue
            self._remember(mark_record.offset, mark_record.frame, mark_record.appended_us)
            shard.apply_marks(mark_record.offset, mark_record.frame, mark_record.appended_us)
            self._observe(MARKS, mark_record.offset)
        shard.skip_marks(end - 1)

    def _adopt_parameters(self, end: int) -> bool:
        """Put the records below ``end`` in force one by one; whether there were any."""
        shard = self.shard
        if end <= shard.parameters_next:
            return False
        offsets = self._parameters.offsets(shard.parameters_next, end)
        if not offsets or offsets[-1] != end - 1:
            # Compacted away, or the marker of a transaction: the parameters are known all the same.
            offsets.append(end - 1)
        for offset in offsets:
            with suppress(InputError):  # the ledger cannot be held in them: those before stay, as they did
                shard.apply_parameters(offset, self._parameters.at(offset + 1))
        return True

    def _apply_events(self, end: int) -> bool:
        """Apply the frames below ``end``; whether there were any."""
        shard = self.shard
        if end <= shard.events_next:
            return False
        assert self._events is not None
        for message in self._events.until(end):
            offset = message.offset()
            if offset < shard.events_next:
                continue
            try:
                frame = self._frame(message.value())
            except DecodeError as error:
                shard.skip_events(offset, str(error))
            else:
                shard.apply_events(offset, frame, message.appended_us)
        if shard.events_next != end:
            self.lost.append(end - 1)
            shard.skip_events(end - 1)
        return True

    def _frame(self, data: bytes | None) -> EventFrame:
        known = self._known
        if known is None:
            frame = _EVENT_FRAME(data)
        elif self._arrivals_known is None and data is not None and _names_one_other(known, data):
            said = _FRAME_TIME(data)
            arrival = said.arrival and _of_arrival(said.arrival, known)
            frame = EventFrame(
                time=said.time,
                repaired=said.repaired,
                sources=said.sources,
                resumptions=said.resumptions,
                spread=said.spread,
                confirmed=said.confirmed,
                departure=said.departure,
                arrival=arrival,
                arrived=said.arrived,
            )
        else:
            whole = _EVENT_FRAME(data)
            if self._arrivals_known is not None:
                self._arrivals_known.hear(whole)
            frame = _of_known(whole, known)
        if frame.arrival is not msgspec.UNSET:
            self.arrivals.append(frame.arrival)
        return frame


def _batches_of(record: JournalRecord) -> Sequence[Batch]:
    """The batches of a commit; where it names none, all of it was one."""
    if record.batches:
        return record.batches
    marks = record.marks_before if record.marks_before >= 0 else record.marks.next
    progress = record.progress_before if record.progress_before >= 0 else record.progress.next
    return (Batch(marks=marks, progress=progress, parameters=record.parameters.next, events=record.events.next),)


class _ArrivalsKnown:
    """Makes the accounts known that come to a shard whole, from the first of their rows on."""

    def __init__(self, shard: int, known: set[str]) -> None:
        self._shard, self._known = shard, known
        self._arrived: dict[Spread, int] = {}
        """By the change of the number of shards: the accounts of later steps than this one come whole."""
        self._spread = NOT_MOVED

    def begin(self, moves: Moves) -> None:
        """Nothing is known of those that have come by now, but of those that are on their way."""
        self._spread = moves.spread
        self._arrived = {moves.spread: moves.arrived}
        for _, early in moves.early_rows:
            self._learn(early)
        for part in moves.parts:
            self._known.update(part.rows, part.packed)

    def hear(self, frame: EventFrame) -> None:
        """Take note of what the next frame says."""
        for word in (frame.departure, frame.arrival):
            if word is not msgspec.UNSET:
                self._hear(word.spread)
        if frame.spread is not msgspec.UNSET:
            self._hear(frame.spread)
        if self._arrived:
            self._learn(frame)

    def _hear(self, spread: Spread) -> None:
        known = self._spread
        if spread.version > known.version:
            if change_of(spread) != change_of(known):
                self._arrived[spread] = 0
            self._spread = spread

    def _learn(self, frame: EventFrame) -> None:
        names = {account for kind in ROW_KINDS for account in getattr(frame, kind).account}
        names |= {suspension.account for suspension in frame.suspensions}
        if frame.arrival is not msgspec.UNSET:
            names.update(frame.arrival.rows, frame.arrival.packed)
        self._known.update(name for name in names - self._known if self._comes_whole(name))

    def _comes_whole(self, account: str) -> bool:
        for spread, arrived in self._arrived.items():
            _, new, step = place_of(account, spread)
            if new == self._shard and step > arrived:
                return True
        return False


def _names_one_other(known: set[str], data: bytes) -> bool:
    """Whether the one account that is known is not in a frame."""
    return len(known) == 1 and next(iter(known)).encode() not in data


def _of_known(frame: EventFrame, accounts: set[str]) -> EventFrame:
    """What a frame says of ``accounts``, and of the shard."""
    return EventFrame(
        time=frame.time,
        repaired=frame.repaired,
        transfers=_of_accounts(frame.transfers, accounts),
        fills=_of_accounts(frame.fills, accounts),
        reports=_of_accounts(frame.reports, accounts),
        suspensions=[suspension for suspension in frame.suspensions if suspension.account in accounts],
        sources=frame.sources,
        resumptions=frame.resumptions,
        spread=frame.spread,
        confirmed=frame.confirmed,
        departure=frame.departure,
        arrival=frame.arrival and _of_arrival(frame.arrival, accounts),
        arrived=frame.arrived,
    )


def _of_accounts(columns: Columns, accounts: set[str]) -> Columns:
    return rows_of(columns, (index for index, account in enumerate(columns.account) if account in accounts))


def _of_arrival(arrival: Arrival, accounts: set[str]) -> Arrival:
    """What has come of ``accounts``; it stays one part of as many."""
    return msgspec.structs.replace(
        arrival,
        incomplete=tuple(account for account in arrival.incomplete if account in accounts),
        rows={account: row for account, row in arrival.rows.items() if account in accounts},
        packed={account: row for account, row in arrival.packed.items() if account in accounts},
    )
