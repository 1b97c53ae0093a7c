"""The commands that are out: whose orders they are, what has been filled of them, and when they expire."""

import heapq
from decimal import Decimal

from schemas.messages import ReportColumns
from streams.clearing.account import AccountState, CommandState, GroupState, OrderState
from streams.clearing.accounts import Accounts
from streams.clearing.outbox import Outbox
from streams.margin.fixed_point import format_decimal


class OpenCommands:
    """The open commands of one shard; a group has at most one. ``orders`` holds their orders by id."""

    def __init__(self, accounts: Accounts, outbox: Outbox) -> None:
        self._accounts = accounts
        self._outbox = outbox
        self.orders: dict[str, tuple[AccountState, GroupState, OrderState]] = {}
        self._expiries: list[tuple[int, str, int]] = []

    def open(self, state: AccountState, group: GroupState, command: CommandState) -> None:
        """``command`` is out for ``group``: count fills for its orders until it is closed or expires."""
        group.command = command
        for order in command.orders:
            self.orders[order.order_id] = (state, group, order)
        self._accounts.agenda.watched.add(group.row)
        heapq.heappush(self._expiries, (command.expires_at, command.command_id, group.row))

    def restore(self, state: AccountState) -> None:
        """The commands that an account's row has are out."""
        for group in state.groups.values():
            if group.command is not None:
                self.open(state, group, group.command)

    def end(self, state: AccountState, group: GroupState) -> None:
        """Forget the group's command, if it has one."""
        if group.command is None:
            return
        for order in group.command.orders:
            self.orders.pop(order.order_id, None)
        group.command = None
        self._accounts.agenda.watch(group)
        self._accounts.agenda.overdue.discard(group.row)
        self._outbox.changed.add(state.account)

    def let_go(self, state: AccountState) -> None:
        """The account is another shard's from now on, and its commands with it."""
        for group in state.groups.values():
            for order in () if group.command is None else group.command.orders:
                self.orders.pop(order.order_id, None)

    def expire(self, clock_us: int) -> set[int]:
        """The rows whose command has expired, until they have been decided again."""
        overdue = self._accounts.agenda.overdue
        while self._expiries and self._expiries[0][0] < clock_us:
            _, command_id, row = heapq.heappop(self._expiries)
            owner = self._accounts.owner.get(row)
            if owner is not None and owner[1].command is not None and owner[1].command.command_id == command_id:
                overdue.add(row)
        return overdue

    def count_fill(self, state: AccountState, group: GroupState, symbol: str, quantity: str, order_id: str) -> None:
        """Count a fill for the order of a command whose id it carries, if it is one of that order; else tell."""
        tracked = self.orders.get(order_id)
        if tracked is None:
            commanded = self._accounts.by_name.get(order_id.rpartition(":")[0].rpartition(":")[0])
            if commanded is not None and commanded.has_ordered(order_id):
                self._tell_mismatch(state, group, symbol, order_id, "its command is not open any more")
            return
        owner, owned, order = tracked
        filled = Decimal(quantity)
        side = "buy" if filled > 0 else "sell"
        if owner is not state or owned is not group:
            self._tell_mismatch(state, group, symbol, order_id, "it is an order of another account or margin group")
        elif order.symbol not in (None, symbol) or order.side not in (None, side):
            self._tell_mismatch(state, group, symbol, order_id, f"the order is to {order.side} {order.symbol}")
        else:
            order.filled += abs(filled)
            if order.filled > order.quantity:
                reason = f"{format_decimal(order.filled)} filled of {format_decimal(order.quantity)}"
                self._tell_mismatch(state, group, symbol, order_id, reason)

    def apply_reports(self, columns: ReportColumns) -> None:
        """Note of which orders nothing more will be filled."""
        for index, account in enumerate(columns.account):
            tracked = self.orders.get(columns.order_id[index])
            status = columns.status[index]
            if tracked is None or tracked[0].account != account or status == "accepted":
                continue
            state, group, order = tracked
            if group.command is None or group.command.command_id != columns.command_id[index]:
                continue
            if order.final is None:
                order.final = Decimal(columns.filled_quantity[index])
                self._outbox.changed.add(state.account)
                self._accounts.agenda.touched.add(group.row)

    def _tell_mismatch(self, state: AccountState, group: GroupState, symbol: str, order_id: str, reason: str) -> None:
        text = f"a fill in {symbol} carries order_id {order_id}: {reason}"
        self._outbox.alert(state, group.margin, "fill_mismatch", reason=text, symbol=symbol)
