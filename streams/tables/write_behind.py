"""The thread that writes the tables behind the engine's commits: never ahead of Kafka, never in the engine's way.

The engine hands over committed rows and goes on; rows of an account that have not been written yet are replaced by
later ones. Whenever a table may not be where this thread left it (a shard just taken, Redis away or flushed, the
backlog over its bound) it is caught up from the changelog instead. Errors of Redis and Kafka are tried again for ever
and never reach the engine; anything else ends the thread, and :meth:`TableWriter.check` says so.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge

from schemas.codec import encode
from schemas.messages import Mark, ShardLayout
from streams.errors import BrokerError, TableError, TableFenced
from streams.logs import event
from streams.tables.catch_up import KAFKA_SILENCE_S, catch_up
from streams.tables.tables import Tables
from streams.tables.writer import AccountTable, WriteOutcome
from streams.watchdog import Watchdog

log = logging.getLogger(__name__)

BACKLOG = Gauge("margin_tables_backlog_rows", "Rows waiting to be written to Redis")
LAG = Gauge("margin_tables_lag_seconds", "How long the oldest waiting row has waited, or a table has been behind")
LAST_WRITE = Gauge("margin_tables_last_write_timestamp_seconds", "When Redis last took a write")
SHARDS_BEHIND = Gauge("margin_tables_shards_behind", "Tables that must be caught up from the changelog")
ROWS_WRITTEN = Counter("margin_tables_rows_written", "Rows written to Redis as the engine handed them over")
FAILURES = Counter("margin_tables_failures", "Writes that Redis did not answer or refused")
OVERFLOWS = Counter("margin_tables_overflows", "Times that a backlog over its bound was dropped")

BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.02, 1.0
CONFIRM_S = 5.0
"""A table without writes is looked at this often: Redis may have been flushed or gone back to a snapshot meanwhile."""
_LOOP = "table writer"
MARKS_SHARD = 0
"""The owner of this shard writes the marks: of many writers, one that lags would put old ones over new ones."""


@dataclass(slots=True, eq=False)
class _Shard:
    """What waits for one shard. ``behind``: nothing is written before the table was caught up from the changelog."""

    token: int
    waiting_since: float
    stamp: int = 0
    as_of_ms: int = 0
    rows: dict[str, bytes | None] = field(default_factory=dict)
    written: int = -1
    written_at: float = 0.0
    behind: bool = True
    catching_up: bool = False
    leaving: bool = False
    lost: bool = False

    @property
    def current(self) -> bool:
        return not (self.behind or self.catching_up or self.lost)


class TableWriter:
    """Owns the connection and the thread, from :meth:`start` on. Every method but :meth:`close` returns at once."""

    def __init__(self, tables: Tables, watchdog: Watchdog | None = None) -> None:
        self._tables = tables
        self._settings = settings = tables.kafka.settings
        self._runtime = runtime = tables.kafka.runtime
        self._watchdog = watchdog or Watchdog()
        self._backlog_max = settings.engine.redis_backlog_rows_max
        self._table: AccountTable | None = None
        self._wake = runtime.condition()
        self._shards: dict[int, _Shard] = {}
        self._marks: dict[str, bytes] = {}
        self._has_layout = False
        self._steps: tuple[_Shard, Generator[int, None, None]] | None = None
        self._closing = runtime.event()
        self._deadline = float("inf")
        self._failure: BaseException | None = None
        self._thread = runtime.thread(self._run, "table-writer")

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def restore(self, shard: int, token: int) -> None:
        """Begin to keep the table of a shard that was just taken with the claim at offset ``token``."""
        with self._wake:
            self._shards[shard] = _Shard(token, self._runtime.monotonic())
            self._wake.notify_all()

    def submit(self, shard: int, token: int, stamp: int, rows: Mapping[str, bytes | None]) -> None:
        """Hand over committed rows; ``stamp`` is the changelog offset after the last of them.

        Rows of a shard that was not restored with this token, or was lost to a newer owner, are ignored.
        """
        with self._wake:
            waiting = self._shards.get(shard)
            if waiting is None or waiting.token != token or waiting.lost:
                return
            if not waiting.rows and waiting.current:
                waiting.waiting_since = self._runtime.monotonic()
            waiting.stamp, waiting.as_of_ms = stamp, self._now_ms()
            waiting.rows.update(rows)
            self._bound_backlog()
            self._wake.notify_all()

    def submit_layout(self, layout: ShardLayout) -> None:
        """Hand over how accounts are spread over shards; it is told with the next write, if it is another."""
        with self._wake:
            self._has_layout = self._has_layout or layout.spread != self._tables.layout.spread
            self._tables.layout = layout
            self._wake.notify_all()

    def submit_marks(self, marks: Iterable[Mark]) -> None:
        """Hand over marks; the latest of each symbol is written, by the owner of ``MARKS_SHARD`` only."""
        with self._wake:
            owned = self._shards.get(MARKS_SHARD)
            if owned is None or owned.lost or owned.leaving:
                self._marks.clear()
                return
            for mark in marks:
                self._marks[mark.symbol] = encode(mark)
            self._wake.notify_all()

    def release(self, shard: int, *, flush: bool = True) -> None:
        """Forget a shard; with ``flush``, once it was tried to write what is waiting.

        Its next owner does not depend on that: it fences this one out and catches up from the changelog.
        """
        with self._wake:
            leaving = self._shards.get(shard)
            if leaving is not None:
                leaving.leaving = True
                if not (flush and leaving.rows and leaving.current):
                    del self._shards[shard]
            self._wake.notify_all()

    def close(self, deadline_s: float = 5.0) -> None:
        """Write what is waiting and can be written by then, and stop. A table that is behind stays behind."""
        with self._wake:
            self._deadline = self._runtime.monotonic() + deadline_s
            self._closing.set()
            self._wake.notify_all()
        self._thread.join(deadline_s + KAFKA_SILENCE_S + 4 * self._settings.redis.timeout_ms / 1000)
        if self._thread.is_alive():
            event(log, logging.WARNING, "table_writer_does_not_end")

    def check(self) -> None:
        """Raise what ended the thread, if anything did.

        Raises:
            TableError: the thread has ended.
        """
        if self._failure is not None:
            raise TableError(f"the table writer has ended: {self._failure!r}") from self._failure

    def _bound_backlog(self) -> None:
        """Drop the rows of the shard that has most when the backlog is over its bound: they are in the changelog."""
        if sum(len(shard.rows) for shard in self._shards.values()) <= self._backlog_max:
            return
        number, largest = max(self._shards.items(), key=lambda item: len(item[1].rows))
        OVERFLOWS.inc()
        event(log, logging.WARNING, "table_backlog_dropped", shard=number, rows=len(largest.rows))
        largest.rows = {}
        largest.behind = True

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        try:
            while self._await_work():
                try:
                    self._work()
                    if backoff_s > BACKOFF_FIRST_S:
                        event(log, logging.INFO, "tables_written_again")
                    backoff_s = BACKOFF_FIRST_S
                except (TableError, BrokerError) as error:
                    FAILURES.inc()
                    if backoff_s == BACKOFF_FIRST_S:
                        event(log, logging.WARNING, "tables_not_written", reason=str(error))
                    self._pause(backoff_s)
                    backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
        except BaseException as error:
            self._failure = error
            event(log, logging.ERROR, "table_writer_ended", reason=repr(error))
        finally:
            self._watchdog.forget(_LOOP)
            self._stop_catching_up()
            if self._table is not None:
                self._table.close()

    def _beat(self, doing: str) -> None:
        """Redis being away is no hang: this thread beats whenever it tries again."""
        self._watchdog.beat(_LOOP, doing)

    def _await_work(self) -> bool:
        """Wait for something to do, or for the time to confirm the tables; False when there is nothing left to do."""
        self._beat("waiting for rows")
        with self._wake:
            if not self._closing.is_set():
                self._wake.wait_for(lambda: self._closing.is_set() or self._has_rows() or self._is_behind(), CONFIRM_S)
            return not self._closing.is_set() or (self._has_rows() and self._runtime.monotonic() < self._deadline)

    def _has_rows(self) -> bool:
        return (
            self._has_layout
            or bool(self._marks)
            or any(shard.rows and shard.current for shard in self._shards.values())
        )

    def _is_behind(self) -> bool:
        return any(not (shard.current or shard.lost) for shard in self._shards.values())

    def _pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            self._runtime.sleep(max(0.0, min(seconds, self._deadline - self._runtime.monotonic())))

    def _work(self) -> None:
        """One round: the marks, the rows of every table that is current, a step of catching up one that is not."""
        self._beat("connecting")
        self._measure()
        table = self._connected_table()
        self._write_layout(table)
        self._write_marks(table)
        with self._wake:
            owned = list(self._shards.items())
        for number, shard in owned:
            if shard.current:
                self._guard(number, shard, lambda: self._write(table, number, shard))  # noqa: B023
        self._catch_up(table, owned)

    def _connected_table(self) -> AccountTable:
        if self._table is None:
            self._table = self._tables.connected(on_call=lambda: self._beat("calling Redis"))
        return self._table

    def _now_ms(self) -> int:
        return self._runtime.time_ns() // 1_000_000

    def _measure(self) -> None:
        with self._wake:
            shards = [shard for shard in self._shards.values() if not shard.lost]
            BACKLOG.set(sum(len(shard.rows) for shard in shards))
            SHARDS_BEHIND.set(sum(not shard.current for shard in shards))
            oldest = min((shard.waiting_since for shard in shards if shard.rows or not shard.current), default=None)
        LAG.set(0.0 if oldest is None else self._runtime.monotonic() - oldest)

    def _write_layout(self, table: AccountTable) -> None:
        if self._has_layout:
            with self._wake:
                self._has_layout, layout = False, self._tables.layout
            try:
                table.publish_layout(layout)
            except TableError:
                self._has_layout = True
                raise

    def _write_marks(self, table: AccountTable) -> None:
        with self._wake:
            marks, self._marks = self._marks, {}
        if not marks:
            return
        try:
            table.write_marks(marks)
        except TableError:
            with self._wake:
                self._marks = marks | self._marks
            raise

    def _write(self, table: AccountTable, number: int, shard: _Shard) -> None:
        """Write what is waiting for a table that is current; now and then confirm it if nothing is."""
        with self._wake:
            rows, shard.rows = shard.rows, {}
            stamp, as_of_ms = (shard.stamp, shard.as_of_ms) if rows else (shard.written, self._now_ms())
        if not rows and self._runtime.monotonic() - shard.written_at < CONFIRM_S:
            return
        outcome = table.write(number, shard.token, stamp, rows, after=shard.written, as_of_ms=as_of_ms)
        if outcome is WriteOutcome.LOST:
            event(log, logging.WARNING, "table_lost", shard=number, expected_stamp=shard.written)
            self._fall_behind(shard)
        else:
            ROWS_WRITTEN.inc(len(rows))
            self._written(shard, max(stamp, shard.written))
        if shard.leaving:
            self._forget(number, shard)

    def _catch_up(self, table: AccountTable, owned: list[tuple[int, _Shard]]) -> None:
        """One step of catching up: one table at a time, with the rows of the others written in between."""
        if self._closing.is_set():
            self._stop_catching_up()
            return
        for number, shard in owned:
            if shard.lost or self._shards.get(number) is not shard:
                continue
            if self._steps is None and shard.behind:
                self._begin_catching_up(table, number, shard)
            if self._steps is not None and self._steps[0] is shard:
                self._guard(number, shard, lambda: self._step(shard))  # noqa: B023
                return
        self._stop_catching_up()

    def _begin_catching_up(self, table: AccountTable, number: int, shard: _Shard) -> None:
        with self._wake:
            shard.rows = {}  # they are in the changelog, before the end that is read next
            shard.behind, shard.catching_up = False, True
        self._steps = (shard, catch_up(table, self._tables.kafka, self._tables.layout, number, shard.token))

    def _step(self, shard: _Shard) -> None:
        assert self._steps is not None
        self._beat("reading the changelog")
        reached = next(self._steps[1], None)
        if reached is None:
            self._stop_catching_up()
        else:
            self._written(shard, reached)

    def _stop_catching_up(self) -> None:
        if self._steps is not None:
            shard, steps = self._steps
            self._steps = None
            steps.close()
            with self._wake:
                shard.catching_up = False
                shard.waiting_since = self._runtime.monotonic()

    def _written(self, shard: _Shard, stamp: int) -> None:
        shard.written, shard.written_at = stamp, self._runtime.monotonic()
        LAST_WRITE.set_to_current_time()

    def _fall_behind(self, shard: _Shard) -> None:
        with self._wake:
            shard.behind = True

    def _forget(self, number: int, shard: _Shard) -> None:
        with self._wake:
            if self._shards.get(number) is shard:
                del self._shards[number]

    def _guard(self, number: int, shard: _Shard, step: Callable[[], None]) -> None:
        try:
            step()
        except TableFenced as error:
            event(log, logging.WARNING, "table_fenced", shard=number, reason=str(error))
            with self._wake:
                shard.lost, shard.rows = True, {}
        except (TableError, BrokerError):
            self._fall_behind(shard)
            if self._steps is not None and self._steps[0] is shard:
                self._stop_catching_up()
            if shard.leaving:
                self._forget(number, shard)
            raise
