"""What is known of one symbol, and the mark that it makes: prices and the time are passed in.

Owns which price becomes a source's last, the last live mark, the halt since, and the mark at a time. All symbols
together are :class:`streams.oracle.marks.MarkBook`.
"""

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from schemas.messages import Mark, OraclePrice
from schemas.types import FRACTION_DIGITS_MAX, MarkStatus, Uncounted
from streams.margin.fixed_point import from_units
from streams.oracle.jumps import Halt, HaltState, follow_jump
from streams.oracle.scales import VolatilityState
from streams.oracle.sources import (
    SourcePrice,
    SourceState,
    SymbolRules,
    agreeing_prices,
    apart,
    counted_prices,
    medians,
    units_of,
)

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

_REASONS: dict[Outcome, Uncounted] = {
    "late": "late",
    "unsure": "unsure",
    "repeated": "repeated",
    "from_the_future": "from_the_future",
}


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


class LiveMark(msgspec.Struct, frozen=True):
    """The last live mark."""

    price: str
    units: int
    publish_time: int

    @classmethod
    def published(cls, price: str, publish_time: int) -> "LiveMark":
        """A mark that was published before, its price written in the shortest way."""
        units = units_of(price)
        return cls(from_units(units, FRACTION_DIGITS_MAX), units, publish_time)


@dataclass(slots=True)
class SymbolBook:
    """One symbol: each source's last price, the last live mark, the halt since, and the last mark of all.

    ``outcomes`` is, by source, what became of its last price, where that does not count and is no mere repeat.
    ``formed``: by what rules and when the last mark was formed; None if a price has come since, or there is none.
    """

    sources: dict[str, SourcePrice] = field(default_factory=dict)
    live: LiveMark | None = None
    halt: Halt | None = None
    mark: Mark | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    formed: tuple[SymbolRules, int] | None = None

    @classmethod
    def restored(cls, state: SymbolState) -> "SymbolBook":
        """A symbol from before a restart."""
        book = cls({name: SourcePrice.restored(source) for name, source in state.sources.items()})
        if state.mark is not None:
            book.live = LiveMark.published(state.mark.price, state.mark.publish_time)
            book.halt = None if state.mark.halt is None else Halt.restored(state.mark.halt)
        return book

    def state(self) -> SymbolState:
        """What :meth:`restored` needs."""
        live, mark = self.live, None
        if live is not None:
            halt = None if self.halt is None else self.halt.state()
            mark = MarkState(price=live.price, publish_time=live.publish_time, halt=halt)
        return SymbolState(sources={name: price.state() for name, price in self.sources.items()}, mark=mark)

    def accept(self, price: OraclePrice, rules: SymbolRules, clock: int) -> Outcome:
        """Take in the price of a source that is listed, and say what became of it."""
        outcome = self._accept(price, rules, clock)
        if outcome in COUNTED:
            self.outcomes.pop(price.source, None)
        elif outcome != "repeated" or price.publish_time > self.sources[price.source].publish_time:
            self.outcomes[price.source] = outcome
        return outcome

    def _accept(self, price: OraclePrice, rules: SymbolRules, clock: int) -> Outcome:
        if price.publish_time > clock + rules.max_age:
            return "from_the_future"
        last = self.sources.get(price.source)
        restarted = last is not None and price.sequence <= last.sequence
        if restarted and last is not None and not _newer(price, last, rules, clock):
            return "repeated"
        if self.halt is not None and not self.halt.outlasts(self.sources, rules, clock):
            self.halt = None
        heard = self.sources[price.source] = SourcePrice.heard(price, clock)
        self.formed = None
        fresh, sure = rules.fresh(heard, clock), rules.sure(heard)
        if self.halt is not None and self.halt.level is not None:
            self.halt.level.hear(price.source, heard, fresh and sure, rules.max_jump)
        if not fresh:
            return "late"
        if not sure:
            return "unsure"
        return "restarted" if restarted else "accepted"

    def form(self, symbol: str, rules: SymbolRules, clock: int) -> Mark | None:
        """The mark at ``clock``; None if there was never a live one."""
        if not self._is_still_so(rules, clock):
            self.mark, self.formed = self._formed(symbol, rules, clock), (rules, clock)
        return self.mark

    def _is_still_so(self, rules: SymbolRules, clock: int) -> bool:
        """Whether forming the mark again would change nothing: it is live, of all sources, and none has grown old."""
        mark, formed = self.mark, self.formed
        if mark is None or formed is None or mark.status != "live" or len(mark.sources) != len(rules.weights):
            return False
        by, at = formed
        oldest = clock - rules.max_age
        return by is rules and at <= clock and all(oldest <= price.time <= at for price in self.sources.values())

    def _formed(self, symbol: str, rules: SymbolRules, clock: int) -> Mark | None:
        if self.halt is not None and not self.halt.outlasts(self.sources, rules, clock):
            self.halt = None
        live = self.live
        counted = counted_prices(self.sources, rules, clock)
        if not counted:
            return self._not_live(symbol, "stale", clock)
        lower, upper = medians(counted)
        units = (lower + upper) // 2
        agreeing = agreeing_prices(counted, lower, upper, rules)
        if live is not None and apart(units, live.units, rules.max_jump):
            self.halt = follow_jump(self.halt, rules, units, agreed=bool(agreeing), clock=clock)
            if agreeing and not (self.halt and self.halt.releases(rules, counted, agreeing, clock)):
                return self._not_live(symbol, "halted", clock)
        else:
            self.halt = None
        if not agreeing:
            return self._not_live(symbol, "stale", clock)
        newest = min(clock, max(price.time for _, _, _, price in agreeing))
        text = live.price if live is not None and units == live.units else from_units(units, FRACTION_DIGITS_MAX)
        self.live, self.halt = LiveMark(text, units, newest), None
        return Mark(
            symbol=symbol,
            price=text,
            status="live",
            publish_time=newest,
            sources={name: price.price for _, _, name, price in agreeing},
        )

    def go_stale(self, symbol: str, clock: int) -> Mark | None:
        """The mark at ``clock`` of a symbol that has no rules any more."""
        self.mark, self.formed = self._not_live(symbol, "stale", clock), None
        return self.mark

    def _not_live(self, symbol: str, status: MarkStatus, clock: int) -> Mark | None:
        """A mark that is not live shows the last live one; without one there is no mark."""
        live = self.live
        if live is None:
            return None
        return Mark(symbol=symbol, price=live.price, status=status, publish_time=min(live.publish_time, clock))

    def uncounted(self, rules: SymbolRules, clock: int) -> dict[str, Uncounted]:
        """The listed sources whose price is not in the mark at ``clock``, and why."""
        mark = self.mark
        if mark is not None and len(mark.sources) == len(rules.weights):
            return {}
        reasons: dict[str, Uncounted] = {}
        for name in rules.weights:
            price, outcome = self.sources.get(name), self.outcomes.get(name)
            if price is not None and rules.fresh(price, clock) and rules.sure(price):
                if mark is not None and mark.status == "live" and name not in mark.sources:
                    reasons[name] = "apart"
            elif outcome is not None:
                reasons[name] = _REASONS.get(outcome, "silent")
            else:
                reasons[name] = "silent" if price else "never"
        return reasons


def _newer(price: OraclePrice, last: SourcePrice, rules: SymbolRules, clock: int) -> bool:
    """Whether a price whose sequence did not rise is a source that counts anew, and no repeat.

    A last price that the clock has not reached is of a process whose clock was ahead: it holds nobody up.
    """
    return price.publish_time > last.publish_time + rules.max_age or last.publish_time > clock + rules.max_age
