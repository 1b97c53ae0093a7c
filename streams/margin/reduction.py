"""How much of which positions to close, and what collateral to convert, so that a group meets its target again at the
least expected cost.

The exact loop never closes more than needed; where markets are thin, a spread of the closes by marginal cost comes
first. Prices, sides and slices of the orders are the plan's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_FLOOR, Context, Decimal, localcontext

from streams.margin.conversion import COST_INCREMENT, Conversion, ExchangeBook, at_least, least_quantity
from streams.margin.fixed_point import EXACT, divide_ceiling, divide_floor
from streams.margin.group import Position
from streams.margin.models import TIERED, Holding, model_of
from streams.margin.rules import AssetRules, Instrument
from streams.margin.valuation import Valuation

_ZERO = Decimal(0)
_SPREADING = Context(prec=60, rounding=ROUND_FLOOR)
"""Only for the marginal cost at which closes are spread: a starting point, never an amount."""
_BISECTIONS = 64
_THIN_PARTS, _THIN_PARTS_SCANNED = Decimal(256), Decimal(32)
"""In a thin market at most this part of the whole position is closed at a time: the steps stay few whatever its size.
Under portfolio margin nothing was spread before, and every step scans the whole book anew."""

_STEPS_MAX = 5000
"""Far more than there are kinks; a plan that has not ended by then closes everything."""

_WORK_MAX, _WORK_MAX_SCANNED = 100_000, 400_000
"""Most work of one plan: each step looks at every position, and under portfolio margin at every pair of them."""
_STEPS_LEAST = 4


@dataclass(frozen=True, slots=True)
class Reduction:
    """``quantities`` to close by symbol (> 0), and ``conversions`` of collateral. ``shortage`` is what the target then
    still lacks at the marks, fees paid: <= 0 when restored."""

    quantities: Mapping[str, Decimal]
    conversions: tuple[Conversion, ...]
    shortage: Decimal


def reduce_positions(valuation: Valuation) -> Reduction:
    """The closes that bring equity up to the target, sum of N * (r + buffer) - D + buffer * debt.

    Closing q of a position at its mark P changes the shortage (target - equity) by -q * P * (r + buffer - fees * w);
    ``r`` is the rate of the tier it comes out of, ``w`` the weight at which a fee leaves the balance of the settle
    asset (1 for plain cash, 1 + buffer for a plain debt). Each unit closed costs the fees and, where the instrument
    states a depth, the impact: having closed a notional x, the next one moves the price by impact_rate * x /
    depth_notional. Collateral whose record states a ``liquidation_fee`` can be sold for debts instead
    (``streams.margin.conversion``). What is done next is always what restores most for its cost. If nothing restores
    anything, or all of it too little, every position is closed, and then any other collateral that has a spot market is
    sold for the debts that are left.

    A book of so many positions that all steps would take too long (some 300 of them, 30 under portfolio margin) is
    reduced as far as that many steps go: what is left is planned again after the fills.

    No order is below the least that its record states, or a thousandth of what is held, unless that is all there is;
    where less than that would be left, all of it is closed.

    What needs a mark that is not live is neither closed nor converted: it counts what it is worth at best.

    Raises:
        InputError: a mark, an instrument or an asset is missing.
    """
    return _ReductionPlanner(valuation).run()


@dataclass(slots=True)
class _Leg:
    """One position being closed, of which ``closed`` (a quantity) is closed already.

    ``least`` is the smallest quantity that may be ordered, or be left.
    """

    position: Position
    settle: AssetRules
    whole: Holding
    least: Decimal
    closed: Decimal = _ZERO

    @property
    def instrument(self) -> Instrument:
        return self.whole.instrument

    @property
    def size(self) -> Decimal:
        return abs(self.position.quantity)

    @property
    def left(self) -> Decimal:
        return self.size - self.closed

    @property
    def holding(self) -> Holding:
        """What is left of the position."""
        return replace(self.whole, quantity=self.left if self.position.quantity > 0 else -self.left)


@dataclass(frozen=True, slots=True, order=True)
class _Close:
    """A next close, in order of preference: ``cost`` per restored unit, impact, what a notional restores, the symbol.

    ``stretch`` is the notional for which it does.
    """

    cost: Decimal
    impact_rate: Decimal
    restored_negated: Decimal
    symbol: str
    leg: _Leg = field(compare=False)
    stretch: Decimal = field(compare=False)


class _ReductionPlanner:
    """Closes and converts, in exact steps, until the shortage is gone.

    Between two kinks (a tier's floor, flat) the shortage is convex in the quantity closed, so a step along its slope
    never goes past the point where it is gone: rounded up to the increment, the last step is the least that restores.
    """

    def __init__(self, valuation: Valuation) -> None:
        self._valuation = valuation
        self._buffer = valuation.parameters.policy.liquidation_buffer_rate
        self._model = model_of(valuation.group.account, valuation.parameters)
        self._exchanges = ExchangeBook(valuation.marks, valuation.parameters, valuation.stale)
        self._legs = [
            _Leg(valued.position, valued.settle, valued.holding, _least(valued.holding))
            for valued in self._valuation.positions
            if valued.position.quantity and valued.live and valued.holding is not None
        ]
        with localcontext(EXACT):
            kept = (valued.worth for valued in self._valuation.positions if not valued.live)
            self._kept = sum((worth for worth in kept if worth is not None), _ZERO)

    def run(self) -> Reduction:
        with localcontext(EXACT):
            balances = self._balances()
            shortage = self._shortage(balances)
            if shortage > 0 and self._model is TIERED and any(leg.instrument.impact_rate for leg in self._legs):
                self._spread(shortage, balances)
            steps = self._steps_max()
            for _ in range(steps):
                balances = self._balances()
                shortage = self._shortage(balances)
                if shortage <= 0 or not self._advance(shortage, balances):
                    break
            else:
                if steps == _STEPS_MAX:
                    self._close_all()
            before = self._balances(converted=False)
            self._exchanges.raise_to_least(before)
            shortage = self._shortage(self._balances())
        quantities = {leg.position.symbol: leg.closed for leg in self._legs if leg.closed}
        return Reduction(quantities, self._exchanges.conversions, shortage)

    def _steps_max(self) -> int:
        """As many steps as one decision may take; of a book too large for all of them the rest is planned again."""
        legs = max(len(self._legs), 1)
        work = _WORK_MAX // legs if self._model is TIERED else _WORK_MAX_SCANNED // legs**2
        return min(max(work, _STEPS_LEAST), _STEPS_MAX)

    def _advance(self, shortage: Decimal, balances: Mapping[str, Decimal]) -> bool:
        """Do as much of what is cheapest as its slope allows; False if there is nothing left to do."""
        close = self._cheapest(balances)
        exchange = self._exchanges.cheapest(balances, declared=True)
        if exchange is not None and (close is None or exchange.cost_per_gain < close.cost):
            self._exchanges.make(exchange, shortage, balances)
        elif close is not None:
            close.leg.closed += self._step(close, shortage)
        elif any(leg.left for leg in self._legs):
            self._close_all()
        elif (exchange := self._exchanges.cheapest(balances, declared=False)) is not None:
            self._exchanges.make(exchange, shortage, balances)
        else:
            return False
        return True

    def _close_all(self) -> None:
        for leg in self._legs:
            leg.closed = leg.size

    def _shortage(self, balances: Mapping[str, Decimal]) -> Decimal:
        """Target less equity once every leg's ``closed`` is closed at its mark and the fees are paid."""
        left = [leg for leg in self._legs if leg.left]
        held = self._valuation.collateral(balances)
        shortage = self._valuation.maintenance([leg.holding for leg in left])
        shortage += self._buffer * held.debt - held.weighted - self._kept
        for leg in left:
            buffer = self._buffer * leg.left * leg.whole.mark
            value = leg.position.quantity * leg.whole.mark + leg.position.cash
            shortage += (buffer - value) * leg.whole.unit
        return shortage

    def _balances(self, *, converted: bool = True) -> dict[str, Decimal]:
        """Balances once what is closed is closed and, if ``converted``, what is converted converted."""
        balances = dict(self._valuation.group.balances)
        for leg in self._legs:
            change = -leg.closed * leg.whole.mark * leg.instrument.fees
            if not leg.left:
                change += leg.position.quantity * leg.whole.mark + leg.position.cash
            if change:
                asset = leg.settle.asset
                balances[asset] = balances.get(asset, _ZERO) + change
        for asset, change in self._exchanges.changed.items() if converted else ():
            balances[asset] = balances.get(asset, _ZERO) + change
        return balances

    def _cheapest(self, balances: Mapping[str, Decimal]) -> _Close | None:
        """The close whose next increment restores most for its cost, None if none restores anything.

        Of equals the one that will not grow dearer, then the one that restores most per notional, so that least is
        traded, then the first by symbol.
        """
        ranked = []
        left = [leg for leg in self._legs if leg.left]
        held = [leg.holding for leg in left]
        for index, leg in enumerate(left):
            rate, stretch = self._valuation.released(held, index)
            restored = rate + self._buffer - leg.instrument.fees * self._weight(leg, balances)
            if restored > 0:
                cost = divide_floor(_cost(leg), restored, COST_INCREMENT)
                ranked.append(_Close(cost, leg.instrument.impact_rate, -restored, leg.position.symbol, leg, stretch))
        return min(ranked, default=None)

    def _step(self, close: _Close, shortage: Decimal) -> Decimal:
        """How much more to close: at most to the next kink, to flat, or until the shortage is gone.

        Where the market is thin another leg may soon be cheaper: only a small part at a time.
        """
        leg = close.leg
        increment = leg.instrument.quantity_increment
        wanted = divide_ceiling(-shortage, leg.whole.mark * leg.whole.unit * close.restored_negated, increment)
        if leg.instrument.impact_rate:
            parts = _THIN_PARTS if self._model is TIERED else _THIN_PARTS_SCANNED
            wanted = min(wanted, divide_ceiling(leg.size, parts, increment))
        wanted = min(wanted, divide_ceiling(close.stretch, leg.whole.mark, increment), leg.left)
        return at_least(leg.closed + wanted, leg.least, leg.size) - leg.closed

    # --- thin markets ------------------------------------------------------------------------------------------------

    def _spread(self, shortage: Decimal, balances: Mapping[str, Decimal]) -> None:
        """Close so that the marginal cost of a restored unit is the same wherever something is closed.

        That is the least total cost: a convex cost under a concave restoration (Kuhn and Tucker). The common marginal
        cost is found by bisection from below, so nothing is closed that is not needed; the exact loop closes the rest.
        No close is made that is dearer than selling collateral.
        """
        exchange = self._exchanges.cheapest(balances, declared=True)
        curves = [_Curve.of(leg, self._buffer, self._weight(leg, balances)) for leg in self._legs]
        with localcontext(_SPREADING):
            low, high = _ZERO, max((curve.dearest for curve in curves), default=_ZERO)
            high = high if exchange is None else min(high, exchange.cost_per_gain)
            if sum((curve.restored(high) for curve in curves), _ZERO) <= shortage:
                low = high
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                if sum((curve.restored(middle) for curve in curves), _ZERO) <= shortage:
                    low = middle
                else:
                    high = middle
            closed = [curve.closed(low) for curve in curves]
        for leg, notional in zip(self._legs, closed, strict=True):
            quantity = divide_floor(notional, leg.whole.mark * leg.whole.unit, leg.instrument.quantity_increment)
            leg.closed = _at_most(min(quantity, leg.size), leg)

    def _weight(self, leg: _Leg, balances: Mapping[str, Decimal]) -> Decimal:
        """What a fee of 1 adds to the shortage: the buffer is asked of a debt that grows as well."""
        balance = balances.get(leg.settle.asset, _ZERO)
        weight = leg.settle.weight_below(balance)
        return weight if balance > 0 else weight * (1 + self._buffer)


@dataclass(frozen=True, slots=True)
class _Curve:
    """What closing a leg costs and restores, in notionals of the unit of account, flat as the notional falls.

    ``parts``: (notional at which the part begins, at which it ends, restored per notional), of falling restoration.
    """

    parts: tuple[tuple[Decimal, Decimal, Decimal], ...]
    fees: Decimal
    impact: Decimal

    @classmethod
    def of(cls, leg: _Leg, buffer: Decimal, weight: Decimal) -> "_Curve":
        """The parts of ``leg`` that restore anything, tier by tier from where it stands down to flat."""
        instrument, parts = leg.instrument, []
        top = whole = leg.size * leg.whole.mark
        for step in reversed(instrument.steps):
            restored = step.maintenance_rate + buffer - instrument.fees * weight
            if top > step.notional_floor and restored > 0:
                parts.append(((whole - top) * leg.whole.unit, (whole - step.notional_floor) * leg.whole.unit, restored))
                top = step.notional_floor
        impact = _ZERO
        if instrument.depth_notional is not None:
            with localcontext(_SPREADING):
                impact = instrument.impact_rate / (instrument.depth_notional * leg.whole.unit)
        return cls(tuple(parts), instrument.fees, impact)

    @property
    def dearest(self) -> Decimal:
        """The marginal cost at which everything that restores is closed."""
        return max(((self.fees + self.impact * end) / restored for _, end, restored in self.parts), default=_ZERO)

    def closed(self, price: Decimal) -> Decimal:
        """The notional to close when a restored unit may cost ``price``."""
        closed = _ZERO
        for begin, end, restored in self.parts:
            allowed = price * restored - self.fees
            if allowed < self.impact * begin or (not self.impact and allowed <= 0):
                break
            closed = min(end, allowed / self.impact) if self.impact else end
        return closed

    def restored(self, price: Decimal) -> Decimal:
        """The shortage that closing so much restores."""
        closed = self.closed(price)
        return sum(
            ((min(end, closed) - begin) * restored for begin, end, restored in self.parts if closed > begin), _ZERO
        )


def _least(holding: Holding) -> Decimal:
    """The smallest order in a position: as its record says, or a part of all of it."""
    rules = holding.instrument
    return least_quantity(rules.min_order_notional, holding.mark, abs(holding.quantity), rules.quantity_increment)


def _at_most(quantity: Decimal, leg: _Leg) -> Decimal:
    """At most ``quantity`` of ``leg``, so that neither too little is ordered nor too little left."""
    if quantity < leg.size and leg.size - quantity < leg.least:
        quantity = leg.size - leg.least
    return quantity if quantity == leg.size or quantity >= leg.least else _ZERO


def _cost(leg: _Leg) -> Decimal:
    """Expected cost of the next notional closed, as a fraction of it, rounded down."""
    instrument = leg.instrument
    if instrument.depth_notional is None:
        return instrument.fees
    closed = leg.closed * leg.whole.mark
    impact = divide_floor(closed * instrument.impact_rate, instrument.depth_notional, COST_INCREMENT)
    return instrument.fees + impact
