"""The engine's loop: consume, apply, walk the marks, commit, then hand the rows to Redis.

One process is one member of the consumer group over ``margin.events.v1`` and owns many shards; one transaction covers
all of them. It owns the order of things and their failures; what an input does to an account is the shard's business.

The cycle:

1. New parameter records are applied to every shard.
2. Marks are walked in order by every shard. A command is committed with those of the marks that came with its own.
3. Events are applied, a batch, and what the routers say of their progress is walked.
4. If a shard has a command, or has had an alert for a little, or ``commit_interval_ms`` has passed since the last
   commit, everything is committed (``commit.py``).

Whatever fails inside a transaction, the memory of all shards is dropped and they are restored from the log. Restoring
one goes on by small steps between the cycles of the others. Everything a rebalance waits for has one deadline; what
cannot be committed by then is dropped, and the next owner restores it from the log.
"""

import logging
from collections.abc import Callable, Sequence
from math import inf
from typing import Self

from prometheus_client import Counter

from schemas.messages import MarkFrame, ShardLayout
from schemas.topics import MARKS, PARAMETERS, PROGRESS
from streams import probes
from streams.broker import dead_letters
from streams.broker.kafka import Kafka
from streams.broker.records import UNSTAMPED, Record
from streams.clearing.assignment import Assignment
from streams.clearing.commit import DEAD_LETTER_SHARD, Committer
from streams.clearing.event_intake import EventIntake, count_skew
from streams.clearing.inbox import Inbox
from streams.clearing.log_survey import LogSurvey
from streams.clearing.parameter_intake import ParameterIntake
from streams.clearing.progress import LOOP, Progress
from streams.clearing.progress_backlog import ProgressBacklog
from streams.clearing.restore import RestoredShard, ShardRestorer, put_in_force, steps_per_cycle
from streams.errors import NoAnswer, ProducerFenced, ShardError, TransactionAborted
from streams.feeds.gaps import KNOWN
from streams.feeds.marks import MarkFeed
from streams.feeds.parameters import ParameterFeed
from streams.feeds.progress import ProgressFeed
from streams.logs import event
from streams.runtime import Event
from streams.service import run_role
from streams.settings import Settings
from streams.tables.connection import connect
from streams.tables.restore_point import RestorePoint
from streams.tables.tables import Connect, Tables
from streams.tables.write_behind import TableWriter
from streams.watchdog import Watchdog

log = logging.getLogger(__name__)

MARK_FRAMES = Counter("margin_engine_mark_frames", "Mark frames walked")
RETAKES = Counter("margin_engine_retakes", "Times all shards were dropped and taken again")

_POLL_S = 0.002
_TOGETHER_S = 0.005
"""So long a command waits at least for those of the marks behind its own, and at most for as long as the last commit
took: with a transaction each, the commands of a falling market would queue for theirs."""
_IDLE_POLL_S = 0.1
_RETAKES_MAX = 10


class Engine:
    """One engine process. :meth:`run` returns when ``stop`` is set and everything has been handed over."""

    def __init__(self, kafka: Kafka, layout: ShardLayout, tables: Tables, stop: Event, watchdog: Watchdog) -> None:
        settings, client_id = kafka.settings, f"{kafka.settings.engine.group_id}-{kafka.worker}"
        self._settings = settings
        self._runtime = kafka.runtime
        self._stop, self._worker = stop, kafka.worker
        self._tables = TableWriter(tables, watchdog)
        self._restore_point = RestorePoint(tables)
        producer = kafka.transactional_producer(client_id)
        self._reader = kafka.log_reader(client_id, lambda: self._progress.beat("reading a log"))
        self._restoring = kafka.log_reader(client_id, lambda: self._progress.beat("restoring"))
        self._parameter_log = ParameterFeed(kafka.follower(client_id, PARAMETERS))
        self._marks_log = MarkFeed(kafka.follower(client_id, MARKS))
        self._backlog = ProgressBacklog(ProgressFeed(kafka.follower(client_id, PROGRESS)))
        self._inbox = Inbox(kafka, client_id)
        self._topics = kafka.topic_watch(client_id, KNOWN)
        self._layout = kafka.layout_follower(client_id, layout)
        self._assignment = Assignment(layout.shards_used, self._hand_over, self._let_go, kafka.runtime)
        self._progress = Progress(
            settings, kafka.runtime, watchdog, self._assignment, self._inbox, self._marks_log, kafka.places
        )
        self._committer = Committer(
            kafka, client_id, producer, self._tables, self._inbox.membership, self._progress.beat
        )
        self._restorer = ShardRestorer(
            self._restoring,
            lambda: self._inbox.consumer,
            self._restore_point,
            LogSurvey(self._restoring, self._topics.ids, settings.kafka.bootstrap_servers),
            lambda: self._marks_log.next_offset,
            lambda: self._backlog.next_offset,
            worker=kafka.worker,
            timeout_s=settings.kafka.call_ms_max / 1000,
            runtime=kafka.runtime,
        )
        self._intake = ParameterIntake(
            self._parameter_log, self._assignment, self._committer, self._progress, kafka.runtime
        )
        self._events = EventIntake(
            self._assignment, self._committer, self._parameter_log, self._catch_up_parameters, self._catch_up_marks
        )
        self._broken: Exception | None = None
        self._marks_epoch = -1
        self._last_commit = self._commit_took_s = self._last_journal = 0.0
        self._retakes = 0

    @classmethod
    def build(cls, kafka: Kafka, stop: Event, watchdog: Watchdog, connect: Connect = connect) -> Self:
        """An engine of ``kafka`` whose tables are in the Redis that ``connect`` gives.

        Raises:
            TopicError: the topics are not as the contract has them. BrokerError: Kafka does not answer.
        """
        watchdog.beat(LOOP, "starting")
        layout = kafka.topics(kafka.settings.engine.group_id).layout
        return cls(kafka, layout, Tables(kafka, kafka.cluster_id(), layout, connect=connect), stop, watchdog)

    # --- its life ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Own shards until told to stop.

        Raises:
            MarginClearingError: what cannot be mended by restoring the shards; the process should exit and restart.
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
        self._committer.producer.init()
        self._tables.start()

    def join(self) -> None:
        """Learn the parameters in force and join the group; :meth:`cycle` restores what it assigns."""
        self._marks_log.start(self._reader.watermarks(MARKS, 0)[1])
        self._backlog.start(self._reader.watermarks(PROGRESS, 0)[1])
        self._layout.start(self._reader)
        self._take_layout(self._layout.layout)
        self._parameter_log.restart()
        self._catch_up_parameters()
        assignment = self._assignment
        self._inbox.join(on_assign=assignment.on_assign, on_revoke=assignment.on_revoke, on_lost=assignment.on_lost)

    def readiness(self) -> list[probes.Condition]:
        """Whether it does its work now; may be asked from any thread at any time."""
        return self._progress.readiness()

    def _close(self) -> None:
        """Leaving the group revokes every shard, which commits and releases it."""
        self._progress.beat("leaving the group")
        self._inbox.leave()
        self._progress.beat("closing the producer")
        self._committer.producer.close()
        self._progress.beat("closing the tables")
        self._tables.close()
        self._restore_point.close()
        logs = (self._parameter_log, self._marks_log, self._backlog, self._reader, self._restoring)
        for part in (*logs, self._layout, self._topics):
            part.close()
        self._progress.end()
        event(log, logging.INFO, "engine_stopped")

    # --- the cycle ---------------------------------------------------------------------------------------------------

    def cycle(self) -> None:
        """Once round: what has come is applied, decided, and committed when it is due."""
        try:
            if self._broken is not None:
                self._mend(self._broken)
            if self._assignment.to_restore:
                self._inbox.poll(0, 1)  # a member that was expelled learns of it, and joins again, only while it polls
            if to_restore := self._assignment.to_restore:
                self._progress.beat(f"taking shard {to_restore[0]}")
                self._restore(to_restore[0])
            if (layout := self._layout.poll()) is not None:
                self._take_layout(layout)
            self._progress.beat("reading parameters")
            self._read_parameters(self._parameter_log.poll())
            self._progress.beat("walking marks")
            self._poll_marks()
            self._progress.beat("applying events")
            self._poll_events()
            self._backlog.walk(self._assignment.running, self._committer.put_aside)
            self._commit_if_due()
            self._progress.look_at_shards()
        except (TransactionAborted, ProducerFenced, NoAnswer, ShardError) as error:
            self._retake_all(error)
        dead_letters.REPEATED.tell()
        self._inbox.require_member()
        self._topics.check()
        self._tables.check()

    def _take_layout(self, layout: ShardLayout) -> None:
        """Take the shards that there are now, and have the tables say where accounts are."""
        self._assignment.grow(layout.shards_used)
        self._tables.submit_layout(layout)

    # --- parameters --------------------------------------------------------------------------------------------------

    def _read_parameters(self, messages: Sequence[Record]) -> None:
        """Put records in force in every shard, then decide every group once under the new parameters."""
        if messages:
            self._intake.take(messages)

    def _catch_up_parameters(self) -> None:
        """Read ``risk.parameters.v1`` to its end: an event may name what a record just written has introduced."""
        self._parameter_log.catch_up(self._reader, self._read_parameters)

    # --- marks -------------------------------------------------------------------------------------------------------

    def _poll_marks(self) -> None:
        running = self._assignment.running
        is_idle = running and self._inbox.is_empty and not self._assignment.is_restoring
        commit_at = inf
        for mark in self._marks_log.poll(_POLL_S if is_idle else 0):
            if mark.frame is not None:
                self._walk(mark.offset, mark.frame, mark.appended_us)
                if self._assignment.has_command:
                    now = self._runtime.monotonic()
                    commit_at = min(commit_at, now + max(_TOGETHER_S, self._commit_took_s))
                    if now >= commit_at:
                        self._commit()
                        commit_at = inf
            else:
                assert mark.refused is not None
                writer = running.get(DEAD_LETTER_SHARD)
                if writer is not None and mark.offset >= writer.marks_next:
                    self._committer.put_aside((mark.record, mark.refused))
                for shard in running.values():
                    shard.skip_marks(mark.offset)
        if self._assignment.has_command:
            self._commit()

    def _walk(self, offset: int, frame: MarkFrame, appended: int) -> None:
        MARK_FRAMES.inc()
        self._progress.saw_marks()
        count_skew(self._parameter_log.parameters, "marks", frame.time, appended)
        for shard in self._assignment.running.values():
            if offset >= shard.marks_next:
                shard.apply_marks(offset, frame, appended)
        if frame.epoch >= self._marks_epoch and appended != UNSTAMPED:
            self._marks_epoch = frame.epoch
            self._tables.submit_marks(frame.marks)

    # --- events ------------------------------------------------------------------------------------------------------

    def _poll_events(self) -> None:
        if self._assignment.is_restoring or not self._inbox.is_empty:
            self._inbox.fill(0.0)
        else:
            self._inbox.fill(_POLL_S if self._assignment.running else _IDLE_POLL_S)
        if self._inbox.is_empty:
            return
        self._events.take(self._inbox.drain())

    def _catch_up_marks(self, is_enough: Callable[[], bool]) -> None:
        """Walk the marks on which accounts were decided that come from another shard.

        Raises:
            NoAnswer: they do not come in time.
        """
        until = self._runtime.monotonic() + self._settings.kafka.call_ms_max / 1000
        while not is_enough():
            if self._runtime.monotonic() >= until:
                raise NoAnswer("accounts came that were decided on later marks, and these do not come")
            self._progress.beat("walking marks up to accounts that have come")
            self._poll_marks()

    # --- committing --------------------------------------------------------------------------------------------------

    def _commit_if_due(self) -> None:
        now, engine = self._runtime.monotonic(), self._settings.engine
        is_due = now - self._last_commit >= engine.commit_interval_ms / 1000
        if is_due or self._inbox.is_full or self._assignment.is_urgent(now):
            self._commit(journal_idle=now - self._last_journal >= engine.journal_interval_ms / 1000)

    def _commit(self, *, journal_idle: bool = False) -> None:
        """Commit everything that is waiting; with ``journal_idle`` also how far quiet shards have walked the marks."""
        journal_idle = journal_idle or self._committer.has_letters  # one is written with the offset it stood at
        shards = [shard for shard in self._assignment.running.values() if shard.has_output or journal_idle]
        if not shards:
            return
        self._inbox.note_commit()
        started = self._runtime.monotonic()
        self._last_commit = self._committer.commit(shards, self._worker, with_open_interest=journal_idle)
        self._commit_took_s = self._last_commit - started
        if not self._assignment.to_restore:
            self._retakes = 0
        if journal_idle:
            self._last_journal = self._last_commit
            self._progress.show_unreached(self._assignment.running.values())

    # --- owning shards -----------------------------------------------------------------------------------------------

    def _restore(self, shard_id: int) -> None:
        """Go further in restoring a shard."""
        if not self._assignment.is_restoring:
            self._backlog.follow(shard_id)
            self._catch_up_parameters()  # the shard's last owner may have read further than this worker has
            self._intake.meanwhile = []
            parameters, parameters_next = self._parameter_log.parameters, self._parameter_log.next_offset
            self._assignment.begin(
                shard_id, self._restorer.restore(shard_id, self._committer.producer, parameters, parameters_next)
            )
        for _ in range(steps_per_cycle(self._commit_took_s)):
            restored = self._assignment.restore()
            if restored is not None:
                self._own(restored)
                break
        self._progress.beat_waiting()

    def _own(self, restored: RestoredShard) -> None:
        """Let a restored shard run among the others; what became known while it was restored is made up for."""
        shard = restored.shard
        letters = shard.shard == DEAD_LETTER_SHARD
        if letters:
            self._committer.put_aside(*restored.refused_marks)
            self._committer.put_aside(*self._parameter_log.refused(restored.parameters_first, shard.parameters_next))
        self._progress.forget(shard.shard)
        self._tables.restore(shard.shard, shard.cursor.claim)
        self._inbox.resume(shard)
        if shard.has_output:
            self._commit()
        if self._intake.meanwhile:
            if letters:
                until = self._parameter_log.next_offset
                self._committer.put_aside(*self._parameter_log.refused(shard.parameters_next, until))
            put_in_force(shard, self._intake.meanwhile, self._progress.beat_waiting)
            shard.decide_touched(everything=True)

    def _hand_over(self) -> None:
        """Commit what can be committed within the handover's deadline; whatever else is left to the log."""
        try:
            with self._committer.producer.within(self._settings.kafka.handover_s):
                self._commit(journal_idle=True)
        except (TransactionAborted, ProducerFenced) as error:
            self._retake_all(error)

    def _let_go(self, shard: int, in_order: bool) -> None:
        """The shard is somebody else's from now on; its table is flushed if it is revoked ``in_order``."""
        if shard in self._assignment.running:
            self._tables.release(shard, flush=in_order)
        self._progress.forget(shard)
        self._backlog.forget(shard)
        self._inbox.drop([shard])
        self._committer.forget_letters({shard})

    # --- failures ----------------------------------------------------------------------------------------------------

    def _retake_all(self, error: Exception) -> None:
        """Drop the memory of every shard; the next cycle mends the producer and restores them from the log.

        A rebalance may wait for this, so it asks nothing of Kafka.
        """
        running = sorted(self._assignment.running)
        event(log, logging.WARNING, "retaking_all_shards", reason=str(error), shards=running)
        RETAKES.inc()
        self._retakes += 1
        if self._retakes > _RETAKES_MAX:
            raise ShardError(
                f"the shards could not be kept in {_RETAKES_MAX} attempts; the last failed with: {error}"
            ) from error
        self._broken = error
        self._inbox.pause(self._assignment.shards)
        self._abandon()
        # Whatever was polled with the record at which a commit failed has not been applied: it is read again.
        self._parameter_log.restart()
        self._marks_log.restart()
        self._progress.beat_waiting()

    def _abandon(self) -> None:
        """Forget everything uncommitted: what stopped half-way must not be committed on the way out."""
        for shard in self._assignment.running:
            self._tables.release(shard, flush=False)
            self._progress.forget(shard)
        self._assignment.abandon()
        self._backlog.restart()
        self._committer.forget_all_letters()

    def _mend(self, error: Exception) -> None:
        """End the transaction that failed, with the producer if it may be fenced."""
        self._progress.beat("waiting to try again")
        self._stop.wait(min(0.05 * 2**self._retakes, 2.0) if self._retakes > 1 else 0)
        self._progress.beat("mending the producer")
        self._committer.mend(error)
        self._broken = None


def run(settings: Settings) -> None:
    """Run one engine process until SIGTERM or SIGINT."""
    run_role(settings, Engine.build)
