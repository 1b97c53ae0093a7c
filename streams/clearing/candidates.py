"""Which groups may have to be treated otherwise than they are: found as columns, so that nobody else is looked at.

It promises to leave out only groups whose decision cannot have changed. The exact decision is made elsewhere.
"""

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from streams.clearing.accounts import Accounts
from streams.margin.bands import TriggerIndex
from streams.margin.portfolio import Portfolio
from streams.margin.screens import Columns
from streams.margin.slots import Rows

NO_ROWS: Rows = np.empty(0, dtype=np.int64)


class Candidates:
    """The groups of one shard, narrowed down: by price first, then by a screen of their columns."""

    def __init__(
        self, portfolio: Portfolio, accounts: Accounts, index: Callable[[Portfolio], TriggerIndex] = TriggerIndex
    ) -> None:
        self._portfolio = portfolio
        self._accounts = accounts
        self._index = index(portfolio)
        self._is_current = True

    def outdate(self) -> None:
        """Every group may have other bands than before."""
        self._is_current = False

    def renew(self) -> None:
        """Give every group new bands, if they are outdated."""
        if not self._is_current:
            self._index.rebuild()
            self._is_current = True

    def moved(self, prices: Mapping[str, Decimal]) -> list[Rows]:
        """The rows that new ``prices`` may concern: they have left their band, are stranded, or may have reached the
        target of their liquidation."""
        if not prices:
            return []
        return [self._index.crossed_all(prices), self._stranded_with(prices), self._at_target_with(prices)]

    def screen(self, rows: Rows) -> Rows:
        """Those of ``rows`` (int64[n], distinct) that a screen cannot rule out; all of them get new bands."""
        columns = self._portfolio.evaluate(rows)
        if self._is_current:
            self._index.update(rows, columns)
        suspects: Rows = rows[self._are_suspect(rows, columns)]
        return suspects

    def _are_suspect(self, rows: Rows, columns: Columns) -> npt.NDArray[np.bool_]:
        equity, maintenance, error, debt = columns.equity, columns.maintenance, columns.error, columns.debt
        suspect = columns.bounded & (error > 0) & (equity - maintenance <= error)
        level_now, needed = np.full(rows.size, np.inf), maintenance + debt > 0
        for level in self._portfolio.parameters.policy.margin_call_levels:
            edge = float(level)
            short = equity - edge * maintenance - (edge - 1) * debt
            level_now[needed & (short <= error * (1 + edge))] = edge
        suspect |= columns.decidable & (level_now != self._accounts.levels[rows])
        suspect |= self._are_watched(rows)
        return suspect

    def _are_watched(self, rows: Rows) -> npt.NDArray[np.bool_]:
        watched = self._accounts.agenda.watched
        if not watched:
            return np.zeros(rows.size, dtype=np.bool_)
        return np.isin(rows, np.fromiter(watched, dtype=np.int64, count=len(watched)))

    def _stranded_with(self, moved: Iterable[str]) -> Rows:
        """The groups without orders that hold what has a new price: it may change what can be done about them."""
        stranded = self._accounts.agenda.stranded
        if not stranded:
            return NO_ROWS
        rows = self._portfolio.rows_with(moved, as_rows(stranded))
        columns = self._portfolio.evaluate(rows)
        is_near = columns.bounded & (columns.equity - columns.maintenance <= columns.error)
        decided: Rows = rows[columns.decidable | is_near]
        return decided

    def _at_target_with(self, moved: Iterable[str]) -> Rows:
        """The groups to which their target matters, that hold what has a new price and may be healthy at it."""
        heeding = self._accounts.agenda.heeding
        if not heeding:
            return NO_ROWS
        return self._portfolio.may_be_at_target(self._portfolio.rows_with(moved, as_rows(heeding)))


def as_rows(rows: Iterable[int]) -> Rows:
    """``rows`` as a column (int64[n]), in order."""
    return np.array(sorted(rows), dtype=np.int64)
