"""Dynamic scales: how margin rates and haircuts follow volatility and open interest, slowly and within limits.

Pure: the targets come in as data with the marks, the time between two steps as a number. Measuring volatility, and
putting the scaled parameters in force (``RiskParameters.with_scales``), are the caller's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext

from streams.errors import InputError
from streams.margin.fixed_point import EXACT, divide_floor
from streams.margin.parameters import Limits

_MINUTE_US = Decimal(60_000_000)
_PLACE = Decimal("0.000001")
_ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class ScaleTarget:
    """What the rates of one record should be multiplied by: the product of the two."""

    volatility_scale: Decimal = _ONE
    open_interest_scale: Decimal = _ONE


def step_scales(
    scales: Mapping[str, Decimal], targets: Mapping[str, ScaleTarget], elapsed_us: int, limits: Limits
) -> dict[str, Decimal]:
    """The scales after ``elapsed_us`` microseconds on the way from ``scales`` to ``targets``, both by record key.

    A target is first brought between floor and cap; a scale then moves towards it by at most ``change_per_minute`` for
    each minute passed, in steps of a millionth. What has no target goes back to 1, what has no scale starts there;
    scales of 1 are left out.

    Raises:
        InputError: a target is not a finite number above 0, or time runs backwards.
    """
    if elapsed_us < 0:
        raise InputError(f"scales: {elapsed_us} microseconds have passed")
    stepped = {}
    with localcontext(EXACT):
        most = divide_floor(limits.change_per_minute * elapsed_us, _MINUTE_US, _PLACE)
        for key in sorted({*scales, *targets}):
            target = _bounded(key, targets.get(key, ScaleTarget()), limits)
            scale = scales.get(key, _ONE)
            scale += min(max(target - scale, -most), most)
            if scale != 1:
                stepped[key] = scale
    return stepped


def _bounded(key: str, target: ScaleTarget, limits: Limits) -> Decimal:
    volatility, open_interest = target.volatility_scale, target.open_interest_scale
    if not (volatility.is_finite() and open_interest.is_finite() and volatility > 0 and open_interest > 0):
        raise InputError(f"{key}: the scales {volatility} and {open_interest} must be above 0")
    product = divide_floor(volatility * open_interest, _ONE, _PLACE)
    return min(max(product, limits.floor), limits.cap)
