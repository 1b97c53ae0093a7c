"""Apache Kafka on this machine: a node in KRaft mode, broker and controller, from Maven's jars and any Java from 17.

Tuned to be ready soon and to answer soon on two cores, not to keep data safe: nothing is flushed, and every topic has
one replica unless the node has a :class:`Seat` in a cluster (:mod:`infra.local.cluster`). What protects a client
(transaction verification, idempotence, fencing) is as Kafka has it by default.
"""

import base64
import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from infra.local.archive import Archive
from infra.local.errors import StartError
from infra.local.jars import KafkaJars, Progress, kafka_jars
from infra.local.java import Java, find_java
from infra.local.ports import free_port, is_free
from infra.local.process import ManagedProcess
from infra.local.server import LocalServer

# The first compiler tier alone: as fast for clients and 0.3 s less to start than with both. Processor seconds per
# million trades in a pipeline's first minute, with the first alone and with both: 2,195 and 3,775 at 250 trades/s, 327
# and 309 at 2,000.
_JVM_OPTIONS = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
_JVM_OPTIONS += ["-Xlog:disable", "-Xlog:all=error:stderr", "-Djava.net.preferIPv4Stack=true"]
_HEAP = ["-Xms256m", "-Xmx768m"]
_HEAP_OF_THREE = ["-Xms128m", "-Xmx384m"]
_COORDINATOR_PARTITIONS = "4"
_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": _COORDINATOR_PARTITIONS,
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": _COORDINATOR_PARTITIONS,
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",  # a transaction that timed out ends soon
    "broker.session.timeout.ms": "3000",  # 9000: so long a node that was killed is not let in again
    "broker.heartbeat.interval.ms": "500",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.coordinator.append.linger.ms": "0",  # 5: an offset commit waits for others
    "controller.quorum.append.linger.ms": "0",  # 25: so does the creation of a topic
    "metadata.max.idle.interval.ms": "5000",
    "log.retention.ms": "-1",  # records with old timestamps are replayed
    "log.cleaner.dedupe.buffer.size": "16777216",
}
_CLIENT: dict[str, str | int | float | bool] = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100}
_CLIENT["log_level"] = 0  # until it is ready, refused connections are no news
DATA = "kafka"
"""The folder of a node's data in its home."""
_PROBE = "margin-local-probe"
_PORT_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Listener:
    """A further address of a node: its ``protocol`` (``SSL``, ``SASL_SSL``, …), and the broker's settings for it alone.

    ``properties`` are named as without the listener's prefix, such as ``ssl.client.auth``.
    """

    name: str
    protocol: str
    properties: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Seat:
    """A node's place in a cluster: its number from 1, the cluster's id, and the port of each node's controller."""

    number: int
    cluster_id: str
    controller_ports: Sequence[int]

    def properties(self) -> dict[str, str]:
        """What a broker is set to beside the others: each partition is on three of them, and two acknowledge it."""
        brokers = len(self.controller_ports)
        replicas, in_sync = str(min(brokers, 3)), "2" if brokers > 2 else "1"
        return {
            "node.id": str(self.number),
            "broker.session.timeout.ms": "6000",  # three on two cores may have to wait for their turn
            "controller.quorum.fetch.timeout.ms": "4000",
            "default.replication.factor": replicas,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": in_sync,
        }


class KafkaServer(LocalServer):
    """One Kafka node with its data in ``folder``, at ``bootstrap_servers``.

    Ready means that metadata, a transaction coordinator and a group coordinator answer. ``listeners`` are addresses
    beside the plain one, through which the node is looked after; ``properties`` take the place of the broker's settings
    here. ``controller_port`` is where its controller listens; another one takes its place if it is taken at the start.

    With a ``seat`` it is one of a cluster's nodes: all of them share ``folder``, and each has its data, settings and
    log there under its number. It is ready only if enough of the others run.

    With ``proxy_port`` it listens at ``proxied_port`` too and says there that its address is 127.0.0.1:``proxy_port``:
    clients that come through a proxy between the two stay behind it.
    """

    name = "Kafka"

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        proxy_port: int = 0,
        keep_data: bool = False,
        listeners: Sequence[Listener] = (),
        properties: Mapping[str, str] | None = None,
        seat: Seat | None = None,
        progress: Progress = lambda _: None,
    ) -> None:
        super().__init__(folder, port=port, keep_data=keep_data)
        self.seat = seat
        self.home = folder if seat is None else folder / f"kafka-{seat.number}"
        if seat is not None:
            self.log_path = folder / f"kafka-{seat.number}.log"
        self._listeners = list(listeners)
        self._properties = dict(properties or {})
        self.proxy_port = proxy_port
        self.proxied_port = free_port() if proxy_port else 0
        self.bootstrap_servers = f"127.0.0.1:{self.port}"
        self._progress = progress
        self.controller_port = free_port() if seat is None else seat.controller_ports[seat.number - 1]
        self._archive: Archive | None = None
        self._archiving: ManagedProcess | None = None

    def healthy(self, timeout_s: float = 2.0) -> bool:
        """Whether it answers a request for metadata."""
        return _answers(AdminClient(self._client()), timeout_s)

    def start(self, timeout_s: float = 60.0) -> None:
        if self.running:
            return
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            try:
                super().start(timeout_s)
                break
            except StartError:
                # Where only this node knows the controller's port, another one will do when it was taken meanwhile.
                if not attempts_left or self.seat is not None or is_free(self.controller_port):
                    raise
                self.controller_port = free_port()
        if self._archive is not None and self._archiving is None:
            self._archiving = self._archive.begin()

    def stop(self, grace_s: float = 10.0) -> None:
        self._stop_archiving()
        super().stop(grace_s)

    def kill(self) -> None:
        self._stop_archiving()
        super().kill()

    def _prepare(self) -> list[str]:
        java = find_java()
        jars = kafka_jars(self._progress)
        self.home.mkdir(exist_ok=True)
        self._archive = Archive(java.path, jars.jars, jars.folder, self.home)
        properties = self._write_properties()
        if not (self.home / DATA / "meta.properties").exists():
            _format(java, jars, self.home / DATA, properties, self.seat)
        self._progress("starting Kafka" if self.seat is None else f"starting Kafka's broker {self.seat.number}")
        temporary = self.home / "tmp"  # native libraries are unpacked there
        temporary.mkdir(exist_ok=True)
        logging = Path(__file__).with_name("log4j2.properties")
        return [
            *(str(java.path), *(_HEAP if self.seat is None else _HEAP_OF_THREE), *_JVM_OPTIONS),
            *self._archive.options(),
            *(f"-Djava.io.tmpdir={temporary}", f"-Dlog4j2.configurationFile={logging}"),
            *("-cp", jars.classpath, "kafka.Kafka", str(properties)),
        ]

    def _write_properties(self) -> Path:
        controller = f"127.0.0.1:{self.controller_port}"
        # name, protocol, where it listens, and where it says that it is
        places = [("PLAINTEXT", "PLAINTEXT", self.bootstrap_servers, self.bootstrap_servers)]
        if self.proxy_port:
            places.append(("PROXIED", "PLAINTEXT", f"127.0.0.1:{self.proxied_port}", f"127.0.0.1:{self.proxy_port}"))
        places += [(each.name, each.protocol, each.address, each.address) for each in self._listeners]
        values = _SETTINGS | {
            "controller.quorum.voters": self._voters(),
            "listeners": ",".join(
                [*(f"{name}://{place}" for name, _, place, _ in places), f"CONTROLLER://{controller}"]
            ),
            "advertised.listeners": ",".join(f"{name}://{place}" for name, _, _, place in places),
            "listener.security.protocol.map": ",".join(
                [*(f"{name}:{protocol}" for name, protocol, _, _ in places), "CONTROLLER:PLAINTEXT"]
            ),
            "log.dirs": str(self.home / DATA),
        }
        for each in self._listeners:
            values |= {f"listener.name.{each.name.lower()}.{name}": value for name, value in each.properties.items()}
        values |= ({} if self.seat is None else self.seat.properties()) | self._properties
        path = self.home / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        return path

    def _voters(self) -> str:
        ports = [self.controller_port] if self.seat is None else self.seat.controller_ports
        return ",".join(f"{number}@127.0.0.1:{port}" for number, port in enumerate(ports, start=1))

    def _await_ready(self, deadline: float) -> None:
        admin = AdminClient(self._client())
        while not _answers(admin, 0.5):
            self._still_starting(deadline)
        _ = admin.describe_consumer_groups([_PROBE])  # has the topic of group offsets created meanwhile
        self._await_coordinator(self._ask_for_transactions, deadline)
        self._await_coordinator(self._ask_for_group, deadline)

    def _await_coordinator(self, ask: Callable[[float], None], deadline: float) -> None:
        """Ask with a new client each time: librdkafka repeats such a question after 500 ms only, and keeps answers."""
        patience_s = 0.05
        while True:
            try:
                return ask(patience_s)
            except TimeoutError:
                pass
            except KafkaException as error:
                if error.args[0].fatal():
                    raise StartError(f"Kafka has no coordinator: {error.args[0].str()}; {self._log_end()}") from error
            self._still_starting(deadline)
            patience_s = min(2 * patience_s, 2.0)

    def _ask_for_transactions(self, patience_s: float) -> None:
        producer = Producer(self._client() | {"transactional.id": _PROBE})
        producer.list_topics(timeout=1)
        producer.init_transactions(patience_s)

    def _ask_for_group(self, patience_s: float) -> None:
        admin = AdminClient(self._client())
        try:
            admin.describe_consumer_groups([_PROBE])[_PROBE].result(timeout=patience_s)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                raise

    def _client(self) -> dict[str, str | int | float | bool]:
        return _CLIENT | {"bootstrap.servers": self.bootstrap_servers}

    def _stop_archiving(self) -> None:
        if self._archiving is not None:
            self._archiving.kill()
            self._archiving = None


def _answers(admin: AdminClient, timeout_s: float) -> bool:
    try:
        return bool(admin.list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return False


def _format(java: Java, jars: KafkaJars, data: Path, properties: Path, seat: Seat | None) -> None:
    """Prepare an empty data folder with Kafka's own tool, and later with what the tool wrote the first time.

    Only ``meta.properties`` differs from folder to folder; ``bootstrap.checkpoint`` is the version's feature levels.
    """
    data.mkdir(exist_ok=True)
    cluster, node = (new_id(), 1) if seat is None else (seat.cluster_id, seat.number)
    kept = jars.folder / "bootstrap.checkpoint"
    if not kept.exists():
        _format_with_tool(java, jars, properties, cluster)
        with contextlib.suppress(OSError):  # a cache that can only be read: the tool does it every time
            part = kept.with_name(f"{kept.name}.{os.getpid()}")
            shutil.copyfile(data / kept.name, part)
            part.replace(kept)
        return
    shutil.copyfile(kept, data / kept.name)
    part = data / "meta.properties.part"
    part.write_text(f"version=1\ncluster.id={cluster}\nnode.id={node}\ndirectory.id={new_id()}\n")
    part.replace(data / "meta.properties")


def _format_with_tool(java: Java, jars: KafkaJars, properties: Path, cluster: str) -> None:
    command = [str(java.path), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-cp", jars.classpath]
    command += ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StartError(f"Kafka's data folder could not be formatted: {done.stdout}{done.stderr}")


def new_id() -> str:
    """A random UUID as Kafka writes one. It must not begin with a dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text
