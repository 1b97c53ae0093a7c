"""The state of one account beside its ledger: statuses, the outstanding commands, and the sequences that name things.

The ledger itself (balances, positions) lives in the shard's portfolio columns; this is what the columns do not hold.
Rows of ``margin.accounts.v1`` are made from both and both are restored from them.
"""

import base64
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal

import msgspec

from schemas.codec import DecodeError, Decoder
from schemas.messages import AccountRow, GroupRow, OpenCommand, OpenOrder, PositionRow
from schemas.types import AccountStatus, GroupStatus, Offset, Sequence
from streams.errors import InputError
from streams.margin.fixed_point import format_decimal
from streams.margin.portfolio import Portfolio

_ROW = Decoder[AccountRow](AccountRow)


class _Numbers(msgspec.Struct):
    account: str = ""
    liquidation_sequence: Sequence = 0
    transfer_sequence: Offset = -1
    alert_sequence: Sequence = 0
    unapplied: Sequence = 0
    unread: str | None = None
    refused: dict[str, Offset] = {}


_NUMBERS = Decoder[_Numbers](_Numbers)

_SEVERITY: dict[str, int] = {"normal": 0, "margin_call": 1, "liquidating": 2, "bankrupt": 3}


@dataclass(slots=True)
class OrderState:
    """One order of an outstanding command; ``final`` is the filled quantity that its last report states, if any."""

    order_id: str
    quantity: Decimal
    filled: Decimal = Decimal(0)
    final: Decimal | None = None

    @property
    def done(self) -> bool:
        """All that will ever be filled has been seen as fills: a report alone is not enough, fills may still be on
        their way through another topic, and a group judged before they arrive would be liquidated twice."""
        return self.filled >= self.quantity or (self.final is not None and self.filled >= self.final)


@dataclass(slots=True)
class CommandState:
    """The one outstanding command of a group."""

    command_id: str
    stage: str
    expires_at: int
    orders: list[OrderState]

    @property
    def closed(self) -> bool:
        """Done, and something was filled. A command that filled nothing stays until it expires, so that a service
        that rejects everything is asked once a time-to-live, not in a loop."""
        return all(order.done for order in self.orders) and any(order.filled for order in self.orders)


@dataclass(slots=True)
class GroupState:
    """One margin group: ``row`` is its place in the portfolio's columns, ``level`` its margin-call level, if any."""

    row: int
    margin: str
    status: GroupStatus = "normal"
    level: Decimal | None = None
    command: CommandState | None = None


@dataclass(slots=True)
class AccountState:
    """One account. ``unapplied`` counts the events that could not be applied: above zero the account is suspended.

    ``unread`` is the account's last row if it could not be read: there is nothing else of the account then. ``refused``
    says which records that could not be read have suspended it: the last offset by ``topic:partition``.
    """

    account: str
    groups: dict[str, GroupState] = field(default_factory=dict)
    liquidation_sequence: int = 0
    transfer_sequence: int = -1
    alert_sequence: int = 0
    unapplied: int = 0
    suspended_reason: str | None = None
    unread: bytes | None = None
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def suspended(self) -> bool:
        return self.unapplied > 0 or self.unread is not None


def account_row(state: AccountState, portfolio: Portfolio) -> AccountRow | None:
    """The changelog row of an account, or None (a tombstone) when nothing about it needs to be remembered.

    An emptied account that has a sequence keeps its row: forgetting the sequence would accept a repeated transfer or
    issue a command id a second time.
    """
    groups = tuple(
        row for margin in sorted(state.groups) if (row := _group_row(state.groups[margin], portfolio)) is not None
    )
    remembered = (
        state.liquidation_sequence
        or state.alert_sequence
        or state.transfer_sequence >= 0
        or state.suspended
        or state.refused
    )
    if not groups and not remembered:
        return None
    statuses: list[GroupStatus] = [group.status for group in groups]
    worst: AccountStatus = max(statuses, key=_SEVERITY.__getitem__, default="normal")
    return AccountRow(
        account=state.account,
        status="suspended" if state.suspended else worst,
        groups=groups,
        liquidation_sequence=state.liquidation_sequence,
        transfer_sequence=state.transfer_sequence,
        alert_sequence=state.alert_sequence,
        unapplied=state.unapplied,
        suspended_reason=state.suspended_reason,
        unread=None if state.unread is None else _packed(state.unread),
        refused=dict(sorted(state.refused.items())),
    )


def read_account(account: str, data: bytes, portfolio: Portfolio) -> AccountState:
    """The state of ``account`` from the bytes of its last row; the ledger goes into ``portfolio``.

    A row that keeps one that could not be read is read as that one, with what has become of the account since.

    Raises:
        InputError: it is no row, that of another account, or cannot be held under the parameters in force. Nothing of
            it is in the portfolio.
    """
    try:
        row = _ROW(data)
        kept = None if row.unread is None else _ROW(_unpacked(row.unread))
    except DecodeError as error:
        raise InputError(str(error)) from None
    if row.account != account or (kept is not None and kept.account != account):
        raise InputError(f"it is that of account {row.account}")
    if kept is None:
        return restore_account(row, portfolio)
    if kept.unread is not None:
        raise InputError("the row that is kept in it keeps another one")
    state = restore_account(kept, portfolio)
    state.unapplied = row.unapplied
    state.suspended_reason = row.suspended_reason if row.unapplied else None
    state.refused = dict(row.refused)
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
        transfer_sequence=row.transfer_sequence,
        alert_sequence=row.alert_sequence,
        unapplied=row.unapplied,
        suspended_reason=reason,
        unread=data,
        refused=dict(row.refused),
    )
    if row.unread is not None and row.account == account:
        with suppress(InputError):
            state.unread = _unpacked(row.unread)
            return state, True
    return state, False


def restore_account(row: AccountRow, portfolio: Portfolio) -> AccountState:
    """The state that :func:`account_row` made ``row`` from; the ledger goes into ``portfolio``.

    Raises:
        InputError: the ledger cannot be held under the parameters in force. Nothing of it is in the portfolio.
    """
    state = AccountState(
        account=row.account,
        liquidation_sequence=row.liquidation_sequence,
        transfer_sequence=row.transfer_sequence,
        alert_sequence=row.alert_sequence,
        unapplied=row.unapplied,
        suspended_reason=row.suspended_reason,
        refused=dict(row.refused),
    )
    try:
        for group in row.groups:
            state.groups[group.margin] = _restore_group(row.account, group, portfolio)
    except InputError:
        for index in portfolio.groups_of(row.account):
            portfolio.load_group(index, {}, ())
            portfolio.drop_group(index)
        raise
    return state


def _restore_group(account: str, group: GroupRow, portfolio: Portfolio) -> GroupState:
    index = portfolio.open_group(account, group.margin)
    portfolio.load_group(index, group.balances, [(p.symbol, p.quantity, p.cash) for p in group.positions])
    return GroupState(
        row=index,
        margin=group.margin,
        status=group.status,
        level=None if group.margin_call_level is None else Decimal(group.margin_call_level),
        command=None if group.command is None else _restore_command(group.command),
    )


def _packed(row: bytes) -> str:
    return base64.b64encode(zlib.compress(row)).decode("ascii")


def _unpacked(text: str) -> bytes:
    """
    Raises:
        InputError: it is not what :func:`_packed` gives.
    """
    try:
        return zlib.decompress(base64.b64decode(text, validate=True))
    except (ValueError, zlib.error) as error:
        raise InputError(f"the row that is kept in this one cannot be unpacked: {error}") from None


def _group_row(state: GroupState, portfolio: Portfolio) -> GroupRow | None:
    if state.status == "normal" and state.command is None and portfolio.is_empty(state.row):
        return None
    return GroupRow(
        margin=state.margin,
        status=state.status,
        balances=portfolio.balances(state.row),
        positions=tuple(
            PositionRow(symbol=symbol, quantity=quantity, cash=cash)
            for symbol, quantity, cash in portfolio.positions(state.row)
        ),
        margin_call_level=None if state.level is None else format_decimal(state.level),
        command=None if state.command is None else _open_command(state.command),
    )


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
            )
            for order in command.orders
        ),
    )


def _restore_command(command: OpenCommand) -> CommandState:
    return CommandState(
        command_id=command.command_id,
        stage=command.stage,
        expires_at=command.expires_at,
        orders=[
            OrderState(
                order_id=order.order_id,
                quantity=Decimal(order.quantity),
                filled=Decimal(order.filled),
                final=None if order.final is None else Decimal(order.final),
            )
            for order in command.orders
        ],
    )
