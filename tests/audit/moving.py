"""A market of two shards that becomes one of three, or fewer, on production's engine: routers, layouts and departures
are what a test says."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from schemas.codec import encode
from schemas.messages import Departure, EventFrame, ShardLayout, SourceRange, Spread
from schemas.partitioning import home_of, moves_at, place_of, steps_of
from schemas.topics import EVENTS, INPUTS, LAYOUT, TRANSFERS
from streams.broker.layout import LAYOUT_KEY
from streams.memory.scheduler import EPOCH_US
from tests.audit.scripts import Market


class MovingMarket(Market):
    """Accounts are spread over ``first`` shards at first, and there may be ``most``. Every frame says where its rows
    come from."""

    def __init__(self, first: int = 2, most: int = 3) -> None:
        super().__init__(shards=most)
        self.layout = ShardLayout(shards=first, time=EPOCH_US)
        self.write_layout(self.layout)
        self.spread_routed: Any = msgspec.UNSET
        """What the routers say; they may be behind the layout."""
        self._ahead: dict[str, Spread] = {}
        """The topics whose routers are ahead of the others."""

    @property
    def shards(self) -> range:
        return range(self.layout.shards_used)

    # --- the layout --------------------------------------------------------------------------------------------------

    def write_layout(self, layout: ShardLayout) -> None:
        self.layout = layout
        self.cluster.append(LAYOUT, LAYOUT_KEY, encode(layout))

    def change(self, *, shards: int | None = None, target: int, step: int = 0) -> None:
        """The next layout stands; routers do not know of it yet."""
        now = self.layout
        self.write_layout(
            ShardLayout(
                shards=shards or now.shards,
                time=self.now_us,
                version=(now.version or 0) + 1,
                target=target,
                step=step,
                used=max(now.shards_used, target),
                founded=now.founded or now.shards,
            )
        )

    def learn(self, *topics: str) -> None:
        """The routers of ``topics`` (none: of all) follow the layout from now on, and tell every shard so."""
        if topics:
            self._confirm(topics)
            return
        self.spread_routed = self.layout.spread
        self._confirm(INPUTS)
        self._ahead.clear()
        self.router_progress()

    def _confirm(self, topics: Sequence[str]) -> None:
        self._ahead.update(dict.fromkeys(topics, self.layout.spread))
        places = [
            SourceRange(topic=topic, topic_id="1", partition=0, first=offset, next=offset)
            for topic, offset in self.routed.items()
            if topic in topics
        ]
        for shard in self.shards:
            told = [replace(place, first=self._told_next.get((place.topic, shard), 0)) for place in places]
            self.events(EventFrame(time=self.now_us, sources=told), shard)
            for place in places:
                self._told_next[place.topic, shard] = place.next
            self.events(EventFrame(time=self.now_us, sources=places, confirmed=True), shard)

    def depart(self) -> None:
        """The old shards of the step are told to send its accounts."""
        spread = self.layout.spread
        for old, new in moves_at(spread.step, spread):
            sources = tuple(f"{topic}:0:1" for topic in INPUTS)
            frame = EventFrame(time=self.now_us, departure=Departure(spread=spread, to=new, sources=sources))
            super().events(frame, old)

    def move(self, step: int) -> None:
        """A whole step: afterwards its accounts are in their new shards."""
        self.change(target=self.layout.spread.target, step=step)
        self.learn()
        self.depart()
        self.settle()

    def rescale(self, target: int) -> None:
        """From the present number of shards to another, all of it."""
        self.change(target=target)
        self.running.cycle(5)
        self.learn()
        self.settle()
        for step in steps_of(self.layout.spread):
            self.move(step)
        self.change(shards=target, target=target)
        self.learn()
        self.settle()

    # --- inputs ------------------------------------------------------------------------------------------------------

    def home(self, account: str, topic: str) -> int:
        spread = self._ahead.get(topic, self.spread_routed)
        return home_of(account, spread or replace(self.layout, target=msgspec.UNSET).spread)

    def _spread_of(self, frame: EventFrame) -> Any:
        """The layout by which a frame is routed."""
        topics = {source.topic for source in frame.sources}
        if frame.transfers.account:
            topics = {TRANSFERS}
        return self._ahead[topics.pop()] if topics and topics <= self._ahead.keys() else self.spread_routed

    def events(self, frame: EventFrame, shard: int = 0, *, stamped: bool = True) -> None:
        if frame.departure is msgspec.UNSET and (spread := self._spread_of(frame)):
            frame = replace(frame, spread=spread)
        if shard < len(self.shards):
            super().events(frame, shard, stamped=stamped)

    def frames_with(self, word: str, shard: int) -> list[Any]:
        """The records of a shard's events that say ``word``."""
        return [record for record in self.records(EVENTS, shard) if f'"{word}":'.encode() in (record.value or b"")]


def accounts_going(old: int, new: int, count: int, *, shards: int = 2, target: int = 3) -> list[str]:
    """Names of accounts that go from one shard to the other."""
    names = (f"account-{number}" for number in range(10_000))
    spread = Spread(version=0, shards=shards, target=target)
    return [name for name in names if place_of(name, spread)[:2] == (old, new)][:count]
