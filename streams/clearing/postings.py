"""What a transfer and a fill do to the ledger, one at a time."""

from decimal import Decimal

from schemas.messages import ParkedTransfer, WaitingFill
from schemas.types import CROSS
from streams.clearing.account import AccountState, GroupState
from streams.clearing.accounts import Accounts
from streams.clearing.admission import Admission
from streams.clearing.open_commands import OpenCommands
from streams.errors import InputError
from streams.margin.fixed_point import is_decimal
from streams.margin.ledger import Ledger
from streams.margin.limits import ISOLATED_ASSETS_MAX


class Postings:
    """Posts to the ledger of one shard and has the groups it touches decided."""

    def __init__(self, accounts: Accounts, ledger: Ledger, admission: Admission, commands: OpenCommands) -> None:
        self._accounts = accounts
        self._ledger = ledger
        self._admission = admission
        self._commands = commands

    def transfer(self, state: AccountState, transfer: ParkedTransfer) -> None:
        """Apply a transfer.

        Raises:
            InputError: it cannot be; no balance has changed.
        """
        margin, asset = transfer.margin, transfer.asset
        if (reason := self._admission.refuses_transfer(margin, asset, transfer.amount)) is not None:
            raise InputError(reason)
        group = self._accounts.group(state, margin)
        if margin != CROSS:
            held = self._ledger.balances(group.row)
            if asset not in held and len(held) >= ISOLATED_ASSETS_MAX:
                raise InputError(f"margin {margin}: an isolated group holds at most {ISOLATED_ASSETS_MAX} assets")
        self._ledger.apply_transfer(group.row, asset, transfer.amount)
        self._accounts.agenda.touched.add(group.row)
        if transfer.order_id:
            self._commands.count_transfer(state, group, asset, transfer.amount, transfer.order_id)

    def is_spot(self, symbol: str) -> bool:
        """Whether a fill in ``symbol`` changes nothing that is held."""
        return self._admission.is_spot(symbol)

    def fill(self, state: AccountState, fill: WaitingFill) -> None:
        """Apply a fill. One on a spot market changes no balance, transfers do: it only counts for its order.

        Raises:
            InputError: it cannot be; nothing held has changed.
        """
        group = self._accounts.group(state, fill.margin)
        if self._admission.is_spot(fill.symbol):
            if not (is_decimal(fill.quantity) and Decimal(fill.quantity)):
                raise InputError(f"symbol {fill.symbol}: {fill.quantity[:60]!r} is no quantity")
            self._count(state, group, fill)
            return
        self._ledger.apply_fill(group.row, fill.symbol, fill.quantity, fill.price, fill.fee)
        self._accounts.agenda.touched.add(group.row)
        self._count(state, group, fill)

    def _count(self, state: AccountState, group: GroupState, fill: WaitingFill) -> None:
        self._commands.count_fill(state, group, fill.symbol, fill.quantity, fill.price, fill.order_id)
