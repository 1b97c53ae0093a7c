"""The real servers: they keep their data and port through kill -9, say why they fail, and leave nothing behind."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from infra.local import valkey
from infra.local.errors import LocalStackError, MissingError, StartError
from infra.local.kafka import KafkaServer
from infra.local.ports import free_port
from infra.local.stack import LocalStack
from infra.local.valkey import ValkeyServer

Eventually = Callable[[Callable[[], object], str], None]
Owner = Callable[..., "subprocess.Popen[str]"]

OWNER = """
import sys, time
from infra.local.ports import free_port
from infra.local.stack import LocalStack
with LocalStack.start() as stack:
    print(stack.kafka.process.pid, stack.valkey.process.pid, stack.folder, flush=True)
    time.sleep(600)
"""
LOCAL = "import sys; from streams.cli import main; sys.argv[1:] = ['local', '--keep-data', sys.argv[1]]; main()"


def commit(bootstrap_servers: str, topic: str, value: bytes) -> None:
    """Write one record in a transaction, as the pipeline does."""
    producer = Producer(
        {"bootstrap.servers": bootstrap_servers, "transactional.id": "test", "transaction.timeout.ms": 10_000}
    )
    producer.list_topics(timeout=20)
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(topic, value, partition=0)
    producer.commit_transaction(20)


def committed(bootstrap_servers: str, topic: str, count: int) -> list[bytes | None]:
    """The first ``count`` committed values of partition 0."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "test", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        return [message.value() for message in consumer.consume(count, timeout=20)]
    finally:
        consumer.close()


def require_topic(bootstrap_servers: str, topic: str) -> None:
    """Raises unless the topic is there: nothing is created by being asked for."""
    error = AdminClient({"bootstrap.servers": bootstrap_servers}).list_topics(topic, timeout=20).topics[topic].error
    if error is not None:
        raise KafkaException(error)


def test_what_is_given_is_not_started() -> None:
    servers, url = "kafka.example:9092", "redis://redis.example/0"
    with LocalStack.start(bootstrap_servers=servers, redis_url=url) as stack:
        assert list(stack.environment.values()) == [servers, url]
        assert (stack.kafka, stack.valkey) == (None, None)
    with LocalStack.start(bootstrap_servers="kafka.example:9092") as stack:
        assert stack.valkey is not None
        assert stack.valkey.healthy()
        folder = stack.folder
    assert not folder.exists()


def test_kafka_tells_those_who_come_through_a_proxy_to_stay_behind_it(tmp_path: Path) -> None:
    def told(port: int) -> int:
        brokers = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}"}).list_topics(timeout=20).brokers
        (broker,) = brokers.values()
        return int(broker.port)

    with KafkaServer(tmp_path, proxy_port=free_port()) as kafka:
        assert told(kafka.port) == kafka.port
        assert told(kafka.proxied_port) == kafka.proxy_port


def test_kafka_comes_back_after_kill_with_what_was_committed(tmp_path: Path) -> None:
    said: list[str] = []
    with KafkaServer(tmp_path, progress=said.append) as kafka:
        assert said[-1] == "starting Kafka"
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
        admin.create_topics([NewTopic("t", 1)])["t"].result(20)
        commit(kafka.bootstrap_servers, "t", b"before")
        place, pid = kafka.bootstrap_servers, kafka.process.pid
        kafka.kill()
        assert not kafka.running
        assert not kafka.healthy(0.2)
        kafka.start()
        assert (kafka.bootstrap_servers, kafka.process.pid != pid) == (place, True)
        commit(place, "t", b"after")
        assert committed(place, "t", 2) == [b"before", b"after"]
        kafka.pause()
        assert not kafka.healthy(0.2)
        kafka.resume()
        assert kafka.healthy(20)
        with pytest.raises(KafkaException, match="UNKNOWN_TOPIC_OR_PART"):
            require_topic(place, "not-created")
    assert not kafka.running


def test_a_controller_port_that_was_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    server = KafkaServer(tmp_path)
    with socket.create_server(("127.0.0.1", server.controller_port)), server:
        assert server.healthy()


def test_a_start_that_fails_shows_the_log(tmp_path: Path) -> None:
    kafka = KafkaServer(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", kafka.port))
        taken.listen()
        with pytest.raises(StartError, match=r"(?s)Kafka ended with \d+ while starting; .*Address already in use"):
            kafka.start()
        with pytest.raises(MissingError, match=f"port {kafka.port} for Valkey cannot be had: Address already in use"):
            ValkeyServer(tmp_path, port=kafka.port)
    assert not kafka.running


def test_valkey_keeps_data_only_if_asked(tmp_path: Path) -> None:
    for keep_data, expected in ((True, b"1"), (False, None)):
        server = ValkeyServer(tmp_path / str(keep_data), keep_data=keep_data)
        with server, redis.Redis.from_url(server.url) as client:
            client.set("a", 1)
            server.pause()
            assert not server.healthy(0.1)
            server.resume()
            server.restart()
            assert client.get("a") == expected
            server.kill()
            assert not server.healthy(0.1)


def test_no_valkey_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(valkey, "_packaged_server", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="or give the demo a server that runs already: --redis-url"):
        valkey.find_server()
    (tmp_path / "redis-server").touch(mode=0o755)
    assert valkey.find_server() == str(tmp_path / "redis-server")


def test_kill_9_of_the_owner_leaves_nothing(owner: Owner, eventually: Eventually, ended: Callable[[int], bool]) -> None:
    process = owner(OWNER)
    assert process.stdout is not None
    *pids, folder = process.stdout.readline().split()
    assert os.path.isdir(folder)
    process.kill()
    for pid in pids:
        eventually(lambda pid=pid: ended(int(pid)), "the server ends with its owner")  # type: ignore[misc]
    eventually(lambda: not os.path.exists(folder), "its data is removed")


@pytest.mark.parametrize("port", [-1, 65_536, 99_999])
def test_what_is_no_port_is_said(tmp_path: Path, port: int) -> None:
    with pytest.raises(MissingError, match=f"port {port} for Valkey cannot be had: a port is from 0 to 65535"):
        ValkeyServer(tmp_path, port=port)
    with pytest.raises(MissingError, match=f"port {port} for Kafka cannot be had"):
        LocalStack.start(kafka_port=port)


def test_one_port_is_not_given_twice() -> None:
    with pytest.raises(MissingError, match="port 4242 is asked for by Kafka and by Valkey"):
        LocalStack.start(kafka_port=4242, redis_port=4242)


@pytest.mark.parametrize(("servers", "url"), [("", None), (None, "  ")])
def test_an_address_that_is_empty_is_refused(servers: str | None, url: str | None) -> None:
    with pytest.raises(LocalStackError, match="that was given is empty"):
        LocalStack.start(bootstrap_servers=servers, redis_url=url)


def test_a_kept_folder_is_for_one_stack_at_a_time(tmp_path: Path) -> None:
    """Two servers on one append-only file would spoil it."""

    def start() -> LocalStack:
        return LocalStack.start(bootstrap_servers="kafka.example:9092", keep_data=tmp_path / "data")

    with start() as first:
        assert first.valkey is not None
        with redis.Redis.from_url(first.redis_url) as client:
            client.set("a", 1)
        with pytest.raises(MissingError, match="is in use by another local stack"):
            start()
    with start() as second, redis.Redis.from_url(second.redis_url) as client:
        assert client.get("a") == b"1"


@pytest.mark.parametrize("folder", ["/proc/data", "/dev/null", "/dev/null/data"])
def test_a_folder_that_cannot_be_written_is_said(folder: str) -> None:
    with pytest.raises(MissingError, match=r"the folder for the data cannot be used: .*choose one that can be written"):
        LocalStack.start(bootstrap_servers="kafka.example:9092", keep_data=Path(folder))


def test_no_temporary_folder_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(MissingError, match="set TMPDIR to one that can be written"):
        LocalStack.start(bootstrap_servers="kafka.example:9092")


def test_run_local_keeps_data_and_ends_in_order(tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARGIN_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")  # somebody else's: never used
    monkeypatch.setenv("MARGIN_REDIS__URL", "redis://127.0.0.1:1/0")
    for run in (1, 2):
        process = owner(LOCAL, str(tmp_path / "data"))
        assert process.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = process.stdout.readline()
            assert line, f"it ended early: {said}"
            said += line
        url = re.search(r"^export MARGIN_REDIS__URL=(.*)$", said, re.MULTILINE)
        servers = re.search(r"^export MARGIN_KAFKA__BOOTSTRAP_SERVERS=(.*)$", said, re.MULTILINE)
        assert url
        assert servers
        require_topic(servers[1], "liquidation.commands.v1")
        with redis.Redis.from_url(url[1]) as client:
            assert client.incr("runs") == run
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().endswith("stopped\n")
        assert process.wait(20) == 0
        assert (tmp_path / "data" / "kafka.log").exists()
