"""What a bench runs on: a Kafka and a Valkey of its own, the contract's topics, and roles as processes.

It never touches a cluster that it has not started itself, and leaves nothing behind.
"""

import contextlib
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from infra.local.ports import free_port
from infra.local.process import ManagedProcess
from infra.local.stack import PREFIX, LocalStack, child_environment
from schemas.codec import encode
from schemas.messages import Transfer
from schemas.parameters import Parameter
from schemas.topics import EVENTS, INPUTS, PARAMETERS, TRANSFERS
from streams.bench.errors import BenchError
from streams.broker import config
from streams.broker.admin import ensure_topics
from streams.broker.committed import committed_offsets
from streams.broker.reader import LogReader
from streams.broker.records import Record
from streams.settings import Settings, load

CLIENT = "margin-bench"
READY_S = 60.0
WAIT_S = 300.0
STILL_S_MAX = 8.0
_POLL_S = 0.1
_CALL_S = 30.0
_TAIL = 20
_SHARDS = "margin_engine_shards"

Progress = Callable[[str], None]
Outgoing = tuple[str, bytes | None, bytes, int]
"""Topic, key, value, and partition (-1: that of the key)."""


class BenchRole:
    """One role as a process, with its metrics."""

    def __init__(self, name: str, process: ManagedProcess, port: int) -> None:
        self.name, self.process, self._port = name, process, port

    def is_ready(self) -> bool:
        """Whether ``/readyz`` says so."""
        try:
            return self._get("readyz") is not None
        except OSError:
            return False

    def metrics(self) -> dict[str, float]:
        """What ``/metrics`` shows, by name with labels."""
        lines = (self._get("metrics") or "").splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def shards(self) -> int:
        """How many shards run in it; none in what does not answer, or is no engine."""
        try:
            return int(self.metrics().get(_SHARDS, 0))
        except OSError:
            return 0

    def _get(self, page: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/{page}", timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            error.close()
            return None


class Bed:
    """A running local stack with the contract's topics. Use :meth:`open`."""

    def __init__(self, stack: LocalStack, settings: Settings, variables: Mapping[str, str]) -> None:
        self.stack, self.settings = stack, settings
        self._variables = dict(variables)
        self.roles: dict[str, BenchRole] = {}
        self._groups: dict[str, Consumer] = {}

    @classmethod
    @contextlib.contextmanager
    def open(cls, progress: Progress, *, shards: int = 4, partitions: int = 4) -> Iterator["Bed"]:
        """Start the servers, create the topics; all is stopped at the end.

        Raises:
            LocalStackError: a server cannot be had.
        """
        with LocalStack.start(progress=progress) as stack:
            variables = stack.environment | {
                f"{PREFIX}TOPICS__SHARDS": str(shards),
                f"{PREFIX}TOPICS__PARTITIONS": str(partitions),
            }
            settings = load(variables)
            if wrong := ensure_topics(settings).wrong:
                raise BenchError("the topics are not as they must be: " + "; ".join(wrong))
            bed = cls(stack, settings, variables)
            try:
                yield bed
            finally:
                bed._close()

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the roles and of the servers."""
        servers = {"broker": self.stack.kafka, "valkey": self.stack.valkey}
        return {name: role.process.pid for name, role in self.roles.items()} | {
            name: server.process.pid for name, server in servers.items() if server is not None
        }

    def start(self, *names: str) -> None:
        """Start roles and wait until each is ready. Several of one role are named ``engine-1``, ``engine-2``, …

        Raises:
            BenchError: one ended, or is not ready in time.
        """
        for name in names:
            port = free_port()
            process = ManagedProcess(
                [sys.executable, "-m", "streams.cli", name.partition("-")[0]],
                name=name,
                log_path=self.stack.folder / f"{name}.log",
                env=child_environment(self._variables | {f"{PREFIX}SERVICE__METRICS_PORT": str(port)}),
            )
            self.roles[name] = BenchRole(name, process, port)
        for name in names:
            self.wait_for(self.roles[name].is_ready, f"{name} to be ready", READY_S)

    def await_shared(self, engines: Sequence[str]) -> dict[str, int]:
        """Wait until every shard runs in one of ``engines``, in each as many as in the others or one more: how many.

        Raises:
            BenchError: not in time, or a role ended.
        """
        count = self.settings.topics.shards

        def is_shared() -> bool:
            held = self.shards_of(engines).values()
            return sum(held) == count and max(held) - min(held) <= 1

        self.wait_for(is_shared, f"{' and '.join(engines)} to share {count} shards", READY_S)
        return self.shards_of(engines)

    def shards_of(self, engines: Iterable[str]) -> dict[str, int]:
        """How many shards run in each of ``engines``."""
        return {name: self.roles[name].shards() for name in engines}

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait for ``condition``, watching the roles.

        Raises:
            BenchError: not in time, or a role ended.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            for role in self.roles.values():
                if (code := role.process.poll()) is not None:
                    raise BenchError(f"{role.name} ended with exit code {code}:\n{role.process.log_tail(30)}")
            if time.monotonic() > deadline:
                tails = "\n".join(f"{role.name}: {role.process.log_tail(5)}" for role in self.roles.values())
                raise BenchError(f"waited {timeout_s:g} s for {what}\n{tails}")
            time.sleep(_POLL_S)

    @contextlib.contextmanager
    def held_still(self, *processes: ManagedProcess) -> Iterator[None]:
        """Processes that do nothing within, as the operating system holds them, so that a backlog can be written.

        Raises:
            BenchError: it took so long that Kafka may have given their partitions away.
        """
        started = time.monotonic()
        for process in processes:
            process.pause()
        try:
            yield
        finally:
            for process in processes:
                process.resume()
        if (took_s := time.monotonic() - started) > STILL_S_MAX:
            raise BenchError(f"writing the backlog took {took_s:.1f} s, over {STILL_S_MAX:g} s: give fewer trades")

    # --- records -----------------------------------------------------------------------------------------------------

    def publish_parameters(self, records: Iterable[Parameter]) -> None:
        """Put parameter records into the topic."""
        self.publish((PARAMETERS, record.key.encode(), encode(record), -1) for record in records)

    def publish(self, records: Iterable[Outgoing], *, compression: Any = "none") -> None:
        """Write records; all of them are acknowledged then.

        Raises:
            BenchError: one was not.
        """
        refused: list[str] = []
        producer = self.producer(compression)
        delivered = partial(_note_refused, refused)
        for topic, key, value, partition in records:
            while True:
                try:
                    producer.produce(topic, value, key=key, partition=partition, on_delivery=delivered)
                    break
                except BufferError:
                    producer.poll(0.05)
            producer.poll(0)
        if producer.flush(_CALL_S) or refused:
            raise BenchError(f"what the bench wrote was not acknowledged: {refused[0] if refused else 'no answer'}")

    def publish_transfers(self, transfers: Iterable[Transfer]) -> None:
        """Put transfers into the topic as an exchange does."""
        self.publish((TRANSFERS, each.account.encode(), encode(each), -1) for each in transfers)

    def producer(self, compression: Any = "none", *, linger_ms: int = 5) -> Producer:
        """A producer that waits ``linger_ms`` for more before it sends."""
        properties = config.producer(self.settings.kafka, CLIENT, compression=compression)
        return Producer(properties | {"linger.ms": linger_ms})

    def ends(self, topic: str) -> list[int]:
        """Where each partition of a topic ends now."""
        with LogReader(self.settings.kafka, CLIENT) as reader:
            return [reader.watermarks(topic, partition)[1] for partition in range(reader.partitions(topic))]

    def read(self, topic: str, first: list[int] | None = None) -> Iterator[Record]:
        """The committed records of a topic, all or from offsets on."""
        with LogReader(self.settings.kafka, CLIENT) as reader:
            for partition in range(reader.partitions(topic)):
                yield from reader.read_range(topic, partition, 0 if first is None else first[partition])

    def has_committed(self, group: str, topic: str, ends: list[int]) -> bool:
        """Whether a group has committed every partition of ``topic`` up to ``ends``."""
        if group not in self._groups:
            properties = config.common(self.settings.kafka, CLIENT) | {"group.id": group}
            self._groups[group] = config.created(Consumer, properties)
        places = [TopicPartition(topic, partition) for partition in range(len(ends))]
        committed = committed_offsets(self._groups[group], places, _CALL_S)
        return all(max(place.offset, 0) >= end for place, end in zip(committed, ends, strict=True))

    def await_routed(self) -> None:
        """Wait until the router has committed all that the exchange's topics hold.

        Raises:
            BenchError: not in time, or a role ended.
        """
        for topic in INPUTS:
            self._await_committed(self.settings.router.group_id, topic, f"{topic} to be routed")

    def await_applied(self) -> None:
        """Wait until the engine has committed all frames that there are.

        Raises:
            BenchError: not in time, or a role ended.
        """
        self._await_committed(self.settings.engine.group_id, EVENTS, "all frames to be applied")

    def _record_ends(self, topic: str) -> list[int]:
        """The offsets behind the last record of each partition: what ends a transaction there is none."""
        ends: list[int] = []
        for partition, end in enumerate(self.ends(topic)):
            with LogReader(self.settings.kafka, CLIENT) as reader:
                last = [record.offset() for record in reader.read_range(topic, partition, max(0, end - _TAIL), end)]
            ends.append(last[-1] + 1 if last else max(0, end - _TAIL))
        return ends

    def _await_committed(self, group: str, topic: str, what: str) -> None:
        ends = self._record_ends(topic)
        self.wait_for(lambda: self.has_committed(group, topic, ends), what)

    def _close(self) -> None:
        for consumer in self._groups.values():
            consumer.close()
        for role in self.roles.values():
            role.process.kill()


def _note_refused(refused: list[str], error: Any, _: Message) -> None:
    if error is not None:
        refused.append(str(error))
