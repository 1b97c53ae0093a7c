"""Verify: a running deployment counted and compared, from topics to tables, without a word to anybody.

Everything moves while it is looked at, so each comparison is made against a moment that the logs fix: what a topic held
before a journal's end was read must be in the journal, what is in the journal must be in the topic afterwards; the rows
and the money of a shard are those as of its journal's last record; a row in Redis must be one that the changelog held
somewhere between the table's stamp before and after it was read. Logs are streamed; what is kept is one row per account
of one shard, and a few numbers an account. Of accounts that go from shard to shard meanwhile, only what one shard says
is compared.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from schemas.messages import ShardLayout
from schemas.topics import ACCOUNTS, EVENTS, JOURNAL, MARKS
from streams.audit.balance import MoneyCheck
from streams.audit.findings import Findings
from streams.audit.groups import Backlog, Groups, KafkaGroups
from streams.audit.log import CLIENT, KafkaLog
from streams.audit.moved import InFlight, MoveCheck, ShardLook
from streams.audit.numbers import NumberCheck
from streams.audit.progress import Progress, silent
from streams.audit.sent_frames import SentFrames
from streams.audit.shards import ShardCheck
from streams.audit.tables import TableCheck, TableSource
from streams.broker.admin import admin_client, ensure_topics, topic_ids
from streams.broker.kafka import Kafka
from streams.broker.layout import require_layout
from streams.broker.letter_counts import LETTER_TOPICS, count_letters, letter_lines, reason_of
from streams.broker.records import Log, Record
from streams.feeds.gaps import KNOWN
from streams.settings import Settings
from streams.tables.reader import Layout, TableReader

TABLES_TIMEOUT_S = 20.0
"""How long the tables may take, altogether, to be whole and to reach where the changelog stood."""

_TIMEOUT_S = 30.0
_LOOK_AGAIN_S = 0.25


def verify_deployment(settings: Settings, progress: Progress = silent) -> Findings:
    """Verify the deployment that ``settings`` point at.

    Raises:
        BrokerError: Kafka does not answer. TableError: Redis does not answer, or holds no tables.
    """
    admin = admin_client(settings)
    report = ensure_topics(settings, create=False, client_id=CLIENT)
    faults = report.wrong
    if report.layout is None or any("is missing" in fault for fault in faults):
        findings = Findings()
        for fault in faults:
            findings.differ(fault)
        return findings
    cluster = admin.list_topics(timeout=_TIMEOUT_S).cluster_id or ""
    with KafkaLog(Kafka(settings)) as log, TableReader(settings.redis) as tables:
        faults += layout_faults(tables.read_layout, lambda: require_layout(log), cluster)
        ids = topic_ids(settings, KNOWN)
        return verify(log, tables, KafkaGroups(settings), faults, progress, topic_ids=ids)


def layout_faults(
    in_redis: Callable[[], Layout], in_kafka: Callable[[], ShardLayout], cluster_id: str, patience_s: float = 5.0
) -> list[str]:
    """Whether Redis says as Kafka does where accounts are, within ``patience_s`` of a change.

    Raises:
        BrokerError: Kafka does not answer. TableError: Redis does not answer, or holds no tables.
    """
    while True:
        layout = in_kafka()
        wanted = Layout(layout.spread.shards, layout.spread.target, layout.shards_used, ACCOUNTS, cluster_id)
        if (said := in_redis()) == wanted:
            return []
        if patience_s <= 0:
            return [f"Redis says where accounts are by {said}; it must be {wanted}"]
        time.sleep(_LOOK_AGAIN_S)
        patience_s -= _LOOK_AGAIN_S


def verify(
    log: Log,
    tables: TableSource,
    groups: Groups,
    topic_faults: Sequence[str],
    progress: Progress = silent,
    tables_timeout_s: float = TABLES_TIMEOUT_S,
    topic_ids: Mapping[str, str] | None = None,
) -> Findings:
    """Everything that must hold of a deployment at any time; ``topic_faults`` are what its topics lack.

    ``topic_ids`` are those of the topics of ``streams.feeds.gaps.KNOWN``; without them nobody looks whether one was
    made anew.

    Raises:
        BrokerError: Kafka does not answer. AuditError: a topic is missing.
    """
    return _Verification(log, tables, groups, progress, tables_timeout_s, topic_ids or {}).run(topic_faults)


class _Verification:
    """The order of looking, in which every comparison has its moment."""

    def __init__(
        self,
        log: Log,
        tables: TableSource,
        groups: Groups,
        progress: Progress,
        tables_timeout_s: float,
        topic_ids: Mapping[str, str],
    ) -> None:
        self._log = log
        self._findings = findings = Findings()
        self._backlog = Backlog(log, groups)
        self._numbers = NumberCheck(log, findings)
        self._money = MoneyCheck(log, findings, progress)
        self._layout = layout = require_layout(log)
        self._frames = SentFrames(log)
        _look_at_unused(log, layout, findings)
        in_redis = TableCheck(tables, findings, tables_timeout_s)
        self._shards = [
            ShardCheck(shard, layout, log, groups, in_redis, self._numbers, findings, progress, topic_ids)
            for shard in range(layout.shards_used)
        ]

    def run(self, topic_faults: Sequence[str]) -> Findings:
        for fault in topic_faults:
            self._findings.differ(fault)
        self._numbers.read_before()
        resting = self._backlog.to_route() == 0
        self._money.read_assets()
        for shard in self._shards:
            self._look_at_shard(shard)
        moved = self._look_at_moves()
        self._numbers.compare(moved_meanwhile=moved.moved_meanwhile)
        _look_at_letters(self._log, self._findings)
        resting = resting and self._backlog.to_route() == 0 and not any(shard.lag for shard in self._shards)
        in_flight = (row for rows in moved.rows.values() for row in rows.values())
        self._money.compare_together(len(self._shards), in_flight, moved_meanwhile=moved.moved_meanwhile)
        self._money.compare_with_exchange(len(self._shards), resting=resting)
        self._tell()
        return self._findings

    def _look_at_shard(self, shard: ShardCheck) -> None:
        rows = shard.run()
        if shard.is_new or shard.last is not None:
            self._money.add_shard(shard.shard, shard.last, rows, knows_pools=shard.knows_pools)

    def _look_at_moves(self) -> InFlight:
        """Of accounts that go from shard to shard; those that are in none but by what it keeps are counted there."""
        if not any(shard.last is not None and shard.last.moves for shard in self._shards):
            return InFlight({})
        self._frames.read(len(self._shards))  # what the shards had sent by then is there
        looks = {shard.shard: ShardLook(shard.last, shard.kept) for shard in self._shards}
        in_flight = MoveCheck(self._log, self._layout, looks, self._frames, self._findings).run()
        for shard in self._shards:
            if (rows := in_flight.rows.get(shard.shard)) is not None:
                shard.read_row_numbers(rows)
                self._findings.counts["accounts"] += len(rows)
        return in_flight

    def _tell(self) -> None:
        behind = [f"shard {shard} by {state.lag:,}" for shard, state in enumerate(self._shards) if state.lag]
        self._findings.facts.append(
            "the engines are at the end of the events" if not behind else "event frames to apply: " + ", ".join(behind)
        )
        routed = self._backlog.to_route()
        self._findings.facts.append(
            "the router is at the end of the exchange's topics" if not routed else f"records to route: {routed:,}"
        )
        marks_end = self._log.watermarks(MARKS, 0)[1]
        walked = [state.last.marks.next for state in self._shards if state.last is not None]
        if walked:
            self._findings.facts.append(
                f"marks end at {marks_end:,}; the shards have journaled up to {min(walked):,} to {max(walked):,}"
            )


def _look_at_unused(log: Log, layout: ShardLayout, findings: Findings) -> None:
    """Partitions beyond those of the shards are nobody's: nothing may be in them."""
    shards = layout.shards_used
    for topic in (EVENTS, ACCOUNTS, JOURNAL):
        for partition in range(shards, log.partitions(topic)):
            # There may be more shards since the layout was read.
            if log.watermarks(topic, partition)[1] and require_layout(log).shards_used <= partition:
                findings.differ(f"accounts are spread over {shards} shards, and it holds records", topic, partition)


def _look_at_letters(log: Log, findings: Findings) -> None:
    """What lies in the dead letters, and those that concern somebody who is not known: no account stands for them."""

    def no_frame(letter: Record) -> None:
        findings.differ(
            f"a record of {EVENTS} that is no frame ({reason_of(letter)}): what it says is in no account",
            letter.topic(),
            letter.partition(),
            letter.offset(),
        )

    for topic in LETTER_TOPICS:
        counts = count_letters(log, topic, on_untold=no_frame if topic == EVENTS else lambda _: None)
        findings.letters.append(counts)
        if counts.untold is not None and topic != EVENTS:
            untold = f"{counts.untold.count:,} records of {counts.letters_topic}"
            findings.facts.append(f"{untold} concern somebody who could not be read from them")
        if counts.problem is not None:
            findings.differ(f"its letters could not be looked at to the end: {counts.problem}", counts.letters_topic)
    findings.facts += letter_lines(findings.letters)
