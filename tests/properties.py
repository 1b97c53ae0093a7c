"""How many examples a property is tried with: all of them under ``pytest --long``, a quarter otherwise.

The examples are the same in every run, whichever files run with them.
"""

from hypothesis import HealthCheck, settings

_ALL = 100


def load_profile(*, long: bool) -> None:
    """Set what holds for every property that says nothing else. To be called before tests are collected."""
    settings.register_profile(
        "properties",
        max_examples=_ALL if long else _ALL // 4,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    settings.load_profile("properties")


def examples(count: int) -> int:
    """How many to try of a property that is tried with ``count`` in a long run."""
    return count * settings().max_examples // _ALL
