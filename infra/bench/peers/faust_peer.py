"""Trades into positions by account with Faust: an agent that splits, a topic by account, a table with its changelog.

``python -m infra.bench.peers.faust_peer worker``; its settings are in the environment, ``PEER_…``.
"""

import os
from decimal import Decimal
from typing import Any

import faust

_partitions = int(os.environ["PEER_PARTITIONS"])

app = faust.App(
    os.environ["PEER_GROUP"],
    broker=f"kafka://{os.environ['PEER_BOOTSTRAP']}",
    datadir=os.environ["PEER_FOLDER"],
    store="memory://",
    value_serializer="json",
    topic_partitions=_partitions,
    topic_replication_factor=1,
    topic_disable_leader=True,
    web_enabled=False,
)
trades = app.topic(os.environ["PEER_TRADES"], key_type=str, key_serializer="raw")
fills = app.topic(
    f"{os.environ['PEER_GROUP']}-fills",
    key_type=str,
    key_serializer="raw",
    partitions=_partitions,
    internal=True,
)
positions = app.Table("positions", key_type=str, value_type=dict, partitions=_partitions)


@app.agent(trades)
async def split(stream: Any) -> None:
    """Two fills of each trade, to their accounts."""
    async for trade in stream:
        bought = trade["aggressor_side"] == "buy"
        for side, buys in (("taker", bought), ("maker", not bought)):
            await fills.send(
                key=trade[side]["account"],
                value={
                    "account": trade[side]["account"],
                    "symbol": trade["symbol"],
                    "quantity": trade["quantity"] if buys else f"-{trade['quantity']}",
                    "price": trade["price"],
                    "fee": trade[side]["fee"],
                },
            )


@app.agent(fills)
async def apply(stream: Any) -> None:
    """A fill into its account's state."""
    async for fill in stream:
        account = fill["account"]
        state = positions.get(account) or {"fills": 0, "fees": "0", "positions": {}}
        position = state["positions"].setdefault(fill["symbol"], {"quantity": "0", "cash": "0"})
        quantity = Decimal(fill["quantity"])
        position["quantity"] = str(Decimal(position["quantity"]) + quantity)
        position["cash"] = str(Decimal(position["cash"]) - quantity * Decimal(fill["price"]))
        state["fees"] = str(Decimal(state["fees"]) + Decimal(fill["fee"]))
        state["fills"] += 1
        positions[account] = state


if __name__ == "__main__":
    app.main()
