"""What an engine must not lose: inputs polled before a commit failed, its last owner's rules, and the time."""

from decimal import Decimal

import msgspec

from schemas.parameters import PolicyParameters
from schemas.topics import COMMANDS, PARAMETERS
from streams.audit.replay import replay
from tests.audit.scripts import SYMBOL, Script, instrument, opened


def test_parameters_polled_when_a_commit_fails_come_into_force() -> None:
    script = opened()
    script.fill("bob", "-0.001", "10000")
    script.cycle(commit=False)
    script.running.parameters(instrument("0.2"))
    script.running.fail_next_commit()
    script.cycle(commit=False)
    script.running.settle()
    assert [record.key() for record in script.log.records(COMMANDS)] == [b"alice"], "0.2 of 10,000 is more than she has"


def test_marks_polled_when_a_commit_fails_are_walked() -> None:
    script = opened()
    script.mark("9450", full=False)
    script.mark("9300", full=False)
    script.mark("10000", full=False)
    script.running.fail_next_commit()
    script.running.settle()
    assert any(b'"marks":{"BTC-PERP":"9450"}' in (command.value() or b"") for command in script.log.records(COMMANDS))
    shard = script.running._engine._shards[0]
    assert shard.portfolio.marks[SYMBOL] == Decimal(10000), "the frames behind the failed commit"
    assert replay(script.log, 0).findings.differences == []


def test_a_shard_is_taken_with_the_rules_of_its_last_owner_at_least() -> None:
    script = opened()
    late = script.running
    engine = late._engine
    script.running.parameters(PolicyParameters(command_ttl_ms=9_000, liquidation_buffer_rate="0.002"))
    follower = engine._parameter_log
    polled, follower.poll = follower.poll, list  # its fetch has not brought the record yet
    engine._to_take = [0]
    engine._abandon()
    while engine._to_take:
        script.cycle()
    follower.poll = polled
    assert engine._shards[0].rules_next == engine._shards[0].parameters_next == end(script)
    assert engine._shards[0].parameters.policy.command_ttl_ms == 9_000


# --- records that a shard's ledger cannot be held in -----------------------------------------------------------------


def end(script: Script) -> int:
    return script.log.watermarks(PARAMETERS, 0)[1]


def holding_odd_lots() -> Script:
    """Alice and Bob hold 1.005, which is no multiple of 0.01."""
    script = opened()
    script.fill("alice", "0.005", "10000")
    script.fill("bob", "-0.005", "10000")
    script.cycle()
    script.running.parameters(msgspec.structs.replace(instrument("0.06"), quantity_increment="0.01"))
    script.running.settle()
    return script


def rate(script: Script) -> Decimal:
    rate: Decimal = script.running._engine._shards[0].parameters.instruments[SYMBOL].steps[0].maintenance_rate
    return rate


def test_a_record_that_positions_cannot_be_held_in_is_not_adopted_and_does_not_keep_a_process_from_starting() -> None:
    script = holding_odd_lots()
    refused = end(script)
    for _ in range(2):
        shard = script.running._engine._shards[0]
        assert rate(script) == Decimal("0.05")
        assert (shard.rules_next, shard.parameters_next) == (refused - 1, refused)
        script.running.start()
        script.running.settle()
    script.fill("alice", "0.001", "10000")
    script.fill("bob", "-0.001", "10000")
    script.running.settle()
    assert not script.running._engine._shards[0].accounts["alice"].suspended
    assert replay(script.log, 0).findings.differences == []


def test_the_record_that_puts_it_right_comes_into_force_whether_a_process_runs_or_starts() -> None:
    for starts in (False, True):
        script = holding_odd_lots()
        script.running.parameters(instrument("0.07"))
        if starts:
            script.running.start()
        script.running.settle()
        assert rate(script) == Decimal("0.07")
        assert script.running._engine._shards[0].rules_next == end(script)
        assert replay(script.log, 0).findings.differences == []


def test_records_that_came_while_nobody_owned_a_shard_are_adopted_as_far_as_they_can_be() -> None:
    script = opened()
    script.fill("alice", "0.005", "10000")
    script.fill("bob", "-0.005", "10000")
    script.running.settle()
    script.running.parameters(instrument("0.08"))
    adopted = end(script)
    script.running.parameters(msgspec.structs.replace(instrument("0.09"), quantity_increment="0.01"))
    script.running.start()
    script.running.settle()
    assert rate(script) == Decimal("0.08")
    assert script.running._engine._shards[0].rules_next == adopted
    assert replay(script.log, 0).findings.differences == []


def test_rules_that_compaction_has_taken_are_made_up_for_with_those_of_now() -> None:
    script = opened()
    script.running.settle()
    first = next(r for r in script.log.records(PARAMETERS) if r.key() == f"instrument:{SYMBOL}".encode())
    script.running.parameters(instrument("0.08"))
    script.log.drop(first)
    script.running.start()
    script.running.settle()
    assert rate(script) == Decimal("0.08")


# --- time and names --------------------------------------------------------------------------------------------------


def test_time_does_not_go_back_when_a_shard_is_taken() -> None:
    """Events moved the clock on while no mark came; a mark that was too old must not be live again after a restart."""
    script = opened()
    script.time += 60_000_000
    script.transfer("bob", "1")
    script.cycle()
    clock = script.running._engine._shards[0].clock_us
    assert clock == script.time
    script.running.start()
    assert script.running._engine._shards[0].clock_us == clock


def test_ids_follow_the_names_of_groups_and_not_the_rows_they_happen_to_have() -> None:
    both = Script().begin()
    both.transfer("alice", "1000")
    both.cycle()
    both.fill("alice", "1", "10000")
    both.transfer("alice", "1000", margin="BTC-PERP")
    both.fill("alice", "1", "10000", margin="BTC-PERP")
    both.cycle()
    both.mark("9000")
    both.running.settle()
    margins = [
        (dict(record.headers())["ce_id"], b'"margin":"BTC-PERP"' in (record.value() or b""))
        for record in both.log.records(COMMANDS)
    ]
    assert margins == [(b"alice:1", True), (b"alice:2", False)]
