"""What a journal record counts as out of liquidation's reach, in words: what it is, and what to do about it.

Counting is the engine's business.
"""

from collections.abc import Iterator, Mapping

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


def unreached_sentences(counts: Mapping[str, int], notional: Mapping[str, str]) -> Iterator[str]:
    """What is out of reach and what to do about it, a sentence each. ``notional`` in the unit of account, if known."""
    for kind in KINDS:
        if number := counts.get(kind, 0):
            what, advice = _ADVICE[kind]
            at_stake = f" ({notional[kind]} at stake)" if kind in notional else ""
            yield f"{what}: {number:,}{at_stake}; {advice}."
