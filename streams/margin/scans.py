"""Portfolio margin as columns: the scenario scan of many rows at once, in float64.

The formulas are those of ``models.ScannedMargin``; which rows are scanned, and the bound on the error, are the
business of the screens.
"""

from collections.abc import Mapping
from decimal import localcontext

import numpy as np

from streams.margin.amounts import Bools, Floats, Ints
from streams.margin.fixed_point import EXACT
from streams.margin.parameters import RiskParameters
from streams.margin.prices import sums
from streams.margin.rules import SCENARIOS


class ScanTables:
    """Scan rules by symbol id.

    ``scanned``: bool[symbols], whether it has any. ``floor_rate``: float64[symbols], the least margin on a notional of
    1. ``largest_rate``: float64[symbols], the most by which a signed value of 1 moves the margin in any scenario; 0
    where it is not scanned.
    """

    def __init__(self, parameters: RiskParameters, ids: Mapping[str, int]) -> None:
        self.scanned: Bools = np.zeros(len(ids), dtype=np.bool_)
        self.floor_rate = np.zeros(len(ids))
        self._losses = np.zeros((SCENARIOS, len(ids)))
        self._group: Ints = np.zeros(len(ids), dtype=np.int64)
        groups: dict[str, int] = {}
        for symbol, instrument in parameters.instruments.items():
            profile, index = instrument.scan, ids[symbol]
            if profile is not None:
                self.scanned[index] = True
                self.floor_rate[index] = float(profile.floor_rate)
                self._losses[:, index] = [-float(profit) for profit in parameters.policy.scan.profits(profile)]
                self._group[index] = groups.setdefault(profile.group, len(groups))
        self.largest_rate: Floats = np.maximum(np.abs(self._losses).max(axis=0), self.floor_rate)
        self._groups = max(len(groups), 1)
        with localcontext(EXACT):
            self._pairs = [
                (groups[first], groups[second], float(rate), float(1 - rate))
                for first, second, rate in parameters.policy.scan.offsets
                if first in groups and second in groups
            ]
        paired = {group for first, second, _, _ in self._pairs for group in (first, second)}
        self._alone = [group for group in range(self._groups) if group not in paired]

    def maintenance(
        self, owner: Ints, symbol: Ints, value: Floats, by_tiers: Floats, n: int, slack: Floats | None = None
    ) -> Floats:
        """Maintenance margins, float64[n], of the owners of positions of signed ``value``, in the unit of account.

        ``by_tiers``: what each position needs by its tiers, which counts where it cannot be scanned. ``slack``: how
        much less the scan may find for each position whose marks are not live; inf: nothing need be found at all.
        """
        place = owner * self._groups + self._group[symbol]
        losses = np.stack([sums(place, value * loss[symbol], n * self._groups) for loss in self._losses])
        losses = losses.reshape(SCENARIOS, n, self._groups)
        risk = _worst(losses)
        total: Floats = risk[:, self._alone].sum(axis=1)
        for first, second, offset, rest in self._pairs:
            together = _worst(losses[:, :, first] + losses[:, :, second])
            total += offset * together + rest * (risk[:, first] + risk[:, second])
        floor = sums(owner, np.abs(value) * self.floor_rate[symbol], n)
        unscanned = sums(owner, np.where(self.scanned[symbol], 0, by_tiers), n)
        risk = np.maximum(total, floor)
        if slack is not None:
            risk = np.maximum(risk - sums(owner, slack, n), 0)
        margin: Floats = risk + unscanned
        return margin


def _worst(losses: Floats) -> Floats:
    worst: Floats = np.maximum(losses.max(axis=0), 0)
    return worst
