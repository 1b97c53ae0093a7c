"""The engine: joins events and marks per account, keeps collateral state, and decides liquidations exactly once."""
