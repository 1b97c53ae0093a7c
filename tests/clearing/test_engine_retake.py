"""What an engine must not lose: inputs polled before a commit failed, its last owner's rules, and the time."""

from decimal import Decimal

from schemas.parameters import PolicyParameters
from schemas.topics import COMMANDS, JOURNAL
from streams.audit.replay import replay
from tests.audit.scripts import SYMBOL, Script, instrument


def opened() -> Script:
    """Alice is long one at 10,000 on 1,000, and Bob short against her."""
    script = Script().begin()
    script.transfer("alice", "1000")
    script.transfer("bob", "100000")
    script.cycle()
    script.fill("alice", "1", "10000")
    script.fill("bob", "-1", "10000")
    script.cycle()
    return script


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
    polled, follower.poll = follower.poll, lambda timeout_s: []  # its fetch has not brought the record yet
    engine._to_take = [0]
    engine._abandon()
    script.cycle()
    follower.poll = polled
    claim = [record for record in script.log.records(JOURNAL) if b'"claim",' in (record.value() or b"")[:20]][-1]
    assert f'"rules_next":{script.log.watermarks("risk.parameters.v1", 0)[1]}'.encode() in (claim.value() or b"")


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
