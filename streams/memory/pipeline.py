"""The whole pipeline in memory, driven by hand: give it records, let time pass, read what it has written.

Production's routers, engines, mark book and scales run over an in-memory Kafka and Redis on virtual time: no broker, no
waiting, and the same calls give the same bytes. A test of a service that executes commands takes ten lines:

    from streams.memory import Pipeline

    with Pipeline() as pipeline:
        for topic, message in scene:  # parameters, deposits, trades, a price
            pipeline.send(topic, message)
        pipeline.advance(1_000)
        pipeline.send("oracle.prices.v1", crash)
        pipeline.advance(1_000)
        command = pipeline.records("liquidation.commands.v1")[-1].value
        for report in my_service.execute(command):
            pipeline.send("liquidation.reports.v1", report)
        pipeline.advance(1_000)

Not thread-safe; one thread drives a pipeline from beginning to end.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import msgspec
from msgspec.structs import replace

from schemas.messages import ShardLayout
from schemas.topics import MARKS, all_topics
from streams.errors import ScenarioError
from streams.memory.brokers import VisibleCluster, VisibleRecord
from streams.memory.deployment import Deployment, Worker
from streams.memory.given_marks import GivenMarks
from streams.memory.given_records import FieldError, GivenRecord, decoded_json, given_record, microseconds
from streams.memory.scheduler import Scheduler
from streams.settings import Settings

_SEED = 1
_WARM_UP_US = 3_000_000
"""So long before its beginning the processes are started: at 0 every partition has its owner."""
_STEPS_MAX = 2_000_000_000
BY_CONTRACT: Any = object()
"""Stands for the key that the contract gives a message."""


@dataclass(frozen=True, slots=True)
class WrittenRecord:
    """A record as a reader of committed records sees it, ``at_ms`` after the beginning.

    ``value`` is the JSON in it; of a record that is not JSON it is None, and ``text`` is what it holds. Both are None
    for a tombstone.
    """

    at_ms: int
    topic: str
    partition: int
    key: str | None
    value: Any
    text: str | None
    headers: Mapping[str, str]

    def line(self) -> bytes:
        """The record as a line of a scenario's output, with its end."""
        fields: dict[str, Any] = {
            "at_ms": self.at_ms,
            "topic": self.topic,
            "partition": self.partition,
            "key": self.key,
        }
        fields |= {"value": self.value} if self.text is None else {"bytes": self.text}
        if self.headers:
            fields["headers"] = dict(self.headers)
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"


@dataclass(frozen=True, slots=True)
class BrokenProcess:
    """A process that ended by an error that nobody raised on purpose, ``at_ms`` after the beginning."""

    at_ms: int
    worker: str
    error: BaseException


@contextmanager
def _quiet() -> Iterator[None]:
    """What the roles log goes nowhere."""
    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logged)


def partition_counts(shards: int, partitions: int) -> dict[str, int]:
    """The partitions of every topic of the contract."""
    counts = {"one": 1, "any": partitions, "trades": partitions, "prices": partitions, "shards": shards}
    return {topic.name: counts[topic.partitioning] for topic in all_topics()}


class Pipeline:
    """A pipeline of ``routers`` and ``engines`` over ``shards`` and ``partitions`` of the exchange's topics.

    With ``oracle`` marks are formed from prices; without, marks are given. Time begins at 0 and stands still but for
    :meth:`advance`. No setting is taken from the environment.
    """

    def __init__(
        self, *, shards: int = 4, partitions: int = 4, routers: int = 1, engines: int = 1, oracle: bool = True
    ) -> None:
        self._partitions = partition_counts(shards, partitions)
        self._scheduler = Scheduler(_SEED, trace_lines=1)
        self._scheduler.now = -_WARM_UP_US
        self._cluster = VisibleCluster(self._scheduler, self._partitions, self._on_visible)
        settings = Settings()
        settings = replace(settings, topics=replace(settings.topics, shards=shards, partitions=partitions))
        counts = {"router": routers, "engine": engines, "oracle": int(oracle)}
        self._deployment = Deployment(self._cluster, settings, counts, self._on_broken)
        self._marks = None if oracle else GivenMarks(self._cluster, 1000 * settings.oracle.heartbeat_ms)
        self.broken: list[BrokenProcess] = []
        """The processes that ended by an error that nobody raised on purpose; they are started again like others."""
        self._written: list[WrittenRecord] = []
        self._deployment.start()
        self.run_until(0)
        if self._marks is not None:
            self._marks.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process. What was written can still be read."""
        with _quiet():
            self._deployment.end()

    @property
    def now_ms(self) -> float:
        """The time, in milliseconds since the beginning."""
        return self._scheduler.now / 1000

    @property
    def partitions(self) -> Mapping[str, int]:
        """How many partitions each topic has."""
        return self._partitions

    # --- what is given -----------------------------------------------------------------------------------------------

    def send(self, topic: str, value: Any, key: str | None = BY_CONTRACT, partition: int | None = None) -> None:
        """Write a record now. ``value`` is plain JSON, a message of :mod:`schemas`, ``bytes``, or None for a tombstone.

        ``publish_time_ms``, ``event_time_ms`` and ``time_ms`` (since the beginning) and ``age_ms`` (before now) stand
        for the contract's times, at any depth. Without ``key`` and ``partition`` they are the contract's.

        Raises:
            ScenarioError: there is no such topic to write to, or a field cannot be what it is.
        """
        given: dict[str, Any] = {"topic": topic}
        if isinstance(value, bytes):
            given["bytes"] = value.decode("utf-8", "surrogateescape")
        else:
            given["value"] = msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value
        if key is not BY_CONTRACT:
            given["key"] = key
        if partition is not None:
            given["partition"] = partition
        try:
            record = given_record(given, self._scheduler.now, self._partitions)
        except FieldError as error:
            raise ScenarioError(str(error)) from None
        self.publish(record)

    def publish(self, record: GivenRecord) -> None:
        """Write a record now.

        Raises:
            ScenarioError: it is one of marks, and the oracle runs.
        """
        if record.topic != MARKS:
            self._cluster.append(record.topic, record.key, record.value, record.partition)
        elif self._marks is not None:
            self._marks.give(record)
        else:
            raise ScenarioError("this pipeline forms its marks from prices: to give marks, make it with oracle=False")

    def advance(self, ms: float) -> None:
        """Let ``ms`` milliseconds pass.

        Raises:
            ScenarioError: the time is negative.
        """
        if ms < 0:
            raise ScenarioError(f"time does not go back by {-ms} ms")
        self.run_until(self._scheduler.now + microseconds(ms, "ms"))

    def rescale(self, shards: int) -> None:
        """Have the accounts spread over ``shards`` from now on; it goes on while time passes (process ``rescaler:0``,
        the next one ``rescaler:1``)."""
        self._deployment.rescale(shards)

    @property
    def layout(self) -> ShardLayout:
        """How accounts are spread over shards."""
        return self._cluster.layout

    # --- what goes wrong ---------------------------------------------------------------------------------------------

    def freeze(self, worker: str, for_ms: float) -> None:
        """Let a process (``router:0``, ``engine:1``, ``oracle:0``) stand still from now on.

        Raises:
            ScenarioError: there is no such process.
        """
        self._worker(worker).freeze(microseconds(for_ms, "for_ms"))

    def kill(self, worker: str) -> None:
        """End a process at once; a second later it is started again.

        Raises:
            ScenarioError: there is no such process.
        """
        self._worker(worker).kill()

    def set_clock(self, worker: str, ahead_ms: float) -> None:
        """Let the clock of a process's host be wrong by so much from now on.

        Raises:
            ScenarioError: there is no such process.
        """
        self._worker(worker).set_clock(microseconds(ahead_ms, "ahead_ms"))

    def delete(self, topic: str) -> None:
        """Let all that a topic holds so far be gone, as retention and DeleteRecords do it; what is open stays.

        Raises:
            ScenarioError: there is no such topic.
        """
        if topic not in self._cluster.topics:
            raise ScenarioError(f"there is no topic {topic!r}")
        for log in self._cluster.topics[topic]:
            log.delete_before(log.stable_end)

    # --- what was written --------------------------------------------------------------------------------------------

    def records(self, topic: str | None = None) -> list[WrittenRecord]:
        """What a reader of committed records has seen, in the order in which it could: of one topic, or of all.

        Raises:
            ScenarioError: there is no such topic.
        """
        if topic is None:
            return list(self._written)
        if topic not in self._partitions:
            raise ScenarioError(f"there is no topic {topic!r}; there are {', '.join(self._partitions)}")
        return [record for record in self._written if record.topic == topic]

    def take(self) -> list[WrittenRecord]:
        """What :meth:`records` gives, and forget it."""
        taken, self._written = self._written, []
        return taken

    def run_until(self, time_us: int) -> None:
        """Let time pass until ``time_us`` microseconds after the beginning, if that is not over."""
        with _quiet():
            self._scheduler.run(max(time_us, self._scheduler.now), _STEPS_MAX)

    def _on_broken(self, worker: str, error: BaseException) -> None:
        self.broken.append(BrokenProcess(self._scheduler.now // 1000, worker, error))

    def _worker(self, name: str) -> Worker:
        role, _, number = name.partition(":")
        worker = self._deployment.workers.get((role, int(number))) if number.isdecimal() else None
        if worker is None:
            known = ", ".join(f"{role}:{number}" for role, number in self._deployment.workers)
            raise ScenarioError(f"there is no process {name!r}; there are {known}")
        return worker

    def _on_visible(self, visible: VisibleRecord) -> None:
        if visible.at_us < 0:  # the first heartbeats and journal records of processes that start
            return
        record = visible.record
        value, text = _read(record.value)
        self._written.append(
            WrittenRecord(
                at_ms=visible.at_us // 1000,
                topic=visible.topic,
                partition=visible.partition,
                key=None if record.key is None else record.key.decode("utf-8", "surrogateescape"),
                value=value,
                text=text,
                headers={name: said.decode("utf-8", "surrogateescape") for name, said in record.headers or ()},
            )
        )


def _read(data: bytes | None) -> tuple[Any, str | None]:
    """The JSON in ``data``, or None and its text."""
    if data is None:
        return None, None
    text = data.decode("utf-8", "surrogateescape")
    try:
        value = decoded_json(data)
    except ValueError:
        return None, text
    return (None, text) if value is None else (value, None)
