"""The demo's exchange: it publishes what an exchange publishes, and trades liquidation orders at the market.

It is the one producer of ``trades.v1``, so trade ids rise without gaps however recorded and liquidation trades mix. It
knows no engine: orders come in as commands of the contract, reports go out as the contract says.
"""

import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal

from confluent_kafka import Producer

from schemas.codec import encode
from schemas.messages import (
    CommandOrder,
    LiquidationCommand,
    LiquidationReport,
    OraclePrice,
    Trade,
    TradeSide,
    Transfer,
)
from schemas.topics import PARAMETERS, PRICES, REPORTS, TRADES, TRANSFERS
from schemas.types import MarginMode, ReportStatus, Side
from streams.broker import config
from streams.demo.market import BORROWED_AGAINST, BORROWED_AGAINST_SYMBOL, MAKER_FEE, TAKER_FEE, Market
from streams.demo.population import Population
from streams.demo.recording import RecordedQuote, RecordedTrade, canonical
from streams.settings import Settings

DRAWS_MAX = 8
TRADING_LEVERAGE_MAX = 20
"""A trader takes a recorded trade only if it reduces the position or leaves it below this many times the deposit."""


def now_us() -> int:
    """The machine's clock in microseconds."""
    return time.time_ns() // 1000


@dataclass
class Sent:
    """What has been published."""

    trades: int = 0
    prices: int = 0
    transfers: int = 0
    reports: int = 0
    liquidation_trades: int = 0


@dataclass(slots=True)
class RestingOrder:
    """An order of a command that waits for its limit."""

    command: LiquidationCommand
    order: CommandOrder
    filled: Decimal = Decimal(0)
    fills_value: Decimal = Decimal(0)


@dataclass
class SimulatedExchange:
    """Publishes with one producer; not thread-safe. ``prices`` holds the last trade's of every symbol."""

    settings: Settings
    market: Market
    people: Population
    prices: dict[str, Decimal]
    seed: int
    sent: Sent = field(default_factory=Sent)

    def __post_init__(self) -> None:
        self._producer = Producer(config.producer(self.settings.kafka, "margin-demo-exchange") | {"linger.ms": 1})
        self._rng = random.Random(self.seed + 1)
        self._trade_id = dict.fromkeys(self.market.contracts, now_us())
        self._price_sequence: dict[tuple[str, str], int] = defaultdict(now_us)
        self._transfer_sequence: dict[str, int] = defaultdict(int)
        self._positions: dict[tuple[str, str, str], Decimal] = defaultdict(Decimal)
        self._deposited: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self._resting: dict[str, RestingOrder] = {}
        self._seen: set[str] = set()
        self._busy: set[tuple[str, str]] = set()
        self._quote_traders = [account for account in self.people.traders if account not in self.people.isolated]
        self._isolated_traders = {
            symbol: [account for account, held in self.people.isolated.items() if held == symbol]
            for symbol in self.market.contracts
        }

    # --- opening -----------------------------------------------------------------------------------------------------

    def publish_parameters(self) -> None:
        for record in self.market.parameters:
            self._send(PARAMETERS, encode(record), record.key)
        self.flush()

    def publish_deposits(self) -> None:
        for deposit in self.people.deposits:
            self._transfer_sequence[deposit.account] += 1
            sequence = self._transfer_sequence[deposit.account]
            transfer = Transfer(
                transfer_id=f"{deposit.account}:{sequence}",
                account=deposit.account,
                asset=deposit.asset,
                amount=canonical(deposit.amount),
                sequence=sequence,
                margin=deposit.margin,
                event_time=now_us(),
            )
            self._deposited[deposit.account, deposit.margin] += self._worth(deposit.asset, deposit.amount)
            self._send(TRANSFERS, encode(transfer), deposit.account)
            self.sent.transfers += 1
        self.flush()

    def publish_openings(self) -> None:
        """Every opening position is bought from, or sold to, a market maker at the first recorded price."""
        for number, opening in enumerate(self.people.openings):
            maker = self.people.makers[number % len(self.people.makers)]
            side: Side = "buy" if opening.quantity > 0 else "sell"
            self._trade(
                opening.symbol,
                self.prices[opening.symbol],
                abs(opening.quantity),
                side,
                maker=self._side(opening.symbol, maker, MAKER_FEE, opening.quantity, "open"),
                taker=self._side(
                    opening.symbol,
                    opening.account,
                    TAKER_FEE,
                    opening.quantity,
                    "open",
                    margin="isolated" if opening.isolated else "cross",
                ),
            )
        self.flush()

    def _worth(self, asset: str, amount: Decimal) -> Decimal:
        return amount * self.prices[BORROWED_AGAINST_SYMBOL] if asset == BORROWED_AGAINST else amount

    # --- the recording -----------------------------------------------------------------------------------------------

    def publish_quote(self, quote: RecordedQuote) -> None:
        place = (quote.source, quote.symbol)
        self._price_sequence[place] += 1
        price = OraclePrice(
            source=quote.source,
            symbol=quote.symbol,
            price=quote.price,
            sequence=self._price_sequence[place],
            publish_time=now_us(),
        )
        self._send(PRICES, encode(price), quote.symbol)
        self.sent.prices += 1

    def publish_trade(self, recorded: RecordedTrade) -> None:
        price, quantity = Decimal(recorded.price), Decimal(recorded.quantity)
        self.prices[recorded.symbol] = price
        signed = quantity if recorded.aggressor_side == "buy" else -quantity
        taker, margin = self._draw_trader(recorded.symbol, price, signed)
        maker = self._rng.choice(self.people.makers)
        self._trade(
            recorded.symbol,
            price,
            quantity,
            recorded.aggressor_side,
            maker=self._side(recorded.symbol, maker, MAKER_FEE, quantity, "rec"),
            taker=self._side(recorded.symbol, taker, TAKER_FEE, quantity, "rec", margin=margin),
        )
        self._try_resting(recorded.symbol)

    def _draw_trader(self, symbol: str, price: Decimal, signed: Decimal) -> tuple[str, MarginMode]:
        """A trader whose margin allows the trade; a market maker takes what nobody can."""
        isolated = self._isolated_traders[symbol]
        for _ in range(DRAWS_MAX):
            pick = self._rng.randrange(len(self._quote_traders) + len(isolated))
            if pick < len(self._quote_traders):
                account, book, mode = self._quote_traders[pick], "cross", "cross"
            else:
                account, book, mode = isolated[pick - len(self._quote_traders)], symbol, "isolated"
            if (account, book) in self._busy:
                continue
            before = self._positions[account, book, symbol]
            after = abs(before + signed)
            if after < abs(before) or after * price <= TRADING_LEVERAGE_MAX * self._deposited[account, book]:
                return account, "isolated" if mode == "isolated" else "cross"
        return self._rng.choice(self.people.makers), "cross"

    # --- liquidation orders ------------------------------------------------------------------------------------------

    def execute(self, command: LiquidationCommand) -> None:
        """Trade a command's orders at the market where their limits allow it; let the rest wait. Ignores repeats."""
        if command.command_id in self._seen:
            return
        self._seen.add(command.command_id)
        if command.supersedes is not None:
            self._drop(command.supersedes)
        late = now_us() > command.expires_at
        if command.orders:  # else it only says that the one before is withdrawn
            self._busy.add((command.account, command.margin))
        for order in command.orders:
            resting = RestingOrder(command, order)
            if late:
                self._report(resting, "rejected", "expired")
                continue
            self._report(resting, "accepted")
            self._resting[order.order_id] = resting
            self._try(resting)

    def expire(self) -> None:
        """Cancel the orders whose command has expired."""
        now = now_us()
        for resting in list(self._resting.values()):
            if now > resting.command.expires_at:
                self._finish(resting, "cancelled", "expired")

    @property
    def open_orders(self) -> int:
        return len(self._resting)

    def _drop(self, command_id: str) -> None:
        for resting in list(self._resting.values()):
            if resting.command.command_id == command_id:
                self._finish(resting, "cancelled", "superseded")

    def _try_resting(self, symbol: str) -> None:
        for resting in list(self._resting.values()):
            if resting.order.symbol == symbol:
                self._try(resting)

    def _try(self, resting: RestingOrder) -> None:
        order, command = resting.order, resting.command
        market, limit = self.prices[order.symbol], Decimal(order.limit_price)
        allowed = market >= limit if order.order_side == "sell" else market <= limit
        if now_us() > command.expires_at:
            self._finish(resting, "cancelled", "expired")
        elif allowed:
            self._fill(resting, market, self._rng.choice(self.people.makers))
        elif command.stage == "takeover":
            self._fill(resting, limit, self.people.fund)

    def _fill(self, resting: RestingOrder, price: Decimal, counterparty: str) -> None:
        """Fill what the position still allows: a reduce-only order never crosses flat."""
        order, command = resting.order, resting.command
        held = self._positions[command.account, command.margin, order.symbol]
        reducible = max(Decimal(0), held if order.order_side == "sell" else -held)
        quantity = min(Decimal(order.quantity), reducible)
        if quantity > 0:
            self._trade(
                order.symbol,
                price,
                quantity,
                order.order_side,
                maker=self._side(order.symbol, counterparty, Decimal(0), quantity, "liq"),
                taker=TradeSide(
                    account=command.account,
                    order_id=order.order_id,
                    fee="0",  # what a liquidation costs is booked by the pipeline
                    margin="cross" if command.margin == "cross" else "isolated",
                ),
            )
            self.sent.liquidation_trades += 1
            resting.filled, resting.fills_value = quantity, quantity * price
        whole = quantity == Decimal(order.quantity)
        self._finish(resting, "filled" if whole else "cancelled", None if whole else "reduce only")

    def _finish(self, resting: RestingOrder, status: ReportStatus, reason: str | None) -> None:
        self._resting.pop(resting.order.order_id, None)
        self._report(resting, status, reason)
        command = resting.command
        if not any(other.command.command_id == command.command_id for other in self._resting.values()):
            self._busy.discard((command.account, command.margin))

    def _report(self, resting: RestingOrder, status: ReportStatus, reason: str | None = None) -> None:
        average = resting.fills_value / resting.filled if resting.filled else None
        report = LiquidationReport(
            command_id=resting.command.command_id,
            order_id=resting.order.order_id,
            account=resting.command.account,
            status=status,
            filled_quantity=canonical(resting.filled),
            average_price=None if average is None else canonical(average),
            reason=reason,
            event_time=now_us(),
        )
        self._send(REPORTS, encode(report), report.account)
        self.sent.reports += 1

    # --- sending -----------------------------------------------------------------------------------------------------

    def _side(
        self, symbol: str, account: str, rate: Decimal, quantity: Decimal, order: str, *, margin: MarginMode = "cross"
    ) -> TradeSide:
        fee = self.market.fee(rate, self.prices[symbol], abs(quantity))
        return TradeSide(
            account=account, order_id=f"{order}-{self._trade_id[symbol] + 1}", fee=canonical(fee), margin=margin
        )

    def _trade(
        self, symbol: str, price: Decimal, quantity: Decimal, aggressor: Side, *, maker: TradeSide, taker: TradeSide
    ) -> None:
        self._trade_id[symbol] += 1
        trade = Trade(
            trade_id=self._trade_id[symbol],
            symbol=symbol,
            price=canonical(price),
            quantity=canonical(quantity),
            aggressor_side=aggressor,
            maker=maker,
            taker=taker,
            event_time=now_us(),
        )
        signed = quantity if aggressor == "buy" else -quantity
        for side, change in ((taker, signed), (maker, -signed)):
            self._positions[side.account, "cross" if side.margin == "cross" else symbol, symbol] += change
        self._send(TRADES, encode(trade), symbol)
        self.sent.trades += 1

    def _send(self, topic: str, value: bytes, key: str) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key=key)
                break
            except BufferError:
                self._producer.poll(0.01)
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until everything is acknowledged."""
        while self._producer.flush(1.0):
            pass
