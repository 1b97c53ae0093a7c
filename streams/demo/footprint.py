"""What a Kafka and a Redis that were given hold of the contract, and which of it is the demo's own.

The demo leaves a note in each: in Kafka the topic ``margin.demo.v1``, whose last record names every topic of the
contract with its id and its ends as the demo left them; in Redis the key ``margin:demo``, which names the cluster that
the tables are copies of and their owners. What a note does not cover was written by somebody else, or by a demo that
was killed.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec
import redis
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.codec import DecodeError, Decoder, encode
from schemas.topics import LAYOUT as LAYOUT_TOPIC
from schemas.topics import all_topics
from streams.broker import config
from streams.broker.admin import admin_client, partition_counts, topic_ids
from streams.broker.reader import LogReader
from streams.demo.errors import DemoError, OccupiedError
from streams.errors import BrokerError, TableError
from streams.settings import Settings
from streams.tables.connection import connect
from streams.tables.keys import LAYOUT, MARKS, accounts_key, meta_key

NOTES = "margin.demo.v1"
"""One partition, compacted, key ``demo``: the demo's note."""
REDIS_NOTE = "margin:demo"

_KEY = b"demo"
_SHARDS_MAX = 1024
_TIMEOUT_S = 30.0
_GROUPS_AT_ONCE = 100
_SHOWN = 5
_LOOK_AGAIN_S = 0.2

State = Literal["running", "finished"]
"""``running``: a demo began and has not ended in order."""


class TopicNote(msgspec.Struct, frozen=True):
    """A topic as the demo left it: its id, and the end of each partition."""

    id: str
    ends: tuple[int, ...]


class Note(msgspec.Struct, frozen=True):
    """The note in Kafka. While a demo is running, the ends are those from before."""

    state: State
    topics: dict[str, TopicNote]
    written_at: int


class RedisNote(msgspec.Struct, frozen=True):
    """The note in Redis: the cluster that the tables are copies of, and whose each key was when the demo ended."""

    state: State
    cluster: str
    owners: dict[str, str]


_NOTE = Decoder[Note](Note)
_REDIS_NOTE = Decoder[RedisNote](RedisNote)


class Footprint:
    """The demo's notes in the Kafka of ``settings`` and, with ``tables``, in its Redis."""

    def __init__(self, settings: Settings, *, kafka: bool, tables: bool) -> None:
        self._settings, self._kafka, self._tables = settings, kafka, tables
        self._pipeline = {
            settings.router.group_id,
            settings.engine.group_id,
            settings.oracle.app_id,
            settings.oracle.leader_group,
        }

    def require_own(self) -> None:
        """Refuse a Kafka or Redis that holds anything of the contract that is not the demo's own. Writes nothing.

        Raises:
            OccupiedError: says what is there.
            BrokerError, TableError, DemoError: it cannot be told.
        """
        obstacles = [*self._in_kafka(), *self._in_redis()]
        if obstacles:
            more = f"; and {len(obstacles) - _SHOWN} more" if len(obstacles) > _SHOWN else ""
            raise OccupiedError(
                f"what was given holds what is not the demo's own: {'; '.join(obstacles[:_SHOWN])}{more}. The demo "
                "would publish its parameters, prices and trades among it. Give it an empty one, none at all (it "
                "starts its own), or --into-this-cluster if that is what you want"
            )

    def begin(self) -> None:
        """Note that what follows is the demo's. The topics of the contract are there.

        Raises:
            BrokerError, TableError, DemoError: the note cannot be written.
        """
        if self._kafka:
            self._create_notes()
            self._write("running")
        if self._tables:
            self._begin_redis()

    def finish(self) -> None:
        """Note where the demo has ended, when nothing of it writes any more.

        Raises:
            BrokerError, TableError, DemoError: the note cannot be written.
        """
        if self._kafka:
            self._write("finished")
        if self._tables:
            self._finish_redis()

    # --- Kafka -------------------------------------------------------------------------------------------------------

    def _in_kafka(self) -> Iterator[str]:
        if not self._kafka:
            return
        admin = admin_client(self._settings)
        counts = partition_counts(admin, _TIMEOUT_S)
        # Over how many shards accounts are spread says nothing of any account.
        present = {
            topic.name: counts[topic.name] for topic in all_topics() if topic.name in counts.keys() - {LAYOUT_TOPIC}
        }
        note = self._read() if _is_there(admin) else None
        yield from self._records(present, note)
        yield from self._groups(admin, present, note)

    def _records(self, present: Mapping[str, int], note: Note | None) -> Iterator[str]:
        ids = topic_ids(self._settings, list(present)) if present else {}
        with LogReader(self._settings.kafka, "margin-demo") as reader:
            for topic, partitions in present.items():
                marks = [reader.watermarks(topic, partition) for partition in range(partitions)]
                if all(low == high for low, high in marks):
                    continue
                noted = note.topics.get(topic) if note is not None else None
                if noted == TopicNote(ids[topic], tuple(high for _, high in marks)):
                    continue
                count = sum(high - low for low, high in marks)
                yield f"{topic} has {count:,} records" + _since(noted, ids[topic], note)

    def _groups(self, admin: AdminClient, present: Mapping[str, int], note: Note | None) -> Iterator[str]:
        """Whoever reads the contract's topics: an execution service would trade the demo's commands."""
        listed = _answer(admin.list_consumer_groups(request_timeout=_TIMEOUT_S), "the groups")
        names = sorted(group.group_id for group in listed.valid)
        if listed.errors:
            raise DemoError(f"the consumer groups cannot all be listed: {listed.errors[0]}")
        for first in range(0, len(names), _GROUPS_AT_ONCE):
            some = names[first : first + _GROUPS_AT_ONCE]
            described = admin.describe_consumer_groups(some, request_timeout=_TIMEOUT_S)
            offsets = {
                name: admin.list_consumer_group_offsets(
                    [ConsumerGroupTopicPartitions(name)], request_timeout=_TIMEOUT_S
                )[name]
                for name in some
            }
            for name in some:
                members = _answer(described[name], f"group {name}").members
                committed = _answer(offsets[name], f"group {name}").topic_partitions
                assigned = {place.topic for member in members for place in member.assignment.topic_partitions}
                read = {place.topic for place in committed if place.offset >= 0}
                if name in self._pipeline:
                    if members:
                        yield f"group {name} has {len(members)} members: a pipeline runs here"
                    elif note is None and read & present.keys():
                        yield f"group {name} has committed offsets of {', '.join(sorted(read & present.keys()))}"
                elif touched := sorted((assigned | read) & present.keys()):
                    yield f"group {name} reads {', '.join(touched)}"

    def _read(self) -> Note | None:
        last = None
        with LogReader(self._settings.kafka, "margin-demo") as reader:
            for message in reader.read_range(NOTES, 0, 0):
                last = message.value() if message.key() == _KEY else last
        if last is None:
            return None
        try:
            return _NOTE(last)
        except DecodeError:
            return None  # whatever it is, it says nothing about what is ours

    def _create_notes(self) -> None:
        admin = admin_client(self._settings)
        if not _is_there(admin):
            replicas = self._settings.topics.replication_factor
            new = NewTopic(NOTES, num_partitions=1, replication_factor=replicas, config={"cleanup.policy": "compact"})
            _answer(admin.create_topics([new], operation_timeout=_TIMEOUT_S)[NOTES], f"topic {NOTES}")

    def _ends(self) -> dict[str, TopicNote]:
        """Every topic of the contract as it stands. One that was created just now is not known to every broker yet."""
        names = [topic.name for topic in all_topics()]
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                ids = topic_ids(self._settings, names)
                with LogReader(self._settings.kafka, "margin-demo") as reader:
                    ends = {
                        name: tuple(reader.watermarks(name, each)[1] for each in range(reader.partitions(name)))
                        for name in names
                    }
            except BrokerError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_AGAIN_S)
            else:
                return {name: TopicNote(ids[name], ends[name]) for name in names}

    def _write(self, state: State) -> None:
        topics = self._ends()
        failed: list[str] = []
        producer = config.created(Producer, config.producer(self._settings.kafka, "margin-demo"))
        producer.produce(
            NOTES,
            encode(Note(state, topics, time.time_ns() // 1000)),
            key=_KEY,
            on_delivery=lambda error, _: failed.append(error.str()) if error else None,
        )
        if producer.flush(_TIMEOUT_S) or failed:
            raise DemoError(f"the demo's note could not be written to {NOTES}: {''.join(failed) or 'no answer'}")

    # --- Redis -------------------------------------------------------------------------------------------------------

    def _in_redis(self) -> Iterator[str]:
        if not self._tables:
            return
        with connect(self._settings.redis) as client:
            note = _redis_note(client)
            for key, owner in self._keys(client).items():
                if note is None or note.state != "finished":
                    yield f"Redis has the key {key}" + ("" if note is None else ", and a demo there was ended by force")
                elif owner is not None and note.owners.get(key) != owner:
                    yield f"Redis has the key {key}, written since the demo of cluster {note.cluster} ended"

    def _begin_redis(self) -> None:
        """What an earlier demo left of another cluster goes: its offsets mean nothing in this one."""
        cluster = self._cluster_id()
        with connect(self._settings.redis) as client:
            note = _redis_note(client)
            if note is not None and note.cluster != cluster and (keys := self._keys(client)):
                _asked(lambda: client.delete(*keys))
            _asked(lambda: client.set(REDIS_NOTE, encode(RedisNote("running", cluster, {}))))

    def _finish_redis(self) -> None:
        with connect(self._settings.redis) as client:
            owners = {key: owner for key, owner in self._keys(client).items() if owner is not None}
            _asked(lambda: client.set(REDIS_NOTE, encode(RedisNote("finished", self._cluster_id(), owners))))

    def _cluster_id(self) -> str:
        return admin_client(self._settings).list_topics(timeout=_TIMEOUT_S).cluster_id or ""

    def _keys(self, client: redis.Redis) -> dict[str, str | None]:
        """The pipeline's keys that are there, and of those that say so whose they are: log and owner's claim."""
        table = f"faust:{{{self._settings.oracle.app_id}:prices}}"
        names = [LAYOUT, MARKS, table, f"{table}:offsets"]
        names += [key(shard) for shard in range(_SHARDS_MAX) for key in (meta_key, accounts_key)]
        with client.pipeline(transaction=False) as asking:
            for name in names:
                asking.exists(name)
            there = [name for name, exists in zip(names, _asked(asking.execute), strict=True) if exists]
            owned = [name for name in there if name == LAYOUT or name.endswith(":meta")]
            for name in owned:
                asking.hmget(name, ["cluster", "topic", "shards", "token"])
            owners = dict(zip(owned, _asked(asking.execute), strict=True)) if owned else {}
        return {
            name: " ".join((part or b"-").decode() for part in owners[name]) if name in owners else None
            for name in there
        }


def _redis_note(client: redis.Redis) -> RedisNote | None:
    value: Any = _asked(lambda: client.get(REDIS_NOTE))
    try:
        return None if value is None else _REDIS_NOTE(value)
    except DecodeError:
        return None


def _is_there(admin: AdminClient) -> bool:
    """Whether there is a topic of notes. All topics are listed: to ask for one by name could create it."""
    try:
        return NOTES in admin.list_topics(timeout=_TIMEOUT_S).topics
    except KafkaException as error:
        raise BrokerError(f"topic {NOTES}: {error.args[0].str()}") from error


def _since(noted: TopicNote | None, topic_id: str, note: Note | None) -> str:
    """What the demo's note says about a topic that does not stand where the note has it."""
    if note is None or noted is None:
        return ""
    if noted.id != topic_id:
        return " and is not the topic of that name in which a demo ran: it was created anew"
    if note.state == "running":
        return ", and a demo was ended by force here: what it wrote cannot be told from what others did"
    return ", some of them written since the last demo ended"


def _answer(future: Any, what: str) -> Any:
    try:
        return future.result(timeout=_TIMEOUT_S)
    except KafkaException as error:
        raise BrokerError(f"{what}: {error.args[0].str()}") from error


def _asked(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except redis.RedisError as error:
        raise TableError(f"the Redis that was given does not answer: {error}; check --redis-url") from error
