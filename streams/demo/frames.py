"""Event frames as plain JSON, for checks that recompute what the pipeline did: without repeats, without what waited."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

Json = dict[str, Any]
Told = dict[str, int]
"""Up to which offset of each source a shard has been told."""

_KINDS = ("transfers", "fills", "reports")


def first_rows(frames: Iterable[tuple[Any, Json]]) -> Iterator[tuple[Any, Json]]:
    """The frames of one shard, in the order of the log, each with what stands beside it and without the rows of records
    that were told before."""
    told: Told = {}
    for beside, frame in frames:
        yield beside, _without_repeats(frame, told)


def _without_repeats(frame: Json, told: Told) -> Json:
    names = [_name(source) for source in frame.get("sources", ())]
    had = [told.get(name, 0) for name in names]
    for name, source in zip(names, frame.get("sources", ()), strict=True):
        told[name] = max(told.get(name, 0), source["next"])
    return frame | {
        kind: _rows(frame[kind], lambda source, offset, _: offset >= had[source]) for kind in _KINDS if names
    }


def of_account(frame: Json, account: str, deferred: Collection[str]) -> Json:
    """What a frame holds for one account, but for the events that are named as ``topic:partition:topic id:offset``."""
    names = [_name(source) for source in frame.get("sources", ())]

    def is_kept(source: int, offset: int, of: str) -> bool:
        return of == account and (not names or f"{names[source]}:{offset}" not in deferred)

    return frame | {kind: _rows(frame[kind], is_kept) for kind in _KINDS}


def _name(source: Json) -> str:
    return f"{source['topic']}:{source['partition']}:{source['topic_id']}"


def _rows(columns: Json, is_kept: Any) -> Json:
    count = len(columns["account"])
    sources, offsets = columns.get("source") or [0] * count, columns.get("source_offset") or [0] * count
    kept = [index for index in range(count) if is_kept(sources[index], offsets[index], columns["account"][index])]
    if len(kept) == count:
        return columns
    return {name: [column[index] for index in kept] if column else [] for name, column in columns.items()}
