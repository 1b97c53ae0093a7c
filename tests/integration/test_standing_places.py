"""A place that can be read at no time is told everywhere, and an operator can go on behind it."""

import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer

from infra.local.stack import LocalStack
from schemas.topics import EVENTS, PARAMETERS, TRANSFERS
from streams.broker import config
from streams.broker.admin import ensure_topics
from streams.broker.kafka import Kafka
from streams.broker.places import PartitionStatistics, Place, PlaceWatch
from streams.broker.reader import Follower, LogReader
from streams.errors import UnreadableError
from streams.settings import Settings, load
from tests.bombs import send_batch, send_unreadable
from tests.integration.conftest import Role, eventually
from tests.integration.test_audit import command

STANDS_MS = 2_000
SHARDS = 4


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    """A stack of the module's own: what cannot be read stays in its logs."""
    with LocalStack.start() as stack:
        given = {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url}
        loaded = load({}, given | {"topics.shards": SHARDS, "topics.partitions": 1})
        assert not ensure_topics(loaded).wrong
        yield loaded


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Watched(Role):
    """A role that answers probes."""

    def __init__(self, name: str, settings: Settings, folder: Path) -> None:
        self.port = free_port()
        super().__init__(
            name,
            settings,
            folder / f"{name}.log",
            MARGIN_SERVICE__STANDS_MS=str(STANDS_MS),
            MARGIN_SERVICE__METRICS_PORT=str(self.port),
        )

    def page(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except urllib.error.URLError:
            return ""

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [orjson.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def standing(self) -> list[dict[str, object]]:
        """The conditions of being ready that name a place that stands."""
        page = self.page("/readyz")
        conditions = orjson.loads(page)["conditions"] if page else []
        return [one for one in conditions if one["name"].startswith("stands_s ") and not one["holds"]]


def transfer(account: str) -> bytes:
    return orjson.dumps(
        {
            "transfer_id": f"{account}-1",
            "account": account,
            "asset": "USDC",
            "amount": "100",
            "sequence": 1,
            "margin": "cross",
            "event_time": 1723161300000000,
        }
    )


def send(settings: Settings, topic: str, value: bytes, key: str) -> None:
    producer = Producer(config.producer(settings.kafka, "test"))
    producer.produce(topic, value, key=key, partition=0)
    assert producer.flush(10) == 0


def routed(settings: Settings) -> str:
    with LogReader(settings.kafka, "test") as reader:
        return " ".join(
            str(record.value()) for shard in range(SHARDS) for record in reader.read_range(EVENTS, shard, 0)
        )


def status(settings: Settings) -> "subprocess.CompletedProcess[str]":
    return command(settings, "status")


@pytest.fixture
def router(settings: Settings, tmp_path: Path) -> Iterator[Watched]:
    role = Watched("router", settings, tmp_path)
    yield role
    role.kill()
    print(role.log())  # shown if the test fails


def test_a_router_goes_on_behind_what_cannot_be_read(settings: Settings, router: Watched) -> None:
    send(settings, TRANSFERS, transfer("before"), "before")
    eventually(lambda: "before" in routed(settings), "the record before is routed")
    offsets = send_unreadable(settings, TRANSFERS, 0)
    send(settings, TRANSFERS, transfer("behind"), "behind")

    # It is told while the router goes on with what it can read.
    failed = eventually(lambda: router.events("fetch_failed"), "the log tells the error")
    assert (failed[0]["topic"], failed[0]["partition"], failed[0]["offset"]) == (TRANSFERS, 0, offsets[0])
    assert "Invalid compressed data" in str(failed[0]["reason"])
    standing = eventually(router.standing, "readiness names the place")
    assert standing[0]["name"] == f"stands_s {TRANSFERS}:0 at {offsets[0]}"
    assert standing[0]["value"] > STANDS_MS / 1000 == standing[0]["at_most"]
    told = eventually(lambda: router.events("place_stands"), "the log tells that the place stands")
    assert told[0]["offset"] == offsets[0]
    assert len(router.events("fetch_failed")) == 1, "an error that repeats is counted, not logged again"
    metric = f'margin_place_stands_seconds{{partition="0",topic="{TRANSFERS}"}} '
    line = next(line for line in router.page("/metrics").splitlines() if line.startswith(metric))
    assert float(line.removeprefix(metric)) > STANDS_MS / 1000
    router.assert_running()

    said = status(settings)
    assert said.returncode == 1
    plain = " ".join(said.stdout.split())
    assert f"{TRANSFERS}:0 stands at offset {offsets[0]}, which can be read at no time" in plain
    assert f"margin-clearing accept-offset {TRANSFERS} 0 {offsets[-1] + 1} --reason TEXT" in plain

    # An offset within the batch would not help.
    refused = command(settings, "accept-offset", TRANSFERS, "0", str(offsets[1]), "--reason", "a bomb")
    assert refused.returncode != 0
    assert f"the first offset behind that is {offsets[-1] + 1}" in " ".join((refused.stdout + refused.stderr).split())

    accepted = command(settings, "accept-offset", TRANSFERS, "0", str(offsets[-1] + 1), "--reason", "a bomb")
    assert accepted.returncode == 0, accepted.stderr
    assert router.stop() == 0
    router.restart()
    eventually(lambda: "behind" in routed(settings), "the record behind is routed")
    eventually(lambda: f"{TRANSFERS}:0 stands" not in status(settings).stdout, "status has no fault of the place")
    assert router.standing() == []


def test_status_tells_the_age_of_the_oldest_unrouted_record(settings: Settings) -> None:
    send(settings, TRANSFERS, transfer("waits"), "waits")

    def tells() -> bool:
        said = " ".join(command(settings, "status", MARGIN_SERVICE__STANDS_MS="1000").stdout.split())
        return f"The oldest unrouted record of {TRANSFERS}:0 is" in said

    eventually(tells, "status tells how old the record is")


def test_whoever_reads_a_log_to_its_end_is_told_place_and_cause(settings: Settings) -> None:
    offsets = send_unreadable(settings, EVENTS, 1)
    with LogReader(settings.kafka, "test") as reader:
        with pytest.raises(UnreadableError, match=rf"margin.events.v1\[1\] cannot be read at offset {offsets[0]}: "):
            list(reader.read_range(EVENTS, 1, 0))
        with pytest.raises(UnreadableError) as told:
            list(reader.read_range(EVENTS, 1, offsets[1]))
        assert told.value.offset == offsets[0], "an offset within the batch leads to its first"
        assert reader.first_behind(told.value) == offsets[-1] + 1


def test_whoever_follows_a_log_tells_that_it_stands(settings: Settings, tmp_path: Path) -> None:
    """An engine follows the parameters, and so does the oracle."""
    offsets = send_unreadable(settings, PARAMETERS, 0)
    kafka = Kafka(load({}, {"kafka.bootstrap_servers": settings.kafka.bootstrap_servers, "service.stands_ms": 1_000}))
    follower = kafka.follower("test", PARAMETERS)
    try:
        follower.start(offsets[0])
        eventually(lambda: follower.poll(0.05) or kafka.places.standing(), "the place is told to stand")
        (place,) = kafka.places.standing()
        assert (str(place), place.is_unreadable) == (f"{PARAMETERS}:0 at {offsets[0]}", True)
        assert "Invalid compressed data" in place.cause
        assert not all(condition.holds for condition in kafka.places.conditions())
    finally:
        follower.close()
    assert kafka.places.standing() == []
    told = f"{PARAMETERS}[0] cannot be read at offset {offsets[0]}"
    assert told in " ".join(status(settings).stdout.split())
    engine = Watched("engine", settings, tmp_path)
    assert engine.process.wait(60) == 2
    assert told in engine.log(), "nobody is decided on parameters that may not be those in force"


def test_a_transaction_that_is_never_decided_is_told(settings: Settings) -> None:
    kafka = Kafka(load({}, {"kafka.bootstrap_servers": settings.kafka.bootstrap_servers, "service.stands_ms": 1_000}))
    producer = Producer(config.producer(settings.kafka, "test", "test-open"))
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce(EVENTS, b"{}", partition=0)
    assert producer.flush(10) == 0
    follower = kafka.follower("test", EVENTS, 0)
    try:
        follower.start()
        eventually(lambda: [follower.poll(0.05), kafka.places.standing()][1], "the place is told to stand")
        assert "transaction" in kafka.places.standing()[0].cause
        producer.abort_transaction(10)
        eventually(lambda: [follower.poll(0.05), not kafka.places.standing()][1], "it moves again")
    finally:
        follower.close()


class Counting(PlaceWatch):
    """Counts the documents that it is given."""

    documents = 0

    def note(self, partitions: Mapping[Place, PartitionStatistics]) -> None:
        self.documents += 1
        super().note(partitions)


def test_a_log_that_is_read_to_its_end_does_not_stand(settings: Settings) -> None:
    """Whatever its last records are: a control record, aborted ones."""
    producer = Producer(config.producer(settings.kafka, "test", "test-ended"))
    producer.init_transactions(10)
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        producer.produce("margin.journal.v1", b"{}", partition=0)
        assert producer.flush(10) == 0
        end(10)
    watch = Counting(stands_s_max=0.001)
    follower = Follower(settings.kafka, "test", "margin.journal.v1", watch=watch)
    try:
        follower.start()
        eventually(lambda: [follower.poll(0.05), watch.documents >= 5][1], "five documents are noted")
        assert watch.standing() == []
    finally:
        follower.close()


def test_a_broker_refuses_a_bomb_where_it_stores_records_unpacked(settings: Settings) -> None:
    """``compression.type=uncompressed`` bounds a batch as it is unpacked by the topic's ``max.message.bytes``."""
    with pytest.raises(AssertionError, match="size"):
        send_batch(settings, "margin.marks.v1", 0, [bytes(30_000_000)], "gzip")
