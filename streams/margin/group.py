"""A margin group as exact values: what one verdict of the risk mathematics is about.

A group is solvent or not on its own: an account's ``cross`` book, or one isolated position with the margin assigned to
it. The portfolio makes these views from its columns; the exact layer reads nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Position:
    """``quantity`` is signed (long positive); ``cash`` sums -quantity*price over its fills, in the settle asset.

    ``quantity * mark + cash`` is therefore the unrealised profit. Fees are not in it: they go to the balance at once.
    """

    symbol: str
    quantity: Decimal
    cash: Decimal


@dataclass(frozen=True, slots=True)
class Group:
    """``margin`` is ``cross`` or the symbol of the isolated position; ``balances`` maps an asset to a signed amount."""

    account: str
    margin: str
    balances: Mapping[str, Decimal]
    positions: tuple[Position, ...]
