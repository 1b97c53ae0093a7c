"""Margin-call levels: reached below, left only well above."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.margin.levels import HYSTERESIS, margin_call_level

LEVELS = tuple(Decimal(level) for level in ("1.5", "1.2", "1.05"))


@pytest.mark.parametrize(
    ("ratio", "previous", "level"),
    [
        ("2", None, None),
        ("1.5", None, None),
        ("1.49999999", None, "1.5"),
        ("1.2", "1.5", "1.5"),
        ("1.19", "1.5", "1.2"),
        ("-3", None, "1.05"),
        ("1.51", "1.5", "1.5"),
        ("1.53", "1.5", None),
        ("1.52999999", "1.5", "1.5"),
        ("1.22", "1.2", "1.2"),
        ("1.23", "1.2", "1.5"),
        ("1.51", "1.05", "1.5"),
        ("3", "1.05", None),
    ],
)
def test_a_level_is_reached_below_it_and_left_two_per_cent_above(
    ratio: str, previous: str | None, level: str | None
) -> None:
    reached = margin_call_level(Decimal(ratio), LEVELS, None if previous is None else Decimal(previous))
    assert reached == (None if level is None else Decimal(level))


def test_without_a_maintenance_margin_no_level_holds() -> None:
    assert margin_call_level(None, LEVELS, LEVELS[0]) is None
    assert margin_call_level(Decimal(1), (), None) is None


@given(st.lists(st.decimals("0.9", "1.7", places=4), min_size=2, max_size=30))
def test_a_ratio_that_wavers_less_than_the_hysteresis_changes_the_level_at_most_once_each_way(
    walk: list[Decimal],
) -> None:
    level: Decimal | None = None
    changes: list[tuple[Decimal, Decimal | None, Decimal | None]] = []
    for ratio in walk:
        reached = margin_call_level(ratio, LEVELS, level)
        if reached != level:
            changes.append((ratio, level, reached))
        level = reached
    for ratio, before, after in changes:
        if after is not None and (before is None or after < before):
            assert ratio < after
        else:
            assert before is not None
            assert ratio >= before * (1 + HYSTERESIS)
