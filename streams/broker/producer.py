"""Producers: what is written together, and what is written at least once, with an honest answer when any of it fails.

The transactional one has three outcomes only: the call succeeded; :class:`TransactionAborted` (call
:meth:`TransactionalProducer.abort`, then the producer is good for another); :class:`ProducerFenced` (another process
took over, or nobody knows how the commit ended: drop the producer and take the state again from the log). Callers never
see a KafkaException.

``send_offsets_to_transaction`` does not keep to its time: when the group's coordinator was away and has come back,
librdkafka may wait for ever for the broker that it knew before. So it is called in a thread of its own, which is left
behind with its producer when time is up.

Sending the offsets and the commit, with the deliveries that it waits for, have half of a transaction's time in all,
and an abort has, too: where a coordinator or a leader died, or stands still with its connections open, another producer
is the first to find the next one, and it should have time to within the session.

The idempotent one writes what it is given in order, once for as long as it lives. A record that it could not deliver
may be written or not, and so may those after it: whoever needs them takes a new producer and writes them again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from schemas.headers import Headers
from schemas.topics import Compression
from streams.broker import config
from streams.broker.clients import CLIENTS, Clients
from streams.errors import BrokerError, NotDelivered, ProducerFenced, TransactionAborted
from streams.runtime import Runtime
from streams.settings import KafkaSettings

DeliveryCallback = Callable[[KafkaError | None, Message], None]


def group_metadata(consumer: Consumer) -> Any:
    """The membership under which offsets are sent: Kafka refuses them if the group has moved on since.

    A member that was expelled and has not polled since may have neither an id nor a generation left, and from such a
    one Kafka takes a transaction's offsets unchecked (as from producers older than KIP-447). So it is refused here.

    Raises:
        TransactionAborted: the consumer is no member of its group at present.
    """
    metadata = consumer.consumer_group_metadata()
    if not consumer.memberid():  # asked afterwards: an id that is lost does not come back before the next poll
        raise TransactionAborted("the group has expelled this member; its partitions may have another owner")
    return metadata


def _queue(
    producer: Callable[[], Producer],
    runtime: Runtime,
    timeout_s: float,
    topic: str,
    value: bytes | None,
    arguments: Mapping[str, Any],
    *,
    until: float = inf,
) -> bool:
    """Queue one record, waiting while the local queue is full; whether there was room within ``timeout_s`` and before
    ``until``. The clock is looked at only where it is full: there is one call a row. A partition that the client does
    not know may have been added: it looks once."""
    deadline: float | None = None
    has_looked = False
    while True:
        try:
            producer().produce(topic, value, **arguments)
            return True
        except KafkaException as error:
            if has_looked or error.args[0].code() != KafkaError._UNKNOWN_PARTITION:
                raise
            has_looked = True
            producer().list_topics(topic, timeout=timeout_s)
        except BufferError:
            now = runtime.monotonic()
            deadline = min(now + timeout_s, until) if deadline is None else deadline
            if now > deadline:
                return False
            producer().poll(0.05)


class IdempotentProducer:
    """A producer without transactions. Not thread-safe: one owner drives it.

    A record that Kafka has not taken after ``timeout_s`` (without it, after a transaction's time) is given up.
    ``waiting`` is how many records are not acknowledged yet.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        client_id: str,
        *,
        compression: Compression = "none",
        linger_ms: int = 0,
        timeout_s: float | None = None,
        clients: Clients = CLIENTS,
    ) -> None:
        self._runtime = clients.runtime
        self._client_id = client_id
        self._timeout_s = kafka.transaction_timeout_ms / 1000 if timeout_s is None else timeout_s
        properties = config.producer(kafka, client_id, compression=compression)
        properties |= {"linger.ms": linger_ms, "message.timeout.ms": round(1000 * self._timeout_s)}
        self._producer: Producer | None = clients.producer(properties)
        self._failure: KafkaError | None = None
        self.waiting = 0

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | str | None = None,
        partition: int = -1,
        headers: Headers | None = None,
        on_acknowledged: Callable[[int], object] | None = None,
    ) -> None:
        """Queue one record; ``on_acknowledged`` is told its offset, by :meth:`poll` or :meth:`flush`.

        Raises:
            NotDelivered: this one, or one before it, could not be delivered.
        """
        delivered = partial(self._delivered, on_acknowledged=on_acknowledged) if on_acknowledged else self._delivered
        self._check()
        arguments = {"key": key, "partition": partition, "headers": headers, "on_delivery": delivered}
        try:
            is_queued = _queue(lambda: self._live, self._runtime, self._timeout_s, topic, value, arguments)
        except KafkaException as error:
            self._failure = self._failure or error.args[0]
        else:
            self.waiting += is_queued
            if not is_queued:
                raise NotDelivered(f"{self._client_id}: the local queue stayed full")
        self._check()

    def poll(self) -> None:
        """Hear what has been acknowledged.

        Raises:
            NotDelivered: a record could not be delivered.
        """
        self._live.poll(0)
        self._check()

    def flush(self) -> None:
        """Wait until everything is acknowledged.

        Raises:
            NotDelivered: something was not, or not in time.
        """
        if self._live.flush(self._timeout_s) > 0:
            raise NotDelivered(f"{self._client_id}: records were not acknowledged in {self._timeout_s:g} s")
        self._check()

    def close(self) -> None:
        """Let go of it; what is not acknowledged may be written or not."""
        self._producer = None

    def _delivered(
        self, error: KafkaError | None, message: Message, on_acknowledged: Callable[[int], object] | None = None
    ) -> None:
        self.waiting -= 1
        offset = message.offset()
        if error is not None or offset is None:
            self._failure = self._failure or error or KafkaError(KafkaError._FAIL)
        elif on_acknowledged is not None:
            on_acknowledged(offset)

    def _check(self) -> None:
        if self._failure is not None:
            raise NotDelivered(f"{self._client_id}: a record was not delivered: {self._failure.str()}")

    @property
    def _live(self) -> Producer:
        if self._producer is None:
            raise NotDelivered(f"{self._client_id}: this producer is closed")
        return self._producer


class TransactionalProducer:
    """A producer with one transactional id. Not thread-safe: one owner drives it.

    ``compression`` holds for all that it writes; see :func:`streams.broker.config.producer`.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        transactional_id: str,
        *,
        compression: Compression = "none",
        clients: Clients = CLIENTS,
    ) -> None:
        self._clients = clients
        self._runtime = clients.runtime
        self.transactional_id = transactional_id
        self._timeout_s = kafka.transaction_timeout_ms / 1000
        self._end_within_s = self._timeout_s / 2
        self._end_by = inf
        self._init_timeout_s = kafka.call_ms_max / 1000
        self._until = inf
        self._producer: Producer | None = clients.producer(
            config.producer(kafka, transactional_id, transactional_id, compression=compression)
        )
        self._in_transaction = False
        self._lost = False

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Calls in this block give up, as if Kafka had not answered, when ``seconds`` have passed."""
        self._until = self._runtime.monotonic() + seconds
        try:
            yield
        finally:
            self._until = inf

    def init(self) -> None:
        """Register the transactional id, which fences every older producer that has it.

        Raises:
            ProducerFenced: it could not be registered in the time that one call may take.
        """
        self._call("init_transactions", self._init_timeout_s)

    def begin(self) -> None:
        """Begin a transaction."""
        self._end_by = inf
        self._call("begin_transaction", self._timeout_s, timed=False)
        self._in_transaction = True

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
        arguments = {"key": key, "partition": partition, "headers": headers, "on_delivery": on_delivery}
        try:
            is_queued = _queue(
                lambda: self._live, self._runtime, self._timeout_s, topic, value, arguments, until=self._until
            )
        except KafkaException as error:
            raise self._classified("produce", error.args[0]) from error
        if not is_queued:
            raise TransactionAborted(f"{self.transactional_id}: the local queue stayed full")

    def flush(self) -> None:
        """Wait until every record of the transaction is acknowledged (its offset is known), within the timeout."""
        if self._live.flush(self._timeout_s) > 0:
            raise TransactionAborted(f"{self.transactional_id}: records were not acknowledged in {self._timeout_s:g} s")

    def send_offsets(self, offsets: Sequence[TopicPartition], group_metadata: Any) -> None:
        """Make the consumer group's offsets part of the transaction (refused if the group has moved on)."""
        self._end_by = self._runtime.monotonic() + self._end_within_s
        self._call("send_offsets_to_transaction", self._end_within_s, list(offsets), group_metadata)

    def commit(self) -> None:
        """Commit. After :class:`ProducerFenced` the outcome is unknown until the log is read again."""
        self._call("commit_transaction", self._end_within_s)
        self._in_transaction = False

    def abort(self) -> None:
        """Abort the transaction, if there is one. The producer can begin another."""
        if not self._in_transaction:
            return
        self._end_by = inf
        self._call("abort_transaction", self._end_within_s)
        self._in_transaction = False

    def close(self) -> None:
        """Abort what is open, unless that is hopeless, and let go of the connection, without raising."""
        try:
            if not self._lost:
                self.abort()
        except BrokerError:
            pass
        finally:
            # Not `Producer.close()`: it aborts without a time limit, and warns. Dropping the last reference destroys
            # the producer at once, so nothing here may keep one (a bound method in a traceback would).
            self._producer = None

    @property
    def _live(self) -> Producer:
        if self._producer is None:
            raise ProducerFenced(f"{self.transactional_id}: this producer is closed")
        return self._producer

    def _call(self, name: str, timeout_s: float, *arguments: Any, timed: bool = True) -> None:
        deadline = min(self._runtime.monotonic() + timeout_s, self._end_by, self._until)
        while True:
            left = max(deadline - self._runtime.monotonic(), 0.001)
            try:
                if name == "send_offsets_to_transaction":
                    self._send_offsets_within(left, *arguments)
                else:
                    getattr(self._live, name)(*arguments, *((left,) if timed else ()))
                return
            except KafkaException as error:
                cause = error.args[0]
                if not cause.retriable():
                    raise self._classified(name, cause) from error
                if self._runtime.monotonic() >= deadline:
                    self._lost = True
                    raise ProducerFenced(
                        f"{self.transactional_id}: {name}: no answer in time, its outcome is unknown: {cause.str()}"
                    ) from error
                self._runtime.sleep(0.002)

    def _send_offsets_within(self, seconds: float, offsets: list[TopicPartition], group_metadata: Any) -> None:
        ended = self._runtime.event()
        failures: list[BaseException] = []

        def send() -> None:
            try:
                self._live.send_offsets_to_transaction(offsets, group_metadata, seconds)
            except BaseException as error:
                failures.append(error)
            ended.set()

        self._runtime.thread(send, "send-offsets").start()
        if not ended.wait(seconds):
            self._lost = True
            self._clients.leave_behind(self.transactional_id, "send_offsets_to_transaction", ended)
            raise ProducerFenced(f"{self.transactional_id}: send_offsets_to_transaction does not return; left behind")
        if failures:
            raise failures[0]

    def _classified(self, name: str, cause: KafkaError) -> BrokerError:
        text = f"{self.transactional_id}: {name}: {cause.str()} ({cause.name()})"
        # A record is refused with _STATE when the transaction has failed meanwhile: that error waits for the next call.
        failed_before = name == "produce" and self._in_transaction and cause.code() == KafkaError._STATE
        if cause.txn_requires_abort() or failed_before:
            return TransactionAborted(text)
        self._lost = True
        return ProducerFenced(text)
