"""One account as a person looks at it: its row from Redis, evaluated at the current marks by the engine's mathematics.

Reads only. The account and the marks come from the Redis tables, the parameters in force from ``risk.parameters.v1``.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import UNSET
from rich.console import Console
from rich.table import Table

from schemas.messages import AccountRow, GroupRow, JournalRecord
from streams.broker.layout import require_layout
from streams.broker.reader import LogReader
from streams.console.parameters import read_parameters
from streams.errors import InputError
from streams.feeds.gaps import standing
from streams.feeds.holders import has_come, shards_to_ask
from streams.feeds.journal import journal_end
from streams.margin.fixed_point import format_decimal
from streams.margin.group import Group, Position
from streams.margin.health import Health, evaluate, liquidation_price, priced_balances
from streams.margin.parameters import RiskParameters
from streams.settings import Settings
from streams.tables.reader import TableReader
from streams.terminal import cells, line


@dataclass(frozen=True, slots=True)
class GroupView:
    """A margin group at the last marks. ``health`` is None when a mark it needs is missing; ``problem`` says which.

    ``liquidation_prices`` are by symbol, of positions and of what prices a balance; ``priced`` names that by asset.
    """

    row: GroupRow
    health: Health | None
    liquidation_prices: dict[str, Decimal | None]
    priced: dict[str, str]
    problem: str | None


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account's row and each of its groups evaluated."""

    row: AccountRow
    groups: tuple[GroupView, ...]
    marks: dict[str, Decimal]
    shard_suspension: str = ""
    """Why the whole shard of the account is suspended, and it with it."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, numbers as decimal strings."""
        plain: dict[str, Any] = msgspec.to_builtins(self.row) | {"shard_suspension": self.shard_suspension}
        for target, group in zip(plain["groups"], self.groups, strict=True):
            target["problem"] = group.problem
            for name in ("equity", "unweighted_equity", "debt", "maintenance_margin", "health_ratio"):
                target[name] = None if group.health is None else _text(getattr(group.health, name))
            for position in target["positions"]:
                symbol = position["symbol"]
                position["mark"] = _text(self.marks.get(symbol))
                position["liquidation_price"] = _text(group.liquidation_prices.get(symbol))
            target["collateral"] = [
                {
                    "asset": asset,
                    "symbol": symbol,
                    "mark": _text(self.marks.get(symbol)),
                    "liquidation_price": _text(group.liquidation_prices.get(symbol)),
                }
                for asset, symbol in group.priced.items()
            ]
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
        suspension = _shard_suspension(reader, row)
    return AccountView(row, tuple(_view(account, group, marks, rules) for group in row.groups), marks, suspension)


def _shard_suspension(reader: LogReader, row: AccountRow) -> str:
    record = _shard_record(reader, row.account)
    suspension = None if record is None else standing(record.suspension)
    if suspension is None or (row.resumed or 0) >= suspension.number:
        return ""
    return "; ".join(suspension.reasons)


def _shard_record(reader: LogReader, account: str) -> JournalRecord | None:
    """The last record of the journal of the shard that has the account: of an old and a new one, of the new one once it
    says so."""
    layout = require_layout(reader)
    old, *new = shards_to_ask(account, layout)
    for shard in (*new, old):
        end = journal_end(reader, shard)
        record = None if end is None else end.record
        if shard == old or (record is not None and has_come(account, layout, record.moves)):
            return record
    return None


def show_account(console: Console, view: AccountView) -> None:
    """Print an account as tables."""
    row = view.row
    console.print(line((row.account, "bold"), f"  {row.status}  commands issued: {row.liquidation_sequence}"))
    if row.suspended_reason:
        console.print(line(f"suspended: {row.suspended_reason}"))
    if view.shard_suspension:
        console.print(line(f"suspended with its whole shard: {view.shard_suspension}"))
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
        priced = dict(priced_balances(group, marks, rules))
        symbols = {*(position.symbol for position in group.positions), *priced.values()}
        prices = {symbol: liquidation_price(group, symbol, marks, rules) for symbol in symbols}
    except InputError as error:
        return GroupView(row, None, {}, {}, str(error))
    return GroupView(row, health, prices, priced, None)


def _show_group(console: Console, view: GroupView, marks: dict[str, Decimal]) -> None:
    row, health = view.row, view.health
    console.print()
    console.print(line((row.margin, "bold"), f"  {row.status}"))
    for asset, amount in row.balances.items():
        symbol = view.priced.get(asset)
        price = None if symbol is None else view.liquidation_prices.get(symbol)
        at = "" if symbol is None else f"  at {symbol} {_text(marks.get(symbol))}"
        limit = "" if price is None else f", liquidated at {_text(price)}"
        console.print(line(f"  balance       {amount} {asset}{at}{limit}"))
    if health is None:
        console.print(line(f"  not evaluated: {view.problem or ''}"))
    else:
        console.print(line(f"  equity        {_text(health.equity)}"))
        if health.debt:
            console.print(line(f"  debt          {_text(health.debt)}"))
            console.print(line(f"  unweighted    {_text(health.unweighted_equity)}"))
        console.print(line(f"  maintenance   {_text(health.maintenance_margin)}"))
        console.print(line(f"  health ratio  {_text(health.health_ratio) or '-'}"))
    if row.command is not None:
        status = "" if row.command.status is UNSET else f", {row.command.status}"
        console.print(line(f"  open command  {row.command.command_id} ({row.command.stage}{status})"))
    for ended in row.ended or ():
        console.print(line(f"  ended         {ended.command_id} ({ended.stage}, {ended.status})"))
    if row.attempt:
        console.print(line(f"  attempts      {row.attempt} in vain"))
    if row.positions:
        table = Table("symbol", "quantity", "cash", "mark", "liquidation price", box=None, pad_edge=True)
        for position in row.positions:
            symbol = position.symbol
            table.add_row(
                *cells(
                    symbol,
                    position.quantity,
                    position.cash,
                    _text(marks.get(symbol)) or "-",
                    _text(view.liquidation_prices.get(symbol)) or "-",
                )
            )
        console.print(table)


def _text(value: Decimal | None) -> str | None:
    return None if value is None else format_decimal(value)
