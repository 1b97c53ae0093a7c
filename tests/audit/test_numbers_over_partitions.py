"""The numbers of commands over a topic that gets more partitions: an account's go on where its key belongs then."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import AccountRow, JournalRecord, Range
from schemas.partitioning import partition_of
from schemas.topics import COMMANDS
from streams.audit.findings import Findings
from streams.audit.numbers import NumberCheck
from tests.given_log import GivenLog

ACCOUNTS = [f"account-{number}" for number in range(6)]


@dataclass(frozen=True)
class Written:
    """A command as it was written, when the topic had ``partitions``."""

    account: str
    number: int
    partitions: int

    @property
    def partition(self) -> int:
        return partition_of(self.account.encode(), self.partitions)


@st.composite
def histories(draw: st.DrawFn) -> list[Written]:
    """Commands in the order in which they were written, each account's from 1, while the topic grows."""
    written, last, partitions = [], dict.fromkeys(ACCOUNTS, 0), draw(st.integers(1, 3))
    for account, growth in draw(
        st.lists(st.tuples(st.sampled_from(ACCOUNTS), st.sampled_from([0, 0, 0, 1, 2])), min_size=1, max_size=25)
    ):
        partitions += growth
        last[account] += 1
        written.append(Written(account, last[account], partitions))
    return written


def findings_of(written: list[Written], *, read_after: int, grown_to: int) -> list[str]:
    """What is found when the topic is read after so many commands, and again after all of them."""
    log, findings = GivenLog(), Findings()
    check = NumberCheck(log, findings)
    for place, command in enumerate(written):
        if place == read_after:
            check.read_before()
        log.grow(COMMANDS, command.partitions)
        name = f"{command.account}:{command.number}"
        value = f'{{"command_id":"{name}"}}'.encode()
        headers = [("ce_id", name.encode())]
        log.append_raw(COMMANDS, command.account.encode(), value, headers, command.partition)
    log.grow(COMMANDS, grown_to)
    if read_after >= len(written):
        check.read_before()
    names = dict.fromkeys(f"{command.account}:{command.number}" for command in sorted(written, key=_number))
    nothing = Range(first=0, next=0)
    record = JournalRecord(
        kind="commit",
        shard=0,
        claim=0,
        sequence=1,
        previous=0,
        events=nothing,
        marks=nothing,
        parameters=nothing,
        commands=tuple(names),
        command_count=len(names),
    )
    list(check.in_journal(record, whole=False))
    for account in ACCOUNTS:
        last = max((command.number for command in written if command.account == account), default=0)
        check.in_row(account, cast(AccountRow, SimpleNamespace(liquidation_sequence=last, alert_sequence=0)))
    check.compare()
    return [str(difference) for difference in findings.differences]


def _number(command: Written) -> int:
    return command.number


@given(histories(), st.integers(0, 25), st.integers(0, 3))
def test_numbers_that_go_on_in_another_partition_are_right(written: list[Written], read_after: int, more: int) -> None:
    assert findings_of(written, read_after=read_after, grown_to=written[-1].partitions + more) == []


@given(histories(), st.data())
def test_one_that_is_gone_or_there_twice_is_named(written: list[Written], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(written) - 1))
    last = max(command.number for command in written if command.account == written[place].account)
    grown_to = written[-1].partitions
    twice = [*written, written[place]]
    assert findings_of(twice, read_after=0, grown_to=grown_to), "there twice"
    if written[place].number < last:
        gone = [command for command in written if command is not written[place]]
        assert findings_of(gone, read_after=0, grown_to=grown_to), "gone"


def test_a_partition_that_no_count_gives_is_named() -> None:
    key = next(account for account in ACCOUNTS if all(partition_of(account.encode(), count) != 1 for count in (2, 3)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Written, "partition", 1)
        (difference,) = findings_of([Written(key, 1, 3)], read_after=1, grown_to=3)
    assert "is in a partition that its key does not give" in difference
