"""The rows of ordinary accounts, read the short way: nearly all that a shard reads when it is taken.

The types of a row are checked without their patterns, for which the decoder would ask Python string by string. What
they rule out is ruled out otherwise: a symbol or asset is one of the parameters', a margin has been seen to be one, an
amount is parsed, an account is the one that was asked for, and no key comes twice, so nothing is read over. Of a row
that is in any way other than that nothing is read here: it is for :func:`streams.clearing.account.read_account`, which
gives the same of these rows, and says of any other what is wrong.
"""

from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec

from schemas.codec import MESSAGE_BYTES_MAX
from schemas.types import CROSS, AccountStatus, GroupStatus, Offset, Sequence
from streams.clearing.account import WITHOUT_ORDERS, AccountState, Groups, GroupState, has_started
from streams.clearing.transfers import NO_GAPS, TransferSequences
from streams.errors import InputError
from streams.margin.fixed_point import parse_decimal
from streams.margin.ledger import Ledger

_NoList = Annotated[list[Any], msgspec.Meta(max_length=0)]
_NoKeys = Annotated[dict[str, Any], msgspec.Meta(max_length=0)]


class _Position(msgspec.Struct, gc=False):
    symbol: str
    quantity: str
    cash: str


class _Group(msgspec.Struct, gc=False):
    margin: str
    status: GroupStatus
    balances: dict[str, str]
    positions: list[_Position]
    margin_call_level: str | None
    command: None
    told_undecided: bool
    liquidation_started: bool | None


class _Row(msgspec.Struct, gc=False):
    """A row that has every field, and nothing where an ordinary account has nothing."""

    account: str
    status: AccountStatus
    groups: list[_Group]
    liquidation_sequence: Sequence
    transfer_sequence: Offset
    alert_sequence: Sequence
    unapplied: Literal[0]
    suspended_reason: None
    told_liquidatable: bool
    parked: _NoList
    transfer_gaps: list[tuple[Offset, Offset]]
    transfer_floor: Offset
    waiting_fills: _NoList
    unread: None
    unapplied_credits: Literal[0]
    transfer_digest: Sequence
    refused: _NoKeys
    owed: _NoKeys
    touched: Offset
    held: None
    deferred: _NoList


_decode = msgspec.json.Decoder(_Row).decode
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_KEYS_OF_A_ROW = len(_Row.__struct_fields__)
_KEYS_OF_A_GROUP = len(_Group.__struct_fields__)
_KEYS_OF_A_POSITION = len(_Position.__struct_fields__)
_NAME_CHARACTERS_MAX = 128


class PlainRows:
    """Reads the rows of a shard that is taken, under the parameters in force in ``ledger`` when it is made."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._plain = ledger.plain_groups()
        self._margins = {symbol: symbol for symbol in (CROSS, *ledger.parameters.instruments)}

    def read(self, account: str, data: bytes) -> AccountState | None:
        """As ``read_account``, of the row of an ordinary account none of whose groups is out of reach; else None, and
        nothing has changed."""
        try:
            row = _decode(data)
        except _REFUSED:
            return None
        if row.account != account or row.told_liquidatable or not _is_plain(account, data):
            return None
        if len(row.groups) > 1 and len({group.margin for group in row.groups}) < len(row.groups):
            return None
        keys, read = _KEYS_OF_A_ROW, []
        for group in row.groups:
            if group.told_undecided or group.status in WITHOUT_ORDERS or group.margin not in self._margins:
                return None
            holds = self._plain.read(group.balances, group.positions)
            if holds is None or not _is_decimal(group.margin_call_level):
                return None
            keys += _KEYS_OF_A_GROUP + len(group.balances) + _KEYS_OF_A_POSITION * len(group.positions)
            read.append((group, holds))
        if data.count(b":") != keys + account.count(":"):
            return None  # a key comes twice, or one that is not known
        groups = Groups()
        state = AccountState(
            account,
            groups,
            row.liquidation_sequence,
            TransferSequences(row.transfer_sequence, max(0, row.transfer_floor), row.transfer_gaps or NO_GAPS),
            row.alert_sequence,
            row.transfer_digest,
            row.touched,
        )
        for group, holds in read:
            margin, text = self._margins[group.margin], group.margin_call_level
            index = self._ledger.open_group(account, margin)
            self._plain.load(index, holds)
            level = None if text is None else Decimal(text)
            groups[margin] = GroupState(index, margin, group.status, level, None, has_started(group))
        return state


def _is_plain(account: str, data: bytes) -> bool:
    """Whether ``account`` is an identifier and any colons in it stand in ``data`` as they are, where it is first."""
    return (
        account.isascii()
        and account.isprintable()
        and " " not in account
        and 0 < len(account) <= _NAME_CHARACTERS_MAX
        and len(data) <= MESSAGE_BYTES_MAX
        and (":" not in account or data.startswith(f'{{"account":"{account}",'.encode()))
    )


def _is_decimal(text: str | None) -> bool:
    if text is None:
        return True
    try:
        parse_decimal(text)
    except InputError:
        return False
    return True
