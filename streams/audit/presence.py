"""Between which of their numbers accounts were in a shard: whose commands and alerts a rerun of its journal must give.

An account takes its numbers along when it goes to another shard, and goes on with them there.
"""

from dataclasses import dataclass

from schemas.codec import DecodeError, Decoder
from schemas.messages import AccountRow

Numbers = tuple[int, int]
"""The number of an account's last command, and of its last alert."""

_ROW = Decoder[AccountRow](AccountRow)


def numbers_in(row: bytes) -> Numbers:
    """The numbers that a row counts.

    Raises:
        DecodeError: it is no row.
    """
    known = _ROW(row)
    return known.liquidation_sequence, known.alert_sequence


@dataclass(slots=True)
class _Stay:
    """An account was in the shard from ``first`` on, until ``last`` (None: it still is)."""

    first: Numbers
    last: Numbers | None = None


class Presence:
    """The stays of accounts in one shard, in order."""

    def __init__(self) -> None:
        self._stays: dict[str, list[_Stay]] = {}

    def comes(self, account: str, numbers: Numbers) -> None:
        """The account is in the shard from ``numbers`` on, if it is not there already."""
        stays = self._stays.setdefault(account, [])
        if not stays or stays[-1].last is not None:
            stays.append(_Stay(numbers))

    def leaves(self, account: str, row: bytes) -> None:
        """The account goes to another shard, with ``row``."""
        try:
            numbers = numbers_in(row)
        except DecodeError:
            return
        self.comes(account, (0, 0))
        self._stays[account][-1].last = numbers

    def covers(self, account: str, number: int, kind: int) -> bool | None:
        """Whether the account was there when it was given the number (``kind`` 0: of a command, 1: of an alert); None
        if it was never there."""
        stays = self._stays.get(account)
        if stays is None:
            return None
        return any(stay.first[kind] < number and (stay.last is None or number <= stay.last[kind]) for stay in stays)
