"""The memory of trade ids: a repeat is dropped, a contradiction refused, and reading again suspends nobody."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.messages import Trade, TradeSide
from streams.routing.trade_ids import OPEN_GAPS_MAX, REPEATED, STRAY_IDS, WINDOW, RefusedTrade, SymbolMemory, TradeIds

T0 = 1_700_000_000_000_000


def trade(trade_id: int, **changes: Any) -> Trade:
    side = TradeSide(account="alice", order_id="o", fee="0")
    fields: dict[str, Any] = {
        "trade_id": trade_id,
        "symbol": "BTC-PERP",
        "price": "50000",
        "quantity": "1",
        "aggressor_side": "buy",
        "maker": side,
        "taker": replace(side, account="bob"),
        "event_time": T0 + trade_id,
    }
    return Trade(**fields | changes)


def memory_of(*trades: Trade) -> TradeIds:
    memory = TradeIds()
    for accepted in trades:
        memory.accept(accepted)
    return memory


def restarted(memory: TradeIds) -> TradeIds:
    """As another router finds it."""
    again = TradeIds()
    for symbol, symbol_memory in memory.symbols.items():
        again.recall(symbol, symbol_memory.row())
    return again


@pytest.mark.parametrize(
    "changes",
    [
        {"quantity": "2"},
        {"price": "50000.1"},
        {"aggressor_side": "sell"},
        {"event_time": T0},
        {"maker": TradeSide(account="carol", order_id="o", fee="0")},
        {"maker": TradeSide(account="alice", order_id="p", fee="0")},
        {"taker": TradeSide(account="bob", order_id="o", fee="-0.5")},
        {"taker": TradeSide(account="bob", order_id="o", fee="0", margin="isolated")},
    ],
    ids=str,
)
@pytest.mark.parametrize("restart", [False, True])
def test_the_same_id_with_other_content_is_a_contradiction(changes: dict[str, Any], restart: bool) -> None:
    memory = memory_of(trade(7), trade(8), trade(9))
    memory = restarted(memory) if restart else memory
    with pytest.raises(RefusedTrade, match="trade 8 of BTC-PERP was routed with other content"):
        memory.accept(trade(8, **changes))
    assert memory.accept(trade(8)) == REPEATED
    assert memory.accept(trade(10)) == 0


def test_a_number_that_is_written_otherwise_is_the_same() -> None:
    memory = memory_of(trade(8, quantity="1.50", price="50000"))
    assert memory.accept(trade(8, quantity="1.5", price="50000.00")) == REPEATED


def test_ids_that_begin_anew_are_refused() -> None:
    memory = memory_of(trade(4_000_000))
    for number in range(1, 6):
        with pytest.raises(RefusedTrade, match="the ids have begun anew"):
            memory.accept(trade(number, event_time=T0 + 60_000_000 + 4_000_000 + number))
    assert memory.last == {"BTC-PERP": 4_000_000}


def test_a_missing_trade_that_comes_late_is_refused_because_it_was_never_routed() -> None:
    memory = memory_of(trade(1), trade(4))
    with pytest.raises(RefusedTrade, match="trade 2 of BTC-PERP comes after trade 4 and was not routed before"):
        memory.accept(trade(2))


@pytest.mark.parametrize("stray", [2**63 - 1, 10_000_000])
def test_a_stray_id_does_not_close_its_symbol(stray: int) -> None:
    memory = memory_of(trade(1), trade(2), trade(stray, event_time=T0 + 3))
    for number in range(3, 60):
        assert memory.accept(trade(number)) == 0
        assert memory.accept(trade(number)) == REPEATED
        memory = restarted(memory)
    assert memory.accept(trade(stray, event_time=T0 + 3)) == REPEATED
    with pytest.raises(RefusedTrade, match="not routed before"):
        memory_of(trade(1), trade(4), trade(stray, event_time=T0 + 9)).accept(trade(2))


def test_so_many_gaps_stay_open_and_the_row_is_bounded() -> None:
    memory = memory_of(*(trade(1 + number * 2 * STRAY_IDS, event_time=T0 + number) for number in range(40)))
    assert len(memory.symbols["BTC-PERP"].row()) < 900
    taken = [number for number in range(39) if memory.symbols["BTC-PERP"].is_new(2 + number * 2 * STRAY_IDS)]
    assert taken == [0, 1, 2, 3, 35, 36, 37, 38], "where strays came to an old line, and where ids are times"
    assert len(taken) == OPEN_GAPS_MAX


@given(st.lists(st.tuples(st.sampled_from(["next", "next", "next", "stray"]), st.integers(1, 3))), st.data())
@configure(deadline=None)
def test_whatever_strays_come_every_trade_is_routed_once(feed: list[tuple[str, int]], data: Any) -> None:
    trades, last, highest = [trade(1, event_time=T0)], 1, 1  # before the first one nothing is known to be left out
    for number, (kind, step) in enumerate(feed):
        if kind == "next":
            last += step
        chosen = last if kind == "next" else max(highest, last) + step * STRAY_IDS + 2
        highest = max(highest, chosen)
        trades.append(trade(chosen, event_time=T0 + number))
    memory = TradeIds()
    for new in trades:
        memory = restarted(memory) if data.draw(st.booleans()) else memory
        assert memory.accept(new) >= 0
    for _ in range(2):
        memory = restarted(memory)
        first = data.draw(st.integers(0, len(trades)))
        assert all(memory.accept(repeat) == REPEATED for repeat in trades[first:])


def test_the_window_is_bounded_and_so_is_its_row() -> None:
    memory = memory_of(*(trade(2**63 - 200 + number, event_time=T0) for number in range(100)))
    assert len(memory.symbols["BTC-PERP"].row()) < 500
    with pytest.raises(RefusedTrade, match="other content"):
        memory.accept(trade(2**63 - 101, event_time=T0, quantity="3"))
    assert memory.accept(trade(2**63 - 101 - WINDOW, event_time=T0, quantity="3")) == REPEATED, "not known any more"


FEEDS = st.lists(
    st.tuples(st.sampled_from(["A", "B"]), st.integers(1, 3), st.integers(-50, 50)), min_size=1, max_size=120
)


@given(FEEDS, st.data())
@configure(deadline=None)
def test_reading_again_routes_nothing_twice_and_refuses_nothing(feed: list[tuple[str, int, int]], data: Any) -> None:
    """Whatever the times of the trades are: a host's clock may go back, and ids may be left out."""
    trades, last = [], {"A": 0, "B": 0}
    for number, (symbol, step, jitter) in enumerate(feed):
        last[symbol] += step
        trades.append(trade(last[symbol], symbol=symbol, event_time=T0 + 10 * number + jitter))
    memory = memory_of(*trades)
    for _ in range(3):
        first = data.draw(st.integers(0, len(trades)))
        memory = restarted(memory)
        assert all(memory.accept(repeat) == REPEATED for repeat in trades[first:])
        assert memory.changed == set()
    new = trade(last["A"] + 1, symbol="A", event_time=T0)
    assert memory.accept(new) == 0


@given(FEEDS)
@configure(deadline=None)
def test_a_row_that_is_read_back_is_the_memory(feed: list[tuple[str, int, int]]) -> None:
    memory = SymbolMemory(-1)
    for number, (_, step, jitter) in enumerate(feed):
        memory.extend(trade(max(memory.last, 0) + step, event_time=T0 + number + jitter))
        assert SymbolMemory.of_row(memory.row()).row() == memory.row()
