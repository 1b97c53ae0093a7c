"""Many seeds over the cores, and what they add up to."""

import gc
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing import get_context

from tests.simulation.scenario import MODES, Mode
from tests.simulation.world import Result, run

CHUNK = 10
PROGRESS_S = 10.0
FAILURES_MAX = 10


def mode_of(seed: int) -> Mode:
    """The mode of a seed when none is given."""
    return MODES[seed % len(MODES)]


def run_each(seeds: list[tuple[int, Mode]], jobs: int) -> Iterator[list[Result]]:
    """The results of every seed, a few at a time, in no particular order, from ``jobs`` processes."""
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    with get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(_run_chunk, chunks)


def run_all(seeds: list[tuple[int, Mode]], jobs: int) -> int:
    """Run every seed; print progress, every failure with its trace, and the sums; 1 if there was a failure."""
    tally = Tally(len(seeds))
    for results in run_each(seeds, jobs):
        tally.take(results)
        if len(tally.failed) >= FAILURES_MAX:
            print(f"{len(tally.failed)} failures are enough")
            break
    tally.report()
    return 1 if tally.failed else 0


def _run_chunk(seeds: list[tuple[int, Mode]]) -> list[Result]:
    results = [run(seed, mode) for seed, mode in seeds]
    gc.collect()  # a run leaves cycles behind and collects nothing while it lasts
    for result in results:
        if result.failure is None:
            result.trace = []
    return results


class Tally:
    """What all runs add up to."""

    def __init__(self, total: int) -> None:
        self.failed: list[Result] = []
        self._total = total
        self._done = 0
        self._sums: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._ends: Counter[str] = Counter()
        self._settled_us: list[int] = []
        self._digests: dict[int, tuple[int, int]] = {}
        self._started = self._said = time.monotonic()

    def take(self, results: Iterable[Result]) -> None:
        """Count results; say how it goes now and then."""
        for result in results:
            self._done += 1
            for name in ("steps", "committed", "aborted", "commands", "lost", "repeated", "attended"):
                self._sums[name] += getattr(result, name)
            self._settled_us.append(result.settled_us)
            self._digests[result.seed] = (result.digest, result.log_digest)
            self._faults += result.faults
            self._ends += result.ends
            if result.failure is not None:
                self.failed.append(result)
                print(f"FAILED seed {result.seed} {result.mode}: {result.failure}")
                print("\n".join(result.trace), flush=True)
        if time.monotonic() - self._said > PROGRESS_S:
            self._said = time.monotonic()
            self._say()

    def report(self) -> None:
        """The sums."""
        self._say()
        sums = self._sums
        print(f"{sums['steps']:,} steps; transactions: {sums['committed']:,} committed, {sums['aborted']:,} aborted")
        print("faults: " + ", ".join(f"{name} {count:,}" for name, count in sorted(self._faults.items())))
        print("processes ended by themselves: " + ", ".join(f"{name} {count:,}" for name, count in self._ends.items()))
        print(f"groups that needed an operator: {sums['attended']:,}")
        print(f"longest until everything had settled: {max(self._settled_us, default=0) / 1e6:.1f} s")
        print(f"checksum of all that happened: {self._checksum(0)}, of all logs: {self._checksum(1)}")
        if self.failed:
            print("failed: " + ", ".join(f"{result.seed} {result.mode}" for result in self.failed))

    def _checksum(self, which: int) -> str:
        text = "".join(f"{seed} {digests[which]}\n" for seed, digests in sorted(self._digests.items()))
        return f"{zlib.crc32(text.encode()):08x}"

    def _say(self) -> None:
        sums, minutes = self._sums, (time.monotonic() - self._started) / 60
        print(
            f"{self._done:,} of {self._total:,} seeds, {self._done / minutes:,.0f} a minute; faults "
            f"{sum(self._faults.values()):,}; commands {sums['commands']:,}, lost {sums['lost']:,}, repeated "
            f"{sums['repeated']:,}; failed {len(self.failed)}",
            flush=True,
        )
