"""Which transfer sequences of an account have come: each transfer counts once, in whatever order they arrive.

A range of sequences that have not come is a gap. So many gaps are remembered; of what lies below the highest one that
was given up, and in no gap, it is not known whether it has come.

A sequence far beyond the last may be a stray one: then the account's own go on in the gap before it. So the lowest gaps
that are that wide are not given up, whatever comes beyond them.
"""

from typing import Any, Literal

import msgspec

from schemas.messages import Range

GAPS_MAX = 32
"""Gaps remembered for one account; the lowest is given up for a new one, but for the lowest wide ones."""

STRAY_SEQUENCES = 1_000_000
"""A gap is wide that has more sequences than this: more than are left out."""

WIDE_GAPS_KEPT = GAPS_MAX // 4
"""Wide gaps that are not given up. It leaves room for others where every gap is wide: sequences may be times."""

NO_GAPS: Any = ()
"""What all accounts share that have no gap: a list would take more memory than all the rest of the sequences."""

Verdict = Literal["new", "repeat", "unknown"]


class TransferSequences(msgspec.Struct, gc=False):
    """The sequences of one account's transfers.

    ``last`` is the highest that has come (-1: none), ``floor`` the first from which on it is known of each whether it
    has; ``gaps`` are [first, next) pairs in ascending order, all below ``last``: what is in them has not come. It may
    be shared as long as it is empty.
    """

    last: int = -1
    floor: int = 0
    gaps: list[tuple[int, int]] = NO_GAPS

    def count(self, sequence: int, gaps_max: int | None = GAPS_MAX) -> Verdict:
        """Count ``sequence`` (>= 0) as come; whether it is new, a repeat, or below what is known.

        ``gaps_max`` None: any number of gaps is remembered.
        """
        if sequence == self.last + 1:
            self.last = sequence
            return "new"
        if sequence > self.last:
            if not self.gaps:
                self.gaps = []
            self.gaps.append((self.last + 1, sequence))
            self.last = sequence
            self._give_up_gaps(gaps_max)
            return "new"
        for index in range(len(self.gaps) - 1, -1, -1):
            first, end = self.gaps[index]
            if first <= sequence < end:
                self.gaps[index : index + 1] = [
                    part for part in ((first, sequence), (sequence + 1, end)) if part[0] < part[1]
                ]
                self._give_up_gaps(gaps_max)
                return "new"
        return "repeat" if sequence >= self.floor else "unknown"

    def ranges(self) -> tuple[Range, ...]:
        """The gaps as a row holds them."""
        return tuple(Range(first=first, next=end) for first, end in self.gaps)

    def _give_up_gaps(self, gaps_max: int | None) -> None:
        while gaps_max is not None and len(self.gaps) > gaps_max:
            _, end = self.gaps.pop(self._lowest_to_give_up(min(WIDE_GAPS_KEPT, gaps_max)))
            self.floor = max(self.floor, end)
        if not self.gaps:
            self.gaps = NO_GAPS

    def _lowest_to_give_up(self, kept: int) -> int:
        """The index of the lowest gap that is not one of the ``kept`` lowest wide ones."""
        for index, (first, end) in enumerate(self.gaps):
            if end - first <= STRAY_SEQUENCES or not kept:
                return index
            kept -= 1
        return 0
