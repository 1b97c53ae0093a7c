"""A group's committed offsets, and the place from which a consumer goes on.

Kafka may not say for a while what a group has committed: its coordinator moves, or a transaction of an owner that died
is still open. Here is the one list of what passes by itself, and the one wait for it.
"""

from collections.abc import Generator, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.broker import config
from streams.broker.client_log import in_words
from streams.errors import BrokerError, NoAnswer
from streams.runtime import SYSTEM, Runtime
from streams.settings import KafkaSettings

_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 1.0
_CALL_MIN_S = 0.1
_SEEK_AGAIN_S = 0.005

RETRIABLE = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._WAIT_COORD,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.REBALANCE_IN_PROGRESS,
    }
)
"""Errors of a committed offset that pass by themselves: a broker that is slow or away, a coordinator that moves, a
transaction that is still open."""


def committed_steps(
    consumer: Consumer,
    places: Sequence[TopicPartition],
    timeout_s: float,
    *,
    call_s_max: float | None = None,
    runtime: Runtime = SYSTEM,
) -> Generator[float, None, list[TopicPartition]]:
    """The group's committed offsets of ``places``; yields, after every call that got no answer, the seconds to pause.

    Args:
        timeout_s: how long to ask in all.
        call_s_max: how long one call may block, for whoever has something else to do meanwhile (None: as long as
            there is time).

    Raises:
        NoAnswer: Kafka does not say in time. BrokerError: it never will.
    """
    deadline = runtime.monotonic() + timeout_s
    pause_s = _PAUSE_FIRST_S
    while True:
        left_s = max(_CALL_MIN_S, deadline - runtime.monotonic())
        try:
            committed = consumer.committed(
                list(places), timeout=left_s if call_s_max is None else min(pause_s, call_s_max)
            )
            error = next((place.error for place in committed if place.error is not None), None)
        except KafkaException as raised:
            error = raised.args[0]
        if error is None:
            return committed
        if error.code() not in RETRIABLE or runtime.monotonic() > deadline:
            refusal = NoAnswer if error.code() in RETRIABLE else BrokerError
            raise refusal(f"the group's committed offsets cannot be read: {in_words(error)}")
        yield pause_s
        pause_s = min(2 * pause_s, _PAUSE_MAX_S)


def committed_offsets(
    consumer: Consumer, places: Sequence[TopicPartition], timeout_s: float, runtime: Runtime = SYSTEM
) -> list[TopicPartition]:
    """The group's committed offsets of ``places``, waited for; a negative one where there is none.

    Raises:
        NoAnswer: Kafka does not say in time. BrokerError: it never will.
    """
    steps = committed_steps(consumer, places, timeout_s, runtime=runtime)
    while True:
        try:
            pause_s = next(steps)
        except StopIteration as done:
            return list(done.value)
        runtime.sleep(pause_s)


def metadata_of(committed: TopicPartition) -> str | None:
    """The text that was committed beside an offset; None if there is none, or one that is no UTF-8."""
    try:
        return committed.metadata
    except UnicodeDecodeError:
        return None


def group_offsets(kafka: KafkaSettings, client_id: str, group_id: str, topic: str, timeout_s: float) -> list[int]:
    """What a group has committed of every partition of ``topic``, asked from outside; negative where there is nothing.

    Raises:
        BrokerError: Kafka does not say in time, or never will.
    """
    consumer = config.created(Consumer, config.common(kafka, client_id) | {"group.id": group_id})
    try:
        count = len(consumer.list_topics(topic, timeout=timeout_s).topics[topic].partitions)
        places = [TopicPartition(topic, partition) for partition in range(count)]
        return [place.offset for place in committed_offsets(consumer, places, timeout_s)]
    except KafkaException as error:
        raise BrokerError(f"{topic}: its partitions cannot be read: {in_words(error.args[0])}") from error
    except BrokerError as error:
        raise BrokerError(f"group {group_id}: {error}") from error
    finally:
        consumer.close()


def seek(consumer: Consumer, place: TopicPartition, timeout_s: float, runtime: Runtime = SYSTEM) -> None:
    """Let ``consumer`` fetch ``place`` from its offset on. A partition just assigned takes a moment to begin.

    Raises:
        NoAnswer: it has not begun in time. BrokerError: it is not assigned.
    """
    deadline = runtime.monotonic() + timeout_s
    while True:
        try:
            consumer.seek(place)
            return
        except KafkaException as error:
            cause = error.args[0]
            if cause.code() != KafkaError._STATE or runtime.monotonic() > deadline:
                refusal = NoAnswer if cause.code() == KafkaError._STATE else BrokerError
                raise refusal(f"{place.topic}[{place.partition}]: cannot seek: {in_words(cause)}") from error
            runtime.sleep(_SEEK_AGAIN_S)
