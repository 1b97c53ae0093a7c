"""The fees of liquidations, as accounts are told of them: each fill pays once, and what accounts pay the pools have."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any

from schemas.messages import Alert, JournalRecord, LiquidationCommand
from tests.simulation.ledger import Ledger, Luggage
from tests.simulation.requirement import require


class FillsPaid:
    """The fills of routed trades, and those of which accounts have been told that they paid fees."""

    def __init__(self) -> None:
        self._filled: Counter[tuple[Any, ...]] = Counter()
        self._charged: Counter[tuple[Any, ...]] = Counter()
        self._owing: dict[str, tuple[str, str, str]] = {}
        """Account, symbol and side of each order that states fees."""

    def routed(self, kind: str, account: str, values: Iterable[Any]) -> None:
        """An event has been routed; if it is a fill, it may pay once."""
        if kind == "fill":
            _, symbol, quantity, price, _, order_id, _ = values
            self._filled[account, symbol, quantity, price, order_id] += 1

    def told(self, alert: Alert) -> None:
        """An account has been told something; if it is of fees, of one fill."""
        if fees := alert.fees:
            self._charged[alert.account, fees.symbol, fees.quantity, fees.price, fees.order_id] += 1

    def commanded(self, command: LiquidationCommand) -> None:
        """Fills of the command's orders pay, if they state fees."""
        for order in command.orders:
            if Decimal(order.liquidation_fee or "0") or Decimal(order.insurance_fee or "0"):
                self._owing[order.order_id] = command.account, order.symbol, order.order_side

    def check(self, whole: Collection[str]) -> None:
        """Nothing has paid that was not filled, or more often; of accounts that are ``whole``, nothing has not paid."""
        require(self._charged <= self._filled, "a fill pays fees once", lambda: str(self._charged - self._filled))
        unpaid = [
            fill
            for fill in (self._filled - self._charged)
            for account, symbol, quantity, _, order_id in [fill]
            if account in whole
            and self._owing.get(order_id) == (account, symbol, "sell" if quantity.startswith("-") else "buy")
        ]
        require(not unpaid, "a fill pays its fees", lambda: str(unpaid))


class PoolsOfShard:
    """What one shard has given to pools, by its alerts."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, str], Decimal] = defaultdict(Decimal)

    def charge(
        self,
        alerts: Iterable[Alert],
        journal: JournalRecord,
        ledger: Ledger,
        gone: Mapping[Any, tuple[Mapping[str, Luggage], Any]],
    ) -> None:
        """Take the fees that a commit tells of out of the accounts in ``ledger``, or in what they have taken along with
        them if they have ``gone``; the journal must say the same of the pools."""
        taken = {account: has for luggage, _ in gone.values() for account, has in luggage.items()}
        for alert in alerts:
            if not (fees := alert.fees):
                continue
            paid = Decimal(fees.liquidation_fee) + Decimal(fees.insurance_fee)
            require(0 <= paid <= Decimal(fees.due), "nobody pays more than is due", alert.__str__)
            ledger.charge(alert.account, alert.margin, paid, taken.get(alert.account))
            if paid:
                self._given[fees.pool, fees.asset] += paid
        pools = journal.pools or {}
        said = {(pool, asset): Decimal(held) for pool, by in pools.items() for asset, held in by.items()}
        require(said == self._given, "what accounts pay is what the pools get", lambda: f"{said} {self._given}")
