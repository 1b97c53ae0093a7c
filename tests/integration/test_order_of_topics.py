"""Whoever deposits first and trades then is never liquidated for want of that deposit.

The exchange has Kafka's word that a deposit is stored before it sends the trade that needs it. The two are in different
topics, so what is promised must hold whichever routers own their partitions and whatever becomes of these routers. Each
test has a stack of its own, whose routers it shares out. The price never moves.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest
from confluent_kafka import Producer

from infra.local.stack import LocalStack
from schemas import topics
from streams.broker import config
from streams.broker.admin import ensure_topics, group_state
from streams.broker.reader import LogReader
from streams.settings import Settings, load
from tests.integration.conftest import OWN_SHARDS, Pipeline, Role, eventually, now_us
from tests.integration.test_pipeline import Market, transfer

pytestmark = pytest.mark.long

ACCOUNTS = 300  # 1,000 show more and take longer
PRICE, DEPOSIT, QUANTITY = "100", "100", "1"  # with it an account has equity 100 and needs 5; without it has nothing
RICH = "100000000"

TRADES_PER_S = 500
FIRST_SHORT_TRADE = 1000  # each takes 0.1 more at 100, which needs 0.5 more: beyond this many 500 are not enough
COMMAND_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """How the inputs are shared out, and what becomes of the router that owns the transfers.

    The accounts come in ``parts``. While each part but the first is sent that router is ``frozen``, for ``freeze_s`` at
    least, or it was ``killed`` before. ``at_a_time`` accounts are under way at once. ``linger_ms`` is of the routers
    that come later, which are given the transfers: the longer, the further they are behind the first one.
    """

    routers: int
    partitions: int = 1
    fate: Literal["none", "frozen", "killed"] = "none"
    parts: int = 2
    freeze_s: float = 0.0
    at_a_time: int = 1
    batch_records_max: int = 20_000
    linger_ms: int = 20


SCENARIOS = {
    "two routers": Scenario(routers=2),
    "four routers, two partitions": Scenario(routers=4, partitions=2, linger_ms=100),
    "the transfers' router stands still": Scenario(routers=2, fate="frozen", freeze_s=3.0),
    "the transfers' router is killed": Scenario(routers=2, fate="killed"),
    "one router, accounts side by side": Scenario(routers=1, at_a_time=20),
    "one router, more waits than a batch takes": Scenario(routers=1, fate="frozen", parts=8, batch_records_max=10),
}


class Deployment:
    """A pipeline with several routers, a market for each partition of the trades, and the exchange that feeds it."""

    def __init__(self, settings: Settings, folder: Path, scenario: Scenario) -> None:
        self.settings = settings
        environment = {"MARGIN_ROUTER__BATCH_RECORDS_MAX": str(scenario.batch_records_max)}
        self.pipeline = Pipeline(settings, folder, **environment)
        self.routers = [self.pipeline.router]
        try:
            self._wait_for_shares()  # who comes later is given what the first gives away
            environment["MARGIN_ROUTER__LINGER_MS"] = str(scenario.linger_ms)
            for number in range(1, scenario.routers):
                self.routers.append(Role("router", settings, folder / f"router-{number}.log", **environment))
            self._wait_for_shares()
            self.markets = [Market(self.pipeline, PRICE) for _ in range(settings.topics.partitions)]
            self.accounts = self.pipeline.reader(topics.ACCOUNTS)
            self.rich = self.markets[0].bob
            self.markets[0].deposit(self.rich, RICH)
            eventually(lambda: self.accounts.values(account=self.rich), "the counterparty is rich")
        except BaseException:
            self.close()
            raise
        self._producer = Producer(config.producer(settings.kafka, "exchange"))

    def owner(self, topic: str) -> Role:
        """The router that owns the first partition of ``topic``."""
        return next(role for role, owned in self._shares() if (topic, 0) in owned)

    def deposit_and_trade(self, account: str, partition: int) -> None:
        """Send a deposit, and as soon as Kafka has acknowledged it a trade that needs it."""

        def acknowledged(error: Any, _: Any) -> None:
            assert error is None, error
            self.trade(account, partition, QUANTITY)

        record = orjson.dumps(transfer(account, DEPOSIT))
        self._producer.produce(topics.TRANSFERS, record, key=account, on_delivery=acknowledged)

    def trade(self, account: str, partition: int, quantity: str) -> None:
        """``account`` buys of the counterparty. The acknowledgement is waited for by :meth:`flush`."""
        market = self.markets[partition]
        market.trade_id += 1
        record = {
            "trade_id": market.trade_id,
            "symbol": market.symbol,
            "price": PRICE,
            "quantity": quantity,
            "aggressor_side": "buy",
            "maker": {"account": self.rich, "order_id": "o", "fee": "0"},
            "taker": {"account": account, "order_id": "o", "fee": "0"},
            "event_time": now_us(),
        }
        self._producer.produce(topics.TRADES, orjson.dumps(record), key=market.symbol, partition=partition)

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged, the trades that wait for a deposit as well."""
        assert self._producer.flush(10) == 0

    def assert_running(self) -> None:
        for role in (*self.routers, self.pipeline.oracle, self.pipeline.engine):
            role.assert_running()

    def kill(self, router: Role) -> None:
        self.routers.remove(router)
        router.kill()

    def commands(self) -> list[dict[str, Any]]:
        """Every command there is; what a transaction that is still open holds is waited for."""
        with LogReader(self.settings.kafka, "test") as log:
            partitions = range(log.partitions(topics.COMMANDS))
            records = [record for number in partitions for record in log.read_range(topics.COMMANDS, number, 0)]
        return [orjson.loads(record.value() or b"") for record in records]

    def close(self) -> None:
        for role in self.routers:
            role.kill()
        self.pipeline.close()

    def _wait_for_shares(self) -> None:
        """Until every partition is owned, and trades by nobody who owns transfers if there is anybody else."""

        def apart() -> bool:
            self.assert_running()
            shares = self._shares()
            owned = [place for _, places in shares for place in places]
            if len(shares) < len(self.routers) or len(owned) < len(topics.INPUTS) * self.settings.topics.partitions:
                return False
            both = [
                role for role, places in shares if {topics.TRADES, topics.TRANSFERS} <= {name for name, _ in places}
            ]
            return not both or len(self.routers) == 1

        eventually(apart, f"{len(self.routers)} routers own all, trades and transfers apart", 30)

    def _shares(self) -> list[tuple[Role, tuple[tuple[str, int], ...]]]:
        """The routers that are in the group, each with what it owns."""
        members = group_state(self.settings, self.settings.router.group_id).members
        return [
            (role, member.partitions)
            for role in self.routers
            for member in members
            if member.client_id.endswith(f"-{role.process.pid}")
        ]


@contextmanager
def deployed(scenario: Scenario, folder: Path) -> Iterator[Deployment]:
    with LocalStack.start() as stack:
        settings = load(
            {},
            {
                "kafka.bootstrap_servers": stack.bootstrap_servers,
                "redis.url": stack.redis_url,
                "topics.shards": OWN_SHARDS,
                "topics.partitions": scenario.partitions,
            },
        )
        assert not ensure_topics(settings).wrong
        deployment = Deployment(settings, folder, scenario)
        try:
            yield deployment
        finally:
            deployment.close()


def feed(deployment: Deployment, accounts: dict[str, int], at_a_time: int) -> None:
    """Have ``accounts`` deposit and trade, ``at_a_time`` of them under way at once."""
    for number, (account, partition) in enumerate(accounts.items(), start=1):
        deployment.deposit_and_trade(account, partition)
        if number % at_a_time == 0:
            deployment.flush()
    deployment.flush()


@contextmanager
def befallen(deployment: Deployment, scenario: Scenario) -> Iterator[None]:
    """While the router that owns the transfers is frozen, or after it was killed, or as ever."""
    if scenario.fate == "none":
        yield
        return
    owner = deployment.owner(topics.TRANSFERS)
    if scenario.fate == "killed":
        deployment.kill(owner)
        yield
        return
    owner.process.send_signal(signal.SIGSTOP)
    thaw_at = time.monotonic() + scenario.freeze_s
    yield
    time.sleep(max(0.0, thaw_at - time.monotonic()))
    owner.process.send_signal(signal.SIGCONT)


def wait_until_all_is_applied(deployment: Deployment, accounts: dict[str, int]) -> None:
    """Until the row of each of ``accounts`` has the deposit and the position."""
    missing, read = set(accounts), 0

    def applied() -> bool:
        nonlocal read
        deployment.assert_running()
        records = deployment.accounts.read()
        for key, value, _ in records[read:]:
            account = (key or b"").decode()
            if account in missing and value is not None:
                symbol = deployment.markets[accounts[account]].symbol
                if holdings(orjson.loads(value)) == ({"USDC": DEPOSIT}, {symbol: QUANTITY}):
                    missing.remove(account)
        read = len(records)
        return not missing

    eventually(applied, f"all of {len(accounts)} accounts have their deposit and their position")


def holdings(row: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Balances by asset and positions by symbol of an account's row."""
    balances = {asset: amount for group in row["groups"] for asset, amount in group["balances"].items()}
    positions = {held["symbol"]: held["quantity"] for group in row["groups"] for held in group["positions"]}
    return balances, positions


def in_parts(accounts: dict[str, int], parts: int) -> list[dict[str, int]]:
    names, size = list(accounts), -(-len(accounts) // parts)
    return [{name: accounts[name] for name in names[at : at + size]} for at in range(0, len(names), size)]


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_nobody_is_liquidated_for_want_of_a_deposit_acknowledged_before_the_trade(
    scenario: Scenario, tmp_path: Path
) -> None:
    accounts = {f"new-{number}": number % scenario.partitions for number in range(ACCOUNTS)}
    first, *others = in_parts(accounts, scenario.parts)
    with deployed(scenario, tmp_path) as deployment:
        feed(deployment, first, scenario.at_a_time)
        for part in others:
            with befallen(deployment, scenario):
                feed(deployment, part, scenario.at_a_time)
        wait_until_all_is_applied(deployment, accounts)
        commanded = {command["account"] for command in deployment.commands()}
    assert not commanded, f"{len(commanded)} of {len(accounts)} accounts have a command that none should have"


def test_an_account_that_is_short_has_its_command_while_it_trades_on(tmp_path: Path) -> None:
    account, ended = f"short-{os.getpid()}", threading.Event()
    with deployed(Scenario(routers=2), tmp_path) as deployment:
        market = deployment.markets[0]
        market.deposit(account, "500")
        eventually(lambda: market.row(account), "the deposit")

        def trade_on() -> None:
            began = time.monotonic()
            while not ended.wait(max(0.0, began + sent() / TRADES_PER_S - time.monotonic())):
                deployment.trade(account, 0, "0.1")

        def sent() -> int:
            return market.trade_id

        def commands() -> list[dict[str, Any]]:
            deployment.assert_running()
            return market.commands.values(account=account)

        trading = threading.Thread(target=trade_on)
        trading.start()
        try:
            eventually(lambda: sent() > FIRST_SHORT_TRADE, "the account is short")
            eventually(commands, "the command of an account that is short", COMMAND_DEADLINE_S)
            assert trading.is_alive(), "it trades on"
        finally:
            ended.set()
            trading.join()
        deployment.flush()
        assert len(deployment.commands()) == 1
