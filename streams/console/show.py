"""The status of a deployment as tables, with its dead letters and its faults below."""

from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal, localcontext

from rich.console import Console
from rich.table import Table

from streams.broker.letter_counts import letter_lines
from streams.console.figures import age
from streams.console.status import MarksStatus, ShardStatus, Status
from streams.feeds.unreached import KINDS
from streams.margin.fixed_point import EXACT, format_decimal
from streams.terminal import cells, line


def show_status(console: Console, status: Status, faults: list[str], advice: Sequence[str] = ()) -> None:
    """Print it as tables, and the dead letters, the advice and the faults below."""
    for group in (status.oracles, status.routers, status.engines):
        members = ", ".join(f"{member.client_id} ({len(member.partitions)})" for member in group.members) or "nobody"
        console.print(line(f"{group.group_id}: {group.state.lower()}, {members}"))
    console.print(line(f"marks: {_marks_line(status.marks)}"))
    behind = sum(lag.records for lag in status.inputs)
    console.print(line(f"out of reach: {_unreached_line(status.shards)}"))
    if pools := _pools_line(status.shards):
        console.print(line(f"liquidation fees in pools: {pools}"))
    console.print(line(f"to route: {behind:,} records of {len(status.inputs)} partitions"))
    console.print()
    if (moving := status.moving) is not None:
        how_far = f"step {moving.step} of {moving.steps}"
        console.print(line(f"accounts are moving from {moving.shards} to {moving.target} shards: {how_far}"))
        console.print()
    table = Table(
        "shard", "worker", "claim", "sequence", "journal", "events/s", "lag", "table stamp", "behind", "age", box=None
    )
    for shard in status.shards:
        meta = shard.table
        table.add_row(
            *cells(
                str(shard.shard),
                shard.worker or "-",
                _text(shard.claim),
                _text(shard.sequence),
                age(shard.journal_age_ms),
                "-" if shard.load is None else f"{shard.load.events_per_s:,.0f}",
                f"{shard.lag.records:,}",
                "-" if meta is None else f"{meta.stamp}{' building' if meta.building else ''}",
                "-" if meta is None else f"{shard.table_behind:,}",
                age(shard.table_age_ms),
            )
        )
    console.print(table)
    console.print()
    for letters in letter_lines(status.letters):
        console.print(line(letters), soft_wrap=True)
    for sentence in advice:
        console.print(line(("look", "yellow"), f"  {sentence}"), soft_wrap=True)
    for fault in faults:
        console.print(line(("wrong", "red"), f"  {fault}"))
    if not faults:
        console.print(line(_all_well(status)), soft_wrap=True)


def _all_well(status: Status) -> str:
    unseen = [counts.letters_topic for counts in status.letters if not counts.is_complete]
    if not unseen:
        return "all is as it should be"
    return f"all that was looked at is as it should be; not all of {', '.join(unseen)} was"


def _marks_line(marks: MarksStatus | None) -> str:
    if marks is None:
        return "none yet"
    return (
        f"{marks.live} live, {len(marks.stale)} stale, {len(marks.halted)} halted, "
        f"last full frame {age(marks.age_ms)} ago, epoch {marks.epoch}"
    )


def _unreached_line(shards: Iterable[ShardStatus]) -> str:
    """How much liquidation does not reach in all shards, and what is at stake."""
    counts: Counter[str] = Counter()
    notional: dict[str, Decimal] = {}
    for shard in shards:
        counts.update(shard.unreached)
        for kind, amount in shard.unreached_notional.items():
            notional[kind] = notional.get(kind, Decimal(0)) + Decimal(amount)
    parts = [
        f"{counts[kind]:,} {kind}" + (f" ({format_decimal(notional[kind])} at stake)" if kind in notional else "")
        for kind in KINDS
        if counts[kind]
    ]
    return ", ".join(parts) or "nobody"


def _pools_line(shards: Iterable[ShardStatus]) -> str:
    """What all shards have given to the pools of the fund."""
    given: dict[tuple[str, str], Decimal] = {}
    for shard in shards:
        for pool, held in shard.pools.items():
            for asset, amount in held.items():
                with localcontext(EXACT):
                    given[pool, asset] = given.get((pool, asset), Decimal(0)) + Decimal(amount)
    return ", ".join(f"{format_decimal(amount)} {asset} in {pool}" for (pool, asset), amount in sorted(given.items()))


def _text(number: int | None) -> str:
    return "-" if number is None else str(number)
