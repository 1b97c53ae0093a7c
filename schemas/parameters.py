"""The records of ``risk.parameters.v1``: what the risk managers set.

Each record is keyed ``type:id`` and the topic is compacted, so the last record of a key is in force. These types fix
shape and ranges; what must hold between the fields of a record or between records (tiers in order, settle asset known)
is checked by ``streams.margin.parameters``.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.types import Asset, DurationMs, PositiveDecimal, Sequence, Symbol, UnsignedDecimal


class MarginTier(msgspec.Struct, frozen=True, kw_only=True):
    """One notional tier: the rates hold for the part of the notional from ``notional_floor`` up to the next floor."""

    notional_floor: UnsignedDecimal
    maintenance_rate: UnsignedDecimal
    initial_rate: UnsignedDecimal


class CollateralTier(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity tier of a collateral asset: ``weight`` applies to the part of the quantity inside the tier."""

    quantity_floor: UnsignedDecimal
    weight: UnsignedDecimal


class InstrumentParameters(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="instrument"):
    """A linear perpetual or future and its margin rules. Key ``instrument:SYMBOL``.

    Closing a notional of ``depth_notional`` at once is expected to move the price by ``impact_rate`` of it: that decides
    in which order, and how evenly, a liquidation closes several positions.
    """

    symbol: Symbol
    settle_asset: Asset
    price_increment: PositiveDecimal
    quantity_increment: PositiveDecimal
    margin_tiers: Annotated[tuple[MarginTier, ...], Meta(min_length=1, max_length=64)]
    liquidation_fee: UnsignedDecimal = "0"
    insurance_fee: UnsignedDecimal = "0"
    max_order_notional: PositiveDecimal | None = None
    depth_notional: PositiveDecimal | None = None
    impact_rate: UnsignedDecimal = "0"
    version: Sequence = 0

    @property
    def key(self) -> str:
        return f"instrument:{self.symbol}"


class AssetParameters(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="asset"):
    """A collateral or settle asset. Key ``asset:ASSET``. ``price_symbol`` null: worth one unit of account."""

    asset: Asset
    decimals: Annotated[int, Meta(ge=0, le=18)] = 8
    price_symbol: Symbol | None = None
    collateral_tiers: Annotated[tuple[CollateralTier, ...], Meta(min_length=1, max_length=64)] = (
        CollateralTier(quantity_floor="0", weight="1"),
    )
    liability_weight: PositiveDecimal = "1"
    version: Sequence = 0

    @property
    def key(self) -> str:
        return f"asset:{self.asset}"


class PolicyParameters(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="policy"):
    """What holds for every account. Key ``policy:default``."""

    liquidation_buffer_rate: UnsignedDecimal = "0"
    margin_call_levels: Annotated[tuple[PositiveDecimal, ...], Meta(max_length=16)] = ()
    command_ttl_ms: DurationMs = 5000
    version: Sequence = 0

    @property
    def key(self) -> str:
        return "policy:default"


class OracleParameters(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="oracle"):
    """How one symbol's mark is formed. Key ``oracle:SYMBOL``. ``sources`` maps a source to its weight."""

    symbol: Symbol
    sources: Annotated[dict[str, PositiveDecimal], Meta(min_length=1, max_length=64)]
    minimum_sources: Annotated[int, Meta(ge=1, le=64)] = 1
    max_age_ms: DurationMs = 5000
    max_confidence_ratio: UnsignedDecimal = "0.01"
    max_deviation: UnsignedDecimal = "0.05"
    max_jump: UnsignedDecimal = "0.10"
    version: Sequence = 0

    @property
    def key(self) -> str:
        return f"oracle:{self.symbol}"


Parameter = InstrumentParameters | AssetParameters | PolicyParameters | OracleParameters
