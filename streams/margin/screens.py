"""The evaluation of a ledger's rows as float64 screens, at one set of prices.

Evaluating gives equity and maintenance of any rows in one pass of NumPy with a bound on their error, so that whatever
is further from its limit than the bound needs no exact decision. Which prices, which rows, and what to do about them is
left to the caller.
"""

from dataclasses import dataclass, fields

import numpy as np

from streams.margin.amounts import Bools, Floats, Ints, fine_step
from streams.margin.ledger import Ledger
from streams.margin.prices import Exposures, PriceTables, sums
from streams.margin.scans import ScanTables
from streams.margin.slots import Rows

_SPARSE, _SPARSE_ROWS = 14, 50_000
"""Picking rows costs 14 times as much per row as going through all of them, plus a start for small portfolios."""
_UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True, slots=True)
class Columns:
    """Screens of n rows, in the order asked for, in the unit of account.

    ``equity``, ``maintenance``, ``debt``: float64[n], debt being the weighted negative balances. ``error``: float64[n],
    a bound on |true - computed| of the three together. ``decidable``: bool[n], every mark the row needs is there and
    live. Where one is not, the figures are those of the corner that is best for the account, if anything bounds it:
    ``bounded``, bool[n].
    """

    equity: Floats
    maintenance: Floats
    error: Floats
    decidable: Bools
    debt: Floats
    bounded: Bools

    def of(self, rows: "Rows | slice") -> "Columns":
        """The screens of some of the rows, by their index here."""
        return Columns(*(getattr(self, name)[rows] for name in _COLUMNS))


_COLUMNS = tuple(field.name for field in fields(Columns))


class Screens:
    """The screens of a ledger at the prices in ``prices``, which must be current, and the scans of its parameters."""

    def __init__(self, ledger: Ledger, prices: PriceTables, scans: ScanTables) -> None:
        self._ledger, self._prices, self._scans = ledger, prices, scans

    def evaluate(self, rows: Rows | None = None) -> Columns:
        """Screen ``rows`` (int64[n]; None: every row below ``row_count``) at the current marks.

        ``error`` bounds |true equity - equity| + |true maintenance - maintenance| + |true debt - debt|. With u = 2**-53
        and G the sum of the absolute values of all terms of a row (lots * value of a lot, cash, balances):

        - every table entry is an exact decimal rounded once (relative error u), every amount becomes a double with
          relative error at most 9.2u (``Amounts.doubles``), so a position's value or cash, a product of the two, is off
          by at most 11.3u of itself;
        - a margin is the greatest of its tiers' lines, |x| * r_n - D_n. Each line is off by at most 14.4u |x| r_n +
          2.1u D_n; a tier is only looked at where |x| is above its floor, so D_n <= |x| r_n (1 + 13u), and r_n < 1.
          Taking the greatest of them, or leaving out a tier whose floor |x| passes by less than 13u, adds no more than
          13u |x|: at most 30u |x|;
        - a balance's value is the least of its lines b * w_k + o_k, each off by at most 14.5u of its parts, with
          weights at most 1, times a liability weight L >= 1 for debt: at most 17u L |b|;
        - at a best corner a position's value takes two factors more, and its cash and a balance one, each rounded
          once: 15.4u and 19.1u; G then is the sum of the terms at the highest corner;
        - adding K terms one after the other is off by at most 1.01 (K - 1) u times the sum of their absolute values,
          for equity, maintenance and debt alike;
        - under portfolio margin the loss in a scenario is a sum of products of a value and a rate, each off by at most
          13.4u of itself; adding them up, worst cases, offsets and floors add no more than (16 + 2.02 K) u of the sum
          of |value| * largest rate, which is part of G; what marks that are not live take from it is a sum of products
          of three factors, (17 + 1.01 K) u of that sum, which then is part of G as well.

        So the three errors together are at most (16 + 30 + 20 + 5.05 K) u G, with K at most the number of symbols and
        assets and the debts in G taken times L. G itself is computed with a relative error far below one. The bound
        used is more than twice that, (140 + 11 K) u G.
        """
        if rows is None:
            used, n = self._ledger.slots.used, self._ledger.row_count
            return self._screen(self._ledger.slots.row[:used], slice(0, used), slice(0, n), n)
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size * _SPARSE > self._ledger.row_count + _SPARSE_ROWS:
            every = self.evaluate()
            return every.of(rows)
        owners, slots = self._ledger.slots.chains(rows)
        return self._screen(owners, slots, rows, rows.size)

    def notional(self, rows: Rows) -> Floats:
        """float64[n]: what the positions of ``rows`` with live marks are worth, long and short alike."""
        owners, slots = self._ledger.slots.chains(rows)
        symbol = self._ledger.slots.symbol[slots]
        size = np.abs(self._ledger.slots.lots.doubles(slots, 1) * self._prices.lot_value[symbol])
        return sums(owners, np.where(self._prices.live[symbol], size, 0), rows.size)

    def _screen(self, owners: Ints, slots: "Ints | slice", rows: "Rows | slice", n: int) -> Columns:
        """``owners`` is the index into the result of each of ``slots``; ``rows`` picks the balances."""
        prices, table = self._prices, self._ledger.slots
        symbol = table.symbol[slots]
        lots = table.lots.doubles(slots, 1)
        value = lots * prices.lot_value[symbol]
        cash = self._ledger.cash_units(slots, symbol) * prices.cash_value[symbol]
        size = np.abs(value)
        margin = prices.maintenance(symbol, size)
        worth, terms = value + cash, size + np.abs(cash)
        decidable, bounded = np.ones(n, dtype=np.bool_), np.ones(n, dtype=np.bool_)
        if not prices.live.all():
            dim = np.flatnonzero(~prices.live[symbol])
            best = prices.at_best(symbol[dim], lots[dim] > 0, value[dim], cash[dim])
            worth[dim], terms[dim], margin[dim] = best.worth, best.gross, 0
            decidable[owners[dim]] = False
            bounded[owners[dim[best.unbounded]]] = False
        equity = sums(owners, worth, n)
        maintenance = sums(owners, margin, n)
        gross = sums(owners, terms, n)
        scanned = self._ledger.rows.scanned[rows]
        if scanned.any():
            gross += self._scan(scanned, owners, symbol, value, margin, maintenance)
        debt = np.zeros(n)
        for column in self._ledger.columns:
            units = column.amounts.doubles(rows, fine_step(column.decimals))
            if not units.any():
                continue
            worth, counted = prices.collateral(column.asset, units)
            equity += worth
            gross += counted
            if units.min() < 0:
                debt -= np.minimum(worth, 0)
            needing = prices.dim(column.asset, units)
            if needing is not None:
                decidable[needing] = False
        summands = len(self._ledger.symbols) + len(self._ledger.columns)
        error: Floats = gross * ((140 + 11 * summands) * _UNIT_ROUNDOFF)
        return Columns(equity, maintenance, error, decidable, debt, bounded)

    def _scan(
        self, scanned: Bools, owners: Ints, symbol: Ints, value: Floats, margin: Floats, maintenance: Floats
    ) -> Floats:
        """Put the margin by scenarios in the place of that by tiers where ``scanned`` (bool[n]).

        Returns float64[n], the sum of |value| * largest rate of those rows, and of what marks that are not live take.
        """
        held = np.flatnonzero(scanned[owners])
        numbers = np.cumsum(scanned) - 1
        owner, symbol, value = numbers[owners[held]], symbol[held], value[held]
        count = int(numbers[-1]) + 1
        sway, slack = np.abs(value) * self._scans.largest_rate[symbol], None
        if not self._prices.live.all():
            reach = np.where(self._scans.scanned[symbol], self._prices.reach[symbol], 0)
            lost = np.isinf(reach)
            taken = sway * np.where(lost, 0, reach)
            slack, sway = np.where(lost, np.inf, taken), sway + taken
        maintenance[scanned] = self._scans.maintenance(owner, symbol, value, margin[held], count, slack)
        swayed = np.zeros(scanned.size)
        swayed[scanned] = sums(owner, sway, count)
        return swayed

    def exposures(self, rows: Rows, reach: float) -> Exposures:
        """How equity, maintenance and debt of ``rows`` move with each live mark (see :class:`Exposures`)."""
        table, prices = self._ledger.slots, self._prices
        owners, slots = table.chains(rows)
        symbol = table.symbol[slots]
        lots = table.lots.doubles(slots, 1)
        value = lots * prices.lot_value[symbol]
        cash = self._ledger.cash_units(slots, symbol) * prices.cash_value[symbol]
        sway_rate = np.where(self._ledger.rows.scanned[rows][owners], self._scans.largest_rate[symbol], 0)
        parts, live = [], prices.live[symbol]
        if not live.all():
            dim = np.flatnonzero(~live)
            held = owners[dim], symbol[dim], lots[dim] > 0, value[dim], cash[dim], sway_rate[dim]
            parts += prices.dim_exposures(*held)
            owners, symbol, sway_rate = owners[live], symbol[live], sway_rate[live]
            value, cash = value[live], cash[live]
        parts += prices.exposures(owners, symbol, value, cash, sway_rate, reach)
        for column in self._ledger.columns:
            units = column.amounts.doubles(rows, fine_step(column.decimals))
            part = prices.collateral_exposures(column.asset, units) if units.any() else None
            if part is not None:
                parts.append(part)
        return Exposures.merged(parts, len(self._ledger.symbols))
