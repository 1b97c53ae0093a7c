"""Rounds of the faults of three brokers: what each has done to the pipeline, measured, and the verdict at the end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from infra.local.errors import LocalStackError
from tests.faults.broker_faults import BROKER_FAULTS, BrokerFault, BrokerStrike
from tests.faults.fleet import Ended
from tests.faults.pipeline import NotInTime, running
from tests.faults.rounds import Result, Round, Run, Say

BROKERS = 3


@dataclass(frozen=True, slots=True)
class BrokerRound(Round):
    """A round with what was measured: seconds of the longest silence of marks and of commands, and who ended.

    ``commands_read_s`` is the silence at the reader of commands, ``commands_s`` by when the brokers appended them.
    """

    expected_s: float = 0.0
    marks_s: float = 0.0
    commands_s: float = 0.0
    commands_read_s: float = 0.0
    exits: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        late = self.recovered_s is not None and self.recovered_s > self.expected_s
        outcome = "FAILED" if self.recovered_s is None else f"{self.recovered_s:.1f} s{' LATE' if late else ''}"
        lines = [
            f"{self.number:4}  {self.name:36} recovered {outcome:14} silent: marks {self.marks_s:5.1f} s, "
            f"commands {self.commands_s:5.1f} s (read {self.commands_read_s:5.1f} s)  {len(self.exits)} ended  "
            f"{self.problem or self.evidence}"
        ]
        return "\n".join(lines + [f"        {text}" for text in self.exits])


def _why(ended: Ended) -> str:
    """The last thing a worker that ended said of an error."""
    lines = ended.last_lines.splitlines()
    errors = [line for line in lines if line.startswith("margin-clearing:")]
    errors = errors or [line for line in lines if '"level":"ERROR"' in line] or lines
    try:
        said = orjson.loads(errors[-1])
    except (orjson.JSONDecodeError, IndexError):
        return errors[-1][:400] if errors else ""
    return f"{said.get('event', '')}: {said.get('reason', said)}"[:400]


class BrokerRun(Run):
    """A pipeline on three brokers under load, to which faults are done one after the other, judged at the end."""

    def round(self, name: str) -> BrokerRound:
        """Do one fault, wait until everything works again, bring the brokers back, and see that it still does."""
        pipeline, fault = self._pipeline, BROKER_FAULTS[name]
        strike, evidence, problem = BrokerStrike(pipeline, fault), "", ""
        recovered_s = None
        ended_before = len(pipeline.fleet.ended)
        try:
            pipeline.await_settled()
            evidence = strike.inject()
            pipeline.await_recovery()
            recovered_s = time.time() - strike.counts_from
            strike.undo()
            pipeline.await_recovery()
        except (NotInTime, LocalStackError) as error:
            problem = f"{type(error).__name__}: {error}"
            pipeline.fleet.say_where()
            self._bring_brokers_back()
        outcome = self._measured(strike, fault, evidence, recovered_s, pipeline.fleet.ended[ended_before:], problem)
        self._result.rounds.append(outcome)
        return outcome

    def _measured(
        self,
        strike: BrokerStrike,
        fault: BrokerFault,
        evidence: str,
        recovered_s: float | None,
        ended: Sequence[Ended],
        problem: str,
    ) -> BrokerRound:
        pipeline, span = self._pipeline, (strike.struck_at, time.time())
        exits = [f"{each.name} ended with {each.exit_code}: {_why(each)}" for each in ended]
        return BrokerRound(
            len(self._result.rounds) + 1,
            fault.name,
            evidence,
            recovered_s,
            problem or ("; ".join(exits) and f"{len(exits)} processes ended"),
            expected_s=fault.expected_s,
            marks_s=pipeline.marks_appended.longest_s(*span),
            commands_s=pipeline.load.commands_appended.longest_s(*span),
            commands_read_s=pipeline.load.commands_read.longest_s(*span),
            exits=exits,
        )

    def _bring_brokers_back(self) -> None:
        for node in self._pipeline.cluster.nodes:
            if node.running:
                node.resume()
        self._pipeline.cluster.start()


def play_brokers(names: Sequence[str], seed: int, say: Say) -> Result:
    """A whole run on three brokers: start everything, do the faults one after the other, and judge."""
    started = time.monotonic()
    with running(seed, BROKERS) as pipeline:
        say(f"everything runs after {time.monotonic() - started:.1f} s; seed {seed}; three brokers")
        run = BrokerRun(pipeline, seed)
        for name in names:
            outcome = run.round(name)
            say(str(outcome))
            if outcome.recovered_s is None and not run.works:
                say("it does not work again: no more rounds")
                break
        say(f"coming to rest after {time.monotonic() - started:.1f} s")
        return run.finish()
