"""Runs a scenario: what its lines say, when they say it, and what the pipeline then writes.

Owns the order of things at one time (time passes, then the lines of that time in their order) and what is shown; the
form of the lines is :mod:`streams.memory.scenario_file`'s, what a line does is the pipeline's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, all_topics
from streams.errors import ScenarioError
from streams.memory.given_records import GivenRecord
from streams.memory.pipeline import BrokenProcess, Pipeline, WrittenRecord, partition_counts
from streams.memory.scenario_file import (
    AT_MS_MAX,
    ClockError,
    Delete,
    Freeze,
    Rescale,
    ScenarioLine,
    ScenarioScript,
    read_scenario,
)
from streams.settings import TopicsSettings

AFTER_LAST_LINE_MS = 10_000
SHOWN = (COMMANDS, ALERTS, ACCOUNTS, *(topic.name for topic in all_topics() if topic.name.endswith(".dlq")))
"""The topics that are shown where none are asked for."""
_DEFAULTS = TopicsSettings()


@dataclass(frozen=True, slots=True)
class ScenarioOptions:
    """How a scenario is run. Without a count of routers or engines there are as many as the lines name, at least one.

    ``until_ms``: lines of a later time are not given; None is ``AFTER_LAST_LINE_MS`` after the last line.
    """

    shards: int = _DEFAULTS.shards
    partitions: int = _DEFAULTS.partitions
    routers: int | None = None
    engines: int | None = None
    until_ms: int | None = None
    topics: Sequence[str] = SHOWN

    @classmethod
    def shown_topics(cls, text: str) -> tuple[str, ...]:
        """The topics in ``text``, separated by commas.

        Raises:
            ScenarioError: there is no such topic, or none is named.
        """
        known = [topic.name for topic in all_topics()]
        names = tuple(name for part in text.split(",") if (name := part.strip()))
        wrong = next((name for name in names if name not in known), None)
        if wrong is not None or not names:
            raise ScenarioError(f"--topics: there is no topic {wrong or text!r}; there are {', '.join(known)}")
        return names


def run_scenario(
    data: bytes, name: str, options: ScenarioOptions, on_broken: Callable[[BrokenProcess], object] = lambda _: None
) -> Iterator[WrittenRecord]:
    """What the pipeline writes in the scenario in the bytes of a file called ``name``, in order of visibility.

    Everything is checked before the first record is handed out. ``on_broken`` is told of what should never be: a
    process that ended by an error of its own. The scenario goes on, and the process is started again.

    Raises:
        ScenarioError: the scenario cannot be read; the text names the line and the field.
    """
    partitions = partition_counts(options.shards, options.partitions)
    script = read_scenario(data, name, partitions, routers=options.routers, engines=options.engines)
    last_us = script.lines[-1].at_us
    until_us = last_us + 1000 * AFTER_LAST_LINE_MS if options.until_ms is None else 1000 * options.until_ms
    if not 0 <= until_us <= 1000 * (AT_MS_MAX + AFTER_LAST_LINE_MS):
        raise ScenarioError(f"--until-ms must be from 0 to {AT_MS_MAX + AFTER_LAST_LINE_MS}, got {options.until_ms}")
    return _written(script, until_us, options, on_broken)


def _written(
    script: ScenarioScript, until_us: int, options: ScenarioOptions, on_broken: Callable[[BrokenProcess], object]
) -> Iterator[WrittenRecord]:
    workers = script.workers
    with Pipeline(
        shards=options.shards,
        partitions=options.partitions,
        routers=workers["router"],
        engines=workers["engine"],
        oracle=bool(workers["oracle"]),
    ) as pipeline:
        for line in script.lines:
            if line.at_us > until_us:
                break
            yield from _shown(pipeline, line.at_us, options)
            _let_happen(pipeline, line)
        yield from _shown(pipeline, until_us, options)
        for broken in pipeline.broken:
            on_broken(broken)


def _shown(pipeline: Pipeline, until_us: int, options: ScenarioOptions) -> Iterator[WrittenRecord]:
    pipeline.run_until(until_us)
    yield from (record for record in pipeline.take() if record.topic in options.topics)


def _let_happen(pipeline: Pipeline, line: ScenarioLine) -> None:
    what = line.what
    if isinstance(what, GivenRecord):
        pipeline.publish(what)
        return
    if isinstance(what, Delete):
        pipeline.delete(what.topic)
        return
    if isinstance(what, Rescale):
        pipeline.rescale(what.shards)
        return
    worker = str(what.worker)
    if isinstance(what, Freeze):
        pipeline.freeze(worker, what.for_us / 1000)
    elif isinstance(what, ClockError):
        pipeline.set_clock(worker, what.ahead_us / 1000)
    else:
        pipeline.kill(worker)
