"""The router's loop: the exchange's topics in, frames by shard out, at least once; shards drop what they have had.

A row of a frame says which record it came from, so a record may be routed twice without harm, by this router or by
another; what becomes of it follows from the record and the memory of trade ids, which is committed with the offset that
it follows from. What happens to a record is the splitter's business, where a partition goes on is the ownership's.

A batch:

1. Consume until there are ``batch_records_max`` records or ``batch_kbytes_max``, or ``linger_ms`` have passed since the
   batch before: what comes after a pause waits for nothing.
2. Split what is valid into frames; keep what is not as dead letters, with suspensions of the accounts that it names in
   the same frames. Records of partitions that are no longer owned, or that were routed before, are left out.
3. Write the frames and the dead letters, and wait until all of them are acknowledged.
4. Tell the engines how far the partitions are routed, and where all of them end (``progress.py``).

Once in ``commit_ms`` and before partitions are given up: tell every shard up to where it has been told everything, wait
for the acknowledgement, and commit, in one transaction under the group's present generation, these offsets and the
memory of every symbol that has changed. Beside each offset stands which topic it is of; a partition whose offset does
not say so, or is of another topic, or is not in the log, is not begun without an operator's word (``beginning.py``).

If any of this fails, everything in memory is forgotten and read again from Kafka, beginning at the committed offsets.
"""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Self

from confluent_kafka import Consumer, TopicPartition

from schemas.topics import EVENTS, INPUTS, PROGRESS, ROUTER
from streams import probes
from streams.broker import dead_letters
from streams.broker.admin import Topics
from streams.broker.committed import seek
from streams.broker.dead_letters import produce_dead_letter
from streams.broker.kafka import Kafka
from streams.broker.producer import IdempotentProducer, TransactionalProducer, group_metadata
from streams.broker.records import Record
from streams.broker.rejoining import RejoiningConsumer
from streams.errors import BrokerError, NoAnswer, NotDelivered, ProducerFenced, TransactionAborted
from streams.logs import event
from streams.machine_clock import MachineClock
from streams.routing import metrics
from streams.routing.collecting import Collector
from streams.routing.metrics import Letter
from streams.routing.ownership import Owned, Ownership
from streams.routing.progress import ProgressTeller
from streams.routing.routed_layout import RoutedLayout
from streams.routing.split import Counts, RefusedRecord, Splitter
from streams.routing.trade_ids import SymbolMoved
from streams.runtime import Event
from streams.service import run_role
from streams.settings import Settings
from streams.watchdog import Watchdog

log = logging.getLogger(__name__)

_LOOP = "router"
_IDLE_POLL_S = 0.1
_FAILURES_MAX = 10
_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 2.0
_WRITE_LINGER_MS = 1_000
"""Everything is flushed as soon as it is there: this only keeps many dead letters from going out one by one."""


class Router:
    """One router process. :meth:`run` returns when ``stop`` is set and the batch in hand is committed."""

    def __init__(
        self, kafka: Kafka, topics: Topics, topic_ids: Mapping[str, str], stop: Event, watchdog: Watchdog
    ) -> None:
        self._kafka = kafka
        self._settings = settings = kafka.settings
        self._runtime = kafka.runtime
        self._stop = stop
        self._watchdog = watchdog
        self._timeout_s = settings.kafka.call_ms_max / 1000
        self._joined = False
        self._client_id = f"{settings.router.group_id}-{kafka.worker}"
        self._clock = MachineClock(kafka.runtime.time_ns)
        self._failures = 0
        self._splitter = Splitter(topics.shards, topic_ids)
        # Only we read the frames and the memory; dead letters are stored without compression by their topics.
        self._new_writer = partial(
            kafka.idempotent_producer, f"{self._client_id}-frames", compression="lz4", linger_ms=_WRITE_LINGER_MS
        )
        self._writer = self._new_writer()
        self._new_producer = partial(kafka.transactional_producer, self._client_id, compression="lz4")
        self._producer = self._new_producer()
        self._last_commit = 0.0
        self._reader = kafka.log_reader(self._client_id, lambda: self._beat("reading where a partition goes on"))
        self._topics = kafka.topic_watch(self._client_id, (*INPUTS, EVENTS, PROGRESS, ROUTER))
        self._ownership = Ownership(
            self._reader,
            self._timeout_s,
            kafka.runtime,
            topic_ids,
            lambda: kafka.topic_ids(INPUTS),
            settings.kafka.bootstrap_servers,
            self._topics.ids[ROUTER],
        )
        self._progress = ProgressTeller(kafka, self._client_id, topics, topic_ids)
        follower = kafka.layout_follower(self._client_id, topics.layout)
        self._layout = RoutedLayout(follower, self._splitter, self._progress)
        self._collector = Collector(settings.router, kafka.runtime)
        self._ends: dict[tuple[str, int], int] = {}
        self._failed: BrokerError | None = None
        self._group = RejoiningConsumer(
            lambda more: kafka.group_consumer(
                self._client_id, settings.router.group_id, {**more, "enable.partition.eof": True}
            ),
            settings.outside_group_s_max,
            kafka.runtime,
            kafka.places.watch(lambda topic, partition: self._ownership.find(topic, partition) is not None),
        )

    @classmethod
    def build(cls, kafka: Kafka, stop: Event, watchdog: Watchdog) -> Self:
        """A router into the shards of ``kafka``.

        Raises:
            TopicError: the topics are not as the contract has them. BrokerError: Kafka does not answer.
        """
        watchdog.beat(_LOOP, "starting")
        return cls(kafka, kafka.topics(kafka.settings.router.group_id), kafka.topic_ids(INPUTS), stop, watchdog)

    def run(self) -> None:
        """Route until told to stop.

        Raises:
            MarginClearingError: what cannot be mended by reading the log again; the process should exit and restart.
        """
        self.register()
        try:
            self.join()
            while not self._stop.is_set():
                self.cycle()
        except BaseException:
            self._ownership.clear()  # what stopped half-way must not be committed on the way out
            raise
        finally:
            self._close()

    def register(self) -> None:
        """Register the transactional id, which ends the transaction of whoever had it."""
        _registered(self._producer)

    def join(self) -> None:
        """Join the group; :meth:`cycle` takes what it assigns."""
        self._layout.start(self._reader)
        self._group.subscribe(list(INPUTS), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)
        event(
            log,
            logging.INFO,
            "router_started",
            shards=self._layout.shards,
            transactional_id=self._client_id,
        )

    def _close(self) -> None:
        self._beat("leaving the group")
        self._group.leave(self._settings.service.instance_id, self._settings.kafka.handover_s)
        self._beat("closing the producers")
        for part in (self._writer, self._producer, self._progress, self._reader, self._layout, self._topics):
            part.close()
        self._watchdog.forget(_LOOP)
        event(log, logging.INFO, "router_stopped")

    def readiness(self) -> list[probes.Condition]:
        """Whether it does its work now; may be asked from any thread at any time."""
        places = self._ownership.places() if self._joined else []
        lags = [self._group.lag(topic, partition) for topic, partition in places]
        lag = None if None in lags else sum(lag for lag in lags if lag is not None)
        return [
            probes.Condition("is_in_group", int(self._joined), 1, "at_least"),
            probes.Condition("inputs_lag_records", lag, self._settings.router.ready_lag_records_max),
            probes.Condition("partitions_missing", self._group.missing, 0),
            *self._kafka.places.conditions(),
        ]

    def _beat(self, doing: str) -> None:
        self._watchdog.beat(_LOOP, doing)

    # --- one batch ---------------------------------------------------------------------------------------------------

    def cycle(self) -> None:
        """Route one batch, if there is one."""
        self._beat("collecting a batch")
        self._group.require_member()
        self._topics.check()
        self._layout.look()
        batch = self.collect()
        try:
            if (failed := self._failed) is not None:
                self._failed = None
                raise failed
            if self._layout.is_unconfirmed:
                self._beat("confirming the layout")
                self._commit(confirms=True)
            self._beat("splitting a batch")
            self._route(batch)
            self._pass_ends()
            self._take_in_moved()
            if self._runtime.monotonic() - self._last_commit >= self._settings.router.commit_ms / 1000:
                self._commit()
        except (NotDelivered, TransactionAborted, ProducerFenced, NoAnswer) as error:
            self._recover(error)
        self._beat("telling of the progress")
        self._progress.tell(self._ownership.all())
        dead_letters.REPEATED.tell()

    def collect(self) -> list[Record]:
        """Records for one batch. Partitions may come and go while it is collected (:meth:`_drop`)."""
        self._ends.clear()
        self._ownership.look_again()
        return self._collector.collect(self._group, self._progress.wait_s(_IDLE_POLL_S), self._on_end)

    def _on_end(self, topic: str, partition: int, offset: int) -> None:
        self._ends[topic, partition] = offset

    def _pass_ends(self) -> None:
        """A partition that was read to its end is routed up to there: markers and aborted records are nothing."""
        for place, offset in self._ends.items():
            owned = self._ownership.find(*place)
            if owned is not None and not owned.moved:
                owned.next_offset = max(owned.next_offset, offset)

    def _route(self, batch: list[Record]) -> None:
        """Route a batch; tell the shards where partitions that are new go on.

        Raises:
            NotDelivered: something was not acknowledged.
        """
        self._tell_lost()
        letters = [Letter(message, refused) for message in batch if (refused := self._add(message)) is not None]
        routed = [owned for owned in self._ownership.all() if owned.routed or owned.is_new]
        if not routed:
            return
        for owned in routed:
            if owned.is_new:
                self._splitter.close(owned.topic, owned.partition, owned.next_offset)
        counts = self._write(letters)
        _count(routed, letters, counts)

    def _tell_lost(self) -> None:
        """Before anything else of a partition that begins at an accepted offset: what lies before is lost."""
        for owned in self._ownership.all():
            if owned.lost:
                self._splitter.tell_lost(owned.topic, owned.partition, owned.lost)
                owned.lost = ""  # if it cannot be written, the partition begins anew, with the word

    def _write(self, letters: list[Letter]) -> Counts:
        """Write the frames that have been collected, and dead letters; all of it is acknowledged then."""
        frames, counts = self._splitter.take(self._clock.now_us())
        self._beat("writing")
        started = self._runtime.monotonic()
        for shard, frame in frames:
            self._writer.produce(EVENTS, frame, partition=shard, on_acknowledged=partial(self._progress.wrote, shard))
        for letter in letters:
            _produce(self._writer, letter)
        self._writer.flush()
        metrics.WRITES.observe(self._runtime.monotonic() - started)
        return counts

    def _add(self, message: Record) -> RefusedRecord | None:
        """Add one record to the frames; the reason if it is refused."""
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        owned = self._ownership.find(topic, partition)
        if owned is None or owned.moved or offset < owned.next_offset:
            return None
        try:
            refused = self._splitter.add(
                topic, message.value(), owned.trade_ids, key=message.key(), partition=partition, offset=offset
            )
        except SymbolMoved as moved:
            owned.moved = moved.symbol
            return None
        owned.next_offset = offset + 1
        owned.leader_epoch = message.leader_epoch()
        owned.routed += 1
        return refused

    def _take_in_moved(self) -> None:
        """Let partitions to which a symbol moved begin with its memory, and read on where they stopped.

        Raises:
            As :meth:`_commit`, and BrokerError: Kafka does not answer.
        """
        if not any(owned.moved for owned in self._ownership.all()):
            return
        self._beat("taking in symbols that moved")
        self._commit()
        stopped = self._ownership.adopt_moved(self._group.consumer)
        self._commit()
        for owned in stopped:
            seek(self._group.consumer, owned.to_commit(), self._timeout_s, self._runtime)

    def _commit(self, *, confirms: bool = False) -> None:
        """Commit how far the partitions are routed, with the memory of trade ids, once every shard knows.

        If it ``confirms``, all partitions, and that they are routed by the newest layout from here on.

        Raises:
            NotDelivered: something was not acknowledged. TransactionAborted, ProducerFenced: nothing is committed, or
            nobody knows whether.
        """
        self._last_commit = self._runtime.monotonic()
        moved = [owned for owned in self._ownership.all() if confirms or owned.must_commit]
        if not moved:
            self._layout.confirm_nothing(owned=len(self._ownership))
            return
        self._tell_lost()
        for owned in moved:
            self._splitter.close(owned.topic, owned.partition, owned.next_offset)
        self._write([])
        started = self._runtime.monotonic()
        producer = self._producer
        self._beat("committing")
        producer.begin()
        for owned in moved:
            for partition, key, row in owned.rows_to_write():
                producer.produce(ROUTER, row, key=key, partition=partition)
        if confirms:
            self._layout.produce(producer, moved, self._clock.now_us())
        producer.send_offsets([owned.to_commit() for owned in moved], group_metadata(self._group.consumer))
        producer.commit()
        metrics.COMMITS.observe(self._runtime.monotonic() - started)
        if confirms:
            self._layout.confirmed()
        for owned in moved:
            owned.note_committed()
        self._failures = 0

    # --- owning partitions -------------------------------------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._beat("taking partitions")
        try:
            consumer.incremental_assign(self._begin(consumer, partitions))
        except NoAnswer as error:
            # Assigned and not owned: they stand until they are begun with all the others. An offset that is no number
            # would be asked for, and the answer may come after the seek and go over it.
            consumer.incremental_assign([TopicPartition(place.topic, place.partition, 0) for place in partitions])
            consumer.pause(partitions)
            self._failed = error
        self._joined = True
        _tell_owned(len(self._ownership), "partitions_assigned", partitions)

    def _begin(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Own ``partitions``; each with the offset at which it goes on."""
        self._layout.begin(self._reader)
        places = self._ownership.begin(consumer, partitions)
        for place in places:
            self._splitter.begin(place.topic, place.partition, place.offset)
        return places

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        """Whatever was routed is committed, if it can be; what has only been collected is left to the next owner."""
        try:
            with self._producer.within(self._settings.kafka.handover_s):
                self._commit()
        except (NotDelivered, TransactionAborted, ProducerFenced) as error:
            self._failed = error
        self._drop(partitions)
        _tell_owned(len(self._ownership), "partitions_revoked", partitions)

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        """Somebody else owns them already: nothing can be committed.

        A transaction that began before the loss was known was refused by Kafka or by :func:`group_metadata`.
        """
        self._joined = False
        self._drop(partitions)
        _tell_owned(len(self._ownership), "partitions_lost", partitions)

    def _drop(self, partitions: list[TopicPartition]) -> None:
        """Own ``partitions`` no longer, and forget what has been polled of them.

        They may be assigned again before the batch is routed, and then begin before what was polled.
        """
        self._ownership.drop(partitions)
        gone = {(place.topic, place.partition) for place in partitions}
        self._collector.drop(gone)
        self._ends = {place: end for place, end in self._ends.items() if place not in gone}

    def _recover(self, error: BrokerError) -> None:
        """Forget what is in memory, and the producers that may be of no use; begin again at the committed offsets."""
        self._failures += 1
        metrics.DROPPED_BATCHES.inc()
        event(log, logging.WARNING, "batch_dropped", reason=str(error), failures=self._failures)
        if self._failures > _FAILURES_MAX:
            raise BrokerError(f"nothing could be routed in {_FAILURES_MAX} attempts; the last: {error}") from error
        self._beat("waiting to try again")
        self._stop.wait(min(_BACKOFF_FIRST_S * 2 ** (self._failures - 1), _BACKOFF_MAX_S))
        self._writer.close()
        self._writer = self._new_writer()
        self._splitter.take(self._clock.now_us())  # of what was collected nobody has been told
        places = self._group.consumer.assignment()
        self._drop(places)
        try:
            self._beat("ending the transaction that failed")
            if not _is_ended(self._producer, error):
                self._beat("registering a producer")
                self._producer = _registered(self._new_producer())
            self._beat("reading where the partitions go on")
            for place in self._begin(self._group.consumer, places):
                seek(self._group.consumer, place, self._timeout_s, self._runtime)
            self._group.consumer.resume(places)
        except (NoAnswer, ProducerFenced) as unanswered:
            self._drop(places)
            self._failed = unanswered


def run(settings: Settings) -> None:
    """Run one router process until SIGTERM or SIGINT.

    Raises:
        MarginClearingError: what cannot be mended by reading the log again; the process should exit and restart.
    """
    run_role(settings, Router.build)


def _tell_owned(owned: int, what: str, partitions: list[TopicPartition]) -> None:
    metrics.PARTITIONS.set(owned)
    if partitions:
        event(log, logging.INFO, what, partitions=[f"{place.topic}[{place.partition}]" for place in partitions])


def _produce(writer: IdempotentProducer, letter: Letter) -> None:
    refused, whom = letter.refused, letter.refused.whom
    kind = refused.kind.__name__
    produce_dead_letter(writer, letter.record, kind, refused.reason, suspended=whom.accounts, all_told=whom.complete)


def _count(routed: list[Owned], letters: list[Letter], counts: Counts) -> None:
    """Count what has been acknowledged."""
    for owned in routed:
        metrics.RECORDS.labels(owned.topic).inc(owned.routed)
        owned.routed, owned.is_new = 0, False
    metrics.count(letters, counts)


def _is_ended(producer: TransactionalProducer, error: BrokerError) -> bool:
    """End the transaction that failed with ``error``; False if the producer is of no use any more, and closed."""
    try:
        if isinstance(error, ProducerFenced):
            raise error
        producer.abort()
    except (ProducerFenced, TransactionAborted):
        producer.close()
        return False
    return True


def _registered(producer: TransactionalProducer) -> TransactionalProducer:
    try:
        producer.init()
    except BrokerError:
        producer.close()
        raise
    return producer
