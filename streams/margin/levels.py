"""Margin-call levels: at which health ratio the owner of a group is warned, without a flood of warnings at the edge.

Pure: the caller keeps the level a group is under and says so; alerts are the caller's business.
"""

from collections.abc import Sequence
from decimal import Decimal, localcontext

from streams.margin.fixed_point import EXACT

HYSTERESIS = Decimal("0.02")
"""A level that was reached is left only at ``level * (1 + HYSTERESIS)``."""


def decision_edges(levels: Sequence[Decimal]) -> tuple[Decimal, ...]:
    """Every health ratio at which a decision can change, ascending: 1, the levels, and where each of them is left."""
    with localcontext(EXACT):
        return tuple(sorted({Decimal(1), *levels, *(level * (1 + HYSTERESIS) for level in levels)}))


def margin_call_level(ratio: Decimal | None, levels: Sequence[Decimal], previous: Decimal | None) -> Decimal | None:
    """The margin-call level a group is under, or None.

    A level is reached when ``ratio < level`` (strictly, as liquidation at 1). A level that held before (``previous``,
    and every level above it) holds on until ``ratio >= level * (1 + HYSTERESIS)``. The lowest level that holds is the
    answer.

    Args:
        ratio: equity / maintenance; None when there is no maintenance margin, and then no level holds.
        levels: the levels of the policy, in any order.
        previous: the level the group was under at the last decision.
    """
    if ratio is None:
        return None
    with localcontext(EXACT):
        return min((level for level in levels if ratio < _edge(level, previous)), default=None)


def _edge(level: Decimal, previous: Decimal | None) -> Decimal:
    return level * (1 + HYSTERESIS) if previous is not None and level >= previous else level
