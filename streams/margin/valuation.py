"""What a group's holdings are worth at marks some of which may not be live, in exact decimals.

A holding whose marks are live has one worth. One whose marks are not enters at the corner of what its prices may be
that is best for the account, and with the least margin it may need: equity less maintenance is then bounded from above.
Verdicts, prices and plans are made from this by the modules above.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext

from streams.errors import InputError
from streams.margin.fixed_point import EXACT
from streams.margin.group import Group, Position
from streams.margin.models import TIERED, Holding, Margins, ScannedMargin, model_of
from streams.margin.parameters import RiskParameters
from streams.margin.rules import AssetRules, Instrument

Marks = Mapping[str, Decimal]

_ZERO = Decimal(0)
_ONE = Decimal(1)


def mark_of(symbol: str, marks: Marks) -> Decimal:
    """The mark of ``symbol``.

    Raises:
        InputError: there is none, or it is not above zero.
    """
    mark = marks.get(symbol)
    if mark is None:
        raise InputError(f"symbol {symbol}: no mark")
    if not mark > 0:
        raise InputError(f"symbol {symbol}: the mark {mark} is not above zero")
    return mark


def price_of(asset: AssetRules, marks: Marks) -> Decimal:
    """One unit of ``asset`` in the unit of account: the mark of its price symbol, or 1 if it has none."""
    return _ONE if asset.price_symbol is None else mark_of(asset.price_symbol, marks)


def counts(asset: AssetRules, quantity: Decimal, marks: Marks) -> bool:
    """Whether a balance of ``quantity`` counts at all.

    It does not if it is 0, if it is credit of an asset that is no collateral (its weights in the record are 0), or if
    its asset never had a price. Such a balance needs no mark, and is neither sold nor bought back.
    """
    if not quantity or (quantity > 0 and not asset.collateral):
        return False
    return asset.price_symbol is None or asset.price_symbol in marks


@dataclass(frozen=True, slots=True)
class Price:
    """What a price may be: anything from ``low`` to ``high`` (None: anything above), which is ``most`` times ``last``.

    A live price is its mark, and nothing else. ``last`` is None where there never was a mark.
    """

    low: Decimal
    high: Decimal | None
    last: Decimal | None
    most: Decimal = _ONE

    @property
    def live(self) -> bool:
        return self.low == self.high


_UNIT_OF_ACCOUNT = Price(_ONE, _ONE, _ONE)


@dataclass(frozen=True, slots=True)
class Valued:
    """A position at its marks. ``worth``: the most that (quantity * mark + cash) * unit may be, None if nothing bounds
    it. ``holding``: it at its last marks, None if it never had them. ``live``: both marks are.

    ``reach``: by how many times its notional at the last marks its value may be another than there; 0 where it is live.
    """

    position: Position
    instrument: Instrument
    settle: AssetRules
    holding: Holding | None
    worth: Decimal | None
    live: bool
    reach: Decimal


@dataclass(frozen=True, slots=True)
class Collateral:
    """What balances count for: ``weighted`` in equity, ``unweighted`` at weight 1, and the weighted ``debt`` (>= 0)."""

    weighted: Decimal
    unweighted: Decimal
    debt: Decimal


class Valuation:
    """The holdings of ``group`` at ``marks``, of which those of the symbols in ``stale`` are not live.

    ``positions`` are those of the group, in its order. ``bounded``: whether anything bounds what they are worth.
    ``bounds``: the bound of each symbol in ``stale`` that something depended on so far, of several the largest.

    Of positions that are scanned and whose marks are not live: ``fixed``, those that have last marks, at these;
    ``slack``, the most that other marks may take from what the scan then finds; ``scan_lost``, one never had a mark, so
    that the scan need not find anything.

    Raises:
        InputError: an instrument, a settle asset, or a mark that is not in ``stale`` is missing; the text names it.
    """

    def __init__(
        self, group: Group, marks: Marks, parameters: RiskParameters, stale: Collection[str] = frozenset()
    ) -> None:
        self.group, self.marks, self.parameters, self.stale = group, marks, parameters, stale
        self._model = model_of(group.account, parameters)
        self.bounds: dict[str, Decimal] = {}
        self.positions = tuple(self._valued(position) for position in group.positions)
        self.bounded = all(valued.worth is not None for valued in self.positions)
        unknown = [valued for valued in self.positions if not valued.live and self._is_scanned(valued.instrument)]
        self.scan_lost = any(valued.holding is None for valued in unknown)
        self.fixed = [valued.holding for valued in unknown if valued.holding is not None]
        self.slack = _ZERO
        if isinstance(self._model, ScannedMargin):
            with localcontext(EXACT):
                for valued in unknown:
                    if valued.holding is not None:
                        notional = abs(valued.holding.quantity) * valued.holding.mark * valued.holding.unit
                        self.slack += valued.reach * notional * self._model.largest_rate(valued.instrument)

    @property
    def worth(self) -> Decimal:
        """What the positions are worth together, at most; those that nothing bounds are left out."""
        with localcontext(EXACT):
            return sum((valued.worth for valued in self.positions if valued.worth is not None), _ZERO)

    # --- balances ----------------------------------------------------------------------------------------------------

    def collateral(self, balances: Mapping[str, Decimal]) -> Collateral:
        """What ``balances`` count for, each at its best price.

        Raises:
            InputError: an asset is missing, or the mark of one is not above zero.
        """
        weighted = unweighted = debt = _ZERO
        with localcontext(EXACT):
            for asset, quantity in balances.items():
                if not quantity:
                    continue
                rules = self.parameters.asset(asset)
                price = self.best_price(rules, quantity)
                counted = rules.weighted(quantity) * price
                weighted += counted
                unweighted += quantity * price
                debt -= min(counted, _ZERO)
        return Collateral(weighted, unweighted, debt)

    def best_price(self, rules: AssetRules, quantity: Decimal) -> Decimal:
        """The price at which a balance of ``quantity`` counts: its mark, or what is best for its owner; 0 if it does
        not count.

        Raises:
            InputError: the mark is not above zero.
        """
        if not counts(rules, quantity, self.marks):
            return _ZERO
        price = self._price_of(rules)
        return price.low if quantity < 0 or price.high is None else price.high

    def is_live(self, rules: AssetRules) -> bool:
        """Whether the price of an asset is known and live, so that the asset can be traded."""
        symbol = rules.price_symbol
        return symbol is None or (symbol in self.marks and symbol not in self.stale)

    # --- margins -----------------------------------------------------------------------------------------------------

    def margins(self) -> Margins:
        """The least margins that the positions may need; ``by_holding`` is what each needs alone, 0 if not live."""
        held = [valued.holding for valued in self.positions if valued.live and valued.holding is not None]
        needed = self._model.margins(held)
        alone = iter(needed.by_holding)
        parts = tuple(next(alone) if valued.live else (_ZERO, _ZERO) for valued in self.positions)
        if not self._unknown:
            return Margins(needed.maintenance, needed.initial, parts)
        with localcontext(EXACT):
            scale = self.parameters.policy.scan.initial_scale
            risk = self._risk(held)
            tiers = TIERED.margins([holding for holding in held if holding.instrument.scan is None])
            return Margins(risk + tiers.maintenance, (risk + tiers.maintenance) * scale, parts)

    def maintenance(self, held: Sequence[Holding]) -> Decimal:
        """The least maintenance margin once ``held`` is what is left of the positions whose marks are live."""
        if not self._unknown:
            return self._model.margins(held).maintenance
        with localcontext(EXACT):
            tiers = TIERED.margins([holding for holding in held if holding.instrument.scan is None])
            return self._risk(held) + tiers.maintenance

    def released(self, held: Sequence[Holding], index: int) -> tuple[Decimal, Decimal]:
        """(rate, stretch) as ``MarginModel.released``, of :meth:`maintenance`."""
        if not self._unknown or held[index].instrument.scan is None:
            return self._model.released(held, index)
        rate, stretch = self._model.released([*held, *self.fixed], index)
        return (rate if self._risk(held) else _ZERO), stretch

    @property
    def _unknown(self) -> bool:
        return bool(self.scan_lost or self.fixed)

    def _risk(self, held: Sequence[Holding]) -> Decimal:
        """The least risk that a scan may find: at the last marks, less what other marks may take from it."""
        if self.scan_lost:
            return _ZERO
        scanned = [holding for holding in held if holding.instrument.scan is not None]
        with localcontext(EXACT):
            return max(self._model.margins([*scanned, *self.fixed]).maintenance - self.slack, _ZERO)

    # --- prices ------------------------------------------------------------------------------------------------------

    def _is_scanned(self, instrument: Instrument) -> bool:
        return instrument.scan is not None and isinstance(self._model, ScannedMargin)

    def _valued(self, position: Position) -> Valued:
        instrument = self.parameters.instrument(position.symbol)
        settle = self.parameters.asset(instrument.settle_asset)
        mark, unit = self._price(position.symbol, instrument.stale_bound), self._price_of(settle)
        holding, reach = None, _ZERO
        with localcontext(EXACT):
            if mark.last is not None and unit.last is not None:
                holding = Holding(instrument, position.quantity, mark.last, unit.last, settle.price_symbol)
                if not (mark.live and unit.live):
                    reach = max(mark.most * unit.most - 1, _ONE)
        return Valued(
            position, instrument, settle, holding, _best_worth(position, mark, unit), mark.live and unit.live, reach
        )

    def _price_of(self, rules: AssetRules) -> Price:
        return _UNIT_OF_ACCOUNT if rules.price_symbol is None else self._price(rules.price_symbol, rules.stale_bound)

    def _price(self, symbol: str, bound: Decimal) -> Price:
        if symbol not in self.stale:
            mark = mark_of(symbol, self.marks)
            return Price(mark, mark, mark)
        self.bounds[symbol] = max(bound, self.bounds.get(symbol, bound))
        if symbol not in self.marks:
            return Price(_ZERO, None, None)
        mark = mark_of(symbol, self.marks)
        with localcontext(EXACT):
            return Price(_ZERO, mark * (1 + bound), mark, 1 + bound)


def _best_worth(position: Position, mark: Price, unit: Price) -> Decimal | None:
    """The most that (quantity * mark + cash) * unit may be: a corner, as it is linear in either price."""
    quantity, cash = position.quantity, position.cash
    if quantity > 0 and mark.high is None:
        return None
    with localcontext(EXACT):
        best = quantity * (mark.low if quantity <= 0 or mark.high is None else mark.high) + cash
        if best <= 0:
            return best * unit.low
        return None if unit.high is None else best * unit.high
