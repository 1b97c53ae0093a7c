"""What can go wrong with the local stack. Each text says what was wrong and what to do."""

from streams.errors import MarginClearingError


class LocalStackError(MarginClearingError):
    """The local Kafka or Valkey cannot be had or did not start."""
