"""Records of our own topics that a shard needs and that are gone: found when it is taken, kept in its claim, told.

A topic is looked at by its id, its first offset and its end: retention and DeleteRecords raise the first offset (a
compacted topic's stays), an unclean election lowers the end, and a topic that was deleted and made anew, or one of
another cluster, has another id. Where the shard goes on follows from its last journal record and the gaps alone. What
the engine then does about its accounts is the engine's business.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from msgspec import UnsetType
from msgspec.structs import replace

from schemas.messages import JournalRecord, LogGap, LogSeen, Range, ShardSuspension
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, EVENTS, JOURNAL, MARKS, PARAMETERS, PROGRESS
from streams.broker.records import Log, Record
from streams.broker.tail import search_tail
from streams.feeds.journal import read_journal

OF_A_SHARD = (EVENTS, ACCOUNTS, JOURNAL)
"""Topics of which a shard has one partition; of the others that it reads there is one partition for all."""

READ = (*OF_A_SHARD, MARKS, PARAMETERS)
KNOWN = (*READ, PROGRESS, COMMANDS, ALERTS)
"""The topics whose ids a shard's journal keeps."""

_NEEDED_WHOLE = (EVENTS, ACCOUNTS, JOURNAL, PARAMETERS)
"""Topics without which an account may hold something else than its ledger says."""

_REASONS_MAX = 16
_REASON_CHARACTERS_MAX = 600


@dataclass(frozen=True, slots=True)
class PresentLog:
    """A log as it is now: its topic's id (empty: it was not asked for), its first offset and the next to be written."""

    topic_id: str
    first: int
    end: int


def find_gaps(
    record: JournalRecord, known: Mapping[str, LogSeen], present: Mapping[str, PresentLog], *, marks_now: int
) -> dict[str, LogGap]:
    """What is gone of which topic, of a shard that stands at ``record`` and knew the logs as ``known``.

    ``present`` has every topic of ``READ``, and of the others the id at least. ``marks_now`` is where marks go on that
    cannot be had in order. Whether there is a journal at all is for the caller to know.
    """
    gaps: dict[str, LogGap] = {}
    stands = {EVENTS: record.events.next, MARKS: record.marks.next, PARAMETERS: record.parameters.next}
    for topic in KNOWN:
        log, seen = present[topic], known.get(topic)
        at = stands.get(topic, 0)
        goes_on = {MARKS: marks_now, PARAMETERS: log.end}.get(topic, log.first)
        if seen is not None and log.topic_id and seen.topic_id != log.topic_id:
            gaps[topic] = LogGap(kind="made_anew", first=at, next=goes_on)
        elif topic in stands and at > log.end:
            gaps[topic] = LogGap(kind="cut_off", first=at, next=log.end if topic != MARKS else marks_now)
        elif topic in (EVENTS, MARKS) and (needed := _early(record, at) if topic == EVENTS else at) < log.first:
            gaps[topic] = LogGap(kind="deleted", first=needed, next=max(at, log.first))
        elif topic in (ACCOUNTS, PARAMETERS) and log.first > (0 if seen is None else seen.first):
            gaps[topic] = LogGap(kind="deleted", first=0 if seen is None else seen.first, next=log.first)
    return gaps


def _early(record: JournalRecord, at: int) -> int:
    """The first event frame that a shard needs: one that it has had, if it has rows that came before their accounts."""
    early = record.moves.early if record.moves else None
    return at if early is None else min(at, early.offset)


def present_logs(logs: Log, shard: int, topic_ids: Mapping[str, str]) -> dict[str, PresentLog]:
    """The logs of a shard as they are now, by topic.

    Raises:
        BrokerError: Kafka does not answer.
    """
    present = {}
    for topic in KNOWN:
        first, end = logs.watermarks(topic, shard if topic in OF_A_SHARD else 0) if topic in READ else (0, 0)
        present[topic] = PresentLog(topic_ids.get(topic, ""), first, end)
    return present


def gaps_of(logs: Log, record: JournalRecord | None, shard: int, topic_ids: Mapping[str, str]) -> dict[str, LogGap]:
    """What is gone of which topic, of a shard whose journal ends with ``record`` (None: it has none), without whoever
    takes it next having seen it.

    Raises:
        BrokerError: Kafka does not answer.
    """
    present = present_logs(logs, shard, topic_ids)
    if record is not None:
        return find_gaps(record, logs_as_of(logs, record), present, marks_now=present[MARKS].end)
    if present[JOURNAL].first:
        return {JOURNAL: LogGap(kind="deleted", next=present[JOURNAL].first)}
    return {JOURNAL: LogGap(kind="absent")} if last_record(logs, ACCOUNTS, shard) is not None else {}


def last_record(logs: Log, topic: str, partition: int) -> Record | None:
    """The last committed record of a log, None if there is none.

    Raises:
        BrokerError: Kafka does not answer.
    """
    return search_tail(logs, topic, partition, lambda records, _: next(iter(list(records)[-1:]), None))


def standing_after(record: JournalRecord, gaps: Mapping[str, LogGap], shard: int) -> JournalRecord:
    """Where a shard goes on that stands at ``record`` and lacks ``gaps``: suspended, unless of marks and outputs."""
    events, marks, parameters, rules_next, marks_full = (
        record.events, record.marks, record.parameters, record.rules_next, record.marks_full,
    )  # fmt: skip
    moves = record.moves
    if (gap := gaps.get(EVENTS)) is not None:
        events = Range(first=gap.next, next=gap.next)
        if moves and moves.early is not None:
            moves = replace(moves, early=None)  # what came before its accounts is gone with the frames
    if (gap := gaps.get(MARKS)) is not None:
        marks, marks_full = Range(first=gap.next, next=gap.next), -1
    if (gap := gaps.get(PARAMETERS)) is not None and gap.kind != "deleted":
        parameters, rules_next = Range(first=gap.next, next=gap.next), gap.next
    suspension = record.suspension or None
    for topic, gap in sorted(gaps.items()):
        if topic in _NEEDED_WHOLE:
            suspension = suspended(suspension, gap_sentence(topic, shard, gap), record.clock)
    return replace(
        record,
        kind="claim",
        events=events,
        marks=marks,
        parameters=parameters,
        rules_next=rules_next,
        marks_full=marks_full,
        moves=moves,
        gone={**(record.gone or {}), **gaps},
        **({} if suspension is None else {"suspension": suspension}),
    )


def standing(last: ShardSuspension | UnsetType | None) -> ShardSuspension | None:
    """The suspension that a shard is in, of which ``last`` is the last; None if it has none or that has been lifted."""
    return last if last and not last.lifted else None


def suspended(before: ShardSuspension | None, reason: str, now_us: int) -> ShardSuspension:
    """The suspension of a shard for one reason more, after the last one that it had."""
    reason = reason[:_REASON_CHARACTERS_MAX]
    number = 1 if before is None else before.number + 1
    if (now := standing(before)) is None:
        return ShardSuspension(number=number, since=now_us, reasons=(reason,))
    return replace(now, number=number, reasons=(*now.reasons, reason)[-_REASONS_MAX:])


def resumed(before: ShardSuspension, reason: str) -> ShardSuspension:
    """A suspension that an operator has lifted."""
    return ShardSuspension(number=before.number, since=before.since, lifted=reason)


def suspends(gaps: Mapping[str, LogGap]) -> bool:
    """Whether accounts may hold something else than they seem to."""
    return any(topic in _NEEDED_WHOLE for topic in gaps)


def logs_as_of(logs: Log, record: JournalRecord | None) -> Mapping[str, LogSeen]:
    """The topics as the shard knew them that ``record`` is of, the last of its journal that can be read.

    Raises:
        BrokerError: Kafka does not answer.
    """
    if record is None:
        return {}
    if record.logs:
        return record.logs
    for place in (record.sources_told_at, record.claim):
        if place >= 0:
            for entry in read_journal(logs, record.shard, place, place + 1):
                if entry.record is not None and entry.record.logs:
                    return entry.record.logs
    return {}


# --- in words --------------------------------------------------------------------------------------------------------


def gap_sentence(topic: str, shard: int, gap: LogGap) -> str:
    """What is gone, and what that means."""
    where = f"{topic}[{shard if topic in OF_A_SHARD else 0}]" if topic in READ else topic
    accepted = f" (accepted: {gap.accepted})" if gap.accepted else ""
    if gap.kind == "made_anew":
        return f"{topic} is not what it was: it was deleted and made anew, or this is another cluster{accepted}"
    if gap.kind == "cut_off":
        return (
            f"{where} ends at {gap.next}, and this shard had come to {gap.first}: the log has lost its last records "
            "(an unclean election of a leader, or a copy that was behind)"
        )
    if gap.kind == "absent":
        return f"{where} holds nothing, and the shard has accounts: where it stood is not known"
    what = {
        EVENTS: "were deleted before this shard had them: what they held is in no account",
        MARKS: "were deleted before this shard had walked them: what would have been decided at them is not known",
        ACCOUNTS: "were deleted, not compacted: accounts are missing, or older than they were",
        PARAMETERS: "were deleted, not compacted: rules may be missing",
        JOURNAL: "were deleted, and no others are there: where the shard stood is not known",
    }[topic]
    return f"the records {gap.first} to {gap.next - 1} of {where} {what}{accepted}"


def suspension_sentences(shard: str, last: ShardSuspension | UnsetType | None) -> Iterator[str]:
    """That a shard is suspended and what to do, if it is."""
    if (suspension := standing(last)) is None:
        return
    yield (
        f"{shard}: every account is suspended, nobody is liquidated ({'; '.join(suspension.reasons)}): check its "
        "accounts against the exchange's books, put right what is wrong (transfers, trades, repairs), then lift it: "
        "margin-clearing resume --all --reason TEXT, or for one account: margin-clearing resume ACCOUNT --reason TEXT."
    )


def gone_sentences(shard: int, gone: Mapping[str, LogGap]) -> Iterator[str]:
    """What cannot be known of a shard any more, since records are gone."""
    for topic, gap in sorted(gone.items()):
        yield f"shard {shard}: {gap_sentence(topic, shard, gap)}; what follows from it cannot be known."


def untaken_sentences(shard: str, number: int, untold: Mapping[str, LogGap]) -> Iterator[str]:
    """What is gone that the shard's journal does not tell of yet, and what to do."""
    for topic, gap in sorted(untold.items()):
        if topic == ACCOUNTS:
            what = f"no engine takes the shard: its log says what to do (margin-clearing accept-offset {ACCOUNTS})"
        elif topic in _NEEDED_WHOLE:
            what = "the engine that takes the shard next suspends every account of it: start the engines again"
        else:
            what = "start the engines again, they go on with what is there"
        yield f"{shard}: {gap_sentence(topic, number, gap)}; {what}."
