"""A running deployment as it is, collected from Kafka and Redis only: no process has to be reached or to answer.

What is wrong with it is said in :mod:`streams.console.judgement`, how it looks in :mod:`streams.console.show`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import msgspec

from schemas.messages import Behind, JournalRecord, LogGap, Lost, ShardLayout, ShardSuspension
from schemas.partitioning import steps_of
from schemas.topics import ACCOUNTS, EVENTS, INPUTS, JOURNAL, MARKS, PARAMETERS, PROGRESS
from schemas.types import Uncounted
from streams.broker.admin import ConsumerGroup, group_state, require_topics, topic_ids
from streams.broker.dead_letters import UntoldLetters
from streams.broker.letter_counts import LETTER_TOPICS, LetterCounts, count_letters
from streams.broker.reader import LogReader
from streams.console.parameters import read_parameters
from streams.console.waiting import FirstWaiting, first_waiting
from streams.errors import BrokerError, TableError, UnreadableError
from streams.feeds.gaps import KNOWN, gaps_of
from streams.feeds.holders import departure_sentences
from streams.feeds.journal import JournalEnd, journal_end, read_journal
from streams.feeds.marks import last_full_frame
from streams.settings import Settings
from streams.tables.reader import TableMeta, TableReader

COUNTED_MAX = 1_000
"""Up to so many offsets behind, what is behind is counted; beyond, control records count too."""
LETTER_OFFSETS_MAX = 10_000
"""The dead letters at so many of the last offsets of each dead-letter topic are counted."""
LOAD_OFFSETS = 100
"""What a shard does a second is known from so many of the last offsets of its journal."""
_LOAD_US_MIN = 100_000
_CLIENT_ID = "margin-status"
_SILENCE_S = 2.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lag:
    """Records of one partition that are not committed by their group yet, and the first of them."""

    topic: str
    partition: int
    committed: int | None
    end: int
    records: int
    first: FirstWaiting | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What a shard did in ``seconds`` by its own clock: how many offsets it went on in its events (markers of
    transactions take some), how many rows it wrote, how many commands it gave."""

    seconds: float
    events: int
    rows: int
    commands: int

    @property
    def events_per_s(self) -> float:
        return self.events / self.seconds


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """A shard: its member of the group, its journal's last record, its lag, and its table (``behind`` rows of it).

    ``not_adopted``: the offset of the first parameter record that its positions cannot be held in, if any.
    ``journal_unread``: how many records at the end of its journal cannot be read. ``unreached`` and
    ``unreached_notional``: what liquidation does not reach, as the journal counts it; ``not_live``: the symbols whose
    want of a live mark has been alerted. ``skewed``: the clocks that are off and when each was last seen so, in
    microseconds. ``behind``: the sources that the shard waits for or has ceased to wait for, ``held``: how many
    accounts wait for them. ``missing``: the sources of which it lacks something, with the offset at which
    their frames go on; ``lost``: what it goes on without, by an operator's word. ``suspension``: the last one of the
    shard as a whole; ``gaps``: what is gone of our own topics that its journal does not tell of yet. ``load``: what it
    has done lately, None if its journal does not say. ``departing``: what the accounts wait for that are to go to
    another shard, a sentence each. ``pools``: what it has given to each pool of the fund, by asset.
    """

    shard: int
    member: str | None
    worker: str | None
    claim: int | None
    sequence: int | None
    journal_age_ms: int | None
    not_adopted: int | None
    journal_unread: int
    unreached: Mapping[str, int]
    unreached_notional: Mapping[str, str]
    not_live: tuple[str, ...]
    lag: Lag
    table: TableMeta | None
    table_behind: int
    table_age_ms: int | None
    skewed: dict[str, int] = field(default_factory=dict)
    behind: dict[str, Behind] = field(default_factory=dict)
    held: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    lost: dict[str, Lost] = field(default_factory=dict)
    suspension: ShardSuspension | None = None
    gaps: dict[str, LogGap] = field(default_factory=dict)
    load: Load | None = None
    departing: tuple[str, ...] = ()
    pools: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moving:
    """Accounts are on their way from ``shards`` to ``target`` shards: ``step`` of ``steps`` began ``age_ms`` ago."""

    shards: int
    target: int
    step: int
    steps: int
    age_ms: int


@dataclass(frozen=True, slots=True)
class MarksStatus:
    """The last full mark frame: its age, how many marks are live, or who is not, and which sources do not count."""

    age_ms: int
    epoch: int
    live: int
    stale: tuple[str, ...]
    halted: tuple[str, ...]
    uncounted: dict[str, dict[str, Uncounted]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that was found. ``refused_parameters``: by key, why the last record there is not in force.

    ``redis_problem`` is why there is nothing of Redis, if so. ``letters`` are the dead letters of each topic.
    ``walked`` are the first records of the topics that every engine walks which some shard has not walked.
    ``unreadable`` says of each partition that had to be read for this, and can be read at no time, where and why.
    ``moving``: how far it is, if the number of shards is being changed.
    """

    engines: ConsumerGroup
    routers: ConsumerGroup
    oracles: ConsumerGroup
    shards: tuple[ShardStatus, ...]
    inputs: tuple[Lag, ...]
    marks: MarksStatus | None
    refused_parameters: dict[str, str]
    redis_problem: str | None
    letters: tuple[LetterCounts, ...] = ()
    walked: tuple[FirstWaiting, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)
    moving: Moving | None = None

    @property
    def untold(self) -> tuple[UntoldLetters, ...]:
        """The dead letters that concern somebody who is not known."""
        return tuple(counts.untold for counts in self.letters if counts.untold is not None)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = asdict(self) | {"untold": [asdict(letters) for letters in self.untold]}
        for group in ("engines", "routers", "oracles"):
            offsets = plain[group]["committed"].items()
            plain[group]["committed"] = {f"{topic}[{partition}]": offset for (topic, partition), offset in offsets}
        values: dict[str, Any] = msgspec.to_builtins(plain)
        return values


def read_status(settings: Settings) -> Status:
    """Look at everything once.

    Raises:
        BrokerError: Kafka does not answer. TopicError: the topics are not those of the contract.
    """
    topics = require_topics(settings, _CLIENT_ID)
    counts = topics.partitions
    engines, routers, oracles = (
        group_state(settings, group)
        for group in (settings.engine.group_id, settings.router.group_id, settings.oracle.leader_group)
    )
    with LogReader(settings.kafka, _CLIENT_ID) as reader:
        tables, redis_problem = _tables(settings, topics.shards)
        ids = topic_ids(settings, KNOWN)
        unreadable = _Unreadable()
        ends = {shard: unreadable.unless(partial(journal_end, reader, shard), None) for shard in range(topics.shards)}
        gaps = {shard: _gaps(reader, shard, end, ids, unreadable) for shard, end in ends.items()}
        shards = tuple(
            _shard(reader, engines, shard, end, tables.get(shard), gaps[shard]) for shard, end in ends.items()
        )
        inputs = tuple(_lag(reader, routers, topic, number) for topic in INPUTS for number in range(counts[topic]))
        owned = [end for shard, end in ends.items() if shards[shard].member is not None]
        walked = tuple(_walked(reader, [end.record for end in owned if end is not None and end.record is not None]))
        marks = unreadable.unless(partial(_marks, reader), None)
        refused: dict[str, str] = unreadable.unless(lambda: read_parameters(reader)[1], {})
        letters = tuple(count_letters(reader, topic, LETTER_OFFSETS_MAX) for topic in LETTER_TOPICS)
    return Status(
        engines,
        routers,
        oracles,
        shards,
        inputs,
        marks,
        refused,
        redis_problem,
        letters,
        walked,
        unreadable.places,
        moving_of(topics.layout, _now_ms()),
    )


def moving_of(layout: ShardLayout, now_ms: int) -> Moving | None:
    """How far the change of the number of shards is; None if it is not being changed."""
    spread = layout.spread
    if not layout.is_moving:
        return None
    steps = steps_of(spread)
    done = sum(step <= spread.step for step in steps)
    return Moving(spread.shards, spread.target, done, len(steps), now_ms - layout.time // 1000)


def load_of(records: Sequence[JournalRecord]) -> Load | None:
    """What a shard did from the first to the last of ``records``; None if they are too few or too close together."""
    if len(records) < 2 or (span_us := records[-1].clock - records[0].clock) < _LOAD_US_MIN:
        return None
    commits = [record for record in records[1:] if record.kind == "commit"]
    return Load(
        seconds=span_us / 1e6,
        events=max(0, records[-1].events.next - records[0].events.next),
        rows=sum(record.accounts for record in commits),
        commands=sum(max(record.command_count, len(record.commands)) for record in commits),
    )


def _load(reader: LogReader, shard: int) -> Load | None:
    low, end = reader.watermarks(JOURNAL, shard)
    try:
        entries = list(read_journal(reader, shard, max(low, end - LOAD_OFFSETS), end))
    except UnreadableError:
        return None
    return load_of([entry.record for entry in entries if entry.record is not None])


class _Unreadable:
    """What could not be read at all, a sentence a partition; the rest is shown without it."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}

    def unless(self, read: Callable[[], T], otherwise: T) -> T:
        """What ``read`` gives, or ``otherwise`` if a place of a log can be read at no time."""
        try:
            return read()
        except UnreadableError as error:
            self.places[place_name(error.topic, error.partition)] = str(error)
            return otherwise


def place_name(topic: str, partition: int) -> str:
    """What a partition is called in ``Status.unreadable``."""
    return f"{topic}[{partition}]"


def _gaps(
    reader: LogReader, shard: int, end: JournalEnd | None, topic_ids: Mapping[str, str], unreadable: _Unreadable
) -> dict[str, LogGap]:
    """What a shard lacks that its journal does not tell of; nothing if that cannot be read, which is told then."""
    if place_name(JOURNAL, shard) in unreadable.places:
        return {}
    record = None if end is None else end.record
    return unreadable.unless(partial(gaps_of, reader, record, shard, topic_ids), {})


def _walked(reader: LogReader, records: Sequence[JournalRecord]) -> Iterator[FirstWaiting]:
    """The first record of each topic that every shard walks which one of those that are owned has not walked."""
    nexts = {
        MARKS: [record.marks.next for record in records],
        PARAMETERS: [record.parameters.next for record in records],
        PROGRESS: [record.progress.next for record in records if record.progress.next],
    }
    for topic, offsets in nexts.items():
        if offsets:
            low, end = reader.watermarks(topic, 0)
            waiting = first_waiting(reader, topic, 0, max(low, min(offsets)), end)
            if waiting is not None:
                yield waiting


def _shard(
    reader: LogReader,
    engines: ConsumerGroup,
    number: int,
    last: JournalEnd | None,
    table: TableMeta | None,
    gaps: dict[str, LogGap],
) -> ShardStatus:
    record, message = (None, None) if last is None else (last.record, last.last)
    behind = 0
    if table is not None:
        low, end = reader.watermarks(ACCOUNTS, number)
        behind = _records(reader, ACCOUNTS, number, max(low, table.stamp), end)
    owners = [member.client_id for member in engines.members if (EVENTS, number) in member.partitions]
    return ShardStatus(
        shard=number,
        member=owners[0] if owners else None,
        worker=None if record is None else record.worker,
        claim=None if record is None or message is None else (record.claim if record.claim >= 0 else message.offset()),
        sequence=None if record is None else record.sequence,
        journal_age_ms=None if message is None else _now_ms() - message.timestamp()[1],
        not_adopted=None if record is None else _not_adopted(record),
        journal_unread=0 if last is None else last.unread,
        unreached={} if record is None else record.unreached,
        unreached_notional={} if record is None else record.unreached_notional,
        not_live=() if record is None else record.told_not_live,
        lag=_lag(reader, engines, EVENTS, number),
        table=table,
        table_behind=behind,
        table_age_ms=None if table is None else _now_ms() - table.updated_at_ms,
        skewed={} if record is None else record.skewed,
        behind={} if record is None else record.behind,
        held=0 if record is None else record.held,
        missing={} if record is None else record.missing,
        lost={} if record is None else record.lost,
        suspension=None if record is None else record.suspension or None,
        gaps=gaps,
        load=None if record is None else _load(reader, number),
        departing=() if record is None else tuple(departure_sentences(f"Shard {number}", record)),
        pools={} if record is None else record.pools or {},
    )


def _not_adopted(record: JournalRecord) -> int | None:
    return record.rules_next if 0 <= record.rules_next < record.parameters.next else None


def _lag(reader: LogReader, group: ConsumerGroup, topic: str, partition: int) -> Lag:
    low, end = reader.watermarks(topic, partition)
    committed = group.committed.get((topic, partition))
    first = low if committed is None else max(low, committed)
    waiting = first_waiting(reader, topic, partition, first, end)
    return Lag(topic, partition, committed, end, _records(reader, topic, partition, first, end), waiting)


def _records(reader: LogReader, topic: str, partition: int, first: int, end: int) -> int:
    """The committed records from ``first`` to ``end``: the end of a transactional log is a marker, not a record."""
    if not 0 < end - first <= COUNTED_MAX:
        return max(0, end - first)
    count = 0
    try:
        for _ in reader.read_range(topic, partition, first, end, timeout_s=_SILENCE_S):
            count += 1
    except UnreadableError:
        return end - first
    except BrokerError:  # what follows is in a transaction that is still open
        pass
    return count


def _marks(reader: LogReader) -> MarksStatus | None:
    frame = last_full_frame(reader)
    if frame is None:
        return None
    by_status = {
        status: tuple(mark.symbol for mark in frame.marks if mark.status == status) for status in ("stale", "halted")
    }
    return MarksStatus(
        age_ms=_now_ms() - frame.time // 1000,
        epoch=frame.epoch,
        live=sum(mark.status == "live" for mark in frame.marks),
        stale=by_status["stale"],
        halted=by_status["halted"],
        uncounted=frame.uncounted,
    )


def _tables(settings: Settings, shards: int) -> tuple[dict[int, TableMeta], str | None]:
    metas: dict[int, TableMeta] = {}
    try:
        with TableReader(settings.redis) as tables:
            for shard in range(shards):
                if (meta := tables.table_meta(shard)) is not None:
                    metas[shard] = meta
    except TableError as error:
        return {}, str(error)
    return metas, None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
