"""Trades into positions by account with Quix Streams: a streaming data frame, grouped by account, with its state.

It runs in an environment of its own; its settings are in the environment, ``PEER_…``.
"""

import os
from decimal import Decimal
from typing import Any

from quixstreams import Application


def split(trade: dict[str, Any]) -> list[dict[str, Any]]:
    """Two fills of a trade."""
    bought = trade["aggressor_side"] == "buy"
    return [
        {
            "account": trade[side]["account"],
            "symbol": trade["symbol"],
            "quantity": trade["quantity"] if buys else f"-{trade['quantity']}",
            "price": trade["price"],
            "fee": trade[side]["fee"],
        }
        for side, buys in (("taker", bought), ("maker", not bought))
    ]


def apply(fill: dict[str, Any], state: Any) -> None:
    """A fill into its account's state."""
    account = state.get("account") or {"fills": 0, "fees": "0", "positions": {}}
    position = account["positions"].setdefault(fill["symbol"], {"quantity": "0", "cash": "0"})
    quantity = Decimal(fill["quantity"])
    position["quantity"] = str(Decimal(position["quantity"]) + quantity)
    position["cash"] = str(Decimal(position["cash"]) - quantity * Decimal(fill["price"]))
    account["fees"] = str(Decimal(account["fees"]) + Decimal(fill["fee"]))
    account["fills"] += 1
    state.set("account", account)


def main() -> None:
    """Run until ended."""
    app = Application(
        broker_address=os.environ["PEER_BOOTSTRAP"],
        consumer_group=os.environ["PEER_GROUP"],
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=1.0,  # at its 5 s the two steps would take up to ten seconds to commit the last trades
        state_dir=os.environ["PEER_FOLDER"],
        loglevel="WARNING",
    )
    trades = app.topic(os.environ["PEER_TRADES"], value_deserializer="json")
    frame = app.dataframe(trades)
    frame = frame.apply(split, expand=True)
    frame = frame.group_by("account")
    frame = frame.update(apply, stateful=True)
    app.run()


if __name__ == "__main__":
    main()
