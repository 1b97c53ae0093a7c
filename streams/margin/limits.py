"""How much one account may hold. One that has reached a limit is suspended and told; nobody else is concerned.

The limits keep an account's row, and the time that one decision takes, within what the contract allows.
"""

ISOLATED_GROUPS_MAX = 256
"""Isolated margin groups of one account that hold something."""

ISOLATED_ASSETS_MAX = 8
"""Assets transferred into one isolated margin group that it holds; its settle asset comes on top through fills."""

POSITIONS_MAX = 2_500
"""Open positions of one margin group."""
