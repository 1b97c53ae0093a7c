"""The fakes behave as what they stand for, where the simulation depends on it."""

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

import pytest
import redis
from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_CREATE_TIME,
    TIMESTAMP_LOG_APPEND_TIME,
    KafkaError,
    TopicPartition,
)

from infra.local.valkey import ValkeyServer
from streams.broker import config
from streams.broker.group import GroupPlace
from streams.memory.clients import FakeConsumer, FakeMessage, Rates
from streams.memory.log import ABORTED, COMMITTED, Cluster, Concurrent, Fenced, InvalidState
from streams.memory.redis import Server
from streams.memory.scheduler import Process, Scheduler, VirtualEvent
from streams.settings import KafkaSettings
from streams.tables.keys import accounts_key, meta_key
from streams.tables.writer import script_text

TIMEOUT_US = 1_000_000
NOBODY = ("", -1, "")


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(Scheduler(0), {"topic": 1}, lambda _: None)


def _write(cluster: Cluster, producer: str, epoch: int, value: bytes) -> int:
    return cluster.produce(producer, epoch, TIMEOUT_US, cluster.topics["topic"][0], None, value, None).offset


def _values(cluster: Cluster) -> list[bytes | None]:
    return [record.value for record in cluster.topics["topic"][0].read(0, 100)[0]]


def test_a_reader_stops_at_the_first_open_transaction(cluster: Cluster) -> None:
    epoch = cluster.init("one")
    other = cluster.init("other")
    _write(cluster, "one", epoch, b"open")
    _write(cluster, "other", other, b"committed")
    cluster.end("other", other, commit=True)
    cluster.scheduler.run(10, 10)
    assert _values(cluster) == []
    cluster.end("one", epoch, commit=False)
    cluster.scheduler.run(20, 10)
    assert _values(cluster) == [b"committed"]


def test_records_are_read_when_the_marker_is_written_not_when_it_is_decided(cluster: Cluster) -> None:
    cluster.marker_delay_us = lambda: 500
    epoch = cluster.init("one")
    _write(cluster, "one", epoch, b"value")
    cluster.end("one", epoch, commit=True)
    assert _values(cluster) == []
    with pytest.raises(Concurrent):
        _write(cluster, "one", epoch, b"next")
    cluster.scheduler.run(600, 10)
    assert _values(cluster) == [b"value"]
    assert cluster.topics["topic"][0].end == 2  # the marker has an offset


def test_a_new_producer_aborts_what_the_old_one_has_open_and_fences_it(cluster: Cluster) -> None:
    old = cluster.init("one")
    _write(cluster, "one", old, b"value")
    txn = cluster.transaction("one")
    with pytest.raises(Concurrent):
        cluster.init("one")
    cluster.scheduler.run(10, 10)
    assert txn is not None
    assert txn.state == ABORTED
    assert cluster.init("one") > old
    with pytest.raises(Fenced):
        _write(cluster, "one", old, b"late")
    with pytest.raises(Fenced):
        cluster.end("one", old, commit=True)


def test_a_transaction_that_takes_too_long_is_aborted_and_its_producer_fenced(cluster: Cluster) -> None:
    epoch = cluster.init("one")
    _write(cluster, "one", epoch, b"value")
    cluster.scheduler.run(TIMEOUT_US + 1, 10)
    with pytest.raises(Fenced):
        cluster.end("one", epoch, commit=True)


def test_a_commit_said_again_is_answered_as_the_first_time_and_an_abort_is_not(cluster: Cluster) -> None:
    epoch = cluster.init("one")
    _write(cluster, "one", epoch, b"value")
    txn = cluster.transaction("one")
    cluster.end("one", epoch, commit=True)
    cluster.end("one", epoch, commit=True)
    with pytest.raises(InvalidState):
        cluster.end("one", epoch, commit=False)
    assert txn is not None
    assert txn.state == COMMITTED


def test_committed_offsets_are_unstable_while_a_transaction_holds_them(cluster: Cluster) -> None:
    epoch = cluster.init("one")
    assert cluster.add_offsets("one", epoch, TIMEOUT_US, "group", {("topic", 0): 7}, NOBODY) is None
    assert cluster.committed_offsets("group", [("topic", 0)]) is None
    cluster.end("one", epoch, commit=True)
    cluster.scheduler.run(10, 10)
    assert cluster.committed_offsets("group", [("topic", 0)]) == [7]


def test_a_committed_offset_keeps_its_text_until_another_is_committed(cluster: Cluster) -> None:
    for offset, texts in ((7, {("topic", 0): "of ours"}), (8, None)):
        epoch = cluster.init("one")
        assert cluster.add_offsets("one", epoch, TIMEOUT_US, "group", {("topic", 0): offset}, NOBODY, texts) is None
        cluster.end("one", epoch, commit=True)
        cluster.scheduler.run(cluster.scheduler.now + 10, 10)
        assert cluster.committed_offsets("group", [("topic", 0)]) == [offset]
        assert cluster.committed_metadata("group", ("topic", 0)) == ("of ours" if texts else "")
    cluster.move_offset("group", ("topic", 0), 3, "by hand")
    assert cluster.committed_offsets("group", [("topic", 0)]) == [3]
    assert cluster.committed_metadata("group", ("topic", 0)) == "by hand"


def test_the_text_of_an_aborted_transaction_is_not_committed(cluster: Cluster) -> None:
    cluster.move_offset("group", ("topic", 0), 3, "before")
    epoch = cluster.init("one")
    cluster.add_offsets("one", epoch, TIMEOUT_US, "group", {("topic", 0): 7}, NOBODY, {("topic", 0): "after"})
    cluster.end("one", epoch, commit=False)
    cluster.scheduler.run(10, 10)
    assert cluster.committed_metadata("group", ("topic", 0)) == "before"


def test_a_topic_that_is_made_anew_is_empty_and_has_another_id(cluster: Cluster) -> None:
    cluster.append("topic", None, b"value")
    before = cluster.topic_id("topic")
    cluster.make_anew("topic")
    assert cluster.topics["topic"][0].end == 0
    assert cluster.topic_id("topic") != before


@pytest.mark.parametrize(
    ("member", "refused"),
    [
        (NOBODY, None),
        (("gone", 3, ""), KafkaError.UNKNOWN_MEMBER_ID),
        (("", -1, "static-0"), KafkaError.UNKNOWN_MEMBER_ID),
    ],
)
def test_offsets_of_a_member_that_is_none_are_refused_but_those_of_nobody_are_taken(
    cluster: Cluster, member: tuple[str, int, str], refused: int | None
) -> None:
    epoch = cluster.init("one")
    assert cluster.add_offsets("one", epoch, TIMEOUT_US, "group", {("topic", 0): 7}, member) == refused


def test_compaction_leaves_the_last_committed_record_of_every_key_at_its_offset(cluster: Cluster) -> None:
    (log,) = cluster.topics["topic"]
    for value in (b"first", b"second"):
        cluster.append("topic", b"key", value)
        cluster.append("topic", None, value)
    epoch = cluster.init("one")
    cluster.produce("one", epoch, TIMEOUT_US, log, b"key", b"open", None)
    log.compact()
    assert [(record.offset, record.key) for record in log.committed()] == [(1, None), (2, b"key"), (3, None)]


def test_what_retention_has_deleted_is_below_the_beginning_and_out_of_range(cluster: Cluster) -> None:
    (log,) = cluster.topics["topic"]
    for value in (b"first", b"second", b"third"):
        cluster.append("topic", None, value)
    log.delete_before(2)
    log.delete_before(1)
    assert [record.value for record in log.committed()] == [b"third"]
    assert log.read(0, 100) == ([log.records[2]], 3)
    with pytest.raises(ValueError, match="ends at 3, before 4"):
        log.delete_before(4)
    process = Process(cluster.scheduler, "process")
    consumer = FakeConsumer(cluster, process, Rates(), config.reader(KafkaSettings(), "client"))
    answers: list[Any] = []

    def consume() -> None:
        answers.append(consumer.get_watermark_offsets(TopicPartition("topic", 0)))
        for offset in (OFFSET_BEGINNING, 1):
            consumer.assign([TopicPartition("topic", 0, offset)])
            answers.extend(
                message.value() if (error := message.error()) is None else error.code()
                for message in consumer.consume(1)
            )

    cluster.scheduler.spawn(process, "main", consume)
    cluster.scheduler.run(1_000_000, 100)
    assert answers == [(2, 3), b"third", KafkaError._AUTO_OFFSET_RESET]


def test_a_record_carries_the_time_of_the_brokers_if_its_topic_says_so_when_it_is_written(cluster: Cluster) -> None:
    cluster.append("topic", None, b"sender's")
    cluster.append_time.add("topic")
    cluster.append("topic", None, b"brokers'")
    cluster.append_time.remove("topic")
    messages = [FakeMessage(("topic", 0), record, record.offset) for record in cluster.topics["topic"][0].committed()]
    assert [message.timestamp()[0] for message in messages] == [TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME]


def test_a_fault_that_is_due_happens_once_whatever_its_rate() -> None:
    rates = Rates()
    rates.once("fatal")
    assert [rates.strikes("fatal", 0.5) for _ in range(3)] == [True, False, False]
    rates.once("fatal")
    rates.stop()
    assert not rates.strikes("fatal", 0.5)
    assert rates.counts == {"fatal": 1}


def test_statistics_say_how_far_a_partition_was_consumed_and_where_it_ends(cluster: Cluster) -> None:
    place = GroupPlace(1.0)
    process = Process(cluster.scheduler, "process")
    consumer = FakeConsumer(cluster, process, Rates(), config.reader(KafkaSettings(), "client") | place.properties())
    for value in (b"first", b"second", b"third"):
        cluster.append("topic", None, value)
    lags: list[int | None] = []

    def consume() -> None:
        consumer.assign([TopicPartition("topic", 0, 0)])
        consumer.consume(1)
        lags.append(place.lag("topic", 0))
        cluster.scheduler.sleep(1_000_000)
        consumer.consume(0)
        lags.append(place.lag("topic", 0))

    cluster.scheduler.spawn(process, "main", consume)
    cluster.scheduler.run(2_000_000, 100)
    assert lags == [None, 2], "once a second"


def test_a_thread_that_ends_gives_way_to_the_scheduler_not_to_who_started_it() -> None:
    scheduler = Scheduler(0)
    process = Process(scheduler, "process")
    seen: list[str] = []
    event = VirtualEvent(scheduler)

    def main() -> None:
        scheduler.spawn(process, "thread", lambda: seen.append("thread"))
        event.wait(1.0)
        seen.append(f"main at {scheduler.now}")

    scheduler.spawn(process, "main", main)
    scheduler.run(2_000_000, 100)
    assert seen == ["thread", "main at 1000000"]


# --- the two scripts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    server = ValkeyServer(tmp_path_factory.mktemp("valkey"))
    server.start()
    with redis.Redis.from_url(server.url) as client:
        yield client
    server.stop()


def test_the_scripts_restated_do_what_the_scripts_do(valkey: redis.Redis) -> None:
    """The same random commands, with old tokens, old stamps, lost keys and parts: same answers, same tables."""
    server, random = Server(Scheduler(0)), Random(5)
    keys = [accounts_key(0), meta_key(0)]
    scripts: dict[str, tuple[Any, Callable[..., Any]]] = {
        "open.lua": (valkey.register_script(script_text("open.lua")), server.open_lua),
        "write.lua": (valkey.register_script(script_text("write.lua")), server.write_lua),
    }
    answers = set()
    for number in range(1500):
        name, arguments = ("open.lua", _open(random)) if random.random() < 0.1 else ("write.lua", _write_part(random))
        real, restated = scripts[name]
        answer = real(keys=keys, args=arguments)
        assert answer == restated([key.encode() for key in keys], [str(value).encode() for value in arguments]), number
        answers.add(answer if isinstance(answer, bytes) else answer[0])
        if random.random() < 0.02:
            lost = random.choice(keys)
            valkey.delete(lost)
            server.hashes.pop(lost.encode(), None)
        for key in keys:
            assert _contents(valkey.hgetall(key)) == _contents(server.hashes.get(key.encode(), {})), (number, name)
    assert answers == {b"opened", b"cleared", b"fenced", b"applied", b"ignored", b"lost"}


def _open(random: Random) -> list[Any]:
    return [random.randrange(1, 4), int(random.random() < 0.1), *_log(random)]


def _write_part(random: Random) -> list[Any]:
    after, stamp = random.randrange(0, 12), random.randrange(1, 60)
    removed = [f"acct-{random.randrange(5)}" for _ in range(random.randrange(2))]
    rows = [text for _ in range(random.randrange(3)) for text in (f"acct-{random.randrange(5)}", f"row-{stamp}")]
    flags = [int(random.random() < 0.5), int(random.random() < 0.7), random.choice((0, 0, 0, 1))]
    return [random.randrange(1, 4), after, stamp, 1_000 + stamp, *flags, *_log(random), len(removed), *removed, *rows]


def _log(random: Random) -> list[Any]:
    return ["cluster", "topic", "id" if random.random() < 0.98 else "another", 4]


def _contents(fields: Mapping[Any, Any]) -> dict[bytes, bytes]:
    return {name: value for name, value in fields.items() if name != b"updated_at"}
