"""What an engine must not lose: inputs polled before a commit failed, its last owner's rules, and the time."""

from collections.abc import Iterator
from decimal import Decimal

import pytest
from msgspec.structs import replace

from schemas.topics import COMMANDS, EVENTS, PARAMETERS
from streams.clearing.restore import steps_per_cycle
from tests.clearing.engine_bench import POLICY, SYMBOL, Bench, EngineProcess, instrument

TELLING = replace(POLICY, margin_call_levels=("100",))
"""Everybody who owes margin is called, so that an alert says how much."""


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as started:
        yield started


@pytest.fixture
def engine(bench: Bench) -> EngineProcess:
    """The owner of a shard in which Alice is long one at 10,000 on 1,000, and Bob short against her."""
    engine = bench.market(TELLING).owner()
    bench.transfer("alice", "1000")
    bench.transfer("bob", "100000")
    engine.cycle()
    trade(bench, "1")
    engine.settle()
    return engine


def trade(bench: Bench, quantity: str) -> None:
    """Alice buys from Bob at 10,000."""
    bench.fill("alice", quantity)
    bench.fill("bob", f"-{quantity}")


def end(bench: Bench) -> int:
    return bench.partition(PARAMETERS).end


def rate(bench: Bench, engine: EngineProcess) -> Decimal:
    """The maintenance rate in force, from what somebody new is told to hold for one contract at the mark of 10,000."""
    account = f"probe-{bench.partition(EVENTS).end}"
    bench.transfer(account, "10000")
    bench.fill(account, "1")
    engine.settle()
    (alert,) = [alert for alert in bench.alerts() if alert.account == account]
    assert alert.maintenance_margin is not None
    return Decimal(alert.maintenance_margin) / 10_000


# --- inputs that were polled when a commit failed --------------------------------------------------------------------


def test_parameters_polled_when_a_commit_fails_come_into_force(bench: Bench, engine: EngineProcess) -> None:
    bench.fill("bob", "-0.001")
    engine.cycle(due=False)
    assert bench.committed() == bench.partition(EVENTS).end - 1, "an event waits for its commit"
    bench.parameters(instrument("0.2"))
    engine.rates.once("abortable")
    engine.cycle(due=False)
    assert engine.rates.counts["abortable"] == engine.to_take == 1
    engine.settle()
    assert [command.account for command in bench.commands()] == ["alice"], "0.2 of 10,000 is more than she has"


def test_marks_polled_when_a_commit_fails_are_walked(bench: Bench, engine: EngineProcess) -> None:
    for price in ("9450", "9300", "10000"):
        bench.mark(price, full=False)
    engine.rates.once("abortable")
    engine.cycle(due=False)
    assert engine.rates.counts["abortable"] == engine.to_take == 1
    engine.settle()
    given = [(command.stage, command.evidence.marks) for command in bench.commands()]
    assert given == [("reduce", {SYMBOL: "9450"}), ("withdrawn", {SYMBOL: "10000"})]
    bench.transfer("carol", "1000")
    bench.fill("carol", "1")
    engine.settle()
    assert {command.account for command in bench.commands()} == {"alice"}, "at 9,300 Carol would be liquidated"
    assert bench.replayed().findings.differences == []


# --- the rules of the last owner -------------------------------------------------------------------------------------


def test_a_shard_is_taken_with_the_rules_of_its_last_owner_at_least(bench: Bench) -> None:
    first = bench.market().engine("first").run()
    bench.transfer("alice", "1000")
    bench.fill("alice", "1")
    first.settle()
    late = bench.engine("late").join()
    late.cycle(5)
    late.late.add(PARAMETERS)
    bench.parameters(replace(POLICY, command_ttl_ms=9_000))
    late.cycle(5)
    assert bench.stands().parameters.next == end(bench)
    first.leave()
    late.cycle_until(lambda: bench.is_taken(0, late))
    assert {(record.rules_next, record.parameters.next) for record in bench.journal() if record.worker == "late"} == {
        (end(bench), end(bench))
    }
    bench.mark("9450")
    late.settle()
    (command,) = bench.commands()
    assert command.expires_at - command.issued_at == 9_000_000


# --- records that a shard's ledger cannot be held in -----------------------------------------------------------------


def hold_odd_lots(bench: Bench, engine: EngineProcess) -> None:
    """Alice and Bob hold 1.005, which is no multiple of the 0.01 that a record asks for."""
    trade(bench, "0.005")
    engine.settle()
    bench.parameters(instrument("0.06", quantity_increment="0.01"))
    engine.settle()


def test_a_record_that_positions_cannot_be_held_in_is_not_adopted_and_does_not_keep_a_process_from_starting(
    bench: Bench, engine: EngineProcess
) -> None:
    hold_odd_lots(bench, engine)
    refused = end(bench)
    for _ in range(2):
        assert (bench.stands().rules_next, bench.stands().parameters.next) == (refused - 1, refused)
        assert rate(bench, engine) == Decimal("0.05")
        engine = engine.restart()
        engine.settle()
    trade(bench, "0.001")
    engine.settle()
    assert bench.row("alice").status != "suspended"
    assert bench.row("alice").groups[0].positions[0].quantity == "1.006"
    assert bench.replayed().findings.differences == []


@pytest.mark.parametrize("starts", [False, True])
def test_the_record_that_puts_it_right_comes_into_force_whether_a_process_runs_or_starts(
    bench: Bench, engine: EngineProcess, starts: bool
) -> None:
    hold_odd_lots(bench, engine)
    bench.parameters(instrument("0.07"))
    if starts:
        engine = engine.restart()
    engine.settle()
    assert bench.stands().rules_next == end(bench)
    assert rate(bench, engine) == Decimal("0.07")
    assert bench.replayed().findings.differences == []


def test_records_that_came_while_nobody_owned_a_shard_are_adopted_as_far_as_they_can_be(
    bench: Bench, engine: EngineProcess
) -> None:
    trade(bench, "0.005")
    engine.settle()
    bench.parameters(instrument("0.08"))
    adopted = end(bench)
    bench.parameters(instrument("0.09", quantity_increment="0.01"))
    engine = engine.restart()
    engine.settle()
    assert bench.stands().rules_next == adopted
    assert rate(bench, engine) == Decimal("0.08")
    assert bench.replayed().findings.differences == []


def test_rules_that_compaction_has_taken_are_made_up_for_with_those_of_now(bench: Bench, engine: EngineProcess) -> None:
    bench.parameters(instrument("0.08"))
    bench.partition(PARAMETERS).compact()
    assert len(bench.records(PARAMETERS)) == end(bench) - 1, "the rules that Alice's position was made under are gone"
    engine = engine.restart()
    engine.settle()
    assert rate(bench, engine) == Decimal("0.08")
    assert {alert.kind for alert in bench.alerts()} == {"margin_call"}, "no row was unreadable meanwhile"


# --- time and names --------------------------------------------------------------------------------------------------


def test_time_does_not_go_back_when_a_shard_is_taken(bench: Bench, engine: EngineProcess) -> None:
    """Events moved the clock on while no mark came; a mark that was too old must not be live again after a restart."""
    bench.advance(61_000)
    time_us = bench.now_us
    bench.transfer("bob", "1")
    engine.settle()
    assert bench.stands().clock == time_us
    assert bench.stands().not_live == {SYMBOL: time_us}
    engine = engine.restart()
    engine.cycle(2)
    assert {record.kind for record in bench.journal(since=engine)} == {"claim", "commit"}
    assert {record.clock for record in bench.journal(since=engine)} == {time_us}
    assert bench.stands().not_live == {SYMBOL: time_us}


def test_ids_follow_the_names_of_groups_and_not_the_rows_they_happen_to_have(bench: Bench) -> None:
    engine = bench.market().owner()
    bench.transfer("alice", "1000")
    engine.cycle()
    bench.fill("alice", "1")
    bench.transfer("alice", "1000", margin=SYMBOL)
    bench.fill("alice", "1", margin=SYMBOL)
    engine.cycle()
    bench.mark("9000")
    engine.settle()
    assert [(command.command_id, command.margin) for command in bench.commands()] == [
        ("alice:1", SYMBOL),
        ("alice:2", "cross"),
    ]
    assert [dict(record.headers or ())["ce_id"] for record in bench.records(COMMANDS)] == [b"alice:1", b"alice:2"]


@pytest.mark.parametrize(("commit_took_s", "steps"), [(0.0, 1), (0.006, 1), (0.05, 5), (0.3, 30), (60.0, 32)])
def test_a_shard_is_taken_in_the_more_steps_a_cycle_the_longer_commits_take(commit_took_s: float, steps: int) -> None:
    """Else one that walks 8 frames a cycle never catches up with 16 frames a second, where a commit takes 0.5 s."""
    assert steps_per_cycle(commit_took_s) == steps
