"""The accounts of a shard and their margin groups: who is there, which row each group has, and which are to be decided.

A group is a row of the ledger's columns. Which row it is depends on when it came, so nothing that is decided may depend
on it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from schemas.types import CROSS
from streams.clearing.account import WITHOUT_ORDERS, AccountState, GroupState, read_account, set_aside
from streams.clearing.admission import Admission
from streams.clearing.outbox import REASON_MAX, Outbox
from streams.clearing.plain_rows import PlainRows
from streams.clearing.row_text import RowWriter
from streams.errors import InputError
from streams.logs import event
from streams.margin.ledger import Ledger
from streams.margin.limits import ISOLATED_GROUPS_MAX
from streams.margin.rows import RowNames
from streams.margin.slots import Rows

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Agenda:
    """The rows that are to be decided, and why.

    ``touched``: an event or a change of its account may have changed it. ``overdue``: its command has expired.
    ``undone``: its shard has just been restored. ``watched``: whatever becomes of it must be told. ``stranded``: it is
    below its requirement and has nothing that could be traded. ``heeding``: it matters when it is healthy at its target
    again, as a command would be withdrawn, or its attempts begin anew.
    """

    touched: set[int] = field(default_factory=set)
    overdue: set[int] = field(default_factory=set)
    undone: set[int] = field(default_factory=set)
    watched: set[int] = field(default_factory=set)
    stranded: set[int] = field(default_factory=set)
    heeding: set[int] = field(default_factory=set)

    def watch(self, group: GroupState) -> None:
        """Keep the group among the watched, the stranded and the heeding ones as long as it is one."""
        heeds = group.liquidation is not None and group.liquidation.heeds_target
        for rows, is_one in (
            (self.watched, group.is_watched),
            (self.stranded, group.status in WITHOUT_ORDERS),
            (self.heeding, heeds),
        ):
            if is_one:
                rows.add(group.row)
            else:
                rows.discard(group.row)

    def forget(self, row: int) -> None:
        """The row is nobody's any more."""
        for rows in (self.touched, self.overdue, self.undone, self.watched, self.stranded, self.heeding):
            rows.discard(row)


class Owners:
    """Whose each row is: an account and one of its groups. ``names`` says which group; a mapping that takes a word."""

    def __init__(self, names: RowNames) -> None:
        self._names = names
        self._states: list[AccountState | None] = []

    def get(self, row: int) -> tuple[AccountState, GroupState] | None:
        """Whose ``row`` is, if it is anybody's."""
        state = self._states[row] if row < len(self._states) else None
        return None if state is None else (state, state.groups[self._names.margin(row)])

    def __getitem__(self, row: int) -> tuple[AccountState, GroupState]:
        state = self._states[row]
        if state is None:
            raise KeyError(row)
        return state, state.groups[self._names.margin(row)]

    def __iter__(self) -> Iterator[int]:
        return (row for row, state in enumerate(self._states) if state is not None)

    def own(self, row: int, state: AccountState) -> None:
        """``row`` is one of the account's groups."""
        states = self._states
        if row == len(states):
            states.append(state)
            return
        states.extend([None] * (row + 1 - len(states)))
        states[row] = state

    def disown(self, row: int) -> None:
        """``row`` is nobody's any more."""
        self._states[row] = None


class Accounts:
    """The accounts of one shard, by name and by row.

    ``cross_rows`` is the row of each account's cross group, of those that have one. ``levels`` (float[rows], at least)
    is the margin-call level of each row, infinite without one. ``holding_back`` names the accounts that have events
    waiting for parameters, ``held`` those whose verdict waits, ``unread`` those whose row cannot be read, with the
    reason.
    """

    def __init__(self, shard: int, ledger: Ledger, admission: Admission, outbox: Outbox) -> None:
        self._shard = shard
        self._ledger = ledger
        self._admission = admission
        self._outbox = outbox
        self._writer = RowWriter(ledger)
        self.by_name: dict[str, AccountState] = {}
        self.owner = Owners(ledger.rows)
        self.cross_rows: dict[str, int] = {}
        self.levels = np.full(64, np.inf)
        self.agenda = Agenda()
        self.holding_back: set[str] = set()
        self.held: set[str] = set()
        self.unread: dict[str, str] = {}

    def account(self, name: str) -> AccountState:
        """The account of that name, made if it is not there."""
        state = self.by_name.get(name)
        if state is None:
            state = self.by_name[name] = AccountState(name)
        return state

    def group(self, state: AccountState, margin: str) -> GroupState:
        """The margin group of an account, made if it is not there.

        Raises:
            InputError: there can be no such group, or the account has too many.
        """
        group = state.groups.get(margin)
        if group is None:
            if state.unread is not None:
                raise InputError(self.unread[state.account])
            self._make_room(state, margin)
            group = GroupState(row=self._ledger.open_group(state.account, margin), margin=margin)
            state.groups[margin] = group
            self._register(state, group)
        return group

    def rows_of(self, names: Sequence[str], margins: Sequence[str]) -> list[int]:
        """The row of each group, -1 where there is none."""
        cross = self.cross_rows
        return [
            cross.get(name, -1) if margin == CROSS else self._row_of(name, margin)
            for name, margin in zip(names, margins, strict=True)
        ]

    def _row_of(self, name: str, margin: str) -> int:
        state = self.by_name.get(name)
        group = None if state is None else state.groups.get(margin)
        return -1 if group is None else group.row

    def in_order(self, rows: Rows | set[int]) -> list[tuple[AccountState, GroupState]]:
        """Whose ``rows`` are, by name: which row a group has depends on when it was restored."""
        owners = [self.owner[row] for row in (rows if isinstance(rows, set) else rows.tolist())]
        return sorted(owners, key=lambda owner: (owner[0].account, owner[1].margin))

    def touch(self, state: AccountState) -> None:
        """Have every group of an account decided."""
        self.agenda.touched.update(group.row for group in state.groups.values())

    def leave_undone(self, *, everybody: bool) -> None:
        """Have every group decided at the next occasion. Whoever has been told to be undecided is looked at once a
        second in any case, and told then that it is so no more: sooner only if ``everybody`` is to be decided."""
        owner = self.owner
        self.agenda.undone.update(row for row in owner if everybody or not owner[row][1].told_undecided)

    def set_level(self, group: GroupState) -> None:
        """Note the margin-call level of a group in the column."""
        self.levels[group.row] = np.inf if group.level is None else float(group.level)

    # --- rows of the changelog ---------------------------------------------------------------------------------------

    def restore(self, account: str, row: bytes) -> AccountState:
        """Restore an account from its last row.

        A row that cannot be read is kept as it is and its account suspended: what that row holds is not known, nothing
        can be applied to it, and everybody else in the shard goes on.
        """
        try:
            state = read_account(account, row, self._ledger)
        except InputError as error:
            reason = f"account {account}: its row cannot be read: {error}"[:REASON_MAX]
            state, known = set_aside(account, row, reason)
            self.unread[account] = reason
            if not known:
                self._outbox.alert_shard("unreadable", reason)
                self._outbox.changed.add(account)
            event(log, logging.ERROR, "row_unreadable", shard=self._shard, account=account, reason=reason)
        else:
            self.unread.pop(account, None)
        self.by_name[account] = state
        if state.holds_back:
            self.holding_back.add(account)
        if state.held is not None:
            self.held.add(account)
        for group in state.groups.values():
            self._register(state, group)
        return state

    def restore_plain(self, account: str, row: bytes, plain: PlainRows) -> bool:
        """Whether an account that is not there yet was restored from its last row by ``plain``: for most accounts it
        does all that :meth:`restore` does, and for others nothing."""
        state = plain.read(account, row)
        if state is None:
            return False
        self.by_name[account] = state
        for group in state.groups.values():
            self._register(state, group)
        return True

    def row(self, account: str) -> bytes | None:
        """The row of an account; None if nothing about it needs to be remembered."""
        return self._writer.row(self.by_name[account])

    def forget(self, account: str) -> None:
        """Drop an account about which nothing needs to be remembered."""
        self.held.discard(account)
        for group in self.by_name.pop(account).groups.values():
            self._drop(group)

    def remove(self, account: str) -> None:
        """Drop an account with all that it holds: it is another shard's from now on."""
        for names in (self.held, self.holding_back):
            names.discard(account)
        self.unread.pop(account, None)
        for group in self.by_name.pop(account).groups.values():
            self._ledger.load_group(group.row, {}, ())
            self._drop(group)

    # --- groups ------------------------------------------------------------------------------------------------------

    def _make_room(self, state: AccountState, margin: str) -> None:
        if margin == CROSS:
            return
        if (reason := self._admission.refuses_margin(margin)) is not None:
            raise InputError(reason)
        isolated = [group for group in state.groups.values() if group.margin != CROSS]
        if len(isolated) < ISOLATED_GROUPS_MAX:
            return
        for group in isolated:  # only those that a row would not name: a shard restored from rows does not know them
            if group.status == "normal" and not group.is_watched and self._ledger.is_empty(group.row):
                del state.groups[group.margin]
                self._drop(group)
        if sum(group.margin != CROSS for group in state.groups.values()) >= ISOLATED_GROUPS_MAX:
            raise InputError(f"margin {margin}: an account has at most {ISOLATED_GROUPS_MAX} isolated groups")

    def _register(self, state: AccountState, group: GroupState) -> None:
        row = group.row
        self.owner.own(row, state)
        if group.margin == CROSS:
            self.cross_rows[state.account] = row
        while row >= self.levels.size:
            self.levels = np.concatenate([self.levels, np.full(self.levels.size, np.inf)])
        if group.level is not None:
            self.set_level(group)
        if group.is_watched:
            self.agenda.watch(group)

    def _drop(self, group: GroupState) -> None:
        if group.margin == CROSS:
            del self.cross_rows[self._ledger.rows.account(group.row)]
        self.levels[group.row] = np.inf
        self.owner.disown(group.row)
        self.agenda.forget(group.row)
        self._ledger.drop_group(group.row)
