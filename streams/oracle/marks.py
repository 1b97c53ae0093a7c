"""How a mark is formed, without Faust and without a clock: prices and the time are passed in.

A source's price counts while it is listed for the symbol, fresh, and sure of itself. Of those that count, whoever is
further than ``max_deviation`` from their weighted median is dropped and the median of the rest is the mark. Too few
sources make it stale; a jump halts it until the new level has lasted. Repeated and late prices change nothing, because
a source's sequence must rise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

import msgspec

from schemas.messages import Mark, OraclePrice
from schemas.parameters import OracleParameters
from schemas.types import MarkStatus
from streams.oracle.scales import VolatilityState

Outcome = Literal["accepted", "unknown_symbol", "unknown_source", "repeated", "from_the_future"]


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """The last price of one source for one symbol."""

    price: str
    confidence: str | None
    sequence: int
    publish_time: int


class MarkState(msgspec.Struct, frozen=True, kw_only=True):
    """The last live mark of a symbol; ``jump_since`` is when a jump that halts it was first seen."""

    price: str
    publish_time: int
    jump_since: int | None = None


class SymbolState(msgspec.Struct, frozen=True, kw_only=True):
    """What must survive a restart of a symbol: each source's last price, the last live mark, and its volatility."""

    sources: dict[str, SourceState]
    mark: MarkState | None
    volatility: VolatilityState | None = None


@dataclass(slots=True)
class _Symbol:
    sources: dict[str, SourceState] = field(default_factory=dict)
    state: MarkState | None = None
    mark: Mark | None = None


class MarkBook:
    """The marks of every symbol that has oracle parameters. Times are microseconds."""

    def __init__(self) -> None:
        self._rules: dict[str, OracleParameters] = {}
        self._symbols: dict[str, _Symbol] = {}

    def set_rules(self, rules: Mapping[str, OracleParameters]) -> None:
        """Put these rules, by symbol, in force, and no others."""
        self._rules = dict(rules)

    def restore(self, symbol: str, state: SymbolState) -> None:
        """Remember a symbol from before a restart."""
        self._symbols[symbol] = _Symbol(dict(state.sources), state.mark)

    def state(self, symbol: str) -> SymbolState:
        """What :meth:`restore` needs."""
        found = self._symbols[symbol]
        return SymbolState(sources=found.sources, mark=found.state)

    def accept(self, price: OraclePrice, clock: int) -> Outcome:
        """Take in a source's price, or say why it does not count."""
        rules = self._rules.get(price.symbol)
        if rules is None:
            return "unknown_symbol"
        if price.source not in rules.sources:
            return "unknown_source"
        if price.publish_time > clock + 1000 * rules.max_age_ms:
            return "from_the_future"
        sources = self._symbols.setdefault(price.symbol, _Symbol()).sources
        last = sources.get(price.source)
        if last is not None and price.sequence <= last.sequence:
            return "repeated"
        sources[price.source] = SourceState(
            price=price.price, confidence=price.confidence, sequence=price.sequence, publish_time=price.publish_time
        )
        return "accepted"

    def form(self, symbol: str, clock: int) -> Mark | None:
        """The mark of ``symbol`` at ``clock`` if its price or status is not that of the one before, else None."""
        found, rules = self._symbols.get(symbol), self._rules.get(symbol)
        if found is None or rules is None:
            return None
        used = _agreeing(found.sources, rules, clock)
        mark = _stale(symbol, found.state) if used is None else _judged(symbol, found, rules, used, clock)
        before, found.mark = found.mark, mark
        if mark is None or (before is not None and (mark.price, mark.status) == (before.price, before.status)):
            return None
        return mark

    def form_all(self, clock: int) -> tuple[Mark, ...]:
        """Every mark at ``clock``, changed or not."""
        for symbol in self._rules:
            self.form(symbol, clock)
        return tuple(
            found.mark for symbol in sorted(self._rules) if (found := self._symbols.get(symbol)) and found.mark
        )


def weighted_median(prices: Sequence[tuple[Decimal, Decimal]]) -> Decimal:
    """The lower weighted median of (price, weight) pairs: the first price at which half of the weight is reached."""
    half = sum(weight for _, weight in prices) / 2
    reached = Decimal(0)
    for price, weight in sorted(prices):
        reached += weight
        if reached >= half:
            return price
    raise ValueError("no prices")


_Used = dict[str, SourceState]


def _agreeing(sources: dict[str, SourceState], rules: OracleParameters, clock: int) -> _Used | None:
    """The fresh, confident sources that agree with their median; None if they are fewer than the minimum."""
    fresh = {name: found for name, found in sources.items() if name in rules.sources and _counts(found, rules, clock)}
    if len(fresh) < rules.minimum_sources:
        return None
    median = _median(fresh, rules)
    limit = Decimal(rules.max_deviation) * median
    kept = {name: found for name, found in fresh.items() if abs(Decimal(found.price) - median) <= limit}
    return kept if len(kept) >= rules.minimum_sources else None


def _counts(source: SourceState, rules: OracleParameters, clock: int) -> bool:
    if abs(clock - source.publish_time) > 1000 * rules.max_age_ms:
        return False
    if source.confidence is None:
        return True
    return Decimal(source.confidence) <= Decimal(rules.max_confidence_ratio) * Decimal(source.price)


def _median(used: _Used, rules: OracleParameters) -> Decimal:
    return weighted_median([(Decimal(found.price), Decimal(rules.sources[name])) for name, found in used.items()])


def _judged(symbol: str, found: _Symbol, rules: OracleParameters, used: _Used, clock: int) -> Mark:
    """Live, unless the price jumped: then halted until the new level has lasted ``max_age_ms``."""
    price = _median(used, rules)
    last = found.state
    jumped = last is not None and abs(price - Decimal(last.price)) > Decimal(rules.max_jump) * Decimal(last.price)
    if jumped and last is not None:
        since = clock if last.jump_since is None else last.jump_since
        if clock - since < 1000 * rules.max_age_ms:
            found.state = msgspec.structs.replace(last, jump_since=since)
            return _mark(symbol, last.price, "halted", last.publish_time)
    newest = max(source.publish_time for source in used.values())
    text = next(source.price for source in used.values() if Decimal(source.price) == price)
    found.state = MarkState(price=text, publish_time=newest)
    return _mark(symbol, text, "live", newest, {name: source.price for name, source in sorted(used.items())})


def _stale(symbol: str, last: MarkState | None) -> Mark | None:
    return None if last is None else _mark(symbol, last.price, "stale", last.publish_time)


def _mark(
    symbol: str, price: str, status: MarkStatus, publish_time: int, sources: dict[str, str] | None = None
) -> Mark:
    return Mark(symbol=symbol, price=price, status=status, publish_time=publish_time, sources=sources or {})
