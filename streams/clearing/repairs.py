"""Repaired events: sent again by hand, each is applied once, in the place of one that its account lacks.

What an account lacks lies in the dead letters or waits for parameters. A repair of anything else (it has been sent
before, or for another account, or by mistake) moves nothing, goes to the dead letters and is told.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from schemas.messages import EventFrame, FillColumns, ParkedTransfer, TransferColumns, WaitingFill
from schemas.types import CROSS
from streams.clearing.account import AccountState
from streams.clearing.held_back import HeldBack, Kind
from streams.clearing.outbox import REASON_MAX, Outbox
from streams.clearing.unapplied import is_same, place_of_row, rows_at
from streams.errors import RepairError

_Held = TypeVar("_Held", ParkedTransfer, WaitingFill)


class Repairs:
    """Decides whether a row of a repaired frame is applied."""

    def __init__(self, held_back: HeldBack, outbox: Outbox) -> None:
        self._held_back = held_back
        self._outbox = outbox

    def takes(self, state: AccountState, offset: int, frame: EventFrame, kind: Kind, index: int) -> bool:
        """Whether a repaired row is to be applied; if not, it is in the dead letters, and its account is told."""
        columns: TransferColumns | FillColumns = getattr(frame, kind)
        place = place_of_row(frame, columns, index)
        waiting = _waiting(state, columns, index, place)
        if waiting is not None:
            self._held_back.give_place(state, waiting)
            return True
        if state.unapplied.owes(place):
            state.unapplied.read(place, rows_at(frame, columns, state.account, place))
            return True
        which = f"of {place}" if place else "that does not say which record it is of"
        error = RepairError(f"a repaired event {which}: the account lacks no such event, so it may have been repaired")
        self._held_back.put_aside(state, offset, frame, kind, index, error)
        self._outbox.alert(state, CROSS, "repair_refused", reason=str(error)[:REASON_MAX])
        return False


def _waiting(
    state: AccountState, columns: TransferColumns | FillColumns, index: int, place: str
) -> ParkedTransfer | WaitingFill | None:
    """The event that waits for parameters in whose place a repaired row comes: one of its record, if possible of its
    name; of its name, where one of them does not say which record it is of."""
    if isinstance(columns, TransferColumns):
        return _best(state.parked, place, lambda held: held.sequence == columns.sequence[index])
    name = (columns.trade_id[index], columns.order_id[index])
    return _best(state.waiting_fills, place, lambda held: (held.trade_id, held.order_id) == name)


def _best(waiting: Sequence[_Held], place: str, is_named: Callable[[_Held], bool]) -> _Held | None:
    fitting = [held for held in waiting if (is_same(held.place, place) if held.place and place else is_named(held))]
    return next((held for held in fitting if is_named(held)), fitting[0] if fitting else None)
