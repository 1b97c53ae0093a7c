"""Decimal strings, exact decimals and integer minor units, and the only ways to go from one to another.

Every sum and product of the risk mathematics runs in :data:`EXACT`, which raises rather than rounds, so a result that
exists is exact; a quotient exists only as a whole number of increments, rounded in a direction the caller names.
What the numbers mean is left to the other modules.
"""

import re
from decimal import (
    ROUND_CEILING,
    ROUND_FLOOR,
    Clamped,
    Context,
    Decimal,
    DivisionByZero,
    FloatOperation,
    Inexact,
    InvalidOperation,
    Overflow,
    Rounded,
    Subnormal,
    Underflow,
    localcontext,
)

from schemas.types import FRACTION_DIGITS_MAX, INTEGER_DIGITS_MAX
from streams.errors import InputError

EXACT = Context(
    prec=1024,
    Emin=-4096,
    Emax=4096,
    traps=[
        Clamped, DivisionByZero, FloatOperation, Inexact, InvalidOperation, Overflow, Rounded, Subnormal, Underflow,
    ],
)  # fmt: skip
"""The context of all sums and products. A number of the contract has at most 36 digits, no formula multiplies more
than fourteen of them (equity at a best corner times a scanned margin, for a limit price), and no group sums more than
10**18 terms: 1,024 digits are never reached, and if they were, the traps would raise."""

_ROUNDING = Context(prec=2048, Emin=-8192, Emax=8192)
"""Only for ``quantize`` with a direction: wide enough that nothing but the wanted places is ever rounded."""

INT64_MAX = 2**63 - 1

_POWERS: tuple[int, ...] = tuple(10**digits for digits in range(2 * FRACTION_DIGITS_MAX + 1))

_DECIMAL = re.compile(
    rf"(-?)(0|[1-9][0-9]{{0,{INTEGER_DIGITS_MAX - 1}}})(?:\.([0-9]{{1,{FRACTION_DIGITS_MAX}}}))?"
).fullmatch


def is_decimal(text: str) -> bool:
    """Whether ``text`` is a decimal string of the contract (see ``schemas.types``): no exponent, sign only ``-``."""
    return isinstance(text, str) and _DECIMAL(text) is not None


def parse_decimal(text: str) -> Decimal:
    """The exact value of a decimal string of the contract.

    Raises:
        InputError: not such a string.
    """
    if not is_decimal(text):
        raise InputError(f"{_shown(text)} is not a decimal string")
    value = Decimal(text)
    return value if value else Decimal(0)


def parse_units(text: str, decimals: int) -> int:
    """The whole number of units of ``10**-decimals`` in a decimal string; unbounded. The parser of the hot path.

    Raises:
        InputError: not a decimal string, or finer than a unit.
    """
    match = _DECIMAL(text) if isinstance(text, str) else None
    if match is None:
        raise InputError(f"{_shown(text)} is not a decimal string")
    sign, whole, fraction = match.groups("")
    finer: int = len(fraction) - decimals
    if finer > 0:
        if fraction[decimals:].strip("0"):
            raise InputError(f"{text} is finer than {decimals} decimals")
        fraction, finer = fraction[:decimals], 0
    return int(sign + whole + fraction) * _POWERS[-finer]


def units_limit(decimals: int) -> int:
    """The largest number of units of ``10**-decimals`` that fits int64 and whose decimal string the contract holds."""
    digits_limit: int = 10 ** (INTEGER_DIGITS_MAX + decimals) - 1
    return min(INT64_MAX, digits_limit)


def to_units(value: str | Decimal, decimals: int) -> int:
    """The whole number of units of ``10**-decimals`` in ``value``.

    Raises:
        InputError: not a decimal string, finer than a unit, or outside int64 or the digits of the contract.
    """
    units = _decimal_units(value, decimals) if isinstance(value, Decimal) else parse_units(value, decimals)
    if abs(units) > units_limit(decimals):
        raise InputError(f"{_shown(value)} at {decimals} decimals is outside the 64 bits of the ledger")
    return units


def from_units(units: int, decimals: int) -> str:
    """The canonical decimal string of ``units`` units of ``10**-decimals``: no trailing zeros, never ``-0``."""
    text = str(units)
    point = len(text) - decimals
    if point > 1:  # whatever its sign, there is a digit before the point
        fraction = text[point:].rstrip("0")
        return text[:point] + "." + fraction if fraction else text[:point]
    digits = str(abs(units)).rjust(decimals + 1, "0")
    if decimals:
        fraction = digits[-decimals:].rstrip("0")
        digits = digits[:-decimals] + ("." + fraction if fraction else "")
    return "-" + digits if units < 0 else digits


def decimal_units(units: int, decimals: int) -> Decimal:
    """``units`` units of ``10**-decimals`` as an exact decimal."""
    return EXACT.scaleb(Decimal(units), -decimals)


def format_decimal(value: Decimal, places: int | None = None, rounding: str = ROUND_FLOOR) -> str:
    """The canonical decimal string of ``value``: no exponent, no trailing zeros, never ``-0``.

    ``places`` is the number of fraction digits kept, at most the 18 that the contract holds (the default); what is
    finer is rounded in the direction ``rounding``, towards minus infinity unless told otherwise.

    Raises:
        InputError: ``value`` is not finite.
    """
    if not value.is_finite():
        raise InputError(f"{value} has no decimal string")
    kept = FRACTION_DIGITS_MAX if places is None else places
    if -int(value.as_tuple().exponent) > kept:
        value = value.quantize(Decimal(1).scaleb(-kept), rounding=rounding, context=_ROUNDING)
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def divide_floor(numerator: Decimal, denominator: Decimal, increment: Decimal) -> Decimal:
    """The largest multiple of ``increment`` (> 0) that is at most ``numerator / denominator``, exactly.

    Raises:
        decimal.DivisionByZero: ``denominator`` is zero.
    """
    with localcontext(EXACT):
        if denominator < 0:
            numerator, denominator = -numerator, -denominator
        unit = denominator * increment
        steps = numerator // unit  # truncates towards zero, and is exact as an integer
        if steps * unit > numerator:
            steps -= 1
        return steps * increment


def divide_ceiling(numerator: Decimal, denominator: Decimal, increment: Decimal) -> Decimal:
    """The smallest multiple of ``increment`` (> 0) that is at least ``numerator / denominator``, exactly."""
    with localcontext(EXACT):
        if denominator < 0:
            numerator, denominator = -numerator, -denominator
        unit = denominator * increment
        steps = numerator // unit
        if steps * unit < numerator:
            steps += 1
        return steps * increment


def fraction_digits(value: Decimal) -> int:
    """The number of digits after the point that ``value`` needs."""
    return max(0, -int(value.normalize(_ROUNDING).as_tuple().exponent))


def _decimal_units(value: Decimal, decimals: int) -> int:
    if not value.is_finite() or abs(value.adjusted()) > 2 * (INTEGER_DIGITS_MAX + FRACTION_DIGITS_MAX):
        if value == 0:
            return 0
        raise InputError(f"{value} is outside the range of the ledger")
    scaled = value.scaleb(decimals, context=_ROUNDING)
    units = int(scaled)
    if units != scaled:
        raise InputError(f"{value} is finer than {decimals} decimals")
    return units


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


__all__ = [
    "EXACT",
    "INT64_MAX",
    "ROUND_CEILING",
    "ROUND_FLOOR",
    "decimal_units",
    "divide_ceiling",
    "divide_floor",
    "format_decimal",
    "fraction_digits",
    "from_units",
    "parse_decimal",
    "parse_units",
    "to_units",
    "units_limit",
]
