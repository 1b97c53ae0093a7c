"""One account as a person looks at it: its row from Redis, evaluated at the current marks by the engine's mathematics.

Reads only. The account and the marks come from the Redis tables, the parameters in force from ``risk.parameters.v1``.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from schemas.messages import AccountRow, GroupRow
from streams.broker.reader import LogReader
from streams.console.parameters import read_parameters
from streams.errors import InputError
from streams.margin.fixed_point import format_decimal
from streams.margin.group import Group, Position
from streams.margin.health import Health, evaluate, liquidation_price
from streams.margin.parameters import RiskParameters
from streams.settings import Settings
from streams.tables.reader import TableReader


@dataclass(frozen=True, slots=True)
class GroupView:
    """A margin group at the marks. ``health`` is None when a mark it needs is missing; ``problem`` says which."""

    row: GroupRow
    health: Health | None
    liquidation_prices: dict[str, Decimal | None]
    problem: str | None


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account's row and each of its groups evaluated."""

    row: AccountRow
    groups: tuple[GroupView, ...]
    marks: dict[str, Decimal]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, numbers as decimal strings."""
        plain: dict[str, Any] = msgspec.to_builtins(self.row)
        for target, group in zip(plain["groups"], self.groups, strict=True):
            target["problem"] = group.problem
            for name in ("equity", "maintenance_margin", "health_ratio"):
                target[name] = None if group.health is None else _text(getattr(group.health, name))
            for position in target["positions"]:
                symbol = position["symbol"]
                position["mark"] = _text(self.marks.get(symbol))
                position["liquidation_price"] = _text(group.liquidation_prices.get(symbol))
        return plain


def read_account(settings: Settings, account: str) -> AccountView | None:
    """The account at the current marks, or None if there is none.

    Raises:
        TableError: Redis is away or holds no tables. BrokerError: Kafka is away.
    """
    with TableReader(settings.redis) as tables:
        row = tables.find_account(account)
        marks = {symbol: Decimal(mark.price) for symbol, mark in tables.read_marks().items()}
    if row is None:
        return None
    with LogReader(settings.kafka, "margin-console") as reader:
        rules, _ = read_parameters(reader)
    return AccountView(row, tuple(_view(account, group, marks, rules) for group in row.groups), marks)


def show_account(console: Console, view: AccountView) -> None:
    """Print an account as tables."""
    row = view.row
    console.print(
        f"[bold]{escape(row.account)}[/]  {row.status}  commands issued: {row.liquidation_sequence}", highlight=False
    )
    if row.suspended_reason:
        console.print(f"suspended: {escape(row.suspended_reason)}", highlight=False)
    for group in view.groups:
        _show_group(console, group, view.marks)


def _view(account: str, row: GroupRow, marks: dict[str, Decimal], rules: RiskParameters) -> GroupView:
    group = Group(
        account,
        row.margin,
        {asset: Decimal(amount) for asset, amount in row.balances.items()},
        tuple(Position(p.symbol, Decimal(p.quantity), Decimal(p.cash)) for p in row.positions),
    )
    try:
        health = evaluate(group, marks, rules)
        prices = {p.symbol: liquidation_price(group, p.symbol, marks, rules) for p in group.positions}
    except InputError as error:
        return GroupView(row, None, {}, str(error))
    return GroupView(row, health, prices, None)


def _show_group(console: Console, view: GroupView, marks: dict[str, Decimal]) -> None:
    row, health = view.row, view.health
    console.print(f"\n[bold]{row.margin}[/]  {row.status}", highlight=False)
    for asset, amount in row.balances.items():
        console.print(f"  balance       {amount} {asset}", highlight=False)
    if health is None:
        console.print(f"  not evaluated: {escape(view.problem or '')}", highlight=False)
    else:
        console.print(f"  equity        {_text(health.equity)}", highlight=False)
        console.print(f"  maintenance   {_text(health.maintenance_margin)}", highlight=False)
        console.print(f"  health ratio  {_text(health.health_ratio) or '-'}", highlight=False)
    if row.command is not None:
        console.print(f"  open command  {escape(row.command.command_id)} ({row.command.stage})", highlight=False)
    if row.positions:
        table = Table("symbol", "quantity", "cash", "mark", "liquidation price", box=None, pad_edge=True)
        for position in row.positions:
            symbol = position.symbol
            table.add_row(
                symbol,
                position.quantity,
                position.cash,
                _text(marks.get(symbol)) or "-",
                _text(view.liquidation_prices.get(symbol)) or "-",
            )
        console.print(table)


def _text(value: Decimal | None) -> str | None:
    return None if value is None else format_decimal(value)
