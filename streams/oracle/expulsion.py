"""An oracle that leads and says nothing is expelled from its groups, so that nobody waits until its session is over.

A group keeps the place of a process that died for as long as a session. But whoever leads publishes a frame with every
heartbeat: one that has published none for several, while all brokers of the marks answer, is dead or stands still. It
is made to leave by its member id, as it would leave by itself. If it lives it learns so with its next request, like
after a session, and stands by.
"""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.group import LeaveGroupRequest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from prometheus_client import Counter

from schemas.topics import MARKS
from streams.broker.admin import admin_client
from streams.broker.ends import EndOffsets
from streams.broker.kafka import Kafka
from streams.errors import BrokerError, MarginClearingError
from streams.feeds.marks import mark_records
from streams.logs import event
from streams.oracle.faust_app import aiokafka_properties
from streams.settings import Settings

log = logging.getLogger(__name__)

EXPELLED = Counter("margin_oracle_expelled", "Members that were expelled from the oracles' groups because of silence")

HEARTBEATS = 4
SILENT_S_MIN = 1.5
_ANSWER_S = 2.0
_TAIL = 5
"""Records that are looked at for the last frame: a claim is followed by the marker of its transaction."""


class LeaderWatch:
    """Whether whoever leads publishes nothing any more, as the log of marks stands still. Not thread-safe.

    For ``HEARTBEATS`` heartbeats, but at least ``SILENT_S_MIN``, and only after it was seen to grow: a leader that is
    starting, or looks for the log's next broker, has as long as its session and its watchdog give it.
    """

    def __init__(self, kafka: Kafka, client_id: str) -> None:
        self._kafka = kafka
        self._client_id = client_id
        self._silent_s = max(SILENT_S_MIN, HEARTBEATS * kafka.settings.oracle.heartbeat_ms / 1000)
        self._ends: EndOffsets | None = None
        self._asked_at = 0.0
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nothing is known of the log."""
        self._end: int | None = None
        self._grew_at: float | None = None

    def is_silent(self) -> bool:
        """Whether whoever leads has been silent for too long; to be asked often, it hardly ever waits."""
        if self._ends is None:
            self._ends = self._kafka.end_offsets(f"{self._client_id}-watch", {MARKS: 1})
        answer = self._ends.answer() if self._ends.is_asked else None
        is_silent = answer is not None and self._stands_still(answer[MARKS][0])
        if not self._ends.is_asked:
            self._asked_at = self._kafka.runtime.monotonic()
            self._ends.ask()
        return is_silent

    def _stands_still(self, end: int) -> bool:
        """Whether it does, as the log ended at ``end`` when it was asked (below 0: nobody has told)."""
        if end < 0:
            self.begin_anew()
            return False
        if end != self._end:
            self._grew_at = None if self._end is None else self._kafka.runtime.monotonic()
            self._end = end
            return False
        if self._grew_at is None or self._asked_at - self._grew_at < self._silent_s:
            return False
        if self._ends_with_claim(end):
            self._grew_at = None
            return False
        return True

    def _ends_with_claim(self, end: int) -> bool:
        try:
            with self._kafka.log_reader(f"{self._client_id}-last") as reader:
                records = reader.read_range(MARKS, 0, max(0, end - _TAIL), end, timeout_s=_ANSWER_S)
                frames = [mark.frame for mark in mark_records(records) if mark.frame is not None]
        except BrokerError:
            return True  # a claim may be under way
        return not frames or frames[-1].epoch < 0


async def expel_leader(settings: Settings, own_client: str) -> None:
    """Have the member that may publish leave its group, and the one that reads prices for it; not this process.

    Nothing is done where a replica of the marks does not answer: then nobody may get a frame in. What cannot be done is
    logged; it may be tried again.
    """
    leader, prices = settings.oracle.leader_group, settings.oracle.app_id
    try:
        admin = admin_client(settings)  # kept: its requests end with it
        async with _client(settings) as client:
            if away := await _replicas_away(admin, client):
                event(log, logging.WARNING, "silent_leader_kept", reason=f"brokers {away} of the marks do not answer")
                return
            owners = _owners(admin, leader)
            if not owners or own_client in owners.values():
                return
            for group, members in ((leader, owners), (prices, _owners(admin, prices))):
                for member, name in members.items():
                    await _leave(client, group, member)
                    EXPELLED.inc()
                    event(log, logging.WARNING, "silent_leader_expelled", group=group, client=name, member=member)
    except (KafkaError, KafkaException, MarginClearingError, OSError) as error:  # a TimeoutError is one
        event(log, logging.ERROR, "silent_leader_not_expelled", reason=repr(error))


def _owners(admin: AdminClient, group: str) -> Mapping[str, str]:
    """The clients by member id that own partitions; none if the group is not at rest."""
    description = admin.describe_consumer_groups([group], request_timeout=_ANSWER_S)[group]
    members = description.result(timeout=_ANSWER_S).members
    return {member.member_id: member.client_id for member in members if member.assignment.topic_partitions}


async def _replicas_away(admin: AdminClient, client: AIOKafkaClient) -> list[int]:
    """The brokers that must have a frame before it counts, and do not answer."""
    in_sync = admin.list_topics(MARKS, timeout=_ANSWER_S).topics[MARKS].partitions[0].isrs
    return [node for node in in_sync if not await client.ready(node)]


async def _leave(client: AIOKafkaClient, group: str, member: str) -> None:
    node = await client.coordinator_lookup(CoordinationType.GROUP, group)
    await client.ready(node, group=ConnectionGroup.COORDINATION)
    answer = await client.send(node, LeaveGroupRequest(group, member), group=ConnectionGroup.COORDINATION)
    if answer.error_code:
        raise for_code(answer.error_code)(f"{member} of {group}")


@asynccontextmanager
async def _client(settings: Settings) -> AsyncIterator[AIOKafkaClient]:
    client = AIOKafkaClient(
        client_id=f"{settings.oracle.app_id}-{settings.worker_name}-expels",
        request_timeout_ms=round(1000 * _ANSWER_S),
        **aiokafka_properties(settings.kafka),
    )
    try:
        await client.bootstrap()
        yield client
    finally:
        await client.close()
