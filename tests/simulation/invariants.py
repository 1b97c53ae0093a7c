"""What must hold whatever goes wrong, checked at every transaction that commits and at every write to Redis.

The checks know what the inputs mean, what has been committed and how Kafka numbers it; they do not know who did it, how
often it was tried, or what failed meanwhile.
"""

# ruff: noqa: B023 - what an invariant says is put into words at once or never

import copy
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from itertools import zip_longest
from operator import itemgetter
from typing import Any

import msgspec

from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import (
    AccountRow,
    Alert,
    Batch,
    EventFrame,
    GroupRow,
    JournalRecord,
    LiquidationCommand,
    RouterProgress,
    ShardLayout,
    Spread,
)
from schemas.parameters import PolicyParameters
from schemas.partitioning import moves_at
from schemas.topics import (
    ACCOUNTS,
    ALERTS,
    COMMANDS,
    EVENTS,
    JOURNAL,
    LAYOUT,
    MARKS,
    PARAMETERS,
    PROGRESS,
    REPORTS,
    ROUTER,
    TRADES,
    TRANSFERS,
    dead_letter_topic,
)
from schemas.types import RESERVED_ACCOUNTS, shard_account
from streams.clearing.account import WITHOUT_ORDERS
from streams.clearing.relocation import rows_in
from streams.clearing.shard import Output, Shard
from streams.errors import InputError
from streams.feeds.marks import first_needed
from streams.feeds.moves import Moves
from streams.feeds.sources import Sources
from streams.margin.group import Group, Position
from streams.margin.health import evaluate
from streams.margin.parameters import RiskParameters
from streams.memory.log import COMMITTED, Cluster, LogRecord, Partition, Transaction
from streams.memory.redis import Server
from streams.memory.scheduler import EPOCH_US, Scheduler, Violation
from streams.routing.committed_at import CommittedAt
from streams.tables.keys import MARKS as REDIS_MARKS
from streams.tables.keys import accounts_key, meta_key
from tests.simulation.command_ends import CommandEnds
from tests.simulation.fees import FillsPaid, PoolsOfShard
from tests.simulation.homes import Holdings, Homes, Move, home_of
from tests.simulation.ledger import Ledger, Letter, Luggage
from tests.simulation.losses import EventsLost, tells_loss
from tests.simulation.repeats import Place, Told, events_of, version_of, without_repeats
from tests.simulation.requirement import require
from tests.simulation.workload import NEWCOMERS, Refused

ROUTER_GROUP, ENGINE_GROUP = "margin-router", "margin-engine"

CLOCK_SKEW_US = 1000 * PolicyParameters().clock_skew_ms_max


class _LastId(msgspec.Struct):
    """What of a memory row others may know."""

    last: int


_FRAME = Decoder[EventFrame](EventFrame)
_COMMAND = Decoder[LiquidationCommand](LiquidationCommand)
_ALERT = Decoder[Alert](Alert)
_ROW = Decoder[AccountRow](AccountRow)
_JOURNAL = Decoder[JournalRecord](JournalRecord)
_PROGRESS = Decoder[RouterProgress](RouterProgress)
_IDS = Decoder[_LastId](_LastId)

_LAYOUT = Decoder[ShardLayout](ShardLayout)


class Watch:
    """Sees every decided transaction and every write to Redis."""

    def __init__(self, scheduler: Scheduler, partitions: dict[str, int], server: Server) -> None:
        self.cluster = Cluster(scheduler, partitions, self.on_decided)
        self.founded = partitions[EVENTS]
        self.homes = Homes(self.founded)
        self.on_their_way: dict[Move, dict[str, Luggage]] = {}
        """What the accounts have that are on their way."""
        self.sequences: dict[str, int] = {}
        """The number of each account's last command."""
        self.due: dict[str, set[Letter]] = {}
        """The records that must count in each account, of those that routers have committed."""
        self.shards: list[ShardTruth] = []
        self._told: list[Told] = []
        self._followed: dict[Place, ShardLayout] = {}
        """By which layout each input partition is confirmed to be routed, if not by the first."""
        self._grow()
        self.routed: dict[tuple[str, int], int] = {}
        self.on_command: Callable[[Any], None] = lambda _: None
        self.commands: set[str] = set()
        self.repeated = self.lost = 0
        self.letters: set[Letter] = set()
        self.told: dict[str, set[str]] = {}
        """The kinds of alerts that each account has had."""
        self.paid = FillsPaid()
        self._alerts: set[str] = set()
        self._scanned: dict[Partition, int] = {}
        self._events: dict[Letter, Counter[tuple[Any, ...]]] = {}
        """What the shards have been told of each record that is not committed yet."""
        self._trade_ids: dict[tuple[int, str], int] = {}
        """The last id of each symbol in each partition."""
        self._scheduler = scheduler
        self._server = server
        self._rules: list[RiskParameters] = [RiskParameters.empty()]
        tables = TableWatch(self, scheduler, server)
        server.on_write, server.on_token = tables.on_write, tables.on_token

    @property
    def now_us(self) -> int:
        return self._scheduler.now

    def _grow(self) -> None:
        """Shards come, and none goes."""
        for number in range(len(self.shards), len(self.cluster.topics[EVENTS])):
            self.shards.append(ShardTruth(number, self))
            self._told.append(Told(is_founder=number < self.founded))

    # --- transactions ------------------------------------------------------------------------------------------------

    def on_decided(self, txn: Transaction) -> None:
        """Check a transaction when its coordinator has decided it."""
        if txn.state != COMMITTED:
            return
        try:
            self._check(txn)
        except Violation as violation:
            self._scheduler.note("invariant", str(violation))
            self._scheduler.fail(violation)

    def _check(self, txn: Transaction) -> None:
        self._grow()
        by_topic: dict[str, list[tuple[Partition, LogRecord]]] = {}
        digest = self._scheduler.digest
        for partition, record in txn.records:
            by_topic.setdefault(partition.topic, []).append((partition, record))
            digest = zlib.crc32(record.value or b"", digest)
        self._scheduler.digest = digest
        for letter in self._letters_of(by_topic):
            if letter[0] != EVENTS:  # a frame may hold many events that cannot be applied
                require(letter not in self.letters, "a record is in the dead letters once", lambda: str(letter))
                self.letters.add(letter)
        groups = set(txn.offsets)
        if groups == {ROUTER_GROUP}:
            self._check_router(txn.offsets[ROUTER_GROUP], by_topic)
            self._check_offsets_are_ours(txn.metadata[ROUTER_GROUP])
        elif groups == {ENGINE_GROUP}:
            self._check_engine(txn.offsets[ENGINE_GROUP], by_topic)
        elif not groups and set(by_topic) == {LAYOUT}:
            self._check_layout()
        else:
            require(False, "what is committed is committed with the offsets it follows from", lambda: txn.producer)

    def _letters_of(self, by_topic: dict[str, list[tuple[Partition, LogRecord]]]) -> Iterable[Letter]:
        for topic, records in by_topic.items():
            if topic.endswith(".dlq"):
                for _, record in records:
                    received = dict(record.headers or ())
                    yield received["dlq.topic"].decode(), int(received["dlq.partition"]), int(received["dlq.offset"])

    # --- the router --------------------------------------------------------------------------------------------------

    def _check_router(
        self, offsets: dict[tuple[str, int], int], by_topic: dict[str, list[tuple[Partition, LogRecord]]]
    ) -> None:
        """What is committed is what all shards have been told, whoever told them and however often."""
        self._scan()
        before = dict(self._trade_ids)
        for place, end in offsets.items():
            first = self.routed.get(place, 0)
            require(end >= first, "a router that is late commits nothing", lambda: f"{place} {first} {end}")
            self.routed[place] = end
            layout = self._followed.get(place)
            for told in self._told[: self.founded if layout is None else layout.shards_used]:
                require(
                    told.knows(place, end), "every shard knows what is committed", lambda: f"{place} {end} {told.next}"
                )
            for record in self.cluster.topics[place[0]][place[1]].records[first:end]:
                self._check_routed(*place, record)
        memories = {
            (partition.number, (record.key or b"").decode().rpartition(":")[2]): _IDS(record.value).last
            for partition, record in by_topic.get(ROUTER, ())
        }
        touched = {place: last for place, last in self._trade_ids.items() if before.get(place) != last}
        require(memories == touched, "the memory of trade ids is that of the log", lambda: f"{memories} {touched}")
        self._check_confirmed(offsets, by_topic.get(EVENTS, ()))

    def _check_confirmed(self, offsets: dict[Place, int], frames: Iterable[tuple[Partition, LogRecord]]) -> None:
        """By which layout a router goes on, it says to all shards, from where it is, of every partition it commits."""
        told: dict[int, set[Place]] = {}
        layouts = {version_of_layout(layout): layout for layout in self._layouts()}
        for partition, record in frames:
            frame = _FRAME(record.value)
            places = {(source.topic, source.partition): (source.first, source.next) for source in frame.sources}
            is_confirmation = frame.confirmed is True and not events_of(frame)
            is_confirmation &= all(offsets.get(place) == first == end for place, (first, end) in places.items())
            layout = layouts.get(version_of(frame))
            is_confirmation &= layout is not None and layout.spread == frame.spread
            require(
                is_confirmation, "a router's transaction tells shards by which layout it goes on", lambda: str(frame)
            )
            assert layout is not None
            told.setdefault(partition.number, set()).update(places)
            without_repeats(frame, self._told[partition.number])
            for place in places:
                before = self._followed.get(place)
                is_newer = before is None or version_of_layout(before) <= version_of_layout(layout)
                require(is_newer, "nobody goes back to an older layout", lambda: f"{place} {before} {layout}")
        if told:
            assert layout is not None
            all_told = told == {shard: set(offsets) for shard in range(layout.shards_used)}
            require(all_told, "every shard is told by which layout its rows are routed", lambda: f"{told} {layout}")
            self._followed.update(dict.fromkeys(offsets, layout))

    def _check_layout(self) -> None:
        """Whoever changes the number of shards goes on from the layout that stands."""
        versions = [version_of_layout(layout) for layout in self._layouts()]
        require(versions == list(range(len(versions))), "the layout never goes back", lambda: str(versions))

    def _layouts(self) -> Iterable[ShardLayout]:
        return (_LAYOUT(record.value) for record in self.cluster.topics[LAYOUT][0].committed())

    def _spread(self, version: int) -> Spread:
        """The spread of a version of the layout."""
        if version:
            return next(layout.spread for layout in self._layouts() if version_of_layout(layout) == version)
        return Spread(version=0, shards=self.founded, target=self.founded)

    def _check_offsets_are_ours(self, texts: dict[tuple[str, int], str]) -> None:
        """An offset that does not say which topic it is of is taken by no router."""
        for place, text in texts.items():
            at = CommittedAt.parse(text)
            is_ours = at is not None and at.topic_id == self.cluster.topic_id(place[0])
            require(is_ours, "what a router commits says that a router committed it", lambda: f"{place} {text!r}")

    def _check_routed(self, topic: str, number: int, record: LogRecord) -> None:
        """What a record means has been told once by the layout that is followed where it is; what has been told of it
        by layouts before, which counts only as far as it came in time, is nothing else."""
        if record.decoded is None or isinstance(record.decoded, Refused):
            letter = (topic, number, record.offset)
            require(letter in self.letters, "what cannot be read is in the dead letters", lambda: str(letter))
            accounts = record.decoded.accounts if record.decoded else ()
            means = [("suspension", account, topic, number, record.offset) for account in accounts]
        else:
            means = list(self._meaning(topic, number, record.decoded))
        for kind, account, *values in means:
            self.paid.routed(kind, account, values)
            self.due.setdefault(account, set()).add((topic, number, record.offset))
        events = self._events.pop((topic, number, record.offset), Counter())
        layout = self._followed.get((topic, number))
        followed = 0 if layout is None else version_of_layout(layout)
        for version in {followed: None} | dict.fromkeys(sorted({version for version, *_ in events})):
            spread = self._spread(version)
            told = Counter({event: count for event, count in events.items() if event[0] == version})
            expected = Counter((version, home_of(event[1], spread), *event) for event in means)
            require(
                told == expected if version == followed else version < followed and told <= expected,
                "every trade, transfer, report and suspension is routed to its shard, and counts once",
                lambda: f"by {spread}, followed {followed}: missing {expected - told}, too many {told - expected}",
            )

    def _scan(self) -> None:
        """Read what routers have written outside of transactions since the last time."""
        for number, partition in enumerate(self.cluster.topics[EVENTS]):
            for record in partition.records[self._scanned.get(partition, 0) :]:
                if record.control or record.txn is not None:
                    continue
                with suppress(DecodeError):
                    frame = without_repeats(_FRAME(record.value), self._told[number])
                    for place, event in events_of(frame):
                        self._events.setdefault(place, Counter())[version_of(frame), number, *event] += 1
            self._scanned[partition] = partition.end
        for topic in (TRADES, TRANSFERS, REPORTS):
            (partition,) = self.cluster.topics[dead_letter_topic(topic)]
            for record in partition.records[self._scanned.get(partition, 0) :]:
                self.letters.update(self._letters_of({partition.topic: [(partition, record)]}))
            self._scanned[partition] = partition.end

    def _meaning(self, topic: str, number: int, message: Any) -> Iterable[tuple[Any, ...]]:
        """The events that a message means."""
        if topic == TRANSFERS:
            yield "transfer", message.account, message.margin, message.asset, message.amount, message.sequence
        elif topic != TRADES:
            yield "report", message.account, message.order_id, message.status, message.filled_quantity
        elif message.trade_id > self._trade_ids.get((number, message.symbol), -1):
            self._trade_ids[number, message.symbol] = message.trade_id
            taker_buys = message.aggressor_side == "buy"
            for side, buys in ((message.taker, taker_buys), (message.maker, not taker_buys)):
                quantity = message.quantity if buys else f"-{message.quantity}"
                margin = "cross" if side.margin == "cross" else message.symbol
                fill = (side.account, margin, message.symbol, quantity, message.price, side.fee, side.order_id)
                yield "fill", *fill, message.trade_id

    # --- the engine --------------------------------------------------------------------------------------------------

    def _check_engine(
        self, offsets: dict[tuple[str, int], int], by_topic: dict[str, list[tuple[Partition, LogRecord]]]
    ) -> None:
        committed = {number: Committed() for number in range(len(self.shards))}
        accounts = {
            (record.key or b"").decode() for topic in (COMMANDS, ALERTS) for _, record in by_topic.get(topic, ())
        }
        homes = {account: self.homes.of(account) for account in accounts}
        keys = {(record.key or b"").decode() for _, record in by_topic.get(ACCOUNTS, ())}
        before = {account: self.homes.of(account) for account in keys}
        frames = (_FRAME(record.value) for _, record in by_topic.get(EVENTS, ()))
        sent = {account: row for frame in frames if frame.arrival for account, row in rows_in(frame.arrival).items()}
        for partition, record in by_topic.get(EVENTS, ()):
            committed[self._note_move(partition, record)].frames.append((partition.number, record))
        for partition, record in by_topic.get(JOURNAL, ()):
            committed[partition.number].journals.append(record)
        for partition, record in by_topic.get(ACCOUNTS, ()):
            account = (record.key or b"").decode()
            next_event = offsets.get((EVENTS, partition.number), 0)
            own = self.homes.of(account) == partition.number or (
                record.value is None and self.homes.may_forget(account, partition.number, next_event)
            )
            if not own and before[account] == partition.number:  # it is sent with this commit, and kept as it is sent
                own = record.value == sent.get(account)
                committed[partition.number].kept.add(account)
            require(own, "a row is in its account's shard", lambda: f"{account} in shard {partition.number}")
            committed[partition.number].rows.append((account, record))
        for topic, ids in ((COMMANDS, self.commands), (ALERTS, self._alerts)):
            for _, record in by_topic.get(topic, ()):
                identifier = dict(record.headers or ())["ce_id"].decode()
                if identifier in ids:
                    self.repeated += 1
                require(identifier not in ids, f"an id is in {topic} once", lambda: identifier)
                ids.add(identifier)
                home = committed[self._home((record.key or b"").decode(), homes)]
                (home.commands if topic == COMMANDS else home.alerts).append(record)
                if topic == COMMANDS:
                    self._check_complete(_COMMAND(record.value))
                if topic == ALERTS:
                    alert = _ALERT(record.value)
                    self.told.setdefault(alert.account, set()).add(alert.kind)
                    self.paid.told(alert)
        for _, record in by_topic.get(dead_letter_topic(EVENTS), ()):
            committed[int(dict(record.headers or ())["dlq.partition"])].letters.append(record)
        for number, given in committed.items():
            offset = offsets.get((EVENTS, number))
            if given.journals or offset is not None or given.rows or given.commands or given.alerts or given.frames:
                self.shards[number].commit(given, offset)

    @staticmethod
    def _check_complete(command: LiquidationCommand) -> None:
        """A newcomer's deposit had been acknowledged before its trade was published, and it lacks nothing with it."""
        require(
            not command.account.startswith(NEWCOMERS) or bool(command.evidence.left_out),
            "no command lacks what was acknowledged before its account's last event",
            lambda: command.command_id,
        )

    def _note_move(self, partition: Partition, record: LogRecord) -> int:
        """Accounts go, or have come, as a frame of an engine says; the shard that says so."""
        frame = _FRAME(record.value)
        arrival, arrived = frame.arrival or None, frame.arrived or None
        is_bare = not frame.sources and not events_of(frame) and (arrival is None) != (arrived is None)
        require(is_bare, "an engine tells other shards of accounts that go or come", lambda: str(frame))
        if arrival is not None:
            move = Move.of(arrival.spread, arrival.origin, partition.number)
            require(self._moves(move), "accounts are sent to where they belong", lambda: str(frame))
            if arrival.part == 0:
                self.homes.send(move)
            return arrival.origin
        assert arrived is not None
        move = Move.of(arrived.spread, partition.number, arrived.shard)
        self.homes.arrive(move, record.offset)
        return arrived.shard

    @staticmethod
    def _moves(move: Move) -> bool:
        """Whether accounts move so at that step, if there are any."""
        return (move.origin, move.to) in moves_at(move.spread.step, move.spread)

    def _home(self, account: str, homes: dict[str, int | None]) -> int:
        """The shard that decides an account, or what stands for one, in a transaction before which ``homes`` had them:
        one that goes, before it does, one that comes, after that."""
        if not account.startswith(RESERVED_ACCOUNTS):
            before = homes[account]
            home = self.homes.of(account) if before is None else before
            require(home is not None, "nobody decides an account that is on its way", lambda: account)
            assert home is not None
            return home
        return next(number for number in range(len(self.shards)) if account == shard_account(number))

    def rules(self, end: int) -> RiskParameters:
        """The parameters after the records before ``end``."""
        records = self.cluster.topics[PARAMETERS][0].records
        while len(self._rules) <= end:
            record = records[len(self._rules) - 1]
            try:
                self._rules.append(self._rules[-1].with_encoded(record.key, record.value))
            except (DecodeError, InputError):
                self._rules.append(self._rules[-1])
        return self._rules[end]

    # --- at the end --------------------------------------------------------------------------------------------------

    def check_end(self) -> None:
        """Check what only a whole run shows."""
        for truth in self.shards:
            truth.check_rows()

    def unsettled(self, marks_end: int) -> str | None:
        """What is still to be done, when nothing comes in any more and nothing goes wrong; marks up to ``marks_end``
        must have been walked."""
        self._grow()
        for (topic, number), end in self._inputs():
            if self.routed.get((topic, number), 0) < end:
                return f"{topic}[{number}] is routed to {self.routed.get((topic, number), 0)} of {end}"
        for truth in self.shards:
            if (left := truth.unsettled(self._server, marks_end)) is not None:
                return left
        return None

    def _inputs(self) -> Iterable[tuple[tuple[str, int], int]]:
        for topic in (TRADES, TRANSFERS, REPORTS):
            for partition in self.cluster.topics[topic]:
                yield (topic, partition.number), partition.end


class TableWatch:
    """Sees every write to Redis, and every writer that it lets in."""

    def __init__(self, watch: Watch, scheduler: Scheduler, server: Server) -> None:
        self._watch = watch
        self._scheduler = scheduler
        self._server = server
        self._mark_rows: set[bytes] = set()
        self._marks_seen = 0

    def on_write(self, key: bytes) -> None:
        """Check the table that was written."""
        try:
            if key == REDIS_MARKS.encode():
                self._check_marks()
            for truth in self._watch.shards:
                if key == truth.meta_key:
                    truth.check_table(self._server)
        except Violation as violation:
            self._scheduler.fail(violation)

    def on_token(self, key: bytes, token: int, before: int | None) -> None:
        """Check the token of a writer that the table lets in."""
        try:
            require(before is None or token >= before, "a table's token never goes back", lambda: f"{token} {before}")
            for truth in self._watch.shards:
                if key == truth.meta_key:
                    claimed = token in truth.claims
                    require(claimed, "a table's token is the offset of a committed claim", lambda: str(token))
        except Violation as violation:
            self._scheduler.fail(violation)

    def _check_marks(self) -> None:
        records = self._watch.cluster.topics[MARKS][0].records
        for record in records[self._marks_seen :]:
            if record.decoded is not None:
                self._mark_rows.update(encode(mark) for mark in record.decoded.marks)
        self._marks_seen = len(records)
        for row in self._server.hashes.get(REDIS_MARKS.encode(), {}).values():
            require(row in self._mark_rows, "the marks in Redis are those of the log", row.decode)


def check_settled(watch: Watch) -> None:
    """Check what holds when everything has settled."""
    quantities: Counter[str] = Counter()
    cash = transferred = fees = Decimal(0)
    for truth in watch.shards:
        for row in truth.decoded_rows():
            for group in row.groups:
                cash += truth.add_up(group, quantities)
        transferred += truth.ledger.transferred
        fees += truth.ledger.fees
    losers = [truth for truth in watch.shards if truth.lost.gone]
    if not losers and not any(any(truth.ledger.waiting.values()) for truth in watch.shards):
        require(not any(quantities.values()), "what one side holds the other owes", lambda: str(quantities))
        require(cash == transferred - fees, "money is conserved", lambda: f"{cash} of {transferred - fees}")
    for truth in losers:
        told = watch.told.get(shard_account(truth.number), set())
        require("records_gone" in told, "that events are gone is told", lambda: f"shard {truth.number}: {told}")
    rows = [row for truth in watch.shards if not truth.lost.gone for row in truth.decoded_rows()]
    whole = {row.account for row in rows if row.status != "suspended" and not (row.waiting_fills or row.unapplied)}
    watch.paid.check(whole)
    for topic in (PARAMETERS, MARKS):
        _check_letters(watch, topic)
    for truth in watch.shards:
        if not truth.lost.gone:
            _check_reach(truth, watch.told)
    _check_places(watch)


def _check_places(watch: Watch) -> None:
    """Every account is in one shard, which the layout names, and has had every record that concerns it."""
    layout = watch.cluster.layout
    require(not layout.is_moving and not watch.on_their_way, "nobody is on the way in the end", lambda: str(layout))
    had: dict[str, set[Letter]] = {}
    for truth in watch.shards:
        for account, places in truth.ledger.had.items():
            require(account not in had, "an account is in one shard", lambda: account)
            had[account] = places
        for row in truth.decoded_rows():
            home = home_of(row.account, layout.spread)
            require(home == truth.number, "every row is in the shard that the layout names", lambda: f"{row}")
    concerned = {name for name in {**had, **watch.due} if not watch.shards[home_of(name, layout.spread)].lost.gone}
    differing = [(name, watch.due.get(name, set()) ^ had.get(name, set())) for name in sorted(concerned)]
    differing = [(name, places) for name, places in differing if places]
    require(not differing, "every record counts in every account that it concerns", lambda: str(differing))


def _check_letters(watch: Watch, topic: str) -> None:
    """What nobody can read in the logs that every worker reads is in the dead letters, from the first claim on."""
    journals = watch.shards[0].journals
    first, end = (
        (journals[0].marks.first, journals[-1].marks.next)
        if topic == MARKS
        else (journals[0].parameters.first, journals[-1].parameters.next)
    )
    for record in watch.cluster.topics[topic][0].records[first:end]:
        if record.decoded is None:
            there = (topic, 0, record.offset) in watch.letters
            require(there, "what cannot be read is in the dead letters", lambda: f"{topic} {record.offset}")


Gone = dict[Move, tuple[dict[str, Luggage], RiskParameters]]
"""Accounts that have gone since the last commit, and the parameters in force then."""


class Committed:
    """What one transaction holds for one shard."""

    def __init__(self) -> None:
        self.journals: list[LogRecord] = []
        self.rows: list[tuple[str, LogRecord]] = []
        self.kept: set[str] = set()
        """The accounts of rows that are only kept until another shard has them."""
        self.commands: list[LogRecord] = []
        self.alerts: list[LogRecord] = []
        self.letters: list[LogRecord] = []
        self.frames: list[tuple[int, LogRecord]] = []
        """For other shards, each with its number."""

    def own_rows(self) -> Iterable[tuple[str, LogRecord]]:
        """The rows of accounts that are the shard's."""
        return ((account, record) for account, record in self.rows if account not in self.kept)


class ShardTruth:
    """What a shard's log says so far, and a shard that follows the journal and was never without an owner."""

    def __init__(self, number: int, watch: Watch) -> None:
        self.number = number
        self.meta_key, self.accounts_key = meta_key(number).encode(), accounts_key(number).encode()
        self.claims: set[int] = set()
        self.journals: list[JournalRecord] = []
        self.rows: dict[str, list[tuple[int, bytes | None]]] = {}
        self._holdings = Holdings(number, watch.founded)
        self.ledger = Ledger(self._holdings.has)
        self.lost = EventsLost(watch.cluster.topics[EVENTS][number])
        self.evicted = False
        self._ends = CommandEnds()
        self._journal_offset = -1
        self.replay = Shard(number)
        self._watch = watch
        self._told = Told(is_founder=number < watch.founded)
        self._departure: tuple[Move, int, set[Place]] | None = None
        """Accounts that are to go, by which version of the layout, and which input partitions must be routed by it."""
        self._gone: Gone = {}
        self._refused: list[bytes | None] = []
        self._pools = PoolsOfShard()
        self._appended_us = 0

    # --- a commit ----------------------------------------------------------------------------------------------------

    def commit(self, given: Committed, offset: int | None) -> None:
        """Check what one transaction did to the shard."""
        require(
            len(given.journals) == 1,
            "a commit of a shard has one journal record",
            lambda: f"{self.number} {offset}",
        )
        written = given.journals[0]
        journal = _JOURNAL(written.value)
        self.lost.see(journal, self.journals[-1] if self.journals else None, len(given.commands))
        self._check_chain(journal, written.offset)
        require(
            offset == journal.events.next,
            "the committed offset is the journal's",
            lambda: f"shard {self.number}: {offset}, journal {journal}",
        )
        if journal.kind == "claim":
            self._claim(journal, written.offset, given)
        elif not self.lost.gone:
            self._compare(journal, written, given)
            self._check_clock(journal)
        for account, record in given.rows:
            self.rows.setdefault(account, []).append((record.offset, record.value))
            reopened = self._ends.see(account, record.value)
            require(not reopened, "what is final stays final", reopened.__str__)
        for record in given.commands:
            self._see_command(record)
        self.journals.append(journal)
        if journal.kind == "commit":
            self.replay.cursor.committed(written.offset)
        self._journal_offset = written.offset

    def _check_clock(self, journal: JournalRecord) -> None:
        """Whatever the clocks of routers and oracles say."""
        now_us = EPOCH_US + self._watch.now_us
        require(
            self._appended_us - CLOCK_SKEW_US <= journal.clock <= now_us + CLOCK_SKEW_US,
            "a shard's clock is the brokers', more or less",
            lambda: f"shard {self.number}: {journal.clock}, appended {self._appended_us}, now {now_us}",
        )

    def _check_chain(self, journal: JournalRecord, offset: int) -> None:
        last = self.journals[-1] if self.journals else None
        sequence = 0 if last is None else last.sequence
        chained = journal.sequence == sequence + 1 and journal.previous == self._journal_offset < offset
        require(chained, "the journal is contiguous", lambda: f"shard {self.number}: {journal} after {last}")
        events_next = 0 if last is None else last.events.next
        adjoins = journal.events.first == events_next or tells_loss(journal)
        if last is not None:
            adjoins &= journal.marks.first == last.marks.next and journal.parameters.first == last.parameters.next
            adjoins &= journal.progress.first == (
                last.progress.next if journal.kind == "commit" else journal.progress.next
            )
        require(adjoins, "the journal's ranges adjoin", lambda: f"shard {self.number}: {journal} after {last}")

    def _claim(self, journal: JournalRecord, offset: int, given: Committed) -> None:
        still = journal.events.first == journal.events.next and journal.marks.first == journal.marks.next
        require(
            still and not (given.rows or given.commands or given.frames),
            "a claim changes nothing",
            lambda: str(journal),
        )
        self.claims.add(offset)
        if not self.journals:
            self._begin(journal)
        self.replay.cursor.claimed(journal, offset)

    def _begin(self, journal: JournalRecord) -> None:
        """The first claim: the shard begins with the parameters and the prices of then."""
        rules = self._watch.rules(journal.parameters.next)
        self.replay = Shard(self.number, rules)
        self.ledger.learn(rules)
        self.replay.resume(journal, sources=Sources(journal.sources, moves=Moves(self.number, journal.moves)))
        marks = self._watch.cluster.topics[MARKS][0].records
        for record in marks[first_needed(journal.marks_full, journal.marks.next) : journal.marks.next]:
            if record.decoded is not None:
                self.replay.recall_marks(record.offset, record.decoded, 1000 * record.time_ms)

    # --- the replay --------------------------------------------------------------------------------------------------

    def _compare(self, journal: JournalRecord, written: LogRecord, given: Committed) -> None:
        """Replay what the journal says and compare every byte."""
        output = self._replayed(journal)
        self._pools.charge(map(_ALERT, (r.value for r in given.alerts)), journal, self.ledger, self._gone)
        self._watch.lost += max(0, len(output.commands) - len(given.commands))
        pairs: list[tuple[str, Any, Any]] = [
            ("rows", [(account, row) for account, row in output.rows.items()], [(a, r.value) for a, r in given.rows]),
            ("commands", sorted(map(encode, output.commands)), sorted(r.value or b"" for r in given.commands)),
            ("alerts", sorted(map(encode, output.alerts)), sorted(r.value or b"" for r in given.alerts)),
            (
                "dead letters",
                [*(letter.frame for letter in output.unapplied), *self._refused],
                [r.value for r in given.letters],
            ),
            (
                "frames for other shards",
                sorted(((other, encode(frame)) for other, frame in output.frames), key=itemgetter(0)),
                sorted(((other, record.value) for other, record in given.frames), key=itemgetter(0)),
            ),
            ("journal", encode(output.journal), written.value),
        ]
        for what, replayed, committed in pairs:
            require(
                replayed == committed,
                f"a replay of the journal gives the same {what}",
                lambda: f"shard {self.number} at {written.offset}: {_difference(replayed, committed)}\n{journal}",
            )
        _check_awaited(self.replay)
        self._check_gone(given)
        for account, record in given.own_rows():
            row = None if record.value is None else _ROW(record.value)
            require(
                (differs := self.ledger.differs(account, row)) is None,
                "every trade and transfer is applied exactly once",
                lambda: str(differs),
            )

    def _check_gone(self, given: Committed) -> None:
        """Accounts go once every input partition is routed by the layout that sends them, each with what it holds, and
        with where that ends."""
        arrivals = [arrival for _, record in given.frames if (arrival := _FRAME(record.value).arrival)]
        sent = {
            Move.of(arrival.spread, arrival.origin, other)
            for other, record in given.frames
            if (arrival := _FRAME(record.value).arrival)
        }
        require(
            sent == self._gone.keys(),
            "accounts are sent away when all their rows come by the layout that sends them",
            lambda: f"shard {self.number}: sent {sent}, to be sent {list(self._gone)}",
        )
        for move, (luggage, rules) in self._gone.items():
            rows: dict[str, AccountRow] = {}
            for arrival in arrivals:
                rows |= {account: _ROW(row) for account, row in rows_in(arrival).items()}
            then = Ledger()
            then.learn(rules)
            then.take_in(copy.deepcopy(luggage))
            for account in sorted({*luggage, *rows}):
                differs = then.differs(account, rows.get(account))
                require(differs is None, "an account goes with what it holds", lambda: str(differs))
            beyond = {account: more for arrival in arrivals for account, more in arrival.beyond.items()}
            late = [
                (account, topic, number, offset)
                for account, taken in luggage.items()
                for floors in [_by_place(arrivals[0].floors) | _by_place(beyond.get(account, {}))]
                for topic, number, offset in sorted(taken.had)
                if offset >= floors.get((topic, number), 0)
            ]
            require(not late, "what an account has had lies before the floors that it goes with", lambda: str(late))
            self._watch.on_their_way[move] = luggage
        self._gone = {}

    def _replayed(self, journal: JournalRecord) -> Output:
        shard = self.replay
        self._refused = []
        batches = deque(journal.batches or [_only_batch(journal)])
        for turn in journal.turns:
            while batches and (turn.marks > batches[0].marks or turn.progress > batches[0].progress):
                self._replay_batch(batches.popleft())
            self._walk(turn.marks, turn.progress)
        for batch in batches:
            self._replay_batch(batch)
        self._walk(journal.marks.next, journal.progress.next)
        return shard.take(journal.worker, with_open_interest=journal.open_interest is not None)

    def _replay_batch(self, batch: Batch) -> None:
        """Parameters and events that were decided together, once the marks and progress before had been walked."""
        shard = self.replay
        self._walk(batch.marks, batch.progress)
        if shard.parameters_next < batch.parameters:
            for offset in range(shard.parameters_next, batch.parameters):
                with suppress(InputError):
                    shard.apply_parameters(offset, self._watch.rules(offset + 1))
                    self.ledger.learn(self._watch.rules(offset + 1))
            shard.decide_touched(everything=True)
        if shard.events_next < batch.events:
            partition = self._watch.cluster.topics[EVENTS][self.number]
            had = partition.records[shard.events_next : batch.events]  # it may have been deleted since
            for record in (record for record in had if record.readable):
                try:
                    frame = self._frame(record)
                except DecodeError as error:
                    shard.skip_events(record.offset, str(error))
                    self._refused.append(record.value)
                    continue
                self._appended_us = max(self._appended_us, 1000 * record.time_ms)
                shard.apply_events(record.offset, frame, 1000 * record.time_ms)
                self.ledger.apply(without_repeats(frame, self._told))
                self._note_moves(frame)
            shard.decide_touched()

    def _walk(self, marks_end: int, progress_end: int) -> None:
        shard, topics = self.replay, self._watch.cluster.topics
        for record in topics[MARKS][0].records[shard.marks_next : marks_end]:
            if record.decoded is not None:
                self._appended_us = max(self._appended_us, 1000 * record.time_ms)
                shard.apply_marks(record.offset, record.decoded, 1000 * record.time_ms)
        shard.skip_marks(marks_end - 1)
        for record in topics[PROGRESS][0].records[shard.cursor.progress_next : progress_end]:
            shard.apply_progress(record.offset, _PROGRESS(record.value), 1000 * record.time_ms)

    def _note_moves(self, frame: EventFrame) -> None:
        """Let accounts go, and take them in, when all that says so has come."""
        if departure := frame.departure:
            move = Move.of(departure.spread, self.number, departure.to)
            if not self._holdings.knows(move):
                sources = set(_by_place(dict.fromkeys(departure.sources, 0)))
                self._departure = move, departure.spread.version, sources
        if self._departure is not None:
            move, version, places = self._departure
            if all(self._told.versions.get(place, 0) >= version for place in places):
                self._gone[move] = self.ledger.let_go(move.takes), self.ledger.rules
                self._holdings.add(move)
                self._departure = None
        arrival = frame.arrival
        if arrival and arrival.part == arrival.parts - 1:
            move = Move.of(arrival.spread, arrival.origin, self.number)
            self._holdings.add(move)
            self.ledger.take_in(self._watch.on_their_way.pop(move))

    @staticmethod
    def _frame(record: LogRecord) -> EventFrame:
        if record.decoded is None:
            record.decoded = _FRAME(record.value)
        return record.decoded  # type: ignore[no-any-return]

    def _see_command(self, record: LogRecord) -> None:
        command = _COMMAND(record.value)
        last = self._watch.sequences.get(command.account, 0)
        require(command.sequence == last + 1, "an account's commands have no gap", lambda: command.command_id)
        self._watch.sequences[command.account] = command.sequence
        self._watch.paid.commanded(command)
        self._watch.on_command(command)

    # --- Redis -------------------------------------------------------------------------------------------------------

    def check_table(self, server: Server) -> None:
        """Replaying the changelog from the table's stamp over its rows gives the truth, and no row is ahead of it."""
        meta = server.hashes.get(self.meta_key)
        if meta is None:
            return
        table = server.hashes.get(self.accounts_key, {})
        if int(meta[b"rows"]) != len(table):
            require(self.evicted, "a table has the rows it says", lambda: f"{self.number}: {meta} {len(table)}")
            return
        self.evicted = False
        stamp = int(meta[b"stamp"])
        names = {name.decode() for name in table}
        for account in sorted(names | self.rows.keys()):
            row = table.get(account.encode())
            history = self.rows.get(account, [])
            known = [value for offset, value in history if offset >= stamp]
            before = [value for offset, value in history if offset < stamp]
            known.append(before[-1] if before else None)
            require(
                row in known,
                "Redis is neither ahead of Kafka nor torn",
                lambda: f"shard {self.number} at stamp {stamp}: {account} has {row!r}, the changelog {history}",
            )

    # --- at the end --------------------------------------------------------------------------------------------------

    def decoded_rows(self) -> list[AccountRow]:
        """The last row of every account."""
        return [_ROW(history[-1][1]) for history in self.rows.values() if history[-1][1] is not None]

    def check_rows(self) -> None:
        """The last rows equal the fold, accounts without a row included; those that have left and are not forgotten yet
        are no more of the shard's."""
        left = {row.account for row in self.decoded_rows() if not self._holdings.has(row.account)}
        strays = [account for account in sorted(left) if not self._watch.homes.is_on_its_way(account, self.number)]
        require(not strays, "a row is in its account's shard", lambda: f"shard {self.number}: {strays}")
        if self.lost.gone:
            return
        last = {row.account: row for row in self.decoded_rows() if row.account not in left}
        for account in sorted(last.keys() | self.ledger.accounts):
            differs = self.ledger.differs(account, last.get(account))
            require(differs is None, "every trade and transfer is applied exactly once", lambda: str(differs))

    @staticmethod
    def add_up(group: GroupRow, quantities: Counter[str]) -> Decimal:
        """The cash of a group; its quantities are added to ``quantities``."""
        for position in group.positions:
            quantities[position.symbol] += Decimal(position.quantity)  # type: ignore[assignment]
        held = sum((Decimal(position.cash) for position in group.positions), Decimal(0))
        return held + Decimal(group.balances.get("USDC", "0"))

    def unsettled(self, server: Server, marks_end: int) -> str | None:
        """What this shard has still to do."""
        if not self.journals:
            return f"shard {self.number} has no owner yet"
        if self.journals[-1].marks.next < marks_end:
            return f"shard {self.number} has walked the marks to {self.journals[-1].marks.next} of {marks_end}"
        events = self._watch.cluster.topics[EVENTS][self.number]
        last = max((record.offset for record in events.committed(self.journals[-1].events.next)), default=-1)
        if last >= 0:
            return f"shard {self.number} is at {self.journals[-1].events.next}, its events at {last}"
        for row in self.decoded_rows():
            if self.lost.gone:
                continue
            if row.held is not None:
                return f"{row.account} is held"
            if row.status != "suspended" and any(group.command is not None or group.retry_at for group in row.groups):
                return f"{row.account} has an open command, or waits for the next"
        return self._table_unsettled(server)

    def _table_unsettled(self, server: Server) -> str | None:
        meta = server.hashes.get(self.meta_key, {})
        truth = {name.encode(): versions[-1][1] for name, versions in self.rows.items() if versions[-1][1] is not None}
        end = max((versions[-1][0] for versions in self.rows.values()), default=-1) + 1
        if server.hashes.get(self.accounts_key, {}) == truth and int(meta.get(b"stamp", -1)) >= end:
            return None if b"building" not in meta else f"the table of shard {self.number} is being built"
        return f"the table of shard {self.number} is not its changelog: {meta}, changelog to {end}"


def _check_reach(truth: "ShardTruth", told: dict[str, set[str]]) -> None:
    """Whoever is below the requirement, whatever the marks that are not live may be, has a command or is told."""
    shard = truth.replay
    stale = {symbol for symbol in (*shard.parameters.instruments, *shard.portfolio.marks) if not shard.has_live(symbol)}
    for row in truth.decoded_rows():
        for group in row.groups:
            positions = tuple(Position(p.symbol, Decimal(p.quantity), Decimal(p.cash)) for p in group.positions)
            balances = {asset: Decimal(amount) for asset, amount in group.balances.items()}
            exact = Group(row.account, group.margin, balances, positions)
            if not evaluate(exact, shard.portfolio.marks, shard.parameters, stale=stale).liquidatable:
                continue
            is_reached = _is_reached(row, group, told.get(row.account, set()))
            require(is_reached, "nobody is left out of reach", lambda: f"{row.account} {group}")


def _check_awaited(shard: Shard) -> None:
    needed, since = set(shard.portfolio.awaited(None)), shard.cursor.awaited.since
    require(
        needed <= since.keys(),
        "whoever needs a mark that is not live is known to wait, whether or not the shard is taken anew",
        lambda: f"shard {shard.shard}: {needed} of which {since} are awaited",
    )


def _by_place(offsets: Mapping[str, int]) -> dict[Place, int]:
    """Offsets by source as offsets by input partition."""
    return {(topic, int(number)): offset for name, offset in offsets.items() for topic, number, _ in [name.split(":")]}


def version_of_layout(layout: ShardLayout) -> int:
    """Its number; the first one has none."""
    return layout.spread.version


def _difference(replayed: Any, committed: Any) -> str:
    """Where two outputs part, with a little around it."""
    pairs = [(replayed, committed)] if isinstance(replayed, bytes) else list(zip_longest(replayed, committed))
    one, other = next((repr(one), repr(other)) for one, other in pairs if one != other)
    at = next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    first = max(0, at - 150)
    return f"at character {at}\nreplayed  …{one[first : at + 150]}\ncommitted …{other[first : at + 150]}"


def _only_batch(journal: JournalRecord) -> Batch:
    return Batch(
        marks=journal.marks_before,
        progress=journal.progress_before,
        parameters=journal.parameters.next,
        events=journal.events.next,
    )


def _is_reached(row: AccountRow, group: GroupRow, told: set[str]) -> bool:
    """Whether something is done about a group that is below its requirement, or it is ``told`` that nothing can be."""
    if row.status == "suspended":
        return row.told_liquidatable and "suspended_liquidatable" in told
    is_commanded = group.command is not None or bool(group.retry_at)
    return is_commanded or (group.status in WITHOUT_ORDERS and group.status in told)
