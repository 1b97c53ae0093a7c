"""What comes for an order or a command does what the tables say: every event in every state, on a shard."""

import logging
import re
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest

from schemas.messages import AccountRow, OpenCommand, OpenOrder
from schemas.types import CommandStatus, OrderStatus
from streams.clearing.command_states import (
    COMMAND_CHANGES,
    FINAL_COMMANDS,
    FINAL_ORDERS,
    ORDER_CHANGES,
    CommandEvent,
    OrderEvent,
    command_table,
    order_table,
    status_of,
)
from streams.clearing.shard import Output
from streams.logs import NAMED_MAX
from streams.margin.parameters import RiskParameters
from tests.clearing.test_held_back import Recorder
from tests.clearing.test_shard import RULES, kinds

ORDER = "alice:1:0"
WHOLE, PART = "0.096", "0.01"
TOLD = {"fill_mismatch", "late_fill", "report_mismatch"}

_README = Path(__file__).resolve().parents[2] / "streams" / "clearing" / "README.md"


def commanded() -> Recorder:
    """Alice's long is being reduced by alice:1, one order to sell 0.096."""
    driver = Recorder(RiskParameters.build(list(RULES.records.values())))
    driver.long()
    driver.mark("9450")
    return driver


def command_of(row: AccountRow) -> OpenCommand:
    """The command alice:1, out or ended."""
    (group,) = row.groups
    commands = [*(group.ended or ()), *([] if group.command is None else [group.command])]
    return next(command for command in commands if command.command_id == "alice:1")


def order_of(driver: Recorder) -> OpenOrder:
    (order,) = command_of(driver.row("alice")).orders
    return order


def fill(driver: Recorder, quantity: Decimal) -> Output:
    return driver.fill("alice", str(-quantity), "9450", order_id=ORDER)


def bring_to(driver: Recorder, state: OrderStatus) -> None:
    if state == "accepted":
        driver.report("alice", ORDER, "accepted")
    elif state == "partly_filled":
        fill(driver, Decimal(PART))
    elif state == "filled":
        driver.report("alice", ORDER, "filled", WHOLE)
    elif state != "issued":
        driver.report("alice", ORDER, state, "0" if state == "rejected" else PART)


def happen(driver: Recorder, event: OrderEvent) -> Output:
    """Let ``event`` happen to the order as it is."""
    order = order_of(driver)
    final = None if order.final is None else Decimal(order.final)
    left = (Decimal(order.quantity) if final is None else final) - Decimal(order.filled)
    least = Decimal("0.001")
    if event == "same_again":
        return driver.report("alice", ORDER, order.status, order.final or "0")  # type: ignore[arg-type]
    if event == "contradiction":
        return driver.report("alice", ORDER, "cancelled", "0.002")
    if event == "fill":
        return fill(driver, least)
    if event == "last_fill":
        return fill(driver, left) if left else driver.frame()
    if event == "fill_beyond":
        return fill(driver, left + least)
    filled = {"filled": WHOLE, "cancelled": PART, "rejected": order.filled, "accepted": "0"}[event]
    return driver.report("alice", ORDER, event, filled)


def happens(state: OrderStatus, event: OrderEvent) -> bool:
    """Whether the event can come in that state: nothing is said again before a final report, and there is no fill
    below what is to come of an order that was rejected with nothing filled."""
    if event in ("contradiction", "same_again"):
        return state in FINAL_ORDERS
    return not (state == "rejected" and event in ("fill", "last_fill"))


@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize("event", get_args(OrderEvent))
@pytest.mark.parametrize("state", get_args(OrderStatus))
def test_every_event_does_to_an_order_what_the_table_says(
    state: OrderStatus, event: OrderEvent, restarted: bool
) -> None:
    if not happens(state, event):
        assert event in ORDER_CHANGES[state]
        return
    driver = commanded()
    bring_to(driver, state)
    assert order_of(driver).status == state
    if restarted:
        driver.restart()
        driver.mark("9450")
    ended = command_of(driver.row("alice")).forgotten_at
    output, change = happen(driver, event), ORDER_CHANGES[state][event]
    assert order_of(driver).status == change.to
    told = TOLD & set(kinds(output))
    if ended and event in ("fill", "last_fill", "fill_beyond"):
        assert told == {"late_fill"}
    else:
        assert told == ({change.told} if change.told else set())


@pytest.mark.parametrize("state", get_args(OrderStatus))
def test_no_pair_is_missing_and_what_is_final_stays(state: OrderStatus) -> None:
    assert list(ORDER_CHANGES[state]) == list(get_args(OrderEvent))
    if state in FINAL_ORDERS:
        assert {change.to for change in ORDER_CHANGES[state].values()} == {state}


@pytest.mark.parametrize("state", get_args(CommandStatus))
def test_no_pair_is_missing_of_a_command_either(state: CommandStatus) -> None:
    assert list(COMMAND_CHANGES[state]) == list(get_args(CommandEvent))
    ends = set(COMMAND_CHANGES[state].values())
    if state in FINAL_COMMANDS - {"expired"}:
        assert ends == {state}
    elif state == "expired":
        assert ends == {"expired", "superseded"}
    else:
        assert ends == {"expired", "withdrawn", "superseded"}


@pytest.mark.parametrize(
    ("orders", "status"),
    [
        (["issued"], "issued"),
        (["issued", "accepted"], "accepted"),
        (["accepted", "rejected"], "accepted"),
        (["issued", "filled"], "partly_filled"),
        (["partly_filled", "cancelled"], "partly_filled"),
        (["filled", "filled"], "filled"),
        (["filled", "rejected"], "cancelled"),
        (["rejected", "rejected"], "rejected"),
        (["cancelled"], "cancelled"),
    ],
)
def test_how_far_a_command_is_follows_from_its_orders(orders: list[OrderStatus], status: CommandStatus) -> None:
    assert status_of(orders) == status


def test_the_tables_are_those_of_the_readme() -> None:
    text = _README.read_text(encoding="utf-8")
    tables = re.search(r"<!-- states: generated -->\n\n(.*?)\n\n<!-- end of states -->", text, re.S)
    assert tables is not None
    assert tables[1] == f"{order_table()}\n\n{command_table()}"


# --- a command's ends ------------------------------------------------------------------------------------------------


def test_a_command_expires_and_its_successor_names_it() -> None:
    driver = commanded()
    (successor,) = driver.mark("9450", after_ms=5001).commands
    assert (successor.supersedes, successor.attempt) == ("alice:1", 1)
    assert command_of(driver.row("alice")).status == "superseded"


def test_after_every_attempt_has_come_to_nothing_the_group_is_taken_over() -> None:
    driver = commanded()
    given = []
    for _ in range(3):
        given += driver.mark("9450", after_ms=5001).commands
    assert [(command.stage, command.attempt) for command in given] == [("reduce", 1), ("reduce", 2), ("takeover", 3)]
    limits = [Decimal(command.orders[0].limit_price) for command in given]
    assert limits == sorted(limits, reverse=True)


def test_an_attempt_of_which_enough_was_filled_does_not_count() -> None:
    driver = commanded()
    fill(driver, Decimal(PART))
    (command,) = driver.mark("9450", after_ms=5001).commands
    assert not command.attempt


def test_attempts_begin_anew_when_the_group_is_healthy_at_its_target() -> None:
    driver = commanded()
    driver.mark("9450", after_ms=5001)
    (withdrawal,) = driver.mark("9900").commands
    assert withdrawal.stage == "withdrawn"
    (group,) = driver.row("alice").groups
    assert not group.attempt
    driver.report("alice", "alice:2:0", "cancelled")
    (command,) = driver.mark("9450").commands
    assert (command.stage, command.attempt or 0, command.supersedes) == ("reduce", 0, None)


def test_no_command_follows_a_withdrawal_before_the_old_one_is_final_or_expired() -> None:
    driver = commanded()
    assert [command.stage for command in driver.mark("9900").commands] == ["withdrawn"]
    assert driver.mark("9450").commands == []
    fill(driver, Decimal(PART))
    (command,) = driver.report("alice", ORDER, "cancelled", PART).commands
    assert (command.command_id, command.supersedes) == ("alice:3", None)
    driver = commanded()
    driver.mark("9900")
    assert [command.command_id for command in driver.mark("9450", after_ms=5001).commands] == ["alice:3"]


def test_a_deposit_withdraws_too() -> None:
    driver = commanded()
    assert [command.stage for command in driver.transfer("alice", "1000").commands] == ["withdrawn"]


def test_a_group_that_is_healthy_but_not_at_its_target_keeps_its_command() -> None:
    """At 9474 equity is 474, maintenance 473.7 and the target 492.6."""
    driver = commanded()
    assert driver.mark("9474").commands == []
    assert command_of(driver.row("alice")).status == "issued"


def test_a_command_that_has_ended_is_remembered_for_so_long_and_over_restarts() -> None:
    driver = commanded()
    fill(driver, Decimal(WHOLE))
    for restart in (False, True):
        if restart:
            driver.restart()
            driver.mark("9450")
        assert command_of(driver.row("alice")).status == "filled"
        assert TOLD & set(kinds(fill(driver, Decimal("0.001")))) == {"late_fill"}
    driver.tick(61_000)
    (group,) = driver.row("alice").groups
    assert not group.ended


def test_a_report_of_an_order_that_never_was_is_told() -> None:
    driver = commanded()
    (alert,) = driver.report("bob", "bob:1:0", "filled", "1").alerts
    assert (alert.kind, "no such order" in (alert.reason or "")) == ("report_mismatch", True)


def test_stray_reports_are_all_told_and_logged_a_few_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    driver = commanded()
    with caplog.at_level(logging.WARNING, "streams.clearing.outbox"):
        told = [driver.report("bob", f"bob:1:{number}", "filled", "1").alerts for number in range(5 * NAMED_MAX)]
    assert all(len(alerts) == 1 for alerts in told)
    assert len(caplog.records) <= NAMED_MAX
