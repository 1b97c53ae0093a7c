"""Who waits for a mark that is not live: the symbols that somebody needs, and the groups that only they can decide."""

from streams.clearing.account import WITHOUT_ORDERS
from streams.clearing.accounts import Accounts
from streams.clearing.decisions import Decisions
from streams.clearing.journal import Cursor
from streams.clearing.marks import Marks
from streams.clearing.outbox import Outbox
from streams.margin.portfolio import Portfolio
from streams.margin.slots import Rows

_SECOND_US = 1_000_000


class UndecidedWatch:
    """Tells, for one shard, of the marks that are missing for too long and of whom that leaves out of reach."""

    def __init__(
        self,
        cursor: Cursor,
        portfolio: Portfolio,
        marks: Marks,
        accounts: Accounts,
        decisions: Decisions,
        outbox: Outbox,
    ) -> None:
        self._cursor = cursor
        self._portfolio = portfolio
        self._marks = marks
        self._accounts = accounts
        self._decisions = decisions
        self._outbox = outbox
        self._looked_s = 0

    def resume(self) -> None:
        """Go on at the shard's clock: what has become live up to now has been looked at."""
        self._looked_s = self._cursor.clock.now_us // _SECOND_US
        self._marks.liveness_changed = False

    def look(self, rows: Rows | None) -> None:
        """Note which symbols without a live mark are needed, and tell those that have been for too long.

        Only ``rows`` may need other symbols than before (None: any), unless a mark has become live or ceased to be.
        Everything is looked at once a second of the shard's clock, too: nobody may need a symbol any more.
        """
        clock_us, awaited = self._cursor.clock.now_us, self._cursor.awaited
        second = clock_us // _SECOND_US
        on_the_second = second != self._looked_s
        everyone = rows is None or self._marks.liveness_changed or on_the_second
        self._looked_s, self._marks.liveness_changed = second, False
        if everyone or (rows is not None and rows.size):
            needed = self._portfolio.awaited(None if everyone else rows)
            for symbol in awaited.end(needed) if everyone else ():
                why = "has a live mark again" if self._marks.has_live(symbol) else "is not needed any more"
                self._outbox.alert_shard("undecided_cleared", f"{symbol} {why}", symbol)
            awaited.begin(needed, clock_us)
        late = awaited.tell(clock_us, 1000 * self._portfolio.parameters.policy.undecided_alert_ms)
        for symbol, waited_us in late:
            status = self._marks.status(symbol) or "never there"
            why = "too old" if status == "live" else status
            reason = f"{symbol} has had no live mark for {waited_us // 1000} ms ({why})"
            self._outbox.alert_shard("undecided", reason, symbol)
        if (late or on_the_second) and (awaited.told or self._accounts.agenda.watched):
            self._tell_groups()

    def _tell_groups(self) -> None:
        """Tell of the groups that wait for a mark that has been told, and that are below their requirement at the last
        prices; and of those that are so no more."""
        accounts, awaited = self._accounts, self._cursor.awaited
        told = {row for row in accounts.agenda.watched if accounts.owner[row][1].told_undecided}
        waiting: set[int] = set()
        if awaited.told:
            symbols = None if awaited.is_full else awaited.told
            waiting = set(self._portfolio.below_at_last_prices(symbols).tolist())
        for state, group in accounts.in_order(told ^ waiting):
            command = group.command
            is_out = command is not None and not command.is_over(self._cursor.clock.now_us)
            if self._decisions.is_suspended(state) or is_out:
                continue
            if group.told_undecided:
                self._decisions.decide_exactly(state, group)
            elif group.status not in WITHOUT_ORDERS:
                self._decisions.tell_below_at_last_prices(state, group)
