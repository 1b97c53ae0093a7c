"""Where the demo goes: never where the environment says, and where its flags say only if it is alone there."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from infra.local.stack import LocalStack
from schemas.topics import COMMANDS, EVENTS, MARKS, PARAMETERS, TRADES, all_topics
from streams.broker.admin import ensure_topics
from streams.broker.reader import LogReader
from streams.demo.checks import CHECKS
from streams.demo.errors import DemoError, OccupiedError
from streams.demo.footprint import NOTES, REDIS_NOTE, Footprint
from streams.demo.replay_process import NAME as REPLAY
from streams.demo.run import DemoOptions
from streams.settings import Settings, load
from streams.tables.keys import LAYOUT, accounts_key, meta_key
from streams.tables.keys import MARKS as MARKS_KEY

SEVEN = {*CHECKS, REPLAY}


def demo(folder: Path, *flags: str, **environment: str) -> "tuple[subprocess.CompletedProcess[str], dict[str, Any]]":
    """A short demo, and its summary if it came so far."""
    summary = folder / "summary.json"
    summary.unlink(missing_ok=True)
    size = ("--seconds", "15", "--accounts", "100", "--speed", "40", "--engines", "1", "--summary", str(summary))
    done = subprocess.run(
        [sys.executable, "-m", "streams.cli", "demo", *size, *flags],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done, json.loads(summary.read_text()) if summary.exists() else {}


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within 60 s: {what}")
        time.sleep(0.02)


def state_of(bootstrap_servers: str, redis_url: str) -> tuple[dict[str, list[int]], dict[bytes, bytes | None]]:
    """Every topic with its ends, and every key of Redis with its content."""
    kafka = load({}, {"kafka.bootstrap_servers": bootstrap_servers}).kafka
    topics = AdminClient({"bootstrap.servers": bootstrap_servers}).list_topics(timeout=20).topics
    with LogReader(kafka, "test") as reader, redis.Redis.from_url(redis_url) as client:
        ends = {
            name: [reader.watermarks(name, partition)[1] for partition in range(len(topic.partitions))]
            for name, topic in topics.items()
            if not name.startswith("__")
        }
        return ends, {key: client.dump(key) for key in client.scan_iter()}


@pytest.fixture(scope="module")
def given() -> Iterator[LocalStack]:
    """A Kafka and a Redis of somebody else: nothing is in them yet."""
    with LocalStack.start() as stack:
        yield stack


def flags(stack: LocalStack) -> tuple[str, ...]:
    return ("--bootstrap-servers", stack.bootstrap_servers, "--redis-url", stack.redis_url)


def test_the_demo_keeps_away_from_what_the_environment_names(given: LocalStack, tmp_path: Path) -> None:
    with redis.Redis.from_url(given.redis_url) as client:
        client.set("somebody", "else")
    before = state_of(given.bootstrap_servers, given.redis_url)
    environment = {
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": given.bootstrap_servers,
        "MARGIN_REDIS__URL": given.redis_url,
        "MARGIN_TOPICS__SHARDS": "3",
        "MARGIN_ENGINE__GROUP_ID": "theirs",
        "MARGIN_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "MARGIN_KAFKA__SASL_MECHANISM": "PLAIN",
        "MARGIN_KAFKA__SASL_USERNAME": "u",
        "MARGIN_KAFKA__SASL_PASSWORD": "p",
        "MARGIN_NO__SUCH_THING": "1",
        "BROKER_URL": f"kafka://{given.bootstrap_servers}",
        "BROKER_PRODUCER_URL": f"kafka://{given.bootstrap_servers}",
        "APP_STORE": given.redis_url,
    }
    done, summary = demo(tmp_path, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary["checks"] == dict.fromkeys(SEVEN, True)
    assert state_of(given.bootstrap_servers, given.redis_url) == before


@pytest.mark.long
def test_given_by_its_flags_the_demo_runs_all_checks_twice_and_then_not_among_others(
    given: LocalStack, tmp_path: Path
) -> None:
    for _ in range(2):
        done, summary = demo(tmp_path, *flags(given))
        assert done.returncode == 0, done.stdout + done.stderr
        assert (summary["checks"], summary["left_out"]) == (dict.fromkeys(SEVEN, True), {})
    send(given.bootstrap_servers, PARAMETERS, b"policy:policy", b"{}")
    before = state_of(given.bootstrap_servers, given.redis_url)
    done, _ = demo(tmp_path, *flags(given))
    assert done.returncode == 2
    assert f"{PARAMETERS} has" in done.stderr
    assert "--into-this-cluster" in done.stderr
    assert "Traceback" not in done.stderr
    assert state_of(given.bootstrap_servers, given.redis_url) == before

    done, summary = demo(tmp_path, *flags(given), "--into-this-cluster")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(summary["checks"]) | set(summary["left_out"]) == SEVEN
    assert "left out replay_gives_the_same_bytes: " in done.stdout


@pytest.mark.long
def test_what_is_not_given_is_started(given: LocalStack, tmp_path: Path) -> None:
    """Only a Redis: the Kafka is the demo's own, and what an earlier demo of another Kafka left in the Redis goes."""
    with redis.Redis.from_url(given.redis_url) as client:
        client.flushdb()
        client.set("somebody", "else")
    kafka_before, _ = state_of(given.bootstrap_servers, given.redis_url)
    for _ in range(2):
        done, summary = demo(tmp_path, "--redis-url", given.redis_url)
        assert done.returncode == 0, done.stdout + done.stderr
        assert summary["checks"] == dict.fromkeys(SEVEN, True)
    kafka, tables = state_of(given.bootstrap_servers, given.redis_url)
    assert kafka == kafka_before
    assert {b"somebody", REDIS_NOTE.encode(), LAYOUT.encode()} <= tables.keys()


def test_a_demo_that_is_stopped_leaves_in_order(place: Settings, tmp_path: Path) -> None:
    """SIGTERM in the middle: its processes end, and what it wrote is known as its own."""
    with (tmp_path / "demo.log").open("w") as log:
        running = subprocess.Popen(
            [
                *(sys.executable, "-m", "streams.cli", "demo", "--accounts", "100", "--engines", "1", "--speed", "1"),
                *("--bootstrap-servers", place.kafka.bootstrap_servers, "--redis-url", place.redis.url),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: "playing" in (tmp_path / "demo.log").read_text() or running.poll() is not None, "it plays")
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) != 0
    finally:
        running.kill()
        running.wait()
    said = (tmp_path / "demo.log").read_text()
    assert "Traceback" not in said, said
    assert "playing" in said
    Footprint(place, kafka=True, tables=True).require_own()


# --- what is the demo's own -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place() -> Iterator[Settings]:
    with LocalStack.start() as stack:
        settings = load({}, {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url})
        Footprint(settings, kafka=True, tables=True).require_own()  # an empty one is its own
        assert not ensure_topics(settings).wrong
        yield settings


def send(bootstrap_servers: str, topic: str, key: bytes, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    producer.produce(topic, value, key=key, partition=0)
    assert producer.flush(20) == 0


def commit(settings: Settings, group: str, topic: str) -> None:
    consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": group})
    try:
        consumer.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False)
    finally:
        consumer.close()


def in_redis(settings: Settings, **keys: dict[str, str]) -> None:
    with redis.Redis.from_url(settings.redis.url) as client:
        for key, fields in keys.items():
            client.hset(key, mapping=fields)


def parameters(settings: Settings) -> None:
    send(settings.kafka.bootstrap_servers, PARAMETERS, b"policy:policy", b"{}")


def dead_letter(settings: Settings) -> None:
    send(settings.kafka.bootstrap_servers, f"{TRADES}.dlq", b"k", b"v")


def mark(settings: Settings) -> None:
    send(settings.kafka.bootstrap_servers, MARKS, b"", b"{}")


def _partitions(admin: AdminClient) -> int:
    return len(admin.list_topics(EVENTS, timeout=20).topics[EVENTS].partitions)


def created_anew(settings: Settings) -> None:
    """The topic of somebody else's deployment, which took the place of the demo's."""
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
    partitions = _partitions(admin)
    send(settings.kafka.bootstrap_servers, EVENTS, b"", b"{}")
    footprint = Footprint(settings, kafka=True, tables=True)
    footprint.begin()
    footprint.finish()
    footprint.require_own()
    admin.delete_topics([EVENTS])[EVENTS].result(20)
    eventually(lambda: EVENTS not in admin.list_topics(timeout=20).topics, "the topic is gone")
    assert not ensure_topics(settings).wrong
    eventually(lambda: _partitions(admin) == partitions, "the topic is there again")
    send(settings.kafka.bootstrap_servers, EVENTS, b"", b"{}")


def execution_service(settings: Settings) -> None:
    commit(settings, "execution", COMMANDS)


def table(settings: Settings) -> None:
    in_redis(settings, **{meta_key(2): {"cluster": "another", "token": "7"}, accounts_key(2): {"a": "{}"}})


def new_owner(settings: Settings) -> None:
    """A deployment took over the tables of the cluster that the demo had run in."""
    in_redis(settings, **{meta_key(2): {"token": "8"}})


def killed_demo(settings: Settings) -> None:
    footprint = Footprint(settings, kafka=True, tables=True)
    footprint.begin()
    send(settings.kafka.bootstrap_servers, TRADES, b"k", b"v")


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (parameters, r"risk\.parameters\.v1 has \d+ records, some of them written since the last demo ended"),
        (dead_letter, r"trades\.v1\.dlq has"),
        (mark, r"margin\.marks\.v1 has"),
        (created_anew, r"margin\.events\.v1 has .* was created anew"),
        (table, r"Redis has the key margin:\{2\}:meta"),
        (new_owner, r"Redis has the key margin:\{2\}:meta"),
        (killed_demo, r"trades\.v1 has \d+ records, and a demo was ended by force here"),
        (execution_service, r"group execution reads liquidation\.commands\.v1"),  # the last: it stays
    ],
)
def test_what_others_left_is_not_its_own(place: Settings, happens: Callable[[Settings], None], said: str) -> None:
    footprint = Footprint(place, kafka=True, tables=True)
    footprint.begin()
    footprint.finish()
    footprint.require_own()
    happens(place)
    with pytest.raises(OccupiedError, match=said):
        footprint.require_own()


def test_what_was_there_before_the_first_demo_is_not_its_own(tmp_path: Path) -> None:
    with LocalStack.start() as stack:
        settings = load({}, {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url})
        assert not ensure_topics(settings).wrong
        footprint = Footprint(settings, kafka=True, tables=True)
        footprint.require_own()
        commit(settings, settings.engine.group_id, EVENTS)
        in_redis(settings, **{MARKS_KEY: {"BTC-PERP": "{}"}})
        with pytest.raises(
            OccupiedError,
            match=r"group margin-engine has committed offsets of margin\.events\.v1; Redis .* margin:marks",
        ):
            footprint.require_own()
        Footprint(settings, kafka=False, tables=False).require_own()  # what the demo starts itself is not looked at
        topics = AdminClient({"bootstrap.servers": stack.bootstrap_servers}).list_topics(timeout=20).topics
        assert NOTES not in topics, "looking writes nothing"
        assert {topic.name for topic in all_topics()} <= topics.keys()


def test_a_group_with_members_is_a_pipeline_that_runs(place: Settings) -> None:
    consumer = Consumer({"bootstrap.servers": place.kafka.bootstrap_servers, "group.id": place.router.group_id})
    try:
        consumer.subscribe([TRADES])
        eventually(lambda: consumer.poll(0.1) or consumer.assignment(), "the group has a member")
        with pytest.raises(OccupiedError, match="group margin-router has 1 members: a pipeline runs here"):
            Footprint(place, kafka=True, tables=False).require_own()
    finally:
        consumer.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (DemoOptions(bootstrap_servers=" "), "--bootstrap-servers is empty"),
        (DemoOptions(redis_url=""), "--redis-url is empty"),
        (DemoOptions(into_this_cluster=True), "--into-this-cluster goes with --bootstrap-servers or --redis-url"),
        (DemoOptions(settings=("ENGINE__GROUP_ID=x",)), "must be MARGIN_SECTION__FIELD=VALUE"),
        (DemoOptions(settings=("MARGIN_ENGINE__GROUP_ID",)), "must be MARGIN_SECTION__FIELD=VALUE"),
        (DemoOptions(settings=("MARGIN_REDIS__URL=redis://x",)), "give --redis-url instead"),
        (DemoOptions(settings=("MARGIN_KAFKA__SASL_PASSWORD=x",)), "give MARGIN_KAFKA__SASL_PASSWORD_FILE"),
        (DemoOptions(settings=("MARGIN_KAFKA__SECURITY_PROTOCOL=SSL",)), "the Kafka that the demo starts"),
        (DemoOptions(settings=("MARGIN_ENGINE__GROUP_ID=x", "MARGIN_ENGINE__GROUP_ID=y")), "given twice"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(options: DemoOptions, said: str) -> None:
    with pytest.raises(DemoError, match=said):
        options.check()
