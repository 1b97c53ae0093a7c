"""Creating and verifying the topics of the contract.

What is missing is created; what exists is compared with the contract and every difference is said. Nothing is ever
deleted or altered: a wrong partition count cannot be mended without moving accounts between shards. Topics are asked
for by name, because only then does Kafka say which of them this client may not see: such a topic is not a missing one.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from schemas.topics import EVENTS, ORACLE, PRICES, ROUTER, TRADES, Topic, all_topics
from streams.broker import config
from streams.broker.client_log import in_words, is_not_authorised
from streams.errors import BrokerError, TopicError
from streams.settings import Settings


@dataclass
class TopicReport:
    """What was found and done: names created, names that were right, and a sentence for everything wrong."""

    created: list[str] = field(default_factory=list)
    right: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def admin_client(settings: Settings) -> AdminClient:
    return config.created(AdminClient, config.common(settings.kafka, "margin-admin"))


def ensure_topics(settings: Settings, *, create: bool = True, timeout_s: float = 15.0) -> TopicReport:
    """Create what is missing (unless ``create`` is False) and verify the rest.

    Raises:
        BrokerError: the cluster does not answer.
    """
    return _ensured(settings, create=create, timeout_s=timeout_s)[0]


def require_topics(settings: Settings, timeout_s: float = 30.0) -> dict[str, int]:
    """The partition count of every topic of the contract, for a role that starts.

    Raises:
        TopicError: a topic is missing, wrong or not to be seen by this client; the text lists every fault.
        BrokerError: the cluster does not answer.
    """
    report, counts = _ensured(settings, create=False, timeout_s=timeout_s)
    if report.wrong:
        raise TopicError("; ".join(report.wrong))
    return counts


def partition_counts(admin: AdminClient, timeout_s: float) -> dict[str, int]:
    """Partition count by name of those of the contract's topics that exist.

    Raises:
        BrokerError: the cluster does not answer in ``timeout_s``, or this client may not see a topic.
    """
    counts, refused = _look(admin, timeout_s)
    if refused:
        raise BrokerError("; ".join(refused.values()))
    return counts


def _ensured(settings: Settings, *, create: bool, timeout_s: float) -> tuple[TopicReport, dict[str, int]]:
    admin = admin_client(settings)
    existing, refused = _look(admin, timeout_s)
    report = TopicReport(wrong=list(refused.values()))
    missing = [topic for topic in all_topics() if topic.name not in existing and topic.name not in refused]
    if create:
        _create(admin, settings, missing, existing, report, timeout_s)
    else:
        report.wrong += [f"{topic.name} is missing; `margin-clearing topics` creates it" for topic in missing]
    present = [topic for topic in all_topics() if topic.name in existing and topic.name not in report.created]
    configurations = _configurations(admin, present, report, timeout_s)
    for topic in present:
        configuration = configurations.get(topic.name)
        faults = _faults(topic, existing, settings)
        if configuration is not None:
            faults += _configuration_faults(topic, configuration, settings)
        report.wrong += faults
        if not faults and configuration is not None:
            report.right.append(topic.name)
    return report, existing


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


def topic_ids(settings: Settings, names: Sequence[str], timeout_s: float = 30.0) -> dict[str, str]:
    """The id of each topic: a topic that is deleted and created anew under its name has another.

    Raises:
        BrokerError: the cluster does not answer, or there is no such topic.
    """
    admin = admin_client(settings)  # kept: its requests end with it
    descriptions = admin.describe_topics(TopicCollection(list(names)), request_timeout=timeout_s)
    try:
        return {name: str(future.result(timeout=timeout_s).topic_id) for name, future in descriptions.items()}
    except KafkaException as error:
        raise BrokerError(f"{', '.join(names)}: their ids cannot be read: {in_words(error.args[0])}") from error
    except FutureTimeout as error:
        raise BrokerError(f"{', '.join(names)}: their ids cannot be read: no answer in {timeout_s:g} s") from error


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
            config=topic.config(),
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
    required = {topic.name: topic.required() for topic in topics}
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
    return [
        f"{topic.name} has {name}={configuration[name]} and must have {value}{_WHY.get(name, '')}: kafka-configs "
        f"--bootstrap-server {settings.kafka.bootstrap_servers} --alter --entity-type topics "
        f"--entity-name {topic.name} --add-config {name}={value}"
        for name, value in topic.required().items()
        if configuration[name] != value
    ]


_WHY = {
    "message.timestamp.type": ", because the brokers' time bounds every host's clock and says when records are deleted"
}


def _faults(topic: Topic, existing: dict[str, int], settings: Settings) -> list[str]:
    faults = []
    count = existing[topic.name]
    if topic.partitioning == "one" and count != 1:
        faults.append(f"{topic.name} has {count} partitions and must have 1: its offsets are a global order")
    if topic.partitioning == "shards" and count != existing.get(EVENTS, count):
        faults.append(
            f"{topic.name} has {count} partitions and {EVENTS} has {existing[EVENTS]}: they must match, "
            "because partition n of each belongs to shard n"
        )
    if topic.name == EVENTS and count != settings.topics.shards:
        faults.append(
            f"{EVENTS} has {count} partitions and MARGIN_TOPICS__SHARDS is {settings.topics.shards}: "
            "accounts would be sent to other shards; set it to what the topic has"
        )
    for memory, source in ((ROUTER, TRADES), (ORACLE, PRICES)):
        if topic.name == memory and count != existing.get(source, count):
            faults.append(f"{memory} has {count} partitions and {source} has {existing[source]}: they must match")
    return faults
