"""Production's routers on the in-memory cluster: what is published there, what they write, what their group commits.

A router runs by itself whenever time passes, and is started again only when a test says so. Time is the scheduler's.
"""

from collections.abc import Callable
from typing import Any, Self

import orjson
from msgspec.structs import replace

from schemas.codec import Decoder
from schemas.messages import EventFrame, SourceRange
from schemas.topics import EVENTS, ROUTER, TRADES
from streams.memory.clients import Rates
from streams.memory.kafka import MemoryKafka
from streams.memory.log import Cluster, Place
from streams.memory.pipeline import partition_counts
from streams.memory.scheduler import Process, Scheduler, VirtualEvent
from streams.routing.router import Router
from streams.routing.trade_ids import TradeIds
from streams.settings import Settings, load
from streams.watchdog import Watchdog
from tests.virtual_time import VirtualTime

SHARDS = 3

_FRAME = Decoder[EventFrame](EventFrame)


class RouterProcess:
    """A process with one router. ``error`` is what ended it, ``router`` its router once it has been built."""

    def __init__(self, bench: "RouterBench", name: str) -> None:
        self.rates = Rates()
        self.error: BaseException | None = None
        self.router: Router | None = None
        self.process = Process(bench.scheduler, name)
        self.process.on_end = self._note_end
        self.has_ended = False
        self._bench = bench
        self._stop = VirtualEvent(bench.scheduler)
        settings = replace(bench.settings, service=replace(bench.settings.service, instance_id=name))
        kafka = MemoryKafka(settings, bench.cluster, self.process, self.rates)

        def body() -> None:
            self.router = Router.build(kafka, self._stop, Watchdog())
            self.router.run()

        bench.scheduler.spawn(self.process, "main", body)

    def _note_end(self, error: BaseException | None) -> None:
        self.has_ended, self.error = True, error

    def stop(self) -> None:
        """End as a process does that is told to; nothing must have gone wrong."""
        self._stop.set()
        self._bench.wait(lambda: self.has_ended, "the router has ended")
        assert self.error is None
        self._forget()

    def refusal(self) -> str:
        """What a router says that ends by an error."""
        self._bench.wait(lambda: self.has_ended, "the router has ended by itself")
        self._forget()
        assert self.error is not None
        return str(self.error)

    def kill(self) -> None:
        """End at once."""
        self.process.kill("by the test")
        self._bench.advance(1)
        self._forget()

    def _forget(self) -> None:
        self.process.dead = True
        for group in self._bench.cluster.groups.values():
            group.watch(self.process)


class RouterBench(VirtualTime):
    """An in-memory cluster of ``SHARDS`` shards, each of the exchange's topics with ``partitions``."""

    def __init__(self, partitions: int = 1) -> None:
        given = {"topics.shards": SHARDS, "topics.partitions": partitions, "router.commit_ms": 50}
        self.settings: Settings = load({}, given | {"kafka.bootstrap_servers": "kafka-1:9092"})
        self.scheduler = Scheduler(1, trace_lines=60)
        self.cluster = Cluster(self.scheduler, partition_counts(SHARDS, partitions), lambda _: None)
        self.group = self.settings.router.group_id
        self._processes: list[RouterProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for started in self._processes:
            started.process.dead = True
            started.process.unwind()

    def operate(self, function: Callable[[MemoryKafka], Any]) -> Any:
        """What ``function`` returns, or raises, in a process of its own."""
        process = Process(self.scheduler, "operator")
        kafka = MemoryKafka(self.settings, self.cluster, process)
        return self.do(process, lambda: function(kafka))

    def start(self, name: str = "router") -> RouterProcess:
        """Start a router."""
        self._processes.append(RouterProcess(self, name))
        return self._processes[-1]

    def routed(self) -> None:
        """Start a router, let it route and commit all that there is and spend every word, and stop it."""
        router = self.start()
        self.wait(lambda: self.all_committed() and not any(self.words().values()), "everything is committed")
        router.stop()

    def publish(self, topic: str, value: Any, partition: int = 0) -> None:
        data = value if isinstance(value, bytes) else orjson.dumps(value)
        self.cluster.append(topic, None, data, partition)

    def committed(self, place: Place = (TRADES, 0)) -> int:
        """The group's offset; -1: none."""
        return self.cluster.offsets.get(self.group, {}).get(place, -1)

    def text(self, place: Place = (TRADES, 0)) -> str:
        """What stands beside the group's offset."""
        return self.cluster.committed_metadata(self.group, place)

    def all_committed(self, topic: str = TRADES) -> bool:
        return all(max(self.committed((topic, log.number)), 0) == log.end for log in self.cluster.topics[topic])

    def frames(self, shard: int, first: int = 0) -> list[EventFrame]:
        """The frames of a shard from the one at offset ``first`` on."""
        return [_FRAME(record.value) for record in self.cluster.topics[EVENTS][shard].committed(first)]

    def ends(self) -> list[int]:
        """Where the shards' logs end."""
        return [log.end for log in self.cluster.topics[EVENTS]]

    def ranges(self, shard: int, first: int = 0, topic: str = TRADES) -> list[SourceRange]:
        """What the frames of a shard say of a topic, in order."""
        return [said for frame in self.frames(shard, first) for said in frame.sources if said.topic == topic]

    def memory(self, partition: int = 0) -> TradeIds:
        """The memory of trade ids that is committed."""
        memory, prefix = TradeIds(), f"{TRADES}:{partition}:".encode()
        for record in self.cluster.topics[ROUTER][partition].committed():
            if (record.key or b"").startswith(prefix):
                memory.recall((record.key or b"").removeprefix(prefix).decode(), record.value)
        return memory

    def words(self) -> dict[bytes, bytes | None]:
        """The last operator's word about each place; None: it was spent."""
        records = self.cluster.topics[ROUTER][0].committed()
        return {record.key: record.value for record in records if record.key and record.key.startswith(b"accepted:")}
