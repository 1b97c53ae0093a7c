"""What is not as it should be in a deployment, one sentence each, with what to do about it; and how to look further."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from schemas.topics import EVENTS, JOURNAL, MARKS
from schemas.types import Uncounted
from streams.broker.admin import ConsumerGroup
from streams.broker.letter_counts import LetterCounts
from streams.console.figures import age
from streams.console.status import Lag, MarksStatus, Moving, ShardStatus, Status, place_name
from streams.console.waiting import FirstWaiting, waiting_sentences
from streams.feeds.gaps import suspension_sentences, untaken_sentences
from streams.feeds.journal import HOSTS
from streams.feeds.progress import behind_sentences
from streams.feeds.sources import missing_sentences
from streams.feeds.unreached import unreached_sentences
from streams.settings import Settings
from streams.visible import some_of

_NAMED_MAX = 5
_UNHEARD: dict[Uncounted, str] = {
    "late": "their prices were published more than max_age_ms before they came; check their clocks and their way here.",
    "from_the_future": "their publish_time is more than max_age_ms ahead; check their clocks, and the oracle's.",
    "repeated": "their sequence does not rise; they are heard again when publish_time is max_age_ms after their last.",
}
"""What is wrong with a source that publishes and is not heard, by the oracle's reason."""
_TABLE_AGE_MS_MAX = 20_000
"""An owner confirms a table every few seconds."""


def judge(status: Status, settings: Settings) -> list[str]:
    """What is not as it should be, one sentence each, with what to do. Empty: all is well."""
    return [
        *_judge_group(status.engines, "engine", [(EVENTS, shard.shard) for shard in status.shards]),
        *_judge_group(status.routers, "router", [(lag.topic, lag.partition) for lag in status.inputs]),
        *_judge_group(status.oracles, "oracle", [(MARKS, 0)]),
        *(() if _is_unread(status, MARKS, 0) else _judge_marks(status.marks, settings.service.ready_age_ms)),
        *_judge_parameters(status.refused_parameters),
        *_judge_inputs(status.inputs, settings.router.ready_lag_records_max, settings.service.stands_ms),
        *_judge_walked(status.walked, settings),
        *(
            f"{place}: see who wrote it; until it can be read nobody knows what is behind it."
            for place in status.unreadable.values()
        ),
        *(
            fault
            for shard in status.shards
            if not _is_unread(status, JOURNAL, shard.shard)
            for fault in _judge_shard(shard, settings)
        ),
        *_judge_tables(status),
        *(_moving_sentences(status) if _stands(status.moving, settings) else ()),
        *(fault for counts in status.letters for fault in _judge_letters(counts)),
    ]


def _is_unread(status: Status, topic: str, partition: int) -> bool:
    """Whether a partition can be read at no time: that is told, and nothing is known of what it holds."""
    return place_name(topic, partition) in status.unreadable


def advise(status: Status, settings: Settings) -> list[str]:
    """How to look at what is no fault of itself but may be somebody's, and at what was not looked at."""
    letters = [advice for counts in status.letters for advice in _advise_letters(counts, settings)]
    return letters if _stands(status.moving, settings) else [*_moving_sentences(status), *letters]


def _stands(moving: Moving | None, settings: Settings) -> bool:
    """Whether a step of a change of the number of shards takes longer than anything may stand."""
    return moving is not None and moving.age_ms > settings.service.stands_ms


def _moving_sentences(status: Status) -> Iterator[str]:
    """That accounts are on their way to another number of shards, what they wait for, and what to do."""
    moving = status.moving
    if moving is None:
        return
    yield (
        f"Accounts are moving from {moving.shards} to {moving.target} shards; step {moving.step} of {moving.steps} "
        f"began {age(moving.age_ms)} ago. `margin-clearing rescale --shards {moving.target} --yes` goes on with it, if "
        "nothing does, and says what it waits for."
    )
    for shard in status.shards:
        yield from shard.departing


def _advise_letters(counts: LetterCounts, settings: Settings) -> Iterator[str]:
    topic = counts.letters_topic
    if counts.classes:
        yield (
            f"{topic}: read them with kafka-console-consumer --bootstrap-server {settings.kafka.bootstrap_servers} "
            f"--topic {topic} --partition 0 --offset {min(one.first for one in counts.classes)} --isolation-level "
            "read_committed --property print.offset=true --property print.key=true --property print.headers=true; the "
            "headers say which record each was and why it was refused. Publish right ones, and let their senders know."
        )
    if counts.first > counts.low:
        yield f"{topic}: `margin-clearing verify` counts those that were not looked at, too."


def _judge_group(group: ConsumerGroup, role: str, places: list[tuple[str, int]]) -> Iterator[str]:
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
            f"The last full mark frame is {age(marks.age_ms)} old (at most {age(age_ms_max)}): the oracle does not "
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
            for symbol, sources in marks.uncounted.items()
            for name in sources
            if sources[name] == reason
        ]:
            yield f"{len(names)} price sources are not heard ({', '.join(names[:_NAMED_MAX])}): {what}"


def _with_sources(symbol: str, marks: MarksStatus) -> str:
    sources = marks.uncounted.get(symbol)
    if not sources:
        return symbol
    return f"{symbol} ({', '.join(f'{name}: {reason}' for name, reason in sorted(sources.items()))})"


def _judge_parameters(refused: dict[str, str]) -> Iterator[str]:
    for key, reason in refused.items():
        yield (
            f"The last record of {key!r} in risk.parameters.v1 is refused ({reason}). The one before it stays in force "
            "as long as the topic has it, until compaction at the latest: publish a right one."
        )


def _judge_inputs(inputs: tuple[Lag, ...], records_max: int, stands_ms_max: int) -> Iterator[str]:
    for lag in inputs:
        yield from waiting_sentences(
            lag.first,
            "unrouted record",
            stands_ms_max,
            "read the log of the router that owns it, or start more routers.",
        )
    behind = sum(lag.records for lag in inputs)
    if behind > records_max:
        worst = max(inputs, key=lambda lag: lag.records)
        yield (
            f"{behind:,} records wait to be routed (at most {records_max:,}), most of them in {worst.topic}"
            f"[{worst.partition}]: start more routers, or read the log of the one that owns it."
        )


def _judge_walked(walked: tuple[FirstWaiting, ...], settings: Settings) -> Iterator[str]:
    for waiting in walked:
        yield from waiting_sentences(
            waiting, "record that a shard has not walked", _journal_ms_max(settings), "read the logs of the engines."
        )


def _journal_ms_max(settings: Settings) -> int:
    """So old may the last word of a shard be."""
    return 2 * settings.engine.journal_interval_ms + settings.kafka.call_ms_max


def _judge_shard(shard: ShardStatus, settings: Settings) -> Iterator[str]:
    name, limit = f"Shard {shard.shard}", settings.engine.ready_lag_frames_max
    if shard.worker is None:
        yield from untaken_sentences(name, shard.shard, shard.gaps)
        yield f"{name} was never taken: start `margin-clearing engine`, or read the log of {shard.member or 'one'}."
        return
    if shard.member is not None and shard.member != f"{settings.engine.group_id}-{shard.worker}":
        yield (
            f"{name} is assigned to {shard.member} but its journal was last written by {shard.worker}: it is being "
            f"taken; if it stays so, read the log of {shard.member}."
        )
    journal_ms_max = _journal_ms_max(settings)
    if shard.member is not None and shard.journal_age_ms is not None and shard.journal_age_ms > journal_ms_max:
        yield (
            f"{name} has journaled nothing for {age(shard.journal_age_ms)} (at most {age(journal_ms_max)}): its "
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
            f"{name} waits for live marks of {some_of(shard.not_live, _NAMED_MAX)}: groups that hold them are "
            "liquidated only if they are below their requirement whatever those are worth; bring their sources back."
        )
    if shard.not_adopted is not None:
        yield (
            f"{name} stays on the parameters before offset {shard.not_adopted} of risk.parameters.v1: its positions "
            f"cannot be held in that record, the log of {shard.worker} says why (parameters_not_adopted); publish a "
            "right one."
        )
    yield from _judge_clocks(shard)
    yield from suspension_sentences(name, shard.suspension)
    yield from untaken_sentences(name, shard.shard, shard.gaps)
    yield from missing_sentences(name, shard.missing, shard.lost)
    yield from behind_sentences(name, shard.behind, shard.held, time.time_ns() // 1000)
    yield from waiting_sentences(
        shard.lag.first, "unapplied frame", settings.service.stands_ms, f"read the log of {shard.worker}."
    )
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


def _judge_letters(counts: LetterCounts) -> Iterator[str]:
    topic, letters = counts.letters_topic, counts.untold
    if letters is not None:
        yield (
            f"{letters.count} of the last {letters.looked_at} records of {topic} (offsets {letters.first} to "
            f"{letters.last}) concern somebody who could not be read from them, so not everybody was told; the last of "
            f"them: {letters.reason.rstrip('.')}. Find out whom they concern, put it right, then take the letters "
            "away with kafka-delete-records."
        )
    if counts.problem is not None:
        yield (
            f"{topic} could not be looked at to its end ({counts.problem.rstrip('.')}), so not all of its letters "
            "are known: see to it that the topic is there and that this client may read it, and look again."
        )


def _judge_tables(status: Status) -> Iterator[str]:
    if status.redis_problem is not None:
        yield f"{status.redis_problem}. Clearing goes on without it; readers of the tables see old rows, or none."
        return
    for shard in status.shards:
        name, meta = f"The table of shard {shard.shard}", shard.table
        if meta is None:
            if shard.worker is not None:
                yield f"{name} is missing in Redis: its engine builds it; if it stays so, check its MARGIN_REDIS__URL."
        elif meta.building:
            yield f"{name} is being built, {shard.table_behind:,} rows are left: wait; readers are told so meanwhile."
        elif shard.table_age_ms is not None and shard.table_age_ms > _TABLE_AGE_MS_MAX:
            yield (
                f"{name} was last written or confirmed {age(shard.table_age_ms)} ago (at most "
                f"{age(_TABLE_AGE_MS_MAX)}) and is {shard.table_behind:,} rows behind: its engine cannot reach Redis."
            )
        elif shard.claim is not None and meta.token > shard.claim:
            yield (
                f"{name} is held by claim {meta.token}, newer than the journal's {shard.claim}: {JOURNAL} was deleted "
                "and created anew, or another cluster writes to this Redis; delete the table, its engine builds it."
            )


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
