"""The faults of a cluster of three brokers, as data, and how each is done to a running pipeline.

A row says what befalls which brokers. Which broker leads or coordinates what is asked when it is about to happen. An
injection returns when the fault is done, and everything must work again then, while brokers may still be away;
:meth:`BrokerStrike.undo` brings them back.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from infra.local.kafka import KafkaServer
from schemas import topics
from schemas.partitioning import shard_of
from streams.settings import load
from tests.faults.load import SYMBOLS
from tests.faults.pipeline import PARTITIONS, Pipeline

BrokerFaultKind = Literal["kill", "pause", "rolling_restart", "kill_several"]
Victim = Literal[
    "",
    "bystander",
    "leader_of_marks",
    "leader_of_trades",
    "coordinator_of_engines",
    "coordinator_of_routers",
    "coordinator_of_oracles",
    "coordinator_of_transactions",
]
GROUP_OFFSETS, TRANSACTIONS = "__consumer_offsets", "__transaction_state"
AWAY_S = 20.0
PAUSE_S = 1.5 * load({}).kafka.session_timeout_ms / 1000
IN_SYNC_WITHIN_S = 120.0
DETECTION_S = 6.0
"""So long a local cluster waits before it does without a broker (``broker.session.timeout.ms``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFault:
    """One row. ``seconds`` is for how long brokers are away, or stand still, at least; ``brokers`` how many of them.

    ``expected_s``: so long after the fault, or after the brokers' return where a majority was away, everything works.
    """

    kind: BrokerFaultKind
    victim: Victim = ""
    brokers: int = 1
    seconds: float = 0.0
    expected_s: float = DETECTION_S + 5.0
    short: bool = False

    @property
    def name(self) -> str:
        """Unique among the rows."""
        parts = [self.kind.replace("_", "-"), self.victim.replace("_", "-")]
        parts += [f"{self.brokers}-of-3"] if self.kind == "kill_several" else []
        parts += [f"{self.seconds:g}s"] if self.kind == "kill_several" else []
        return ":".join(filter(None, parts))


BROKER_ROWS = (
    BrokerFault(kind="kill", victim="bystander"),
    BrokerFault(kind="kill", victim="leader_of_marks", short=True),
    BrokerFault(kind="kill", victim="leader_of_trades"),
    BrokerFault(kind="kill", victim="coordinator_of_engines", short=True),
    BrokerFault(kind="kill", victim="coordinator_of_routers", short=True),
    BrokerFault(kind="kill", victim="coordinator_of_oracles"),
    BrokerFault(kind="kill", victim="coordinator_of_transactions", short=True),
    BrokerFault(kind="rolling_restart", short=True),
    BrokerFault(kind="pause", victim="leader_of_marks", seconds=PAUSE_S, expected_s=PAUSE_S + 5.0),
    BrokerFault(kind="pause", victim="coordinator_of_engines", seconds=PAUSE_S, expected_s=PAUSE_S + 5.0, short=True),
    BrokerFault(kind="kill_several", brokers=2, seconds=AWAY_S, expected_s=10.0, short=True),
    BrokerFault(kind="kill_several", brokers=3, expected_s=15.0, short=True),
    BrokerFault(kind="kill_several", brokers=3, seconds=AWAY_S, expected_s=15.0),
)
BROKER_FAULTS = {fault.name: fault for fault in BROKER_ROWS}
BROKER_SHORT = [fault.name for fault in BROKER_ROWS if fault.short]


@dataclass(slots=True)
class Duties:
    """What every broker leads and coordinates, by its number."""

    by_broker: dict[int, list[str]] = field(default_factory=dict)

    def of(self, duty: str) -> int:
        """The broker that has a duty."""
        return next(number for number, duties in self.by_broker.items() if duty in duties)


def java_hash(text: str) -> int:
    """Java's ``String.hashCode``, by which Kafka chooses the partition of a group or a transactional id."""
    value = 0
    for character in text:
        value = (31 * value + ord(character)) & 0xFFFFFFFF
    return value & 0x7FFFFFFF


class BrokerStrike:
    """One fault being done to the brokers of ``pipeline``.

    ``struck_at`` (seconds of the wall clock) is when it began, ``counts_from`` since when it is to be recovered from.
    """

    def __init__(self, pipeline: Pipeline, fault: BrokerFault) -> None:
        self.pipeline, self.fault = pipeline, fault
        self.struck_at = self.counts_from = time.time()

    def inject(self) -> str:
        """Do it; the evidence."""
        self.struck_at = self.counts_from = time.time()
        return _INJECTIONS[self.fault.kind](self)

    def undo(self) -> None:
        """Bring back who is still away and wait until every replica is in sync.

        Raises:
            NotInTime: that does not come about.
        """
        cluster = self.pipeline.cluster
        cluster.start()
        self.pipeline.wait(lambda: cluster.is_in_sync, "every replica in sync", IN_SYNC_WITHIN_S)

    def let_pass(self, seconds: float) -> None:
        """Let time pass, in which whoever ends is started again."""
        until = time.monotonic() + seconds
        self.pipeline.wait(lambda: time.monotonic() >= until, "time", seconds + 60)

    def victim(self) -> tuple[KafkaServer, str]:
        """Whom it hits, with the evidence of what that broker had to do."""
        duties = self.duties()
        victim = self.fault.victim.replace("_", " ")
        if self.fault.victim == "bystander":
            number = min(duties.by_broker, key=lambda each: len(duties.by_broker[each]))
        else:
            number = duties.of(victim)
        node = self.pipeline.cluster.node(number)
        return node, f"broker {number}, {', '.join(duties.by_broker[number]) or 'without duties'}"

    def duties(self) -> Duties:
        """Who has which duty now."""
        metadata = self.pipeline.admin.list_topics(timeout=10)
        settings = self.pipeline.settings
        duties = Duties({number: [] for number in metadata.brokers})

        def note(duty: str, topic: str, partition: int) -> None:
            known = duties.by_broker[metadata.topics[topic].partitions[partition].leader]
            if duty not in known:
                known.append(duty)

        note("leader of marks", topics.MARKS, 0)
        note("leader of trades", topics.TRADES, shard_of(next(iter(SYMBOLS)), PARTITIONS))
        groups = {
            "coordinator of engines": settings.engine.group_id,
            "coordinator of routers": settings.router.group_id,
            "coordinator of oracles": settings.oracle.leader_group,
        }
        for duty, group in groups.items():
            note(duty, GROUP_OFFSETS, java_hash(group) % len(metadata.topics[GROUP_OFFSETS].partitions))
        engine = self.pipeline.fleet.of("engine")[0]
        transactional_id = f"{settings.engine.group_id}-{engine.member_name}"
        partition = java_hash(transactional_id) % len(metadata.topics[TRANSACTIONS].partitions)
        note("coordinator of transactions", TRANSACTIONS, partition)
        return duties


def _kill(strike: BrokerStrike) -> str:
    node, evidence = strike.victim()
    before = node.process.pid
    strike.struck_at = strike.counts_from = time.time()
    node.kill()
    return f"process {before} killed: {evidence}"


def _pause(strike: BrokerStrike) -> str:
    node, evidence = strike.victim()
    strike.struck_at = strike.counts_from = time.time()
    node.pause()
    strike.let_pass(strike.fault.seconds)
    node.resume()
    return f"stood still for {time.time() - strike.struck_at:.1f} s: {evidence}"


def _rolling_restart(strike: BrokerStrike) -> str:
    """As an operator does it: one after the other, each when all replicas are in sync."""
    cluster, took_s = strike.pipeline.cluster, []
    for node in cluster.nodes:
        began = time.monotonic()
        node.stop()
        node.start()
        strike.pipeline.wait(lambda: cluster.is_in_sync, "every replica in sync", IN_SYNC_WITHIN_S)
        took_s.append(f"{time.monotonic() - began:.1f} s")
    strike.counts_from = time.time()
    return f"restarted one after the other, in {', '.join(took_s)}"


def _kill_several(strike: BrokerStrike) -> str:
    """A majority is away: nothing can be acknowledged until it is back."""
    cluster = strike.pipeline.cluster
    victims = cluster.nodes[: strike.fault.brokers]
    strike.struck_at = time.time()
    for node in victims:
        node.kill()
    strike.let_pass(strike.fault.seconds)
    cluster.start()
    strike.counts_from = time.time()
    return f"{len(victims)} killed and away for {strike.counts_from - strike.struck_at:.1f} s"


_INJECTIONS: dict[BrokerFaultKind, Callable[[BrokerStrike], str]] = {
    "kill": _kill,
    "pause": _pause,
    "rolling_restart": _rolling_restart,
    "kill_several": _kill_several,
}
