"""The local stack: Kafka and Valkey together, or those that the caller gives instead of one of them.

Where things go is never taken from the environment: whoever runs this in an operator's shell must not reach what that
shell is set up for. Everything that is started is stopped whatever way the owner ends, and its temporary data goes
with it.
"""

import contextlib
import fcntl
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Self

from infra.local.cluster import KafkaCluster, require_brokers
from infra.local.errors import LocalStackError, MissingError, StartError
from infra.local.jars import Progress
from infra.local.kafka import KafkaServer
from infra.local.process import TemporaryFolder
from infra.local.valkey import ValkeyServer

PREFIX = "MARGIN_"
KAFKA_VARIABLE = f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS"
_LOOK_S = 0.2
_AWAY_S = 10.0
REDIS_VARIABLE = f"{PREFIX}REDIS__URL"


def child_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with ``variables`` in place of every setting of the pipeline in it.

    For processes that work on a stack: a setting for another cluster does not belong there.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | dict(variables)


class LocalStack:
    """A running stack. Use :meth:`start` as a context manager.

    ``kafka`` and ``valkey`` are the servers of ours, None for those that were given; with several brokers it is
    ``cluster`` instead of ``kafka``. ``folder`` holds data and logs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kafka: KafkaServer | None,
        cluster: KafkaCluster | None,
        valkey: ValkeyServer | None,
        bootstrap_servers: str,
        redis_url: str,
        holder: "TemporaryFolder | _KeptFolder",
    ) -> None:
        self.folder, self.kafka, self.cluster, self.valkey = folder, kafka, cluster, valkey
        self.bootstrap_servers, self.redis_url = bootstrap_servers, redis_url
        self._holder = holder

    @classmethod
    def start(
        cls,
        *,
        bootstrap_servers: str | None = None,
        redis_url: str | None = None,
        kafka_port: int = 0,
        redis_port: int = 0,
        brokers: int = 1,
        keep_data: Path | None = None,
        progress: Progress = lambda _: None,
    ) -> Self:
        """Start what is not given, and wait until it is ready.

        ``bootstrap_servers`` and ``redis_url`` each take the place of a server of ours; the environment never does.
        A port of 0 takes a free one; several ``brokers`` have ports in a row. ``keep_data`` is a folder whose data is
        used again, else all is temporary.
        ``progress`` is called with a few words before each step that takes time.

        Raises:
            LocalStackError: a server cannot be had or did not start; what had been started is stopped.
        """
        for name, value in (("Kafka", bootstrap_servers), ("Redis", redis_url)):
            if value is not None and not value.strip():
                raise LocalStackError(f"the address of {name} that was given is empty: give one, or none at all")
        if kafka_port and kafka_port <= redis_port < kafka_port + brokers:
            raise MissingError(f"port {redis_port} is asked for by Kafka and by Valkey: give them different ones")
        holder = _temporary_folder() if keep_data is None else _KeptFolder(keep_data)
        folder, keeps = holder.path, keep_data is not None
        try:
            valkey = None if redis_url else ValkeyServer(folder, port=redis_port, keep_data=keeps)
            kafka = cluster = None
            if not bootstrap_servers and brokers > 1:
                cluster = KafkaCluster(folder, brokers=brokers, port=kafka_port, keep_data=keeps, progress=progress)
            elif not bootstrap_servers:
                require_brokers(folder, 1)
                kafka = KafkaServer(folder, port=kafka_port, keep_data=keeps, progress=progress)
        except BaseException:
            holder.close()
            raise
        ours = kafka or cluster
        stack = cls(
            folder,
            kafka=kafka,
            cluster=cluster,
            valkey=valkey,
            bootstrap_servers=bootstrap_servers or (ours.bootstrap_servers if ours else ""),
            redis_url=redis_url or (valkey.url if valkey else ""),
            holder=holder,
        )
        try:
            stack._start_servers(progress)
        except BaseException:
            stack.stop()
            raise
        return stack

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which every command of this project finds the stack."""
        return {KAFKA_VARIABLE: self.bootstrap_servers, REDIS_VARIABLE: self.redis_url}

    def stop(self) -> None:
        """Stop what was started and remove its temporary data. Data that is kept is closed in order."""
        for server in (self.kafka, self.cluster, self.valkey):
            if server is not None and server.keep_data:
                server.stop()
            elif server is not None:
                server.kill()
        self._holder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_servers(self, progress: Progress) -> None:
        if self.valkey is not None:
            progress("starting Valkey")
            self.valkey.start()
        for kafka in (self.kafka, self.cluster):
            if kafka is not None:
                kafka.start()


def run_local(
    prepare: "Callable[[LocalStack], Iterable[str]]",
    *,
    kafka_port: int = 0,
    redis_port: int = 0,
    brokers: int = 1,
    keep_data: Path | None = None,
) -> None:
    """Keep a stack up until SIGINT, SIGTERM or SIGHUP, and print how to use it.

    ``prepare`` is called once it runs, and what it returns is printed before the rest. A SIGHUP that this process was
    started to ignore (``nohup``) stays ignored. One of several ``brokers`` that ends is started again after a while.

    To be called in the main thread.

    Raises:
        LocalStackError: a server cannot be had or did not start.
    """
    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    previous = {number: signal.signal(number, _interrupt) for number in ends}
    try:
        with LocalStack.start(
            kafka_port=kafka_port, redis_port=redis_port, brokers=brokers, keep_data=keep_data, progress=_say
        ) as stack:
            for line in prepare(stack):
                _say(line)
            for name, value in stack.environment.items():
                _say(f"export {name}={value}")
            _say(f"# logs are in {stack.folder}; Ctrl-C stops everything")
            if stack.cluster is None:
                threading.Event().wait()
            else:
                _keep_up(stack.cluster)
    except KeyboardInterrupt:
        _say("stopped")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _keep_up(cluster: KafkaCluster) -> None:
    """For ever: say where each broker is, and start whoever has ended again, on the same data and port."""
    for node in cluster.nodes:
        _say_where(node)
    ended_at: dict[str, float] = {}
    while True:
        time.sleep(_LOOK_S)
        for node in cluster.nodes:
            if node.running:
                continue
            now = time.monotonic()
            if node.bootstrap_servers not in ended_at:
                ended_at[node.bootstrap_servers] = now
                _say(f"# the broker at {node.bootstrap_servers} has ended: it is started again in {_AWAY_S:g} s")
            elif now - ended_at[node.bootstrap_servers] >= _AWAY_S:
                del ended_at[node.bootstrap_servers]
                try:
                    node.launch()
                except (MissingError, StartError) as error:
                    _say(f"# the broker at {node.bootstrap_servers} could not be started: {error}")
                else:
                    _say_where(node)


def _say_where(node: KafkaServer) -> None:
    _say(f"# the broker at {node.bootstrap_servers} is process {node.process.pid}, its log {node.log_path.name}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first signal ends the stack; the clean-up is not interrupted by another."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _temporary_folder() -> TemporaryFolder:
    try:
        return TemporaryFolder()
    except OSError as error:
        raise MissingError(
            f"there is no folder for temporary data: {error}; set TMPDIR to one that can be written"
        ) from error


class _KeptFolder:
    """A folder whose data outlives the stack, held so that no other stack uses it at the same time.

    Raises:
        MissingError: it cannot be made or written, or another stack (or what is left of it) uses it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder.resolve()
            with tempfile.TemporaryFile(dir=self.path):
                pass
            self._held = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise MissingError(
                f"the folder for the data cannot be used: {error}; choose one that can be written"
            ) from error
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._held)
            raise MissingError(
                f"{self.path} is in use by another local stack, or by one that is just ending: choose another folder, "
                "or try again in a few seconds"
            ) from None
        except OSError:
            return  # a file system without locks
        # Its servers' supervisors share the lock, so it lasts until the last of them has ended.
        with contextlib.suppress(OSError):
            fcntl.flock(self._held, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def close(self) -> None:
        """Let others use it."""
        os.close(self._held)


def _say(text: str) -> None:
    print(text, flush=True)
