"""The transactional producer: begin, produce, offsets, commit, and an honest answer when any of it fails.

Three outcomes only: the call succeeded; :class:`TransactionAborted` (the transaction is gone, the producer is good);
:class:`ProducerFenced` (another process took over, or nobody knows how the commit ended: drop the producer and take
the state again from the log). Callers never see a KafkaException.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from schemas.headers import Headers
from streams.broker import config
from streams.errors import BrokerError, ProducerFenced, TransactionAborted
from streams.settings import KafkaSettings

DeliveryCallback = Callable[[KafkaError | None, Message], None]


class TransactionalProducer:
    """A producer with one transactional id. Not thread-safe: one owner drives it."""

    def __init__(self, kafka: KafkaSettings, transactional_id: str) -> None:
        self.transactional_id = transactional_id
        self._timeout_s = kafka.transaction_timeout_ms / 1000
        self._producer: Producer | None = Producer(config.producer(kafka, transactional_id, transactional_id))
        self._in_transaction = False

    def init(self, timeout_s: float = 60.0) -> None:
        """Register the transactional id, which fences every older producer that has it.

        Raises:
            ProducerFenced: it could not be registered within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        self._call("init_transactions", self._live.init_transactions, deadline)

    def begin(self) -> None:
        """Begin a transaction."""
        self._call("begin_transaction", lambda _: self._live.begin_transaction(), time.monotonic() + self._timeout_s)
        self._in_transaction = True

    @property
    def in_transaction(self) -> bool:
        return self._in_transaction

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | str | None = None,
        partition: int = -1,
        headers: Headers | None = None,
        on_delivery: DeliveryCallback | None = None,
    ) -> None:
        """Queue one record in the transaction; waits while the local queue is full, up to the transaction's timeout."""
        arguments: dict[str, Any] = {"key": key, "partition": partition, "headers": headers, "on_delivery": on_delivery}
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._live.produce(topic, value, **arguments)
                return
            except BufferError:
                if time.monotonic() > deadline:
                    raise TransactionAborted(f"{self.transactional_id}: the local queue stayed full") from None
                self._live.poll(0.05)
            except KafkaException as error:
                raise self._classified("produce", error) from error

    def flush(self) -> None:
        """Wait until every record of the transaction is acknowledged (its offset is known), within the timeout."""
        if self._live.flush(self._timeout_s) > 0:
            raise TransactionAborted(f"{self.transactional_id}: records were not acknowledged in {self._timeout_s:g} s")

    def send_offsets(self, offsets: Sequence[TopicPartition], group_metadata: Any) -> None:
        """Make the consumer group's offsets part of the transaction (refused if the group has moved on)."""
        deadline = time.monotonic() + self._timeout_s
        self._call(
            "send_offsets_to_transaction",
            lambda left: self._live.send_offsets_to_transaction(list(offsets), group_metadata, left),
            deadline,
        )

    def commit(self) -> None:
        """Commit. After :class:`ProducerFenced` the outcome is unknown until the log is read again."""
        deadline = time.monotonic() + self._timeout_s
        self._call("commit_transaction", self._live.commit_transaction, deadline)
        self._in_transaction = False

    def abort(self) -> None:
        """Abort the transaction, if there is one. The producer can begin another."""
        if not self._in_transaction:
            return
        deadline = time.monotonic() + self._timeout_s
        self._call("abort_transaction", self._live.abort_transaction, deadline)
        self._in_transaction = False

    def close(self) -> None:
        """Abort what is open and let go of the connection, without raising."""
        try:
            self.abort()
        except BrokerError:
            pass
        finally:
            self._producer = None

    @property
    def _live(self) -> Producer:
        if self._producer is None:
            raise ProducerFenced(f"{self.transactional_id}: this producer is closed")
        return self._producer

    def _call(self, name: str, call: Callable[[float], Any], deadline: float) -> None:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ProducerFenced(f"{self.transactional_id}: {name} had no answer in time; its outcome is unknown")
            try:
                call(left)
                return
            except KafkaException as error:
                classified = self._classified(name, error)
                if not _retriable(error):
                    raise classified from error
                time.sleep(0.002)

    def _classified(self, name: str, error: KafkaException) -> BrokerError:
        cause = error.args[0]
        text = f"{self.transactional_id}: {name}: {cause.str()} ({cause.name()})"
        if cause.txn_requires_abort():
            return TransactionAborted(text)
        return ProducerFenced(text)


def _retriable(error: KafkaException) -> bool:
    return bool(error.args[0].retriable())
