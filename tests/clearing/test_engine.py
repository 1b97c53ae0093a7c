"""The engine's loop beside its shards: what it says of itself, what it gives up, and what it never lets grow."""

from collections.abc import Iterator

import pytest
from msgspec.structs import replace
from prometheus_client import REGISTRY

from schemas.topics import EVENTS, JOURNAL, MARKS, PARAMETERS
from streams.clearing.shard import Shard
from streams.errors import ShardError
from streams.feeds.parameters import REFUSED_MAX
from streams.tables.keys import MARKS as MARKS_KEY
from streams.tables.keys import accounts_key, meta_key
from tests.clearing.engine_bench import POLICY, SYMBOL, Bench, EngineProcess

FRAMES_PER_POLL = 16
ONE_SHARD = {"engine", "marks of shard 0", "events of shard 0"}


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as started:
        yield started.market()


@pytest.fixture
def two_shards() -> Iterator[Bench]:
    with Bench(shards=2) as started:
        yield started.market()


def metric(name: str) -> float:
    value = REGISTRY.get_sample_value(name)
    assert value is not None, name
    return value


def hold_taking(engine: EngineProcess) -> None:
    """Let no taking get further: the group's coordinator does not say what was committed."""
    engine.rates.committed_error = 1.0


def let_go(engine: EngineProcess) -> None:
    engine.rates.committed_error = 0.0


def watch_table(bench: Bench, shard: int) -> list[tuple[str, set[bytes]]]:
    """From now on: who wrote to the table of a shard, and the accounts in it then."""
    written: list[tuple[str, set[bytes]]] = []

    def on_write(key: bytes) -> None:
        task = bench.scheduler.current
        if key == meta_key(shard).encode() and task is not None:
            written.append((task.process.name, set(bench.redis.hashes.get(accounts_key(shard).encode(), {}))))

    bench.redis.on_write = on_write
    return written


def sizes(bench: Bench) -> list[int]:
    """How many event frames each commit covers that covers any."""
    frames = [record.events.next - record.events.first for record in bench.journal()]
    return [size for size in frames if size]


# --- taking ----------------------------------------------------------------------------------------------------------


def test_the_other_shards_go_on_while_one_is_taken(two_shards: Bench) -> None:
    bench = two_shards
    engine = bench.engine().join()
    engine.cycle_until(lambda: engine.to_take == 1)
    hold_taking(engine)
    bench.transfer("carol", "5", shard=1)
    for number in range(10):
        bench.transfer("alice", "10")
        bench.mark("10000")
        engine.cycle()
        assert (bench.committed(), bench.stands().events.next) == (number + 1, number + 1)
        assert bench.stands().marks.next == bench.partition(MARKS).end
    assert bench.journal(1) == []
    assert engine.to_take == 1
    let_go(engine)
    engine.settle()
    assert engine.to_take == 0
    assert bench.row("carol").groups[0].balances == {"USDC": "5"}


def test_a_shard_that_goes_away_while_it_is_taken_is_left_alone() -> None:
    with Bench(shards=3) as bench:
        first = bench.market().engine("first").run()
        first.settle()
        engine = bench.engine().join()
        hold_taking(engine)
        engine.cycle_until(lambda: engine.to_take == 1)
        first.leave()
        engine.cycle_until(lambda: engine.to_take == 3)
        assert "taking of shard 2" in engine.watchdog.watched
        other = bench.engine("other").run()
        engine.cycle_until(lambda: engine.to_take == 2)
        assert engine.watchdog.watched == {"engine", "taking of shard 0", "taking of shard 1"}
        let_go(engine)
        engine.cycle_until(lambda: bench.is_taken(0, engine) and bench.is_taken(1, engine) and bench.is_taken(2, other))
        assert engine.to_take == 0
        assert "engine" not in bench.claims(2)


def test_a_member_that_was_expelled_hears_of_it_before_it_takes_a_shard(bench: Bench) -> None:
    """As long as it does not poll it cannot join again, and every claim is refused."""
    engine = bench.engine().join()
    engine.cycle_until(lambda: engine.to_take == 1)
    engine.be_expelled()
    retakes = metric("margin_engine_retakes_total")
    bench.forget_calls()
    engine.cycle(due=False)
    assert engine.to_take == 0
    assert not {"committed offsets", "send offsets"} & set(engine.calls())
    assert metric("margin_engine_retakes_total") == retakes
    engine.settle()
    assert set(bench.claims()) == {"engine"}


def test_parameters_that_came_while_a_shard_was_taken_are_in_force_in_it(bench: Bench) -> None:
    engine = bench.owner()
    bench.transfer("alice", "1000")
    bench.fill("alice", "1")
    engine.settle()
    engine.kill()
    engine = bench.engine().join()
    hold_taking(engine)
    engine.cycle_until(lambda: engine.to_take == 1)
    engine.cycle(2)
    bench.parameters(replace(POLICY, margin_call_levels=("3",)))
    bench.cluster.append(PARAMETERS, b"policy:default", b"nonsense")
    engine.cycle(4)
    assert engine.to_take == 1
    assert bench.alerts() == []
    let_go(engine)
    engine.settle()
    assert [(alert.account, alert.kind, alert.level) for alert in bench.alerts()] == [("alice", "margin_call", "3")]
    assert bench.stands().rules_next == bench.partition(PARAMETERS).end
    engine.cycle(2)
    letters = [letter.value for letter in bench.dead_letters(PARAMETERS)]
    assert letters == [b"nonsense"], "written once, by the owner of shard 0"


def test_a_shard_that_cannot_be_taken_ends_the_engine_though_others_can(two_shards: Bench) -> None:
    bench = two_shards
    engine = bench.owner()
    bench.transfer("bob", "10", shard=1)
    engine.settle()
    engine.kill()
    bench.cluster.offsets[bench.settings.engine.group_id][EVENTS, 1] = 0  # as an operator may set it
    engine = bench.engine().join()

    def run() -> None:
        for _ in range(1000):
            bench.transfer("alice", "10")
            engine.cycle()

    with pytest.raises(ShardError, match=r"could not be kept in 10 attempts; .* shard 1: the group's offset"):
        run()
    assert bench.claims().count("engine") > 10, "the other shard was taken each time"
    assert bench.committed() > 0


# --- handing over ----------------------------------------------------------------------------------------------------


class Revoked:
    """An engine that has two shards, with uncommitted events in both, and is about to learn that shard 1 goes to
    another; it does when it polls."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.engine = bench.owner()
        self.written = watch_table(bench, 1)
        for shard, account in enumerate(("alice", "bob")):
            bench.transfer(account, "10", shard=shard)
        self.engine.cycle(due=False)
        assert [bench.committed(shard) for shard in bench.shards] == [0, 0]
        self.other = bench.engine("other").run()
        bench.advance(300)
        bench.forget_calls()

    def hear_of_it(self) -> list[str]:
        """Go through the cycle; what Kafka is asked from the rebalance on."""
        self.engine.cycle(due=False)
        calls = self.engine.calls()
        return calls[calls.index(f"on_revoke {[(EVENTS, 1)]}") :]


@pytest.fixture
def revoked() -> Iterator[Revoked]:
    with Bench(shards=2, engine__commit_interval_ms=2_000, engine__journal_interval_ms=2_000) as bench:
        yield Revoked(bench.market())


def test_a_revoke_commits_and_releases_the_shard(revoked: Revoked) -> None:
    bench, engine = revoked.bench, revoked.engine
    assert "commit" in revoked.hear_of_it()
    assert [bench.committed(shard) for shard in bench.shards] == [1, 1]
    assert bench.stands(1).worker == "engine"
    bench.wait(lambda: ("engine", {b"bob"}) in revoked.written, "what was waiting is in Redis")
    assert engine.watchdog.watched == ONE_SHARD
    engine.cycle_until(lambda: bench.is_taken(1, revoked.other))
    assert engine.to_take == 0


def test_a_revoke_waits_for_kafka_until_its_deadline(revoked: Revoked) -> None:
    bench, engine = revoked.bench, revoked.engine
    kafka = bench.settings.kafka
    assert kafka.handover_s * 1000 < kafka.session_timeout_ms
    engine.cut(kafka.session_timeout_ms - 1_000)
    started_us = bench.scheduler.now
    assert "send offsets" in revoked.hear_of_it()
    took_s = (bench.scheduler.now - started_us) / 1e6
    assert kafka.handover_s <= took_s < kafka.handover_s + 0.5
    engine.settle()
    assert [bench.row(account).groups[0].balances for account in ("alice", "bob")] == [{"USDC": "10"}] * 2


@pytest.mark.parametrize("fault", ["fatal", "abortable"])
def test_a_revoke_that_cannot_commit_asks_nothing_more_of_kafka(revoked: Revoked, fault: str) -> None:
    bench, engine = revoked.bench, revoked.engine
    engine.rates.once(fault)
    calls = revoked.hear_of_it()
    assert engine.rates.counts[fault] == 1
    assert not {"abort", "init"} & set(calls), "neither an abort nor a new producer while the group waits"
    assert "pause" in calls, "shard 0 is not read on"
    assert engine.to_take == 1, "what stays is taken again from the log; what goes is its next owner's"
    assert engine.watchdog.watched == {"engine", "taking of shard 0"}
    bench.wait(lambda: bench.is_taken(1, revoked.other), "the other has shard 1")
    assert [bench.committed(shard) for shard in bench.shards] == [0, 1]
    assert bench.claims(1).count("engine") == 1


def test_a_revoke_that_cannot_commit_leaves_the_rows_that_wait_for_redis_to_the_next_owner(two_shards: Bench) -> None:
    bench = two_shards
    engine = bench.owner()
    written = watch_table(bench, 1)
    bench.transfer("alice", "10", shard=1)
    engine.settle()
    bench.wait(lambda: ("engine", {b"alice"}) in written, "the table is current")
    written.clear()
    bench.redis.slow_us = 3_000_000
    bench.mark("10000")
    engine.cycle()
    bench.transfer("bob", "10", shard=1)
    engine.cycle()
    other = bench.engine("other").run()
    bench.advance(300)
    bench.forget_calls()
    engine.rates.once("abortable")
    engine.cycle(due=False)
    assert f"on_revoke {[(EVENTS, 1)]}" in engine.calls()
    assert engine.rates.counts["abortable"] == 1
    engine.cycle_until(lambda: ("other", {b"alice", b"bob"}) in written)
    assert {writer for writer, _ in written} == {"other"}, "Bob's row waited until Redis had taken the mark"
    assert bench.is_taken(1, other)


@pytest.mark.parametrize(("fault", "mended"), [("fatal", "init"), ("abortable", "abort")])
def test_the_cycle_after_it_mends_the_producer_and_takes_the_rest(revoked: Revoked, fault: str, mended: str) -> None:
    bench, engine = revoked.bench, revoked.engine
    engine.rates.once(fault)
    revoked.hear_of_it()
    bench.forget_calls()
    engine.cycle(due=False)
    assert {"init", "abort"} & set(engine.calls()) == {mended}
    engine.settle()
    assert engine.to_take == 0
    assert bench.claims()[:2] == ["engine", "engine"]
    assert bench.row("alice").groups[0].balances == {"USDC": "10"}


def test_the_commands_of_marks_that_come_together_are_one_transaction(bench: Bench) -> None:
    engine = bench.owner()
    for account in ("alice", "bob"):
        bench.transfer(account, "1000")
        bench.fill(account, "1")
    bench.transfer("bob", "100")
    engine.settle()
    journaled = len(bench.records(JOURNAL))
    for price in ("10000", "9450", "9350"):
        bench.mark(price)
    engine.cycle(due=False)
    assert [command.evidence.marks[SYMBOL] for command in bench.commands()] == ["9450", "9350"]
    assert len(bench.records(JOURNAL)) == journaled + 1


def test_what_was_polled_with_the_record_at_which_a_commit_failed_is_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench.owner()
    bench.transfer("alice", "1000")
    bench.fill("alice", "1")
    engine.settle()
    monkeypatch.setattr("streams.clearing.engine._TOGETHER_S", 0)
    monkeypatch.setattr(engine.engine, "_commit_took_s", 0)
    for price in ("10000", "9450", "9900"):
        bench.mark(price)
    engine.rates.once("abortable")
    walked = metric("margin_engine_mark_frames_total")
    engine.cycle(due=False)
    assert metric("margin_engine_mark_frames_total") == walked + 2, "the third mark was polled, and not walked"
    engine.settle()
    assert metric("margin_engine_mark_frames_total") == walked + 3
    given = [(command.stage, command.evidence.marks[SYMBOL]) for command in bench.commands()]
    assert given == [("reduce", "9450"), ("withdrawn", "9900")]


# --- watching itself -------------------------------------------------------------------------------------------------


def beaten(engine: EngineProcess) -> set[str]:
    """Which loops are beaten for in the next cycle in which the engine looks at its shards."""
    before = engine.watchdog.beats.copy()
    engine.look()
    return {name for name in engine.watchdog.watched if engine.watchdog.beats[name] > before[name]}


def test_a_shard_that_moves_or_has_nothing_to_move_for_is_beaten_for(bench: Bench) -> None:
    engine = bench.owner()
    engine.look()
    assert engine.watchdog.watched == ONE_SHARD
    assert beaten(engine) == ONE_SHARD
    bench.mark("10000")
    bench.transfer("alice", "10")
    assert beaten(engine) == ONE_SHARD


def test_a_shard_whose_marks_do_not_move_while_marks_arrive_is_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench.owner()
    engine.look()
    monkeypatch.setattr(Shard, "apply_marks", lambda *_: None)
    bench.mark("10000")
    assert beaten(engine) == ONE_SHARD - {"marks of shard 0"}
    assert beaten(engine) == ONE_SHARD - {"marks of shard 0"}


def test_a_shard_whose_events_do_not_move_while_events_wait_is_not(bench: Bench) -> None:
    engine = bench.owner()
    engine.look()
    engine.rates.slow_fetch = 1.0
    bench.transfer("alice", "10")
    assert beaten(engine) == ONE_SHARD - {"events of shard 0"}
    assert beaten(engine) == ONE_SHARD - {"events of shard 0"}
    engine.rates.slow_fetch = 0.0
    assert beaten(engine) == ONE_SHARD


def test_nothing_is_expected_of_a_shard_that_has_left(two_shards: Bench) -> None:
    engine = two_shards.owner()
    engine.look()
    assert engine.watchdog.watched == ONE_SHARD | {"marks of shard 1", "events of shard 1"}
    two_shards.engine("other").run()
    engine.cycle_until(lambda: "shard 1" not in " ".join(engine.watchdog.watched))
    engine.look()
    assert engine.watchdog.watched == ONE_SHARD
    engine.be_expelled()
    engine.cycle(due=False)
    assert engine.watchdog.watched == {"engine"}


# --- readiness -------------------------------------------------------------------------------------------------------


def test_it_is_ready_when_its_shards_are_restored_and_its_inputs_fresh() -> None:
    with Bench(engine__ready_lag_frames_max=3) as bench:
        engine = bench.market().engine()
        assert not any(engine.conditions()[name] for name in ("is_in_group", "marks_age_ms")), (
            "nothing is known before the start"
        )
        engine.join()
        engine.cycle_until(lambda: engine.to_take == 1)
        assert not engine.conditions()["shards_to_take"]
        bench.mark("10000")
        while engine.to_take:
            engine.cycle(due=False)
        assert engine.conditions() == {
            "is_in_group": True,
            "shards_to_take": True,
            "marks_age_ms": True,
            "events_lag_frames": False,
            "partitions_missing": True,
            "parameters_to_put_in_force": True,
            "places_stand_s": True,
        }, "the lag is not known before the first statistics"
        engine.look()
        assert all(engine.conditions().values())
        engine.rates.slow_fetch = 1.0
        for lag in range(1, 5):
            bench.transfer("alice", "10")
            engine.look()
            assert engine.conditions()["events_lag_frames"] == (lag <= 3)


def test_marks_that_stop_make_it_not_ready(bench: Bench) -> None:
    engine = bench.owner()
    bench.mark("10000")
    engine.cycle()
    assert engine.conditions()["marks_age_ms"]
    bench.advance(1_000 + bench.settings.service.ready_age_ms)
    assert not engine.conditions()["marks_age_ms"]


def test_an_engine_that_lost_its_group_is_not_ready(bench: Bench) -> None:
    engine, spare = bench.owner(), bench.engine("spare").join()
    spare.cycle_until(lambda: spare.conditions()["is_in_group"])
    assert set(bench.claims()) == {"engine"}, "a spare one without shards is"
    assert engine.conditions()["is_in_group"]
    engine.be_expelled()
    engine.cycle(due=False)
    assert not engine.conditions()["is_in_group"]


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_a_full_batch_is_committed_instead_of_held() -> None:
    with Bench(engine__batch_frames_max=4, engine__commit_interval_ms=2_000) as bench:
        engine = bench.market().owner()
        for _ in range(100):
            bench.transfer("alice", "10")
        begun_us = bench.scheduler.now
        while bench.committed() < 96:
            engine.cycle(due=False)
            assert bench.scheduler.now - begun_us < 1_000_000, "no commit is due"
        assert max(sizes(bench)) <= 4 + FRAMES_PER_POLL


def test_a_batch_is_bounded_in_bytes() -> None:
    with Bench(engine__batch_kbytes_max=1) as bench:
        engine = bench.market().owner()
        bench.transfer("alice", "1000000")
        engine.settle()
        for _ in range(64):
            bench.fill("alice", "0.001", rows=60)
        engine.settle()
        assert bench.committed() == 65
        assert max(sizes(bench)) == FRAMES_PER_POLL, "one poll's worth, not all there is"


def test_refused_parameters_are_kept_up_to_a_bound(bench: Bench) -> None:
    bench.owner().kill()
    for _ in range(3 * REFUSED_MAX):
        bench.cluster.append(PARAMETERS, b"policy:default", b"nonsense")
    bench.owner().settle()
    end = bench.partition(PARAMETERS).end
    offsets = [int(dict(letter.headers or ())["dlq.offset"]) for letter in bench.dead_letters(PARAMETERS)]
    assert offsets == list(range(end - REFUSED_MAX, end))


# --- marks -----------------------------------------------------------------------------------------------------------


def test_the_tables_do_not_get_the_marks_of_a_replaced_oracle(bench: Bench) -> None:
    engine = bench.owner()
    engine.settle()
    for _ in range(2):
        bench.mark("99")  # an epoch is the offset of a record before
    for price, epoch, known in (("100", 2, "100"), ("50", 1, "100"), ("101", 2, "101")):
        bench.mark(price, epoch=epoch)
        engine.settle()
        engine.cycle()
        assert f'"price":"{known}"'.encode() in bench.redis.hashes[MARKS_KEY.encode()][SYMBOL.encode()]


def test_a_mark_record_that_is_no_frame_is_walked_and_dead_lettered_with_its_offset(bench: Bench) -> None:
    engine = bench.owner()
    offset = bench.cluster.append(MARKS, None, b"nonsense", 0).offset
    engine.settle()
    assert bench.stands().marks.next == offset + 1
    (letter,) = bench.dead_letters(MARKS)
    assert letter.value == b"nonsense"
    assert dict(letter.headers or ())["dlq.offset"] == str(offset).encode()
