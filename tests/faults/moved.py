"""The groups of accounts at the offsets of their commands' evidence where accounts have moved between shards.

A shard's frames alone do not say what an account holds that has come from another. But what has been applied to an
account is, of every partition of the exchange's topics, all that lies below some offset: how far the shard has been
told by a layout that gives it the account, or how far the shard before had been told when the account left it,
whichever is further. So a group is recomputed from the exchange's records below those offsets.
"""

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from schemas import topics
from schemas.partitioning import home_of
from streams.demo.reference import CROSS, ReferenceGroup, ReferenceLedger, Rules
from tests.faults.records import Place, RunRecords

Rows = dict[Place, list[tuple[int, str, Any]]]
"""What concerns one account, by the partition it lies in: offset, topic and value, in order."""


class ShardProgress:
    """How far a shard has been told the exchange's partitions by each layout, and which accounts came with how much."""

    def __init__(self, records: RunRecords, shard: int) -> None:
        self._shard = shard
        self._spreads = {layout.spread.version: layout.spread for layout in records.layouts}
        self._frames = [(record.offset, frame) for record, frame in records.readable(topics.EVENTS, shard)]
        self._at = 0
        self._versions: dict[Place, int] = {}
        self._told: dict[int, dict[Place, int]] = defaultdict(dict)
        self._came: dict[str, dict[Place, int]] = {}

    def walk_to(self, offset: int) -> None:
        """Take in every frame up to and including ``offset``; offsets only rise."""
        while self._at < len(self._frames) and self._frames[self._at][0] <= offset:
            self._take(self._frames[self._at][1])
            self._at += 1

    def _take(self, frame: Any) -> None:
        version = frame.get("spread", {}).get("version", 0)
        told = self._told[version]
        for source in frame.get("sources", ()):
            place = source["topic"], source["partition"]
            if version < self._versions.get(place, 0):
                continue  # sent by a router that had been replaced
            if frame.get("confirmed"):
                self._versions[place] = version
            told[place] = max(told.get(place, 0), source["next"])
        if arrival := frame.get("arrival"):
            for account in (*arrival.get("rows", ()), *arrival.get("packed", ())):
                floors = arrival["floors"] | arrival.get("beyond", {}).get(account, {})
                self._came[account] = {_place_of(name): offset for name, offset in floors.items()}

    def is_behind(self, account: str) -> bool:
        """Whether rows of ``account`` go to another shard already, and it is still here."""
        newest = max(self._told, default=0)
        return newest > 0 and home_of(account, self._spreads[newest]) != self._shard

    def applied(self, account: str) -> dict[Place, int]:
        """Up to where all has been applied to ``account``: with what it came, and what was told by a layout by which
        its rows go to this shard. An account that is to leave stays at what was told before."""
        applied = dict(self._came.get(account, {}))
        for version, told in self._told.items():
            if home_of(account, self._spreads[version]) == self._shard:
                for place, following in told.items():
                    applied[place] = max(applied.get(place, 0), following)
        return applied


def _place_of(name: str) -> Place:
    topic, partition, _ = name.split(":", 2)
    return topic, int(partition)


@dataclass
class _Walked:
    """An account's ledger and how many of its rows of each partition are in it."""

    ledger: ReferenceLedger
    counts: dict[Place, int] = field(default_factory=dict)


class MovedLedger:
    """The groups of every account as of some offsets of the exchange's partitions."""

    def __init__(self, records: RunRecords, rules: Rules) -> None:
        self._rules = rules
        self._rows: dict[str, Rows] = defaultdict(lambda: defaultdict(list))
        self._walked: dict[str, _Walked] = {}
        come: set[tuple[str, int]] = set()
        for record, transfer in records.readable(topics.TRANSFERS):
            number = transfer["account"], transfer["sequence"]
            if number not in come:
                come.add(number)
                self._note(transfer["account"], topics.TRANSFERS, record.partition, record.offset, transfer)
        last: dict[str, int] = {}
        for record, trade in records.readable(topics.TRADES):
            if trade["trade_id"] > last.get(trade["symbol"], -1):
                last[trade["symbol"]] = trade["trade_id"]
                for account in {trade[side]["account"] for side in ("taker", "maker")}:
                    self._note(account, topics.TRADES, record.partition, record.offset, trade)

    def _note(self, account: str, topic: str, partition: int, offset: int, value: Any) -> None:
        self._rows[account][topic, partition].append((offset, topic, value))

    def group(self, command: Any, applied: dict[Place, int]) -> ReferenceGroup:
        """The group of a command with all that lies below ``applied``, but for what was deferred then."""
        account, margin = command["account"], command["margin"]
        deferred = {_deferred_place(name) for name in command["evidence"].get("deferred", ())}
        rows = self._rows[account]
        counts = {
            place: bisect_left(held, applied.get(place, 0), key=lambda row: row[0]) for place, held in rows.items()
        }
        walked = self._walked.get(account)
        if deferred or walked is None or any(counts[place] < count for place, count in walked.counts.items()):
            walked = _Walked(ReferenceLedger(self._rules))
        for place, held in rows.items():
            for offset, topic, value in held[walked.counts.get(place, 0) : counts[place]]:
                if (*place, offset) not in deferred:
                    _apply(walked.ledger, account, topic, value)
        walked.counts = counts
        if not deferred:
            self._walked[account] = walked
        return walked.ledger.group(account, margin)


def _deferred_place(name: str) -> tuple[str, int, int]:
    topic, partition, _, offset = name.split(":")
    return topic, int(partition), int(offset)


def _apply(ledger: ReferenceLedger, account: str, topic: str, value: Any) -> None:
    """What a record is to one account: a trade is in the ledger of either side."""
    if topic == topics.TRANSFERS:
        ledger.transfer(account, value.get("margin", CROSS), value["asset"], value["amount"])
    else:
        ledger.trade(value)
