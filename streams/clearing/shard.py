"""One shard as a deterministic state machine: parameters, events and marks in, commands, alerts and rows out.

It knows no Kafka, no Redis and no clock but the times in its inputs, so the same inputs in the same order give the same
bytes: that is what makes a replay, a simulation and an audit possible. What it produces is collected until
:meth:`Shard.take` hands it to whoever commits it.
"""

import heapq
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.codec import encode
from schemas.messages import (
    Alert,
    CommandOrder,
    EventFrame,
    Evidence,
    FillColumns,
    JournalRecord,
    LiquidationCommand,
    Mark,
    MarkFrame,
    Range,
    ReportColumns,
    Suspension,
    TransferColumns,
)
from schemas.topics import EVENTS, MARKS
from schemas.types import CROSS, AlertKind, shard_account
from streams.clearing.account import (
    AccountState,
    CommandState,
    GroupState,
    OrderState,
    account_row,
    read_account,
    set_aside,
)
from streams.clearing.clock import CLOCK_RIGHT_US, UNSTAMPED, bounded_us, is_off, skew_reason
from streams.errors import InputError, ShardError
from streams.logs import event
from streams.margin.bands import TriggerIndex
from streams.margin.fixed_point import format_decimal
from streams.margin.health import Health, evaluate
from streams.margin.levels import margin_call_level
from streams.margin.parameters import RiskParameters
from streams.margin.plan import make_plan
from streams.margin.portfolio import Portfolio

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]

COMMAND_NAMES_BYTES_MAX = 300_000
"""Most bytes of command ids in one journal record, which with everything else in it must stay a readable message."""

OPEN_INTEREST_SYMBOLS_MAX = 4096
"""Most symbols whose open interest one journal record tells; parameters scale no more than that by it."""

MARK_AGE_MS_DEFAULT = 5000
"""``max_age_ms`` of a symbol without oracle parameters."""

REASON_MAX = 1000
"""Most characters of a reason in a row or an alert."""


@dataclass(slots=True)
class UnappliedEvent:
    """An event that could not be applied, as a frame of one row that can be repaired and sent again."""

    account: str
    offset: int
    frame: bytes
    error: Exception


@dataclass(slots=True)
class Output:
    """Everything to commit at once. ``rows`` holds each changed account's row (None: tombstone)."""

    journal: JournalRecord
    rows: dict[str, bytes | None] = field(default_factory=dict)
    commands: list[LiquidationCommand] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    unapplied: list[UnappliedEvent] = field(default_factory=list)


@dataclass(slots=True)
class _MarkState:
    status: str
    publish_time: int
    live: bool


class Shard:
    """The accounts of one shard.

    ``events_next``, ``marks_next`` and ``parameters_next`` are the offsets of the next input of each kind;
    ``rules_next`` is the offset after the newest parameter record in force, ``marks_full`` that of the last full mark
    frame applied (-1: none); ``marks_epoch`` is the highest epoch of
    the frames walked.
    """

    def __init__(self, shard: int, parameters: RiskParameters | None = None) -> None:
        self.shard = shard
        self.parameters = parameters or RiskParameters.empty()
        self.portfolio = Portfolio(self.parameters)
        self._index = TriggerIndex(self.portfolio)
        self._index_current = True
        self.accounts: dict[str, AccountState] = {}
        self.events_next = 0
        self.marks_next = 0
        self.parameters_next = 0
        self.rules_next = -1
        self.marks_full = -1
        self.marks_epoch = -1
        self.clock_us = 0
        self.skewed: dict[str, int] = {}
        """The clocks that have been told to be off, and the broker's time when each was last seen so."""
        self._borne_out_us = 0
        self.claim = -1
        self.journal_sequence = 0
        self.journal_previous = -1
        self.alert_sequence = 0
        self.journal_unread = 0
        """Records of the journal that could not be read, until a commit has told of it."""
        self.unread: dict[str, str] = {}
        """The accounts whose row cannot be read, and why."""
        self._owner: dict[int, tuple[AccountState, GroupState]] = {}
        self._levels = np.full(64, np.inf)
        self._marks: dict[str, _MarkState] = {}
        self._scales: dict[str, str] = {}
        self._stale_at_us = 2**62
        self._orders: dict[str, tuple[AccountState, GroupState, OrderState]] = {}
        self._expiries: list[tuple[int, str, int]] = []
        self._overdue: set[int] = set()
        self._undone: set[int] = set()
        self._dirty: set[str] = set()
        self._touched: set[int] = set()
        self._commanded: set[int] = set()
        self._commands: list[LiquidationCommand] = []
        self._alerts: list[Alert] = []
        self._unapplied: list[UnappliedEvent] = []
        self._taken = (0, 0, 0)
        self._marks_before = -1
        self._decided = False

    # --- restoring ---------------------------------------------------------------------------------------------------

    def restore(self, account: str, row: bytes) -> None:
        """Take in an account as its last row says.

        A row that cannot be read is kept as it is and its account suspended: what that row holds is not known, nothing
        can be applied to it, and everybody else in the shard goes on.
        """
        try:
            state = read_account(account, row, self.portfolio)
        except InputError as error:
            reason = f"account {account}: its row cannot be read: {error}"[:REASON_MAX]
            state, known = set_aside(account, row, reason)
            self.unread[account] = reason
            if not known:
                self._alert_shard("unreadable", reason)
                self._dirty.add(account)
            event(log, logging.ERROR, "row_unreadable", shard=self.shard, account=account, reason=reason)
        else:
            self.unread.pop(account, None)
        self._adopt(state)

    def _adopt(self, state: AccountState) -> None:
        self.accounts[state.account] = state
        self._index_current = False
        for group in state.groups.values():
            self._register(state, group)
            if group.command is not None:
                self._track(state, group, group.command)

    def _read_again(self) -> None:
        """Try the rows again that could not be read: other parameters may hold what they say."""
        for account in sorted(self.unread):
            kept = self.accounts[account]
            assert kept.unread is not None
            row = account_row(kept, self.portfolio)
            assert row is not None
            self.restore(account, encode(row))
            if account not in self.unread:
                state = self.accounts[account]
                self._dirty.add(account)
                self._touched.update(group.row for group in state.groups.values())

    def recall_marks(self, offset: int, frame: MarkFrame, appended: int | None = None) -> None:
        """Learn the prices and scales of a frame walked before the restart, without deciding anything again."""
        if frame.epoch < self.marks_epoch or appended == UNSTAMPED:
            return
        marks_next = self.marks_next
        self._learn(offset, frame, frame.time if appended is None else appended)
        self.marks_next = marks_next
        self._index_current = False

    def resume(self, record: JournalRecord) -> None:
        """Stand where ``record``, the last of the shard's journal, left off."""
        self.events_next = record.events.next
        self.marks_next = record.marks.next
        self.parameters_next = record.parameters.next
        self.rules_next = record.rules_next
        self.marks_full = record.marks_full
        self.clock_us = self._borne_out_us = record.clock
        self.skewed = dict(record.skewed)
        self.journal_sequence = record.sequence
        self.alert_sequence = record.alert_sequence
        self.journal_unread = record.unread
        self._taken = (self.events_next, self.marks_next, self.parameters_next)

    def tell_unread_journal(self) -> None:
        """Tell that the journal could not be read to its end, if so, and have every account decided anew.

        To be called once the accounts and the prices are there.
        """
        if self.journal_unread:
            self._undone.update(self._owner)
            self._alert_shard(
                "unreadable",
                f"{self.journal_unread} records of the shard's journal could not be read: what they decided is known "
                "from the accounts' rows alone, and the marks in between were not walked",
            )

    # --- inputs ------------------------------------------------------------------------------------------------------

    def apply_parameters(self, offset: int, parameters: RiskParameters) -> None:
        """Put ``parameters``, in which the record at ``offset`` is the newest, in force.

        Raises:
            ParameterError: the ledger cannot be held in them; those in force stay, and the offset counts as applied.
        """
        self._open_batch()
        self.parameters_next = offset + 1
        self._put_in_force(parameters)
        self.rules_next = offset + 1
        self._read_again()
        self._refresh_liveness(force=True)

    def _put_in_force(self, parameters: RiskParameters) -> None:
        scaled = parameters.with_scales({key: Decimal(scale) for key, scale in self._scales.items()})
        self.portfolio.set_parameters(scaled)
        self.parameters = scaled

    def skip_events(self, offset: int, reason: str | None = None) -> None:
        """Count a record as applied that is no frame, and tell why: whom the events in it concern is not known.

        Without a ``reason`` there is no record at ``offset`` to tell of.
        """
        self._open_batch()
        self.events_next = offset + 1
        if reason is not None:
            self._alert_shard(
                "unreadable",
                f"{EVENTS}[{self.shard}] offset {offset} is no frame, and whom the events in it concern is not known: "
                f"{reason}",
            )

    def knows(self, frame: EventFrame) -> bool:
        """Whether every symbol and asset that ``frame`` names is in the parameters in force."""
        return self.parameters.instruments.keys() >= set(frame.fills.symbol) and self.parameters.assets.keys() >= set(
            frame.transfers.asset
        )

    def apply_events(self, offset: int, frame: EventFrame, appended: int | None = None) -> None:
        """Apply a frame: suspensions, then transfers, fills, reports. :meth:`decide_touched` decides, nothing before.

        ``appended`` is when the broker appended it, in microseconds, or ``UNSTAMPED``: then it moves no clock. Without
        it (None) the frame's own time counts until a mark frame shows an earlier one.
        """
        self._open_batch()
        self.events_next = offset + 1
        if appended is None:
            self.clock_us = max(self.clock_us, frame.time)
        else:
            if appended != UNSTAMPED:
                self._pass_time(frame.time, appended)
            self._watch_clock("events", f"{EVENTS}[{self.shard}] offset {offset}", frame.time, appended)
        self._apply_suspensions(frame.suspensions)
        self._apply_transfers(offset, frame.transfers, frame)
        self._apply_fills(offset, frame.fills, frame)
        self._apply_reports(frame.reports)

    def decide_touched(self, *, everything: bool = False) -> None:
        """Decide the groups that events touched (or, after a parameter change, all of them) at the current marks."""
        self._refresh_liveness()
        self._decided = self._marks_before >= 0
        rows = set(self._owner) if everything else set(self._touched)
        self._touched.clear()
        rows |= self._due()
        self._index_current = self._index_current and not everything
        self._decide(_array(rows))

    def apply_marks(self, offset: int, frame: MarkFrame, appended: int | None = None) -> None:
        """Walk one mark frame: new prices, new time; decide the groups whose band a price has left, or that are due.

        ``appended`` is when the broker appended it, in microseconds (the frame's own time if None). A frame of a lower
        epoch comes late from an oracle that has been replaced: it changes nothing. Nor does one that is ``UNSTAMPED``.
        """
        if frame.epoch < self.marks_epoch:
            self.skip_marks(offset)
            return
        appended = frame.time if appended is None else appended
        self.skip_marks(offset)
        self._watch_clock("marks", f"{MARKS}[0] offset {offset}", frame.time, appended)
        if appended == UNSTAMPED:
            return
        self._renew_index()
        moved, concerned = self._learn(offset, frame, appended)
        found = [self._index.crossed_all(moved)] if moved else []
        if concerned:
            found.append(self.portfolio.rows_with(concerned))
        if due := self._due():
            found.append(_array(due))
        if found:
            self._decide(np.unique(np.concatenate(found)))

    def skip_marks(self, offset: int) -> None:
        """Count a record that is no frame as walked."""
        self.marks_next = max(self.marks_next, offset + 1)

    # --- output ------------------------------------------------------------------------------------------------------

    @property
    def has_events(self) -> bool:
        """Whether events or parameters are waiting to be committed: no further ones may be applied before."""
        return self._marks_before >= 0

    @property
    def has_output(self) -> bool:
        """Whether anything but the passing of marks is waiting to be committed."""
        return bool(self._dirty or self._commands or self._alerts or self._unapplied or self.has_events)

    @property
    def has_command(self) -> bool:
        """Whether a command is waiting to be committed."""
        return bool(self._commands)

    def take(self, worker: str = "", *, with_open_interest: bool = False) -> Output:
        """Hand over everything since the last call, with the journal record that says how it came about."""
        rows: dict[str, bytes | None] = {}
        for account in sorted(self._dirty):
            row = account_row(self.accounts[account], self.portfolio)
            rows[account] = None if row is None else encode(row)
            if row is None:
                self._forget(account)
        journal = self._journal(worker, len(rows), self._open_interest() if with_open_interest else None)
        output = Output(journal, rows, self._commands, self._alerts, self._unapplied)
        self._dirty.clear()
        self._commands, self._alerts, self._unapplied = [], [], []
        self._taken = (self.events_next, self.marks_next, self.parameters_next)
        self._marks_before, self._decided = -1, False
        self.journal_unread = 0
        return output

    def _open_interest(self) -> dict[str, str]:
        """The quantity of all long positions of as many symbols as a record has room for, first those it scales."""
        found = self.portfolio.open_interest()
        if len(found) <= OPEN_INTEREST_SYMBOLS_MAX:
            return found
        instruments = self.parameters.instruments
        first = sorted(found, key=lambda symbol: (instruments[symbol].open_interest_scale is None, symbol))
        return {symbol: found[symbol] for symbol in first[:OPEN_INTEREST_SYMBOLS_MAX]}

    # --- events ------------------------------------------------------------------------------------------------------

    def _apply_suspensions(self, suspensions: Iterable[Suspension]) -> None:
        """Suspend the accounts that a record names which could not be read, each once for a record.

        The records of a partition come in order, so the last one tells those that are read again.
        """
        for found in suspensions:
            state, place = self._account(found.account), f"{found.topic}:{found.partition}"
            if found.offset >= 0:
                if found.offset <= state.refused.get(place, -1):
                    continue
                state.refused[place] = found.offset
            state.unapplied += 1
            where = f"{found.topic}[{found.partition}] offset {found.offset}"
            state.suspended_reason = f"{where}: {found.reason}"[:REASON_MAX]
            self._dirty.add(state.account)
            if state.unread is None:
                self._alert(state, CROSS, "suspended", reason=state.suspended_reason)

    def _apply_transfers(self, offset: int, columns: TransferColumns, frame: EventFrame) -> None:
        for index, account in enumerate(columns.account):
            state = self._account(account)
            sequence = columns.sequence[index]
            if sequence <= state.transfer_sequence and not frame.repaired:
                continue
            try:
                group = self._group(state, columns.margin[index])
                self.portfolio.apply_transfer(group.row, columns.asset[index], columns.amount[index])
            except InputError as error:
                self._suspend(state, offset, frame, "transfers", index, error)
            else:
                self._applied(state, frame)
                self._touched.add(group.row)
            state.transfer_sequence = max(state.transfer_sequence, sequence)
            self._dirty.add(account)

    def _apply_fills(self, offset: int, columns: FillColumns, frame: EventFrame) -> None:
        accounts, orders, portfolio = self.accounts, self._orders, self.portfolio
        touched, dirty = self._touched, self._dirty
        for index, (account, margin, symbol, quantity, price, fee, order_id) in enumerate(
            zip(
                columns.account,
                columns.margin,
                columns.symbol,
                columns.quantity,
                columns.price,
                columns.fee,
                columns.order_id,
                strict=True,
            )
        ):
            state = accounts.get(account)
            if state is None:
                state = self._account(account)
            group = state.groups.get(margin)
            try:
                if group is None:
                    group = self._group(state, margin)
                portfolio.apply_fill(group.row, symbol, quantity, price, fee)
            except InputError as error:
                self._suspend(state, offset, frame, "fills", index, error)
            else:
                touched.add(group.row)
                if frame.repaired:
                    self._applied(state, frame)
                if order_id in orders:
                    self._fill_order(order_id, account, abs(Decimal(quantity)))
            dirty.add(account)

    def _apply_reports(self, columns: ReportColumns) -> None:
        for index, account in enumerate(columns.account):
            tracked = self._orders.get(columns.order_id[index])
            status = columns.status[index]
            if tracked is None or tracked[0].account != account or status == "accepted":
                continue
            state, group, order = tracked
            if order.final is None:
                order.final = Decimal(columns.filled_quantity[index])
                self._dirty.add(state.account)
                self._touched.add(group.row)

    def _fill_order(self, order_id: str, account: str, quantity: Decimal) -> None:
        state, _, order = self._orders[order_id]
        if state.account == account:
            order.filled += quantity

    def _suspend(
        self, state: AccountState, offset: int, frame: EventFrame, kind: str, index: int, error: Exception
    ) -> None:
        state.unapplied += 0 if frame.repaired else 1
        state.suspended_reason = str(error)[:REASON_MAX]
        self._dirty.add(state.account)
        self._unapplied.append(UnappliedEvent(state.account, offset, _one_row(frame, kind, index), error))
        if not frame.repaired and state.unread is None:
            self._alert(state, "cross", "suspended", reason=state.suspended_reason)

    def _applied(self, state: AccountState, frame: EventFrame) -> None:
        if frame.repaired and state.unapplied:
            state.unapplied -= 1
            if not state.unapplied:
                state.suspended_reason = None
                self._touched.update(group.row for group in state.groups.values())

    def _account(self, account: str) -> AccountState:
        state = self.accounts.get(account)
        if state is None:
            state = self.accounts[account] = AccountState(account)
        return state

    def _group(self, state: AccountState, margin: str) -> GroupState:
        group = state.groups.get(margin)
        if group is None:
            if state.unread is not None:
                raise InputError(self.unread[state.account])
            group = GroupState(row=self.portfolio.open_group(state.account, margin), margin=margin)
            state.groups[margin] = group
            self._register(state, group)
        return group

    def _register(self, state: AccountState, group: GroupState) -> None:
        self._owner[group.row] = (state, group)
        while group.row >= self._levels.size:
            self._levels = np.concatenate([self._levels, np.full(self._levels.size, np.inf)])
        self._levels[group.row] = np.inf if group.level is None else float(group.level)

    def _forget(self, account: str) -> None:
        state = self.accounts.pop(account)
        for group in state.groups.values():
            del self._owner[group.row]
            self._overdue.discard(group.row)
            self.portfolio.drop_group(group.row)

    # --- marks and time ----------------------------------------------------------------------------------------------

    @property
    def _skew_us(self) -> int:
        return 1000 * self.parameters.policy.clock_skew_ms_max

    def _pass_time(self, time: int, appended: int) -> None:
        """Let the clock go on to a frame's time, as far as the broker's bears it out.

        What the clock was set to without a broker's time holds until the times that come disagree with it.
        """
        time = bounded_us(time, appended, self._skew_us)
        self._borne_out_us = max(self._borne_out_us, time)
        if self.clock_us > time + self._skew_us:
            self.clock_us = self._borne_out_us
        self.clock_us = max(self.clock_us, time)

    def _watch_clock(self, clock: str, place: str, time: int, appended: int) -> None:
        """Tell once when the clock of a kind of frames is off, and once when it has been right again for a while."""
        if is_off(time, appended, self._skew_us):
            if clock not in self.skewed:
                self._alert_shard("clock_skew", skew_reason(clock, place, time, appended, self._skew_us))
            self.skewed[clock] = self.clock_us if appended == UNSTAMPED else appended
        elif clock in self.skewed and appended > self.skewed[clock] + CLOCK_RIGHT_US:
            del self.skewed[clock]
            self._alert_shard("clock_skew_cleared", f"{place}: the times of {clock} are the broker's again")

    def _learn(self, offset: int, frame: MarkFrame, appended: int) -> tuple[dict[str, Decimal], set[str]]:
        """Take in prices, time and scales; the prices that changed, and the symbols that concern all who hold them:
        their marks have become live, or what they weigh is scaled anew."""
        self.marks_next = offset + 1
        self.marks_epoch = frame.epoch
        self._pass_time(frame.time, appended)
        if frame.full:
            self.marks_full = offset
            concerned = self._rescale(frame.scales)
        else:
            concerned = set()
        moved: dict[str, Decimal] = {}
        for mark in frame.marks:
            published = min(mark.publish_time, appended + self._skew_us)  # a source's clock may be ahead, too
            self._learn_mark(mark, published, moved, concerned)
        self._refresh_liveness()
        return moved, concerned

    def _rescale(self, scales: dict[str, str]) -> set[str]:
        """Put ``scales`` in force; the symbols of the records that are scaled anew."""
        before, self._scales = self._scales, scales
        changed = {key for key in {**before, **scales} if before.get(key) != scales.get(key)}
        if not changed:
            return changed
        self._put_in_force(self.parameters)
        instruments = {symbol for symbol in self.parameters.instruments if f"instrument:{symbol}" in changed}
        priced = {
            rules.price_symbol
            for asset, rules in self.parameters.assets.items()
            if f"asset:{asset}" in changed and rules.price_symbol is not None
        }
        return instruments | priced

    def _learn_mark(self, mark: Mark, published: int, moved: dict[str, Decimal], concerned: set[str]) -> None:
        known = self._marks.get(mark.symbol)
        price = Decimal(mark.price)
        live = mark.status == "live" and self._age_limit(mark.symbol, published) >= self.clock_us
        if self.portfolio.marks.get(mark.symbol) != price:
            moved[mark.symbol] = price
        if live and (known is None or not known.live):
            concerned.add(mark.symbol)
        self._marks[mark.symbol] = _MarkState(mark.status, published, live)
        if live:
            self._stale_at_us = min(self._stale_at_us, self._age_limit(mark.symbol, published))
        if mark.symbol in moved or known is None or known.live != live:
            self.portfolio.set_mark(mark.symbol, price, live)

    def _age_limit(self, symbol: str, publish_time: int) -> int:
        rules = self.parameters.oracle.get(symbol)
        return publish_time + 1000 * (MARK_AGE_MS_DEFAULT if rules is None else rules.max_age_ms)

    def _refresh_liveness(self, *, force: bool = False) -> None:
        """Marks that grew older than their symbol allows are not live any more, whoever stopped publishing them."""
        if self.clock_us <= self._stale_at_us and not force:
            return
        self._stale_at_us = 2**62
        for symbol, mark in self._marks.items():
            limit = self._age_limit(symbol, mark.publish_time)
            live = mark.status == "live" and limit >= self.clock_us
            if live:
                self._stale_at_us = min(self._stale_at_us, limit)
            if live != mark.live:
                mark.live = live
                self.portfolio.set_live(symbol, live)

    def _due(self) -> set[int]:
        """The groups whose command has expired, until they have been decided again."""
        while self._expiries and self._expiries[0][0] < self.clock_us:
            _, command_id, row = heapq.heappop(self._expiries)
            owner = self._owner.get(row)
            if owner is not None and owner[1].command is not None and owner[1].command.command_id == command_id:
                self._overdue.add(row)
        undone, self._undone = self._undone, set()
        return self._overdue | undone

    # --- decisions ---------------------------------------------------------------------------------------------------

    def _decide(self, rows: Rows) -> None:
        """Screen ``rows`` as columns, decide exactly those that the screen cannot rule out."""
        if not rows.size:
            return
        columns = self.portfolio.evaluate(rows)
        if self._index_current:
            self._index.update(rows, columns)
        equity, maintenance, error = columns.equity, columns.maintenance, columns.error
        margined = maintenance > 0
        suspect = margined & (equity - maintenance <= error)
        level_now = np.full(rows.size, np.inf)
        for level in self.parameters.policy.margin_call_levels:
            bound = float(level)
            level_now[margined & (equity - bound * maintenance <= error * (1 + bound))] = bound
        suspect |= level_now != self._levels[rows]
        if self._commanded:
            suspect |= np.isin(rows, np.fromiter(self._commanded, dtype=np.int64, count=len(self._commanded)))
        # By name, not by row: which row a group has depends on when it was restored, and a replay must give the same.
        owners = [self._owner[row] for row in rows[suspect & columns.decidable].tolist()]
        for state, group in sorted(owners, key=lambda owner: (owner[0].account, owner[1].margin)):
            if not state.suspended:
                self._decide_exactly(state, group)

    def _renew_index(self) -> None:
        if not self._index_current:
            self._index.rebuild()
            self._index_current = True

    def _decide_exactly(self, state: AccountState, group: GroupState) -> None:
        command = group.command
        expired = command is not None and command.expires_at < self.clock_us
        if command is not None and not command.closed and not expired:
            return
        view = self.portfolio.group(group.row)
        health = evaluate(view, self.portfolio.marks, self.parameters)
        superseded = command.command_id if command is not None and expired and not command.closed else None
        if command is not None:
            self._drop_command(group, command)
            self._dirty.add(state.account)
        if health.liquidatable:
            self._liquidate(state, group, health, superseded)
        else:
            self._settle(state, group, health)

    def _liquidate(self, state: AccountState, group: GroupState, health: Health, superseded: str | None) -> None:
        plan = make_plan(self.portfolio.group(group.row), self.portfolio.marks, self.parameters)
        state.liquidation_sequence += 1
        command_id = f"{state.account}:{state.liquidation_sequence}"
        expires_at = self.clock_us + 1000 * self.parameters.policy.command_ttl_ms
        orders = tuple(
            CommandOrder(
                order_id=f"{command_id}:{index}",
                symbol=order.symbol,
                position_side=order.position_side,
                order_side=order.order_side,
                quantity=format_decimal(order.quantity),
                reduce_only=True,
                limit_price=format_decimal(order.limit_price),
                mark_price=format_decimal(order.mark_price),
            )
            for index, order in enumerate(plan.orders)
        )
        self._commands.append(
            LiquidationCommand(
                command_id=command_id,
                account=state.account,
                margin=group.margin,
                sequence=state.liquidation_sequence,
                stage=plan.stage,
                supersedes=superseded,
                cancel_open_orders=True,
                issued_at=self.clock_us,
                expires_at=expires_at,
                orders=orders,
                evidence=self._evidence(group, health),
            )
        )
        group.command = CommandState(
            command_id=command_id,
            stage=plan.stage,
            expires_at=expires_at,
            orders=[OrderState(order.order_id, Decimal(order.quantity)) for order in orders],
        )
        self._track(state, group, group.command)
        if group.status not in ("liquidating", "bankrupt"):
            self._alert(state, group.margin, "liquidation_started", health=health)
        if plan.stage == "takeover" and group.status != "bankrupt":
            self._alert(state, group.margin, "bankrupt", health=health)
        group.status = "bankrupt" if plan.stage == "takeover" else "liquidating"
        self._dirty.add(state.account)

    def _settle(self, state: AccountState, group: GroupState, health: Health) -> None:
        """A group that need not be liquidated: leave a liquidation behind, and take the margin-call level it is at."""
        if group.status in ("liquidating", "bankrupt"):
            self._alert(state, group.margin, "liquidation_completed", health=health)
            self._dirty.add(state.account)
        level = margin_call_level(health.health_ratio, self.parameters.policy.margin_call_levels, group.level)
        if level != group.level:
            if level is None:
                self._alert(state, group.margin, "margin_call_cleared", health=health, level=group.level)
            elif group.level is None or level < group.level:
                self._alert(state, group.margin, "margin_call", health=health, level=level)
            group.level = level
            self._levels[group.row] = np.inf if level is None else float(level)
            self._dirty.add(state.account)
        group.status = "normal" if level is None else "margin_call"

    def _track(self, state: AccountState, group: GroupState, command: CommandState) -> None:
        for order in command.orders:
            self._orders[order.order_id] = (state, group, order)
        self._commanded.add(group.row)
        heapq.heappush(self._expiries, (command.expires_at, command.command_id, group.row))

    def _drop_command(self, group: GroupState, command: CommandState) -> None:
        for order in command.orders:
            self._orders.pop(order.order_id, None)
        group.command = None
        self._commanded.discard(group.row)
        self._overdue.discard(group.row)

    def _evidence(self, group: GroupState, health: Health) -> Evidence:
        symbols = self._priced_by(group)
        return Evidence(
            equity=format_decimal(health.equity),
            maintenance_margin=format_decimal(health.maintenance_margin),
            health_ratio=format_decimal(health.health_ratio or Decimal(0)),
            shard=self.shard,
            events_offset=self.events_next - 1,
            marks_offset=self.marks_next - 1,
            parameters_version=self.parameters_next - 1,
            marks={symbol: format_decimal(self.portfolio.marks[symbol]) for symbol in sorted(symbols)},
            reason="equity_not_positive" if health.equity <= 0 else "equity_below_maintenance",
            scales={key: scale for key in sorted(self._scaled_by(group)) if (scale := self._scales.get(key))},
        )

    def _alert(
        self,
        state: AccountState,
        margin: str,
        kind: AlertKind,
        *,
        health: Health | None = None,
        level: Decimal | None = None,
        reason: str | None = None,
    ) -> None:
        state.alert_sequence += 1
        ratio = None if health is None else health.health_ratio
        self._alerts.append(
            Alert(
                alert_id=f"{state.account}:alert:{state.alert_sequence}",
                account=state.account,
                margin=margin,
                kind=kind,
                level=None if level is None else format_decimal(level),
                health_ratio=None if ratio is None else format_decimal(ratio),
                equity=None if health is None else format_decimal(health.equity),
                maintenance_margin=None if health is None else format_decimal(health.maintenance_margin),
                marks_offset=self.marks_next - 1,
                event_time=self.clock_us,
                reason=reason,
            )
        )
        self._dirty.add(state.account)
        event(log, logging.DEBUG, "alert", account=state.account, margin=margin, kind=kind)

    def _alert_shard(self, kind: AlertKind, reason: str, symbol: str | None = None) -> None:
        """An alert about the shard as a whole."""
        self.alert_sequence += 1
        account = shard_account(self.shard)
        self._alerts.append(
            Alert(
                alert_id=f"{account}:alert:{self.alert_sequence}",
                account=account,
                margin=CROSS,
                kind=kind,
                level=None,
                health_ratio=None,
                equity=None,
                maintenance_margin=None,
                marks_offset=self.marks_next - 1,
                event_time=self.clock_us,
                reason=reason[:REASON_MAX],
                symbol=symbol,
            )
        )

    def _priced_by(self, group: GroupState) -> set[str]:
        """The symbols whose marks the group's equity depends on."""
        instruments, assets = self.parameters.instruments, self.parameters.assets
        held = [symbol for symbol, _, _ in self.portfolio.positions(group.row)]
        named = {*self.portfolio.balances(group.row), *(instruments[symbol].settle_asset for symbol in held)}
        priced = (assets[asset].price_symbol for asset in named)
        return {*held, *(symbol for symbol in priced if symbol is not None)}

    def _scaled_by(self, group: GroupState) -> set[str]:
        """The keys of the parameter records whose rates or haircuts the group's verdict depends on."""
        held = [symbol for symbol, _, _ in self.portfolio.positions(group.row)]
        return {f"instrument:{symbol}" for symbol in held} | {
            f"asset:{asset}" for asset in self.portfolio.balances(group.row)
        }

    # --- journal -----------------------------------------------------------------------------------------------------

    def _open_batch(self) -> None:
        """Parameters and events of one commit are one batch, decided once: a replay must find the same batches."""
        if self._decided:
            raise ShardError(f"shard {self.shard}: events after a decision must wait for its commit")
        if self._marks_before < 0:
            self._marks_before = self.marks_next

    def _journal(self, worker: str, accounts: int, open_interest: dict[str, str] | None) -> JournalRecord:
        self.journal_sequence += 1
        named = _first_names([command.command_id for command in self._commands])
        events_first, marks_first, parameters_first = self._taken
        return JournalRecord(
            kind="commit",
            shard=self.shard,
            claim=self.claim,
            sequence=self.journal_sequence,
            previous=self.journal_previous,
            events=Range(first=events_first, next=self.events_next),
            marks=Range(first=marks_first, next=self.marks_next),
            parameters=Range(first=parameters_first, next=self.parameters_next),
            marks_before=self._marks_before if self._marks_before >= 0 else self.marks_next,
            marks_full=self.marks_full,
            clock=self.clock_us,
            skewed=dict(sorted(self.skewed.items())),
            rules_next=self.rules_next,
            accounts=accounts,
            commands=named,
            command_count=-1 if len(named) == len(self._commands) else len(self._commands),
            alert_sequence=self.alert_sequence,
            open_interest=open_interest,
            worker=worker,
        )


def _first_names(names: list[str]) -> tuple[str, ...]:
    """As many of ``names``, from the first on, as a journal record has room for."""
    room = COMMAND_NAMES_BYTES_MAX
    for index, name in enumerate(names):
        room -= len(name) + 3
        if room < 0:
            return tuple(names[:index])
    return tuple(names)


def _array(rows: set[int]) -> Rows:
    return np.array(sorted(rows), dtype=np.int64)


def _one_row(frame: EventFrame, kind: str, index: int) -> bytes:
    """The event at ``index`` of ``kind`` as a frame of its own, ready to be repaired and sent again."""
    columns: Any = getattr(frame, kind)
    row = type(columns)(**{name: [getattr(columns, name)[index]] for name in columns.__struct_fields__})
    return encode(EventFrame(time=frame.time, repaired=True, **{kind: row}))
