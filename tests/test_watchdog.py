"""The watchdog: it ends what stands still, loudly, and nothing else."""

import logging
import subprocess
import sys
from typing import Any

import pytest

from streams import watchdog as watchdog_module
from streams.errors import SettingsError
from streams.settings import load
from streams.watchdog import EXIT_CODE, ROUNDS, Watchdog

LIMIT_S = 60.0
ROUND_S = LIMIT_S / ROUNDS


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        import time

        return getattr(time, name)


class Watched:
    """A watchdog on a clock that is moved by hand; ``ended`` counts the times it would have ended the process."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ended = 0
        self.dog = Watchdog(LIMIT_S, end=self._end)
        self.dog.look()

    def _end(self) -> None:
        self.ended += 1

    def pass_time(self, seconds: float) -> None:
        """Let time pass as a living process sees it: the watchdog looks every round."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + ROUND_S)
            self.dog.look()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    clock = Clock()
    monkeypatch.setattr(watchdog_module, "time", clock)
    return Watched(clock)


def test_a_loop_that_beats_is_left_alone(watched: Watched) -> None:
    for _ in range(10):
        watched.dog.beat("engine", "walking marks")
        watched.pass_time(LIMIT_S * 0.9)
    assert watched.ended == 0


def test_a_loop_that_stands_still_is_ended_after_the_limit_and_not_before(watched: Watched) -> None:
    watched.dog.beat("engine", "sending offsets")
    watched.pass_time(LIMIT_S)
    assert watched.ended == 0
    watched.pass_time(ROUND_S)
    assert watched.ended == 1


def test_it_says_which_loop_since_when_and_what_it_was_doing(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.dog.beat("engine", "sending offsets")
    watched.dog.beat("table writer", "calling Redis")
    watched.pass_time(LIMIT_S / 2)
    watched.dog.beat("table writer", "waiting for rows")
    with caplog.at_level(logging.ERROR):
        watched.pass_time(LIMIT_S / 2 + ROUND_S)
    (record,) = caplog.records
    fields = record.__dict__["fields"]
    assert (fields["loop"], fields["doing"], fields["limit_s"]) == ("engine", "sending offsets", LIMIT_S)
    assert fields["seconds"] == pytest.approx(LIMIT_S + ROUND_S)
    assert fields["since"].endswith("Z")


def test_one_loop_that_hangs_is_enough(watched: Watched) -> None:
    watched.dog.beat("events of shard 3", "at offset 7")
    for _ in range(3):
        watched.dog.beat("engine", "applying events")
        watched.pass_time(LIMIT_S / 2)
    assert watched.ended > 0
    assert [loop.name for loop in watched.dog.overdue()] == ["events of shard 3"]


def test_nothing_is_expected_of_a_loop_that_was_forgotten(watched: Watched) -> None:
    watched.dog.beat("taking of shard 3", "waiting")
    watched.dog.forget("taking of shard 3")
    watched.dog.forget("never known")
    watched.pass_time(3 * LIMIT_S)
    assert watched.ended == 0


def test_time_in_which_the_whole_process_stood_still_is_not_counted(watched: Watched) -> None:
    watched.dog.beat("engine", "walking marks")
    watched.pass_time(LIMIT_S / 2)
    watched.clock.now += 10 * LIMIT_S
    watched.dog.look()
    assert watched.ended == 0, "the loop did not get its chance"
    watched.pass_time(LIMIT_S)
    assert watched.ended > 0, "it has had it by now"


HANGS = """
import threading, time
from streams import logs
from streams.watchdog import Watchdog
logs.configure("INFO", "json", "test")
def sends_offsets_for_ever():
    while True:
        time.sleep(60)
threading.Thread(target=sends_offsets_for_ever, daemon=True).start()
dog = Watchdog(0.5)
dog.beat("engine", "sending offsets")
dog.start()
time.sleep(60)
"""


def test_a_hanging_process_ends_with_its_code_and_every_stack() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == EXIT_CODE
    assert '"event":"watchdog_no_progress"' in done.stderr
    assert '"doing":"sending offsets"' in done.stderr
    assert "sends_offsets_for_ever" in done.stderr, "the stack of a thread that it did not watch"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"service.watchdog_ms": 30_000}, "would end a process that only waits"),
        ({"kafka.transaction_timeout_ms": 30_000}, "KAFKA__TRANSACTION_TIMEOUT_MS=30000"),
        ({"kafka.session_timeout_ms": 45_000}, "KAFKA__SESSION_TIMEOUT_MS=45000"),
        ({"redis.timeout_ms": 40_000}, "REDIS__TIMEOUT_MS=40000"),
        ({"service.watchdog_ms": 300_001}, "is too late"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_with_the_reason(changes: dict[str, int], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load({}, changes)


def test_the_limit_it_asks_for_is_accepted() -> None:
    with pytest.raises(SettingsError) as refused:
        load({}, {"kafka.transaction_timeout_ms": 60_000})
    limit_ms = int(str(refused.value).rpartition(" ")[2])
    load({}, {"kafka.transaction_timeout_ms": 60_000, "service.watchdog_ms": limit_ms})
