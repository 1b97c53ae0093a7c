"""When a leader is taken to be gone: its marks' log stands still although its broker answers."""

from dataclasses import dataclass, field

import pytest

from schemas.codec import encode
from schemas.messages import MarkFrame
from schemas.topics import MARKS
from streams.broker.ends import UNKNOWN
from streams.memory.kafka import MemoryEndOffsets, MemoryKafka
from streams.oracle.expulsion import HEARTBEATS, SILENT_S_MIN, LeaderWatch
from streams.settings import load
from tests.oracle.conftest import Machines

HEARTBEAT_S = load({}).oracle.heartbeat_ms / 1000
SILENT_S = max(SILENT_S_MIN, HEARTBEATS * HEARTBEAT_S)
SESSION_S = load({}).kafka.session_timeout_ms / 1000


@dataclass
class Watch:
    """Notes since when a leader is found silent, by the virtual clock."""

    silent_at: list[float] = field(default_factory=list)

    def run(self, kafka: MemoryKafka) -> None:
        watch = LeaderWatch(kafka, "test")
        while True:
            if watch.is_silent():
                self.silent_at.append(kafka.runtime.monotonic())
                watch.begin_anew()
            kafka.runtime.sleep(0.1)


def append(machines: Machines, *, epoch: int = 0) -> None:
    machines.cluster.append(MARKS, None, encode(MarkFrame(time=1, marks=(), full=epoch >= 0, epoch=epoch)), 0)


def publish_for(machines: Machines, seconds: float) -> None:
    for _ in range(round(seconds / HEARTBEAT_S)):
        append(machines)
        machines.run(HEARTBEAT_S)


def test_whoever_publishes_is_not_silent_and_whoever_stops_is(machines: Machines) -> None:
    watch = Watch()
    machines.start("watch", watch.run)
    publish_for(machines, 20 * SILENT_S)
    assert watch.silent_at == []
    machines.run(SESSION_S)
    assert len(watch.silent_at) == 1, "once: whoever leads next has as much time as it takes"
    publish_for(machines, 2 * SILENT_S)
    machines.run(2 * SILENT_S)
    assert len(watch.silent_at) == 2


def test_whoever_has_claimed_and_published_nothing_yet_is_starting(machines: Machines) -> None:
    watch = Watch()
    machines.start("watch", watch.run)
    publish_for(machines, 2 * SILENT_S)
    append(machines, epoch=-1)
    machines.run(2 * SESSION_S)
    assert watch.silent_at == []
    publish_for(machines, HEARTBEAT_S)
    machines.run(2 * SILENT_S)
    assert len(watch.silent_at) == 1


def unknown(ends: MemoryEndOffsets) -> dict[str, list[int]]:
    ends._answered_us = None
    return {MARKS: [UNKNOWN]}


@pytest.mark.parametrize("away_s", [0.5 * SILENT_S, 10 * SILENT_S])
def test_nobody_is_silent_whose_broker_does_not_answer(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, away_s: float
) -> None:
    """A log that cannot be asked for its end may be one that nobody can write to, and its leader must find the next
    broker then."""
    watch = Watch()
    machines.start("watch", watch.run)
    publish_for(machines, 5)
    with monkeypatch.context() as away:
        away.setattr(MemoryEndOffsets, "answer", unknown)
        machines.run(away_s)
    machines.run(SESSION_S)
    assert watch.silent_at == []
    publish_for(machines, 5)
    assert watch.silent_at == []
    machines.run(2 * SILENT_S)
    assert len(watch.silent_at) == 1
