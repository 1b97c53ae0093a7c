"""A modest exchange under whose load the faults happen, and the execution service that trades its liquidation commands.

Traders with deposits trade with each other and with market makers at moving prices; three sources quote every symbol;
among it all come poison, oversized, repeated and late records. Commands are traded against a fund and reported, some of
them in part or not at all. A canary is a transfer to every shard and a trade of every symbol: when its rows are out,
everything works. One thread, one producer, straight to the broker: the faults are the pipeline's, not the exchange's.
"""

import itertools
import random
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from schemas import topics
from schemas.partitioning import shard_of
from streams.broker import config
from streams.settings import KafkaSettings
from tests.faults.silence import SilenceMeter

SYMBOLS = {"BTC-PERP": Decimal(60000), "ETH-PERP": Decimal(2500), "SOL-PERP": Decimal(150)}
SOURCES = ("one", "two", "three")
ASSET = "USDC"
FUND = "fund"
MAKERS = ("maker-0", "maker-1", "maker-2")
TRADERS = tuple(f"trader-{number:02}" for number in range(40))
ISOLATED = {f"isolated-{number}": symbol for number, symbol in zip(range(9), itertools.cycle(SYMBOLS))}
NAMED_BY_POISON = "named-by-poison"
"""The account of the transfers that cannot be read."""
POISON = b"poison-"
"""Begins the key of every record that cannot be read."""

OVERSIZED_BYTES = 1_000_001
"""One more than a message may have; a topic takes it."""

LEVERAGE_MAX = 18
TRADES_A_SECOND = 30
PRICES_EVERY_S = 0.25
COMMAND_TTL_MS = 4000
CANARY_DEPOSIT = "1000"
CANARY_QUANTITY = Decimal("0.001")
NO_NEWS = {"log_level": 2}
"""For clients of the suite: a broker that is away is no news here."""

UNTIL_IT_IS_BACK = {"message.timeout.ms": 300_000}
"""For the exchange's producer: what it sends arrives, however long the broker is away."""

_CENT = Decimal("0.01")
_LOT = Decimal("0.001")
_TICK_S = 0.01


def now_us() -> int:
    return time.time_ns() // 1000


def canaries(numbers: Sequence[int]) -> list[str]:
    """Accounts of which each shard has one, or some, with each of the ``numbers`` of shards."""
    chosen: list[str] = []
    names = (f"canary-{number}" for number in itertools.count())
    for wanted in range(max(numbers)):
        chosen.append(next(name for name in names if all(shard_of(name, n) == wanted % n for n in numbers)))
    return chosen


def parameters(version: int = 1) -> list[tuple[str, dict[str, Any]]]:
    """The records of ``risk.parameters.v1`` with their keys."""
    records: list[tuple[str, dict[str, Any]]] = [
        (f"asset:{ASSET}", {"type": "asset", "asset": ASSET, "decimals": 6, "price_symbol": None, "version": version}),
        ("policy:default", policy(version)),
    ]
    for symbol in SYMBOLS:
        instrument = {
            "type": "instrument", "symbol": symbol, "settle_asset": ASSET, "price_increment": "0.01",
            "quantity_increment": "0.001",
            "margin_tiers": [
                {"notional_floor": "0", "maintenance_rate": "0.04", "initial_rate": "0.05"},
                {"notional_floor": "100000", "maintenance_rate": "0.05", "initial_rate": "0.06"},
            ],
            "liquidation_fee": "0.005", "insurance_fee": "0.001", "version": version,
        }  # fmt: skip
        oracle = {
            "type": "oracle", "symbol": symbol, "sources": dict.fromkeys(SOURCES, "1"), "minimum_sources": 2,
            "max_age_ms": 5000, "max_jump": "0.5", "version": version,
        }  # fmt: skip
        records += [(f"instrument:{symbol}", instrument), (f"oracle:{symbol}", oracle)]
    return records


def policy(version: int) -> dict[str, Any]:
    """The policy record; its buffer differs a little from version to version."""
    return {
        "type": "policy", "liquidation_buffer_rate": f"0.00{2 + version % 3}", "margin_call_levels": ["1.5", "1.2"],
        "command_ttl_ms": COMMAND_TTL_MS, "version": version,
    }  # fmt: skip


class Load:
    """The exchange and its execution service. Records are counted in ``sent``.

    ``commands_appended`` has when the brokers appended each command, ``commands_read`` when the execution service was
    given it.
    """

    def __init__(self, kafka: KafkaSettings, shards: Sequence[int], partitions: int, seed: int) -> None:
        self.sent = 0
        self.commands_seen = 0
        self.commands_read = SilenceMeter()
        self.commands_appended = SilenceMeter()
        self.canaries = canaries(shards)
        self.canary_symbols = dict(zip(self.canaries, itertools.cycle(SYMBOLS)))
        self._rng = random.Random(seed)
        self._producer = Producer(config.producer(kafka, "faults-exchange") | NO_NEWS | UNTIL_IT_IS_BACK)
        self._consumer = Consumer(config.reader(kafka, "faults-execution") | {"enable.partition.eof": False} | NO_NEWS)
        self._consumer.assign([TopicPartition(topics.COMMANDS, partition, 0) for partition in range(partitions)])
        self._prices = dict(SYMBOLS)
        self._trade_ids = dict.fromkeys(SYMBOLS, 0)
        self._price_sequences: dict[tuple[str, str], int] = defaultdict(int)
        self._transfer_sequences: dict[str, int] = defaultdict(int)
        self._positions: dict[tuple[str, str, str], Decimal] = defaultdict(Decimal)
        self._deposited: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self._seen: set[str] = set()
        self._poisons = itertools.count()
        self._recent: list[tuple[str, bytes, str | bytes]] = []
        self._policy_version = 1
        self._canary = 0
        self._canary_wanted = 0
        self._open = threading.Event()
        self._calm = threading.Event()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def publish_parameters(self) -> None:
        for key, record in parameters():
            self._send(topics.PARAMETERS, record, key)
        self.flush()

    def start(self) -> None:
        self._thread.start()

    def canary(self) -> int:
        """Send another canary; its number."""
        self._canary_wanted += 1
        return self._canary_wanted

    def open(self) -> None:
        """From here on people trade: the first deposits have arrived, so nobody is insolvent by accident."""
        self._open.set()

    def calm_down(self) -> None:
        """From here on prices stand still, nobody trades, and every order that comes is filled."""
        self._calm.set()

    def stop(self) -> None:
        """End it, once."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the load does not end"
        self.check()
        self.flush()
        self._consumer.close()

    def check(self) -> None:
        """Raises what ended the load, if anything did."""
        if self._failure is not None:
            raise RuntimeError("the load has ended") from self._failure

    def flush(self) -> None:
        deadline = time.monotonic() + 60
        while self._producer.flush(1.0):
            assert time.monotonic() < deadline, "Kafka does not take the load's records"

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for account in (FUND, *MAKERS):
                self._deposit(account, "cross", "1000000000")
            self._quote(moving=False)
            due = {self._trade: 0.0, self._quote: 0.0, self._deposit_somewhere: 0.0, self._disturb: 0.0}
            every = {
                self._trade: 1 / TRADES_A_SECOND,
                self._quote: PRICES_EVERY_S,
                self._deposit_somewhere: 0.15,
                self._disturb: 0.25,
            }
            while not self._stop.is_set():
                now = time.monotonic()
                for act, period_s in every.items():
                    if now >= due[act]:
                        due[act] = max(due[act] + period_s, now - 1)
                        if act == self._quote:
                            self._quote(moving=self._trading)
                        elif self._trading:
                            act()
                self._send_canaries()
                self._execute()
                self._producer.poll(0)
        except BaseException as error:
            self._failure = error

    @property
    def _trading(self) -> bool:
        return self._open.is_set() and not self._calm.is_set()

    def _quote(self, moving: bool = True) -> None:
        """Every source's price of every symbol: a walk, with a lurch now and then."""
        for symbol, start in SYMBOLS.items():
            if moving:
                step = self._rng.gauss(0, 0.004) if self._rng.random() > 0.03 else self._rng.choice((-0.04, 0.04))
                pull = float((start - self._prices[symbol]) / start) * 0.02  # so that it does not run away
                price = self._prices[symbol] * Decimal(str(1 + step + pull))
                self._prices[symbol] = max(start / 4, price).quantize(_CENT)
            for source in SOURCES:
                self._price_sequences[symbol, source] += 1
                price_record = {
                    "source": source,
                    "symbol": symbol,
                    "price": str(self._prices[symbol]),
                    "sequence": self._price_sequences[symbol, source],
                    "publish_time": now_us(),
                }
                self._send(topics.PRICES, price_record, symbol)

    def _deposit_somewhere(self) -> None:
        if self._rng.random() < 0.25:
            account = self._rng.choice(list(ISOLATED))
            self._deposit(account, ISOLATED[account], str(self._rng.randrange(100, 1000)))
        else:
            self._deposit(self._rng.choice(TRADERS), "cross", str(self._rng.randrange(100, 2000)))

    def _deposit(self, account: str, margin: str, amount: str) -> None:
        self._transfer_sequences[account] += 1
        sequence = self._transfer_sequences[account]
        transfer = {
            "transfer_id": f"{account}:{sequence}",
            "account": account,
            "asset": ASSET,
            "amount": amount,
            "sequence": sequence,
            "margin": margin,
            "event_time": now_us(),
        }
        self._deposited[account, margin] += Decimal(amount)
        self._send(topics.TRANSFERS, transfer, account, remember=True)

    def _trade(self) -> None:
        symbol = self._rng.choice(list(SYMBOLS))
        own = [account for account, held in ISOLATED.items() if held == symbol]
        account = self._rng.choice((*TRADERS, *own))
        margin = ISOLATED.get(account, "cross")
        means = self._deposited[account, margin]
        quantity = (means * self._rng.randrange(1, 8) / self._prices[symbol]).quantize(_LOT)
        buys = self._rng.random() < 0.5
        after = self._positions[account, margin, symbol] + (quantity if buys else -quantity)
        if not quantity or abs(after) * self._prices[symbol] > LEVERAGE_MAX * means:
            return
        counterparty = self._rng.choice((*MAKERS, *TRADERS)) if margin == "cross" else self._rng.choice(MAKERS)
        if counterparty == account:
            return
        self._match(symbol, quantity, self._prices[symbol], account, margin, counterparty, buys, "own", "0.05")

    def _match(
        self,
        symbol: str,
        quantity: Decimal,
        price: Decimal,
        taker: str,
        margin: str,
        maker: str,
        taker_buys: bool,
        order_id: str,
        fee: str,
    ) -> None:
        self._trade_ids[symbol] += self._rng.choice((1, 1, 1, 1, 1, 2))  # ids may be missing
        trade = {
            "trade_id": self._trade_ids[symbol],
            "symbol": symbol,
            "price": format(price, "f"),
            "quantity": format(quantity, "f"),
            "aggressor_side": "buy" if taker_buys else "sell",
            "maker": {"account": maker, "order_id": f"m-{self._trade_ids[symbol]}", "fee": "-0.01"},
            "taker": {
                "account": taker,
                "order_id": order_id,
                "fee": fee,
                "margin": "cross" if margin == "cross" else "isolated",
            },
            "event_time": now_us(),
        }
        signed = quantity if taker_buys else -quantity
        self._positions[taker, margin, symbol] += signed
        self._positions[maker, "cross", symbol] -= signed
        self._send(topics.TRADES, trade, symbol, remember=True)

    # --- what should change nothing ----------------------------------------------------------------------------------

    def _disturb(self) -> None:
        """A record that cannot be read, one that came before, one that comes late, or a new version of the policy."""
        self._rng.choice((self._poison, self._poison, self._repeat, self._repeat, self._late, self._new_policy))()

    def _poison(self) -> None:
        topic, value = self._rng.choice(_POISONS)
        key = POISON + str(next(self._poisons)).encode() + b" names no account"
        self._send(topic, value, key)

    def _repeat(self) -> None:
        """A record once more: the last one, or one from long ago."""
        if self._recent:
            topic, value, key = self._recent[-1 if self._rng.random() < 0.3 else self._rng.randrange(len(self._recent))]
            self._send(topic, value, key)

    def _late(self) -> None:
        """A transfer that nobody has seen, with a number that another has had. Such a trade suspends its accounts."""
        account = self._rng.choice(TRADERS)
        if self._transfer_sequences[account] < 2:
            return
        sequence = self._transfer_sequences[account] - 1
        transfer = {
            "transfer_id": "late", "account": account, "asset": ASSET, "amount": "-999999",
            "sequence": sequence, "margin": "cross", "event_time": now_us(),
        }  # fmt: skip
        self._send(topics.TRANSFERS, transfer, account)

    def _new_policy(self) -> None:
        if self._rng.random() < 0.2:
            self._policy_version += 1
            self._send(topics.PARAMETERS, policy(self._policy_version), "policy:default")

    # --- the execution service ---------------------------------------------------------------------------------------

    def _execute(self) -> None:
        message = self._consumer.poll(_TICK_S)
        while message is not None:
            if message.error() is None:
                self._execute_command(message)
            message = self._consumer.poll(0)

    def _execute_command(self, message: Message) -> None:
        command = orjson.loads(message.value() or b"")
        if command["command_id"] in self._seen:
            return
        self._seen.add(command["command_id"])
        self.commands_seen += 1
        self.commands_read.note(time.time())
        self.commands_appended.note(message.timestamp()[1] / 1000)
        for order in command["orders"]:
            luck = 1.0 if self._calm.is_set() else self._rng.random()
            if now_us() > command["expires_at"] or luck < 0.05:
                self._report(command, order, "rejected", Decimal(0))
                continue
            self._report(command, order, "accepted", Decimal(0))
            self._fill(command, order, part=luck < 0.15)

    def _fill(self, command: dict[str, Any], order: dict[str, Any], *, part: bool) -> None:
        """Trade what the position still allows, at the limit or the last price, and report it."""
        account, margin, symbol = command["account"], command["margin"], order["symbol"]
        sells = order["order_side"] == "sell"
        held = self._positions[account, margin, symbol]
        wanted = Decimal(order["quantity"])
        quantity = min(wanted, max(Decimal(0), held if sells else -held))
        if part:
            quantity = (quantity / 2).quantize(_LOT)
        if quantity:
            limit = Decimal(order["limit_price"]).quantize(_CENT)
            price = limit if command["stage"] == "takeover" and limit > 0 else self._prices[symbol]
            self._match(symbol, quantity, price, account, margin, FUND, not sells, order["order_id"], "0")
        self._report(command, order, "filled" if quantity == wanted else "cancelled", quantity)

    def _report(self, command: dict[str, Any], order: dict[str, Any], status: str, filled: Decimal) -> None:
        report = {
            "command_id": command["command_id"],
            "order_id": order["order_id"],
            "account": command["account"],
            "status": status,
            "filled_quantity": format(filled, "f"),
            "event_time": now_us(),
        }
        self._send(topics.REPORTS, report, command["account"], remember=True)

    # --- canaries and sending ----------------------------------------------------------------------------------------

    def canary_holds(self, number: int) -> Decimal:
        """What each canary holds of its symbol after canary ``number``; the first one only deposits."""
        return (number - 1) * CANARY_QUANTITY

    def _send_canaries(self) -> None:
        while self._canary < self._canary_wanted:
            self._canary += 1
            for account, symbol in self.canary_symbols.items():
                self._deposit(account, "cross", CANARY_DEPOSIT)
                if self._canary == 1:
                    continue
                self._match(symbol, CANARY_QUANTITY, self._prices[symbol], account, "cross", FUND, True, "canary", "0")

    def _send(self, topic: str, value: Any, key: str | bytes, *, remember: bool = False) -> None:
        data = value if isinstance(value, bytes) else orjson.dumps(value)
        while True:
            try:
                self._producer.produce(topic, data, key=key, on_delivery=self._note_delivery)
                break
            except BufferError:
                self._producer.poll(0.01)
        self.sent += 1
        if remember:
            self._recent.append((topic, data, key))
            del self._recent[:-2000]

    def _note_delivery(self, error: KafkaError | None, message: Message) -> None:
        """A record that did not arrive ends the load: the checker compares with all that was sent."""
        if error is not None:
            self._failure = self._failure or RuntimeError(
                f"a record for {message.topic()} did not arrive: {error.str()}"
            )


_GARBAGE = (b"{", b"\xff\xfe", b"[]", b'"' + b"x" * OVERSIZED_BYTES + b'"')
_POISONS: list[tuple[str, bytes]] = [
    *((topic, value) for topic in (topics.TRADES, topics.TRANSFERS, topics.REPORTS) for value in _GARBAGE),
    *((topic, value) for topic in (topics.PRICES, topics.PARAMETERS) for value in (b"{", b"nope")),
    *((topic, value) for topic in (topics.EVENTS, topics.MARKS) for value in (b"{", b"nope")),
    (topics.TRADES, b'{"trade_id":1}'),
    (topics.TRANSFERS, b'{"account":"%s","asset":"USDC","amount":1,"sequence":1}' % NAMED_BY_POISON.encode()),
    (topics.PARAMETERS, b'{"type":"x"}'),
]
