"""The states of an order and of a command, and what every event does to them: two tables that leave out no pair.

Nothing here counts a quantity or knows an account; ``open_commands`` turns what comes into events, and does what a
change says. ``README.md`` shows both tables as :func:`order_table` and :func:`command_table` write them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from schemas.types import AlertKind, CommandStatus, OrderStatus

OrderEvent = Literal[
    "accepted", "filled", "cancelled", "rejected", "same_again", "contradiction", "fill", "last_fill", "fill_beyond"
]
"""``accepted`` to ``rejected``: the order's first report of that status, of the last three the first final one.
``same_again``: a final report that says what the first one said; ``contradiction``: one that says something else.
``fill``, ``last_fill``, ``fill_beyond``: a fill up to less than, exactly, or more than what is to come in all: the
order's quantity, or what its final report says."""

CommandEvent = Literal["expiry", "withdrawal", "successor"]
"""The command's time is over; the group is healthy at its target again; a later command names it in ``supersedes``."""

FINAL_ORDERS: frozenset[OrderStatus] = frozenset({"filled", "rejected", "cancelled"})
FINAL_COMMANDS: frozenset[CommandStatus] = frozenset(
    {"filled", "rejected", "cancelled", "expired", "withdrawn", "superseded"}
)


@dataclass(frozen=True, slots=True)
class Change:
    """What an event makes of an order, and what is told of it, if anything is."""

    to: OrderStatus
    told: AlertKind | None = None


def _open(state: OrderStatus) -> dict[OrderEvent, Change]:
    """What becomes of an order of which more may come."""
    return {
        "accepted": Change("accepted" if state == "issued" else state),
        "filled": Change("filled"),
        "cancelled": Change("cancelled"),
        "rejected": Change("cancelled", "report_mismatch") if state == "partly_filled" else Change("rejected"),
        "same_again": Change(state),
        "contradiction": Change(state, "report_mismatch"),
        "fill": Change("partly_filled"),
        "last_fill": Change("filled"),
        "fill_beyond": Change("filled", "fill_mismatch"),
    }


def _final(state: OrderStatus, *, beyond: AlertKind) -> dict[OrderEvent, Change]:
    """What becomes of an order that is final: never anything else. Fills up to what it says are on their way."""
    return {
        "accepted": Change(state),
        "filled": Change(state, None if state == "filled" else "report_mismatch"),
        "cancelled": Change(state, None if state == "cancelled" else "report_mismatch"),
        "rejected": Change(state, None if state == "rejected" else "report_mismatch"),
        "same_again": Change(state),
        "contradiction": Change(state, "report_mismatch"),
        "fill": Change(state),
        "last_fill": Change(state),
        "fill_beyond": Change(state, beyond),
    }


ORDER_CHANGES: Mapping[OrderStatus, Mapping[OrderEvent, Change]] = MappingProxyType(
    {
        "issued": _open("issued"),
        "accepted": _open("accepted"),
        "partly_filled": _open("partly_filled"),
        "filled": _final("filled", beyond="fill_mismatch"),
        "rejected": _final("rejected", beyond="late_fill"),
        "cancelled": _final("cancelled", beyond="late_fill"),
    }
)

_OUT: dict[CommandEvent, CommandStatus] = {"expiry": "expired", "withdrawal": "withdrawn", "successor": "superseded"}

COMMAND_CHANGES: Mapping[CommandStatus, Mapping[CommandEvent, CommandStatus]] = MappingProxyType(
    {
        "issued": _OUT,
        "accepted": _OUT,
        "partly_filled": _OUT,
        "expired": {"expiry": "expired", "withdrawal": "expired", "successor": "superseded"},
        "filled": dict.fromkeys(get_args(CommandEvent), "filled"),
        "rejected": dict.fromkeys(get_args(CommandEvent), "rejected"),
        "cancelled": dict.fromkeys(get_args(CommandEvent), "cancelled"),
        "withdrawn": dict.fromkeys(get_args(CommandEvent), "withdrawn"),
        "superseded": dict.fromkeys(get_args(CommandEvent), "superseded"),
    }
)


def status_of(orders: Iterable[OrderStatus]) -> CommandStatus:
    """The status of a command whose orders have these, and that has neither expired nor been withdrawn or superseded.

    Final once all of them are: ``filled`` if all are, ``rejected`` if all are, else ``cancelled``.
    """
    held = set(orders)
    if held <= FINAL_ORDERS:
        if held == {"rejected"}:
            return "rejected"
        return "filled" if held == {"filled"} else "cancelled"
    if held & {"partly_filled", "filled"}:
        return "partly_filled"
    return "issued" if held == {"issued"} else "accepted"


def order_table() -> str:
    """What each event makes of an order, as a table."""
    return _table(
        "order", {state: {e: _cell(state, c) for e, c in row.items()} for state, row in ORDER_CHANGES.items()}
    )


def command_table() -> str:
    """What each event makes of a command, as a table."""
    return _table(
        "command", {s: {e: "" if to == s else to for e, to in row.items()} for s, row in COMMAND_CHANGES.items()}
    )


def _cell(state: OrderStatus, change: Change) -> str:
    parts = ["" if change.to == state else change.to, "" if change.told is None else f"told: `{change.told}`"]
    return ", ".join(part for part in parts if part)


def _table(what: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    events = list(next(iter(rows.values())))
    lines = [f"| {what} | {' | '.join(events)} |", f"|---|{'---|' * len(events)}"]
    lines += [f"| {state} | {' | '.join(cells[event] for event in events)} |" for state, cells in rows.items()]
    return "\n".join(lines)
