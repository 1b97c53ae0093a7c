"""Replay: a shard's journal run again, and every command, alert, row and journal record compared byte for byte.

Where to begin: at the journal's first record if the logs still hold everything since; otherwise at the first record (or
the one before ``first``) for which they do, with the accounts as the changelog says. An account whose row of then is
compacted away is left out until its next row is met.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec

from schemas.codec import DecodeError, encode
from schemas.messages import JournalRecord
from schemas.partitioning import home_of
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, EVENTS, JOURNAL, MARKS, PARAMETERS
from schemas.types import shard_account
from streams.audit.findings import Findings, bytes_differ
from streams.audit.outputs import CommittedIndex, CommittedRow, CommittedRows, may_be_of
from streams.audit.presence import Presence, numbers_in
from streams.audit.progress import Progress, silent
from streams.audit.rerun import Rerun
from streams.audit.sent_frames import FramesOfShard, SentFrames
from streams.audit.shards import is_only_added, only_added
from streams.broker.layout import require_layout
from streams.broker.records import Log
from streams.clearing.relocation import rows_in
from streams.clearing.shard import Output
from streams.errors import AuditError
from streams.feeds.journal import JournalEntry, read_journal
from streams.feeds.marks import first_needed
from streams.feeds.moves import Moves
from streams.feeds.parameters import ParameterHistory


@dataclass(frozen=True, slots=True)
class Start:
    """The record to begin at. ``complete``: nothing happened before, so no account's state is unknown."""

    entry: JournalEntry
    record: JournalRecord
    complete: bool


@dataclass(slots=True)
class Replayed:
    """What a replay found, and the sequences that were compared."""

    shard: int
    first: int
    last: int
    findings: Findings

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"shard": self.shard, "first": self.first, "last": self.last, **self.findings.as_json()}


def replay_shards(
    log: Log, shard: int | None, *, first: int | None = None, last: int | None = None, progress: Progress = silent
) -> list[Replayed]:
    """:func:`replay` of one shard, or of every shard. One that has only been added has nothing to replay, which is
    said."""
    layout, frames = require_layout(log), SentFrames(log)
    return [
        Replayed(number, 0, 0, Findings(facts=[only_added(number)]))
        if number in range(layout.shards_used) and is_only_added(log, layout, number)
        else replay(log, number, first=first, last=last, progress=progress, frames=frames)
        for number in (range(layout.shards_used) if shard is None else [shard])
    ]


def replay(
    log: Log,
    shard: int,
    *,
    first: int | None = None,
    last: int | None = None,
    progress: Progress = silent,
    frames: SentFrames | None = None,
) -> Replayed:
    """Replay the journal of ``shard`` from sequence ``first`` to ``last``, both included (None: all there is).

    ``frames`` are those that shards have written for each other, as far as they have been read for another shard.

    Raises:
        AuditError: there is no such shard or record, or the logs do not hold what it takes to begin.
        BrokerError: Kafka does not answer.
    """
    frames = frames or SentFrames(log)
    try:
        return _Replay(log, shard, first, last, progress, frames).run()
    except _FirstMove:  # accounts that came were not looked for
        return _Replay(log, shard, first, last, progress, frames).run()


class _FirstMove(Exception):
    """The number of shards has begun to be changed for the first time, since the layout was read."""


class _Replay:
    def __init__(
        self,
        log: Log,
        shard: int,
        first: int | None,
        last: int | None,
        progress: Progress,
        frames: SentFrames,
    ) -> None:
        self._layout = layout = require_layout(log)
        if not 0 <= shard < layout.shards_used:
            raise AuditError(f"there is no shard {shard}: there are the shards 0 to {layout.shards_used - 1}")
        if first is not None and last is not None and first > last:
            raise AuditError(f"sequence {first} comes after {last}: nothing is between them")
        self._log, self._shard, self._first, self._last, self._progress = log, shard, first, last, progress
        self._findings = Findings(counts=Counter(dict.fromkeys(("journal records", "commands", "alerts", "rows"), 0)))
        self._commands = CommittedIndex(log, COMMANDS, may_be_of(shard, COMMANDS, layout))
        self._alerts = CommittedIndex(log, ALERTS, may_be_of(shard, ALERTS, layout))
        self._frames = FramesOfShard(frames, shard)
        self._presence = Presence()

    def run(self) -> Replayed:
        outputs = (self._commands, self._alerts)
        for index in outputs:
            self._progress(f"reading {index.topic}", 0, 0)
            index.read(self._findings)
        if self._layout.version:
            self._progress(f"reading {EVENTS}", 0, 0)
            self._frames.read(self._layout.shards_used)
        low, self._end = self._log.watermarks(JOURNAL, self._shard)
        for index in outputs:
            index.read(self._findings, late=True)
        layout = require_layout(self._log)
        if layout.version and not self._layout.version:
            raise _FirstMove
        if layout.version:
            self._frames.read(layout.shards_used, late=True)
        start = find_start(self._log, self._shard, low, self._end, self._first)
        self._parameters = ParameterHistory(self._log)
        self._say_what_is_gone(start)
        self._rows = CommittedRows(self._log, self._shard, self._findings)
        self._known: set[str] | None = None if start.complete else set()
        self._rerun = Rerun(self._log, self._shard, self._parameters, known=self._known, learns=True)
        self._begin(start)
        first, last = self._run_on(start)
        self._findings.counts["rows compacted away"] = self._rows.conclude()
        self._name_what_is_left(start)
        return Replayed(self._shard, first, last, self._findings)

    # --- beginning ---------------------------------------------------------------------------------------------------

    def _say_what_is_gone(self, start: Start) -> None:
        if self._parameters.absent:
            self._findings.note(
                f"{PARAMETERS} lacks {self._parameters.absent} offsets below its last record (compacted away, or "
                "markers of transactions): rules that were in force in between may not be known any more"
            )
        if not start.complete:
            self._findings.note(
                f"begun at sequence {start.record.sequence}, because the logs do not hold what came before; an "
                "account is compared from its first row that the changelog still holds on, and not before"
            )

    def _begin(self, start: Start) -> None:
        rows: dict[str, bytes] = {}
        for row in self._rows.until(start.record.sequence):
            if row.value is None:
                rows.pop(row.account, None)
            else:
                rows[row.account] = row.value
        if self._known is not None:
            self._known.update(rows)
        moves = Moves(self._shard, start.record.moves)
        for account, data in rows.items():
            if not (moves.sent and moves.has_left(account)):
                self._note_numbers(account, data)
        self._presence.comes(shard_account(self._shard), (0, start.record.alert_sequence))
        self._rerun.begin(start.record, start.entry.offset, rows)

    def _note_numbers(self, account: str, row: bytes) -> None:
        try:
            self._presence.comes(account, numbers_in(row))
        except DecodeError as error:
            self._findings.differ(f"account {account}: its row cannot be read: {error}", ACCOUNTS, self._shard)

    # --- running -----------------------------------------------------------------------------------------------------

    def _run_on(self, start: Start) -> tuple[int, int]:
        """Run every record after the start; the first and last sequence compared."""
        expected = start.record.sequence + 1
        first, last = max(self._first or 0, expected), start.record.sequence
        for entry in read_journal(self._log, self._shard, start.entry.offset + 1, self._end):
            record = entry.record
            if record is None:
                self._findings.differ(f"no journal record: {entry.reason}", JOURNAL, self._shard, entry.offset)
                continue
            if self._last is not None and record.sequence > self._last:
                break
            if record.sequence != expected:
                self._findings.differ(
                    f"sequence {record.sequence} where {expected} must be: {_missing(expected, record.sequence)}",
                    JOURNAL,
                    self._shard,
                    entry.offset,
                )
            expected, last = record.sequence + 1, record.sequence
            self._step(entry, record, judged=record.sequence >= first)
            if not record.sequence % 64:
                self._progress("replaying", entry.offset, self._end)
        if last < first:
            raise AuditError(
                f"nothing to compare: {JOURNAL}[{self._shard}] was read up to sequence {last}, sequence {first} is the "
                "first that can be compared"
            )
        return first, last

    def _step(self, entry: JournalEntry, record: JournalRecord, *, judged: bool) -> None:
        if record.kind == "claim":
            wanted = encode(self._rerun.expected_claim(record))
            self._rerun.claim(record, entry.offset)
            stray = self._rows.until(record.sequence)
        else:
            output = self._rerun.commit(record, entry.offset)
            wanted = encode(self._as_far_as_known(output.journal, record))
            stray = self._compare_output(output, record, judged=judged)
        for offset in self._rerun.lost:
            self._findings.differ(
                f"the record that commit {record.sequence} applied is gone: what follows from it cannot be replayed",
                EVENTS,
                self._shard,
                offset,
            )
        self._rerun.lost.clear()
        if not judged:
            return
        self._findings.counts["journal records"] += 1
        if wanted != entry.data:
            self._findings.differ(
                f"sequence {record.sequence}: {bytes_differ(wanted, entry.data)}", JOURNAL, self._shard, entry.offset
            )
        for row in stray:
            self._findings.differ(
                f"account {row.account}: a row of commit {row.sequence}, which gives none by the journal",
                ACCOUNTS,
                self._shard,
                row.offset,
            )

    def _as_far_as_known(self, wanted: JournalRecord, record: JournalRecord) -> JournalRecord:
        """What a record counts over all accounts is taken as it is while some accounts are not known."""
        if self._known is None:
            return wanted
        return msgspec.structs.replace(
            wanted,
            accounts=record.accounts,
            commands=record.commands,
            open_interest=record.open_interest,
            alert_sequence=record.alert_sequence,
            not_live=record.not_live,
            told_not_live=record.told_not_live,
            unreached=record.unreached,
            unreached_notional=record.unreached_notional,
            turns=record.turns,
            held=record.held,
            pools=record.pools,
        )

    def _compare_output(self, output: Output, record: JournalRecord, *, judged: bool) -> list[CommittedRow]:
        """Compare what a commit gave; the rows in the changelog that it does not give."""
        findings = self._findings if judged else Findings()
        for command in output.commands:
            self._commands.compare(command.command_id, encode(command), findings)
        for alert in output.alerts:
            if self._known is None or alert.account != shard_account(self._shard):
                self._alerts.compare(alert.alert_id, encode(alert), findings)
        for to, frame in output.frames:
            self._frames.compare(to, frame, findings, self._known)
        self._note_presence(output)
        findings.counts["commands"] += len(output.commands)
        findings.counts["alerts"] += len(output.alerts)
        rows: dict[str, CommittedRow] = {}
        stray = []
        for row in self._rows.until(record.sequence):
            if row.sequence == record.sequence and row.account not in rows:
                rows[row.account] = row
            else:
                stray.append(row)
        for account, wanted in output.rows.items():
            if account not in rows:
                self._rows.absent(account, record.sequence, tombstone=wanted is None)
                continue
            row = rows.pop(account)
            findings.counts["rows"] += 1
            if row.value != wanted:
                findings.differ(
                    f"account {account}, commit {record.sequence}: {bytes_differ(wanted, row.value)}",
                    ACCOUNTS,
                    self._shard,
                    row.offset,
                )
        return stray + [row for row in rows.values() if not self._became_known(row, findings)]

    def _note_presence(self, output: Output) -> None:
        """Note which accounts came with a commit, and which left."""
        for _, frame in output.frames:
            if frame.arrived:
                for part in self._rerun.arrivals:
                    if part.spread == frame.arrived.spread:
                        for account, row in rows_in(part).items():
                            self._note_numbers(account, row)
                self._rerun.arrivals.clear()
        for account, changed in output.rows.items():
            if changed is not None:
                self._presence.comes(account, (0, 0))
        for _, frame in output.frames:
            if frame.arrival:
                for account, row in rows_in(frame.arrival).items():
                    self._presence.leaves(account, row)

    def _became_known(self, row: CommittedRow, findings: Findings) -> bool:
        """Whether this is the first row of an account that was not known until now."""
        if self._known is None or row.account in self._known:
            return False
        findings.counts["rows not comparable"] += 1
        if row.value is not None:
            self._rerun.adopt(row.account, row.value)
            self._note_numbers(row.account, row.value)
        return True

    # --- what is left ------------------------------------------------------------------------------------------------

    def _name_what_is_left(self, start: Start) -> None:
        """Commands, alerts and frames in the topics that the replay did not give, though it went over their numbers."""
        if self._last is None:
            self._frames.conclude(start.record.moves or None, self._findings)
        for kind, index in enumerate((self._commands, self._alerts)):
            for name, record in index.unmatched.items():
                account, _, number = name.rpartition(":")
                account = account.removesuffix(":alert") if index is self._alerts else account
                if self._known is not None and account not in self._known:
                    here = self._is_here(account)
                    self._findings.counts[f"{index.topic} records not comparable"] += here
                elif not record.late and number.isdigit() and self._is_covered(account, int(number), kind):
                    self._findings.differ(
                        f"{name} does not follow from the journal", index.topic, record.partition, record.offset
                    )

    def _is_covered(self, account: str, number: int, kind: int) -> bool:
        was_there = self._presence.covers(account, number, kind)
        if was_there is None:
            was_there = kind == 0 or self._is_here(account)
        if not was_there:
            return False
        if self._last is None:
            return True
        if account == shard_account(self._shard):
            return number <= self._rerun.shard.cursor.alert_sequence
        state = self._rerun.shard.accounts.get(account)
        reached = (0, 0) if state is None else (state.liquidation_sequence, state.alert_sequence)
        return number <= reached[kind]

    def _is_here(self, account: str) -> bool:
        """Whether an account that was never seen in the shard would be in this one."""
        layout = self._layout
        return account == shard_account(self._shard) or (
            not layout.is_moving and home_of(account, layout.spread) == self._shard
        )


def find_start(log: Log, shard: int, low: int, end: int, before: int | None) -> Start:
    """Where a replay can begin: the first record of all, or else one that the logs hold everything after.

    That is the last such record below sequence ``before``, or the first one without it.

    Raises:
        AuditError: the journal is empty or lacks the record, or the logs hold too little.
    """
    events_low, marks_low = log.watermarks(EVENTS, shard)[0], log.watermarks(MARKS, 0)[0]
    start: Start | None = None
    seen: JournalRecord | None = None
    for entry in read_journal(log, shard, low, end):
        record = entry.record
        if record is None:
            continue
        if before is not None and record.sequence >= before and seen is not None:
            break
        seen = record
        if events_needed(record) >= events_low and marks_needed(record) >= marks_low:
            start = Start(entry, record, complete=record.sequence == 1)
            if start.complete or before is None:
                break
    if seen is None:
        raise AuditError(f"{JOURNAL}[{shard}] holds no records: no engine has ever committed this shard")
    if start is None or (before is not None and start.record.sequence > before):
        raise AuditError(
            f"shard {shard}: {EVENTS}[{shard}] begins at offset {events_low} and {MARKS} at {marks_low}, {JOURNAL} at "
            f"sequence {_first_sequence(log, shard, low, end)}: they do not hold what a replay from "
            f"{'any record on' if before is None else f'sequence {before}'} needs; begin later with --from. "
            "`margin-clearing verify` checks what needs no inputs"
        )
    return start


def marks_needed(record: JournalRecord) -> int:
    """The first mark record that must be there to go on after ``record``."""
    return first_needed(record.marks_full, record.marks.next)


def events_needed(record: JournalRecord) -> int:
    """The first event frame that must be there to go on after ``record``."""
    early = record.moves.early if record.moves else None
    return record.events.next if early is None else min(record.events.next, early.offset)


def _first_sequence(log: Log, shard: int, low: int, end: int) -> int:
    return next(entry.record.sequence for entry in read_journal(log, shard, low, end) if entry.record is not None)


def _missing(expected: int, sequence: int) -> str:
    if sequence < expected:
        return "a record is there twice or out of order"
    if sequence == expected + 1:
        return f"record {expected} is missing"
    return f"records {expected} to {sequence - 1} are missing"
