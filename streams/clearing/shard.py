"""One shard as a deterministic state machine: parameters, events and marks in, commands, alerts and rows out.

It knows no Kafka, no Redis and no clock but the times in its inputs, so the same inputs in the same order give the same
bytes: that is what makes a replay, a simulation and an audit possible. What it produces is collected until
:meth:`Shard.take` hands it to whoever commits it. This module owns the order of things and the rule of batches; each
part of the work is a module of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from msgspec import UNSET

from schemas.messages import Alert, EventFrame, JournalRecord, LiquidationCommand, MarkFrame, RouterProgress
from schemas.topics import EVENTS, MARKS
from streams.broker.records import UNSTAMPED
from streams.clearing.account import AccountState
from streams.clearing.accounts import Accounts
from streams.clearing.admission import Admission
from streams.clearing.candidates import NO_ROWS, Candidates, as_rows
from streams.clearing.decisions import Decisions
from streams.clearing.events import Events
from streams.clearing.held_back import HeldBack
from streams.clearing.holds import Holds
from streams.clearing.journal import Cursor
from streams.clearing.liquidation_fees import LiquidationFees
from streams.clearing.marks import Marks
from streams.clearing.open_commands import OpenCommands
from streams.clearing.outbox import Outbox, UnappliedEvent
from streams.clearing.plain_rows import PlainRows
from streams.clearing.postings import Postings
from streams.clearing.progress_walk import ProgressWalk
from streams.clearing.relocation import Relocation
from streams.clearing.suspensions import ShardSuspensions
from streams.clearing.undecided import UndecidedWatch
from streams.feeds.sources import Sources
from streams.margin.bands import TriggerIndex
from streams.margin.fixed_point import format_decimal
from streams.margin.limits import OPEN_INTEREST_SYMBOLS_MAX
from streams.margin.parameters import RiskParameters
from streams.margin.portfolio import Portfolio


@dataclass(slots=True)
class Output:
    """Everything to commit at once. ``rows`` holds each changed account's row (None: tombstone), ``frames`` what other
    shards are told, each with its number."""

    journal: JournalRecord
    rows: dict[str, bytes | None] = field(default_factory=dict)
    commands: list[LiquidationCommand] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    unapplied: list[UnappliedEvent] = field(default_factory=list)
    frames: list[tuple[int, EventFrame]] = field(default_factory=list)


class Shard:
    """The accounts of one shard. ``cursor`` is its place in the inputs and in its journal."""

    def __init__(
        self,
        shard: int,
        parameters: RiskParameters | None = None,
        *,
        index: Callable[[Portfolio], TriggerIndex] = TriggerIndex,
    ) -> None:
        self.shard = shard
        self.cursor = Cursor(shard)
        self.portfolio = Portfolio(parameters or RiskParameters.empty())
        ledger = self.portfolio.ledger
        self._outbox = Outbox(self.cursor)
        self._admission = Admission(self.parameters)
        self._marks = Marks(self.cursor, self.portfolio)
        self._accounts = Accounts(shard, ledger, self._admission, self._outbox)
        fees = LiquidationFees(self.cursor, self.portfolio, self._outbox)
        self._commands = OpenCommands(self.cursor, self.portfolio, self._accounts, self._admission, fees, self._outbox)
        postings = Postings(self._accounts, ledger, self._admission, self._commands)
        self._held_back = HeldBack(self.cursor, self._accounts, self._admission, postings, self._outbox)
        self._holds = Holds(self.cursor, self.portfolio, self._accounts, self._outbox)
        self._events = Events(
            self._accounts, ledger, self._commands, postings, self._held_back, self._holds, self._outbox
        )
        self._suspensions = ShardSuspensions(self.cursor, self._accounts, self._outbox)
        self._candidates = Candidates(self.portfolio, self._accounts, index)
        self._relocation = Relocation(self.cursor, self.portfolio, self._accounts, self._commands, self._candidates,
                                      self._events, self._held_back, self._outbox)  # fmt: skip
        self._decisions = Decisions(
            self.cursor,
            self.portfolio,
            self._marks,
            self._accounts,
            self._candidates,
            self._commands,
            self._holds,
            self._outbox,
        )
        self._undecided = UndecidedWatch(
            self.cursor, self.portfolio, self._marks, self._accounts, self._decisions, self._outbox
        )
        self._progress = ProgressWalk(self.cursor, self.portfolio, self._accounts, self._holds, self._events,
                                      self._decisions, self._undecided, self._outbox)  # fmt: skip

    # --- what is there -----------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> RiskParameters:
        """The parameters in force, scaled as the oracle says."""
        return self.portfolio.parameters

    @property
    def accounts(self) -> dict[str, AccountState]:
        """The accounts by name."""
        return self._accounts.by_name

    @property
    def unread(self) -> dict[str, str]:
        """The accounts whose row cannot be read, and why."""
        return self._accounts.unread

    @property
    def events_next(self) -> int:
        """The offset of the next event frame."""
        return self.cursor.events_next

    @property
    def marks_next(self) -> int:
        """The offset of the next mark frame."""
        return self.cursor.marks_next

    @property
    def parameters_next(self) -> int:
        """The offset of the next parameter record."""
        return self.cursor.parameters_next

    @property
    def clock_us(self) -> int:
        """The shard's time, in microseconds since the epoch."""
        return self.cursor.clock.now_us

    @property
    def marks_epoch(self) -> int:
        """The highest epoch of the mark frames walked."""
        return self._marks.epoch

    @property
    def holds_back(self) -> bool:
        """Whether some account has events that wait for parameters."""
        return bool(self._accounts.holding_back)

    @property
    def has_events(self) -> bool:
        """Whether events or parameters are waiting to be committed."""
        return self.cursor.has_batches

    @property
    def has_output(self) -> bool:
        """Whether anything but the passing of marks is waiting to be committed."""
        return self.has_events or not self._outbox.is_empty

    @property
    def has_command(self) -> bool:
        """Whether a command is waiting to be committed."""
        return bool(self._outbox.commands)

    @property
    def has_told(self) -> bool:
        """Whether an alert, a dead letter or a frame for another shard is waiting to be committed."""
        return bool(self._outbox.alerts or self._outbox.unapplied or self._outbox.frames)

    @property
    def unreached(self) -> dict[str, int]:
        """What liquidation does not reach, by kind (``streams.clearing.unreached``), as of the last commit."""
        return self.cursor.unreached.totals()

    def has_live(self, symbol: str) -> bool:
        """Whether ``symbol`` has a mark that may be decided on now."""
        return self._marks.has_live(symbol)

    # --- restoring ---------------------------------------------------------------------------------------------------

    def resume(self, record: JournalRecord, offset: int = -1, sources: Sources | None = None) -> None:
        """Stand where ``record``, the last of the shard's journal, at ``offset`` of it, left off, with ``sources``.

        Without them ``record`` must be one that tells of all sources.
        """
        self.cursor.resume(record, offset)
        self.cursor.sources = sources or Sources(record.sources, offset, record.missing, record.lost)
        self._undecided.resume()

    def restore(self, account: str, row: bytes) -> None:
        """Restore an account from its last row; one that cannot be read is kept as it is, and its account suspended.

        That of an account that has been sent to another shard is only kept until that has it.
        """
        if self._relocation.keeps_away(account):
            return
        state = self._accounts.restore(account, row)
        self._commands.restore(state)
        self._candidates.outdate()
        self.cursor.unreached.count(state)

    def restore_all(self, rows: Mapping[str, bytes], step: int) -> Iterator[None]:
        """Restore accounts that are not there yet, as :meth:`restore`; yields after each ``step`` of them."""
        plain, restore_plain = PlainRows(self.portfolio.ledger, rows), self._accounts.restore_plain
        self._candidates.outdate()
        for count, account in enumerate(sorted(rows)):
            if self._relocation.keeps_away(account):
                continue
            if not restore_plain(account, rows[account], plain):
                self.restore(account, rows[account])
            if count % step == 0:
                yield

    def recall_marks(self, offset: int, frame: MarkFrame, appended: int | None = None) -> None:
        """Learn the prices and scales of a frame walked before the restart, without deciding anything again."""
        if frame.epoch < self._marks.epoch or appended == UNSTAMPED:
            return
        appended = frame.time if appended is None else appended
        clock = self.cursor.clock
        if not clock.is_journaled:
            clock.advance(frame.time, appended, self._marks.skew_us)
        self._marks.learn(offset, frame, appended)
        if clock.is_journaled:
            self._marks.refresh(force=True)
        self._candidates.outdate()
        self._undecided.resume()

    def stand(self) -> None:
        """Have every account decided once at the next marks or events; tell if the journal was not read to its end.

        To be called once the accounts and the prices are there. Nothing comes of it where all was decided before, but
        an earlier version may have decided otherwise, and what was left to decide before a gap went with its process.
        """
        self._accounts.leave_undone(everybody=self.cursor.unread > 0 or bool(self.cursor.gone))
        if self.cursor.unread:
            self._outbox.alert_shard(
                "unreadable",
                f"{self.cursor.unread} records of the shard's journal could not be read: what they decided is known "
                "from the accounts' rows alone, and the marks in between were not walked",
            )
        self._suspensions.tell_gone()

    # --- inputs ------------------------------------------------------------------------------------------------------

    def apply_parameters(self, offset: int, parameters: RiskParameters) -> None:
        """Put ``parameters``, in which the record at ``offset`` is the newest, in force; apply what waited for them.

        Raises:
            ParameterError: the ledger cannot be held in them; those in force stay, and the offset counts as applied.
        """
        self.cursor.open_batch()
        self.cursor.parameters_next = offset + 1
        self._marks.set_parameters(parameters)
        self.cursor.rules_next = offset + 1
        self._read_again()
        self._marks.refresh(force=True)
        self._admission.set_parameters(self.parameters)
        for account in sorted(self._accounts.holding_back):
            self._held_back.apply(self.accounts[account])

    def skip_events(self, offset: int, reason: str | None = None) -> None:
        """Count a record as applied that is no frame, and tell why: whom the events in it concern is not known.

        Without a ``reason`` there is no record at ``offset`` to tell of.
        """
        self.cursor.open_batch()
        self.cursor.events_next = offset + 1
        if reason is not None:
            place = f"{EVENTS}[{self.shard}] offset {offset}"
            what = "is no frame, and whom the events in it concern is not known"
            self._outbox.alert_shard("unreadable", f"{place} {what}: {reason}")

    def admits(self, frame: EventFrame) -> bool:
        """Whether the parameters in force know every symbol, asset and margin group that ``frame`` names, and allow its
        prices, quantities, fees and amounts."""
        return self._admission.admits(frame)

    def apply_events(self, offset: int, frame: EventFrame, appended: int | None = None) -> None:
        """Apply a frame: suspensions, then transfers, fills, reports. :meth:`decide_touched` decides, nothing before:
        what comes between two calls of it is one batch.
        Rows of records that the shard has had, and of sources of which something is missing, are dropped.

        ``appended`` is when the broker appended it, in microseconds, or ``UNSTAMPED``: then it moves no clock. Without
        it (None) the frame's own time counts until a mark frame shows an earlier one.
        """
        self.cursor.open_batch()
        self.cursor.events_next = offset + 1
        if appended is None:
            self.cursor.clock.believe(frame.time)
        else:
            if appended != UNSTAMPED:
                self.cursor.clock.advance(frame.time, appended, self._marks.skew_us)
            if frame.arrival is UNSET and frame.arrived is UNSET:  # else its time is that of another shard's inputs
                self._watch_clock("events", f"{EVENTS}[{self.shard}] offset {offset}", frame.time, appended)
            self.cursor.completeness.hear(self.clock_us)
        self._events.apply(offset, self.cursor.sources.admit(frame, offset))
        self._outbox.alert_shard_of(self.cursor.sources.take_told())
        self._suspensions.apply(frame)
        self._relocation.apply(offset)

    def decide_touched(self, *, everything: bool = False) -> None:
        """Decide the groups that events touched (or, after a parameter change, all of them) at the current marks."""
        changed = self._marks.refresh()
        self.cursor.close_batch()
        touched = self._accounts.agenda.touched
        rows = set(self._accounts.owner) if everything else set(touched)
        if changed:
            rows.update(self.portfolio.rows_with(changed).tolist())
        touched.clear()
        rows |= self._decisions.due()
        if everything:
            self._candidates.outdate()
        decided = as_rows(rows)
        self._decisions.decide(decided)
        self._undecided.look(None if everything else decided)

    def apply_marks(self, offset: int, frame: MarkFrame, appended: int | None = None) -> None:
        """Walk one mark frame: new prices, new time; decide the groups whose band a price has left, or that are due.

        ``appended`` is when the broker appended it, in microseconds (the frame's own time if None). A frame of a lower
        epoch comes late from an oracle that has been replaced: it changes nothing. Nor does one that is ``UNSTAMPED``.
        """
        self.skip_marks(offset)
        if frame.epoch < self._marks.epoch:
            return
        self._holds.asked = False
        skew_us, clock = self._marks.skew_us, self.cursor.clock
        doubtful = appended is None and clock.is_doubtful(frame.time, skew_us)
        appended = frame.time if appended is None else appended
        self._watch_clock("marks", f"{MARKS}[0] offset {offset}", frame.time, appended)
        if appended == UNSTAMPED:
            return
        self._candidates.renew()
        if doubtful:
            clock.believe(frame.time)
        else:
            clock.advance(frame.time, appended, skew_us)
        moved, concerned = self._marks.learn(offset, frame, appended)
        rows = self._candidates.moved(moved)
        if concerned:
            rows.append(self.portfolio.rows_with(concerned))
        if due := self._decisions.due():
            rows.append(as_rows(due))
        if rows:
            self._decisions.decide(np.unique(np.concatenate(rows)))
        self._progress.after_marks(offset)
        self._undecided.look(NO_ROWS)

    def skip_marks(self, offset: int) -> None:
        """Count a record that is no frame, and all before it, as walked."""
        self.cursor.skip_marks(offset)

    def apply_progress(self, offset: int, progress: RouterProgress | None, appended_us: int) -> None:
        """Learn how far a router is (None: from a record that cannot be read, nothing); decide who waited for that.

        Its frames to this shard must have been applied. ``appended_us`` is when the broker appended the record.
        """
        self._progress.walk(offset, progress, appended_us)

    def _read_again(self) -> None:
        """Try the rows again that could not be read: other parameters may hold what they say."""
        for account in sorted(self.unread):
            row = self._accounts.row(account)
            assert row is not None
            self.restore(account, row)
            if account not in self.unread:
                self._outbox.changed.add(account)
                self._held_back.resume_if_whole(self.accounts[account], was_suspended=True)

    def _watch_clock(self, clock: str, place: str, time_us: int, appended_us: int) -> None:
        told = self.cursor.clock.watch(clock, place, time_us, appended_us, self._marks.skew_us)
        if told is not None:
            self._outbox.alert_shard(*told)

    # --- output ------------------------------------------------------------------------------------------------------

    def take(self, worker: str = "", *, with_open_interest: bool = False) -> Output:
        """Hand over everything since the last call, with the journal record that says how it came about."""
        rows: dict[str, bytes | None] = {}
        states, count, written = self.accounts, self.cursor.unreached.count, self._accounts.row
        for account in sorted(self._outbox.changed):
            count(states[account])
            rows[account] = row = written(account)
            if row is None:
                self._accounts.forget(account)
        rows.update(sorted(self._outbox.settled.items()))
        if with_open_interest:
            concerned = [states[account] for account in self.cursor.unreached.accounts]
            self.cursor.unreached.set_notional(_at_stake(self.portfolio, concerned))
        else:
            self.cursor.unreached.set_notional(self.cursor.unreached.notional)
        outbox = self._outbox
        journal = self.cursor.commit_record(
            worker,
            held=len(self._holds),
            accounts=len(rows),
            commands=[command.command_id for command in outbox.commands],
            open_interest=_open_interest(self.portfolio) if with_open_interest else None,
        )
        output = Output(journal, rows, outbox.commands, outbox.alerts, outbox.unapplied, outbox.frames)
        outbox.clear()
        return output


def _at_stake(portfolio: Portfolio, states: Iterable[AccountState]) -> dict[str, str]:
    """What the groups of each kind that liquidation does not reach hold in positions and owe, at the last prices, in
    the unit of account; ``states`` are the accounts that have any."""
    rows: dict[str, set[int]] = {}
    for state in states:
        for group in state.groups.values():
            if state.suspended:
                rows.setdefault("suspended", set()).add(group.row)
            if (kind := group.unreached_kind) is not None:
                rows.setdefault(kind, set()).add(group.row)
    return {kind: format_decimal(portfolio.worth_at_stake(as_rows(rows[kind]))) for kind in sorted(rows)}


def _open_interest(portfolio: Portfolio) -> dict[str, str]:
    """The quantity of all long positions of as many symbols as a record has room for, first those it scales."""
    held = portfolio.ledger.open_interest()
    if len(held) <= OPEN_INTEREST_SYMBOLS_MAX:
        return held
    instruments = portfolio.parameters.instruments
    first = sorted(held, key=lambda symbol: (instruments[symbol].open_interest_scale is None, symbol))
    return {symbol: held[symbol] for symbol in first[:OPEN_INTEREST_SYMBOLS_MAX]}
