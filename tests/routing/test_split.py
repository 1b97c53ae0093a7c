"""What the router does to records: two fills per trade, each on its account's shard, once, in order."""

from collections import defaultdict
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.codec import DecodeError, Decoder
from schemas.messages import FRAME_ROWS_MAX, EventFrame, SourceRange
from schemas.partitioning import shard_of
from schemas.topics import REPORTS, TRADES, TRANSFERS
from streams.routing import frames as frames_module
from streams.routing.frames import FRAME_BYTES_MAX
from streams.routing.split import GAPS_NAMED_MAX, Counts, Splitter
from streams.routing.trade_ids import RefusedTrade, TradeIds

SHARDS = 4
TIME_US = 1723161300000001


def routed(
    *given_records: tuple[str, Any], shards: int = SHARDS, ids: TradeIds | None = None
) -> tuple[list[tuple[int, bytes]], Counts]:
    """The frames and counts of (topic, JSON value) records in one batch."""
    splitter, ids = Splitter(shards), TradeIds() if ids is None else ids
    for topic, value in given_records:
        assert splitter.add(topic, orjson.dumps(value), ids) is None
    return splitter.take(TIME_US)


@pytest.mark.parametrize(
    ("aggressor", "buyer", "seller"), [("buy", "taker", "maker"), ("sell", "maker", "taker")], ids=["buy", "sell"]
)
def test_the_taker_buys_if_the_aggressor_does(
    records: Any, rows_of: Any, aggressor: str, buyer: str, seller: str
) -> None:
    frames, counts = routed((TRADES, records.trade(7, aggressor_side=aggressor)))
    fills = {row["account"]: row for _, row in rows_of(frames, "fills")}
    assert {account: row["quantity"] for account, row in fills.items()} == {buyer: "0.120", seller: "-0.120"}
    assert fills["maker"] | {"quantity": ""} == {
        "account": "maker",
        "margin": "cross",
        "symbol": "BTC-PERP",
        "quantity": "",
        "price": "61800.5",
        "fee": "0.01",
        "order_id": "maker-o1",
        "trade_id": 7,
        "source": 0,
        "source_offset": 0,
    }
    assert counts.fills == 2


def test_a_side_that_trades_isolated_names_the_symbol_as_its_margin_group(records: Any, rows_of: Any) -> None:
    frames, _ = routed((TRADES, records.trade(1, maker=records.side("maker", margin="isolated"))))
    assert {row["account"]: row["margin"] for _, row in rows_of(frames, "fills")} == {
        "maker": "BTC-PERP",
        "taker": "cross",
    }


def test_an_account_on_both_sides_gets_both_fills(records: Any, rows_of: Any) -> None:
    frames, _ = routed((TRADES, records.trade(1, maker=records.side("same"), taker=records.side("same"))))
    assert [row["quantity"] for _, row in rows_of(frames, "fills")] == ["0.120", "-0.120"]


def test_the_order_that_a_transfer_carries_out_goes_with_it(records: Any, rows_of: Any) -> None:
    given = [("alice", 1, None), ("alice", 2, "alice:1:0"), ("alice", 3, None)]
    frames, _ = routed(
        *((TRANSFERS, records.transfer(name, number, **({} if order is None else {"order_id": order})))
          for name, number, order in given)
    )  # fmt: skip
    assert [row["order_id"] for _, row in rows_of(frames, "transfers")] == ["", "alice:1:0", ""]


def test_transfers_and_reports_keep_their_fields(records: Any, rows_of: Any) -> None:
    frames, counts = routed(
        (TRANSFERS, records.transfer("alice", 3, amount="-1.5", margin="BTC-PERP")),
        (REPORTS, records.report("alice", 2, status="cancelled", filled_quantity="0")),
    )
    (_, transfer), (_, report) = rows_of(frames, "transfers") + rows_of(frames, "reports")
    assert transfer == {
        "account": "alice",
        "margin": "BTC-PERP",
        "asset": "USDC",
        "amount": "-1.5",
        "sequence": 3,
        "transfer_id": "alice-3",
        "source": 0,
        "source_offset": 0,
    }
    assert report == {
        "account": "alice",
        "command_id": "alice:2",
        "order_id": "alice:2:0",
        "status": "cancelled",
        "filled_quantity": "0",
        "source": 1,
        "source_offset": 0,
    }
    assert counts == Counts()


def test_a_batch_of_nothing_has_no_frames() -> None:
    assert routed() == ([], Counts())


def test_every_frame_of_a_batch_has_the_batchs_time(records: Any) -> None:
    frames, _ = routed(*((TRANSFERS, records.transfer(f"a{n}")) for n in range(50)))
    assert len(frames) == SHARDS
    assert {Decoder[EventFrame](EventFrame)(data).time for _, data in frames} == {TIME_US}


def test_what_is_lost_is_told_to_every_shard_in_a_frame_of_its_own_before_anything_else(records: Any) -> None:
    splitter, ids = Splitter(3, {TRADES: "trades-id"}), TradeIds()
    splitter.begin(TRANSFERS, 0, 0)
    splitter.add(TRANSFERS, orjson.dumps(records.transfer("alice")), ids)
    splitter.begin(TRADES, 1, 70)
    splitter.tell_lost(TRADES, 1, "it is known")
    splitter.add(TRADES, orjson.dumps(records.trade(1)), ids, partition=1, offset=70)
    splitter.close(TRADES, 1, 71)
    frames: dict[int, list[EventFrame]] = defaultdict(list)
    for shard, data in splitter.take(TIME_US)[0]:
        frames[shard].append(Decoder[EventFrame](EventFrame)(data))
    lost = SourceRange(topic=TRADES, topic_id="trades-id", partition=1, first=70, next=70, lost="it is known")
    for shard in range(3):
        of_trades = [frame for frame in frames[shard] if any(source.topic == TRADES for source in frame.sources)]
        assert [frame.sources for frame in of_trades] == [[lost], [replace(lost, next=71, lost="")]]
        assert not of_trades[0].fills.account
    splitter.begin(TRADES, 1, 70)
    splitter.close(TRADES, 1, 70)
    assert b"lost" not in b"".join(data for _, data in splitter.take(TIME_US)[0])


def test_what_was_taken_is_gone(records: Any) -> None:
    splitter = Splitter(SHARDS)
    splitter.add(TRADES, orjson.dumps(records.trade(1)), TradeIds())
    assert splitter.take(TIME_US) != ([], Counts())
    assert splitter.take(TIME_US) == ([], Counts())


# --- repeats and gaps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trade_ids", "kept", "repeats", "missing"),
    [
        ([1, 2, 3], [1, 2, 3], 0, 0),
        ([900], [900], 0, 0),  # the first id seen of a symbol is no gap
        ([1, 1, 2, 1, 2, 3], [1, 2, 3], 3, 0),
        ([1, 4], [1, 4], 0, 2),
        ([0, 0, 1], [0, 1], 1, 0),
        ([1, 2**63 - 1], [1, 2**63 - 1], 0, 2**63 - 3),
    ],
)
def test_a_repeated_trade_is_dropped_and_a_gap_is_counted(
    records: Any, rows_of: Any, trade_ids: list[int], kept: list[int], repeats: int, missing: int
) -> None:
    frames, counts = routed(*((TRADES, records.trade(trade_id)) for trade_id in trade_ids), shards=1)
    assert [row["trade_id"] for _, row in rows_of(frames, "fills")][::2] == kept
    assert (counts.repeats, counts.missing, counts.fills) == (repeats, missing, 2 * len(kept))


def test_a_contradiction_is_no_repeat(records: Any) -> None:
    splitter, ids = Splitter(SHARDS), TradeIds()
    splitter.add(TRADES, orjson.dumps(records.trade(2)), ids)
    for contradiction in (records.trade(1), records.trade(2, quantity="3")):
        refused = splitter.add(TRADES, orjson.dumps(contradiction), ids)
        assert refused is not None
        assert refused.kind is RefusedTrade
    assert splitter.take(TIME_US)[1].repeats == 0


def test_ids_are_remembered_per_symbol(records: Any) -> None:
    ids = TradeIds()
    _, counts = routed((TRADES, records.trade(5)), (TRADES, records.trade(5, symbol="ETH-PERP")), ids=ids)
    assert counts.repeats == 0
    assert ids.last == {"BTC-PERP": 5, "ETH-PERP": 5}


def test_a_memory_read_back_knows_the_repeats(records: Any) -> None:
    before, after = TradeIds(), TradeIds()
    routed((TRADES, records.trade(5)), ids=before)
    after.recall("BTC-PERP", before.symbols["BTC-PERP"].row())
    _, counts = routed((TRADES, records.trade(5)), (TRADES, records.trade(6)), ids=after)
    assert (counts.repeats, counts.fills) == (1, 2)


def test_a_feed_of_gaps_names_only_the_first_ones(records: Any) -> None:
    _, counts = routed(*((TRADES, records.trade(2 * n)) for n in range(100)))
    assert counts.missing == 99
    assert len(counts.gaps) == GAPS_NAMED_MAX
    assert (counts.gaps[0].symbol, counts.gaps[0].trade_id, counts.gaps[0].missing) == ("BTC-PERP", 2, 1)


@pytest.mark.parametrize("topic", [TRADES, TRANSFERS, REPORTS])
@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"\xff", b"{}", b"null", b"1"])
def test_a_record_that_cannot_be_read_takes_nothing(topic: str, value: bytes | None) -> None:
    splitter, ids = Splitter(SHARDS), TradeIds()
    refused = splitter.add(topic, value, ids)
    assert refused is not None
    assert refused.kind is DecodeError
    assert splitter.take(TIME_US) == ([], Counts())
    assert ids.last == {}


def test_a_bad_trade_does_not_use_up_its_id(records: Any) -> None:
    splitter, ids = Splitter(SHARDS), TradeIds()
    refused = splitter.add(TRADES, orjson.dumps(records.trade(1, price=1)), ids)
    assert refused is not None
    assert "price" in refused.reason
    assert splitter.add(TRADES, orjson.dumps(records.trade(1)), ids) is None
    assert splitter.take(TIME_US)[1] == Counts(fills=2)


# --- frames ----------------------------------------------------------------------------------------------------------


def test_frames_have_at_most_so_many_rows_and_keep_the_order(records: Any, rows_of: Any) -> None:
    count = 2 * FRAME_ROWS_MAX + 5
    frames, _ = routed(*((TRANSFERS, records.transfer("alice", n)) for n in range(count)), shards=1)
    decoded = [Decoder[EventFrame](EventFrame)(data) for _, data in frames]
    assert [len(frame.transfers.account) for frame in decoded] == [FRAME_ROWS_MAX, FRAME_ROWS_MAX, 5]
    assert [row["sequence"] for _, row in rows_of(frames, "transfers")] == list(range(count))


def test_frames_of_long_ids_stay_below_what_a_topic_takes(records: Any, rows_of: Any) -> None:
    def long_id(n: int) -> str:
        return f"{n}-".ljust(128, "x")

    given_records = [
        record
        for n in range(FRAME_ROWS_MAX)
        for record in (
            (TRANSFERS, records.transfer(long_id(n), n, transfer_id=long_id(n))),
            (REPORTS, records.report(long_id(n), command_id=long_id(n), order_id=long_id(n))),
        )
    ]
    frames, _ = routed(*given_records, shards=1)
    assert max(len(data) for _, data in frames) <= FRAME_BYTES_MAX
    for kind in ("transfers", "reports"):
        assert [row["account"] for _, row in rows_of(frames, kind)] == [long_id(n) for n in range(FRAME_ROWS_MAX)]


def test_a_full_memory_of_accounts_changes_nothing(records: Any, rows_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given_records = [(TRANSFERS, records.transfer(f"a{n % 7}", n)) for n in range(100)]
    expected, _ = routed(*given_records)
    monkeypatch.setattr(frames_module, "ACCOUNTS_REMEMBERED_MAX", 2)
    assert routed(*given_records)[0] == expected


# --- every event once, on its shard, in order ------------------------------------------------------------------------

ACCOUNTS = st.sampled_from([f"acct-{n}" for n in range(12)])
QUANTITIES = st.integers(1, 10**6).map(lambda lots: str(Decimal(lots) / 1000))
TRADE = st.tuples(
    st.just(TRADES),
    st.fixed_dictionaries(
        {
            "trade_id": st.integers(0, 15),
            "symbol": st.sampled_from(["BTC-PERP", "ETH-PERP", "SOL-PERP"]),
            "price": st.just("10"),
            "quantity": QUANTITIES,
            "aggressor_side": st.sampled_from(["buy", "sell"]),
            "maker": st.fixed_dictionaries({"account": ACCOUNTS, "order_id": st.just("m"), "fee": st.just("0")}),
            "taker": st.fixed_dictionaries({"account": ACCOUNTS, "order_id": st.just("t"), "fee": st.just("0")}),
            "event_time": st.just(1),
        }
    ),
)
TRANSFER = st.tuples(
    st.just(TRANSFERS),
    st.fixed_dictionaries(
        {
            "transfer_id": st.just("t"),
            "account": ACCOUNTS,
            "asset": st.just("USDC"),
            "amount": st.integers(1, 100).map(str),
            "sequence": st.integers(0, 10**6),
            "event_time": st.just(1),
        }
    ),
)


@given(
    batches=st.lists(st.lists(TRADE | TRANSFER, max_size=40), max_size=4),
    shards=st.integers(1, 9),
)
def test_every_event_lands_once_on_its_shard_in_order(
    rows_of: Any, batches: list[list[tuple[str, dict[str, Any]]]], shards: int
) -> None:
    """The window of the memory is larger than any symbol has trades here, so every repeat is known by content."""
    splitter, ids = Splitter(shards), TradeIds()
    expected: dict[str, list[Any]] = defaultdict(list)
    told: dict[str, int] = defaultdict(int)
    last: dict[str, int] = {}
    seen: dict[tuple[str, int], dict[str, Any]] = {}
    repeats, counted = 0, Counts()
    frames: list[tuple[int, bytes]] = []
    for batch in batches:
        for topic, value in batch:
            refused = splitter.add(topic, orjson.dumps(value), ids) is not None
            if topic == TRANSFERS:
                expected[value["account"]].append((value["sequence"], value["amount"]))
                continue
            symbol, trade_id = value["symbol"], value["trade_id"]
            if trade_id <= last.get(symbol, -1):
                known = seen.get((symbol, trade_id))
                is_repeat = known == value
                assert refused is not is_repeat
                repeats += is_repeat
                for account in () if is_repeat else {value["maker"]["account"], value["taker"]["account"]}:
                    told[account] += 1
                continue
            assert not refused
            last[symbol] = trade_id
            seen[symbol, trade_id] = value
            for side, sign in (("taker", ""), ("maker", "-")):
                sign = sign if value["aggressor_side"] == "buy" else {"": "-", "-": ""}[sign]
                expected[value[side]["account"] + "/fills"].append((symbol, trade_id, sign + value["quantity"]))
        taken, counts = splitter.take(TIME_US)
        frames += taken
        counted.repeats += counts.repeats
        counted.fills += counts.fills
    landed: dict[str, list[Any]] = defaultdict(list)
    for shard, row in rows_of(frames, "transfers"):
        assert shard == shard_of(row["account"], shards)
        landed[row["account"]].append((row["sequence"], row["amount"]))
    fills = rows_of(frames, "fills")
    for shard, row in fills:
        assert shard == shard_of(row["account"], shards)
        landed[row["account"] + "/fills"].append((row["symbol"], row["trade_id"], row["quantity"]))
    assert landed == expected
    suspended: dict[str, int] = defaultdict(int)
    for shard, data in frames:
        for suspension in Decoder[EventFrame](EventFrame)(data).suspensions:
            assert shard == shard_of(suspension.account, shards)
            suspended[suspension.account] += 1
    assert suspended == told
    assert sum(Decimal(row["quantity"]) for _, row in fills) == 0
    assert (counted.repeats, counted.fills) == (repeats, len(fills))
    assert ids.last == last
