"""The state of one account beside its ledger: statuses, the outstanding commands, and the sequences that name things.

The ledger itself (balances, positions) lives in the shard's portfolio columns; this is what the columns do not hold.
Rows of ``margin.accounts.v1`` are made from both and both are restored from them.
"""

import base64
import zlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from schemas.codec import DecodeError, Decoder
from schemas.messages import (
    AccountRow,
    CommandOrder,
    DeferredEvent,
    GroupRow,
    Hold,
    OpenCommand,
    OpenOrder,
    OwedEvents,
    ParkedTransfer,
    PositionRow,
    Range,
    WaitingFill,
)
from schemas.types import AccountStatus, CommandStatus, GroupStatus, Offset, OrderStatus, RecordPlace, Sequence, Side
from streams.clearing.command_states import COMMAND_CHANGES, FINAL_COMMANDS, FINAL_ORDERS, CommandEvent, status_of
from streams.clearing.encumbrances import NO_EVENTS, NO_PLACES, NOTHING_UNAPPLIED, Encumbrance, Encumbrances
from streams.clearing.transfers import NO_GAPS, TransferSequences
from streams.clearing.unapplied import Unapplied
from streams.errors import InputError
from streams.margin.fees import FeeRates
from streams.margin.fixed_point import EXACT, format_decimal
from streams.margin.ledger import Ledger

PARKED_MAX = 64
"""Transfers of one account that may wait for parameters; further ones go to the dead letters."""

WAITING_FILLS_MAX = 128
"""Fills of one account that may wait for parameters; further ones go to the dead letters."""

DEFERRED_MAX = 256
"""Events of one account that may be deferred; one more, and all of them are applied and the account waits anew."""

REFUSED_PLACES_MAX = 256
"""Partitions of which an account remembers the last record that suspended it."""

WITHOUT_ORDERS: frozenset[str] = frozenset({"insolvent", "unsellable", "undecided"})
"""Statuses of a group that is below its requirement and has nothing that could be traded now."""

_ROW = Decoder[AccountRow](AccountRow)


class _Numbers(msgspec.Struct):
    account: str = ""
    liquidation_sequence: Sequence = 0
    transfer_sequence: Offset = -1
    transfer_gaps: tuple[Range, ...] = ()
    transfer_floor: Offset = 0
    alert_sequence: Sequence = 0
    unapplied: Sequence = 0
    unapplied_credits: Sequence = 0
    transfer_digest: Sequence = 0
    unread: str | None = None
    refused: dict[str, Offset] = {}
    owed: dict[RecordPlace, OwedEvents] = {}
    resumed: Sequence = 0


_NUMBERS = Decoder[_Numbers](_Numbers)

SEVERITY: dict[str, int] = {
    "normal": 0,
    "margin_call": 1,
    "undecided": 2,
    "liquidating": 3,
    "unsellable": 4,
    "bankrupt": 5,
    "insolvent": 6,
}


_ZERO = Decimal(0)


@dataclass(slots=True)
class OrderState:
    """One order of a command; ``final`` is the filled quantity that its last report states, if any.

    ``symbol``, ``side`` and ``mark_price`` are None in rows of versions that did not keep them: then any is right.
    ``traded`` and ``transferred`` are what trades and transfers have told of collateral that was sold or bought;
    ``rates`` are the fees that the command stated, if it did.
    """

    order_id: str
    quantity: Decimal
    symbol: str | None = None
    side: Side | None = None
    filled: Decimal = _ZERO
    final: Decimal | None = None
    status: OrderStatus = "issued"
    mark_price: Decimal | None = None
    traded: Decimal | None = None
    transferred: Decimal | None = None
    rates: FeeRates | None = None

    @property
    def to_come(self) -> Decimal:
        """What is to be filled in all: what the final report says, else the whole order."""
        return self.quantity if self.final is None else min(self.final, self.quantity)

    @property
    def done(self) -> bool:
        """All that will ever be filled has been seen as fills: a report alone is not enough, fills may still be on
        their way through another topic, and a group judged before they arrive would be liquidated twice."""
        return self.status in FINAL_ORDERS and self.filled >= self.to_come


@dataclass(slots=True)
class CommandState:
    """A command of a group: the outstanding one, or one that has ended.

    ``ended`` is how, if not by its orders' own end. ``withdrawn_by`` is the command that withdraws it.
    """

    command_id: str
    stage: str
    expires_at: int
    orders: list[OrderState]
    ended: CommandStatus | None = None
    withdrawn_by: str | None = None
    forgotten_at: int | None = None

    @property
    def status(self) -> CommandStatus:
        """How far it is, or how it ended."""
        return status_of(order.status for order in self.orders) if self.ended is None else self.ended

    @property
    def done(self) -> bool:
        """Nothing more will be filled of it."""
        return all(order.done for order in self.orders)

    def is_over(self, now_us: int) -> bool:
        """Nothing more may be filled of it."""
        return self.done or self.expires_at < now_us

    @property
    def superseded(self) -> str | None:
        """The command that a successor names: this one, if something could still be filled of it."""
        return None if self.done or self.withdrawn_by is not None else self.command_id

    def end(self, event: CommandEvent) -> bool:
        """``event`` has happened to it: if it was out, it has ended by that. Whether it has changed."""
        before = self.status
        after = COMMAND_CHANGES[before][event]
        if after != before:
            self.ended = after
        return after != before

    @property
    def progress(self) -> tuple[Decimal, Decimal]:
        """(filled, ordered): the notional of its orders at the marks of then."""
        filled = ordered = _ZERO
        with localcontext(EXACT):
            for order in self.orders:
                price = _ZERO if order.mark_price is None else order.mark_price
                filled += min(order.filled, order.quantity) * price
                ordered += order.quantity * price
        return filled, ordered


@dataclass(slots=True)
class Liquidation:
    """What a group remembers of its liquidations: the command that is out, if one is, and those that have ended.

    ``attempt`` counts commands of which next to nothing was filled; there is no other before ``retry_at`` (0: none).
    """

    command: CommandState | None = None
    attempt: int = 0
    retry_at: int = 0
    ended: list[CommandState] = field(default_factory=list)

    @property
    def is_nothing(self) -> bool:
        return self.command is None and not (self.attempt or self.retry_at or self.ended)

    @property
    def commands(self) -> list[CommandState]:
        """All that are remembered."""
        return self.ended if self.command is None else [*self.ended, self.command]

    @property
    def heeds_target(self) -> bool:
        """Whether it matters that the group is healthy at its target again."""
        command = self.command
        return self.attempt > 0 or (command is not None and command.withdrawn_by is None)


class GroupState(msgspec.Struct, gc=False):
    """One margin group: ``row`` is its place in the portfolio's columns, ``level`` its margin-call level, if any.

    The life of a group that is below its requirement::

        normal, margin_call ──> liquidating, bankrupt   a command is out
                            ──> insolvent               nothing to trade, it owes more than it has
                            ──> unsellable              nothing to trade, it has what nobody buys
                            ──> undecided               nothing to trade before a mark is live again

    Every change among the right-hand ones is told, and so is the way back, whichever it is. ``started``: a liquidation
    has been told to have started and not to have been completed. ``told_undecided``: so has ``undecided``, and not
    ``undecided_cleared``.

    Millions of them make the collector slow, and none refers back to what refers to it: it does not look at them.
    """

    row: int
    margin: str
    status: GroupStatus = "normal"
    level: Decimal | None = None
    liquidation: Liquidation | None = None
    started: bool = False
    told_undecided: bool = False

    @property
    def command(self) -> CommandState | None:
        """The command that is out."""
        return None if self.liquidation is None else self.liquidation.command

    @property
    def unreached_kind(self) -> str | None:
        """``undecided``, ``unsellable`` or ``insolvent``, if it is one of these."""
        if self.told_undecided or self.status == "undecided":
            return "undecided"
        return self.status if self.status in WITHOUT_ORDERS else None

    @property
    def is_watched(self) -> bool:
        """Whether it must be decided whenever something about it may have changed, however it stands."""
        return self.liquidation is not None or self.started or self.told_undecided or self.status in WITHOUT_ORDERS


class AccountGroups(msgspec.Struct, gc=False):
    """The margin groups of one account by margin, in the order in which they came: a dictionary, once there are two.

    Most accounts have one group, and a dictionary takes several times as much memory as all else of the account.
    """

    _held: GroupState | dict[str, GroupState] | None = None

    def get(self, margin: str) -> GroupState | None:
        """The group of that margin, if there is one."""
        held = self._held
        if isinstance(held, GroupState):
            return held if held.margin == margin else None
        return None if held is None else held.get(margin)

    def values(self) -> Collection[GroupState]:
        """The groups."""
        held = self._held
        if isinstance(held, GroupState):
            return (held,)
        return () if held is None else held.values()

    def __getitem__(self, margin: str) -> GroupState:
        group = self.get(margin)
        if group is None:
            raise KeyError(margin)
        return group

    def __setitem__(self, margin: str, group: GroupState) -> None:
        held = self._held
        if isinstance(held, dict):
            held[margin] = group
        elif held is None or held.margin == margin:
            self._held = group
        else:
            self._held = {held.margin: held, margin: group}

    def __delitem__(self, margin: str) -> None:
        if isinstance(self._held, dict):
            del self._held[margin]
        elif self.get(margin) is not None:
            self._held = None
        else:
            raise KeyError(margin)

    def __iter__(self) -> Iterator[str]:
        return iter([group.margin for group in self.values()])

    def __len__(self) -> int:
        return len(self.values())

    def __contains__(self, margin: object) -> bool:
        return any(group.margin == margin for group in self.values())


class AccountState(msgspec.Struct, gc=False):
    """One account.

    ``unapplied`` are the events in the dead letters. ``parked`` transfers and ``waiting_fills`` wait for parameters
    that admit them, in the order of the log. ``unread`` is the account's last row if it could not be read: there is
    nothing else of the account then. ``refused`` says which records that could not be read have suspended it: the last
    offset by ``topic:partition``. ``touched``, ``held``, ``deferred`` and ``resumed`` are those of its row. All but
    ``touched`` are its ``encumbrances``, None as long as there have been none: :meth:`encumbered` gives those that can
    be added to.
    """

    account: str
    groups: AccountGroups = msgspec.field(default_factory=AccountGroups)
    liquidation_sequence: int = 0
    transfers: TransferSequences = msgspec.field(default_factory=TransferSequences)
    alert_sequence: int = 0
    transfer_digest: int = 0
    touched: int = -1
    encumbrances: Encumbrances | None = None

    suspended_reason = Encumbrance[str | None](None)
    unread = Encumbrance[bytes | None](None)
    told_liquidatable = Encumbrance[bool](False)
    held = Encumbrance[Hold | None](None)
    unapplied = Encumbrance[Unapplied](NOTHING_UNAPPLIED)
    refused = Encumbrance[dict[str, int]](NO_PLACES)
    parked = Encumbrance[list[ParkedTransfer]](NO_EVENTS)
    waiting_fills = Encumbrance[list[WaitingFill]](NO_EVENTS)
    deferred = Encumbrance[list[DeferredEvent]](NO_EVENTS)
    resumed = Encumbrance[int](0)

    def encumbered(self) -> Encumbrances:
        """Its encumbrances, made if it has none: for whoever adds to them."""
        if self.encumbrances is None:
            self.encumbrances = Encumbrances()
        return self.encumbrances

    @property
    def suspended(self) -> bool:
        """Whether what has not been applied may make the account worse than it looks."""
        if self.encumbrances is None:
            return False
        if self.unapplied.events or self.unread is not None or self.waiting_fills:
            return True
        return bool(self.parked) and any(
            self.net_parked(margin, asset) < 0 for margin, asset in {(held.margin, held.asset) for held in self.parked}
        )

    @property
    def is_ordinary(self) -> bool:
        """Whether nothing of it is suspended, waits, was refused or is in the dead letters."""
        return self.encumbrances is None or self.encumbrances.is_none

    @property
    def holds_back(self) -> bool:
        """Whether events wait for parameters."""
        return bool(self.parked or self.waiting_fills)

    def has_ordered(self, order_id: str) -> bool:
        """Whether this is the id of an order of one of the account's commands, past ones included."""
        account, _, rest = order_id.rpartition(":")
        account, _, sequence = account.rpartition(":")
        return (
            account == self.account
            and rest.isdigit()
            and sequence.isdigit()
            and 0 < int(sequence) <= self.liquidation_sequence
        )

    def net_parked(self, margin: str, asset: str) -> Decimal:
        """What the parked transfers of a group and asset add up to."""
        amounts = (Decimal(held.amount) for held in self.parked if (held.margin, held.asset) == (margin, asset))
        with localcontext(EXACT):
            return sum(amounts, Decimal(0))

    def waits_behind(self, margin: str, symbol: str) -> bool:
        """Whether a fill must wait for one before it: of two fills in one symbol of one group, the order matters."""
        return any((fill.margin, fill.symbol) == (margin, symbol) for fill in self.waiting_fills)


def account_row(state: AccountState, ledger: Ledger) -> AccountRow | None:
    """The changelog row of an account, or None (a tombstone) when nothing about it needs to be remembered.

    An emptied account that has a sequence keeps its row: forgetting the sequence would accept a repeated transfer or
    issue a command id a second time.
    """
    groups = tuple(
        row for margin in sorted(state.groups) if (row := _group_row(state.groups[margin], ledger)) is not None
    )
    remembered = (
        state.liquidation_sequence
        or state.alert_sequence
        or state.transfers.last >= 0
        or state.suspended
        or state.unapplied
        or state.holds_back
        or state.refused
        or state.held is not None
        or state.resumed
    )
    if not groups and not remembered:
        return None
    statuses: list[GroupStatus] = [group.status for group in groups]
    worst: AccountStatus = max(statuses, key=SEVERITY.__getitem__, default="normal")
    return AccountRow(
        account=state.account,
        status="suspended" if state.suspended else worst,
        groups=groups,
        liquidation_sequence=state.liquidation_sequence,
        transfer_sequence=state.transfers.last,
        alert_sequence=state.alert_sequence,
        unapplied=state.unapplied.events,
        unapplied_credits=state.unapplied.credits,
        transfer_digest=state.transfer_digest,
        suspended_reason=state.suspended_reason,
        told_liquidatable=state.told_liquidatable,
        parked=tuple(state.parked),
        transfer_gaps=state.transfers.ranges(),
        transfer_floor=state.transfers.floor,
        waiting_fills=tuple(state.waiting_fills),
        unread=None if state.unread is None else packed(state.unread),
        refused=dict(sorted(state.refused.items())),
        owed=dict(sorted(state.unapplied.by_place.items())),
        touched=state.touched,
        held=state.held,
        deferred=tuple(state.deferred),
        resumed=state.resumed or msgspec.UNSET,
    )


def read_account(account: str, data: bytes, ledger: Ledger) -> AccountState:
    """The state of ``account`` from the bytes of its last row; what it holds goes into ``ledger``.

    A row that keeps one that could not be read is read as that one, with what has become of the account since.

    Raises:
        InputError: it is no row, that of another account, or cannot be held under the parameters in force. Nothing of
            it is in the ledger.
    """
    try:
        row = _ROW(data)
        kept = None if row.unread is None else _ROW(unpacked(row.unread))
    except DecodeError as error:
        raise InputError(str(error)) from None
    if row.account != account or (kept is not None and kept.account != account):
        raise InputError(f"it is that of account {row.account}")
    if kept is None:
        return restore_account(row, ledger)
    if kept.unread is not None:
        raise InputError("the row that is kept in it keeps another one")
    state = restore_account(kept, ledger)
    state.transfers = _sequences(row)
    encumbrances = state.encumbered()
    encumbrances.unapplied = _unapplied(row)
    encumbrances.suspended_reason = row.suspended_reason if row.unapplied else None
    encumbrances.refused = dict(row.refused)
    encumbrances.resumed = row.resumed or 0
    return state


def set_aside(account: str, data: bytes, reason: str) -> tuple[AccountState, bool]:
    """A suspended account that keeps the row which cannot be read, and whether it did so before.

    What the row says of numbers that must not be given twice is taken over where it can be read.
    """
    try:
        row = _NUMBERS(data)
    except DecodeError:
        row = _Numbers()
    state = AccountState(
        account,
        liquidation_sequence=row.liquidation_sequence,
        transfers=_sequences(row),
        alert_sequence=row.alert_sequence,
        transfer_digest=row.transfer_digest,
        encumbrances=Encumbrances(
            suspended_reason=reason,
            unread=data,
            unapplied=_unapplied(row),
            refused=dict(row.refused),
            resumed=row.resumed,
        ),
    )
    if row.unread is not None and row.account == account:
        with suppress(InputError):
            state.unread = unpacked(row.unread)
            return state, True
    return state, False


def restore_account(row: AccountRow, ledger: Ledger) -> AccountState:
    """The state that :func:`account_row` made ``row`` from; what it holds goes into ``ledger``.

    Raises:
        InputError: the ledger cannot be held under the parameters in force. Nothing of it is in the ledger.
    """
    state = AccountState(
        account=row.account,
        liquidation_sequence=row.liquidation_sequence,
        transfers=_sequences(row),
        alert_sequence=row.alert_sequence,
        transfer_digest=row.transfer_digest,
        touched=row.touched,
    )
    encumbrances = Encumbrances(
        suspended_reason=row.suspended_reason,
        told_liquidatable=row.told_liquidatable,
        held=row.held,
        unapplied=_unapplied(row),
        refused=dict(row.refused),
        parked=list(row.parked),
        waiting_fills=list(row.waiting_fills),
        deferred=list(row.deferred),
        resumed=row.resumed or 0,
    )
    if encumbrances.told_liquidatable or not encumbrances.is_none:
        state.encumbrances = encumbrances
    try:
        for group in row.groups:
            state.groups[group.margin] = _restore_group(row.account, group, ledger)
    except InputError:
        for kept in state.groups.values():
            ledger.load_group(kept.row, {}, ())
            ledger.drop_group(kept.row)
        raise
    return state


def _unapplied(row: AccountRow | _Numbers) -> Unapplied:
    return Unapplied(row.unapplied, row.unapplied_credits, row.owed)


def _sequences(row: AccountRow | _Numbers) -> TransferSequences:
    gaps = [(gap.first, gap.next) for gap in row.transfer_gaps] or NO_GAPS
    return TransferSequences(row.transfer_sequence, max(0, row.transfer_floor), gaps)


def _restore_group(account: str, group: GroupRow, ledger: Ledger) -> GroupState:
    index = ledger.open_group(account, group.margin)
    try:
        ledger.load_group(index, group.balances, [(p.symbol, p.quantity, p.cash) for p in group.positions])
    except InputError:
        ledger.drop_group(index)
        raise
    return GroupState(
        row=index,
        margin=group.margin,
        status=group.status,
        level=None if group.margin_call_level is None else Decimal(group.margin_call_level),
        liquidation=_restore_liquidation(group),
        started=has_started(group),
        told_undecided=group.told_undecided,
    )


class _Started(Protocol):
    @property
    def status(self) -> GroupStatus: ...
    @property
    def liquidation_started(self) -> bool | None: ...


def has_started(group: _Started) -> bool:
    """Whether a row says that a liquidation has been told to have started: earlier versions let ``status`` say it."""
    started = group.liquidation_started
    return group.status in ("liquidating", "bankrupt") if started is None else started


def packed(row: bytes) -> str:
    """A row as text that takes less room; :func:`unpacked` gives it back."""
    return base64.b64encode(zlib.compress(row)).decode("ascii")


def unpacked(text: str) -> bytes:
    """
    Raises:
        InputError: it is not what :func:`packed` gives.
    """
    try:
        return zlib.decompress(base64.b64decode(text, validate=True))
    except (ValueError, zlib.error) as error:
        raise InputError(f"the row that is kept in this one cannot be unpacked: {error}") from None


def _group_row(state: GroupState, ledger: Ledger) -> GroupRow | None:
    if state.status == "normal" and not state.is_watched and ledger.is_empty(state.row):
        return None
    return GroupRow(
        margin=state.margin,
        status=state.status,
        balances=ledger.balances(state.row),
        positions=tuple(
            PositionRow(symbol=symbol, quantity=quantity, cash=cash)
            for symbol, quantity, cash in ledger.positions(state.row)
        ),
        margin_call_level=None if state.level is None else format_decimal(state.level),
        command=None if state.command is None else _open_command(state.command),
        told_undecided=state.told_undecided,
        liquidation_started=state.started,
        **({} if state.liquidation is None else _remembered(state.liquidation)),
    )


def _remembered(liquidation: Liquidation) -> dict[str, Any]:
    """What a row says of a liquidation beside the command that is out."""
    ended = tuple(map(_open_command, liquidation.ended))
    fields = {"attempt": liquidation.attempt, "retry_at": liquidation.retry_at, "ended": ended}
    return {name: value for name, value in fields.items() if value}


def _open_command(command: CommandState) -> OpenCommand:
    return OpenCommand(
        command_id=command.command_id,
        stage=command.stage,  # type: ignore[arg-type]
        expires_at=command.expires_at,
        orders=tuple(
            OpenOrder(
                order_id=order.order_id,
                quantity=format_decimal(order.quantity),
                filled=format_decimal(order.filled),
                final=None if order.final is None else format_decimal(order.final),
                symbol=order.symbol,
                order_side=order.side,
                status=order.status,
                mark_price=_text_of(order.mark_price),
                traded=_text_of(order.traded),
                transferred=_text_of(order.transferred),
                **({} if order.rates is None else stated(order.rates)),
            )
            for order in command.orders
        ),
        status=command.status,
        withdrawn_by=UNSET if command.withdrawn_by is None else command.withdrawn_by,
        forgotten_at=UNSET if command.forgotten_at is None else command.forgotten_at,
    )


def stated(rates: FeeRates) -> dict[str, str]:
    """Fee rates as an order's fields state them."""
    return {"liquidation_fee": format_decimal(rates.liquidation), "insurance_fee": format_decimal(rates.insurance)}


def _text_of(amount: Decimal | None) -> str | UnsetType:
    return UNSET if amount is None else format_decimal(amount)


def _amount_of(text: str | UnsetType) -> Decimal | None:
    return None if text is UNSET else Decimal(text)


def rates_of(order: OpenOrder | CommandOrder) -> FeeRates | None:
    """The fee rates that an order states, if it does."""
    if order.liquidation_fee is UNSET or order.insurance_fee is UNSET:
        return None
    return FeeRates(insurance=Decimal(order.insurance_fee), liquidation=Decimal(order.liquidation_fee))


def _restore_liquidation(group: GroupRow) -> Liquidation | None:
    liquidation = Liquidation(
        command=None if group.command is None else _restore_command(group.command),
        attempt=group.attempt or 0,
        retry_at=group.retry_at or 0,
        ended=[_restore_command(command) for command in group.ended or ()],
    )
    return None if liquidation.is_nothing else liquidation


def _restore_command(command: OpenCommand) -> CommandState:
    return CommandState(
        command_id=command.command_id,
        stage=command.stage,
        expires_at=command.expires_at,
        orders=[_restore_order(order) for order in command.orders],
        ended=_how_it_ended(command.status),
        withdrawn_by=command.withdrawn_by or None,
        forgotten_at=None if command.forgotten_at is UNSET else command.forgotten_at,
    )


def _how_it_ended(status: CommandStatus | UnsetType) -> CommandStatus | None:
    """How a command ended, if not by the end of its orders, from which follows what else its status says."""
    return status if status in FINAL_COMMANDS - FINAL_ORDERS else None


def _restore_order(order: OpenOrder) -> OrderState:
    restored = OrderState(
        order_id=order.order_id,
        quantity=Decimal(order.quantity),
        filled=Decimal(order.filled),
        final=None if order.final is None else Decimal(order.final),
        symbol=order.symbol,
        side=order.order_side,
        mark_price=_amount_of(order.mark_price),
        traded=_amount_of(order.traded),
        transferred=_amount_of(order.transferred),
        rates=rates_of(order),
    )
    if order.status is not UNSET:
        restored.status = order.status
    elif restored.filled >= restored.quantity:  # a row of an earlier version
        restored.status = "filled"
    elif restored.final is not None:
        restored.status = "filled" if restored.final >= restored.quantity else "cancelled"
    elif restored.filled:
        restored.status = "partly_filled"
    return restored
