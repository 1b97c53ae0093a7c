"""Real bugs, put back by hand: each is a way in which such a pipeline goes wrong, and the simulation must find it.

A mutation replaces production code while a run lasts. What it replaces must be there, or the mutation is an error.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from msgspec import UNSET
from msgspec.structs import replace

import streams.clearing.account as account_module
import streams.clearing.accounts as accounts_module
import streams.clearing.clock as clock_module
import streams.clearing.inbox as inbox_module
import streams.clearing.log_survey as log_survey_module
import streams.clearing.restore as restore_module
import streams.feeds.sources as sources_module
import streams.routing.router as router_module
from schemas.topics import ACCOUNTS, ROUTER
from streams.broker import producer as producer_module
from streams.broker.layout import require_layout
from streams.broker.producer import TransactionalProducer
from streams.broker.reader import poll_batch
from streams.clearing.account import AccountState
from streams.clearing.assignment import Assignment
from streams.clearing.commit import Committer
from streams.clearing.completeness import Completeness
from streams.clearing.decisions import Decisions
from streams.clearing.engine import Engine
from streams.clearing.held_back import HeldBack
from streams.clearing.holds import Holds
from streams.clearing.inbox import Inbox
from streams.clearing.journal import Cursor
from streams.clearing.liquidation_fees import LiquidationFees
from streams.clearing.progress_walk import ProgressWalk
from streams.clearing.relocation import Relocation
from streams.clearing.restore import ShardRestorer
from streams.clearing.shard import Shard
from streams.clearing.transfers import TransferSequences
from streams.feeds.moves import Moves
from streams.feeds.sources import Sources
from streams.memory.redis import Server
from streams.rescaling.rescaling import Rescaling
from streams.routing.frames import ShardFrames
from streams.routing.ownership import Owned
from streams.routing.routed_layout import RoutedLayout
from streams.routing.trade_ids import SymbolMemory, TradeIds
from tests.simulation.scenario import Mode


@dataclass(frozen=True, slots=True)
class Mutation:
    """A bug. ``seeds``: within so many it must be found, by an invariant whose text contains one of ``found_by``.

    ``rates`` makes the faults frequent that bring it out. ``rescaled``: only in seeds that change the number of shards.
    """

    name: str
    put_in: Callable[[], Any]
    found_by: tuple[str, ...]
    seeds: int = 100
    mode: Mode = "safety"
    rates: Mapping[str, float] = field(default_factory=dict)
    rescaled: bool = False


MUTATIONS: list[Mutation] = []


def _mutation(
    *found_by: str, seeds: int = 100, mode: Mode = "safety", rescaled: bool = False, **rates: float
) -> Callable[[Callable[[], Iterator[None]]], Any]:
    def register(function: Callable[[], Iterator[None]]) -> Any:
        put_in = contextmanager(function)
        MUTATIONS.append(Mutation(function.__name__, put_in, found_by, seeds, mode, rates, rescaled))
        return put_in

    return register


@contextmanager
def _replaced(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    before = []
    for owner, name, value in replacements:
        before.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


_JOURNAL = ("the journal is contiguous", "the journal's ranges adjoin", "the committed offset is the journal's")
_REPLAY = ("a replay of the journal gives the same", "applied exactly once")
_MOVED = (
    *_REPLAY,
    "counts once",
    "every record counts in every account",
    "a row is in its account's shard",
    "an account goes with what it holds",
    "lies before the floors",
    "accounts are sent away when",
)
"""What shows that accounts that move have been spoilt."""
_REDIS = ("Redis is neither ahead of Kafka nor torn",)


# --- how such pipelines go wrong -------------------------------------------------------------------------------------


@_mutation(*_JOURNAL)
def offsets_are_the_consumers_position() -> Iterator[None]:
    """What was polled is not what was applied."""
    consumers: dict[Any, Consumer] = {}
    metadata, send = producer_module.group_metadata, TransactionalProducer.send_offsets

    def group_metadata(consumer: Consumer) -> Any:
        of = metadata(consumer)
        consumers[of] = consumer
        return of

    def send_offsets(self: TransactionalProducer, offsets: Any, of: Any) -> None:
        positions = consumers[of].position(offsets) if of in consumers else offsets
        send(self, [known if at.offset < 0 else at for at, known in zip(positions, offsets, strict=True)], of)

    with _replaced(
        (inbox_module, "group_metadata", group_metadata), (TransactionalProducer, "send_offsets", send_offsets)
    ):
        yield


@_mutation(*_JOURNAL, *_REPLAY)
def a_revoked_shard_is_kept() -> Iterator[None]:
    """The old owner goes on: Kafka does not ask whose partition it is whose offset a member commits."""
    with _replaced((Assignment, "_leave", lambda *_, **__: None)):
        yield


@_mutation(*_REDIS)
def redis_is_written_before_the_commit() -> Iterator[None]:
    """Rows go to Redis when they are produced."""
    produce = Committer._produce

    def _produce(self: Committer, shard: Shard, output: Any) -> Any:
        offsets = produce(self, shard, output)
        with self._kafka.log_reader(self._client_id) as reader:
            _, end = reader.watermarks(ACCOUNTS, shard.shard)
        self._tables.submit(shard.shard, shard.cursor.claim, end + len(output.rows), output.rows)
        return offsets

    with _replaced((Committer, "_produce", _produce)):
        yield


@_mutation("everything settles", mode="liveness", seeds=200)
def group_metadata_is_taken_once() -> Iterator[None]:
    """Every commit after a rebalance is refused: the generation is an old one."""
    metadata = producer_module.group_metadata
    taken: dict[Consumer, Any] = {}

    def once(consumer: Consumer) -> Any:
        if consumer not in taken:
            taken[consumer] = metadata(consumer)
        return taken[consumer]

    with _replaced((inbox_module, "group_metadata", once), (restore_module, "group_metadata", once)):
        yield


@_mutation(*_JOURNAL, "that is late commits nothing", seeds=600)
def an_expelled_member_commits() -> Iterator[None]:
    """One that was expelled has neither id nor generation, and Kafka takes its offsets unchecked."""

    def unchecked(consumer: Consumer) -> Any:
        return consumer.consumer_group_metadata()

    modules = (inbox_module, restore_module, router_module)
    with _replaced(*((module, "group_metadata", unchecked) for module in modules)):
        yield


@_mutation("token never goes back", seeds=200)
def the_claims_token_is_not_checked() -> Iterator[None]:
    """An older owner takes the table back."""
    opened, written = Server.open_lua, Server.write_lua

    def let_in(server: Server, key: bytes, token: bytes) -> None:
        meta = server.hashes.get(key, {})
        if int(meta.get(b"token", b"-1")) > int(token):
            server.on_token(key, int(token), int(meta[b"token"]))
            meta[b"token"] = token

    def open_lua(self: Server, keys: list[bytes], argv: list[bytes]) -> list[bytes]:
        let_in(self, keys[1], argv[0])
        return opened(self, keys, argv)

    def write_lua(self: Server, keys: list[bytes], argv: list[bytes]) -> bytes:
        let_in(self, keys[1], argv[0])
        return written(self, keys, argv)

    with _replaced((Server, "open_lua", open_lua), (Server, "write_lua", write_lua)):
        yield


@_mutation("the memory of trade ids")
def trade_ids_are_not_written() -> Iterator[None]:
    """The next owner of a trades partition knows none of its trades."""
    produce = TransactionalProducer.produce

    def without(self: TransactionalProducer, topic: str, *arguments: Any, **more: Any) -> None:
        if topic != ROUTER:
            produce(self, topic, *arguments, **more)

    with _replaced((TransactionalProducer, "produce", without)):
        yield


@_mutation("says that a router committed it", seeds=10)
def offsets_do_not_say_who_committed_them() -> Iterator[None]:
    """They cannot be told from those that were moved by hand."""
    with _replaced((Owned, "to_commit", lambda owned: TopicPartition(owned.topic, owned.partition, owned.next_offset))):
        yield


@_mutation("and counts once")
def trade_ids_are_not_read() -> Iterator[None]:
    """Repeats that come after a change of owner are routed."""
    with _replaced((TradeIds, "recall", lambda *_: None)):
        yield


@_mutation("and counts once", "what cannot be read is in the dead letters", seeds=200)
def a_trade_that_contradicts_is_a_repeat() -> Iterator[None]:
    """Another trade under an id that was routed is dropped, and nobody is told."""
    with _replaced((SymbolMemory, "check_repeat", lambda *_: None)):
        yield


@_mutation("and counts once", seeds=200)
def a_refused_record_tells_nobody() -> Iterator[None]:
    """Accounts keep a state that is not theirs."""
    with _replaced((ShardFrames, "add_suspension", lambda *_: None)):
        yield


@_mutation("a shard's clock is the brokers'")
def the_clocks_of_hosts_are_believed() -> Iterator[None]:
    """One router ahead by a year makes every mark stale for as long."""
    with _replaced((clock_module, "bounded_us", lambda time_us, *_: time_us)):
        yield


@_mutation(*_REPLAY)
def marks_are_not_walked_after_a_takeover() -> Iterator[None]:
    """Prices that came while nobody owned the shard liquidate nobody."""

    def skip(self: ShardRestorer, shard: Shard) -> Generator[None, None, list[Any]]:
        shard.skip_marks(self._marks_next() - 1)
        yield from ()
        return []

    with _replaced((ShardRestorer, "_walk_marks", skip)):
        yield


@_mutation(*_JOURNAL, *_REPLAY)
def shards_are_retaken_with_their_memory() -> Iterator[None]:
    """What was taken out of the shard for the commit that failed is lost."""
    with _replaced((Engine, "_abandon", lambda _: None)):
        yield


@_mutation("applied exactly once")
def an_overtaken_transfer_is_dropped() -> Iterator[None]:
    """A lower sequence is taken for a repeat."""
    count = TransferSequences.count

    def _count(self: TransferSequences, sequence: int) -> Any:
        return "repeat" if sequence <= self.last else count(self, sequence)

    with _replaced((TransferSequences, "count", _count)):
        yield


@_mutation("applied exactly once")
def a_credit_that_cannot_be_applied_suspends() -> Iterator[None]:
    """Whoever deposits an asset that is not known yet cannot be liquidated."""
    with _replaced((HeldBack, "park", lambda *_: False)):
        yield


@_mutation("applied exactly once", seeds=300)
def a_fill_overtakes_one_that_waits() -> Iterator[None]:
    """Where a position is flat its profit becomes balance: two fills that change places leave another balance."""
    with _replaced((AccountState, "waits_behind", lambda *_: False)):
        yield


@_mutation("applied exactly once", seeds=300)
def what_waits_for_parameters_waits_for_ever() -> Iterator[None]:
    """A trade ahead of its finer tick suspends both accounts for good."""
    with _replaced((HeldBack, "apply", lambda *_: None)):
        yield


@_mutation(*_REPLAY)
def what_waits_is_forgotten_at_a_restart() -> Iterator[None]:
    """The row is read without the transfers and fills that its account holds back."""
    restore = account_module.restore_account

    def forget(row: Any, portfolio: Any) -> AccountState:
        state = restore(row, portfolio)
        state.parked, state.waiting_fills = [], []
        return state

    with _replaced((account_module, "restore_account", forget)):
        yield


@_mutation("nobody is left out of reach", mode="liveness")
def a_group_with_nothing_to_trade_is_not_told() -> Iterator[None]:
    """An account that owes and holds nothing is never seen."""
    with _replaced((Decisions, "_strand", lambda *_: None)):
        yield


@_mutation(*_REPLAY, seeds=200)
def a_symbol_without_a_mark_is_forgotten_at_a_restart() -> Iterator[None]:
    """Whoever takes the shard counts anew how long a mark has been missing."""
    resume = Shard.resume

    def forget(self: Shard, *arguments: Any, **named: Any) -> None:
        resume(self, *arguments, **named)
        self.cursor.awaited.resume({}, ())

    with _replaced((Shard, "resume", forget)):
        yield


# --- what this simulation has found ----------------------------------------------------------------------------------


@_mutation(*_REPLAY)
def frames_polled_in_a_rebalance_are_lost() -> Iterator[None]:
    """``self._held.extend(poll())``: the deque is looked up before the poll, in which a rebalance replaces it."""

    def poll(self: Inbox, timeout_s: float, frames_max: int) -> int:
        held = len(self._held)
        self._held.extend(poll_batch(self.consumer, timeout_s, frames_max, self._member.watch))
        return len(self._held) - held

    with _replaced((Inbox, "poll", poll)):
        yield


@_mutation(*_REPLAY, *_JOURNAL, seeds=600, slow_fetch=0.8)
def a_shard_is_taken_with_old_parameters() -> Iterator[None]:
    """The shard's last owner had read further than the one that takes it."""
    restore = Engine._restore

    def _restore(self: Engine, shard: int) -> None:
        self._catch_up_parameters = lambda: None  # type: ignore[method-assign]
        try:
            restore(self, shard)
        finally:
            del self._catch_up_parameters

    with _replaced((Engine, "_restore", _restore)):
        yield


@_mutation("everything settles", mode="liveness", seeds=300)
def an_expelled_member_does_not_hear_of_it() -> Iterator[None]:
    """It tries to take its shards again and again and never polls."""
    cycle, poll = Engine.cycle, Inbox.poll
    silent: set[Inbox] = set()

    def _cycle(self: Engine) -> None:
        (silent.add if self._assignment.to_restore else silent.discard)(self._inbox)
        cycle(self)

    def _poll(self: Inbox, timeout_s: float, frames_max: int) -> int:
        return 0 if self in silent else poll(self, timeout_s, frames_max)

    with _replaced((Engine, "cycle", _cycle), (Inbox, "poll", _poll)):
        yield


@_mutation("no command lacks what was acknowledged before its account's last event")
def nobody_is_held() -> Iterator[None]:
    """A trade is decided on as it comes, though the deposit that it needs may be in another topic."""
    with _replaced((Holds, "keeps", lambda *_: False)):
        yield


@_mutation("no command lacks what was acknowledged before its account's last event", seeds=200)
def ends_are_taken_for_a_cut_whenever_they_were_asked_for() -> Iterator[None]:
    """Those that were asked for before a trade was published say nothing of what was acknowledged before it."""
    has = Completeness.has

    def _has(self: Completeness, frame: int, after_us: int = 0, offset: int = -1) -> bool:
        return has(self, -1, after_us, offset)

    with _replaced((Completeness, "has", _has)):
        yield


@_mutation(*_REPLAY)
def a_shards_clock_goes_back() -> Iterator[None]:
    """A restored shard knows the marks' time, but not that of the events it has seen."""
    resume = Shard.resume

    def forget(self: Shard, *arguments: Any, **named: Any) -> None:
        resume(self, *arguments, **named)
        self.cursor.clock.now_us = 0

    with _replaced((Shard, "resume", forget)):
        yield


@_mutation("a record is in the dead letters once", seeds=400, crash_call=0.003)
def marks_that_are_no_frames_are_not_walked() -> Iterator[None]:
    """The next owner finds them again."""
    with _replaced((Shard, "skip_marks", lambda *_: None)):
        yield


@_mutation(*_REPLAY, seeds=300)
def groups_are_decided_by_row() -> Iterator[None]:
    """Two groups of an account get their commands' numbers in the order in which they were restored."""

    def by_row(groups: Any, *, key: Any = None) -> list[Any]:
        return list(groups) if key is not None else sorted(groups)

    accounts_module.sorted = by_row  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del accounts_module.sorted  # type: ignore[attr-defined]


# --- accounts that move from shard to shard --------------------------------------------------------------------------


@_mutation("a layout is followed once that is confirmed", "and counts once", rescaled=True)
def a_router_routes_by_a_layout_that_it_has_not_confirmed() -> Iterator[None]:
    """One that has been replaced tells shards of a layout that its successor has not reached."""
    look = RoutedLayout.look

    def _look(self: RoutedLayout) -> None:
        look(self)
        if self.is_unconfirmed:
            self.confirmed()

    with _replaced((RoutedLayout, "look", _look)):
        yield


@_mutation("every shard is told by which layout", "a layout is followed", "and counts once", rescaled=True)
def a_router_confirms_to_the_shards_that_it_knows() -> Iterator[None]:
    """Shards that have just been added do not hear from where on they are told everything."""
    produce = RoutedLayout.produce

    def _produce(self: RoutedLayout, producer: Any, all_owned: Any, time_us: int) -> None:
        known = len(self._progress.frames)

        class Some:
            def produce(self, topic: str, value: bytes, *, partition: int) -> None:
                if partition < known:
                    producer.produce(topic, value, partition=partition)

        produce(self, Some(), all_owned, time_us)  # type: ignore[arg-type]

    with _replaced((RoutedLayout, "produce", _produce)):
        yield


@_mutation(*_MOVED, rescaled=True, seeds=600, mode="liveness", buffer_full=0.3)
def what_a_replaced_router_sends_is_believed() -> Iterator[None]:
    """Rows are told by a layout that is not followed any more."""
    with _replaced((Moves, "is_outdated", lambda *_: False)):
        yield


@_mutation(*_MOVED, rescaled=True, seeds=300, mode="liveness")
def floors_are_forgotten() -> Iterator[None]:
    """Rows that are in accounts already when they come are applied again."""
    take = Moves._take

    def forget(self: Moves, *arguments: Any) -> None:
        take(self, *arguments)
        self._floors.clear()

    with _replaced((Moves, "_take", forget)):
        yield


@_mutation(*_MOVED, rescaled=True, seeds=300, mode="liveness")
def a_cut_is_what_the_source_had_been_told_to_in_the_end() -> Iterator[None]:
    """Accounts go with offsets up to which rows have come, but to the other shard."""
    known: dict[Moves, dict[str, int]] = {}
    admit, leave = Sources.admit, Moves.leave

    def _admit(self: Sources, frame: Any, offset: int = -1) -> Any:
        admitted = admit(self, frame, offset)
        known[self.moves] = self.next
        return admitted

    def _leave(self: Moves) -> dict[str, int]:
        return {name: known[self].get(name, cut) for name, cut in leave(self).items()}

    with _replaced((Sources, "admit", _admit), (Moves, "leave", _leave)):
        yield


@_mutation(*_MOVED, rescaled=True, seeds=300)
def early_rows_are_not_read_again() -> Iterator[None]:
    """What came before its account is lost when the shard has another owner."""
    with _replaced((sources_module, "_recall_early", lambda *_: None)):
        yield


@_mutation(*_MOVED, rescaled=True)
def accounts_go_before_all_sources_are_confirmed() -> Iterator[None]:
    """Rows of them still come to the shard that they have left."""
    with _replaced((Moves, "waits_for", lambda *_: [])):
        yield


@_mutation(*_MOVED, rescaled=True, seeds=300)
def the_old_shard_goes_on_deciding_after_a_restart() -> Iterator[None]:
    """The rows of accounts that have gone are still in its changelog."""
    with _replaced((Moves, "has_left", lambda *_: False)):
        yield


@_mutation(*_MOVED, rescaled=True, seeds=300, mode="liveness")
def rows_stay_where_their_account_has_left() -> Iterator[None]:
    """Two shards have a row of it for ever."""
    with _replaced((Moves, "take_acknowledged", lambda self: setattr(self, "_acknowledged", False))):
        yield


@_mutation(
    "no command lacks what was acknowledged before its account's last event", rescaled=True, seeds=1400, mode="liveness"
)
def a_held_account_is_decided_where_it_comes() -> Iterator[None]:
    """The next shard does not wait for what the account lacks."""
    begin = Relocation._begin_anew

    def let_go(self: Relocation, state: AccountState, *arguments: Any, **more: Any) -> None:
        begin(self, state, *arguments, **more)
        if state.held is not None:
            state.held = replace(state.held, frame=-1, after=0)

    with _replaced((Relocation, "_begin_anew", let_go)):
        yield


@_mutation("the layout never goes back", "everything settles", rescaled=True, seeds=400, mode="liveness")
def whoever_stood_still_writes_an_older_layout() -> Iterator[None]:
    """Two change the number of shards and do not know of each other."""

    def take_over(self: Rescaling) -> None:
        self._writer = self._kafka.transactional_producer(f"margin-rescale-{self._kafka.worker}")
        self._writer.init()
        self.layout = require_layout(self._reader)

    with _replaced((Rescaling, "_take_over", take_over)):
        yield


@_mutation("a fill pays fees once", mode="liveness")
def a_fill_pays_twice() -> Iterator[None]:
    """Once where it counts for its order, and once more where it comes late."""
    charge = LiquidationFees.charge

    def charged(self: LiquidationFees, *fill: Any) -> None:
        charge(self, *fill)
        charge(self, *fill)

    with _replaced((LiquidationFees, "charge", charged)):
        yield


@_mutation("what accounts pay is what the pools get")
def what_pools_have_is_forgotten_by_the_next_owner() -> Iterator[None]:
    """A journal record that goes on from nothing."""
    resume = Cursor.resume

    def resumed(self: Cursor, record: Any, offset: int = -1) -> Cursor:
        return resume(self, replace(record, pools=UNSET), offset)

    with _replaced((Cursor, "resume", resumed)):
        yield


@_mutation("is known to wait")
def who_is_given_what_was_deferred_is_not_looked_at() -> Iterator[None]:
    """A balance that came late needs a mark that is not live, and only the next owner of the shard notes it."""

    class Blind:
        @staticmethod
        def look(_: Any) -> None:
            pass

    release = ProgressWalk._release

    def released(self: Any) -> bool:
        watch, self._undecided = self._undecided, Blind()
        try:
            return release(self)
        finally:
            self._undecided = watch

    with _replaced((ProgressWalk, "_release", released)):
        yield


@_mutation("a fill pays its fees", mode="liveness")
def a_fill_pays_nothing() -> Iterator[None]:
    """Nothing is booked and nobody is told."""
    with _replaced((LiquidationFees, "charge", lambda *_: None)):
        yield


@_mutation("a shard that lacks events is suspended")
def a_shard_without_some_events_goes_on() -> Iterator[None]:
    """It says that they are gone, and decides its accounts as if it knew them."""
    standing = vars(log_survey_module)["standing_after"]

    def unsuspended(record: Any, gaps: Any, shard: int) -> Any:
        return replace(standing(record, gaps, shard), suspension=UNSET)

    with _replaced((log_survey_module, "standing_after", unsuspended)):
        yield
