"""Columns of decimal strings as columns of whole numbers, for many of them at once.

What is read here is read as ``fixed_point`` reads it one by one. A column that it would refuse anything of, or that
does not fit 64 bits, is left to it as a whole.
"""

from collections.abc import Sequence

import numpy as np

from streams.margin.amounts import Bools, Ints

_DIGITS_MAX = 18
_POWERS = 10 ** np.arange(_DIGITS_MAX + 1, dtype=np.int64)
_UNITS_MAX = 2.0**62
"""As a double, and well within 64 bits."""

_DIGIT, _POINT, _SIGN, _END, _OTHER = range(5)
_KINDS = np.full(256, _OTHER, dtype=np.uint8)
_KINDS[np.frombuffer(b"0123456789", dtype=np.uint8)] = _DIGIT
_KINDS[ord(".")], _KINDS[ord("-")], _KINDS[ord(",")] = _POINT, _SIGN, _END


def read_column(texts: Sequence[str]) -> tuple[Ints, Ints] | None:
    """int64[n] each: the digits of every one of n > 0 decimal strings as a number, with its sign, and how many of them
    are behind the point. None if one of the strings is no decimal string, or has more than 18 digits."""
    joined = ",".join(texts)
    if not joined.isascii():
        return None
    characters = np.frombuffer(f"{joined},".encode("ascii"), dtype=np.uint8)
    kinds = _KINDS[characters]
    ends = np.flatnonzero(kinds == _END)
    if ends.size != len(texts) or not _are_decimals(characters, kinds):
        return None
    begins = np.concatenate(([0], ends[:-1] + 1))
    points = np.flatnonzero(kinds == _POINT)
    field = np.searchsorted(ends, points)
    if (np.diff(field) == 0).any():
        return None
    fraction = np.zeros(ends.size, dtype=np.int64)
    fraction[field] = ends[field] - points - 1
    length = ends - begins - (kinds[begins] == _SIGN)
    length[field] -= 1
    if length.max() > _DIGITS_MAX:
        return None
    return np.fromstring(joined.replace(".", ""), dtype=np.int64, sep=","), fraction


def _are_decimals(characters: "np.typing.NDArray[np.uint8]", kinds: "np.typing.NDArray[np.uint8]") -> bool:
    """Whether all fields are decimal strings but for how many points and digits they have."""
    before = np.concatenate(([_END], kinds[:-1]))
    after = np.concatenate((kinds[1:], [_END]))
    is_sign, is_point, is_end = kinds == _SIGN, kinds == _POINT, kinds == _END
    begins = (before == _END) | (before == _SIGN)
    wrong: Bools = kinds == _OTHER
    wrong |= is_sign & (before != _END)
    wrong |= (is_sign | is_point) & (after != _DIGIT)
    wrong |= (is_point | is_end) & (before != _DIGIT)
    wrong |= begins & (characters == ord("0")) & (after == _DIGIT)
    return not wrong.any()


def in_units(digits: Ints, fraction: Ints, decimals: Ints) -> Ints | None:
    """int64[n]: what :func:`read_column` gave, as whole numbers of units of ``10**-decimals`` (int64[n], 0 to 18); None
    if one is finer than that or does not fit."""
    more = decimals - fraction
    if (more >= 0).all():
        units = digits * _POWERS[more]
        return units if (np.abs(digits.astype(np.float64)) * _POWERS[more]).max() < _UNITS_MAX else None
    step = _POWERS[np.maximum(-more, 0)]
    if (digits % step).any():
        return None
    return in_units(digits // step, np.minimum(fraction, decimals), decimals)
