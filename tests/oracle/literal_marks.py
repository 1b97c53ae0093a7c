"""The rules of the marks once more, as slow as they are literal, to compare the real book with.

Nothing is kept up to date: the book remembers all that it was ever told, and every question is answered from the whole
story by the words of the rules. Numbers are fractions.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from schemas.messages import OraclePrice
from schemas.parameters import OracleParameters


@dataclass(frozen=True)
class Told:
    """A price that was heard, at the oracle's time ``at``; ``looks`` of the mark were taken before it."""

    at: int
    looks: int
    source: str
    price: Fraction
    confidence: Fraction | None
    sequence: int
    publish_time: int

    @property
    def time(self) -> int:
        return min(self.at, self.publish_time)


@dataclass(frozen=True)
class Look:
    """The mark at a time: its status, its price, and of whose prices."""

    status: str
    price: Fraction
    sources: frozenset[str] = frozenset()


@dataclass
class LiteralBook:
    rules: OracleParameters
    told: list[Told] = field(default_factory=list)
    looked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.max_age = 1000 * self.rules.max_age_ms
        self.weights = {source: Fraction(weight) for source, weight in self.rules.sources.items()}
        self.max_jump = Fraction(self.rules.max_jump)
        self.max_deviation = Fraction(self.rules.max_deviation)

    def accept(self, price: OraclePrice, clock: int) -> bool:
        """Whether the price is heard."""
        before = [told for told in self.told if told.source == price.source]
        if price.publish_time - clock > self.max_age or price.source not in self.weights:
            return False
        if before:
            last = before[-1]
            rises = price.sequence > last.sequence
            if not rises and not price.publish_time - last.publish_time > self.max_age:
                return False
        confidence = None if price.confidence is None else Fraction(price.confidence)
        self.told.append(
            Told(clock, len(self.looked), price.source, Fraction(price.price), confidence, price.sequence,
                 price.publish_time)
        )  # fmt: skip
        return True

    def look(self, clock: int) -> Look | None:
        """The mark at ``clock``, by all that was told until now and all looks before this one."""
        self.looked.append(clock)
        mark: Look | None = None
        live: Fraction | None = None
        halted_since: int | None = None
        level: tuple[Fraction, int, int] | None = None  # its price, since when, and at which look
        for number, at in enumerate(self.looked):
            if halted_since is not None and self._silence(halted_since, at, number):
                halted_since, level = None, None
            counting = self._counting(at, number)
            price = self._price(counting)
            if price is None:
                mark = None if live is None else Look("stale", live)
                continue
            agreeing = self._agreeing(counting, price)
            if live is None or abs(price - live) <= self.max_jump * live:
                halted_since, level = None, None
                released = True
            else:
                if level is not None and abs(price - level[0]) > self.max_jump * level[0]:
                    level = None
                if agreeing:
                    halted_since = at if halted_since is None else halted_since
                    level = (price, at, number) if level is None else level
                released = bool(agreeing) and self._released(at, number, halted_since, level, counting, agreeing)
            if not agreeing:
                mark = None if live is None else Look("stale", live)
            elif released:
                live, halted_since, level = price, None, None
                mark = Look("live", price, frozenset(agreeing))
            else:
                assert live is not None
                mark = Look("halted", live)
        return mark

    # --- words of the rules ------------------------------------------------------------------------------------------

    def _counting(self, at: int, looks: int) -> dict[str, Told]:
        last: dict[str, Told] = {}
        for told in self.told:
            if told.looks <= looks:
                last[told.source] = told
        return {source: told for source, told in last.items() if self._counts(told, at)}

    def _counts(self, told: Told, at: int) -> bool:
        sure = told.confidence is None or told.confidence <= Fraction(self.rules.max_confidence_ratio) * told.price
        return sure and at - told.time <= self.max_age

    def _price(self, counting: dict[str, Told]) -> Fraction | None:
        """(m1 + m2) / 2, down to 18 places. m1: as much is above as below or at it; m2 from the other side."""
        if not counting:
            return None
        m1, m2 = self._medians(counting)
        return Fraction((m1 + m2) / 2 * 10**18 // 1, 10**18)

    def _medians(self, counting: dict[str, Told]) -> tuple[Fraction, Fraction]:
        prices = {told.price for told in counting.values()}
        total = self._weight(counting)
        below = {p: self._weight({s: t for s, t in counting.items() if t.price < p}) for p in prices}
        above = {p: self._weight({s: t for s, t in counting.items() if t.price > p}) for p in prices}
        medians = [p for p in prices if below[p] <= total / 2 and above[p] <= total / 2]
        return min(medians), max(medians)

    def _weight(self, sources: dict[str, Told]) -> Fraction:
        return sum((self.weights[source] for source in sources), Fraction(0))

    def _agreeing(self, counting: dict[str, Told], price: Fraction) -> dict[str, Told]:
        m1, m2 = self._medians(counting)
        near = {s: t for s, t in counting.items() if abs(t.price - price) <= self.max_deviation * price}
        agreed = (
            m2 - m1 <= self.max_deviation * m1
            and self._weight(near) > self._weight(counting) / 2
            and len(near) >= self.rules.minimum_sources
        )
        return near if agreed else {}

    def _released(
        self,
        at: int,
        look: int,
        halted_since: int | None,
        level: tuple[Fraction, int, int] | None,
        counting: dict[str, Told],
        agreeing: dict[str, Told],
    ) -> bool:
        assert halted_since is not None
        assert level is not None
        configured = sum(self.weights.values())
        _, since, _ = level
        lasted = at >= since + self.max_age and any(told.time > since for told in agreeing.values())
        too_long = at >= halted_since + 1000 * self.rules.jump_halt_ms_max and self._weight(agreeing) > configured / 2
        shown = {source: told for source, told in counting.items() if self._shows(source, level, look)}
        return lasted or too_long or (len(shown) >= 2 and self._weight(shown) > configured / 2)

    def _shows(self, source: str, level: tuple[Fraction, int, int], look: int) -> bool:
        price, since, first_look = level
        published = [
            told
            for told in self.told
            if told.source == source and told.time > since and first_look < told.looks <= look
        ]
        confirmed = since + 1000 * self.rules.jump_confirm_ms
        return all(abs(told.price - price) <= self.max_jump * price for told in published) and any(
            told.time >= confirmed and self._counts(told, told.at) for told in published
        )

    def _silence(self, first: int, last: int, looks: int) -> bool:
        """Whether no source counted for ``max_age_ms`` on end between two times."""
        ends = []
        heard = [told for told in self.told if told.looks <= looks]
        for number, told in enumerate(heard):
            replaced = next((later.at for later in heard[number + 1 :] if later.source == told.source), last)
            if self._counts(told, told.at):
                ends.append((told.at, min(told.time + self.max_age, replaced, last)))
        covered = first
        for begin, end in sorted(ends):
            if begin - covered >= self.max_age:
                return True
            covered = max(covered, end)
        return last - covered >= self.max_age


def fraction(text: str) -> Fraction:
    return Fraction(Decimal(text))
