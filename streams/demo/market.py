"""The rules of the demo's exchange: which risk parameters and trading fees go with a recording.

Symbols and assets that the demo knows have margin tiers like those of large venues; any other symbol gets generic ones.
Promises parameters that the pipeline accepts: increments as fine as the recording needs, and never finer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from schemas.parameters import (
    AssetParameters,
    CollateralTier,
    InstrumentParameters,
    MarginTier,
    OracleParameters,
    Parameter,
    PolicyParameters,
    Scale,
)
from streams.demo.errors import RecordingError
from streams.demo.recording import Recording

SETTLE_ASSET = "USDC"
BORROWED_AGAINST = "BTC"
"""The second collateral asset; it exists if the symbol that prices it was recorded."""
BORROWED_AGAINST_SYMBOL = "BTC-PERP"

SETTLE_DECIMALS_MIN, SETTLE_DECIMALS_MAX = 6, 18
TAKER_FEE, MAKER_FEE = Decimal("0.0004"), Decimal("-0.00005")
COMMAND_TTL_MS = 5000

_TIERS = {
    "BTC-PERP": "0:0.004:0.008 50000:0.005:0.01 250000:0.01:0.02 1000000:0.025:0.05 5000000:0.05:0.1",
    "ETH-PERP": "0:0.005:0.01 50000:0.0065:0.013 250000:0.01:0.02 1000000:0.02:0.05 5000000:0.05:0.1",
}
_GENERIC_TIERS = "0:0.01:0.02 250000:0.02:0.04 1000000:0.05:0.1"
_LIQUIDATION_FEES = {"BTC-PERP": "0.003", "ETH-PERP": "0.003"}
_GENERIC_LIQUIDATION_FEE = "0.006"
_INSURANCE_FEE = "0.0005"
_MAX_ORDER_NOTIONAL = "50000"
_VOLATILITY_SCALE = Scale(reference="0.1", cap="1.5", change_per_minute="3")
_VOLATILITY_HALF_LIFE_MS, _SCALE_INTERVAL_MS = 4_000, 1_000
"""Far quicker than an exchange would have it: a replay takes seconds, and looks as volatile as it is fast."""
_BTC_COLLATERAL_TIERS = (
    CollateralTier(quantity_floor="0", weight="0.95"),
    CollateralTier(quantity_floor="50", weight="0.9"),
)


@dataclass(frozen=True, slots=True)
class Contract:
    """What trading a symbol needs to know. Rates are fractions of the notional."""

    symbol: str
    price_increment: Decimal
    quantity_increment: Decimal
    leverage_max: Decimal


@dataclass(frozen=True)
class Market:
    """The parameters of a recording's market, and what the demo itself needs of them."""

    parameters: tuple[Parameter, ...]
    contracts: dict[str, Contract]
    settle_decimals: int

    @property
    def borrowing(self) -> bool:
        """Whether there is a second collateral asset."""
        return BORROWED_AGAINST_SYMBOL in self.contracts

    def fee(self, rate: Decimal, price: Decimal, quantity: Decimal) -> Decimal:
        """``rate`` of the notional in the settle asset, rounded up to its smallest unit."""
        unit = Decimal(1).scaleb(-self.settle_decimals)
        return (rate * price * quantity).quantize(unit, rounding=ROUND_CEILING)


def market_of(recording: Recording) -> Market:
    """The market that ``recording`` is replayed in.

    Raises:
        RecordingError: a symbol's prices times its quantities are finer than a ledger of 18 decimals.
    """
    instruments = [_instrument(recording, symbol) for symbol in recording.symbols]
    decimals = max(SETTLE_DECIMALS_MIN, *(_cash_decimals(instrument) for instrument in instruments))
    if decimals > SETTLE_DECIMALS_MAX:
        raise RecordingError(f"price times quantity needs {decimals} decimals and the ledger has {SETTLE_DECIMALS_MAX}")
    contracts = {instrument.symbol: _contract(instrument) for instrument in instruments}
    assets = [AssetParameters(asset=SETTLE_ASSET, decimals=decimals, version=1)]
    if BORROWED_AGAINST_SYMBOL in contracts:
        assets.append(
            AssetParameters(
                asset=BORROWED_AGAINST,
                decimals=8,
                price_symbol=BORROWED_AGAINST_SYMBOL,
                collateral_tiers=_BTC_COLLATERAL_TIERS,
                version=1,
            )
        )
    policy = PolicyParameters(
        liquidation_buffer_rate="0.002",
        margin_call_levels=("1.5", "1.2", "1.05"),
        command_ttl_ms=COMMAND_TTL_MS,
        volatility_half_life_ms=_VOLATILITY_HALF_LIFE_MS,
        scale_interval_ms=_SCALE_INTERVAL_MS,
        version=1,
    )
    oracles = [_oracle(recording, symbol) for symbol in recording.symbols]
    return Market((*assets, policy, *instruments, *oracles), contracts, decimals)


def _instrument(recording: Recording, symbol: str) -> InstrumentParameters:
    trades = [trade for trade in recording.trades if trade.symbol == symbol]
    return InstrumentParameters(
        symbol=symbol,
        settle_asset=SETTLE_ASSET,
        price_increment=_increment(trade.price for trade in trades),
        quantity_increment=_increment(trade.quantity for trade in trades),
        margin_tiers=_tiers(_TIERS.get(symbol, _GENERIC_TIERS)),
        liquidation_fee=_LIQUIDATION_FEES.get(symbol, _GENERIC_LIQUIDATION_FEE),
        insurance_fee=_INSURANCE_FEE,
        max_order_notional=_MAX_ORDER_NOTIONAL,
        volatility_scale=_VOLATILITY_SCALE,
        version=1,
    )


def _oracle(recording: Recording, symbol: str) -> OracleParameters:
    sources = recording.sources(symbol)
    return OracleParameters(
        symbol=symbol,
        sources=dict.fromkeys(sources, "1"),
        minimum_sources=min(2, len(sources)),
        max_age_ms=5000,
        version=1,
    )


def _contract(instrument: InstrumentParameters) -> Contract:
    return Contract(
        symbol=instrument.symbol,
        price_increment=Decimal(instrument.price_increment),
        quantity_increment=Decimal(instrument.quantity_increment),
        leverage_max=1 / Decimal(instrument.margin_tiers[0].initial_rate),
    )


def _tiers(text: str) -> tuple[MarginTier, ...]:
    """Tiers written ``floor:maintenance:initial``, separated by spaces."""
    rows = (tier.split(":") for tier in text.split())
    return tuple(
        MarginTier(notional_floor=floor, maintenance_rate=maintenance, initial_rate=initial)
        for floor, maintenance, initial in rows
    )


def _increment(numbers: Iterable[str]) -> str:
    """The power of ten, at most 1, of which all ``numbers`` are multiples."""
    decimals = max(len(number.partition(".")[2]) for number in numbers)
    return format(Decimal(1).scaleb(-decimals), "f")


def _cash_decimals(instrument: InstrumentParameters) -> int:
    parts = (instrument.price_increment, instrument.quantity_increment)
    return sum(len(part.partition(".")[2]) for part in parts)
