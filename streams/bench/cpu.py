"""The processor time of processes while a bench runs, sampled beside the wall clock, to be asked of any time after."""

import os
import time
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from streams.bench.background import Background
from streams.bench.errors import BenchError

_SAMPLE_S = 0.02
_BENCH, _MACHINE = "this bench", "machine"


def processor_s(pid: int) -> float:
    """The seconds of processor time, of user and system, that a process has used in all its threads.

    Raises:
        BenchError: there is no such process, or this system has no /proc.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError as error:
        raise BenchError(f"the processor time of process {pid} cannot be read: {error}") from None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_s() -> float:
    """The seconds of processor time that everything on this machine has used, on all its processors."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class CpuMeter(Background):
    """Samples the processor time of processes every 20 ms while it is entered. The names are the caller's."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        super().__init__()
        self._pids = dict(pids) | {_BENCH: os.getpid()}
        self._times: list[float] = []
        self._used: dict[str, list[float]] = {name: [] for name in (*self._pids, _MACHINE)}

    def __enter__(self) -> Self:
        self._sample()
        return super().__enter__()

    def between(self, start: float, end: float) -> dict[str, float]:
        """The seconds that each process used between two times of the wall clock."""
        return {name: self._at(name, end) - self._at(name, start) for name in self._pids}

    def others_share(self, start: float, end: float) -> float:
        """The share of this machine's processors that was used by what has nothing to do with the bench: its noise."""
        machine = self._at(_MACHINE, end) - self._at(_MACHINE, start)
        others = machine - sum(self.between(start, end).values())
        return max(0.0, others) / ((end - start) * (os.cpu_count() or 1))

    def _at(self, name: str, moment: float) -> float:
        times, used = self._times, self._used[name]
        index = bisect_left(times, moment)
        if index in (0, len(times)):
            return used[min(index, len(times) - 1)]
        share = (moment - times[index - 1]) / (times[index] - times[index - 1])
        return used[index - 1] + share * (used[index] - used[index - 1])

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            try:
                self._sample()
            except BenchError:
                return  # a process has ended; whoever waits for it says so

    def _sample(self) -> None:
        now = {name: processor_s(pid) for name, pid in self._pids.items()} | {_MACHINE: machine_s()}
        self._times.append(time.time())
        for name, seconds in now.items():
            self._used[name].append(seconds)
