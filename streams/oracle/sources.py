"""The prices of one symbol's sources: which of them count, and the price that those agree on.

Owns the rules of a symbol and a source's last price, both in whole units of ``10**-18``. What a jump does to the price
that is agreed on is :mod:`streams.oracle.jumps`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from schemas.messages import OraclePrice
from schemas.parameters import OracleParameters
from schemas.types import FRACTION_DIGITS_MAX
from streams.margin.fixed_point import parse_units

_POWERS: tuple[int, ...] = tuple(10**digits for digits in range(FRACTION_DIGITS_MAX + 1))
_ONE: int = _POWERS[FRACTION_DIGITS_MAX]


def units_of(text: str) -> int:
    """A decimal string in units of ``10**-18``."""
    return parse_units(text, FRACTION_DIGITS_MAX)


def _told_units(text: str) -> int:
    """A decimal string of a message, whose type has checked it, in units of ``10**-18``. The parser of the hot path."""
    whole, _, fraction = text.partition(".")
    return int(whole + fraction) * _POWERS[FRACTION_DIGITS_MAX - len(fraction)]


def apart(units: int, reference: int, rate: int) -> bool:
    """Whether ``units`` is further than ``rate`` of ``reference`` from it."""
    return abs(units - reference) * _ONE > rate * reference


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """The last price of one source for one symbol.

    ``time`` is its publish time, or when it was heard if that was earlier: no price is from the future. States of
    earlier versions do not have it.
    """

    price: str
    confidence: str | None
    sequence: int
    publish_time: int
    time: int | None = None


class SourcePrice(msgspec.Struct, frozen=True):
    """A source's last price: as it came, and in units."""

    price: str
    units: int
    confidence: str | None
    confidence_units: int | None
    sequence: int
    publish_time: int
    time: int

    @classmethod
    def heard(cls, price: OraclePrice, clock: int) -> "SourcePrice":
        """A price that came at ``clock``."""
        return cls(
            price.price,
            _told_units(price.price),
            price.confidence,
            None if price.confidence is None else _told_units(price.confidence),
            price.sequence,
            price.publish_time,
            min(price.publish_time, clock),
        )

    @classmethod
    def restored(cls, state: SourceState) -> "SourcePrice":
        """A price from before a restart."""
        return cls(
            state.price,
            units_of(state.price),
            state.confidence,
            None if state.confidence is None else units_of(state.confidence),
            state.sequence,
            state.publish_time,
            state.publish_time if state.time is None else state.time,
        )

    def state(self) -> SourceState:
        """What :meth:`restored` needs."""
        return SourceState(
            price=self.price,
            confidence=self.confidence,
            sequence=self.sequence,
            publish_time=self.publish_time,
            time=self.time,
        )


@dataclass(frozen=True, slots=True)
class SymbolRules:
    """The rules of one symbol. Rates and weights in units of ``10**-18``, durations in microseconds."""

    weights: dict[str, int]
    total: int
    minimum_sources: int
    max_age: int
    max_confidence_ratio: int
    max_deviation: int
    max_jump: int
    jump_confirm: int
    jump_halt_max: int

    @classmethod
    def of(cls, record: OracleParameters) -> "SymbolRules":
        """The rules that ``record`` says."""
        weights = {source: units_of(weight) for source, weight in sorted(record.sources.items())}
        return cls(
            weights=weights,
            total=sum(weights.values()),
            minimum_sources=record.minimum_sources,
            max_age=1000 * record.max_age_ms,
            max_confidence_ratio=units_of(record.max_confidence_ratio),
            max_deviation=units_of(record.max_deviation),
            max_jump=units_of(record.max_jump),
            jump_confirm=1000 * record.jump_confirm_ms,
            jump_halt_max=1000 * record.jump_halt_ms_max,
        )

    def fresh(self, price: SourcePrice, clock: int) -> bool:
        """Whether ``price`` is no older than ``max_age`` at ``clock``, and no further ahead of it."""
        return -self.max_age <= clock - price.time <= self.max_age

    def sure(self, price: SourcePrice) -> bool:
        """Whether the confidence of ``price``, if it has one, is narrow enough."""
        confidence = price.confidence_units
        return confidence is None or confidence * _ONE <= self.max_confidence_ratio * price.units

    def majority(self, weights: Iterable[int]) -> bool:
        """Whether ``weights`` are more than half of the configured weight."""
        return 2 * sum(weights) > self.total


CountedPrices = list[tuple[int, int, str, SourcePrice]]
"""Price, weight, name and state of each source that counts, in order of names."""


def counted_prices(sources: Mapping[str, SourcePrice], rules: SymbolRules, clock: int) -> CountedPrices:
    """The sources that are listed, fresh and sure."""
    counted = []
    oldest, newest = clock - rules.max_age, clock + rules.max_age
    for name, weight in rules.weights.items():
        price = sources.get(name)
        if (
            price is not None
            and oldest <= price.time <= newest
            and (price.confidence_units is None or rules.sure(price))
        ):
            counted.append((price.units, weight, name, price))
    return counted


def medians(counted: CountedPrices) -> tuple[int, int]:
    """The lower and the upper weighted median: the first prices at which half, and more than half, is reached."""
    total = reached = 0
    lower = None
    for source in counted:
        total += source[1]
    for units, weight, _, _ in sorted(counted):
        reached += 2 * weight
        if lower is None and reached >= total:
            lower = units
        if reached > total and lower is not None:
            return lower, units
    raise ValueError("no prices")


def agreeing_prices(counted: CountedPrices, lower: int, upper: int, rules: SymbolRules) -> CountedPrices:
    """The sources within ``max_deviation`` of the mark; nobody if the medians are apart, or these are too few."""
    if lower != upper and apart(upper, lower, rules.max_deviation):
        return []
    mark = (lower + upper) // 2
    reach = rules.max_deviation * mark // _ONE  # whole units are within it as they are within the exact product
    lowest, highest = mark - reach, mark + reach
    agreeing = [source for source in counted if lowest <= source[0] <= highest]
    if len(agreeing) < rules.minimum_sources:
        return []
    if len(agreeing) < len(counted):
        agreed, total = (sum(weight for _, weight, _, _ in some) for some in (agreeing, counted))
        if 2 * agreed <= total:
            return []
    return agreeing
