"""The checker of records in which an account has moved to another shard."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from schemas import topics
from schemas.partitioning import shard_of
from tests.faults.checker import CHECKS, judge
from tests.faults.load import canaries
from tests.faults.moving_figures import Move, figures, moves
from tests.faults.pipeline import NUMBERS_OF_SHARDS
from tests.faults.records import RunRecords, TopicRecord
from tests.faults.test_checker import (
    MAKER,
    SYMBOL,
    account_of,
    change,
    fills,
    frame,
    journal,
    marks,
    record,
    row,
    trade,
    transfer,
)

MOVER = account_of("mover", 1)
"""Of shard 0 while there is one shard, of shard 1 of two."""
ORDER = f"{MOVER}:1:0"
_PLACES = {"trades": f"{topics.TRADES}:0:T", "transfers": f"{topics.TRANSFERS}:0:C", "reports": f"{topics.REPORTS}:0:R"}


def layout(version: int, shards: int, target: int, step: int = 0) -> dict[str, Any]:
    return {"shards": shards, "time": 1, "version": version, "target": target, "step": step, "used": 2, "founded": 1}


def spread(version: int) -> dict[str, Any]:
    """Of the layout that moves the accounts."""
    return {"version": version, "shards": 1, "target": 2, "step": 1}


def source(topic: str, first: int, following: int) -> dict[str, Any]:
    topic_id = {topics.TRADES: "T", topics.TRANSFERS: "C", topics.REPORTS: "R"}[topic]
    return {"topic": topic, "topic_id": topic_id, "partition": 0, "first": first, "next": following}


def placed(columns: dict[str, list[Any]], *places: tuple[int, int]) -> dict[str, list[Any]]:
    """``columns`` with the source and the offset of each row."""
    return columns | {"source": [number for number, _ in places], "source_offset": [offset for _, offset in places]}


def taken_by_mover(number: int, price: str, quantity: str, aggressor: str, order: str, fee: str) -> dict[str, Any]:
    return trade(number, price, quantity, aggressor, order, fee) | {
        "taker": {"account": MOVER, "order_id": order, "fee": fee}
    }


def frames() -> list[TopicRecord]:
    """Shard 0 has the opening trade and sends the mover away; shard 1 has the closing one.

    Of the closing trade a frame of a router that had been replaced tells shard 0, too.
    """
    deposits = [transfer(MOVER, "100", 1), transfer(MAKER, "10000", 1)]
    transfers = {name: [deposit[name] for deposit in deposits] for name in deposits[0]}
    sources = [source(topics.TRADES, 0, 1), source(topics.TRANSFERS, 0, 2), source(topics.REPORTS, 0, 0)]
    opened = frame(
        transfers=placed(transfers, (1, 0), (1, 1)),
        fills=placed(fills((MOVER, "10", "100", "0", 1), (MAKER, "-10", "100", "0", 1)), (0, 0), (0, 0)),
        sources=sources,
    )
    begun, over = [each | {"next": 0} for each in sources], [each | {"first": each["next"]} for each in sources]
    confirmed = [frame(sources=places, spread=spread(2), confirmed=True) for places in (over, begun)]
    floors = {_PLACES["trades"]: 1, _PLACES["transfers"]: 2, _PLACES["reports"]: 0}
    arrival = frame(arrival={"spread": spread(2), "origin": 0, "part": 0, "parts": 1, "floors": floors, "marks": 1,
                             "clock": 10, "rows": {MOVER: orjson.dumps(OPENED).decode()}})  # fmt: skip
    closing = [source(topics.TRADES, 0, 2), source(topics.REPORTS, 0, 1)]
    late = frame(fills=placed(fills((MOVER, "-2", "94", "1", 2)), (0, 1)), sources=[source(topics.TRADES, 1, 2)])
    maker = frame(fills=placed(fills((MAKER, "2", "94", "0", 2)), (0, 1)), sources=closing, spread=spread(2))
    mover = frame(
        fills=placed(fills((MOVER, "-2", "94", "1", 2)), (0, 1)),
        reports=placed({"account": [MOVER], "order_id": [ORDER]}, (1, 0)),
        sources=closing,
        spread=spread(2),
    )
    arrived = frame(arrived={"spread": spread(2), "shard": 1})
    departure = frame(departure={"spread": spread(2), "to": 1, "sources": list(_PLACES.values())})
    old = [opened, confirmed[0], departure, late, maker, arrived]
    return [record(offset, value) for offset, value in enumerate(old)] + [
        record(offset, value, partition=1) for offset, value in enumerate([confirmed[1], arrival, mover])
    ]


OPENED = row(MOVER, "100", "10", "-1000")
CLOSED = row(MOVER, "99", "8", "-812", liquidation_sequence=1, alert_sequence=1)
MADE = row(MAKER, "10000", "-8", "812")


@pytest.fixture
def right() -> RunRecords:
    """The mover is long 10 at 100 on 100 in the one shard that there is, goes to shard 1, and is liquidated there."""
    tier = {"notional_floor": "0", "maintenance_rate": "0.05", "initial_rate": "0.1"}
    command = {
        "command_id": f"{MOVER}:1", "account": MOVER, "margin": "cross", "sequence": 1,
        "evidence": {
            "equity": "40", "maintenance_margin": "47", "health_ratio": "0.85106382", "shard": 1,
            "events_offset": 1, "marks_offset": 1, "parameters_version": 1, "marks": {SYMBOL: "94"},
        },
    }  # fmt: skip
    logs = {
        topics.LAYOUT: [record(0, {"shards": 1, "time": 1}), record(1, layout(1, 1, 2)), record(2, layout(2, 1, 2, 1)),
                        record(3, layout(3, 2, 2))],
        topics.PARAMETERS: [
            record(0, {"asset": "USDC", "price_symbol": None}, "asset:USDC"),
            record(1, {"settle_asset": "USDC", "margin_tiers": [tier]}, f"instrument:{SYMBOL}"),
        ],
        topics.TRANSFERS: [record(0, transfer(MOVER, "100", 1)), record(1, transfer(MAKER, "10000", 1))],
        topics.TRADES: [
            record(0, taken_by_mover(1, "100", "10", "buy", "o1", "0")),
            record(1, taken_by_mover(2, "94", "2", "sell", ORDER, "1")),
        ],
        topics.REPORTS: [record(0, {"account": MOVER, "order_id": ORDER, "status": "filled"})],
        topics.EVENTS: frames(),
        topics.MARKS: [record(0, marks(10, "100")), record(1, marks(20, "94")), record(2, marks(30, "95"))],
        topics.COMMANDS: [record(0, command)],
        topics.ALERTS: [record(0, {"alert_id": f"{MOVER}:alert:1", "account": MOVER})],
        topics.ACCOUNTS: [
            record(0, OPENED, MOVER), record(1, row(MAKER, "10000", "-10", "1000"), MAKER), record(2, MADE, MAKER),
            TopicRecord(0, 3, MOVER.encode(), None),
            record(0, OPENED, MOVER, partition=1), record(1, CLOSED, MOVER, partition=1),
        ],
        topics.JOURNAL: [
            record(0, journal(1, -1, kind="claim", claim=-1)),
            record(2, journal(2, 0, events=[0, 6], marks=[0, 3], accounts=4)),
            record(0, journal(1, -1, kind="claim", claim=-1), partition=1),
            record(2, journal(2, 0, events=[0, 3], marks=[0, 3], accounts=2, commands=[f"{MOVER}:1"]), partition=1),
        ],
    }  # fmt: skip
    committed = {(topics.TRADES, 0): 2, (topics.TRANSFERS, 0): 2, (topics.EVENTS, 0): 6, (topics.EVENTS, 1): 3}
    return RunRecords(
        2,
        logs=logs,
        committed=committed,
        tables={0: {MAKER: orjson.dumps(MADE)}, 1: {MOVER: orjson.dumps(CLOSED)}},
        metas={0: {"token": "0"}, 1: {"token": "0"}},
    )


def test_records_of_an_account_that_has_moved_pass_every_check(right: RunRecords) -> None:
    assert judge(right).differences == {name: [] for name in CHECKS}


# --- tampering -------------------------------------------------------------------------------------------------------


def lose_a_fill_in_both_shards(records: RunRecords) -> None:
    change(records, topics.EVENTS, 3, fills=frame()["fills"])
    change(records, topics.EVENTS, 8, fills=frame()["fills"])


def route_a_fill_to_a_shard_that_was_never_its_accounts(records: RunRecords) -> None:
    old = records.logs[topics.EVENTS][4]
    records.logs[topics.EVENTS].append(TopicRecord(1, 3, old.key, old.value))


def lose_a_report(records: RunRecords) -> None:
    change(records, topics.EVENTS, 8, reports=frame()["reports"])


def apply_a_fill_in_both_shards(records: RunRecords) -> None:
    changed = CLOSED | row(MOVER, "98", "6", "-624", liquidation_sequence=1, alert_sequence=1)
    records.logs[topics.ACCOUNTS][5] = record(1, changed, MOVER, partition=1)
    records.tables[1][MOVER] = orjson.dumps(changed)


def leave_an_arrival_unread(records: RunRecords) -> None:
    del records.logs[topics.EVENTS][8]
    records.committed[topics.EVENTS, 1] = 1


def decide_without_what_the_account_came_with(records: RunRecords) -> None:
    arrival = records.logs[topics.EVENTS][7].json()["arrival"]
    change(records, topics.EVENTS, 7, arrival=arrival | {"floors": {}})


def command_from_a_shard_that_was_never_its_accounts(records: RunRecords) -> None:
    evidence = records.logs[topics.COMMANDS][0].json()["evidence"]
    change(records, topics.COMMANDS, 0, evidence=evidence | {"shard": 2})


def keep_the_row_where_the_account_was(records: RunRecords) -> None:
    del records.logs[topics.ACCOUNTS][3]
    records.tables[0][MOVER] = orjson.dumps(OPENED)


def forget_the_row_where_the_account_is(records: RunRecords) -> None:
    records.logs[topics.ACCOUNTS].append(TopicRecord(1, 2, MOVER.encode(), None))
    del records.tables[1][MOVER]


def write_no_journal_of_a_shard_that_was_added(records: RunRecords) -> None:
    del records.logs[topics.JOURNAL][2:]


def leave_accounts_on_their_way(records: RunRecords) -> None:
    del records.logs[topics.LAYOUT][-1]


def skip_a_layout(records: RunRecords) -> None:
    del records.logs[topics.LAYOUT][1]


TAMPERED: list[tuple[str, Callable[[RunRecords], None]]] = [
    ("every_trade_is_routed_once", lose_a_fill_in_both_shards),
    ("every_trade_is_routed_once", route_a_fill_to_a_shard_that_was_never_its_accounts),
    ("every_transfer_and_report_is_routed_once", lose_a_report),
    ("ledger_equals_recomputation", apply_a_fill_in_both_shards),
    ("ledger_equals_recomputation", forget_the_row_where_the_account_is),
    ("groups_have_read_everything", leave_an_arrival_unread),
    ("every_command_is_justified", decide_without_what_the_account_came_with),
    ("every_command_is_justified", command_from_a_shard_that_was_never_its_accounts),
    ("redis_equals_changelog", keep_the_row_where_the_account_was),
    ("journal_is_contiguous", write_no_journal_of_a_shard_that_was_added),
    ("every_account_has_arrived", leave_accounts_on_their_way),
    ("every_account_has_arrived", skip_a_layout),
]


@pytest.mark.parametrize(("check", "tamper"), TAMPERED, ids=[tamper.__name__ for _, tamper in TAMPERED])
def test_a_check_finds_what_was_changed(right: RunRecords, check: str, tamper: Callable[[RunRecords], None]) -> None:
    changed = copy.deepcopy(right)
    tamper(changed)
    differences = judge(changed).differences[check]
    assert differences
    assert not any("cannot be judged" in text for text in differences), "found, not stumbled over"


def test_it_is_said_how_long_accounts_were_on_their_way(right: RunRecords) -> None:
    at = iter(range(1000, 9000, 500))
    right.logs[topics.EVENTS] = [replace(each, appended_ms=next(at)) for each in right.logs[topics.EVENTS]]
    right.logs[topics.EVENTS][5] = replace(right.logs[topics.EVENTS][5], appended_ms=6000)
    assert [*moves(right)] == [Move(version=2, shards=1, target=2, told=1500, sent=4500, arrived=6000)]
    (line,) = figures(right)
    assert line.startswith(
        "1 to 2 shards: 1 steps, 1 moves between shards; an account was behind or on its way for 4.50 s"
    )
    assert line.endswith("sent and not taken in for 1.50 s at most")


# --- the load --------------------------------------------------------------------------------------------------------


def test_every_shard_of_every_number_of_shards_has_a_canary() -> None:
    names = canaries(NUMBERS_OF_SHARDS)
    for shards in NUMBERS_OF_SHARDS:
        assert {shard_of(name, shards) for name in names} == set(range(shards))
