"""The rows of ordinary accounts, read the short way: nearly all that a shard reads when it is taken.

The types of a row are checked without their patterns, for which the decoder would ask Python string by string. What
they rule out is ruled out otherwise: a symbol or asset is one of the parameters', a margin has been seen to be one, an
amount is parsed, an account is the one that was asked for, and no key comes twice, so nothing is read over. Of a row
that is in any way other than that nothing is read here: it is for :func:`streams.clearing.account.read_account`, which
gives the same of these rows, and says of any other what is wrong.
"""

from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec

from schemas.codec import MESSAGE_BYTES_MAX
from schemas.types import CROSS, AccountStatus, GroupStatus, Offset, is_identifier
from schemas.types import Sequence as SequenceNumber
from streams.clearing.account import WITHOUT_ORDERS, AccountGroups, AccountState, GroupState, has_started
from streams.clearing.transfers import NO_GAPS, TransferSequences
from streams.margin.fixed_point import is_decimal
from streams.margin.ledger import Ledger
from streams.margin.plain_groups import PlainGroup, PlainGroups

_NoList = Annotated[list[Any], msgspec.Meta(max_length=0)]
_NoKeys = Annotated[dict[str, Any], msgspec.Meta(max_length=0)]


class _PlainPosition(msgspec.Struct, gc=False):
    symbol: str
    quantity: str
    cash: str


class _Group(msgspec.Struct, gc=False):
    margin: str
    status: GroupStatus
    balances: dict[str, str]
    positions: list[_PlainPosition]
    margin_call_level: str | None
    command: None
    told_undecided: bool
    liquidation_started: bool | None


class _PlainRow(msgspec.Struct, gc=False):
    """A row that has every field, and nothing where an ordinary account has nothing."""

    account: str
    status: AccountStatus
    groups: list[_Group]
    liquidation_sequence: SequenceNumber
    transfer_sequence: Offset
    alert_sequence: SequenceNumber
    unapplied: Literal[0]
    suspended_reason: None
    told_liquidatable: bool
    parked: _NoList
    transfer_gaps: list[tuple[Offset, Offset]]
    transfer_floor: Offset
    waiting_fills: _NoList
    unread: None
    unapplied_credits: Literal[0]
    transfer_digest: SequenceNumber
    refused: _NoKeys
    owed: _NoKeys
    touched: Offset
    held: None
    deferred: _NoList


_decode = msgspec.json.Decoder(_PlainRow).decode
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_KEYS_OF_A_ROW = len(_PlainRow.__struct_fields__)
_KEYS_OF_A_GROUP = len(_Group.__struct_fields__)
_KEYS_OF_A_POSITION = len(_PlainPosition.__struct_fields__)


class PlainRows:
    """Reads the rows of a shard that is taken, under the parameters in force in ``ledger`` when it is made.

    ``accounts`` are those whose rows will be read.
    """

    def __init__(self, ledger: Ledger, accounts: Collection[str]) -> None:
        self._ledger = ledger
        columns = {column.asset: column for column in ledger.columns if column.asset in ledger.parameters.assets}
        self._plain = PlainGroups(columns, ledger.fill_rules, ledger.slots)
        self._margins = {symbol: symbol for symbol in (CROSS, *ledger.parameters.instruments)}
        self._strange = _strange(accounts)

    def read(self, account: str, data: bytes) -> AccountState | None:
        """As ``read_account``, of the row of an ordinary account none of whose groups is out of reach; else None, and
        nothing has changed."""
        try:
            row = _decode(data)
        except _REFUSED:
            return None
        if row.account != account or row.told_liquidatable or account in self._strange:
            return None
        read = self._read_groups(account, data, row.groups)
        if read is None:
            return None
        groups = AccountGroups()
        for group, holds in read:
            margin, level = self._margins[group.margin], group.margin_call_level
            index = self._ledger.open_group(account, margin)
            self._plain.load(index, holds)
            groups[margin] = GroupState(
                index,
                margin,
                group.status,
                None if level is None else Decimal(level),
                None,
                has_started(group) if group.liquidation_started is None else group.liquidation_started,
            )
        gaps, floor = row.transfer_gaps or NO_GAPS, row.transfer_floor
        return AccountState(
            account,
            groups,
            row.liquidation_sequence,
            TransferSequences(row.transfer_sequence, floor if floor > 0 else 0, gaps),
            row.alert_sequence,
            row.transfer_digest,
            row.touched,
        )

    def _read_groups(
        self, account: str, data: bytes, groups: Sequence[_Group]
    ) -> list[tuple[_Group, PlainGroup]] | None:
        """What the groups of a row hold, if they are what a row has once."""
        if len(groups) > 1 and len({group.margin for group in groups}) < len(groups):
            return None
        keys, read, margins = _KEYS_OF_A_ROW, [], self._margins
        for group in groups:
            balances, positions, level = group.balances, group.positions, group.margin_call_level
            if group.told_undecided or group.status in WITHOUT_ORDERS or group.margin not in margins:
                return None
            holds = self._plain.read(balances, positions)
            if holds is None or not (level is None or is_decimal(level)):
                return None
            keys += _KEYS_OF_A_GROUP + len(balances) + _KEYS_OF_A_POSITION * len(positions)
            read.append((group, holds))
        if ":" in account:
            if not data.startswith(f'{{"account":"{account}",'.encode()):
                return None  # it is not known how many colons are in it
            keys += account.count(":")
        return read if data.count(b":") == keys and len(data) <= MESSAGE_BYTES_MAX else None


def _strange(accounts: Collection[str]) -> frozenset[str]:
    """Those of ``accounts`` that are no identifiers: mostly none, which is seen at once."""
    together = "".join(accounts)
    if together.isascii() and together.isprintable() and " " not in together:
        lengths = set(map(len, accounts))
        if not lengths or (min(lengths) and is_identifier("x" * max(lengths))):
            return frozenset()
    return frozenset(account for account in accounts if not is_identifier(account))
