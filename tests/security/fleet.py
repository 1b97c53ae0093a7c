"""The roles and tools as a user starts them, told everything by the environment, and all that they say."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import orjson
import pytest
from confluent_kafka import Producer

from infra.local.ports import free_port
from schemas import topics
from streams.broker import config
from streams.settings import Settings

DEADLINE_S = 60.0
ROOT = Path(__file__).resolve().parents[2]
ROLES = ("router", "oracle", "engine")
_numbers = itertools.count(1)


def eventually(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of ``condition``; fails with ``what`` after the deadline."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.05)
    return value


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with no settings but ``variables``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MARGIN_")}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


def tool(
    variables: Mapping[str, str], *arguments: str, timeout_s: float = DEADLINE_S
) -> "subprocess.CompletedProcess[str]":
    """A tool, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "streams.cli", *arguments],
        env=clean_environment(variables),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def page_of(port: int, path: str) -> str:
    """What a page says, whatever its status; empty if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()
    except OSError:
        return ""


class FleetRole:
    """One role as a process. Use as a context manager."""

    def __init__(self, name: str, variables: Mapping[str, str], folder: Path) -> None:
        self.name, self.port = name, free_port()
        self._path = folder / f"{name}-{next(_numbers)}.log"
        with self._path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streams.cli", name],
                env=clean_environment({**variables, "MARGIN_SERVICE__METRICS_PORT": str(self.port)}),
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def output(self) -> str:
        return self._path.read_text(errors="replace")

    def page(self, path: str) -> str:
        """What one of its pages says; empty while nobody answers."""
        return page_of(self.port, path)

    def is_ready(self) -> bool:
        self.assert_running()
        return '"ready": true' in self.page("/readyz")

    def shown_by_ps(self) -> str:
        """Title and arguments, as every user of the machine sees them."""
        shown = subprocess.run(
            ["ps", "-ww", "-o", "comm=,args=", "-p", str(self.process.pid)], capture_output=True, text=True, check=True
        )
        return shown.stdout

    def assert_running(self) -> None:
        assert self.process.poll() is None, (
            f"{self.name} ended with {self.process.returncode}:\n{self.output()[-4000:]}"
        )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=DEADLINE_S)


class Fleet:
    """One process of each role, ``variables`` by role. Use as a context manager."""

    def __init__(self, variables: Mapping[str, Mapping[str, str]], folder: Path) -> None:
        self._variables, self._folder = variables, folder
        self.roles: dict[str, FleetRole] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            for name in ROLES:
                self.roles[name] = ends.enter_context(FleetRole(name, self._variables[name], self._folder))
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def await_ready(self) -> None:
        for role in self.roles.values():
            eventually(role.is_ready, f"{role.name} is ready; it says:\n{role.output()[-3000:]}")


class Exchange:
    """An exchange with two accounts of its own, which writes through the clients that the roles use.

    All trade one symbol: a symbol that nobody prices any more would be a fault, and rightly.
    """

    def __init__(self, settings: Settings) -> None:
        number = next(_numbers)
        self.symbol, self.alice, self.bob = "SECURE-PERP", f"alice-{number}", f"bob-{number}"
        self._producer = Producer(config.producer(settings.kafka, "exchange"))

    def close(self) -> None:
        """Let go of the connection before the servers go."""
        self._producer.close()

    def list_symbol(self) -> None:
        records: list[dict[str, Any]] = [
            {"type": "asset", "asset": "USDC", "decimals": 6, "price_symbol": None, "version": 1},
            {"type": "policy", "liquidation_buffer_rate": "0.002", "command_ttl_ms": 60000, "version": 1},
            {
                "type": "instrument",
                "symbol": self.symbol,
                "settle_asset": "USDC",
                "price_increment": "0.01",
                "quantity_increment": "0.01",
                "margin_tiers": [{"notional_floor": "0", "maintenance_rate": "0.05", "initial_rate": "0.1"}],
                "version": 1,
            },
            {
                "type": "oracle",
                "symbol": self.symbol,
                "sources": {"one": "1", "two": "1"},
                "minimum_sources": 2,
                "max_age_ms": 600000,
                "max_jump": "0.5",
                "version": 1,
            },
        ]
        for record in records:
            name = record.get("symbol") or record.get("asset") or "default"
            self._send(topics.PARAMETERS, record, f"{record['type']}:{name}")

    def price(self, price: str) -> None:
        """Both sources say ``price``."""
        now = time.time_ns() // 1000
        for source in ("one", "two"):
            record = {"source": source, "symbol": self.symbol, "price": price, "sequence": now, "publish_time": now}
            self._send(topics.PRICES, record, self.symbol)

    def open_positions(self) -> None:
        """Alice buys 10 at 100 of Bob; her 150 hold above 89.48 or so."""
        for account, amount in ((self.alice, "150"), (self.bob, "100000")):
            record = {
                "transfer_id": f"t-{account}",
                "account": account,
                "asset": "USDC",
                "amount": amount,
                "sequence": 1,
            }
            self._send(topics.TRANSFERS, record | {"margin": "cross", "event_time": time.time_ns() // 1000}, account)
        trade = {
            "trade_id": time.time_ns() // 1000,
            "symbol": self.symbol,
            "price": "100",
            "quantity": "10",
            "aggressor_side": "buy",
            "maker": {"account": self.bob, "order_id": "o", "fee": "0"},
            "taker": {"account": self.alice, "order_id": "o", "fee": "0"},
            "event_time": time.time_ns() // 1000,
        }
        self._send(topics.TRADES, trade, self.symbol)

    def _send(self, topic: str, record: dict[str, Any], key: str) -> None:
        self._producer.produce(topic, orjson.dumps(record), key=key)
        assert self._producer.flush(30) == 0
