"""Which transfer sequences of an account have come: each transfer counts once, in whatever order they arrive.

A range of sequences that have not come is a gap. So many gaps are remembered; of what lies below the last one that was
given up it is not known whether it has come.
"""

from collections.abc import Iterable
from typing import Literal

from schemas.messages import Range

GAPS_MAX = 32
"""Gaps remembered for one account; the lowest is given up for a new one."""

Verdict = Literal["new", "repeat", "unknown"]


class TransferSequences:
    """The sequences of one account's transfers.

    ``last`` is the highest that has come (-1: none), ``floor`` the first of which it is known whether it has;
    ``gaps`` are [first, next) pairs in ascending order, all below ``last`` and not below ``floor``.
    ``gaps_max`` None: any number of gaps.
    """

    __slots__ = ("_gaps_max", "floor", "gaps", "last")

    def __init__(
        self,
        last: int = -1,
        floor: int = 0,
        gaps: Iterable[tuple[int, int]] = (),
        gaps_max: int | None = GAPS_MAX,
    ) -> None:
        self.last, self.floor, self.gaps = last, floor, list(gaps)
        self._gaps_max = gaps_max

    def count(self, sequence: int) -> Verdict:
        """Count ``sequence`` (>= 0) as come; whether it is new, a repeat, or below what is known."""
        if sequence == self.last + 1:
            self.last = sequence
            return "new"
        if sequence > self.last:
            self.gaps.append((self.last + 1, sequence))
            self.last = sequence
            self._give_up_gaps()
            return "new"
        for index in range(len(self.gaps) - 1, -1, -1):
            first, end = self.gaps[index]
            if first <= sequence < end:
                self.gaps[index : index + 1] = [
                    part for part in ((first, sequence), (sequence + 1, end)) if part[0] < part[1]
                ]
                self._give_up_gaps()
                return "new"
        return "repeat" if sequence >= self.floor else "unknown"

    def ranges(self) -> tuple[Range, ...]:
        """The gaps as a row holds them."""
        return tuple(Range(first=first, next=end) for first, end in self.gaps)

    def _give_up_gaps(self) -> None:
        while self._gaps_max is not None and len(self.gaps) > self._gaps_max:
            self.floor = self.gaps.pop(0)[1]
