"""Taking a shard: from nothing in memory to a shard that stands exactly where its last owner's last commit left it.

Owns the procedure and its order; promises that what it returns agrees with the log or raises :class:`ShardError`.
Deciding and committing belong to the engine. The procedure is a generator that yields whenever it has got a little
further, so that an engine goes on with its other shards meanwhile.
"""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from confluent_kafka import Consumer, TopicPartition

from schemas.codec import encode
from schemas.messages import JournalRecord, Range
from schemas.topics import ACCOUNTS, EVENTS, JOURNAL
from streams.broker.committed import committed_steps
from streams.broker.producer import TransactionalProducer, group_metadata
from streams.broker.reader import LogReader
from streams.broker.records import Record
from streams.clearing.shard import Shard
from streams.errors import BrokerError, InputError, ShardError
from streams.feeds.journal import JournalEnd, journal_end
from streams.feeds.marks import first_needed, read_marks
from streams.feeds.parameters import parameter_steps
from streams.logs import event
from streams.margin.parameters import RiskParameters
from streams.runtime import Runtime
from streams.tables.restore_point import RestorePoint

log = logging.getLogger(__name__)

ALERTS_LEFT_OPEN = 10_000
"""Numbers of alerts about the shard that are left open for each journal record that cannot be read, so that none is
given twice."""

ROWS_PER_STEP = 500
FRAMES_PER_STEP, FRAMES_AT_ONCE = 8, 64
_COMMITTED_CALL_S = 0.25


Steps = Generator[None, None, "TakenShard"]
"""A taking under way: yields after every step, returns the shard."""


@dataclass(slots=True)
class TakenShard:
    """A restored shard.

    ``refused_marks`` are the mark records walked on the way that are no frames, with the reason; ``parameters_first``
    is the first parameter record that no journal record covers.
    """

    shard: Shard
    refused_marks: Sequence[tuple[Record, Exception]]
    parameters_first: int


def take_shard(
    shard_id: int,
    *,
    reader: LogReader,
    producer: TransactionalProducer,
    consumer: Consumer,
    rules: RiskParameters,
    parameters_next: int,
    marks_next: Callable[[], int],
    restore_point: RestorePoint,
    worker: str,
    timeout_s: float,
    runtime: Runtime,
) -> Steps:
    """Take a shard of the group's assignment. Nobody else may use ``reader`` meanwhile.

    1. Wait for the group's committed offset: an older owner's transaction that is still open is decided by then.
    2. Find the last record of the shard's journal; its event offset and the committed offset must agree. Behind a
       record that cannot be read the shard stands at the committed offset and at the marks of now.
    3. Write a claim to the journal in one transaction with the unchanged offset: its offset is the fencing token, and a
       group that has moved on refuses it.
    4. Load the last row of every account: from Redis and the changelog after its stamp, or from the whole changelog;
       under the parameters that were in force as of the last journal record. A row that cannot be read suspends its
       account.
    5. Learn the prices as of the last journal record.
    6. Put the records up to ``parameters_next`` in force that have come since, and decide everything once if any have.
    7. Walk every mark from the last journal record to ``marks_next``, which moves on meanwhile, deciding as if the
       shard had never been without an owner.

    Raises:
        ShardError: the logs disagree with each other.
        BrokerError: Kafka does not answer, or refuses the claim (its subclasses say whether the producer is good).
    """
    started = runtime.monotonic()
    committed = yield from _committed_offset(consumer, shard_id, timeout_s, runtime)
    last = journal_end(reader, shard_id)
    first = _first_record(shard_id, max(committed, 0), marks_next(), parameters_next)
    offset = -1 if last is None else last.last.offset()
    record = first if last is None else _stand(last, committed, first)
    in_force, newer = _rules_since(reader, record, rules, parameters_next)
    shard = _standing(record, offset, in_force)
    _claim(shard, producer, consumer, worker)
    rows, from_redis = yield from _read_rows(shard, reader, restore_point)
    yield from _load_rows(shard, rows)
    if shard.unread and in_force is not rules:
        other = _standing(record, offset, rules, claimed=shard)
        yield from _load_rows(other, rows)
        if len(other.unread) < len(shard.unread):
            event(log, logging.WARNING, "rules_in_force_are_gone", shard=shard_id, rules_next=record.rules_next)
            shard = other  # compaction took what was in force then
    yield from _recall_marks(shard, reader)
    shard.stand()
    parameters_first = shard.parameters_next
    _adopt_parameters(shard, newer)
    refused = yield from _walk_marks(shard, reader, marks_next)
    event(
        log,
        logging.INFO,
        "shard_taken",
        shard=shard_id,
        claim=shard.claim,
        accounts=len(shard.accounts),
        events_next=shard.events_next,
        marks_next=shard.marks_next,
        from_redis=from_redis,
        seconds=round(runtime.monotonic() - started, 3),
    )
    return TakenShard(shard, refused, parameters_first)


def _committed_offset(
    consumer: Consumer, shard_id: int, timeout_s: float, runtime: Runtime
) -> Generator[None, None, int]:
    """The group's committed offset; an owner that died may have left a transaction that must time out first."""
    places = [TopicPartition(EVENTS, shard_id)]
    steps = committed_steps(consumer, places, timeout_s, call_s_max=_COMMITTED_CALL_S, runtime=runtime)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return int(done.value[0].offset)
        except BrokerError as error:
            raise ShardError(f"shard {shard_id}: {error}") from error
        yield


def _stand(last: JournalEnd, committed: int, first: JournalRecord) -> JournalRecord:
    """The record at which the shard stands: the journal's last, or one made up for what cannot be read.

    ``first`` is where a shard without a journal would stand now.

    Raises:
        ShardError: the group's committed offset is not the journal's.
    """
    record = last.record
    if last.unread:
        known = first if record is None else record
        return msgspec.structs.replace(
            known,
            kind="claim",
            sequence=known.sequence + last.unread,
            events=first.events if committed >= 0 else known.events,
            marks=first.marks,
            marks_full=-1,
            unread=last.unread + known.unread,
            alert_sequence=known.alert_sequence + ALERTS_LEFT_OPEN * last.unread,
        )
    assert record is not None
    if committed >= 0 and committed != record.events.next:
        raise ShardError(
            f"shard {record.shard}: the group's offset of {EVENTS}[{record.shard}] is {committed} and the journal says "
            f"{record.events.next}; the offsets were changed by hand: set them back to {record.events.next}"
        )
    return record


def _first_record(shard_id: int, events_next: int, marks_next: int, parameters_next: int) -> JournalRecord:
    """Where a shard starts that has no journal yet: nothing happened before now."""
    return JournalRecord(
        kind="claim",
        shard=shard_id,
        claim=-1,
        sequence=0,
        previous=-1,
        events=Range(first=events_next, next=events_next),
        marks=Range(first=marks_next, next=marks_next),
        parameters=Range(first=parameters_next, next=parameters_next),
        rules_next=parameters_next,
    )


def _standing(record: JournalRecord, offset: int, rules: RiskParameters, claimed: Shard | None = None) -> Shard:
    """A shard without accounts that stands at ``record``, with the claim of another one, if given."""
    shard = Shard(record.shard, rules)
    shard.resume(record)
    shard.journal_previous = offset
    if claimed is not None:
        shard.claim, shard.journal_previous = claimed.claim, claimed.journal_previous
        shard.journal_sequence = claimed.journal_sequence
    return shard


def _rules_since(
    reader: LogReader, record: JournalRecord, rules: RiskParameters, parameters_next: int
) -> tuple[RiskParameters, list[tuple[int, RiskParameters]]]:
    """The parameters in force as of ``record``, and those that each record since has made of them, by its offset.

    ``rules`` are those of all records below ``parameters_next``.
    """
    rules_next = parameters_next if record.rules_next < 0 else record.rules_next
    if min(rules_next, record.parameters.next) >= parameters_next:
        return rules, []
    in_force = RiskParameters.empty()
    newer = []
    for step in parameter_steps(reader, parameters_next):
        if step.offset < rules_next:
            in_force = step.rules
        if step.offset >= record.parameters.next:
            newer.append((step.offset, step.rules))
    return (in_force if rules_next < parameters_next else rules), newer


def _adopt_parameters(shard: Shard, newer: Sequence[tuple[int, RiskParameters]]) -> None:
    """Put ``newer`` parameters, by the offset of their newest record, in force and decide everything once.

    Those that the ledger cannot be held in are passed over. What a shard holds back is applied under the first ones
    that admit it, so it sees them all.
    """
    if not newer:
        return
    for offset, rules in newer[:-1] if shard.holds_back or shard.unread else ():
        with suppress(InputError):
            shard.apply_parameters(offset, rules)
    try:
        shard.apply_parameters(*newer[-1])
    except InputError as error:
        reason = str(error)
        event(log, logging.ERROR, "parameters_not_adopted", shard=shard.shard, offset=newer[-1][0], reason=reason)
        for offset, rules in newer:
            with suppress(InputError):
                shard.apply_parameters(offset, rules)
    shard.decide_touched(everything=True)


def claim_record(shard: Shard, worker: str) -> JournalRecord:
    """The record with which ``worker`` claims ``shard``, which stands at the last record of its journal."""
    return JournalRecord(
        kind="claim",
        shard=shard.shard,
        claim=-1,
        sequence=shard.journal_sequence + 1,
        previous=shard.journal_previous,
        events=Range(first=shard.events_next, next=shard.events_next),
        marks=Range(first=shard.marks_next, next=shard.marks_next),
        parameters=Range(first=shard.parameters_next, next=shard.parameters_next),
        marks_before=shard.marks_next,
        marks_full=shard.marks_full,
        clock=shard.clock_us,
        skewed=dict(sorted(shard.skewed.items())),
        rules_next=shard.rules_next,
        worker=worker,
        alert_sequence=shard.alert_sequence,
        not_live=shard.awaited.since,
        told_not_live=shard.awaited.told,
        unreached=shard.unreached_before,
        unreached_notional=shard.unreached_notional,
        unread=shard.journal_unread,
    )


def recall_from(shard: Shard) -> int:
    """The first mark record that must be read to know the prices as of the shard's last journal record."""
    return first_needed(shard.marks_full, shard.marks_next)


def _claim(shard: Shard, producer: TransactionalProducer, consumer: Consumer, worker: str) -> None:
    offsets: list[int] = []
    producer.begin()
    producer.produce(
        JOURNAL,
        encode(claim_record(shard, worker)),
        partition=shard.shard,
        on_delivery=lambda _, message: offsets.append(message.offset() or 0),
    )
    producer.send_offsets([TopicPartition(EVENTS, shard.shard, shard.events_next)], group_metadata(consumer))
    producer.commit()
    shard.claim = shard.journal_previous = offsets[0]
    shard.journal_sequence += 1


def _read_rows(
    shard: Shard, reader: LogReader, restore_point: RestorePoint
) -> Generator[None, None, tuple[dict[str, bytes], int]]:
    """Every account's last row, and how many came from Redis."""
    low, end = reader.watermarks(ACCOUNTS, shard.shard)
    table = yield from restore_point.read(shard.shard, shard.claim, low, end)
    rows: dict[str, bytes] = {} if table is None else dict(table.rows)
    first = 0 if table is None else table.stamp
    for count, record in enumerate(reader.read_range(ACCOUNTS, shard.shard, first, end)):
        account, value = record.key_text, record.value()
        if account is None:
            where = f"{ACCOUNTS}[{shard.shard}] offset {record.offset()}"
            event(log, logging.ERROR, "row_of_nobody", shard=shard.shard, reason=f"{where}: the key is no account")
        elif value is None:
            rows.pop(account, None)
        else:
            rows[account] = bytes(value)
        if count % (4 * ROWS_PER_STEP) == 0:
            yield
    return rows, 0 if table is None else len(table.rows)


def _load_rows(shard: Shard, rows: Mapping[str, bytes]) -> Generator[None, None, None]:
    """Take in every account's last row."""
    for count, account in enumerate(sorted(rows)):
        shard.restore(account, rows[account])
        if count % ROWS_PER_STEP == 0:
            yield


def _recall_marks(shard: Shard, reader: LogReader) -> Generator[None, None, None]:
    """Learn the prices as of the shard's last record."""
    for count, found in enumerate(read_marks(reader, recall_from(shard), shard.marks_next)):
        if found.frame is not None:  # what is none was refused when it was walked
            shard.recall_marks(found.offset, found.frame, found.appended_us)
        if count % FRAMES_PER_STEP == 0:
            yield


def _walk_marks(
    shard: Shard, reader: LogReader, marks_next: Callable[[], int]
) -> Generator[None, None, list[tuple[Record, Exception]]]:
    """Walk the marks that came while nobody owned the shard; those that are no frames, with the reason."""
    refused: list[tuple[Record, Exception]] = []
    while shard.marks_next < (end := marks_next()):
        is_last = end - shard.marks_next <= FRAMES_AT_ONCE  # what came meanwhile would never end otherwise
        for count, found in enumerate(read_marks(reader, shard.marks_next, end)):
            if found.frame is not None:
                shard.apply_marks(found.offset, found.frame, found.appended_us)
            elif found.refused is not None:
                refused.append((found.record, found.refused))
            if count % FRAMES_PER_STEP == 0 and not is_last:
                yield
        shard.skip_marks(end - 1)
    return refused
