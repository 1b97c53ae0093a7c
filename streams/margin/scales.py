"""Dynamic scales: how margin rates and haircuts follow volatility and open interest, slowly and within limits.

Pure: measures come in as data, the time between two steps as a number. Measuring, and publishing the scales for all
shards alike, are the oracle's business; putting them in force is ``RiskParameters.with_scales``.
"""

from collections.abc import Sequence
from decimal import Decimal, localcontext

from streams.errors import InputError
from streams.margin.fixed_point import EXACT, divide_ceiling, divide_floor
from streams.margin.rules import ScaleRules

SCALE_INCREMENT = Decimal("0.01")
"""Scales are multiples of this: a change so small that it decides nothing should not have every account looked at."""

_MINUTE_US = Decimal(60_000_000)
_ONE = Decimal(1)

Measured = Sequence[tuple[ScaleRules, Decimal | None]]
"""The rules of one record, each with its measure, or None if that is not known."""


def target_scale(measured: Measured) -> Decimal | None:
    """The product of measure / reference, each between its floor and its cap; None while a measure is not known.

    Quotients and product are rounded up to ``SCALE_INCREMENT``, the quotients before they are held.

    Raises:
        InputError: a measure is not a finite number of at least 0.
    """
    with localcontext(EXACT):
        target = _ONE
        for rules, measure in measured:
            if measure is None:
                return None
            if not measure.is_finite() or measure < 0:
                raise InputError(f"a measure of {measure} is no volatility and no open interest")
            target *= min(max(divide_ceiling(measure, rules.reference, SCALE_INCREMENT), rules.floor), rules.cap)
    return divide_ceiling(target, _ONE, SCALE_INCREMENT)


def largest_change(measured: Measured, elapsed_us: int) -> Decimal:
    """How far the scale of a record may move in ``elapsed_us`` microseconds: by its slowest rules, in whole increments.

    Raises:
        InputError: time runs backwards.
    """
    if elapsed_us < 0:
        raise InputError(f"scales: {elapsed_us} microseconds have passed")
    slowest = min(rules.change_per_minute for rules, _ in measured)
    with localcontext(EXACT):
        return divide_floor(slowest * elapsed_us, _MINUTE_US, SCALE_INCREMENT)


def step_scale(scale: Decimal, target: Decimal, change: Decimal) -> Decimal:
    """``scale`` moved by at most ``change`` towards ``target``."""
    with localcontext(EXACT):
        return scale + min(max(target - scale, -change), change)
