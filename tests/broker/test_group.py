"""A consumer's place in its group: its lag from librdkafka's statistics, and leaving."""

import json
from typing import Any, cast

import pytest
from confluent_kafka import Consumer

from streams.broker.group import Lag, leave_group


def statistics(**partitions: dict[str, int]) -> str:
    """A document as librdkafka writes it, with much that nobody asked for."""
    places = {
        name.removeprefix("p"): {"partition": 1, "fetch_state": "active", **found} for name, found in partitions.items()
    }
    return json.dumps(
        {"name": "x", "ts": 1, "topics": {"t": {"age": 3, "partitions": places}}, "cgrp": {"state": "up"}}
    )


def test_the_lag_is_what_is_committed_and_not_consumed() -> None:
    lag = Lag()
    assert lag.of("t", 0) is None
    lag.take_in(statistics(p0={"app_offset": 7, "ls_offset": 10}, p1={"app_offset": 4, "ls_offset": 4}))
    assert (lag.of("t", 0), lag.of("t", 1)) == (3, 0)
    lag.take_in(statistics(p0={"app_offset": 10, "ls_offset": 10}))
    assert (lag.of("t", 0), lag.of("t", 1)) == (0, None)


def test_a_partition_of_which_nothing_was_consumed_yet_is_where_its_fetches_are() -> None:
    lag = Lag()
    lag.take_in(
        statistics(
            p0={"app_offset": -1001, "next_offset": 4, "ls_offset": 4},
            p1={"app_offset": -1001, "next_offset": 9, "ls_offset": 12, "fetchq_cnt": 5},
        )
    )
    assert (lag.of("t", 0), lag.of("t", 1)) == (0, 8)


@pytest.mark.parametrize(
    "unknown",
    [{"app_offset": -1001, "next_offset": -1001, "ls_offset": 5}, {"app_offset": 5, "ls_offset": -1001}],
)
def test_it_is_unknown_before_anything_was_fetched(unknown: dict[str, int]) -> None:
    lag = Lag()
    lag.take_in(statistics(p0=unknown))
    assert lag.of("t", 0) is None


class Member:
    """A consumer that needs ``polls`` polls to give up its partitions after unsubscribing."""

    def __init__(self, polls: float) -> None:
        self.polls = polls
        self.calls: list[str] = []

    def unsubscribe(self) -> None:
        self.calls.append("unsubscribe")

    def assignment(self) -> list[int]:
        return [1] if self.polls > 0 else []

    def poll(self, timeout: float) -> Any:
        self.polls -= 1

    def close(self) -> None:
        self.calls.append("close")


def test_a_static_member_unsubscribes_first_and_a_dynamic_one_need_not() -> None:
    static, dynamic = Member(3), Member(3)
    leave_group(cast(Consumer, static), "engine-0", 10)
    leave_group(cast(Consumer, dynamic), "", 10)
    assert (static.calls, static.polls) == (["unsubscribe", "close"], 0)
    assert dynamic.calls == ["close"]


def test_a_coordinator_that_is_away_does_not_keep_it() -> None:
    member = Member(float("inf"))
    leave_group(cast(Consumer, member), "engine-0", 0.05)
    assert member.calls == ["unsubscribe", "close"]
