"""Whatever services do with a command, and whenever the shard is taken anew: one is out at a time, what is final stays
so, nobody healthy is commanded, and every life ends."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas.codec import encode
from schemas.messages import AccountRow, Mark, MarkFrame
from schemas.parameters import PolicyParameters
from streams.clearing.command_states import FINAL_COMMANDS
from streams.clearing.shard import Output
from streams.margin.parameters import RiskParameters
from tests.clearing.test_held_back import Recorder
from tests.clearing.test_shard import RULES
from tests.properties import examples
from tests.simulation.command_ends import CommandEnds

POLICY = PolicyParameters(
    liquidation_buffer_rate="0.01", command_ttl_ms=5000, command_memory_ms=8000, retry_ms=700, slices_open_max=2
)
STATUSES = ("accepted", "filled", "cancelled", "rejected")

Act = Callable[["Life"], Output]


class Life(Recorder):
    """Alice's long of 1, and what came of her commands."""

    def __init__(self) -> None:
        super().__init__(RiskParameters.build([*RULES.records.values(), POLICY]))
        self._last: tuple[int, MarkFrame] | None = None
        self.long()

    def mark(self, price: str, **fields: Any) -> Output:
        offset = self.shard.marks_next
        output = super().mark(price, **fields)
        mark = Mark(symbol="BTC-PERP", price=price, status="live", publish_time=self.time)
        self._last = offset, MarkFrame(time=self.time, marks=(mark,), full=True, scales={})
        return output

    def restart(self) -> None:
        super().restart()
        assert self._last is not None
        self.shard.recall_marks(*self._last)
        self.shard.stand()

    def order(self, number: int) -> str:
        """The id of one of the orders that are remembered, or of one that never was."""
        groups = self.row("alice").groups
        commands = [command for group in groups for command in (group.command, *(group.ended or ())) if command]
        ids = sorted(order.order_id for command in commands for order in command.orders)
        return ids[number % len(ids)] if ids else "alice:99:0"


def fill(number: int, lots: int) -> Act:
    return lambda life: life.fill("alice", f"-{Decimal(lots) / 1000}", "9400", order_id=life.order(number))


def report(number: int, status: str, lots: int) -> Act:
    return lambda life: life.report("alice", life.order(number), status, str(Decimal(lots) / 1000))  # type: ignore[arg-type]


NUMBERS, LOTS = st.integers(0, 5), st.integers(1, 120)
ACTS = st.one_of(
    st.builds(
        lambda price: lambda life: life.mark(str(price)), st.one_of(st.integers(9400, 9460), st.integers(9300, 10000))
    ),
    st.builds(lambda ms: lambda life: life.tick(ms), st.sampled_from([100, 800, 2500, 5100])),
    st.builds(fill, NUMBERS, LOTS),
    st.builds(report, NUMBERS, st.sampled_from(STATUSES), st.one_of(st.just(0), st.integers(0, 120))),
    st.builds(lambda amount: lambda life: life.transfer("alice", str(amount)), st.integers(-40, 300).filter(bool)),
)


@given(st.lists(st.tuples(ACTS, st.booleans()), max_size=25))
@configure(max_examples=examples(400))
def test_any_life_of_commands_is_in_order_the_same_after_restarts_and_ends(steps: list[tuple[Act, bool]]) -> None:
    life, same, ends = Life(), Life(), CommandEnds()
    issued = 0
    for act, restarted in steps:
        before = life.row("alice")
        if restarted:
            same.restart()
        output, again = act(life), act(same)
        assert [encode(command) for command in output.commands] == [encode(command) for command in again.commands]
        assert [encode(alert) for alert in output.alerts] == [encode(alert) for alert in again.alerts]
        assert life.rows == same.rows
        row = life.row("alice")
        assert ends.see("alice", life.rows["alice"]) == []
        for command in output.commands:
            issued += 1
            assert command.sequence == issued
            evidence = command.evidence
            equity, maintenance = Decimal(evidence.equity), Decimal(evidence.maintenance_margin)
            is_withdrawal = command.stage == "withdrawn"
            assert is_withdrawal == (not command.orders)
            # the margin is a twentieth of the notional, of which the buffer is a hundredth
            assert equity >= maintenance * Decimal("1.2") if is_withdrawal else equity < maintenance
            assert len(command.orders) <= POLICY.slices_open_max or command.stage == "takeover"
        _check_one_at_a_time(before, output, row)
        for group in row.groups:
            waits_until = group.retry_at or 0
            assert waits_until == 0 or waits_until >= life.shard.clock_us
            if group.status == "liquidating" and life.shard.has_live("BTC-PERP"):
                assert group.command is not None or waits_until
    end(life)


def _check_one_at_a_time(before: AccountRow, output: Output, row: AccountRow) -> None:
    """No command follows one of which something may still be filled, unless that one's time is over."""
    was = before.groups[0].command if before.groups else None
    given = [command for command in output.commands if command.stage != "withdrawn"]
    assert len(given) <= 1
    if given and was is not None:
        ended = {command.command_id: command.status for command in row.groups[0].ended or ()}
        assert ended.get(was.command_id, "expired") in FINAL_COMMANDS
        assert given[0].supersedes in (None, was.command_id)


def end(life: Life) -> None:
    """At a good price, once its commands' time and memory are over, nothing is left of them."""
    life.transfer("alice", "100000")
    for _ in range(3):
        life.mark("10000", after_ms=9000)
    (group,) = life.row("alice").groups
    assert (group.command, group.attempt or 0, group.ended or ()) == (None, 0, ())
    assert group.status == "normal"
