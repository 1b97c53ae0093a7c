"""The commands of a shard: whose orders they are, what has been filled of them, when they end and what they leave.

What comes for an order is an event of the tables in ``command_states``, and does what they say. A command that has
ended is remembered for ``policy.command_memory_ms``: what comes late for it changes the ledger alone, and is told.
"""

import heapq
from decimal import Decimal, localcontext

from schemas.messages import ReportColumns
from schemas.types import AlertKind, ReportStatus
from streams.clearing.account import AccountState, CommandState, GroupState, Liquidation, OrderState
from streams.clearing.accounts import Accounts
from streams.clearing.admission import Admission
from streams.clearing.command_states import ORDER_CHANGES, CommandEvent, OrderEvent
from streams.clearing.journal import Cursor
from streams.clearing.liquidation_fees import LiquidationFees
from streams.clearing.outbox import Outbox
from streams.margin.fixed_point import EXACT, format_decimal
from streams.margin.limits import ACCOUNT_ORDERS_MAX
from streams.margin.portfolio import Portfolio

_ZERO = Decimal(0)
_FORGOTTEN = "its command has ended and is not remembered any more"


class OpenCommands:
    """The commands of one shard; a group has at most one that is out. ``orders`` holds all orders by id, also those of
    commands that have ended and are remembered."""

    def __init__(
        self,
        cursor: Cursor,
        portfolio: Portfolio,
        accounts: Accounts,
        admission: Admission,
        fees: LiquidationFees,
        outbox: Outbox,
    ) -> None:
        self._cursor = cursor
        self._portfolio = portfolio
        self._accounts = accounts
        self._admission = admission
        self._fees = fees
        self._outbox = outbox
        self.orders: dict[str, tuple[AccountState, GroupState, CommandState, OrderState]] = {}
        self._times: list[tuple[int, int]] = []

    # --- a command's life --------------------------------------------------------------------------------------------

    def open(self, state: AccountState, group: GroupState, command: CommandState) -> None:
        """``command`` is out for ``group``: count fills for its orders until it has ended."""
        liquidation = self._liquidation(group)
        liquidation.command = command
        self._keep(state, group, liquidation)

    def restore(self, state: AccountState) -> None:
        """Go on with what the groups of an account that has just come remember of their liquidations."""
        for group in state.groups.values():
            if group.liquidation is not None:
                self._keep(state, group, group.liquidation)

    def _keep(self, state: AccountState, group: GroupState, liquidation: Liquidation) -> None:
        for command in liquidation.commands:
            for order in command.orders:
                self.orders[order.order_id] = (state, group, command, order)
            self._wake(group, command.expires_at if command.forgotten_at is None else command.forgotten_at)
        self._wake(group, liquidation.retry_at)
        self._accounts.agenda.watch(group)

    def end(self, state: AccountState, group: GroupState, event: CommandEvent | None = None) -> None:
        """The group's command, if it has one, is over: by ``event``, or as all of its orders are done."""
        liquidation = group.liquidation
        if liquidation is None or liquidation.command is None:
            return
        command, policy, now_us = liquidation.command, self._portfolio.parameters.policy, self._cursor.clock.now_us
        liquidation.command = None
        if event is not None:
            command.end(event)
        liquidation.attempt += self._is_in_vain(command)
        is_refused = command.withdrawn_by is None and not any(order.filled for order in command.orders)
        if is_refused and event is None:  # where its time was up, that was wait enough
            again_us = now_us + 1000 * policy.retry_ms
            liquidation.retry_at = max(again_us, command.expires_at) if command.stage == "takeover" else again_us
            self._wake(group, liquidation.retry_at)
        command.forgotten_at = now_us + 1000 * policy.command_memory_ms
        liquidation.ended.append(command)
        self._wake(group, command.forgotten_at)
        self._make_room(state)
        self._accounts.agenda.watch(group)
        self._accounts.agenda.overdue.discard(group.row)
        self._outbox.changed.add(state.account)

    def begin_anew(self, state: AccountState, group: GroupState) -> None:
        """The group is healthy at its target: its next command is the first again."""
        liquidation = group.liquidation
        if liquidation is not None and (liquidation.attempt or liquidation.retry_at):
            liquidation.attempt = liquidation.retry_at = 0
            self._outbox.changed.add(state.account)
            self._tidy(group)

    def waits(self, group: GroupState) -> bool:
        """Whether there is to be no other command for the group yet: nothing was filled of the last one."""
        return group.liquidation is not None and group.liquidation.retry_at > 0

    def next_attempt(self, group: GroupState) -> int:
        """Which attempt the group's next command is, once the one that is out has ended."""
        liquidation = group.liquidation
        if liquidation is None:
            return 0
        return liquidation.attempt + (liquidation.command is not None and self._is_in_vain(liquidation.command))

    def _is_in_vain(self, command: CommandState) -> bool:
        """Whether next to nothing was filled of a command that others follow."""
        if command.withdrawn_by is not None or command.stage == "takeover":
            return False
        filled, ordered = command.progress
        with localcontext(EXACT):
            return filled < self._portfolio.parameters.policy.min_progress_rate * ordered

    def let_go(self, state: AccountState) -> None:
        """The account is another shard's from now on, and its commands with it."""
        for group in state.groups.values():
            for command in () if group.liquidation is None else group.liquidation.commands:
                self._forget_orders(command)

    def due(self, clock_us: int) -> set[int]:
        """The rows of which something is over by ``clock_us`` (a command's time, the wait for another one), until they
        have been decided again. What is remembered no longer is forgotten."""
        while self._times and self._times[0][0] < clock_us:
            _, row = heapq.heappop(self._times)
            owner = self._accounts.owner.get(row)
            if owner is not None and owner[1].liquidation is not None:
                self._pass(*owner, owner[1].liquidation, clock_us)
        return self._accounts.agenda.overdue

    def _pass(self, state: AccountState, group: GroupState, liquidation: Liquidation, clock_us: int) -> None:
        overdue, command = self._accounts.agenda.overdue, liquidation.command
        if command is not None and command.expires_at < clock_us:
            overdue.add(group.row)
            if not command.done and command.end("expiry"):
                self._outbox.changed.add(state.account)
        if 0 < liquidation.retry_at < clock_us:
            liquidation.retry_at = 0
            overdue.add(group.row)
            self._outbox.changed.add(state.account)
        for ended in [each for each in liquidation.ended if (each.forgotten_at or 0) < clock_us]:
            self._forget(state, group, ended)

    def _forget(self, state: AccountState, group: GroupState, command: CommandState) -> None:
        assert group.liquidation is not None
        group.liquidation.ended.remove(command)
        self._forget_orders(command)
        self._outbox.changed.add(state.account)
        self._tidy(group)

    def _forget_orders(self, command: CommandState) -> None:
        for order in command.orders:
            self.orders.pop(order.order_id, None)

    def _make_room(self, state: AccountState) -> None:
        """Forget the oldest commands of an account, so that its row holds those that may be out."""
        ended = [
            (command.forgotten_at or 0, group.margin, group, command)
            for group in state.groups.values()
            if group.liquidation is not None
            for command in group.liquidation.ended
        ]
        room = ACCOUNT_ORDERS_MAX - self.out_of(state) - sum(len(command.orders) for *_, command in ended)
        for _, _, group, command in sorted(ended, key=lambda each: each[:2]):
            if room >= 0:
                break
            room += len(command.orders)
            self._forget(state, group, command)

    def out_of(self, state: AccountState) -> int:
        """How many orders are out for an account."""
        return sum(len(group.command.orders) for group in state.groups.values() if group.command is not None)

    def _tidy(self, group: GroupState) -> None:
        if group.liquidation is not None and group.liquidation.is_nothing:
            group.liquidation = None
        self._accounts.agenda.watch(group)

    def _liquidation(self, group: GroupState) -> Liquidation:
        if group.liquidation is None:
            group.liquidation = Liquidation()
        return group.liquidation

    def _wake(self, group: GroupState, time_us: int) -> None:
        if time_us:
            heapq.heappush(self._times, (time_us, group.row))

    # --- what comes for orders ---------------------------------------------------------------------------------------

    def count_fill(
        self, state: AccountState, group: GroupState, symbol: str, quantity: str, price: str, order_id: str
    ) -> None:
        """Count a fill, which the ledger has, for the order of a command whose id it carries, if it is one of that
        order, and take its fees; else tell. One that comes too late to count pays all the same."""
        what = f"a fill in {symbol}"
        ordered = self._order_of(state, group, symbol, order_id, what)
        if ordered is None:
            if order_id not in self.orders and state.has_ordered(order_id) and not self._admission.is_spot(symbol):
                self._fees.charge(state, group, order_id, (symbol, quantity, price), None)
            return
        command, order = ordered
        filled = Decimal(quantity)
        side = "buy" if filled > 0 else "sell"
        if order.symbol not in (None, symbol) or order.side not in (None, side):
            self._tell_fill(state, group, "fill_mismatch", symbol, what, order_id, _side_of(order))
        elif self._admission.is_spot(symbol):
            order.traded = (order.traded or _ZERO) + abs(filled)
            self._fill(state, group, command, order, what, max(order.traded, order.transferred or _ZERO))
        else:
            self._fill(state, group, command, order, what, order.filled + abs(filled))
            self._fees.charge(state, group, order_id, (symbol, quantity, price), order.rates)

    def count_transfer(self, state: AccountState, group: GroupState, asset: str, amount: str, order_id: str) -> None:
        """Count a transfer for the order of a command that sold or bought the asset. What was paid or received for it
        comes under the same id and counts for nothing; what fits no such order is told."""
        rules = self._portfolio.parameters.assets.get(asset)
        symbol = None if rules is None else rules.price_symbol
        what = f"a transfer of {asset}"
        ordered = self._order_of(state, group, symbol, order_id, what)
        if ordered is None or ordered[1].symbol != symbol:
            return
        command, order = ordered
        moved = Decimal(amount)
        if order.side != ("buy" if moved > 0 else "sell"):
            self._tell_fill(state, group, "fill_mismatch", symbol, f"{what} of {amount}", order_id, _side_of(order))
            return
        order.transferred = (order.transferred or _ZERO) + abs(moved)
        self._fill(state, group, command, order, what, max(order.transferred, order.traded or _ZERO))

    def apply_reports(self, columns: ReportColumns) -> None:
        """Note what services say of orders; tell what does not fit."""
        said = columns.account, columns.command_id, columns.order_id, columns.status, columns.filled_quantity
        for account, command_id, order_id, status, filled in zip(*said, strict=True):
            tracked = self.orders.get(order_id)
            if tracked is None:
                self._tell_stray_report(account, order_id, status)
                continue
            state, group, command, order = tracked
            if state.account != account or command.command_id != command_id:
                reason = f"it names account {account} and command {command_id}"
                self._tell_report(state, group, order, status, reason)
                continue
            self._report(state, group, command, order, status, Decimal(filled))

    def _report(
        self,
        state: AccountState,
        group: GroupState,
        command: CommandState,
        order: OrderState,
        status: ReportStatus,
        filled: Decimal,
    ) -> None:
        event: OrderEvent = status
        if status != "accepted" and order.final is not None:
            event = "same_again" if (status, filled) == (order.status, order.final) else "contradiction"
        change = ORDER_CHANGES[order.status][event]
        why = None if change.told is None else f"it is {order.status} already"
        if order.final is None and event in ("filled", "cancelled", "rejected"):
            why = self._finish(order, status, filled) or why
            self._outbox.changed.add(state.account)
        if why is not None:
            self._tell_report(state, group, order, status, why)
        if change.to != order.status:
            order.status = change.to
            self._outbox.changed.add(state.account)
        self._look_again(group, command)

    @staticmethod
    def _finish(order: OrderState, status: ReportStatus, filled: Decimal) -> str | None:
        """Note what the first final report of an order says; why that cannot be, if it cannot. It is never taken to be
        less than what has come, and of an order that is filled, with nothing said of how much, all is to come."""
        right = filled == order.quantity if status == "filled" else order.filled <= filled <= order.quantity
        said = order.quantity if status == "filled" and not filled else filled
        order.final = max(said, order.filled)
        if right and not (status == "rejected" and filled):
            return None
        reason = f"{format_decimal(filled)} filled of {format_decimal(order.quantity)}"
        return reason + (f", fills of {format_decimal(order.filled)} have come" if order.filled else "")

    def _fill(
        self,
        state: AccountState,
        group: GroupState,
        command: CommandState,
        order: OrderState,
        what: str,
        filled: Decimal,
    ) -> None:
        """By ``what`` has come ``filled`` of the order has been filled in all."""
        if filled == order.filled:
            return  # a trade and a transfer of the same sale
        most = order.to_come
        event: OrderEvent = "fill" if filled < most else "last_fill" if filled == most else "fill_beyond"
        change = ORDER_CHANGES[order.status][event]
        told: AlertKind | None = change.told if command.forgotten_at is None else "late_fill"
        if told is not None:
            reason = f"{what} carries order_id {order.order_id}, which is {order.status}"
            reason += "" if command.forgotten_at is None else f" and whose command is {command.status}"
            reason += f": {format_decimal(filled)} filled of {format_decimal(most)}"
            self._tell(state, group, told, order.symbol, reason)
        order.filled, order.status = filled, change.to
        self._outbox.changed.add(state.account)

    def _look_again(self, group: GroupState, command: CommandState) -> None:
        if command.forgotten_at is None and command.done:
            self._accounts.agenda.touched.add(group.row)

    def _order_of(
        self, state: AccountState, group: GroupState, symbol: str | None, order_id: str, what: str
    ) -> tuple[CommandState, OrderState] | None:
        """The order of a command of the group that ``order_id`` is; tells if it is another's, or not remembered."""
        tracked = self.orders.get(order_id)
        if tracked is not None:
            owner, owned, command, order = tracked
            if owner is state and owned is group:
                return command, order
            reason = "it is an order of another account or margin group"
            self._tell_fill(state, group, "fill_mismatch", symbol, what, order_id, reason)
            return None
        commanded = self._accounts.by_name.get(_account_of(order_id))
        if commanded is not None and commanded.has_ordered(order_id):
            self._tell_fill(state, group, "late_fill", symbol, what, order_id, _FORGOTTEN)
        return None

    # --- telling -----------------------------------------------------------------------------------------------------

    def _tell(self, state: AccountState, group: GroupState, kind: AlertKind, symbol: str | None, reason: str) -> None:
        self._outbox.alert(state, group.margin, kind, reason=reason, symbol=symbol)

    def _tell_fill(
        self,
        state: AccountState,
        group: GroupState,
        kind: AlertKind,
        symbol: str | None,
        what: str,
        order_id: str,
        reason: str,
    ) -> None:
        self._tell(state, group, kind, symbol, f"{what} carries order_id {order_id}: {reason}")

    def _tell_report(
        self, state: AccountState, group: GroupState, order: OrderState, status: ReportStatus, reason: str
    ) -> None:
        text = f"a report says that order {order.order_id} is {status}: {reason}"
        self._tell(state, group, "report_mismatch", order.symbol, text)

    def _tell_stray_report(self, account: str, order_id: str, status: ReportStatus) -> None:
        """A report of an order that is not remembered, or never was; nothing is told of those that say nothing new."""
        if status == "accepted":
            return
        state = self._accounts.by_name.get(account)
        is_ours = state is not None and state.has_ordered(order_id)
        why = _FORGOTTEN if is_ours else "there is no such order"
        text = f"a report of account {account} says that order {order_id} is {status}: {why}"
        self._outbox.alert_shard("report_mismatch", text)


def _side_of(order: OrderState) -> str:
    return f"the order is to {order.side} {order.symbol}"


def _account_of(order_id: str) -> str:
    return order_id.rpartition(":")[0].rpartition(":")[0]
