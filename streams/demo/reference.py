"""A second, plain implementation of the ledger and of the risk mathematics, to check the pipeline's against.

Exact decimals and dictionaries, one event after the other, straight from the records of the topics as plain JSON. It
shares no line with the engine's mathematics (``streams.margin``, ``streams.clearing``) and is as slow as it looks:
tiers are summed slice by slice, nothing is kept between two evaluations. Reading logs and comparing is left to the
checks.
"""

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import (
    ROUND_FLOOR,
    Context,
    Decimal,
    DivisionByZero,
    FloatOperation,
    Inexact,
    InvalidOperation,
    Overflow,
    localcontext,
)
from typing import Any

import orjson

EXACT = Context(prec=400, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow, FloatOperation])
"""Nothing the demo adds or multiplies needs 400 digits; were anything ever rounded, this would raise."""

_WIDE = Context(prec=400)

_ZERO = Decimal(0)
CROSS = "cross"
Json = Mapping[str, Any]


# --- parameters ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slices:
    """Tiers: the first number of each is where it begins, the second the rate inside it."""

    tiers: tuple[tuple[Decimal, Decimal], ...]

    def changed(self, change: Callable[[Decimal], Decimal]) -> "Slices":
        """The same tiers with every rate changed."""
        return Slices(tuple((floor, change(rate)) for floor, rate in self.tiers))

    def total(self, amount: Decimal) -> Decimal:
        """The sum over the tiers of the part of ``amount`` inside the tier times the tier's rate."""
        ends = [floor for floor, _ in self.tiers[1:]] + [max(amount, self.tiers[-1][0])]
        total = _ZERO
        for (floor, rate), end in zip(self.tiers, ends, strict=True):
            total += max(_ZERO, min(amount, end) - floor) * rate
        return total


@dataclass(frozen=True)
class Rules:
    """The parameter records in force, by key, and the scales of some of them."""

    records: Mapping[str, Json]
    scales: Mapping[str, Decimal] = field(default_factory=dict)

    def scaled(self, scales: Mapping[str, Decimal]) -> "Rules":
        """The same records at ``scales``: rates times their scale, 0.99 at most, and haircuts, 1 at most."""
        return Rules(self.records, scales)

    def settle_asset(self, symbol: str) -> str:
        return str(self.records[f"instrument:{symbol}"]["settle_asset"])

    def maintenance(self, symbol: str, notional: Decimal) -> Decimal:
        """Maintenance margin of a position of ``notional``, in its settle asset."""
        key = f"instrument:{symbol}"
        scale = self.scales.get(key, Decimal(1))
        slices = _slices(self.records[key]["margin_tiers"], "notional_floor", "maintenance_rate")
        return slices.changed(lambda rate: min(rate * scale, Decimal("0.99")) if scale != 1 else rate).total(notional)

    def weighted(self, asset: str, quantity: Decimal) -> Decimal:
        """The quantity that counts as collateral; a debt counts ``liability_weight`` times."""
        record, scale = self.records[f"asset:{asset}"], self.scales.get(f"asset:{asset}", Decimal(1))
        if quantity <= 0:
            return quantity * (1 + (Decimal(record.get("liability_weight", "1")) - 1) * scale)
        tiers = record.get("collateral_tiers", [{"quantity_floor": "0", "weight": "1"}])
        slices = _slices(tiers, "quantity_floor", "weight")
        return slices.changed(lambda weight: max(1 - (1 - weight) * scale, _ZERO)).total(quantity)

    def is_collateral(self, asset: str) -> bool:
        """Whether credit in it counts: some weight in its record is above 0."""
        tiers = self.records[f"asset:{asset}"].get("collateral_tiers", [{"weight": "1"}])
        return any(Decimal(tier["weight"]) > 0 for tier in tiers)

    def stale_bound(self, key: str) -> Decimal:
        """How many times its last price more a price of the record may be while it is not live."""
        return Decimal(self.records[key].get("stale_bound", "9"))

    def decimals(self, asset: str) -> int:
        """The places of an asset's smallest unit."""
        return int(self.records[f"asset:{asset}"].get("decimals", 8))

    def price_symbol(self, asset: str) -> str | None:
        symbol: str | None = self.records[f"asset:{asset}"].get("price_symbol")
        return symbol

    def max_age_us(self, symbol: str) -> int:
        """How old a mark may be to count."""
        return 1000 * int(self.records.get(f"oracle:{symbol}", {}).get("max_age_ms", 5000))


@dataclass
class ParameterLog:
    """``risk.parameters.v1``: the records by offset, and the rules as of any of them."""

    records: list[tuple[int, str, Json | None]] = field(default_factory=list)

    def as_of(self, offset: int) -> Rules:
        """The rules in force once the record at ``offset`` has been read."""
        in_force: dict[str, Json] = {}
        for at, key, record in self.records:
            if at > offset:
                break
            if record is None:
                in_force.pop(key, None)
            else:
                in_force[key] = record
        return Rules(in_force)


def _slices(tiers: Iterable[Json], floor: str, rate: str) -> Slices:
    return Slices(tuple((Decimal(tier[floor]), Decimal(tier[rate])) for tier in tiers))


# --- ledger ----------------------------------------------------------------------------------------------------------


@dataclass
class ReferencePosition:
    """Signed quantity, and the cash paid (negative) or received for it, fees apart."""

    quantity: Decimal = _ZERO
    cash: Decimal = _ZERO


@dataclass
class ReferenceGroup:
    """What is solvent or not on its own: a cross book, or one isolated position with its margin."""

    balances: dict[str, Decimal] = field(default_factory=dict)
    positions: dict[str, ReferencePosition] = field(default_factory=dict)

    def add(self, asset: str, amount: Decimal) -> None:
        self.balances[asset] = self.balances.get(asset, _ZERO) + amount

    def contents(self) -> tuple[dict[str, Decimal], dict[str, tuple[Decimal, Decimal]]]:
        """What is not zero: balances by asset, (quantity, cash) by symbol."""
        balances = {asset: amount for asset, amount in self.balances.items() if amount}
        held = {
            symbol: (position.quantity, position.cash)
            for symbol, position in self.positions.items()
            if position.quantity
        }
        return balances, held


class ReferenceLedger:
    """Every group of every account, by (account, margin)."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.groups: dict[tuple[str, str], ReferenceGroup] = {}

    def group(self, account: str, margin: str) -> ReferenceGroup:
        return self.groups.setdefault((account, margin), ReferenceGroup())

    def transfer(self, account: str, margin: str, asset: str, amount: str) -> None:
        """Collateral in (positive) or out (negative)."""
        with localcontext(EXACT):
            self.group(account, margin).add(asset, Decimal(amount))

    def fill(self, account: str, margin: str, symbol: str, quantity: str, price: str, fee: str) -> None:
        """One side of a trade, ``quantity`` signed. A position that is flat after it hands its cash to the balance."""
        group = self.group(account, margin)
        position = group.positions.setdefault(symbol, ReferencePosition())
        asset = self.rules.settle_asset(symbol)
        with localcontext(EXACT):
            position.quantity += Decimal(quantity)
            position.cash -= Decimal(quantity) * Decimal(price)
            group.add(asset, -Decimal(fee))
            if position.quantity == 0:
                group.add(asset, position.cash)
                position.cash = _ZERO

    def trade(self, trade: Json) -> None:
        """A record of ``trades.v1``: the taker's side is ``aggressor_side``, the maker's the other one."""
        for role, buys in (("taker", trade["aggressor_side"] == "buy"), ("maker", trade["aggressor_side"] == "sell")):
            side = trade[role]
            margin = trade["symbol"] if side.get("margin") == "isolated" else CROSS
            quantity = trade["quantity"] if buys else "-" + trade["quantity"]
            self.fill(side["account"], margin, trade["symbol"], quantity, trade["price"], side["fee"])

    def frame(self, frame: Json, prefix: str = "") -> None:
        """A frame of ``margin.events.v1``, transfers first, but only the accounts whose names begin with ``prefix``."""
        for row in _rows(frame["transfers"], prefix):
            self.transfer(row["account"], row["margin"], row["asset"], row["amount"])
        for row in _rows(frame["fills"], prefix):
            self.fill(row["account"], row["margin"], row["symbol"], row["quantity"], row["price"], row["fee"])


def _rows(columns: Mapping[str, list[Any]], prefix: str) -> Iterator[dict[str, Any]]:
    names = list(columns)
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(names, values, strict=True))
        if row["account"].startswith(prefix):
            yield row


class FeesTold:
    """The fees of liquidations as ``alerts`` have told accounts of them. The ledgers above know nothing of them."""

    def __init__(self, alerts: Iterable[Json]) -> None:
        self._paid: dict[tuple[str, str], list[tuple[int, str, Decimal]]] = {}
        for alert in alerts:
            if (fees := alert.get("fees")) is not None:
                with localcontext(EXACT):
                    paid = Decimal(fees["liquidation_fee"]) + Decimal(fees["insurance_fee"])
                told = self._paid.setdefault((alert["account"], alert["margin"]), [])
                told.append((fees["after_command"], fees["asset"], paid))

    def paid_by(self, group: ReferenceGroup, account: str, margin: str, before: int = 2**63) -> ReferenceGroup:
        """``group`` once it has paid what was booked before the account's command number ``before``."""
        left = ReferenceGroup(dict(group.balances), group.positions)
        with localcontext(EXACT):
            for after_command, asset, paid in self._paid.get((account, margin), ()):
                if after_command < before:
                    left.add(asset, -paid)
        return left

    def paid_by_all(self, ledger: ReferenceLedger) -> dict[tuple[str, str], ReferenceGroup]:
        """The groups of ``ledger`` once each has paid all that was booked."""
        return {name: self.paid_by(group, *name) for name, group in ledger.groups.items()}


def ledger_of(rules: Rules, transfers: Iterable[Json], trades: Iterable[Json]) -> ReferenceLedger:
    """The ledger after ``transfers`` and ``trades``, each in the order of its log.

    A transfer of a sequence that its account has had, and a trade whose id is not above the symbol's last, are repeats
    and count once.
    """
    ledger = ReferenceLedger(rules)
    come: set[tuple[str, int]] = set()
    trade_last: dict[str, int] = {}
    for transfer in transfers:
        if (transfer["account"], transfer["sequence"]) not in come:
            come.add((transfer["account"], transfer["sequence"]))
            margin = transfer.get("margin", CROSS)
            ledger.transfer(transfer["account"], margin, transfer["asset"], transfer["amount"])
    for trade in trades:
        if trade["trade_id"] > trade_last.get(trade["symbol"], -1):
            trade_last[trade["symbol"]] = trade["trade_id"]
            ledger.trade(trade)
    return ledger


# --- verdict ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Equity, maintenance margin and weighted debt in the unit of account, and equity at weight 1, exactly.

    Of marks that are not live: the most and the least that they may be. ``bounded``: whether anything bounds them.
    """

    equity: Decimal
    maintenance: Decimal
    debt: Decimal = _ZERO
    unweighted: Decimal = _ZERO
    bounded: bool = True

    @property
    def liquidatable(self) -> bool:
        return self.bounded and self.equity < self.maintenance

    @property
    def health_ratio(self) -> Decimal | None:
        """(equity + debt) / (maintenance + debt) rounded down to 8 places."""
        with localcontext(_WIDE):
            if not self.maintenance + self.debt:
                return None
            ratio = (self.equity + self.debt) / (self.maintenance + self.debt)
            return ratio.quantize(Decimal("1e-8"), rounding=ROUND_FLOOR)


def evaluate(group: ReferenceGroup, marks: Mapping[str, Decimal], rules: Rules, stale: Collection[str] = ()) -> Verdict:
    """equity = weighted balances at their prices + sum of quantity * mark + cash; maintenance = tiers of |q| * mark.

    The price of a symbol in ``stale`` may be 0 or its last times 1 + bound; every holding is tried at each corner of
    what it depends on, and counts the most it is worth and the least it needs. A symbol without a mark may be anything.

    Raises:
        KeyError: the mark of a position that is not in ``stale``, or a parameter that the group needs, is missing.
    """
    equity = maintenance = debt = unweighted = _ZERO
    bounded = True
    with localcontext(EXACT):
        for asset, quantity in group.balances.items():
            if not _counts(asset, quantity, marks, rules):
                continue
            prices = _prices(rules.price_symbol(asset), rules.stale_bound(f"asset:{asset}"), marks, stale)
            price = max(prices) if quantity > 0 else min(prices)
            weighted = rules.weighted(asset, quantity) * price
            equity += weighted
            unweighted += quantity * price
            debt += max(-weighted, _ZERO)
        for symbol, position in group.positions.items():
            if not position.quantity:
                continue
            settle = rules.settle_asset(symbol)
            unit_symbol = rules.price_symbol(settle)
            own = _prices(symbol, rules.stale_bound(f"instrument:{symbol}"), marks, stale)
            units = _prices(unit_symbol, rules.stale_bound(f"asset:{settle}"), marks, stale)
            corners = [(price, unit) for price in own for unit in units]
            worth = max((position.quantity * price + position.cash) * unit for price, unit in corners)
            grows_by_mark = symbol not in marks and position.quantity > 0
            gains = max(position.quantity * price + position.cash for price in own) > 0
            if grows_by_mark or (unit_symbol is not None and unit_symbol not in marks and gains):
                bounded, worth = False, _ZERO
            equity += worth
            unweighted += worth
            notionals = [(abs(position.quantity) * price, unit) for price, unit in corners]
            maintenance += min(rules.maintenance(symbol, notional) * unit for notional, unit in notionals)
    return Verdict(equity, maintenance, debt, unweighted, bounded)


def symbols_needed(group: ReferenceGroup, rules: Rules, marks: Container[str]) -> set[str]:
    """The symbols whose marks :func:`evaluate` asks for. Of ``marks`` there has been one.

    A balance that counts for nothing needs none: credit that is no collateral, and an asset that never had a price.
    """
    held = {symbol for symbol, position in group.positions.items() if position.quantity}
    assets = {asset for asset, quantity in group.balances.items() if _counts(asset, quantity, marks, rules)}
    priced = {rules.price_symbol(asset) for asset in assets | {rules.settle_asset(symbol) for symbol in held}}
    return held | {symbol for symbol in priced if symbol is not None}


def _counts(asset: str, quantity: Decimal, marks: Container[str], rules: Rules) -> bool:
    if not quantity or (quantity > 0 and not rules.is_collateral(asset)):
        return False
    symbol = rules.price_symbol(asset)
    return symbol is None or symbol in marks


def _prices(
    symbol: str | None, bound: Decimal, marks: Mapping[str, Decimal], stale: Collection[str]
) -> tuple[Decimal, ...]:
    """The corners of what a price may be."""
    if symbol is None:
        return (Decimal(1),)
    if symbol not in stale:
        return (marks[symbol],)
    return (_ZERO, marks[symbol] * (1 + bound)) if symbol in marks else (_ZERO,)


def floor_18(value: Decimal) -> Decimal:
    """``value`` as the contract writes it: at most 18 decimals, rounded down."""
    return value.quantize(Decimal("1e-18"), rounding=ROUND_FLOOR, context=_WIDE)


# --- marks -----------------------------------------------------------------------------------------------------------


CLOCK_SKEW_US = 2_000_000
"""``clock_skew_ms_max`` of a policy that does not say otherwise, as the demo's does not."""


@dataclass(frozen=True)
class MarkSeen:
    """A mark as published."""

    price: Decimal
    status: str
    publish_time: int


class MarkLog:
    """``margin.marks.v1`` walked forward: the marks, the scales and the time as of an offset.

    A frame may carry, as ``appended``, when the broker appended it: its own time counts as far as that bears it out.
    """

    def __init__(self, frames: Iterable[tuple[int, Json]]) -> None:
        self._frames = iter(frames)
        self._ahead: tuple[int, Json] | None = None
        self.marks: dict[str, MarkSeen] = {}
        self.scales: dict[str, Decimal] = {}
        self.epoch = -1
        self.time_us = 0

    def walk_to(self, offset: int) -> None:
        """Apply every frame up to and including ``offset``; offsets must not fall from call to call."""
        while (record := self._ahead or next(self._frames, None)) is not None:
            self._ahead = None
            if record[0] > offset:
                self._ahead = record
                return
            self._apply(record[1])

    def prices(self) -> dict[str, Decimal]:
        return {symbol: mark.price for symbol, mark in self.marks.items()}

    def _apply(self, frame: Json) -> None:
        if (epoch := frame.get("epoch", -1)) < self.epoch:
            return
        self.epoch = epoch
        appended = frame.get("appended", frame["time"])
        self.time_us = max(self.time_us, min(max(frame["time"], appended - CLOCK_SKEW_US), appended + CLOCK_SKEW_US))
        if frame["full"]:
            self.scales = {key: Decimal(scale) for key, scale in frame.get("scales", {}).items()}
        for mark in frame["marks"]:
            self.marks[mark["symbol"]] = MarkSeen(Decimal(mark["price"]), mark["status"], mark["publish_time"])


def decoded(value: bytes | None) -> Any:
    """The JSON of a record, None for a tombstone."""
    return None if value is None else orjson.loads(value)
