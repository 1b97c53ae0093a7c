"""How much one account may hold. One that has reached a limit is suspended and told; nobody else is concerned.

The limits keep an account's row and a command within what the contract allows: with every one of them reached, and
every name and number as long as it may be, the row is still a message that can be read
(``tests/clearing/test_written_can_be_read.py`` adds it up).
"""

ISOLATED_GROUPS_MAX = 128
"""Isolated margin groups of one account that hold something."""

ISOLATED_ASSETS_MAX = 8
"""Assets transferred into one isolated margin group that it holds; its settle asset comes on top through fills."""

POSITIONS_MAX = 2_000
"""Open positions of one margin group."""

ASSETS_MAX = 512
"""Assets that parameters may name, and so the most that a cross group may hold."""

ACCOUNT_ORDERS_MAX = 512
"""Orders of an account's open commands. A group always gets one; what is left is planned again after the fills."""

POOLS_MAX = 256
"""Pools of the fund that instruments may name: every journal record tells what each has been given."""

OPEN_INTEREST_SYMBOLS_MAX = 4_096
"""Symbols whose open interest one journal record tells, and so the most that parameters may scale by it."""
