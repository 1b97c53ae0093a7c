"""Whose accounts are whose while they move between shards, as the shards' journals say: for all who read a deployment.

The layout says where accounts are to be; a shard's journal says which of them it has, which it still has to send away
and for what that waits.
"""

from collections.abc import Iterator

from msgspec import UnsetType

from schemas.messages import JournalRecord, ShardLayout, ShardMoves, Spread
from schemas.partitioning import change_of, home_of, place_of, shard_of
from streams.feeds.gaps import standing
from streams.feeds.moves import Holding, Moves, holding_at
from streams.visible import some_of


class Holder:
    """Which accounts one shard has as of a record of its journal; ``moves`` are the ones of that record."""

    def __init__(self, shard: int, layout: ShardLayout, moves: ShardMoves | UnsetType) -> None:
        founded = layout.founded or layout.shards
        self._shard, self._moves = shard, moves or None
        self.spread = moves.spread if moves and moves.spread.version else Spread(
            version=0, shards=founded, target=founded
        )  # fmt: skip

    def holding(self, account: str) -> Holding:
        """Whether ``account`` is the shard's."""
        spread, shard = self.spread, self._shard
        if self._moves is None or spread.shards == spread.target:
            return "own" if home_of(account, spread) == shard else "other"
        old, new, step = place_of(account, spread)
        if not step:
            return "own" if old == shard else "other"
        if old == shard:
            return holding_at(self._moves, step)
        return "own" if new == shard and step <= self._moves.arrived else "other"

    def home(self, account: str) -> int:
        """Where the account's rows are routed to, by the last layout of which the shard knows."""
        return home_of(account, self.spread)


def shards_to_ask(account: str, layout: ShardLayout) -> list[int]:
    """The shards whose journals say which of them has ``account``: one, or the old and the new one."""
    spread = layout.spread
    if spread.shards == spread.target:
        return [shard_of(account, spread.shards)]
    old, new, _ = place_of(account, spread)
    return list(dict.fromkeys((old, new)))


def has_come(account: str, layout: ShardLayout, moves: ShardMoves | UnsetType) -> bool:
    """Whether the new shard of ``account``, whose journal says ``moves``, has it already."""
    spread = layout.spread
    if not moves or change_of(moves.spread) != change_of(spread):
        return False
    return place_of(account, spread)[2] <= moves.arrived


def departure_sentences(name: str, record: JournalRecord) -> Iterator[str]:
    """What the accounts wait for that are to leave a shard, as its journal's last record says, and what to do; nothing
    if none are to."""
    departure = record.moves.departure if record.moves else None
    if not record.moves or departure is None:
        return
    step = f"step {departure.spread.step}"
    accounts = f"the accounts that go to shard {departure.to} with {step}"
    if record.moves.sent:
        yield (
            f"{name} has sent {accounts}, and shard {departure.to} has not said yet that it has them: if it stays so, "
            "see whether an engine owns that shard and applies its frames."
        )
        return
    if standing(record.suspension):
        yield (
            f"{name} is suspended, and sends nobody away meanwhile: {accounts} wait for its end (margin-clearing "
            "resume --all --reason TEXT)."
        )
    moves = Moves(record.shard, record.moves)
    unrouted = [source for source in moves.waits_for(record.missing) if source not in record.missing]
    if lacking := [source for source in departure.sources if source in record.missing]:
        yield f"{name}: {accounts} wait for what is missing of {some_of(lacking)}."
    if unrouted:
        versions = sorted({moves.versions.get(source, 0) for source in unrouted})
        yield (
            f"{name}: {accounts} wait until routers confirm that they route {some_of(unrouted)} by version "
            f"{departure.spread.version} of the layout, not {' or '.join(map(str, versions))}: see whether routers own "
            "those partitions, all of this version of margin-clearing."
        )
