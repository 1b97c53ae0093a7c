"""The whole pipeline as its users meet it: records in on the exchange's topics, commands out, state in Redis."""

import itertools
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import redis

from schemas import topics
from schemas.partitioning import shard_of
from tests.integration.conftest import Pipeline, Topic, eventually, now_us

_market = itertools.count(1)
_ids = itertools.count(1)


def instrument(symbol: str) -> dict[str, Any]:
    return {
        "type": "instrument",
        "symbol": symbol,
        "settle_asset": "USDC",
        "price_increment": "0.01",
        "quantity_increment": "0.01",
        "margin_tiers": [{"notional_floor": "0", "maintenance_rate": "0.05", "initial_rate": "0.1"}],
        "liquidation_fee": "0.005",
        "insurance_fee": "0.001",
        "version": 1,
    }


class Market:
    """A symbol of its own, so that tests on the shared broker do not meet."""

    def __init__(self, pipeline: Pipeline, price: str = "100") -> None:
        number = next(_market)
        self.pipeline = pipeline
        self.symbol = f"T{number}X{os.getpid()}-PERP"
        self.alice, self.bob = f"alice-{os.getpid()}-{number}", f"bob-{os.getpid()}-{number}"
        self.trade_id = 0
        self.sequence = 0
        self.commands = pipeline.reader(topics.COMMANDS)
        self.alerts = pipeline.reader(topics.ALERTS)
        self.marks = pipeline.reader(topics.MARKS)
        self.accounts = pipeline.reader(topics.ACCOUNTS)
        self.parameters()
        self.price(price)

    def parameters(self) -> None:
        records: list[dict[str, Any]] = [
            {"type": "asset", "asset": "USDC", "decimals": 6, "price_symbol": None, "version": 1},
            {"type": "policy", "liquidation_buffer_rate": "0.002", "command_ttl_ms": 60000, "version": 1},
            instrument(self.symbol),
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
            self.pipeline.send(topics.PARAMETERS, record, key=f"{record['type']}:{name}")
        self.pipeline.flush()

    def list_symbol(self, symbol: str) -> None:
        """Another instrument, without a price."""
        self.pipeline.send(topics.PARAMETERS, instrument(symbol), key=f"instrument:{symbol}")
        self.pipeline.flush()

    def price(self, price: str) -> None:
        """Both sources say ``price``; returns when the mark does."""

        def published() -> bool:
            self.sequence += 1
            for source in ("one", "two"):
                self.pipeline.send(
                    topics.PRICES,
                    {
                        "source": source,
                        "symbol": self.symbol,
                        "price": price,
                        "sequence": self.sequence,
                        "publish_time": now_us(),
                    },
                    key=self.symbol,
                )
            self.pipeline.flush()
            return any(
                mark["symbol"] == self.symbol and mark["price"] == price and mark["status"] == "live"
                for frame in self.marks.values()
                for mark in frame["marks"]
            )

        eventually(published, f"mark of {self.symbol} at {price}")

    def deposit(self, account: str, amount: str, sequence: int = 1) -> None:
        self.pipeline.send(topics.TRANSFERS, transfer(account, amount, sequence), key=account)
        self.pipeline.flush()

    def trade(self, buyer: str, seller: str, quantity: str, price: str, *, order_id: str = "o", **changes: Any) -> None:
        self.trade_id += 1
        record = {
            "trade_id": self.trade_id,
            "symbol": self.symbol,
            "price": price,
            "quantity": quantity,
            "aggressor_side": "buy",
            "maker": {"account": seller, "order_id": order_id, "fee": "0"},
            "taker": {"account": buyer, "order_id": order_id, "fee": "0.01"},
            "event_time": now_us(),
        } | changes
        self.pipeline.send(topics.TRADES, record, key=self.symbol)
        self.pipeline.flush()

    def row(self, account: str) -> dict[str, Any] | None:
        rows = self.accounts.values(account=account)
        return rows[-1] if rows else None

    def wait_for_position(self, account: str, quantity: str | None) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            self.pipeline.assert_running()
            row = self.row(account)
            if row is None:
                return None
            held = {p["symbol"]: p["quantity"] for group in row["groups"] for p in group["positions"]}
            return row if held.get(self.symbol) == quantity else None

        position: dict[str, Any] = eventually(reached, f"{account} holds {quantity} {self.symbol}")
        return position


def transfer(account: str, amount: str, sequence: int = 1) -> dict[str, Any]:
    return {
        "transfer_id": f"t-{next(_ids)}",
        "account": account,
        "asset": "USDC",
        "amount": amount,
        "sequence": sequence,
        "margin": "cross",
        "event_time": now_us(),
    }


def leveraged(pipeline: Pipeline) -> Market:
    """Alice long 10 at 100 on 100 of margin, Bob short against her with plenty."""
    market = Market(pipeline)
    market.deposit(market.alice, "100")
    market.deposit(market.bob, "100000")
    market.trade(market.alice, market.bob, "10", "100")
    market.wait_for_position(market.alice, "10")
    market.wait_for_position(market.bob, "-10")
    return market


def one_command(market: Market, account: str, number: int = 1) -> dict[str, Any]:
    def commands_of() -> list[dict[str, Any]]:
        market.pipeline.assert_running()
        return market.commands.values(account=account, sequence=number)

    commands = eventually(commands_of, f"command {number} of {account}")
    assert len(commands) == 1
    command: dict[str, Any] = commands[0]
    return command


def test_a_falling_price_liquidates_exactly_once(pipeline: Pipeline) -> None:
    market = leveraged(pipeline)
    market.price("94")
    command = one_command(market, market.alice)
    assert command["command_id"] == f"{market.alice}:1"
    assert command["stage"] == "reduce"
    assert command["evidence"]["marks"] == {market.symbol: "94"}
    assert command["evidence"]["equity"] == "39.99"
    assert command["evidence"]["maintenance_margin"] == "47"
    assert command["evidence"]["shard"] == shard_of(market.alice, pipeline.settings.topics.shards)
    headers = next(h for _, v, h in market.commands.read() if v and command["command_id"].encode() in v)
    assert headers["ce_id"].decode() == command["command_id"]
    market.price("93.9")
    (order,) = command["orders"]
    market.trade(market.bob, market.alice, order["quantity"], "94", order_id=order["order_id"])
    pipeline.send(
        topics.REPORTS,
        {
            "command_id": command["command_id"],
            "order_id": order["order_id"],
            "account": market.alice,
            "status": "filled",
            "filled_quantity": order["quantity"],
            "average_price": "94",
            "event_time": now_us(),
        },
        key=market.alice,
    )
    pipeline.flush()
    eventually(lambda: market.alerts.values(account=market.alice, kind="liquidation_completed"), "completion")
    assert len(market.commands.values(account=market.alice)) == 1
    assert market.commands.values(account=market.bob) == []


def test_redis_holds_the_changelogs_bytes(pipeline: Pipeline) -> None:
    market = leveraged(pipeline)
    shard = shard_of(market.alice, pipeline.settings.topics.shards)
    client = redis.Redis.from_url(pipeline.settings.redis.url)

    def equal() -> bool:
        last = next(v for k, v, _ in reversed(market.accounts.read()) if k == market.alice.encode())
        return bool(client.hget(f"margin:{{{shard}}}:accounts", market.alice) == last)

    eventually(equal, "the changelog's row in Redis", 20)
    client.close()


def test_the_account_command_shows_an_account(pipeline: Pipeline) -> None:
    market = leveraged(pipeline)

    def shown() -> dict[str, Any] | None:
        done = subprocess.run(
            [sys.executable, "-m", "streams.cli", "account", market.alice, "--json"],
            env={
                **os.environ,
                "MARGIN_KAFKA__BOOTSTRAP_SERVERS": pipeline.settings.kafka.bootstrap_servers,
                "MARGIN_REDIS__URL": pipeline.settings.redis.url,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(done.stdout) if done.returncode == 0 else None

    account = eventually(shown, "the account")
    (group,) = account["groups"]
    assert group["equity"] == "99.99"
    assert group["maintenance_margin"] == "50"
    assert group["positions"][0]["liquidation_price"].startswith("94.737")


def test_the_oracle_remembers_its_prices_over_a_kill(pipeline: Pipeline) -> None:
    market = Market(pipeline)

    def kept() -> bool:
        with redis.Redis.from_url(pipeline.settings.redis.url) as client:
            state = client.hget(f"faust:{{{pipeline.settings.oracle.app_id}:prices}}", market.symbol)
        return state is not None and len(json.loads(state)["sources"]) == 2

    def price_again() -> bool:
        market.price("100")
        return kept()

    eventually(price_again, "the prices in the oracle's Redis table")
    pipeline.oracle.kill()
    pipeline.oracle.restart()
    after = pipeline.reader(topics.MARKS)

    def beats() -> list[dict[str, Any]]:
        return [
            mark
            for frame in after.values()
            if frame["full"]
            for mark in frame["marks"]
            if mark["symbol"] == market.symbol
        ]

    eventually(beats, "a heartbeat with the remembered mark")
    for source in ("one", "two"):
        price = {"source": source, "symbol": market.symbol, "price": "105", "sequence": 1, "publish_time": now_us()}
        pipeline.send(topics.PRICES, price, key=market.symbol)
    pipeline.flush()
    seen = len(beats())
    eventually(lambda: len(beats()) >= seen + 4, "further heartbeats")
    assert {mark["price"] for mark in beats()} == {"100"}, (
        "a repeated sequence counts for nothing, also after a restart"
    )


BAD: dict[str, list[tuple[str, bytes | None]]] = {
    topics.TRADES: [
        ("not JSON", b"{"),
        ("not UTF-8", b"\xff\xfe"),
        ("no value", None),
        ("a list", b"[]"),
        ("fields missing", b'{"trade_id":1}'),
        ("too long", b'"' + b"x" * 1_000_001 + b'"'),
    ],
    topics.TRANSFERS: [("not JSON", b"nope"), ("number for money", b""), ("no value", None)],
    topics.REPORTS: [("not JSON", b"nope"), ("unknown status", b""), ("no value", None)],
    topics.PRICES: [("not JSON", b"nope"), ("negative price", b""), ("no value", None)],
    topics.PARAMETERS: [("not JSON", b"nope"), ("unknown type", b'{"type":"x"}'), ("tiers out of order", b"")],
    topics.EVENTS: [("not a frame", b"nope")],
    topics.MARKS: [("not a frame", b"nope")],
}
VALID_BUT_FOR: dict[tuple[str, str], dict[str, Any]] = {
    (topics.TRANSFERS, "number for money"): {**transfer("x", "1"), "amount": 1},
    (topics.REPORTS, "unknown status"): {
        "command_id": "x:1", "order_id": "x:1:0", "account": "x", "status": "maybe", "event_time": 1,
    },
    (topics.PRICES, "negative price"): {
        "source": "one", "symbol": "X", "price": "-1", "sequence": 1, "publish_time": 1,
    },
    (topics.PARAMETERS, "tiers out of order"): {
        "type": "instrument", "symbol": "BAD-PERP", "settle_asset": "USDC", "price_increment": "1",
        "quantity_increment": "1", "margin_tiers": [
            {"notional_floor": "0", "maintenance_rate": "0.1", "initial_rate": "0.2"},
            {"notional_floor": "10", "maintenance_rate": "0.05", "initial_rate": "0.2"},
        ],
    },
}  # fmt: skip
CASES = [(topic, name, value) for topic, cases in BAD.items() for name, value in cases]


@pytest.mark.parametrize(("topic", "name", "value"), CASES, ids=[f"{t}-{n}" for t, n, _ in CASES])
def test_bad_input_goes_to_the_dead_letters_as_it_came(
    pipeline: Pipeline, topic: str, name: str, value: bytes | None
) -> None:
    letters = pipeline.reader(topics.dead_letter_topic(topic))
    given = json.dumps(VALID_BUT_FOR[topic, name]).encode() if (topic, name) in VALID_BUT_FOR else value
    key = f"bad-{next(_ids)}-{os.getpid()}"
    pipeline.send(topic, given, key=key)
    pipeline.flush()

    def arrived() -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]:
        pipeline.assert_running()
        return [record for record in letters.read() if record[0] == key.encode()]

    ((_, kept, headers),) = eventually(arrived, f"dead letter of {topic}: {name}")
    assert kept == given
    assert headers["dlq.topic"].decode() == topic
    assert headers["dlq.reason"]
    assert headers["dlq.error"]
    assert int(headers["dlq.offset"]) >= 0


def test_nothing_valid_is_lost_among_bad_input(pipeline: Pipeline) -> None:
    market = Market(pipeline)
    market.deposit(market.alice, "100")
    for _ in range(20):
        pipeline.send(topics.TRADES, b"garbage", key=market.symbol)
        market.trade(market.alice, market.bob, "0.5", "100")
        pipeline.send(topics.TRANSFERS, b"garbage", key=market.alice)
    pipeline.flush()
    market.wait_for_position(market.alice, "10")
    market.wait_for_position(market.bob, "-10")


def test_an_unknown_symbol_suspends_the_account_and_keeps_the_event_until_it_is_known(pipeline: Pipeline) -> None:
    market = leveraged(pipeline)
    control, later = f"control-{market.alice}", f"LATER{os.getpid()}-PERP"
    market.deposit(control, "100")
    market.trade(control, market.bob, "10", "100")
    market.wait_for_position(control, "10")
    market.trade(market.alice, f"other-{market.bob}", "1", "100", symbol=later)
    eventually(lambda: market.alerts.values(account=market.alice, kind="suspended"), "suspension")
    row = market.row(market.alice)
    assert row is not None
    assert [(fill["symbol"], fill["quantity"]) for fill in row["waiting_fills"]] == [(later, "1")]
    market.price("94")
    one_command(market, control)
    assert market.commands.values(account=market.alice) == [], "not liquidated on a state known to be wrong"
    market.list_symbol(later)
    eventually(lambda: market.alerts.values(account=market.alice, kind="resumed"), "end of the suspension")


def test_a_deposit_of_an_unknown_asset_waits_and_the_account_is_liquidated_as_ever(pipeline: Pipeline) -> None:
    market = leveraged(pipeline)
    asset = f"A{os.getpid()}"
    pipeline.send(topics.TRANSFERS, transfer(market.alice, "5", 2) | {"asset": asset}, key=market.alice)
    pipeline.flush()
    eventually(lambda: market.alerts.values(account=market.alice, kind="credit_parked"), "the parked credit")
    market.price("94")
    one_command(market, market.alice)
    pipeline.engine.kill()
    pipeline.engine.restart()
    record = {"type": "asset", "asset": asset, "decimals": 2, "version": 1}
    pipeline.send(topics.PARAMETERS, record, key=f"asset:{asset}")
    pipeline.flush()
    eventually(lambda: market.alerts.values(account=market.alice, kind="credit_applied"), "the credit")
    row = market.row(market.alice)
    assert row is not None
    assert row["groups"][0]["balances"][asset] == "5"


def test_an_overtaken_transfer_is_applied(pipeline: Pipeline) -> None:
    market = Market(pipeline)
    for sequence, amount in ((2, "10"), (1, "90"), (2, "10"), (1, "90")):
        market.deposit(market.alice, amount, sequence)
    market.trade(market.alice, market.bob, "1", "100")
    row = market.wait_for_position(market.alice, "1")
    assert row["groups"][0]["balances"] == {"USDC": "99.99"}


def test_an_engine_killed_at_any_time_neither_loses_nor_repeats(pipeline: Pipeline) -> None:
    market = leveraged(pipeline)
    pipeline.engine.kill()
    for _ in range(50):
        market.trade(market.alice, market.bob, "0.1", "100")
    pipeline.engine.restart()
    market.wait_for_position(market.alice, "15")
    market.price("94")
    one_command(market, market.alice)
    pipeline.engine.kill()
    pipeline.engine.restart()
    market.trade(market.alice, market.bob, "0.01", "94")
    market.wait_for_position(market.alice, "15.01")
    assert len(market.commands.values(account=market.alice)) == 1


def test_sigterm_drains_and_leaves_cleanly(pipeline: Pipeline) -> None:
    for role in (pipeline.router, pipeline.oracle, pipeline.engine):
        assert role.stop() == 0, role.log()[-3000:]
        role.restart()
    market = leveraged(pipeline)
    market.price("94")
    one_command(market, market.alice)


def test_readers_see_no_topic_that_is_not_in_the_contract(pipeline: Pipeline) -> None:
    known = {topic.name for topic in topics.all_topics()} | {"__consumer_offsets", "__transaction_state"}
    assert set(Topic(pipeline.settings, topics.MARKS).all_topics()) <= known
