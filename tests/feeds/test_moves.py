"""Every row is applied once, whoever routes it, whatever the order in which anything comes, while accounts move.

A model of everything around :class:`streams.feeds.moves.Moves`: sources whose owners are replaced while they still
write (and go on writing, as one does that does not know it yet), frames that arrive in any order but that of their
writer in one shard's log, shards that read, end and begin again anywhere, and a driver that goes on when it may.
"""

from collections import Counter, deque
from random import Random

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.codec import Decoder, encode
from schemas.messages import (
    Arrival,
    Arrived,
    Departure,
    EventFrame,
    JournalRecord,
    ShardMoves,
    SourceRange,
    Spread,
    TransferColumns,
)
from schemas.partitioning import home_of, moves_at, shard_of, steps_of
from schemas.topics import EVENTS, TRANSFERS
from streams.clearing.journal import first_record
from streams.feeds.moves import Moves
from streams.feeds.source_names import name_of
from streams.feeds.sources import Sources, sources_as_of
from tests.given_log import GivenLog
from tests.properties import examples

ACCOUNTS = [f"a{number}" for number in range(12)]
SOURCES = range(2)
NAMES = [name_of(TRANSFERS, "id", source) for source in SOURCES]
USED = 5

_FRAME = Decoder[EventFrame](EventFrame)

Row = tuple[int, int]
"""A source and an offset."""


class Owner:
    """Who routes a source, or did: ``told`` is up to where it has told every shard, ``outbox`` what is on its way."""

    def __init__(self, source: int, position: int, spread: Spread) -> None:
        self.source, self.position, self.spread = source, position, spread
        self.told = [position] * USED
        self.outbox: list[deque[EventFrame]] = [deque() for _ in range(USED)]

    def route(self, records: list[str]) -> None:
        """Frames to every shard of what ``records``, the source's accounts by offset, hold from where it is."""
        rows: dict[int, list[tuple[str, int]]] = {shard: [] for shard in range(USED)}
        for offset in range(self.position, len(records)):
            rows[home_of(records[offset], self.spread)].append((records[offset], offset))
        self.position = len(records)
        for shard, held in rows.items():
            columns = TransferColumns(
                account=[account for account, _ in held],
                margin=["cross"] * len(held),
                asset=["USDC"] * len(held),
                amount=["1"] * len(held),
                sequence=[1] * len(held),
                transfer_id=["t"] * len(held),
                source=[0] * len(held),
                source_offset=[offset for _, offset in held],
            )
            covered = self.range(self.told[shard], self.position)
            self.outbox[shard].append(EventFrame(time=0, transfers=columns, sources=[covered], spread=self.spread))
            self.told[shard] = self.position

    def confirmation(self) -> EventFrame:
        here = self.range(self.position, self.position)
        return EventFrame(time=0, sources=[here], spread=self.spread, confirmed=True)

    def range(self, first: int, end: int) -> SourceRange:
        return SourceRange(topic=TRANSFERS, topic_id="id", partition=self.source, first=first, next=end)


class Holder:
    """A shard: the rows of the accounts that it has, and where it is in its log."""

    def __init__(self, number: int, model: "Model") -> None:
        self.number, self.model = number, model
        self.sources = Sources(moves=Moves(number))
        self.accounts: dict[str, list[Row]] = {}
        self.kept: set[str] = set()
        self.next = 0

    def read(self) -> None:
        """Apply the next frame, and commit."""
        (record,) = self.model.log.read_range(EVENTS, self.number, self.next, self.next + 1)
        self.next += 1
        moves = self.sources.moves
        self.apply(self.sources.admit(_FRAME(record.value()), record.offset()))
        for come in moves.take_come():
            for part in come.parts:
                self.accounts |= {
                    account: [tuple(each) for each in orjson.loads(row)] for account, row in part.rows.items()
                }
            for _, early in come.early:
                self.apply(early)
            said = EventFrame(time=0, arrived=Arrived(spread=come.parts[0].spread, shard=self.number))
            self.model.append(come.parts[0].origin, said)
        if moves.take_acknowledged():
            self.kept.clear()
        if moves.is_due(self.sources.missing):
            self.send_away()
        moves.forget_floors(self.sources.next)

    def apply(self, frame: EventFrame) -> None:
        columns = frame.transfers
        for account, source, offset in zip(columns.account, columns.source, columns.source_offset, strict=True):
            self.accounts.setdefault(account, []).append((frame.sources[source].partition, offset))

    def send_away(self) -> None:
        """In two parts."""
        moves = self.sources.moves
        assert moves.departure is not None
        going = sorted(account for account in self.accounts if moves.is_departing(account))
        floors = moves.leave()
        for part in range(2):
            rows = {account: orjson.dumps(self.accounts.pop(account)).decode() for account in going[part::2]}
            arrival = Arrival(
                spread=moves.departure.spread,
                origin=self.number,
                part=part,
                parts=2,
                floors=floors,
                beyond={account: beyond for account in rows if (beyond := moves.beyond(account))},
                marks=0,
                clock=0,
                rows=rows,
            )
            self.model.append(moves.departure.to, EventFrame(time=0, arrival=arrival))
        self.kept = set(going)

    def begin_again(self) -> None:
        """What is in memory is lost; it is known again from the last record of the journal and from the log."""
        record: JournalRecord = replace(
            first_record(self.number, events_next=self.next, marks_next=0, parameters_next=0),
            sources=self.sources.take_all(),
            missing=dict(self.sources.missing),
            moves=self.sources.moves.record(),
        )
        self.sources = sources_as_of(self.model.log, record, -1, self.next)


class Model:
    """All of it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.log = GivenLog(USED)
        self.records: list[list[str]] = [[] for _ in SOURCES]
        self.committed = [0 for _ in SOURCES]
        self.spread = Spread(version=0, shards=2, target=2)
        self.owners = [Owner(source, 0, self.spread) for source in SOURCES]
        self.replaced: list[Owner] = []
        self.shards = [Holder(number, self) for number in range(USED)]
        self.told = 0
        self.parts = self.random.choice((1, 2))
        self.targets = [5, 3]

    def append(self, shard: int, frame: EventFrame) -> None:
        if frame.spread and not frame.spread.version:
            frame = replace(frame, spread=type(self)._unset())
        self.log.append(EVENTS, encode(frame), partition=shard)

    @staticmethod
    def _unset() -> object:
        return EventFrame(time=0).spread

    # --- what may happen ---------------------------------------------------------------------------------------------

    def publish(self) -> None:
        self.random.choice(self.records).append(self.random.choice(ACCOUNTS))

    def route(self) -> None:
        owner = self.random.choice([*self.owners, *self.replaced])
        owner.route(self.records[owner.source])

    def deliver(self) -> None:
        """One frame of somebody arrives."""
        on_its_way = [
            (owner, shard) for owner in (*self.owners, *self.replaced) for shard in range(USED) if owner.outbox[shard]
        ]
        if on_its_way:
            owner, shard = self.random.choice(on_its_way)
            self.append(shard, owner.outbox[shard].popleft())

    def commit(self, owner: Owner | None = None) -> None:
        """All frames of an owner have arrived, and where it is is committed, by the newest layout from here on."""
        owner = owner or self.random.choice(self.owners)
        for shard in range(USED):
            while owner.outbox[shard]:
                self.append(shard, owner.outbox[shard].popleft())
        self.committed[owner.source] = owner.position
        if owner.spread.version < self.spread.version:
            self._confirm(owner)

    def _confirm(self, owner: Owner) -> None:
        owner.spread = self.spread
        for shard in range(USED):
            self.append(shard, owner.confirmation())

    def replace_owner(self, source: int | None = None) -> None:
        """Another goes on where the last one has committed; that does not know it, and what it sent may arrive."""
        source = self.random.choice(SOURCES) if source is None else source
        self.replaced.append(self.owners[source])
        owner = self.owners[source] = Owner(source, self.committed[source], self.spread)
        if self.spread.version:
            self._confirm(owner)

    def forget_replaced(self) -> None:
        """One that has been replaced ends: what it had on its way is lost."""
        if self.replaced:
            self.replaced.pop(self.random.randrange(len(self.replaced)))

    def read(self) -> None:
        behind = [shard for shard in self.shards if shard.next < self.log.watermarks(EVENTS, shard.number)[1]]
        if behind:
            self.random.choice(behind).read()

    def begin_again(self) -> None:
        self.random.choice(self.shards).begin_again()

    def drive(self) -> None:
        """The driver goes on, if nothing is waited for."""
        spread = self.spread
        if spread.shards == spread.target:
            if self.targets:
                self._change(spread.shards, self.targets.pop(0), 0)
            return
        if spread.step and self.told != spread.version:
            self.told = spread.version
            for old, new in moves_at(spread.step, spread):
                self.append(old, EventFrame(time=0, departure=Departure(spread=spread, to=new, sources=tuple(NAMES))))
        for old, _ in moves_at(spread.step, spread):
            moves = self.shards[old].sources.moves
            if (moves.spread.shards, moves.spread.target) != (spread.shards, spread.target) or moves.left < spread.step:
                return
        if not spread.step and any(
            shard.sources.moves.versions.get(name, 0) < spread.version for shard in self.shards for name in NAMES
        ):
            return
        if later := [step for step in steps_of(spread) if step > spread.step]:
            self._change(spread.shards, spread.target, later[0])
        else:
            self._change(spread.target, spread.target, 0)

    def _change(self, shards: int, target: int, step: int) -> None:
        version = self.spread.version + 1
        parts = self.parts if shards != target else 1
        self.spread = Spread(version=version, shards=shards, target=target, step=step, parts=parts)

    # --- a life ------------------------------------------------------------------------------------------------------

    def live(self, steps: int) -> None:
        actions = (
            [self.publish] * 6
            + [self.route] * 6
            + [self.deliver] * 14
            + [self.read] * 14
            + [self.commit] * 2
            + [self.drive] * 2
            + [self.replace_owner, self.forget_replaced, self.begin_again]
        )
        for _ in range(steps):
            self.random.choice(actions)()

    def come_to_rest(self) -> None:
        """Nobody is replaced any more; what has been replaced may still deliver all that it had."""
        for _ in range(300):
            for owner in self.owners:
                owner.route(self.records[owner.source])
                self.commit(owner)
            for shard in self.shards:
                while shard.next < self.log.watermarks(EVENTS, shard.number)[1]:
                    shard.read()
            self.drive()
            self.deliver()
            if not self.targets and self.spread.shards == self.spread.target == 3:
                break
        for owner in self.owners:
            self.commit(owner)
        for shard in self.shards:
            while shard.next < self.log.watermarks(EVENTS, shard.number)[1]:
                shard.read()


@settings(max_examples=examples(400))
@given(st.integers(0, 2**32))
def test_every_row_counts_once_in_the_shard_that_it_belongs_to(seed: int) -> None:
    model = Model(seed)
    model.live(400)
    model.come_to_rest()
    assert (model.spread.shards, model.spread.target) == (3, 3), model.spread
    everything: dict[str, Counter[Row]] = {account: Counter() for account in ACCOUNTS}
    for source, records in enumerate(model.records):
        for offset, account in enumerate(records):
            everything[account][source, offset] += 1
    for shard in model.shards:
        for account, rows in shard.accounts.items():
            assert shard.number == home_of(account, model.spread), f"{account} is in shard {shard.number}"
            assert Counter(rows) == everything.pop(account), account
            for source in SOURCES:
                offsets = [offset for of, offset in rows if of == source]
                assert offsets == sorted(offsets), "the rows of a source come in its order"
    assert not any(everything.values())


def test_a_repair_for_an_account_that_is_elsewhere_is_not_taken() -> None:
    spread = Spread(version=3, shards=3, target=3)
    here, elsewhere = (next(name for name in ACCOUNTS if home_of(name, spread) == shard) for shard in (1, 2))
    sources = Sources(moves=Moves(1))
    sources.admit(EventFrame(time=0, sources=[], spread=spread), 0)
    columns = TransferColumns(
        account=[here, elsewhere],
        margin=["cross"] * 2,
        asset=["USDC"] * 2,
        amount=["1"] * 2,
        sequence=[1] * 2,
        transfer_id=["t"] * 2,
    )
    taken = sources.admit(EventFrame(time=0, repaired=True, transfers=columns), 1)
    assert taken.transfers.account == [here]
    assert sources.moves.take_strays() == [elsewhere]
    assert sources.moves.take_strays() == []


def test_a_shard_knows_what_comes_elsewhere_of_an_account_that_it_is_about_to_send() -> None:
    spread = Spread(version=2, shards=2, target=1, step=1)
    going, staying = (next(name for name in ACCOUNTS if shard_of(name, 2) == shard) for shard in (1, 0))
    moves = Moves(1, ShardMoves(spread=spread, cuts={f"{TRANSFERS}:id": (-1, 7)}))
    assert moves.elsewhere(going) == [NAMES[1]]
    assert Moves(0, moves.record()).elsewhere(staying) == [], "it does not move"
    assert Moves(1, ShardMoves(spread=spread)).elsewhere(going) == [], "no source is routed by that layout yet"
    moves.departure = Departure(spread=spread, to=0, sources=(NAMES[1],))
    moves.leave()
    assert moves.elsewhere(going) == [], "it has gone"
