"""How much of a shard liquidation does not reach: counts that follow every change of an account, and what to do.

Which groups and accounts those are is in their states; here they are only counted.
"""

from collections.abc import Collection, Iterator, Mapping

from schemas.messages import AccountRow
from streams.clearing.account import AccountState

KINDS = ("undecided", "unsellable", "insolvent", "suspended", "parked", "waiting", "unapplied")
"""Groups of the first three, accounts that are suspended, transfers and fills held back, events in the dead letters."""

_ADVICE = {
    "undecided": (
        "margin groups that may be below their requirement and wait for marks that are not live",
        "bring the sources of those marks back; the alerts `undecided` name them",
    ),
    "unsellable": (
        "margin groups that are below their requirement and hold nothing that can be sold",
        "call for collateral that has a market, or give the assets a price_symbol that is no instrument",
    ),
    "insolvent": (
        "margin groups that owe more than they hold and have nothing left that can be sold",
        "cover what they owe, from the insurance fund say, by a transfer",
    ),
    "suspended": (
        "suspended accounts, of which nothing is liquidated",
        "their rows (`margin-clearing account ACCOUNT`) say why; repair that",
    ),
    "parked": (
        "transfers that wait for parameters that admit them",
        "publish the asset or instrument that the alerts `credit_parked` and `suspended` name",
    ),
    "waiting": (
        "fills that wait for parameters that admit them",
        "publish the instrument, asset or increment that the alerts `suspended` name",
    ),
    "unapplied": (
        "events that could not be applied",
        "repair them in margin.events.v1.dlq, or at the exchange, and send them again",
    ),
}

Counts = tuple[int, int, int, int, int, int, int]
_NONE: Counts = (0, 0, 0, 0, 0, 0, 0)


class Unreached:
    """The counts of one shard. ``before`` are those of the last journal record when the shard was taken."""

    def __init__(self) -> None:
        self.before: Mapping[str, int] = {}
        self._by_account: dict[str, Counts] = {}
        self._totals = [0] * len(KINDS)

    def resume(self, before: Mapping[str, int]) -> None:
        """Remember what the journal said."""
        self.before = dict(before)

    @property
    def accounts(self) -> Collection[str]:
        """The accounts of which anything is counted."""
        return self._by_account.keys()

    def count(self, state: AccountState) -> None:
        """Count an account as it stands now, instead of as it stood."""
        before, now = self._by_account.get(state.account, _NONE), _counts(state)
        if now == before:
            return
        for index, (more, less) in enumerate(zip(now, before, strict=True)):
            self._totals[index] += more - less
        if now == _NONE:
            del self._by_account[state.account]
        else:
            self._by_account[state.account] = now

    def totals(self) -> dict[str, int]:
        """What there is of each kind, those of which there is none left out."""
        return {kind: total for kind, total in zip(KINDS, self._totals, strict=True) if total}


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
        state.unapplied + state.unapplied_credits,
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


def unreached_sentences(counts: Mapping[str, int], notional: Mapping[str, str]) -> Iterator[str]:
    """What is out of reach and what to do about it, a sentence each. ``notional`` in the unit of account, if known."""
    for kind in KINDS:
        if number := counts.get(kind, 0):
            what, advice = _ADVICE[kind]
            at_stake = f" ({notional[kind]} at stake)" if kind in notional else ""
            yield f"{what}: {number:,}{at_stake}; {advice}."
