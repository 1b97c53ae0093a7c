"""The rules in force: what the records of ``risk.parameters.v1`` mean, checked in full before any of it is used.

A set of parameters is immutable; taking in a record gives a new set or a ParameterError, never half of one. What holds
between records (an instrument and its settle asset) is checked as soon as both are known, so their order is free.
Reading the topic, and what to do with a refused record, is left to the caller.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from schemas.codec import Decoder
from schemas.parameters import (
    AssetParameters,
    InstrumentParameters,
    OracleParameters,
    Parameter,
    PolicyParameters,
    Scale,
)
from schemas.types import CROSS, FRACTION_DIGITS_MAX
from streams.errors import InputError, ParameterError
from streams.margin.fixed_point import EXACT, divide_floor, fraction_digits, parse_decimal, to_units
from streams.margin.limits import ASSETS_MAX, OPEN_INTEREST_SYMBOLS_MAX

Floats = npt.NDArray[np.float64]

DECIMALS_DEFAULT = 8
"""``decimals`` of an asset whose record does not say. What is realised from its instruments may then be finer."""

HEALTH_RATIO_PLACES = 8
"""Decimal places of a health ratio."""

LEVEL_PLACES_MAX = 6
"""Most decimal places of a margin-call level: with those of the hysteresis no more than a health ratio has, so that a
ratio rounded down is below an edge exactly when the ratio itself is."""


SCENARIOS = 16
"""Scenarios of a scan: price moves of 0, 1, 2 and 3 thirds of the range, up and down, each with volatility up and down,
and an extreme move either way."""

SCALE_CAP_MOST = Decimal(1_000_000)
"""Most that one measure may multiply rates by: the product of two is still a number that a mark frame holds."""

_RECORD = Decoder[Parameter](Parameter)
_THIRDS = (0, 0, 1, 1, -1, -1, 2, 2, -2, -2, 3, 3, -3, -3)
_SCALED_RATE_MOST = Decimal("0.99")


@dataclass(frozen=True, slots=True)
class MarginStep:
    """A notional tier with its deductions: from its floor up, margin = notional * rate - deduction."""

    notional_floor: Decimal
    maintenance_rate: Decimal
    initial_rate: Decimal
    maintenance_deduction: Decimal
    initial_deduction: Decimal


@dataclass(frozen=True, slots=True)
class CollateralStep:
    """A quantity tier: up to the next floor, credit = quantity * weight + offset, ``offset`` being what the tiers
    below are worth beyond this tier's weight."""

    quantity_floor: Decimal
    weight: Decimal
    offset: Decimal


@dataclass(frozen=True, slots=True, eq=False)
class Instrument:
    """A linear contract and its margin rules. Notionals are in the settle asset, rates are fractions of one.

    ``floors``, ``maintenance_rates`` and ``maintenance_deductions`` are float64[tiers], the nearest doubles of the
    steps.
    """

    symbol: str
    settle_asset: str
    price_increment: Decimal
    quantity_increment: Decimal
    steps: tuple[MarginStep, ...]
    liquidation_fee: Decimal
    insurance_fee: Decimal
    max_order_notional: Decimal | None
    impact_rate: Decimal
    depth_notional: Decimal | None
    version: int
    floors: Floats
    maintenance_rates: Floats
    maintenance_deductions: Floats
    scan: "ScanProfile | None"
    volatility_scale: "ScaleRules | None"
    open_interest_scale: "ScaleRules | None"
    min_order_notional: Decimal | None
    stale_bound: Decimal

    @property
    def fees(self) -> Decimal:
        """What a liquidation costs the account, as a fraction of the notional closed."""
        with localcontext(EXACT):
            return self.liquidation_fee + self.insurance_fee

    @property
    def cash_decimals(self) -> int:
        """Decimal places that hold every price times every quantity."""
        return fraction_digits(self.price_increment) + fraction_digits(self.quantity_increment)

    def step_of(self, notional: Decimal) -> MarginStep:
        """The tier of ``notional`` (>= 0); at a floor the two tiers agree and the lower one is given."""
        for step in reversed(self.steps):
            if notional > step.notional_floor:
                return step
        return self.steps[0]

    def maintenance(self, notional: Decimal) -> Decimal:
        """Maintenance margin of a position of ``notional`` (>= 0): N * r_n - D_n, in the settle asset."""
        step = self.step_of(notional)
        with localcontext(EXACT):
            return notional * step.maintenance_rate - step.maintenance_deduction

    def initial(self, notional: Decimal) -> Decimal:
        """Initial margin of a position of ``notional`` (>= 0), in the settle asset."""
        step = self.step_of(notional)
        with localcontext(EXACT):
            return notional * step.initial_rate - step.initial_deduction


@dataclass(frozen=True, slots=True, eq=False)
class AssetRules:
    """A collateral or settle asset: credit by quantity tiers, debt times ``liability_weight``.

    ``weights`` and ``offsets`` are float64[tiers], the nearest doubles of the steps. ``collateral``: some weight in the
    record is above 0; credit in an asset of which none is counts for nothing, whatever its price, and is not sold.
    """

    asset: str
    decimals: int
    price_symbol: str | None
    steps: tuple[CollateralStep, ...]
    liability_weight: Decimal
    liquidation_fee: Decimal | None
    version: int
    weights: Floats
    offsets: Floats
    volatility_scale: "ScaleRules | None"
    collateral: bool
    min_order_notional: Decimal | None
    stale_bound: Decimal

    @property
    def decimals_given(self) -> bool:
        """Whether the record fixes the minor unit. One that leaves the default does not."""
        return self.decimals != DECIMALS_DEFAULT

    def weighted(self, quantity: Decimal) -> Decimal:
        """The quantity that counts: debt in full and more, credit tier by tier. Concave in ``quantity``."""
        with localcontext(EXACT):
            if quantity <= 0:
                return quantity * self.liability_weight
            for step in reversed(self.steps):
                if quantity > step.quantity_floor:
                    return quantity * step.weight + step.offset
        raise AssertionError("the first tier starts at 0")

    def weight_below(self, quantity: Decimal) -> Decimal:
        """The slope of :meth:`weighted` to the left of ``quantity``: what the next unit paid out costs."""
        if quantity <= 0:
            return self.liability_weight
        return next(step.weight for step in reversed(self.steps) if quantity > step.quantity_floor)


@dataclass(frozen=True, slots=True)
class ScanProfile:
    """How a position is scanned: together with those of its ``group``, at least ``floor_rate`` of its notional.

    ``array`` is the profit of a long of notional 1 by scenario; empty where it follows from ``range``.
    """

    group: str
    range: Decimal
    array: tuple[Decimal, ...]
    floor_rate: Decimal


@dataclass(frozen=True, slots=True)
class Scan:
    """How portfolio margin is scanned: the extremes, the groups that offset each other, the initial margin's scale."""

    offsets: tuple[tuple[str, str, Decimal], ...]
    extreme_multiple: Decimal
    extreme_weight: Decimal
    initial_scale: Decimal

    def profits(self, profile: ScanProfile) -> tuple[Decimal, ...]:
        """The profit of a long of notional 1 in each of the 16 scenarios, thirds rounded down at 18 places.

        A linear contract does not depend on volatility; one that does brings its own array.
        """
        if profile.array:
            return profile.array
        third, place = Decimal(3), Decimal(1).scaleb(-FRACTION_DIGITS_MAX)
        with localcontext(EXACT):
            extreme = profile.range * self.extreme_multiple * self.extreme_weight
            moves = tuple(divide_floor(profile.range * part, third, place) for part in _THIRDS)
            return (*moves, extreme, -extreme)


@dataclass(frozen=True, slots=True)
class ScaleRules:
    """A factor follows measure / ``reference`` between ``floor`` and ``cap``, no faster than ``change_per_minute``."""

    reference: Decimal
    floor: Decimal
    cap: Decimal
    change_per_minute: Decimal


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for every account. ``margin_call_levels`` are strictly decreasing and above 1."""

    liquidation_buffer_rate: Decimal
    margin_call_levels: tuple[Decimal, ...]
    command_ttl_ms: int
    version: int
    portfolio_margin_accounts: frozenset[str]
    scan: Scan
    volatility_half_life_ms: int
    scale_interval_ms: int
    undecided_alert_ms: int
    clock_skew_ms_max: int


class RiskParameters:
    """An immutable, checked set of parameter records.

    ``instruments``, ``assets`` and ``oracle`` map a symbol or asset to its rules. An instrument whose settle asset is
    not known yet is there; whoever needs the asset raises InputError. ``scales`` maps a record's key to the scale at
    which its rates or haircuts are in force; what is not in it is at 1.
    """

    __slots__ = ("_records", "assets", "instruments", "oracle", "policy", "scales")

    instruments: Mapping[str, Instrument]
    assets: Mapping[str, AssetRules]
    oracle: Mapping[str, OracleParameters]
    policy: Policy
    scales: Mapping[str, Decimal]

    def __init__(
        self,
        records: Mapping[str, Parameter],
        instruments: Mapping[str, Instrument],
        assets: Mapping[str, AssetRules],
        oracle: Mapping[str, OracleParameters],
        policy: Policy,
        scales: Mapping[str, Decimal],
    ) -> None:
        """Use :meth:`empty`, :meth:`build` and :meth:`with_record` instead: they check."""
        self._records = records
        self.instruments = MappingProxyType(dict(instruments))
        self.assets = MappingProxyType(dict(assets))
        self.oracle = MappingProxyType(dict(oracle))
        self.policy = policy
        self.scales = MappingProxyType(dict(scales))

    @classmethod
    def empty(cls) -> "RiskParameters":
        """No instrument, no asset, the default policy."""
        return cls({}, {}, {}, {}, _policy(PolicyParameters()), {})

    @classmethod
    def build(cls, records: Iterable[Parameter]) -> "RiskParameters":
        """The set that ``records`` form; of several with one key the last counts.

        Raises:
            ParameterError: a record breaks a rule, or two of them contradict each other.
        """
        found = cls.empty()
        for record in {record.key: record for record in records}.values():
            found = found.with_record(record)
        return found

    @property
    def records(self) -> Mapping[str, Parameter]:
        """The records in force by key."""
        return MappingProxyType(dict(self._records))

    def with_record(self, record: Parameter) -> "RiskParameters":
        """The set with ``record`` in force in place of the one with its key. ``self`` stays as it is.

        Raises:
            ParameterError: the record breaks a rule or contradicts another; the text says which and why.
        """
        instruments, assets, oracle, policy = dict(self.instruments), dict(self.assets), dict(self.oracle), self.policy
        match record:
            case InstrumentParameters():
                instrument = _instrument(record, self._scale(record))
                instruments[record.symbol] = instrument
                _check_bound(record, record.symbol, oracle)
                _check_scaled_by_open_interest(instruments)
                if instrument.settle_asset in assets:
                    _check_settlement(instrument, assets[instrument.settle_asset])
            case AssetParameters():
                if record.asset not in assets and len(assets) >= ASSETS_MAX:
                    raise ParameterError(f"{record.key}: there are {ASSETS_MAX} assets already, the most there may be")
                asset = _asset(record, self._scale(record))
                assets[record.asset] = asset
                _check_bound(record, record.price_symbol, oracle)
                for instrument in instruments.values():
                    if instrument.settle_asset == asset.asset:
                        _check_settlement(instrument, asset)
            case PolicyParameters():
                policy = _policy(record)
            case OracleParameters():
                oracle[record.symbol] = _oracle(record)
                for other in self._records.values():
                    if isinstance(other, InstrumentParameters):
                        _check_bound(other, other.symbol, oracle)
                    elif isinstance(other, AssetParameters):
                        _check_bound(other, other.price_symbol, oracle)
        return RiskParameters({**self._records, record.key: record}, instruments, assets, oracle, policy, self.scales)

    def with_encoded(self, key: bytes | None, value: bytes | None) -> "RiskParameters":
        """The set after a record of ``risk.parameters.v1`` as it is in the log; no value removes what is at the key.

        Raises:
            DecodeError: the value is no parameter record.
            InputError: the key is not the record's, or the record breaks a rule or contradicts another.
        """
        if value is None:
            return self.without((key or b"").decode("utf-8", "replace"))
        record = _RECORD(value)
        if key != record.key.encode():
            raise InputError(f"the key is {key!r} and must be {record.key!r}")
        return self.with_record(record)

    def with_scales(self, scales: Mapping[str, Decimal]) -> "RiskParameters":
        """The set with the margin rates of instruments, and the haircuts of assets, times their scales.

        ``scales`` maps record keys (``instrument:SYMBOL``, ``asset:ASSET``) to factors above 0; others go back to 1.
        Scaled rates stay below 1 and weights at or above 0. Records that come later are scaled as well.

        Raises:
            ParameterError: a scale is not above 0.
        """
        for key, scale in scales.items():
            if not scale.is_finite() or scale <= 0:
                raise ParameterError(f"{key}: a scale of {scale} is not above 0")
        changed = [key for key in {**self.scales, **scales} if scales.get(key) != self.scales.get(key)]
        if not changed:
            return self
        scaled = RiskParameters(self._records, self.instruments, self.assets, self.oracle, self.policy, scales)
        for key in changed:
            if key in self._records:
                scaled = scaled.with_record(self._records[key])
        return scaled

    def _scale(self, record: Parameter) -> Decimal:
        return self.scales.get(record.key, Decimal(1))

    def without(self, key: str) -> "RiskParameters":
        """The set without the record of ``key`` (``type:id``), as a tombstone leaves it; a policy falls back to the
        default one. An unknown key changes nothing."""
        if key not in self._records:
            return self
        kind, _, name = key.partition(":")
        return RiskParameters(
            {known: record for known, record in self._records.items() if known != key},
            {symbol: rules for symbol, rules in self.instruments.items() if (kind, symbol) != ("instrument", name)},
            {asset: rules for asset, rules in self.assets.items() if (kind, asset) != ("asset", name)},
            {symbol: rules for symbol, rules in self.oracle.items() if (kind, symbol) != ("oracle", name)},
            _policy(PolicyParameters()) if kind == "policy" else self.policy,
            self.scales,
        )

    def instrument(self, symbol: str) -> Instrument:
        """The rules of ``symbol``.

        Raises:
            InputError: there are none.
        """
        try:
            return self.instruments[symbol]
        except KeyError:
            raise InputError(f"symbol {symbol}: no instrument of that name in risk.parameters.v1") from None

    def asset(self, asset: str) -> AssetRules:
        """The rules of ``asset``.

        Raises:
            InputError: there are none.
        """
        try:
            return self.assets[asset]
        except KeyError:
            raise InputError(f"asset {asset}: no asset of that name in risk.parameters.v1") from None

    def cash_decimals(self, asset: str) -> int:
        """Decimal places that transfers, fees and fills of ``asset`` can bring about: its own, or more if an instrument
        settled in it needs them (which is refused when the record fixes its decimals)."""
        settled = (rules.cash_decimals for rules in self.instruments.values() if rules.settle_asset == asset)
        return max(self.asset(asset).decimals, *settled, 0)


def _check_scaled_by_open_interest(instruments: Mapping[str, Instrument]) -> None:
    if len(instruments) <= OPEN_INTEREST_SYMBOLS_MAX:
        return
    scaled = sum(instrument.open_interest_scale is not None for instrument in instruments.values())
    if scaled > OPEN_INTEREST_SYMBOLS_MAX:
        raise ParameterError(f"more than {OPEN_INTEREST_SYMBOLS_MAX} instruments have an open_interest_scale")


# --- one record ------------------------------------------------------------------------------------------------------


def _instrument(record: InstrumentParameters, scale: Decimal) -> Instrument:
    number = _Reader(record.key)
    steps = _margin_steps(record, number, scale)
    liquidation_fee = number("liquidation_fee", record.liquidation_fee)
    insurance_fee = number("insurance_fee", record.insurance_fee)
    with localcontext(EXACT):
        number.require(liquidation_fee + insurance_fee < 1, "liquidation_fee + insurance_fee must be below 1")
    number.require(record.symbol != CROSS, "no symbol can have the name of the cross group")
    price_increment = number.increment("price_increment", record.price_increment)
    quantity_increment = number.increment("quantity_increment", record.quantity_increment)
    limit, depth = number.optional("max_order_notional", record.max_order_notional), record.depth_notional
    least = number.optional("min_order_notional", record.min_order_notional)
    number.require(
        limit is None or least is None or least <= limit,
        f"min_order_notional {least} is above max_order_notional {limit}: no order could be both",
    )
    impact_rate = number("impact_rate", record.impact_rate)
    number.require(impact_rate < 1, "impact_rate must be below 1")
    number.require(depth is not None or impact_rate == 0, "impact_rate needs a depth_notional")
    instrument = Instrument(
        symbol=record.symbol,
        settle_asset=record.settle_asset,
        price_increment=price_increment,
        quantity_increment=quantity_increment,
        steps=steps,
        liquidation_fee=liquidation_fee,
        insurance_fee=insurance_fee,
        max_order_notional=limit,
        impact_rate=impact_rate,
        depth_notional=number.optional("depth_notional", depth),
        version=record.version,
        floors=_floats([step.notional_floor for step in steps]),
        maintenance_rates=_floats([step.maintenance_rate for step in steps]),
        maintenance_deductions=_floats([step.maintenance_deduction for step in steps]),
        scan=_scan_profile(record, number, scale),
        volatility_scale=_scale_rules("volatility_scale", record.volatility_scale, number),
        open_interest_scale=_scale_rules("open_interest_scale", record.open_interest_scale, number),
        min_order_notional=least,
        stale_bound=number.positive("stale_bound", record.stale_bound),
    )
    number.require(
        instrument.cash_decimals <= FRACTION_DIGITS_MAX,
        f"price_increment x quantity_increment has {instrument.cash_decimals} decimals, more than the ledger's 18",
    )
    return instrument


def _scan_profile(record: InstrumentParameters, number: "_Reader", scale: Decimal) -> ScanProfile | None:
    """How portfolio margin sees the instrument; None if its record does not say."""
    array = tuple(number.signed("scan_array", profit) for profit in record.scan_array)
    number.require(len(array) in (0, SCENARIOS), f"scan_array must have {SCENARIOS} profits")
    move = None if record.scan_range is None else number.positive("scan_range", record.scan_range)
    floor_rate = number("scan_floor_rate", record.scan_floor_rate)
    number.require(floor_rate < 1, "scan_floor_rate must be below 1")
    if move is None and not array:
        return None
    number.require(floor_rate > 0, "scan_floor_rate must be above 0: a hedged book needs a margin to fall below")
    with localcontext(EXACT):
        return ScanProfile(
            group=record.scan_group or record.symbol,
            range=(move or Decimal(0)) * scale,
            array=tuple(profit * scale for profit in array),
            floor_rate=min(floor_rate * scale, _SCALED_RATE_MOST),
        )


def _margin_steps(record: InstrumentParameters, number: "_Reader", scale: Decimal) -> tuple[MarginStep, ...]:
    number.require(bool(record.margin_tiers), "margin_tiers must not be empty")
    floors = [number("margin_tiers.notional_floor", tier.notional_floor) for tier in record.margin_tiers]
    rates = [number("margin_tiers.maintenance_rate", tier.maintenance_rate) for tier in record.margin_tiers]
    initials = [number("margin_tiers.initial_rate", tier.initial_rate) for tier in record.margin_tiers]
    number.require(floors[0] == 0, "margin_tiers: the first notional_floor must be 0")
    number.require(_rising(floors, strict=True), "margin_tiers: notional_floor must increase from tier to tier")
    number.require(rates[0] > 0, "margin_tiers: maintenance_rate must be above 0")
    number.require(_rising(rates), "margin_tiers: maintenance_rate must not decrease from tier to tier")
    number.require(_rising(initials), "margin_tiers: initial_rate must not decrease from tier to tier")
    number.require(rates[-1] < 1, "margin_tiers: maintenance_rate must be below 1")
    number.require(initials[-1] <= 1, "margin_tiers: initial_rate must be at most 1")
    number.require(
        all(initial >= rate for initial, rate in zip(initials, rates, strict=True)),
        "margin_tiers: initial_rate must be at least maintenance_rate",
    )
    if scale != 1:
        with localcontext(EXACT):
            rates = [min(rate * scale, _SCALED_RATE_MOST) for rate in rates]
            initials = [min(initial * scale, Decimal(1)) for initial in initials]
    maintenance, initial = _deductions(floors, rates), _deductions(floors, initials)
    return tuple(MarginStep(*fields) for fields in zip(floors, rates, initials, maintenance, initial, strict=True))


def _deductions(floors: list[Decimal], rates: list[Decimal]) -> list[Decimal]:
    """D_0 = 0, D_n = D_{n-1} + floor_n * (r_n - r_{n-1}): what makes the margin continuous from tier to tier."""
    deductions = [Decimal(0)]
    with localcontext(EXACT):
        for floor, (below, rate) in zip(floors[1:], pairwise(rates), strict=True):
            deductions.append(deductions[-1] + floor * (rate - below))
    return deductions


def _asset(record: AssetParameters, scale: Decimal) -> AssetRules:
    number = _Reader(record.key)
    number.require(bool(record.collateral_tiers), "collateral_tiers must not be empty")
    floors = [number("collateral_tiers.quantity_floor", tier.quantity_floor) for tier in record.collateral_tiers]
    weights = [number("collateral_tiers.weight", tier.weight) for tier in record.collateral_tiers]
    liability_weight = number("liability_weight", record.liability_weight)
    number.require(floors[0] == 0, "collateral_tiers: the first quantity_floor must be 0")
    number.require(_rising(floors, strict=True), "collateral_tiers: quantity_floor must increase from tier to tier")
    number.require(_rising(weights[::-1]), "collateral_tiers: weight must not increase from tier to tier")
    number.require(weights[0] <= 1, "collateral_tiers: weight must be from 0 to 1")
    number.require(liability_weight >= 1, "liability_weight must be at least 1")
    fee = None if record.liquidation_fee is None else number("liquidation_fee", record.liquidation_fee)
    number.require(fee is None or fee < 1, "liquidation_fee must be below 1")
    number.require(0 <= record.decimals <= FRACTION_DIGITS_MAX, "decimals must be from 0 to 18")
    priced = record.price_symbol is not None
    number.require(priced or record.volatility_scale is None, "volatility_scale needs a price_symbol")
    number.require(priced or record.min_order_notional is None, "min_order_notional needs a price_symbol")
    collateral = weights[0] > 0
    with localcontext(EXACT):
        if scale != 1:
            if collateral:
                weights = [max(1 - (1 - weight) * scale, Decimal(0)) for weight in weights]
            liability_weight = 1 + (liability_weight - 1) * scale
        offsets = [-deduction for deduction in _deductions(floors, weights)]
    return AssetRules(
        asset=record.asset,
        decimals=record.decimals,
        price_symbol=record.price_symbol,
        steps=tuple(CollateralStep(*fields) for fields in zip(floors, weights, offsets, strict=True)),
        liability_weight=liability_weight,
        liquidation_fee=fee,
        version=record.version,
        weights=_floats(weights),
        offsets=_floats(offsets),
        volatility_scale=_scale_rules("volatility_scale", record.volatility_scale, number),
        collateral=collateral,
        min_order_notional=number.optional("min_order_notional", record.min_order_notional),
        stale_bound=number.positive("stale_bound", record.stale_bound),
    )


def _policy(record: PolicyParameters) -> Policy:
    number = _Reader(record.key)
    buffer = number("liquidation_buffer_rate", record.liquidation_buffer_rate)
    number.require(buffer < 1, "liquidation_buffer_rate must be below 1")
    levels = tuple(number("margin_call_levels", level) for level in record.margin_call_levels)
    number.require(all(level > 1 for level in levels), "margin_call_levels must be above 1")
    number.require(_rising(list(levels[::-1]), strict=True), "margin_call_levels must decrease")
    number.require(
        all(fraction_digits(level) <= LEVEL_PLACES_MAX for level in levels),
        f"margin_call_levels have at most {LEVEL_PLACES_MAX} decimals",
    )
    return Policy(
        liquidation_buffer_rate=buffer,
        margin_call_levels=levels,
        command_ttl_ms=record.command_ttl_ms,
        version=record.version,
        portfolio_margin_accounts=frozenset(record.portfolio_margin_accounts),
        scan=_scan(record, number),
        volatility_half_life_ms=record.volatility_half_life_ms,
        scale_interval_ms=record.scale_interval_ms,
        undecided_alert_ms=record.undecided_alert_ms,
        clock_skew_ms_max=record.clock_skew_ms_max,
    )


def _scan(record: PolicyParameters, number: "_Reader") -> Scan:
    offsets = []
    paired: set[str] = set()
    for offset in record.scan_offsets:
        rate = number("scan_offsets.rate", offset.rate)
        number.require(rate <= 1, "scan_offsets: rate must be at most 1")
        number.require(offset.first != offset.second, "scan_offsets: a group cannot offset itself")
        number.require(not paired & {offset.first, offset.second}, "scan_offsets: a group is in more than one offset")
        paired |= {offset.first, offset.second}
        offsets.append((offset.first, offset.second, rate))
    extreme_weight = number("scan_extreme_weight", record.scan_extreme_weight)
    number.require(extreme_weight <= 1, "scan_extreme_weight must be at most 1")
    initial_scale = number("scan_initial_scale", record.scan_initial_scale)
    number.require(initial_scale >= 1, "scan_initial_scale must be at least 1")
    multiple = number.positive("scan_extreme_multiple", record.scan_extreme_multiple)
    return Scan(tuple(offsets), multiple, extreme_weight, initial_scale)


def _scale_rules(field: str, scale: Scale | None, number: "_Reader") -> ScaleRules | None:
    if scale is None:
        return None
    names = ("reference", "floor", "cap", "change_per_minute")
    rules = ScaleRules(*(number.positive(f"{field}.{name}", getattr(scale, name)) for name in names))
    number.require(rules.floor <= rules.cap, f"{field}: floor must be at most cap")
    number.require(rules.cap <= SCALE_CAP_MOST, f"{field}: cap must be at most {SCALE_CAP_MOST}")
    return rules


def _oracle(record: OracleParameters) -> OracleParameters:
    number = _Reader(record.key)
    number.require(record.minimum_sources <= len(record.sources), "minimum_sources is more than there are sources")
    for source, weight in record.sources.items():
        number.positive(f"sources.{source}", weight)
    number.require(number("max_confidence_ratio", record.max_confidence_ratio) <= 1, "max_confidence_ratio is above 1")
    number.positive("max_deviation", record.max_deviation)
    number.positive("max_jump", record.max_jump)
    return record


# --- two records -----------------------------------------------------------------------------------------------------


def _check_settlement(instrument: Instrument, asset: AssetRules) -> None:
    where = f"instrument:{instrument.symbol} settled in asset:{asset.asset}"
    if asset.price_symbol == instrument.symbol:
        raise ParameterError(
            f"{where}: the instrument prices the asset it is settled in, so its value is not linear in its mark; "
            "give the asset another price_symbol"
        )
    if asset.decimals_given and instrument.cash_decimals > asset.decimals:
        raise ParameterError(
            f"{where}: price_increment x quantity_increment has {instrument.cash_decimals} decimals, the asset "
            f"{asset.decimals}; a fill would not be a whole number of minor units"
        )


def _check_bound(
    record: InstrumentParameters | AssetParameters, symbol: str | None, oracle: Mapping[str, OracleParameters]
) -> None:
    """What a price may be while it is not live must leave room for the jump that may have halted it."""
    rules = None if symbol is None else oracle.get(symbol)
    if rules is not None and Decimal(record.stale_bound) <= Decimal(rules.max_jump):
        raise ParameterError(
            f"{record.key}: stale_bound {record.stale_bound} is not above max_jump {rules.max_jump} of {rules.key}: a "
            "price that jumped and was halted would be outside the bound; raise the one or lower the other"
        )


# --- numbers ---------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads the numbers of one record; errors name the record and the field."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, field: str, text: str) -> Decimal:
        value = self.signed(field, text)
        self.require(value >= 0, f"{field} must not be negative")
        return value

    def signed(self, field: str, text: str) -> Decimal:
        try:
            return parse_decimal(text)
        except InputError as error:
            raise ParameterError(f"{self._key}: {field}: {error}") from None

    def positive(self, field: str, text: str) -> Decimal:
        value = self(field, text)
        self.require(value > 0, f"{field} must be above 0")
        return value

    def optional(self, field: str, text: str | None) -> Decimal | None:
        return None if text is None else self.positive(field, text)

    def increment(self, field: str, text: str) -> Decimal:
        value = self.positive(field, text)
        try:
            to_units(value, fraction_digits(value))
        except InputError as error:
            raise ParameterError(f"{self._key}: {field}: {error}") from None
        return value

    def require(self, holds: bool, reason: str) -> None:
        if not holds:
            raise ParameterError(f"{self._key}: {reason}")


def _rising(values: list[Decimal], *, strict: bool = False) -> bool:
    return all(low < high if strict else low <= high for low, high in pairwise(values))


def _floats(values: list[Decimal]) -> Floats:
    array = np.array([float(value) for value in values], dtype=np.float64)
    array.setflags(write=False)
    return array
