"""More marks than a record holds, from an oracle to an engine through a real Kafka.

What each took is printed; by hand, with as many symbols as there is time for:

    pytest --long -s tests/integration/test_many_symbols.py --symbols 20000
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas.codec import MESSAGE_BYTES_MAX, Decoder, encode
from schemas.messages import Mark, MarkFrame, OraclePrice, Trade, TradeSide, Transfer
from schemas.parameters import (
    AssetParameters,
    InstrumentParameters,
    MarginTier,
    OracleParameters,
    Parameter,
    PolicyParameters,
)
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, MARKS, PARAMETERS, PRICES, TRADES, TRANSFERS
from streams.broker import config
from streams.broker.admin import admin_client
from streams.feeds.marks import FullFrame, FullFrames
from streams.settings import Settings
from tests.integration.conftest import Role, Topic, eventually, now_us, stack_of_its_own

SYMBOLS = {6_000: 1, 10_000: 2}
"""So many symbols, and of how many records a full frame is then. It is without sources; with them, 6,000 were two."""
SOURCES = ("exchange-one", "exchange-two", "exchange-three")
AGE_MS_MAX = 3_600_000
HEARTBEAT_MS = 1_000
"""Not 250: every mark of every heartbeat is walked in every shard, and a machine may be busy with other things."""
READ_FIRST = 20

_FRAME = Decoder[MarkFrame](MarkFrame)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = metafunc.config.getoption("symbols")
    metafunc.parametrize("symbols", SYMBOLS if given is None else [given])


class MarksLog:
    """The marks as they are written: the last of each symbol, and the last full frame with the records it came in."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer = Consumer(config.reader(settings.kafka, "test") | {"enable.partition.eof": False})
        self._consumer.assign([TopicPartition(MARKS, 0, 0)])
        self._full_frames = FullFrames()
        self._records: list[bytes] = []
        self.last: dict[str, Mark] = {}
        self.full: FullFrame | None = None
        self.full_in: list[bytes] = []

    def read(self) -> None:
        for message in self._consumer.consume(200, timeout=0.05):
            value, offset = message.value(), message.offset()
            assert message.error() is None
            assert value is not None
            assert offset is not None
            frame = _FRAME(value)
            self.last |= {mark.symbol: mark for mark in frame.marks}
            if frame.part is msgspec.UNSET and not frame.full:
                continue
            if frame.part is msgspec.UNSET or frame.part.number == 1:
                self._records = []
            self._records.append(value)
            if (full := self._full_frames.add(offset, frame)) is not None:
                self.full, self.full_in = full, self._records

    def are_live(self, symbols: Iterable[str]) -> bool:
        self.read()
        return all(symbol in self.last and self.last[symbol].status == "live" for symbol in symbols)

    def is_full(self, symbols: int) -> bool:
        """Whether a full frame says that so many marks are live."""
        self.read()
        return self.full is not None and sum(mark.status == "live" for mark in self.full.frame.marks) == symbols

    def forget_before(self, offset: int) -> None:
        """Have the broker delete what lies before ``offset``."""
        admin = admin_client(self._settings)  # kept: its requests end with it
        for done in admin.delete_records([TopicPartition(MARKS, 0, offset)]).values():
            done.result(timeout=30)

    def close(self) -> None:
        self._consumer.close()


class Exchange:
    """Sends what an exchange sends, in ``symbols`` of three sources each, and what is known of them."""

    def __init__(self, settings: Settings, symbols: int) -> None:
        self.symbols = [f"BTC-{number // 500 + 1:02d}DEC27-{100_000 + number}-C" for number in range(symbols)]
        self._producer = Producer(config.producer(settings.kafka, "test"))
        self._sequence = itertools.count(1)

    def list_symbols(self) -> None:
        records: list[Parameter] = [AssetParameters(asset="USDC", decimals=6), PolicyParameters()]
        tiers = (MarginTier(notional_floor="0", maintenance_rate="0.05", initial_rate="0.1"),)
        sources = dict.fromkeys(SOURCES, "1")
        for symbol in self.symbols:
            records += [
                InstrumentParameters(
                    symbol=symbol,
                    settle_asset="USDC",
                    price_increment="0.01",
                    quantity_increment="0.01",
                    margin_tiers=tiers,
                ),
                OracleParameters(symbol=symbol, sources=sources, minimum_sources=len(SOURCES), max_age_ms=AGE_MS_MAX),
            ]
        self._send(PARAMETERS, ((record.key, record) for record in records))

    def price(self, symbols: Iterable[str], price: str) -> None:
        """All sources of ``symbols`` say ``price``."""
        self._send(
            PRICES,
            (
                (
                    symbol,
                    OraclePrice(
                        source=source,
                        symbol=symbol,
                        price=price,
                        sequence=next(self._sequence),
                        publish_time=now_us(),
                    ),
                )
                for symbol in symbols
                for source in SOURCES
            ),
        )

    def deposit(self, account: str, amount: str) -> None:
        transfer = Transfer(
            transfer_id=account, account=account, asset="USDC", amount=amount, sequence=1, event_time=now_us()
        )
        self._send(TRANSFERS, [(account, transfer)])

    def trade(self, symbol: str, buyer: str, seller: str, quantity: str, price: str) -> None:
        """The first trade of a symbol."""
        trade = Trade(
            trade_id=1,
            symbol=symbol,
            price=price,
            quantity=quantity,
            aggressor_side="buy",
            maker=TradeSide(account=seller, order_id="m", fee="0"),
            taker=TradeSide(account=buyer, order_id="t", fee="0"),
            event_time=now_us(),
        )
        self._send(TRADES, [(symbol, trade)])

    def _send(self, topic: str, records: Iterable[tuple[str, msgspec.Struct]]) -> None:
        for key, record in records:
            self._producer.produce(topic, encode(record), key=key)
        assert self._producer.flush(60) == 0


class Market:
    """An exchange and what the pipeline says, on a stack of its own; roles start when they are asked to.

    ``deadline_s`` is for what takes the longer the more symbols there are.
    """

    def __init__(self, settings: Settings, symbols: int, folder: Path) -> None:
        self.settings, self.exchange, self.marks = settings, Exchange(settings, symbols), MarksLog(settings)
        self.commands, self.alerts, self.accounts = (Topic(settings, name) for name in (COMMANDS, ALERTS, ACCOUNTS))
        self.deadline_s = 60 + symbols / 100
        self.roles: list[Role] = []
        self._folder = folder

    def start(self, name: str) -> Role:
        heartbeat = {"MARGIN_ORACLE__HEARTBEAT_MS": str(HEARTBEAT_MS)}
        role = Role(name, self.settings, self._folder / f"{name}.log", **heartbeat)
        self.roles.append(role)
        return role

    def await_marks(self, symbols: list[str]) -> None:
        """Give ``symbols`` a price until each has a mark: an oracle reads from the end that it finds."""

        def are_live() -> bool:
            self.assert_running()
            self.exchange.price(symbols, "100")
            return self.marks.are_live(symbols)

        eventually(are_live, "the first marks", self.deadline_s)

    def await_funds(self, *accounts: str) -> None:
        """The engine has rows of ``accounts``."""

        def are_there() -> bool:
            self.assert_running()
            return all(self.accounts.values(account=account) for account in accounts)

        eventually(are_there, f"rows of {accounts}", self.deadline_s)

    def assert_running(self) -> None:
        for role in self.roles:
            role.assert_running()

    def close(self) -> None:
        for role in self.roles:
            role.kill()
        for log in (self.marks, self.commands, self.alerts, self.accounts):
            log.close()


@pytest.fixture
def market(symbols: int, tmp_path: Path) -> Iterator[Market]:
    with stack_of_its_own() as settings:
        opened = Market(settings, symbols, tmp_path)
        yield opened
        opened.close()


@pytest.mark.long
def test_who_is_below_by_the_last_mark_of_a_full_frame_is_liquidated_by_an_engine_that_knows_no_other(
    market: Market,
) -> None:
    """The log of marks is cut to full frames before the engine starts, as retention does, and no price comes then."""
    exchange, marks = market.exchange, market.marks
    symbols, first, last = len(exchange.symbols), exchange.symbols[0], exchange.symbols[-1]
    exchange.list_symbols()
    oracle, started = market.start("oracle"), time.monotonic()
    market.await_marks(exchange.symbols[:READ_FIRST])
    sent = time.monotonic()
    exchange.price(exchange.symbols[:-1], "100")
    exchange.price([last], "94")
    eventually(lambda: marks.is_full(symbols), "a full frame with all marks live", market.deadline_s)
    print(
        f"{symbols:,} symbols: all marks {time.monotonic() - sent:.1f} s after the first price was sent, "
        f"{time.monotonic() - started:.1f} s after the oracle was started; records {list(map(len, marks.full_in))}"
    )
    assert all(len(record) <= MESSAGE_BYTES_MAX for record in marks.full_in)
    assert len(marks.full_in) == SYMBOLS.get(symbols, len(marks.full_in))
    frames = [_FRAME(record) for record in marks.full_in]
    assert (frames[0].marks[0].symbol, frames[-1].marks[-1].symbol) == (first, last)

    assert marks.full is not None
    marks.forget_before(marks.full.first)
    market.start("router")
    engine, started = market.start("engine"), time.monotonic()
    exchange.deposit("alice", "110")
    exchange.deposit("bob", "100000")
    market.await_funds("alice", "bob")
    print(f"first rows of the engine {time.monotonic() - started:.1f} s after it was started")
    exchange.trade(first, "alice", "bob", "1", "100")
    exchange.trade(last, "alice", "bob", "10", "100")
    traded = time.monotonic()

    def command() -> dict[str, Any] | None:
        market.assert_running()
        return next(iter(market.commands.values()), None)

    issued: dict[str, Any] = eventually(command, "a command", market.deadline_s)
    print(f"command {time.monotonic() - traded:.1f} s after the trade; {memory(oracle)}; {memory(engine)}")
    assert (issued["account"], issued["evidence"]["marks"]) == ("alice", {first: "100", last: "94"})
    assert issued["evidence"]["equity"] == "50"
    assert market.alerts.values(kind="undecided") == []


def memory(role: Role) -> str:
    """What of it is resident, now and at most."""
    status = Path(f"/proc/{role.process.pid}/status").read_text()
    kib = {
        name: int(line.split()[1]) for line in status.splitlines() for name in [line.partition(":")[0]] if "kB" in line
    }
    return f"{role.name} {kib['VmRSS'] / 1024:,.0f} MiB, {kib['VmHWM'] / 1024:,.0f} at most"
