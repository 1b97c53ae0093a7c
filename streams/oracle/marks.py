"""How a mark is formed, without Faust and without a clock: prices and the time are passed in.

A source's price counts while it is listed for the symbol, fresh, and sure of itself. The weighted median of those that
count is the mark; it is live while they agree, and halted after a jump until the new level has been shown. The rules
and their formulas are in this package's README. Everything is exact: prices, weights and rates are whole numbers of
``10**-18``.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from schemas.messages import Mark, OraclePrice
from schemas.parameters import OracleParameters
from schemas.types import FRACTION_DIGITS_MAX, MarkStatus, Uncounted
from streams.margin.fixed_point import from_units, parse_units
from streams.oracle.scales import VolatilityState

Outcome = Literal[
    "accepted", "restarted", "unsure", "late", "repeated", "from_the_future", "unknown_source", "unknown_symbol"
]
"""What became of a price.

``accepted``: it counts. ``restarted``: it counts, and its sequence is below the source's last. ``unsure`` and ``late``:
it is the source's last price from here on, and does not count (its confidence is too wide; it was published more than
``max_age_ms`` ago). The others change nothing.
"""

COUNTED: frozenset[Outcome] = frozenset({"accepted", "restarted"})
"""The outcomes of a price that counts."""
HEARD: frozenset[Outcome] = COUNTED | {"unsure", "late"}
"""The outcomes after which the mark may be another."""

UNCOUNTED_MAX = 1_000
"""So many sources that do not count are named in a frame."""

_REASONS: dict[Outcome, Uncounted] = {
    "late": "late",
    "unsure": "unsure",
    "repeated": "repeated",
    "from_the_future": "from_the_future",
}
_ONE: int = 10**FRACTION_DIGITS_MAX


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


class LevelState(msgspec.Struct, frozen=True, kw_only=True):
    """The level that a price jumped to and since when it is there.

    ``shown`` is, by source, the time of its newest price at the level published since; ``left`` names the sources that
    have published one away from it since.
    """

    price: str
    since: int
    shown: dict[str, int] = {}
    left: tuple[str, ...] = ()


class HaltState(msgspec.Struct, frozen=True, kw_only=True):
    """A halt: when it began, until when it is known that a source counted, and the level it is at, if it is at one."""

    since: int
    counted: int
    level: LevelState | None = None


class MarkState(msgspec.Struct, frozen=True, kw_only=True):
    """The last live mark of a symbol, and the halt since, if there is one."""

    price: str
    publish_time: int
    halt: HaltState | None = None


class SymbolState(msgspec.Struct, frozen=True, kw_only=True):
    """What must survive a restart of a symbol: each source's last price, the last live mark, and its volatility."""

    sources: dict[str, SourceState]
    mark: MarkState | None
    volatility: VolatilityState | None = None


@dataclass(frozen=True, slots=True)
class _Rules:
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
    def of(cls, record: OracleParameters) -> "_Rules":
        weights = {source: _units(weight) for source, weight in sorted(record.sources.items())}
        return cls(
            weights=weights,
            total=sum(weights.values()),
            minimum_sources=record.minimum_sources,
            max_age=1000 * record.max_age_ms,
            max_confidence_ratio=_units(record.max_confidence_ratio),
            max_deviation=_units(record.max_deviation),
            max_jump=_units(record.max_jump),
            jump_confirm=1000 * record.jump_confirm_ms,
            jump_halt_max=1000 * record.jump_halt_ms_max,
        )

    def fresh(self, price: "_Price", clock: int) -> bool:
        return -self.max_age <= clock - price.time <= self.max_age

    def sure(self, price: "_Price") -> bool:
        confidence = price.confidence_units
        return confidence is None or confidence * _ONE <= self.max_confidence_ratio * price.units

    def majority(self, weights: Iterable[int]) -> bool:
        """Whether ``weights`` are more than half of the configured weight."""
        return 2 * sum(weights) > self.total


@dataclass(slots=True)
class _Price:
    """A source's last price: as it came, and in units."""

    price: str
    units: int
    confidence: str | None
    confidence_units: int | None
    sequence: int
    publish_time: int
    time: int

    def state(self) -> SourceState:
        return SourceState(
            price=self.price,
            confidence=self.confidence,
            sequence=self.sequence,
            publish_time=self.publish_time,
            time=self.time,
        )


@dataclass(slots=True)
class _Level:
    units: int
    since: int
    shown: dict[str, int] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)

    def hear(self, source: str, price: _Price, counts: bool, max_jump: int) -> None:
        """Take in a price of a source: at the level, or away from it. What was published before it began is neither."""
        if price.time <= self.since:
            return
        if _apart(price.units, self.units, max_jump):
            self.left.add(source)
        elif counts:
            self.shown[source] = max(price.time, self.shown.get(source, 0))

    def shown_by(self, source: str, jump_confirm: int) -> bool:
        """Whether every price of the source since was at the level, and one came ``jump_confirm`` or more after."""
        return source not in self.left and self.shown.get(source, 0) >= self.since + jump_confirm


@dataclass(slots=True)
class _Halt:
    since: int
    counted: int
    level: _Level | None = None


@dataclass(frozen=True, slots=True)
class _Live:
    """The last live mark."""

    price: str
    units: int
    publish_time: int


@dataclass(slots=True)
class _Symbol:
    sources: dict[str, _Price] = field(default_factory=dict)
    live: _Live | None = None
    halt: _Halt | None = None
    mark: Mark | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By source, what became of its last price, where that does not count and is no mere repeat."""


_Counting = list[tuple[int, int, str, _Price]]
"""Price, weight, name and state of each source that counts, in order of names."""


class MarkBook:
    """The marks of every symbol that has oracle parameters. Times are microseconds, and the clock never falls."""

    def __init__(self) -> None:
        self._rules: dict[str, _Rules] = {}
        self._symbols: dict[str, _Symbol] = {}
        self._kept: frozenset[str] = frozenset()

    def set_rules(self, rules: Mapping[str, OracleParameters], kept: Collection[str] = ()) -> None:
        """Put these rules, by symbol, in force, and no others.

        The symbols ``kept`` stay in the marks at their last price, stale, when they have no rules any more: whoever
        holds something priced by one must not take it for a symbol that never had a price.
        """
        self._rules = {symbol: _Rules.of(record) for symbol, record in rules.items()}
        self._kept = frozenset(kept)

    def remember(self, mark: Mark) -> None:
        """Know a mark published before, unless the symbol's own state is known: it is not live until it is formed."""
        found = self._symbols.setdefault(mark.symbol, _Symbol())
        if found.live is None:
            units = _units(mark.price)
            found.live = _Live(from_units(units, FRACTION_DIGITS_MAX), units, mark.publish_time)

    def restore(self, symbol: str, state: SymbolState) -> None:
        """Remember a symbol from before a restart."""
        found = _Symbol({name: _restored(source) for name, source in state.sources.items()})
        if state.mark is not None:
            units = _units(state.mark.price)
            found.live = _Live(from_units(units, FRACTION_DIGITS_MAX), units, state.mark.publish_time)
            found.halt = _restored_halt(state.mark.halt)
        self._symbols[symbol] = found

    def state(self, symbol: str) -> SymbolState:
        """What :meth:`restore` needs."""
        found = self._symbols[symbol]
        live, mark = found.live, None
        if live is not None:
            mark = MarkState(price=live.price, publish_time=live.publish_time, halt=_halt_state(found.halt))
        return SymbolState(sources={name: price.state() for name, price in found.sources.items()}, mark=mark)

    def accept(self, price: OraclePrice, clock: int) -> Outcome:
        """Take in a source's price, and say what became of it."""
        rules = self._rules.get(price.symbol)
        if rules is None:
            return "unknown_symbol"
        if price.source not in rules.weights:
            return "unknown_source"
        found = self._symbols.setdefault(price.symbol, _Symbol())
        outcome = _take_in(found, price, rules, clock)
        if outcome in COUNTED:
            found.outcomes.pop(price.source, None)
        elif outcome != "repeated" or price.publish_time > found.sources[price.source].publish_time:
            found.outcomes[price.source] = outcome
        return outcome

    def form(self, symbol: str, clock: int) -> Mark | None:
        """The mark of ``symbol`` at ``clock`` if its price or status is not that of the one before, else None."""
        found, rules = self._symbols.get(symbol), self._rules.get(symbol)
        if found is None or rules is None:
            return None
        mark = _formed(symbol, found, rules, clock)
        before, found.mark = found.mark, mark
        if mark is None or (before is not None and (mark.price, mark.status) == (before.price, before.status)):
            return None
        return mark

    def form_all(self, clock: int) -> tuple[Mark, ...]:
        """Every mark at ``clock``, changed or not."""
        marks = []
        for symbol, found in sorted(self._symbols.items()):
            if symbol in self._rules:
                self.form(symbol, clock)
            else:
                found.mark = _not_live(symbol, found.live, "stale", clock) if symbol in self._kept else None
            if found.mark is not None:
                marks.append(found.mark)
        return tuple(marks)

    def uncounted(self, clock: int) -> dict[str, dict[str, Uncounted]]:
        """By symbol, the listed sources whose price is not in its mark at ``clock``, and why: the first
        ``UNCOUNTED_MAX``, because a frame must hold them.

        Sources that count and are not part of a mark that is not live are not named.
        """
        found: dict[str, dict[str, Uncounted]] = {}
        left = UNCOUNTED_MAX
        for symbol, rules in sorted(self._rules.items()):
            reasons = _uncounted(self._symbols.get(symbol), rules, clock)
            if reasons and left >= len(reasons):
                found[symbol] = reasons
                left -= len(reasons)
        return found


# --- the rules -------------------------------------------------------------------------------------------------------


def _take_in(found: _Symbol, price: OraclePrice, rules: _Rules, clock: int) -> Outcome:
    if price.publish_time > clock + rules.max_age:
        return "from_the_future"
    last = found.sources.get(price.source)
    restarted = last is not None and price.sequence <= last.sequence
    if restarted and last is not None and not _newer(price, last, rules, clock):
        return "repeated"
    if found.halt is not None:
        _pass_time(found, rules, clock)
    heard = found.sources[price.source] = _heard(price, clock)
    fresh, sure = rules.fresh(heard, clock), rules.sure(heard)
    if found.halt is not None and found.halt.level is not None:
        found.halt.level.hear(price.source, heard, fresh and sure, rules.max_jump)
    if not fresh:
        return "late"
    if not sure:
        return "unsure"
    return "restarted" if restarted else "accepted"


def _formed(symbol: str, found: _Symbol, rules: _Rules, clock: int) -> Mark | None:
    if found.halt is not None:
        _pass_time(found, rules, clock)
    live = found.live
    counting = _counting(found.sources, rules, clock)
    if not counting:
        return _not_live(symbol, live, "stale", clock)
    lower, upper = _medians(counting)
    units = (lower + upper) // 2
    agreeing = _agreeing(counting, lower, upper, rules)
    if live is not None and _apart(units, live.units, rules.max_jump):
        _follow_jump(found, rules, units, bool(agreeing), clock)
        if agreeing and not (found.halt and _released(found.halt, rules, counting, agreeing, clock)):
            return _not_live(symbol, live, "halted", clock)
    else:
        found.halt = None
    if not agreeing:
        return _not_live(symbol, live, "stale", clock)
    newest = min(clock, max(price.time for _, _, _, price in agreeing))
    text = live.price if live is not None and units == live.units else from_units(units, FRACTION_DIGITS_MAX)
    found.live, found.halt = _Live(text, units, newest), None
    return Mark(
        symbol=symbol,
        price=text,
        status="live",
        publish_time=newest,
        sources={name: price.price for _, _, name, price in agreeing},
    )


def _counting(sources: dict[str, _Price], rules: _Rules, clock: int) -> _Counting:
    """The sources that are listed, fresh and sure."""
    return [
        (price.units, weight, name, price)
        for name, weight in rules.weights.items()
        if (price := sources.get(name)) is not None and rules.fresh(price, clock) and rules.sure(price)
    ]


def _medians(counting: _Counting) -> tuple[int, int]:
    """The lower and the upper weighted median: the first prices at which half, and more than half, is reached."""
    total = sum(weight for _, weight, _, _ in counting)
    reached, lower = 0, None
    for units, weight, _, _ in sorted(counting):
        reached += weight
        if lower is None and 2 * reached >= total:
            lower = units
        if lower is not None and 2 * reached > total:
            return lower, units
    raise ValueError("no prices")


def _agreeing(counting: _Counting, lower: int, upper: int, rules: _Rules) -> _Counting:
    """The sources within ``max_deviation`` of the mark; nobody if the medians are apart, or these are too few."""
    if _apart(upper, lower, rules.max_deviation):
        return []
    mark = (lower + upper) // 2
    agreeing = [source for source in counting if not _apart(source[0], mark, rules.max_deviation)]
    if len(agreeing) < rules.minimum_sources:
        return []
    if len(agreeing) < len(counting):
        agreed, total = (sum(weight for _, weight, _, _ in some) for some in (agreeing, counting))
        if 2 * agreed <= total:
            return []
    return agreeing


def _apart(units: int, reference: int, rate: int) -> bool:
    """Whether ``units`` is further than ``rate`` of ``reference`` from it."""
    return abs(units - reference) * _ONE > rate * reference


def _follow_jump(found: _Symbol, rules: _Rules, units: int, agreed: bool, clock: int) -> None:
    """The price is apart from the last live mark: begin the halt, and its level anew where the price left that.

    Halts and levels begin at a price that its sources agree on; any price may leave a level.
    """
    halt = found.halt
    if halt is not None and halt.level is not None and _apart(units, halt.level.units, rules.max_jump):
        halt.level = None
    if not agreed:
        return
    if halt is None:
        halt = found.halt = _Halt(clock, clock)
    if halt.level is None:
        halt.level = _Level(units, clock)


def _released(halt: _Halt, rules: _Rules, counting: _Counting, agreeing: _Counting, clock: int) -> bool:
    """Whether a price that its sources agree on may be live though it jumped."""
    level = halt.level
    assert level is not None, "a price that is agreed on has a level"
    if clock - level.since >= rules.max_age and any(price.time > level.since for _, _, _, price in agreeing):
        return True
    if clock - halt.since >= rules.jump_halt_max and rules.majority(weight for _, weight, _, _ in agreeing):
        return True
    shown = [weight for _, weight, name, _ in counting if level.shown_by(name, rules.jump_confirm)]
    return len(shown) >= 2 and rules.majority(shown)


def _pass_time(found: _Symbol, rules: _Rules, clock: int) -> None:
    """End the halt if no source has counted for ``max_age_ms``, by the prices so far.

    A halt from the future, of a process whose clock was ahead, begins now.
    """
    halt = found.halt
    assert halt is not None, "only a halt has a time that passes"
    if halt.level is not None and halt.level.since > clock:
        halt.level = None
    halt.since = min(halt.since, clock)
    counted = max(
        (
            min(clock, price.time + rules.max_age)
            for name, price in found.sources.items()
            if name in rules.weights and price.time - clock <= rules.max_age and rules.sure(price)
        ),
        default=0,
    )
    halt.counted = max(min(halt.counted, clock), counted)
    if clock - halt.counted >= rules.max_age:
        found.halt = None


def _uncounted(found: _Symbol | None, rules: _Rules, clock: int) -> dict[str, Uncounted]:
    if found is None:
        return dict.fromkeys(rules.weights, "never")
    mark = found.mark
    if mark is not None and len(mark.sources) == len(rules.weights):
        return {}
    reasons: dict[str, Uncounted] = {}
    for name in rules.weights:
        price, outcome = found.sources.get(name), found.outcomes.get(name)
        if price is not None and rules.fresh(price, clock) and rules.sure(price):
            if mark is not None and mark.status == "live" and name not in mark.sources:
                reasons[name] = "apart"
        else:
            reasons[name] = _REASONS.get(outcome, "silent") if outcome is not None else ("silent" if price else "never")
    return reasons


def _newer(price: OraclePrice, last: _Price, rules: _Rules, clock: int) -> bool:
    """Whether a price whose sequence did not rise is a source that counts anew, and no repeat.

    A last price that the clock has not reached is of a process whose clock was ahead: it holds nobody up.
    """
    return price.publish_time > last.publish_time + rules.max_age or last.publish_time > clock + rules.max_age


def _not_live(symbol: str, live: _Live | None, status: MarkStatus, clock: int) -> Mark | None:
    """A mark that is not live shows the last live one; without one there is no mark."""
    if live is None:
        return None
    return Mark(symbol=symbol, price=live.price, status=status, publish_time=min(live.publish_time, clock))


# --- states ----------------------------------------------------------------------------------------------------------


def _units(text: str) -> int:
    return parse_units(text, FRACTION_DIGITS_MAX)


def _heard(price: OraclePrice, clock: int) -> _Price:
    return _Price(
        price.price,
        _units(price.price),
        price.confidence,
        None if price.confidence is None else _units(price.confidence),
        price.sequence,
        price.publish_time,
        min(price.publish_time, clock),
    )


def _restored(state: SourceState) -> _Price:
    return _Price(
        state.price,
        _units(state.price),
        state.confidence,
        None if state.confidence is None else _units(state.confidence),
        state.sequence,
        state.publish_time,
        state.publish_time if state.time is None else state.time,
    )


def _halt_state(halt: _Halt | None) -> HaltState | None:
    if halt is None:
        return None
    level = None
    if halt.level is not None:
        level = LevelState(
            price=from_units(halt.level.units, FRACTION_DIGITS_MAX),
            since=halt.level.since,
            shown=dict(halt.level.shown),
            left=tuple(sorted(halt.level.left)),
        )
    return HaltState(since=halt.since, counted=halt.counted, level=level)


def _restored_halt(state: HaltState | None) -> _Halt | None:
    if state is None:
        return None
    level = state.level
    return _Halt(
        state.since,
        state.counted,
        None if level is None else _Level(_units(level.price), level.since, dict(level.shown), set(level.left)),
    )
