"""An independent fold of the events: balances and positions in Decimals, without a line of the engine's ledger.

It knows the rules of what has to wait: a transfer or fill that the parameters do not admit waits for those that do, and
so does a fill behind one of the same symbol and group.

An account that goes to another shard takes what is here of it along: every record that it has had, so that none counts
twice wherever it is told again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from schemas.messages import AccountRow, EventFrame
from streams.margin.parameters import RiskParameters
from tests.simulation.repeats import events_of

_ZERO = Decimal(0)

Transfer = tuple[str, str, Decimal]
"""Margin group, asset, amount."""
Fill = tuple[str, str, Decimal, Decimal, Decimal]
"""Margin group, symbol, quantity, price, fee."""
Letter = tuple[str, int, int]
"""Topic, partition and offset of a record."""
Event = tuple[Letter, tuple[Any, ...]]


@dataclass(slots=True)
class Held:
    """What one margin group holds: balances by asset, [quantity, cash] by symbol."""

    balances: dict[str, Decimal] = field(default_factory=dict)
    positions: dict[str, list[Decimal]] = field(default_factory=dict)

    def add(self, asset: str, amount: Decimal) -> None:
        self.balances[asset] = self.balances.get(asset, _ZERO) + amount


@dataclass(slots=True)
class Luggage:
    """What an account takes along to another shard."""

    come: set[int]
    groups: dict[str, Held]
    parked: list[Transfer]
    waiting: list[Fill]
    suspended: int
    had: set[Letter]


class Ledger:
    """The accounts of one shard under the parameters last learnt. Every instrument settles in USDC.

    ``has`` says which accounts the shard has now. What comes of others is kept until they come.
    """

    def __init__(self, has: Callable[[str], bool] = lambda _: True) -> None:
        self._has = has
        self._rules = RiskParameters.empty()
        self._come: dict[str, set[int]] = {}
        self.groups: dict[str, dict[str, Held]] = {}
        self.parked: dict[str, list[Transfer]] = {}
        self.waiting: dict[str, list[Fill]] = {}
        self.suspended: dict[str, int] = {}
        """How many records that could not be read have named each account."""
        self.had: dict[str, set[Letter]] = {}
        """The records that count in each account."""
        self._early: list[list[Event]] = []
        """By frame, what came of accounts that are not here."""
        self.transferred = self.fees = _ZERO

    @property
    def rules(self) -> RiskParameters:
        """The parameters in force."""
        return self._rules

    @property
    def accounts(self) -> set[str]:
        """Every account that anything is known of."""
        return {*self._come, *self.groups, *self.parked, *self.waiting, *self.suspended}

    def learn(self, rules: RiskParameters) -> None:
        """Put ``rules`` in force and apply what waited for them."""
        self._rules = rules
        for account in {**self.parked, **self.waiting}:
            self._apply_waiting(account)

    def _apply_waiting(self, account: str) -> None:
        parked, self.parked[account] = self.parked.get(account, []), []
        for transfer in parked:
            self._transfer(account, *transfer)
        waiting, self.waiting[account] = self.waiting.get(account, []), []
        for fill in waiting:
            self._fill(account, *fill)

    def apply(self, frame: EventFrame) -> None:
        """A frame: suspensions, transfers, then fills."""
        self._apply_once(events_of(frame))

    def _apply_once(self, events: list[Event]) -> None:
        """The events of one frame: a record that an account has had does not count again."""
        had: list[tuple[str, Letter]] = []
        early: list[Event] = []
        for place, (kind, account, *values) in events:
            if not self._has(account):
                early.append((place, (kind, account, *values)))
            elif place not in self.had.get(account, ()):
                had.append((account, place))
                self._apply(kind, account, values)
        for account, place in had:
            self.had.setdefault(account, set()).add(place)
        if early:
            self._early.append(early)

    def _apply(self, kind: str, account: str, values: list[Any]) -> None:
        if kind == "suspension":
            self.suspended[account] = self.suspended.get(account, 0) + 1
        elif kind == "transfer":
            margin, asset, amount, sequence = values
            come = self._come.setdefault(account, set())
            if sequence not in come:
                come.add(sequence)
                self._transfer(account, margin, asset, Decimal(amount))
        elif kind == "fill":
            margin, symbol, quantity, price, fee, *_ = values
            self._fill(account, margin, symbol, Decimal(quantity), Decimal(price), Decimal(fee))

    def charge(self, account: str, margin: str, fee: Decimal, luggage: Luggage | None) -> None:
        """The fees of a liquidation's fill have been booked; ``luggage`` is what a gone account has with it."""
        held = self._group(account, margin) if luggage is None else luggage.groups[margin]
        held.add("USDC", -fee)
        self.fees += fee

    # --- accounts that go and come -----------------------------------------------------------------------------------

    def let_go(self, goes: Callable[[str], bool]) -> dict[str, Luggage]:
        """The accounts that go, each with what it takes along."""
        return {
            account: Luggage(
                self._come.pop(account, set()),
                self.groups.pop(account, {}),
                self.parked.pop(account, []),
                self.waiting.pop(account, []),
                self.suspended.pop(account, 0),
                self.had.pop(account, set()),
            )
            for account in sorted({*self.accounts, *self.had})
            if goes(account)
        }

    def take_in(self, accounts: dict[str, Luggage]) -> None:
        """Accounts have come: what they wait for may be known here, and what came before them counts now."""
        for account, luggage in accounts.items():
            self._come[account], self.groups[account] = luggage.come, luggage.groups
            self.parked[account], self.waiting[account] = luggage.parked, luggage.waiting
            self.had[account] = luggage.had
            if luggage.suspended:
                self.suspended[account] = luggage.suspended
            self._apply_waiting(account)
        early, self._early = self._early, []
        for events in early:
            self._apply_once(events)

    # --- one account -------------------------------------------------------------------------------------------------

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
        ledger.learn(self._rules)
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
            for _, (kind, account, *values) in events_of(deferred.frame):
                ledger._apply(kind, account, values)
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
