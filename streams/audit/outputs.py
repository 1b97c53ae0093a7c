"""What a shard has committed to the topics that others read, ready to be compared with what a rerun gives.

Commands and alerts are found by their id, rows by the journal sequence that their ``ce_id`` names. Reading goes on
while the pipeline writes, so the order of looking matters: what is in a topic before the journal's end is read must be
in the journal, and what is in the journal must be in the topic after.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from schemas.codec import DecodeError, Decoder
from schemas.messages import ShardLayout
from schemas.partitioning import shard_of
from schemas.topics import ACCOUNTS, COMMANDS
from schemas.types import RESERVED_ACCOUNTS, shard_account
from streams.audit.findings import Findings, bytes_differ
from streams.audit.log import Tape
from streams.broker.records import Log, Record


@dataclass(frozen=True, slots=True)
class CommittedRecord:
    """A record of one of the topics. ``late``: it may be newer than the journal's end."""

    partition: int
    offset: int
    digest: bytes
    late: bool


def digest_of(data: bytes | None) -> bytes:
    """Sixteen bytes that stand for ``data``."""
    return hashlib.blake2b(data or b"", digest_size=16).digest()


class _Place(msgspec.Struct):
    shard: int = -1


class _Issued(msgspec.Struct):
    evidence: _Place = msgspec.field(default_factory=_Place)


_ISSUED = Decoder[_Issued](_Issued)


def may_be_of(shard: int, topic: str, layout: ShardLayout) -> Callable[[Record], bool]:
    """Whether a record of commands or alerts may be one of ``shard``.

    Once accounts have moved between shards, a command says which shard gave it, and an alert does not: those of all
    accounts may be.
    """

    def is_at_home(record: Record) -> bool:
        key = record.key_shown
        if key.startswith(RESERVED_ACCOUNTS):
            return key == shard_account(shard)
        return bool(layout.version) or shard_of(key, layout.shards) == shard

    def is_issued_here(record: Record) -> bool:
        try:
            said = _ISSUED(record.value()).evidence.shard
        except DecodeError:
            return is_at_home(record)
        return said == shard

    return is_issued_here if topic == COMMANDS and layout.version else is_at_home


class CommittedIndex:
    """The records in ``liquidation.commands.v1`` or ``margin.alerts.v1`` that ``is_ours`` says may be of one shard, by
    id."""

    def __init__(self, log: Log, topic: str, is_ours: Callable[[Record], bool]) -> None:
        self._log, self.topic, self._is_ours = log, topic, is_ours
        self._next: list[int] = []
        self.lows: list[int] = []
        self._find_partitions()
        self.unmatched: dict[str, CommittedRecord] = {}

    def read(self, findings: Findings, *, late: bool = False) -> None:
        """Add what has come since the last call."""
        self._find_partitions()
        for partition, first in enumerate(self._next):
            end = self._log.watermarks(self.topic, partition)[1]
            for message in self._log.read_range(self.topic, partition, first, end):
                self._add(message, partition, findings, late)
            self._next[partition] = end

    def _add(self, message: Record, partition: int, findings: Findings, late: bool) -> None:
        offset = message.offset()
        if not self._is_ours(message):
            return
        name = message.header("ce_id")
        if not name:
            findings.differ("the record has no ce_id: no engine wrote it", self.topic, partition, offset)
        elif name in self.unmatched:
            findings.differ(
                f"{name} is there twice, first at offset {self.unmatched[name].offset}", self.topic, partition, offset
            )
        else:
            self.unmatched[name] = CommittedRecord(partition, offset, digest_of(message.value()), late)

    def _find_partitions(self) -> None:
        """The topic may get more while it is read."""
        for partition in range(len(self._next), self._log.partitions(self.topic)):
            low, _ = self._log.watermarks(self.topic, partition)
            self._next.append(low)
            self.lows.append(low)

    def compare(self, name: str, wanted: bytes, findings: Findings) -> None:
        """Compare the record ``name`` with what it must be, and take it out of the unmatched ones."""
        record = self.unmatched.pop(name, None)
        if record is None:
            findings.differ(f"{name} is not in the topic", self.topic)
        elif record.digest != digest_of(wanted):
            findings.differ(
                f"{name}: {bytes_differ(wanted, self._value_at(record))}", self.topic, record.partition, record.offset
            )

    def _value_at(self, record: CommittedRecord) -> bytes | None:
        message = next(self._log.read_range(self.topic, record.partition, record.offset, record.offset + 1), None)
        return None if message is None else message.value()


@dataclass(frozen=True, slots=True)
class CommittedRow:
    """A row of the changelog; ``value`` is None for a tombstone."""

    account: str
    sequence: int
    offset: int
    value: bytes | None


class CommittedRows:
    """The changelog of one shard, in order, by the journal sequence that wrote each row.

    A row that is gone is either compacted away, and then a later one of its account follows, or missing;
    :meth:`conclude` tells which.
    """

    def __init__(self, log: Log, shard: int, findings: Findings) -> None:
        low, _ = log.watermarks(ACCOUNTS, shard)
        self._tape = Tape(log, ACCOUNTS, shard, low)
        self._shard, self._findings = shard, findings
        self._ahead: CommittedRow | None = None
        self._absent: dict[str, int] = {}
        self._compacted = 0

    def until(self, sequence: int) -> list[CommittedRow]:
        """The rows of the commits up to ``sequence`` that have not been read yet."""
        rows = []
        while (row := self._peek()) is not None and row.sequence <= sequence:
            rows.append(row)
            self._ahead = None
        return rows

    def absent(self, account: str, sequence: int, *, tombstone: bool) -> None:
        """Remember that the row that commit ``sequence`` wrote of an account is not there.

        A tombstone goes by itself after a while (``delete.retention.ms``), with no row after it.
        """
        self._compacted += 1
        if not tombstone and (self._ahead is None or self._ahead.account != account):
            self._absent[account] = sequence

    def conclude(self) -> int:
        """Read to the end and say which rows are missing; how many are compacted away."""
        while self._peek() is not None:
            self._ahead = None
        for account, sequence in self._absent.items():
            self._findings.differ(
                f"account {account}: the row of commit {sequence} is not there and none follows", ACCOUNTS, self._shard
            )
        return self._compacted - len(self._absent)

    def _peek(self) -> CommittedRow | None:
        while self._ahead is None:
            message = next(self._tape.until(2**62), None)
            if message is None:
                return None
            self._ahead = self._row(message)
        return self._ahead

    def _row(self, message: Record) -> CommittedRow | None:
        row = row_of(message)
        if row is None:
            self._findings.differ(
                "the row has no ce_id that names its commit: no engine wrote it",
                ACCOUNTS,
                self._shard,
                message.offset(),
            )
        else:
            self._absent.pop(row.account, None)  # the one that was not there is compacted away
        return row


def row_of(message: Record) -> CommittedRow | None:
    """The row in a record of ``margin.accounts.v1``; None if its ``ce_id`` is not ``shard:sequence:account``."""
    _, _, rest = message.header("ce_id").partition(":")
    sequence, _, account = rest.partition(":")
    if not sequence.isdigit() or account.encode() != message.key():
        return None
    return CommittedRow(account, int(sequence), message.offset(), message.value())
