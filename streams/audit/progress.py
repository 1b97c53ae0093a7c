"""How an audit tells how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Told what is being done, how far it is, and of how much."""


def silent(what: str, done: int, total: int) -> None:
    """No progress."""
