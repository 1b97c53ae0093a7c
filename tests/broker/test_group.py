"""Being a member of a group, and leaving it."""

import json
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException

from streams.broker.group import GroupPlace, leave_group
from streams.broker.stranded import STRANDED_S, StrandedWatch
from streams.errors import BrokerError
from streams.runtime import SystemRuntime


class Fenced:
    """A static member whose place another one has taken."""

    closed = False

    def unsubscribe(self) -> None:
        raise KafkaException(KafkaError(KafkaError._FATAL, "Failed to remove subscription"))

    def close(self) -> None:
        self.closed = True


def test_a_member_that_was_fenced_lets_go_without_hiding_why_it_ends() -> None:
    consumer: Any = Fenced()
    leave_group(cast(Consumer, consumer), "static", 1.0)
    assert consumer.closed


# --- being a member --------------------------------------------------------------------------------------------------


class Observed(SystemRuntime):
    """A place in a group that is told, at a time of the test's choosing, what librdkafka says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.place = GroupPlace(80.0, self)

    def monotonic(self) -> float:
        return self.now

    def says(self, join_state: str, *, for_s: int, state: str = "up", broker: str = "UP") -> None:
        """As long as this lasts, a document a second, of which the first is the first to say so."""
        brokers = {"b": {"nodeid": 1, "state": broker}, "boot": {"nodeid": -1, "state": "UP"}}
        document = json.dumps({"brokers": brokers, "cgrp": {"state": state, "join_state": join_state}})
        self.place.note(document)
        for _ in range(for_s):
            self.now += 1
            self.place.note(document)


@pytest.mark.parametrize(
    ("state", "join_state"), [("up", "wait-join"), ("up", "init"), ("query-coord", "init"), ("wait-coord", "wait-sync")]
)
def test_a_consumer_that_stays_outside_its_group_ends(state: str, join_state: str) -> None:
    observed = Observed()
    observed.says("steady", for_s=1)
    observed.says(join_state, for_s=80, state=state)
    observed.place.require_member()
    observed.says(join_state, for_s=1, state=state)
    with pytest.raises(BrokerError, match=f"outside its group for 81 s .*{state}, {join_state}"):
        observed.place.require_member()


STRANDED = {
    "no broker is known": """{"brokers": {"GroupCoordinator": {"source": "logical", "state": "TRY_CONNECT"}},
    "cgrp": {"state": "query-coord", "stateage": 647848, "join_state": "init", "assignment_size": 0}}""",
    "no broker is tried": """{"brokers": {"GroupCoordinator": {"source": "logical", "state": "INIT"},
    "127.0.0.1:28588/1": {"nodeid": 1, "source": "learned", "state": "INIT", "stateage": 205090980}},
    "cgrp": {"state": "query-coord", "stateage": 205090, "join_state": "init", "assignment_size": 0}}""",
}
"""What librdkafka said of consumers that polled in vain for minutes after their broker had been paused for 6 s."""


@pytest.mark.parametrize("said", STRANDED.values(), ids=STRANDED)
def test_a_stranded_consumer_ends(said: str) -> None:
    observed = Observed()
    for _ in range(int(STRANDED_S) + 1):
        observed.place.note(said)
        observed.place.require_member()
        observed.now += 1
    observed.place.note(said)
    with pytest.raises(BrokerError, match="tries none any more"):
        observed.place.require_member()


@pytest.mark.parametrize(
    ("source", "state"),
    [
        ("learned", "DOWN"),
        ("learned", "UP"),
        ("configured", "CONNECT"),
        ("configured", "TRY_CONNECT"),
        ("logical", "UP"),
    ],
)
def test_brokers_that_do_not_answer_are_waited_for(source: str, state: str) -> None:
    watch = StrandedWatch(runtime := Observed())
    idle = {"nodeid": 2, "source": "learned", "state": "INIT"}
    tried = json.dumps({"brokers": {"a": idle, "b": {"nodeid": -1, "source": source, "state": state}}})
    for document, is_stranded in ((tried, False), (STRANDED["no broker is tried"], True), ("{}", False)):
        for _ in range(100):
            watch.note(document)
            runtime.now += 1
        assert watch.is_stranded is is_stranded, "a document that does not speak of brokers says nothing of them"


def test_a_rebalance_begins_the_count_again() -> None:
    observed = Observed()
    for _ in range(5):
        observed.says("wait-join", for_s=50)
        observed.says("steady", for_s=25)
    observed.says("wait-join", for_s=79)
    observed.place.require_member()


def test_nobody_is_outside_while_no_broker_is_connected() -> None:
    """A new process could not join either."""
    observed = Observed()
    for broker in ("CONNECT", "DOWN", "TRY_CONNECT"):
        observed.says("init", for_s=100, state="wait-broker", broker=broker)
        observed.place.require_member()


def test_a_process_that_stood_still_is_not_outside_for_that() -> None:
    """Nor by the documents that waited for it: it did not do meanwhile what librdkafka waited for."""
    observed = Observed()
    observed.says("wait-join", for_s=1)
    observed.now += 3600
    observed.place.require_member()
    for _ in range(3600):
        observed.says("wait-join", for_s=0)
    observed.place.require_member()
    observed.says("wait-join", for_s=76)
    observed.place.require_member()
    observed.says("wait-join", for_s=2)
    with pytest.raises(BrokerError, match="outside its group for 81 s"):
        observed.place.require_member()


def test_a_consumer_without_a_group_is_never_outside() -> None:
    observed = Observed()
    for _ in range(100):
        observed.place.note("{}")
        observed.now += 100
    observed.place.require_member()
