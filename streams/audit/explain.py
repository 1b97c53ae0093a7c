"""Explain: why a command was issued, from the logs alone, term by term.

The account is set up as the changelog says it was before the commit that issued the command, that one commit is run
again, and the group is taken down as it stood at the decision. What is shown is then added up and planned anew, and has
to give the command's evidence, its orders and its bytes.
"""

from decimal import Decimal, localcontext
from typing import Any

import msgspec
import orjson

from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import JournalRecord, LiquidationCommand
from schemas.partitioning import partition_of
from schemas.topics import ACCOUNTS, COMMANDS, EVENTS, JOURNAL, MARKS, PARAMETERS, PROGRESS
from streams.audit.decision import Decision, GroupSnapshot, decision_of, order_text
from streams.audit.findings import bytes_differ
from streams.audit.outputs import row_of
from streams.audit.progress import Progress, silent
from streams.audit.replay import events_needed, marks_needed
from streams.audit.rerun import Rerun
from streams.broker.records import Log
from streams.clearing.shard import Output
from streams.errors import AuditError
from streams.feeds.journal import JournalEntry, journal_entry, read_journal
from streams.feeds.parameters import ParameterHistory
from streams.margin.fixed_point import EXACT, format_decimal
from streams.margin.health import evaluate, symbols_of

_COMMAND = Decoder[LiquidationCommand](LiquidationCommand)
_ZERO = Decimal(0)
_KINDS = {
    MARKS: "mark frame", EVENTS: "event frame", PARAMETERS: "parameter record", PROGRESS: "progress record",
}  # fmt: skip


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """A command, where it and its commit stand, the decision (None if it cannot be rebuilt), and what disagrees."""

    command: LiquidationCommand
    topic: str
    partition: int
    offset: int
    journal: JournalRecord
    journal_offset: int
    decision: Decision | None
    differences: list[str]
    notes: list[str]

    @property
    def passed(self) -> bool:
        return not self.differences

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, numbers as decimal strings."""
        plain = msgspec.to_builtins(self, builtin_types=(Decimal,))
        return {"passed": self.passed, **orjson.loads(orjson.dumps(plain, default=format_decimal))}


def explain(log: Log, command_id: str, progress: Progress = silent) -> Explanation:
    """Why the command was issued.

    Raises:
        AuditError: there is no such command, or the journal does not hold its commit.
        BrokerError: Kafka does not answer.
    """
    return _Explainer(log, command_id, progress).run()


class _Explainer:
    def __init__(self, log: Log, command_id: str, progress: Progress) -> None:
        self._log, self._id, self._progress = log, command_id, progress
        self._snapshot: GroupSnapshot | None = None
        self._notes: list[str] = []

    def run(self) -> Explanation:
        self._find_command()
        self._journal = self._find_commit()
        self._parameters = ParameterHistory(self._log)
        differences = self._run_again()
        decision = None
        if self._snapshot is not None:
            decision = decision_of(
                self._snapshot, self._command.evidence.marks, self._parameters, attempt=self._command.attempt or 0
            )
            differences += self._check(decision)
        assert self._journal.record is not None
        return Explanation(
            command=self._command,
            topic=COMMANDS,
            partition=self._partition,
            offset=self._offset,
            journal=self._journal.record,
            journal_offset=self._journal.offset,
            decision=decision,
            differences=differences,
            notes=self._notes,
        )

    # --- finding -----------------------------------------------------------------------------------------------------

    def _find_command(self) -> None:
        account, _, number = self._id.rpartition(":")
        if not account or not number.isdigit():
            raise AuditError(f"{self._id!r} is no command id: it is ACCOUNT:NUMBER, such as acct-17:3")
        self._account = account
        self._partition = partition_of(account.encode(), self._log.partitions(COMMANDS))
        low, end = self._log.watermarks(COMMANDS, self._partition)
        for message in self._log.read_range(COMMANDS, self._partition, low, end):
            if message.key() == account.encode() and message.header("ce_id") == self._id:
                self._offset, self._data = message.offset(), message.value() or b""
                try:
                    self._command = _COMMAND(self._data)
                except DecodeError as error:
                    raise AuditError(f"{COMMANDS}[{self._partition}]@{self._offset} is no command: {error}") from None
                return
            self._progress(f"looking for {self._id}", message.offset() - low, end - low)
        raise AuditError(
            f"no command {self._id} in {COMMANDS}[{self._partition}] from offset {low} on; "
            + ("what came before is gone" if low else "none was ever issued")
        )

    def _find_commit(self) -> JournalEntry:
        """The journal record that names the command: a search by marks, which every record takes further or leaves."""
        evidence = self._command.evidence
        low, end = self._log.watermarks(JOURNAL, evidence.shard)
        first, beyond = low, end
        while beyond - first > 64:
            middle = (first + beyond) // 2
            entry = self._next_entry(middle, beyond)
            if entry is None or entry.record is None or entry.record.marks.next > evidence.marks_offset:
                beyond = middle
            else:
                first = middle
        for entry in read_journal(self._log, evidence.shard, first, end):
            if entry.record is not None and self._may_name(entry.record):
                return entry
            if entry.record is not None and entry.record.marks.first > evidence.marks_offset + 1:
                break
        raise AuditError(
            f"{JOURNAL}[{evidence.shard}] from offset {low} on names no commit of {self._id}"
            + ("; what came before is gone" if low else ": the command does not come from this pipeline")
        )

    def _may_name(self, record: JournalRecord) -> bool:
        """Whether ``record`` names the command, or is the one that covers its marks and names not all of its own."""
        if self._id in record.commands:
            return True
        covers = record.marks.first <= self._command.evidence.marks_offset + 1 <= record.marks.next
        return covers and record.command_count > len(record.commands)

    def _next_entry(self, first: int, end: int) -> JournalEntry | None:
        return next(read_journal(self._log, self._command.evidence.shard, first, end), None)

    def _row_before(self, sequence: int) -> bytes | None:
        """The account's row as of the commit ``sequence``."""
        shard, key, data = self._command.evidence.shard, self._account.encode(), None
        low, end = self._log.watermarks(ACCOUNTS, shard)
        for message in self._log.read_range(ACCOUNTS, shard, low, end):
            if message.key() == key:
                row = row_of(message)
                if row is not None and row.sequence <= sequence:
                    data = row.value
            self._progress("looking for the account's row", message.offset() - low, end - low)
        return data

    # --- running again -----------------------------------------------------------------------------------------------

    def _run_again(self) -> list[str]:
        """Run the commit again for this account; what differs from the command."""
        record, shard = self._journal.record, self._command.evidence.shard
        assert record is not None
        message = next(self._log.read_range(JOURNAL, shard, record.previous, record.previous + 1), None)
        before = None if message is None else journal_entry(message)
        if before is None or before.record is None:
            return [f"{JOURNAL}[{shard}]@{record.previous}, the record before the commit, is gone"]
        events_low, marks_low = self._log.watermarks(EVENTS, shard)[0], self._log.watermarks(MARKS, 0)[0]
        if marks_needed(before.record) < marks_low or events_needed(before.record) < events_low:
            self._notes.append(
                f"{MARKS} begins at offset {marks_low} and {EVENTS}[{shard}] at {events_low}: the inputs of the "
                "decision are gone, only the command's own evidence is left"
            )
            return []
        row = self._row_before(before.record.sequence)
        rerun = Rerun(
            self._log,
            shard,
            self._parameters,
            known={self._account},
            observe=lambda topic, at: self._look(rerun, topic, at),
        )
        rerun.begin(before.record, before.offset, {} if row is None else {self._account: row})
        output = rerun.commit(record, self._journal.offset)
        differences = self._compare_command(output)
        if differences and row is None:
            self._notes.append(
                "the changelog holds no row of the account from before the commit: if it was not new then, the row is "
                "compacted away, and the group is not whole"
            )
        return differences

    def _compare_command(self, output: Output) -> list[str]:
        given = next((command for command in output.commands if command.command_id == self._id), None)
        if given is None:
            return ["run again, the commit does not give this command"]
        wanted = encode(given)
        if wanted != self._data:
            return [f"run again, the commit gives another: {bytes_differ(wanted, self._data)}"]
        return []

    def _look(self, rerun: Rerun, topic: str, offset: int) -> None:
        """Take a snapshot of the group if the step that has just been made issued the command."""
        shard = rerun.shard
        state = shard.accounts.get(self._account)
        group = None if state is None else state.groups.get(self._command.margin)
        if self._snapshot is not None or group is None or group.command is None:
            return
        if self._id in (group.command.command_id, group.command.withdrawn_by):
            kind = _KINDS[topic]
            partition = shard.shard if topic == EVENTS else 0
            held = shard.portfolio.group(group.row)
            needed = symbols_of(held, shard.portfolio.marks, shard.parameters)
            self._snapshot = GroupSnapshot(
                f"{kind} {topic}[{partition}]@{offset}",
                shard.clock_us,
                held,
                dict(shard.portfolio.marks),
                frozenset(symbol for symbol in needed if not shard.has_live(symbol)),
                dict(rerun.marks),
                shard.parameters,
                shard.parameters_next,
                (shard.events_next - 1, shard.marks_next - 1),
            )

    # --- checking ----------------------------------------------------------------------------------------------------

    def _check(self, decision: Decision) -> list[str]:
        """What of the decision, added up from the terms shown, is not what the command says."""
        assert self._snapshot is not None
        snapshot, command, evidence = self._snapshot, self._command, self._command.evidence
        health = evaluate(snapshot.group, snapshot.prices, snapshot.parameters, stale=snapshot.stale)
        with localcontext(EXACT):
            equity = sum((term.amount for term in decision.equity_terms), _ZERO)
            maintenance = sum((term.amount for term in decision.maintenance_terms), _ZERO)
        stated = (
            ("equity", evidence.equity, format_decimal(equity)),
            ("maintenance_margin", evidence.maintenance_margin, format_decimal(maintenance)),
            ("health_ratio", evidence.health_ratio, format_decimal(health.health_ratio or _ZERO)),
            ("debt", evidence.debt, format_decimal(decision.debt)),
            ("unweighted_equity", str(evidence.unweighted_equity), format_decimal(decision.unweighted_equity)),
            ("stale_bounds", str(evidence.stale_bounds), str(decision.stale_bounds)),
            ("events_offset", str(evidence.events_offset), str(snapshot.offsets[0])),
            ("marks_offset", str(evidence.marks_offset), str(snapshot.offsets[1])),
            ("parameters_version", str(evidence.parameters_version), str(snapshot.parameters_next - 1)),
            ("marks", str(evidence.marks), str({mark.symbol: mark.price for mark in decision.marks})),
            ("stage", command.stage, decision.stage),
            ("orders", str([order_text(order) for order in command.orders]), str(decision.orders)),
        )
        differences = [
            f"{name}: the command says {said}, the logs give {given}" for name, said, given in stated if said != given
        ]
        if command.stage == "withdrawn":
            if decision.stage != "withdrawn":
                differences.append("the group was not healthy at its target")
        elif not health.liquidatable:
            differences.append("the group was not below its requirement")
        return differences
