"""What the margin tests share: how a hypothetical book of a trader, its rules and its marks are drawn."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from typing import Any

from hypothesis import strategies as st

from schemas.parameters import (
    AssetParameters,
    CollateralTier,
    InstrumentParameters,
    MarginTier,
    Parameter,
    PolicyParameters,
    ScanOffset,
)
from streams.margin.fixed_point import EXACT, format_decimal
from streams.margin.group import Group, Position
from streams.margin.health import Health, evaluate
from streams.margin.parameters import RiskParameters
from streams.margin.plan import Plan, make_plan
from streams.margin.rules import SCENARIOS
from streams.margin.valuation import price_of

SYMBOLS = ("A-PERP", "B-PERP", "C-PERP")
"""A and B settle in USD, C in EUR. BTC is collateral priced by A-PERP itself, EUR is priced by EUR-USD."""


@dataclass(frozen=True)
class Book:
    """One group with everything needed to judge it."""

    parameters: RiskParameters
    group: Group
    marks: Mapping[str, Decimal]

    def at(self, symbol: str, mark: Decimal) -> dict[str, Decimal]:
        """The marks with one of them replaced."""
        return {**self.marks, symbol: mark}


def rules(
    *,
    tiers: Any = ((0, "0.05", "0.1"),),
    buffer: str = "0",
    liquidation_fee: str = "0",
    insurance_fee: str = "0",
    price_increment: str = "0.01",
    quantity_increment: str = "0.001",
    max_order_notional: str | None = None,
    symbol: str = "X-PERP",
    more: tuple[Parameter, ...] = (),
    **fields: Any,
) -> RiskParameters:
    """One instrument settled in plain USD, and what ``more`` adds."""
    instrument = InstrumentParameters(
        symbol=symbol,
        settle_asset="USD",
        price_increment=price_increment,
        quantity_increment=quantity_increment,
        margin_tiers=tuple(
            MarginTier(notional_floor=str(floor), maintenance_rate=rate, initial_rate=initial)
            for floor, rate, initial in tiers
        ),
        liquidation_fee=liquidation_fee,
        insurance_fee=insurance_fee,
        max_order_notional=max_order_notional,
        **fields,
    )
    policy = PolicyParameters(liquidation_buffer_rate=buffer, limit_ladder=("1",))
    return RiskParameters.build([AssetParameters(asset="USD"), policy, instrument, *more])


def group(balances: Mapping[str, str], *positions: tuple[str, str, str]) -> Group:
    """A cross group; a position is (symbol, quantity, entry price)."""
    with localcontext(EXACT):
        return Group(
            "a",
            "cross",
            {asset: Decimal(amount) for asset, amount in balances.items()},
            tuple(
                Position(symbol, Decimal(quantity), -Decimal(quantity) * Decimal(entry))
                for symbol, quantity, entry in positions
            ),
        )


def planned(
    group: Group,
    marks: Mapping[str, Decimal],
    parameters: RiskParameters,
    *,
    stale: Collection[str] = frozenset(),
    attempt: int = 0,
) -> Plan:
    """The plan of ``group`` by the verdict at the same marks."""
    health = evaluate(group, marks, parameters, stale=stale)
    return make_plan(group, health, marks, parameters, stale=stale, attempt=attempt)


def left_after_fees(book: Book, health: Health, *, conversions: bool = False) -> Decimal:
    """The unweighted equity less the fees of closing every position with a live mark; of converting everything, too."""
    with localcontext(EXACT):
        left = health.unweighted_equity
        for part in health.positions:
            left -= part.notional * book.parameters.instruments[part.symbol].fees
        for asset, amount in book.group.balances.items() if conversions else ():
            rules = book.parameters.assets[asset]
            left -= abs(amount) * price_of(rules, book.marks) * (rules.liquidation_fee or 0)
        return left


def collateral_value(
    balances: Mapping[str, Decimal], marks: Mapping[str, Decimal], parameters: RiskParameters
) -> Decimal:
    """What ``balances`` count for in equity."""
    return evaluate(Group("", "", balances, ()), marks, parameters).equity


def value_less_margin(book: Book, marks: Mapping[str, Decimal]) -> Decimal:
    """Equity less maintenance margin."""
    from streams.margin.health import evaluate

    health = evaluate(book.group, marks, book.parameters)
    with localcontext(EXACT):
        return health.equity - health.maintenance_margin


def closed(book: Book, quantities: Mapping[str, Decimal], prices: Mapping[str, Decimal], *, fees: bool) -> Group:
    """The group after closing ``quantities`` at ``prices``, by the ledger's own rules."""
    balances = dict(book.group.balances)
    positions = []
    with localcontext(EXACT):
        for position in book.group.positions:
            instrument = book.parameters.instruments[position.symbol]
            amount = quantities.get(position.symbol, Decimal(0))
            side = 1 if position.quantity > 0 else -1
            price = prices.get(position.symbol, Decimal(0))
            left, cash = position.quantity - side * amount, position.cash + side * amount * price
            paid = amount * price * instrument.fees if fees else Decimal(0)
            if not left:
                paid, cash = paid - cash, Decimal(0)
            balances[instrument.settle_asset] = balances.get(instrument.settle_asset, Decimal(0)) - paid
            if left:
                positions.append(replace(position, quantity=left, cash=cash))
    return replace(book.group, balances=balances, positions=tuple(positions))


# --- strategies ------------------------------------------------------------------------------------------------------


def decimals(low: str, high: str, places: int) -> st.SearchStrategy[Decimal]:
    """Multiples of 10**-places from ``low`` to ``high``."""
    scale = 10**places
    return st.integers(int(Decimal(low) * scale), int(Decimal(high) * scale)).map(
        lambda units: Decimal(units).scaleb(-places)
    )


@st.composite
def margin_tiers(draw: st.DrawFn) -> tuple[MarginTier, ...]:
    """One to four tiers that pass validation."""
    count = draw(st.integers(1, 4))
    floors = [0, *sorted(draw(st.lists(st.integers(1, 400), min_size=count - 1, max_size=count - 1, unique=True)))]
    rates = sorted(draw(st.lists(decimals("0.004", "0.4", 4), min_size=count, max_size=count)))
    return tuple(
        MarginTier(
            notional_floor=str(floor * 1000), maintenance_rate=format(rate, "f"), initial_rate=format(2 * rate, "f")
        )
        for floor, rate in zip(floors, rates, strict=True)
    )


@st.composite
def collateral_tiers(draw: st.DrawFn) -> tuple[CollateralTier, ...]:
    """One to three tiers of falling weight."""
    count = draw(st.integers(1, 3))
    floors = [0, *sorted(draw(st.lists(st.integers(1, 50), min_size=count - 1, max_size=count - 1, unique=True)))]
    weights = sorted(draw(st.lists(decimals("0", "1", 2), min_size=count, max_size=count)), reverse=True)
    return tuple(
        CollateralTier(quantity_floor=str(floor), weight=format(weight, "f"))
        for floor, weight in zip(floors, weights, strict=True)
    )


@st.composite
def scan_fields(draw: st.DrawFn) -> dict[str, Any]:
    """How portfolio margin sees an instrument: alone, in a group, by its own array, or not at all."""
    if not draw(st.integers(0, 3)):
        return {}
    fields: dict[str, Any] = {
        "scan_group": draw(st.sampled_from([None, "G", "H"])),
        "scan_range": str(draw(decimals("0.01", "0.3", 2))),
        "scan_floor_rate": str(draw(decimals("0.001", "0.02", 3))),
    }
    if not draw(st.integers(0, 3)):
        profits = draw(st.lists(decimals("-0.3", "0.3", 2).map(str), min_size=SCENARIOS, max_size=SCENARIOS))
        fields["scan_array"] = tuple(profits)
    return fields


@st.composite
def parameter_sets(draw: st.DrawFn, *, plain: bool = False) -> RiskParameters:
    """Rules of the three symbols; account ``a`` may be under portfolio margin.

    ``plain``: USD and EUR count at weight 1, whether credit or debt.
    """
    fees = decimals("0", "0.02", 3).map(str)
    scanned = draw(st.booleans())
    instruments = [
        InstrumentParameters(
            symbol=symbol,
            settle_asset="EUR" if symbol == "C-PERP" else "USD",
            price_increment=draw(st.sampled_from(["0.01", "0.5", "0.1"])),
            quantity_increment=draw(st.sampled_from(["0.001", "0.01", "1"])),
            margin_tiers=draw(margin_tiers()),
            liquidation_fee=draw(fees),
            insurance_fee=draw(fees),
            **(draw(scan_fields()) if scanned else {}),
        )
        for symbol in SYMBOLS
    ]
    weight = st.sampled_from(["1", "1.05", "1.2"])
    cash: dict[str, Any] = (
        {} if plain else {"collateral_tiers": draw(collateral_tiers()), "liability_weight": draw(weight)}
    )
    assets = [
        AssetParameters(asset="USD", **cash),
        AssetParameters(asset="EUR", price_symbol="EUR-USD", **cash),
        AssetParameters(
            asset="BTC", price_symbol="A-PERP", collateral_tiers=draw(collateral_tiers()), liability_weight=draw(weight)
        ),
    ]
    policy = PolicyParameters(
        liquidation_buffer_rate=str(draw(decimals("0", "0.02", 3))),
        portfolio_margin_accounts=("a",) if scanned else (),
        scan_offsets=(ScanOffset(first="G", second="H", rate=str(draw(decimals("0", "1", 2)))),),
        limit_ladder=("1",),
    )
    return RiskParameters.build([*instruments, *assets, policy])


@st.composite
def books(draw: st.DrawFn, *, plain: bool = False, positions_min: int = 1) -> Book:
    """A group with at least ``positions_min`` positions, solvent or not, and marks for all it needs."""
    parameters = draw(parameter_sets(plain=plain))
    marks = {symbol: draw(decimals("1", "2000", 2)) for symbol in SYMBOLS}
    marks["EUR-USD"] = draw(decimals("0.5", "2", 4))
    held = draw(st.lists(st.sampled_from(SYMBOLS), min_size=positions_min, max_size=3, unique=True))
    positions = []
    with localcontext(EXACT):
        for symbol in sorted(held):
            increment = parameters.instruments[symbol].quantity_increment
            lots = draw(st.integers(1, int(Decimal(1000) / increment))) * draw(st.sampled_from([1, -1]))
            entry = draw(decimals("1", "2000", 2))
            positions.append(Position(symbol, lots * increment, -lots * increment * entry))
    balances = {
        asset: amount
        for asset, bound in (("USD", "300000"), ("EUR", "100000"), ("BTC", "100"))
        if (amount := draw(st.just(Decimal(0)) | decimals(f"-{bound}", bound, 2)))
    }
    return Book(parameters, Group("a", "cross", balances, tuple(positions)), marks)


@st.composite
def underwater(draw: st.DrawFn, *, plain: bool = False, positions_min: int = 1) -> Book:
    """A liquidatable group with positive equity: the USD balance is set so that equity is a part of maintenance."""
    from streams.margin.health import evaluate

    book = draw(books(plain=plain, positions_min=positions_min))
    share = draw(decimals("0.01", "0.99", 2))
    usd = book.parameters.assets["USD"]
    with localcontext(EXACT):
        for _ in range(4):
            health = evaluate(book.group, book.marks, book.parameters)
            gap = health.maintenance_margin * share - health.equity
            held = book.group.balances.get("USD", Decimal(0))
            moved = Decimal(format_decimal(gap, 2)) + held
            book = replace(book, group=replace(book.group, balances={**book.group.balances, "USD": moved}))
            if usd.steps[0].weight == 1 == usd.liability_weight:
                break
    return book
