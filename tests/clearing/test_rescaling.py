"""Changing the number of shards under trades, liquidations and faults: nobody is lost, split, or decided on less than
all there is.

An exchange trades at random and keeps books of its own. Whatever the pipeline is done to, in the end every account has
one row, in the shard that the layout names, and holds what the books say; the commands and alerts of each are numbered
without a gap or a repeat.
"""

import itertools
from collections import Counter, defaultdict
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from schemas.partitioning import home_of
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, JOURNAL, PARAMETERS, PRICES, REPORTS, TRADES, TRANSFERS
from streams.memory.pipeline import Pipeline, WrittenRecord
from streams.rescaling.rescaling import RescalePlan, Rescaling

NAMES = [f"account-{number}" for number in range(40)]
MAKER = "maker"
SYMBOLS = ("BTC-PERP", "ETH-PERP", "SOL-PERP")
STEP_MS = 40
SHARDS = 4
PROCESSES = ("router:0", "router:1", "engine:0", "engine:1")

_GIVEN: list[dict[str, Any]] = [
    {"type": "asset", "asset": "USDC", "decimals": 6},
    {"type": "policy", "liquidation_buffer_rate": "0.002", "margin_call_levels": ["1.5", "1.2"]},
    *(
        {
            "type": "instrument",
            "symbol": symbol,
            "settle_asset": "USDC",
            "price_increment": "0.1",
            "quantity_increment": "0.001",
            "margin_tiers": [{"notional_floor": "0", "maintenance_rate": "0.05", "initial_rate": "0.1"}],
            "liquidation_fee": "0.005",
            "insurance_fee": "0.001",
        }
        for symbol in SYMBOLS
    ),
    *({"type": "oracle", "symbol": symbol, "sources": {"a": "1"}, "max_age_ms": 5000} for symbol in SYMBOLS),
]


class Exchange:
    """Trades at random between accounts and a maker, executes commands, and keeps its books."""

    def __init__(self, pipeline: Pipeline, random: Random) -> None:
        self.pipeline = pipeline
        self.random = random
        self.held: dict[str, Counter[str]] = defaultdict(Counter)
        self.worth: dict[str, Decimal] = defaultdict(Decimal)
        self.prices = dict.fromkeys(SYMBOLS, Decimal(1000))
        self.commands: list[dict[str, Any]] = []
        self.alerts: list[dict[str, Any]] = []
        self.rows: dict[tuple[int, str], Any] = {}
        self.paid: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self.pools: dict[int, dict[str, dict[str, str]]] = {}
        """What each journal says that its shard has given to the pools."""
        self._sequences: Counter[str] = Counter()
        self._trade_ids: Counter[str] = Counter()
        for given in _GIVEN:
            pipeline.send(PARAMETERS, given)
        for name in (*NAMES, MAKER):
            self.deposit(name, Decimal(10_000_000 if name == MAKER else random.randrange(100, 400)))

    def deposit(self, account: str, amount: Decimal) -> None:
        self._sequences[account] += 1
        number = self._sequences[account]
        self.worth[account] += amount
        self.pipeline.send(
            TRANSFERS,
            {
                "transfer_id": f"{account}-{number}",
                "account": account,
                "asset": "USDC",
                "amount": str(amount),
                "sequence": number,
                "event_time_ms": int(self.pipeline.now_ms),
            },
        )

    def trade(self, account: str, symbol: str, signed: Decimal, order_id: str = "o") -> None:
        price = self.prices[symbol]
        self._trade_ids[symbol] += 1
        for name, quantity in ((account, signed), (MAKER, -signed)):
            self.held[name][symbol] += quantity  # type: ignore[assignment]
            self.worth[name] -= quantity * price
        side = {"fee": "0", "margin": "cross"}
        self.pipeline.send(
            TRADES,
            {
                "trade_id": self._trade_ids[symbol],
                "symbol": symbol,
                "price": str(price),
                "quantity": str(abs(signed)),
                "aggressor_side": "buy" if signed > 0 else "sell",
                "maker": {"account": MAKER, "order_id": "m", **side},
                "taker": {"account": account, "order_id": order_id, **side},
                "event_time_ms": int(self.pipeline.now_ms),
            },
        )

    def go_on(self) -> None:
        """One step: prices move, somebody trades or deposits, commands are executed, time passes."""
        random = self.random
        for symbol in SYMBOLS:
            self.prices[symbol] = (self.prices[symbol] * Decimal(random.choice(("0.99", "1", "1.01")))).quantize(
                Decimal("0.1")
            )
            self._quote(symbol)
        for name in random.sample(NAMES, 3):
            if random.random() < 0.2:
                self.deposit(name, Decimal(random.randrange(1, 30)))
            else:
                self.trade(name, random.choice(SYMBOLS), Decimal(random.randrange(-2_000, 2_001) or 1) / 1000)
        self.rest()

    def rest(self) -> None:
        """Let time pass; what is commanded meanwhile is executed."""
        for symbol in SYMBOLS:
            self._quote(symbol)
        self.pipeline.advance(STEP_MS)
        for record in self.pipeline.take():
            self._see(record)

    def _quote(self, symbol: str) -> None:
        self._sequences[symbol] += 1
        self.pipeline.send(
            PRICES,
            {
                "source": "a",
                "symbol": symbol,
                "price": str(self.prices[symbol]),
                "sequence": self._sequences[symbol],
                "publish_time_ms": int(self.pipeline.now_ms),
            },
        )

    def _see(self, record: WrittenRecord) -> None:
        if record.topic == COMMANDS:
            self.commands.append(record.value)
            self._execute(record.value)
        elif record.topic == ALERTS:
            self.alerts.append(record.value)
            if (fees := record.value.get("fees")) is not None:
                paid = Decimal(fees["liquidation_fee"]) + Decimal(fees["insurance_fee"])
                self.worth[record.value["account"]] -= paid
                self.paid[fees["pool"], fees["asset"]] += paid
        elif record.topic == JOURNAL:
            self.pools[record.partition] = record.value.get("pools", {})
        elif record.topic == ACCOUNTS:
            assert record.key is not None
            if record.value is None:
                self.rows.pop((record.partition, record.key), None)
            else:
                self.rows[record.partition, record.key] = record.value

    def _execute(self, command: dict[str, Any]) -> None:
        for order in command["orders"]:
            quantity = Decimal(order["quantity"])
            signed = quantity if order["order_side"] == "buy" else -quantity
            self.trade(command["account"], order["symbol"], signed, order["order_id"])
            self.pipeline.send(
                REPORTS,
                {
                    "command_id": command["command_id"],
                    "order_id": order["order_id"],
                    "account": command["account"],
                    "status": "filled",
                    "filled_quantity": str(quantity),
                    "event_time_ms": int(self.pipeline.now_ms),
                },
            )

    # --- what must hold ----------------------------------------------------------------------------------------------

    def check(self, shards: int) -> None:
        """Everything is where it belongs and as the books say."""
        layout = self.pipeline.layout
        assert (layout.shards, layout.is_moving) == (shards, False)
        assert [broken.error for broken in self.pipeline.broken] == []
        homes = {(home_of(name, layout.spread), name) for name in (*NAMES, MAKER)}
        assert set(self.rows) == homes
        for (_, name), row in self.rows.items():
            assert row["status"] in ("normal", "margin_call", "insolvent"), row
            groups = row["groups"]
            worth = sum((Decimal(amount) for group in groups for amount in group["balances"].values()), Decimal())
            worth += sum((Decimal(p["cash"]) for group in groups for p in group["positions"]), Decimal())
            held = {p["symbol"]: Decimal(p["quantity"]) for group in groups for p in group["positions"]}
            assert held == {symbol: quantity for symbol, quantity in self.held[name].items() if quantity}, name
            assert worth == self.worth[name], name
        given: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        for pools in self.pools.values():
            for pool, amounts in pools.items():
                for asset, amount in amounts.items():
                    given[pool, asset] += Decimal(amount)
        assert given == {at: paid for at, paid in self.paid.items() if paid}, (
            "what accounts have paid is what the shards have given to the pools"
        )
        assert _gaps(command["command_id"] for command in self.commands) == []
        assert _gaps(alert["alert_id"] for alert in self.alerts) == []
        assert {alert["kind"] for alert in self.alerts} <= EXPECTED_ALERTS, self.alerts


EXPECTED_ALERTS = {
    "margin_call",
    "margin_call_cleared",
    "liquidation_started",
    "liquidation_completed",
    "undecided",
    "undecided_cleared",
    "input_behind",
    "input_behind_cleared",
    "clock_skew",
    "clock_skew_cleared",
    "bankrupt",
    "insolvent",
    "command_expired",
    "fill_mismatch",
    "liquidation_fee",
    "late_fill",  # of an order whose command had expired when it was filled
}


def _gaps(identifiers: Any) -> list[str]:
    """The ids after which their account's numbers have a gap or a repeat."""
    last: Counter[str] = Counter()
    wrong: list[str] = []
    for identifier in identifiers:
        name, _, number = identifier.rpartition(":")
        if int(number) != last[name] + 1:
            wrong.append(identifier)
        last[name] = int(number)
    return wrong


def run(seed: int, targets: list[int], *, faults: float = 0.0) -> Exchange:
    """A life with changes to ``targets`` one after the other, ended when everything has come to rest."""
    random = Random(seed)
    with Pipeline(shards=SHARDS, partitions=3, routers=2, engines=2) as pipeline:
        exchange = Exchange(pipeline, random)
        for _ in range(random.randrange(20, 60)):
            exchange.go_on()
        for number, target in enumerate(targets):
            pipeline.rescale(target)
            for step in itertools.count():
                if random.random() < faults and step < 400:
                    worker = random.choice((*PROCESSES, f"rescaler:{number}"))
                    if random.random() < 0.5:
                        pipeline.kill(worker)
                    else:
                        pipeline.freeze(worker, random.randrange(100, 6_000))
                exchange.go_on()
                layout = pipeline.layout
                if layout.shards == target and not layout.is_moving:
                    break
                assert step < 4_000, f"no end after {step} steps: {layout}"
        for _ in range(1_000):
            exchange.rest()
        exchange.check(targets[-1])
        return exchange


@pytest.mark.parametrize("target", [1, 3, 5, 7, 8])
def test_accounts_move_to_any_number_of_shards(target: int) -> None:
    exchange = run(target, [target])
    assert exchange.commands, "nobody was liquidated"


def test_accounts_move_again_and_again() -> None:
    run(1, [7, 16, 4])


def test_a_plan_counts_accounts_that_have_come_back_to_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[RescalePlan] = []
    begin = Rescaling.begin

    def begun(rescaling: Rescaling, plan: RescalePlan) -> None:
        plans.append(plan)
        begin(rescaling, plan)

    monkeypatch.setattr(Rescaling, "begin", begun)
    run(1, [7, 4, 5])
    assert [plan.rows for plan in plans] == [len(NAMES) + 1] * 3


def test_it_is_said_what_the_accounts_of_a_step_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[int, set[str]] = defaultdict(set)
    advance = Rescaling.advance

    def advanced(rescaling: Rescaling) -> list[str]:
        step, waits = rescaling.layout.spread.step, advance(rescaling)
        said[step].update(waits)
        return waits

    monkeypatch.setattr(Rescaling, "advance", advanced)
    with Pipeline(shards=SHARDS, partitions=3, routers=2, engines=2) as pipeline:
        exchange = Exchange(pipeline, Random(1))
        for _ in range(20):
            exchange.go_on()
        pipeline.rescale(5)
        for step, worker in enumerate(("engine:0", "router:0"), 1):
            while pipeline.layout.step != step:
                assert pipeline.now_ms < 60_000
                pipeline.advance(1)
            pipeline.freeze(worker, 3_000)
        for _ in range(200):
            exchange.rest()
        exchange.check(5)
    assert "shard 4: no engine has taken it yet (is there one of this version that runs?)" in said[0]
    untold = "shard 0 has not been told yet to send accounts to shard 1 (does an engine run that has it?)"
    sent = "shard 0 has sent the accounts that go to shard 1 with step 1, and shard 1 has not said yet"
    assert untold in said[1]
    assert any(wait.startswith(sent) for wait in said[1])
    unrouted = "shard 0: the accounts that go to shard 2 with step 2 wait until routers confirm that they route "
    assert any(wait.startswith(unrouted) for wait in said[2])


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_lost_or_done_twice_whatever_ends_or_stands_still(seed: int) -> None:
    run(100 + seed, [7, 3], faults=0.05)


def test_an_account_is_not_decided_without_rows_that_its_next_shard_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends when routers have been told where accounts go, and shards have not; it is typed again."""
    monkeypatch.setattr(Rescaling, "_tell_departures", lambda *_: None)
    with Pipeline(shards=SHARDS, partitions=3, routers=2, engines=2) as pipeline:
        exchange = Exchange(pipeline, Random(1))
        for _ in range(20):
            exchange.rest()
        for name in NAMES:
            exchange.trade(name, "BTC-PERP", exchange.worth[name] * 4 / 1000)
        for _ in range(20):
            exchange.rest()
        pipeline.rescale(5)
        while not pipeline.layout.step:
            assert pipeline.now_ms < 60_000
            pipeline.advance(1)
        for _ in range(10):
            exchange.rest()
        for name in NAMES:
            exchange.deposit(name, Decimal(10_000))
        for _ in range(10):
            exchange.rest()
        exchange.prices["BTC-PERP"] = Decimal(760)
        for _ in range(160):  # the oracle waits before it believes a jump
            exchange.rest()
        assert pipeline.layout.step == 1, "accounts have moved already"
        assert exchange.commands == [], "whoever was liquidated had a deposit that was acknowledged long before"
        monkeypatch.undo()
        pipeline.kill("rescaler:0")
        for _ in range(600):
            exchange.rest()
        exchange.check(5)
        assert exchange.commands == []
