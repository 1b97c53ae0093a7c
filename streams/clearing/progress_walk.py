"""Walking the routers' progress in a shard: who waited for it is decided, what was deferred is applied."""

from schemas.messages import RouterProgress
from streams.clearing.account import AccountState
from streams.clearing.accounts import Accounts
from streams.clearing.candidates import as_rows
from streams.clearing.decisions import Decisions
from streams.clearing.events import Events
from streams.clearing.holds import Holds
from streams.clearing.journal import Cursor
from streams.clearing.outbox import Outbox
from streams.clearing.undecided import UndecidedWatch
from streams.margin.portfolio import Portfolio

_NEVER_US = 2**62


class ProgressWalk:
    """Walks ``margin.progress.v1`` for one shard, and tells the journal where that and the marks take turns."""

    def __init__(
        self,
        cursor: Cursor,
        portfolio: Portfolio,
        accounts: Accounts,
        holds: Holds,
        events: Events,
        decisions: Decisions,
        undecided: UndecidedWatch,
        outbox: Outbox,
    ) -> None:
        self._cursor = cursor
        self._portfolio = portfolio
        self._accounts = accounts
        self._holds = holds
        self._events = events
        self._decisions = decisions
        self._undecided = undecided
        self._outbox = outbox

    @property
    def _hold_us(self) -> int:
        """How long a source that stands still is waited for; where nobody waits, none is ever too late."""
        return 1000 * self._portfolio.parameters.policy.incomplete_hold_ms or _NEVER_US

    def walk(self, offset: int, progress: RouterProgress | None, appended_us: int) -> None:
        """Walk one record; see :meth:`streams.clearing.shard.Shard.apply_progress`."""
        cursor = self._cursor
        cursor.progress_next = offset + 1
        if progress is None:
            return
        after_silence = cursor.completeness.is_quiet_for(self._hold_us // 2, appended_us)
        told = cursor.completeness.walk(offset, progress, appended_us, self._hold_us, cursor.sources.stuck)
        self._outbox.alert_shard_of(told)
        if self._release() or told or after_silence:
            cursor.note_turn(cursor.marks_next)

    def after_marks(self, offset: int) -> None:
        """The marks at ``offset`` have been decided on: look at what ends with time."""
        if self._note_silence() | self._release() or self._holds.asked:
            self._cursor.note_turn(offset)
        self._holds.asked = False

    def _note_silence(self) -> bool:
        """Tell if no router says for too long how far it is; whether that may have been from now on."""
        cursor = self._cursor
        if not cursor.sources.are_followed or cursor.marks_next <= cursor.marks_now:
            return False
        if cursor.completeness.listen(cursor.clock.now_us):
            return True
        told = cursor.completeness.fall_silent(cursor.clock.now_us, self._hold_us)
        self._outbox.alert_shard_of(told)
        return bool(told)

    def _release(self) -> bool:
        """Decide the held accounts that need not wait any longer, and apply what was deferred; whether anything was."""
        if not len(self._holds):
            return False
        has_changed = False
        for state in self._holds.deferring():
            events = self._holds.take_deferred(state, below_cut=True)
            self._events.apply_deferred(events)
            has_changed |= bool(events)
        for state in self._holds.due():
            if self._cursor.completeness.is_silent:
                self._holds.apply_all(state, self._events.apply_deferred)
            self._holds.decide(state, self._decide_account)
            self._events.apply_deferred(self._holds.take_deferred(state))
            has_changed = True
        if touched := self._accounts.agenda.touched:
            rows = as_rows(touched)
            touched.clear()
            self._decisions.decide(rows)
            self._undecided.look(rows)
        return has_changed

    def _decide_account(self, state: AccountState) -> None:
        self._decisions.decide(as_rows(group.row for group in state.groups.values()))
