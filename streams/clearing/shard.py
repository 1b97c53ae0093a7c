"""One shard as a deterministic state machine: parameters, events and marks in, commands, alerts and rows out.

It knows no Kafka, no Redis and no clock but the times in its inputs, so the same inputs in the same order give the same
bytes: that is what makes a replay, a simulation and an audit possible. What it produces is collected until
:meth:`Shard.take` hands it to whoever commits it.
"""

import heapq
import logging
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.codec import DecodeError, Decoder, encode
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
    ParkedTransfer,
    Range,
    ReportColumns,
    Suspension,
    TransferColumns,
    WaitingFill,
)
from schemas.topics import EVENTS, MARKS
from schemas.types import CROSS, AlertKind, GroupStatus, shard_account
from streams.broker.records import UNSTAMPED
from streams.clearing.account import (
    PARKED_MAX,
    REFUSED_PLACES_MAX,
    WAITING_FILLS_MAX,
    WITHOUT_ORDERS,
    AccountState,
    CommandState,
    GroupState,
    OrderState,
    account_row,
    read_account,
    set_aside,
)
from streams.clearing.admission import Admission
from streams.clearing.awaited import AwaitedMarks
from streams.clearing.clock import CLOCK_RIGHT_US, bounded_us, is_off, skew_reason
from streams.clearing.unreached import Unreached
from streams.errors import ContradictionError, InputError, ShardError
from streams.logs import event
from streams.margin.bands import TriggerIndex
from streams.margin.fixed_point import format_decimal
from streams.margin.health import Health, evaluate, symbols_of
from streams.margin.levels import margin_call_level
from streams.margin.limits import (
    ACCOUNT_ORDERS_MAX,
    ISOLATED_ASSETS_MAX,
    ISOLATED_GROUPS_MAX,
    OPEN_INTEREST_SYMBOLS_MAX,
)
from streams.margin.parameters import RiskParameters
from streams.margin.plan import Plan, make_plan
from streams.margin.portfolio import Portfolio

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]

_PARKED, _WAITING = Decoder[ParkedTransfer](ParkedTransfer), Decoder[WaitingFill](WaitingFill)

_NO_ROWS: Rows = np.empty(0, dtype=np.int64)

COMMAND_NAMES_BYTES_MAX = 300_000
"""Most bytes of command ids in one journal record, which with everything else in it must stay a readable message."""

MARK_AGE_MS_DEFAULT = 5000
"""``max_age_ms`` of a symbol without oracle parameters."""

REASON_MAX = 1000
"""Most characters of a reason in a row or an alert."""

_SECOND_US = 1_000_000


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
        self._is_clock_journaled = False
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
        self._admission = Admission(self.parameters)
        self._holding_back: set[str] = set()
        self._unreached = Unreached()
        self.unreached_notional: dict[str, str] = {}
        """What is at stake in each kind of what liquidation does not reach, as of the last idle journal record."""
        self.awaited = AwaitedMarks()
        self._liveness_changed = False
        self._looked_s = 0
        self._orders: dict[str, tuple[AccountState, GroupState, OrderState]] = {}
        self._expiries: list[tuple[int, str, int]] = []
        self._overdue: set[int] = set()
        self._undone: set[int] = set()
        self._dirty: set[str] = set()
        self._touched: set[int] = set()
        self._watched: set[int] = set()
        self._stranded: set[int] = set()
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
            state = read_account(account, row, self.portfolio.ledger)
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
        if state.holds_back:
            self._holding_back.add(state.account)
        for group in state.groups.values():
            self._register(state, group)
            if group.command is not None:
                self._track(state, group, group.command)
        self._unreached.count(state)

    def _read_again(self) -> None:
        """Try the rows again that could not be read: other parameters may hold what they say."""
        for account in sorted(self.unread):
            kept = self.accounts[account]
            assert kept.unread is not None
            row = account_row(kept, self.portfolio.ledger)
            assert row is not None
            self.restore(account, encode(row))
            if account not in self.unread:
                self._dirty.add(account)
                self._resume_if_whole(self.accounts[account], was_suspended=True)

    def recall_marks(self, offset: int, frame: MarkFrame, appended: int | None = None) -> None:
        """Learn the prices and scales of a frame walked before the restart, without deciding anything again."""
        if frame.epoch < self.marks_epoch or appended == UNSTAMPED:
            return
        marks_next, clock = self.marks_next, (self.clock_us, self._borne_out_us)
        self._learn(offset, frame, frame.time if appended is None else appended)
        self.marks_next = marks_next
        if self._is_clock_journaled:  # it says what the clock was, under the policy of then
            self.clock_us, self._borne_out_us = clock
            self._refresh_liveness(force=True)
        self._index_current = False
        self._liveness_changed, self._looked_s = False, self.clock_us // _SECOND_US

    def resume(self, record: JournalRecord) -> None:
        """Stand where ``record``, the last of the shard's journal, left off."""
        self.events_next = record.events.next
        self.marks_next = record.marks.next
        self.parameters_next = record.parameters.next
        self.rules_next = record.rules_next
        self.marks_full = record.marks_full
        self.clock_us = self._borne_out_us = record.clock
        self._is_clock_journaled = record.clock > 0 and not record.unread
        self.skewed = dict(record.skewed)
        self.journal_sequence = record.sequence
        self.alert_sequence = record.alert_sequence
        self.awaited.resume(record.not_live, record.told_not_live)
        self._looked_s = self.clock_us // _SECOND_US
        self._unreached.resume(record.unreached)
        self.unreached_notional = dict(record.unreached_notional)
        self.journal_unread = record.unread
        self._taken = (self.events_next, self.marks_next, self.parameters_next)

    def stand(self) -> None:
        """Have every account decided once at the next marks or events; tell if the journal was not read to its end.

        To be called once the accounts and the prices are there.

        Nothing comes of it where all was decided before, but an earlier version may have decided otherwise, and what
        was left to decide after an unreadable journal went with the process that died.
        """
        self._undone.update(self._owner)
        if self.journal_unread:
            self._alert_shard(
                "unreadable",
                f"{self.journal_unread} records of the shard's journal could not be read: what they decided is known "
                "from the accounts' rows alone, and the marks in between were not walked",
            )

    # --- inputs ------------------------------------------------------------------------------------------------------

    def apply_parameters(self, offset: int, parameters: RiskParameters) -> None:
        """Put ``parameters``, in which the record at ``offset`` is the newest, in force; apply what waited for them.

        Raises:
            ParameterError: the ledger cannot be held in them; those in force stay, and the offset counts as applied.
        """
        self._open_batch()
        self.parameters_next = offset + 1
        self._put_in_force(parameters)
        self.rules_next = offset + 1
        self._read_again()
        self._refresh_liveness(force=True)
        self._admission = Admission(self.parameters)
        for account in sorted(self._holding_back):
            self._apply_held_back(self.accounts[account])

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

    def admits(self, frame: EventFrame) -> bool:
        """Whether the parameters in force know every symbol, asset and margin group that ``frame`` names, and allow its
        prices, quantities, fees and amounts."""
        return self._admission.admits(frame)

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
        changed = self._refresh_liveness()
        self._decided = self._marks_before >= 0
        rows = set(self._owner) if everything else set(self._touched)
        if changed:
            rows.update(self.portfolio.rows_with(changed).tolist())
        self._touched.clear()
        rows |= self._due()
        self._index_current = self._index_current and not everything
        found = _array(rows)
        self._decide(found)
        self._look_at_awaited(None if everything else found)

    def apply_marks(self, offset: int, frame: MarkFrame, appended: int | None = None) -> None:
        """Walk one mark frame: new prices, new time; decide the groups whose band a price has left, or that are due.

        ``appended`` is when the broker appended it, in microseconds (the frame's own time if None). A frame of a lower
        epoch comes late from an oracle that has been replaced: it changes nothing. Nor does one that is ``UNSTAMPED``.
        """
        if frame.epoch < self.marks_epoch:
            self.skip_marks(offset)
            return
        doubtful = appended is None and frame.time > max(self._borne_out_us, self.clock_us) + self._skew_us
        appended = frame.time if appended is None else appended
        self.skip_marks(offset)
        self._watch_clock("marks", f"{MARKS}[0] offset {offset}", frame.time, appended)
        if appended == UNSTAMPED:
            return
        self._renew_index()
        moved, concerned = self._learn(offset, frame, appended, doubtful=doubtful)
        found = [self._index.crossed_all(moved), self._stranded_with(moved)] if moved else []
        if concerned:
            found.append(self.portfolio.rows_with(concerned))
        if due := self._due():
            found.append(_array(due))
        if found:
            self._decide(np.unique(np.concatenate(found)))
        self._look_at_awaited(_NO_ROWS)

    def skip_marks(self, offset: int) -> None:
        """Count a record that is no frame as walked."""
        self.marks_next = max(self.marks_next, offset + 1)

    # --- output ------------------------------------------------------------------------------------------------------

    @property
    def holds_back(self) -> bool:
        """Whether some account has events that wait for parameters."""
        return bool(self._holding_back)

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

    @property
    def unreached(self) -> dict[str, int]:
        """What liquidation does not reach, by kind (``streams.clearing.unreached``), as of the last commit."""
        return self._unreached.totals()

    @property
    def unreached_before(self) -> dict[str, int]:
        """What the journal's last record counted, before the accounts were restored."""
        return dict(self._unreached.before)

    def take(self, worker: str = "", *, with_open_interest: bool = False) -> Output:
        """Hand over everything since the last call, with the journal record that says how it came about."""
        rows: dict[str, bytes | None] = {}
        for account in sorted(self._dirty):
            self._unreached.count(self.accounts[account])
            row = account_row(self.accounts[account], self.portfolio.ledger)
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
        found = self.portfolio.ledger.open_interest()
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
                if len(state.refused) > REFUSED_PLACES_MAX:
                    del state.refused[min(state.refused.keys() - {place})]
            state.unapplied += 1
            self._suspend(state, f"{found.topic}[{found.partition}] offset {found.offset}: {found.reason}")

    def _apply_transfers(self, offset: int, columns: TransferColumns, frame: EventFrame) -> None:
        for index, account in enumerate(columns.account):
            state = self._account(account)
            sequence = columns.sequence[index]
            verdict, digest = state.transfers.take(sequence), _digest(columns, index)
            if verdict == "repeat" and not frame.repaired:
                if sequence == state.transfers.last and state.transfer_digest not in (0, digest):
                    error = ContradictionError(
                        f"transfer {columns.transfer_id[index]} has sequence {sequence}, as one that was applied and "
                        "says something else"
                    )
                    credit = not columns.amount[index].startswith("-")
                    self._refuse(state, offset, frame, "transfers", index, error, credit=credit)
                continue
            if verdict == "new" and sequence == state.transfers.last:
                state.transfer_digest = digest
            self._dirty.add(account)
            transfer = ParkedTransfer(
                transfer_id=columns.transfer_id[index],
                sequence=sequence,
                margin=columns.margin[index],
                asset=columns.asset[index],
                amount=columns.amount[index],
                offset=offset,
            )
            was_suspended = state.suspended
            if frame.repaired:
                self._replace_parked(state, transfer)
            try:
                if verdict == "unknown" and not frame.repaired:
                    raise InputError(
                        f"transfer sequence {sequence} may be a repeat: which have come is known from "
                        f"{state.transfers.floor} on"
                    )
                self._transfer(state, transfer)
            except InputError as error:
                is_doubtful = verdict == "unknown" and not frame.repaired
                if is_doubtful or not self._park(state, transfer, error):
                    credit = _is_readable(transfer) and Decimal(transfer.amount) > 0
                    self._refuse(state, offset, frame, "transfers", index, error, credit=credit)
                    continue
            if frame.repaired:
                _take_back(state, credit=not transfer.amount.startswith("-"))
            self._resume_if_whole(state, was_suspended)

    def _transfer(self, state: AccountState, transfer: ParkedTransfer) -> None:
        """Apply a transfer.

        Raises:
            InputError: it cannot be; no balance has changed.
        """
        margin, asset = transfer.margin, transfer.asset
        if (reason := self._admission.refuses_transfer(margin, asset, transfer.amount)) is not None:
            raise InputError(reason)
        group = self._group(state, margin)
        if margin != CROSS:
            held = self.portfolio.balances(group.row)
            if asset not in held and len(held) >= ISOLATED_ASSETS_MAX:
                raise InputError(f"margin {margin}: an isolated group holds at most {ISOLATED_ASSETS_MAX} assets")
        self.portfolio.ledger.apply_transfer(group.row, asset, transfer.amount)
        self._touched.add(group.row)

    def _apply_fills(self, offset: int, columns: FillColumns, frame: EventFrame) -> None:
        accounts, orders, ledger = self.accounts, self._orders, self.portfolio.ledger
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
            dirty.add(account)
            if frame.repaired or state.waiting_fills:
                self._apply_fill_in_turn(state, offset, columns, index, frame)
                continue
            group = state.groups.get(margin)
            try:
                if group is None:
                    group = self._group(state, margin)
                ledger.apply_fill(group.row, symbol, quantity, price, fee)
            except InputError as error:
                if not self._hold_back(state, _waiting_fill(columns, index, offset), error):
                    self._refuse(state, offset, frame, "fills", index, error)
            else:
                touched.add(group.row)
                if order_id in orders or ":" in order_id:
                    self._count_fill(state, group, symbol, quantity, order_id)

    def _apply_fill_in_turn(
        self, state: AccountState, offset: int, columns: FillColumns, index: int, frame: EventFrame
    ) -> None:
        """Apply a fill that is repaired, or whose account has fills that wait: behind those that it must follow."""
        was_suspended = state.suspended
        fill = _waiting_fill(columns, index, offset)
        if frame.repaired:
            self._replace_waiting(state, fill)
        try:
            if state.waits_behind(fill.margin, fill.symbol):
                if len(state.waiting_fills) >= WAITING_FILLS_MAX:
                    raise InputError(f"symbol {fill.symbol}: {WAITING_FILLS_MAX} fills wait for parameters already")
                state.waiting_fills.append(fill)
            else:
                self._fill(state, fill)
        except InputError as error:
            if not self._hold_back(state, fill, error):
                self._refuse(state, offset, frame, "fills", index, error)
                return
        if frame.repaired:
            _take_back(state, credit=False)
        self._resume_if_whole(state, was_suspended)

    def _fill(self, state: AccountState, fill: WaitingFill) -> None:
        """Apply a fill.

        Raises:
            InputError: it cannot be; nothing held has changed.
        """
        group = self._group(state, fill.margin)
        self.portfolio.ledger.apply_fill(group.row, fill.symbol, fill.quantity, fill.price, fill.fee)
        self._touched.add(group.row)
        self._count_fill(state, group, fill.symbol, fill.quantity, fill.order_id)

    def _count_fill(self, state: AccountState, group: GroupState, symbol: str, quantity: str, order_id: str) -> None:
        """Count a fill for the order of a command whose id it carries, if it is one of that order; else tell."""
        tracked = self._orders.get(order_id)
        if tracked is None:
            commanded = self.accounts.get(order_id.rpartition(":")[0].rpartition(":")[0])
            if commanded is not None and _is_order_of(commanded, order_id):
                self._tell_mismatch(state, group, symbol, order_id, "its command is not open any more")
            return
        owner, owned, order = tracked
        filled = Decimal(quantity)
        side = "buy" if filled > 0 else "sell"
        if owner is not state or owned is not group:
            self._tell_mismatch(state, group, symbol, order_id, "it is an order of another account or margin group")
        elif order.symbol not in (None, symbol) or order.side not in (None, side):
            self._tell_mismatch(state, group, symbol, order_id, f"the order is to {order.side} {order.symbol}")
        else:
            order.filled += abs(filled)
            if order.filled > order.quantity:
                reason = f"{format_decimal(order.filled)} filled of {format_decimal(order.quantity)}"
                self._tell_mismatch(state, group, symbol, order_id, reason)

    def _tell_mismatch(self, state: AccountState, group: GroupState, symbol: str, order_id: str, reason: str) -> None:
        text = f"a fill in {symbol} carries order_id {order_id}: {reason}"
        self._alert(state, group.margin, "fill_mismatch", reason=text, symbol=symbol)

    def _apply_reports(self, columns: ReportColumns) -> None:
        for index, account in enumerate(columns.account):
            tracked = self._orders.get(columns.order_id[index])
            status = columns.status[index]
            if tracked is None or tracked[0].account != account or status == "accepted":
                continue
            state, group, order = tracked
            if group.command is None or group.command.command_id != columns.command_id[index]:
                continue
            if order.final is None:
                order.final = Decimal(columns.filled_quantity[index])
                self._dirty.add(state.account)
                self._touched.add(group.row)

    # --- what cannot be applied --------------------------------------------------------------------------------------

    def _refuse(
        self,
        state: AccountState,
        offset: int,
        frame: EventFrame,
        kind: str,
        index: int,
        error: Exception,
        *,
        credit: bool = False,
    ) -> None:
        """Put an event into the dead letters, where it waits for somebody; its account is suspended until then.

        But not for a ``credit``: without it the account is no better than it is, and a deposit of dust must not shield
        it.
        """
        self._unapplied.append(UnappliedEvent(state.account, offset, _one_row(frame, kind, index), error))
        self._dirty.add(state.account)
        if frame.repaired:
            return
        if credit and state.unread is None:
            state.unapplied_credits += 1
            columns = frame.transfers
            what = f"{columns.amount[index]} {columns.asset[index]} of transfer {columns.transfer_id[index]}"
            reason = f"{what} are in the dead letters: {error}"
            self._alert(state, columns.margin[index], "credit_parked", reason=reason[:REASON_MAX])
            return
        state.unapplied += 1
        self._suspend(state, str(error))

    def _suspend(self, state: AccountState, reason: str) -> None:
        """Tell that an account is suspended for one event more."""
        state.suspended_reason = reason[:REASON_MAX]
        self._dirty.add(state.account)
        if state.unread is None:
            self._alert(state, CROSS, "suspended", reason=state.suspended_reason)
        self._touched.update(group.row for group in state.groups.values())

    def _park(self, state: AccountState, transfer: ParkedTransfer, error: InputError) -> bool:
        """Keep a transfer that cannot be applied until parameters admit it, if they may and there is room.

        A credit cannot make the account worse, so the account goes on without it, and without a debit that parked
        credits of the same group and asset cover. Any other debit suspends it meanwhile.
        """
        if not _is_readable(transfer):
            return False
        amount = Decimal(transfer.amount)
        admitted = self._admission.refuses_transfer(transfer.margin, transfer.asset, transfer.amount) is None
        net = state.net_parked(transfer.margin, transfer.asset) + amount
        if state.unread is not None or len(state.parked) >= PARKED_MAX or (admitted and net < 0):
            return False
        was_suspended = state.suspended
        state.parked.append(transfer)
        self._holding_back.add(state.account)
        if amount > 0:
            reason = f"{transfer.amount} {transfer.asset} of transfer {transfer.transfer_id} wait: {error}"
            self._alert(state, transfer.margin, "credit_parked", reason=reason[:REASON_MAX])
        if net < 0 and (amount < 0 or not was_suspended or state.suspended_reason is None):
            self._suspend(state, str(error))
        return True

    def _hold_back(self, state: AccountState, fill: WaitingFill, error: InputError) -> bool:
        """Keep a fill that the parameters do not admit until others do, if there is room."""
        refused = self._admission.refuses_fill(fill.symbol, fill.quantity, fill.price, fill.fee)
        if state.unread is not None or refused is None or len(state.waiting_fills) >= WAITING_FILLS_MAX:
            return False
        if not _is_readable(fill):
            return False
        state.waiting_fills.append(fill)
        self._holding_back.add(state.account)
        self._suspend(state, str(error))
        return True

    def _apply_held_back(self, state: AccountState) -> None:
        """Apply what has waited for the parameters that are in force now, in the order of the log."""
        was_suspended = state.suspended
        parked, state.parked = state.parked, []
        for transfer in parked:
            credit = Decimal(transfer.amount) > 0
            try:
                self._transfer(state, transfer)
            except InputError as error:
                refused = self._admission.refuses_transfer(transfer.margin, transfer.asset, transfer.amount)
                if credit or refused is not None or state.net_parked(transfer.margin, transfer.asset) > 0:
                    state.parked.append(transfer)
                else:
                    self._give_up(state, transfer.offset, _frame_of(state.account, transfer, self.clock_us), error)
                continue
            self._dirty.add(state.account)
            if credit:
                reason = f"{transfer.amount} {transfer.asset} of transfer {transfer.transfer_id} are applied"
                self._alert(state, transfer.margin, "credit_applied", reason=reason)
        waiting, state.waiting_fills = state.waiting_fills, []
        for fill in waiting:
            if state.waits_behind(fill.margin, fill.symbol):
                state.waiting_fills.append(fill)
                continue
            try:
                self._fill(state, fill)
            except InputError as error:
                if self._admission.refuses_fill(fill.symbol, fill.quantity, fill.price, fill.fee) is not None:
                    state.waiting_fills.append(fill)
                else:
                    self._give_up(state, fill.offset, _frame_of(state.account, fill, self.clock_us), error)
                continue
            self._dirty.add(state.account)
        if not state.holds_back:
            self._holding_back.discard(state.account)
        self._resume_if_whole(state, was_suspended)

    def _give_up(self, state: AccountState, offset: int, frame: EventFrame, error: InputError) -> None:
        """Parameters admit an event that waited, and still it cannot be applied: somebody must repair it."""
        kind = "fills" if frame.fills.account else "transfers"
        credit = kind == "transfers" and Decimal(frame.transfers.amount[0]) > 0
        self._refuse(state, offset, msgspec.structs.replace(frame, repaired=False), kind, 0, error, credit=credit)

    def _replace_parked(self, state: AccountState, repaired: ParkedTransfer) -> None:
        """A repaired transfer takes the place of the parked one with its sequence, which goes to the dead letters."""
        for held in [held for held in state.parked if held.sequence == repaired.sequence]:
            state.parked.remove(held)
            if repaired.amount.startswith("-"):
                state.unapplied += 1  # the repaired one takes it back
            else:
                state.unapplied_credits += 1
            self._replaced(state, held)

    def _replace_waiting(self, state: AccountState, repaired: WaitingFill) -> None:
        """A repaired fill takes the place of the waiting one of its trade and order, which goes to the dead letters."""
        for held in state.waiting_fills:
            if (held.trade_id, held.order_id) == (repaired.trade_id, repaired.order_id):
                state.waiting_fills.remove(held)
                state.unapplied += 1  # the repaired one takes it back
                self._replaced(state, held)
                return

    def _replaced(self, state: AccountState, held: ParkedTransfer | WaitingFill) -> None:
        error = InputError("a repaired event has taken its place")
        frame = encode(_frame_of(state.account, held, self.clock_us))
        self._unapplied.append(UnappliedEvent(state.account, held.offset, frame, error))
        if not state.holds_back:
            self._holding_back.discard(state.account)

    def _resume_if_whole(self, state: AccountState, was_suspended: bool) -> None:
        """Tell that a suspension has been lifted, and let every group of the account be decided."""
        if not was_suspended or state.suspended:
            return
        state.suspended_reason, state.told_liquidatable = None, False
        self._alert(state, CROSS, "resumed")
        self._touched.update(group.row for group in state.groups.values())

    def _account(self, account: str) -> AccountState:
        state = self.accounts.get(account)
        if state is None:
            state = self.accounts[account] = AccountState(account)
        return state

    def _group(self, state: AccountState, margin: str) -> GroupState:
        """The margin group of an account, made if it is not there.

        Raises:
            InputError: there can be no such group, or the account has too many.
        """
        group = state.groups.get(margin)
        if group is None:
            if state.unread is not None:
                raise InputError(self.unread[state.account])
            self._make_room(state, margin)
            group = GroupState(row=self.portfolio.ledger.open_group(state.account, margin), margin=margin)
            state.groups[margin] = group
            self._register(state, group)
        return group

    def _make_room(self, state: AccountState, margin: str) -> None:
        if margin == CROSS:
            return
        if (reason := self._admission.refuses_margin(margin)) is not None:
            raise InputError(reason)
        isolated = [group for group in state.groups.values() if group.margin != CROSS]
        if len(isolated) < ISOLATED_GROUPS_MAX:
            return
        for group in isolated:  # only those that a row would not name: a shard restored from rows does not know them
            if group.status == "normal" and not group.is_watched and self.portfolio.ledger.is_empty(group.row):
                del state.groups[group.margin]
                self._drop_group(group)
        if sum(group.margin != CROSS for group in state.groups.values()) >= ISOLATED_GROUPS_MAX:
            raise InputError(f"margin {margin}: an account has at most {ISOLATED_GROUPS_MAX} isolated groups")

    def _register(self, state: AccountState, group: GroupState) -> None:
        self._owner[group.row] = (state, group)
        while group.row >= self._levels.size:
            self._levels = np.concatenate([self._levels, np.full(self._levels.size, np.inf)])
        self._levels[group.row] = np.inf if group.level is None else float(group.level)
        self._watch(group)

    def _watch(self, group: GroupState) -> None:
        """Keep the row among the watched ones as long as the group is, and among the stranded ones."""
        for rows, is_one in (
            (self._watched, group.is_watched),
            (self._stranded, group.status in WITHOUT_ORDERS),
        ):
            if is_one:
                rows.add(group.row)
            else:
                rows.discard(group.row)

    def _drop_group(self, group: GroupState) -> None:
        del self._owner[group.row]
        for rows in (self._overdue, self._undone, self._watched, self._stranded, self._touched):
            rows.discard(group.row)
        self.portfolio.ledger.drop_group(group.row)

    def _forget(self, account: str) -> None:
        for group in self.accounts.pop(account).groups.values():
            self._drop_group(group)

    # --- marks and time ----------------------------------------------------------------------------------------------

    @property
    def _skew_us(self) -> int:
        return 1000 * self.parameters.policy.clock_skew_ms_max

    def _pass_time(self, time: int, appended: int, *, doubtful: bool = False) -> None:
        """Let the clock go on to a frame's time, as far as the broker's bears it out.

        What the clock was set to without a broker's time holds until the times that come disagree with it.
        """
        time = bounded_us(time, appended, self._skew_us)
        if doubtful:
            self.clock_us = max(self.clock_us, time)
            return
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

    def _learn(
        self, offset: int, frame: MarkFrame, appended: int, *, doubtful: bool = False
    ) -> tuple[dict[str, Decimal], set[str]]:
        """Take in prices, time and scales; the prices that changed, and the symbols that concern all who hold them:
        their marks have become live, or what they weigh is scaled anew."""
        self.marks_next = offset + 1
        self.marks_epoch = frame.epoch
        self._pass_time(frame.time, appended, doubtful=doubtful)
        if frame.full:
            self.marks_full = offset
            concerned = self._rescale(frame.scales)
        else:
            concerned = set()
        moved: dict[str, Decimal] = {}
        for mark in frame.marks:
            published = min(mark.publish_time, appended + self._skew_us)  # a source's clock may be ahead, too
            self._learn_mark(mark, published, moved, concerned)
        return moved, concerned | self._refresh_liveness()

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
        if known is None or known.live != live or (not live and mark.symbol in moved):
            concerned.add(mark.symbol)
        self._marks[mark.symbol] = _MarkState(mark.status, published, live)
        if live:
            self._stale_at_us = min(self._stale_at_us, self._age_limit(mark.symbol, published))
        self._liveness_changed |= known is None or known.live != live
        if mark.symbol in moved or known is None or known.live != live:
            self.portfolio.set_mark(mark.symbol, price, live)

    def _age_limit(self, symbol: str, publish_time: int) -> int:
        rules = self.parameters.oracle.get(symbol)
        return publish_time + 1000 * (MARK_AGE_MS_DEFAULT if rules is None else rules.max_age_ms)

    def _refresh_liveness(self, *, force: bool = False) -> set[str]:
        """Marks that grew older than their symbol allows are not live any more, whoever stopped publishing them.

        Returns the symbols of which that has changed.
        """
        changed: set[str] = set()
        if self.clock_us <= self._stale_at_us and not force:
            return changed
        self._stale_at_us = 2**62
        for symbol, mark in self._marks.items():
            limit = self._age_limit(symbol, mark.publish_time)
            live = mark.status == "live" and limit >= self.clock_us
            if live:
                self._stale_at_us = min(self._stale_at_us, limit)
            if live != mark.live:
                mark.live = live
                self._liveness_changed = True
                changed.add(symbol)
                self.portfolio.set_live(symbol, live)
        return changed

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
        equity, maintenance, error, debt = columns.equity, columns.maintenance, columns.error, columns.debt
        suspect = columns.bounded & (error > 0) & (equity - maintenance <= error)
        level_now, needed = np.full(rows.size, np.inf), maintenance + debt > 0
        for level in self.parameters.policy.margin_call_levels:
            edge = float(level)
            short = equity - edge * maintenance - (edge - 1) * debt
            level_now[needed & (short <= error * (1 + edge))] = edge
        suspect |= columns.decidable & (level_now != self._levels[rows])
        suspect |= self._is_watched(rows)
        # By name, not by row: which row a group has depends on when it was restored, and a replay must give the same.
        owners = [self._owner[row] for row in rows[suspect].tolist()]
        for state, group in sorted(owners, key=lambda owner: (owner[0].account, owner[1].margin)):
            if state.suspended:
                self._decide_suspended(state, group)
            else:
                self._decide_exactly(state, group)

    def _is_watched(self, rows: Rows) -> npt.NDArray[np.bool_]:
        if not self._watched:
            return np.zeros(rows.size, dtype=np.bool_)
        return np.isin(rows, np.fromiter(self._watched, dtype=np.int64, count=len(self._watched)))

    def _renew_index(self) -> None:
        if not self._index_current:
            self._index.rebuild()
            self._index_current = True

    def _decide_suspended(self, state: AccountState, group: GroupState) -> None:
        """Nothing is done to an account whose state is not known; that it would be liquidated as it stands is told."""
        self._overdue.discard(group.row)
        if state.told_liquidatable:
            return
        health = self._evaluate(group)
        if health.liquidatable:
            state.told_liquidatable = True
            reason = f"liquidatable as its ledger stands, and suspended: {state.suspended_reason}"
            self._alert(state, group.margin, "suspended_liquidatable", health=health, reason=reason[:REASON_MAX])

    def _decide_exactly(self, state: AccountState, group: GroupState) -> None:
        """Decide one group: liquidate it, leave it alone, or say why neither can be done.

        1. A command that is out is waited for, until it is closed or has expired.
        2. Below the requirement, as far as live marks and the bounds of the others show: the plan's orders become a
           command, a plan without orders a status.
        3. Not below it with every mark live: whatever was under way is over.
        4. Not shown to be below it while marks are not live: nothing is over that only live marks can end.
        """
        command = group.command
        expired = command is not None and command.expires_at < self.clock_us
        if command is not None and not command.closed and not expired:
            return
        health = self._evaluate(group)
        superseded = command.command_id if command is not None and expired and not command.closed else None
        if health.liquidatable:
            view, marks = self.portfolio.group(group.row), self.portfolio.marks
            plan = make_plan(view, health, marks, self.parameters, stale=self._not_live_of(group))
            self._end_command(state, group)
            if plan.orders:
                self._liquidate(state, group, health, plan, superseded)
            else:
                self._strand(state, group, health, plan.stage)
        elif health.bounds or not health.bounded:
            self._leave_undecided(state, group)
        else:
            self._end_command(state, group)
            self._settle(state, group, health)
        self._watch(group)

    def _evaluate(self, group: GroupState) -> Health:
        """The verdict on a group, with what the marks that are not live may be at best."""
        view, marks = self.portfolio.group(group.row), self.portfolio.marks
        return evaluate(view, marks, self.parameters, stale=self._not_live_of(group))

    def _not_live_of(self, group: GroupState) -> frozenset[str]:
        """The symbols that the group's figures need and that have no live mark."""
        return frozenset(symbol for symbol in self._priced_by(group) if not self.has_live(symbol))

    def has_live(self, symbol: str) -> bool:
        """Whether ``symbol`` has a mark that may be decided on now."""
        mark = self._marks.get(symbol)
        return mark is not None and mark.live

    def _end_command(self, state: AccountState, group: GroupState) -> None:
        if group.command is not None:
            self._drop_command(group, group.command)
            self._dirty.add(state.account)

    def _liquidate(
        self, state: AccountState, group: GroupState, health: Health, plan: Plan, superseded: str | None
    ) -> None:
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
            for index, order in enumerate(plan.orders[: self._room_for_orders(state)])
        )
        assert orders, "a command without orders does nothing and is out for a whole time-to-live"
        self._commands.append(
            LiquidationCommand(
                command_id=command_id,
                account=state.account,
                margin=group.margin,
                sequence=state.liquidation_sequence,
                stage=plan.stage,  # type: ignore[arg-type]
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
            orders=[
                OrderState(order.order_id, Decimal(order.quantity), order.symbol, order.order_side) for order in orders
            ],
        )
        self._track(state, group, group.command)
        if not group.started:
            group.started = True
            self._alert(state, group.margin, "liquidation_started", health=health)
        if plan.stage == "takeover" and group.status != "bankrupt":
            self._alert(state, group.margin, "bankrupt", health=health)
        group.status = "bankrupt" if plan.stage == "takeover" else "liquidating"
        self._clear_undecided(state, group, health)
        self._dirty.add(state.account)

    def _room_for_orders(self, state: AccountState) -> int:
        """How many orders a command may have beside those that are out for the account, so that its row holds them."""
        out = sum(len(group.command.orders) for group in state.groups.values() if group.command is not None)
        return max(ACCOUNT_ORDERS_MAX - out, 1)

    def _strand(self, state: AccountState, group: GroupState, health: Health, stage: str) -> None:
        """A group that is below its requirement and has nothing that could be traded: say so once."""
        if stage == "undecided":
            self._tell_undecided(state, group, health, "nothing that can be traded before these marks are live: ")
        else:
            self._clear_undecided(state, group, health)
            if group.status != stage:
                self._alert(state, group.margin, stage, health=health)  # type: ignore[arg-type]
        if group.status != stage:
            group.status = stage  # type: ignore[assignment]
            self._dirty.add(state.account)

    def _tell_undecided(self, state: AccountState, group: GroupState, health: Health, why: str) -> None:
        if not group.told_undecided:
            group.told_undecided = True
            reason = why + ", ".join(sorted(health.bounds))
            self._alert(state, group.margin, "undecided", health=health, reason=reason[:REASON_MAX])

    def _clear_undecided(self, state: AccountState, group: GroupState, health: Health | None) -> None:
        if group.told_undecided:
            group.told_undecided = False
            self._alert(state, group.margin, "undecided_cleared", health=health)

    def _leave_undecided(self, state: AccountState, group: GroupState) -> None:
        """A group that is not shown to be below its requirement, and whose marks are not all live.

        What only live marks can end goes on; that it is undecided is over when it is not below it at the last prices.
        """
        self._overdue.discard(group.row)  # its marks' liveness, or the edge of its bounds, brings it back
        if group.told_undecided and not self._is_below_at_last_prices(group):
            self._clear_undecided(state, group, None)
        if group.status == "undecided" and not group.told_undecided:
            group.status = "normal" if group.level is None else "margin_call"
            self._dirty.add(state.account)

    def _is_below_at_last_prices(self, group: GroupState) -> bool:
        unpriced = frozenset(symbol for symbol in self._priced_by(group) if symbol not in self._marks)
        health = evaluate(self.portfolio.group(group.row), self.portfolio.marks, self.parameters, stale=unpriced)
        return health.liquidatable

    def _settle(self, state: AccountState, group: GroupState, health: Health) -> None:
        """A group that need not be liquidated: leave behind whatever was, and take the margin-call level it is at."""
        self._clear_undecided(state, group, health)
        if group.started:
            group.started = False
            self._alert(state, group.margin, "liquidation_completed", health=health)
        elif group.status in ("insolvent", "unsellable"):
            self._alert(state, group.margin, "recovered", health=health)
        level = margin_call_level(health.health_ratio, self.parameters.policy.margin_call_levels, group.level)
        if level != group.level:
            if level is None:
                self._alert(state, group.margin, "margin_call_cleared", health=health, level=group.level)
            elif group.level is None or level < group.level:
                self._alert(state, group.margin, "margin_call", health=health, level=level)
            group.level = level
            self._levels[group.row] = np.inf if level is None else float(level)
            self._dirty.add(state.account)
        status: GroupStatus = "normal" if level is None else "margin_call"
        if group.status != status:
            group.status = status
            self._dirty.add(state.account)

    def _stranded_with(self, moved: Iterable[str]) -> Rows:
        """The groups without orders that hold what has a new price: it may change what can be done about them."""
        if not self._stranded:
            return _NO_ROWS
        rows = self.portfolio.rows_with(moved, _array(self._stranded))
        found = self.portfolio.evaluate(rows)
        decided: Rows = rows[found.decidable | (found.bounded & (found.equity - found.maintenance <= found.error))]
        return decided

    # --- marks that somebody waits for -------------------------------------------------------------------------------

    def _look_at_awaited(self, rows: Rows | None) -> None:
        """Note which symbols without a live mark are needed, and tell those that have been for too long.

        Only ``rows`` may need other symbols than before (None: any), unless a mark has become live or ceased to be.
        Everything is looked at once a second of the shard's clock, too: nobody may need a symbol any more.
        """
        second = self.clock_us // _SECOND_US
        everyone = rows is None or self._liveness_changed or second != self._looked_s
        on_the_second, self._looked_s, self._liveness_changed = second != self._looked_s, second, False
        if everyone or (rows is not None and rows.size):
            needed = self.portfolio.awaited(None if everyone else rows)
            for symbol in self.awaited.end(needed) if everyone else ():
                why = "has a live mark again" if self.has_live(symbol) else "is not needed any more"
                self._alert_shard("undecided_cleared", f"{symbol} {why}", symbol)
            self.awaited.begin(needed, self.clock_us)
        late = self.awaited.tell(self.clock_us, 1000 * self.parameters.policy.undecided_alert_ms)
        for symbol, waited_us in late:
            status = self._marks[symbol].status if symbol in self._marks else "never there"
            why = "too old" if status == "live" else status
            self._alert_shard("undecided", f"{symbol} has had no live mark for {waited_us // 1000} ms ({why})", symbol)
        if (late or on_the_second) and (self.awaited.told or self._watched):
            self._tell_undecided_groups()

    def _tell_undecided_groups(self) -> None:
        """Tell of the groups that wait for a mark that has been told, and that are below their requirement at the last
        prices; and of those that are so no more."""
        told = {row for row in self._watched if self._owner[row][1].told_undecided}
        waiting: set[int] = set()
        if self.awaited.told:
            symbols = None if self.awaited.is_full else self.awaited.told
            waiting = set(self.portfolio.below_at_last_prices(symbols).tolist())
        owners = [self._owner[row] for row in told ^ waiting]
        for state, group in sorted(owners, key=lambda owner: (owner[0].account, owner[1].margin)):
            command = group.command
            if state.suspended or (command is not None and not command.closed and command.expires_at >= self.clock_us):
                continue
            if group.told_undecided:
                self._decide_exactly(state, group)
            elif group.status not in WITHOUT_ORDERS and self._is_below_at_last_prices(group):
                health = self._evaluate(group)
                self._tell_undecided(state, group, health, "below its requirement at the last prices, not live: ")
                group.status = "undecided"
                self._watch(group)

    def _track(self, state: AccountState, group: GroupState, command: CommandState) -> None:
        for order in command.orders:
            self._orders[order.order_id] = (state, group, order)
        self._watched.add(group.row)
        heapq.heappush(self._expiries, (command.expires_at, command.command_id, group.row))

    def _drop_command(self, group: GroupState, command: CommandState) -> None:
        for order in command.orders:
            self._orders.pop(order.order_id, None)
        group.command = None
        self._watch(group)
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
            marks={
                symbol: format_decimal(self.portfolio.marks[symbol])
                for symbol in sorted(symbols)
                if symbol in self.portfolio.marks
            },
            reason="equity_not_positive" if health.equity <= 0 else "equity_below_maintenance",
            scales={key: scale for key in sorted(self._scaled_by(group)) if (scale := self._scales.get(key))},
            debt=format_decimal(health.debt),
            unweighted_equity=format_decimal(health.unweighted_equity),
            stale_bounds={symbol: format_decimal(bound) for symbol, bound in sorted(health.bounds.items())},
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
        symbol: str | None = None,
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
                symbol=symbol,
            )
        )
        self._dirty.add(state.account)
        event(log, logging.DEBUG, "alert", account=state.account, margin=margin, kind=kind)

    def _alert_shard(self, kind: AlertKind, reason: str, symbol: str | None = None) -> None:
        """Tell what concerns the shard as a whole."""
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
        event(log, logging.WARNING, "shard_alert", shard=self.shard, kind=kind, symbol=symbol, reason=reason)

    def _priced_by(self, group: GroupState) -> set[str]:
        """The symbols whose marks the group's figures depend on: not those of balances that count for nothing."""
        return symbols_of(self.portfolio.group(group.row), self.portfolio.marks, self.parameters)

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
        unreached = self._unreached.totals()
        notional = self.unreached_notional if open_interest is None else self._unreached_notional()
        self.unreached_notional = {kind: amount for kind, amount in notional.items() if kind in unreached}
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
            not_live=self.awaited.since,
            told_not_live=self.awaited.told,
            unreached=unreached,
            unreached_notional=self.unreached_notional,
        )

    def _unreached_notional(self) -> dict[str, str]:
        """What the groups of each kind hold in positions and owe, at the last prices, in the unit of account."""
        rows: dict[str, list[int]] = {}
        for account in self._unreached.accounts:
            state = self.accounts[account]
            for group in state.groups.values():
                if state.suspended:
                    rows.setdefault("suspended", []).append(group.row)
                if (kind := group.unreached_kind) is not None:
                    rows.setdefault(kind, []).append(group.row)
        return {
            kind: format_decimal(self.portfolio.worth_at_stake(_array(set(found))))
            for kind, found in sorted(rows.items())
        }


def _waiting_fill(columns: FillColumns, index: int, offset: int) -> WaitingFill:
    return WaitingFill(
        trade_id=columns.trade_id[index],
        order_id=columns.order_id[index],
        margin=columns.margin[index],
        symbol=columns.symbol[index],
        quantity=columns.quantity[index],
        price=columns.price[index],
        fee=columns.fee[index],
        offset=offset,
    )


def _is_readable(held: ParkedTransfer | WaitingFill) -> bool:
    """Whether a row that holds it could be read back: no parameters admit what the contract does not."""
    try:
        (_PARKED if isinstance(held, ParkedTransfer) else _WAITING)(encode(held))
    except DecodeError:
        return False
    return True


def _frame_of(account: str, held: ParkedTransfer | WaitingFill, time_us: int) -> EventFrame:
    """What was held back as a frame of its own, ready to be repaired and sent again."""
    kind = TransferColumns if isinstance(held, ParkedTransfer) else FillColumns
    fields = {"account": account, **msgspec.structs.asdict(held)}
    columns: Any = kind(**{name: [fields[name]] for name in kind.__struct_fields__})
    if isinstance(held, ParkedTransfer):
        return EventFrame(time=time_us, repaired=True, transfers=columns)
    return EventFrame(time=time_us, repaired=True, fills=columns)


def _digest(columns: TransferColumns, index: int) -> int:
    """The CRC-32 of what a transfer does, never 0. Who sends one again may give it another id."""
    names = (columns.margin, columns.asset, columns.amount)
    return zlib.crc32(" ".join(column[index] for column in names).encode()) or 1


def _take_back(state: AccountState, *, credit: bool) -> None:
    """A repaired event has been applied: one less is in the dead letters."""
    if state.unapplied_credits and (credit or not state.unapplied):
        state.unapplied_credits -= 1
    elif state.unapplied:
        state.unapplied -= 1


def _is_order_of(state: AccountState, order_id: str) -> bool:
    """Whether this is the id of an order of one of the account's commands, past ones included."""
    account, _, rest = order_id.rpartition(":")
    account, _, sequence = account.rpartition(":")
    return (
        account == state.account
        and rest.isdigit()
        and sequence.isdigit()
        and 0 < int(sequence) <= state.liquidation_sequence
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
