"""Prices that are not fetched, as in a rebalance that never ends: told, not ready, and the end of the process."""

import logging
from dataclasses import dataclass, field

import pytest

from streams.oracle.fetch_watch import LOOP, FetchWatch
from streams.watchdog import Watchdog

LIMIT_S, TOLD_S = 60.0, 5.0


@dataclass
class Stage:
    """A watch, what it is told, and the watchdog, whose clock is the stage's."""

    now: float = 1_000.0
    fetched_at: float | None = None
    ended: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watchdog = Watchdog(LIMIT_S, end=lambda: self.ended.append(self.now))
        self.watch = FetchWatch(
            lambda: self.fetched_at, lambda: True, self.watchdog, monotonic=lambda: self.now, told_s=TOLD_S
        )

    def run(self, seconds: float, *, fetching: bool) -> None:
        """Heartbeats, each with a look of the watchdog."""
        for _ in range(round(4 * seconds)):
            self.now += 0.25
            if fetching:
                self.fetched_at = self.now
            self.watch.look()
            self.watchdog.look()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    clock: list[Stage] = []
    monkeypatch.setattr("streams.watchdog.time.monotonic", lambda: clock[0].now if clock else 1_000.0)
    clock.append(Stage())
    return clock[0]


def test_while_prices_are_fetched_all_is_well(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.run(300, fetching=True)
    assert stage.ended == []
    assert stage.watch.condition(5_000).holds
    assert caplog.records == []


@pytest.mark.parametrize("before_s", [0, 30])
def test_a_rebalance_that_never_ends_is_told_and_ends_the_process(
    stage: Stage, before_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    stage.run(before_s, fetching=True)
    began = stage.now
    stage.run(TOLD_S + 1, fetching=False)
    assert [record.getMessage() for record in caplog.records] == ["prices_not_fetched"]
    fields = caplog.records[0].__dict__["fields"]
    assert (fields["rebalancing"], fields["ends_after_s"]) == (True, LIMIT_S)
    assert not stage.watch.condition(5_000).holds
    assert stage.ended == []
    stage.run(LIMIT_S, fetching=False)
    assert LIMIT_S <= stage.ended[0] - began <= LIMIT_S + 1
    assert {record.__dict__["fields"].get("loop") for record in caplog.records[1:]} == {LOOP}


def test_one_that_ends_in_time_is_forgotten(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        stage.run(1, fetching=True)
        stage.run(LIMIT_S - 2, fetching=False)
    stage.run(1, fetching=True)
    assert stage.ended == []
    assert stage.watch.condition(5_000).holds
    assert [record.getMessage() for record in caplog.records] == ["prices_not_fetched", "prices_fetched_again"] * 3


def test_a_process_that_stops_expects_nothing_more(stage: Stage) -> None:
    stage.watch.end()
    stage.now += 2 * LIMIT_S
    stage.watchdog.look()
    assert stage.ended == []
