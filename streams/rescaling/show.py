"""What a person sees of a change of the number of shards: the plan, then every step, and what is waited for."""

from collections.abc import Callable, Iterator

from schemas.partitioning import moves_at
from streams.rescaling.rescaling import RescalePlan, Rescaling, drive
from streams.runtime import SYSTEM, Runtime

ACCOUNTS_PER_S, STEP_S = 5_000, 2.0
"""How many accounts move a second, and what a step takes besides: a million in 279 s, on two cores with the broker."""
AWAY_PER_S, AWAY_S = 10_000, 0.5
"""So many accounts of a step are sent and taken in a second, and what that takes besides: 1.1 s at p50 there, 2.6 s at
most."""
_TELL_S = 5.0


def plan_lines(plan: RescalePlan, *, is_asked: bool = True) -> Iterator[str]:
    """The plan, line by line; ``is_asked``: with what to type to have it done."""
    spread = plan.spread
    if spread.shards == spread.target:
        yield f"accounts are spread over {spread.shards} shards: there is nothing to do"
        return
    moving = sum(plan.accounts.values())
    yield f"from {spread.shards} to {spread.target} shards: {moving:,} of {plan.rows:,} accounts (still) move"
    for step in plan.steps:
        pairs = moves_at(step, spread)
        counts = ", ".join(f"{old} to {new}: {plan.accounts.get((old, new, step), 0):,}" for old, new in pairs)
        yield f"  step {step}: {counts}"
    for topic, count in sorted(plan.grow.items()):
        yield f"  needed: {topic} gets {count} partitions (done by this command)"
    largest = max((sum(_of_step(plan, step)) for step in plan.steps), default=0)
    seconds = len(plan.steps) * STEP_S + moving / ACCOUNTS_PER_S
    pause_s = AWAY_S + largest / AWAY_PER_S
    yield f"  takes about {seconds:,.0f} s; an account that moves is not decided for up to about {pause_s:,.1f} s"
    yield from (f"  refused: {fault}" for fault in plan.faults)
    if is_asked and not plan.faults:
        yield "type it with --yes to do it"


def _of_step(plan: RescalePlan, step: int) -> list[int]:
    return [plan.accounts.get((*pair, step), 0) for pair in moves_at(step, plan.spread)]


def watch(rescaling: Rescaling, say: Callable[[str], object], runtime: Runtime = SYSTEM) -> None:
    """Drive it to its end; ``say`` is told every step with its time, and every few seconds what is waited for.

    Raises:
        BrokerError: Kafka does not answer, or does not take it.
    """
    began = step_began = told = runtime.monotonic()
    step: int | None = None

    def look(waits: list[str]) -> None:
        nonlocal step, step_began, told
        now, layout = runtime.monotonic(), rescaling.layout
        if (layout.step or 0) != step and layout.is_moving:
            if step:
                say(f"step {step}: done in {now - step_began:.1f} s")
            step, step_began = layout.step or 0, now
            told = now
        if waits and now - told >= _TELL_S:
            told = now
            say("\n".join(f"  waiting  {wait}" for wait in waits))

    drive(rescaling, runtime, look)
    now = runtime.monotonic()
    if step:
        say(f"step {step}: done in {now - step_began:.1f} s")
    say(f"accounts are spread over {rescaling.layout.shards} shards, after {now - began:.1f} s")
