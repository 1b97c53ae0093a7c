"""Marks and rules as float64 tables by symbol, and the vectorised formulas over them.

Every entry is the nearest double of an exact decimal, so errors can be bounded (``Screens.evaluate`` does). Which
slots and rows the formulas are applied to is the business of the screens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np

from streams.margin.amounts import Bools, Floats, Ints
from streams.margin.fixed_point import EXACT
from streams.margin.parameters import RiskParameters
from streams.margin.rules import AssetRules, Instrument

_BEST_ERROR = 2.0**-50
"""Part of its terms by which a sum of two products of four factors is off at most, and more."""


@dataclass(frozen=True, slots=True)
class Exposures:
    """How the figures of some rows move with each mark: m entries, one for each row and symbol that moves it.

    ``owner``, ``symbol``: int64[m], the index of the row among those asked for and the symbol's id.
    ``smooth``: float64[m], change of equity per relative move of the mark (price * d equity / d price).
    ``margin_low``, ``margin_at``, ``margin_high``, ``margin_top``: float64[m], the same of maintenance, at the rate
    of the lowest tier, of the tier of today's notional, of the tier it has ``reach`` higher, and of the highest tier.
    ``margin_sway``: float64[m], how much more or less than those the slope of maintenance may be at any mark.
    ``gross``: float64[m], the parts of ``smooth`` without their signs.
    ``scaled``: bool[m], a position settled in an asset with a price of its own, whose moves multiply with these.
    ``settles``: bool[m], the symbol prices such an asset.
    ``tangled``: bool[m], an entry that is ``scaled`` in part.
    ``debt``: float64[m], change of the weighted debt per relative move. ``pinned``: bool[m], any move may change what
    the row is.

    Of a holding whose marks are not all live they are those of its best corner, and only of marks that are live.
    """

    owner: Ints
    symbol: Ints
    smooth: Floats
    margin_low: Floats
    margin_at: Floats
    margin_high: Floats
    margin_top: Floats
    margin_sway: Floats
    gross: Floats
    scaled: Bools
    settles: Bools
    tangled: Bools
    debt: Floats
    pinned: Bools

    @classmethod
    def merged(cls, parts: "list[Exposures]", symbols: int) -> "Exposures":
        """One entry for each row and symbol, adding up those of ``parts``; ids are below ``symbols``."""
        if len(parts) == 1:
            return parts[0]
        key = np.concatenate([part.owner * symbols + part.symbol for part in parts])
        keys, place = np.unique(key, return_inverse=True)

        def total(name: str) -> Floats:
            return sums(place, np.concatenate([getattr(part, name) for part in parts]).astype(np.float64), keys.size)

        return cls(
            keys // symbols,
            keys % symbols,
            total("smooth"),
            total("margin_low"),
            total("margin_at"),
            total("margin_high"),
            total("margin_top"),
            total("margin_sway"),
            total("gross"),
            total("scaled") > 0,
            total("settles") > 0,
            (total("scaled") > 0) & (np.bincount(place) > 1),
            total("debt"),
            total("pinned") > 0,
        )

    @classmethod
    def of(
        cls, owner: Ints, symbol: Ints, smooth: Floats, sway: Floats, gross: Floats, pinned: "Bools | None" = None
    ) -> "Exposures":
        """Entries without margins but for ``sway``, of what moves with one mark alone."""
        none, no = np.zeros(owner.size), np.zeros(owner.size, dtype=np.bool_)
        held = no if pinned is None else pinned
        return cls(owner, symbol, smooth, none, none, none, none, sway, gross, no, no, no, none, held)


@dataclass(frozen=True, slots=True)
class AtBest:
    """Positions at their best corners, float64[k] and bool[k] each: what they are worth, the size of the terms that add
    up to it, and whether nothing bounds it (what it is worth is then 0)."""

    worth: Floats
    gross: Floats
    unbounded: Bools


class PriceTables:
    """Float64 tables by symbol id, of every instrument and of every symbol that prices an asset.

    ``mark``: the mark, 0 where there is none. ``lot_value``, ``cash_value``: value of one lot and of one unit of the
    symbol's cash (``Instrument.cash_decimals``), in the unit of account (in the settle asset, where that never had a
    price). ``live``: every mark that a position in the symbol needs is there and live.

    Where it is not, the value of a position is known up to a factor from ``mark_low`` to ``mark_most``, and all of it
    up to one from ``unit_low`` to ``unit_most``; ``reach`` is how many times its value it may be away from it, inf
    where a mark never was.
    """

    def __init__(self) -> None:
        self.moved: set[str] = set()
        self._size(1, 1)
        self._parameters = RiskParameters.empty()
        self._ids: Mapping[str, int] = {}
        self._moves: dict[str, list[str]] = {}
        self._cash_decimals: dict[str, int] = {}
        self._priced: dict[str, list[str]] = {}
        self._asset_unit: dict[str, float] = {}
        self._asset_most: dict[str, float] = {}

    def rebuild(self, parameters: RiskParameters, ids: Mapping[str, int]) -> None:
        """Take in new rules. Every symbol is to be priced anew."""
        self._parameters, self._ids = parameters, ids
        self._size(len(ids), max((len(rules.steps) for rules in parameters.instruments.values()), default=1))
        self._priced, self._moves, self._cash_decimals = {}, {}, {}
        for asset, rules in parameters.assets.items():
            if rules.price_symbol is not None:
                self._priced.setdefault(rules.price_symbol, []).append(asset)
        for symbol, instrument in parameters.instruments.items():
            self._add_instrument(symbol, instrument)
        self.moved = set(ids)
        unpriced = {asset: rules for asset, rules in parameters.assets.items() if rules.price_symbol is None}
        self._asset_unit = {asset: float(Decimal(1).scaleb(-rules.decimals)) for asset, rules in unpriced.items()}
        self._asset_most = {}

    def _size(self, symbols: int, tiers: int) -> None:
        self.mark, self.lot_value, self.cash_value = np.zeros(symbols), np.zeros(symbols), np.zeros(symbols)
        self.live: Bools = np.ones(symbols, dtype=np.bool_)
        self.settle_symbol: Ints = np.full(symbols, -1, dtype=np.int64)
        self._rates, self._deductions = np.zeros((tiers, symbols)), np.zeros((tiers, symbols))
        self._floors = np.full((tiers, symbols), np.inf)
        self.mark_low, self.mark_most = np.ones(symbols), np.ones(symbols)
        self.unit_low, self.unit_most = np.ones(symbols), np.ones(symbols)
        self.reach = np.zeros(symbols)
        self._no_mark: Bools = np.zeros(symbols, dtype=np.bool_)
        self._no_unit: Bools = np.zeros(symbols, dtype=np.bool_)
        self._top_rate = np.zeros(symbols)

    def _add_instrument(self, symbol: str, instrument: Instrument) -> None:
        index = self._ids[symbol]
        self._rates[: len(instrument.steps), index] = instrument.maintenance_rates
        self._top_rate[index] = instrument.maintenance_rates[-1]
        self._moves.setdefault(symbol, []).append(symbol)
        self._cash_decimals[symbol] = instrument.cash_decimals
        settle = self._parameters.assets.get(instrument.settle_asset)
        if settle is not None and settle.price_symbol is not None:
            self._moves.setdefault(settle.price_symbol, []).append(symbol)
            self.settle_symbol[index] = self._ids[settle.price_symbol]

    def refresh(self, marks: Mapping[str, Decimal], live: Mapping[str, bool]) -> None:
        """Price what ``moved``."""
        if not self.moved:
            return
        for symbol in self.moved:
            index = self._ids.get(symbol)
            if index is not None:
                self.mark[index] = float(marks.get(symbol, 0))
            for asset in self._priced.get(symbol, ()):
                with localcontext(EXACT):
                    price = marks.get(symbol, Decimal(0))
                    self._asset_unit[asset] = float(price.scaleb(-self._parameters.assets[asset].decimals))
                self._asset_most.pop(asset, None)
                if symbol in marks and not live.get(symbol, False):
                    self._asset_most[asset] = float(1 + self._parameters.assets[asset].stale_bound)
            for moved in self._moves.get(symbol, ()):
                self._price(moved, marks, live)
        self.moved.clear()

    def _price(self, symbol: str, marks: Mapping[str, Decimal], live: Mapping[str, bool]) -> None:
        instrument = self._parameters.instruments[symbol]
        settle = self._parameters.assets.get(instrument.settle_asset)
        index = self._ids[symbol]
        if settle is None:
            self.live[index] = False
            return
        needed = [symbol] if settle.price_symbol is None else [symbol, settle.price_symbol]
        self.live[index] = all(name in marks and live.get(name, False) for name in needed)
        self._bound(index, instrument, settle, marks, live)
        with localcontext(EXACT):
            unit = Decimal(1) if settle.price_symbol is None else marks.get(settle.price_symbol, Decimal(1))
            mark = marks.get(symbol, Decimal(0))
            self.lot_value[index] = float(instrument.quantity_increment * mark * unit)
            self.cash_value[index] = float(unit.scaleb(-self._cash_decimals[symbol]))
            for tier, step in enumerate(instrument.steps):
                self._floors[tier, index] = float(step.notional_floor * unit)
                self._deductions[tier, index] = float(step.maintenance_deduction * unit)

    def _bound(
        self,
        index: int,
        instrument: Instrument,
        settle: AssetRules,
        marks: Mapping[str, Decimal],
        live: Mapping[str, bool],
    ) -> None:
        unit_symbol = settle.price_symbol
        known = unit_symbol is None or unit_symbol in marks
        unit_live = unit_symbol is None or (known and live.get(unit_symbol, False))
        mark_live = instrument.symbol in marks and live.get(instrument.symbol, False)
        self._no_mark[index], self._no_unit[index] = instrument.symbol not in marks, not known
        with localcontext(EXACT):
            mark_most = Decimal(1) if mark_live else 1 + instrument.stale_bound
            unit_most = Decimal(1) if unit_live else 1 + settle.stale_bound
            reach = max(mark_most * unit_most - 1, Decimal(1))
        self.mark_low[index], self.mark_most[index] = float(mark_live), float(mark_most)
        self.unit_low[index], self.unit_most[index] = float(unit_live), float(unit_most) if known else 0
        self.reach[index] = 0 if self.live[index] else float(reach)
        if self._no_mark[index] or self._no_unit[index]:
            self.reach[index] = np.inf

    # --- positions ---------------------------------------------------------------------------------------------------

    def maintenance(self, symbol: Ints, size: Floats) -> Floats:
        """Maintenance margins, float64[m], of positions of notional ``size`` in the unit of account."""
        margin: Floats = size * self._rates[0][symbol]
        for tier, above in self._above(symbol, size):
            held = symbol[above]
            line = size[above] * self._rates[tier][held] - self._deductions[tier][held]
            margin[above] = np.maximum(margin[above], line)
        return margin

    def exposures(
        self, owner: Ints, symbol: Ints, value: Floats, cash: Floats, sway_rate: Floats, reach: float
    ) -> "list[Exposures]":
        """Exposures of positions of signed ``value`` and ``cash`` to their own marks and to their settle asset's.

        ``sway_rate``: float64[m], above 0 for a position whose margin follows not its tiers but may move by so much of
        its value either way.
        """
        size = np.abs(value)
        tiered = size * (sway_rate == 0)
        sway = size * sway_rate
        settle = self.settle_symbol[symbol]
        scaled = settle >= 0
        parts = [
            Exposures(
                owner,
                symbol,
                value,
                tiered * self._rates[0][symbol],
                tiered * self._rate(symbol, size),
                tiered * self._rate(symbol, size * (1 + reach)),
                tiered * self._top_rate[symbol],
                sway,
                size,
                scaled,
                no := np.zeros(symbol.size, dtype=np.bool_),
                no,
                none := np.zeros(symbol.size),
                no,
            )
        ]
        if scaled.any():
            margin = np.where(sway_rate > 0, 0, self.maintenance(symbol, size))[scaled]
            worth, gross = value[scaled] + cash[scaled], size[scaled] + np.abs(cash[scaled])
            no, yes, none = no[scaled], ~no[scaled], none[scaled]
            held = owner[scaled], settle[scaled]
            margins = margin, margin, margin, margin, sway[scaled]
            parts.append(Exposures(*held, worth, *margins, gross, no, yes, no, none, no))
        return parts

    def at_best(self, symbol: Ints, long: Bools, value: Floats, cash: Floats) -> AtBest:
        """Positions of signed ``value`` (> 0 where ``long``, unless there never was a mark) and ``cash`` at the corner
        of (mark, price of the settle asset) that is best for them."""
        best = np.maximum(value * self.mark_low[symbol], value * self.mark_most[symbol]) + cash
        worth = np.where(best > 0, best * self.unit_most[symbol], best * self.unit_low[symbol])
        gross = (np.abs(value) * self.mark_most[symbol] + np.abs(cash)) * self.unit_most[symbol]
        # best is off by less than this: of two that may be, the one that is decided exactly
        above = best > (np.abs(value) * self.mark_most[symbol] + np.abs(cash)) * _BEST_ERROR
        unbounded = (long & self._no_mark[symbol]) | (self._no_unit[symbol] & above)
        return AtBest(np.where(unbounded, 0, worth), np.where(unbounded, 0, gross), unbounded)

    def dim_exposures(
        self, owner: Ints, symbol: Ints, long: Bools, value: Floats, cash: Floats, sway_rate: Floats
    ) -> "list[Exposures]":
        """Exposures of positions whose marks are not all live, at their best corners, to the one that is, if it is.

        In the price of the settle asset what they are worth is a line. In the mark it is the greater of a line and
        nothing, as the settle asset may be worth nothing: its slope is anywhere between.
        """
        best = self.at_best(symbol, long, value, cash)
        size, settle = np.abs(value), self.settle_symbol[symbol]
        reach = np.where(np.isinf(self.reach[symbol]), 0, self.reach[symbol])
        sway = size * sway_rate * (1 + reach)
        by_unit = (self.mark_low[symbol] == 0) & (self.unit_low[symbol] == 1) & (settle >= 0)
        by_mark = (self.mark_low[symbol] == 1) & (self.unit_low[symbol] == 0)
        parts = []
        if by_unit.any():
            parts.append(
                Exposures.of(owner[by_unit], settle[by_unit], best.worth[by_unit], sway[by_unit], best.gross[by_unit])
            )
        if by_mark.any():
            slope = size * self.unit_most[symbol]
            parts.append(
                Exposures.of(
                    owner[by_mark],
                    symbol[by_mark],
                    np.zeros(int(by_mark.sum())),
                    (slope + sway)[by_mark],
                    slope[by_mark],
                    self._no_unit[symbol][by_mark],
                )
            )
        return parts

    def _rate(self, symbol: Ints, size: Floats) -> Floats:
        """The maintenance rate of the tier of each ``size``."""
        rate: Floats = self._rates[0][symbol]
        for tier, above in self._above(symbol, size):
            rate[above] = self._rates[tier][symbol[above]]
        return rate

    def _above(self, symbol: Ints, size: Floats) -> "list[tuple[int, Ints]]":
        """(tier, indices of the positions above its floor) of every tier but the first that has any."""
        tiers_above: list[tuple[int, Ints]] = []
        if len(self._rates) == 1:
            return tiers_above
        above = np.flatnonzero(size > self._floors[1][symbol])
        for tier in range(1, len(self._rates)):
            if not above.size:
                break
            tiers_above.append((tier, above))
            if tier + 1 < len(self._rates):
                above = above[size[above] > self._floors[tier + 1][symbol[above]]]
        return tiers_above

    # --- collateral --------------------------------------------------------------------------------------------------

    def dim(self, asset: str, units: Ints | Floats) -> Bools | None:
        """bool[n]: which balances of ``units`` need the mark that prices ``asset``, and it is not live; None: none do.

        Credit that is no collateral needs no mark, and nothing does that never had one.
        """
        if asset not in self._asset_most:
            return None
        return units != 0 if self._parameters.assets[asset].collateral else units < 0

    def collateral(self, asset: str, units: Ints | Floats) -> tuple[Floats, Floats]:
        """Balances of ``units`` (10**-decimals of the asset) in the unit of account: what they count for, and their
        size times the debt's weight.

        While the mark that prices ``asset`` is not live, credit counts at the most that it may be, debt for nothing.
        """
        rules, unit = self._parameters.assets[asset], self._asset_unit[asset]
        value: Floats = units.astype(np.float64) * unit
        liability, first = float(rules.liability_weight), float(rules.weights[0])
        worth: Floats = value * liability if liability != 1 else value.copy() if len(rules.weights) > 1 else value
        if not liability == 1 == first:
            worth = np.minimum(worth, value * first)
        scale = unit * 10.0**rules.decimals
        for weight, offset in zip(rules.weights[1:], rules.offsets[1:], strict=True):
            np.minimum(worth, value * weight + offset * scale, out=worth)
        counted: Floats = np.abs(value) if liability == 1 else np.abs(value) * liability
        most = self._asset_most.get(asset)
        if most is not None:
            worth, counted = np.maximum(worth, 0) * most, counted * most
        return worth, counted

    def collateral_exposures(self, asset: str, units: Ints | Floats) -> Exposures | None:
        """Exposures of balances of ``units`` (index: the row) to the mark that prices them; None if nothing does."""
        rules: AssetRules = self._parameters.assets[asset]
        if rules.price_symbol is None or asset in self._asset_most:
            return None
        owner = np.flatnonzero(units)
        worth, _ = self.collateral(asset, units[owner])
        none, no = np.zeros(owner.size), np.zeros(owner.size, dtype=np.bool_)
        symbol = np.full(owner.size, self._ids[rules.price_symbol], dtype=np.int64)
        debt = np.maximum(-worth, 0)
        return Exposures(owner, symbol, worth, none, none, none, none, none, np.abs(worth), no, no, no, debt, no)


def sums(owners: Ints, values: Floats, n: int) -> Floats:
    """float64[n]: the sum of ``values`` by owner. (Of nothing, NumPy makes integers.)"""
    return np.bincount(owners, weights=values, minlength=n).astype(np.float64, copy=False)
