"""What the world outside the pipeline does: exchange, oracle, risk desk and execution service.

They write to the in-memory Kafka without transactions. Each input record carries what it means in ``decoded`` (None: it
cannot be read), so what the pipeline makes of the bytes is checked against the meaning, not against its own decoder.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any, Literal

import orjson
from msgspec.structs import replace

from schemas.codec import encode
from schemas.messages import (
    CommandOrder,
    LiquidationCommand,
    LiquidationReport,
    Mark,
    MarkFrame,
    Trade,
    TradeSide,
    Transfer,
)
from schemas.parameters import (
    AssetParameters,
    CollateralTier,
    InstrumentParameters,
    MarginTier,
    OracleParameters,
    Parameter,
    PolicyParameters,
)
from schemas.topics import EVENTS, MARKS, PARAMETERS, REPORTS, TRADES, TRANSFERS
from streams.margin.fixed_point import format_decimal
from streams.memory.log import Cluster, LogRecord
from streams.memory.scheduler import EPOCH_US, Scheduler

HOUSE = "house"
NEWCOMERS = "newcomer-"
UNKNOWN = "XRP-PERP"
"""A symbol that never has parameters: fills in it suspend their accounts."""
LISTED_LATER = "SOL-PERP"
PRICES = {"BTC-PERP": 60_000.0, "ETH-PERP": 2_500.0, "BTC-USD": 60_000.0, LISTED_LATER: 150.0}
CLOCKS_DIFFER_US = 25_000
"""How far the exchange's clock may be behind the oracle's."""
STEPS = {"BTC-PERP": "0.001", "ETH-PERP": "0.01", LISTED_LATER: "0.1"}
TICKS = {"BTC-PERP": 1, "ETH-PERP": 2, "BTC-USD": 1, LISTED_LATER: 3}
"""Decimal places of prices."""


def _instrument(symbol: str, rate: str, version: int, **more: Any) -> InstrumentParameters:
    return InstrumentParameters(
        symbol=symbol,
        settle_asset="USDC",
        price_increment=more.pop("price_increment", f"0.{'0' * (TICKS[symbol] - 1)}1"),
        quantity_increment=STEPS[symbol],
        margin_tiers=(
            MarginTier(notional_floor="0", maintenance_rate=rate, initial_rate="0.2"),
            MarginTier(notional_floor="20000", maintenance_rate="0.1", initial_rate="0.25"),
        ),
        liquidation_fee="0.004",
        insurance_fee="0.001",
        version=version,
        **more,
    )


def _policy(ttl_ms: int, version: int) -> PolicyParameters:
    return PolicyParameters(
        liquidation_buffer_rate="0.002",
        margin_call_levels=("1.5", "1.2", "1.05"),
        command_ttl_ms=ttl_ms,
        undecided_alert_ms=300,
        version=version,
    )


def _pair(record: Parameter) -> tuple[bytes, bytes]:
    return record.key.encode(), encode(record)


INITIAL = [
    _pair(_policy(300, 1)),
    _pair(AssetParameters(asset="USDC", decimals=6)),
    _pair(
        AssetParameters(
            asset="BTC",
            decimals=8,
            price_symbol="BTC-USD",
            collateral_tiers=(CollateralTier(quantity_floor="0", weight="0.9"),),
        )
    ),
    _pair(_instrument("BTC-PERP", "0.05", 1)),
    _pair(_instrument("ETH-PERP", "0.06", 1)),
    _pair(OracleParameters(symbol="BTC-PERP", sources={"a": "1"}, max_age_ms=400)),
]
LISTING = _pair(_instrument(LISTED_LATER, "0.05", 1))
EURO = _pair(AssetParameters(asset="EUR", decimals=2))
"""An asset that is transferred before it is known, and in some runs never is."""
FINER = _pair(_instrument("ETH-PERP", "0.06", 2, price_increment="0.001"))
"""A finer tick, which trades may run ahead of."""
LATER = [
    _pair(_instrument("BTC-PERP", "0.08", 2, max_order_notional="3000")),
    _pair(_instrument("BTC-PERP", "0.03", 3)),
    _pair(_policy(120, 2)),
    _pair(_policy(600, 3)),
    _pair(OracleParameters(symbol="BTC-PERP", sources={"a": "1"}, max_age_ms=150)),
    (b"oracle:BTC-PERP", None),
]
REFUSED = [
    (b"policy:default", b"{"),
    (b"instrument:ETH-PERP", encode(_instrument("BTC-PERP", "0.05", 9))),
    _pair(_instrument("ETH-PERP", "0.3", 9)),
    (b"instrument:ETH-PERP", b'{"type":"instrument","symbol":"ETH-PERP"}'),
]
"""Records that no set of parameters takes in: the version before stays."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that no router takes in, and the accounts that it names."""

    accounts: tuple[str, ...]


class Workload:
    """Everything outside, driven by the scheduler until :meth:`calm`."""

    def __init__(self, scheduler: Scheduler, cluster: Cluster, seed: int) -> None:
        self._scheduler = scheduler
        self._cluster = cluster
        self._random = Random(seed)
        self.is_calm = False
        self.executing = 0
        self.oracle_off_us = 0
        """How far the clock of the oracle's host is off."""
        random = self._random
        self._accounts = [f"acct-{number}" for number in range(random.randrange(3, 8))]
        self._prices = dict(PRICES)
        self._statuses = dict.fromkeys(PRICES, "live")
        self._scales: dict[str, str] = {}
        self._skew_us = random.choice((0, 0, -20_000, 20_000))
        self._symbols = ["BTC-PERP", "ETH-PERP"]
        self._newcomers = 0
        self._owed: list[tuple[bytes, bytes]] = []
        """Parameter records that trades ran ahead of: they come, calm or not."""
        self._knows_euro = random.random() < 0.5
        self._trade_ids = dict.fromkeys(STEPS, 0) | {UNKNOWN: 0}
        self._sequences: dict[str, int] = {}
        self.held: Counter[tuple[str, str, str]] = Counter()
        self._sent: dict[str, deque[tuple[bytes, Any]]] = {TRADES: deque(maxlen=6), TRANSFERS: deque(maxlen=6)}
        self._trade_pause_us = random.choice((10_000, 20_000, 40_000))
        self._mark_pause_us = random.choice((25_000, 50_000, 100_000))
        self._wild = random.choice((0.002, 0.006, 0.015))
        self._full_us = random.choice((100_000, 200_000))
        self._execution = ExecutionService(self, random)

    def begin(self) -> None:
        """Write what is there before the pipeline starts, and go on from then."""
        for key, value in INITIAL:
            self._write(PARAMETERS, key, value, value)
        self._marks(full=True)
        self.transfer(HOUSE, "USDC", "100000000")
        for account in self._accounts:
            self.transfer(account, "USDC", f"{self._random.randrange(500, 4000)}")
        self._every(self._trade_pause_us, self._trade_or_so)
        self._every(self._mark_pause_us, self._mark_change, when_calm=True)
        self._every(self._full_us, lambda: self._marks(full=True), when_calm=True)
        self._every(self._random.choice((40_000, 200_000)), self._set_parameters)

    def calm(self) -> None:
        """No more trades, transfers and parameters, prices stand still and are live; the clock and the fills go on."""
        self.is_calm = True
        for key, value in self._owed:
            self._write(PARAMETERS, key, value, b"")
        self._owed.clear()
        self._statuses = dict.fromkeys(PRICES, "live")
        self._scales = {}

    def on_command(self, command: LiquidationCommand) -> None:
        """The execution service has seen a committed command."""
        draw = self._random.random()
        if self.is_calm:
            draw = 0.9

        def execute() -> None:
            self._execution.execute(command, draw)
            self.executing -= 1

        self.executing += 1
        self._scheduler.after(self._random.randrange(2_000, 60_000), execute)

    # --- the exchange ------------------------------------------------------------------------------------------------

    def _trade_or_so(self) -> None:
        random = self._random
        draw = random.random()
        if draw < 0.6:
            self._trade(random.choice(self._symbols))
        elif draw < 0.68:
            self._newcomer()
        elif draw < 0.76:
            self._send_again(TRADES)
        elif draw < 0.82:
            self._send_again(TRANSFERS)
        elif draw < 0.93:
            self._transfer_some()
        elif draw < 0.95:
            self._trade_ids[random.choice(self._symbols)] += random.randrange(1, 4)
        elif draw < 0.985:
            self._poison()
        elif draw < 0.987:
            self._trade(UNKNOWN)
        elif draw < 0.993:
            self._run_ahead(FINER)
            self._trade("ETH-PERP", price=self.price("ETH-PERP").partition(".")[0] + ".125")
        else:
            self._list()

    def _run_ahead(self, record: tuple[bytes, bytes]) -> None:
        """What is sent now needs a parameter record that comes a little later."""
        self._owed.append(record)

        def publish() -> None:
            if record in self._owed:
                self._owed.remove(record)
                self._write(PARAMETERS, *record, b"")

        self._scheduler.after(self._random.randrange(1, 300_000), publish)

    def _trade(self, symbol: str, price: str = "") -> None:
        random = self._random
        price = price or (self.price(symbol) if symbol != UNKNOWN else "1.5")
        step = float(STEPS.get(symbol, "1"))
        most = max(1, int(6_000 / float(price) / step))
        quantity = _decimal(random.randrange(1, most + 1) * step, 3)
        taker = random.choice(self._accounts)
        maker = HOUSE if random.random() < 0.5 else random.choice(self._accounts)
        sides = [
            TradeSide(
                account=account,
                order_id=f"o-{self._trade_ids[symbol]}-{number}",
                fee=random.choice(("0", "0.5", "-0.1", "1.25")),
                margin="isolated" if account != HOUSE and random.random() < 0.15 else "cross",
            )
            for number, account in enumerate((maker, taker))
        ]
        self.match(symbol, price, quantity, random.choice(("buy", "sell")), *sides)

    def _newcomer(self) -> None:
        """An account trades once its deposit, which is large, has been acknowledged: it is never to be liquidated."""
        random = self._random
        account = f"{NEWCOMERS}{self._newcomers}"
        self._newcomers += 1
        self.transfer(account, "USDC", "1000000")
        symbol = random.choice(self._symbols)
        quantity = _decimal(random.randrange(1, 20) * float(STEPS[symbol]), 3)
        sides = [TradeSide(account=who, order_id=f"n-{account}", fee="0.5") for who in (HOUSE, account)]
        self.match(symbol, self.price(symbol), quantity, random.choice(("buy", "sell")), *sides)

    def match(self, symbol: str, price: str, quantity: str, side: str, maker: TradeSide, taker: TradeSide) -> None:
        self._trade_ids[symbol] += 1
        trade = Trade(
            trade_id=self._trade_ids[symbol],
            symbol=symbol,
            price=price,
            quantity=quantity,
            aggressor_side=side,  # type: ignore[arg-type]
            maker=maker,
            taker=taker,
            event_time=self.now_us(),
        )
        lots = round(float(quantity) / float(STEPS.get(symbol, "1"))) * (1 if side == "buy" else -1)
        self.held[taker.account, taker.margin, symbol] += lots
        self.held[maker.account, maker.margin, symbol] -= lots
        self.send(TRADES, symbol.encode(), trade)

    def _transfer_some(self) -> None:
        random = self._random
        account = random.choice(self._accounts)
        draw = random.random()
        if draw < 0.42:
            self.transfer(account, "USDC", f"{random.randrange(1, 600)}.25")
        elif draw < 0.6:
            self.transfer(account, "USDC", f"-{random.randrange(1, 300)}.5")
        elif draw < 0.65:
            self.transfer(account, "USDC", f"-{random.randrange(500, 5000)}")
        elif draw < 0.75:
            self.transfer(account, "BTC", f"0.0{random.randrange(1, 99)}")
        elif draw < 0.85:
            self.transfer(account, "EUR", f"{random.choice((1, 1, 1, -1)) * random.randrange(1, 50)}.5")
        else:
            self.transfer(account, "USDC", f"{random.randrange(50, 400)}", margin=random.choice(self._symbols))

    def transfer(
        self, account: str, asset: str, amount: str, margin: str = "cross", order_id: str | None = None
    ) -> None:
        sequence = self._sequences[account] = self._sequences.get(account, 0) + 1
        transfer = Transfer(
            transfer_id=f"t-{account}-{sequence}",
            account=account,
            asset=asset,
            amount=amount,
            sequence=sequence,
            margin=margin,
            event_time=self.now_us(),
            order_id=order_id,
        )
        if sequence > 1 and self._random.random() < 0.15:  # overtaken by those that are sent meanwhile
            delay_us = self._random.randrange(1, 250_000)
            self._scheduler.after(delay_us, lambda: self.send(TRANSFERS, account.encode(), transfer))
        else:
            self.send(TRANSFERS, account.encode(), transfer)

    def send(self, topic: str, key: bytes, message: Any) -> None:
        self._write(topic, key, encode(message), message)
        if topic in self._sent:
            self._sent[topic].append((key, message))

    def _send_again(self, topic: str) -> None:
        """The exchange was restarted and sends its last messages again, in their order."""
        sent = list(self._sent[topic])
        for key, message in sent[self._random.randrange(len(sent)) :] if sent else ():
            self._write(topic, key, encode(message), message)

    def _poison(self) -> None:
        draw = self._random.random()
        if draw < 0.15:
            self._break(self._random.choice((TRADES, TRANSFERS)))
            return
        topic = self._random.choice((TRADES, TRANSFERS, REPORTS, MARKS, MARKS, MARKS, EVENTS))
        value = self._random.choice((b"{", b"", b'{"trade_id":1}', b"\xff\xfe", None))
        key = {TRADES: b"BTC-PERP", TRANSFERS: b"not an account", REPORTS: b"BTC-PERP"}.get(topic)
        self._write(topic, key, value, None)

    def _break(self, topic: str) -> None:
        """Something is wrong with the last trade or transfer when it is sent again: it names its accounts."""
        if not self._sent[topic]:
            return
        key, message = self._sent[topic][-1]
        if topic == TRANSFERS:
            value = orjson.loads(encode(message)) | {"amount": self._random.choice(("5E-8", 3, None))}
            self._write(topic, key, encode(value), Refused((message.account,)))
            return
        accounts = tuple(sorted({message.maker.account, message.taker.account}))
        if self._random.random() < 0.5:
            contradiction = replace(message, price=message.price + "1" if "." in message.price else message.price + "0")
            self._write(topic, key, encode(contradiction), Refused(accounts))
        else:
            value = orjson.loads(encode(message)) | {"price": self._random.choice(("-37.63", "NaN", 7))}
            self._write(topic, key, encode(value), Refused(accounts))

    # --- the risk desk -----------------------------------------------------------------------------------------------

    def _set_parameters(self) -> None:
        draw = self._random.random()
        if draw < 0.05 and self._knows_euro:
            self._write(PARAMETERS, *EURO, b"")
        elif draw < 0.35:
            key, value = self._random.choice(LATER)
            self._write(PARAMETERS, key, value, b"")
        elif draw < 0.55:
            key, value = self._random.choice(REFUSED)
            self._write(PARAMETERS, key, value, None)
        elif draw < 0.6:
            self._list()

    def _list(self) -> None:
        """A new instrument, and a trade in it at once."""
        if LISTED_LATER not in self._symbols:
            self._symbols.append(LISTED_LATER)
            if self._random.random() < 0.5:
                self._run_ahead(LISTING)
            else:
                self._write(PARAMETERS, *LISTING, b"")
        self._trade(LISTED_LATER)

    # --- the oracle --------------------------------------------------------------------------------------------------

    def _mark_change(self) -> None:
        random = self._random
        if not self.is_calm:
            symbol = random.choice(("BTC-PERP", "ETH-PERP", "BTC-USD", *self._symbols))
            change = random.gauss(0, self._wild) if random.random() < 0.95 else random.choice((-0.05, 0.05))
            self._prices[symbol] = max(self._prices[symbol] * (1 + change), PRICES[symbol] / 10)
            if random.random() < 0.05:
                self._statuses[symbol] = random.choice(("live", "stale", "halted"))
            if random.random() < 0.04:
                self._scales = random.choice(({}, {"instrument:BTC-PERP": "1.5"}, {"instrument:ETH-PERP": "2"}))
        self._marks(full=False)

    def _marks(self, *, full: bool) -> None:
        random, now_us = self._random, self.now_us() + self._skew_us
        time_us = now_us + (0 if self.is_calm else self.oracle_off_us)
        symbols = list(PRICES) if full else random.sample(list(PRICES), random.randrange(1, 3))
        frame = MarkFrame(
            time=time_us,
            full=full,
            scales=self._scales if full else {},
            marks=tuple(
                Mark(
                    symbol=symbol,
                    price=self.price(symbol),
                    status=self._statuses[symbol],  # type: ignore[arg-type]
                    publish_time=now_us - (0 if self.is_calm else random.randrange(200_000)),
                )
                for symbol in symbols
            ),
        )
        self._write(MARKS, None, encode(frame), frame)

    def price(self, symbol: str) -> str:
        return _decimal(self._prices[symbol], TICKS[symbol])

    # --- how it is driven --------------------------------------------------------------------------------------------

    def _every(self, pause_us: int, action: Callable[[], None], *, when_calm: bool = False) -> None:
        def run() -> None:
            if self.is_calm and not when_calm:
                return
            action()
            self._scheduler.after(1 + int(pause_us * 2 * self._random.random()), run)

        self._scheduler.after(self._random.randrange(pause_us), run)

    def _write(self, topic: str, key: bytes | None, value: bytes | None, meaning: Any) -> LogRecord:
        record = self._cluster.append(topic, key, value)
        record.decoded = meaning
        return record

    def now_us(self) -> int:
        return EPOCH_US + self._scheduler.now


class ExecutionService:
    """Carries out commands on an exchange. Its draws come from the exchange's ``random``."""

    def __init__(self, exchange: "Workload", random: Random) -> None:
        self._exchange = exchange
        self._random = random

    def execute(self, command: LiquidationCommand, draw: float) -> None:
        """Fill a command, or part of it, or nothing; report it, sometimes twice, before or after its fills.

        One that has expired is not touched: it may have been superseded. Orders are reduce-only: what was filled while
        a command was superseded is not filled again.
        """
        if draw < 0.1 or self._exchange.now_us() + CLOCKS_DIFFER_US > command.expires_at:
            return
        share = 1.0 if draw >= 0.35 else (0.0 if draw < 0.2 else 0.5)
        for order in command.orders:
            if order.symbol == "BTC-USD":
                self._convert(command, order)
                continue
            if self._random.random() < 0.06 and not self._exchange.is_calm:
                self._mismatch(command, order)
            step = STEPS.get(order.symbol)
            margin: Literal["cross", "isolated"] = "cross" if command.margin == "cross" else "isolated"
            held = self._exchange.held[command.account, margin, order.symbol] * (
                1 if order.order_side == "sell" else -1
            )
            lots = 0 if step is None else max(0, min(round(float(order.quantity) / float(step) * share), held))
            quantity = _decimal(lots * float(step or 1), 3)
            status = "rejected" if not lots else ("filled" if share == 1 else "cancelled")
            report = LiquidationReport(
                command_id=command.command_id,
                order_id=order.order_id,
                account=command.account,
                status=status,  # type: ignore[arg-type]
                filled_quantity=quantity,
                event_time=self._exchange.now_us(),
            )
            first = self._random.random() < 0.5
            if first:
                self._report(report)
            if lots:
                self._exchange.match(
                    order.symbol,
                    self._exchange.price(order.symbol),
                    quantity,
                    order.order_side,
                    TradeSide(account=HOUSE, order_id="house", fee="0"),
                    TradeSide(account=command.account, order_id=order.order_id, fee="0.5", margin=margin),
                )
            if not first or self._random.random() < 0.2:
                self._report(report)

    def _convert(self, command: LiquidationCommand, order: CommandOrder) -> None:
        """Sell collateral, or buy back a debt: what it did comes back as transfers."""
        sign = 1 if order.order_side == "buy" else -1
        quantity = Decimal(order.quantity)
        paid = (quantity * Decimal(self._exchange.price("BTC-USD"))).quantize(Decimal("0.000001"))
        for asset, amount in (("BTC", sign * quantity), ("USDC", -sign * paid)):
            self._exchange.transfer(command.account, asset, format_decimal(amount), command.margin, order.order_id)
        self._report(
            LiquidationReport(
                command_id=command.command_id,
                order_id=order.order_id,
                account=command.account,
                status="filled",
                filled_quantity=order.quantity,
                event_time=self._exchange.now_us(),
            )
        )

    def _mismatch(self, command: LiquidationCommand, order: CommandOrder) -> None:
        """The execution service trades something else with the order's id: the wrong side, or another symbol."""
        symbol = self._random.choice(("BTC-PERP", "ETH-PERP"))
        wrong_side = order.order_side if symbol != order.symbol else ("buy" if order.order_side == "sell" else "sell")
        self._exchange.match(
            symbol,
            self._exchange.price(symbol),
            STEPS[symbol],
            wrong_side,
            TradeSide(account=HOUSE, order_id="house", fee="0"),
            TradeSide(account=command.account, order_id=order.order_id, fee="0.5"),
        )

    def _report(self, report: LiquidationReport) -> None:
        self._exchange.send(REPORTS, report.account.encode(), report)


def _decimal(value: float, places: int) -> str:
    """Canonical: no trailing zeros."""
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
