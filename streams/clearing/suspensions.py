"""The suspension of a whole shard: why no account of it is liquidated, told, and ended by an operator's word."""

from schemas.messages import EventFrame, Resumption
from schemas.types import CROSS
from streams.clearing.account import AccountState
from streams.clearing.accounts import Accounts
from streams.clearing.journal import Cursor
from streams.clearing.outbox import REASON_MAX, Outbox
from streams.feeds.gaps import gap_sentence, resumed, standing, suspends


class ShardSuspensions:
    """Suspends one shard as a whole. A word that lifts it counts only for the suspension that it names, so that none is
    lifted of which its writer did not know."""

    def __init__(self, cursor: Cursor, accounts: Accounts, outbox: Outbox) -> None:
        self._cursor = cursor
        self._accounts = accounts
        self._outbox = outbox

    def tell_gone(self) -> None:
        """Tell what the shard goes on without of our own topics, and that it is suspended if an account may lack it."""
        gone = self._cursor.gone
        for topic, gap in sorted(gone.items()):
            self._outbox.alert_shard("records_gone", gap_sentence(topic, self._cursor.shard, gap))
        if suspends(gone):
            self._tell()

    def _tell(self) -> None:
        if (suspension := standing(self._cursor.suspension)) is not None:
            reason = f"suspension {suspension.number}, of every account: {suspension.reasons[-1]}"
            self._outbox.alert_shard("suspended", reason)

    def apply(self, frame: EventFrame) -> None:
        """Suspend the shard for what the frame says to be lost, and do what its words say; whoever they are about is to
        be decided."""
        lost = self._cursor.sources.take_lost_money()
        for reason in lost:
            self._cursor.suspend(reason)
        if lost:
            self._tell()
        for word in frame.resumptions or ():
            suspension = standing(self._cursor.suspension)
            if suspension is None or suspension.number != word.suspension:
                now = "not suspended" if suspension is None else f"in {suspension.number}"
                self._outbox.alert_shard(
                    "repair_refused", f"suspension {word.suspension} was to be lifted, and the shard is {now}"
                )
            elif word.account:
                self._resume_one(word)
            else:
                self._cursor.suspension = resumed(suspension, word.reason)
                self._outbox.alert_shard("resumed", f"suspension {word.suspension} of every account: {word.reason}")
                for account in sorted(self._accounts.by_name):
                    self._go_on(self._accounts.by_name[account])

    def _resume_one(self, word: Resumption) -> None:
        state = self._accounts.by_name.get(word.account)
        if state is None:
            self._outbox.alert_shard("repair_refused", f"{word.account} was to be resumed, and the shard has none such")
            return
        state.resumed = word.suspension
        self._outbox.changed.add(state.account)
        self._outbox.alert(state, CROSS, "resumed", reason=f"suspension {word.suspension}: {word.reason}"[:REASON_MAX])
        self._go_on(state)

    def _go_on(self, state: AccountState) -> None:
        if not state.suspended and state.told_liquidatable:
            state.told_liquidatable = False
            self._outbox.changed.add(state.account)
        self._accounts.touch(state)
