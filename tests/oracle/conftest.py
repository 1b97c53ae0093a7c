"""Oracle processes on an in-memory Kafka, in virtual time."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from schemas.topics import EVENTS, JOURNAL, LAYOUT, MARKS, PARAMETERS
from streams.memory.kafka import MemoryKafka
from streams.memory.log import Cluster
from streams.memory.scheduler import Process, Scheduler
from streams.settings import Settings, load

SHARDS = 2
STEPS_MAX = 1_000_000


@dataclass
class Machines:
    """A cluster and the processes that run on it. ``broken`` is what ended a process."""

    scheduler: Scheduler
    cluster: Cluster
    settings: Settings
    broken: dict[str, BaseException] = field(default_factory=dict)

    def start(self, name: str, body: Callable[[MemoryKafka], None]) -> Process:
        """Run ``body`` as the process ``name``."""
        process = Process(self.scheduler, name)

        def on_end(error: BaseException | None) -> None:
            process.kill("ended")
            if error is not None:
                self.broken[name] = error

        process.on_end = on_end
        kafka = MemoryKafka(self.settings, self.cluster, process)
        self.scheduler.spawn(process, name, lambda: body(kafka))
        return process

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.scheduler.run(self.scheduler.now + round(seconds * 1e6), self.scheduler.steps + STEPS_MAX)

    def run_until(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Let time pass until ``condition`` holds; fails with ``what`` after ``seconds``."""
        deadline_us = self.scheduler.now + round(seconds * 1e6)
        while not condition():
            assert self.scheduler.now < deadline_us, f"not within {seconds:g} s: {what}"
            self.run(0.01)

    def freeze(self, process: Process, seconds: float) -> None:
        """Let a process stand still; its groups expel it when its session has timed out."""
        process.go_silent(frozen_us=round(seconds * 1e6))
        for group in self.cluster.groups.values():
            group.watch(process)


@pytest.fixture
def machines() -> Machines:
    scheduler = Scheduler(seed=7)
    partitions = {MARKS: 1, PARAMETERS: 1, LAYOUT: 1, JOURNAL: SHARDS, EVENTS: SHARDS}
    return Machines(scheduler, Cluster(scheduler, partitions, lambda _: None), load({}))
