"""Catching a table up from the changelog: from its stamp to the log's end, or from nothing if it cannot be trusted.

Owns the decision whether the table's rows can be built upon; writing is the table's, and when to do it its caller's.
"""

import logging
from collections.abc import Generator, Iterable, Iterator

from schemas.messages import ShardLayout
from streams.broker.kafka import Kafka
from streams.broker.records import Record
from streams.errors import TableError
from streams.logs import event
from streams.tables.writer import AccountTable, TableState, WriteOutcome

log = logging.getLogger(__name__)

ROWS_PER_STEP = 5_000
KAFKA_SILENCE_S = 5.0
TOMBSTONES_KEPT_MS = 12 * 3_600_000
"""A table further behind than this is built anew: the changelog may have forgotten what was removed from it since
(``delete.retention.ms`` is a day unless it was changed)."""


def catch_up(
    table: AccountTable, kafka: Kafka, layout: ShardLayout, shard: int, token: int
) -> Generator[int, None, None]:
    """Open the table and bring it to the changelog's end, a step at a time; yields the stamp reached after each.

    Everything committed before the first step is in the table after the last one.

    Raises:
        TableFenced: the shard has a newer owner. TableError: Redis does not answer, or lost the table on the way.
        BrokerError: Kafka does not answer.
    """
    started = kafka.runtime.monotonic()
    state = table.open(shard, token)
    table.publish_layout(layout)
    with kafka.log_reader("margin-tables") as reader:
        as_of_ms = kafka.runtime.time_ns() // 1_000_000
        low, end = reader.watermarks(table.topic, shard)
        if not can_be_built_upon(state, low, end, as_of_ms):
            event(log, logging.WARNING, "table_built_anew", shard=shard, stamp=state.stamp, log=[low, end])
            state = table.clear(shard, token)
        stamp = first = state.stamp
        for rows, next_offset, time_ms in _steps(reader.read_range(table.topic, shard, first, end, KAFKA_SILENCE_S)):
            _write(table, shard, token, next_offset, rows, after=stamp, as_of_ms=time_ms, complete=False)
            stamp = next_offset
            yield stamp
        # Control records and aborted ones make the end higher than the last row, and a table being built is complete.
        _write(table, shard, token, end, {}, after=stamp, as_of_ms=as_of_ms, complete=True)
    event(
        log,
        logging.INFO,
        "table_caught_up",
        shard=shard,
        first=first,
        end=end,
        seconds=round(kafka.runtime.monotonic() - started, 3),
    )
    yield end


def can_be_built_upon(state: TableState, low: int, end: int, now_ms: int) -> bool:
    """Whether every change since the table's stamp is still in the log, removals included."""
    if state.stamp in (0, end):
        return True
    return low <= state.stamp < end and now_ms - state.as_of_ms < TOMBSTONES_KEPT_MS


def _write(
    table: AccountTable,
    shard: int,
    token: int,
    stamp: int,
    rows: dict[str, bytes | None],
    *,
    after: int,
    as_of_ms: int,
    complete: bool,
) -> None:
    outcome = table.write(shard, token, stamp, rows, after=after, as_of_ms=as_of_ms, complete=complete)
    if outcome is WriteOutcome.LOST:
        raise TableError(f"shard {shard}: Redis lost its table while it was being caught up")


def _steps(records: Iterable[Record]) -> Iterator[tuple[dict[str, bytes | None], int, int]]:
    """The last row of every account, the offset after the last record and its time (ms), a step's worth at a time."""
    rows: dict[str, bytes | None] = {}
    next_offset = time_ms = 0
    for record in records:
        account, value, offset = record.key_text, record.value(), record.offset()
        if account is not None:  # a row of nobody's is told of by whoever takes the shard
            rows[account] = None if value is None else bytes(value)
        next_offset, time_ms = offset + 1, record.timestamp()[1]
        if len(rows) >= ROWS_PER_STEP:
            yield rows, next_offset, time_ms
            rows = {}
    if rows:
        yield rows, next_offset, time_ms
