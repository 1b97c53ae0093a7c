"""What can go wrong with a bench. A bench whose records are not right has no figure: it says what differs instead."""

from collections.abc import Sequence

from streams.errors import MarginClearingError

SHOWN_MAX = 5


class BenchError(MarginClearingError):
    """A bench cannot go on: a process ended, a wait took too long, or what was asked for makes no sense."""


class BenchDiffers(MarginClearingError):
    """What a run left behind is not what it must be; ``differences`` says each, the text the first few."""

    def __init__(self, run: str, differences: Sequence[str]) -> None:
        more = [f"and {len(differences) - SHOWN_MAX:,} more"] if len(differences) > SHOWN_MAX else []
        super().__init__(f"{run}: no figure, because: " + "; ".join([*differences[:SHOWN_MAX], *more]))
        self.run, self.differences = run, tuple(differences)
