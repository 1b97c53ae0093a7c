"""How much of a shard liquidation does not reach: counts that follow every change of an account.

Which groups and accounts those are is in their states; here they are only counted.
"""

from collections.abc import Collection, Mapping

from schemas.messages import AccountRow
from streams.clearing.account import WITHOUT_ORDERS, AccountState
from streams.feeds.unreached import KINDS

Counts = tuple[int, int, int, int, int, int, int]
_NONE: Counts = (0, 0, 0, 0, 0, 0, 0)


class Unreached:
    """The counts of one shard.

    ``before`` are those of the last journal record when the shard was taken; ``notional`` is what is at stake in each
    kind as of the last idle journal record, in the unit of account.
    """

    def __init__(self) -> None:
        self.before: Mapping[str, int] = {}
        self.notional: dict[str, str] = {}
        self._by_account: dict[str, Counts] = {}
        self._totals = [0] * len(KINDS)

    def resume(self, before: Mapping[str, int], notional: Mapping[str, str]) -> None:
        """Remember what the journal said."""
        self.before, self.notional = dict(before), dict(notional)

    def set_notional(self, notional: Mapping[str, str]) -> None:
        """What is at stake in each kind; a kind of which there is nothing left is left out."""
        totals = self.totals()
        self.notional = {kind: amount for kind, amount in notional.items() if kind in totals}

    @property
    def accounts(self) -> Collection[str]:
        """The accounts of which anything is counted."""
        return self._by_account.keys()

    def count(self, state: AccountState) -> None:
        """Count an account as it stands now, instead of as it stood."""
        if state.account not in self._by_account and state.is_ordinary and not _has_unreached(state):
            return
        before, now = self._by_account.get(state.account, _NONE), _counts(state)
        if now == before:
            return
        for index, (more, less) in enumerate(zip(now, before, strict=True)):
            self._totals[index] += more - less
        if now == _NONE:
            del self._by_account[state.account]
        else:
            self._by_account[state.account] = now

    def forget(self, account: str) -> None:
        """The account is another shard's from now on."""
        for index, less in enumerate(self._by_account.pop(account, _NONE)):
            self._totals[index] -= less

    def totals(self) -> dict[str, int]:
        """What there is of each kind, those of which there is none left out."""
        return {kind: total for kind, total in zip(KINDS, self._totals, strict=True) if total}


def _has_unreached(state: AccountState) -> bool:
    """Whether the account has a group of a kind that is counted."""
    return any(group.told_undecided or group.status in WITHOUT_ORDERS for group in state.groups.values())


def _counts(state: AccountState) -> Counts:
    undecided = unsellable = insolvent = 0
    for group in state.groups.values():
        kind = group.unreached_kind
        if kind is not None:
            undecided += kind == "undecided"
            unsellable += kind == "unsellable"
            insolvent += kind == "insolvent"
    return (
        undecided,
        unsellable,
        insolvent,
        int(state.suspended),
        len(state.parked),
        len(state.waiting_fills),
        state.unapplied.events + state.unapplied.credits,
    )


def unreached_of(row: AccountRow) -> dict[str, int]:
    """What a row says of its account, counted as :meth:`Unreached.totals`."""
    kinds = ["undecided" if group.told_undecided else group.status for group in row.groups]
    return {
        "undecided": kinds.count("undecided"),
        "unsellable": kinds.count("unsellable"),
        "insolvent": kinds.count("insolvent"),
        "suspended": int(row.status == "suspended"),
        "parked": len(row.parked),
        "waiting": len(row.waiting_fills),
        "unapplied": row.unapplied + row.unapplied_credits,
    }
