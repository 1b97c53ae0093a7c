"""Dynamic scales: how margin rates and haircuts follow volatility and open interest, slowly and within limits.

Pure: measures come in as data, the time between two steps as a number. Measuring, and publishing the scales for all
shards alike, are the oracle's business; putting them in force is ``RiskParameters.with_scales``.
"""

from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal, localcontext

from streams.errors import InputError
from streams.margin.fixed_point import EXACT, divide_ceiling, divide_floor
from streams.margin.parameters import ScaleRules

SCALE_INCREMENT = Decimal("0.01")
"""Scales are multiples of this: a change so small that it decides nothing should not have every account looked at."""

_MINUTE_US = Decimal(60_000_000)
_ONE = Decimal(1)


def target_scale(measure: Decimal, rules: ScaleRules) -> Decimal:
    """measure / reference between floor and cap; the quotient is rounded up to ``SCALE_INCREMENT``.

    Raises:
        InputError: the measure is not a finite number of at least 0.
    """
    if not measure.is_finite() or measure < 0:
        raise InputError(f"a measure of {measure} is no volatility and no open interest")
    return min(max(divide_ceiling(measure, rules.reference, SCALE_INCREMENT), rules.floor), rules.cap)


def step_scale(scale: Decimal, measures: Sequence[tuple[ScaleRules, Decimal | None]], elapsed_us: int) -> Decimal:
    """The scale of one record after ``elapsed_us`` microseconds on the way from ``scale`` to the product of the targets.

    It moves by at most the smallest ``change_per_minute`` for each minute passed. While a measure is not known (None)
    it stays; without any rules it is 1 at once.

    Raises:
        InputError: a measure is no measure, or time runs backwards.
    """
    if elapsed_us < 0:
        raise InputError(f"scales: {elapsed_us} microseconds have passed")
    if not measures:
        return _ONE
    with localcontext(EXACT):
        target = _ONE
        for rules, measure in measures:
            if measure is None:
                return scale
            target *= target_scale(measure, rules)
        target = target.quantize(SCALE_INCREMENT, rounding=ROUND_CEILING)
        fastest = min(rules.change_per_minute for rules, _ in measures)
        most = divide_floor(fastest * elapsed_us, _MINUTE_US, SCALE_INCREMENT)
        return scale + min(max(target - scale, -most), most)
