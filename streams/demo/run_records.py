"""Everything a run left in the topics and in Redis, read back for the checks. Reads only; judges nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from schemas import topics
from schemas.messages import Spread
from streams.broker.layout import require_layout
from streams.broker.reader import LogReader
from streams.broker.records import Record
from streams.demo.frames import first_rows
from streams.demo.reference import ParameterLog, decoded
from streams.feeds.account_rows import by_account, live_rows
from streams.settings import Settings
from streams.tables.reader import TableReader

MARKS_BEFORE = 500
"""How many mark records before the run are read, to know the prices that stood when it began."""

READ_BACK = (
    topics.TRADES,
    topics.TRANSFERS,
    topics.EVENTS,
    topics.MARKS,
    topics.COMMANDS,
    topics.REPORTS,
    topics.ACCOUNTS,
    topics.ALERTS,
)
Starts = dict[tuple[str, int], int]
Decoded = tuple[int, Any]
"""Offset and decoded JSON."""


@dataclass
class RunRecords:
    """One run's records, of the accounts whose names begin with ``prefix``."""

    prefix: str
    parameters: ParameterLog = field(default_factory=ParameterLog)
    trades: list[Any] = field(default_factory=list)
    transfers: list[Any] = field(default_factory=list)
    frames: dict[int, list[Decoded]] = field(default_factory=dict)
    marks: list[Decoded] = field(default_factory=list)
    commands: list[Any] = field(default_factory=list)
    reports: list[Any] = field(default_factory=list)
    alerts: list[Any] = field(default_factory=list)
    rows: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, bytes] = field(default_factory=dict)

    @property
    def fills(self) -> int:
        """How many fills of this run's accounts were routed."""
        return sum(
            account.startswith(self.prefix)
            for frames in self.frames.values()
            for _, frame in frames
            for account in frame["fills"]["account"]
        )


def ends(settings: Settings) -> Starts:
    """Where every topic that is read back ends now."""
    with LogReader(settings.kafka, "margin-demo") as reader:
        return {
            (topic, partition): reader.watermarks(topic, partition)[1]
            for topic in READ_BACK
            for partition in range(reader.partitions(topic))
        }


def read_run_records(settings: Settings, starts: Starts, prefix: str) -> RunRecords:
    """What was written since ``starts``."""
    records = RunRecords(prefix)
    with LogReader(settings.kafka, "margin-demo") as reader:
        for message in reader.read_range(topics.PARAMETERS, 0, 0):
            records.parameters.records.append((message.offset(), message.key_shown, decoded(message.value())))
        messages: dict[str, list[tuple[int, Record]]] = {}
        for (topic, partition), start in sorted(starts.items()):
            first = max(0, start - MARKS_BEFORE) if topic == topics.MARKS else start
            for message in reader.read_range(topic, partition, first):
                messages.setdefault(topic, []).append((partition, message))
        spread = require_layout(reader).spread
    _sort_out(records, messages, spread)
    with TableReader(settings.redis) as tables:
        held = {
            (shard, name): row
            for shard in range(tables.shards())
            for name, row in tables.accounts(shard)
            if name.startswith(prefix)
        }
    records.tables = by_account(held, spread)
    return records


def _sort_out(records: RunRecords, messages: dict[str, list[tuple[int, Record]]], spread: Spread) -> None:
    def values(topic: str) -> Iterator[tuple[int, Record, Any]]:
        for partition, message in messages.get(topic, []):
            try:
                yield partition, message, decoded(message.value())
            except orjson.JSONDecodeError:
                continue

    def is_ours(account: str) -> bool:
        return account.startswith(records.prefix)

    records.trades = [v for _, _, v in values(topics.TRADES) if v and is_ours(v["maker"]["account"])]
    for topic, into in (
        (topics.TRANSFERS, records.transfers),
        (topics.COMMANDS, records.commands),
        (topics.REPORTS, records.reports),
        (topics.ALERTS, records.alerts),
    ):
        into += [value for _, _, value in values(topic) if value and is_ours(value["account"])]
    for partition, message, value in values(topics.EVENTS):
        records.frames.setdefault(partition, []).append((message.offset(), value))
    for partition, frames in records.frames.items():
        records.frames[partition] = list(first_rows(frames))
    records.marks = [
        (message.offset(), value | {"appended": 1000 * message.timestamp()[1]})
        for _, message, value in values(topics.MARKS)
    ]
    live = by_account(live_rows(message for _, message in messages.get(topics.ACCOUNTS, [])), spread)
    records.rows = {account: row for account, row in live.items() if is_ours(account)}
