"""What a seed decides beforehand: the deployment, its settings, what goes wrong how often, and when.

Each kind of fault is off in most seeds and frequent in some, so that seeds differ in what they try instead of all
trying a little of everything.
"""

from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from streams.memory.clients import Rates
from streams.settings import EngineSettings, KafkaSettings, RedisSettings, RouterSettings, Settings, TopicsSettings

Mode = Literal["safety", "liveness"]
MODES: tuple[Mode, ...] = ("safety", "liveness")

BUSY_US = {"safety": 1_200_000, "liveness": 800_000}
"""How long the exchange trades and faults happen."""
SETTLE_US = 12_000_000
"""How long everything may take to settle when nothing goes wrong any more: some times the longest seen."""

RESCALED = 1 / 3
"""The share of seeds in which the number of shards is changed."""
LOSING = 1 / 8
"""The share of the others in which events are deleted."""
SHARDS_MAX = 8

_RATES = {
    "crash_call": (0.0002, 0.002),
    "crash_commit": (0.005, 0.08),
    "commit_lost": (0.01, 0.1),
    "commit_answer_lost": (0.01, 0.1),
    "commit_delayed": (0.01, 0.1),
    "abortable": (0.005, 0.08),
    "fatal": (0.005, 0.05),
    "undelivered": (0.001, 0.02),
    "retriable": (0.01, 0.2),
    "committed_error": (0.05, 0.4),
    "buffer_full": (0.01, 0.1),
    "seek_state": (0.1, 0.6),
    "watermark_error": (0.02, 0.3),
    "slow_fetch": (0.1, 0.7),
    "redis_error": (0.01, 0.3),
    "redis_answer_lost": (0.01, 0.3),
    "slow_markers": (0.02, 0.3),
}

WRONG_CLOCKS_US = (0, 0, 3_000_000, -3_000_000, 90_000_000, -90_000_000, 31_536_000_000_000)
"""How far the clock of a router's or the oracle's host may be off, where they are at all."""

EVENTS_KINDS = (
    "kill",
    "stop",
    "freeze",
    "cut",
    "replace",
    "redis down",
    "redis flushed",
    "redis rolled back",
    "redis evicts",
)
"""Faults that happen at a time, to a process or to Redis."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One deployed process of a role; a static one has an instance id. ``starts_us``: when it joins. ``shards``: to how
    many a rescaler changes their number."""

    role: Literal["router", "engine", "rescaler"]
    name: str
    static: bool
    starts_us: int
    shards: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault at a time. ``draw`` in [0, 1) decides whom it strikes, ``strength`` how hard."""

    at_us: int
    kind: str
    draw: float
    strength: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything about a run that is decided before it begins."""

    seed: int
    mode: Mode
    partitions: dict[str, int]
    shards: int
    slots: tuple[Slot, ...]
    settings: Settings
    constants: dict[str, Any]
    rates: Rates
    skew_us: int
    wrong_clocks_us: tuple[int, ...]
    faults: tuple[Fault, ...]
    busy_us: int

    @property
    def is_rescaled(self) -> bool:
        """Whether the number of shards changes."""
        return any(slot.role == "rescaler" for slot in self.slots)

    @classmethod
    def draw(cls, seed: int, mode: Mode) -> "Scenario":
        """The scenario of a seed."""
        random = Random(2 * seed + MODES.index(mode))
        shards = random.choice((1, 2, 2, 3))
        rescalers, busy_us, constants, more = _rescaling(Random(f"{seed} {mode} rescaling"), shards, BUSY_US[mode])
        losses = [] if rescalers else _losses(Random(f"{seed} {mode} losses"), busy_us)
        return cls(
            seed=seed,
            mode=mode,
            partitions={"trades": random.choice((1, 2, 3)), "any": random.choice((1, 2))},
            shards=shards,
            slots=_slots(random) + rescalers,
            settings=_settings(random, shards),
            constants=_constants(random) | constants,
            rates=_rates(random),
            skew_us=random.choice((0, 0, 2_000, 100_000, 1_000_000)),
            wrong_clocks_us=random.choice(((), (), (), WRONG_CLOCKS_US)),
            faults=tuple(sorted((*_faults(random, busy_us), *more, *losses), key=lambda fault: fault.at_us)),
            busy_us=busy_us,
        )


def _rescaling(random: Random, shards: int, busy_us: int) -> tuple[tuple[Slot, ...], int, dict[str, Any], list[Fault]]:
    """Of a third of the seeds: who changes the number of shards, for how long the seed is busy then, constants that let
    accounts come in several parts, and what happens to processes meanwhile.

    Its draws are its own, so that the other seeds are what they would be without it.
    """
    if random.random() >= RESCALED:
        return (), busy_us, {}, []
    busy_us = int(busy_us * random.choice((1, 1.5, 2, 3)))
    slots: list[Slot] = []
    for number in range(random.choice((1, 1, 2))):
        shards = random.choice([count for count in range(1, SHARDS_MAX + 1) if count != shards])
        starts_us = (
            random.randrange(busy_us // 2) if not slots else slots[-1].starts_us + random.randrange(busy_us // 2)
        )
        slots.append(Slot("rescaler", f"rescaler-{number}", False, starts_us, shards))
    constants = {
        "streams.clearing.relocation.ROWS_PER_PART_MAX": random.choice((1, 3, 5_000)),
        "streams.rescaling.rescaling.ACCOUNTS_AT_ONCE": random.choice((3, 20_000)),
        "streams.clearing.relocation.ROW_CHARACTERS_MAX": random.choice((300, 250_000)),
    }
    faults = [
        Fault(
            random.randrange(slots[0].starts_us, busy_us),
            random.choice(("kill", "freeze", "replace", "cut")),
            random.random(),
            random.random(),
        )
        for _ in range(random.choice((0, 4, 8)))
    ]
    return tuple(slots), busy_us, constants, faults


def _losses(random: Random, busy_us: int) -> list[Fault]:
    """Of an eighth of the seeds in which no accounts move: events are deleted, some of them before their shard has had
    them. Its draws are its own, as those of :func:`_rescaling`."""
    if random.random() >= LOSING:
        return []
    return [
        Fault(random.randrange(busy_us // 4, busy_us), "events deleted", random.random(), random.random())
        for _ in range(random.choice((1, 2, 3)))
    ]


def _slots(random: Random) -> tuple[Slot, ...]:
    slots = []
    for role, counts in (("router", (1, 1, 2, 3)), ("engine", (1, 2, 2, 3))):
        for number in range(random.choice(counts)):
            late_us = 0 if not number or random.random() < 0.6 else random.randrange(600_000)
            slots.append(Slot(role, f"{role}-{number}", random.random() < 0.5, late_us))  # type: ignore[arg-type]
    return tuple(slots)


def _settings(random: Random, shards: int) -> Settings:
    return Settings(
        kafka=KafkaSettings(
            transaction_timeout_ms=random.choice((150, 250, 500)), session_timeout_ms=random.choice((150, 250, 400))
        ),
        redis=RedisSettings(timeout_ms=20),
        topics=TopicsSettings(shards=shards),
        router=RouterSettings(batch_records_max=random.choice((2, 10, 1000)), linger_ms=random.choice((1, 10, 40))),
        engine=EngineSettings(
            commit_interval_ms=random.choice((20, 50, 60)),
            batch_frames_max=random.choice((1, 3, 256)),
            journal_interval_ms=random.choice((100, 300, 1000)),
            redis_backlog_rows_max=random.choice((4, 1000, 1000)),
        ),
    )


def _constants(random: Random) -> dict[str, Any]:
    """Production's own constants, made so small that a short run reaches what they bound."""
    return {
        "streams.clearing.engine._POLL_S": 0.012,
        "streams.tables.write_behind.CONFIRM_S": random.choice((0.1, 0.5)),
        "streams.tables.write_behind.KAFKA_SILENCE_S": 1.0,
        "streams.tables.catch_up.ROWS_PER_STEP": random.choice((2, 5_000)),
        "streams.tables.catch_up.TOMBSTONES_KEPT_MS": random.choice((300, 43_200_000)),
        "streams.tables.writer.ROWS_PER_SCRIPT_MAX": random.choice((1, 3, 1_000)),
        "streams.feeds.marks.MARKS_LOOKBACK": random.choice((20, 500)),
    }


def _rates(random: Random) -> Rates:
    rates = Rates()
    if random.random() < 0.1:
        return rates
    share = random.choice((0.15, 0.3, 0.5))
    for name, (least, most) in _RATES.items():
        if random.random() < share:
            setattr(rates, name, least * (most / least) ** random.random())
    return rates


def _faults(random: Random, busy_us: int) -> tuple[Fault, ...]:
    kinds = random.sample(EVENTS_KINDS, random.randrange(1, len(EVENTS_KINDS)))
    count = random.choice((0, 1, 2, 3, 5, 8))
    faults = [
        Fault(random.randrange(50_000, busy_us), random.choice(kinds), random.random(), random.random())
        for _ in range(count)
    ]
    return tuple(sorted(faults, key=lambda fault: fault.at_us))
