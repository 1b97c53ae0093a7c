"""An independent fold of the events: balances and positions in Decimals, without a line of the engine's ledger."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from schemas.messages import AccountRow, EventFrame

_ZERO = Decimal(0)


@dataclass(slots=True)
class Held:
    """What one margin group holds: balances by asset, [quantity, cash] by symbol."""

    balances: dict[str, Decimal] = field(default_factory=dict)
    positions: dict[str, list[Decimal]] = field(default_factory=dict)

    def add(self, asset: str, amount: Decimal) -> None:
        self.balances[asset] = self.balances.get(asset, _ZERO) + amount


class Ledger:
    """The accounts of one shard. Every instrument settles in USDC; ``tradable`` are those that have parameters."""

    def __init__(self, tradable: set[str]) -> None:
        self._tradable = tradable
        self._sequences: dict[str, int] = {}
        self.groups: dict[str, dict[str, Held]] = {}
        self.unapplied: dict[str, int] = {}
        self.suspended: dict[str, int] = {}
        """How many records that could not be read have named each account."""
        self.transferred = self.fees = _ZERO

    def apply(self, frame: EventFrame) -> None:
        """A frame: suspensions, transfers, then fills."""
        for suspension in frame.suspensions:
            self.suspended[suspension.account] = self.suspended.get(suspension.account, 0) + 1
        transfers, fills = frame.transfers, frame.fills
        for index, account in enumerate(transfers.account):
            if transfers.sequence[index] <= self._sequences.get(account, -1):
                continue
            self._sequences[account] = transfers.sequence[index]
            amount = Decimal(transfers.amount[index])
            self._group(account, transfers.margin[index]).add(transfers.asset[index], amount)
            if transfers.asset[index] == "USDC":
                self.transferred += amount
        for index, account in enumerate(fills.account):
            symbol = fills.symbol[index]
            if symbol not in self._tradable:
                self.unapplied[account] = self.unapplied.get(account, 0) + 1
                continue
            group = self._group(account, fills.margin[index])
            position = group.positions.setdefault(symbol, [_ZERO, _ZERO])
            quantity, fee = Decimal(fills.quantity[index]), Decimal(fills.fee[index])
            position[0] += quantity
            position[1] -= quantity * Decimal(fills.price[index])
            group.add("USDC", -fee)
            self.fees += fee
            if not position[0]:
                group.add("USDC", position[1])
                del group.positions[symbol]

    def _group(self, account: str, margin: str) -> Held:
        return self.groups.setdefault(account, {}).setdefault(margin, Held())

    def differs(self, account: str, row: AccountRow | None) -> str | None:
        """What a row says otherwise than this ledger, if anything."""
        expected = {
            margin: (balances, {symbol: tuple(held) for symbol, held in group.positions.items()})
            for margin, group in self.groups.get(account, {}).items()
            if (balances := {asset: amount for asset, amount in group.balances.items() if amount}) or group.positions
        }
        found = {} if row is None else {group.margin: contents for group in row.groups if any(contents := _of(group))}
        unapplied = 0 if row is None else row.unapplied
        if found == expected and unapplied == self.unapplied.get(account, 0) + self.suspended.get(account, 0):
            return None
        counted = f"{self.unapplied} and {self.suspended}"
        return f"{account}: the row has {found}, {unapplied} unapplied; the fold {expected}, {counted}"


def _of(group: Any) -> tuple[dict[str, Decimal], dict[str, tuple[Decimal, Decimal]]]:
    return (
        {asset: Decimal(amount) for asset, amount in group.balances.items()},
        {held.symbol: (Decimal(held.quantity), Decimal(held.cash)) for held in group.positions},
    )
