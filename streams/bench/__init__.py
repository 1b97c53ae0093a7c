"""Measures parts of the pipeline: what a tick, a price and a restore cost, and whether memory stays flat."""
