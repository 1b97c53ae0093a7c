"""Rounds of faults under load, and the verdict at their end."""

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.checker import Verdict, judge
from tests.faults.faults import FAULTS
from tests.faults.injections import NotInjected, NotRefused, Strike
from tests.faults.pipeline import NotInTime, Pipeline, running
from tests.faults.records import collect

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Round:
    """One fault: the evidence that it was injected, how long until everything worked again, or what went wrong."""

    number: int
    name: str
    evidence: str = ""
    recovered_s: float | None = None
    problem: str = ""

    def __str__(self) -> str:
        outcome = f"recovered in {self.recovered_s:5.1f} s" if self.recovered_s is not None else "FAILED            "
        return f"{self.number:4}  {self.name:48} {outcome}  {self.problem or self.evidence}"


@dataclass
class Result:
    """A whole run."""

    rounds: list[Round] = field(default_factory=list)
    verdict: Verdict | None = None
    records_in: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    """Workers that ended by themselves and were started again, by name and exit code: how often."""

    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return (
            self.verdict is not None
            and self.verdict.passed
            and not self.problems
            and not any(found.problem for found in self.rounds)
        )

    def lines(self) -> list[str]:
        """The end of the report."""
        injected = [found for found in self.rounds if found.evidence]
        slowest = max((found.recovered_s or 0.0 for found in self.rounds), default=0.0)
        lines = [f"{name}: {count} times, and was started again" for name, count in sorted(self.ended.items())]
        lines += [f"problem: {problem}" for problem in self.problems]
        if self.verdict is not None:
            for name, differences in self.verdict.differences.items():
                lines.append(f"{'ok    ' if not differences else 'FAILED'} {name}")
                lines += [f"         {text[:600]}" for text in differences[:10]]
                lines += [f"         and {len(differences) - 10} more"] if len(differences) > 10 else []
            lines.append(
                f"rounds {len(self.rounds)}, faults injected {len(injected)}, slowest recovery {slowest:.1f} s, "
                f"records in {self.records_in}, commands out {self.verdict.commands}, "
                f"lost {self.verdict.lost}, repeated {self.verdict.repeated}"
            )
        return lines


def schedule(rounds: int | None, only: Sequence[str], seed: int) -> list[str]:
    """Which faults, in which order: all of them (or ``only`` these) shuffled, over and over until there are enough."""
    names = list(only) or list(FAULTS)
    wanted = len(names) if rounds is None else rounds
    rng = random.Random(seed)
    found: list[str] = []
    while len(found) < wanted:
        found += rng.sample(names, len(names))
    return found[:wanted]


def play(names: Sequence[str], seed: int, say: Say) -> Result:
    """Run the pipeline, do the faults one after the other, come to rest, and judge what is left.

    The logs of a run that failed are kept; where is among its problems.
    """
    result, started = Result(), time.monotonic()
    with running(seed) as pipeline:
        say(f"everything runs after {time.monotonic() - started:.1f} s; seed {seed}")
        rng = random.Random(seed)
        try:
            for number, name in enumerate(names, 1):
                result.rounds.append(found := _round(pipeline, number, name, rng))
                say(str(found))
                if found.recovered_s is None and not _is_back(pipeline):
                    result.problems.append("the pipeline did not come back; no more rounds")
                    break
            pipeline.come_to_rest()
            result.problems += [
                f"{name} ended with {code} on SIGTERM" for name, code in pipeline.exit_codes.items() if code
            ]
        except NotInTime as error:
            result.problems.append(f"the end: {error}")
            pipeline.fleet.stop()
        result.records_in = pipeline.load.sent
        result.ended = Counter(f"{ended.name} ended with {ended.exit_code}" for ended in pipeline.fleet.ended)
        result.problems += [
            f"{ended.name} ended with {ended.exit_code}:\n{ended.last_lines}"
            for ended in pipeline.fleet.ended
            if ended.is_a_defect
        ]
        say(f"reading everything back after {time.monotonic() - started:.1f} s")
        result.verdict = judge(collect(pipeline.settings))
        if not result.passed:
            result.problems.append(f"the logs are in {_keep_logs(pipeline.folder)}")
    return result


def _round(pipeline: Pipeline, number: int, name: str, rng: random.Random) -> Round:
    strike = Strike(pipeline, FAULTS[name], rng)
    evidence = ""
    try:
        pipeline.await_settled()
        evidence = strike.inject()
        pipeline.await_recovery()
        return Round(number, name, evidence, time.monotonic() - strike.struck_at)
    except (NotInjected, NotRefused, NotInTime) as error:
        pipeline.fleet.say_where()
        return Round(number, name, evidence, problem=f"{type(error).__name__}: {error}")


def _is_back(pipeline: Pipeline) -> bool:
    try:
        pipeline.await_recovery()
    except NotInTime:
        return False
    return True


def _keep_logs(folder: Path) -> Path:
    kept = Path(tempfile.mkdtemp(prefix="margin-faults-logs-"))
    for log in folder.glob("*.log"):
        shutil.copy(log, kept)
    return kept
