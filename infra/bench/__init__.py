"""Benches of what is not this pipeline's code."""
