"""Rounds of faults under load, and the verdict at their end."""

import json
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.local.stack import child_environment
from schemas.topics import EVENTS, dead_letter_topic
from tests.faults.checker import Verdict, judge
from tests.faults.faults import FAULTS
from tests.faults.injections import NotInjected, NotRefused, Strike
from tests.faults.moving_figures import figures
from tests.faults.pipeline import NotInTime, Pipeline, running
from tests.faults.records import RunRecords, collect

Say = Callable[[str], None]

_AUDIT_S = 300.0


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
    figures: list[str] = field(default_factory=list)
    """What was measured of the moving of accounts."""

    @property
    def passed(self) -> bool:
        return (
            self.verdict is not None
            and self.verdict.passed
            and not self.problems
            and not any(outcome.problem for outcome in self.rounds)
        )

    def lines(self) -> list[str]:
        """The end of the report."""
        injected = [outcome for outcome in self.rounds if outcome.evidence]
        slowest = max((outcome.recovered_s or 0.0 for outcome in self.rounds), default=0.0)
        lines = [f"{name}: {count} times, and was started again" for name, count in sorted(self.ended.items())]
        lines += [f"problem: {problem}" for problem in self.problems] + self.figures
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
    shuffled: list[str] = []
    while len(shuffled) < wanted:
        shuffled += rng.sample(names, len(names))
    return shuffled[:wanted]


class Run:
    """A pipeline under load on which faults are done one after the other, and judged at the end."""

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        self._pipeline, self._rng = pipeline, random.Random(seed)
        self._result = Result()

    def round(self, name: str) -> Round:
        """Do one fault and wait until everything works again."""
        pipeline, strike, evidence = self._pipeline, Strike(self._pipeline, FAULTS[name], self._rng), ""
        number = len(self._result.rounds) + 1
        try:
            pipeline.await_settled()
            evidence = strike.inject()
            pipeline.await_recovery()
            outcome = Round(number, name, evidence, time.monotonic() - strike.struck_at)
        except (NotInjected, NotRefused, NotInTime) as error:
            pipeline.fleet.say_where()
            outcome = Round(number, name, evidence, problem=f"{type(error).__name__}: {error}")
        self._result.rounds.append(outcome)
        return outcome

    @property
    def works(self) -> bool:
        """Whether everything works, if need be after a while."""
        try:
            self._pipeline.await_recovery()
        except NotInTime:
            return False
        return True

    def finish(self) -> Result:
        """Come to rest, end every worker in order, read everything back and judge it.

        Logs and records of a run that failed are kept; where is among its problems.
        """
        pipeline, result = self._pipeline, self._result
        try:
            pipeline.come_to_rest()
            result.problems += [
                f"{name} ended with {code} on SIGTERM" for name, code in pipeline.exit_codes.items() if code
            ]
        except NotInTime as error:
            result.problems.append(f"the end: {error}")
            pipeline.fleet.say_where()
            pipeline.load.stop()
            pipeline.fleet.stop()
        result.records_in = pipeline.load.sent
        result.ended = Counter(f"{ended.name} ended with {ended.exit_code}" for ended in pipeline.fleet.ended)
        result.problems += [
            f"{ended.name} ended with {ended.exit_code}:\n{ended.last_lines}"
            for ended in pipeline.fleet.ended
            if ended.is_a_defect
        ]
        records = collect(pipeline.settings)
        result.verdict = judge(records)
        result.figures = figures(records)
        result.problems += [problem for audit in (replayed, verified) if (problem := audit(pipeline, records))]
        if not result.passed:
            kept = _keep_logs(pipeline.folder)
            (kept / "records.pickle").write_bytes(pickle.dumps(records))
            result.problems.append(f"logs and records are in {kept}")
        return result


def replayed(pipeline: Pipeline, records: RunRecords) -> str:
    """Run every journal again from the logs; what differs, if anything does."""
    done = _audit(pipeline, "replay")
    return "" if done.returncode == 0 else f"replay: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def verified(pipeline: Pipeline, records: RunRecords) -> str:
    """Verify the deployment; what differs, beside the frames that the load made unreadable, if anything does.

    Who owes more than he has, and the account that poison names, are out of reach, and no difference.
    """
    done = _audit(pipeline, "verify", "--json")
    try:
        verdict = json.loads(done.stdout)
    except ValueError:
        return f"verify ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    letters = dead_letter_topic(EVENTS)
    if verdict["differences_found"] == len(records.of(letters)):
        return ""
    others = [difference for difference in verdict["differences"] if difference["topic"] != letters]
    return (
        f"verify: {verdict['differences_found']} differences, {len(records.of(letters))} of unreadable frames: {others}"
    )


def _audit(pipeline: Pipeline, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """One of production's own audits."""
    addresses = {
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": pipeline.settings.kafka.bootstrap_servers,
        "MARGIN_REDIS__URL": pipeline.settings.redis.url,
    }
    command = [sys.executable, "-m", "streams.cli", *arguments]
    return subprocess.run(
        command, env=child_environment(addresses), capture_output=True, text=True, timeout=_AUDIT_S, check=False
    )


def play(names: Sequence[str], seed: int, say: Say) -> Result:
    """A whole run: start everything, do the faults one after the other, and judge."""
    started = time.monotonic()
    with running(seed) as pipeline:
        say(f"everything runs after {time.monotonic() - started:.1f} s; seed {seed}")
        run = Run(pipeline, seed)
        for name in names:
            outcome = run.round(name)
            say(str(outcome))
            if outcome.problem and not run.works:
                say("it does not work again: no more rounds")
                break
        say(f"coming to rest after {time.monotonic() - started:.1f} s")
        return run.finish()


def _keep_logs(folder: Path) -> Path:
    kept = Path(tempfile.mkdtemp(prefix="margin-faults-logs-"))
    for log in folder.glob("*.log"):
        shutil.copy(log, kept)
    return kept
