"""Whether memory stays flat: the resident set of every role under steady load.

A local Kafka and Valkey and the three roles as processes; trades at a steady rate while prices move and new accounts
come, each with a deposit and a position. A role may hold ``GROWTH_MAX`` more at the end than when a third of the time
had passed, the engine ``ACCOUNT_BYTES_MAX`` more for each account that came meanwhile: nothing else grows with time.
"""

import itertools
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Producer

from infra.local.stack import KAFKA_VARIABLE, REDIS_VARIABLE, LocalStack, child_environment
from schemas.codec import encode
from schemas.messages import OraclePrice, Trade, TradeSide, Transfer
from schemas.parameters import AssetParameters, InstrumentParameters, MarginTier, OracleParameters, PolicyParameters
from schemas.topics import PARAMETERS, PRICES, TRADES, TRANSFERS
from streams.broker import config
from streams.broker.admin import ensure_topics
from streams.settings import Settings, load

GROWTH_MAX = 0.10
ACCOUNT_BYTES_MAX = 2_048
ROLES = ("router", "oracle", "engine")
SYMBOL = "BTC-PERP"
ACCOUNTS = 1_000
TRADES_PER_S = 1_000
PRICES_PER_S = 20
_SAMPLE_S = 10.0
_STEP_S = 0.1


@dataclass(frozen=True, slots=True)
class Samples:
    """The resident set of each role in KiB, and how many accounts there were, every ten seconds."""

    kib: dict[str, list[int]]
    accounts: list[int]

    @property
    def came(self) -> int:
        """How many accounts have come since a third of the time had passed."""
        return self.accounts[-1] - self.accounts[len(self.accounts) // 3]

    def growth(self, role: str) -> float:
        """By what share a role has grown since then, without what new accounts may take in the engine."""
        sizes = self.kib[role]
        settled = sizes[len(sizes) // 3]
        grown = sizes[-1] - settled
        allowed = self.came * ACCOUNT_BYTES_MAX / 1024 if role == "engine" else 0
        return max(grown - allowed, min(grown, 0)) / settled

    def bytes_an_account(self) -> float:
        """By how much the engine has grown since then, for each account that has come."""
        sizes = self.kib["engine"]
        return 1024 * (sizes[-1] - sizes[len(sizes) // 3]) / max(1, self.came)


def bench_memory(seconds: float, new_per_s: float) -> Samples:
    """Load for so many seconds, in which ``new_per_s`` accounts come a second."""
    with LocalStack.start() as stack, tempfile.TemporaryDirectory() as folder:
        settings = load({}, {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url})
        ensure_topics(settings)
        producer = Producer(config.producer(settings.kafka, "bench"))
        _open(producer)
        processes = {role: _start(role, settings, Path(folder)) for role in ROLES}
        try:
            return _load(producer, processes, seconds, new_per_s)
        finally:
            for process in processes.values():
                process.terminate()
            for process in processes.values():
                process.wait(timeout=60)


def _start(role: str, settings: Settings, folder: Path) -> "subprocess.Popen[bytes]":
    environment = child_environment(
        {KAFKA_VARIABLE: settings.kafka.bootstrap_servers, REDIS_VARIABLE: settings.redis.url}
    )
    with (folder / f"{role}.log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "streams.cli", role], env=environment, stderr=log)


def _open(producer: Producer) -> None:
    tiers = (MarginTier(notional_floor="0", maintenance_rate="0.005", initial_rate="0.01"),)
    for key, record in (
        ("asset:USDC", AssetParameters(asset="USDC", decimals=6)),
        ("policy:default", PolicyParameters()),
        (
            f"instrument:{SYMBOL}",
            InstrumentParameters(
                symbol=SYMBOL,
                settle_asset="USDC",
                price_increment="0.1",
                quantity_increment="0.001",
                margin_tiers=tiers,
            ),
        ),
        (f"oracle:{SYMBOL}", OracleParameters(symbol=SYMBOL, sources={"a": "1"}, max_age_ms=5000)),
    ):
        producer.produce(PARAMETERS, encode(record), key=key)
    for number in range(ACCOUNTS):
        _deposit(producer, number)
    producer.flush()


def _deposit(producer: Producer, number: int) -> None:
    account = f"account-{number}"
    transfer = Transfer(
        transfer_id=account,
        account=account,
        asset="USDC",
        amount="1000000",
        sequence=1,
        event_time=time.time_ns() // 1000,
    )
    producer.produce(TRANSFERS, encode(transfer), key=account)


def _load(
    producer: Producer, processes: dict[str, "subprocess.Popen[bytes]"], seconds: float, new_per_s: float
) -> Samples:
    drawn, numbers, sequences = random.Random(1), itertools.count(1), itertools.count(1)
    samples = Samples({role: [] for role in processes}, [])
    accounts, started, sampled = ACCOUNTS, time.monotonic(), 0.0
    for step in itertools.count(1):
        passed = time.monotonic() - started
        if passed >= seconds:
            return samples
        for account in range(accounts, ACCOUNTS + int(step * _STEP_S * new_per_s)):
            _deposit(producer, account)
            other = drawn.randrange(ACCOUNTS)
            producer.produce(TRADES, encode(_trade(drawn, next(numbers), account, other)), key=SYMBOL)
            accounts += 1
        for _ in range(int(TRADES_PER_S * _STEP_S)):
            maker, taker = drawn.sample(range(ACCOUNTS), 2)
            producer.produce(TRADES, encode(_trade(drawn, next(numbers), maker, taker)), key=SYMBOL)
        for _ in range(int(PRICES_PER_S * _STEP_S)):
            producer.produce(PRICES, encode(_price(drawn, next(sequences))), key=SYMBOL)
        producer.poll(0)
        if passed - sampled >= _SAMPLE_S:
            sampled = passed
            samples.accounts.append(accounts)
            for role, process in processes.items():
                samples.kib[role].append(_resident_kib(process))
            latest = ", ".join(f"{role} {sizes[-1] / 1024:.1f} MiB" for role, sizes in samples.kib.items())
            print(f"{passed:6.0f} s  {accounts:,} accounts  {latest}", flush=True)
        time.sleep(max(0.0, started + step * _STEP_S - time.monotonic()))
    return samples


def _trade(drawn: random.Random, number: int, maker: int, taker: int) -> Trade:
    return Trade(
        trade_id=number,
        symbol=SYMBOL,
        price="100.0",
        quantity="0.010",
        aggressor_side=drawn.choice(["buy", "sell"]),
        maker=TradeSide(account=f"account-{maker}", order_id=f"m{number}", fee="0"),
        taker=TradeSide(account=f"account-{taker}", order_id=f"t{number}", fee="0.01"),
        event_time=time.time_ns() // 1000,
    )


def _price(drawn: random.Random, sequence: int) -> OraclePrice:
    price = f"{100 + drawn.randint(-5, 5) / 10}"
    return OraclePrice(source="a", symbol=SYMBOL, price=price, sequence=sequence, publish_time=time.time_ns() // 1000)


def _resident_kib(process: "subprocess.Popen[bytes]") -> int:
    if process.poll() is not None:
        raise RuntimeError(f"a role ended with exit code {process.returncode}")
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
