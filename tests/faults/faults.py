"""The faults, as data: what happens to whom, where in a commit, and for how long.

A row names a kind of injection (:mod:`tests.faults.injections`) and its arguments. ``short`` rows are the run of
``pytest --long``, which has every kind; ``python -m tests.faults`` draws from all of them.
"""

from dataclasses import dataclass
from typing import Literal

from tests.faults.fleet import Membership, Role
from tests.faults.proxy import (
    ADD_OFFSETS_TO_TXN,
    END_TXN,
    HEARTBEAT,
    INIT_PRODUCER_ID,
    JOIN_GROUP,
    PRODUCE,
    TXN_OFFSET_COMMIT,
)

Kind = Literal[
    "kill_at_point",
    "kill_while_starting",
    "kill_at_random",
    "zombie",
    "zombie_oracle",
    "churn",
    "partition",
    "kafka_kill",
    "kafka_pause",
    "redis_kill",
    "redis_flush",
    "redis_old_dump",
    "redis_full",
    "redis_evicts",
    "redis_stall",
    "redis_client_pause",
    "cut",
    "cut_all",
    "delay",
    "rescale",
]
At = Literal["request", "response"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row. ``passes``: at the how-manieth pass of ``point``; ``api`` is Kafka's key of the request that is hit."""

    kind: Kind
    role: Role = "engine"
    membership: Membership = "static"
    point: str = ""
    passes: int = 1
    seconds: float = 0.0
    api: int | None = None
    at: At = "request"
    times: int = 1
    whom: str = ""
    """Who is struck while the number of shards changes (:mod:`tests.faults.rescale_strikes`)."""
    refused_by: str = ""
    """What a zombie's log must say once it goes on."""
    short: bool = False

    @property
    def name(self) -> str:
        """Unique among the rows."""
        of_worker = ("kill", "zombie", "churn", "partition", "cut", "delay")
        parts = [self.kind.replace("_", "-")]
        if self.kind.startswith(of_worker) and self.kind != "cut_all":
            parts.append(self.role)
            whoever_leads = self.role == "oracle" and self.kind != "kill_at_random"
            if self.kind in ("kill_at_point", "kill_while_starting", "kill_at_random", "zombie") and not whoever_leads:
                parts.append(self.membership)
        parts += [named.replace("_", "-") for named in (self.point, self.whom) if named]
        parts += [f"{_API_NAMES[self.api]}-{self.at}"] if self.api is not None else []
        parts += [str(self.passes)] if self.passes > 1 else []
        parts += [str(self.times)] if self.kind == "churn" else []
        return ":".join(parts)


_API_NAMES = {
    PRODUCE: "produce",
    JOIN_GROUP: "join-group",
    HEARTBEAT: "heartbeat",
    INIT_PRODUCER_ID: "init-producer-id",
    ADD_OFFSETS_TO_TXN: "add-offsets",
    END_TXN: "end-txn",
    TXN_OFFSET_COMMIT: "offset-commit",
}

_TRANSACTION = ("before_produce", "after_produce", "after_offsets", "after_commit")
_REDIS_WRITE = ("before_redis_write", "within_redis_write", "after_redis_write")
_SHORT_KILLS = {
    ("engine", "static", "after_offsets"),
    ("engine", "dynamic", "within_redis_write"),
    ("router", "dynamic", "after_produce"),
}
_ROLES: tuple[Role, ...] = ("engine", "router")
_MEMBERSHIPS: tuple[Membership, ...] = ("static", "dynamic")


def _kills() -> list[Fault]:
    points: dict[Role, tuple[str, ...]] = {"engine": (*_TRANSACTION, *_REDIS_WRITE), "router": _TRANSACTION}
    rows = [
        Fault(
            kind="kill_at_point",
            role=role,
            membership=membership,
            point=point,
            short=(role, membership, point) in _SHORT_KILLS,
        )
        for role in _ROLES
        for membership in _MEMBERSHIPS
        for point in points[role]
    ]
    oracle = ("before_send", "after_send", "before_table", "after_table", "before_redis_write", "after_redis_write")
    rows += [Fault(kind="kill_at_point", role="oracle", point=point, short=point == "after_send") for point in oracle]
    # The first transactions of an engine are the claims of its shards.
    rows += [
        Fault(kind="kill_while_starting", membership=membership, point=point, passes=passes)
        for membership in _MEMBERSHIPS
        for point in ("after_produce", "after_offsets", "after_commit")
        for passes in (1, 2)
    ]
    rows += [
        Fault(kind="kill_at_random", role=role, membership=membership)
        for role in (*_ROLES, "oracle")
        for membership in _MEMBERSHIPS
    ]
    return rows


def _zombies() -> list[Fault]:
    refused = {"engine": "retaking_all_shards", "router": "batch_dropped"}
    rows = [
        Fault(
            kind="zombie",
            role=role,
            membership=membership,
            point=point,
            refused_by=refused[role],
            short=(role, membership, point) == ("engine", "dynamic", "before_produce"),
        )
        for role in _ROLES
        for membership in _MEMBERSHIPS
        for point in ("before_produce", "after_produce", "after_offsets")
    ]
    rows += [
        Fault(
            kind="zombie",
            membership=membership,
            point=point,
            refused_by="table_fenced",
            short=(membership, point) == ("static", "before_redis_write"),
        )
        for membership in _MEMBERSHIPS
        for point in ("before_redis_write", "within_redis_write")
    ]
    rows += [
        Fault(kind="zombie_oracle", role="oracle", point=p, short=p == "before_send")
        for p in ("before_send", "after_send")
    ]
    return rows


def _network() -> list[Fault]:
    rows = [
        Fault(
            kind="cut",
            role=role,
            api=api,
            at=at,
            short=(role, api) == ("engine", END_TXN) or (role, api, at) == ("router", TXN_OFFSET_COMMIT, "response"),
        )
        for role in _ROLES
        for api in (END_TXN, TXN_OFFSET_COMMIT, ADD_OFFSETS_TO_TXN, PRODUCE)
        for at in ("request", "response")
    ]
    rows += [
        Fault(kind="cut", role=role, api=api, at="response", times=3)
        for role in _ROLES
        for api in (JOIN_GROUP, HEARTBEAT)
    ]
    rows += [
        Fault(
            kind="delay",
            role=role,
            api=api,
            at=at,
            seconds=6.0,
            short=(role, api, at) == ("engine", END_TXN, "request"),
        )
        for role in _ROLES
        for api in (END_TXN, TXN_OFFSET_COMMIT)
        for at in ("request", "response")
    ]
    rows += [Fault(kind="cut_all", times=5, short=True)]
    rows += [Fault(kind="partition", role=role, seconds=6.0, short=role == "engine") for role in (*_ROLES, "oracle")]
    return rows


_CHURN = [
    Fault(kind="churn", role=role, times=times, short=(role, times) == ("engine", 2))
    for role in _ROLES
    for times in (2, 6)
]
_SERVERS = [
    Fault(kind="kafka_kill", short=True),
    Fault(kind="kafka_pause", seconds=5.0, short=True),
    Fault(kind="redis_kill", short=True),
    Fault(kind="redis_flush", short=True),
    Fault(kind="redis_old_dump", short=True),
    Fault(kind="redis_full", seconds=2.0, short=True),
    Fault(kind="redis_evicts", seconds=1.0, short=True),
    Fault(kind="redis_stall", seconds=2.0, short=True),
    Fault(kind="redis_client_pause", seconds=2.0),
]

_RESCALES = [
    Fault(kind="rescale", whom=whom, short=whom == "sender_and_command")
    for whom in (
        *("nobody", "command", "router", "sender", "receiver", "sender_and_command", "guest", "kafka", "redis"),
        *("stopped_router", "stopped_sender", "all_connections"),
    )
]
"""As many as bring the number of shards back to the first one, four times."""

ROWS = (*_kills(), *_zombies(), *_network(), *_CHURN, *_SERVERS, *_RESCALES)
FAULTS: dict[str, Fault] = {fault.name: fault for fault in ROWS}
SHORT = [name for name, fault in FAULTS.items() if fault.short]
