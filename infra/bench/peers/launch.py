"""Brings what a peer needs to run, once, into the user's cache, and says how it is started.

Kafka Streams needs a JDK, whose compiler takes the source as it is, and Maven's jars. Faust is one of this project's
dependencies. Quix Streams pins an older confluent-kafka than this project needs, so it gets an environment of its own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.local.errors import MissingError
from infra.local.jars import KAFKA_VERSION, LOGGING, Progress, Wanted, cache_folder, cached_jars, locked
from infra.local.java import find_java

QUIX_VERSION = "3.28.1"
_HERE = Path(__file__).parent
_STREAMS = Wanted(
    f"Kafka Streams {KAFKA_VERSION}",
    f"kafka-streams-{KAFKA_VERSION}",
    f"org.apache.kafka:kafka-streams:{KAFKA_VERSION}+{LOGGING}",
    100,
    "or leave this peer out",
)
_INSTALL_S = 600


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer: how it is started, in how many processes (``workers`` threads or processes in all), under which group it
    reads, and where it writes the states of accounts. ``promise`` is what it is set up to guarantee. ``topics`` must be
    there before it starts. ``variables`` are what else it is told."""

    name: str
    command: tuple[str, ...]
    processes: int
    workers: int
    group: str
    changelog: str
    promise: str
    topics: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def environment(self, bootstrap: str, trades: str, partitions: int, folder: Path) -> dict[str, str]:
        """What the peer is told, beside this process's environment."""
        return dict(os.environ) | {
            "PEER_BOOTSTRAP": bootstrap,
            "PEER_GROUP": self.group,
            "PEER_TRADES": trades,
            "PEER_PARTITIONS": str(partitions),
            "PEER_FOLDER": str(folder),
            "PEER_WORKERS": str(self.workers),
            "PYTHONPATH": os.pathsep.join([str(_HERE.parents[2]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            **self.variables,
        }


def kafka_streams(workers: int, progress: Progress) -> Peer:
    """Kafka Streams: one process with as many threads as there are workers.

    Raises:
        MissingError: there is no JDK from 17 on, or its jars cannot be had.
    """
    java = find_java()
    modules = subprocess.run([java.path, "--list-modules"], capture_output=True, text=True, timeout=60, check=False)
    if "jdk.compiler" not in modules.stdout:
        raise MissingError(f"the Java at {java.path} has no compiler: install a JDK from 17 on, and put it on the PATH")
    jars = cached_jars(_STREAMS, progress)
    logging = _HERE.parents[1] / "local" / "log4j2.properties"
    command = (str(java.path), f"-Dlog4j2.configurationFile={logging}", "-cp", jars.classpath)
    return Peer(
        name=f"Kafka Streams {KAFKA_VERSION}",
        command=(*command, str(_HERE / "FillsPeer.java")),
        processes=1,
        workers=workers,
        group="peer-streams",
        changelog="peer-streams-positions-changelog",
        promise="exactly once",
    )


def faust(workers: int, progress: Progress) -> Peer:
    """Faust, in one process whatever ``workers`` says: of two that started together one stood still now and then."""
    from importlib.metadata import version

    return Peer(
        name=f"Faust {version('faust-streaming')}",
        command=(sys.executable, "-m", "infra.bench.peers.faust_peer", "worker", "--without-web", "--loglevel", "warn"),
        processes=1,
        workers=1,
        group="peer-faust",
        changelog="peer-faust-positions-changelog",
        promise="at least once",
        topics=("peer-faust-fills", "peer-faust-positions-changelog"),  # several workers that make them miss them
    )


def quix(workers: int, progress: Progress) -> Peer:
    """Quix Streams, in as many processes as there are workers.

    Raises:
        MissingError: it cannot be installed.
    """
    folder = cache_folder() / f"quixstreams-{QUIX_VERSION}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        with locked(folder.parent, "Quix Streams", progress):
            if not (folder / "complete").exists():
                progress(f"installing Quix Streams {QUIX_VERSION} into an environment of its own (once)")
                _install(folder, python)
    return Peer(
        name=f"Quix Streams {QUIX_VERSION}",
        command=(str(python), str(_HERE / "quix_peer.py")),
        processes=workers,
        workers=workers,
        group="peer-quix",
        changelog="changelog__peer-quix--repartition.trades.v1.account--default",
        promise="exactly once",
    )


PEERS: dict[str, Callable[[int, Progress], Peer]] = {"kafka-streams": kafka_streams, "faust": faust, "quix": quix}


def _install(folder: Path, python: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    steps = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", f"quixstreams=={QUIX_VERSION}"],
    )
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MissingError(f"Quix Streams {QUIX_VERSION} cannot be installed: {error}") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise MissingError(f"Quix Streams {QUIX_VERSION} cannot be installed: {said[-1] if said else step}")
    (folder / "complete").touch()
