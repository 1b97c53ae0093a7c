"""The audit: what was committed, run again, explained and counted from the logs alone. It reads and never writes."""
