"""Takes parameter records into an engine: all that have come are put in force together, a step a shard, then decided.

What they come to is what one after the other would (:func:`streams.clearing.restore.put_in_force`); a replay of the
journal, which does that, gives the same bytes.
"""

import logging
from collections.abc import Sequence
from functools import partial

from prometheus_client import Counter

from streams.broker import dead_letters
from streams.broker.records import Record
from streams.clearing.assignment import Assignment
from streams.clearing.commit import DEAD_LETTER_SHARD, Committer
from streams.clearing.progress import Progress
from streams.clearing.restore import ParameterVersions, put_in_force
from streams.feeds.parameters import ParameterFeed, ParameterStep
from streams.logs import event
from streams.runtime import Runtime

log = logging.getLogger(__name__)

PARAMETERS_REFUSED = Counter("margin_engine_parameters_refused", "Parameter records refused: the version before stays")

_MANY = 100
"""From so many records on it is told that they have been put in force."""


class ParameterIntake:
    """``meanwhile`` are the records that came while a shard is restored, for that shard."""

    def __init__(
        self,
        feed: ParameterFeed,
        assignment: Assignment,
        committer: Committer,
        progress: Progress,
        runtime: Runtime,
    ) -> None:
        self._feed = feed
        self._assignment = assignment
        self._committer = committer
        self._progress = progress
        self._runtime = runtime
        self.meanwhile: ParameterVersions = []

    def take(self, messages: Sequence[Record]) -> None:
        """Put records in force in every shard that runs, then decide every group once under them."""
        started, progress = self._runtime.monotonic(), self._progress
        steps: ParameterVersions = []
        for message in messages:
            steps.append(self._add(message))
            progress.putting_in_force(len(messages) - len(steps), "forming the parameters")
        if self._assignment.is_restoring:
            self.meanwhile += steps
        for number, shard in self._assignment.running.items():
            doing = f"putting {len(steps)} parameter records in force in shard {number}"
            put_in_force(shard, steps, partial(progress.putting_in_force, len(steps), doing))
            progress.putting_in_force(len(steps), doing)
            shard.decide_touched(everything=True)
        progress.putting_in_force(0, "reading parameters")
        if len(steps) >= _MANY:
            event(
                log,
                logging.INFO,
                "parameters_in_force",
                records=len(steps),
                parameters_next=self._feed.next_offset,
                shards=len(self._assignment.running),
                seconds=round(self._runtime.monotonic() - started, 3),
            )

    def _add(self, message: Record) -> ParameterStep:
        """Add a record to the parameters; one that is refused goes to the dead letters."""
        step = self._feed.add(message)
        if step.refused is not None:
            if DEAD_LETTER_SHARD in self._assignment.running:
                self._committer.put_aside((message, step.refused))
            PARAMETERS_REFUSED.inc()
            if dead_letters.REPEATED.may_name("parameters_refused"):
                event(log, logging.ERROR, "parameters_refused", offset=step.offset, reason=str(step.refused))
        return step
