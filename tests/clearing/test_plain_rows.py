"""Rows that are read the short way give, for any bytes, what they give the strict way: states, ledgers and errors."""

import gc
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas.codec import encode
from schemas.messages import AccountRow, GroupRow, PositionRow
from schemas.types import CROSS
from streams.clearing.account import AccountGroups, GroupState
from streams.clearing.plain_rows import PlainRows
from streams.clearing.shard import Shard
from streams.margin.parameters import RiskParameters
from streams.margin.slots import SlotTable
from tests.clearing.test_row_text import LISTED, RULES, STEPS, Compared, Step
from tests.clearing.test_unreadable import RULES as ONE_ASSET
from tests.properties import examples

BYTES_PER_ACCOUNT_MAX = 400
MEASURED_ACCOUNTS = 32_000
"""So many as the columns have room for: they double."""

RISK = RiskParameters.build(RULES)


def ordinary(account: str = "a", margin: str = CROSS, positions: int = 2, **fields: Any) -> dict[str, Any]:
    held = tuple(PositionRow(symbol=symbol, quantity="-3", cash="1.25") for symbol in LISTED[:positions])
    group = GroupRow(
        margin=margin,
        status="normal",
        balances={"USDC": "-0.5", "BTC": "2"},
        positions=held,
        liquidation_started=False,
    )
    row = AccountRow(account=account, status="normal", groups=(group,), liquidation_sequence=0, transfer_sequence=7)
    values: dict[str, Any] = json.loads(encode(row))
    return values | fields


# --- two shards ------------------------------------------------------------------------------------------------------


def restored(rows: dict[str, bytes], parameters: RiskParameters, *, plainly: bool) -> Shard:
    shard = Shard(0, parameters)
    if plainly:
        for _ in shard.restore_all(rows, 3):
            pass
    else:
        for account in sorted(rows):
            shard.restore(account, rows[account])
    return shard


def columns_of(slots: SlotTable) -> Iterator[Any]:
    yield from ([*slots.head_view], [*slots.following_view], slots.row.tolist(), slots.symbol.tolist(), slots.used)
    for amounts in (slots.lots, slots.cash):
        yield from (None if part is None else part.tolist() for part in (amounts.low, amounts.high, amounts.fine))


def everything_of(shard: Shard) -> list[Any]:
    ledger, accounts = shard.portfolio.ledger, shard._accounts
    names = [(ledger.rows.account(row), ledger.rows.margin(row)) for row in range(ledger.row_count)]
    balances = [
        [column.asset, column.limit, *(None if part is None else part.tolist() for part in (a.low, a.high, a.fine))]
        for column in ledger.columns
        for a in (column.amounts,)
    ]
    states = {account: msgspec.to_builtins(state, enc_hook=vars_of) for account, state in shard.accounts.items()}
    orders = {order: (state.account, group.margin) for order, (state, group, *_) in shard._commands.orders.items()}
    owners = {row: (accounts.owner[row][0].account, accounts.owner[row][1].margin) for row in accounts.owner}
    output = shard.take("test", with_open_interest=True)
    return [
        names, ledger.rows._free, list(columns_of(ledger.slots)), balances, states, orders, owners,
        accounts.levels.tolist(), accounts.agenda, accounts.holding_back, accounts.held, accounts.unread,
        shard.unreached, sorted(shard.cursor.unreached.accounts), msgspec.to_builtins(output.journal), output.rows,
        [msgspec.to_builtins(alert) for alert in output.alerts],
        {account: accounts.row(account) for account in shard.accounts},
    ]  # fmt: skip


def vars_of(part: Any) -> Any:
    if hasattr(part, "by_place"):
        return [part.events, part.credits, msgspec.to_builtins(part.by_place)]
    return msgspec.to_builtins(part)


def assert_same(rows: dict[str, bytes], parameters: RiskParameters) -> None:
    strict = everything_of(restored(rows, parameters, plainly=False))
    for ours, theirs in zip(everything_of(restored(rows, parameters, plainly=True)), strict, strict=True):
        assert ours == theirs


# --- rows that no pipeline wrote -------------------------------------------------------------------------------------

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**63 - 1, 2**63, 1.0, "", "0", "-0", "-0.0", "1", "01", "1.", ".5", "+1", "1e3",
    "1_0", " 1", "1\n", "\u0661", "0.0000000000000000001", "0.0000001", "9" * 18, "9" * 19, "-" + "9" * 18 + ".999999",
    "9300000000000", "a", "b", "a b", "a:b", "c\u00e9", CROSS, "BTC-PERP", "A", "SOL-PERP", "USDC", "EUR", "normal",
    "margin_call", "liquidating", "insolvent", "undecided", [], {}, [[1, 2]], [[1, 2, 3]], [{}], {"t:0": 1}, "x" * 200,
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: what it is in, and its key there."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from places(value[key])


@st.composite
def mutated(draw: st.DrawFn, row: bytes) -> bytes:
    """``row`` with values, keys or bytes changed, or as it is."""
    kinds = st.sampled_from(["value", "value", "key", "lack", "twice", "space", "escape", "bytes", "cut"])
    for kind in draw(st.lists(kinds, max_size=3)):
        try:
            value = json.loads(row)
            every = list(places(value))
        except ValueError:
            break
        if kind in ("value", "key", "lack") and every:
            parent, key = draw(st.sampled_from(every))
            if kind == "value":
                parent[key] = draw(st.sampled_from(VALUES))
            elif isinstance(parent, dict):
                moved = parent.pop(key)
                if kind == "key":
                    parent[draw(st.sampled_from(["more", "account", "USDC", "EUR", "a:b"]))] = moved
            row = encode(value)
        elif kind == "twice" and b'":' in row:
            row = twice(row, draw(st.integers(0, max(0, row.count(b'":') - 1))), draw(st.sampled_from(VALUES)))
        elif kind == "space":
            row = row.replace(b":", b" : ", draw(st.integers(1, 9)))
        elif kind == "escape":
            row = row.replace(*draw(st.sampled_from([(b"a", b"\\u0061"), (b":", b"\\u003a"), (b"S", b"\\u0053")])), 1)
        elif kind == "cut":
            row = row[: draw(st.integers(0, len(row)))]
        else:
            at = draw(st.integers(0, len(row)))
            row = row[:at] + draw(st.binary(max_size=2) | st.sampled_from([b'"', b":", b",", b"0"])) + row[at + 1 :]
    return row


def twice(row: bytes, number: int, value: Any) -> bytes:
    """``row`` with one of its keys given twice, first with ``value``."""
    end = -1
    for _ in range(number + 1):
        end = row.index(b'":', end + 1)
    first = row.rfind(b'"', 0, end)
    return row[:first] + row[first:end] + b'":' + encode(value) + b"," + row[first:]


@st.composite
def mutated_rows(draw: st.DrawFn) -> dict[str, bytes]:
    names = draw(st.lists(st.sampled_from(["a", "b", "c", "a:b", "d d", "\u00e9", 'e"']), min_size=1, unique=True))
    rows = {}
    for name in names:
        row = ordinary(name, draw(st.sampled_from([CROSS, "A"])), draw(st.integers(0, 4)))
        if draw(st.booleans()):
            row["groups"] += ordinary(name, draw(st.sampled_from([CROSS, "BTC-PERP"])), 1)["groups"]
        rows[name] = draw(mutated(encode(row)))
    return rows


@given(mutated_rows())
@configure(max_examples=examples(600), deadline=None)
def test_any_bytes_give_the_same_shard_either_way(rows: dict[str, bytes]) -> None:
    assert_same(rows, RISK)


@given(STEPS, st.data())
@configure(max_examples=examples(60), deadline=None)
def test_so_do_the_rows_of_accounts_to_which_anything_has_happened(steps: list[Step], data: st.DataObject) -> None:
    market = Compared()
    for step in steps:
        market.step(step)
    written = {account: market.shard._accounts.row(account) for account in market.shard.accounts}
    rows = {account: row for account, row in written.items() if row is not None}
    assert_same(rows, market.shard.parameters)
    assert_same({account: data.draw(mutated(row)) for account, row in rows.items()}, market.shard.parameters)


# --- which way they go -----------------------------------------------------------------------------------------------


def is_read_plainly(row: bytes, account: str = "a") -> bool:
    return PlainRows(Shard(0, RISK).portfolio.ledger, [account]).read(account, row) is not None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"alert_sequence": 3, "liquidation_sequence": 2, "touched": 9, "transfer_digest": 5},
        {"transfer_gaps": [[1, 3]], "transfer_floor": 1},
        {"groups": []},
        {"account": 'b:"\\'},
    ],
)
def test_a_row_of_an_ordinary_account_is_read_the_short_way(fields: dict[str, Any]) -> None:
    row = ordinary() | fields
    has_escapes = '"' in row["account"]
    assert is_read_plainly(encode(row), row["account"]) is not has_escapes


def test_so_is_one_of_a_version_that_did_not_say_whether_a_liquidation_has_started() -> None:
    row = ordinary()
    row["groups"][0] |= {"liquidation_started": None, "status": "liquidating", "margin_call_level": "1.50"}
    assert is_read_plainly(encode(row))
    assert_same({"a": encode(row)}, RISK)


def test_a_key_that_comes_twice_is_for_the_strict_way_which_reads_both() -> None:
    row = encode(ordinary())
    assert is_read_plainly(row)
    for number in range(row.count(b'":')):
        assert not is_read_plainly(twice(row, number, "no \u00e9 such"))


# --- the groups of an account ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([CROSS, "A", "B"])), max_size=12))
def test_the_groups_of_an_account_are_a_dictionary(steps: list[tuple[bool, str]]) -> None:
    groups, expected = AccountGroups(), dict[str, GroupState]()
    for row, (comes, margin) in enumerate(steps):
        if comes:
            groups[margin] = expected[margin] = GroupState(row, margin)
        elif margin in expected:
            del groups[margin], expected[margin]
        else:
            with pytest.raises(KeyError):
                del groups[margin]
        assert (list(groups), list(groups.values())) == (list(expected), list(expected.values()))
        assert len(groups) == len(expected)
        for each in (CROSS, "A", "B"):
            assert groups.get(each) is expected.get(each)
            assert (each in groups) is (each in expected)


# --- memory ----------------------------------------------------------------------------------------------------------


def of_one_position(accounts: int) -> dict[str, bytes]:
    held = {"balances": {"USDC": "1000"}, "positions": [{"symbol": "BTC-PERP", "quantity": "1", "cash": "-100"}]}
    rows = {}
    for number in range(accounts):
        row = ordinary(f"account-{number:07d}", transfer_sequence=1)
        row["groups"][0] |= held
        rows[row["account"]] = encode(row)
    return rows


def test_an_ordinary_account_of_one_position_takes_few_bytes() -> None:
    rows = of_one_position(MEASURED_ACCOUNTS)
    shard = Shard(0, ONE_ASSET)
    tracemalloc.start()
    try:
        for _ in shard.restore_all(rows, 500):
            pass
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(shard.accounts) == MEASURED_ACCOUNTS
    assert taken / MEASURED_ACCOUNTS <= BYTES_PER_ACCOUNT_MAX


def test_the_collector_looks_at_no_account() -> None:
    rows, shard = of_one_position(1000), Shard(0, ONE_ASSET)
    gc.collect()
    before = len(gc.get_objects())
    for _ in shard.restore_all(rows, 500):
        pass
    gc.collect()
    assert len(shard.accounts) == 1000
    assert len(gc.get_objects()) - before < 100
