"""A whole document for ``margin-clearing evaluate``: two instruments, a haircut, a cross and an isolated position."""

from typing import Any

EXAMPLE: dict[str, Any] = {
    "parameters": [
        {"type": "asset", "asset": "USDC", "decimals": 6},
        {
            "type": "asset",
            "asset": "BTC",
            "decimals": 8,
            "price_symbol": "BTC-PERP",
            "collateral_tiers": [{"quantity_floor": "0", "weight": "0.9"}],
            "liquidation_fee": "0.001",
        },
        {
            "type": "instrument",
            "symbol": "BTC-PERP",
            "settle_asset": "USDC",
            "price_increment": "0.1",
            "quantity_increment": "0.001",
            "margin_tiers": [
                {"notional_floor": "0", "maintenance_rate": "0.005", "initial_rate": "0.01"},
                {"notional_floor": "100000", "maintenance_rate": "0.01", "initial_rate": "0.02"},
            ],
            "liquidation_fee": "0.0006",
        },
        {
            "type": "instrument",
            "symbol": "ETH-PERP",
            "settle_asset": "USDC",
            "price_increment": "0.01",
            "quantity_increment": "0.01",
            "margin_tiers": [{"notional_floor": "0", "maintenance_rate": "0.01", "initial_rate": "0.02"}],
        },
        {"type": "policy", "liquidation_buffer_rate": "0.01"},
    ],
    "marks": {"BTC-PERP": "50000", "ETH-PERP": "2500"},
    "account": {
        "account": "acct-17",
        "balances": {"USDC": "-300", "BTC": "0.05"},
        "positions": [
            {"symbol": "BTC-PERP", "quantity": "2", "entry_price": "50950"},
            {
                "symbol": "ETH-PERP",
                "quantity": "-3",
                "entry_price": "2480",
                "margin": "isolated",
                "isolated_balances": {"USDC": "500"},
            },
        ],
    },
}
"""The cross group is below its maintenance margin and gets a plan; the isolated one is not."""
