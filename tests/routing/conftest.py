"""What the router's tests share: records as the exchange sends them."""

from collections.abc import Iterable
from typing import Any

import pytest
from msgspec import UNSET

from schemas.codec import Decoder
from schemas.messages import EventFrame

_FRAME = Decoder[EventFrame](EventFrame)


class Records:
    """Makes valid records as plain JSON values; any field can be given."""

    def trade(self, trade_id: int, **fields: Any) -> dict[str, Any]:
        return {
            "trade_id": trade_id,
            "symbol": "BTC-PERP",
            "price": "61800.5",
            "quantity": "0.120",
            "aggressor_side": "buy",
            "maker": self.side("maker"),
            "taker": self.side("taker"),
            "event_time": 1723161300000000,
        } | fields

    def side(self, account: str, **fields: Any) -> dict[str, Any]:
        return {"account": account, "order_id": f"{account}-o1", "fee": "0.01"} | fields

    def transfer(self, account: str, sequence: int = 1, **fields: Any) -> dict[str, Any]:
        return {
            "transfer_id": f"{account}-{sequence}",
            "account": account,
            "asset": "USDC",
            "amount": "100",
            "sequence": sequence,
            "margin": "cross",
            "event_time": 1723161300000000,
        } | fields

    def report(self, account: str, number: int = 1, **fields: Any) -> dict[str, Any]:
        return {
            "command_id": f"{account}:{number}",
            "order_id": f"{account}:{number}:0",
            "account": account,
            "status": "filled",
            "filled_quantity": "0.120",
            "average_price": "61800.5",
            "event_time": 1723161300000000,
        } | fields


@pytest.fixture(scope="session")
def records() -> Records:
    return Records()


def rows(frames: Iterable[tuple[int, bytes]], kind: str) -> list[tuple[int, dict[str, Any]]]:
    """Every row of one kind in ``frames`` as (shard, {column: value}), in order."""
    sharded_rows = []
    for shard, data in frames:
        columns = getattr(_FRAME(data), kind)
        names = [name for name in columns.__struct_fields__ if getattr(columns, name) is not UNSET]
        for values in zip(*(getattr(columns, name) for name in names), strict=True):
            sharded_rows.append((shard, dict(zip(names, values, strict=True))))
    return sharded_rows


@pytest.fixture(scope="session")
def rows_of() -> Any:
    return rows
