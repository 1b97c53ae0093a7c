"""Changing the number of shards while everything runs."""
