"""An oracle that leads and says nothing is expelled from its groups, so that nobody waits until its session is over.

A group keeps the place of a process that died for as long as a session. But whoever leads publishes a frame with every
heartbeat: one that has published none for several, while the broker of the marks answers, is dead or stands still. It
is made to leave by its member id, as it would leave by itself. If it lives it learns so with its next request, like
after a session, and stands by.
"""

import logging
from collections.abc import Mapping

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest
from confluent_kafka import KafkaException
from prometheus_client import Counter

from schemas.topics import MARKS
from streams.broker.admin import admin_client
from streams.broker.ends import EndOffsets
from streams.broker.kafka import Kafka
from streams.errors import BrokerError
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
    """Whether the log of marks stands still though its broker answers. Not thread-safe.

    For ``HEARTBEATS`` heartbeats, but at least ``SILENT_S_MIN``. Whoever has claimed the leadership and published
    nothing yet is starting: it has a session's time. Where nobody has told the end of the log for a while, a leader
    that lives must find the log's next broker as well: it has half a session's.
    """

    def __init__(self, kafka: Kafka, client_id: str) -> None:
        self._kafka = kafka
        self._client_id = client_id
        settings = kafka.settings
        self._silent_s = max(SILENT_S_MIN, HEARTBEATS * settings.oracle.heartbeat_ms / 1000)
        self._starts_s = settings.kafka.session_timeout_ms / 1000
        self._ends: EndOffsets | None = None
        self._asked_at = 0.0
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nothing is known of the log."""
        self._end: int | None = None
        self._since = 0.0
        self._patience_s = self._silent_s

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
            self._end, self._patience_s = None, max(self._patience_s, self._starts_s / 2)
            return False
        if end != self._end:
            if self._end is not None:
                self._patience_s = self._silent_s
            self._end, self._since = end, self._kafka.runtime.monotonic()
            return False
        silent_s = self._asked_at - self._since
        if silent_s < self._patience_s:
            return False
        if self._patience_s < self._starts_s and self._ends_with_claim(end):
            self._patience_s = self._starts_s
        return silent_s >= self._patience_s

    def _ends_with_claim(self, end: int) -> bool:
        try:
            with self._kafka.log_reader(f"{self._client_id}-last") as reader:
                records = reader.read_range(MARKS, 0, max(0, end - _TAIL), end, timeout_s=_ANSWER_S)
                frames = [mark.frame for mark in mark_records(records) if mark.frame is not None]
        except BrokerError:
            return True  # a claim may be under way
        return bool(frames) and frames[-1].epoch < 0


async def expel_owners(settings: Settings, groups: tuple[str, ...]) -> None:
    """Have whoever owns partitions in ``groups`` leave them. What cannot be done is logged: it may be tried again."""
    for group in groups:
        for member, client in _owners(settings, group).items():
            reason = await _leave(settings, group, member)
            EXPELLED.inc(not reason)
            level, outcome = (logging.ERROR, reason) if reason else (logging.WARNING, "it has left")
            event(log, level, "silent_leader_expelled", group=group, client=client, member=member, outcome=outcome)


def _owners(settings: Settings, group: str) -> Mapping[str, str]:
    """The clients by member id that own partitions; none if the group is not at rest."""
    admin = admin_client(settings)  # kept: its requests end with it
    try:
        description = admin.describe_consumer_groups([group], request_timeout=_ANSWER_S)[group]
        members = description.result(timeout=_ANSWER_S).members
    except (KafkaException, TimeoutError):
        return {}
    return {member.member_id: member.client_id for member in members if member.assignment.topic_partitions}


async def _leave(settings: Settings, group: str, member: str) -> str:
    """Have ``member`` leave; why it does not, or nothing."""
    client = AIOKafkaClient(
        client_id=f"{settings.oracle.app_id}-{settings.worker_name}-expels",
        request_timeout_ms=round(1000 * _ANSWER_S),
        **aiokafka_properties(settings.kafka),
    )
    try:
        await client.bootstrap()
        node = await client.coordinator_lookup(CoordinationType.GROUP, group)
        if not await client.ready(node, group=ConnectionGroup.COORDINATION):
            return f"broker {node}, its coordinator, cannot be reached"
        answer = await client.send(node, LeaveGroupRequest(group, member), group=ConnectionGroup.COORDINATION)
    except (KafkaError, OSError) as error:
        return repr(error)
    finally:
        await client.close()
    return f"error {answer.error_code}" if answer.error_code else ""
