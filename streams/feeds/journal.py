"""``margin.journal.v1``, read in one way by everybody: its records, where a shard's journal ends, its open interest.

What cannot be read is handed on with the reason. Writing journals and standing where one says are the engine's
business.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from confluent_kafka import TopicPartition

from schemas.codec import DecodeError, Decoder
from schemas.messages import JournalRecord
from schemas.topics import JOURNAL
from streams.broker import config
from streams.broker.kafka import Kafka
from streams.broker.layout import require_layout
from streams.broker.missing import MissingPartitions
from streams.broker.reader import poll_records
from streams.broker.records import Log, Record
from streams.broker.stranded import STATISTICS_MS
from streams.broker.tail import search_tail
from streams.logs import event

log = logging.getLogger(__name__)

HOSTS = {"events": "a router", "marks": "the oracle"}
"""Who stamps the frames of each clock that a journal record names as ``skewed``."""

_RECORD = Decoder[JournalRecord](JournalRecord)
_RECORDS_MAX = 1000


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A journal record and where it stands. ``record`` is None if the bytes are none; ``reason`` says why."""

    offset: int
    data: bytes
    record: JournalRecord | None
    reason: str = ""


def journal_entry(record: Record) -> JournalEntry:
    """The journal record in ``record``."""
    data = record.value() or b""
    try:
        return JournalEntry(record.offset(), data, _RECORD(data))
    except DecodeError as error:
        return JournalEntry(record.offset(), data, None, str(error))


def read_journal(logs: Log, shard: int, first: int, end: int) -> Iterator[JournalEntry]:
    """The entries of a shard's journal from offset ``first`` up to, not including, ``end``.

    Raises:
        BrokerError: Kafka does not answer.
    """
    return map(journal_entry, logs.read_range(JOURNAL, shard, first, end))


@dataclass(frozen=True, slots=True)
class JournalEnd:
    """The end of a shard's journal: the last ``record`` that can be read, the ``last`` record of all, and how many from
    the one to the other cannot be read (``unread``)."""

    record: JournalRecord | None
    last: Record
    unread: int


def journal_end(logs: Log, shard: int) -> JournalEnd | None:
    """The end of a shard's journal; None if it has no records at all. What cannot be read is logged.

    Raises:
        BrokerError: Kafka does not answer.
    """

    def find(records: Iterator[Record], is_all: bool) -> JournalEnd | None:
        end = _end_of(records, shard)
        return end if end is not None and (end.record is not None or is_all) else None

    return search_tail(logs, JOURNAL, shard, find)


def _end_of(records: Iterator[Record], shard: int) -> JournalEnd | None:
    record: JournalRecord | None = None
    last: Record | None = None
    unread = 0
    for last in records:
        entry = journal_entry(last)
        reason = entry.reason
        if entry.record is not None and entry.record.shard != shard:
            reason = f"it is a record of shard {entry.record.shard}"
        if reason:
            unread += 1
            reason = f"{JOURNAL}[{shard}] offset {entry.offset}: {reason}"
            event(log, logging.ERROR, "journal_unreadable", shard=shard, reason=reason)
        else:
            record, unread = entry.record, 0
    return None if last is None else JournalEnd(record, last, unread)


class JournalFollower:
    """Follows the journals of all shards from their ends on, and of those that are added from the beginning; never in a
    group."""

    def __init__(self, kafka: Kafka, client_id: str) -> None:
        with kafka.log_reader(client_id) as reader:
            self._layout = kafka.layout_follower(client_id, require_layout(reader))
            self._layout.start(reader)
            self.shards = self._layout.layout.shards_used
            places = [
                TopicPartition(JOURNAL, shard, reader.watermarks(JOURNAL, shard)[1]) for shard in range(self.shards)
            ]
        self._watch = kafka.places.watch()
        self._consumer = kafka.clients.consumer(
            config.reader(kafka.settings.kafka, client_id)
            | {"enable.partition.eof": False}
            | {"statistics.interval.ms": STATISTICS_MS, "stats_cb": self._watch.note_statistics}
        )
        self._consumer.assign(places)
        self._missing = MissingPartitions(kafka.runtime)

    def open_interest(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        """(shard, quantity of long positions by symbol) of the records that have come and tell it, without waiting.

        Raises:
            BrokerError: the broker refuses for good.
        """
        if (layout := self._layout.poll()) is not None and layout.shards_used > self.shards:
            added = range(self.shards, layout.shards_used)
            self._consumer.incremental_assign([TopicPartition(JOURNAL, shard, 0) for shard in added])
            self.shards = layout.shards_used
        records = list(poll_records(self._consumer, 0, _RECORDS_MAX, self._watch, missing=self._missing))
        self._missing.look(self._consumer)
        for entry in map(journal_entry, records):
            if entry.record is not None and entry.record.open_interest is not None:
                yield entry.record.shard, entry.record.open_interest

    def close(self) -> None:
        self._layout.close()
        self._consumer.close()
        self._watch.forget_all()
