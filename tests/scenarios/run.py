"""The scenarios of this folder: what each says of itself, its whole output, and what of that output it is about.

A file begins with comments: a sentence that says what it shows, then ``run:`` (the command), ``expected:`` (JSON, what
must come of it, in the words of :func:`outcome`) and ``same commands:`` (it claims so for other numbers of processes).
Further, ``seen in:`` names the public report of such a failure elsewhere, ``why:`` says why what comes here is right.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, EVENTS, MARKS, PARAMETERS, dead_letter_topic
from streams.memory.pipeline import BrokenProcess, WrittenRecord
from streams.memory.scenario import ScenarioOptions, run_scenario

HERE = Path(__file__).parent
_COUNTS = ("shards", "partitions", "routers", "engines", "until_ms")

Outcome = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScenarioFile:
    """A file and what its comments say."""

    path: Path
    says: str
    flags: Sequence[str]
    expected: Outcome
    same_commands: bool

    @classmethod
    def read(cls, path: Path) -> "ScenarioFile":
        """The scenario in a file."""
        comments = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        said = dict(comment.split(": ", 1) for comment in comments[1:])
        command, name, file, *flags = shlex.split(said["run"])
        assert (command, name, file) == ("margin-clearing", "scenario", path.name)
        return cls(path, comments[0], flags, json.loads(said["expected"]), "same commands" in said)

    @property
    def expected_path(self) -> Path:
        """Where the whole output stands."""
        return self.path.with_suffix(".expected.jsonl")

    def run(self, **others: int) -> list[WrittenRecord]:
        """What the pipeline writes, with ``others`` instead of the options of the command."""
        given: dict[str, Any] = {}
        for flag, value in zip(self.flags[::2], self.flags[1::2], strict=True):
            name = flag.removeprefix("--").replace("-", "_")
            given[name] = int(value) if name in _COUNTS else ScenarioOptions.shown_topics(value)
        return list(
            run_scenario(self.path.read_bytes(), self.path.name, ScenarioOptions(**given | others), _refuse_broken)
        )


def _refuse_broken(broken: BrokenProcess) -> None:
    raise broken.error


def scenario_files() -> list[ScenarioFile]:
    """Every scenario of this folder."""
    return [ScenarioFile.read(path) for path in sorted(HERE.glob("*.jsonl")) if ".expected" not in path.name]


def outcome(records: Sequence[WrittenRecord]) -> Outcome:
    """What ``records`` come to: by topic what was written, and of accounts and marks the last state."""
    rows = {record.key: record.value for record in records if record.topic == ACCOUNTS and record.value is not None}
    groups = {account: {group["margin"]: group for group in row["groups"]} for account, row in sorted(rows.items())}
    marks = [mark for record in records if record.topic == MARKS and record.value for mark in record.value["marks"]]
    return {
        "commands": [record.value["command_id"] for record in records if record.topic == COMMANDS],
        "command_count": sum(record.topic == COMMANDS for record in records),
        "orders": [
            [order["symbol"], order["order_side"], order["quantity"]]
            for record in records
            if record.topic == COMMANDS
            for order in record.value["orders"]
        ],
        "alerts": [record.value["kind"] for record in records if record.topic == ALERTS],
        "suspended": [account for account, row in sorted(rows.items()) if row["status"] == "suspended"],
        "balances": {
            account: {margin: group["balances"] for margin, group in by_margin.items()}
            for account, by_margin in groups.items()
        },
        "positions": {
            account: {
                margin: [[held["symbol"], held["quantity"]] for held in group["positions"]]
                for margin, group in by_margin.items()
            }
            for account, by_margin in groups.items()
        },
        "dead_letters": sum(record.topic.endswith(".dlq") for record in records),
        "unapplied": sum(record.topic == dead_letter_topic(EVENTS) for record in records),
        "parameters_refused": sum(record.topic == dead_letter_topic(PARAMETERS) for record in records),
        "marks": {mark["symbol"]: [mark["price"], mark["status"]] for mark in marks},
    }


def differences(expected: Outcome, got: Outcome) -> Iterator[str]:
    """What of ``got`` is not as expected, a sentence each. ``{"at_least": n}``, ``{"not": value}`` and ``{"contains":
    [values]}`` stand for what is at least, is anything but, and has among others."""
    for name, wanted in expected.items():
        if not _is_as(wanted, got[name]):
            yield f"{name}: expected {wanted}, got {got[name]}"


def _is_as(wanted: Any, actual: Any) -> bool:
    if isinstance(wanted, dict) and wanted.keys() == {"at_least"}:
        return bool(actual >= wanted["at_least"])
    if isinstance(wanted, dict) and wanted.keys() == {"not"}:
        return bool(actual != wanted["not"])
    if isinstance(wanted, dict) and wanted.keys() == {"contains"}:
        return set(wanted["contains"]) <= set(actual)
    return bool(actual == wanted)
