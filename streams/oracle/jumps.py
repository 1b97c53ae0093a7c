"""The jump rule: when a price that jumped halts a symbol, the level it is at since, and when it may be live again.

Pure: the clock and the prices are passed in. The rule and its formulas are in this package's README.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from schemas.types import FRACTION_DIGITS_MAX
from streams.margin.fixed_point import from_units
from streams.oracle.sources import CountedPrices, SourcePrice, SymbolRules, apart, units_of


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


@dataclass(slots=True)
class Level:
    """A :class:`LevelState` that goes on, its price in units."""

    units: int
    since: int
    shown: dict[str, int] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)

    def hear(self, source: str, price: SourcePrice, counts: bool, max_jump: int) -> None:
        """Take in a price of a source: at the level, or away from it. What was published before it began is neither."""
        if price.time <= self.since:
            return
        if apart(price.units, self.units, max_jump):
            self.left.add(source)
        elif counts:
            self.shown[source] = max(price.time, self.shown.get(source, 0))

    def shown_by(self, source: str, jump_confirm: int) -> bool:
        """Whether every price of the source since was at the level, and one came ``jump_confirm`` or more after."""
        return source not in self.left and self.shown.get(source, 0) >= self.since + jump_confirm


@dataclass(slots=True)
class Halt:
    """A :class:`HaltState` that goes on."""

    since: int
    counted: int
    level: Level | None = None

    @classmethod
    def restored(cls, state: HaltState) -> "Halt":
        """A halt from before a restart."""
        level = state.level
        return cls(
            state.since,
            state.counted,
            None if level is None else Level(units_of(level.price), level.since, dict(level.shown), set(level.left)),
        )

    def state(self) -> HaltState:
        """What :meth:`restored` needs."""
        level = None
        if self.level is not None:
            level = LevelState(
                price=from_units(self.level.units, FRACTION_DIGITS_MAX),
                since=self.level.since,
                shown=dict(self.level.shown),
                left=tuple(sorted(self.level.left)),
            )
        return HaltState(since=self.since, counted=self.counted, level=level)

    def outlasts(self, sources: Mapping[str, SourcePrice], rules: SymbolRules, clock: int) -> bool:
        """Let time pass to ``clock``: whether the halt goes on, because a source counted within ``max_age``.

        A halt from the future, of a process whose clock was ahead, begins now.
        """
        if self.level is not None and self.level.since > clock:
            self.level = None
        self.since = min(self.since, clock)
        counted = max(
            (
                min(clock, price.time + rules.max_age)
                for name, price in sources.items()
                if name in rules.weights and price.time - clock <= rules.max_age and rules.sure(price)
            ),
            default=0,
        )
        self.counted = max(min(self.counted, clock), counted)
        return clock - self.counted < rules.max_age

    def releases(self, rules: SymbolRules, counted: CountedPrices, agreeing: CountedPrices, clock: int) -> bool:
        """Whether a price that its sources agree on may be live though it jumped."""
        level = self.level
        assert level is not None, "a price that is agreed on has a level"
        if clock - level.since >= rules.max_age and any(price.time > level.since for _, _, _, price in agreeing):
            return True
        if clock - self.since >= rules.jump_halt_max and rules.majority(weight for _, weight, _, _ in agreeing):
            return True
        shown = [weight for _, weight, name, _ in counted if level.shown_by(name, rules.jump_confirm)]
        return len(shown) >= 2 and rules.majority(shown)


def follow_jump(halt: Halt | None, rules: SymbolRules, units: int, *, agreed: bool, clock: int) -> Halt | None:
    """The halt of a price that is apart from the last live mark: begun, and its level anew where the price left that.

    Halts and levels begin at a price that its sources agree on; any price may leave a level.
    """
    if halt is not None and halt.level is not None and apart(units, halt.level.units, rules.max_jump):
        halt.level = None
    if not agreed:
        return halt
    if halt is None:
        halt = Halt(clock, clock)
    if halt.level is None:
        halt.level = Level(units, clock)
    return halt
