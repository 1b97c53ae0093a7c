"""Verify: a running deployment counted and compared, from topics to tables, without a word to anybody.

Everything moves while it is looked at, so each comparison is made against a moment that the logs fix: what a topic held
before a journal's end was read must be in the journal, what is in the journal must be in the topic afterwards; the rows
and the money of a shard are those as of its journal's last record; a row in Redis must be one that the changelog held
somewhere between the table's stamp before and after it was read. Logs are streamed; what is kept is one row an account
of one shard, and a few numbers an account.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.codec import DecodeError, Decoder
from schemas.messages import AccountRow, JournalRecord
from schemas.partitioning import partition_of
from schemas.topics import (
    ACCOUNTS,
    ALERTS,
    COMMANDS,
    EVENTS,
    JOURNAL,
    MARKS,
    PARAMETERS,
    REPORTS,
    TRADES,
    TRANSFERS,
    dead_letter_topic,
)
from schemas.types import shard_account
from streams.audit import money
from streams.audit.findings import Findings
from streams.audit.log import CLIENT, KafkaLog
from streams.audit.outputs import digest_of, row_of
from streams.audit.replay import Progress, silent
from streams.broker import config
from streams.broker.admin import admin_client, ensure_topics, partition_counts
from streams.broker.client_log import in_words
from streams.broker.dead_letters import is_untold
from streams.broker.records import Log, Record
from streams.clearing.unreached import unreached_of
from streams.errors import AuditError, BrokerError, TableError
from streams.feeds.journal import JournalEntry, read_journal
from streams.feeds.unreached import unreached_sentences
from streams.margin.fixed_point import format_decimal
from streams.settings import Settings
from streams.tables.reader import Layout, TableMeta, TableReader

TABLES_TIMEOUT_S = 20.0
"""How long the tables may take, altogether, to be whole and to reach where the changelog stood."""

_LOOK_AGAIN_S = 0.25
_TIMEOUT_S = 30.0
_LAG_COUNTED_MAX = 10_000
_ROW = Decoder[AccountRow](AccountRow)

Numbers = dict[str, tuple[int, int]]
"""First and last number of an account's commands or alerts."""


class Tables(Protocol):
    """The tables in Redis (:class:`streams.tables.reader.TableReader`)."""

    def table_meta(self, shard: int) -> TableMeta | None: ...
    def accounts(self, shard: int) -> Iterator[tuple[str, bytes]]: ...


class KafkaGroups:
    """The committed offsets in Kafka."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def router(self, topic: str) -> list[int]:
        """See :class:`Groups`.

        Raises:
            BrokerError: Kafka does not answer.
        """
        return self._committed(self._settings.router.group_id, topic)

    def engine(self) -> list[int]:
        """See :class:`Groups`.

        Raises:
            BrokerError: Kafka does not answer.
        """
        return self._committed(self._settings.engine.group_id, EVENTS)

    def _committed(self, group: str, topic: str) -> list[int]:
        kafka = self._settings.kafka
        consumer = config.created(Consumer, config.common(kafka, CLIENT) | {"group.id": group})
        try:
            count = len(consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic].partitions)
            places = [TopicPartition(topic, partition) for partition in range(count)]
            return [place.offset for place in consumer.committed(places, timeout=_TIMEOUT_S)]
        except KafkaException as error:
            raise BrokerError(
                f"group {group}: its committed offsets cannot be read: {in_words(error.args[0])}"
            ) from error
        finally:
            consumer.close()


class Groups(Protocol):
    """The committed offsets of the pipeline's consumer groups, a negative one where there is none."""

    def router(self, topic: str) -> list[int]: ...
    def engine(self) -> list[int]: ...


@dataclass(slots=True)
class _Numbered:
    """A topic of numbered records: how far each partition was read, and the numbers of each account."""

    topic: str
    infix: str
    next: list[int] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    numbers: Numbers = field(default_factory=dict)
    before: Numbers = field(default_factory=dict)
    """The numbers when the topic was first read: all of them are older than the journal's end."""


@dataclass(slots=True)
class _Shard:
    """What is remembered of a shard: its journal's last record, and whether everything was at rest."""

    last: JournalRecord | None = None
    journal_next: int = 0
    claims: set[int] = field(default_factory=set)
    lag: int = 0


def verify_deployment(settings: Settings, progress: Progress = silent) -> Findings:
    """Verify the deployment that ``settings`` point at.

    Raises:
        BrokerError: Kafka does not answer. TableError: Redis does not answer, or holds no tables.
    """
    admin = admin_client(settings)
    shards = partition_counts(admin, _TIMEOUT_S).get(EVENTS, settings.topics.shards)
    topics = msgspec.structs.replace(settings.topics, shards=shards)
    faults = ensure_topics(msgspec.structs.replace(settings, topics=topics), create=False).wrong
    if any("is missing" in fault for fault in faults):
        findings = Findings()
        for fault in faults:
            findings.differ(fault)
        return findings
    cluster = admin.list_topics(timeout=_TIMEOUT_S).cluster_id or ""
    with KafkaLog(settings.kafka) as log, TableReader(settings.redis) as tables:
        layout = tables.read_layout()
        if layout != (wanted := Layout(shards, ACCOUNTS, cluster)):
            faults.append(f"Redis says where accounts are by {layout}; it must be {wanted}")
        return verify(log, tables, KafkaGroups(settings), faults, progress)


def verify(
    log: Log,
    tables: Tables,
    groups: Groups,
    topic_faults: Sequence[str],
    progress: Progress = silent,
    tables_timeout_s: float = TABLES_TIMEOUT_S,
) -> Findings:
    """Everything that must hold of a deployment at any time; ``topic_faults`` are what its topics lack.

    Raises:
        BrokerError: Kafka does not answer. AuditError: a topic is missing.
    """
    return _Verifying(log, tables, groups, progress, tables_timeout_s).run(topic_faults)


class _Verifying:
    def __init__(self, log: Log, tables: Tables, groups: Groups, progress: Progress, tables_timeout_s: float) -> None:
        self._log, self._tables, self._groups, self._progress = log, tables, groups, progress
        self._patience_s = tables_timeout_s
        self._findings = Findings()
        self._count = log.partitions(EVENTS)
        self._shards = [_Shard() for _ in range(self._count)]
        self._issued: Numbers = {}
        """The commands that the journals name."""
        self._unnamed = 0
        """The commands that they count and do not name."""
        self._commands = _Numbered(COMMANDS, ":")
        self._alerts = _Numbered(ALERTS, ":alert:")
        self._rows_said: tuple[dict[str, int], dict[str, int]] = ({}, {})
        """The last command and the last alert of each account by its row."""
        self._held: list[money.Sums] = []
        self._frames = money.Flows()

    def run(self, topic_faults: Sequence[str]) -> Findings:
        for fault in topic_faults:
            self._findings.differ(fault)
        for numbered in (self._commands, self._alerts):
            self._read_numbers(numbered)
            numbered.before = dict(numbered.numbers)
        resting = self._router_lag() == 0
        assets = self._assets()
        for shard in range(self._count):
            self._verify_shard(shard, assets)
        for numbered in (self._commands, self._alerts):
            self._read_numbers(numbered)
        self._compare_numbers()
        self._look_at_letters()
        if assets is not None:
            self._compare_with_exchange(assets, resting=resting)
        self._tell()
        return self._findings

    # --- numbers -----------------------------------------------------------------------------------------------------

    def _read_numbers(self, numbered: _Numbered) -> None:
        """Take in a topic's new records: each account's numbers go up by one, from 1."""
        topic = numbered.topic
        count = self._log.partitions(topic)
        if not numbered.next:
            lows = [self._log.watermarks(topic, partition)[0] for partition in range(count)]
            numbered.next, numbered.whole = lows, [not low for low in lows]
        for partition in range(count):
            end = self._log.watermarks(topic, partition)[1]
            for message in self._log.read_range(topic, partition, numbered.next[partition], end):
                self._take_in_number(numbered, message, partition, count)
            numbered.next[partition] = max(end, numbered.next[partition])

    def _take_in_number(self, numbered: _Numbered, message: Record, partition: int, count: int) -> None:
        topic, offset = numbered.topic, message.offset()
        account, name = message.key_shown, message.header("ce_id")
        text = name.removeprefix(account + numbered.infix)
        if text == name or not text.isdigit():
            self._findings.differ(f"the ce_id {name!r} is not the account's {account!r}", topic, partition, offset)
            return
        self._findings.counts[f"records of {topic}"] += 1
        if partition_of(account.encode(), count) != partition:
            self._findings.differ(f"{name} is in a partition that its key does not give", topic, partition, offset)
        if name != _name_in(message.value()):
            self._findings.differ(f"the value is not that of {name}", topic, partition, offset)
        fault = _take_number(numbered.numbers, account, int(text), whole=numbered.whole[partition])
        if fault:
            self._findings.differ(f"{name}: {fault}", topic, partition, offset)

    def _compare_numbers(self) -> None:
        """What the journals and rows say was issued, against what the topics hold."""
        self._compare_last("the journal names command", ":", self._commands, _lasts(self._issued), self._unnamed)
        self._compare_last("the account's row counts command", ":", self._commands, self._rows_said[0])
        self._compare_last("the account's row counts alert", ":alert:", self._alerts, self._rows_said[1])

    def _compare_last(self, who: str, infix: str, numbered: _Numbered, said: dict[str, int], room: int = 0) -> None:
        """``room``: so many records may be in the topic that ``who`` counts and does not name."""
        whole = all(numbered.whole)
        for account, last in said.items():
            _, there = numbered.numbers.get(account, (0, 0))
            if there < last and (there or whole):
                self._findings.differ(f"{who} {account}{infix}{last}, the topic ends at {there}", numbered.topic)
        complete = all(not self._log.watermarks(JOURNAL, shard)[0] for shard in range(self._count))
        for account, (_, last) in numbered.before.items():
            if last > said.get(account, 0) and (account in said or complete):
                room -= last - said.get(account, 0)
                if room >= 0:
                    continue
                self._findings.differ(
                    f"{account}{infix}{last} is in the topic; {who} up to {said.get(account, 0)}", numbered.topic
                )

    def _look_at_letters(self) -> None:
        """Records in the dead letters that concern somebody who is not known: no account stands for them."""
        for topic in (EVENTS, TRADES, TRANSFERS, REPORTS):
            letters = dead_letter_topic(topic)
            low, end = self._log.watermarks(letters, 0)
            untold = 0
            for message in self._log.read_range(letters, 0, low, end):
                if is_untold(topic, message.headers()):
                    untold += 1
                    if topic == EVENTS:
                        self._findings.differ(
                            f"a record of {EVENTS} that is no frame ({message.header('dlq.reason')}): what it says is "
                            "in no account",
                            letters,
                            0,
                            message.offset(),
                        )
            if untold and topic != EVENTS:
                self._findings.facts.append(
                    f"{untold:,} records of {letters} concern somebody who could not be read from them"
                )

    # --- a shard -----------------------------------------------------------------------------------------------------

    def _verify_shard(self, shard: int, assets: dict[str, str] | None) -> None:
        state = self._shards[shard]
        in_redis = self._read_table(shard)
        self._read_journal(shard, state)
        rows, row_end = self._read_rows(shard, state, in_redis)
        if in_redis is not None:
            self._await_table(shard, row_end, state)
        self._compare_offsets(shard, state)
        self._take_row_numbers(rows, shard)
        self._count_unreached(rows, shard, state)
        if state.last is not None and state.last.alert_sequence:
            self._rows_said[1][shard_account(shard)] = state.last.alert_sequence
        if assets is not None and state.last is not None:
            self._compare_money(shard, state.last, rows, assets)

    def _read_journal(self, shard: int, state: _Shard) -> None:
        low, end = self._log.watermarks(JOURNAL, shard)
        state.journal_next = max(low, state.journal_next)
        previous = -1
        for entry in read_journal(self._log, shard, state.journal_next, end):
            record = entry.record
            if record is None:
                self._findings.differ(f"no journal record: {entry.reason}", JOURNAL, shard, entry.offset)
                continue
            for fault in _journal_faults(entry, record, state, previous, cut=low > 0):
                self._findings.differ(f"sequence {record.sequence}: {fault}", JOURNAL, shard, entry.offset)
            self._unnamed += max(0, record.command_count - len(record.commands))
            for command in record.commands:
                account, _, number = command.rpartition(":")
                fault = _take_number(self._issued, account, int(number or 0), whole=low == 0)
                if fault and not self._unnamed:
                    self._findings.differ(f"command {command}: {fault}", JOURNAL, shard, entry.offset)
            if record.kind == "claim":
                state.claims.add(entry.offset)
            state.last, previous = record, entry.offset
            self._findings.counts["journal records"] += 1
            if not record.sequence % 1024:
                self._progress(f"journal of shard {shard}", entry.offset - low, end - low)
        state.journal_next = end
        if state.last is None:
            self._findings.differ("the journal is empty: no engine has ever taken the shard", JOURNAL, shard)

    def _read_rows(self, shard: int, state: _Shard, table: "_Table | None") -> tuple[dict[str, bytes], int]:
        """The accounts' rows as of the journal's last record, and the offset after the changelog's last row.

        The table is compared on the way.
        """
        rows: dict[str, bytes] = {}
        low, end = self._log.watermarks(ACCOUNTS, shard)
        last_sequence, row_end = -1 if state.last is None else state.last.sequence, 0
        for message in self._log.read_range(ACCOUNTS, shard, low, end):
            row, offset = row_of(message), message.offset()
            if row is None:
                self._findings.differ("no ce_id that names the row's commit", ACCOUNTS, shard, offset)
                continue
            row_end = offset + 1
            if table is not None:
                table.take_in(row.account, row.value, offset)
            if row.sequence > last_sequence:
                continue
            if row.value is None:
                rows.pop(row.account, None)
            else:
                rows[row.account] = row.value
            if not offset % 4096:
                self._progress(f"changelog of shard {shard}", offset - low, end - low)
        self._findings.counts["accounts"] += len(rows)
        if table is not None:
            for account in table.differing():
                self._findings.differ(
                    f"account {account} in Redis is not what the changelog holds around offset {table.before.stamp}",
                    ACCOUNTS,
                    shard,
                )
        return rows, row_end

    def _take_row_numbers(self, rows: dict[str, bytes], shard: int) -> None:
        for account, data in list(rows.items()):
            try:
                row = _ROW(data)
            except DecodeError as error:
                self._findings.differ(f"account {account}: no row: {error}", ACCOUNTS, shard)
                del rows[account]
                continue
            if row.unread is not None:
                self._findings.differ(
                    f"{row.suspended_reason}: it is suspended, the row is kept in the one that stands there, and what "
                    "it holds is not known; put parameters in force that it can be held in, or run the version that "
                    "wrote it",
                    ACCOUNTS,
                    shard,
                )
            commands, alerts = self._rows_said
            if row.liquidation_sequence:
                commands[account] = row.liquidation_sequence
            if row.alert_sequence:
                alerts[account] = row.alert_sequence

    def _count_unreached(self, rows: dict[str, bytes], shard: int, state: _Shard) -> None:
        """Say how much of the shard liquidation does not reach; the journal must count the same."""
        found: Counter[str] = Counter()
        for data in rows.values():
            found.update(unreached_of(_ROW(data)))
        for sentence in unreached_sentences(found, {}):
            self._findings.unreached.append(f"shard {shard}: {sentence}")
        if state.last is not None and dict(+found) != state.last.unreached:
            self._findings.differ(
                f"sequence {state.last.sequence} counts {state.last.unreached} out of reach, the rows {dict(+found)}",
                JOURNAL,
                shard,
            )

    # --- Redis -------------------------------------------------------------------------------------------------------

    def _read_table(self, shard: int) -> "_Table | None":
        """The rows in Redis between two looks at where the table stands."""
        while True:
            problem = "it is being built"
            try:
                before = self._tables.table_meta(shard)
                if before is None:
                    problem = "there is none"
                elif not before.building:
                    rows = {account: digest_of(row) for account, row in self._tables.accounts(shard)}
                    after = self._tables.table_meta(shard)
                    if after is not None and not after.building and after.stamp >= before.stamp:
                        self._findings.counts["rows in Redis"] += len(rows)
                        return _Table(before, after, rows)
            except TableError as error:
                problem = str(error)
            if not self._wait():
                self._findings.differ(f"the table of shard {shard} in Redis cannot be compared: {problem}")
                return None

    def _wait(self) -> bool:
        """Wait a little for the tables; False once that has been done for as long as they may take altogether."""
        if self._patience_s <= 0:
            return False
        time.sleep(_LOOK_AGAIN_S)
        self._patience_s -= _LOOK_AGAIN_S
        return True

    def _await_table(self, shard: int, row_end: int, state: _Shard) -> None:
        """The table must come to reach what the changelog held, and belong to the shard's last claim."""
        while True:
            stand = self._tables.table_meta(shard)
            token_known = stand is not None and (not state.claims or stand.token >= max(state.claims))
            if stand is not None and stand.stamp >= row_end and token_known:
                return
            if not self._wait():
                break
        if stand is None or stand.stamp < row_end:
            reached = "is gone" if stand is None else f"stands at {stand.stamp}"
            self._findings.differ(
                f"the table of shard {shard} in Redis {reached}; the changelog has had rows up to {row_end} since "
                "it was looked at",
                ACCOUNTS,
                shard,
            )
        elif not token_known:
            self._findings.differ(
                f"the table of shard {shard} in Redis belongs to claim {stand.token}, the shard to {max(state.claims)}",
                JOURNAL,
                shard,
            )

    # --- offsets -----------------------------------------------------------------------------------------------------

    def _compare_offsets(self, shard: int, state: _Shard) -> None:
        """The group's committed offset lies between the journal's of before and after it was read."""
        if state.last is None:
            return
        first = state.last.events.next
        committed = self._groups.engine()[shard]
        latest = state.last
        for entry in read_journal(self._log, shard, state.journal_next, self._log.watermarks(JOURNAL, shard)[1]):
            latest = entry.record or latest
        if not first <= committed <= latest.events.next:
            self._findings.differ(
                f"the engines' committed offset is {committed}, the journal's {_between(first, latest.events.next)}",
                EVENTS,
                shard,
            )
        state.lag = self._records_after(EVENTS, shard, latest.events.next)

    def _router_lag(self) -> int:
        """How many of the exchange's records the router has not committed yet."""
        lag = 0
        for topic in (TRADES, TRANSFERS, REPORTS):
            for partition, committed in enumerate(self._groups.router(topic)):
                lag += self._records_after(topic, partition, max(committed, 0))
        return lag

    def _records_after(self, topic: str, partition: int, first: int) -> int:
        """The records from offset ``first`` on; beyond some thousands the offsets, markers included, are counted."""
        low, end = self._log.watermarks(topic, partition)
        if end - max(first, low) > _LAG_COUNTED_MAX:
            return end - max(first, low)
        return sum(1 for _ in self._log.read_range(topic, partition, first, end))

    # --- money -------------------------------------------------------------------------------------------------------

    def _assets(self) -> dict[str, str] | None:
        try:
            return money.settle_assets(self._log)
        except AuditError as error:
            self._findings.note(str(error))
            return None

    def _compare_money(self, shard: int, last: JournalRecord, rows: dict[str, bytes], assets: dict[str, str]) -> None:
        if self._log.watermarks(EVENTS, shard)[0]:
            self._findings.note(f"{EVENTS}[{shard}] does not begin at offset 0 any more: its money is not added up")
            return
        if self._log.watermarks(dead_letter_topic(EVENTS), 0)[0]:
            self._findings.note(
                f"{dead_letter_topic(EVENTS)} has been cut, so what could not be applied is not known any more: the "
                f"money of shard {shard} is not added up"
            )
            return
        self._progress(f"money of shard {shard}", 0, 0)
        try:
            held, _ = money.held_by(rows.values(), assets)
        except KeyError as error:
            self._findings.note(f"{PARAMETERS} names no instrument {error}: money is not added up")
            return
        frames = money.flows_of_frames(self._log, shard, last.events.next, assets)
        applied = money.Flows()
        applied.add(frames)
        applied.add(money.flows_unapplied(self._log, shard, last.events.next, assets), -1)
        applied.add(money.flows_held_back(rows.values(), assets), -1)
        money.compare(f"the accounts of shard {shard} hold", applied.held(), held, self._findings)
        self._held.append(held)
        self._frames.add(frames)

    def _compare_with_exchange(self, assets: dict[str, str], *, resting: bool) -> None:
        """At rest, the frames of all shards are the exchange's records, and every trade has both its sides."""
        if len(self._held) < self._count:
            return
        if not (resting and self._router_lag() == 0 and not any(state.lag for state in self._shards)):
            self._findings.note(
                "the pipeline is not at rest, so trades may have only one side yet: the money of all shards together "
                "is not compared with the exchange's topics"
            )
            return
        inputs = [(topic, p) for topic in (TRADES, TRANSFERS) for p in range(self._log.partitions(topic))]
        if any(self._log.watermarks(*place)[0] for place in inputs):
            self._findings.note(f"{TRADES} or {TRANSFERS} have been cut: money is not compared with them")
            return
        self._progress("money of the exchange", 0, 0)
        exchange = money.flows_of_exchange(self._log, assets)
        nothing = money.Flows()
        once = money.Flows()
        once.add(self._frames)
        once.add(money.Flows(transfers=self._frames.doubtful), -1)
        money.compare("transfers that came to the shards", exchange.transfers, once.transfers, self._findings)
        money.compare("fees that came to the shards", exchange.fees, self._frames.fees, self._findings)
        money.compare("fills bring and cost together", nothing.cash, self._frames.cash, self._findings)
        for symbol, quantity in sorted(self._frames.quantity.items()):
            if quantity:
                self._findings.differ(f"{symbol}: bought and sold differ by {format_decimal(quantity)}", EVENTS)
        held = money.Flows()
        for sums in self._held:
            held.add(money.Flows(transfers=sums))
        for asset, amount in sorted(held.transfers.items()):
            self._findings.facts.append(
                f"{format_decimal(amount)} {asset} in all accounts: transfers "
                f"{format_decimal(exchange.transfers[asset])} less fees {format_decimal(exchange.fees[asset])}"
            )

    # --- how things stand --------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        behind = [f"shard {shard} by {state.lag:,}" for shard, state in enumerate(self._shards) if state.lag]
        self._findings.facts.append(
            "the engines are at the end of the events" if not behind else "event frames to apply: " + ", ".join(behind)
        )
        routed = self._router_lag()
        self._findings.facts.append(
            "the router is at the end of the exchange's topics" if not routed else f"records to route: {routed:,}"
        )
        marks_end = self._log.watermarks(MARKS, 0)[1]
        walked = [state.last.marks.next for state in self._shards if state.last is not None]
        if walked:
            self._findings.facts.append(
                f"marks end at {marks_end:,}; the shards have journaled up to {min(walked):,} to {max(walked):,}"
            )


@dataclass(slots=True)
class _Table:
    """Rows in Redis as digests, and what the changelog held between two looks at where the table stood."""

    before: TableMeta
    after: TableMeta
    rows: dict[str, bytes]
    _settled: dict[str, bytes] = field(default_factory=dict)
    _moving: dict[str, list[bytes]] = field(default_factory=dict)

    def take_in(self, account: str, value: bytes | None, offset: int) -> None:
        """Take in a row of the changelog."""
        digest = b"" if value is None else digest_of(value)
        if offset < self.before.stamp:
            self._settled[account] = digest
        elif offset < self.after.reach:
            self._moving.setdefault(account, []).append(digest)

    def differing(self) -> Iterator[str]:
        """The accounts whose row is none of those that it may have been."""
        for account in sorted({*self.rows, *self._settled, *self._moving}):
            allowed = {self._settled.get(account, b""), *self._moving.get(account, ())}
            if self.rows.get(account, b"") not in allowed:
                yield account


def _journal_faults(
    entry: JournalEntry, record: JournalRecord, state: _Shard, previous: int, *, cut: bool
) -> Iterator[str]:
    """What a record says that does not follow from the one before it."""
    last = state.last
    if last is None:
        if not cut and (record.sequence, record.kind) != (1, "claim"):
            yield "the journal does not begin with the shard's first claim, though nothing of it is cut off"
    else:
        if record.sequence != last.sequence + 1:
            yield f"it follows sequence {last.sequence}"
        if record.previous != previous:
            yield f"it names {record.previous} as the offset of the record before, which stands at {previous}"
        for name in ("events", "marks", "parameters"):
            found, before = getattr(record, name), getattr(last, name)
            if found.first != before.next:
                yield f"its {name} begin at {found.first}, those of the record before end at {before.next}"
    for name in ("events", "marks", "parameters"):
        found = getattr(record, name)
        if found.next < found.first or (record.kind == "claim" and found.next != found.first):
            yield f"its {name} go from {found.first} to {found.next}"
    if record.kind == "claim" and record.claim != -1:
        yield f"a claim that names claim {record.claim}"
    if record.kind == "commit" and state.claims and record.claim != max(state.claims):
        yield f"written under claim {record.claim}, the shard's last is {max(state.claims)}"


def _take_number(numbers: Numbers, account: str, number: int, *, whole: bool) -> str:
    """Take in the next number of an account; what is wrong with it, if anything."""
    known = numbers.get(account)
    if known is None:
        numbers[account] = (number, number)
        return f"the first of its account, and not number 1: {number - 1} are missing" if whole and number != 1 else ""
    first, last = known
    numbers[account] = (first, max(number, last))
    if number <= last:
        return f"a repeat, or out of order: it comes after number {last}"
    return "" if number == last + 1 else f"numbers {last + 1} to {number - 1} are missing before it"


class _Names(msgspec.Struct):
    command_id: str = ""
    alert_id: str = ""


_NAMES = Decoder[_Names](_Names)


def _name_in(data: bytes | None) -> str:
    """The id of the command or alert in ``data``, empty if there is none."""
    try:
        names = _NAMES(data)
    except DecodeError:
        return ""
    return names.command_id or names.alert_id


def _lasts(numbers: Numbers) -> dict[str, int]:
    return {account: last for account, (_, last) in numbers.items()}


def _between(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"
