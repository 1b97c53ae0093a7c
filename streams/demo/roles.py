"""The pipeline's roles as the demo's child processes: started, watched, and stopped whatever way the demo ends."""

import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from confluent_kafka import KafkaException

from infra.local.process import ManagedProcess
from infra.local.stack import child_environment
from schemas import topics
from streams.broker.admin import admin_client
from streams.broker.committed import group_offsets
from streams.broker.reader import LogReader
from streams.demo.errors import DemoError
from streams.settings import Settings

READY_TIMEOUT_S = 60.0
_TIMEOUT_S = 10.0
_POLL_S = 0.05


class Roles:
    """One router, one oracle and ``engines`` engines. Use as a context manager.

    ``variables`` are the settings of the processes; whatever else the environment says is kept from them.
    """

    def __init__(self, settings: Settings, variables: Mapping[str, str], engines: int, folder: Path) -> None:
        self._settings, self._variables = settings, variables
        self._engines, self._folder = engines, folder
        self._running: list[ManagedProcess] = []

    def __enter__(self) -> "Roles":
        names = ["router", "oracle", *(f"engine-{number}" for number in range(self._engines))]
        self._marks_before = self._marks_end()
        for name in names:
            self._running.append(self._start(name))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM to all at once, then wait for each."""
        for process in self._running:
            if process.poll() is None:
                process.signal(signal.SIGTERM)
        for process in self._running:
            process.terminate(grace_s=15)
        self._running.clear()

    def check(self) -> None:
        """Raise if a role has ended.

        Raises:
            DemoError: with the end of its log.
        """
        for process in self._running:
            if process.poll() is not None:
                raise DemoError(f"{process.name} ended with exit code {process.poll()}:\n{process.log_tail(30)}")

    def await_ready(self) -> None:
        """Wait until marks are beating and both groups are complete and at rest.

        Raises:
            DemoError: not within ``READY_TIMEOUT_S``, or a role ended.
        """
        self.wait_for(lambda: self._marks_end() > self._marks_before, "the oracle's heartbeat")
        self.wait_for(lambda: self._is_settled(self._settings.router.group_id, 1), "the router's group")
        self.wait_for(lambda: self._is_settled(self._settings.engine.group_id, self._engines), "the engines' group")
        self.wait_for(self._are_shards_taken, "every shard to be taken")

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait for ``condition``, watching the roles.

        Raises:
            DemoError: not within ``timeout_s``, or a role ended.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                tails = "\n".join(f"{process.name}: {process.log_tail(5)}" for process in self._running)
                raise DemoError(f"waited {timeout_s:g} s for {what}\n{tails}")
            time.sleep(_POLL_S)

    def routed(self) -> bool:
        """Whether the router has committed everything the exchange's topics hold."""
        return all(
            max(committed, 0) >= end
            for topic in (topics.TRADES, topics.TRANSFERS, topics.REPORTS)
            for committed, end in zip(
                self._committed(self._settings.router.group_id, topic), self._ends(topic), strict=True
            )
        )

    def applied(self) -> bool:
        """Whether the engines have committed every frame. The end of a transactional log is a marker, not a frame."""
        committed = self._committed(self._settings.engine.group_id, topics.EVENTS)
        with LogReader(self._settings.kafka, "margin-demo") as reader:
            return all(
                not any(True for _ in reader.read_range(topics.EVENTS, partition, offset))
                for partition, offset in enumerate(committed)
            )

    def _start(self, name: str) -> ManagedProcess:
        role = name.partition("-")[0]
        return ManagedProcess(
            [sys.executable, "-m", "streams.cli", role],
            name=name,
            log_path=self._folder / f"{name}.log",
            env=child_environment(self._variables),
        )

    def _marks_end(self) -> int:
        with LogReader(self._settings.kafka, "margin-demo") as reader:
            return reader.watermarks(topics.MARKS, 0)[1]

    def _is_settled(self, group: str, members: int) -> bool:
        try:
            admin = admin_client(self._settings)
            description = admin.describe_consumer_groups([group], request_timeout=10)[group].result(timeout=10)
        except KafkaException:
            return False
        assigned = sum(len(member.assignment.topic_partitions) for member in description.members)
        return description.state.name == "STABLE" and len(description.members) >= members and assigned > 0

    def _are_shards_taken(self) -> bool:
        """Every shard has a committed offset: its claim carried one."""
        return all(offset >= 0 for offset in self._committed(self._settings.engine.group_id, topics.EVENTS))

    def _committed(self, group: str, topic: str) -> list[int]:
        return group_offsets(self._settings.kafka, "margin-demo", group, topic, _TIMEOUT_S)

    def _ends(self, topic: str) -> list[int]:
        with LogReader(self._settings.kafka, "margin-demo") as reader:
            return [reader.watermarks(topic, partition)[1] for partition in range(reader.partitions(topic))]
