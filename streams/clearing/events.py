"""What the events of a frame do: suspensions, transfers, fills and reports, in this order."""

import zlib
from collections.abc import Sequence
from decimal import Decimal
from itertools import compress

import numpy as np
from msgspec import UNSET

from schemas.messages import (
    DeferredEvent,
    EventFrame,
    FillColumns,
    ParkedTransfer,
    Suspension,
    TransferColumns,
    WaitingFill,
    rows_of,
)
from streams.clearing.account import DEFERRED_MAX, REFUSED_PLACES_MAX, WAITING_FILLS_MAX, AccountState
from streams.clearing.accounts import Accounts
from streams.clearing.held_back import HeldBack, is_readable
from streams.clearing.holds import Holds
from streams.clearing.open_commands import OpenCommands
from streams.clearing.outbox import Outbox
from streams.clearing.postings import Postings
from streams.clearing.repairs import Repairs
from streams.clearing.unapplied import place_of, place_of_row
from streams.errors import ContradictionError, InputError
from streams.margin.bulk_fills import BulkFills
from streams.margin.ledger import Ledger

BULK_FROM = 48
"""Fills that a frame has at least for them to be applied as columns; fewer are applied sooner one by one."""


class Events:
    """Applies event frames to the accounts of one shard; what cannot be applied is held back or refused."""

    def __init__(
        self,
        accounts: Accounts,
        ledger: Ledger,
        commands: OpenCommands,
        postings: Postings,
        held_back: HeldBack,
        holds: Holds,
        outbox: Outbox,
    ) -> None:
        self._accounts = accounts
        self._ledger = ledger
        self._bulk = BulkFills(ledger)
        self._commands = commands
        self._postings = postings
        self._held_back = held_back
        self._repairs = Repairs(held_back, outbox)
        self._holds = holds
        self._outbox = outbox

    def apply(self, offset: int, frame: EventFrame) -> None:
        """Apply a frame; the groups it touches are on the agenda of the accounts."""
        self._apply_suspensions(frame)
        self._apply_transfers(offset, frame.transfers, frame)
        self._apply_fills(offset, frame.fills, frame)
        self._apply_reports(offset, frame)

    # --- deferred ----------------------------------------------------------------------------------------------------

    def apply_deferred(self, events: Sequence[DeferredEvent]) -> None:
        """Apply events of frames that were applied without them."""
        for event in events:
            self._apply_transfers(event.offset, event.frame.transfers, event.frame)
            self._apply_fills(event.offset, event.frame.fills, event.frame)
            self._apply_reports(event.offset, event.frame)

    def _defers(self, state: AccountState, offset: int, frame: EventFrame, kind: str, index: int) -> bool:
        """Whether an event is kept for later; where too many are, all of them are applied at once."""
        if not self._holds.defers(state, offset, frame, kind, index):
            return False
        if len(state.deferred) > DEFERRED_MAX:
            self._holds.apply_all(state, self.apply_deferred)
            self._holds.renew(state)
        return True

    def _apply_suspensions(self, frame: EventFrame) -> None:
        """Suspend the accounts that a record names which could not be read, each once for a record.

        The records of a partition come in order, so the last one tells those that are read again.
        """
        for refused in frame.suspensions:
            state, place = self._accounts.account(refused.account), f"{refused.topic}:{refused.partition}"
            if refused.offset >= 0:
                if refused.offset <= state.refused.get(place, -1):
                    continue
                places = state.encumbered().refused
                places[place] = refused.offset
                if len(places) > REFUSED_PLACES_MAX:
                    del places[min(places.keys() - {place})]
            state.encumbered().unapplied.add(_place(frame, refused), whole=True)
            where = f"{refused.topic}[{refused.partition}] offset {refused.offset}"
            self._held_back.suspend(state, f"{where}: {refused.reason}")

    # --- transfers ---------------------------------------------------------------------------------------------------

    def _apply_transfers(self, offset: int, columns: TransferColumns, frame: EventFrame) -> None:
        for index, account in enumerate(columns.account):
            state = self._accounts.account(account)
            if state.held is not None and self._defers(state, offset, frame, "transfers", index):
                continue
            was_suspended = state.suspended
            if frame.repaired and not self._repairs.takes(state, offset, frame, "transfers", index):
                continue
            sequence = columns.sequence[index]
            verdict, digest = state.transfers.count(sequence), _digest(columns, index)
            if verdict == "repeat" and not frame.repaired:
                if sequence == state.transfers.last and state.transfer_digest not in (0, digest):
                    self._refuse_contradiction(state, offset, frame, index)
                continue
            if verdict == "new" and sequence == state.transfers.last:
                state.transfer_digest = digest
            state.touched = _touched(state, offset, frame)
            self._outbox.changed.add(account)
            self._apply_transfer(state, offset, frame, index, is_unknown=verdict == "unknown")
            self._held_back.resume_if_whole(state, was_suspended)

    def _apply_transfer(
        self, state: AccountState, offset: int, frame: EventFrame, index: int, *, is_unknown: bool
    ) -> None:
        """Apply a transfer that is no repeat, unless it ``is_unknown`` whether it is one."""
        transfer = _transfer(frame, index, offset)
        is_doubtful = is_unknown and not frame.repaired
        try:
            if is_doubtful:
                raise InputError(
                    f"transfer sequence {transfer.sequence} may be a repeat: which have come is known from "
                    f"{state.transfers.floor} on"
                )
            self._postings.transfer(state, transfer)
        except InputError as error:
            if is_doubtful or not self._held_back.park(state, transfer, error):
                credit = is_readable(transfer) and Decimal(transfer.amount) > 0
                self._held_back.refuse(state, offset, frame, "transfers", index, error, credit=credit)
                return
        if frame.repaired:
            state.unapplied.settle(transfer.place, credit=not transfer.amount.startswith("-"))

    def _refuse_contradiction(self, state: AccountState, offset: int, frame: EventFrame, index: int) -> None:
        columns = frame.transfers
        error = ContradictionError(
            f"transfer {columns.transfer_id[index]} has sequence {columns.sequence[index]}, as one that was applied "
            "and says something else"
        )
        credit = not columns.amount[index].startswith("-")
        self._held_back.refuse(state, offset, frame, "transfers", index, error, credit=credit)

    # --- fills -------------------------------------------------------------------------------------------------------

    def _apply_fills(self, offset: int, columns: FillColumns, frame: EventFrame) -> None:
        indexes: Sequence[int] = range(len(columns.account))
        if len(indexes) >= BULK_FROM and not frame.repaired:
            indexes = self._apply_in_bulk(offset, columns, frame)
        self._apply_each_fill(offset, columns, frame, indexes)

    def _apply_in_bulk(self, offset: int, columns: FillColumns, frame: EventFrame) -> list[int]:
        """Apply the plain fills of accounts and groups that are there and have nothing out of the ordinary; the
        indexes of the others, which are all those of their groups."""
        accounts, orders, names = self._accounts, self._commands.orders, columns.account
        held, waiting = accounts.held, accounts.holding_back
        apart = {
            name
            for name, order_id in zip(names, columns.order_id, strict=True)
            if ":" in order_id or order_id in orders or name in held or name in waiting
        }
        rows = accounts.rows_of(names, columns.margin)
        if apart:
            rows = [-1 if name in apart else row for name, row in zip(names, rows, strict=True)]
        is_applied = self._bulk.apply(rows, columns.symbol, columns.quantity, columns.price, columns.fee)
        chosen = is_applied.tolist()
        accounts.agenda.touched.update(compress(rows, chosen))
        applied = set(compress(names, chosen))
        self._outbox.changed.update(applied)
        if _is_followed(frame):
            for name in applied:
                state = accounts.by_name[name]
                state.touched = max(state.touched, offset)
        return np.flatnonzero(~is_applied).tolist()

    def _apply_each_fill(self, offset: int, columns: FillColumns, frame: EventFrame, indexes: Sequence[int]) -> None:
        """Apply the fills at ``indexes``, one after the other."""
        accounts, orders, ledger = self._accounts, self._commands.orders, self._ledger
        by_name, touched, changed = accounts.by_name, accounts.agenda.touched, self._outbox.changed
        is_followed = _is_followed(frame)
        for index in indexes:
            account, margin, symbol = columns.account[index], columns.margin[index], columns.symbol[index]
            state = by_name.get(account)
            if state is None:
                state = accounts.account(account)
            encumbered = state.encumbrances is not None
            if encumbered and state.held is not None and self._defers(state, offset, frame, "fills", index):
                continue
            if is_followed:
                state.touched = max(state.touched, offset)
            changed.add(account)
            if frame.repaired or (encumbered and state.waiting_fills):
                self._apply_fill_in_turn(state, offset, frame, index)
                continue
            group, quantity = state.groups.get(margin), columns.quantity[index]
            try:
                if group is None:
                    group = accounts.group(state, margin)
                ledger.apply_fill(group.row, symbol, quantity, columns.price[index], columns.fee[index])
            except InputError as error:
                if self._postings.is_spot(symbol):
                    self._apply_spot_fill(state, offset, frame, index)
                elif not self._held_back.keep_fill(state, _fill(frame, index, offset), error):
                    self._held_back.refuse(state, offset, frame, "fills", index, error)
            else:
                touched.add(group.row)
                if (order_id := columns.order_id[index]) in orders or ":" in order_id:
                    self._commands.count_fill(state, group, symbol, quantity, columns.price[index], order_id)

    def _apply_spot_fill(self, state: AccountState, offset: int, frame: EventFrame, index: int) -> None:
        try:
            self._postings.fill(state, _fill(frame, index, offset))
        except InputError as error:
            self._held_back.refuse(state, offset, frame, "fills", index, error)

    def _apply_fill_in_turn(self, state: AccountState, offset: int, frame: EventFrame, index: int) -> None:
        """Apply a fill that is repaired, or whose account has fills that wait: behind those that it must follow."""
        was_suspended = state.suspended
        if frame.repaired and not self._repairs.takes(state, offset, frame, "fills", index):
            return
        fill = _fill(frame, index, offset)
        try:
            if state.waits_behind(fill.margin, fill.symbol):
                if len(state.waiting_fills) >= WAITING_FILLS_MAX:
                    raise InputError(f"symbol {fill.symbol}: {WAITING_FILLS_MAX} fills wait for parameters already")
                state.encumbered().waiting_fills.append(fill)
            else:
                self._postings.fill(state, fill)
        except InputError as error:
            if not self._held_back.keep_fill(state, fill, error):
                self._held_back.refuse(state, offset, frame, "fills", index, error)
                return
        if frame.repaired:
            state.unapplied.settle(fill.place, credit=False)
        self._held_back.resume_if_whole(state, was_suspended)

    # --- reports -----------------------------------------------------------------------------------------------------

    def _apply_reports(self, offset: int, frame: EventFrame) -> None:
        columns, by_name = frame.reports, self._accounts.by_name
        if not columns.account:
            return
        kept: list[int] = []
        for index, account in enumerate(columns.account):
            state = by_name.get(account)
            if state is not None:
                if state.held is not None and self._defers(state, offset, frame, "reports", index):
                    continue
                state.touched = _touched(state, offset, frame)
                self._outbox.changed.add(account)
            kept.append(index)
        self._commands.apply_reports(columns if len(kept) == len(columns.account) else rows_of(columns, kept))


def _is_followed(frame: EventFrame) -> bool:
    """Whether routers say how far they are in what the frame came from."""
    return any(source.topic_id for source in frame.sources)


def _touched(state: AccountState, offset: int, frame: EventFrame) -> int:
    """The last frame that changed the account, now that the one at ``offset`` does."""
    return max(state.touched, offset) if _is_followed(frame) else state.touched


def _place(frame: EventFrame, refused: Suspension) -> str:
    """The record that could not be read."""
    for source in frame.sources:
        if (source.topic, source.partition) == (refused.topic, refused.partition):
            return place_of(source, refused.offset)
    return f"{refused.topic}:{refused.partition}:@{refused.offset}"


def _transfer(frame: EventFrame, index: int, offset: int) -> ParkedTransfer:
    columns = frame.transfers
    return ParkedTransfer(
        transfer_id=columns.transfer_id[index],
        sequence=columns.sequence[index],
        margin=columns.margin[index],
        asset=columns.asset[index],
        amount=columns.amount[index],
        offset=offset,
        place=place_of_row(frame, columns, index),
        order_id=columns.order_id[index] or UNSET if columns.order_id else UNSET,
    )


def _fill(frame: EventFrame, index: int, offset: int) -> WaitingFill:
    columns = frame.fills
    return WaitingFill(
        trade_id=columns.trade_id[index],
        order_id=columns.order_id[index],
        margin=columns.margin[index],
        symbol=columns.symbol[index],
        quantity=columns.quantity[index],
        price=columns.price[index],
        fee=columns.fee[index],
        offset=offset,
        place=place_of_row(frame, columns, index),
    )


def _digest(columns: TransferColumns, index: int) -> int:
    """The CRC-32 of what a transfer does, never 0. Who sends one again may give it another id."""
    names = (columns.margin, columns.asset, columns.amount)
    return zlib.crc32(" ".join(column[index] for column in names).encode()) or 1
