"""Whether one shard is as its journal says: the journal's own order, the rows, what is out of reach, the offsets."""

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from schemas.codec import DecodeError, Decoder
from schemas.messages import AccountRow, JournalRecord, LogGap, ShardLayout
from schemas.topics import ACCOUNTS, EVENTS, JOURNAL, MARKS, PARAMETERS
from schemas.types import shard_account
from streams.audit.findings import Findings
from streams.audit.groups import Backlog, Groups
from streams.audit.numbers import NumberCheck
from streams.audit.outputs import row_of
from streams.audit.progress import Progress
from streams.audit.tables import TableCheck, TableSnapshot
from streams.broker.records import Log
from streams.clearing.unreached import unreached_of
from streams.feeds.gaps import gaps_of, gone_sentences, last_record, suspension_sentences, untaken_sentences
from streams.feeds.holders import Holder
from streams.feeds.journal import JournalEntry, read_journal
from streams.feeds.progress import behind_sentences
from streams.feeds.sources import missing_sentences
from streams.feeds.unreached import unreached_sentences

_TOPICS = {"events": EVENTS, "marks": MARKS, "parameters": PARAMETERS}

_ROW = Decoder[AccountRow](AccountRow)


class ShardCheck:
    """One shard of those of ``layout``; what is wrong goes to ``findings``.

    ``last`` is its journal's last record, ``lag`` how many frames its engine has not applied; ``kept`` are the rows, as
    of that record, of accounts that it has sent to another shard, which has not said yet that it has them. One that
    ``is_new`` has nothing to compare. ``knows_pools``: what it has given to the fund's pools is known.
    """

    def __init__(
        self,
        shard: int,
        layout: ShardLayout,
        log: Log,
        groups: Groups,
        tables: TableCheck,
        numbers: NumberCheck,
        findings: Findings,
        progress: Progress,
        topic_ids: Mapping[str, str],
    ) -> None:
        self.shard, self._layout = shard, layout
        self._topic_ids = topic_ids
        self.last: JournalRecord | None = None
        self.is_new = False
        self.lag = 0
        self.kept: dict[str, bytes] = {}
        self._log, self._groups, self._backlog = log, groups, Backlog(log, groups)
        self._tables, self._numbers = tables, numbers
        self._findings, self._progress = findings, progress
        self._journal_next = 0
        self._claims: set[int] = set()
        self._gone: dict[str, LogGap] = {}
        self.knows_pools = True

    def run(self) -> dict[str, bytes]:
        """Compare everything; the rows of the shard's accounts as of the journal's last record."""
        self.is_new = is_only_added(self._log, self._layout, self.shard)
        if self.is_new:
            self._findings.facts.append(only_added(self.shard))
            return {}
        in_redis = self._tables.read(self.shard)
        self._read_journal()
        rows, row_end = self._read_rows(in_redis)
        if in_redis is not None:
            self._tables.await_rows(self.shard, row_end, self._claims)
        self._compare_offsets()
        self._keep_apart(rows)
        self._findings.counts["accounts"] += len(rows)
        self.read_row_numbers(rows)
        self._count_unreached(rows)
        if self.last is not None and self.last.alert_sequence:
            self._numbers.alerted(shard_account(self.shard), self.last.alert_sequence)
        return rows

    def _read_journal(self) -> None:
        low, end = self._log.watermarks(JOURNAL, self.shard)
        self._journal_next = max(low, self._journal_next)
        previous = -1
        for entry in read_journal(self._log, self.shard, self._journal_next, end):
            record = entry.record
            if record is None:
                self._findings.differ(f"no journal record: {entry.reason}", JOURNAL, self.shard, entry.offset)
                continue
            for fault in self._journal_faults(entry, record, previous, cut=low > 0):
                self._findings.differ(f"sequence {record.sequence}: {fault}", JOURNAL, self.shard, entry.offset)
            for fault in self._numbers.in_journal(record, whole=low == 0):
                self._findings.differ(fault, JOURNAL, self.shard, entry.offset)
            if record.kind == "claim":
                self._claims.add(entry.offset)
                told = {} if self.last is None else self.last.gone or {}
                self.knows_pools &= not record.unread and JOURNAL not in (record.gone or {})
                self._gone |= {topic: gap for topic, gap in (record.gone or {}).items() if told.get(topic) != gap}
            self.last, previous = record, entry.offset
            self._findings.counts["journal records"] += 1
            if not record.sequence % 1024:
                self._progress(f"journal of shard {self.shard}", entry.offset - low, end - low)
        self._journal_next = end
        if self.last is None:
            self._findings.differ("the journal is empty: no engine has ever taken the shard", JOURNAL, self.shard)

    def _journal_faults(self, entry: JournalEntry, record: JournalRecord, previous: int, *, cut: bool) -> Iterator[str]:
        """What a record says that does not follow from the one before it."""
        last = self.last
        if last is None:
            if not cut and (record.sequence, record.kind) != (1, "claim"):
                yield "the journal does not begin with the shard's first claim, though nothing of it is cut off"
        else:
            if record.sequence != last.sequence + 1:
                yield f"it follows sequence {last.sequence}"
            if record.previous != previous:
                yield f"it names {record.previous} as the offset of the record before, which stands at {previous}"
            for name in ("events", "marks", "parameters"):
                offsets, before = getattr(record, name), getattr(last, name)
                is_told = record.kind == "claim" and (record.gone or {}).get(_TOPICS[name]) is not None
                if offsets.first != before.next and not is_told:
                    yield f"its {name} begin at {offsets.first}, those of the record before end at {before.next}"
        for name in ("events", "marks", "parameters"):
            offsets = getattr(record, name)
            if offsets.next < offsets.first or (record.kind == "claim" and offsets.next != offsets.first):
                yield f"its {name} go from {offsets.first} to {offsets.next}"
        if record.kind == "claim" and record.claim != -1:
            yield f"a claim that names claim {record.claim}"
        if record.kind == "commit" and self._claims and record.claim != max(self._claims):
            yield f"written under claim {record.claim}, the shard's last is {max(self._claims)}"

    def _read_rows(self, table: TableSnapshot | None) -> tuple[dict[str, bytes], int]:
        """The accounts' rows as of the journal's last record, and the offset after the changelog's last row.

        The table is compared on the way.
        """
        rows: dict[str, bytes] = {}
        always = None if self.last is not None and self.last.moves else Holder(self.shard, self._layout, msgspec.UNSET)
        low, end = self._log.watermarks(ACCOUNTS, self.shard)
        last_sequence, row_end = -1 if self.last is None else self.last.sequence, 0
        for message in self._log.read_range(ACCOUNTS, self.shard, low, end):
            row, offset = row_of(message), message.offset()
            if row is None:
                self._findings.differ("no ce_id that names the row's commit", ACCOUNTS, self.shard, offset)
                continue
            row_end = offset + 1
            if table is not None:
                table.add(row.account, row.value, offset)
            if row.sequence > last_sequence:
                continue
            if always is not None and always.holding(row.account) != "own":
                self._findings.differ(
                    f"account {row.account} belongs to shard {always.home(row.account)}", ACCOUNTS, self.shard, offset
                )
            if row.value is None:
                rows.pop(row.account, None)
            else:
                rows[row.account] = row.value
            if not offset % 4096:
                self._progress(f"changelog of shard {self.shard}", offset - low, end - low)
        if table is not None:
            for account in table.differing():
                self._findings.differ(
                    f"account {account} in Redis is not what the changelog holds around offset {table.before.stamp}",
                    ACCOUNTS,
                    self.shard,
                )
        return rows, row_end

    def _keep_apart(self, rows: dict[str, bytes]) -> None:
        """Of a shard whose accounts may move: take the rows apart of those that it has sent away, and name those that
        are not there any more or not there yet."""
        if self.last is None or not self.last.moves:
            return
        holder = Holder(self.shard, self._layout, self.last.moves)
        for account in list(rows):
            holding = holder.holding(account)
            if holding == "kept":
                self.kept[account] = rows.pop(account)
            elif holding == "other":
                home = holder.home(account)
                where = f"belongs to shard {home}" if home != self.shard else "is still to come from another shard"
                self._findings.differ(
                    f"account {account} has a row and {where}, by the journal up to sequence {self.last.sequence}",
                    ACCOUNTS,
                    self.shard,
                )
                del rows[account]

    def read_row_numbers(self, rows: dict[str, bytes]) -> None:
        """Take in what ``rows`` count, and leave those out that are none."""
        for account, data in list(rows.items()):
            try:
                row = _ROW(data)
            except DecodeError as error:
                self._findings.differ(f"account {account}: no row: {error}", ACCOUNTS, self.shard)
                del rows[account]
                continue
            if row.unread is not None:
                self._findings.differ(
                    f"{row.suspended_reason}: it is suspended, the row is kept in the one that stands there, and what "
                    "it holds is not known; put parameters in force that it can be held in, or run the version that "
                    "wrote it",
                    ACCOUNTS,
                    self.shard,
                )
            self._numbers.in_row(account, row)

    def _count_unreached(self, rows: dict[str, bytes]) -> None:
        """Say how much of the shard liquidation does not reach; the journal must count the same."""
        unreached: Counter[str] = Counter()
        for data in rows.values():
            unreached.update(unreached_of(_ROW(data)))
        for sentence in unreached_sentences(unreached, {}):
            self._findings.unreached.append(f"shard {self.shard}: {sentence}")
        if self.last is not None:
            left_out = {name: behind for name, behind in self.last.behind.items() if behind.left_out}
            self._findings.unreached += behind_sentences(f"shard {self.shard}", left_out)
            self._findings.unreached += missing_sentences(f"shard {self.shard}", self.last.missing, self.last.lost)
            self._findings.unreached += suspension_sentences(f"shard {self.shard}", self.last.suspension)
        self._findings.unreached += gone_sentences(self.shard, self._gone)
        untold = gaps_of(self._log, self.last, self.shard, self._topic_ids)
        self._findings.unreached += untaken_sentences(f"shard {self.shard}", self.shard, untold)
        if self.last is not None and dict(+unreached) != self.last.unreached:
            self._findings.differ(
                f"sequence {self.last.sequence} counts {self.last.unreached} out of reach, the rows {dict(+unreached)}",
                JOURNAL,
                self.shard,
            )

    def _compare_offsets(self) -> None:
        """The group's committed offset lies between the journal's of before and after it was read."""
        if self.last is None:
            return
        first = self.last.events.next
        committed = self._groups.engine()[self.shard]
        latest = self.last
        for entry in read_journal(
            self._log, self.shard, self._journal_next, self._log.watermarks(JOURNAL, self.shard)[1]
        ):
            latest = entry.record or latest
        if not first <= committed <= latest.events.next:
            self._findings.differ(
                f"the engines' committed offset is {committed}, the journal's {_between(first, latest.events.next)}",
                EVENTS,
                self.shard,
            )
        self.lag = self._backlog.records_after(EVENTS, self.shard, latest.events.next)


def _between(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def is_only_added(log: Log, layout: ShardLayout, shard: int) -> bool:
    """Whether the layout has added the shard and sends no accounts there yet, and no engine has taken it so far."""
    if shard < layout.shards or layout.step:
        return False
    own = ACCOUNTS, JOURNAL
    is_whole = not any(log.watermarks(topic, shard)[0] for topic in own)
    return is_whole and all(last_record(log, topic, shard) is None for topic in own)


def only_added(shard: int) -> str:
    """What is said of a shard that :func:`is_only_added`."""
    return f"shard {shard} has been added, and no engine has taken it yet"
