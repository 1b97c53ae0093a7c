"""Restoring a shard: from nothing in memory to where its last owner's last commit left it.

1. Wait for the group's committed offset: an older owner's transaction that is still open is decided by then.
2. Find the last record of the shard's journal; its event offset and the committed offset must agree. Behind a record
   that cannot be read the shard stands at the committed offset and at the marks of now. Compare where it stands with
   what the logs hold: where records are gone it stands behind them, suspended, and its claim says so.
3. Write a claim to the journal in one transaction with the unchanged offset: its offset is the fencing token, and a
   group that has moved on refuses it.
4. Load the last row of every account: from Redis and the changelog after its stamp, or from the whole changelog; under
   the parameters that were in force as of the last journal record. A row that cannot be read suspends its account.
5. Learn the prices as of the last journal record.
6. Put the parameter records in force that have come since, and decide everything once if any have.
7. Walk every mark from the last journal record to where the others are, which moves on meanwhile, deciding as if the
   shard had never been without an owner.

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
from schemas.messages import JournalRecord
from schemas.topics import ACCOUNTS, EVENTS, JOURNAL
from streams.broker.committed import committed_steps
from streams.broker.producer import TransactionalProducer, group_metadata
from streams.broker.reader import LogReader
from streams.broker.records import Record
from streams.clearing.journal import Cursor, first_record
from streams.clearing.log_survey import LogSurvey
from streams.clearing.shard import Shard
from streams.errors import BrokerError, InputError, ShardError
from streams.feeds.journal import JournalEnd, journal_end
from streams.feeds.marks import first_needed, read_marks
from streams.feeds.moves import Moves
from streams.feeds.parameters import ParameterStep, parameter_steps
from streams.feeds.sources import Sources, sources_as_of
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
STEP_S, STEPS_PER_CYCLE_MAX = 0.01, 32
"""About how long a step takes."""
_COMMITTED_CALL_S = 0.25


Restoration = Generator[None, None, "RestoredShard"]
"""A restoration under way: yields after every step, returns the shard."""

ParameterVersions = list[ParameterStep]
"""Parameter records in their order, and the parameters after each."""


@dataclass(frozen=True, slots=True)
class RestoredShard:
    """A restored shard.

    ``refused_marks`` are the mark records walked on the way that are no frames, with the reason; ``parameters_first``
    is the first parameter record that no journal record covers.
    """

    shard: Shard
    refused_marks: Sequence[tuple[Record, Exception]]
    parameters_first: int


class ShardRestorer:
    """Restores shards of the group's assignment, one at a time. Nobody else may use ``reader`` meanwhile.

    ``marks_next`` and ``progress_next`` tell up to which offset the other shards have been given marks and progress.
    """

    def __init__(
        self,
        reader: LogReader,
        consumer: Callable[[], Consumer],
        restore_point: RestorePoint,
        survey: LogSurvey,
        marks_next: Callable[[], int],
        progress_next: Callable[[], int],
        *,
        worker: str,
        timeout_s: float,
        runtime: Runtime,
    ) -> None:
        self._reader = reader
        self._consumer = consumer
        self._restore_point = restore_point
        self._survey = survey
        self._marks_next = marks_next
        self._progress_next = progress_next
        self._worker = worker
        self._timeout_s = timeout_s
        self._runtime = runtime

    def restore(
        self, shard_id: int, producer: TransactionalProducer, parameters: RiskParameters, parameters_next: int
    ) -> Restoration:
        """Restore a shard. ``parameters`` are the parameters of all records below ``parameters_next``.

        Raises:
            ShardError: the logs disagree with each other.
            BrokerError: Kafka does not answer, or refuses the claim (its subclasses say whether the producer is good).
        """
        started = self._runtime.monotonic()
        committed = yield from _committed_offset(self._consumer(), shard_id, self._timeout_s, self._runtime)
        record, offset, sources = self._last_record(shard_id, committed, parameters_next)
        in_force, newer = _parameters_since(self._reader, record, parameters, parameters_next)
        shard = _standing(record, offset, in_force, sources)
        claim = self._claim(shard, producer)
        rows, from_redis = yield from self._read_rows(shard)
        yield from _load_rows(shard, rows)
        if shard.unread and in_force is not parameters:
            other = _standing(record, offset, parameters, sources)
            other.cursor.claimed(claim, shard.cursor.claim)
            yield from _load_rows(other, rows)
            if len(other.unread) < len(shard.unread):
                event(log, logging.WARNING, "rules_in_force_are_gone", shard=shard_id, rules_next=record.rules_next)
                shard = other  # compaction took what was in force then
        yield from _recall_marks(shard, self._reader)
        shard.stand()
        parameters_first = shard.parameters_next
        put_in_force(shard, newer)
        if newer:
            shard.decide_touched(everything=True)
        refused = yield from self._walk_marks(shard)
        event(
            log,
            logging.INFO,
            "shard_taken",
            shard=shard_id,
            claim=shard.cursor.claim,
            accounts=len(shard.accounts),
            events_next=shard.events_next,
            marks_next=shard.marks_next,
            from_redis=from_redis,
            seconds=round(self._runtime.monotonic() - started, 3),
        )
        return RestoredShard(shard, refused, parameters_first)

    def _last_record(self, shard_id: int, committed: int, parameters_next: int) -> tuple[JournalRecord, int, Sources]:
        """The record at which the shard stands, the offset of the last one of its journal, and its sources."""
        last = journal_end(self._reader, shard_id)
        first = first_record(
            shard_id, events_next=max(committed, 0), marks_next=self._marks_next(), parameters_next=parameters_next
        )
        if last is None:
            return (
                self._survey.stand(shard_id, None, first, marks_now=first.marks.next),
                -1,
                Sources(moves=Moves(shard_id)),
            )
        record, offset = stand(last, committed, first), last.last.offset()
        record = self._survey.stand(shard_id, last.record, record, marks_now=first.marks.next)
        return record, offset, sources_as_of(self._reader, last.record, offset, record.events.next)

    def _claim(self, shard: Shard, producer: TransactionalProducer) -> JournalRecord:
        """Write a claim with the group's offset unchanged: a group that has moved on refuses it."""
        record = shard.cursor.claim_record(self._worker, self._progress_next(), self._marks_next())
        offsets: list[int] = []
        producer.begin()
        producer.produce(
            JOURNAL,
            encode(record),
            partition=shard.shard,
            on_delivery=lambda _, message: offsets.append(message.offset() or 0),
        )
        offset = TopicPartition(EVENTS, shard.shard, shard.events_next)
        producer.send_offsets([offset], group_metadata(self._consumer()))
        producer.commit()
        shard.cursor.claimed(record, offsets[0])
        return record

    def _read_rows(self, shard: Shard) -> Generator[None, None, tuple[dict[str, bytes], int]]:
        """Every account's last row, and how many came from Redis."""
        low, end = self._reader.watermarks(ACCOUNTS, shard.shard)
        # What Redis has of rows that are gone would be missed by the next owner who finds no Redis.
        is_cut = ACCOUNTS in shard.cursor.gone
        table = None if is_cut else (yield from self._restore_point.read(shard.shard, shard.cursor.claim, low, end))
        rows: dict[str, bytes] = {} if table is None else dict(table.rows)
        first = 0 if table is None else table.stamp
        for count, record in enumerate(self._reader.read_range(ACCOUNTS, shard.shard, first, end)):
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

    def _walk_marks(self, shard: Shard) -> Generator[None, None, list[tuple[Record, Exception]]]:
        """Walk the marks that came while nobody owned the shard; those that are no frames, with the reason."""
        refused: list[tuple[Record, Exception]] = []
        while shard.marks_next < (end := self._marks_next()):
            is_last = end - shard.marks_next <= FRAMES_AT_ONCE  # what came meanwhile would never end otherwise
            for count, mark in enumerate(read_marks(self._reader, shard.marks_next, end)):
                if mark.frame is not None:
                    shard.apply_marks(mark.offset, mark.frame, mark.appended_us)
                elif mark.refused is not None:
                    refused.append((mark.record, mark.refused))
                if count % FRAMES_PER_STEP == 0 and not is_last:
                    yield
            shard.skip_marks(end - 1)
        return refused


def steps_per_cycle(commit_took_s: float) -> int:
    """How many steps a cycle goes on with a restoration after a commit that took so many seconds.

    With one step a cycle, slow commits (a broker that is away, replicas that lag) would let a shard fall behind the
    marks that come meanwhile, and it would never run. What others wait for it is no more than what the commit took.
    """
    return max(1, min(STEPS_PER_CYCLE_MAX, int(commit_took_s / STEP_S)))


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


def stand(last: JournalEnd, committed: int, first: JournalRecord) -> JournalRecord:
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


def _standing(record: JournalRecord, offset: int, parameters: RiskParameters, sources: Sources) -> Shard:
    """A shard without accounts that stands at ``record``, the last of its journal, at ``offset`` of it."""
    shard = Shard(record.shard, parameters)
    shard.resume(record, offset, sources)
    for reason in sources.take_lost_money():  # no record of the journal that can be read tells of it
        shard.cursor.suspend(reason)
    return shard


def _parameters_since(
    reader: LogReader, record: JournalRecord, parameters: RiskParameters, parameters_next: int
) -> tuple[RiskParameters, ParameterVersions]:
    """The parameters in force as of ``record``, and those that each record since has made of them, by its offset.

    ``parameters`` are those of all records below ``parameters_next``.
    """
    rules_next = parameters_next if record.rules_next < 0 else record.rules_next
    if min(rules_next, record.parameters.next) >= parameters_next:
        return parameters, []
    last: ParameterStep | None = None
    newer: ParameterVersions = []
    for step in parameter_steps(reader, parameters_next):
        if step.offset < rules_next:
            last = step
        if step.offset >= record.parameters.next:
            newer.append(step)
    in_force = RiskParameters.empty() if last is None else last.parameters
    return (in_force if rules_next < parameters_next else parameters), newer


def put_in_force(shard: Shard, newer: ParameterVersions, progress: Callable[[], object] = lambda: None) -> None:
    """Put ``newer`` records in force together, as one after the other would come to; nothing is decided yet.

    Those that the ledger cannot be held in are passed over. What a shard holds back is applied under the first ones
    that admit it, so it sees them all; else it sees the last, and the others only if it cannot be held in that.
    ``progress`` is called whenever it gets further.
    """
    if not newer:
        return
    for step in newer[:-1] if shard.holds_back or shard.unread else ():
        with suppress(InputError):
            shard.apply_parameters(step.offset, step.parameters)
        progress()
    if _adopt(shard, newer[-1]):
        return
    for step in newer:
        with suppress(InputError):
            shard.apply_parameters(step.offset, step.parameters)
        progress()


def _adopt(shard: Shard, step: ParameterStep) -> bool:
    """Whether a shard can be held in the parameters after a record, which are in force in it then; if not, why is
    logged."""
    try:
        shard.apply_parameters(step.offset, step.parameters)
    except InputError as error:
        event(log, logging.ERROR, "parameters_not_adopted", shard=shard.shard, offset=step.offset, reason=str(error))
        return False
    return True


def recall_from(cursor: Cursor) -> int:
    """The first mark record that must be read to know the prices as of the shard's last journal record."""
    return first_needed(cursor.marks_full, cursor.marks_next)


def _load_rows(shard: Shard, rows: Mapping[str, bytes]) -> Generator[None, None, None]:
    """Take in every account's last row."""
    yield from shard.restore_all(rows, ROWS_PER_STEP)


def _recall_marks(shard: Shard, reader: LogReader) -> Generator[None, None, None]:
    """Learn the prices as of the shard's last record."""
    for count, mark in enumerate(read_marks(reader, recall_from(shard.cursor), shard.marks_next)):
        if mark.frame is not None:  # what is none was refused when it was walked
            shard.recall_marks(mark.offset, mark.frame, mark.appended_us)
        if count % FRAMES_PER_STEP == 0:
            yield
