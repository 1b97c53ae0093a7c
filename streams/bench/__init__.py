"""Measures parts of the pipeline: what a tick, a fill, a price and a restore cost, and whether memory stays flat."""
