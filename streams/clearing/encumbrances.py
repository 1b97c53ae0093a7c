"""What an ordinary account has nothing of: what suspends it, waits, is owed, was refused, or holds its verdict.

Of a hundred thousand accounts a few have any of it, so an account keeps it apart, and keeps nothing while there is
nothing. To be read it is there all the same: empty, the same empty one for all accounts, which nobody can change.
"""

from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

import msgspec

from schemas.messages import DeferredEvent, Hold, ParkedTransfer, WaitingFill
from streams.clearing.unapplied import Unapplied

_T = TypeVar("_T")


class Encumbrances(msgspec.Struct, gc=False):
    """Those of one account, as ``AccountState`` has them. No part of it refers back, so none needs the collector."""

    suspended_reason: str | None = None
    unread: bytes | None = None
    told_liquidatable: bool = False
    held: Hold | None = None
    unapplied: Unapplied = msgspec.field(default_factory=Unapplied)
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    parked: list[ParkedTransfer] = msgspec.field(default_factory=list)
    waiting_fills: list[WaitingFill] = msgspec.field(default_factory=list)
    deferred: list[DeferredEvent] = msgspec.field(default_factory=list)
    resumed: int = 0

    @property
    def is_none(self) -> bool:
        """Whether nothing is suspended, waits, was refused or is in the dead letters (any more)."""
        unapplied = self.unapplied
        return not (
            self.parked
            or self.waiting_fills
            or self.deferred
            or self.resumed
            or self.refused
            or unapplied.events
            or unapplied.credits
            or unapplied.by_place
            or self.held is not None
            or self.unread is not None
            or self.suspended_reason is not None
        )


class _NothingUnapplied(Unapplied):
    """What is read of every account that owes nothing."""

    __slots__ = ()

    def add(self, place: str, *, credit: bool = False, whole: bool = False) -> None:
        """It is no account's: one begins to owe by ``AccountState.encumbered()``."""
        raise AssertionError("what is owed by nobody cannot grow")

    def settle(self, place: str, *, credit: bool) -> None:
        """Nothing is owed, so nothing can be settled."""
        raise AssertionError("nothing is owed")


class Encumbrance(Generic[_T]):
    """A field of an account's encumbrances as one of the account: ``empty`` as long as it has none."""

    __slots__ = ("_empty", "_name")

    def __init__(self, empty: _T) -> None:
        self._empty = empty

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, state: Any, owner: type) -> _T:
        kept = state.encumbrances
        return self._empty if kept is None else cast("_T", getattr(kept, self._name))

    def __set__(self, state: Any, value: _T) -> None:
        is_nothing = value == self._empty or (isinstance(value, list) and not value)
        if state.encumbrances is not None or not is_nothing:
            setattr(state.encumbered(), self._name, value)


NO_EVENTS: Any = ()
"""No list of events; to be appended to is for those of :class:`Encumbrances`."""

NO_PLACES: Any = MappingProxyType({})
NOTHING_UNAPPLIED: Unapplied = _NothingUnapplied()
