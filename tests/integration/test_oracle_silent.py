"""An oracle that was silent for longer than its session goes on in its process, or stands by where another leads."""

import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from schemas import topics
from schemas.messages import MarkFrame
from streams.broker.admin import group_state
from streams.broker.reader import LogReader
from streams.feeds.marks import read_marks
from streams.settings import Settings
from tests.integration.conftest import Role, Topic, eventually


@pytest.fixture
def oracle(own_settings: Settings, tmp_path: Path) -> Iterator[Callable[[str], Role]]:
    """Start an oracle by a name; all of them are killed after the test."""
    started: list[Role] = []

    def start(name: str) -> Role:
        started.append(Role("oracle", own_settings, tmp_path / f"{name}.log"))
        return started[-1]

    yield start
    for role in started:
        role.process.send_signal(signal.SIGCONT)
        role.kill()


def said(role: Role, what: str) -> list[dict[str, Any]]:
    """What a role's log holds of one event."""
    role.assert_running()
    lines = [line for line in role.log().splitlines() if line.startswith("{")]
    return [entry for line in lines if (entry := orjson.loads(line))["event"] == what]


def leads(role: Role, since: int = -1) -> int:
    """The epoch of a role's last claim, once it has claimed the leadership after epoch ``since``."""

    def epoch() -> int | None:
        claims = [entry["epoch"] for entry in said(role, "oracle_leads") if entry["epoch"] > since]
        return claims[-1] + 1 if claims else None  # an epoch may be 0

    return int(eventually(epoch, f"a claim after {since}")) - 1


def publishes(settings: Settings, epoch: int) -> None:
    """Wait for a full frame of an epoch, or of a later one."""
    marks = Topic(settings, topics.MARKS)
    try:
        eventually(lambda: any(frame["epoch"] >= epoch for frame in marks.values(full=True)), f"a frame of {epoch}")
    finally:
        marks.close()


def test_whoever_was_replaced_stands_by_and_leads_again_when_it_is_its_turn(
    own_settings: Settings, oracle: Callable[[str], Role]
) -> None:
    first = oracle("first")
    publishes(own_settings, leads(first))
    second = oracle("second")
    eventually(lambda: said(second, "oracle_standing_by"), "the second to stand by")
    first.process.send_signal(signal.SIGSTOP)
    epoch = leads(second)
    first.process.send_signal(signal.SIGCONT)
    eventually(lambda: said(first, "oracle_replaced"), "the first to know")
    second.kill()
    publishes(own_settings, leads(first, epoch))
    assert first.stop() == 0


def test_a_leader_that_dies_is_followed_long_before_its_session_is_over(
    own_settings: Settings, oracle: Callable[[str], Role]
) -> None:
    """Two oracles take turns: the gap between the frames of one and the other is a small part of a session."""
    leader = oracle("leader")
    publishes(own_settings, leads(leader))
    epochs: list[int] = []
    for number in range(2):
        other = oracle(f"other-{number}")
        eventually(lambda: stands_by_beside_a_leader(own_settings), "one leads, one stands by")
        seen = len(all_frames(own_settings)) + 20  # so that the other has seen the marks go on
        eventually(lambda seen=seen: len(all_frames(own_settings)) > seen, "more frames")  # type: ignore[misc]
        leader.kill()
        epochs.append(leads(other))
        publishes(own_settings, epochs[-1])
        assert said(other, "silent_leader_expelled")
        leader = other
    gaps_us = {
        frame.epoch: appended_us - before_us
        for (before, before_us), (frame, appended_us) in pairwise(all_frames(own_settings))
        if before.epoch != frame.epoch
    }
    assert max(gaps_us[epoch] for epoch in epochs) < 1000 * own_settings.kafka.session_timeout_ms / 2
    assert leader.stop() == 0


def stands_by_beside_a_leader(settings: Settings) -> bool:
    state = group_state(settings, settings.oracle.leader_group)
    return state.state == "STABLE" and sorted(bool(member.partitions) for member in state.members) == [False, True]


def all_frames(settings: Settings) -> list[tuple[MarkFrame, int]]:
    """Every frame but claims, and when the broker appended it."""
    with LogReader(settings.kafka, "test") as reader:
        marks = read_marks(reader, 0, reader.watermarks(topics.MARKS, 0)[1])
        return [(mark.frame, mark.appended_us) for mark in marks if mark.frame is not None and mark.frame.epoch >= 0]


def test_whoever_was_silent_and_not_replaced_claims_again_and_goes_on(
    own_settings: Settings, oracle: Callable[[str], Role]
) -> None:
    only = oracle("only")
    epoch = leads(only)
    publishes(own_settings, epoch)
    only.process.send_signal(signal.SIGSTOP)
    group = own_settings.oracle.leader_group
    eventually(lambda: not group_state(own_settings, group).members, "its session to end")
    only.process.send_signal(signal.SIGCONT)
    publishes(own_settings, leads(only, epoch))
    assert said(only, "leadership_unsure")
    assert not said(only, "oracle_replaced")
    assert only.stop() == 0
