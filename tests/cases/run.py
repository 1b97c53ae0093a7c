"""Runs one case (see README.md) on the classes that decide: the shard, the mark book, the evaluation, the splitter.

Nothing here knows Kafka or a clock; each runner turns a case's steps into inputs and what came of them into plain
values, and :func:`differences` says what is not as expected.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import (
    AccountRow,
    Alert,
    EventFrame,
    FillColumns,
    JournalRecord,
    LiquidationCommand,
    Mark,
    MarkFrame,
    OraclePrice,
    TransferColumns,
)
from schemas.parameters import OracleParameters, Parameter
from schemas.topics import TRADES, TRANSFERS
from streams.clearing.shard import Shard
from streams.errors import InputError
from streams.margin.evaluate import evaluate_request
from streams.margin.parameters import RiskParameters
from streams.oracle.marks import MarkBook
from streams.routing.split import Splitter
from streams.routing.trade_ids import TradeIds

START_US = 1_700_000_000_000_000
HERE = Path(__file__).parent

Case = dict[str, Any]
Outcome = dict[str, Any]


def read_case(path: Path) -> Case:
    """The case in a file."""
    case: Case = json.loads(path.read_text(encoding="utf-8"))
    return case


def outcome(case: Case) -> Outcome:
    """What came of a case of any kind but ``stack``."""
    return _RUNNERS[case["kind"]](case)


def differences(case: Case, got: Outcome) -> Iterator[str]:
    """What of ``got`` is not as the case expects, a sentence each."""
    for name, wanted in case["expected"].items():
        found = got.get(name)
        if not _is_as(wanted, found):
            yield f"{name}: expected {wanted}, got {found}"


def _is_as(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, dict) and wanted.keys() == {"at_least"}:
        return found is not None and float(found) >= float(wanted["at_least"])
    if isinstance(wanted, dict) and wanted.keys() == {"not"}:
        return bool(found != wanted["not"])
    return bool(found == wanted)


# --- the shard -------------------------------------------------------------------------------------------------------


class _ShardRun:
    def __init__(self, case: Case) -> None:
        self._rules = RiskParameters.build(msgspec.convert(case["parameters"], list[Parameter]))
        self._shard = Shard(0, self._rules)
        self._got: Outcome = {"commands": [], "alerts": [], "unapplied": 0}
        self._got |= dict.fromkeys(("rows_decode", "journal_decodes", "commands_decode", "alerts_decode"), True)

    def run(self, case: Case) -> Outcome:
        for step in case["steps"]:
            self._give(step)
            self._take()
        return self._got | self._state()

    def _give(self, step: dict[str, Any]) -> None:
        shard, time = self._shard, START_US + 1000 * step["at_ms"]
        appended = START_US + 1000 * step.get("appended_ms", step["at_ms"])
        if "marks" in step:
            shard.apply_marks(shard.marks_next, _mark_frame(step["marks"], time), appended)
        elif "parameters" in step:
            try:
                for record in msgspec.convert(step["parameters"], list[Parameter]):
                    self._rules = self._rules.with_record(record)
                shard.apply_parameters(shard.parameters_next, self._rules)
            except InputError as error:
                self._got["parameters_refused"] = str(error)
            shard.decide_touched(everything=True)
        else:
            shard.apply_events(shard.events_next, _event_frame(step, time), appended)
            shard.decide_touched()

    def _take(self) -> None:
        got, output = self._got, self._shard.take("case", with_open_interest=True)
        got["commands"] += [command.command_id for command in output.commands]
        got["alerts"] += [alert.kind for alert in output.alerts]
        got["unapplied"] += len(output.unapplied)
        got["rows_decode"] &= all(row is None or _decodes(AccountRow, row) for row in output.rows.values())
        got["commands_decode"] &= all(_decodes(LiquidationCommand, encode(command)) for command in output.commands)
        got["alerts_decode"] &= all(_decodes(Alert, encode(alert)) for alert in output.alerts)
        got["journal_decodes"] &= _decodes(JournalRecord, encode(output.journal))

    def _state(self) -> Outcome:
        portfolio, accounts = self._shard.portfolio, self._shard.accounts
        rows = {
            account: {margin: group.row for margin, group in state.groups.items()}
            for account, state in accounts.items()
        }
        return {
            "balances": {
                account: {margin: portfolio.balances(row) for margin, row in groups.items()}
                for account, groups in rows.items()
            },
            "positions": {
                account: {margin: [list(held) for held in portfolio.positions(row)] for margin, row in groups.items()}
                for account, groups in rows.items()
            },
            "suspended": sorted(account for account, state in accounts.items() if state.suspended),
            "command_count": len(self._got["commands"]),
        }


def _mark_frame(marks: list[dict[str, Any]], time: int) -> MarkFrame:
    return MarkFrame(
        time=time,
        full=True,
        marks=tuple(
            Mark(
                symbol=mark["symbol"],
                price=mark["price"],
                status=mark.get("status", "live"),
                publish_time=time - 1000 * mark.get("age_ms", 0),
            )
            for mark in marks
        ),
    )


def _event_frame(step: dict[str, Any], time: int) -> EventFrame:
    fills, transfers = step.get("fills", []), step.get("transfers", [])
    return EventFrame(
        time=time,
        fills=FillColumns(
            account=[fill["account"] for fill in fills],
            margin=[fill.get("margin", "cross") for fill in fills],
            symbol=[fill["symbol"] for fill in fills],
            quantity=[fill["quantity"] for fill in fills],
            price=[fill["price"] for fill in fills],
            fee=[fill.get("fee", "0") for fill in fills],
            order_id=[fill.get("order_id", "o") for fill in fills],
            trade_id=[fill.get("trade_id", 1) for fill in fills],
        ),
        transfers=TransferColumns(
            account=[transfer["account"] for transfer in transfers],
            margin=[transfer.get("margin", "cross") for transfer in transfers],
            asset=[transfer["asset"] for transfer in transfers],
            amount=[transfer["amount"] for transfer in transfers],
            sequence=[transfer["sequence"] for transfer in transfers],
            transfer_id=[transfer.get("transfer_id", "t") for transfer in transfers],
        ),
    )


def _decodes(kind: Any, data: bytes) -> bool:
    try:
        Decoder[Any](kind)(data)
    except DecodeError:
        return False
    return True


# --- the others ------------------------------------------------------------------------------------------------------


def _oracle(case: Case) -> Outcome:
    rules = msgspec.convert(case["rules"], OracleParameters)
    book, marks, sequences = MarkBook(), [], dict[str, int]()
    book.set_rules({rules.symbol: rules})
    for step in case["steps"]:
        time = START_US + 1000 * step["at_ms"]
        if "price" in step:
            source = step["source"]
            sequences[source] = step.get("sequence", sequences.get(source, 0) + 1)
            price = OraclePrice(
                source=source,
                symbol=rules.symbol,
                price=step["price"],
                confidence=step.get("confidence"),
                sequence=sequences[source],
                publish_time=step.get("publish_time", time),
            )
            book.accept(price, time)
        mark = next(iter(book.form_all(time)), None)
        if "show" in step:
            marks.append([step["show"], mark and mark.price, mark and mark.status])
    return {"marks": marks}


def _evaluate(case: Case) -> Outcome:
    try:
        group: Outcome = json.loads(evaluate_request(json.dumps(case["request"]).encode()))["groups"][0]
    except (DecodeError, InputError) as error:
        return {"refused": str(error)}
    return group


def _router(case: Case) -> Outcome:
    splitter, memory, refused = Splitter(case.get("shards", 1)), dict[int, TradeIds](), 0
    for record in case["records"]:
        topic = {"trades": TRADES, "transfers": TRANSFERS}[record["topic"]]
        data = record["bytes"].encode() if "bytes" in record else json.dumps(record["value"]).encode()
        try:
            splitter.add(topic, data, memory.setdefault(record.get("partition", 0), TradeIds()))
        except DecodeError:
            refused += 1
    frames, counts = splitter.take(START_US)
    told = {found["account"] for _, data in frames for found in json.loads(data)["suspensions"]}
    return {
        "dead_letters": refused,
        "fills": counts.fills,
        "repeats": counts.repeats,
        "accounts_told": bool(told),
        "told": sorted(told),
    }


_RUNNERS: dict[str, Callable[[Case], Outcome]] = {
    "shard": lambda case: _ShardRun(case).run(case),
    "oracle": _oracle,
    "evaluate": _evaluate,
    "router": _router,
}
