"""An account, parameters and marks as one JSON document in, the verdict and the plan as one out.

The arithmetic is the engine's own: the account is loaded into a portfolio, viewed exactly, judged and planned by the
same functions. Reading files and printing are left to the command ``margin-clearing evaluate``.
"""

from decimal import Decimal, localcontext
from typing import Any

import msgspec

from schemas.codec import Decoder, encode
from schemas.parameters import Parameter
from schemas.types import (
    CROSS,
    FRACTION_DIGITS_MAX,
    Asset,
    Identifier,
    MarginMode,
    NonZeroDecimal,
    PositiveDecimal,
    SignedDecimal,
    Symbol,
)
from streams.errors import InputError
from streams.margin.fixed_point import EXACT, format_decimal, fraction_digits, parse_decimal
from streams.margin.group import Group
from streams.margin.health import bankruptcy_prices, evaluate, liquidation_price, priced_balances
from streams.margin.ledger import Ledger
from streams.margin.parameters import RiskParameters
from streams.margin.plan import make_plan
from streams.margin.portfolio import Portfolio


class PositionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A position opened at ``entry_price``, so its cash is -quantity * entry_price.

    ``margin`` ``isolated`` puts it into a group of its own, to which ``isolated_balances`` are assigned.
    """

    symbol: Symbol
    quantity: NonZeroDecimal
    entry_price: PositiveDecimal
    margin: MarginMode = "cross"
    isolated_balances: dict[Asset, SignedDecimal] = {}


class AccountRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``balances`` are the cross group's."""

    account: Identifier
    balances: dict[Asset, SignedDecimal] = {}
    positions: tuple[PositionRequest, ...] = ()


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What :func:`evaluate_request` reads: records of ``risk.parameters.v1``, marks by symbol, one account.

    The marks of the symbols in ``stale`` are not live: what needs them counts what it may be worth at best. One that is
    not among the marks never had a price.
    """

    parameters: tuple[Parameter, ...]
    marks: dict[Symbol, PositiveDecimal]
    account: AccountRequest
    stale: tuple[Symbol, ...] = ()


_REQUESTS = Decoder[Request | list[Request]](Request | list[Request])


def evaluate_request(data: bytes) -> bytes:
    """Evaluate one request, or a list of them, as JSON.

    Input: ``{"parameters": [...], "marks": {symbol: price}, "account": {"account", "balances": {asset: amount},
    "positions": [{"symbol", "quantity", "entry_price", "margin"?, "isolated_balances"?}]}, "stale"?: [symbol]}``.

    Output: ``{"groups": [{"margin", "equity", "unweighted_equity", "debt", "maintenance_margin", "initial_margin",
    "health_ratio" or null, "liquidatable", "stale_bounds": {symbol: bound}, "bounded",
    "positions": [{"symbol", "quantity", "notional", "maintenance_margin", "liquidation_price", "bankruptcy_price"}],
    "collateral": [{"asset", "symbol", "liquidation_price"}],
    "plan": {"stage", "orders": [{"symbol", "order_side", "quantity", "limit_price"}]} or null}]}``, every number a
    decimal string, all money in the unit of account. The cross group comes first; it is left out if it is empty and
    others are not. ``collateral`` is what it holds or owes of assets with a price. Where something needs a mark that is
    not live, ``stale_bounds`` says how far it was taken to be off, the figures are those of the corner that is best for
    the account, and there is no liquidation price; ``bounded`` is false if nothing bounds them. A plan has no orders if
    its stage is ``insolvent``, ``unsellable`` or ``undecided``.

    Raises:
        DecodeError: not such a document; the text names the field.
        InputError: a record breaks a rule, or a symbol, an asset or a mark is missing; the text names it.
    """
    requests = _REQUESTS(data)
    if isinstance(requests, Request):
        return encode(_answer(requests))
    answers = []
    for index, request in enumerate(requests):
        try:
            answers.append(_answer(request))
        except InputError as error:
            raise type(error)(f"request {index}: {error}") from None
    return encode(answers)


def _answer(request: Request) -> dict[str, Any]:
    portfolio = Portfolio(RiskParameters.build(request.parameters))
    for symbol, price in request.marks.items():
        portfolio.set_mark(symbol, price, live=True)
    rows = _load(portfolio.ledger, request.account)
    held = [row for row in rows if not portfolio.ledger.is_empty(row)] or rows[:1]
    stale = frozenset(request.stale)
    priced = {rules.price_symbol for rules in portfolio.parameters.assets.values()}
    if unknown := sorted(stale - priced - portfolio.parameters.instruments.keys() - request.marks.keys()):
        raise InputError(f"stale: no instrument, asset or mark has the symbol {unknown[0]}")
    return {"groups": [_group_answer(portfolio.group(row), portfolio, stale) for row in held]}


def _load(ledger: Ledger, account: AccountRequest) -> list[int]:
    """Load every group of ``account``; their rows, cross first."""
    balances: dict[str, dict[str, str]] = {CROSS: account.balances}
    positions: dict[str, list[tuple[str, str, str]]] = {CROSS: []}
    for index, position in enumerate(account.positions):
        where = f"positions[{index}]: symbol {position.symbol}"
        isolated = position.margin == "isolated"
        margin = position.symbol if isolated else CROSS
        if isolated and margin in positions:
            raise InputError(f"{where}: isolated twice")
        if not isolated and position.isolated_balances:
            raise InputError(f"{where}: isolated_balances of a position that is not isolated")
        if isolated:
            balances[margin] = position.isolated_balances
        positions.setdefault(margin, []).append((position.symbol, position.quantity, _opening_cash(position, where)))
    rows = {margin: ledger.open_group(account.account, margin) for margin in positions}
    for margin, held in positions.items():
        ledger.load_group(rows[margin], balances[margin], held)
    return [rows[margin] for margin in sorted(rows, key=lambda margin: (margin != CROSS, margin))]


def _opening_cash(position: PositionRequest, where: str) -> str:
    with localcontext(EXACT):
        cash = -parse_decimal(position.quantity) * parse_decimal(position.entry_price)
    if fraction_digits(cash) > FRACTION_DIGITS_MAX:
        raise InputError(f"{where}: quantity x entry_price has more than {FRACTION_DIGITS_MAX} decimals")
    return format_decimal(cash)


def _group_answer(group: Group, portfolio: Portfolio, stale: frozenset[str]) -> dict[str, Any]:
    marks, parameters = portfolio.marks, portfolio.parameters
    health = evaluate(group, marks, parameters, stale=stale)
    bankruptcy = bankruptcy_prices(health, marks, parameters)
    plan = make_plan(group, health, marks, parameters, stale=stale) if health.liquidatable else None

    def liquidates_at(symbol: str) -> str | None:
        return None if health.bounds else _text(liquidation_price(group, symbol, marks, parameters))

    return {
        "margin": group.margin,
        "equity": format_decimal(health.equity),
        "unweighted_equity": format_decimal(health.unweighted_equity),
        "debt": format_decimal(health.debt),
        "maintenance_margin": format_decimal(health.maintenance_margin),
        "initial_margin": format_decimal(health.initial_margin),
        "health_ratio": _text(health.health_ratio),
        "liquidatable": health.liquidatable,
        "stale_bounds": {symbol: format_decimal(bound) for symbol, bound in sorted(health.bounds.items())},
        "bounded": health.bounded,
        "positions": [
            {
                "symbol": part.symbol,
                "quantity": format_decimal(part.quantity),
                "notional": format_decimal(part.notional),
                "maintenance_margin": format_decimal(part.maintenance_margin),
                "liquidation_price": liquidates_at(part.symbol),
                "bankruptcy_price": _text(bankruptcy.get(part.symbol)),
            }
            for part in health.positions
        ],
        "collateral": [
            {"asset": asset, "symbol": symbol, "liquidation_price": liquidates_at(symbol)}
            for asset, symbol in priced_balances(group, marks, parameters)
        ],
        "plan": None
        if plan is None
        else {
            "stage": plan.stage,
            "orders": [
                {
                    "symbol": order.symbol,
                    "order_side": order.order_side,
                    "quantity": format_decimal(order.quantity),
                    "limit_price": format_decimal(order.limit_price),
                }
                for order in plan.orders
            ],
        },
    }


def _text(value: Decimal | None) -> str | None:
    return None if value is None else format_decimal(value)
