"""Whether the commands and alerts of every account are numbered without a gap or a repeat, and all of them are there.

What the topics hold is compared with what the journals name and what the rows count. The topics are read before and
after the journals: what was there before must be in a journal, what is in a journal must be there after.

A topic may get more partitions: an account's numbers then go on in another one, where its key belongs from then on. And
an account may go to another shard: its numbers then go on in the journal of that one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from schemas.codec import DecodeError, Decoder
from schemas.messages import AccountRow, JournalRecord
from schemas.partitioning import partition_of
from schemas.topics import ALERTS, COMMANDS, JOURNAL
from streams.audit.findings import Findings
from streams.broker.layout import require_shards
from streams.broker.records import Log, Record

Numbers = dict[str, tuple[int, int]]
"""First and last number of an account's commands or alerts."""


@dataclass(slots=True)
class NumberedTopic:
    """A topic of numbered records: how far each partition was read, and the numbers of each account.

    ``runs`` are the last ones without a gap in the partition to which its key belongs, ``earlier`` in a partition to
    which it belonged when there were fewer; ``closed`` are those before a gap, which another partition may fill.
    ``before`` are the numbers when the topic was first read: all of them are older than the journal's end.
    """

    topic: str
    infix: str
    next: list[int] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    runs: Numbers = field(default_factory=dict)
    earlier: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    closed: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    before: Numbers = field(default_factory=dict)

    def grow(self, count: int) -> None:
        """The topic has ``count`` partitions now, which may be more than when it was read last."""
        before = len(self.next)
        if before and before < count:
            for account, run in list(self.runs.items()):
                home = partition_of(account.encode(), before)
                if partition_of(account.encode(), count) != home:
                    self.earlier[account, home] = run
                    del self.runs[account]

    def add(self, account: str, number: int, elsewhere: int | None) -> str:
        """Add a record, which is ``elsewhere`` if not where its key belongs; what is wrong with it, if anything."""
        known = self.runs.get(account) if elsewhere is None else self.earlier.get((account, elsewhere))
        first = number
        if known is not None and number == known[1] + 1:
            first = known[0]
        elif known is not None and number > known[1]:
            self.closed.setdefault(account, []).append(known)
        elif known is not None:
            return _wrong_after(known[1], number)
        if elsewhere is None:
            self.runs[account] = (first, number)
        else:
            self.earlier[account, elsewhere] = (first, number)
        return ""

    def joined(self) -> tuple[Numbers, list[str]]:
        """The numbers of each account over all partitions, and what is wrong with their order."""
        numbers, faults = dict(self.runs), []
        parted = {account: list(runs) for account, runs in self.closed.items()}
        for (account, _), run in self.earlier.items():
            parted.setdefault(account, []).append(run)
        for account, runs in parted.items():
            if account in self.runs:
                runs.append(self.runs[account])
            runs.sort()
            for (_, last), (first, _) in pairwise(runs):
                if fault := _wrong_after(last, first):
                    faults.append(f"{account}{self.infix}{first}: {fault}")
            numbers[account] = (runs[0][0], max(last for _, last in runs))
        return numbers, faults


class NumberCheck:
    """The numbers of all accounts; what is wrong goes to ``findings``.

    In this order: :meth:`read_before`; :meth:`in_journal` and :meth:`in_row` of everything; :meth:`compare`.
    """

    def __init__(self, log: Log, findings: Findings) -> None:
        self._log, self._findings = log, findings
        self._commands = NumberedTopic(COMMANDS, ":")
        self._alerts = NumberedTopic(ALERTS, ":alert:")
        self._issued: dict[int, Numbers] = {}
        """The last commands without a gap that the journal of each shard names."""
        self._issued_before: dict[str, list[tuple[int, int]]] = {}
        """Of accounts that may have moved: those before a gap, which the journal of another shard may fill."""
        self._moved: set[str] = set()
        """The accounts whose commands are named by journals of shards whose accounts have moved."""
        self._all_whole = True
        self._unnamed = 0
        """The commands that they count and do not name."""
        self._last_command: dict[str, int] = {}
        self._last_alert: dict[str, int] = {}
        """The last of each account by its row."""

    def read_before(self) -> None:
        """Read the topics before any journal is read."""
        for numbered in (self._commands, self._alerts):
            self._read(numbered)
            numbered.before, _ = numbered.joined()

    def in_journal(self, record: JournalRecord, *, whole: bool) -> Iterator[str]:
        """Add the commands that a journal record names; what is wrong with them. ``whole``: the journal is uncut."""
        self._unnamed += max(0, record.command_count - len(record.commands))
        self._all_whole = self._all_whole and whole
        issued = self._issued.setdefault(record.shard, {})
        for command in record.commands:
            account, _, text = command.rpartition(":")
            number, before = int(text or 0), issued.get(account)
            fault = _add_number(issued, account, number)
            if record.moves and (before is None or number > before[1]):
                self._moved.add(account)
                if before is not None and fault:
                    self._issued_before.setdefault(account, []).append(before)
                    issued[account] = (number, number)
                continue
            if whole and before is None and number != 1:
                fault = f"the first of its account, and not number 1: {number - 1} are missing"
            if fault and not self._unnamed:
                yield f"command {command}: {fault}"

    def in_row(self, account: str, row: AccountRow) -> None:
        """Note what an account's row counts."""
        if row.liquidation_sequence:
            self._last_command[account] = max(row.liquidation_sequence, self._last_command.get(account, 0))
        if row.alert_sequence:
            self._last_alert[account] = max(row.alert_sequence, self._last_alert.get(account, 0))

    def alerted(self, account: str, number: int) -> None:
        """Note the last alert of ``account``, which has no row."""
        self._last_alert[account] = number

    def compare(self, *, moved_meanwhile: bool = False) -> None:
        """Read the topics on; then what the journals and rows say was issued, against what they hold.

        ``moved_meanwhile``: accounts went from shard to shard between the looks at those, so their rows may be older
        or newer than the journals, and nothing is compared that needs both.
        """
        for numbered in (self._commands, self._alerts):
            self._read(numbered)
        commands, alerts = map(self._joined, (self._commands, self._alerts))
        if moved_meanwhile:
            return
        issued = self._joined_journals()
        self._compare_last("the journal names command", self._commands, commands, _lasts(issued), self._unnamed)
        self._compare_last("the account's row counts command", self._commands, commands, self._last_command)
        self._compare_last("the account's row counts alert", self._alerts, alerts, self._last_alert)

    def _joined_journals(self) -> Numbers:
        """The commands of each account that the journals of all shards name; what is wrong with their order."""
        runs: dict[str, list[tuple[int, int]]] = {}
        for numbers in self._issued.values():
            for account, run in numbers.items():
                runs.setdefault(account, []).append(run)
        for account, before in self._issued_before.items():
            runs[account] += before
        joined: Numbers = {}
        for account, parts in runs.items():
            parts.sort()
            joined[account] = (parts[0][0], max(last for _, last in parts))
            faults = [_wrong_after(last, first) for (_, last), (first, _) in pairwise(parts)]
            if self._all_whole and account in self._moved and parts[0][0] != 1:
                faults.append(f"the first is number {parts[0][0]}")
            for fault in filter(None, () if self._unnamed else faults):
                self._findings.differ(f"the commands of {account} in the journals of all shards: {fault}", JOURNAL)
        return joined

    def _joined(self, numbered: NumberedTopic) -> Numbers:
        numbers, faults = numbered.joined()
        for fault in faults:
            self._findings.differ(fault, numbered.topic)
        for account, (first, _) in numbers.items():
            if first != 1 and all(numbered.whole):
                fault = f"the first of its account, and not number 1: {first - 1} are missing"
                self._findings.differ(f"{account}{numbered.infix}{first}: {fault}", numbered.topic)
        return numbers

    def _read(self, numbered: NumberedTopic) -> None:
        """Read a topic's new records: each account's numbers go up by one, from 1."""
        topic = numbered.topic
        count = self._log.partitions(topic)
        numbered.grow(count)
        for partition in range(len(numbered.next), count):
            low, _ = self._log.watermarks(topic, partition)
            numbered.next.append(low)
            numbered.whole.append(not low)
        for partition in range(count):
            end = self._log.watermarks(topic, partition)[1]
            for message in self._log.read_range(topic, partition, numbered.next[partition], end):
                self._add(numbered, message, partition, count)
            numbered.next[partition] = max(end, numbered.next[partition])

    def _add(self, numbered: NumberedTopic, message: Record, partition: int, count: int) -> None:
        topic, offset = numbered.topic, message.offset()
        account, name = message.key_shown, message.header("ce_id")
        text = name.removeprefix(account + numbered.infix)
        if text == name or not text.isdigit():
            self._findings.differ(f"the ce_id {name!r} is not the account's {account!r}", topic, partition, offset)
            return
        self._findings.counts[f"records of {topic}"] += 1
        key = account.encode()
        is_home = partition_of(key, count) == partition
        if not is_home and all(partition_of(key, fewer) != partition for fewer in range(partition + 1, count)):
            self._findings.differ(f"{name} is in a partition that its key does not give", topic, partition, offset)
        if name != _name_in(message.value()):
            self._findings.differ(f"the value is not that of {name}", topic, partition, offset)
        if fault := numbered.add(account, int(text), None if is_home else partition):
            self._findings.differ(f"{name}: {fault}", topic, partition, offset)

    def _compare_last(
        self, who: str, numbered: NumberedTopic, numbers: Numbers, said: dict[str, int], room: int = 0
    ) -> None:
        """``room``: so many records may be in the topic that ``who`` counts and does not name."""
        whole, infix = all(numbered.whole), numbered.infix
        for account, last in said.items():
            _, there = numbers.get(account, (0, 0))
            if there < last and (there or whole):
                self._findings.differ(f"{who} {account}{infix}{last}, the topic ends at {there}", numbered.topic)
        complete = all(not self._log.watermarks(JOURNAL, shard)[0] for shard in range(require_shards(self._log)))
        for account, (_, last) in numbered.before.items():
            if last > said.get(account, 0) and (account in said or complete):
                room -= last - said.get(account, 0)
                if room >= 0:
                    continue
                self._findings.differ(
                    f"{account}{infix}{last} is in the topic; {who} up to {said.get(account, 0)}", numbered.topic
                )


def _add_number(runs: Numbers, account: str, number: int) -> str:
    """Add the next number of an account; what is wrong with it, if anything."""
    known = runs.get(account)
    if known is None:
        runs[account] = (number, number)
        return ""
    first, last = known
    runs[account] = (first, max(number, last))
    return _wrong_after(last, number)


def _wrong_after(last: int, number: int) -> str:
    """What is wrong with ``number`` after ``last``."""
    if number <= last:
        return f"a repeat, or out of order: it comes after number {last}"
    return "" if number == last + 1 else f"numbers {last + 1} to {number - 1} are missing before it"


class _Names(msgspec.Struct):
    command_id: str = ""
    alert_id: str = ""


_NAMES = Decoder[_Names](_Names)


def _name_in(data: bytes | None) -> str:
    """The id of the command or alert in ``data``, empty if there is none."""
    try:
        names = _NAMES(data)
    except DecodeError:
        return ""
    return names.command_id or names.alert_id


def _lasts(numbers: Numbers) -> dict[str, int]:
    return {account: last for account, (_, last) in numbers.items()}
