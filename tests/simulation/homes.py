"""Which shard has an account while accounts move between shards: from what is committed, without a line of the engine's
code for it.

An account is in the shard that the first layout names until that shard commits that it has sent it away, then in none
until the other commits that it has come, then in that one.
"""

from dataclasses import dataclass
from functools import lru_cache

from msgspec.structs import replace

from schemas import partitioning
from schemas.messages import Spread
from streams.memory.scheduler import Violation

place_of = lru_cache(maxsize=10_000)(partitioning.place_of)
home_of = lru_cache(maxsize=10_000)(partitioning.home_of)
shard_of = lru_cache(maxsize=10_000)(partitioning.shard_of)


@dataclass(frozen=True, slots=True)
class Move:
    """Accounts of shard ``origin`` that go to shard ``to`` at the step of ``spread``, whatever its version."""

    spread: Spread
    origin: int
    to: int

    @classmethod
    def of(cls, spread: Spread, origin: int, to: int) -> "Move":
        """What leaves ``origin`` for ``to`` at the step of ``spread``."""
        return cls(replace(spread, version=0), origin, to)

    def takes(self, account: str) -> bool:
        """Whether ``account`` goes with it."""
        return place_of(account, self.spread) == (self.origin, self.to, self.spread.step)


class Homes:
    """Where accounts are as of what has been committed, by all shards."""

    def __init__(self, founded: int) -> None:
        self._founded = founded
        self._sent: dict[Move, None] = {}
        """In the order in which they were sent."""
        self._arrived: dict[Move, int] = {}
        """The offset of the word of it in the events of the shard that they have left."""

    def send(self, move: Move) -> None:
        """Accounts have been sent away.

        Raises:
            Violation: they had been.
        """
        if move in self._sent:
            raise Violation(f"accounts are sent away once: {move}")
        self._sent[move] = None

    def arrive(self, move: Move, offset: int) -> None:
        """Accounts have come; the word of that is at ``offset`` of the events of the shard that they have left.

        Raises:
            Violation: they had not been sent, or have come before.
        """
        if move not in self._sent or move in self._arrived:
            raise Violation(f"accounts come once, when they have been sent: {move}")
        self._arrived[move] = offset

    def of(self, account: str) -> int | None:
        """The shard that has ``account``; None: it is on its way."""
        home: int | None = shard_of(account, self._founded)
        for move in self._sent:
            if move.takes(account):
                home = move.to if move in self._arrived else None
        return home

    def may_forget(self, account: str, shard: int, events_next: int) -> bool:
        """Whether ``shard`` has had the word, below ``events_next``, that an account it sent away has come."""
        return any(
            move.origin == shard and move.takes(account) and offset < events_next
            for move, offset in self._arrived.items()
        )

    def is_on_its_way(self, account: str, shard: int) -> bool:
        """Whether ``shard`` has sent ``account`` away at some time."""
        return any(move.origin == shard and move.takes(account) for move in self._sent)


class Holdings:
    """Which accounts one shard has, in the order of its own events."""

    def __init__(self, shard: int, founded: int) -> None:
        self._shard = shard
        self._founded = founded
        self._moves: list[Move] = []

    def has(self, account: str) -> bool:
        """Whether the shard has ``account``."""
        has = shard_of(account, self._founded) == self._shard
        for move in self._moves:
            if move.takes(account):
                has = move.to == self._shard
        return has

    def add(self, move: Move) -> None:
        """Accounts have gone, or come."""
        self._moves.append(move)

    def knows(self, move: Move) -> bool:
        """Whether these accounts have gone, or come."""
        return move in self._moves
