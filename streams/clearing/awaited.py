"""The symbols without a live mark that somebody in a shard needs: since when, and which of them have been told.

It knows no marks and no accounts: the shard says what is awaited, and tells what is to be told.
"""

from collections.abc import Collection, Mapping

AWAITED_MAX = 1_000
"""Symbols that are told one by one; a shard that needs more of them tells these, and more as they end."""


class AwaitedMarks:
    """Times are the shard's, in microseconds. All answers are in order of symbol."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._told: set[str] = set()

    def resume(self, since: Mapping[str, int], told: Collection[str]) -> None:
        """Go on from what a journal record says."""
        self._since, self._told = dict(since), set(told)

    @property
    def since(self) -> dict[str, int]:
        """Since when each symbol has been awaited."""
        return dict(sorted(self._since.items()))

    @property
    def told(self) -> tuple[str, ...]:
        """Those that have been told."""
        return tuple(sorted(self._told))

    @property
    def is_full(self) -> bool:
        """Whether there may be others than these."""
        return len(self._since) >= AWAITED_MAX

    def begin(self, awaited: Collection[str], clock_us: int) -> None:
        """Count those of ``awaited`` that are new from now on."""
        for symbol in sorted(set(awaited) - self._since.keys()):
            if not self.is_full:
                self._since[symbol] = clock_us

    def end(self, awaited: Collection[str]) -> list[str]:
        """Forget all but ``awaited``; which of the forgotten ones have been told."""
        ended = sorted(self._since.keys() - set(awaited))
        told = [symbol for symbol in ended if symbol in self._told]
        for symbol in ended:
            del self._since[symbol]
        self._told.difference_update(told)
        return told

    def tell(self, clock_us: int, most_us: int) -> list[tuple[str, int]]:
        """(symbol, for how long) of those that have been awaited for ``most_us`` or more and are to be told now."""
        late = {symbol: clock_us - since for symbol, since in self._since.items() if clock_us - since >= most_us}
        new = sorted(late.keys() - self._told)
        self._told.update(new)
        return [(symbol, late[symbol]) for symbol in new]
