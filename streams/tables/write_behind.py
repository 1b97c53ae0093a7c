"""The thread that writes the tables behind the engine's commits: never ahead of Kafka, never in the engine's way.

The engine hands over committed rows and goes on. Rows of an account that has not been written yet are replaced by
later ones. When Redis is slow or away the backlog grows to its bound; then it is dropped and the table is caught up
from the changelog instead, which is also how a table is opened: from its stamp to the changelog's end.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge

from schemas.codec import encode
from schemas.messages import Mark
from schemas.topics import ACCOUNTS
from streams.broker.reader import LogReader
from streams.errors import BrokerError, TableError, TableFenced
from streams.logs import event
from streams.settings import Settings
from streams.tables.writer import ROWS_PER_SCRIPT_MAX, AccountTable

log = logging.getLogger(__name__)

BACKLOG = Gauge("margin_tables_backlog_rows", "Rows waiting to be written to Redis")
ROWS_WRITTEN = Counter("margin_tables_rows_written", "Rows written to Redis")
FAILURES = Counter("margin_tables_failures", "Writes that Redis did not answer or refused")

BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.02, 1.0
RELEASE_TIMEOUT_S = 3.0


@dataclass(slots=True)
class _Shard:
    """What waits for one shard. ``behind``: the table must be caught up from the changelog before rows are written."""

    token: int
    stamp: int = 0
    rows: dict[str, bytes | None] = field(default_factory=dict)
    behind: bool = True
    lost: bool = False


class TableWriter:
    """Owns the connection and the thread. Every method but :meth:`close` and a flushing release returns at once."""

    def __init__(self, settings: Settings, cluster_id: str, shards: int) -> None:
        self._settings = settings
        self._table = AccountTable(settings.redis, cluster_id, ACCOUNTS, shards)
        self._backlog_max = settings.engine.redis_backlog_rows_max
        self._condition = threading.Condition()
        self._shards: dict[int, _Shard] = {}
        self._marks: dict[str, bytes] = {}
        self._layout_written = False
        self._closing = False
        self._idle = True
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="table-writer", daemon=True)
        self._thread.start()

    def restore(self, shard: int, token: int) -> None:
        """Begin to keep the table of a shard that was just taken with the claim at offset ``token``."""
        with self._condition:
            self._shards[shard] = _Shard(token)
            self._condition.notify_all()

    def submit(self, shard: int, token: int, stamp: int, rows: Mapping[str, bytes | None]) -> None:
        """Hand over committed rows; ``stamp`` is the changelog offset after the last of them."""
        with self._condition:
            waiting = self._shards.get(shard)
            if waiting is None or waiting.token != token or waiting.lost:
                return
            waiting.stamp = stamp
            waiting.rows.update(rows)
            if sum(len(found.rows) for found in self._shards.values()) > self._backlog_max:
                waiting.rows.clear()
                waiting.behind = True
            self._condition.notify_all()

    def submit_marks(self, marks: Iterable[Mark]) -> None:
        """Hand over marks; only the latest of a symbol is written."""
        with self._condition:
            for mark in marks:
                self._marks[mark.symbol] = encode(mark)
            self._condition.notify_all()

    def release(self, shard: int, *, flush: bool) -> None:
        """Forget a shard; with ``flush`` first wait a little for what is waiting to be written."""
        with self._condition:
            if flush:
                self._condition.wait_for(lambda: self._settled(shard), RELEASE_TIMEOUT_S)
            self._shards.pop(shard, None)

    def close(self) -> None:
        """Write what can still be written, and stop."""
        with self._condition:
            self._condition.wait_for(lambda: all(map(self._settled, self._shards)), RELEASE_TIMEOUT_S)
            self._closing = True
            self._condition.notify_all()
        self._thread.join(RELEASE_TIMEOUT_S + self._settings.redis.timeout_ms / 1000)
        self._table.close()

    def check(self) -> None:
        """Raise what ended the thread, if anything did.

        Raises:
            TableError: the thread has ended.
        """
        if self._failure is not None:
            raise TableError(f"the table writer has ended: {self._failure}") from self._failure

    def _settled(self, shard: int) -> bool:
        waiting = self._shards.get(shard)
        return waiting is None or waiting.lost or (not waiting.rows and not waiting.behind and self._idle)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        try:
            while self._wait_for_work():
                try:
                    self._work()
                    if backoff_s > BACKOFF_FIRST_S:
                        event(log, logging.INFO, "redis_answers_again")
                    backoff_s = BACKOFF_FIRST_S
                except (TableError, BrokerError) as error:
                    FAILURES.inc()
                    if backoff_s == BACKOFF_FIRST_S:
                        event(log, logging.WARNING, "redis_write_failed", reason=str(error))
                    time.sleep(backoff_s)
                    backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
        except BaseException as error:
            self._failure = error
            raise

    def _wait_for_work(self) -> bool:
        with self._condition:
            self._idle = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._closing or self._has_work())
            self._idle = False
            return not self._closing

    def _has_work(self) -> bool:
        return (
            not self._layout_written
            or bool(self._marks)
            or any((found.rows or found.behind) and not found.lost for found in self._shards.values())
        )

    def _work(self) -> None:
        if not self._layout_written:
            self._table.publish_layout()
            self._layout_written = True
        with self._condition:
            marks, self._marks = self._marks, {}
            shards = list(self._shards.items())
        if marks:
            try:
                self._table.write_marks(marks)
            except TableError:
                with self._condition:
                    self._marks = marks | self._marks
                raise
        for number, shard in shards:
            if not shard.lost:
                self._work_on(number, shard)
        BACKLOG.set(sum(len(found.rows) for _, found in shards))

    def _work_on(self, number: int, shard: _Shard) -> None:
        try:
            if shard.behind:
                self._catch_up(number, shard)
            self._write(number, shard)
        except TableFenced as error:
            shard.lost = True
            shard.rows.clear()
            event(log, logging.WARNING, "table_fenced", shard=number, reason=str(error))
        except TableError:
            shard.behind = True
            raise

    def _write(self, number: int, shard: _Shard) -> None:
        with self._condition:
            rows, shard.rows = shard.rows, {}
            stamp = shard.stamp
        if not rows:
            return
        self._table.write(number, shard.token, stamp, rows)
        ROWS_WRITTEN.inc(len(rows))

    def _catch_up(self, number: int, shard: _Shard) -> None:
        """Bring the table from its stamp to the changelog's end; rows that were waiting are in there too."""
        with self._condition:
            shard.rows.clear()
            shard.behind = False
        stamp = self._table.open(number, shard.token)
        with LogReader(self._settings.kafka, "margin-tables") as reader:
            _, end = reader.watermarks(ACCOUNTS, number)
            if stamp > end:
                self._table.clear(number, shard.token)
                stamp = 0
            rows: dict[str, bytes | None] = {}
            for message in reader.read_range(ACCOUNTS, number, stamp, end):
                key, value = message.key(), message.value()
                if key is not None:
                    rows[bytes(key).decode()] = None if value is None else bytes(value)
                if len(rows) >= ROWS_PER_SCRIPT_MAX:
                    self._table.write(number, shard.token, (message.offset() or 0) + 1, rows)
                    ROWS_WRITTEN.inc(len(rows))
                    rows = {}
            self._table.write(number, shard.token, end, rows)
            ROWS_WRITTEN.inc(len(rows))
