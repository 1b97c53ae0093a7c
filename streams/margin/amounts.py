"""Columns of exact amounts: 64 bits each where that is enough, more for the few that need more.

An amount is ``high * 2**64 + low`` units of ``10**-decimals`` and ``fine`` units of ``10**-18``, ``low`` in int64 and
``fine`` from 0 to less than a unit: every amount has exactly one such form, and is 0 only if all three are. ``high``
and ``fine`` become columns when an amount first needs them. So whole units may be added to ``low`` alone while it stays
in int64 and every ``high`` within :func:`high_most`; what the units stand for, and that, is the portfolio's business.
"""

from decimal import Decimal
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from schemas.types import FRACTION_DIGITS_MAX
from streams.margin.fixed_point import INT64_MAX, decimal_units, from_units

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_WORD = 64
_HALF = 1 << (_WORD - 1)
_STEPS: tuple[int, ...] = tuple(10 ** (FRACTION_DIGITS_MAX - decimals) for decimals in range(FRACTION_DIGITS_MAX + 1))


def fine_step(decimals: int) -> int:
    """How many units of 10**-18 one of ``10**-decimals`` (0 to 18) is."""
    return _STEPS[decimals]


def high_most(units: int) -> int:
    """The largest size of ``high`` with which no ``low`` makes more than ``units`` units."""
    return max(0, (units - _HALF) >> _WORD)


def scalars(column: Ints) -> "memoryview[int]":
    """Scalar access to a column: several times as fast as NumPy's own."""
    return cast("memoryview[int]", memoryview(cast(Any, column)))


def grown(column: Ints, size: int, fill: int = 0) -> Ints:
    """``column`` and as many of ``fill`` as make it ``size`` long."""
    longer = np.full(size, fill, dtype=np.int64)
    longer[: column.size] = column
    return longer


class Amounts:
    """A column. ``low``, ``high``, ``fine``: int64[size], the latter two None while every amount has 0 there.

    ``view`` is ``low`` for scalars, ``wide`` whether one of the other two is there. Methods are told ``decimals``, or
    ``step``, its :func:`fine_step`: the amounts of one column need not share them.
    """

    __slots__ = ("_fine_view", "_high_view", "fine", "high", "low", "view", "wide")

    def __init__(self, size: int) -> None:
        self._set(np.zeros(size, dtype=np.int64), None, None)

    def _set(self, low: Ints, high: Ints | None, fine: Ints | None) -> None:
        self.low, self.view = low, scalars(low)
        self.high, self._high_view = high, None if high is None else scalars(high)
        self.fine, self._fine_view = fine, None if fine is None else scalars(fine)
        self.wide = high is not None or fine is not None

    def copy(self) -> "Amounts":
        """The same amounts in columns of their own."""
        copied = Amounts(0)
        parts = (None if part is None else part.copy() for part in (self.high, self.fine))
        copied._set(self.low.copy(), *parts)
        return copied

    def resize(self, size: int) -> None:
        """Make room for ``size`` amounts, the new ones 0."""
        parts = (None if part is None else grown(part, size) for part in (self.high, self.fine))
        self._set(grown(self.low, size), *parts)

    # --- one amount --------------------------------------------------------------------------------------------------

    def is_plain(self, index: int) -> bool:
        """Whether ``low`` is all there is."""
        return not self.wide or not (
            (self._high_view is not None and self._high_view[index])
            or (self._fine_view is not None and self._fine_view[index])
        )

    def units(self, index: int) -> int:
        """The whole units of the amount, rounded down."""
        low = self.view[index]
        return low if self._high_view is None else low + (self._high_view[index] << _WORD)

    def exact(self, index: int, decimals: int) -> int:
        """The amount in units of 10**-18."""
        fine = 0 if self._fine_view is None else self._fine_view[index]
        return self.units(index) * _STEPS[decimals] + fine

    def text(self, index: int, decimals: int) -> str:
        """The amount as a canonical decimal string."""
        if self.is_plain(index):
            return from_units(self.view[index], decimals)
        return from_units(self.exact(index, decimals), FRACTION_DIGITS_MAX)

    def decimal(self, index: int, decimals: int) -> Decimal:
        """The amount as an exact decimal."""
        if not self.wide or self.is_plain(index):
            return decimal_units(self.view[index], decimals)
        return decimal_units(self.exact(index, decimals), FRACTION_DIGITS_MAX)

    def put(self, index: int, units: int, fine: int = 0) -> int:
        """Make the amount ``units`` whole units and ``fine`` of 10**-18; its ``high``."""
        high = (units + _HALF) >> _WORD
        if high and self._high_view is None:
            self._set(self.low, np.zeros_like(self.low), self.fine)
        if fine and self._fine_view is None:
            self._set(self.low, self.high, np.zeros_like(self.low))
        self.view[index] = units - (high << _WORD)
        if self._high_view is not None:
            self._high_view[index] = high
        if self._fine_view is not None:
            self._fine_view[index] = fine
        return high

    def clear(self, index: int) -> None:
        """Make the amount 0."""
        self.view[index] = 0
        if self._high_view is not None:
            self._high_view[index] = 0
        if self._fine_view is not None:
            self._fine_view[index] = 0

    # --- many amounts ------------------------------------------------------------------------------------------------

    def held(self, at: "Ints | slice") -> Bools:
        """bool[n]: which of the amounts are not 0."""
        is_held: Bools = self.low[at] != 0
        for part in (self.high, self.fine):
            if part is not None:
                is_held |= part[at] != 0
        return is_held

    def within(self, at: Ints, most: int) -> Bools:
        """bool[n]: which of the amounts have at most ``most`` (in int64) whole units either way, by ``low`` alone."""
        low = self.low[at]
        is_within: Bools = (low <= most) & (low >= -most)
        if self.high is not None:
            is_within &= self.high[at] == 0
        return is_within

    def below_zero(self, at: Ints, decimals: int) -> int:
        """The sum of the amounts that are below 0, in units of 10**-18."""
        plain, low = self._plain(at), self.low[at]
        wide = (self.exact(index, decimals) for index in at[~plain].tolist())
        units: int = sum(low[plain & (low < 0)].tolist())
        return units * _STEPS[decimals] + sum(amount for amount in wide if amount < 0)

    def doubles(self, at: "Ints | slice", step: "int | Ints") -> "Ints | Floats":
        """The amounts in their units: int64[n] if they are whole units of 64 bits all of them, else float64[n].

        A double is off by at most 9.2 * 2**-53 of itself, and 0 only for an amount of 0. Three terms are added: ``low``
        and ``fine``, brought to one sign, and ``high * 2**64``. Where ``high`` is not 0 the terms together are at most
        3 times the amount (it is at least 2**63) and a unit.
        """
        low = self.low[at]
        if self.high is None and self.fine is None:
            return low
        if self.fine is None:
            in_units: Floats = low.astype(np.float64)
        else:
            fine = self.fine[at]
            down = (low < 0) & (fine > 0)
            in_units = (low + down).astype(np.float64) + (fine - down * np.asarray(step, dtype=np.int64)) / step
        if self.high is not None:
            in_units += self.high[at] * 2.0**_WORD
        return in_units

    def finer_than(self, at: Ints, before: int, decimals: int) -> bool:
        """Whether any amount, in units of ``10**-before``, is no whole number of ``10**-decimals``."""
        if decimals >= before:
            return self.fine is not None and bool((self.fine[at] % _STEPS[decimals]).any())
        plain = self._plain(at)
        return bool((self.low[at[plain]] % 10 ** (before - decimals)).any()) or any(
            self.exact(index, before) % _STEPS[decimals] for index in at[~plain].tolist()
        )

    def passes(self, at: "Ints | slice", high: int) -> bool:
        """Whether the size of any amount's ``high`` is above ``high``."""
        return self.high is not None and bool((np.abs(self.high[at]) > high).any())

    def rescale(self, at: Ints, before: int, after: int) -> None:
        """Hold the amounts ``at`` in units of ``10**-after`` in place of ``10**-before``, each as it is."""
        plain, low = self._plain(at), self.low[at]
        if after >= before:
            factor = 10 ** (after - before)
            plain &= (low <= INT64_MAX // factor) & (low >= -(INT64_MAX // factor))
            scaled = np.where(plain, low, 0) * np.int64(factor)
        else:
            divisor = np.int64(10 ** (before - after))
            plain &= low % divisor == 0
            scaled = low // divisor
        wide = at[~plain].tolist()
        amounts = [self.exact(index, before) for index in wide]
        self.low[at[plain]] = scaled[plain]
        for index, amount in zip(wide, amounts, strict=True):
            self.put(index, *divmod(amount, _STEPS[after]))

    def _plain(self, at: Ints) -> Bools:
        plain = np.ones(at.size, dtype=np.bool_)
        for part in (self.high, self.fine):
            if part is not None:
                plain &= part[at] == 0
        return plain
