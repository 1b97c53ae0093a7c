"""The market of the pipelines in memory: one contract, settled in USDC, with one oracle source."""

from typing import Any

TIER = {"notional_floor": "0", "maintenance_rate": "0.05", "initial_rate": "0.1"}
PARAMETER_RECORDS: list[dict[str, Any]] = [
    {"type": "asset", "asset": "USDC", "decimals": 6},
    {
        "type": "instrument",
        "symbol": "BTC-PERP",
        "settle_asset": "USDC",
        "price_increment": "0.1",
        "quantity_increment": "0.001",
        "margin_tiers": [TIER],
    },
    {"type": "oracle", "symbol": "BTC-PERP", "sources": {"a": "1"}, "max_jump": "0.5"},
]
