"""Measures parts of the pipeline from inside: what a tick and a restore cost, and whether memory stays flat."""
