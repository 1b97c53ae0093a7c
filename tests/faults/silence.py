"""How long a topic was silent: the longest time between two of its records, by the broker's clock or by a reader's."""

import bisect
import itertools


class SilenceMeter:
    """When the records of one topic came, in seconds of some clock; they may be noted in any order."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def note(self, seconds: float) -> None:
        """A record came then."""
        if not self._times or seconds >= self._times[-1]:
            self._times.append(seconds)
        else:
            bisect.insort(self._times, seconds)

    def longest_s(self, since: float, until: float) -> float:
        """The longest time without a record that reaches into the time from ``since`` to ``until``.

        It begins with the last record before ``since``, if there is one, and an unfinished silence ends at ``until``.
        """
        first = bisect.bisect_right(self._times, since)
        within = [at for at in self._times[max(0, first - 1) :] if at <= until]
        edges = [*(within or [since]), until]
        return max((after - before for before, after in itertools.pairwise(edges)), default=0.0)
