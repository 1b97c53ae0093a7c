"""Creating and verifying the topics of the contract.

What is missing is created; what exists is compared with the contract and every difference is said. Nothing is ever
deleted or altered. Over how many shards accounts are spread is written once (:mod:`streams.broker.layout`), and the
topics of the shards must have as many partitions or more. Topics are asked for by name, because only then does Kafka
say which of them this client may not see: such a topic is not a missing one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic, ResourceType

from schemas.messages import ShardLayout
from schemas.topics import ACCOUNTS, EVENTS, LAYOUT, ORACLE, PRICES, ROUTER, TRADES, Topic, all_topics
from streams.broker import config
from streams.broker.client_log import in_words, is_not_authorised
from streams.broker.committed import RETRIABLE
from streams.broker.layout import read_layout, require_layout, spread_over, write_layout
from streams.broker.missing import MISSING
from streams.broker.reader import LogReader
from streams.errors import BrokerError, NoAnswer, TopicError
from streams.runtime import SYSTEM, Runtime
from streams.settings import Settings

_ONE_ANSWER_S, _ASK_AGAIN_S = 3.0, 0.1
_REPLICAS_SAFE = 3
"""With so many replicas one may be away and what is acknowledged is still on two."""


@dataclass
class TopicReport:
    """What was found and done: names created, names that were right, and a sentence for everything wrong.

    ``layout`` is how accounts are spread over shards, None where that could not be learned.
    """

    created: list[str] = field(default_factory=list)
    right: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    layout: ShardLayout | None = None

    @property
    def shards(self) -> int | None:
        """How many shards there are, None where that could not be learned."""
        return None if self.layout is None else self.layout.shards_used


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics as the contract has them: ``partitions`` of each by name, and the ``layout`` of the accounts."""

    partitions: dict[str, int]
    layout: ShardLayout

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return self.layout.shards_used


def admin_client(settings: Settings) -> AdminClient:
    return config.created(AdminClient, config.common(settings.kafka, "margin-admin"))


def ensure_topics(
    settings: Settings, *, create: bool = True, timeout_s: float = 15.0, client_id: str = "margin-topics"
) -> TopicReport:
    """Create what is missing (unless ``create`` is False) and verify the rest.

    Raises:
        BrokerError: the cluster does not answer.
    """
    return _ensured(settings, client_id, create=create, timeout_s=timeout_s)[0]


def require_topics(settings: Settings, client_id: str, timeout_s: float = 30.0) -> Topics:
    """The topics of the contract, for a role that starts and reads as ``client_id``.

    Raises:
        TopicError: a topic is missing, wrong or not to be seen by this client; the text lists every fault.
        BrokerError: the cluster does not answer.
    """
    report, counts = _ensured(settings, client_id, create=False, timeout_s=timeout_s)
    if report.wrong or report.layout is None:
        raise TopicError("; ".join(report.wrong))
    return Topics(counts, report.layout)


def add_partitions(settings: Settings, counts: Mapping[str, int], timeout_s: float = 30.0) -> None:
    """Give topics more partitions, so that they have ``counts``.

    Raises:
        BrokerError: the cluster refuses, or does not answer.
    """
    asked = [NewPartitions(topic, count) for topic, count in counts.items()]
    admin = admin_client(settings)  # kept: its requests end with it
    for topic, future in admin.create_partitions(asked, request_timeout=timeout_s).items():
        try:
            future.result(timeout=timeout_s + 1)
        except KafkaException as error:
            raise BrokerError(f"{topic} cannot be given more partitions: {in_words(error.args[0])}") from error
        except FutureTimeout as error:
            raise BrokerError(f"{topic} cannot be given more partitions: no answer in {timeout_s:g} s") from error


def partition_counts(admin: AdminClient, timeout_s: float) -> dict[str, int]:
    """Partition count by name of those of the contract's topics that exist.

    Raises:
        BrokerError: the cluster does not answer in ``timeout_s``, or this client may not see a topic.
    """
    counts, refused = _look(admin, timeout_s)
    if refused:
        raise BrokerError("; ".join(refused.values()))
    return counts


def _ensured(
    settings: Settings, client_id: str, *, create: bool, timeout_s: float
) -> tuple[TopicReport, dict[str, int]]:
    admin = admin_client(settings)
    existing, refused = _look(admin, timeout_s)
    report = TopicReport(wrong=list(refused.values()))
    missing = [topic for topic in all_topics() if topic.name not in existing and topic.name not in refused]
    if create:
        _create(admin, settings, missing, existing, report, timeout_s)
    else:
        report.wrong += [f"{topic.name} is missing; `margin-clearing topics` creates it" for topic in missing]
    if LAYOUT in existing:
        report.layout = _layout(settings, client_id, existing, report, create=create)
    present = [topic for topic in all_topics() if topic.name in existing and topic.name not in report.created]
    configurations = _configurations(admin, present, report, timeout_s)
    for topic in present:
        configuration = configurations.get(topic.name)
        faults = _faults(topic, existing, report.shards)
        if configuration is not None:
            faults += _configuration_faults(topic, configuration, settings)
        report.wrong += faults
        if not faults and configuration is not None:
            report.right.append(topic.name)
    return report, existing


def _layout(
    settings: Settings, client_id: str, existing: Mapping[str, int], report: TopicReport, *, create: bool
) -> ShardLayout | None:
    """How accounts are spread over shards; written if nobody has yet and ``create`` says so."""
    try:
        with LogReader(settings.kafka, client_id) as reader:
            if not create:
                return require_layout(reader)
            if (layout := read_layout(reader)) is not None:
                return layout
            if ACCOUNTS not in existing or EVENTS not in existing:
                return None  # and why is said already
            shards = spread_over(reader, existing, settings.topics.shards)
    except TopicError as error:
        report.wrong.append(str(error))
        return None
    layout = ShardLayout(shards=shards, time=time.time_ns() // 1000)
    if shards <= existing[EVENTS]:
        write_layout(settings.kafka, client_id, layout)
    return layout


def _look(admin: AdminClient, timeout_s: float) -> tuple[dict[str, int], dict[str, str]]:
    """Partition counts of the contract's topics that exist, and what keeps this client from seeing others, by name."""
    counts: dict[str, int] = {}
    refused: dict[str, str] = {}
    names = TopicCollection([topic.name for topic in all_topics()])
    for name, future in admin.describe_topics(names, request_timeout=timeout_s).items():
        try:
            counts[name] = len(future.result(timeout=timeout_s + 1).partitions)
        except KafkaException as error:
            cause = error.args[0]
            if is_not_authorised(cause):
                refused[name] = f"{name}: {in_words(cause)}"
            elif cause.code() not in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
                raise BrokerError(f"the topics cannot be read: {in_words(cause)}") from error
        except FutureTimeout as error:
            raise BrokerError(f"the topics cannot be read: no answer in {timeout_s:g} s") from error
    return counts, refused


def topic_ids(settings: Settings, names: Sequence[str], runtime: Runtime = SYSTEM) -> dict[str, str]:
    """The id of each topic: a topic that is deleted and created anew under its name has another.

    A client that gets no answer is replaced: librdkafka waits for the broker that it holds for the controller, even if
    that has died. Kafka is asked again for as long as one call may wait for it, also where a broker that has just
    started does not know a topic.

    Raises:
        NoAnswer: the cluster does not answer. BrokerError: it refuses, or there is no such topic.
    """
    deadline = runtime.monotonic() + settings.kafka.call_ms_max / 1000
    while True:
        try:
            return _asked_topic_ids(settings, names)
        except KafkaException as error:
            cause = error.args[0]
            text = f"{', '.join(names)}: their ids cannot be read: {in_words(cause)}"
            if cause.code() not in (*RETRIABLE, *MISSING):
                raise BrokerError(text) from error
            if runtime.monotonic() > deadline:
                raise (BrokerError if cause.code() in MISSING else NoAnswer)(text) from error
        except FutureTimeout as error:
            if runtime.monotonic() > deadline:
                raise NoAnswer(f"{', '.join(names)}: their ids cannot be read: no answer in time") from error
        runtime.sleep(_ASK_AGAIN_S)


def _asked_topic_ids(settings: Settings, names: Sequence[str]) -> dict[str, str]:
    admin = admin_client(settings)  # kept: its requests end with it
    descriptions = admin.describe_topics(TopicCollection(list(names)), request_timeout=_ONE_ANSWER_S)
    return {name: str(future.result(timeout=_ONE_ANSWER_S).topic_id) for name, future in descriptions.items()}


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A member of a consumer group by its client id, and the (topic, partition) pairs that it owns."""

    client_id: str
    host: str
    partitions: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ConsumerGroup:
    """A consumer group: Kafka's word for its state (STABLE, EMPTY, …), its members, and its committed offsets."""

    group_id: str
    state: str
    members: tuple[GroupMember, ...]
    committed: dict[tuple[str, int], int]


def group_state(settings: Settings, group_id: str, timeout_s: float = 10.0) -> ConsumerGroup:
    """A consumer group as its coordinator sees it; one that never was is DEAD and has nothing.

    Raises:
        BrokerError: the coordinator does not answer.
    """
    admin = admin_client(settings)
    try:
        described = admin.describe_consumer_groups([group_id], request_timeout=timeout_s)[group_id]
        offsets = admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group_id)], request_timeout=timeout_s
        )[group_id]
        group, committed = described.result(timeout=timeout_s), offsets.result(timeout=timeout_s)
    except KafkaException as error:
        raise BrokerError(f"group {group_id}: {in_words(error.args[0])}") from error
    members = (
        GroupMember(
            member.client_id,
            member.host,
            tuple(sorted((place.topic, place.partition) for place in member.assignment.topic_partitions)),
        )
        for member in group.members
    )
    return ConsumerGroup(
        group_id,
        group.state.name,
        tuple(sorted(members, key=lambda member: member.client_id)),
        {(place.topic, place.partition): place.offset for place in committed.topic_partitions if place.offset >= 0},
    )


def _create(
    admin: AdminClient,
    settings: Settings,
    missing: list[Topic],
    existing: dict[str, int],
    report: TopicReport,
    timeout_s: float,
) -> None:
    if not missing:
        return
    new = [
        NewTopic(
            topic.name,
            num_partitions=_partitions_wanted(topic, existing, settings),
            replication_factor=settings.topics.replication_factor,
            config=topic.config() | _in_sync(settings.topics.replication_factor),
        )
        for topic in missing
    ]
    by_name = {topic.topic: topic for topic in new}
    for name, future in admin.create_topics(new, operation_timeout=timeout_s).items():
        try:
            future.result(timeout=timeout_s)
            report.created.append(name)
            existing[name] = by_name[name].num_partitions
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                existing.update(partition_counts(admin, timeout_s))
            else:
                report.wrong.append(f"{name} could not be created: {in_words(error.args[0])}")


def _in_sync(replicas: int) -> dict[str, str]:
    """Two of three replicas or more acknowledge: what was acknowledged by one alone is lost with it."""
    return {"min.insync.replicas": "2"} if replicas >= _REPLICAS_SAFE else {}


def _partitions_wanted(topic: Topic, existing: dict[str, int], settings: Settings) -> int:
    """Topics that must match follow what exists already, so that creating the rest cannot contradict it."""
    wanted: dict[str, Callable[[], int]] = {
        "one": lambda: 1,
        "any": lambda: settings.topics.partitions,
        "shards": lambda: existing.get(EVENTS, settings.topics.shards),
        "trades": lambda: existing.get(TRADES, settings.topics.partitions),
        "prices": lambda: existing.get(PRICES, settings.topics.partitions),
    }
    return wanted[topic.partitioning]()


def _configurations(
    admin: AdminClient, topics: list[Topic], report: TopicReport, timeout_s: float
) -> dict[str, dict[str, str]]:
    """What each topic has of the configuration that the contract requires, as far as this client may read it; what it
    may not goes to ``report``."""
    if not topics:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, topic.name) for topic in topics]
    required = {topic.name: {**topic.required(), **topic.at_least()} for topic in topics}
    configurations = {}
    for resource, future in admin.describe_configs(resources, request_timeout=timeout_s).items():
        try:
            values = future.result(timeout=timeout_s)
            configurations[resource.name] = {name: values[name].value for name in required[resource.name]}
        except KafkaException as error:
            text = f"{resource.name}: its configuration cannot be read: {in_words(error.args[0])}"
            if not is_not_authorised(error.args[0]):
                raise BrokerError(text) from error
            report.wrong.append(text)
    return configurations


def _configuration_faults(topic: Topic, configuration: dict[str, str], settings: Settings) -> list[str]:
    wrong = {name: value for name, value in topic.required().items() if configuration[name] != value}
    low = {name: str(least) for name, least in topic.at_least().items() if int(configuration[name]) < least}
    return [
        f"{topic.name} has {name}={configuration[name]} and must have {'at least ' if name in low else ''}{value}"
        f"{_WHY.get(name, '')}: kafka-configs --bootstrap-server {settings.kafka.bootstrap_servers} --alter "
        f"--entity-type topics --entity-name {topic.name} --add-config {name}={value}"
        for name, value in (wrong | low).items()
    ]


_WHY = {
    "message.timestamp.type": ", because the brokers' time bounds every host's clock and says when records are deleted",
    "max.message.bytes": ", because whoever writes it could never go on after a record that is refused",
}


def _faults(topic: Topic, existing: dict[str, int], shards: int | None) -> list[str]:
    faults = []
    count = existing[topic.name]
    if topic.partitioning == "one" and count != 1:
        faults.append(f"{topic.name} has {count} partitions and must have 1: its offsets are a global order")
    if topic.partitioning == "shards" and shards is not None and count < shards:
        faults.append(
            f"{topic.name} has {count} partitions and accounts are spread over {shards} shards: partition n belongs "
            f"to shard n; add partitions to it until it has {shards}"
        )
    for memory, source in ((ROUTER, TRADES), (ORACLE, PRICES)):
        if topic.name == memory and count != existing.get(source, count):
            faults.append(f"{memory} has {count} partitions and {source} has {existing[source]}: they must match")
    return faults
