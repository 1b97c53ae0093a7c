"""Each check of the demo passes on records that are right and finds the one thing that was changed in them."""

import copy
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from streams.demo.checks import CHECKS, run_checks
from streams.demo.reference import ParameterLog
from streams.demo.run_records import RunRecords

PREFIX = "demo-"
SYMBOL = "X-PERP"


def side(account: str, order: str, fee: str) -> dict[str, Any]:
    return {"account": f"{PREFIX}{account}", "order_id": order, "fee": fee, "margin": "cross"}


def trade(number: int, price: str, quantity: str, aggressor: str, taker: dict[str, Any]) -> dict[str, Any]:
    return {
        "trade_id": number,
        "symbol": SYMBOL,
        "price": price,
        "quantity": quantity,
        "aggressor_side": aggressor,
        "maker": side("maker", f"m{number}", "0"),
        "taker": taker,
    }


def row(account: str, balance: str, quantity: str, cash: str) -> bytes:
    positions = [{"symbol": SYMBOL, "quantity": quantity, "cash": cash}] if quantity != "0" else []
    return orjson.dumps(
        {
            "account": f"{PREFIX}{account}",
            "groups": [{"margin": "cross", "balances": {"USDC": balance}, "positions": positions, "command": None}],
        }
    )


def transfer(account: str, amount: str) -> dict[str, Any]:
    return {"account": f"{PREFIX}{account}", "asset": "USDC", "amount": amount, "sequence": 1, "margin": "cross"}


def fills(*rows: tuple[str, str, str, str]) -> dict[str, Any]:
    accounts, quantities, prices, fees = zip(*rows, strict=True)
    return {
        "account": [f"{PREFIX}{account}" for account in accounts],
        "margin": ["cross"] * len(rows),
        "symbol": [SYMBOL] * len(rows),
        "quantity": list(quantities),
        "price": list(prices),
        "fee": list(fees),
    }


NO_TRANSFERS: dict[str, list[Any]] = {"account": [], "margin": [], "asset": [], "amount": []}


def command() -> dict[str, Any]:
    """Two of Alice's ten are to be sold at 94."""
    return {
        "command_id": f"{PREFIX}alice:1",
        "account": f"{PREFIX}alice",
        "margin": "cross",
        "sequence": 1,
        "stage": "reduce",
        "issued_at": 20,
        "orders": [
            {
                "order_id": f"{PREFIX}alice:1:0",
                "symbol": SYMBOL,
                "position_side": "long",
                "order_side": "sell",
                "quantity": "2",
                "limit_price": "90",
                "mark_price": "94",
                "liquidation_fee": "0.005",
                "insurance_fee": "0.001",
            }
        ],
        "evidence": {
            "equity": "40",
            "maintenance_margin": "47",
            "health_ratio": "0.85106382",
            "shard": 0,
            "events_offset": 0,
            "marks_offset": 1,
            "parameters_version": 1,
            "marks": {SYMBOL: "94"},
        },
    }


@pytest.fixture
def right() -> RunRecords:
    """Alice is long 10 at 100 on 100; at 94 she is below maintenance; 2 are sold at 94 for a fee of 1 and the 1.128 of
    a liquidation."""
    records = RunRecords(PREFIX)
    records.parameters = ParameterLog(
        [
            (0, "asset:USDC", {"asset": "USDC", "price_symbol": None}),
            (
                1,
                f"instrument:{SYMBOL}",
                {
                    "settle_asset": "USDC",
                    "margin_tiers": [{"notional_floor": "0", "maintenance_rate": "0.05", "initial_rate": "0.1"}],
                },
            ),
        ]
    )
    records.transfers = [transfer("alice", "100"), transfer("maker", "10000")]
    records.trades = [
        trade(1, "100", "10", "buy", side("alice", "o1", "0")),
        trade(2, "94", "2", "sell", side("alice", f"{PREFIX}alice:1:0", "1")),
    ]
    deposits = {
        "account": [f"{PREFIX}alice", f"{PREFIX}maker"],
        "margin": ["cross"] * 2,
        "asset": ["USDC"] * 2,
        "amount": ["100", "10000"],
    }
    opening = fills(("alice", "10", "100", "0"), ("maker", "-10", "100", "0"))
    closing = fills(("alice", "-2", "94", "1"), ("maker", "2", "94", "0"))
    records.frames = {
        0: [(0, {"transfers": deposits, "fills": opening}), (2, {"transfers": NO_TRANSFERS, "fills": closing})]
    }
    records.marks = [
        (0, {"time": 10, "full": True, "marks": [mark("100", 10)]}),
        (1, {"time": 20, "full": False, "marks": [mark("94", 20)]}),
        (2, {"time": 30, "full": False, "marks": [mark("95", 30)]}),
    ]
    records.commands = [command()]
    records.reports = [
        {"order_id": f"{PREFIX}alice:1:0", "status": "accepted", "filled_quantity": "0"},
        {"order_id": f"{PREFIX}alice:1:0", "status": "filled", "filled_quantity": "2"},
    ]
    records.rows = {
        f"{PREFIX}alice": row("alice", "97.872", "8", "-812"),
        f"{PREFIX}maker": row("maker", "10000", "-8", "812"),
    }
    records.tables = dict(records.rows)
    records.alerts = [fee_alert()]
    return records


def fee_alert() -> dict[str, Any]:
    """What Alice is told of the fees of 2 * 94."""
    fees = {
        "order_id": f"{PREFIX}alice:1:0",
        "symbol": SYMBOL,
        "quantity": "-2",
        "price": "94",
        "asset": "USDC",
        "pool": "default",
        "liquidation_fee": "0.94",
        "insurance_fee": "0.188",
        "due": "1.128",
        "after_command": 1,
    }
    where = {"alert_id": f"{PREFIX}alice:alert:1", "account": f"{PREFIX}alice", "margin": "cross"}
    return where | {"kind": "liquidation_fee", "reason": "all of it", "fees": fees}


def mark(price: str, time: int) -> dict[str, Any]:
    return {"symbol": SYMBOL, "price": price, "status": "live", "publish_time": time}


def test_records_that_are_right_pass_every_check(right: RunRecords) -> None:
    assert run_checks(right) == {name: [] for name in CHECKS}


def repeat_a_command(records: RunRecords) -> None:
    records.commands.append(records.commands[0])


def skip_a_sequence(records: RunRecords) -> None:
    records.commands[0] |= {"sequence": 2, "command_id": f"{PREFIX}alice:2"}


def lose_a_report(records: RunRecords) -> None:
    records.reports.pop()


def report_more_than_was_traded(records: RunRecords) -> None:
    records.reports[1]["filled_quantity"] = "3"


def drop_evidence(records: RunRecords) -> None:
    del records.commands[0]["evidence"]["equity"]


def lose_a_unit(records: RunRecords) -> None:
    records.rows[f"{PREFIX}alice"] = records.tables[f"{PREFIX}alice"] = row("alice", "97.871999", "8", "-812")


def lose_a_contract(records: RunRecords) -> None:
    records.rows[f"{PREFIX}alice"] = records.tables[f"{PREFIX}alice"] = row("alice", "97.872", "7", "-812")


def forget_a_fee(records: RunRecords) -> None:
    records.alerts.pop()
    records.rows[f"{PREFIX}alice"] = records.tables[f"{PREFIX}alice"] = row("alice", "99", "8", "-812")


def charge_twice(records: RunRecords) -> None:
    records.alerts.append(records.alerts[0])
    records.rows[f"{PREFIX}alice"] = records.tables[f"{PREFIX}alice"] = row("alice", "96.744", "8", "-812")


def charge_less(records: RunRecords) -> None:
    records.alerts[0]["fees"]["liquidation_fee"] = "0.9"


def charge_another_rate(records: RunRecords) -> None:
    records.alerts[0]["fees"] |= {"liquidation_fee": "1.88", "due": "2.068"}


def charge_the_insurance_last(records: RunRecords) -> None:
    records.alerts[0]["fees"] |= {"liquidation_fee": "0.94", "insurance_fee": "0"}
    records.alerts[0]["reason"] = "the group has no more"


def change_redis(records: RunRecords) -> None:
    records.tables[f"{PREFIX}alice"] += b" "


def lose_a_row_in_redis(records: RunRecords) -> None:
    del records.tables[f"{PREFIX}maker"]


def keep_a_row_too_many_in_redis(records: RunRecords) -> None:
    records.tables[f"{PREFIX}ghost"] = b"{}"


def swap_two_accounts(records: RunRecords) -> None:
    records.rows[f"{PREFIX}alice"], records.rows[f"{PREFIX}maker"] = (
        records.rows[f"{PREFIX}maker"],
        records.rows[f"{PREFIX}alice"],
    )
    records.tables = dict(records.rows)


def liquidate_a_healthy_account(records: RunRecords) -> None:
    records.commands[0]["evidence"]["marks_offset"] = 0


def misstate_equity(records: RunRecords) -> None:
    records.commands[0]["evidence"]["equity"] = "40.01"


def liquidate_on_a_halted_mark(records: RunRecords) -> None:
    records.marks[1][1]["marks"][0]["status"] = "halted"


def liquidate_on_a_halted_mark_and_say_so(records: RunRecords) -> None:
    liquidate_on_a_halted_mark(records)
    records.commands[0]["evidence"]["stale_bounds"] = {SYMBOL: "9"}


def liquidate_on_an_old_mark(records: RunRecords) -> None:
    records.marks[1][1]["time"] = 10_000_000


def withdraw_from_a_group_below_maintenance(records: RunRecords) -> None:
    records.commands[0] |= {"stage": "withdrawn", "supersedes": "x:1", "orders": []}


def leave_somebody_below_maintenance(records: RunRecords) -> None:
    records.marks.append((3, {"time": 40, "full": False, "marks": [mark("90", 40)]}))


def halve_the_margin_rates(records: RunRecords) -> None:
    records.marks[0][1]["scales"] = {f"instrument:{SYMBOL}": "0.5"}


def state_a_scale_that_was_not(records: RunRecords) -> None:
    records.commands[0]["evidence"]["scales"] = {f"instrument:{SYMBOL}": "1.2"}


def raise_the_margin_rates_at_the_end(records: RunRecords) -> None:
    scales = {f"instrument:{SYMBOL}": "1.5"}
    records.marks.append((3, {"time": 40, "full": True, "marks": [mark("95", 40)], "scales": scales}))


def lose_the_parameters(records: RunRecords) -> None:
    records.parameters.records.pop()


TAMPERED: list[tuple[Callable[[RunRecords], None], str]] = [
    (repeat_a_command, "commands_once_and_complete"),
    (skip_a_sequence, "commands_once_and_complete"),
    (lose_a_report, "commands_once_and_complete"),
    (report_more_than_was_traded, "commands_once_and_complete"),
    (drop_evidence, "commands_once_and_complete"),
    (forget_a_fee, "fees_booked_once"),
    (charge_twice, "fees_booked_once"),
    (charge_less, "fees_booked_once"),
    (charge_less, "money_conserved"),
    (charge_another_rate, "fees_booked_once"),
    (charge_the_insurance_last, "fees_booked_once"),
    (lose_a_unit, "money_conserved"),
    (lose_a_contract, "money_conserved"),
    (lose_a_unit, "changelog_equals_recomputation"),
    (swap_two_accounts, "changelog_equals_recomputation"),
    (change_redis, "redis_equals_changelog"),
    (lose_a_row_in_redis, "redis_equals_changelog"),
    (keep_a_row_too_many_in_redis, "redis_equals_changelog"),
    (liquidate_a_healthy_account, "nobody_healthy_liquidated"),
    (misstate_equity, "nobody_healthy_liquidated"),
    (liquidate_on_a_halted_mark, "nobody_healthy_liquidated"),
    (liquidate_on_a_halted_mark_and_say_so, "nobody_healthy_liquidated"),
    (liquidate_on_an_old_mark, "nobody_healthy_liquidated"),
    (withdraw_from_a_group_below_maintenance, "nobody_healthy_liquidated"),
    (halve_the_margin_rates, "nobody_healthy_liquidated"),
    (state_a_scale_that_was_not, "nobody_healthy_liquidated"),
    (leave_somebody_below_maintenance, "nobody_liquidatable_left"),
    (raise_the_margin_rates_at_the_end, "nobody_liquidatable_left"),
    (lose_the_parameters, "money_conserved"),
]


@pytest.mark.parametrize(("tamper", "check"), TAMPERED, ids=[f"{t.__name__}-{c}" for t, c in TAMPERED])
def test_a_check_finds_what_was_changed(right: RunRecords, tamper: Callable[[RunRecords], None], check: str) -> None:
    changed = copy.deepcopy(right)
    tamper(changed)
    assert run_checks(changed)[check]


def test_an_open_command_excuses_a_group_below_maintenance(right: RunRecords) -> None:
    leave_somebody_below_maintenance(right)
    content = orjson.loads(right.rows[f"{PREFIX}alice"])
    content["groups"][0]["command"] = {"command_id": f"{PREFIX}alice:1"}
    right.rows[f"{PREFIX}alice"] = orjson.dumps(content)
    assert CHECKS["nobody_liquidatable_left"](right) == []


def test_a_command_beside_a_halted_mark_is_right_if_the_group_is_below_whatever_it_is(right: RunRecords) -> None:
    """0.006 of a coin, last seen at 100 and worth at most 1,000 each: 6 more than the 40 there are, against 47."""
    record = {"asset": "COIN", "price_symbol": "COIN-USD"}
    right.parameters.records.insert(0, (-1, "asset:COIN", record))
    right.frames[0][0][1]["transfers"] = {
        name: [*values, *more]
        for (name, values), more in zip(
            right.frames[0][0][1]["transfers"].items(),
            ([f"{PREFIX}alice"], ["cross"], ["COIN"], ["0.006"]),
            strict=True,
        )
    }
    halted = {"symbol": "COIN-USD", "price": "100", "status": "halted", "publish_time": 10}
    right.marks[0][1]["marks"].append(halted)
    evidence = right.commands[0]["evidence"]
    evidence |= {"marks": {SYMBOL: "94", "COIN-USD": "100"}, "stale_bounds": {"COIN-USD": "9"}}
    evidence |= {"equity": "46", "health_ratio": "0.97872340", "unweighted_equity": "46"}
    assert CHECKS["nobody_healthy_liquidated"](right) == []
    del evidence["stale_bounds"]
    assert CHECKS["nobody_healthy_liquidated"](right)
