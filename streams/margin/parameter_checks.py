"""Every rule that a parameter record must keep, alone and beside the others, and the values that one makes.

A check raises a ParameterError that names the record, the field and the reason; a value that is returned has passed
them all. Which records are in force together is the business of ``parameters``.
"""

from collections.abc import Mapping
from decimal import Decimal, localcontext
from itertools import pairwise

import numpy as np

from schemas.parameters import (
    AssetParameters,
    InstrumentParameters,
    OracleParameters,
    PolicyParameters,
    Scale,
)
from schemas.types import CROSS, FRACTION_DIGITS_MAX
from streams.errors import InputError, ParameterError
from streams.margin.amounts import Floats
from streams.margin.fixed_point import EXACT, fraction_digits, parse_decimal, to_units
from streams.margin.limits import OPEN_INTEREST_SYMBOLS_MAX, POOLS_MAX
from streams.margin.rules import (
    LEVEL_PLACES_MAX,
    SCENARIOS,
    AssetRules,
    CollateralStep,
    Instrument,
    MarginStep,
    Policy,
    ScaleRules,
    Scan,
    ScanProfile,
)

SCALE_CAP_MOST = Decimal(1_000_000)
"""Most that one measure may multiply rates by: the product of two is still a number that a mark frame holds."""

INCOMPLETE_HOLD_MS_MIN = 1_000
"""Least time for which a source that stands still is waited for, if it is at all."""

_SCALED_RATE_MOST = Decimal("0.99")


class _NumberReader:
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


# --- one record ------------------------------------------------------------------------------------------------------


def instrument_of(record: InstrumentParameters, scale: Decimal) -> Instrument:
    """The rules of an instrument, its margin rates times ``scale`` and below 1.

    Raises:
        ParameterError: the record breaks a rule.
    """
    number = _NumberReader(record.key)
    steps = _margin_steps(record, number, scale)
    liquidation_fee = number("liquidation_fee", record.liquidation_fee)
    insurance_fee = number("insurance_fee", record.insurance_fee)
    close_fee_rate = number("close_fee_rate", record.close_fee_rate)
    with localcontext(EXACT):
        number.require(
            liquidation_fee + insurance_fee + close_fee_rate < 1,
            "liquidation_fee + insurance_fee + close_fee_rate must be below 1",
        )
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
        close_fee_rate=close_fee_rate,
        fund=record.fund,
        max_order_notional=limit,
        impact_rate=impact_rate,
        depth_notional=number.optional("depth_notional", depth),
        version=record.version,
        maintenance_rates=_floats([step.maintenance_rate for step in steps]),
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


def _scan_profile(record: InstrumentParameters, number: _NumberReader, scale: Decimal) -> ScanProfile | None:
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


def _margin_steps(record: InstrumentParameters, number: _NumberReader, scale: Decimal) -> tuple[MarginStep, ...]:
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


def asset_of(record: AssetParameters, scale: Decimal) -> AssetRules:
    """The rules of an asset, its haircuts times ``scale`` and no weight below 0.

    Raises:
        ParameterError: the record breaks a rule.
    """
    number = _NumberReader(record.key)
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


def policy_of(record: PolicyParameters) -> Policy:
    """What holds for every account.

    Raises:
        ParameterError: the record breaks a rule.
    """
    number = _NumberReader(record.key)
    buffer = number("liquidation_buffer_rate", record.liquidation_buffer_rate)
    number.require(buffer < 1, "liquidation_buffer_rate must be below 1")
    levels = tuple(number("margin_call_levels", level) for level in record.margin_call_levels)
    number.require(all(level > 1 for level in levels), "margin_call_levels must be above 1")
    number.require(_rising(list(levels[::-1]), strict=True), "margin_call_levels must decrease")
    number.require(
        all(fraction_digits(level) <= LEVEL_PLACES_MAX for level in levels),
        f"margin_call_levels have at most {LEVEL_PLACES_MAX} decimals",
    )
    number.require(
        record.incomplete_hold_ms == 0 or record.incomplete_hold_ms >= INCOMPLETE_HOLD_MS_MIN,
        f"incomplete_hold_ms must be 0 or at least {INCOMPLETE_HOLD_MS_MIN}: an idle router says so 4 times a second",
    )
    ladder = tuple(number.positive("limit_ladder", rung) for rung in record.limit_ladder)
    number.require(bool(ladder), "limit_ladder must not be empty")
    number.require(_rising(list(ladder)), "limit_ladder must not fall")
    number.require(ladder[-1] <= 1, "limit_ladder must be at most 1: beyond the bankruptcy price the fund would pay")
    progress = number("min_progress_rate", record.min_progress_rate)
    number.require(progress <= 1, "min_progress_rate must be at most 1")
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
        incomplete_hold_ms=record.incomplete_hold_ms,
        stale_input_hold_ms=record.stale_input_hold_ms,
        limit_ladder=ladder,
        min_progress_rate=progress,
        slices_open_max=record.slices_open_max,
        backstop_rate=number("backstop_rate", record.backstop_rate),
        retry_ms=record.retry_ms,
        command_memory_ms=record.command_memory_ms,
    )


def _scan(record: PolicyParameters, number: _NumberReader) -> Scan:
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


def _scale_rules(field: str, scale: Scale | None, number: _NumberReader) -> ScaleRules | None:
    if scale is None:
        return None
    names = ("reference", "floor", "cap", "change_per_minute")
    rules = ScaleRules(*(number.positive(f"{field}.{name}", getattr(scale, name)) for name in names))
    number.require(rules.floor <= rules.cap, f"{field}: floor must be at most cap")
    number.require(rules.cap <= SCALE_CAP_MOST, f"{field}: cap must be at most {SCALE_CAP_MOST}")
    return rules


def oracle_of(record: OracleParameters) -> OracleParameters:
    """``record`` itself: the oracle reads it as it is.

    Raises:
        ParameterError: the record breaks a rule.
    """
    number = _NumberReader(record.key)
    number.require(record.minimum_sources <= len(record.sources), "minimum_sources is more than there are sources")
    for source, weight in record.sources.items():
        number.positive(f"sources.{source}", weight)
    number.require(number("max_confidence_ratio", record.max_confidence_ratio) <= 1, "max_confidence_ratio is above 1")
    number.positive("max_deviation", record.max_deviation)
    number.positive("max_jump", record.max_jump)
    return record


# --- several records -------------------------------------------------------------------------------------------------


def check_settlement(instrument: Instrument, asset: AssetRules) -> None:
    """Whether ``instrument`` can settle in ``asset``: it does not price it, and its cash fits the decimals it states.

    Raises:
        ParameterError: it cannot.
    """
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


def check_bound(
    record: InstrumentParameters | AssetParameters, symbol: str | None, oracle: Mapping[str, OracleParameters]
) -> None:
    """What a price may be while it is not live must leave room for the jump that may have halted it.

    Raises:
        ParameterError: it does not, by the record of ``symbol`` in ``oracle``.
    """
    rules = None if symbol is None else oracle.get(symbol)
    if rules is not None and Decimal(record.stale_bound) <= Decimal(rules.max_jump):
        raise ParameterError(
            f"{record.key}: stale_bound {record.stale_bound} is not above max_jump {rules.max_jump} of {rules.key}: a "
            "price that jumped and was halted would be outside the bound; raise the one or lower the other"
        )


def check_scaled_by_open_interest(scaled: int) -> None:
    """One journal record tells the open interest of every instrument that is scaled by it, so their number is limited.

    Raises:
        ParameterError: there are too many.
    """
    if scaled > OPEN_INTEREST_SYMBOLS_MAX:
        raise ParameterError(f"more than {OPEN_INTEREST_SYMBOLS_MAX} instruments have an open_interest_scale")


def check_pools(named: int) -> None:
    """Every journal record tells what each pool has been given, so the number of those that are named is limited.

    Raises:
        ParameterError: there are too many.
    """
    if named > POOLS_MAX:
        raise ParameterError(f"instruments name more than {POOLS_MAX} pools in fund")
