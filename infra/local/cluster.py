"""Several Kafka nodes on this machine as one cluster, in which a broker may die, come back, or stand still.

Every node is broker and controller in a process of its own, with its own data, ports and log, so that one can be killed
and started again on the same data. Each partition is on three brokers and acknowledged by two.
"""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.local.errors import MissingError
from infra.local.jars import Progress
from infra.local.kafka import DATA, KafkaServer, Seat, new_id
from infra.local.ports import PORT_MAX, free_port

_CLUSTER_ID = "cluster.id="
_ANSWER_S = 5.0


class KafkaCluster:
    """A cluster of ``brokers`` nodes with their data under ``folder``; not started by its constructor.

    ``port`` is the first node's, and the others have those after it; 0 takes free ones. ``keep_data`` is as that of a
    :class:`~infra.local.server.LocalServer`.

    Raises:
        MissingError: a port cannot be had, or ``folder`` holds the data of another number of brokers.
    """

    def __init__(
        self,
        folder: Path,
        *,
        brokers: int = 3,
        port: int = 0,
        keep_data: bool = False,
        progress: Progress = lambda _: None,
    ) -> None:
        if port and port + brokers - 1 > PORT_MAX:
            raise MissingError(f"port {port} for Kafka cannot be had: {brokers} brokers need as many ports from it on")
        require_brokers(folder, brokers)
        self.folder, self.keep_data = folder, keep_data
        ports = [free_port() for _ in range(brokers)]
        cluster_id = _kept_cluster_id(folder) or new_id()
        self.nodes = [
            KafkaServer(
                folder,
                port=port + number - 1 if port else 0,
                keep_data=keep_data,
                seat=Seat(number, cluster_id, ports),
                progress=progress,
            )
            for number in range(1, brokers + 1)
        ]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(node.bootstrap_servers for node in self.nodes)

    def node(self, number: int) -> KafkaServer:
        """The node with this number, which is the broker's id, from 1."""
        return self.nodes[number - 1]

    def start(self, timeout_s: float = 90.0) -> None:
        """Start every node that does not run, all at once, and wait until they are ready.

        Raises:
            MissingError, StartError: as a server's; those that this has started do not run then.
        """
        nodes = [node for node in self.nodes if not node.running]
        try:
            for node in nodes:
                node.launch()
            for node in nodes:
                node.await_ready(timeout_s)
        except BaseException:
            for node in nodes:
                node.kill()
            raise

    def stop(self) -> None:
        """Stop all of them in order, at the same time: the last one alone would wait for a quorum that is gone."""
        for node in self.nodes:
            if node.running:
                node.resume()
                node.process.signal(signal.SIGTERM)
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        """kill -9 of all that run."""
        for node in self.nodes:
            node.kill()

    def out_of_sync(self) -> list[str]:
        """The partitions that have fewer replicas in sync than replicas, as ``topic[partition]``.

        Raises:
            KafkaException: no broker answers.
        """
        topics = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0}).list_topics(
            timeout=_ANSWER_S
        )
        return sorted(
            f"{topic.topic}[{partition.id}]"
            for topic in topics.topics.values()
            for partition in topic.partitions.values()
            if len(partition.isrs) < len(partition.replicas) or partition.leader < 0
        )

    @property
    def is_in_sync(self) -> bool:
        """Whether every node runs, answers, and every replica is in sync."""
        with contextlib.suppress(KafkaException):
            return all(node.running and node.healthy() for node in self.nodes) and not self.out_of_sync()
        return False


def require_brokers(folder: Path, brokers: int) -> None:
    """Refuse a folder with another number of brokers' data: topics would seem to be gone.

    Raises:
        MissingError: says how many brokers' data it holds.
    """
    kept = len(list(_kept_data(folder))) or int((folder / DATA / "meta.properties").exists())
    if kept not in (0, brokers):
        raise MissingError(
            f"{folder} holds the data of {kept} Kafka broker{'s' if kept > 1 else ''} and not of {brokers}: "
            f"ask for --brokers {kept}, or choose another folder"
        )


def _kept_data(folder: Path) -> Iterator[Path]:
    return folder.glob(f"kafka-*/{DATA}/meta.properties")


def _kept_cluster_id(folder: Path) -> str | None:
    for path in _kept_data(folder):
        for line in path.read_text().splitlines():
            if line.startswith(_CLUSTER_ID):
                return line.removeprefix(_CLUSTER_ID)
    return None
