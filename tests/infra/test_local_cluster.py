"""Three brokers: one that is killed is done without and comes back with its data on its port, and nothing is left."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from infra.local.cluster import KafkaCluster
from infra.local.errors import MissingError
from infra.local.stack import LocalStack
from schemas.topics import MARKS, all_topics
from streams.broker.admin import ensure_topics
from streams.broker.reader import LogReader
from streams.settings import Settings, load

Eventually = Callable[[Callable[[], object], str], None]
Owner = Callable[..., "subprocess.Popen[str]"]

OWNER = """
import time
from infra.local.stack import LocalStack
with LocalStack.start(brokers=3, redis_url="redis://redis.example/0") as stack:
    print(*(node.process.pid for node in stack.cluster.nodes), stack.folder, flush=True)
    time.sleep(600)
"""
LOCAL = (
    "import sys; from streams.cli import main; "
    "sys.argv[1:] = ['local', '--brokers', '3', '--keep-data', sys.argv[1]]; main()"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with KafkaCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def settings(cluster: KafkaCluster) -> Settings:
    """Of the cluster, with the contract's topics."""
    own = load({}, {"kafka.bootstrap_servers": cluster.bootstrap_servers, "topics.replication_factor": 3})
    assert ensure_topics(own).wrong == []
    return own


def write(cluster: KafkaCluster, value: bytes) -> None:
    """Write a record in a transaction that every replica in sync acknowledges."""
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        failed.extend([error] if error else [])

    producer = Producer(
        {"bootstrap.servers": cluster.bootstrap_servers, "transactional.id": "test", "acks": "all"}
        | {"transaction.timeout.ms": 30_000, "log_level": 0}
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(MARKS, value, partition=0, on_delivery=delivered)
    producer.commit_transaction(30)
    assert failed == []


def written(settings: Settings) -> list[bytes | None]:
    with LogReader(settings.kafka, "test") as reader:
        return [record.value() for record in reader.read_range(MARKS, 0, 0)]


def test_every_topic_has_three_replicas_of_which_two_acknowledge(cluster: KafkaCluster, settings: Settings) -> None:
    write(cluster, b"first")  # has the topics of transactions and group offsets created, too
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    topics = admin.list_topics(timeout=20).topics
    assert topics.keys() >= {topic.name for topic in all_topics()} | {"__transaction_state", "__consumer_offsets"}
    for name, topic in topics.items():
        assert {(*sorted(each.replicas),) for each in topic.partitions.values()} == {(1, 2, 3)}, name
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
    for resource, future in admin.describe_configs(resources).items():
        assert future.result(20)["min.insync.replicas"].value == "2", resource.name


def test_one_broker_killed_is_done_without_and_comes_back_in_sync(
    cluster: KafkaCluster, settings: Settings, eventually: Eventually
) -> None:
    before = written(settings)
    victim = cluster.node(2)
    place, process = victim.bootstrap_servers, victim.process.pid
    victim.kill()
    assert not victim.running
    write(cluster, b"while one is away")
    eventually(cluster.out_of_sync, "the others notice that it is away")
    assert not cluster.is_in_sync
    victim.start()
    assert victim.bootstrap_servers == place
    assert victim.process.pid != process
    eventually(lambda: cluster.is_in_sync, "every replica is in sync again")
    write(cluster, b"after")
    assert written(settings) == [*before, b"while one is away", b"after"]


def test_with_two_of_three_away_nothing_is_acknowledged_and_nothing_lost(
    cluster: KafkaCluster, settings: Settings, eventually: Eventually
) -> None:
    before = written(settings)
    for number in (1, 3):
        cluster.node(number).kill()
    with pytest.raises(KafkaException):
        Producer(
            {"bootstrap.servers": cluster.bootstrap_servers, "transactional.id": "other", "log_level": 0}
        ).init_transactions(3)
    cluster.start()
    eventually(lambda: cluster.is_in_sync, "every replica is in sync again")
    assert written(settings) == before


def test_all_killed_at_once_come_back_with_what_was_committed(
    cluster: KafkaCluster, settings: Settings, eventually: Eventually
) -> None:
    write(cluster, b"before all die")
    before, places = written(settings), cluster.bootstrap_servers
    cluster.kill()
    assert not any(node.running for node in cluster.nodes)
    cluster.start()
    assert cluster.bootstrap_servers == places
    eventually(lambda: cluster.is_in_sync, "every replica is in sync again")
    assert written(settings) == before


def test_a_paused_broker_answers_nobody_and_goes_on(cluster: KafkaCluster, settings: Settings) -> None:
    node = cluster.node(1)
    node.pause()
    try:
        assert not node.healthy(0.5)
        write(cluster, b"while one stands still")
    finally:
        node.resume()
    assert node.healthy(20)


def test_the_data_of_another_number_of_brokers_is_refused(tmp_path: Path) -> None:
    def hold(*homes: str) -> Path:
        folder = tmp_path / f"of-{len(homes)}"
        for home in homes:
            (folder / home / "kafka").mkdir(parents=True)
            (folder / home / "kafka" / "meta.properties").write_text("cluster.id=x\n")
        return folder

    three, one = hold("kafka-1", "kafka-2", "kafka-3"), hold(".")
    with pytest.raises(MissingError, match="holds the data of 3 Kafka brokers and not of 1: ask for --brokers 3"):
        LocalStack.start(keep_data=three, redis_url="redis://redis.example/0")
    with pytest.raises(MissingError, match="holds the data of 1 Kafka broker and not of 3: ask for --brokers 1"):
        LocalStack.start(keep_data=one, redis_url="redis://redis.example/0", brokers=3)


def test_ports_follow_the_first_one_and_are_refused_beyond_the_last(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="3 brokers need as many ports"):
        KafkaCluster(tmp_path, port=65_534)
    with pytest.raises(MissingError, match="port 4244 is asked for by Kafka and by Valkey"):
        LocalStack.start(kafka_port=4242, redis_port=4244, brokers=3)


def test_kill_9_of_the_owner_leaves_nothing(owner: Owner, eventually: Eventually, ended: Callable[[int], bool]) -> None:
    process = owner(OWNER)
    assert process.stdout is not None
    *pids, folder = process.stdout.readline().split()
    assert len(pids) == 3
    process.kill()
    for pid in pids:
        eventually(lambda pid=pid: ended(int(pid)), "the broker ends with its owner")  # type: ignore[misc]
    eventually(lambda: not os.path.exists(folder), "its data is removed")


def test_local_says_where_its_brokers_are_and_brings_back_one_that_ends(tmp_path: Path, owner: Owner) -> None:
    for run in (1, 2):
        process = owner(LOCAL, str(tmp_path / "data"))
        assert process.stdout is not None
        said: list[str] = []

        def read_until(words: str, count: int = 1) -> None:
            lines = 0
            while lines < count:
                line = process.stdout.readline()  # type: ignore[union-attr]  # noqa: B023
                assert line, f"it ended early: {said}"  # noqa: B023
                said.append(line)  # noqa: B023
                lines += words in line

        read_until("is process", 3)
        text = "".join(said)
        servers = re.findall(r"^export MARGIN_KAFKA__BOOTSTRAP_SERVERS=(.*)$", text, re.MULTILINE)[0]
        assert len(servers.split(",")) == 3
        processes = dict(re.findall(r"the broker at (\S+) is process (\d+)", text))
        assert list(processes) == servers.split(",")
        topics = AdminClient({"bootstrap.servers": servers}).list_topics(timeout=20).topics
        assert len(topics[MARKS].partitions[0].replicas) == 3
        if run == 1:
            first = servers.split(",")[0]
            os.kill(int(processes[first]), signal.SIGKILL)
            read_until(f"the broker at {first} is process")
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().endswith("stopped\n")
        assert process.wait(60) == 0
