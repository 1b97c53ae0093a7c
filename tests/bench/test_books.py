"""What the benches compare with notices what is not right: a quantity, a sum of money, an account, a fill."""

from decimal import Decimal
from typing import Any

import orjson
import pytest

from schemas.codec import encode
from schemas.messages import Trade
from streams.bench.books import Books
from streams.bench.errors import BenchError
from streams.bench.market import DrawnExchange, Traders
from streams.bench.router import FrameFills
from streams.routing.split import Splitter
from streams.routing.trade_ids import TradeIds

POPULATION = Traders(accounts=41, symbols=5, positions=3)


def books() -> Books:
    exchange, added = DrawnExchange(POPULATION), Books()
    added.deposit(exchange.deposits())
    added.trade(exchange.openings())
    return added


def rows_of(held: Books) -> dict[str, Any]:
    """Rows that are right: all money in a balance."""
    return {
        account: {
            "groups": [
                {
                    "balances": {"USDC": str(money)},
                    "positions": [
                        {"symbol": symbol, "quantity": str(quantity), "cash": "0"}
                        for symbol, quantity in held.quantities[account].items()
                    ],
                }
            ]
        }
        for account, money in held.money.items()
    }


def test_what_is_right_has_no_differences() -> None:
    held = books()
    assert held.differences(rows_of(held)) == []


def test_a_quantity_a_sum_and_an_account_that_are_not_right_are_named() -> None:
    held = books()
    rows = rows_of(held)
    rows["account-1"]["groups"][0]["positions"][0]["quantity"] = "7"
    rows["account-2"]["groups"][0]["balances"]["USDC"] = "1"
    del rows["account-3"]
    rows["stranger"] = rows["account-4"]
    differing = held.differences(rows)
    assert [text.split()[0] for text in sorted(differing)] == ["account-1", "account-2", "account-3", "stranger"]


@pytest.mark.parametrize("drawn", ["uniform", "zipf"])
def test_every_account_has_its_positions_and_trades_are_between_those_who_have_them(drawn: Any) -> None:
    exchange, opened = DrawnExchange(Traders(41, 5, 3, drawn)), Books()
    opened.trade(exchange.openings())
    held = {
        account: {symbol for symbol, quantity in of.items() if quantity} for account, of in opened.quantities.items()
    }
    for number in range(41):
        assert held[f"account-{number}"] == {f"S{(number + offset) % 5}-PERP" for offset in range(3)}
    for trade in exchange.trades(2_000):
        assert trade.maker.account != trade.taker.account
        assert trade.symbol in held[trade.maker.account] & held[trade.taker.account]


def test_ids_rise_by_one_per_symbol() -> None:
    exchange = DrawnExchange(POPULATION)
    last: dict[str, int] = {}
    for trade in (*exchange.openings(), *exchange.trades(500)):
        assert trade.trade_id == last.get(trade.symbol, 0) + 1
        last[trade.symbol] = trade.trade_id


@pytest.mark.parametrize(("accounts", "symbols", "positions"), [(9, 5, 1), (100, 2, 3)])
def test_a_population_that_cannot_be_is_refused(accounts: int, symbols: int, positions: int) -> None:
    with pytest.raises(BenchError):
        Traders(accounts, symbols, positions)


def frames_of(trades: list[Trade]) -> FrameFills:
    splitter, ids, fills = Splitter(2), TradeIds(), FrameFills()
    for offset, trade in enumerate(trades):
        assert splitter.add("trades.v1", encode(trade), ids, offset=offset) is None
    for _, frame in splitter.take(1)[0]:
        assert fills.add(frame, 1, is_measured=True)
    return fills


def test_the_fills_of_all_trades_once_are_right_and_nothing_else_is() -> None:
    trades = DrawnExchange(POPULATION).openings()
    assert frames_of(trades).differences(trades) == []
    assert len(frames_of(trades[:-1]).differences(trades)) == 2
    assert len(frames_of(trades).differences(trades[:-1])) == 2
    twice = frames_of(trades)
    twice.add(orjson.dumps({"fills": fills_of(trades[0])}), 1, is_measured=True)
    assert len(twice.differences(trades)) == 1


def fills_of(trade: Trade) -> dict[str, list[Any]]:
    """The taker's fill again."""
    sign = "" if trade.aggressor_side == "buy" else "-"
    return {
        "symbol": [trade.symbol],
        "trade_id": [trade.trade_id],
        "account": [trade.taker.account],
        "quantity": [f"{sign}{Decimal(trade.quantity)}"],
        "order_id": [trade.taker.order_id],
    }
