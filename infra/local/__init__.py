"""A real Kafka and a real Valkey on this machine, from wheels: what the demo, the tests and a developer run against."""
