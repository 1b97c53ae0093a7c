"""A decision laid open: the group as it stood, what was in force, and each sum as the terms it is added up from.

Computed from what the logs gave, by other code than the engine's sums where there is any, so that the terms can be
added up and compared with what a command says.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import msgspec

from schemas.messages import Mark
from streams.feeds.parameters import ParameterHistory
from streams.margin.fixed_point import EXACT, format_decimal
from streams.margin.group import Group
from streams.margin.health import health_of, target_of
from streams.margin.models import Holding
from streams.margin.parameters import RiskParameters
from streams.margin.plan import Plan, make_plan, orders_at_once
from streams.margin.rules import SCENARIOS, AssetRules, Scan
from streams.margin.valuation import Valuation, counts

_ZERO = Decimal(0)


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """One term of a sum, in the unit of account: ``amount``, and the figures it is the product of."""

    name: str
    figures: dict[str, str]
    amount: Decimal


class MarkUsed(msgspec.Struct, frozen=True, kw_only=True):
    """A mark at the decision, the frame it came in, and the source prices it was formed from."""

    symbol: str
    price: str
    status: str
    age_ms: int
    max_age_ms: int | None
    offset: int
    sources: dict[str, str]


class ParameterUsed(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter record in force at the decision, where it stands, and the scale its rates were at."""

    key: str
    offset: int | None
    scale: str
    record: Any


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The group as it stood when the command was decided, and what follows from it."""

    input: str
    """What was being applied: a mark frame, an event frame, a parameter record or a progress record."""
    at_us: int
    balances: dict[str, str]
    positions: list[dict[str, str]]
    marks: list[MarkUsed]
    rules: list[ParameterUsed]
    equity_terms: list[Term]
    maintenance_terms: list[Term]
    equity: Decimal
    unweighted_equity: Decimal
    debt: Decimal
    maintenance: Decimal
    target: Decimal
    shortage: Decimal
    stale_bounds: dict[str, str]
    """The symbols whose marks are not live: the figures are those of the corner that is best for the account."""
    model: str
    stage: str
    orders: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """A group at the moment of a decision, and what was in force then."""

    input: str
    clock_us: int
    group: Group
    prices: dict[str, Decimal]
    stale: frozenset[str]
    marks: dict[str, tuple[int, Mark]]
    parameters: RiskParameters
    parameters_next: int
    offsets: tuple[int, int]


def decision_of(
    snapshot: GroupSnapshot, symbols: Iterable[str], history: ParameterHistory, *, attempt: int = 0
) -> Decision:
    """What follows from the group as it stood; ``symbols`` are those whose marks the command names, ``attempt`` is its
    number among those that came to nothing. At its target nothing is left to do: a command that is out is withdrawn."""
    named = sorted(symbols)
    group, prices, parameters = snapshot.group, snapshot.prices, snapshot.parameters
    valuation = Valuation(group, prices, parameters, snapshot.stale)
    health = health_of(valuation)
    plan = make_plan(group, health, prices, parameters, stale=snapshot.stale, attempt=attempt)
    scanned = group.account in parameters.policy.portfolio_margin_accounts
    held = [valued.holding for valued in valuation.positions if valued.live and valued.holding is not None]
    with localcontext(EXACT):
        target = target_of(health, parameters)
    return Decision(
        input=snapshot.input,
        at_us=snapshot.clock_us,
        balances={asset: format_decimal(amount) for asset, amount in group.balances.items()},
        positions=[
            {"symbol": p.symbol, "quantity": format_decimal(p.quantity), "cash": format_decimal(p.cash)}
            for p in group.positions
        ],
        marks=[_mark_used(snapshot, symbol) for symbol in named],
        rules=_parameters_used(snapshot, named, history),
        equity_terms=[*_balance_terms(snapshot, valuation), *_position_terms(valuation)],
        maintenance_terms=_scan_terms(held, valuation, parameters.policy.scan) if scanned else _tier_terms(held),
        equity=health.equity,
        unweighted_equity=health.unweighted_equity,
        debt=health.debt,
        maintenance=health.maintenance_margin,
        target=target,
        shortage=target - health.equity,
        stale_bounds={symbol: format_decimal(bound) for symbol, bound in sorted(health.bounds.items())},
        model="portfolio margin: the worst of the scanned scenarios" if scanned else "tiers, position by position",
        stage=plan.stage if health.liquidatable else "withdrawn" if health.equity >= target else "none",
        orders=_orders(plan, parameters.policy.slices_open_max) if health.liquidatable else [],
    )


def _parameters_used(snapshot: GroupSnapshot, symbols: Iterable[str], history: ParameterHistory) -> list[ParameterUsed]:
    held = [position.symbol for position in snapshot.group.positions]
    assets = {*snapshot.group.balances, *(snapshot.parameters.instrument(symbol).settle_asset for symbol in held)}
    keys = [f"instrument:{symbol}" for symbol in held]
    keys += [f"asset:{asset}" for asset in sorted(assets)]
    keys += ["policy:default", *(f"oracle:{symbol}" for symbol in symbols)]
    records = snapshot.parameters.records
    return [
        ParameterUsed(
            key=key,
            offset=history.last_of(key, snapshot.parameters_next),
            scale=format_decimal(snapshot.parameters.scales.get(key, Decimal(1))),
            record=msgspec.to_builtins(records[key]),
        )
        for key in keys
        if key in records
    ]


def _mark_used(snapshot: GroupSnapshot, symbol: str) -> MarkUsed:
    offset, mark = snapshot.marks[symbol]
    oracle = snapshot.parameters.oracle.get(symbol)
    return MarkUsed(
        symbol=symbol,
        price=format_decimal(snapshot.prices[symbol]),
        status=mark.status,
        age_ms=(snapshot.clock_us - mark.publish_time) // 1000,
        max_age_ms=None if oracle is None else oracle.max_age_ms,
        offset=offset,
        sources=mark.sources,
    )


# --- equity ----------------------------------------------------------------------------------------------------------


def _balance_terms(snapshot: GroupSnapshot, valuation: Valuation) -> list[Term]:
    terms = []
    with localcontext(EXACT):
        for asset, quantity in snapshot.group.balances.items():
            rules = snapshot.parameters.asset(asset)
            if not counts(rules, quantity, snapshot.prices):
                terms.append(Term(name=f"{asset} balance, counts for nothing", figures={}, amount=_ZERO))
                continue
            price, weighted = valuation.best_price(rules, quantity), rules.weighted(quantity)
            figures = {"quantity": quantity, "counts as": weighted, "price": price}
            name = f"{asset} balance{_how(rules)}{'' if valuation.is_live(rules) else ' at best'}"
            terms.append(Term(name=name, figures=_texts(figures), amount=weighted * price))
    return terms


def _how(rules: AssetRules) -> str:
    return f" (at {rules.price_symbol})" if rules.price_symbol is not None else ""


def _position_terms(valuation: Valuation) -> list[Term]:
    terms = []
    with localcontext(EXACT):
        for valued in valuation.positions:
            position, holding = valued.position, valued.holding
            figures = {"quantity": position.quantity, "cash": position.cash}
            if holding is not None:
                figures |= {"mark": holding.mark, "value": position.quantity * holding.mark, "price": holding.unit}
            name = f"{position.symbol} position{'' if valued.live else ' at best'}"
            terms.append(Term(name=name, figures=_texts(figures), amount=valued.worth or _ZERO))
    return terms


# --- maintenance -----------------------------------------------------------------------------------------------------


def _tier_terms(held: list[Holding]) -> list[Term]:
    terms = []
    with localcontext(EXACT):
        for holding in held:
            notional = abs(holding.quantity) * holding.mark
            step = holding.instrument.step_of(notional)
            figures = {
                "notional": notional,
                "tier from": step.notional_floor,
                "rate": step.maintenance_rate,
                "deduction": step.maintenance_deduction,
                "price": holding.unit,
            }
            amount = (notional * step.maintenance_rate - step.maintenance_deduction) * holding.unit
            terms.append(Term(name=holding.instrument.symbol, figures=_texts(figures), amount=amount))
    return terms


_FLOOR = "least margin"
_TAKEN = "less what marks that are not live may take"


def _scan_terms(held: list[Holding], valuation: Valuation, scan: Scan) -> list[Term]:
    """Each scan group's loss in its worst scenario; of two that offset each other, a part together and a part apart.

    What is not live is scanned at its last marks, and the most that other marks may take from that is taken.
    """
    tiers = _tier_terms([holding for holding in held if holding.instrument.scan is None])
    if valuation.scan_lost:
        return tiers
    scanned = [holding for holding in [*held, *valuation.fixed] if holding.instrument.scan is not None]
    groups: dict[str, list[Holding]] = {}
    for holding in scanned:
        assert holding.instrument.scan is not None
        groups.setdefault(holding.instrument.scan.group, []).append(holding)
    terms = []
    with localcontext(EXACT):
        for first, second, rate in scan.offsets:
            if first in groups and second in groups:
                one, other = groups.pop(first), groups.pop(second)
                terms.append(_scenario_term(f"{first} with {second}", [*one, *other], scan, rate))
                terms.append(_scenario_term(first, one, scan, 1 - rate))
                terms.append(_scenario_term(second, other, scan, 1 - rate))
        terms += [_scenario_term(name, members, scan, Decimal(1)) for name, members in groups.items()]
        floor = _ZERO
        for holding in scanned:
            assert holding.instrument.scan is not None
            floor += abs(holding.quantity) * holding.mark * holding.unit * holding.instrument.scan.floor_rate
        risk = sum((term.amount for term in terms), _ZERO)
        figures = {"scanned": risk, "at least": floor}
        terms.append(Term(name=_FLOOR, figures=_texts(figures), amount=max(floor - risk, _ZERO)))
        if valuation.slack:
            taken = min(valuation.slack, max(risk, floor))
            terms.append(Term(name=_TAKEN, figures=_texts({"at most": valuation.slack}), amount=-taken))
    return terms + tiers


def _scenario_term(name: str, members: list[Holding], scan: Scan, weight: Decimal) -> Term:
    losses = []
    for scenario in range(SCENARIOS):
        loss = _ZERO
        for holding in members:
            assert holding.instrument.scan is not None
            profit = scan.profits(holding.instrument.scan)[scenario]
            loss -= profit * holding.quantity * holding.mark * holding.unit
        losses.append(loss)
    worst = max(range(SCENARIOS), key=losses.__getitem__)
    loss = max(losses[worst], _ZERO)
    figures = {"loss": loss, "share": weight}
    scenario_name = _scenario(worst) if loss else "no scenario loses"
    return Term(name=f"{name}: {scenario_name}", figures=_texts(figures), amount=loss * weight)


def _scenario(index: int) -> str:
    if index >= SCENARIOS - 2:
        return "an extreme move " + ("up" if index == SCENARIOS - 2 else "down")
    thirds = (index // 2 + 1) // 2
    direction = "no move" if not thirds else f"{thirds}/3 {'up' if index // 2 % 2 else 'down'}"
    return f"{direction}, volatility {'down' if index % 2 else 'up'}"


# --- orders ----------------------------------------------------------------------------------------------------------


def _orders(plan: Plan, most: int) -> list[dict[str, str]]:
    return [order_text(order) for order in orders_at_once(plan, most)]


def order_text(order: Any) -> dict[str, str]:
    """An order of a plan or of a command, as text."""
    return {
        name: value if isinstance(value := getattr(order, name), str) else format_decimal(value)
        for name in ("symbol", "position_side", "order_side", "quantity", "limit_price", "mark_price")
    }


def _texts(figures: dict[str, Decimal]) -> dict[str, str]:
    return {name: format_decimal(value) for name, value in figures.items()}
