"""The engine's commit: everything that shards give, in one transaction with the offsets that it follows from.

1. The transaction begins and every shard hands over what it has, with its journal record.
2. Of each shard: rows, commands, alerts, dead letters of its own, frames to other shards, and the journal record last.
3. The dead letters of the records that every worker reads, if this one owns the shard that writes them.
4. The offsets of the events, under this member's id and generation: Kafka refuses them if the group has moved on.
5. The commit.
6. Only now the cursors know of it and the rows go to the Redis writer.

Whatever fails from 1 to 5, nothing of it has happened or nobody knows: the shards are restored from the log.
``streams/clearing/README.md`` says what each place holds when a process dies between two of these.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from confluent_kafka import KafkaError, Message, TopicPartition
from prometheus_client import Counter, Histogram

from schemas import headers
from schemas.codec import encode
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, EVENTS, JOURNAL, dead_letter_topic
from streams.broker.dead_letters import produce_dead_letter
from streams.broker.kafka import Kafka
from streams.broker.producer import TransactionalProducer
from streams.broker.records import Record
from streams.clearing.shard import Output, Shard
from streams.errors import ProducerFenced, TransactionAborted
from streams.tables.write_behind import TableWriter

COMMANDS_ISSUED = Counter("margin_engine_commands", "Liquidation commands committed")
ALERTS_RAISED = Counter("margin_engine_alerts", "Alerts committed", ["kind"])
FEES_BOOKED = Counter(
    "margin_engine_liquidation_fees",
    "Liquidation and insurance fees committed, in the asset's units",
    ["pool", "asset"],
)
COMMITS = Histogram(
    "margin_engine_commit_seconds", "Transaction time", buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)
)

COMMAND_EVENT = "margin.liquidation.command.v1"
ALERT_EVENT = "margin.alert.v1"
ACCOUNT_EVENT = "margin.account.v1"

DEAD_LETTER_SHARD = 0
"""The owner of this shard writes the dead letters of the topics that every worker reads."""


class Committer:
    """The transactional producer of one engine and what it commits.

    ``membership`` gives that of the group's consumer; ``beat`` is told what is being done.
    """

    def __init__(
        self,
        kafka: Kafka,
        client_id: str,
        producer: TransactionalProducer,
        tables: TableWriter,
        membership: Callable[[], Any],
        beat: Callable[[str], None],
    ) -> None:
        self._kafka = kafka
        self._client_id = client_id
        self._tables = tables
        self._membership = membership
        self._beat = beat
        self._letters: list[tuple[Record, Exception]] = []
        self.producer = producer

    # --- dead letters ------------------------------------------------------------------------------------------------

    @property
    def has_letters(self) -> bool:
        """Whether dead letters wait for a commit."""
        return bool(self._letters)

    def put_aside(self, *letters: tuple[Record, Exception]) -> None:
        """Write records, each with the reason, to their dead-letter topics with the next commit."""
        self._letters += letters

    def forget_letters(self, shards: Collection[int]) -> None:
        """Leave the dead letters that the owner of one of ``shards`` writes to its next owner."""
        self._letters = [(record, error) for record, error in self._letters if _writer(record) not in shards]

    def forget_all_letters(self) -> None:
        """What they are about is read again."""
        self._letters.clear()

    # --- committing --------------------------------------------------------------------------------------------------

    def commit(self, shards: Sequence[Shard], worker: str, *, with_open_interest: bool) -> float:
        """Commit what ``shards`` have and the dead letters that wait; when that was (monotonic, seconds).

        Raises:
            TransactionAborted: nothing of it has happened, or nobody knows whether. ProducerFenced: so, and the
            producer is of no use any more.
        """
        started = self._kafka.runtime.monotonic()
        self._beat("producing")
        self.producer.begin()
        outputs = [(shard, shard.take(worker, with_open_interest=with_open_interest)) for shard in shards]
        delivered = [self._produce(shard, output) for shard, output in outputs]
        for record, error in self._letters:
            concerns = () if record.topic() == EVENTS else None  # whom a frame concerns that is none, nobody knows
            produce_dead_letter(self.producer, record, type(error).__name__, str(error), suspended=concerns)
        self._beat("sending offsets")
        offsets = [TopicPartition(EVENTS, shard.shard, shard.events_next) for shard in shards]
        self.producer.send_offsets(offsets, self._membership())
        self._beat("committing")
        self.producer.commit()
        committed = self._kafka.runtime.monotonic()
        self._letters.clear()
        COMMITS.observe(committed - started)
        for (shard, output), places in zip(outputs, delivered, strict=True):
            shard.cursor.committed(places["journal"])
            COMMANDS_ISSUED.inc(len(output.commands))
            for alert in output.alerts:
                ALERTS_RAISED.labels(alert.kind).inc()
                if fees := alert.fees:
                    paid = float(fees.liquidation_fee) + float(fees.insurance_fee)
                    FEES_BOOKED.labels(fees.pool, fees.asset).inc(paid)
            if output.rows:
                self._tables.submit(shard.shard, shard.cursor.claim, places["rows"] + 1, output.rows)
        return committed

    def _produce(self, shard: Shard, output: Output) -> dict[str, int]:
        """Produce one shard's output; the returned mapping holds the offsets of its last row and its journal record
        once the transaction has committed."""
        offsets: dict[str, int] = {}
        self._produce_rows(shard, output, _noting(offsets, "rows"))
        for command in output.commands:
            self.producer.produce(
                COMMANDS,
                encode(command),
                key=command.account,
                headers=headers.cloud_event(command.command_id, COMMAND_EVENT, command.issued_at),
            )
        for alert in output.alerts:
            self.producer.produce(
                ALERTS,
                encode(alert),
                key=alert.account,
                headers=headers.cloud_event(alert.alert_id, ALERT_EVENT, alert.event_time),
            )
        self._produce_unapplied(shard, output)
        for other, frame in output.frames:
            self.producer.produce(EVENTS, encode(frame), partition=other)
        self.producer.produce(
            JOURNAL, encode(output.journal), partition=shard.shard, on_delivery=_noting(offsets, "journal")
        )
        return offsets

    def _produce_rows(self, shard: Shard, output: Output, on_delivery: "_Delivered") -> None:
        """``on_delivery`` is told of the last row alone: those before it lie before it in the partition."""
        row_headers = headers.cloud_event("", ACCOUNT_EVENT, shard.clock_us)
        produce, partition, commit = self.producer.produce, shard.shard, f"{shard.shard}:{output.journal.sequence}"
        left = len(output.rows)
        for account, row in output.rows.items():
            left -= 1
            row_headers[1] = ("ce_id", f"{commit}:{account}".encode())
            produce(
                ACCOUNTS,
                row,
                key=account,
                partition=partition,
                headers=row_headers,
                on_delivery=None if left else on_delivery,
            )

    def _produce_unapplied(self, shard: Shard, output: Output) -> None:
        for letter in output.unapplied:
            where = headers.dead_letter(
                EVENTS,
                shard.shard,
                letter.offset,
                shard.clock_us // 1000,
                type(letter.error).__name__,
                str(letter.error),
            )
            self.producer.produce(
                dead_letter_topic(EVENTS),
                letter.frame,
                key=letter.account,
                headers=where + headers.told([letter.account], all_told=True),
            )

    # --- the producer ------------------------------------------------------------------------------------------------

    def mend(self, error: Exception) -> None:
        """End the transaction that failed with ``error``, with the producer if it may be fenced."""
        try:
            if isinstance(error, ProducerFenced):
                raise error
            self.producer.abort()
        except (ProducerFenced, TransactionAborted):
            self.producer.close()
            self._beat("registering a producer")
            self.producer = self._new_producer()

    def _new_producer(self) -> TransactionalProducer:
        producer = self._kafka.transactional_producer(self._client_id)
        producer.init()
        return producer


_Delivered = Callable[[KafkaError | None, Message], None]


def _noting(offsets: dict[str, int], name: str) -> _Delivered:
    """Keeps the highest offset that is delivered under ``name``."""

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is None:
            offset = message.offset()
            assert offset is not None
            offsets[name] = max(offset, offsets.get(name, -1))

    return delivered


def _writer(record: Record) -> int:
    """The shard whose owner writes ``record`` to the dead letters."""
    return record.partition() if record.topic() == EVENTS else DEAD_LETTER_SHARD
