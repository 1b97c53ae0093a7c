"""The marks of all symbols, without Faust and without a clock: prices, rules and the time are passed in.

A source's price counts while it is listed for the symbol, fresh, and sure of itself. The weighted median of those that
count is the mark; it is live while they agree, and halted after a jump until the new level has been shown. The rules
and their formulas are in this package's README. Everything is exact: prices, weights and rates are whole numbers of
``10**-18``.
"""

from collections.abc import Collection, Mapping

from schemas.messages import Mark, OraclePrice
from schemas.parameters import OracleParameters
from schemas.types import Uncounted
from streams.oracle.sources import SymbolRules
from streams.oracle.symbols import COUNTED, LiveMark, Outcome, SymbolBook, SymbolState

__all__ = ["COUNTED", "HEARD", "UNCOUNTED_MAX", "MarkBook", "Outcome", "SymbolState"]

HEARD: frozenset[Outcome] = COUNTED | {"unsure", "late"}
"""The outcomes after which the mark may be another."""

UNCOUNTED_MAX = 1_000
"""So many sources that do not count are named in a frame."""

_NEVER: Uncounted = "never"
"""The reason of every source of a symbol that nobody has priced."""


class MarkBook:
    """The marks of every symbol that has oracle parameters. Times are microseconds, and the clock never falls."""

    def __init__(self) -> None:
        self._rules: dict[str, SymbolRules] = {}
        self._symbols: dict[str, SymbolBook] = {}
        self._kept: frozenset[str] = frozenset()

    def set_rules(self, rules: Mapping[str, OracleParameters], kept: Collection[str] = ()) -> None:
        """Put these rules, by symbol, in force, and no others.

        The symbols ``kept`` stay in the marks at their last price, stale, when they have no rules any more: whoever
        holds something priced by one must not take it for a symbol that never had a price.
        """
        self._rules = {symbol: SymbolRules.of(record) for symbol, record in rules.items()}
        self._kept = frozenset(kept)

    def remember(self, mark: Mark) -> None:
        """Know a mark published before, unless the symbol's own state is known: it is not live until it is formed."""
        book = self._symbols.setdefault(mark.symbol, SymbolBook())
        if book.live is None:
            book.live = LiveMark.published(mark.price, mark.publish_time)

    def restore(self, symbol: str, state: SymbolState) -> None:
        """Remember a symbol from before a restart."""
        self._symbols[symbol] = SymbolBook.restored(state)

    def state(self, symbol: str) -> SymbolState:
        """What :meth:`restore` needs."""
        return self._symbols[symbol].state()

    def accept(self, price: OraclePrice, clock: int) -> Outcome:
        """Take in a source's price, and say what became of it."""
        rules = self._rules.get(price.symbol)
        if rules is None:
            return "unknown_symbol"
        if price.source not in rules.weights:
            return "unknown_source"
        book = self._symbols.get(price.symbol)
        if book is None:
            book = self._symbols[price.symbol] = SymbolBook()
        return book.accept(price, rules, clock)

    def form(self, symbol: str, clock: int) -> Mark | None:
        """The mark of ``symbol`` at ``clock`` if its price or status is not that of the one before, else None."""
        book, rules = self._symbols.get(symbol), self._rules.get(symbol)
        if book is None or rules is None:
            return None
        before, mark = book.mark, book.form(symbol, rules, clock)
        if mark is None or (before is not None and (mark.price, mark.status) == (before.price, before.status)):
            return None
        return mark

    def form_all(self, clock: int) -> tuple[Mark, ...]:
        """Every mark at ``clock``, changed or not."""
        marks = []
        for symbol, book in sorted(self._symbols.items()):
            rules = self._rules.get(symbol)
            if rules is not None:
                book.form(symbol, rules, clock)
            elif symbol in self._kept:
                book.go_stale(symbol, clock)
            else:
                book.mark = None
            if book.mark is not None:
                marks.append(book.mark)
        return tuple(marks)

    def uncounted(self, clock: int) -> dict[str, dict[str, Uncounted]]:
        """By symbol, the listed sources whose price is not in its mark at ``clock``, and why: the first
        ``UNCOUNTED_MAX``, because a frame must hold them.

        Sources that count and are not part of a mark that is not live are not named.
        """
        named: dict[str, dict[str, Uncounted]] = {}
        left = UNCOUNTED_MAX
        for symbol, rules in sorted(self._rules.items()):
            book = self._symbols.get(symbol)
            reasons = dict.fromkeys(rules.weights, _NEVER) if book is None else book.uncounted(rules, clock)
            if reasons and left >= len(reasons):
                named[symbol] = reasons
                left -= len(reasons)
        return named
