"""One run: production's engines and routers on the fakes, under the faults of a seed, watched by the invariants."""

import gc
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from schemas.topics import EVENTS, MARKS, TRADES, all_topics
from streams.clearing.engine import Engine
from streams.errors import MarginClearingError
from streams.memory.clients import FakeProducer
from streams.memory.kafka import MemoryKafka, memory_redis
from streams.memory.redis import Server
from streams.memory.scheduler import Process, Scheduler, Violation, VirtualEvent
from streams.rescaling.rescaling import Rescaling, drive
from streams.routing.router import Router
from streams.watchdog import Watchdog
from tests.simulation.invariants import ENGINE_GROUP, Watch, check_settled
from tests.simulation.losses import delete_events
from tests.simulation.production import remembered_parameters, with_constants
from tests.simulation.scenario import SETTLE_US, Fault, Mode, Scenario, Slot
from tests.simulation.workload import Workload

STEPS_MAX = 400_000
TRACE_LINES = 60
LOOK_S = 0.02
"""How often whoever changes the number of shards looks whether it can go on."""


@dataclass(slots=True)
class Result:
    """What became of a run. ``failure`` is the invariant that does not hold; ``trace`` ends with what led to it.

    ``digest`` is of everything that happened and when, ``log_digest`` of every byte of every log at the end.
    ``lost`` and ``repeated`` count commands, ``attended`` the times that a group needed an operator, ``ends`` how
    processes ended by themselves.
    """

    seed: int
    mode: Mode
    digest: int
    log_digest: int
    steps: int
    committed: int
    aborted: int
    commands: int
    lost: int
    repeated: int
    attended: int
    settled_us: int
    faults: Counter[str]
    ends: Counter[str]
    failure: str | None = None
    trace: list[str] = field(default_factory=list)


def run(
    seed: int, mode: Mode, *, trace_lines: int | None = TRACE_LINES, rates: Mapping[str, float] | None = None
) -> Result:
    """Run one seed; never raises for what production does.

    ``trace_lines`` None keeps the whole trace; ``rates`` makes faults as frequent as they say, whatever the seed says.
    """
    with remembered_parameters():
        scenario = Scenario.draw(seed, mode)
        for name, rate in (rates or {}).items():
            setattr(scenario.rates, name, rate)
        world = World(scenario, trace_lines)
        with with_constants(world.scenario.constants):
            collecting = gc.isenabled()
            gc.disable()
            try:
                return world.run()
            finally:
                if collecting:
                    gc.enable()


class World:
    """Everything there is in one run."""

    def __init__(self, scenario: Scenario, trace_lines: int | None) -> None:
        self.scenario = scenario
        self.scheduler = Scheduler(scenario.seed, trace_lines)
        self.redis = Server(self.scheduler)
        self.watch = Watch(self.scheduler, _partition_counts(scenario), self.redis)
        self.cluster = self.watch.cluster
        self.workload = Workload(self.scheduler, self.cluster, scenario.seed)
        if scenario.wrong_clocks_us:
            self.workload.oracle_off_us = self.scheduler.random.choice(scenario.wrong_clocks_us)
        self.watch.on_command = self.workload.on_command
        self.rates = scenario.rates
        self.slots = [Deployed(self, slot) for slot in scenario.slots]
        self.faults: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.healed = False
        self.attended = self.settled_us = 0
        self._processes: list[Process] = []
        self.cluster.marker_delay_us = self._marker_delay_us

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        scenario, scheduler = self.scenario, self.scheduler
        failure: BaseException | None = None
        try:
            self._begin()
            scheduler.run(scenario.busy_us, STEPS_MAX)
            if scenario.mode == "liveness":
                self._settle()
            self.watch.check_end()
        except Violation as violation:
            failure = violation
        except Exception as error:
            failure = error
        finally:
            self._end()
        return Result(
            seed=scenario.seed,
            mode=scenario.mode,
            digest=scheduler.digest,
            log_digest=self.cluster.digest(),
            steps=scheduler.steps,
            committed=self.cluster.committed,
            aborted=self.cluster.aborted,
            commands=len(self.watch.commands),
            lost=self.watch.lost,
            repeated=self.watch.repeated,
            attended=self.attended,
            settled_us=self.settled_us,
            faults=self.faults + self.rates.counts,
            ends=self.ends,
            failure=None if failure is None else _described(failure),
            trace=[f"{time_us / 1e6:9.6f} {who:14} {what}" for time_us, who, what in scheduler.lines],
        )

    def _begin(self) -> None:
        scheduler = self.scheduler
        self.workload.begin()
        for deployed in self.slots:
            scheduler.after(deployed.slot.starts_us, deployed.start)
        for fault in self.scenario.faults:
            scheduler.after(fault.at_us, lambda fault=fault: self._strike(fault))  # type: ignore[misc]
        scheduler.after(150_000, self._save_redis)

    def _settle(self) -> None:
        """Nothing goes wrong any more: everything must be done within ``SETTLE_US``."""
        scheduler = self.scheduler
        scheduler.note("world", "healed")
        self.healed = True
        self.rates.stop()
        self.workload.calm()
        self.redis.down_until = 0
        for process in self._processes:
            process.crash_rate = 0.0
            if self.scenario.wrong_clocks_us:
                process.skew_us = 0
            process.cut_until = min(process.cut_until, scheduler.now)
            process.frozen_until = min(process.frozen_until, scheduler.now + 1)
        deadline_us = scheduler.now + SETTLE_US
        marks_end = self.cluster.topics[MARKS][0].end
        while (left := self._left(marks_end)) is not None:
            if scheduler.now > deadline_us:
                raise Violation(f"everything settles in {SETTLE_US / 1e6:g} s when nothing goes wrong: {left}")
            scheduler.run(scheduler.now + 50_000, STEPS_MAX)
            self._attend()
        self.settled_us = scheduler.now - self.scenario.busy_us
        check_settled(self.watch)

    def _left(self, marks_end: int) -> str | None:
        """What is still to be done."""
        if self.workload.executing:
            return f"{self.workload.executing} commands are being executed"
        for deployed in self.slots:
            if deployed.slot.role == "rescaler" and not deployed.is_done:
                return f"{deployed.slot.name} is not done: {self.cluster.layout}"
        return self.watch.unsettled(marks_end)

    def _attend(self) -> None:
        """The operator's part: a group of which partitions are without an owner for good needs another rebalance."""
        for group in self.cluster.groups.values():
            if group.unowned() and not any(process.dead for process in self._running()):
                self.scheduler.note("world", f"{group.name}: nobody has {group.unowned()}")
                self.attended += 1
                group.rebalance()

    def may_start(self, deployed: "Deployed") -> bool:
        """Whether ``deployed`` does not wait for another: one change of the number of shards comes after the other."""
        if deployed.slot.role != "rescaler":
            return True
        return all(other.is_done for other in self.slots[: self.slots.index(deployed)] if other.slot.role == "rescaler")

    def _running(self) -> list[Process]:
        """The processes that are to run: a change of the number of shards ends, and that is well."""
        running = (deployed for deployed in self.slots if deployed.slot.role != "rescaler" or not deployed.is_done)
        return [deployed.process for deployed in running if deployed.process is not None]

    def _end(self) -> None:
        for process in self._processes:
            process.on_kill = lambda: None
            process.dead = True
            process.unwind()

    # --- faults ------------------------------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        if self.healed:
            return
        self.faults[fault.kind] += 1
        self.scheduler.note("world", fault.kind)
        now = self.scheduler.now
        if fault.kind == "redis down":
            self.redis.down_until = now + int(800_000 * fault.strength)
        elif fault.kind == "redis flushed":
            self.redis.flush()
        elif fault.kind == "redis rolled back":
            self.redis.roll_back()
            if self.faults["redis evicts"]:
                self._mark_evicted()  # the snapshot may have been taken after it
        elif fault.kind == "events deleted":
            number = int(fault.draw * self.scenario.shards)
            committed = self.cluster.offsets.get(ENGINE_GROUP, {}).get((EVENTS, number), 0)
            delete_events(self.cluster.topics[EVENTS][number], committed, int(8 * fault.strength))
        elif fault.kind == "redis evicts":
            self._evict(int(fault.draw * 1000))
        else:
            deployed = self.slots[int(fault.draw * len(self.slots))]
            deployed.strike(fault.kind, fault.strength)

    def _evict(self, draw: int) -> None:
        self.redis.evict(draw)
        self._mark_evicted()

    def _mark_evicted(self) -> None:
        for truth in self.watch.shards:
            truth.evicted = True

    def _save_redis(self) -> None:
        self.redis.snapshot()
        self.scheduler.after(150_000, self._save_redis)

    def _marker_delay_us(self) -> int:
        random = self.scheduler.random
        slow = self.rates.strikes("slow_markers", random.random())
        return random.randrange(600_000) if slow else random.randrange(3_000)

    # --- processes ---------------------------------------------------------------------------------------------------

    def spawn(self, name: str, body: Callable[[], None], on_end: Callable[[BaseException | None], None]) -> Process:
        """Start a process."""
        process = Process(self.scheduler, name)
        process.crash_rate = 0.0 if self.healed else self.rates.crash_call
        if not self.healed and self.scenario.skew_us:
            process.skew_us = self.scheduler.random.randrange(-self.scenario.skew_us, self.scenario.skew_us)
        if not self.healed and self.scenario.wrong_clocks_us and name.startswith("router"):
            process.skew_us += self.scheduler.random.choice(self.scenario.wrong_clocks_us)

        def killed() -> None:
            self.faults["crash"] += 1
            self.vanish(process)
            on_end(None)

        def ended(error: BaseException | None) -> None:
            self.ends["stopped" if error is None else type(error).__name__] += 1
            self.scheduler.note(name, f"ENDED {error!r}")
            process.on_kill = lambda: self.vanish(process)
            process.kill("ended")
            if error is not None and not isinstance(error, MarginClearingError):
                self.scheduler.fail(error)
            on_end(error)

        process.on_kill, process.on_end = killed, ended
        self._processes.append(process)
        self.scheduler.spawn(process, "main", body)
        return process

    def vanish(self, process: Process) -> None:
        """The process does not heartbeat any more; what it has sent still arrives."""
        for client in process.clients:
            if isinstance(client, FakeProducer):
                client.die()
        self.watch_sessions(process)

    def watch_sessions(self, process: Process) -> None:
        """Let the groups expel the process when its session has timed out."""
        for group in self.cluster.groups.values():
            group.watch(process)


class Deployed:
    """One deployed process: started again whenever it ends, as a supervisor does, unless its work ``is_done``."""

    def __init__(self, world: World, slot: Slot) -> None:
        self.slot = slot
        self._world = world
        self._starts = 0
        self.is_done = False
        self.process: Process | None = None
        self._stop: VirtualEvent | None = None

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self.is_done:
            return
        if not self._world.may_start(self):
            self._world.scheduler.after(20_000, self.start)
            return
        if self.process is not None and not self.process.dead:
            return
        self._starts += 1
        world, slot = self._world, self.slot
        settings = self._settings()
        stop = self._stop = VirtualEvent(world.scheduler)
        process: Process | None = None

        def body() -> None:
            assert process is not None
            kafka = MemoryKafka(settings, world.cluster, process, world.rates)
            if slot.role == "router":
                Router.build(kafka, stop, Watchdog()).run()
            elif slot.role == "rescaler":
                self._rescale(kafka)
            else:
                redis = memory_redis(world.redis, process, world.rates)
                Engine.build(kafka, stop, Watchdog(), redis).run()

        def ended(_: BaseException | None) -> None:
            if self.process is process:
                world.scheduler.after(world.scheduler.random.randrange(5_000, 150_000), self.start)

        process = world.spawn(f"{slot.name}.{self._starts}", body, ended)
        self.process = process

    def _rescale(self, kafka: MemoryKafka) -> None:
        """Change the number of shards, or go on with that."""
        rescaling = Rescaling(kafka, self.slot.shards)
        rescaling.begin(rescaling.plan())
        drive(rescaling, kafka.runtime, lambda _: None, look_s=LOOK_S)
        rescaling.close()
        self.is_done = True

    def _settings(self) -> Any:
        settings = self._world.scenario.settings
        if not self.slot.static:
            return settings
        return replace(settings, service=replace(settings.service, instance_id=self.slot.name))

    def strike(self, kind: str, strength: float) -> None:
        """Something happens to the process."""
        world, process = self._world, self.process
        if process is None or process.dead:
            return
        settings = world.scenario.settings.kafka
        if kind == "kill":
            process.kill("by the world")
        elif kind == "stop":
            assert self._stop is not None
            self._stop.set()
        else:
            longest_us = 2_000 * max(settings.session_timeout_ms, settings.transaction_timeout_ms)
            silent_us = 1 + int(longest_us * strength)
            process.go_silent(**{"cut_us" if kind == "cut" else "frozen_us": silent_us})
            world.watch_sessions(process)
            if kind == "replace":
                self.process = None
                world.scheduler.after(int(silent_us * 0.7 * strength), self.start)


def _partition_counts(scenario: Scenario) -> dict[str, int]:
    counts = {"one": 1, "any": scenario.partitions["any"], "shards": scenario.shards}
    counts |= dict.fromkeys(("trades", "prices"), scenario.partitions["trades"])
    by_topic = {topic.name: counts[topic.partitioning] for topic in all_topics()}
    by_topic[TRADES] = scenario.partitions["trades"]
    return by_topic


def _described(failure: BaseException) -> str:
    if isinstance(failure, Violation):
        return str(failure)
    return "".join(traceback.format_exception(failure))
