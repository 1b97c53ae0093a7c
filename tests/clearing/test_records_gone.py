"""What an engine does about records of our own topics that are gone: it never liquidates as if nothing were missing.

Retention, DeleteRecords, an unclean election and a topic that is deleted and made anew all come to the same: the shard
goes on where its log does, and none of its accounts is liquidated before an operator has said so.
"""

from collections.abc import Iterator

import pytest

from schemas.codec import encode
from schemas.messages import AcceptedOffset, Alert, EventFrame, JournalRecord, Resumption
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, EVENTS, JOURNAL, MARKS, PARAMETERS, PROGRESS, ROUTER
from streams.audit.replay import replay
from streams.errors import BrokerError
from streams.feeds.accepted import accepted_key
from tests.clearing.engine_bench import Bench, EngineProcess

SHARD = "margin-clearing:shard:0"


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as started:
        yield started


@pytest.fixture
def engine(bench: Bench) -> EngineProcess:
    """The owner of a shard in which Alice is long one at 10,000 on 1,000, and Bob short against her."""
    engine = bench.market().owner()
    bench.transfer("alice", "1000")
    bench.transfer("bob", "100000")
    engine.cycle()
    bench.fill("alice", "1")
    bench.fill("bob", "-1")
    engine.settle()
    return engine


def lose_events(bench: Bench, engine: EngineProcess) -> EngineProcess:
    """Alice closes her position while nobody reads, and that is deleted; the next owner."""
    engine.kill()
    bench.fill("alice", "-1")
    bench.fill("bob", "1")
    bench.partition(EVENTS).delete_before(bench.partition(EVENTS).end)
    return bench.owner()


def shard_alerts(bench: Bench, kind: str) -> list[Alert]:
    return [alert for alert in bench.alerts() if alert.account == SHARD and alert.kind == kind]


def resume(bench: Bench, account: str = "", suspension: int = 1) -> None:
    word = Resumption(account=account, suspension=suspension, reason="checked", time=bench.now_us)
    bench.events(EventFrame(time=bench.now_us, resumptions=(word,)))


def make_anew(bench: Bench, topic: str) -> None:
    """Delete a topic and make it anew, with as many records at once: no reader's offset is out of range."""
    count = bench.partition(topic).end
    bench.cluster.make_anew(topic)
    for _ in range(count):
        bench.cluster.append(topic, None, b"something else")


def last(bench: Bench) -> JournalRecord:
    return bench.stands()


# --- events ----------------------------------------------------------------------------------------------------------


def test_nobody_is_liquidated_after_events_were_deleted(bench: Bench, engine: EngineProcess) -> None:
    engine = lose_events(bench, engine)
    bench.mark("9000")
    engine.settle()
    assert bench.commands() == [], "she has closed what she would be liquidated for"
    (gone,) = shard_alerts(bench, "records_gone")
    assert f"{EVENTS}[0]" in (gone.reason or "")
    assert len(shard_alerts(bench, "suspended")) == 1
    (told,) = [alert for alert in bench.alerts() if alert.kind == "suspended_liquidatable"]
    assert told.account == "alice"


def test_an_account_that_comes_after_the_deletion_is_not_liquidated_either(bench: Bench, engine: EngineProcess) -> None:
    engine = lose_events(bench, engine)
    bench.fill("carol", "1")
    bench.mark("9000")
    engine.settle()
    assert bench.commands() == [], "her deposit may be among what is gone"


def test_the_suspension_outlives_its_engine_and_is_told_once(bench: Bench, engine: EngineProcess) -> None:
    engine = lose_events(bench, engine)
    engine.settle()
    engine = engine.restart()
    bench.mark("9000")
    engine.settle()
    assert bench.commands() == []
    assert len(shard_alerts(bench, "records_gone")) == len(shard_alerts(bench, "suspended")) == 1


def test_an_owner_that_dies_after_its_claim_leaves_the_telling_to_the_next(bench: Bench, engine: EngineProcess) -> None:
    engine.kill()
    bench.fill("alice", "-1")
    bench.partition(EVENTS).delete_before(bench.partition(EVENTS).end)
    dying = bench.engine().join()
    dying.cycle_until(lambda: bench.journal(since=dying) != [], "it has claimed")
    assert [record.kind for record in bench.journal(since=dying)] == ["claim"]
    engine = dying.restart()
    bench.mark("9000")
    engine.settle()
    assert bench.commands() == []
    assert len(shard_alerts(bench, "records_gone")) == len(shard_alerts(bench, "suspended")) == 1


def test_an_operator_lifts_it_for_everybody(bench: Bench, engine: EngineProcess) -> None:
    engine = lose_events(bench, engine)
    bench.mark("9000")
    engine.settle()
    resume(bench)
    engine.settle()
    assert [command.account for command in bench.commands()] == ["alice"]
    (told,) = shard_alerts(bench, "resumed")
    assert "checked" in (told.reason or "")
    suspension = last(bench).suspension
    assert suspension
    assert (suspension.number, suspension.lifted) == (1, "checked")
    engine = engine.restart()
    engine.settle()
    assert len(bench.commands()) == 1


def test_an_operator_lifts_it_for_one_account(bench: Bench, engine: EngineProcess) -> None:
    engine = lose_events(bench, engine)
    bench.fill("carol", "1")
    bench.mark("9000")
    engine.settle()
    resume(bench, "alice")
    engine.settle()
    assert [command.account for command in bench.commands()] == ["alice"]
    assert bench.row("alice").resumed == 1
    assert [alert.account for alert in bench.alerts() if alert.kind == "resumed"] == ["alice"]
    engine = engine.restart()
    bench.mark("8000")
    engine.settle()
    assert {command.account for command in bench.commands()} == {"alice"}


def test_a_word_about_an_earlier_suspension_lifts_no_later_one(bench: Bench, engine: EngineProcess) -> None:
    engine = lose_events(bench, engine)
    engine.settle()
    resume(bench, "alice")
    engine.settle()
    engine = lose_events(bench, engine)
    resume(bench)
    resume(bench, "alice")
    bench.mark("9000")
    engine.settle()
    assert bench.commands() == []
    suspension = last(bench).suspension
    assert suspension
    assert (suspension.number, suspension.lifted, len(suspension.reasons)) == (2, "", 2)
    assert "repair_refused" in {alert.kind for alert in bench.alerts()}


def test_events_that_were_deleted_before_any_engine_came_are_missed(bench: Bench) -> None:
    bench.market()
    bench.transfer("alice", "100000")
    bench.partition(EVENTS).delete_before(1)
    bench.fill("alice", "1")
    engine = bench.owner()
    bench.mark("5000")
    engine.settle()
    assert bench.commands() == []
    assert len(shard_alerts(bench, "suspended")) == 1


def test_a_log_of_events_that_has_lost_its_end_suspends_the_shard(bench: Bench, engine: EngineProcess) -> None:
    engine.kill()
    log = bench.partition(EVENTS)
    del log.records[-2:]
    bench.fill("bob", "-1")
    engine = bench.owner()
    bench.fill("carol", "1")
    bench.mark("9000")
    engine.settle()
    assert "carol" in {record.account for record in bench._decoded(ACCOUNTS)}, "what comes at its offsets is applied"
    assert bench.commands() == []
    assert len(shard_alerts(bench, "suspended")) == 1


@pytest.mark.parametrize("topic", [EVENTS, PARAMETERS, JOURNAL])
def test_a_topic_made_anew_suspends_the_shard(bench: Bench, engine: EngineProcess, topic: str) -> None:
    engine.kill()
    bench.cluster.make_anew(topic)
    if topic == PARAMETERS:
        bench.market()
    engine = bench.owner()
    bench.mark("9000")
    engine.settle()
    assert bench.commands() == []
    (gone,) = shard_alerts(bench, "records_gone")
    assert topic in (gone.reason or "")
    resume(bench)
    engine.settle()
    assert [command.account for command in bench.commands()] == ["alice"]


def test_a_journal_that_was_deleted_suspends_the_shard(bench: Bench, engine: EngineProcess) -> None:
    engine.kill()
    bench.partition(JOURNAL).delete_before(bench.partition(JOURNAL).end)
    engine = bench.owner()
    bench.mark("9000")
    engine.settle()
    assert bench.commands() == []
    assert len(shard_alerts(bench, "suspended")) == 1


def test_a_replay_goes_over_a_claim_behind_what_is_gone(bench: Bench, engine: EngineProcess) -> None:
    engine = lose_events(bench, engine)
    bench.mark("9000")
    engine.settle()
    resume(bench)
    engine.settle()
    engine = engine.restart()
    engine.settle()
    replayed = bench.audit(lambda log: replay(log, 0))
    assert replayed.findings.passed, replayed.findings.differences
    assert replayed.findings.counts["commands"] == 1


def test_a_replay_gives_the_claim_that_tells_of_a_gap(bench: Bench, engine: EngineProcess) -> None:
    engine.kill()
    bench.cluster.make_anew(ALERTS)
    bench.cluster.make_anew(PROGRESS)
    engine = bench.owner()
    engine.settle()
    (claim,) = [record for record in bench.journal() if record.gone]
    assert claim.kind == "claim"
    replayed = bench.audit(lambda log: replay(log, 0))
    assert replayed.findings.passed, replayed.findings.differences
    assert replayed.first == 2, "it goes from the first record over that claim"


def test_accounts_that_were_copied_to_another_cluster(bench: Bench, engine: EngineProcess) -> None:
    """As infra/MOVING.md has it: rows and rules are copied, journals and events are not."""
    bench.mark("9400")
    engine.settle()
    assert [command.command_id for command in bench.commands()] == ["alice:1"]
    engine.kill()
    with Bench() as other:
        other.transfer("carol", "1")  # so that nothing about offsets is the same by chance
        for topic in (ACCOUNTS, PARAMETERS):
            for record in bench.records(topic):
                other.cluster.append(topic, record.key, record.value, headers=record.headers)
        other.mark("9000")
        moved = other.owner()
        other.advance(120_000)
        other.mark("9000")
        moved.settle()
        assert other.commands() == []
        (told,) = shard_alerts(other, "suspended")
        assert "margin.journal.v1[0] holds nothing" in (told.reason or "")
        resume(other)
        moved.settle()
        assert [command.command_id for command in other.commands()] == ["alice:2"], "numbers go on"
        sequences = [record.sequence for record in other.journal()]
        assert sequences[0] > last(bench).sequence - 2, "and those of commits, so that rows keep their order"


# --- marks: no account holds anything of them ------------------------------------------------------------------------


def test_marks_that_were_deleted_are_told_and_the_others_walked(bench: Bench, engine: EngineProcess) -> None:
    engine.kill()
    for price in ("9000", "10000"):
        bench.mark(price)
    bench.partition(MARKS).delete_before(bench.partition(MARKS).end - 1)
    engine = bench.owner()
    engine.settle()
    assert bench.commands() == []
    (gone,) = shard_alerts(bench, "records_gone")
    assert f"{MARKS}[0]" in (gone.reason or "")
    assert shard_alerts(bench, "suspended") == []
    bench.mark("9000")
    engine.settle()
    assert [command.account for command in bench.commands()] == ["alice"]


def test_after_marks_were_made_anew_liquidation_goes_on(bench: Bench, engine: EngineProcess) -> None:
    for _ in range(20):
        bench.mark("10000")
    engine.settle()
    bench.cluster.make_anew(MARKS)
    with pytest.raises(BrokerError, match=r"margin\.marks\.v1\[0\].*what is missing and what to do"):
        engine.cycle(100)
    engine = engine.restart()
    bench.mark("9000")
    engine.settle()
    assert [command.account for command in bench.commands()] == ["alice"]
    assert len(shard_alerts(bench, "records_gone")) == 1


@pytest.mark.parametrize("topic", [EVENTS, ACCOUNTS, MARKS, JOURNAL, PARAMETERS, PROGRESS, COMMANDS, ALERTS])
def test_an_engine_ends_when_a_topic_is_made_anew_under_it(bench: Bench, engine: EngineProcess, topic: str) -> None:
    make_anew(bench, topic)
    with pytest.raises(BrokerError, match=rf"{topic} was deleted and made anew"):
        engine.cycle(200)


def test_an_engine_ends_when_what_it_reads_is_deleted_under_it(bench: Bench, engine: EngineProcess) -> None:
    for _ in range(3):
        bench.fill("bob", "-1")
    bench.partition(EVENTS).delete_before(bench.partition(EVENTS).end)
    with pytest.raises(BrokerError, match=r"margin\.events\.v1\[0\].*what is missing and what to do"):
        engine.cycle(3)
    engine = engine.restart()
    bench.mark("5000")
    engine.settle()
    assert bench.commands() == []


# --- accounts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_anew", [False, True])
def test_no_shard_is_taken_whose_rows_are_gone(bench: Bench, engine: EngineProcess, is_anew: bool) -> None:
    engine.kill()
    claims = bench.claims()
    if is_anew:
        bench.cluster.make_anew(ACCOUNTS)
    else:
        bench.partition(ACCOUNTS).delete_before(1)
    waiting = bench.engine().join()
    with pytest.raises(BrokerError, match=r"accept-offset margin\.accounts\.v1 0"):
        waiting.cycle(100)
    assert bench.claims() == claims, "Redis, which may hold the last copy, is left alone"


def test_a_shard_whose_rows_are_gone_is_taken_at_a_word_and_suspended(bench: Bench, engine: EngineProcess) -> None:
    engine.kill()
    bench.partition(ACCOUNTS).delete_before(1)
    word = AcceptedOffset(offset=1, topic_id=bench.cluster.topic_id(ACCOUNTS), reason="no copy", time=bench.now_us)
    bench.cluster.append(ROUTER, accepted_key(ACCOUNTS, 0), encode(word))
    engine = bench.owner()
    bench.mark("5000")
    engine.settle()
    assert bench.commands() == []
    (gone,) = shard_alerts(bench, "records_gone")
    assert "accepted: no copy" in (gone.reason or "")
    resume(bench)
    engine.settle()
    assert bench.commands() != []
    engine = engine.restart()
    engine.settle()
    assert len(shard_alerts(bench, "suspended")) == 1, "what was accepted is not told again"
