"""``margin.accounts.v1``, read whole: which rows stand there, whatever the order in which its partitions are read.

An account that has gone to another shard is deleted from its old partition when its row is in the new one: a deletion
is of the partition that it is in, and of no other.
"""

from collections.abc import Iterable, Mapping

from schemas.messages import Spread
from schemas.partitioning import home_of
from streams.broker.records import Record

AccountPlace = tuple[int, str]
"""A partition, and an account that has a row in it."""


def live_rows(records: Iterable[Record]) -> dict[AccountPlace, bytes]:
    """The last row of every account in every partition that has one of it; records that are nobody's are left out.

    The records of each partition must come in their order.
    """
    rows: dict[AccountPlace, bytes] = {}
    for record in records:
        account, row = record.key_text, record.value()
        if account is None:
            continue
        if row is None:
            rows.pop((record.partition(), account), None)
        else:
            rows[record.partition(), account] = bytes(row)
    return rows


def by_account(rows: Mapping[AccountPlace, bytes], spread: Spread) -> dict[str, bytes]:
    """The row of every account: of one that is on its way and has two, the one in the shard that it goes to."""
    ordered = sorted(rows, key=lambda place: place[0] == home_of(place[1], spread))
    return {account: rows[shard, account] for shard, account in ordered}
