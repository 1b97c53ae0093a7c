"""Whether the tables in Redis hold what the changelog held: the rows of a shard between two looks at where it stands.

A table moves while it is read, so a row in it must be one that the changelog held between the stamps of before and
after.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from schemas.topics import ACCOUNTS, JOURNAL
from streams.audit.findings import Findings
from streams.audit.outputs import digest_of
from streams.errors import TableError
from streams.tables.reader import TableMeta

_LOOK_AGAIN_S = 0.25


class TableSource(Protocol):
    """Where the rows and the stamps of tables come from (:class:`streams.tables.reader.TableReader`)."""

    def table_meta(self, shard: int) -> TableMeta | None: ...
    def accounts(self, shard: int) -> Iterator[tuple[str, bytes]]: ...


@dataclass(slots=True)
class TableSnapshot:
    """Rows in Redis as digests, and what the changelog held between two looks at where the table stood."""

    before: TableMeta
    after: TableMeta
    rows: dict[str, bytes]
    _settled: dict[str, bytes] = field(default_factory=dict)
    _moving: dict[str, list[bytes]] = field(default_factory=dict)

    def add(self, account: str, value: bytes | None, offset: int) -> None:
        """Add a row of the changelog."""
        digest = b"" if value is None else digest_of(value)
        if offset < self.before.stamp:
            self._settled[account] = digest
        elif offset < self.after.reach:
            self._moving.setdefault(account, []).append(digest)

    def differing(self) -> Iterator[str]:
        """The accounts whose row is none of those that it may have been."""
        for account in sorted({*self.rows, *self._settled, *self._moving}):
            allowed = {self._settled.get(account, b""), *self._moving.get(account, ())}
            if self.rows.get(account, b"") not in allowed:
                yield account


class TableCheck:
    """Compares tables with the changelog; what is wrong goes to ``findings``. ``patience_s``: seconds that the tables
    may take, altogether, to be whole and to reach where the changelog stood."""

    def __init__(self, tables: TableSource, findings: Findings, patience_s: float) -> None:
        self._tables, self._findings, self._patience_s = tables, findings, patience_s

    def read(self, shard: int) -> TableSnapshot | None:
        """The rows in Redis between two looks at where the table stands; None if it stays without a whole one."""
        while True:
            problem = "it is being built"
            try:
                before = self._tables.table_meta(shard)
                if before is None:
                    problem = "there is none"
                elif not before.building:
                    rows = {account: digest_of(row) for account, row in self._tables.accounts(shard)}
                    after = self._tables.table_meta(shard)
                    if after is not None and not after.building and after.stamp >= before.stamp:
                        self._findings.counts["rows in Redis"] += len(rows)
                        return TableSnapshot(before, after, rows)
            except TableError as error:
                problem = str(error)
            if not self._wait():
                self._findings.differ(f"the table of shard {shard} in Redis cannot be compared: {problem}")
                return None

    def _wait(self) -> bool:
        """Wait a little for the tables; False once that has been done for as long as they may take altogether."""
        if self._patience_s <= 0:
            return False
        time.sleep(_LOOK_AGAIN_S)
        self._patience_s -= _LOOK_AGAIN_S
        return True

    def await_rows(self, shard: int, row_end: int, claims: set[int]) -> None:
        """The table must come to reach what the changelog held, and belong to the shard's last claim."""
        while True:
            stand = self._tables.table_meta(shard)
            token_known = stand is not None and (not claims or stand.token >= max(claims))
            if stand is not None and stand.stamp >= row_end and token_known:
                return
            if not self._wait():
                break
        if stand is None or stand.stamp < row_end:
            reached = "is gone" if stand is None else f"stands at {stand.stamp}"
            self._findings.differ(
                f"the table of shard {shard} in Redis {reached}; the changelog has had rows up to {row_end} since "
                "it was looked at",
                ACCOUNTS,
                shard,
            )
        elif not token_known:
            self._findings.differ(
                f"the table of shard {shard} in Redis belongs to claim {stand.token}, the shard to {max(claims)}",
                JOURNAL,
                shard,
            )
