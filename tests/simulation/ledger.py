"""An independent fold of the events: balances and positions in Decimals, without a line of the engine's ledger.

It knows the rules of what has to wait: a transfer or fill that the parameters do not admit waits for those that do, and
so does a fill behind one of the same symbol and group.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from schemas.messages import AccountRow, EventFrame
from streams.margin.parameters import RiskParameters

_ZERO = Decimal(0)

Transfer = tuple[str, str, Decimal]
"""Margin group, asset, amount."""
Fill = tuple[str, str, Decimal, Decimal, Decimal]
"""Margin group, symbol, quantity, price, fee."""


@dataclass(slots=True)
class Held:
    """What one margin group holds: balances by asset, [quantity, cash] by symbol."""

    balances: dict[str, Decimal] = field(default_factory=dict)
    positions: dict[str, list[Decimal]] = field(default_factory=dict)

    def add(self, asset: str, amount: Decimal) -> None:
        self.balances[asset] = self.balances.get(asset, _ZERO) + amount


class Ledger:
    """The accounts of one shard under the parameters last learnt. Every instrument settles in USDC."""

    def __init__(self) -> None:
        self._rules = RiskParameters.empty()
        self._come: dict[str, set[int]] = {}
        self.groups: dict[str, dict[str, Held]] = {}
        self.parked: dict[str, list[Transfer]] = {}
        self.waiting: dict[str, list[Fill]] = {}
        self.suspended: dict[str, int] = {}
        """How many records that could not be read have named each account."""
        self.transferred = self.fees = _ZERO

    @property
    def accounts(self) -> set[str]:
        """Every account that anything is known of."""
        return {*self._come, *self.groups, *self.parked, *self.waiting, *self.suspended}

    def learn(self, rules: RiskParameters) -> None:
        """Put ``rules`` in force and apply what waited for them."""
        self._rules = rules
        for account in self.parked:
            parked, self.parked[account] = self.parked[account], []
            for transfer in parked:
                self._transfer(account, *transfer)
        for account in self.waiting:
            waiting, self.waiting[account] = self.waiting[account], []
            for fill in waiting:
                self._fill(account, *fill)

    def apply(self, frame: EventFrame) -> None:
        """A frame: suspensions, transfers, then fills."""
        for suspension in frame.suspensions:
            self.suspended[suspension.account] = self.suspended.get(suspension.account, 0) + 1
        transfers, fills = frame.transfers, frame.fills
        for account, sequence, margin, asset, amount in zip(
            transfers.account, transfers.sequence, transfers.margin, transfers.asset, transfers.amount, strict=True
        ):
            come = self._come.setdefault(account, set())
            if sequence not in come:
                come.add(sequence)
                self._transfer(account, margin, asset, Decimal(amount))
        for account, margin, symbol, *numbers in zip(
            fills.account, fills.margin, fills.symbol, fills.quantity, fills.price, fills.fee, strict=True
        ):
            quantity, price, fee = map(Decimal, numbers)
            self._fill(account, margin, symbol, quantity, price, fee)

    def _transfer(self, account: str, margin: str, asset: str, amount: Decimal) -> None:
        if asset not in self._rules.assets or not (margin == "cross" or margin in self._rules.instruments):
            self.parked.setdefault(account, []).append((margin, asset, amount))
            return
        self._group(account, margin).add(asset, amount)
        if asset == "USDC":
            self.transferred += amount

    def _fill(self, account: str, margin: str, symbol: str, quantity: Decimal, price: Decimal, fee: Decimal) -> None:
        rules = self._rules.instruments.get(symbol)
        is_behind = any(fill[:2] == (margin, symbol) for fill in self.waiting.get(account, ()))
        if is_behind or rules is None or price % rules.price_increment or quantity % rules.quantity_increment:
            self.waiting.setdefault(account, []).append((margin, symbol, quantity, price, fee))
            return
        group = self._group(account, margin)
        position = group.positions.setdefault(symbol, [_ZERO, _ZERO])
        position[0] += quantity
        position[1] -= quantity * price
        group.add("USDC", -fee)
        self.fees += fee
        if not position[0]:
            group.add("USDC", position[1])
            del group.positions[symbol]

    def _group(self, account: str, margin: str) -> Held:
        return self.groups.setdefault(account, {}).setdefault(margin, Held())

    def differs(self, account: str, row: AccountRow | None) -> str | None:
        """What a row says otherwise than this ledger, if anything; what it defers is applied to it before."""
        expected = self._state(account)
        actual = self._with_deferred(row) if row is not None and row.deferred else _said(row)
        if actual == expected:
            return None
        return f"{account}: the row has {actual}, the fold {expected}"

    def _with_deferred(self, row: AccountRow) -> Any:
        """What the account would have if what its row defers were applied."""
        ledger = Ledger()
        ledger._rules = self._rules
        gaps = {sequence for gap in row.transfer_gaps for sequence in range(gap.first, gap.next)}
        come = self._come.get(row.account, set())
        ledger._come[row.account] = {s for s in come if s <= row.transfer_sequence and s not in gaps}
        ledger.groups[row.account] = {
            group.margin: Held(balances, {symbol: list(held) for symbol, held in positions.items()})
            for group in row.groups
            for balances, positions in [_of(group)]
        }
        _, ledger.parked[row.account], ledger.waiting[row.account], ledger.suspended[row.account], _ = _said(row)
        for deferred in row.deferred:
            ledger.apply(deferred.frame)
        return ledger._state(row.account)

    def _state(self, account: str) -> Any:
        groups = {
            margin: (balances, {symbol: tuple(held) for symbol, held in group.positions.items()})
            for margin, group in self.groups.get(account, {}).items()
            if (balances := {asset: amount for asset, amount in group.balances.items() if amount}) or group.positions
        }
        parked, waiting = self.parked.get(account, []), self.waiting.get(account, [])
        unapplied = self.suspended.get(account, 0)
        is_owed = any(
            sum(amount for *place, amount in parked if place == [margin, asset]) < 0 for margin, asset, _ in parked
        )
        return groups, parked, waiting, unapplied, bool(unapplied or waiting or is_owed)


def _said(row: AccountRow | None) -> Any:
    """What a row says, in the form of a ledger's state."""
    if row is None:
        return {}, [], [], 0, False
    return (
        {group.margin: contents for group in row.groups if any(contents := _of(group))},
        [(held.margin, held.asset, Decimal(held.amount)) for held in row.parked],
        [
            (fill.margin, fill.symbol, Decimal(fill.quantity), Decimal(fill.price), Decimal(fill.fee))
            for fill in row.waiting_fills
        ],
        row.unapplied,
        row.status == "suspended",
    )


def _of(group: Any) -> tuple[dict[str, Decimal], dict[str, tuple[Decimal, Decimal]]]:
    return (
        {asset: Decimal(amount) for asset, amount in group.balances.items()},
        {held.symbol: (Decimal(held.quantity), Decimal(held.cash)) for held in group.positions},
    )
