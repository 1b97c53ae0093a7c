"""Accounts whose verdict waits: nothing is done to them before all is in that was acknowledged before.

An account that is below its requirement, and was touched by a frame that is not known to be complete, is *held*. The
first cut that was asked for after that frame is the account's: what comes below it is applied, what comes later is
deferred, so that an account that is never at rest is decided, too. Once the cut is reached the account is decided, and
then what was deferred is applied, and may hold it again. A command that has expired is superseded after a cut that was
asked for after its expiry, and one that a mark causes waits for sources that are known to be behind. One that is about
to go to another shard, to which rows of it come already, is decided there.
"""

from collections.abc import Callable

from msgspec.structs import replace

from schemas.messages import DeferredEvent, EventFrame, Hold, SourceRange
from streams.clearing.account import AccountState
from streams.clearing.accounts import Accounts
from streams.clearing.completeness import Cut
from streams.clearing.held_back import one_row
from streams.clearing.journal import Cursor
from streams.clearing.outbox import Outbox
from streams.margin.portfolio import Portfolio


class Holds:
    """The held accounts of one shard.

    ``asked``: a verdict has depended on what is complete, since somebody has set this to False.
    """

    def __init__(self, cursor: Cursor, portfolio: Portfolio, accounts: Accounts, outbox: Outbox) -> None:
        self._cursor = cursor
        self._portfolio = portfolio
        self._accounts = accounts
        self._outbox = outbox
        self._deciding: AccountState | None = None
        self.asked = False

    def __len__(self) -> int:
        return len(self._accounts.held)

    # --- holding -----------------------------------------------------------------------------------------------------

    def keeps(self, state: AccountState, after_us: int) -> bool:
        """Whether an account that is below its requirement must wait; ``after_us`` is when its last command expired
        (0: it has none that did)."""
        policy = self._portfolio.parameters.policy
        if state is self._deciding or not self._cursor.sources.are_followed or not policy.incomplete_hold_ms:
            return False
        if state.held is not None:
            return True
        self.asked = True
        frame = state.touched
        if not self._cursor.completeness.has(frame, after_us):
            self._hold(state, Hold(frame=frame, after=after_us, since=self._cursor.clock.now_us))
            return True
        if self._cursor.sources.moves.elsewhere(state.account):
            self._hold(state, Hold(frame=frame, after=after_us, since=self._cursor.clock.now_us))
            return True
        late = self._cursor.completeness.late_cut(1000 * policy.stale_input_hold_ms)
        if late is not None:
            self._hold(state, Hold(frame=-1, progress=late, since=self._cursor.clock.now_us))
        return late is not None

    def _hold(self, state: AccountState, hold: Hold) -> None:
        state.held = hold
        self._accounts.held.add(state.account)
        self._outbox.changed.add(state.account)

    # --- deferring ---------------------------------------------------------------------------------------------------

    def defers(self, state: AccountState, offset: int, frame: EventFrame, kind: str, index: int) -> bool:
        """Whether an event must wait until its account, which is held, is decided; it is kept there then."""
        if frame.repaired or not frame.sources:
            return False
        columns = getattr(frame, kind)
        source = frame.sources[columns.source[index]]
        if not source.topic_id or self._is_below(self._cut_of(state), source, columns.source_offset[index]):
            return False
        deferred = DeferredEvent(offset=offset, frame=one_row(frame, kind, index, repaired=False))
        state.encumbered().deferred.append(deferred)
        self._outbox.changed.add(state.account)
        return True

    def take_deferred(self, state: AccountState, *, below_cut: bool = False) -> list[DeferredEvent]:
        """The events that were deferred, or those of them that were there when the ends of its cut were asked for."""
        cut, taken, kept = self._cut_of(state) if below_cut else None, list[DeferredEvent](), list[DeferredEvent]()
        for deferred in state.deferred:
            (source,) = deferred.frame.sources
            is_due = not below_cut or self._is_below(cut, source, source.first)
            (taken if is_due else kept).append(deferred)
        state.deferred = kept
        if taken:
            self._outbox.changed.add(state.account)
        return taken

    def apply_all(self, state: AccountState, apply: Callable[[list[DeferredEvent]], None]) -> None:
        """Apply everything that is deferred, as if the account were not held."""
        hold, state.held = state.held, None
        apply(self.take_deferred(state))
        state.held = hold

    def renew(self, state: AccountState) -> None:
        """Have an account wait for a later cut: what was deferred has been applied before it was decided."""
        hold = state.held
        assert hold is not None
        self._hold(state, replace(hold, frame=max(hold.frame, state.touched), progress=-1))

    # --- releasing ---------------------------------------------------------------------------------------------------

    def due(self) -> list[AccountState]:
        """The held accounts that need not wait any longer, by name."""
        policy, elsewhere = self._portfolio.parameters.policy, self._cursor.sources.moves.elsewhere
        stale_us, hold_us = 1000 * policy.stale_input_hold_ms, 1000 * policy.incomplete_hold_ms
        clock_us = self._cursor.clock.now_us
        late = self._cursor.completeness.late_cut(stale_us)
        due = []
        for state in self._held():
            hold = state.held
            assert hold is not None
            if clock_us - hold.since < hold_us and elsewhere(state.account):
                continue
            is_caused_by_mark = hold.progress >= 0
            if self._cursor.completeness.has(hold.frame, hold.after, hold.progress) or (
                is_caused_by_mark and (late is None or clock_us - hold.since >= stale_us)
            ):
                due.append(state)
        return due

    def decide(self, state: AccountState, decide: Callable[[AccountState], None]) -> None:
        """Release an account: have it decided as it stands."""
        hold, state.held = state.held, None
        assert hold is not None
        self._accounts.held.discard(state.account)
        self._outbox.changed.add(state.account)
        self._deciding = state
        try:
            decide(state)
        finally:
            self._deciding = None
        if hold.progress < 0:
            state.touched = min(state.touched, hold.frame)

    def deferring(self) -> list[AccountState]:
        """The held accounts of which something is deferred, by name."""
        return [state for state in self._held() if state.deferred]

    def _held(self) -> list[AccountState]:
        return [self._accounts.by_name[account] for account in sorted(self._accounts.held)]

    def _cut_of(self, state: AccountState) -> Cut | None:
        hold = state.held
        return None if hold is None else self._cursor.completeness.cut_for(hold.frame, hold.after, hold.progress)

    @staticmethod
    def _is_below(cut: Cut | None, source: SourceRange, offset: int) -> bool:
        return cut is not None and cut.is_below((source.topic, source.topic_id), source.partition, offset)
