"""A running deployment as a person looks at it, from Kafka and Redis only: no process has to be reached or to answer.

:func:`read_status` collects what there is, :func:`judge` says in sentences what is not as it should be and what to do.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from schemas.messages import JournalRecord
from schemas.topics import ACCOUNTS, EVENTS, JOURNAL, MARKS, dead_letter_topic
from schemas.types import Uncounted
from streams.broker.admin import GroupState, group_state, partition_counts, require_topics
from streams.broker.admin import admin_client as _admin_client
from streams.broker.dead_letters import UntoldLetters, untold_letters
from streams.broker.reader import LogReader
from streams.clearing.clock import HOSTS
from streams.clearing.unreached import KINDS, unreached_sentences
from streams.console.parameters import read_parameters
from streams.errors import BrokerError, TableError
from streams.feeds.journal import journal_end
from streams.feeds.marks import last_full_frame
from streams.margin.fixed_point import format_decimal
from streams.routing.split import INPUTS
from streams.settings import Settings
from streams.tables.reader import TableMeta, TableReader

COUNTED_MAX = 1_000
"""Up to so many offsets behind, what is behind is counted; beyond, control records count too."""
_SILENCE_S = 2.0
_NAMED_MAX = 5
_UNHEARD: dict[Uncounted, str] = {
    "late": "their prices were published more than max_age_ms before they came; check their clocks and their way here.",
    "from_the_future": "their publish_time is more than max_age_ms ahead; check their clocks, and the oracle's.",
    "repeated": "their sequence does not rise; they are heard again when publish_time is max_age_ms after their last.",
}
"""What is wrong with a source that publishes and is not heard, by the oracle's reason."""
_TABLE_AGE_MS_MAX = 20_000
"""An owner confirms a table every few seconds."""


@dataclass(frozen=True, slots=True)
class Lag:
    """Records of one partition that are not committed by their group yet."""

    topic: str
    partition: int
    committed: int | None
    end: int
    records: int


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """A shard: its member of the group, its journal's last record, its lag, and its table (``behind`` rows of it).

    ``not_adopted``: the offset of the first parameter record that its positions cannot be held in, if any.
    ``journal_unread``: how many records at the end of its journal cannot be read. ``unreached`` and
    ``unreached_notional``: what liquidation does not reach, as the journal counts it; ``not_live``: the symbols whose
    want of a live mark has been alerted. ``skewed``: the clocks that are off and when each was last seen so, in
    microseconds.
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

    ``redis_problem`` is why there is nothing of Redis, if so. ``untold`` are dead letters that concern somebody who is
    not known.
    """

    engines: GroupState
    routers: GroupState
    oracles: GroupState
    shards: tuple[ShardStatus, ...]
    inputs: tuple[Lag, ...]
    marks: MarksStatus | None
    refused_parameters: dict[str, str]
    redis_problem: str | None
    untold: tuple[UntoldLetters, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = asdict(self)
        for group in ("engines", "routers", "oracles"):
            offsets = plain[group]["committed"].items()
            plain[group]["committed"] = {f"{topic}[{partition}]": offset for (topic, partition), offset in offsets}
        return plain


def read_status(settings: Settings) -> Status:
    """Look at everything once.

    Raises:
        BrokerError: Kafka does not answer. TopicError: the topics are not those of the contract.
    """
    require_topics(settings)
    counts = partition_counts(_admin_client(settings), 10.0)
    engines, routers, oracles = (
        group_state(settings, group)
        for group in (settings.engine.group_id, settings.router.group_id, f"{settings.oracle.app_id}-leader")
    )
    with LogReader(settings.kafka, "margin-status") as reader:
        tables, redis_problem = _tables(settings, counts[EVENTS])
        shards = tuple(_shard(reader, engines, shard, tables.get(shard)) for shard in range(counts[EVENTS]))
        inputs = tuple(_lag(reader, routers, topic, number) for topic in INPUTS for number in range(counts[topic]))
        marks = _marks(reader)
        _, refused = read_parameters(reader)
        letters = [untold_letters(reader, topic, COUNTED_MAX) for topic in (*INPUTS, EVENTS)]
    untold = tuple(found for found in letters if found is not None)
    return Status(engines, routers, oracles, shards, inputs, marks, refused, redis_problem, untold)


def judge(found: Status, settings: Settings) -> list[str]:
    """What is not as it should be, one sentence each, with what to do. Empty: all is well."""
    return [
        *_judge_group(found.engines, "engine", [(EVENTS, shard.shard) for shard in found.shards]),
        *_judge_group(found.routers, "router", [(lag.topic, lag.partition) for lag in found.inputs]),
        *_judge_group(found.oracles, "oracle", [(MARKS, 0)]),
        *_judge_marks(found.marks, settings.service.ready_age_ms),
        *_judge_parameters(found.refused_parameters),
        *_judge_inputs(found.inputs, settings.router.ready_lag_records_max),
        *(fault for shard in found.shards for fault in _judge_shard(shard, settings)),
        *_judge_tables(found),
        *_judge_letters(found.untold),
    ]


def show_status(console: Console, found: Status, faults: list[str]) -> None:
    """Print it as tables, and the faults below."""
    for group in (found.oracles, found.routers, found.engines):
        members = ", ".join(f"{member.client_id} ({len(member.partitions)})" for member in group.members) or "nobody"
        console.print(f"{group.group_id}: {group.state.lower()}, {escape(members)}", highlight=False)
    console.print(f"marks: {_marks_line(found.marks)}", highlight=False)
    behind = sum(lag.records for lag in found.inputs)
    console.print(f"out of reach: {_unreached_line(found.shards)}", highlight=False)
    console.print(f"to route: {behind:,} records of {len(found.inputs)} partitions\n", highlight=False)
    table = Table("shard", "worker", "claim", "sequence", "journal", "lag", "table stamp", "behind", "age", box=None)
    for shard in found.shards:
        meta = shard.table
        table.add_row(
            str(shard.shard),
            escape(shard.worker or "-"),
            _text(shard.claim),
            _text(shard.sequence),
            _age(shard.journal_age_ms),
            f"{shard.lag.records:,}",
            "-" if meta is None else f"{meta.stamp}{' building' if meta.building else ''}",
            "-" if meta is None else f"{shard.table_behind:,}",
            _age(shard.table_age_ms),
        )
    console.print(table)
    console.print()
    for fault in faults:
        console.print(f"[red]wrong[/]  {escape(fault)}", highlight=False)
    if not faults:
        console.print("all is as it should be")


# --- reading ---------------------------------------------------------------------------------------------------------


def _shard(reader: LogReader, engines: GroupState, number: int, table: TableMeta | None) -> ShardStatus:
    last = journal_end(reader, number)
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
    )


def _not_adopted(record: JournalRecord) -> int | None:
    return record.rules_next if 0 <= record.rules_next < record.parameters.next else None


def _lag(reader: LogReader, group: GroupState, topic: str, partition: int) -> Lag:
    low, end = reader.watermarks(topic, partition)
    committed = group.committed.get((topic, partition))
    records = _records(reader, topic, partition, low if committed is None else max(low, committed), end)
    return Lag(topic, partition, committed, end, records)


def _records(reader: LogReader, topic: str, partition: int, first: int, end: int) -> int:
    """The committed records from ``first`` to ``end``: the end of a transactional log is a marker, not a record."""
    if not 0 < end - first <= COUNTED_MAX:
        return max(0, end - first)
    count = 0
    try:
        for _ in reader.read_range(topic, partition, first, end, timeout_s=_SILENCE_S):
            count += 1
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
    found: dict[int, TableMeta] = {}
    try:
        with TableReader(settings.redis) as tables:
            for shard in range(shards):
                if (meta := tables.table_meta(shard)) is not None:
                    found[shard] = meta
    except TableError as error:
        return {}, str(error)
    return found, None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- judging ---------------------------------------------------------------------------------------------------------


def _judge_group(group: GroupState, role: str, places: list[tuple[str, int]]) -> Iterator[str]:
    if not group.members:
        yield f"No {role} is in the group {group.group_id}: start `margin-clearing {role}`."
        return
    if group.state != "STABLE":
        yield (
            f"The group {group.group_id} is not settled ({group.state.lower()}): look again in a few seconds; "
            f"if it stays so, read the logs of the {role} processes."
        )
        return
    owned = {place for member in group.members for place in member.partitions}
    for topic, partition in places:
        if (topic, partition) not in owned:
            yield (
                f"{topic}[{partition}] is assigned to no {role}: restart one of them; the group's assignment lacks it."
            )


def _judge_marks(marks: MarksStatus | None, age_ms_max: int) -> Iterator[str]:
    if marks is None:
        yield "No full mark frame was ever published: start `margin-clearing oracle`; nobody can be liquidated before."
        return
    if marks.age_ms > age_ms_max:
        yield (
            f"The last full mark frame is {_age(marks.age_ms)} old (at most {_age(age_ms_max)}): the oracle does not "
            "beat; read its log. Nobody is liquidated on marks that are older than their max_age_ms."
        )
    if not marks.live and not marks.stale and not marks.halted:
        yield "There are no marks: publish oracle parameters to risk.parameters.v1 and prices to oracle.prices.v1."
    if marks.stale:
        yield (
            f"Stale: {', '.join(_with_sources(symbol, marks) for symbol in marks.stale)}. Fewer sources than "
            "minimum_sources, or no more than half of those that are fresh, agree: see who stopped publishing to "
            "oracle.prices.v1, or publishes another price. Groups that need these marks are not decided."
        )
    if marks.halted:
        yield (
            f"Halted: {', '.join(_with_sources(symbol, marks) for symbol in marks.halted)}. The price jumped by more "
            "than max_jump; it goes on at the new level once enough sources have shown that for jump_confirm_ms, or it "
            "has lasted max_age_ms, and after jump_halt_ms_max at any level. If it stays so, check the sources."
        )
    for reason, what in _UNHEARD.items():
        if names := [
            f"{name} of {symbol}"
            for symbol, found in marks.uncounted.items()
            for name in found
            if found[name] == reason
        ]:
            yield f"{len(names)} price sources are not heard ({', '.join(names[:_NAMED_MAX])}): {what}"


def _with_sources(symbol: str, marks: MarksStatus) -> str:
    found = marks.uncounted.get(symbol)
    if not found:
        return symbol
    return f"{symbol} ({', '.join(f'{name}: {reason}' for name, reason in sorted(found.items()))})"


def _judge_parameters(refused: dict[str, str]) -> Iterator[str]:
    for key, reason in refused.items():
        yield (
            f"The last record of {key!r} in risk.parameters.v1 is refused ({reason}). The one before it stays in force "
            "as long as the topic has it, until compaction at the latest: publish a right one."
        )


def _judge_inputs(inputs: tuple[Lag, ...], records_max: int) -> Iterator[str]:
    behind = sum(lag.records for lag in inputs)
    if behind > records_max:
        worst = max(inputs, key=lambda lag: lag.records)
        yield (
            f"{behind:,} records wait to be routed (at most {records_max:,}), most of them in {worst.topic}"
            f"[{worst.partition}]: start more routers, or read the log of the one that owns it."
        )


def _judge_shard(shard: ShardStatus, settings: Settings) -> Iterator[str]:
    name, limit = f"Shard {shard.shard}", settings.engine.ready_lag_frames_max
    if shard.worker is None:
        yield f"{name} was never taken: start `margin-clearing engine`, or read the log of {shard.member or 'one'}."
        return
    if shard.member is not None and shard.member != f"{settings.engine.group_id}-{shard.worker}":
        yield (
            f"{name} is assigned to {shard.member} but its journal was last written by {shard.worker}: it is being "
            f"taken; if it stays so, read the log of {shard.member}."
        )
    journal_ms_max = 2 * settings.engine.journal_interval_ms + settings.kafka.call_ms_max
    if shard.member is not None and shard.journal_age_ms is not None and shard.journal_age_ms > journal_ms_max:
        yield (
            f"{name} has journaled nothing for {_age(shard.journal_age_ms)} (at most {_age(journal_ms_max)}): its "
            f"engine {shard.worker} hangs or cannot commit; read its log, restart it if it does not restart itself."
        )
    if shard.journal_unread:
        yield (
            f"{name}: the last {shard.journal_unread} records of its journal cannot be read, so what they decided is "
            "known from the accounts' rows alone; whoever takes the shard next goes on from there: find out who wrote "
            "them, and run `margin-clearing verify`."
        )
    for sentence in unreached_sentences(shard.unreached, shard.unreached_notional):
        yield f"{name}: {sentence}"
    if shard.not_live:
        yield (
            f"{name} waits for live marks of {_some(shard.not_live)}: groups that hold them are liquidated only if "
            "they are below their requirement whatever those are worth; bring their sources back."
        )
    if shard.not_adopted is not None:
        yield (
            f"{name} stays on the parameters before offset {shard.not_adopted} of risk.parameters.v1: its positions "
            f"cannot be held in that record, the log of {shard.worker} says why (parameters_not_adopted); publish a "
            "right one."
        )
    yield from _judge_clocks(shard)
    if shard.lag.records > limit:
        yield (
            f"{name} is {shard.lag.records:,} frames behind (at most {limit:,}): start more engines if others are too, "
            f"else read the log of {shard.worker}."
        )


def _judge_clocks(shard: ShardStatus) -> Iterator[str]:
    for clock, seen_us in shard.skewed.items():
        yield (
            f"Shard {shard.shard}: the clock of {HOSTS.get(clock, clock)} was off by more than the policy's "
            f"clock_skew_ms_max, last seen at {_time(seen_us)}: the broker's time counts meanwhile; set that host's "
            "clock right, the clock_skew alert of the shard says by how much it is off."
        )


def _judge_letters(untold: tuple[UntoldLetters, ...]) -> Iterator[str]:
    for found in untold:
        letters = dead_letter_topic(found.topic)
        yield (
            f"{found.count} of the last {found.looked_at} records of {letters} (offsets {found.first} to {found.last}) "
            "concern somebody who could not be read from them, so not everybody was told; the last of them: "
            f"{found.reason.rstrip('.')}. Find out whom they concern, put it right, then take the letters away with "
            "kafka-delete-records."
        )


def _judge_tables(found: Status) -> Iterator[str]:
    if found.redis_problem is not None:
        yield f"{found.redis_problem}. Clearing goes on without it; readers of the tables see old rows, or none."
        return
    for shard in found.shards:
        name, meta = f"The table of shard {shard.shard}", shard.table
        if meta is None:
            if shard.worker is not None:
                yield f"{name} is missing in Redis: its engine builds it; if it stays so, check its MARGIN_REDIS__URL."
        elif meta.building:
            yield f"{name} is being built, {shard.table_behind:,} rows are left: wait; readers are told so meanwhile."
        elif shard.table_age_ms is not None and shard.table_age_ms > _TABLE_AGE_MS_MAX:
            yield (
                f"{name} was last written or confirmed {_age(shard.table_age_ms)} ago (at most "
                f"{_age(_TABLE_AGE_MS_MAX)}) and is {shard.table_behind:,} rows behind: its engine cannot reach Redis."
            )
        elif shard.claim is not None and meta.token > shard.claim:
            yield (
                f"{name} is held by claim {meta.token}, newer than the journal's {shard.claim}: {JOURNAL} was deleted "
                "and created anew, or another cluster writes to this Redis; delete the table, its engine builds it."
            )


# --- showing ---------------------------------------------------------------------------------------------------------


def _marks_line(marks: MarksStatus | None) -> str:
    if marks is None:
        return "none yet"
    return (
        f"{marks.live} live, {len(marks.stale)} stale, {len(marks.halted)} halted, "
        f"last full frame {_age(marks.age_ms)} ago, epoch {marks.epoch}"
    )


def _unreached_line(shards: Iterable[ShardStatus]) -> str:
    """How much liquidation does not reach in all shards, and what is at stake."""
    counts: Counter[str] = Counter()
    notional: dict[str, Decimal] = {}
    for shard in shards:
        counts.update(shard.unreached)
        for kind, amount in shard.unreached_notional.items():
            notional[kind] = notional.get(kind, Decimal(0)) + Decimal(amount)
    found = [
        f"{counts[kind]:,} {kind}" + (f" ({format_decimal(notional[kind])} at stake)" if kind in notional else "")
        for kind in KINDS
        if counts[kind]
    ]
    return ", ".join(found) or "nobody"


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return ", ".join(names[:_NAMED_MAX]) + more


def _age(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds / 1000:.1f} s"


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _text(number: int | None) -> str:
    return "-" if number is None else str(number)
