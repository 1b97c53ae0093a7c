"""Where a partition may go on: each refusal says what is the case, what it means, and what to type."""

import shlex

import pytest

from schemas.messages import AcceptedOffset
from schemas.topics import TRADES
from streams.errors import BrokerError
from streams.routing.beginning import Beginning, Committed, Present, beginning
from streams.routing.committed_at import CommittedAt
from tests.test_help import ROOT

LOW, HIGH = 10, 20
PRESENT = Present(TRADES, 2, "an-id", LOW, HIGH)
OURS, OF_ANOTHER = CommittedAt("an-id", 4).text(), CommittedAt("another", 4).text()
SERVERS = "kafka-1:9092,kafka-2:9092"


def word(offset: int, *, routed: bool = False) -> AcceptedOffset:
    return AcceptedOffset(offset=offset, topic_id="an-id", reason="it is known", time=1, routed=routed)


@pytest.mark.parametrize("offset", [LOW, 15, HIGH])
def test_an_offset_that_a_router_committed_is_taken(offset: int) -> None:
    assert beginning(PRESENT, Committed(offset, OURS), None, SERVERS) == Beginning(offset, leader_epoch=4)


@pytest.mark.parametrize("text", [None, OURS])
def test_where_nothing_is_committed_it_begins_with_the_first_record(text: str | None) -> None:
    assert beginning(PRESENT, Committed(-1001, text), None, SERVERS) == Beginning(LOW)


@pytest.mark.parametrize(
    ("offset", "text", "said", "advised"),
    [
        (15, None, "offset 15 was not committed by a router of this version: it was moved by hand", 15),
        (15, "by a tool", "offset 15 was not committed by a router", 15),
        (5, None, "the log holds 10 to 20; 5 is outside", LOW),
        (25, "", "the log holds 10 to 20; 25 is outside", HIGH),
        (15, OF_ANOTHER, "the topic was deleted and made anew", LOW),
        (5, OF_ANOTHER, "the topic was deleted and made anew", LOW),
        (5, OURS, "the records from 5 to 9 are gone before they were routed", LOW),
        (25, OURS, "has committed 25 but the log ends at 20: its last records are gone", HIGH),
    ],
)
def test_whatever_else_is_refused(offset: int, text: str | None, said: str, advised: int) -> None:
    with pytest.raises(BrokerError) as refused:
        beginning(PRESENT, Committed(offset, text), None, SERVERS)
    assert said in str(refused.value)
    assert str(refused.value).startswith("trades.v1[2]: ")
    assert typed(str(refused.value)) == [(TRADES, 2, advised)]


def typed(text: str) -> list[tuple[str, int, int]]:
    """The commands that a text names, each taken by the command line: topic, partition and offset."""
    places = []
    for shown in text.split("`")[1::2]:
        program, name, *arguments = shlex.split(shown)
        assert (program, name) == ("margin-clearing", "accept-offset")
        given = ROOT.commands[name].make_context(name, arguments).params
        assert given["reason"]
        assert given["bootstrap_servers"] == SERVERS
        if not given["all_committed"]:
            places.append((given["topic"], given["partition"], given["offset"]))
    return places


@pytest.mark.parametrize(
    ("offset", "text"),
    [(-1001, None), (15, None), (15, "by a tool"), (12, OF_ANOTHER), (5, OURS), (25, OURS), (15, OURS)],
)
@pytest.mark.parametrize("accepted", [LOW, 14, HIGH])
def test_an_operators_word_goes_over_whatever_is_committed(offset: int, text: str | None, accepted: int) -> None:
    begins = beginning(PRESENT, Committed(offset, text), word(accepted), SERVERS)
    assert begins.first == accepted
    assert begins.keeps_memory == (text == OURS and offset <= accepted)


@pytest.mark.parametrize(("committed", "keeps"), [(14, True), (15, False), (13, False)])
def test_a_word_that_a_router_of_before_committed_it_keeps_the_memory_of_there(committed: int, keeps: bool) -> None:
    assert beginning(PRESENT, Committed(committed, None), word(14, routed=True), SERVERS).keeps_memory is keeps


@pytest.mark.parametrize(("offset", "advised"), [(LOW - 1, LOW), (HIGH + 1, HIGH)])
def test_a_word_that_the_log_has_outlived_is_refused(offset: int, advised: int) -> None:
    with pytest.raises(BrokerError, match="was accepted") as refused:
        beginning(PRESENT, Committed(15, OURS), word(offset), SERVERS)
    assert typed(str(refused.value)) == [(TRADES, 2, advised)]
