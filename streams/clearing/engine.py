"""The engine's loop: consume, apply, walk the marks, commit, then hand the rows to Redis.

One process is one member of the consumer group over ``margin.events.v1`` and owns many shards; one transaction covers
all of them. It owns the order of things and their failures; what an input does to an account is the shard's business.

The cycle:

1. New parameter records are applied to every shard.
2. Events are applied, if nothing applied before is still uncommitted: what one commit covers is one batch.
3. Marks are walked in order by every shard.
4. If a shard has a command, or ``commit_interval_ms`` has passed since the last commit, everything is committed: rows,
   commands, alerts, journal and offsets in one transaction. Only then do the rows go to the Redis writer.

Whatever fails inside a transaction, the memory of all shards is dropped and they are taken again from the log. Taking
one goes on by small steps between the cycles of the others. Everything a rebalance waits for has one deadline; what
cannot be committed by then is dropped, and the next owner takes it from the log.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Self

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from prometheus_client import Counter, Gauge, Histogram

from schemas import headers
from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import EventFrame, MarkFrame
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, EVENTS, JOURNAL, MARKS, PARAMETERS, dead_letter_topic
from streams import probes
from streams.broker.committed import seek
from streams.broker.dead_letters import produce_dead_letter
from streams.broker.group import GroupPlace, leave_group
from streams.broker.kafka import Kafka
from streams.broker.producer import TransactionalProducer, group_metadata
from streams.broker.reader import poll_batch
from streams.broker.records import UNSTAMPED, Record
from streams.clearing.clock import is_off
from streams.clearing.restore import Steps, TakenShard, take_shard
from streams.clearing.shard import Output, Shard
from streams.errors import BrokerError, InputError, ProducerFenced, ShardError, TransactionAborted
from streams.feeds.marks import MarkFeed
from streams.feeds.parameters import ParameterFeed
from streams.feeds.unreached import KINDS
from streams.logs import event
from streams.margin.parameters import RiskParameters
from streams.runtime import Event
from streams.service import run_role
from streams.settings import Settings
from streams.tables.connection import connect
from streams.tables.restore_point import RestorePoint
from streams.tables.tables import Connect, Tables
from streams.tables.write_behind import TableWriter
from streams.watchdog import Watchdog

log = logging.getLogger(__name__)

EVENT_FRAMES = Counter("margin_engine_event_frames", "Event frames applied")
FILLS = Counter("margin_engine_fills", "Fills applied")
MARK_FRAMES = Counter("margin_engine_mark_frames", "Mark frames walked")
CLOCK_SKEWED = Counter(
    "margin_engine_clock_skewed_frames", "Frames whose time is off by more than clock_skew_ms_max", ["clock"]
)
UNREADABLE_FRAMES = Counter("margin_engine_unreadable_frames", "Event records that are no frames")
SUSPENSIONS = Counter("margin_engine_suspensions", "Accounts named by records that could not be read")
COMMANDS_ISSUED = Counter("margin_engine_commands", "Liquidation commands committed")
COMMITS = Histogram(
    "margin_engine_commit_seconds", "Transaction time", buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)
)
PARAMETERS_REFUSED = Counter("margin_engine_parameters_refused", "Parameter records refused: the version before stays")
ALERTS_RAISED = Counter("margin_engine_alerts", "Alerts committed", ["kind"])
UNREACHED = Gauge(
    "margin_engine_unreached",
    "What liquidation does not reach in the owned shards: undecided, unsellable and insolvent groups, suspended "
    "accounts, parked transfers, waiting fills, unapplied events",
    ["kind"],
)
RETAKES = Counter("margin_engine_retakes", "Times all shards were dropped and taken again")
SHARDS_OWNED = Gauge("margin_engine_shards", "Shards owned")

COMMAND_EVENT = "margin.liquidation.command.v1"
ALERT_EVENT = "margin.alert.v1"
ACCOUNT_EVENT = "margin.account.v1"

_LOOP = "engine"
_EVENT_FRAME = Decoder[EventFrame](EventFrame)
_POLL_S = 0.002
_IDLE_POLL_S = 0.1
_FRAMES_PER_POLL = 16
_LOOK_AT_SHARDS_S = 1.0
_RETAKES_MAX = 10
_DEAD_LETTER_SHARD = 0
"""The owner of this shard writes the dead letters of the topics that every worker reads."""


class Engine:
    """One engine process. :meth:`run` returns when ``stop`` is set and everything has been handed over."""

    def __init__(
        self, kafka: Kafka, tables: TableWriter, restore_point: RestorePoint, stop: Event, watchdog: Watchdog
    ) -> None:
        self._kafka = kafka
        self._settings = settings = kafka.settings
        self._runtime = kafka.runtime
        self._stop = stop
        self._watchdog = watchdog
        self._group = GroupPlace(settings.outside_group_s_max, kafka.runtime)
        self._worker = kafka.worker
        self._client_id = f"{settings.engine.group_id}-{self._worker}"
        self._tables = tables
        self._restore_point = restore_point
        self._producer = kafka.transactional_producer(self._client_id)
        self._reader = kafka.log_reader(self._client_id, lambda: self._beat("reading a log"))
        self._restoring = kafka.log_reader(self._client_id, lambda: self._beat("restoring"))
        self._parameter_log = ParameterFeed(kafka.follower(self._client_id, PARAMETERS))
        self._marks_log = MarkFeed(kafka.follower(self._client_id, MARKS))
        self._consumer = kafka.group_consumer(self._client_id, settings.engine.group_id, self._group.properties())
        self._shards: dict[int, Shard] = {}
        self._to_take: list[int] = []
        self._taking: Steps | None = None
        self._rules_meanwhile: list[tuple[int, RiskParameters]] = []
        self._broken: Exception | None = None
        self._held: deque[Record] = deque()
        self._marks_epoch = -1
        self._marks_seen: float | None = None
        self._joined = False
        self._places: dict[str, int] = {}
        self._places_seen = 0.0
        self._letters: list[tuple[Record, Exception]] = []
        self._last_commit = 0.0
        self._last_journal = 0.0
        self._retakes = 0

    @classmethod
    def build(cls, kafka: Kafka, stop: Event, watchdog: Watchdog, connect: Connect = connect) -> Self:
        """An engine of ``kafka`` whose tables are in the Redis that ``connect`` gives.

        Raises:
            TopicError: the topics are not as the contract has them. BrokerError: Kafka does not answer.
        """
        watchdog.beat(_LOOP, "starting")
        shards = kafka.partition_counts()[EVENTS]
        tables = Tables(kafka, kafka.cluster_id(), shards, connect=connect)
        return cls(kafka, TableWriter(tables, watchdog), RestorePoint(tables), stop, watchdog)

    def run(self) -> None:
        """Own shards until told to stop.

        Raises:
            MarginClearingError: what cannot be mended by taking the shards again; the process should exit and restart.
        """
        self.register()
        try:
            self.join()
            while not self._stop.is_set():
                self.cycle()
            self._hand_over()
        except BaseException:
            self._abandon()
            raise
        finally:
            self._close()

    def register(self) -> None:
        """Register the transactional id, which ends the transaction of whoever had it, and begin to write tables."""
        self._producer.init()
        self._tables.start()

    def join(self) -> None:
        """Learn the parameters in force and join the group; :meth:`cycle` takes what it assigns."""
        self._marks_log.start(self._reader.watermarks(MARKS, 0)[1])
        self._parameter_log.restart()
        self._catch_up_parameters()
        self._consumer.subscribe([EVENTS], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def _abandon(self) -> None:
        """Forget everything uncommitted: what stopped half-way must not be committed on the way out."""
        self._stop_taking()
        for shard in self._shards:
            self._tables.release(shard, flush=False)
            self._forget_places(shard)
        self._shards.clear()
        self._letters.clear()

    def _close(self) -> None:
        """Hand over: leaving the group revokes every shard, which commits and releases it."""
        self._beat("leaving the group")
        leave_group(self._consumer, self._settings.service.instance_id, self._settings.kafka.handover_s, self._runtime)
        self._beat("closing the producer")
        self._producer.close()
        self._beat("closing the tables")
        self._tables.close()
        self._restore_point.close()
        for part in (self._parameter_log, self._marks_log, self._reader, self._restoring):
            part.close()
        self._watchdog.forget(_LOOP)
        event(log, logging.INFO, "engine_stopped")

    def _new_producer(self) -> TransactionalProducer:
        producer = self._kafka.transactional_producer(self._client_id)
        producer.init()
        return producer

    # --- what others see of it ---------------------------------------------------------------------------------------

    def readiness(self) -> list[probes.Condition]:
        """Whether it does its work now; may be asked from any thread at any time."""
        service, seen = self._settings.service, self._marks_seen
        age_ms = None if seen is None else round(1000 * (self._runtime.monotonic() - seen))
        lags = [self._group.lag(EVENTS, shard) for shard in tuple(self._shards)]
        return [
            probes.Condition("is_in_group", int(self._joined), 1, "at_least"),
            probes.Condition("shards_to_take", len(self._to_take), 0),
            probes.Condition("marks_age_ms", age_ms, service.ready_age_ms),
            probes.Condition(
                "events_lag_frames", _greatest(lags) if self._shards else 0, self._settings.engine.ready_lag_frames_max
            ),
        ]

    def _beat(self, doing: str) -> None:
        self._watchdog.beat(_LOOP, doing)

    def _look_at_shards(self) -> None:
        """Tell the watchdog of every shard that moves, or has nothing to move for."""
        if self._runtime.monotonic() - self._places_seen < _LOOK_AT_SHARDS_S:
            return
        self._places_seen = self._runtime.monotonic()
        for number, shard in self._shards.items():
            marks, events = _places(number)
            self._look_at(marks, shard.marks_next, waiting=shard.marks_next < self._marks_log.next_offset)
            self._look_at(events, shard.events_next, waiting=bool(self._group.lag(EVENTS, number)))

    def _look_at(self, place: str, offset: int, *, waiting: bool) -> None:
        if not waiting or offset != self._places.get(place):
            self._places[place] = offset
            self._watchdog.beat(place, f"at offset {offset}")

    def _forget_places(self, shard: int) -> None:
        for place in (*_places(shard), _taking(shard)):
            self._places.pop(place, None)
            self._watchdog.forget(place)

    # --- the cycle ---------------------------------------------------------------------------------------------------

    def cycle(self) -> None:
        """Once round: what has come is applied, decided, and committed when it is due."""
        try:
            if self._broken is not None:
                self._mend_producer(self._broken)
            if self._to_take:
                self._hold(0, 1)  # a member that was expelled learns of it, and joins again, only while it polls
            if self._to_take:
                self._beat(f"taking shard {self._to_take[0]}")
                self._take(self._to_take[0])
            self._beat("reading parameters")
            self._poll_parameters()
            self._beat("walking marks")
            self._poll_marks()
            self._beat("applying events")
            self._poll_events()
            self._commit_if_due()
            self._look_at_shards()
        except (TransactionAborted, ProducerFenced, ShardError) as error:
            self._retake_all(error)
        self._group.require_member()
        self._tables.check()

    def _poll_parameters(self) -> None:
        self._read_parameters(self._parameter_log.poll())

    def _read_parameters(self, messages: list[Record]) -> None:
        """Put records in force in every shard, then decide every group once at the new rules."""
        if not messages:
            return
        self._commit_events()
        for message in messages:
            step = self._parameter_log.add(message)
            if step.refused is not None:
                if _DEAD_LETTER_SHARD in self._shards:
                    self._letters.append((message, step.refused))
                PARAMETERS_REFUSED.inc()
                event(log, logging.ERROR, "parameters_refused", offset=step.offset, reason=str(step.refused))
            for shard in self._shards.values():
                self._adopt(shard, step.offset, step.rules)
            if self._taking is not None:
                self._rules_meanwhile.append((step.offset, step.rules))
        for shard in self._shards.values():
            shard.decide_touched(everything=True)

    def _adopt(self, shard: Shard, offset: int, rules: RiskParameters) -> None:
        try:
            shard.apply_parameters(offset, rules)
        except InputError as error:
            event(log, logging.ERROR, "parameters_not_adopted", shard=shard.shard, offset=offset, reason=str(error))

    def _catch_up_parameters(self) -> None:
        """Read ``risk.parameters.v1`` to its end: an event may name what a record just written has introduced."""
        self._parameter_log.catch_up(self._reader, self._read_parameters)

    def _poll_marks(self) -> None:
        timeout_s = _POLL_S if self._shards and not self._held and not self._taking else 0
        for found in self._marks_log.poll(timeout_s):
            offset = found.offset
            if found.refused is not None:
                writer = self._shards.get(_DEAD_LETTER_SHARD)
                if writer is not None and offset >= writer.marks_next:
                    self._letters.append((found.record, found.refused))
                for shard in self._shards.values():
                    shard.skip_marks(offset)
                continue
            assert found.frame is not None
            self._walk(offset, found.frame, found.appended_us)
            if any(shard.has_command for shard in self._shards.values()):
                self._commit()

    def _walk(self, offset: int, frame: MarkFrame, appended: int) -> None:
        MARK_FRAMES.inc()
        self._marks_seen = self._runtime.monotonic()
        self._count_skew("marks", frame.time, appended)
        for shard in self._shards.values():
            if offset >= shard.marks_next:
                shard.apply_marks(offset, frame, appended)
        if frame.epoch >= self._marks_epoch and appended != UNSTAMPED:
            self._marks_epoch = frame.epoch
            self._tables.submit_marks(frame.marks)

    def _poll_events(self) -> None:
        if any(shard.has_events for shard in self._shards.values()):
            if self._is_batch_full():
                self._commit()
            else:
                self._hold(0, 1)
                return
        self._hold_events()
        if not self._held:
            return
        frames = [(message, self._decoded(message)) for message in self._held]
        self._held.clear()
        if any(isinstance(frame, EventFrame) and not self._admits(message, frame) for message, frame in frames):
            self._catch_up_parameters()
            self._commit_events()
        touched = {shard for message, frame in frames if (shard := self._apply(message, frame)) is not None}
        for shard in touched:
            self._shards[shard].decide_touched()

    def _hold_events(self) -> None:
        """Add what has arrived to the batch, until that is full or there is nothing more."""
        timeout_s = 0.0 if self._held or self._taking else (_POLL_S if self._shards else _IDLE_POLL_S)
        while self._hold(timeout_s, _FRAMES_PER_POLL) == _FRAMES_PER_POLL and not self._is_batch_full():
            timeout_s = 0.0

    def _hold(self, timeout_s: float, frames_max: int) -> int:
        """Poll. A rebalance within the poll puts another deque in place of the one that was there before it."""
        polled = poll_batch(self._consumer, timeout_s, frames_max)
        self._held.extend(polled)
        return len(polled)

    def _is_batch_full(self) -> bool:
        engine = self._settings.engine
        return (
            len(self._held) >= engine.batch_frames_max
            or sum(len(message.value() or b"") for message in self._held) >= 1024 * engine.batch_kbytes_max
        )

    @staticmethod
    def _decoded(message: Record) -> EventFrame | DecodeError:
        try:
            return _EVENT_FRAME(message.value())
        except DecodeError as error:
            return error

    def _is_next(self, message: Record) -> bool:
        shard = self._shards.get(message.partition())
        return shard is not None and message.offset() >= shard.events_next

    def _admits(self, message: Record, frame: EventFrame) -> bool:
        return not self._is_next(message) or self._shards[message.partition()].admits(frame)

    def _apply(self, message: Record, frame: EventFrame | DecodeError) -> int | None:
        if not self._is_next(message):
            return None
        shard = self._shards[message.partition()]
        if isinstance(frame, DecodeError):
            shard.skip_events(message.offset(), str(frame))
            self._letters.append((message, frame))
            UNREADABLE_FRAMES.inc()
        else:
            appended = message.appended_us
            shard.apply_events(message.offset(), frame, appended)
            self._count_skew("events", frame.time, appended)
            EVENT_FRAMES.inc()
            FILLS.inc(len(frame.fills.account))
            SUSPENSIONS.inc(len(frame.suspensions))
        return shard.shard

    def _count_skew(self, clock: str, time_us: int, appended: int) -> None:
        skew_us = 1000 * self._parameter_log.rules.policy.clock_skew_ms_max
        if is_off(time_us, appended, skew_us):
            CLOCK_SKEWED.labels(clock).inc()

    # --- committing --------------------------------------------------------------------------------------------------

    def _commit_if_due(self) -> None:
        now = self._runtime.monotonic()
        interval_s = self._settings.engine.commit_interval_ms / 1000
        if any(shard.has_command for shard in self._shards.values()) or now - self._last_commit >= interval_s:
            self._commit(journal_idle=now - self._last_journal >= self._settings.engine.journal_interval_ms / 1000)

    def _commit_events(self) -> None:
        """Commit if events wait for it: what comes next must be another batch."""
        if any(shard.has_events for shard in self._shards.values()):
            self._commit()

    def _commit(self, *, journal_idle: bool = False) -> None:
        """Commit everything that is waiting; with ``journal_idle`` also how far quiet shards have walked the marks."""
        journal_idle = journal_idle or bool(self._letters)  # a dead letter is written with the offset it stood at
        waiting = [shard for shard in self._shards.values() if shard.has_output or journal_idle]
        if not waiting:
            return
        started = self._runtime.monotonic()
        producer = self._producer
        self._beat("producing")
        producer.begin()
        outputs = [(shard, shard.take(self._worker, with_open_interest=journal_idle)) for shard in waiting]
        delivered = [self._produce(shard, output) for shard, output in outputs]
        for message, error in self._letters:
            concerns = () if message.topic() == EVENTS else None  # whom a frame concerns that is none, nobody knows
            produce_dead_letter(producer, message, error, suspended=concerns)
        self._beat("sending offsets")
        producer.send_offsets(
            [TopicPartition(EVENTS, shard.shard, shard.events_next) for shard in waiting],
            group_metadata(self._consumer),
        )
        self._beat("committing")
        producer.commit()
        self._letters.clear()
        if not self._to_take:
            self._retakes = 0
        self._last_commit = self._runtime.monotonic()
        if journal_idle:
            self._last_journal = self._last_commit
            self._show_unreached()
        COMMITS.observe(self._last_commit - started)
        for (shard, output), offsets in zip(outputs, delivered, strict=True):
            shard.journal_previous = offsets["journal"]
            COMMANDS_ISSUED.inc(len(output.commands))
            for alert in output.alerts:
                ALERTS_RAISED.labels(alert.kind).inc()
            if output.rows:
                self._tables.submit(shard.shard, shard.claim, offsets["rows"] + 1, output.rows)

    def _show_unreached(self) -> None:
        """Set the gauges of what liquidation does not reach in the owned shards."""
        for kind in KINDS:
            UNREACHED.labels(kind).set(sum(shard.unreached.get(kind, 0) for shard in self._shards.values()))

    def _produce(self, shard: Shard, output: Output) -> dict[str, int]:
        """Produce one shard's output; the returned mapping holds the offsets of its last row and its journal record
        once the transaction has committed."""
        producer, partition = self._producer, shard.shard
        offsets: dict[str, int] = {}

        def note(name: str) -> Callable[[KafkaError | None, Message], None]:
            def delivered(error: KafkaError | None, message: Message) -> None:
                if error is None:
                    offset = message.offset()
                    assert offset is not None
                    offsets[name] = max(offset, offsets.get(name, -1))

            return delivered

        note_row = note("rows")
        row_headers = headers.cloud_event("", ACCOUNT_EVENT, shard.clock_us)
        for account, row in output.rows.items():
            row_headers[1] = ("ce_id", f"{partition}:{output.journal.sequence}:{account}".encode())
            producer.produce(ACCOUNTS, row, key=account, partition=partition, headers=row_headers, on_delivery=note_row)
        for command in output.commands:
            producer.produce(
                COMMANDS,
                encode(command),
                key=command.account,
                headers=headers.cloud_event(command.command_id, COMMAND_EVENT, command.issued_at),
            )
        for alert in output.alerts:
            producer.produce(
                ALERTS,
                encode(alert),
                key=alert.account,
                headers=headers.cloud_event(alert.alert_id, ALERT_EVENT, alert.event_time),
            )
        for letter in output.unapplied:
            producer.produce(
                dead_letter_topic(EVENTS),
                letter.frame,
                key=letter.account,
                headers=headers.dead_letter(
                    EVENTS,
                    partition,
                    letter.offset,
                    shard.clock_us // 1000,
                    type(letter.error).__name__,
                    str(letter.error),
                )
                + headers.told([letter.account], all_told=True),
            )
        producer.produce(JOURNAL, encode(output.journal), partition=partition, on_delivery=note("journal"))
        return offsets

    # --- owning shards -----------------------------------------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign([TopicPartition(EVENTS, found.partition) for found in partitions])
        consumer.pause(partitions)
        self._joined = True
        self._wait_to_take(found.partition for found in partitions)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._hand_over()
        self._drop([found.partition for found in partitions], release=True)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        event(log, logging.WARNING, "shards_lost", shards=[found.partition for found in partitions])
        self._joined = False
        self._drop([found.partition for found in partitions], release=False)

    def _hand_over(self) -> None:
        """Commit what can be committed within the handover's deadline; whatever else is left to the log."""
        try:
            with self._producer.within(self._settings.kafka.handover_s):
                self._commit(journal_idle=True)
        except (TransactionAborted, ProducerFenced) as error:
            self._retake_all(error)

    def _drop(self, shards: list[int], *, release: bool) -> None:
        for shard in shards:
            if self._shards.pop(shard, None) is not None:
                self._tables.release(shard, flush=release)
            if shard in self._to_take:
                if shard == self._to_take[0]:
                    self._stop_taking()
                self._to_take.remove(shard)
            self._forget_places(shard)
            event(log, logging.INFO, "shard_left", shard=shard)
        self._held = deque(message for message in self._held if message.partition() not in shards)
        self._letters = [(message, error) for message, error in self._letters if _writer(message) not in shards]
        SHARDS_OWNED.set(len(self._shards))

    def _wait_to_take(self, shards: Iterable[int]) -> None:
        """Put ``shards`` behind those that wait to be taken."""
        self._to_take += shards
        self._beat_waiting()

    def _beat_waiting(self) -> None:
        """The taking has got further, and every shard that waits is nearer to its turn."""
        for shard in self._to_take:
            self._watchdog.beat(_taking(shard), f"shard {self._to_take[0]} is being taken")

    def _take(self, shard_id: int) -> None:
        """Go one step further in taking a shard."""
        if self._taking is None:
            self._catch_up_parameters()  # the shard's last owner may have read further than this worker has
            self._rules_meanwhile = []
            self._taking = take_shard(
                shard_id,
                reader=self._restoring,
                producer=self._producer,
                consumer=self._consumer,
                rules=self._parameter_log.rules,
                parameters_next=self._parameter_log.next_offset,
                marks_next=lambda: self._marks_log.next_offset,
                restore_point=self._restore_point,
                worker=self._worker,
                timeout_s=self._settings.kafka.call_ms_max / 1000,
                runtime=self._runtime,
            )
        try:
            next(self._taking)
            self._beat_waiting()
        except StopIteration as done:
            self._taking = None
            self._own(done.value)

    def _stop_taking(self) -> None:
        if self._taking is not None:
            self._taking.close()
            self._taking = None

    def _own(self, taken: TakenShard) -> None:
        """Take a restored shard in among the others; what became known while it was restored is made up for."""
        shard = taken.shard
        letters = shard.shard == _DEAD_LETTER_SHARD
        if letters:
            self._letters += taken.refused_marks
            self._letters += self._refused_parameters(taken.parameters_first, shard.parameters_next)
        self._shards[shard.shard] = shard
        self._to_take.remove(shard.shard)
        self._forget_places(shard.shard)
        self._beat_waiting()
        self._held = deque(message for message in self._held if message.partition() != shard.shard)
        self._tables.restore(shard.shard, shard.claim)
        self._resume(shard)
        SHARDS_OWNED.set(len(self._shards))
        if shard.has_output:
            self._commit()
        if self._rules_meanwhile:
            if letters:
                self._letters += self._refused_parameters(shard.parameters_next, self._parameter_log.next_offset)
            for offset, rules in self._rules_meanwhile:
                self._adopt(shard, offset, rules)
            shard.decide_touched(everything=True)

    def _refused_parameters(self, first: int, end: int) -> list[tuple[Record, Exception]]:
        refused = self._parameter_log.refused(first, end)
        return [(step.record, step.refused) for step in refused if step.refused is not None]

    def _resume(self, shard: Shard) -> None:
        """Let the consumer fetch the shard's events from where its log says."""
        place = TopicPartition(EVENTS, shard.shard, shard.events_next)
        try:
            seek(self._consumer, place, self._settings.kafka.call_ms_max / 1000, self._runtime)
        except BrokerError as error:
            raise ShardError(f"shard {shard.shard}: {error}") from error
        self._consumer.resume([place])

    def _retake_all(self, error: Exception) -> None:
        """Drop the memory of every shard; the next cycle mends the producer and takes them again from the log.

        A rebalance may wait for this, so it asks nothing of Kafka.
        """
        event(log, logging.WARNING, "retaking_all_shards", reason=str(error), shards=sorted(self._shards))
        RETAKES.inc()
        self._retakes += 1
        if self._retakes > _RETAKES_MAX:
            raise ShardError(
                f"the shards could not be kept in {_RETAKES_MAX} attempts; the last failed with: {error}"
            ) from error
        self._broken = error
        owned = sorted({*self._shards, *self._to_take})
        self._consumer.pause([TopicPartition(EVENTS, shard) for shard in owned])
        self._abandon()
        self._held.clear()
        # Whatever was polled with the record at which a commit failed has not been applied: it is read again.
        self._parameter_log.restart()
        self._marks_log.restart()
        self._to_take.clear()
        self._wait_to_take(owned)
        SHARDS_OWNED.set(0)

    def _mend_producer(self, error: Exception) -> None:
        """End the transaction that failed, with the producer if it may be fenced."""
        self._beat("waiting to try again")
        self._stop.wait(min(0.05 * 2**self._retakes, 2.0) if self._retakes > 1 else 0)
        self._beat("mending the producer")
        try:
            if isinstance(error, ProducerFenced):
                raise error
            self._producer.abort()
        except (ProducerFenced, TransactionAborted):
            self._producer.close()
            self._beat("registering a producer")
            self._producer = self._new_producer()
        self._broken = None


def run(settings: Settings) -> None:
    """Run one engine process until SIGTERM or SIGINT."""
    run_role(settings, Engine.build)


def _places(shard: int) -> tuple[str, str]:
    """What the watchdog knows an owned shard by: its walk of the marks, and its events."""
    return f"marks of shard {shard}", f"events of shard {shard}"


def _taking(shard: int) -> str:
    return f"taking of shard {shard}"


def _greatest(lags: list[int | None]) -> int | None:
    """The greatest lag; None as long as one is not known."""
    known = [lag for lag in lags if lag is not None]
    return max(known, default=0) if len(known) == len(lags) else None


def _writer(message: Record) -> int:
    """The shard whose owner writes ``message`` to the dead letters."""
    return message.partition() if message.topic() == EVENTS else _DEAD_LETTER_SHARD
