"""The accounts of the demo: who they are, what they deposit, and the positions they open with. Drawn from a seed.

Public market data names no accounts, so these are invented: market makers with deep collateral, an insurance fund, and
traders from careful to nearly liquidated, cross and isolated, long and short.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from streams.demo.market import BORROWED_AGAINST, BORROWED_AGAINST_SYMBOL, SETTLE_ASSET, TAKER_FEE, Market
from streams.margin.group import Group, Position
from streams.margin.health import evaluate
from streams.margin.parameters import RiskParameters

MARKET_MAKERS = 8
MAKER_DEPOSIT = Decimal(500_000_000)
NOTIONAL_MEDIAN, NOTIONAL_SIGMA = 6_000, 1.1
NOTIONAL_MIN, NOTIONAL_MAX = 400, 400_000
ISOLATED_SHARE, BOTH_SYMBOLS_SHARE, LONG_SHARE, BTC_COLLATERAL_SHARE = 0.25, 0.35, 0.55, 0.1

LEVERAGE_MIN, LEVERAGE_MAX = 2.0, 50.0
STRESSED_SHARE = 0.2
STRESSED_RATIO_MIN, STRESSED_RATIO_MAX = 1.02, 2.4
"""A fifth of the traders stand close to liquidation when the recording begins, as after a bad day: their collateral is
this many times their maintenance margin. The rest have a leverage between the two figures above."""


@dataclass(frozen=True, slots=True)
class Deposit:
    """``margin`` is ``cross`` or the symbol of the isolated position it backs."""

    account: str
    margin: str
    asset: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class OpeningTrade:
    """An opening position; ``quantity`` is signed, ``isolated`` says which book it goes into."""

    account: str
    symbol: str
    quantity: Decimal
    isolated: bool


@dataclass
class Population:
    """Everyone. ``isolated`` maps the traders that trade one symbol in an isolated book to it."""

    makers: list[str] = field(default_factory=list)
    fund: str = ""
    traders: list[str] = field(default_factory=list)
    isolated: dict[str, str] = field(default_factory=dict)
    deposits: list[Deposit] = field(default_factory=list)
    openings: list[OpeningTrade] = field(default_factory=list)

    @property
    def accounts(self) -> list[str]:
        return [*self.makers, self.fund, *self.traders]


def draw_population(market: Market, prices: Mapping[str, Decimal], *, size: int, seed: int, prefix: str) -> Population:
    """``size`` traders with positions at ``prices``, and the accounts they trade against. Same seed, same people."""
    rng = random.Random(seed)
    people = Population(fund=f"{prefix}fund")
    people.makers = [f"{prefix}maker-{number}" for number in range(MARKET_MAKERS)]
    for account in [*people.makers, people.fund]:
        people.deposits.append(Deposit(account, "cross", SETTLE_ASSET, MAKER_DEPOSIT))
    rules = RiskParameters.build(market.parameters)
    for number in range(size):
        _draw_trader(f"{prefix}{number:05d}", market, rules, prices, rng, people)
    return people


def _draw_trader(
    account: str,
    market: Market,
    rules: RiskParameters,
    prices: Mapping[str, Decimal],
    rng: random.Random,
    people: Population,
) -> None:
    people.traders.append(account)
    symbols = sorted(market.contracts)
    isolated = rng.random() < ISOLATED_SHARE
    both = not isolated and len(symbols) > 1 and rng.random() < BOTH_SYMBOLS_SHARE
    chosen = symbols if both else [rng.choice(symbols)]
    stressed = rng.random() < STRESSED_SHARE
    margin = Decimal(0)
    positions = []
    for symbol in chosen:
        contract = market.contracts[symbol]
        notional = min(max(rng.lognormvariate(0, NOTIONAL_SIGMA) * NOTIONAL_MEDIAN, NOTIONAL_MIN), NOTIONAL_MAX)
        quantity = Decimal(notional) / prices[symbol]
        quantity = (quantity / contract.quantity_increment).to_integral_value(ROUND_FLOOR) * contract.quantity_increment
        quantity = max(quantity, contract.quantity_increment)
        value = quantity * prices[symbol]
        leverage = min(Decimal(rng.uniform(LEVERAGE_MIN, LEVERAGE_MAX)), contract.leverage_max / 2)
        margin += value * (TAKER_FEE if stressed else 1 / leverage + TAKER_FEE)
        signed = quantity if rng.random() < LONG_SHARE else -quantity
        positions.append(Position(symbol, signed, -signed * prices[symbol]))
        people.openings.append(OpeningTrade(account, symbol, signed, isolated))
    if stressed:
        due = evaluate(Group(account, "cross", {}, tuple(positions)), prices, rules).maintenance_margin
        margin += due * Decimal(rng.uniform(STRESSED_RATIO_MIN, STRESSED_RATIO_MAX))
    book = chosen[0] if isolated else "cross"
    if isolated:
        people.isolated[account] = chosen[0]
    amount = margin.quantize(Decimal("0.01"), rounding=ROUND_CEILING)
    if not isolated and market.borrowing and rng.random() < BTC_COLLATERAL_SHARE:
        coins = (amount / prices[BORROWED_AGAINST_SYMBOL]).quantize(Decimal("1e-8"), rounding=ROUND_CEILING)
        people.deposits.append(Deposit(account, book, BORROWED_AGAINST, coins))
        amount = (amount / 10).quantize(Decimal("0.01"), rounding=ROUND_CEILING)
    people.deposits.append(Deposit(account, book, SETTLE_ASSET, amount))
