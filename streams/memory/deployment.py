"""The processes of a pipeline in memory: started, struck, and started again as an orchestrator does.

Owns which role runs where and what happens to it. Each process has a name that survives its restarts (static group
membership), as an orchestrator with stable names gives it, so a process that comes back takes up what it had.
"""

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from streams.clearing.engine import Engine
from streams.errors import MarginClearingError
from streams.memory.brokers import VisibleCluster, WaitingConsumer
from streams.memory.clients import FakeProducer
from streams.memory.kafka import MemoryKafka, memory_redis
from streams.memory.oracle import MemoryOracle
from streams.memory.redis import Server
from streams.memory.scheduler import Process, VirtualEvent
from streams.rescaling.rescaling import Rescaling, drive
from streams.routing.router import Router
from streams.settings import Settings
from streams.tables.tables import Connect
from streams.watchdog import Watchdog

RESCALER = "rescaler"

RESTART_US = 1_000_000
"""So long after its end a process is started again."""


class Deployment:
    """All processes, by role and number, on one cluster and one Redis.

    ``on_broken`` is told of every process that ended by an error that nobody raised on purpose.
    """

    def __init__(
        self,
        cluster: VisibleCluster,
        settings: Settings,
        counts: Mapping[str, int],
        on_broken: Callable[[str, BaseException], None],
    ) -> None:
        self.cluster = cluster
        self.on_broken = on_broken
        self.scheduler = cluster.scheduler
        self.settings = settings
        self._redis = Server(self.scheduler)
        self._redis.down_until = self.scheduler.now
        self.workers = {
            (role, number): Worker(self, role, number) for role, count in counts.items() for number in range(count)
        }

    def start(self) -> None:
        """Start every process."""
        for worker in self.workers.values():
            worker.start()

    def end(self) -> None:
        """End every process at once."""
        for worker in self.workers.values():
            worker.end()

    def rescale(self, shards: int) -> None:
        """Have a process change the number of shards; it is started again until that is done."""
        number = sum(role == RESCALER for role, _ in self.workers)
        worker = self.workers[RESCALER, number] = Worker(self, RESCALER, number, shards)
        worker.start()

    def watch(self, process: Process) -> None:
        """Let the groups expel the process when its session has timed out."""
        for group in self.cluster.groups.values():
            group.watch(process)

    def kafka(self, process: Process) -> MemoryKafka:
        """The cluster as ``process`` sees it."""
        settings = replace(self.settings, service=replace(self.settings.service, instance_id=process.name))
        return MemoryKafka(settings, self.cluster, process, new_consumer=WaitingConsumer)

    def redis(self, process: Process) -> Connect:
        """Connections of ``process`` to the tables' Redis."""
        return memory_redis(self._redis, process)


class Worker:
    """One deployed process."""

    def __init__(self, deployment: Deployment, role: str, number: int, shards: int = 0) -> None:
        self._shards = shards
        self._deployment = deployment
        self._role = role
        self._number = number
        self._name = f"{role}-{number}"
        self._process: Process | None = None
        self._ahead_us = 0
        self._price_places: dict[int, int] = {}
        self._ended = False

    def start(self) -> None:
        """Start the process."""
        if self._ended:
            return
        scheduler = self._deployment.scheduler
        process = self._process = Process(scheduler, self._name)
        process.skew_us = self._ahead_us
        process.frozen_until = process.cut_until = process.silent_since = scheduler.now

        def on_kill() -> None:
            for client in process.clients:
                if isinstance(client, FakeProducer):
                    client.die()
            self._deployment.watch(process)
            scheduler.after(RESTART_US, self.start)

        def on_end(error: BaseException | None) -> None:
            process.kill("ended")
            if error is not None and not isinstance(error, MarginClearingError):
                self._deployment.on_broken(f"{self._role}:{self._number}", error)

        process.on_kill, process.on_end = on_kill, on_end
        scheduler.spawn(process, "main", self._body(process))

    def kill(self) -> None:
        """End the process at once; it is started again after ``RESTART_US``."""
        if self._process is not None:
            self._process.kill("by the scenario")

    def freeze(self, for_us: int) -> None:
        """Let the process stand still."""
        if self._process is not None and not self._process.dead:
            self._process.go_silent(frozen_us=for_us)
            self._deployment.watch(self._process)

    def set_clock(self, ahead_us: int) -> None:
        """Put the clock of the process's host, which outlives the process, so far ahead of the right time."""
        self._ahead_us = ahead_us
        if self._process is not None:
            self._process.skew_us = ahead_us

    def end(self) -> None:
        """End the process for good."""
        self._ended = True
        if self._process is not None:
            self._process.on_kill = lambda: None
            self._process.dead = True
            self._process.unwind()

    def _body(self, process: Process) -> Callable[[], None]:
        """What the process runs."""
        deployment, stop = self._deployment, VirtualEvent(self._deployment.scheduler)
        kafka = deployment.kafka(process)
        if self._role == "engine":
            return lambda: Engine.build(kafka, stop, Watchdog(), deployment.redis(process)).run()
        if self._role == RESCALER:
            return lambda: self._rescale(kafka)
        if self._role == "router":
            return lambda: Router.build(kafka, stop, Watchdog()).run()
        return MemoryOracle(kafka, deployment.cluster, self._price_places).run

    def _rescale(self, kafka: MemoryKafka) -> None:
        rescaling = Rescaling(kafka, self._shards)
        rescaling.begin(rescaling.plan())
        drive(rescaling, kafka.runtime, lambda _: None)
        rescaling.close()
        self._ended = True
