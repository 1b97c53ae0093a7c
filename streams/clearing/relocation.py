"""Accounts that go from one shard to another: sent away whole, taken in whole, forgotten once the other has them.

When, and whose rows are whose meanwhile, is in ``streams.feeds.moves``. An account goes as its row, with the sources'
offsets up to which that is. It keeps everything but what is an offset in the old shard's own topics: what it waited for
there, it waits for at the new shard by the broker's time.
"""

import logging
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from schemas.messages import Arrival, Arrived, DeferredEvent, EventFrame, Hold
from schemas.partitioning import home_of
from streams.clearing.account import AccountState, packed, unpacked
from streams.clearing.accounts import Accounts
from streams.clearing.candidates import Candidates
from streams.clearing.events import Events
from streams.clearing.held_back import HeldBack
from streams.clearing.journal import Cursor
from streams.clearing.open_commands import OpenCommands
from streams.clearing.outbox import Outbox
from streams.clearing.plain_rows import PlainRows
from streams.feeds.gaps import standing
from streams.feeds.moves import Come
from streams.logs import event
from streams.margin.portfolio import Portfolio

log = logging.getLogger(__name__)

ROW_CHARACTERS_MAX = 250_000
"""A longer row is packed: each frame must be one record, with the quotes in a row as two characters."""
PART_CHARACTERS_MAX = 600_000
ROWS_PER_PART_MAX = 5_000


class Relocation:
    """Sends accounts of one shard to others and takes in those of others. ``departed`` have been sent away and are kept
    in the changelog until the other shard has them."""

    def __init__(
        self,
        cursor: Cursor,
        portfolio: Portfolio,
        accounts: Accounts,
        commands: OpenCommands,
        candidates: Candidates,
        events: Events,
        held_back: HeldBack,
        outbox: Outbox,
    ) -> None:
        self._cursor = cursor
        self._portfolio = portfolio
        self._accounts = accounts
        self._commands = commands
        self._candidates = candidates
        self._events = events
        self._held_back = held_back
        self._outbox = outbox
        self.departed: set[str] = set()

    def keeps_away(self, account: str) -> bool:
        """Whether the row of an account that is restored is only kept until the other shard has it."""
        moves = self._cursor.sources.moves
        if not moves.sent or not moves.has_left(account):
            return False
        self.departed.add(account)
        return True

    def apply(self, offset: int) -> None:
        """Do what the frame at ``offset``, whose events have been applied, has brought about."""
        moves = self._cursor.sources.moves
        for account in moves.take_strays():
            home = home_of(account, moves.spread)
            self._outbox.alert_shard(
                "repair_refused",
                f"a repaired event of {account} came to shard {self._cursor.shard}, which does not have it: publish it "
                f"to partition {home}, once `margin-clearing status` says that no accounts are moving",
            )
        for come in moves.take_come():
            self._take_in(offset, come)
        if moves.take_acknowledged():
            event(log, logging.INFO, "accounts_moved", shard=self._cursor.shard, accounts=len(self.departed))
            self._outbox.settled.update(dict.fromkeys(self.departed))
            self.departed = set()
        is_suspended = standing(self._cursor.suspension) is not None
        if moves.departure is not None and not is_suspended and moves.is_due(self._cursor.sources.missing):
            self._send_away()

    # --- away --------------------------------------------------------------------------------------------------------

    def _send_away(self) -> None:
        cursor, moves, by_name = self._cursor, self._cursor.sources.moves, self._accounts.by_name
        departure = moves.departure
        assert departure is not None
        rows: dict[str, str] = {}
        names = sorted(account for account in by_name if moves.is_departing(account))
        incomplete = self._incomplete(names)
        for account in names:
            row = self._accounts.row(account)
            if row is not None:
                rows[account] = row.decode()
            if account in self._outbox.changed:  # what is kept until the other shard has it is the row as it is sent
                self._outbox.settled[account] = row
        parts, floors = list(_parts(rows)), moves.leave()
        for number, part in enumerate(parts):
            arrival = Arrival(
                spread=departure.spread,
                origin=cursor.shard,
                part=number,
                parts=len(parts),
                floors=floors,
                beyond={account: beyond for account in part if (beyond := moves.beyond(account))},
                marks=cursor.marks_next,
                clock=cursor.clock.now_us,
                incomplete=tuple(account for account in part if account in incomplete),
                rows={account: row for account, row in part.items() if len(row) <= ROW_CHARACTERS_MAX},
                packed={
                    account: packed(row.encode()) for account, row in part.items() if len(row) > ROW_CHARACTERS_MAX
                },
            )
            self._outbox.frames.append((departure.to, EventFrame(time=cursor.clock.now_us, arrival=arrival)))
        for account in names:
            self._commands.let_go(by_name[account])
            self._accounts.remove(account)
            cursor.unreached.forget(account)
            self._outbox.changed.discard(account)
        self.departed = set(rows)
        self._candidates.outdate()
        event(log, logging.INFO, "accounts_sent", shard=cursor.shard, to=departure.to, accounts=len(names))

    def _incomplete(self, names: Sequence[str]) -> set[str]:
        """Those to which something may not have come that was acknowledged before their last event."""
        if not self._waits:
            return set()
        has, by_name = self._cursor.completeness.has, self._accounts.by_name
        return {name for name in names if by_name[name].held is None and not has(by_name[name].touched)}

    @property
    def _waits(self) -> bool:
        """Whether verdicts wait for what is missing."""
        policy = self._portfolio.parameters.policy
        return self._cursor.sources.are_followed and bool(policy.incomplete_hold_ms)

    # --- in ----------------------------------------------------------------------------------------------------------

    def _take_in(self, offset: int, come: Come) -> None:
        origin, spread = come.parts[0].origin, come.parts[0].spread
        for part in come.parts:
            rows = rows_in(part)
            plain, incomplete = PlainRows(self._portfolio.ledger, rows), set(part.incomplete)
            for account in sorted(rows):
                if not self._accounts.restore_plain(account, rows[account], plain):
                    self._commands.restore(self._accounts.restore(account, rows[account]))
                state = self._accounts.by_name[account]
                self._begin_anew(state, offset, part, is_incomplete=account in incomplete)
                if account in self._accounts.holding_back:  # the parameters that it waits for may be known here
                    self._held_back.apply(state)
                self._cursor.unreached.count(state)
                self._accounts.touch(state)
                self._outbox.changed.add(account)
        self._candidates.outdate()
        for at, frame in come.early:
            self._events.apply(at, frame)
        count = sum(len(part.rows) + len(part.packed) for part in come.parts)
        event(log, logging.INFO, "accounts_taken_in", shard=self._cursor.shard, origin=origin, accounts=count)
        arrived = Arrived(spread=spread, shard=self._cursor.shard)
        self._outbox.frames.append((origin, EventFrame(time=self._cursor.clock.now_us, arrived=arrived)))

    def _begin_anew(self, state: AccountState, offset: int, part: Arrival, *, is_incomplete: bool) -> None:
        """Put what the account has of the old shard's offsets into terms of this one, where it came at ``offset``."""
        state.touched = -1
        hold = state.held
        if hold is not None or (is_incomplete and self._waits):
            hold = hold or Hold(frame=-1, since=self._cursor.clock.now_us)
            # What was asked for by the frames of the old shard is asked for by the time at which the account left it.
            state.held = replace(hold, frame=-1, after=part.clock)
            self._accounts.held.add(state.account)
        if state.encumbrances is None:
            return
        state.resumed = 0
        state.parked = [replace(event, offset=offset) for event in state.parked]
        state.waiting_fills = [replace(event, offset=offset) for event in state.waiting_fills]
        state.deferred = [DeferredEvent(offset=offset, frame=event.frame) for event in state.deferred]


def rows_in(arrival: Arrival) -> dict[str, bytes]:
    """The accounts' rows that come with a frame.

    Raises:
        InputError: one of them is packed as no engine packs it.
    """
    rows = {account: row.encode() for account, row in arrival.rows.items()}
    return rows | {account: unpacked(row) for account, row in arrival.packed.items()}


def _parts(rows: dict[str, str]) -> Iterator[dict[str, str]]:
    """``rows`` in parts that fit a frame each; one without any if there are none."""
    part: dict[str, str] = {}
    size = 0
    for account, row in rows.items():
        length = min(len(row), ROW_CHARACTERS_MAX) + row.count('"') + len(account)
        if part and (size + length > PART_CHARACTERS_MAX or len(part) >= ROWS_PER_PART_MAX):
            yield part
            part, size = {}, 0
        part[account] = row
        size += length
    yield part
