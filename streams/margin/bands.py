"""Which groups a new mark concerns: every other one is inside a band in which its decision cannot change.

It promises never to miss a group whose health ratio has passed an edge (1, a margin-call level, or where a level is
left), and to look only at those that a mark really carries out of their bands. Deciding about them is the caller's
business.

The mathematics. For an edge b, let f = equity - b * maintenance; a decision changes where f changes its sign. f is
concave in every mark, so from today's marks

- it falls by at most its slope at the far end of a move (the steepest, as rates rise with the notional), and
- it rises by at most its slope at the near end.

With the slack h = |f|, and the loss a_s per relative move of symbol s towards the edge, the group cannot reach the edge
while every symbol stays within a relative distance d_s with sum a_s * d_s <= h. Any split of h will do. A symbol of
volatility v_s leaves its band at a rate of (v_s / d_s)**2, and the sum of those rates is least for
d_s ~ (v_s**2 / a_s)**(1/3). A symbol whose moves only lead away from an edge has no trigger on that side at all.

A position settled in an asset with a price of its own moves with two marks that multiply. While the asset's mark stays
below (1 + REACH) times today's, which gets a trigger of its own, a_s is at most (1 + REACH) times as large.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from streams.margin.levels import decision_edges
from streams.margin.portfolio import Columns, Portfolio, Rows
from streams.margin.prices import Bools, Exposures, Floats, Ints

Generations = npt.NDArray[np.int32]

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

REBAND_SHARE = 128
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
        self._generation: Generations = np.zeros(0, dtype=np.int32)
        self._awake: Bools = np.zeros(0, dtype=np.bool_)
        self._awake_count = 0
        self._ladders: list[_Ladder] = []
        self._price: dict[str, float] = {}
        self._variance: Floats = np.zeros(0)
        self.rebuild()

    @property
    def awake_count(self) -> int:
        """Rows without a band: they are in every answer of :meth:`crossed` until an update reaches them."""
        return self._awake_count

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
            rows, columns = rows[:most], None if columns is None else _first(columns, most)
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
        found = [rows for symbol, price in prices.items() for rows in self._crossed(symbol, float(price))]
        if self._awake_count:
            found.append(np.flatnonzero(self._awake))
        return _distinct(found, self._awake.size)

    # --- rows --------------------------------------------------------------------------------------------------------

    def _fit(self) -> None:
        """Make room for the rows and symbols the portfolio has got since."""
        rows = self._portfolio.row_count - self._generation.size
        if rows > 0:
            more = max(rows, self._generation.size)
            self._generation = np.concatenate([self._generation, np.zeros(more, dtype=np.int32)])
            self._awake = np.concatenate([self._awake, np.zeros(more, dtype=np.bool_)])
        symbols = self._portfolio.symbol_count - self._variance.size
        if symbols > 0:
            self._variance = np.concatenate([self._variance, np.full(symbols, _VARIANCE_START)])
            self._ladders += [_Ladder() for _ in range(2 * symbols)]

    def _wake(self, rows: Rows) -> None:
        rows = rows[~self._awake[rows]]
        self._awake_count += rows.size
        self._awake[rows] = True
        self._generation[rows] += 1

    def _sleep(self, rows: Rows) -> None:
        """Forget the bands of ``rows``: entries of an older generation count for nothing."""
        if self._awake_count:
            self._awake_count -= int(np.count_nonzero(self._awake[rows]))
            self._awake[rows] = False
        self._generation[rows] += 1

    def _with_waiting(self, rows: Rows, most: int) -> Rows:
        self._awake_count -= int(np.count_nonzero(self._awake[rows]))
        self._awake[rows] = False
        waiting = np.flatnonzero(self._awake)[: most - rows.size]
        return np.concatenate([rows, waiting])

    # --- bands -------------------------------------------------------------------------------------------------------

    def _band(self, rows: Rows, columns: Columns) -> None:
        """Enter new triggers of ``rows``, whose older ones are forgotten."""
        edges = np.array([float(edge) for edge in decision_edges(self._portfolio.parameters.policy.margin_call_levels)])
        exposures = self._portfolio.exposures(rows, REACH)
        if not exposures.owner.size:
            return
        bracket = _Bracket.of(columns, edges)
        distances = _Distances.of(exposures, bracket, self._variance)
        mark = self._portfolio.mark_column[exposures.symbol]
        row = rows[exposures.owner]
        down, up = distances.down < 1, np.isfinite(distances.up)
        ladder = np.concatenate([2 * exposures.symbol[down], 2 * exposures.symbol[up] + 1])
        key = np.concatenate([-mark[down] * (1 - distances.down[down]), mark[up] * (1 + distances.up[up])])
        self._enter(ladder, key, np.concatenate([row[down], row[up]]))

    def _enter(self, ladder: Ints, key: Floats, row: Rows) -> None:
        if not ladder.size:
            return
        order = np.lexsort((key, ladder))
        ladder, key, row = ladder[order], key[order], row[order].astype(np.int32)
        generation = self._generation[row]
        starts = np.flatnonzero(np.diff(ladder, prepend=-1))
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), ladder.size], strict=True):
            self._ladders[ladder[start]].enter(key[start:end], row[start:end], generation[start:end])

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
        return [*down.leave(-price, self._generation), *up.leave(price, self._generation)]


# --- the distances of a band -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Bracket:
    """Between which edges each row is.

    ``below``, ``above``: float64[n], the edge it has reached and the next one, nan if there is none. ``fall``,
    ``rise``: float64[n], at least 0, the slack to each in money. ``unsure``: bool[n], it may be on the other side of
    one of them.
    """

    below: Floats
    above: Floats
    fall: Floats
    rise: Floats
    unsure: Bools

    @classmethod
    def of(cls, columns: Columns, edges: Floats) -> "_Bracket":
        """The bracket of each row of ``columns``; rows without a maintenance margin are in none."""
        equity, maintenance, error = columns.equity, columns.maintenance, columns.error
        reached = np.zeros(equity.size, dtype=np.int64)
        for edge in edges:
            reached += equity >= edge * maintenance
        padded = np.concatenate([[np.nan], edges, [np.nan]])
        below, above = padded[reached], padded[reached + 1]
        margined = maintenance > 0
        below, above = np.where(margined, below, np.nan), np.where(margined, above, np.nan)
        fall = equity - below * maintenance - error * (1 + below)
        rise = above * maintenance - equity - error * (1 + above)
        return cls(below, above, np.maximum(fall, 0), np.maximum(rise, 0), (fall <= 0) | (rise <= 0))


@dataclass(frozen=True, slots=True)
class _Distances:
    """How far each mark may move, as a part of it: float64[m] downwards (1: to nothing) and upwards (inf: anywhere)."""

    down: Floats
    up: Floats

    @classmethod
    def of(cls, exposures: Exposures, bracket: _Bracket, variance: Floats) -> "_Distances":
        """The distances that split each row's slack where its bands are left least often."""
        owner = exposures.owner
        scale = np.where(exposures.scaled, 1 + REACH, 1.0)
        below, above = bracket.below[owner], bracket.above[owner]
        lower, upper = np.nan_to_num(below), np.nan_to_num(above)
        gross = exposures.gross + np.maximum(lower, upper) * exposures.margin_top
        more = np.where(exposures.tangled, 2 * gross, _SLOPE_ERROR * gross)
        smooth = exposures.smooth
        loss_down = _rate(smooth - lower * exposures.margin_low + more, scale, below)
        loss_up = _rate(lower * exposures.margin_high - smooth + more, scale, below)
        gain_down = _rate(upper * exposures.margin_at - smooth + more, scale, above)
        gain_up = _rate(smooth - upper * exposures.margin_at + more, scale, above)
        spread = variance[exposures.symbol]
        fall = _split(np.maximum(loss_down, loss_up), spread, bracket.fall, owner)
        rise = _split(np.maximum(gain_down, gain_up), spread, bracket.rise, owner)
        down = np.minimum(np.where(loss_down > 0, fall, np.inf), np.where(gain_down > 0, rise, np.inf))
        up = np.minimum(np.where(loss_up > 0, fall, np.inf), np.where(gain_up > 0, rise, np.inf))
        steeper = (lower * exposures.margin_top - smooth + more > 0) & ~np.isnan(below)
        capped = steeper | (exposures.settles & (~np.isnan(below) | ~np.isnan(above)))
        up = np.where(capped, np.minimum(up, REACH), up)
        still = bracket.unsure[owner]
        return cls(np.where(still, 0, _narrowed(down)), np.where(still, 0, _narrowed(up)))


def _rate(slope: Floats, scale: Floats, edge: Floats) -> Floats:
    """Money a relative move takes towards an edge; 0 where it leads away or there is no edge."""
    return np.where(np.isnan(edge), 0.0, np.maximum(slope, 0) * scale)


def _split(rate: Floats, variance: Floats, slack: Floats, owner: Ints) -> Floats:
    """float64[m]: distances d with sum over a row of rate * d = slack, d ~ (variance / rate)**(1/3); inf at rate 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = np.where(rate > 0, np.cbrt(variance / rate), 0.0)
        total = np.bincount(owner, weights=rate * share, minlength=slack.size)
        distance: Floats = slack[owner] * share / total[owner]
    return np.where(rate > 0, distance, np.inf)


def _narrowed(distance: Floats) -> Floats:
    return np.maximum(distance * (1 - _CUSHION) - _CUSHION_LEAST, 0)


# --- triggers in order -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """Triggers in ascending order; those before ``next`` have been taken."""

    key: Floats
    row: npt.NDArray[np.int32]
    generation: Generations
    next: int = 0

    @property
    def left(self) -> int:
        return int(self.key.size) - self.next


class _Ladder:
    """The triggers of one symbol in one direction, as sorted runs of falling size (a log-structured merge).

    Entering costs O(log n) a trigger over time, leaving O(log n + k). An entry counts only while its generation is its
    row's.
    """

    __slots__ = ("_entered", "_runs")

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._entered: list[_Run] = []

    def enter(self, key: Floats, row: npt.NDArray[np.int32], generation: Generations) -> None:
        """Add triggers, ascending in ``key``. They are sorted in when the symbol moves next."""
        self._entered.append(_Run(key, row, generation))

    def leave(self, bound: float, current: Generations) -> list[Rows]:
        """Take out every trigger at or below ``bound``; the rows of those that count."""
        if self._entered:
            self._sort_in(current)
        found = []
        for run in self._runs:
            if run.left and run.key[run.next] <= bound:
                end = int(np.searchsorted(run.key, bound, side="right"))
                row = run.row[run.next : end]
                counts = current[row] == run.generation[run.next : end]
                run.next = end
                found.append(row[counts].astype(np.int64))
        return found

    def _sort_in(self, current: Generations) -> None:
        run = _merged(self._entered, current)
        self._entered = []
        while self._runs and self._runs[-1].left <= 2 * run.left:
            run = _merged([self._runs.pop(), run], current)
        if run.left:
            self._runs.append(run)


def _merged(runs: list[_Run], current: Generations) -> _Run:
    """One run of what is left of ``runs`` and still counts."""
    key = np.concatenate([run.key[run.next :] for run in runs])
    row = np.concatenate([run.row[run.next :] for run in runs])
    generation = np.concatenate([run.generation[run.next :] for run in runs])
    counts = np.flatnonzero(current[row] == generation)
    order = counts[np.argsort(key[counts], kind="stable")]
    return _Run(key[order], row[order], generation[order])


def _distinct(found: list[Rows], count: int) -> Rows:
    """The rows in ``found``, each once, ascending."""
    if not found:
        return np.empty(0, dtype=np.int64)
    rows = np.concatenate(found)
    if rows.size * 16 < count:
        return np.unique(rows)
    flags = np.zeros(count, dtype=np.bool_)
    flags[rows] = True
    return np.flatnonzero(flags)


def _first(columns: Columns, count: int) -> Columns:
    return Columns(*(getattr(columns, name)[:count] for name in ("equity", "maintenance", "error", "decidable")))
