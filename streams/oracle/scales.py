"""What is measured for the dynamic scales, and the scales in force, without Faust and without a clock.

Volatility is that of the marks, at every heartbeat; open interest is summed from what each shard's journal says. How a
scale follows its measures is ``streams.margin.scales``. No shard can know a global figure by itself: what is computed
here travels in the mark frames, so that all shards agree and a replay finds the same.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

import msgspec

from schemas.messages import Mark
from streams.margin.parameters import RiskParameters
from streams.margin.scales import Measured, largest_change, step_scale, target_scale

_DAY_US = 86_400_000_000
_AHEAD_US = 2_000_000
"""A time this far ahead of the clock was told by a clock that has been put right since."""


class VolatilityState(msgspec.Struct, frozen=True, kw_only=True):
    """An average of squared logarithmic returns: ``weighted`` per day, ``weight`` (to 1) how much of it is measured."""

    price: str
    time: int
    weighted: float = 0.0
    weight: float = 0.0


class ScaleBook:
    """The scales of every record that has rules for them. Times are microseconds."""

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._parameters = RiskParameters.empty()
        self._volatility: dict[str, VolatilityState] = {}
        self._open_interest: dict[int, Mapping[str, str]] = {}
        self._scales: dict[str, Decimal] = {}
        self._stepped: int | None = None
        self._waiting: dict[str, int] = {}

    @property
    def scales(self) -> dict[str, str]:
        """The scales in force that are not 1, as decimal strings by record key."""
        return {key: format(scale.normalize(), "f") for key, scale in sorted(self._scales.items()) if scale != 1}

    def set_parameters(self, parameters: RiskParameters) -> None:
        """Put these rules in force."""
        self._parameters = parameters

    def restore(self, scales: Mapping[str, str]) -> None:
        """Go on from the scales that the last full frame carried."""
        self._scales = {key: Decimal(scale) for key, scale in scales.items()}

    def restore_volatility(self, symbol: str, state: VolatilityState) -> None:
        """Go on from what was measured before a restart."""
        self._volatility[symbol] = state

    def volatility(self, symbol: str) -> VolatilityState | None:
        """What :meth:`restore_volatility` needs."""
        return self._volatility.get(symbol)

    def observe_marks(self, marks: Iterable[Mark], clock: int) -> None:
        """Take in the live marks of a heartbeat; the weight of what was seen before halves every half-life."""
        half_life_us = 1000 * self._parameters.policy.volatility_half_life_ms
        for mark in marks:
            if mark.status != "live":
                continue
            last = self._volatility.get(mark.symbol)
            if last is None:
                self._volatility[mark.symbol] = VolatilityState(price=mark.price, time=clock)
                continue
            elapsed = clock - last.time
            if elapsed < -_AHEAD_US:  # of a machine whose clock was ahead: go on from here
                self._volatility[mark.symbol] = msgspec.structs.replace(last, price=mark.price, time=clock)
            if elapsed <= 0:
                continue
            kept = 0.5 ** (elapsed / half_life_us)
            moved = math.log(float(mark.price) / float(last.price))
            self._volatility[mark.symbol] = VolatilityState(
                price=mark.price,
                time=clock,
                weighted=kept * last.weighted + (1 - kept) * moved * moved * _DAY_US / elapsed,
                weight=kept * last.weight + (1 - kept),
            )

    def observe_open_interest(self, shard: int, quantities: Mapping[str, str]) -> None:
        """Take in the quantity of a shard's long positions by symbol; there may be more shards than at first."""
        self._shards = max(self._shards, shard + 1)
        self._open_interest[shard] = quantities

    def step(self, marks: Sequence[Mark], clock: int) -> None:
        """Move the scales towards their measures, if ``scale_interval_ms`` has passed since the last time."""
        if self._stepped is None or self._stepped > clock + _AHEAD_US:
            self._stepped, self._waiting = clock, {}
        if clock - self._stepped < 1000 * self._parameters.policy.scale_interval_ms:
            return
        before, self._stepped = self._stepped, clock
        measures = self._measures({mark.symbol: Decimal(mark.price) for mark in marks})
        self._scales = {key: self._stepped_scale(key, measured, before, clock) for key, measured in measures.items()}
        self._waiting = {key: since for key, since in self._waiting.items() if key in measures}

    def _stepped_scale(self, key: str, measured: Measured, before: int, clock: int) -> Decimal:
        """The scale after the time from ``before`` to ``clock``. One too slow to move in that waits longer."""
        scale, target = self._scales.get(key, Decimal(1)), target_scale(measured)
        since = self._waiting.pop(key, before)
        if target is None or target == scale:
            return scale
        change = largest_change(measured, clock - since)
        if not change:
            self._waiting[key] = since
        return step_scale(scale, target, change)

    def _measures(self, prices: Mapping[str, Decimal]) -> dict[str, Measured]:
        """By record key: its rules, each with its measure (None: not known)."""
        measures: dict[str, Measured] = {}
        for symbol, instrument in self._parameters.instruments.items():
            measured = []
            if instrument.volatility_scale is not None:
                measured.append((instrument.volatility_scale, self._daily_volatility(symbol)))
            if instrument.open_interest_scale is not None:
                measured.append((instrument.open_interest_scale, self._notional(symbol, prices)))
            if measured:
                measures[f"instrument:{symbol}"] = measured
        for asset, rules in self._parameters.assets.items():
            if rules.volatility_scale is not None and rules.price_symbol is not None:
                measures[f"asset:{asset}"] = [(rules.volatility_scale, self._daily_volatility(rules.price_symbol))]
        return measures

    def _daily_volatility(self, symbol: str) -> Decimal | None:
        """The standard deviation of the mark in a day, as a fraction; None before half of the average is measured."""
        state = self._volatility.get(symbol)
        if state is None or state.weight < 0.5:
            return None
        return Decimal(f"{math.sqrt(state.weighted / state.weight):.12f}")

    def _notional(self, symbol: str, prices: Mapping[str, Decimal]) -> Decimal | None:
        """The notional of all long positions; None before every shard has said how many it has."""
        price = prices.get(symbol)
        if price is None or len(self._open_interest) < self._shards:
            return None
        return price * sum((Decimal(shard.get(symbol, "0")) for shard in self._open_interest.values()), Decimal(0))
