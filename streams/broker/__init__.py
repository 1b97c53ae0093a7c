"""Thin wrappers of confluent-kafka: what this pipeline needs of Kafka, with its traps closed, and nothing more."""
