"""Which groups a new mark concerns: every other one is inside a band in which its decision cannot change.

It promises never to miss a group whose health ratio has passed an edge (1, a margin-call level, or where a level is
left), and to look only at those that a mark really carries out of their bands. Deciding about them is the caller's
business.

The mathematics. For an edge b, let f = equity - b * maintenance - (b - 1) * debt; a decision changes where f changes
its sign. f is concave in every mark, so from today's marks

- it falls by at most its slope at the far end of a move (the steepest, as rates rise with the notional), and
- it rises by at most its slope at the near end.

With the slack h = |f|, and the loss a_s per relative move of symbol s towards the edge, the group cannot reach the edge
while every symbol stays within a relative distance d_s with sum a_s * d_s <= h. Any split of h will do. A symbol of
volatility v_s leaves its band at a rate of (v_s / d_s)**2, and the sum of those rates is least for
d_s ~ (v_s**2 / a_s)**(1/3). A symbol whose moves only lead away from an edge has no trigger on that side at all.

Under portfolio margin the slope of the maintenance margin depends on which scenario is the worst; at every mark it is
between minus and plus the largest scenario rate times the position, and that is what a_s is taken to hold.

A group that needs a mark which is not live has one edge, f = equity - maintenance at its best corner, and triggers at
its live marks only. What such a holding is worth at best has a slope between nothing and its own in a mark that is
live, and a_s is taken to hold that. Whoever uses the index looks at the holders of a symbol when its mark begins or
ceases to be live, and when it moves without being live.

A position settled in an asset with a price of its own moves with two marks that multiply. While the asset's mark stays
below (1 + REACH) times today's, which gets a trigger of its own, a_s is at most (1 + REACH) times as large.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from streams.margin.amounts import Bools, Floats, Ints
from streams.margin.levels import decision_edges
from streams.margin.portfolio import Portfolio
from streams.margin.prices import Exposures
from streams.margin.screens import Columns
from streams.margin.slots import Rows

REACH = 0.25
"""Largest relative distance of a band upwards: rates above the tier reached there are not looked at."""

_CUSHION = 1e-9
_CUSHION_LEAST = 1e-14
"""A band is narrower by this part of itself, and by this part of the mark: more than rounding to doubles moves it."""

_SLOPE_ERROR = 2.0**-44
"""Part of the gross exposure by which a slope is taken larger: more than the error of adding it up."""

_VARIANCE_START = 1e-8
_VARIANCE_LEAST = 1e-14
_VARIANCE_MEMORY = 0.99

_ROW_SHIFT = 32
"""A ticket is a row, shifted so far, plus how often its bands have been made anew; only a row's latest counts."""

_ENTERED_MAX = 512
"""About how many batches of triggers wait for their symbol to move before they are sorted in."""

_FANOUT = 4
"""How many runs of triggers of about one size there are before they are merged."""

REBAND_SHARE = 256
REBAND_LEAST = 4096
"""At most this many rows, or this part of all of them, get new bands in one update. The others wait, awake."""


class TriggerIndex:
    """For each symbol, its groups' triggers in order of price, downwards and upwards.

    Use: set the new marks in the portfolio, collect :meth:`crossed` of each, decide those rows, then :meth:`update`
    them. Rows that fills, transfers or new groups touched need an update too, and all rows after a change of
    parameters. When a mark becomes live again, every row with the symbol is to be decided (``Portfolio.rows_with``):
    while it was not live, crossings were reported in vain.
    """

    def __init__(self, portfolio: Portfolio) -> None:
        """Index every row of ``portfolio`` at its marks."""
        self._portfolio = portfolio
        self._ticket: Ints = np.zeros(0, dtype=np.int64)
        self._awake: Bools = np.zeros(0, dtype=np.bool_)
        self._awake_count = 0
        self._ladders: list[_Ladder] = []
        self._price: dict[str, float] = {}
        self._variance: Floats = np.zeros(0)
        self._levels: tuple[Decimal, ...] = ()
        self._edges: Floats = np.ones(1)
        self._batches = 0
        self.rebuild()

    @property
    def awake_count(self) -> int:
        """Rows without a band: they are in every answer of :meth:`crossed` until an update reaches them."""
        return self._awake_count

    @property
    def trigger_count(self) -> int:
        """Triggers held, those that no longer count included."""
        return sum(len(ladder) for ladder in self._ladders)

    def rebuild(self) -> None:
        """Give every row new bands at once: at the start and after a change of parameters."""
        self._ladders, self._price = [], {}
        self._variance = np.zeros(0)
        self._fit()
        rows = np.arange(self._portfolio.row_count, dtype=np.int64)
        self._sleep(rows)
        self._band(rows, self._portfolio.evaluate())
        self._price = {symbol: float(mark) for symbol, mark in self._portfolio.marks.items()}

    def update(self, rows: Rows, columns: Columns | None = None) -> None:
        """Give ``rows`` (int64[n], distinct) new bands around the portfolio's marks.

        ``columns`` is their evaluation at those marks, if the caller has it. Of many rows only some get bands; the rest
        stays awake and has its turn in later updates, so that no update takes much longer than a full evaluation.
        """
        self._fit()
        most = max(REBAND_LEAST, self._portfolio.row_count // REBAND_SHARE)
        if rows.size > most:
            self._wake(rows[most:])
            rows, columns = rows[:most], None if columns is None else columns.of(slice(0, most))
        elif self._awake_count and rows.size < most:
            rows, columns = self._with_waiting(rows, most), None
        if rows.size:
            self._sleep(rows)
            self._band(rows, self._portfolio.evaluate(rows) if columns is None else columns)

    def crossed(self, symbol: str, price: Decimal | str | float) -> Rows:
        """int64[k], ascending: the rows that the new mark of ``symbol`` carries out of a band, and those awake."""
        return self.crossed_all({symbol: price})

    def crossed_all(self, prices: Mapping[str, Decimal | str | float]) -> Rows:
        """:meth:`crossed` of several new marks at once. The rows found must be updated: their triggers are spent."""
        self._fit()
        crossed = [rows for symbol, price in prices.items() for rows in self._crossed(symbol, float(price))]
        if self._awake_count:
            crossed.append(np.flatnonzero(self._awake))
        return _distinct(crossed, self._awake.size)

    # --- rows --------------------------------------------------------------------------------------------------------

    def _fit(self) -> None:
        """Make room for the rows and symbols the portfolio has got since."""
        known, rows = self._ticket.size, self._portfolio.row_count - self._ticket.size
        if rows > 0:
            more = max(rows, known)
            fresh = np.arange(known, known + more, dtype=np.int64) << _ROW_SHIFT
            self._ticket = np.concatenate([self._ticket, fresh])
            self._awake = np.concatenate([self._awake, np.zeros(more, dtype=np.bool_)])
        symbols = self._portfolio.symbol_count - self._variance.size
        if symbols > 0:
            self._variance = np.concatenate([self._variance, np.full(symbols, _VARIANCE_START)])
            self._ladders += [_Ladder() for _ in range(2 * symbols)]

    def _wake(self, rows: Rows) -> None:
        rows = rows[~self._awake[rows]]
        self._awake_count += rows.size
        self._awake[rows] = True
        self._ticket[rows] += 1

    def _sleep(self, rows: Rows) -> None:
        """Forget the bands of ``rows``: triggers with an older ticket count for nothing."""
        if self._awake_count:
            self._awake_count -= int(np.count_nonzero(self._awake[rows]))
            self._awake[rows] = False
        self._ticket[rows] += 1

    def _with_waiting(self, rows: Rows, most: int) -> Rows:
        self._awake_count -= int(np.count_nonzero(self._awake[rows]))
        self._awake[rows] = False
        waiting = np.flatnonzero(self._awake)[: most - rows.size]
        return np.concatenate([rows, waiting])

    # --- bands -------------------------------------------------------------------------------------------------------

    def _band(self, rows: Rows, columns: Columns) -> None:
        """Enter new triggers of ``rows``, whose older ones are forgotten."""
        exposures = self._portfolio.exposures(rows, REACH)
        if not exposures.owner.size:
            return
        bracket = _Bracket.of(columns, self._decision_edges())
        distances = _Distances.of(exposures, bracket, self._variance)
        mark = self._portfolio.mark_column[exposures.symbol]
        row = rows[exposures.owner]
        down, up = distances.down < 1, np.isfinite(distances.up)
        ladder = np.concatenate([2 * exposures.symbol[down], 2 * exposures.symbol[up] + 1])
        key = np.concatenate([-mark[down] * (1 - distances.down[down]), mark[up] * (1 + distances.up[up])])
        self._enter(ladder, key, np.concatenate([row[down], row[up]]))

    def _decision_edges(self) -> Floats:
        levels = self._portfolio.parameters.policy.margin_call_levels
        if levels != self._levels:
            self._levels = levels
            self._edges = np.array([float(edge) for edge in decision_edges(levels)])
        return self._edges

    def _enter(self, ladder: Ints, key: Floats, row: Rows) -> None:
        if not ladder.size:
            return
        order = np.lexsort((key, ladder))
        ladder, key, ticket = ladder[order], key[order], self._ticket[row[order]]
        starts = np.flatnonzero(np.diff(ladder, prepend=-1))
        ends = [*starts[1:].tolist(), ladder.size]
        for name, start, end in zip(ladder[starts].tolist(), starts.tolist(), ends, strict=True):
            self._ladders[name].entered.append((key, ticket, start, end))
        self._batches += 1
        if self._batches % _ENTERED_MAX == 0:
            for resting in self._ladders:
                resting.tidy(self._ticket)

    def _crossed(self, symbol: str, price: float) -> list[Rows]:
        index, before = self._portfolio.symbol_id(symbol), self._price.get(symbol)
        self._price[symbol] = price
        if index is None:
            return []
        if before is None:
            return [self._portfolio.rows_with([symbol])]
        move = price / before - 1
        self._variance[index] += (1 - _VARIANCE_MEMORY) * (move * move + _VARIANCE_LEAST - self._variance[index])
        down, up = self._ladders[2 * index], self._ladders[2 * index + 1]
        return [*down.leave(-price, self._ticket), *up.leave(price, self._ticket)]


# --- the distances of a band -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Bracket:
    """Between which edges each row is.

    ``below``, ``above``: float64[n], the edge it has reached and the next one. ``fall``, ``rise``: float64[n], at
    least 0, the slack to each in money, nan if there is no such edge. ``unsure``: bool[n], it may be on the other
    side of one.
    """

    below: Floats
    above: Floats
    fall: Floats
    rise: Floats
    unsure: Bools

    @classmethod
    def of(cls, columns: Columns, edges: Floats) -> "_Bracket":
        """The bracket of each row of ``columns``; rows without margin and debt have no edges.

        A row that is not decidable has the one edge at which it is liquidatable at its best; none if nothing bounds it.
        """
        equity, maintenance, debt, error = columns.equity, columns.maintenance, columns.debt, columns.error
        needed = maintenance + debt
        edged = needed > 0
        reached = np.searchsorted(edges, (equity + debt) / np.where(edged, needed, 1), side="right")
        below, above = np.concatenate([[0.0], edges])[reached], np.concatenate([edges, [0.0]])[reached]
        if not columns.decidable.all():
            dim, holds = ~columns.decidable, equity >= maintenance
            edged = np.where(dim, columns.bounded, edged)
            below, above = np.where(dim, holds, below), np.where(dim, ~holds, above)
        fall = equity - below * maintenance - (below - 1) * debt - error * (1 + below)
        rise = above * maintenance + (above - 1) * debt - equity - error * (1 + above)
        fall[~edged | (below == 0)] = np.nan
        rise[~edged | (above == 0)] = np.nan
        return cls(below, above, np.maximum(fall, 0), np.maximum(rise, 0), (fall <= 0) | (rise <= 0))


@dataclass(frozen=True, slots=True)
class _Distances:
    """How far each mark may move, as a part of it: float64[m] downwards (1: to nothing) and upwards (inf: anywhere)."""

    down: Floats
    up: Floats

    @classmethod
    def of(cls, exposures: Exposures, bracket: _Bracket, variance: Floats) -> "_Distances":
        """The distances that split each row's slack where its bands are left least often."""
        owner, smooth = exposures.owner, exposures.smooth
        lower, upper = bracket.below[owner], bracket.above[owner]
        falls, rises = ~np.isnan(bracket.fall)[owner], ~np.isnan(bracket.rise)[owner]
        edge = np.maximum(lower, upper)
        gross = exposures.gross + edge * (exposures.margin_top + exposures.margin_sway + exposures.debt)
        more = np.where(exposures.tangled, 2 * gross, _SLOPE_ERROR * gross)
        more += edge * exposures.margin_sway
        from_below = from_above = smooth
        if exposures.debt.any():
            from_below, from_above = smooth - (lower - 1) * exposures.debt, smooth - (upper - 1) * exposures.debt
        loss_down = (from_below - lower * exposures.margin_low + more) * falls
        loss_up = (lower * exposures.margin_high - from_below + more) * falls
        gain_down = (upper * exposures.margin_at - from_above + more) * rises
        gain_up = (from_above - upper * exposures.margin_at + more) * rises
        scale = np.where(exposures.scaled, 1 + REACH, 1.0)
        spread = variance[exposures.symbol]
        fall = _split(np.maximum(loss_down, loss_up) * scale, spread, bracket.fall, owner)
        rise = _split(np.maximum(gain_down, gain_up) * scale, spread, bracket.rise, owner)
        down = np.minimum(np.where(loss_down > 0, fall, np.inf), np.where(gain_down > 0, rise, np.inf))
        up = np.minimum(np.where(loss_up > 0, fall, np.inf), np.where(gain_up > 0, rise, np.inf))
        steeper = falls & (lower * exposures.margin_top - from_below + more > 0)
        capped = steeper | (exposures.settles & (falls | rises))
        up = np.where(capped, np.minimum(up, REACH), up)
        still = bracket.unsure[owner] | exposures.pinned
        return cls(np.where(still, 0, _narrowed(down)), np.where(still, 0, _narrowed(up)))


def _split(rate: Floats, variance: Floats, slack: Floats, owner: Ints) -> Floats:
    """float64[m]: distances d with sum over a row of rate * d = slack, d ~ (variance / rate)**(1/3); inf at rate 0.

    ``rate``: money a relative move takes towards the edge, at most 0 where every move leads away.
    """
    moves = rate > 0
    share = np.cbrt(variance / np.where(moves, rate, np.inf))
    total = np.bincount(owner, weights=np.where(moves, rate, 0) * share, minlength=slack.size)[owner]
    return np.where(moves, slack[owner] * share / np.where(moves, total, 1), np.inf)


def _narrowed(distance: Floats) -> Floats:
    return np.maximum(distance * (1 - _CUSHION) - _CUSHION_LEAST, 0)


# --- triggers in order -----------------------------------------------------------------------------------------------


class _Run:
    """Triggers in ascending order with their tickets; those before ``next`` have been taken.

    ``head`` is the lowest one left. ``level`` rises by one with every ``_FANOUT``-fold of the size.
    """

    __slots__ = ("_key", "_next", "_ticket", "head", "level")

    def __init__(self, key: Floats, ticket: Ints) -> None:
        self._key, self._ticket, self._next = key, ticket, 0
        self.head = float(key[0]) if key.size else np.inf
        self.level = int(math.log(max(key.size, 1), _FANOUT))

    def __len__(self) -> int:
        return int(self._key.size) - self._next

    def take(self, bound: float) -> Ints:
        """Take out the triggers at or below ``bound``; their tickets."""
        first, self._next = self._next, int(np.searchsorted(self._key, bound, side="right"))
        self.head = float(self._key[self._next]) if len(self) else np.inf
        return self._ticket[first : self._next]

    def left(self) -> tuple[Floats, Ints]:
        """What has not been taken."""
        return self._key[self._next :], self._ticket[self._next :]


class _Ladder:
    """The triggers of one symbol in one direction, as sorted runs of falling size (a log-structured merge).

    Runs of a size are merged when there are ``_FANOUT`` of them: seldom enough that few ticks pay for a large merge.
    Entering costs O(log n) a trigger over time, leaving O(log n + k). A trigger counts only while its ticket is its
    row's. ``entered``: (keys, tickets, first, end) of the triggers that came last; they are sorted in when the symbol
    moves next, or by :meth:`tidy`.
    """

    __slots__ = ("_runs", "entered")

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self.entered: list[tuple[Floats, Ints, int, int]] = []

    def __len__(self) -> int:
        """Triggers held: at most about ``_FANOUT`` times those that count, and the last entered."""
        return sum(end - first for _, _, first, end in self.entered) + sum(map(len, self._runs))

    def tidy(self, current: Ints) -> None:
        """Sort in what was entered, if that is much: nothing may pile up at a symbol that rests."""
        if len(self.entered) > _ENTERED_MAX // 2:
            self._sort_in(current)

    def leave(self, bound: float, current: Ints) -> list[Rows]:
        """Take out every trigger at or below ``bound``; the rows of those that count."""
        if self.entered:
            self._sort_in(current)
        left = []
        for run in self._runs:
            if run.head <= bound:
                ticket = run.take(bound)
                row = ticket >> _ROW_SHIFT
                left.append(row[current[row] == ticket])
        return left

    def _sort_in(self, current: Ints) -> None:
        runs = self._runs
        runs.append(
            _sorted_run([(key[first:end], ticket[first:end]) for key, ticket, first, end in self.entered], current)
        )
        self.entered = []
        while (count := self._newest_of_a_level()) >= _FANOUT:
            runs[-count:] = [_sorted_run([run.left() for run in runs[-count:]], current)]

    def _newest_of_a_level(self) -> int:
        """How many of the last runs are no larger than the very last."""
        level, count = self._runs[-1].level, 0
        for run in reversed(self._runs):
            if run.level > level:
                break
            count += 1
        return count


def _sorted_run(parts: Sequence[tuple[Floats, Ints]], current: Ints) -> _Run:
    """One run of those triggers that count."""
    key, ticket = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    counts = (current[ticket >> _ROW_SHIFT] == ticket).nonzero()[0]
    order = counts[key[counts].argsort(kind="stable")]
    return _Run(key[order], ticket[order])


def _distinct(parts: list[Rows], count: int) -> Rows:
    """The rows in ``parts``, each once, ascending."""
    if not parts:
        return np.empty(0, dtype=np.int64)
    rows = np.concatenate(parts)
    if rows.size * 16 < count:
        return np.unique(rows)
    flags = np.zeros(count, dtype=np.bool_)
    flags[rows] = True
    return np.flatnonzero(flags)
