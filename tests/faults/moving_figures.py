"""How long accounts were on their way between shards, by the broker's clock, as the frames of a run say."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from schemas import topics
from tests.faults.records import RunRecords


@dataclass(frozen=True, slots=True)
class Move:
    """The accounts that went from one shard to another at a step, in milliseconds: when the old shard was told first
    that rows of theirs go to the new one, when it sent them, and when the new one had them."""

    version: int
    shards: int
    target: int
    told: int
    sent: int
    arrived: int


def figures(records: RunRecords) -> list[str]:
    """A line for every change of the number of shards."""
    begun = {layout.spread.version: _beginning(records, layout.spread.version) for layout in records.layouts}
    changes: dict[int, list[Move]] = defaultdict(list)
    for move in moves(records):
        changes[begun[move.version]].append(move)
    return [_line(some) for _, some in sorted(changes.items())]


def _line(change: list[Move]) -> str:
    steps = {move.version for move in change}
    behind_s = max(move.arrived - move.told for move in change) / 1000
    sent_s = max(move.arrived - move.sent for move in change) / 1000
    return (
        f"{change[0].shards} to {change[0].target} shards: {len(steps)} steps, {len(change)} moves between shards; "
        f"an account was behind or on its way for {behind_s:.2f} s at most, "
        f"sent and not taken in for {sent_s:.2f} s at most"
    )


def _beginning(records: RunRecords, version: int) -> int:
    """The layout that began the change which the layout of ``version`` belongs to."""
    return max(
        layout.spread.version
        for layout in records.layouts
        if layout.spread.version <= version and not layout.spread.step
    )


def moves(records: RunRecords) -> Iterator[Move]:
    """Every move from shard to shard that came to its end."""
    told: dict[tuple[int, int], int] = {}
    sent: dict[tuple[int, int, int], int] = {}
    arrived: dict[tuple[int, int, int], int] = {}
    for record, frame in records.readable(topics.EVENTS):
        if frame.get("confirmed"):
            told.setdefault((frame["spread"]["version"], record.partition), record.appended_ms)
        if word := frame.get("arrival"):
            sent.setdefault(_key(word, word["origin"], record.partition), record.appended_ms)
        if word := frame.get("arrived"):
            arrived.setdefault(_key(word, record.partition, word["shard"]), record.appended_ms)
    for (version, old, new), at in arrived.items():
        spread = next(layout.spread for layout in records.layouts if layout.spread.version == version)
        yield Move(version, spread.shards, spread.target, told[version, old], sent[version, old, new], at)


def _key(word: Any, old: int, new: int) -> tuple[int, int, int]:
    return word["spread"]["version"], old, new
