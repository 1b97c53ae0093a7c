"""How much margin a set of positions needs: by tiers, position by position, or by scanning scenarios over all of them.

Both models answer the same few questions, exactly, and in both the maintenance margin is convex in every mark and in
every quantity: that is all that verdicts, liquidation prices and plans rely on. Which accounts use which is a
parameter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from typing import Protocol

from streams.margin.fixed_point import EXACT
from streams.margin.parameters import RiskParameters
from streams.margin.rules import SCENARIOS, Instrument, Scan, ScanProfile

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Holding:
    """A signed ``quantity`` of an instrument at its ``mark``.

    ``unit`` is the price of the settle asset in the unit of account, ``unit_symbol`` the symbol that gives it (or
    None).
    """

    instrument: Instrument
    quantity: Decimal
    mark: Decimal
    unit: Decimal
    unit_symbol: str | None

    def at(self, symbol: str, mark: Decimal) -> "Holding":
        """The holding with the mark of ``symbol`` replaced."""
        if self.instrument.symbol == symbol:
            return replace(self, mark=mark)
        return replace(self, unit=mark) if self.unit_symbol == symbol else self


@dataclass(frozen=True, slots=True)
class Margins:
    """Margins of a set of holdings in the unit of account; ``by_holding``: (maintenance, initial) of each alone."""

    maintenance: Decimal
    initial: Decimal
    by_holding: tuple[tuple[Decimal, Decimal], ...]


class MarginModel(Protocol):
    """What a margin model must answer. ``holdings`` are of distinct symbols."""

    def margins(self, holdings: Sequence[Holding]) -> Margins:
        """The margins of ``holdings``, exactly."""
        ...

    def released(self, holdings: Sequence[Holding], index: int) -> tuple[Decimal, Decimal]:
        """(rate, stretch): margin released per notional of ``holdings[index]`` closed, in the settle asset.

        It is what the first bit closed releases; what comes later never releases more. No kink is known to come within
        the notional ``stretch``.
        """
        ...

    def tangent(self, holdings: Sequence[Holding], symbol: str) -> tuple[Decimal, Decimal]:
        """(a, b): the margin is a + b * P at the mark P that ``symbol`` has, and at no other mark less than that."""
        ...


class TieredMargin:
    """N * r_n - D_n for each position. The default."""

    def margins(self, holdings: Sequence[Holding]) -> Margins:
        """The sum over the positions."""
        parts = []
        maintenance = initial = _ZERO
        with localcontext(EXACT):
            for holding in holdings:
                notional = abs(holding.quantity) * holding.mark
                step = holding.instrument.step_of(notional)
                own = (notional * step.maintenance_rate - step.maintenance_deduction) * holding.unit
                own_initial = (notional * step.initial_rate - step.initial_deduction) * holding.unit
                maintenance += own
                initial += own_initial
                parts.append((own, own_initial))
        return Margins(maintenance, initial, tuple(parts))

    def released(self, holdings: Sequence[Holding], index: int) -> tuple[Decimal, Decimal]:
        """The rate of the tier the notional is in, down to its floor."""
        holding = holdings[index]
        with localcontext(EXACT):
            notional = abs(holding.quantity) * holding.mark
            step = holding.instrument.step_of(notional)
            return step.maintenance_rate, notional - step.notional_floor

    def tangent(self, holdings: Sequence[Holding], symbol: str) -> tuple[Decimal, Decimal]:
        """The line of the tier that ``symbol`` is in; positions settled in an asset it prices move in proportion."""
        constant = slope = _ZERO
        with localcontext(EXACT):
            for holding in holdings:
                size = abs(holding.quantity)
                step = holding.instrument.step_of(size * holding.mark)
                if holding.instrument.symbol == symbol:
                    slope += size * step.maintenance_rate * holding.unit
                    constant -= step.maintenance_deduction * holding.unit
                    continue
                own = size * holding.mark * step.maintenance_rate - step.maintenance_deduction
                if holding.unit_symbol == symbol:
                    slope += own
                else:
                    constant += own * holding.unit
        return constant, slope


@dataclass(frozen=True, slots=True)
class _Term:
    """A part of the margin that is a sum over the holdings: ``rates`` per signed value, or per notional."""

    rates: tuple[Decimal, ...]
    value: Decimal


class ScannedMargin:
    """The loss of the worst scenario, group by group (portfolio margin).

    For a scan group g, R_g = max(0, max over scenarios k of -sum of q_s * P_s * u_s * a_sk), with a_sk the profit of a
    long of notional 1. Of two groups with an offset of rate o, that part moves together: (1 - o) * (R_g + R_h) + o *
    R_gh, R_gh being the risk of both as one group; so opposite books are forgiven o of what they hedge, and equal
    ones nothing. The margin is at least the sum of notional * floor rate. A position without scan parameters is
    margined by its tiers. Every part is the greatest of sums, so the margin is convex.

    Source: the elements of CME's SPAN (scan risk, spread credit, extreme moves, minimum a contract).
    """

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._tiered = TieredMargin()

    def margins(self, holdings: Sequence[Holding]) -> Margins:
        """Scanned positions together; ``by_holding`` is what each would need alone."""
        scale = self._scan.initial_scale
        with localcontext(EXACT):
            maintenance = self._active(holdings, None).value
            alone = [self._active([holding], None).value for holding in holdings]
            return Margins(maintenance, maintenance * scale, tuple((part, part * scale) for part in alone))

    def released(self, holdings: Sequence[Holding], index: int) -> tuple[Decimal, Decimal]:
        """What the worst scenario gives up; negative where a hedge is closed. Of scenarios that tie, the meanest."""
        holding = holdings[index]
        with localcontext(EXACT):
            rate = self._active(holdings, index).rates[index] * _side(holding)
            return rate, abs(holding.quantity) * holding.mark

    def tangent(self, holdings: Sequence[Holding], symbol: str) -> tuple[Decimal, Decimal]:
        """The line of the scenarios that give the margin now."""
        with localcontext(EXACT):
            rates = self._active(holdings, None).rates
            constant, slope = self._tiered.tangent([held for held in holdings if held.instrument.scan is None], symbol)
            for holding, rate in zip(holdings, rates, strict=True):
                if holding.instrument.scan is None:
                    continue
                if holding.instrument.symbol == symbol:
                    slope += rate * holding.quantity * holding.unit
                elif holding.unit_symbol == symbol:
                    slope += rate * holding.quantity * holding.mark
                else:
                    constant += rate * holding.quantity * holding.mark * holding.unit
        return constant, slope

    def largest_rate(self, instrument: Instrument) -> Decimal:
        """The most by which a signed value of 1 in ``instrument`` moves the margin; 0 if it is not scanned."""
        profile = instrument.scan
        if profile is None:
            return _ZERO
        with localcontext(EXACT):
            return max(profile.floor_rate, *(abs(profit) for profit in self._scan.profits(profile)))

    def _active(self, holdings: Sequence[Holding], closing: int | None) -> _Term:
        """The margin, and what each signed value adds to it in the scenarios that give it."""
        groups: dict[str, list[int]] = {}
        for index, holding in enumerate(holdings):
            if holding.instrument.scan is not None:
                groups.setdefault(holding.instrument.scan.group, []).append(index)
        total = _term(holdings, {})
        for first, second, rate in self._scan.offsets:
            if first in groups and second in groups:
                together = self._risk(holdings, groups[first] + groups[second], closing)
                apart = [self._risk(holdings, groups.pop(group), closing) for group in (first, second)]
                total = _sum(total, together, rate)
                for term in apart:
                    total = _sum(total, term, 1 - rate)
        for members in groups.values():
            total = _sum(total, self._risk(holdings, members, closing), Decimal(1))
        scanned = _worst([total, _floor(holdings)], holdings, closing)
        return _sum(scanned, _by_tiers(holdings), Decimal(1))

    def _risk(self, holdings: Sequence[Holding], members: Sequence[int], closing: int | None) -> _Term:
        """The loss of ``members`` in their worst scenario, at least 0."""
        arrays = {index: self._scan.profits(profile) for index in members if (profile := _profile(holdings[index]))}
        terms = [_term(holdings, {})]
        terms += [
            _term(holdings, {index: -array[scenario] for index, array in arrays.items()})
            for scenario in range(SCENARIOS)
        ]
        return _worst(terms, holdings, closing)


def model_of(account: str, parameters: RiskParameters) -> MarginModel:
    """The margin model of ``account``: scanned if the policy names it, else by tiers."""
    if account in parameters.policy.portfolio_margin_accounts:
        return ScannedMargin(parameters.policy.scan)
    return TIERED


TIERED = TieredMargin()


# --- sums over the holdings ------------------------------------------------------------------------------------------


def _profile(holding: Holding) -> ScanProfile | None:
    return holding.instrument.scan


def _side(holding: Holding) -> int:
    return 1 if holding.quantity > 0 else -1


def _floor(holdings: Sequence[Holding]) -> _Term:
    rates = {
        index: _side(holding) * profile.floor_rate
        for index, holding in enumerate(holdings)
        if (profile := _profile(holding)) is not None
    }
    return _term(holdings, rates)


def _by_tiers(holdings: Sequence[Holding]) -> _Term:
    rates, value = [_ZERO] * len(holdings), _ZERO
    for index, holding in enumerate(holdings):
        if holding.instrument.scan is None:
            notional = abs(holding.quantity) * holding.mark
            step = holding.instrument.step_of(notional)
            rates[index] = _side(holding) * step.maintenance_rate
            value += (notional * step.maintenance_rate - step.maintenance_deduction) * holding.unit
    return _Term(tuple(rates), value)


def _term(holdings: Sequence[Holding], rates: Mapping[int, Decimal]) -> _Term:
    value = _ZERO
    for index, rate in rates.items():
        holding = holdings[index]
        value += rate * holding.quantity * holding.mark * holding.unit
    return _Term(tuple(rates.get(index, _ZERO) for index in range(len(holdings))), value)


def _sum(first: _Term, second: _Term, weight: Decimal) -> _Term:
    rates = tuple(one + other * weight for one, other in zip(first.rates, second.rates, strict=True))
    return _Term(rates, first.value + second.value * weight)


def _worst(terms: Sequence[_Term], holdings: Sequence[Holding], closing: int | None) -> _Term:
    """The greatest of ``terms``; of equals, the one that releases least when ``holdings[closing]`` is closed."""
    worst = max(term.value for term in terms)
    tied = [term for term in terms if term.value == worst]
    if closing is None:
        return tied[0]
    side = _side(holdings[closing])
    return min(tied, key=lambda term: side * term.rates[closing])
