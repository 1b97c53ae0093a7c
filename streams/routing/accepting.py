"""An operator's word that a router goes on at an offset, whatever its group has committed: ``accept-offset``.

The word is one record of ``margin.router.v1`` (:mod:`streams.feeds.accepted`), which the router reads that next takes
the partition. No offset of the group is touched.
"""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field

from confluent_kafka import Consumer, TopicPartition

from schemas.codec import encode
from schemas.messages import AcceptedOffset
from schemas.topics import ACCOUNTS, INPUTS, ROUTER
from streams.broker.committed import committed_offsets, metadata_of
from streams.broker.kafka import Kafka
from streams.broker.reader import LogReader
from streams.errors import NoAnswer, OperatorError, UnreadableError
from streams.feeds.accepted import ACCEPTED_PARTITION, AcceptedOffsets, accepted_key, accepted_offsets
from streams.feeds.reasons import checked_reason
from streams.routing.beginning import Present
from streams.routing.committed_at import CommittedAt

_CLIENT_ID = "margin-accept-offset"


@dataclass(slots=True)
class Accepted:
    """What was done: a line for each word that was written, each place that needs none, and each that can have none."""

    written: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What a person is told."""
        advice = ["a router that runs must be started again to take it"] if self.written else []
        told = (("accepted", self.written), ("as it is", self.needless), ("refused ", self.refused))
        return [f"{what}  {line}" for what, lines in told for line in lines] + advice


def accept_offset(kafka: Kafka, topic: str, partition: int, offset: int, reason: str) -> Accepted:
    """Say that the router goes on at ``offset`` of a partition; or, of accounts and of the router's memory, that what
    was before its first offset, ``offset``, is done without.

    Raises:
        OperatorError: there is no such partition of an input topic, its log does not hold the offset, or the reason is
            none or too long. Nothing is written. BrokerError: Kafka does not answer, or does not take it.
    """
    reason = checked_reason(reason, "the router may go on there")
    if topic not in (*INPUTS, ACCOUNTS, ROUTER):
        known = ", ".join((*INPUTS, ACCOUNTS, ROUTER))
        raise OperatorError(f"{topic!r} is no topic that a router reads: {known}")
    with kafka.log_reader(_CLIENT_ID) as reader:
        count = reader.partitions(topic)
        if not 0 <= partition < count:
            raise OperatorError(f"{topic} has no partition {partition}: it has {_numbered(count)}")
        present = _present(reader, topic, partition, kafka.topic_ids([topic])[topic])
        before = _standing(accepted_offsets(reader), present)
        if not present.holds(offset):
            raise OperatorError(
                f"{present} holds the offsets {present.low} to {present.high} (the next record's), and {offset} is not "
                "among them"
            )
        if topic not in INPUTS and offset != present.low:
            raise OperatorError(f"{present} is read whole, so only its first offset can be accepted, {present.low} now")
        _require_readable(reader, present, offset)
    _write(kafka, [(present, offset)], reason)
    if topic not in INPUTS:
        return Accepted([f"{present}: what was before {offset} is gone, and is done without"])
    instead = "" if before is None else f", instead of at {before.offset} as accepted before ({before.reason})"
    log_holds = f"the log holds {present.low} to {present.high}"
    return Accepted([f"{present}: the router goes on at {offset} ({log_holds}){instead}"])


def accept_committed(kafka: Kafka, reason: str) -> Accepted:
    """Say of every input partition whose committed offset no router of this version wrote that it is the right one.

    One about which there is a word already keeps it.

    Raises:
        OperatorError: the reason is none or too long. BrokerError: Kafka does not answer, or does not take it.
    """
    reason = checked_reason(reason, "the router may go on there")
    done = Accepted()
    words: list[tuple[Present, int]] = []
    ids = kafka.topic_ids(INPUTS)
    with kafka.log_reader(_CLIENT_ID) as reader:
        standing = accepted_offsets(reader)
        for committed in _committed(kafka, reader):
            present = _present(reader, committed.topic, committed.partition, ids[committed.topic])
            if (before := _standing(standing, present)) is not None:
                done.needless.append(f"{present}: {before.offset} was accepted before ({before.reason})")
            elif committed.offset < 0:
                done.needless.append(f"{present}: nothing is committed, the router begins at {present.low}")
            elif not present.holds(committed.offset):
                done.refused.append(
                    f"{present}: {committed.offset} is committed, and the log holds {present.low} to {present.high}: "
                    "accept one of these for it alone"
                )
            elif (known := CommittedAt.parse(metadata_of(committed))) is None:
                words.append((present, committed.offset))
                done.written.append(f"{present}: the router goes on at {committed.offset}, as committed")
            elif known.topic_id == present.topic_id:
                done.needless.append(f"{present}: {committed.offset} was committed by a router of this version")
            else:
                done.refused.append(
                    f"{present}: {committed.offset} is committed of another topic of this name: to begin with the new "
                    f"one accept {present.low} for it alone"
                )
    if words:
        _write(kafka, words, reason, routed=True)
    return done


def _require_readable(reader: LogReader, present: Present, offset: int) -> None:
    """
    Raises:
        OperatorError: what is there can be read at no time, so no router would go on there.
    """
    try:
        with closing(reader.read_range(present.topic, present.partition, offset, present.high)) as records:
            next(records, None)
    except UnreadableError as error:
        behind = reader.first_behind(error)
        if offset < behind:
            raise OperatorError(
                f"{present} cannot be read from {offset} on ({error.cause}): the first offset behind that is {behind}"
            ) from error
    except NoAnswer:  # what is there is not committed yet
        return


def _committed(kafka: Kafka, reader: LogReader) -> list[TopicPartition]:
    """What the routers' group has committed of every input partition."""
    places = [TopicPartition(topic, partition) for topic in INPUTS for partition in range(reader.partitions(topic))]
    consumer: Consumer = kafka.group_consumer(_CLIENT_ID, kafka.settings.router.group_id)
    try:
        return committed_offsets(consumer, places, kafka.settings.kafka.call_ms_max / 1000, kafka.runtime)
    finally:
        consumer.close()


def _write(kafka: Kafka, words: Iterable[tuple[Present, int]], reason: str, *, routed: bool = False) -> None:
    time_us = kafka.runtime.time_ns() // 1000
    producer = kafka.idempotent_producer(_CLIENT_ID, compression="lz4")
    try:
        for present, offset in words:
            word = AcceptedOffset(offset=offset, topic_id=present.topic_id, reason=reason, time=time_us, routed=routed)
            key = accepted_key(present.topic, present.partition)
            producer.produce(ROUTER, encode(word), key=key, partition=ACCEPTED_PARTITION)
        producer.flush()
    finally:
        producer.close()


def _standing(words: AcceptedOffsets, present: Present) -> AcceptedOffset | None:
    """The word about a partition that is not spent yet, if it is about the topic that there is."""
    word = words.words.get((present.topic, present.partition))
    return word if word is not None and word.topic_id == present.topic_id else None


def _present(reader: LogReader, topic: str, partition: int, topic_id: str) -> Present:
    return Present(topic, partition, topic_id, *reader.watermarks(topic, partition))


def _numbered(count: int) -> str:
    return "the partition 0" if count == 1 else f"the partitions 0 to {count - 1}"
