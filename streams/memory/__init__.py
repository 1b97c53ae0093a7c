"""The pipeline without a broker: Kafka, Redis and time in memory, deterministic, for tests and for dry runs."""
