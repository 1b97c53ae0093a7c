"""Changing the number of shards while everything runs: what ``margin-clearing rescale`` does.

Accounts go in steps (``schemas.partitioning.moves_at``), in each of which a shard sends accounts to one other and gets
some from one other at most. Whoever drives it may die at any time, and the next one goes on: how far it is stands in
``margin.layout.v1`` and in the shards' journals, and every word may be given twice. One that stood still meanwhile and
goes on writes no layout: the next one has taken its transactional id. What happens in the shards is in
``streams.feeds.moves``.

1. The topics of the shards get partitions, the layout says which number is to come, the engines take the new shards,
   and every router confirms that it routes by this layout, which moves nobody yet: up to here it can be called off.
2. For each step: the layout names it; the shards are told which sources they must have confirmed before they send
   accounts away; the journals say when all have gone and come.
3. The layout says the new number alone. Shards that have lost all their accounts stay, empty.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from schemas.codec import encode
from schemas.messages import Departure, EventFrame, JournalRecord, ShardLayout, ShardMoves, Spread
from schemas.partitioning import change_of, moves_at, place_of, steps_of
from schemas.topics import ACCOUNTS, EVENTS, INPUTS, JOURNAL, LAYOUT
from schemas.types import is_identifier
from streams.broker.kafka import Kafka
from streams.broker.layout import LAYOUT_KEY, require_layout
from streams.broker.producer import TransactionalProducer
from streams.broker.reader import LogReader
from streams.errors import OperatorError
from streams.feeds.gaps import standing
from streams.feeds.holders import departure_sentences
from streams.feeds.journal import journal_end
from streams.feeds.moves import Moves
from streams.feeds.source_names import name_of
from streams.feeds.sources import missing_sentences
from streams.runtime import Runtime
from streams.visible import some_of

SHARDS_MAX = 1024
ACCOUNTS_AT_ONCE, PARTS_MAX = 20_000, 256
"""About how many accounts move at a step at most, all shards together."""
_CLIENT_ID = "margin-rescale"
_SHARD_TOPICS = (EVENTS, ACCOUNTS, JOURNAL)


@dataclass(frozen=True, slots=True)
class RescalePlan:
    """What changing the number of shards means: ``layout`` is as it is now, ``spread`` as it is changed.

    ``accounts`` counts those that go, by shard from and to and step; ``rows`` all that there are. ``grow`` are the
    topics that need more partitions, with the number. ``faults`` say what stands against it."""

    layout: ShardLayout
    spread: Spread
    accounts: Mapping[tuple[int, int, int], int]
    rows: int
    grow: Mapping[str, int]
    faults: list[str] = field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        """The steps that are left."""
        return [step for step in steps_of(self.spread) if step > self.spread.step]


class Rescaling:
    """Drives one change to ``target`` shards; :meth:`advance` does what can be done, until nothing is left."""

    def __init__(self, kafka: Kafka, target: int) -> None:
        if not 1 <= target <= SHARDS_MAX:
            raise OperatorError(f"--shards must be from 1 to {SHARDS_MAX}, got {target}")
        self._kafka = kafka
        self._target = target
        self._reader: LogReader = kafka.log_reader(_CLIENT_ID)
        self._writer: TransactionalProducer | None = None
        self._told: tuple[int, list[str]] = -1, []
        self.layout = require_layout(self._reader)

    def close(self) -> None:
        """Let go of Kafka."""
        if self._writer is not None:
            self._writer.close()
        self._reader.close()

    # --- before ------------------------------------------------------------------------------------------------------

    def plan(self) -> RescalePlan:
        """What there is to do, and what stands against it.

        Raises:
            BrokerError: Kafka does not answer.
        """
        names, spread = self._accounts(), self.layout.spread
        if not self.layout.is_moving:
            spread = replace(spread, target=self._target, step=0, parts=_parts(names, spread.shards, self._target))
        moving = Counter(place for account in names if (place := place_of(account, spread))[2] > spread.step)
        least = max(spread.shards, self._target)
        counts = {topic: self._reader.partitions(topic) for topic in _SHARD_TOPICS}
        grow = {topic: least for topic, count in counts.items() if count < least}
        return RescalePlan(self.layout, spread, moving, len(names), grow, self._faults())

    def _accounts(self) -> set[str]:
        """The accounts that have rows; read whole."""
        names: set[str] = set()
        for shard in range(self.layout.shards_used):
            held: set[str] = set()  # what is deleted here was not deleted where it is now
            low, end = self._reader.watermarks(ACCOUNTS, shard)
            for record in self._reader.read_range(ACCOUNTS, shard, low, end):
                account = record.key_text
                if account is None or not is_identifier(account):
                    continue
                if record.value() is None:
                    held.discard(account)
                else:
                    held.add(account)
            names |= held
        return names

    def _faults(self) -> list[str]:
        layout = self.layout
        if layout.is_moving and layout.target != self._target:
            return [
                f"accounts are on their way from {layout.shards} to {layout.target} shards: go on with that first "
                f"(--shards {layout.target})"
            ]
        faults: list[str] = []
        for shard in range(layout.shards_used):
            record = self._record(shard)
            name = f"shard {shard}"
            if record is None:
                faults.append(f"{name} has no journal that can be read: no engine has ever had it")
                continue
            if standing(record.suspension):
                faults.append(
                    f"{name} is suspended, and a suspended shard sends nobody away: see `margin-clearing resume`"
                )
            faults += missing_sentences(name, record.missing, {})
        return faults

    def begin(self, plan: RescalePlan) -> None:
        """Begin as planned, or go on.

        Raises:
            OperatorError: something stands against it; nothing has been done.
            BrokerError: Kafka does not answer, or refuses.
        """
        if plan.faults:
            raise OperatorError("; ".join(plan.faults))
        self._take_over()
        if self.layout != plan.layout:
            raise OperatorError("somebody else has changed the layout since this was planned: begin again")
        if plan.grow:
            self._kafka.add_partitions(plan.grow)
        if not self.layout.is_moving and self.layout.shards != self._target:
            self._write(replace(plan.spread, version=self.layout.spread.version + 1, step=0))

    def abort(self) -> None:
        """Call off what has been begun and has moved nobody yet.

        Raises:
            OperatorError: there is nothing to call off, or accounts have moved. BrokerError: Kafka does not take it.
        """
        self._take_over()
        layout = self.layout
        if not layout.is_moving:
            raise OperatorError(f"accounts are spread over {layout.shards} shards and none is on its way elsewhere")
        if layout.step:
            raise OperatorError(
                f"accounts have begun to move to {layout.target} shards: go on (--shards {layout.target}); then they "
                f"can move back (--shards {layout.shards})"
            )
        # The next version may have been told to shards already, by somebody who ended before it was written.
        self._write(replace(layout.spread, version=layout.spread.version + 2, target=layout.shards, step=0, parts=1))

    # --- one step after the other ------------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        """Whether accounts are spread over the target, and nothing else."""
        return not self.layout.is_moving and self.layout.shards == self._target

    def advance(self) -> list[str]:
        """Do what can be done now; what is waited for, a sentence each, none if something was done.

        Raises:
            BrokerError: Kafka does not answer, or does not take it.
        """
        if self.is_done:
            return []
        spread = self.layout.spread
        self._tell_departures(spread)
        if waits := self._waits():
            return waits
        if later := [step for step in steps_of(spread) if step > spread.step]:
            following = replace(spread, version=spread.version + 1, step=later[0])
            self._tell_departures(following)
        else:
            following = replace(spread, version=spread.version + 1, shards=spread.target, step=0, parts=1)
        self._write(following)
        return []

    def _take_over(self) -> None:
        """Let nobody write the layout who has begun before, and know the one that stands then."""
        self._writer = self._kafka.transactional_producer(_CLIENT_ID)
        self._writer.init()
        self.layout = require_layout(self._reader)

    def _write(self, spread: Spread) -> None:
        before = self.layout
        layout = ShardLayout(
            shards=spread.shards,
            time=self._kafka.runtime.time_ns() // 1000,
            version=spread.version,
            target=spread.target,
            step=spread.step,
            parts=spread.parts,
            used=max(before.shards_used, spread.target),
            founded=before.founded or before.shards,
        )
        assert self._writer is not None, "a change is begun, or gone on with, before anything is written"
        self._writer.begin()
        self._writer.produce(LAYOUT, encode(layout), key=LAYOUT_KEY.decode(), partition=0)
        self._writer.commit()
        self.layout = layout

    def _tell_departures(self, spread: Spread) -> None:
        """Tell the shards of a step which sources must be confirmed before they send accounts away.

        They are told before any router knows of the step: if nobody is left to tell them then, their accounts would
        wait. They are told again if there are other sources when routers do know.
        """
        sources = self._sources() if spread.step else []
        if not spread.step or self._told == (spread.version, sources):
            return
        self._told, time_us = (spread.version, sources), self._kafka.runtime.time_ns() // 1000
        frames = {
            old: encode(EventFrame(time=time_us, departure=Departure(spread=spread, to=new, sources=tuple(sources))))
            for old, new in moves_at(spread.step, spread)
        }
        producer = self._kafka.idempotent_producer(_CLIENT_ID, compression="lz4")
        try:
            for shard, frame in frames.items():
                producer.produce(EVENTS, frame, partition=shard)
            producer.flush()
        finally:
            producer.close()

    def _sources(self) -> list[str]:
        """The partitions of the exchange's topics that there are now. Whoever takes one that is added later reads the
        layout before."""
        ids = self._kafka.topic_ids(INPUTS)
        return [
            name_of(topic, ids[topic], partition)
            for topic in INPUTS
            for partition in range(self._reader.partitions(topic))
        ]

    # --- what is waited for ------------------------------------------------------------------------------------------

    def _waits(self) -> list[str]:
        spread = self.layout.spread
        if not spread.step:
            sources = self._sources()
            return [wait for shard in range(self.layout.shards_used) for wait in self._waits_for(shard, sources)]
        return [wait for old, new in moves_at(spread.step, spread) for wait in self._waits_for_departure(old, new)]

    def _waits_for(self, shard: int, sources: list[str]) -> list[str]:
        """What keeps a shard from being ready: it has no owner yet, or does not know that routers have the layout."""
        record = self._record(shard)
        if record is None:
            return [f"shard {shard}: no engine has taken it yet (is there one of this version that runs?)"]
        moves = self._moves(record)
        known = {} if moves is None else Moves(shard, moves).versions
        waiting = [name for name in sources if known.get(name, -1) < self.layout.spread.version]
        if not waiting:
            return []
        return [f"shard {shard}: no router has confirmed yet that it routes by the new layout: {some_of(waiting)}"]

    def _waits_for_departure(self, old: int, new: int) -> list[str]:
        """What the accounts of the step wait for that go from one shard to the other: one sentence at least until those
        have come."""
        name, record = f"shard {old}", self._record(old)
        moves = None if record is None else self._moves(record)
        if moves is not None and moves.left >= self.layout.spread.step:
            return []
        if record is None or moves is None or moves.departure is None:
            return [f"{name} has not been told yet to send accounts to shard {new} (does an engine run that has it?)"]
        return list(departure_sentences(name, record)) or [f"{name} is about to send accounts to shard {new}"]

    def _moves(self, record: JournalRecord) -> ShardMoves | None:
        """What a shard's journal says of moves, of the present layout or one before it in the same change."""
        moves, spread = record.moves or None, self.layout.spread
        if moves is None or change_of(moves.spread) != change_of(spread):
            return None
        return moves

    def _record(self, shard: int) -> JournalRecord | None:
        end = journal_end(self._reader, shard)
        return None if end is None else end.record


def _parts(names: Collection[str], shards: int, target: int) -> int:
    """How many parts the accounts of one distance go in: an engine may have all of the shards, and does nothing else
    with what it sends and takes in at once."""
    spread = Spread(version=0, shards=shards, target=target)
    largest = max(Counter(place_of(account, spread)[2] for account in names if shards != target).values(), default=0)
    return min(PARTS_MAX, 1 + largest // ACCOUNTS_AT_ONCE)


def drive(rescaling: Rescaling, runtime: Runtime, say: Callable[[list[str]], object], *, look_s: float = 0.2) -> None:
    """Advance until nothing is left to do; ``say`` is told what is waited for, whenever it was looked.

    Raises:
        BrokerError: Kafka does not answer, or does not take it.
    """
    while not rescaling.is_done:
        waits = rescaling.advance()
        say(waits)
        if waits:
            runtime.sleep(look_s)
