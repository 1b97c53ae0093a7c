"""The router: every account's events to the account's shard, exactly once."""
