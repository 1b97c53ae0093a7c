"""From a verdict to what is done about a group: a command, a status, an alert, or nothing.

The order of decisions is that of the accounts' names, and every one follows from the shard's inputs alone, so a replay
gives the same to the byte.
"""

from decimal import Decimal

from msgspec import UNSET

from schemas.messages import CommandOrder, DeferredEvent, Evidence, LiquidationCommand
from schemas.types import GroupStatus
from streams.clearing.account import AccountState, CommandState, GroupState, OrderState, rates_of, stated
from streams.clearing.accounts import Accounts
from streams.clearing.candidates import Candidates
from streams.clearing.holds import Holds
from streams.clearing.journal import Cursor
from streams.clearing.marks import Marks
from streams.clearing.open_commands import OpenCommands
from streams.clearing.outbox import REASON_MAX, Outbox
from streams.feeds.source_names import source_name
from streams.margin.fees import FeeRates
from streams.margin.fixed_point import format_decimal
from streams.margin.health import Health, evaluate, symbols_of, target_of
from streams.margin.levels import margin_call_level
from streams.margin.limits import ACCOUNT_ORDERS_MAX
from streams.margin.plan import Plan, make_plan, orders_at_once
from streams.margin.portfolio import Portfolio
from streams.margin.rules import Instrument
from streams.margin.slots import Rows


class Decisions:
    """Decides the margin groups of one shard."""

    def __init__(
        self,
        cursor: Cursor,
        portfolio: Portfolio,
        marks: Marks,
        accounts: Accounts,
        candidates: Candidates,
        commands: OpenCommands,
        holds: Holds,
        outbox: Outbox,
    ) -> None:
        self._cursor = cursor
        self._portfolio = portfolio
        self._marks = marks
        self._accounts = accounts
        self._candidates = candidates
        self._commands = commands
        self._holds = holds
        self._outbox = outbox

    def decide(self, rows: Rows) -> None:
        """Screen ``rows`` (int64[n], distinct), decide exactly those that the screen cannot rule out."""
        if not rows.size:
            return
        for state, group in self._accounts.in_order(self._candidates.screen(rows)):
            if self.is_suspended(state):
                self._decide_suspended(state, group)
            else:
                self.decide_exactly(state, group)

    def is_suspended(self, state: AccountState) -> bool:
        """Whether nothing is done to an account, for a reason of its own or one of its shard."""
        return state.suspended or self._cursor.suspends(state.resumed)

    def due(self) -> set[int]:
        """The rows of which a command's time is over or another may be given, and those of a restored shard that have
        not been decided yet."""
        agenda = self._accounts.agenda
        undone, agenda.undone = agenda.undone, set()
        return self._commands.due(self._cursor.clock.now_us) | undone

    def _decide_suspended(self, state: AccountState, group: GroupState) -> None:
        """Nothing is done to an account whose state is not known; that it would be liquidated as it stands is told."""
        self._accounts.agenda.overdue.discard(group.row)
        if state.told_liquidatable:
            return
        health = self._evaluate(group)
        if health.liquidatable:
            state.told_liquidatable = True
            suspension = self._cursor.suspension
            why = state.suspended_reason if state.suspended or suspension is None else suspension.reasons[-1]
            reason = f"liquidatable as its ledger stands, and suspended: {why}"
            self._outbox.alert(state, group.margin, "suspended_liquidatable", health=health, reason=reason[:REASON_MAX])

    def decide_exactly(self, state: AccountState, group: GroupState) -> None:
        """Decide one group: liquidate it, leave it alone, or say why neither can be done.

        1. A command that is out is waited for, until nothing more will be filled of it or its time is over. Healthy at
           its target again meanwhile, it is withdrawn.
        2. Below the requirement, as far as live marks and the bounds of the others show: the account is held until all
           is in that was acknowledged before; then the plan's orders become a command, a plan without orders a status.
        3. Not below it with every mark live: whatever was under way is over.
        4. Not shown to be below it while marks are not live: nothing is over that only live marks can end.
        """
        if group.command is not None and group.command.done:
            self._commands.end(state, group)
        command = group.command
        health = self._evaluate(group)
        if command is not None and not command.is_over(self._cursor.clock.now_us):
            self._look_while_out(state, group, command, health)
        elif health.liquidatable:
            if self._commands.waits(group):
                return
            view, marks = self._portfolio.group(group.row), self._portfolio.marks
            plan = make_plan(
                view,
                health,
                marks,
                self._portfolio.parameters,
                stale=self._not_live_of(group),
                attempt=self._commands.next_attempt(group),
            )
            superseded, expired_us = (None, 0) if command is None else (command.superseded, command.expires_at)
            is_news = bool(plan.orders) or group.status != plan.stage
            if is_news and self._holds.keeps(state, expired_us):
                return
            self._commands.end(state, group, "successor" if plan.orders else "expiry")
            if plan.orders:
                self._liquidate(state, group, health, plan, superseded)
            else:
                self._strand(state, group, health, plan.stage)
        elif health.bounds or not health.bounded:
            self._leave_undecided(state, group)
        else:
            self._commands.end(state, group, "expiry")
            self._settle(state, group, health)
        self._accounts.agenda.watch(group)

    def _look_while_out(self, state: AccountState, group: GroupState, command: CommandState, health: Health) -> None:
        """A group whose command is out: withdraw that, if nothing more of it is to be filled."""
        if health.liquidatable or health.bounds or not health.bounded:
            return
        if command.withdrawn_by is None:
            if not self._is_at_target(health):
                return
            self._withdraw(state, group, command, health)
        self._settle(state, group, health)

    def tell_below_at_last_prices(self, state: AccountState, group: GroupState) -> None:
        """Tell of a group that is below its requirement at the last prices, if it is, while its marks are not live."""
        if self._is_below_at_last_prices(group):
            health = self._evaluate(group)
            self._tell_undecided(state, group, health, "below its requirement at the last prices, not live: ")
            group.status = "undecided"
            self._accounts.agenda.watch(group)

    # --- verdicts ----------------------------------------------------------------------------------------------------

    def _evaluate(self, group: GroupState) -> Health:
        """The verdict on a group, with what the marks that are not live may be at best."""
        view, marks = self._portfolio.group(group.row), self._portfolio.marks
        return evaluate(view, marks, self._portfolio.parameters, stale=self._not_live_of(group))

    def _is_below_at_last_prices(self, group: GroupState) -> bool:
        unpriced = frozenset(symbol for symbol in self._priced_by(group) if self._marks.status(symbol) is None)
        view, marks = self._portfolio.group(group.row), self._portfolio.marks
        return evaluate(view, marks, self._portfolio.parameters, stale=unpriced).liquidatable

    def _not_live_of(self, group: GroupState) -> frozenset[str]:
        """The symbols that the group's figures need and that have no live mark."""
        return frozenset(symbol for symbol in self._priced_by(group) if not self._marks.has_live(symbol))

    def _priced_by(self, group: GroupState) -> set[str]:
        """The symbols whose marks the group's figures depend on: not those of balances that count for nothing."""
        return symbols_of(self._portfolio.group(group.row), self._portfolio.marks, self._portfolio.parameters)

    def _scaled_by(self, group: GroupState) -> set[str]:
        """The keys of the parameter records whose rates or haircuts the group's verdict depends on."""
        held = [symbol for symbol, _, _ in self._portfolio.positions(group.row)]
        return {f"instrument:{symbol}" for symbol in held} | {
            f"asset:{asset}" for asset in self._portfolio.balances(group.row)
        }

    def _is_at_target(self, health: Health) -> bool:
        return health.equity >= target_of(health, self._portfolio.parameters)

    # --- below its requirement ---------------------------------------------------------------------------------------

    def _liquidate(
        self, state: AccountState, group: GroupState, health: Health, plan: Plan, superseded: str | None
    ) -> None:
        command = self._command(state, group, health, plan, superseded)
        self._outbox.commands.append(command)
        self._commands.open(
            state,
            group,
            CommandState(
                command_id=command.command_id,
                stage=plan.stage,
                expires_at=command.expires_at,
                orders=[
                    OrderState(
                        order.order_id,
                        Decimal(order.quantity),
                        order.symbol,
                        order.order_side,
                        mark_price=Decimal(order.mark_price),
                        rates=rates_of(order),
                    )
                    for order in command.orders
                ],
            ),
        )
        if not group.started:
            group.started = True
            self._outbox.alert(state, group.margin, "liquidation_started", health=health)
        if plan.stage == "takeover" and group.status != "bankrupt":
            self._outbox.alert(state, group.margin, "bankrupt", health=health)
        group.status = "bankrupt" if plan.stage == "takeover" else "liquidating"
        self._clear_undecided(state, group, health)
        self._outbox.changed.add(state.account)

    def _command(
        self, state: AccountState, group: GroupState, health: Health, plan: Plan, superseded: str | None
    ) -> LiquidationCommand:
        """The account's next command: as many of the plan's orders as its row has room for."""
        command_id = f"{state.account}:{state.liquidation_sequence + 1}"
        most, room = (
            self._portfolio.parameters.policy.slices_open_max,
            ACCOUNT_ORDERS_MAX - self._commands.out_of(state),
        )
        instruments = self._portfolio.parameters.instruments
        orders = tuple(
            CommandOrder(
                order_id=f"{command_id}:{index}",
                symbol=order.symbol,
                position_side=order.position_side,
                order_side=order.order_side,
                quantity=format_decimal(order.quantity),
                reduce_only=True,
                limit_price=format_decimal(order.limit_price),
                mark_price=format_decimal(order.mark_price),
                **_fees_of(instruments.get(order.symbol)),
            )
            for index, order in enumerate(orders_at_once(plan, most)[: max(room, 1)])
        )
        assert orders, "a command without orders does nothing and is out for a whole time-to-live"
        return self._next_command(state, group, health, plan.stage, superseded, orders)

    def _next_command(
        self,
        state: AccountState,
        group: GroupState,
        health: Health,
        stage: str,
        superseded: str | None,
        orders: tuple[CommandOrder, ...],
    ) -> LiquidationCommand:
        state.liquidation_sequence += 1
        clock_us = self._cursor.clock.now_us
        return LiquidationCommand(
            command_id=f"{state.account}:{state.liquidation_sequence}",
            account=state.account,
            margin=group.margin,
            sequence=state.liquidation_sequence,
            stage=stage,  # type: ignore[arg-type]
            supersedes=superseded,
            cancel_open_orders=bool(orders),
            issued_at=clock_us,
            expires_at=clock_us + 1000 * self._portfolio.parameters.policy.command_ttl_ms,
            orders=orders,
            evidence=self._evidence(state, group, health),
            attempt=(bool(orders) and self._commands.next_attempt(group)) or UNSET,
        )

    def _withdraw(self, state: AccountState, group: GroupState, command: CommandState, health: Health) -> None:
        """Nothing more is to be filled of ``command``: the group is healthy at its target again."""
        withdrawal = self._next_command(state, group, health, "withdrawn", command.command_id, ())
        self._outbox.commands.append(withdrawal)
        self._outbox.changed.add(state.account)
        command.withdrawn_by = withdrawal.command_id
        command.end("withdrawal")

    def _evidence(self, state: AccountState, group: GroupState, health: Health) -> Evidence:
        marks, scales = self._portfolio.marks, self._marks.scales
        return Evidence(
            equity=format_decimal(health.equity),
            maintenance_margin=format_decimal(health.maintenance_margin),
            health_ratio=format_decimal(health.health_ratio or Decimal(0)),
            shard=self._cursor.shard,
            events_offset=self._cursor.events_next - 1,
            marks_offset=self._cursor.marks_next - 1,
            parameters_version=self._cursor.parameters_next - 1,
            marks={
                symbol: format_decimal(marks[symbol]) for symbol in sorted(self._priced_by(group)) if symbol in marks
            },
            reason=_reason(health),
            scales={key: scale for key in sorted(self._scaled_by(group)) if (scale := scales.get(key))},
            debt=format_decimal(health.debt),
            unweighted_equity=format_decimal(health.unweighted_equity),
            stale_bounds={symbol: format_decimal(bound) for symbol, bound in sorted(health.bounds.items())},
            left_out=self._cursor.left_out_of(state.account),
            deferred=tuple(_place_of(deferred) for deferred in state.deferred),
        )

    def _strand(self, state: AccountState, group: GroupState, health: Health, stage: str) -> None:
        """A group that is below its requirement and has nothing that could be traded: say so once."""
        if stage == "undecided":
            self._tell_undecided(state, group, health, "nothing that can be traded before these marks are live: ")
        else:
            self._clear_undecided(state, group, health)
            if group.status != stage:
                self._outbox.alert(state, group.margin, stage, health=health)  # type: ignore[arg-type]
        if group.status != stage:
            group.status = stage  # type: ignore[assignment]
            self._outbox.changed.add(state.account)

    # --- not shown to be below it ------------------------------------------------------------------------------------

    def _tell_undecided(self, state: AccountState, group: GroupState, health: Health, why: str) -> None:
        if not group.told_undecided:
            group.told_undecided = True
            reason = why + ", ".join(sorted(health.bounds))
            self._outbox.alert(state, group.margin, "undecided", health=health, reason=reason[:REASON_MAX])

    def _clear_undecided(self, state: AccountState, group: GroupState, health: Health | None) -> None:
        if group.told_undecided:
            group.told_undecided = False
            self._outbox.alert(state, group.margin, "undecided_cleared", health=health)

    def _leave_undecided(self, state: AccountState, group: GroupState) -> None:
        """A group that is not shown to be below its requirement, and whose marks are not all live.

        What only live marks can end goes on; that it is undecided is over when it is not below it at the last prices.
        """
        self._accounts.agenda.overdue.discard(group.row)  # its marks' liveness, or its bounds' edge, brings it back
        if group.told_undecided and not self._is_below_at_last_prices(group):
            self._clear_undecided(state, group, None)
        if group.status == "undecided" and not group.told_undecided:
            group.status = "normal" if group.level is None else "margin_call"
            self._outbox.changed.add(state.account)

    def _settle(self, state: AccountState, group: GroupState, health: Health) -> None:
        """A group that need not be liquidated: leave behind whatever was, and set the margin-call level it is at."""
        self._clear_undecided(state, group, health)
        if self._is_at_target(health):
            self._commands.begin_anew(state, group)
        if group.started:
            group.started = False
            self._outbox.alert(state, group.margin, "liquidation_completed", health=health)
        elif group.status in ("insolvent", "unsellable"):
            self._outbox.alert(state, group.margin, "recovered", health=health)
        levels = self._portfolio.parameters.policy.margin_call_levels
        level = margin_call_level(health.health_ratio, levels, group.level)
        if level != group.level:
            if level is None:
                self._outbox.alert(state, group.margin, "margin_call_cleared", health=health, level=group.level)
            elif group.level is None or level < group.level:
                self._outbox.alert(state, group.margin, "margin_call", health=health, level=level)
            group.level = level
            self._accounts.set_level(group)
            self._outbox.changed.add(state.account)
        status: GroupStatus = "normal" if level is None else "margin_call"
        if group.status != status:
            group.status = status
            self._outbox.changed.add(state.account)


def _fees_of(instrument: Instrument | None) -> dict[str, str]:
    """What an order states of the fees that its fills pay; one that trades collateral pays none."""
    if instrument is None:
        return {}
    return stated(FeeRates.of(instrument))


def _place_of(deferred: DeferredEvent) -> str:
    (source,) = deferred.frame.sources
    return f"{source_name(source)}:{source.first}"


def _reason(health: Health) -> str:
    if not health.liquidatable:
        return "equity_at_target"
    return "equity_not_positive" if health.equity <= 0 else "equity_below_maintenance"
