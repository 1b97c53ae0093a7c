"""Measures parts of the pipeline from inside: what a tick costs, how long a restore takes, whether memory stays flat."""
