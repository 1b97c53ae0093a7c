"""What a shard gives that is not committed yet: commands, alerts, dead letters, and whose rows have changed."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from msgspec import UNSET

from schemas.messages import Alert, BookedFees, EventFrame, LiquidationCommand
from schemas.types import CROSS, AlertKind, shard_account
from streams.broker.dead_letters import REPEATED
from streams.clearing.account import AccountState
from streams.clearing.journal import Cursor
from streams.logs import event
from streams.margin.fixed_point import format_decimal
from streams.margin.health import Health

log = logging.getLogger(__name__)

REASON_MAX = 1000
"""Most characters of a reason in a row or an alert."""


@dataclass(slots=True)
class UnappliedEvent:
    """An event that could not be applied, as a frame of one row that can be repaired and sent again."""

    account: str
    offset: int
    frame: bytes
    error: Exception


class Outbox:
    """Collects a shard's output until it is committed. ``changed`` names the accounts whose rows must be written,
    ``settled`` holds the last rows here of accounts of other shards by now (None: it must go); ``frames`` are for other
    shards, each with its number."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self.changed: set[str] = set()
        self.commands: list[LiquidationCommand] = []
        self.alerts: list[Alert] = []
        self.unapplied: list[UnappliedEvent] = []
        self.settled: dict[str, bytes | None] = {}
        self.frames: list[tuple[int, EventFrame]] = []

    @property
    def is_empty(self) -> bool:
        return not (self.changed or self.commands or self.alerts or self.unapplied or self.settled or self.frames)

    def clear(self) -> None:
        """Begin anew: whoever commits has what was collected."""
        self.changed.clear()
        self.settled.clear()
        self.commands, self.alerts, self.unapplied, self.frames = [], [], [], []

    def alert(
        self,
        state: AccountState,
        margin: str,
        kind: AlertKind,
        *,
        health: Health | None = None,
        level: Decimal | None = None,
        reason: str | None = None,
        symbol: str | None = None,
        fees: BookedFees | None = None,
    ) -> None:
        """Tell what concerns one margin group of an account."""
        state.alert_sequence += 1
        ratio = None if health is None else health.health_ratio
        self.alerts.append(
            Alert(
                alert_id=f"{state.account}:alert:{state.alert_sequence}",
                account=state.account,
                margin=margin,
                kind=kind,
                level=None if level is None else format_decimal(level),
                health_ratio=None if ratio is None else format_decimal(ratio),
                equity=None if health is None else format_decimal(health.equity),
                maintenance_margin=None if health is None else format_decimal(health.maintenance_margin),
                marks_offset=self._cursor.marks_next - 1,
                event_time=self._cursor.clock.now_us,
                reason=reason,
                symbol=symbol,
                fees=fees or UNSET,
            )
        )
        self.changed.add(state.account)
        event(log, logging.DEBUG, "alert", account=state.account, margin=margin, kind=kind)

    def alert_shard_of(self, told: Iterable[tuple[AlertKind, str]]) -> None:
        """Tell each kind and reason of ``told``."""
        for kind, reason in told:
            self.alert_shard(kind, reason)

    def alert_shard(self, kind: AlertKind, reason: str, symbol: str | None = None) -> None:
        """Tell what concerns the shard as a whole."""
        cursor = self._cursor
        cursor.alert_sequence += 1
        account = shard_account(cursor.shard)
        self.alerts.append(
            Alert(
                alert_id=f"{account}:alert:{cursor.alert_sequence}",
                account=account,
                margin=CROSS,
                kind=kind,
                level=None,
                health_ratio=None,
                equity=None,
                maintenance_margin=None,
                marks_offset=cursor.marks_next - 1,
                event_time=cursor.clock.now_us,
                reason=reason[:REASON_MAX],
                symbol=symbol,
            )
        )
        if REPEATED.may_name("shard_alert", kind):  # records may cause as many as they are
            event(log, logging.WARNING, "shard_alert", shard=cursor.shard, kind=kind, symbol=symbol, reason=reason)
