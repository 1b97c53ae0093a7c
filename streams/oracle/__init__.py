"""The oracle: many sources' prices into one validated mark a symbol, and the pipeline's heartbeat."""
