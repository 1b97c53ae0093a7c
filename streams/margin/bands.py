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

Under portfolio margin the slope of the maintenance margin depends on which scenario is the worst; at every mark it is
between minus and plus the largest scenario rate times the position, and that is what a_s is taken to hold.

A position settled in an asset with a price of its own moves with two marks that multiply. While the asset's mark stays
below (1 + REACH) times today's, which gets a trigger of its own, a_s is at most (1 + REACH) times as large.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from streams.margin.levels import decision_edges
from streams.margin.portfolio import Columns, Portfolio, Rows
from streams.margin.prices import Bools, Exposures, Floats, Ints

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
"""Most batches of triggers that wait for their symbol to move before they are sorted in."""

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
        ladder, key, ticket = ladder[order], key[order], self._ticket[row[order]]
        starts = np.flatnonzero(np.diff(ladder, prepend=-1))
        ends = [*starts[1:].tolist(), ladder.size]
        for name, start, end in zip(ladder[starts].tolist(), starts.tolist(), ends, strict=True):
            self._ladders[name].enter(key[start:end], ticket[start:end], self._ticket)

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
        """The bracket of each row of ``columns``; rows without a maintenance margin have no edges."""
        equity, maintenance, error = columns.equity, columns.maintenance, columns.error
        margined = maintenance > 0
        reached = np.searchsorted(edges, equity / np.where(margined, maintenance, 1), side="right")
        below, above = np.concatenate([[0.0], edges])[reached], np.concatenate([edges, [0.0]])[reached]
        fall = equity - below * maintenance - error * (1 + below)
        rise = above * maintenance - equity - error * (1 + above)
        fall[~margined | (reached == 0)] = np.nan
        rise[~margined | (reached == edges.size)] = np.nan
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
        gross = exposures.gross + edge * (exposures.margin_top + exposures.margin_sway)
        more = np.where(exposures.tangled, 2 * gross, _SLOPE_ERROR * gross)
        more += edge * exposures.margin_sway
        loss_down = (smooth - lower * exposures.margin_low + more) * falls
        loss_up = (lower * exposures.margin_high - smooth + more) * falls
        gain_down = (upper * exposures.margin_at - smooth + more) * rises
        gain_up = (smooth - upper * exposures.margin_at + more) * rises
        scale = np.where(exposures.scaled, 1 + REACH, 1.0)
        spread = variance[exposures.symbol]
        fall = _split(np.maximum(loss_down, loss_up) * scale, spread, bracket.fall, owner)
        rise = _split(np.maximum(gain_down, gain_up) * scale, spread, bracket.rise, owner)
        down = np.minimum(np.where(loss_down > 0, fall, np.inf), np.where(gain_down > 0, rise, np.inf))
        up = np.minimum(np.where(loss_up > 0, fall, np.inf), np.where(gain_up > 0, rise, np.inf))
        steeper = falls & (lower * exposures.margin_top - smooth + more > 0)
        capped = steeper | (exposures.settles & (falls | rises))
        up = np.where(capped, np.minimum(up, REACH), up)
        still = bracket.unsure[owner]
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


@dataclass(slots=True)
class _Run:
    """Triggers, float64 and their tickets, int64, in ascending order; those before ``next`` have been taken."""

    key: Floats
    ticket: Ints
    next: int = 0

    @property
    def left(self) -> int:
        return int(self.key.size) - self.next


class _Ladder:
    """The triggers of one symbol in one direction, as sorted runs of falling size (a log-structured merge).

    Entering costs O(log n) a trigger over time, leaving O(log n + k). A trigger counts only while its ticket is its
    row's.
    """

    __slots__ = ("_keys", "_runs", "_tickets")

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._keys: list[Floats] = []
        self._tickets: list[Ints] = []

    def __len__(self) -> int:
        """Triggers held: at most about twice those that count, and the last entered."""
        return sum(key.size for key in self._keys) + sum(run.left for run in self._runs)

    def enter(self, key: Floats, ticket: Ints, current: Ints) -> None:
        """Add triggers. They are sorted in when the symbol moves next, or when many have come."""
        self._keys.append(key)
        self._tickets.append(ticket)
        if len(self._keys) > _ENTERED_MAX:
            self._sort_in(current)
            self._merge(current)

    def leave(self, bound: float, current: Ints) -> list[Rows]:
        """Take out every trigger at or below ``bound``; the rows of those that count."""
        found = []
        if self._keys:
            self._sort_in(current)
        for run in self._runs:
            if run.left and run.key[run.next] <= bound:
                end = int(np.searchsorted(run.key, bound, side="right"))
                ticket = run.ticket[run.next : end]
                row = ticket >> _ROW_SHIFT
                found.append(row[current[row] == ticket])
                run.next = end
        self._merge(current)
        return found

    def _sort_in(self, current: Ints) -> None:
        self._runs.append(_sorted_run(self._keys, self._tickets, current))
        self._keys, self._tickets = [], []

    def _merge(self, current: Ints) -> None:
        """Keep every run more than twice as long as the one after it."""
        runs = self._runs
        while len(runs) > 1 and runs[-2].left <= 2 * runs[-1].left:
            last, run = runs.pop(), runs.pop()
            keys, tickets = (
                [run.key[run.next :], last.key[last.next :]],
                [run.ticket[run.next :], last.ticket[last.next :]],
            )
            runs.append(_sorted_run(keys, tickets, current))


def _sorted_run(keys: list[Floats], tickets: list[Ints], current: Ints) -> _Run:
    """One run of those triggers that count."""
    key, ticket = np.concatenate(keys), np.concatenate(tickets)
    counts = (current[ticket >> _ROW_SHIFT] == ticket).nonzero()[0]
    order = counts[key[counts].argsort(kind="stable")]
    return _Run(key[order], ticket[order])


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
