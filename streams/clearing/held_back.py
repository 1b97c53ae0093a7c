"""Events that cannot be applied: those that wait for parameters, those in the dead letters, and whom they suspend.

An event that the parameters in force do not admit waits in its account, in the order of the log, until others do. What
no parameters make right goes to the dead letters. An account whose missing events may make it worse than it looks is
suspended meanwhile: nothing is done to it.
"""

from decimal import Decimal
from typing import Any, Literal

import msgspec

from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import EventFrame, FillColumns, ParkedTransfer, TransferColumns, WaitingFill, rows_of
from schemas.types import CROSS
from streams.clearing.account import PARKED_MAX, WAITING_FILLS_MAX, AccountState
from streams.clearing.accounts import Accounts
from streams.clearing.admission import Admission
from streams.clearing.journal import Cursor
from streams.clearing.outbox import REASON_MAX, Outbox, UnappliedEvent
from streams.clearing.postings import Postings
from streams.clearing.unapplied import place_of_row, source_of
from streams.errors import InputError

Kind = Literal["fills", "transfers"]

_PARKED, _WAITING = Decoder[ParkedTransfer](ParkedTransfer), Decoder[WaitingFill](WaitingFill)


class HeldBack:
    """What is held back from the accounts of one shard."""

    def __init__(
        self, cursor: Cursor, accounts: Accounts, admission: Admission, postings: Postings, outbox: Outbox
    ) -> None:
        self._cursor = cursor
        self._accounts = accounts
        self._admission = admission
        self._postings = postings
        self._outbox = outbox

    # --- suspending --------------------------------------------------------------------------------------------------

    def suspend(self, state: AccountState, reason: str) -> None:
        """Tell that an account is suspended for one event more."""
        state.suspended_reason = reason[:REASON_MAX]
        self._outbox.changed.add(state.account)
        if state.unread is None:
            self._outbox.alert(state, CROSS, "suspended", reason=state.suspended_reason)
        self._accounts.touch(state)

    def resume_if_whole(self, state: AccountState, was_suspended: bool) -> None:
        """Tell that a suspension has been lifted, and have every group of the account decided."""
        if not was_suspended or state.suspended:
            return
        state.suspended_reason, state.told_liquidatable = None, False
        self._outbox.alert(state, CROSS, "resumed")
        self._accounts.touch(state)

    def refuse(
        self,
        state: AccountState,
        offset: int,
        frame: EventFrame,
        kind: Kind,
        index: int,
        error: Exception,
        *,
        credit: bool = False,
    ) -> None:
        """Put an event into the dead letters, where it waits for somebody; its account is suspended until then.

        But not for a ``credit``: without it the account is no better than it is, and a deposit of dust must not shield
        it.
        """
        self.put_aside(state, offset, frame, kind, index, error)
        place = place_of_row(frame, getattr(frame, kind), index)
        if frame.repaired and state.unapplied.owes(place):
            return
        credit = credit and state.unread is None
        state.encumbered().unapplied.add(place, credit=credit)
        if credit:
            columns = frame.transfers
            what = f"{columns.amount[index]} {columns.asset[index]} of transfer {columns.transfer_id[index]}"
            reason = f"{what} are in the dead letters: {error}"
            self._outbox.alert(state, columns.margin[index], "credit_parked", reason=reason[:REASON_MAX])
            return
        self.suspend(state, str(error))

    def put_aside(
        self, state: AccountState, offset: int, frame: EventFrame, kind: Kind, index: int, error: Exception
    ) -> None:
        """Write an event to the dead letters."""
        letter = encode(one_row(frame, kind, index, repaired=True))
        self._outbox.unapplied.append(UnappliedEvent(state.account, offset, letter, error))
        self._outbox.changed.add(state.account)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def park(self, state: AccountState, transfer: ParkedTransfer, error: InputError) -> bool:
        """Keep a transfer that cannot be applied until parameters admit it, if they may and there is room.

        A credit cannot make the account worse, so the account goes on without it, and without a debit that parked
        credits of the same group and asset cover. Any other debit suspends it meanwhile.
        """
        if not is_readable(transfer):
            return False
        amount = Decimal(transfer.amount)
        admitted = self._admission.refuses_transfer(transfer.margin, transfer.asset, transfer.amount) is None
        net = state.net_parked(transfer.margin, transfer.asset) + amount
        if state.unread is not None or len(state.parked) >= PARKED_MAX or (admitted and net < 0):
            return False
        was_suspended = state.suspended
        state.encumbered().parked.append(transfer)
        self._accounts.holding_back.add(state.account)
        if amount > 0:
            reason = f"{transfer.amount} {transfer.asset} of transfer {transfer.transfer_id} wait: {error}"
            self._outbox.alert(state, transfer.margin, "credit_parked", reason=reason[:REASON_MAX])
        if net < 0 and (amount < 0 or not was_suspended or state.suspended_reason is None):
            self.suspend(state, str(error))
        return True

    def keep_fill(self, state: AccountState, fill: WaitingFill, error: InputError) -> bool:
        """Keep a fill that the parameters do not admit until others do, if there is room."""
        refused = self._admission.refuses_fill(fill.symbol, fill.quantity, fill.price, fill.fee)
        if state.unread is not None or refused is None or len(state.waiting_fills) >= WAITING_FILLS_MAX:
            return False
        if not is_readable(fill):
            return False
        state.encumbered().waiting_fills.append(fill)
        self._accounts.holding_back.add(state.account)
        self.suspend(state, str(error))
        return True

    def apply(self, state: AccountState) -> None:
        """Apply what has waited for the parameters that are in force now, in the order of the log."""
        was_suspended = state.suspended
        self._apply_parked(state)
        self._apply_waiting_fills(state)
        if not state.holds_back:
            self._accounts.holding_back.discard(state.account)
        self.resume_if_whole(state, was_suspended)

    def _apply_parked(self, state: AccountState) -> None:
        parked, state.parked = state.parked, []
        for transfer in parked:
            credit = Decimal(transfer.amount) > 0
            try:
                self._postings.transfer(state, transfer)
            except InputError as error:
                refused = self._admission.refuses_transfer(transfer.margin, transfer.asset, transfer.amount)
                if credit or refused is not None or state.net_parked(transfer.margin, transfer.asset) > 0:
                    state.parked.append(transfer)
                else:
                    self._give_up(state, transfer, error)
                continue
            self._outbox.changed.add(state.account)
            if credit:
                reason = f"{transfer.amount} {transfer.asset} of transfer {transfer.transfer_id} are applied"
                self._outbox.alert(state, transfer.margin, "credit_applied", reason=reason)

    def _apply_waiting_fills(self, state: AccountState) -> None:
        waiting, state.waiting_fills = state.waiting_fills, []
        for fill in waiting:
            if state.waits_behind(fill.margin, fill.symbol):
                state.waiting_fills.append(fill)
                continue
            try:
                self._postings.fill(state, fill)
            except InputError as error:
                if self._admission.refuses_fill(fill.symbol, fill.quantity, fill.price, fill.fee) is not None:
                    state.waiting_fills.append(fill)
                else:
                    self._give_up(state, fill, error)
                continue
            self._outbox.changed.add(state.account)

    def _give_up(self, state: AccountState, held: ParkedTransfer | WaitingFill, error: InputError) -> None:
        """Parameters admit an event that waited, and still it cannot be applied: somebody must repair it."""
        frame = msgspec.structs.replace(self._frame_of(state, held), repaired=False)
        kind: Kind = "transfers" if isinstance(held, ParkedTransfer) else "fills"
        credit = isinstance(held, ParkedTransfer) and Decimal(held.amount) > 0
        self.refuse(state, held.offset, frame, kind, 0, error, credit=credit)

    # --- repaired ----------------------------------------------------------------------------------------------------

    def give_place(self, state: AccountState, held: ParkedTransfer | WaitingFill) -> None:
        """Put an event that waits into the dead letters, to be owed until the repaired one has taken its place."""
        if isinstance(held, ParkedTransfer):
            state.parked.remove(held)
            state.encumbered().unapplied.add(held.place, credit=not held.amount.startswith("-"))
        else:
            state.waiting_fills.remove(held)
            state.encumbered().unapplied.add(held.place)
        error = InputError("a repaired event has taken its place")
        frame = encode(self._frame_of(state, held))
        self._outbox.unapplied.append(UnappliedEvent(state.account, held.offset, frame, error))
        if not state.holds_back:
            self._accounts.holding_back.discard(state.account)

    def _frame_of(self, state: AccountState, held: ParkedTransfer | WaitingFill) -> EventFrame:
        """What was held back as a frame of its own, ready to be repaired and sent again."""
        time_us = self._cursor.clock.now_us
        kind = TransferColumns if isinstance(held, ParkedTransfer) else FillColumns
        fields = {"account": state.account, **msgspec.structs.asdict(held)}
        given = {name: value for name, value in fields.items() if value is not msgspec.UNSET}
        columns: Any = kind(**{name: [given[name]] for name in kind.__struct_fields__ if name in given})
        sources = [source_of(held.place)] if held.place else []
        columns.source, columns.source_offset = [0] * len(sources), [source.first for source in sources]
        if isinstance(held, ParkedTransfer):
            return EventFrame(time=time_us, repaired=True, transfers=columns, sources=sources)
        return EventFrame(time=time_us, repaired=True, fills=columns, sources=sources)


def is_readable(held: ParkedTransfer | WaitingFill) -> bool:
    """Whether a row that holds it could be read back: no parameters admit what the contract does not."""
    try:
        (_PARKED if isinstance(held, ParkedTransfer) else _WAITING)(encode(held))
    except DecodeError:
        return False
    return True


def one_row(frame: EventFrame, kind: str, index: int, *, repaired: bool) -> EventFrame:
    """The event at ``index`` of ``kind`` as a frame of its own, which says where it came from."""
    columns: Any = getattr(frame, kind)
    row = rows_of(columns, [index])
    part = EventFrame(time=frame.time, repaired=repaired)
    if frame.sources:
        offset = row.source_offset[0]
        part.sources = [msgspec.structs.replace(frame.sources[row.source[0]], first=offset, next=offset + 1)]
        row.source = [0]
    setattr(part, kind, row)
    return part
