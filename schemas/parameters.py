"""The records of ``risk.parameters.v1``: what the risk managers set.

Each record is keyed ``type:id`` and the topic is compacted, so the last record of a key is in force. These types fix
shape and ranges; what must hold between the fields of a record or between records (tiers in order, settle asset known)
is checked by ``streams.margin.parameter_checks``.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.types import (
    Asset,
    DurationMs,
    HoldMs,
    Identifier,
    PoolName,
    PositiveDecimal,
    Sequence,
    SignedDecimal,
    Symbol,
    UnsignedDecimal,
)


class MarginTier(msgspec.Struct, frozen=True, kw_only=True):
    """One notional tier: the rates hold for the part of the notional from ``notional_floor`` up to the next floor."""

    notional_floor: UnsignedDecimal
    maintenance_rate: UnsignedDecimal
    initial_rate: UnsignedDecimal


class CollateralTier(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity tier of a collateral asset: ``weight`` applies to the part of the quantity inside it."""

    quantity_floor: UnsignedDecimal
    weight: UnsignedDecimal


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How rates follow a measure: they are multiplied by measure / ``reference``, held between ``floor`` and ``cap``.

    ``change_per_minute`` is how much the factor may change in a minute.
    """

    reference: PositiveDecimal
    floor: PositiveDecimal = "1"
    cap: PositiveDecimal = "4"
    change_per_minute: PositiveDecimal = "0.5"


class InstrumentParameters(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="instrument"):
    """A linear perpetual or future and its margin rules. Key ``instrument:SYMBOL``.

    Closing a notional of ``depth_notional`` at once is expected to move the price by ``impact_rate`` of it: that
    decides in which order, and how evenly, a liquidation closes several positions.

    Its margin rates are multiplied by ``volatility_scale`` (measure: the standard deviation of its mark in a day, as a
    fraction) and by ``open_interest_scale`` (measure: the notional of all long positions, in the settle asset).

    Under portfolio margin, positions of one ``scan_group`` are valued together in each scenario. ``scan_range`` is the
    price move scanned, as a fraction; ``scan_array``, if given, is the profit of a long of notional 1 in each of the
    scenarios instead (as a pricing model finds it), and ``scan_floor_rate`` the least margin on a notional of 1.

    Of the notional of every fill of a liquidation command's order the account pays ``insurance_fee`` and
    ``liquidation_fee``, as far as its unweighted equity goes, to the pool that ``fund`` names: the pipeline books them,
    and the exchange must not charge them as well. ``close_fee_rate`` is what the exchange takes of a close beside them.
    ``min_order_notional`` is the smallest order that the venue takes, in the settle asset. ``stale_bound``: while the
    mark is not live, the price is taken to be anything from nothing to 1 + ``stale_bound`` times the last one.
    """

    symbol: Symbol
    settle_asset: Asset
    price_increment: PositiveDecimal
    quantity_increment: PositiveDecimal
    margin_tiers: Annotated[tuple[MarginTier, ...], Meta(min_length=1, max_length=64)]
    liquidation_fee: UnsignedDecimal = "0"
    insurance_fee: UnsignedDecimal = "0"
    close_fee_rate: UnsignedDecimal = "0"
    fund: PoolName = "default"
    max_order_notional: PositiveDecimal | None = None
    depth_notional: PositiveDecimal | None = None
    impact_rate: UnsignedDecimal = "0"
    scan_group: Symbol | None = None
    scan_range: PositiveDecimal | None = None
    scan_array: Annotated[tuple[SignedDecimal, ...], Meta(max_length=64)] = ()
    scan_floor_rate: UnsignedDecimal = "0"
    volatility_scale: Scale | None = None
    open_interest_scale: Scale | None = None
    min_order_notional: PositiveDecimal | None = None
    stale_bound: PositiveDecimal = "9"
    version: Sequence = 0

    @property
    def key(self) -> str:
        return f"instrument:{self.symbol}"


class AssetParameters(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="asset"):
    """A collateral or settle asset. Key ``asset:ASSET``. ``price_symbol`` null: worth one unit of account.

    ``liquidation_fee`` says that the execution services can sell it for debts, or buy it to pay one, on the spot market
    of ``price_symbol``, and what that costs as a fraction of the value traded: a liquidation then does so wherever it
    is cheaper than closing positions. Without it they are asked to only when closing positions is not enough.

    Its haircuts (1 - weight) are multiplied by ``volatility_scale`` (measure: the standard deviation of the mark of
    ``price_symbol`` in a day, as a fraction). ``min_order_notional`` is the smallest order on the market of
    ``price_symbol``, in the unit of account; ``stale_bound`` is that of an instrument, for its price.
    """

    asset: Asset
    decimals: Annotated[int, Meta(ge=0, le=18)] = 8
    price_symbol: Symbol | None = None
    collateral_tiers: Annotated[tuple[CollateralTier, ...], Meta(min_length=1, max_length=64)] = (
        CollateralTier(quantity_floor="0", weight="1"),
    )
    liability_weight: PositiveDecimal = "1"
    liquidation_fee: UnsignedDecimal | None = None
    volatility_scale: Scale | None = None
    min_order_notional: PositiveDecimal | None = None
    stale_bound: PositiveDecimal = "9"
    version: Sequence = 0

    @property
    def key(self) -> str:
        return f"asset:{self.asset}"


class ScanOffset(msgspec.Struct, frozen=True, kw_only=True):
    """Two scan groups that hedge each other when they lean opposite ways: ``rate`` of the smaller risk is forgiven."""

    first: Symbol
    second: Symbol
    rate: UnsignedDecimal


class PolicyParameters(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="policy"):
    """What holds for every account. Key ``policy:default``.

    ``portfolio_margin_accounts`` are margined by scanning scenarios instead of by tiers: extreme moves are
    ``scan_extreme_multiple`` times the range and count ``scan_extreme_weight``; the initial margin is
    ``scan_initial_scale`` times the maintenance margin.

    Volatility is an average whose weights halve every ``volatility_half_life_ms``; rates are scaled anew at most every
    ``scale_interval_ms``.

    What a missing mark keeps from being decided for ``undecided_alert_ms`` is alerted. A clock counts as the broker's,
    ``clock_skew_ms_max`` more or less.

    A command waits until all is in that Kafka had acknowledged before the account's last event: for a source that does
    not move, ``incomplete_hold_ms`` at most (0: no command waits; else at least 1,000). One that a mark caused waits
    ``stale_input_hold_ms`` at most for sources that are known to be behind.

    The orders of a group's command number k, from 0 on, may be filled between the mark and ``limit_ladder[k]`` of the
    way to the bankruptcy price, at most ``slices_open_max`` orders at once. The next command is number k + 1 if less
    than ``min_progress_rate`` of the notional of this one was filled; behind the last number the group is taken over,
    and it begins anew once it is healthy at its target. It is taken over in any case when its unweighted equity is
    below ``backstop_rate`` times its maintenance margin. After a command of which nothing was filled there is none for
    ``retry_ms``. A command that has ended is remembered for ``command_memory_ms``.
    """

    liquidation_buffer_rate: UnsignedDecimal = "0"
    margin_call_levels: Annotated[tuple[PositiveDecimal, ...], Meta(max_length=16)] = ()
    command_ttl_ms: DurationMs = 5000
    portfolio_margin_accounts: Annotated[tuple[Identifier, ...], Meta(max_length=10_000)] = ()
    scan_offsets: Annotated[tuple[ScanOffset, ...], Meta(max_length=1000)] = ()
    scan_extreme_multiple: PositiveDecimal = "2"
    scan_extreme_weight: UnsignedDecimal = "0.35"
    scan_initial_scale: PositiveDecimal = "1.25"
    volatility_half_life_ms: DurationMs = 600_000
    scale_interval_ms: DurationMs = 10_000
    undecided_alert_ms: DurationMs = 5_000
    clock_skew_ms_max: DurationMs = 2_000
    incomplete_hold_ms: HoldMs = 10_000
    stale_input_hold_ms: HoldMs = 1_000
    limit_ladder: Annotated[tuple[PositiveDecimal, ...], Meta(min_length=1, max_length=16)] = ("0.25", "0.5", "1")
    min_progress_rate: UnsignedDecimal = "0.05"
    slices_open_max: Annotated[int, Meta(ge=1, le=512)] = 16
    backstop_rate: UnsignedDecimal = "0"
    retry_ms: DurationMs = 1_000
    command_memory_ms: DurationMs = 60_000
    version: Sequence = 0

    @property
    def key(self) -> str:
        return "policy:default"


class OracleParameters(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="oracle"):
    """How one symbol's mark is formed. Key ``oracle:SYMBOL``. ``sources`` maps a source to its weight.

    A price counts for ``max_age_ms`` and if its confidence is at most ``max_confidence_ratio`` of it. With m1 <= m2 the
    lower and upper weighted median of those that count, the mark is (m1 + m2) / 2, rounded down at 18 places. It is
    live if m2 - m1 <= ``max_deviation`` * m1 and the sources within ``max_deviation`` of it hold more than half of the
    weight of those that count and are at least ``minimum_sources``.

    A mark further than ``max_jump`` from the last live one is halted until it is back, or more than half of the
    configured weight and at least two sources have shown the new level (all prices within ``max_jump`` of it, one of
    them ``jump_confirm_ms`` or more after it began), or the level has lasted ``max_age_ms``, or, ``jump_halt_ms_max``
    after the halt began, more than half of the configured weight agrees.

    A source's sequence rises; one that does not is heard if its publish_time is more than ``max_age_ms`` after the
    source's last.
    """

    symbol: Symbol
    sources: Annotated[dict[str, PositiveDecimal], Meta(min_length=1, max_length=64)]
    minimum_sources: Annotated[int, Meta(ge=1, le=64)] = 1
    max_age_ms: DurationMs = 5000
    max_confidence_ratio: UnsignedDecimal = "0.01"
    max_deviation: UnsignedDecimal = "0.05"
    max_jump: UnsignedDecimal = "0.10"
    jump_confirm_ms: DurationMs = 500
    jump_halt_ms_max: DurationMs = 30_000
    version: Sequence = 0

    @property
    def key(self) -> str:
        return f"oracle:{self.symbol}"


Parameter = InstrumentParameters | AssetParameters | PolicyParameters | OracleParameters
