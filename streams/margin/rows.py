"""Which group each row of the columns is, and which rows are free."""

from collections.abc import Set

import numpy as np

from streams.margin.amounts import Bools

_ROWS_START = 1024


class RowNames:
    """``room``: how many rows there may be before the columns have to grow; it doubles whenever it is used up.

    ``scanned``: bool[room], whether the row's account is under portfolio margin. To find the row of a group is left to
    who opened it: one directory of a million groups is enough.
    """

    def __init__(self) -> None:
        self._accounts: list[str] = []
        self._margins: list[str] = []
        self._free: list[int] = []
        self._scanned_accounts: Set[str] = frozenset()
        self.scanned: Bools = np.zeros(_ROWS_START, dtype=np.bool_)

    @property
    def count(self) -> int:
        """Rows given out so far, dropped ones included: every row is below."""
        return len(self._accounts)

    @property
    def room(self) -> int:
        """Rows that the columns must have room for."""
        return self.scanned.size

    def account(self, row: int) -> str:
        """The account that ``row`` belongs to; empty once it is dropped."""
        return self._accounts[row]

    def margin(self, row: int) -> str:
        """``cross`` or the symbol of the isolated position; empty once the row is dropped."""
        return self._margins[row]

    def open(self, account: str, margin: str) -> int:
        """A row that is free, or a new one."""
        if self._free:
            row = self._free.pop()
            self._accounts[row], self._margins[row] = account, margin
        else:
            row = len(self._accounts)
            if row == self.scanned.size:
                self.scanned = np.concatenate([self.scanned, np.zeros_like(self.scanned)])
            self._accounts.append(account)
            self._margins.append(margin)
        self.scanned[row] = account in self._scanned_accounts
        return row

    def drop(self, row: int) -> None:
        """Free ``row``. One that is free stays so."""
        if self._margins[row]:
            self._accounts[row] = self._margins[row] = ""
            self._free.append(row)

    def scan(self, accounts: Set[str]) -> None:
        """Put ``accounts``, and nobody else, under portfolio margin."""
        if accounts != self._scanned_accounts:
            self._scanned_accounts = accounts
            self.scanned[: self.count] = [account in accounts for account in self._accounts]
