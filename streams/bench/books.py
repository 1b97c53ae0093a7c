"""What the accounts must hold after given deposits and trades, added up plainly, and what differs from it.

Nothing of the pipeline's arithmetic is used: a row of the changelog is read as JSON.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from schemas.messages import Trade, Transfer

Held = dict[str, Decimal]


class Books:
    """By account: the quantity held in each symbol, and the money: deposits less fees, plus what trades brought in."""

    def __init__(self) -> None:
        self.quantities: dict[str, Held] = defaultdict(lambda: defaultdict(Decimal))
        self.money: dict[str, Decimal] = defaultdict(Decimal)

    def deposit(self, transfers: Iterable[Transfer]) -> None:
        """Count transfers."""
        for transfer in transfers:
            self.money[transfer.account] += Decimal(transfer.amount)

    def trade(self, trades: Iterable[Trade]) -> None:
        """Count both sides of trades."""
        for trade in trades:
            bought = Decimal(trade.quantity) if trade.aggressor_side == "buy" else -Decimal(trade.quantity)
            for side, quantity in ((trade.taker, bought), (trade.maker, -bought)):
                self.quantities[side.account][trade.symbol] += quantity
                self.money[side.account] -= quantity * Decimal(trade.price) + Decimal(side.fee)

    def differences(self, rows: Mapping[str, Any]) -> list[str]:
        """What differs in ``rows``, the accounts' rows of the changelog as JSON, by account."""
        differing = [
            f"{account} is in the changelog, and nothing was sent for it" for account in rows.keys() - self.money
        ]
        for account, money in self.money.items():
            row = rows.get(account)
            if row is None:
                differing.append(f"{account} is not in the changelog")
                continue
            quantities, held = _of(row)
            wanted = {symbol: quantity for symbol, quantity in self.quantities[account].items() if quantity}
            if quantities != wanted:
                differing.append(f"{account} holds {_shown(quantities)}, and its trades add up to {_shown(wanted)}")
            if held != money:
                differing.append(f"{account} has {held} in cash and balances, and its records add up to {money}")
        return differing


def _of(row: Any) -> tuple[Held, Decimal]:
    """The quantities of an account's row, and all its money."""
    quantities: Held = defaultdict(Decimal)
    money = Decimal(0)
    for group in row["groups"]:
        money += sum(map(Decimal, group["balances"].values()))
        for position in group["positions"]:
            quantities[position["symbol"]] += Decimal(position["quantity"])
            money += Decimal(position["cash"])
    return {symbol: quantity for symbol, quantity in quantities.items() if quantity}, money


def _shown(held: Held) -> str:
    return ", ".join(f"{symbol} {quantity}" for symbol, quantity in sorted(held.items())) or "nothing"
