"""Reading a log by offset, outside any consumer group: what restoring, following and auditing need.

:meth:`LogReader.read_range` reads a partition's records up to an end; :class:`Follower` follows one partition for ever.
Both see committed records only.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from streams.broker import config
from streams.broker.client_log import in_words, is_not_authorised, last_reasons
from streams.broker.clients import CLIENTS, Clients
from streams.broker.committed import RETRIABLE
from streams.broker.missing import MISSING, MissingPartitions
from streams.broker.places import PlaceWatch, is_unreadable
from streams.broker.records import Record
from streams.broker.stranded import StrandedWatch
from streams.errors import BrokerError, MembershipLost, NoAnswer, UnreadableError
from streams.logs import event
from streams.settings import KafkaSettings

log = logging.getLogger(__name__)

FETCH_WAIT_MS = 20
_LOOK_AGAIN_S = 0.05
_MISSING_S = 2.0
"""So long a partition may be unknown to every broker that is asked before it is said not to exist."""
_UNREADABLE_AFTER = 3
"""So often in a row must a batch be found unreadable until it is given up."""


class LogReader:
    """A hand-assigned consumer for bounded reads and watermarks. Use as a context manager. Not thread-safe.

    ``on_progress`` is called whenever a read gets further. A wait for Kafka ends after ``timeout_s``, or after the time
    that one call may take (None).
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        client_id: str,
        *,
        on_progress: Callable[[], object] = lambda: None,
        clients: Clients = CLIENTS,
        timeout_s: float | None = None,
    ) -> None:
        self._runtime = clients.runtime
        self._timeout_s = kafka.call_ms_max / 1000 if timeout_s is None else timeout_s
        self._on_progress = on_progress
        self._known: dict[str, int] = {}
        self._clients = clients
        self._properties = config.reader(kafka, client_id) | {"fetch.wait.max.ms": 5}
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        self._consumer = self._clients.consumer(self._properties)
        # Where a log ends depends on who asks: only a read_uncommitted client is told of what is still open.
        self._uncommitted = self._clients.consumer(self._properties | {"isolation.level": "read_uncommitted"})

    def close(self) -> None:
        self._consumer.close()
        self._uncommitted.close()

    def _renew(self) -> None:
        """Go on with new clients after one got no answer: it may be stranded, and would never get one."""
        self.close()
        self._known.clear()
        self._open()

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset and the next offset to be written (uncommitted records included).

        Raises:
            NoAnswer: no answer in time. BrokerError: no such partition.
        """
        self._on_progress()
        started = self._runtime.monotonic()
        deadline = started + self._timeout_s
        place = TopicPartition(topic, partition)
        while True:
            try:
                low, high = self._uncommitted.get_watermark_offsets(
                    place, timeout=max(0.1, deadline - self._runtime.monotonic())
                )
                return int(low), int(high)
            except KafkaException as error:
                cause, now = error.args[0], self._runtime.monotonic()
                # It may be new, or unknown for a moment to a broker that has just started: asking says which.
                may_come = cause.code() in MISSING and (self._is_there(place) or now - started < _MISSING_S)
                if (cause.code() in _FOR_GOOD and not may_come) or now > deadline:
                    self._uncommitted.poll(0)  # never assigned: it only serves what the client has to say
                    text = f"{topic}[{partition}]: watermarks: {in_words(cause)}"
                    if cause.code() in _FOR_GOOD:
                        raise BrokerError(text) from error
                    self._renew()
                    raise NoAnswer(text) from error
                self._runtime.sleep(_LOOK_AGAIN_S)

    def partitions(self, topic: str, timeout_s: float = 30.0) -> int:
        """The partition count of ``topic``.

        Raises:
            NoAnswer: no answer. BrokerError: no such topic.
        """
        return self._count(self._consumer, topic, timeout_s)

    def _count(self, client: Consumer, topic: str, timeout_s: float) -> int:
        """The partitions of ``topic``, those that were added lately as well: ``client`` knows of them then."""
        try:
            metadata = client.list_topics(topic, timeout=timeout_s).topics[topic]
        except KafkaException as error:
            refusal = NoAnswer if error.args[0].code() in RETRIABLE else BrokerError
            raise refusal(f"{topic}: its partitions cannot be read: {in_words(error.args[0])}") from error
        if metadata.error is not None:
            advice = "" if is_not_authorised(metadata.error) else "; create the topics with `margin-clearing topics`"
            raise BrokerError(f"{topic}: {in_words(metadata.error)}{advice}")
        return len(metadata.partitions)

    def read_range(
        self, topic: str, partition: int, first: int, end: int | None = None, timeout_s: float | None = None
    ) -> Generator[Record, None, None]:
        """The committed records from offset ``first`` up to, not including, ``end`` (now's end if None).

        The end is a position in the log, uncommitted records included: what is open there must be decided before this
        returns, so nothing that commits later below ``end`` can be missed. ``timeout_s`` (the reader's, if None) bounds
        the wait without progress.

        Raises:
            UnreadableError: what is there can be read at no time. NoAnswer: no progress for ``timeout_s``.
            BrokerError: the broker refuses.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        low, high = self.watermarks(topic, partition)
        stop = high if end is None else min(end, high)
        position = max(first, low)
        if position >= stop:
            return
        place = TopicPartition(topic, partition, position)
        self._learn(place)
        self._consumer.assign([place])
        errors = _Errors()
        try:
            deadline = self._runtime.monotonic() + timeout_s
            while position < stop:
                reached = position
                for message in self._consumer.consume(1000, timeout=0.02):
                    if message.error() is not None:
                        reached = max(reached, errors.take(message))
                        continue
                    record = Record(message)
                    if (offset := record.offset()) >= stop:
                        return
                    reached = offset + 1
                    yield record
                if reached > position:
                    self._on_progress()
                    position, deadline = reached, self._runtime.monotonic() + timeout_s
                elif self._runtime.monotonic() > deadline:
                    errors.raise_unreadable()
                    self._renew()
                    raise NoAnswer(
                        f"{topic}[{partition}]: stuck at {position} before {stop} for {timeout_s:g} s{errors.why()}"
                    )
        finally:
            with suppress(RuntimeError):  # closed while whoever reads had stopped half-way
                self._consumer.unassign()

    def first_behind(self, unreadable: UnreadableError) -> int:
        """The first offset behind the batch that cannot be read; nobody but the broker says how long that is.

        Raises:
            NoAnswer: Kafka does not answer in time. BrokerError: it refuses.
        """
        within, behind = unreadable.offset, self.watermarks(unreadable.topic, unreadable.partition)[1]
        while behind - within > 1:
            middle = (within + behind) // 2
            if self._is_within(unreadable, middle):
                within = middle
            else:
                behind = middle
        return behind

    def _is_within(self, unreadable: UnreadableError, offset: int) -> bool:
        """Whether ``offset`` lies in the batch that cannot be read."""
        self._consumer.assign([TopicPartition(unreadable.topic, unreadable.partition, offset)])
        try:
            deadline = self._runtime.monotonic() + self._timeout_s
            while self._runtime.monotonic() < deadline:
                for message in self._consumer.consume(1, timeout=0.02):
                    error = message.error()
                    if error is None or error.code() == KafkaError._PARTITION_EOF:
                        return False
                    if error.code() not in MISSING:  # as in a read: only said to be so for a while
                        _raise_for_good(message, error)
                    if is_unreadable(error):
                        return message.offset() == unreadable.offset
        finally:
            self._consumer.unassign()
        self._renew()
        raise NoAnswer(f"{unreadable.topic}[{unreadable.partition}]: no answer at {offset}{_why()}")

    def _learn(self, place: TopicPartition) -> None:
        """Ask where a topic is before it is read for the first time, and when it has a partition that is new.

        librdkafka waits a second before it asks by itself for any topic but a client's first.
        """
        if place.partition >= self._known.get(place.topic, 0):
            with suppress(BrokerError):  # reading it will say what is wrong
                self._known[place.topic] = self._count(self._consumer, place.topic, self._timeout_s)

    def _is_there(self, place: TopicPartition) -> bool:
        """Whether the cluster has a partition that the client of watermarks did not know; it knows of it then."""
        with suppress(BrokerError):
            return self._count(self._uncommitted, place.topic, self._timeout_s) > place.partition
        return False


class _Errors:
    """What one read was told instead of records."""

    def __init__(self) -> None:
        self._last = ""
        self._unreadable = 0
        self._found: UnreadableError | None = None

    def take(self, message: Message) -> int:
        """The offset at which ``message`` says the partition ends for now (-1 if it is about something that may pass).

        It counts what no reader sees: control records and aborted ones.

        Raises:
            UnreadableError: what is there can be read at no time. BrokerError: an error that will not pass by itself.
        """
        error, offset = message.error(), message.offset()
        assert error is not None
        if error.code() == KafkaError._PARTITION_EOF:
            return -1 if offset is None else offset
        if error.code() not in MISSING:  # where its end was read a moment ago, it is only said to be so for a while
            _raise_for_good(message, error)
        self._last = in_words(error)
        if is_unreadable(error):
            topic, partition = message.topic(), message.partition()
            assert topic is not None
            assert partition is not None
            self._found = UnreadableError(topic, partition, -1 if offset is None else offset, self._last)
            self._unreadable += 1
            if self._unreadable >= _UNREADABLE_AFTER:
                raise self._found
        return -1

    def raise_unreadable(self) -> None:
        """
        Raises:
            UnreadableError: what is there was found to be readable at no time.
        """
        if self._found is not None:
            raise self._found

    def why(self) -> str:
        """The last of them, and what the clients say of brokers."""
        return (f"; {self._last}" if self._last else "") + _why()


class Follower:
    """Follows one partition from an offset on; never in a group, never commits.

    ``fetch_wait_ms`` is how long the broker holds an answer back while there is nothing: it is asked anew as often.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        client_id: str,
        topic: str,
        partition: int = 0,
        *,
        fetch_wait_ms: int = FETCH_WAIT_MS,
        clients: Clients = CLIENTS,
        watch: PlaceWatch | None = None,
    ) -> None:
        self._watch = PlaceWatch(clients.runtime) if watch is None else watch
        self.topic, self.partition = topic, partition
        self._clients = clients
        self._properties = config.reader(kafka, client_id) | {
            "enable.partition.eof": False,
            "fetch.wait.max.ms": fetch_wait_ms,
        }
        self._place: int | None = None
        self._open()

    def _open(self) -> None:
        self._stranded = StrandedWatch(self._clients.runtime)
        self._missing = MissingPartitions(self._clients.runtime)
        self._consumer = self._clients.consumer(
            self._properties | self._stranded.properties() | {"stats_cb": self._note}
        )

    def _note(self, statistics: str) -> None:
        self._stranded.note(statistics)
        self._watch.note_statistics(statistics)

    def start(self, offset: int = OFFSET_BEGINNING) -> None:
        """Begin (or begin again) at ``offset``."""
        self._place = offset
        self._consumer.assign([TopicPartition(self.topic, self.partition, offset)])

    def poll(self, timeout_s: float, records_max: int = 1000) -> list[Record]:
        """What has arrived: waits up to ``timeout_s`` for the first record, then takes what is there.

        Raises:
            BrokerError: the broker refuses for good.
        """
        records = list(poll_records(self._consumer, timeout_s, records_max, self._watch, missing=self._missing))
        self._missing.look(self._consumer)
        if records:
            self._place = records[-1].offset() + 1
        elif self._stranded.is_stranded and self._place is not None:
            event(log, logging.WARNING, "follower_renewed", topic=self.topic, partition=self.partition)
            self.close()
            self._open()
            self.start(self._place)
        return records

    def close(self) -> None:
        self._consumer.close()
        self._watch.forget_all()


def poll_batch(consumer: Consumer, timeout_s: float, records_max: int, watch: PlaceWatch) -> list[Record]:
    """What :func:`poll_records` gives, when it does not matter what a rebalance callback sees of it.

    Raises:
        BrokerError: an error that will not pass by itself.
    """
    return list(poll_records(consumer, timeout_s, records_max, watch))


def poll_records(
    consumer: Consumer,
    timeout_s: float,
    records_max: int,
    watch: PlaceWatch,
    on_end: Callable[[str, int, int], object] = lambda topic, partition, offset: None,
    missing: MissingPartitions | None = None,
) -> Iterator[Record]:
    """Wait for the first record, then drain: ``consume(n, t)`` alone would wait ``t`` unless ``n`` records are there.

    The first record is given before the rest is asked for, and rebalance callbacks run whenever the client is asked:
    whoever keeps each record as it comes sees in a callback all that came before it.

    ``on_end`` is told where a partition ends for now, if the consumer says so: topic, number, and the offset at which
    the next record will be. The records before it have been given by then. ``missing`` is told what is said not to
    exist, and of which of it there are records; without it that is an error at once.

    ``watch`` is told every error that may pass: whether it does shows only where the place stands.

    Raises:
        BrokerError: an error that will not pass by itself. MembershipLost: the consumer has ended for good.
    """
    first = consumer.poll(timeout_s)
    if first is None:
        return
    yield from _good(first, watch, on_end, missing)
    if records_max > 1:
        for message in consumer.consume(records_max - 1, timeout=0):
            yield from _good(message, watch, on_end, missing)


def _good(
    message: Message,
    watch: PlaceWatch,
    on_end: Callable[[str, int, int], object],
    missing: MissingPartitions | None,
) -> Iterator[Record]:
    error = message.error()
    if error is None:
        record = Record(message)
        if missing:
            missing.forget(record.topic(), record.partition())
        yield record
    elif error.code() == KafkaError._PARTITION_EOF:
        record = Record(message)
        on_end(record.topic(), record.partition(), record.offset())
    elif missing is not None and error.code() in MISSING:
        partition = message.partition()
        missing.note(message.topic() or "", -1 if partition is None else partition, in_words(error))
    elif error.code() == KafkaError._AUTO_OFFSET_RESET and not _is_read(message, watch):
        pass  # where it stands until it is said where it goes on, the log need not hold anything
    else:
        _raise_for_good(message, error)
        watch.note_error(message, error)


def _is_read(message: Message, watch: PlaceWatch) -> bool:
    topic, partition = message.topic(), message.partition()
    return topic is None or partition is None or watch.is_read(topic, partition)


def _raise_for_good(message: Message, error: KafkaError) -> None:
    """What librdkafka mends by itself (brokers away, leaders moving) passes; ``retriable()`` is never set here.

    Neither is ``fatal()``: that a consumer has ended for good (a static member that was fenced) is said once, by a
    message with the code ``_FATAL``; after it the consumer is polled in vain.
    """
    if error.code() in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID):
        raise MembershipLost(f"this consumer has ended for good: {error.str()}")
    if error.code() in _FOR_GOOD:
        where = "" if message.topic() is None else f"{message.topic()}[{message.partition()}]: "
        advice = _RESET_ADVICE if error.code() == KafkaError._AUTO_OFFSET_RESET else ""
        raise BrokerError(f"{where}{in_words(error)}{advice}")


_RESET_ADVICE = (
    ": the log does not hold what was to be read next (retention, DeleteRecords, an unclean election, or a topic made "
    "anew); started again, this role says what is missing and what to do"
)


def _why() -> str:
    reasons = last_reasons()
    return f"; {reasons}" if reasons else ""


_FOR_GOOD = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._AUTHENTICATION,
    KafkaError._AUTO_OFFSET_RESET,
}
