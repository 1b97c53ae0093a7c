"""What must be true after any number of faults, judged from the records alone.

It shares no line with the engine, the router or the tables: the ledger and the verdicts are recomputed from the
exchange's records in plain decimals (:mod:`streams.demo.reference`), everything else is counting. Each check answers
with what it found wrong; nothing is a pass.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from schemas import topics
from streams.demo.frames import first_rows, of_account
from streams.demo.reference import (
    FeesTold,
    MarkLog,
    ParameterLog,
    ReferenceGroup,
    ReferenceLedger,
    evaluate,
    floor_18,
    ledger_of,
    symbols_needed,
)
from tests.faults.load import NAMED_BY_POISON
from tests.faults.moved import MovedLedger, ShardProgress
from tests.faults.records import RunRecords, TopicRecord

Differences = list[str]
LAST = 2**62
WITHOUT_ORDERS = {"insolvent", "unsellable", "undecided"}


# --- what comes in comes through, once -------------------------------------------------------------------------------


def every_trade_is_routed_once(records: RunRecords) -> Differences:
    """The fills in the frames are the two sides of every trade whose id rose, each in its account's shard.

    While accounts move, a fill may come to the shard that its account leaves and to the one that it goes to.
    """
    expected: Counter[tuple[Any, ...]] = Counter()
    for trade in _new_trades(records):
        for side, buys in (("taker", "buy"), ("maker", "sell")):
            quantity = Decimal(trade["quantity"]) * (1 if trade["aggressor_side"] == buys else -1)
            account = trade[side]["account"]
            expected[account, trade["symbol"], trade["trade_id"], quantity] += 1
    routed: Counter[tuple[Any, ...]] = Counter()
    for record, frame in _frames(records):
        fills = frame["fills"]
        for account, symbol, number, quantity in zip(
            fills["account"], fills["symbol"], fills["trade_id"], fills["quantity"], strict=True
        ):
            routed[record.partition, account, symbol, number, Decimal(quantity)] += 1
    return _misrouted(records, "fill", expected, routed)


def every_transfer_and_report_is_routed_once(records: RunRecords) -> Differences:
    """The transfers and reports in the frames are those of the topics, repeats included."""
    differences: Differences = []
    for topic, kind, name in ((topics.TRANSFERS, "transfers", "sequence"), (topics.REPORTS, "reports", "order_id")):
        expected: Counter[tuple[Any, ...]] = Counter()
        for _, value in records.readable(topic):
            expected[value["account"], value[name]] += 1
        routed: Counter[tuple[Any, ...]] = Counter()
        for record, frame in _frames(records):
            for account, number in zip(frame[kind]["account"], frame[kind][name], strict=True):
                routed[record.partition, account, number] += 1
        differences += _misrouted(records, kind, expected, routed)
    return differences


def _misrouted(
    records: RunRecords, what: str, expected: Counter[tuple[Any, ...]], routed: Counter[tuple[Any, ...]]
) -> Differences:
    """What is not in the frames of its account's shard; ``routed`` begins with the shard, both go on with the account.

    Where accounts have moved it must be in the frames of a shard that its account has belonged to, and may be in
    several; that it is applied once, the ledger says.
    """
    if not records.has_moved:
        return _unequal(what, Counter({(records.home(row[0]), *row): n for row, n in expected.items()}), routed)
    at_home = {row[1:] for row in routed if row[0] in records.homes(row[1])}
    lost = [f"{what} {row}: lost" for row in expected if row not in at_home]
    return lost + [
        f"{what} {row}: made up" for row in routed if row[1:] not in expected or row[0] not in records.homes(row[1])
    ]


def ledger_equals_recomputation(records: RunRecords) -> Differences:
    """Balances, positions and transfer sequences of every account are those of a recomputation from the inputs."""
    transfers = [value for _, value in records.readable(topics.TRANSFERS)]
    ledger = ledger_of(_parameters(records).as_of(LAST), transfers, [v for _, v in records.readable(topics.TRADES)])
    groups = _fees(records).paid_by_all(ledger)
    expected = {name: contents for name, group in groups.items() if any(contents := group.contents())}
    actual, sequences = {}, {}
    for account, row in _rows(records).items():
        sequences[account] = row["transfer_sequence"]
        for group in row["groups"]:
            balances = {asset: Decimal(amount) for asset, amount in group["balances"].items()}
            held = {p["symbol"]: (Decimal(p["quantity"]), Decimal(p["cash"])) for p in group["positions"]}
            if balances or held:
                actual[account, group["margin"]] = (balances, held)
    differences = [
        f"{account} {margin}: changelog {actual.get((account, margin))}, recomputed {expected.get((account, margin))}"
        for account, margin in sorted({*expected, *actual})
        if expected.get((account, margin)) != actual.get((account, margin))
    ]
    highest: dict[str, int] = {}
    for transfer in transfers:
        highest[transfer["account"]] = max(transfer["sequence"], highest.get(transfer["account"], -1))
    return differences + [
        f"{account}: transfer sequence {sequences.get(account)}, the last transfer has {number}"
        for account, number in sorted(highest.items())
        if sequences.get(account) != number
    ]


def poison_is_in_the_dead_letters(records: RunRecords) -> Differences:
    """Every record that cannot be read is in its dead-letter topic once, as it came, and nothing else is.

    Routers and the oracle write letters outside of transactions: what they cannot read is there at least once.
    """
    differences: Differences = []
    for topic in (topic for topic in topics.CONTRACT if topic.dead_letters):
        poison = {(record.partition, record.offset): record for record in records.of(topic.name) if record.is_poison}
        letters: Counter[tuple[int, int]] = Counter()
        for letter in records.of(topic.dlq):
            place = int(letter.headers["dlq.partition"]), int(letter.headers["dlq.offset"])
            letters[place] += 1
            original = poison.get(place)
            if original is None:
                differences.append(f"{topic.dlq}: a letter of {place}, which could be read")
            elif (letter.key, letter.value) != (original.key, original.value):
                differences.append(f"{topic.dlq}: the letter of {place} is not as it came")
        for place in poison:
            if not letters[place]:
                differences.append(f"{topic.name} {place}: lost, it is not in the dead letters")
            elif letters[place] > 1 and topic.name not in (topics.PRICES, *topics.INPUTS):
                differences.append(f"{topic.name} {place}: repeated, {letters[place]} times in the dead letters")
    return differences


def groups_have_read_everything(records: RunRecords) -> Differences:
    """The committed offsets are behind the last record, and the engine's are where its journal says.

    A router that ends says up to where it has routed by frames without events, which no engine may be left to read.
    """
    differences: Differences = []
    for (topic, partition), offset in sorted(records.committed.items()):
        held = records.of(topic, partition)
        if topic == topics.EVENTS:
            held = [record for record in held if record.is_poison or _has_events(record.json())]
        end = max((record.offset + 1 for record in held), default=0)
        if offset < end:
            differences.append(f"{topic}[{partition}]: committed {offset}, the last record is {end - 1}")
        journal = records.of(topics.JOURNAL, partition) if topic == topics.EVENTS else []
        if journal and journal[-1].json()["events"][1] != offset:
            differences.append(f"{topic}[{partition}]: committed {offset}, the journal says {journal[-1].json()}")
    return differences


def _has_events(frame: Any) -> bool:
    kinds = ("transfers", "fills", "reports")
    if any(frame.get(word) for word in ("departure", "arrival", "arrived")):
        return True
    return bool(frame.get("suspensions")) or any(frame[kind]["account"] for kind in kinds if kind in frame)


# --- what goes out goes out once, and rightly ------------------------------------------------------------------------


def commands_are_unique_and_gapless(records: RunRecords) -> Differences:
    """Per account the sequences are 1, 2, 3 in the order of the log; the row and the journal know of each."""
    differences: Differences = []
    sequences: dict[str, list[int]] = defaultdict(list)
    for _, command in records.readable(topics.COMMANDS):
        sequences[command["account"]].append(command["sequence"])
        if command["command_id"] != f"{command['account']}:{command['sequence']}":
            differences.append(f"{command['command_id']} is not its account and sequence")
    rows = _rows(records)
    for account in sorted({*sequences, *rows}):
        numbers = sequences.get(account, [])
        last = rows.get(account, {}).get("liquidation_sequence", 0)
        if numbers != list(range(1, last + 1)):
            differences.append(f"{account}: commands {numbers}, its row says {last}")
    journaled = Counter(command_id for _, entry in records.readable(topics.JOURNAL) for command_id in entry["commands"])
    issued = Counter(command["command_id"] for _, command in records.readable(topics.COMMANDS))
    return differences + _unequal("command", journaled, issued)


def fees_are_booked_once(records: RunRecords) -> Differences:
    """Every fill of a command's order that states fees has paid them, once, and nothing else has."""
    orders = {
        order["order_id"]: order for _, each in records.readable(topics.COMMANDS) for order in each.get("orders", ())
    }
    expected: Counter[tuple[str, ...]] = Counter()
    for trade in _new_trades(records):
        order = orders.get(trade["taker"]["order_id"], {})
        if any(Decimal(order.get(name, "0")) for name in ("liquidation_fee", "insurance_fee")):
            expected[trade["taker"]["order_id"], trade["price"], trade["quantity"]] += 1
    booked: Counter[tuple[str, ...]] = Counter()
    for _, alert in records.readable(topics.ALERTS):
        if (fees := alert.get("fees")) is not None:
            booked[fees["order_id"], fees["price"], fees["quantity"].removeprefix("-")] += 1
    return _unequal("fees of fill", expected, booked)


def alerts_are_unique_and_gapless(records: RunRecords) -> Differences:
    """Per account the alerts are numbered 1, 2, 3 in the order of the log, as many as its row says."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for _, alert in records.readable(topics.ALERTS):
        numbers[alert["account"]].append(int(alert["alert_id"].rpartition(":")[2]))
    return [
        f"{account}: alerts {numbers.get(account, [])}, its row says {row['alert_sequence']}"
        for account, row in sorted(_rows(records).items())
        if numbers.get(account, []) != list(range(1, row["alert_sequence"] + 1))
    ]


def every_command_is_justified(records: RunRecords) -> Differences:
    """At the offsets of its evidence the group was below maintenance at live marks, with the figures it states; that of
    a command that is withdrawn was not."""
    differences: Differences = []
    parameters = _parameters(records)
    fees = _fees(records)
    moved = MovedLedger(records, parameters.as_of(LAST)) if records.has_moved else None
    commands: dict[int, list[Any]] = defaultdict(list)
    for _, command in records.readable(topics.COMMANDS):
        commands[command["evidence"]["shard"]].append(command)
    for shard, issued in commands.items():
        issued.sort(key=lambda c: (c["evidence"]["events_offset"], c["evidence"]["marks_offset"]))
        # The marks may be walked back between two batches, so they are taken anew from one sorted list.
        marks = _MarksAsOf(records, sorted({command["evidence"]["marks_offset"] for command in issued}))
        ledger, progress = ShardLedger(records, shard, parameters), ShardProgress(records, shard)
        for command in issued:
            evidence = command["evidence"]
            if shard not in records.homes(command["account"]):
                differences.append(f"{command['command_id']}: shard {shard} is not its account's")
            if moved is None:
                ledger.walk_to(evidence["events_offset"])
                group = ledger.group(command)
            else:
                progress.walk_to(evidence["events_offset"])
                if progress.is_behind(command["account"]) and not evidence.get("left_out"):
                    differences.append(f"{command['command_id']}: by then its rows went to its next shard, unsaid")
                group = moved.group(command, progress.applied(command["account"]))
            group = fees.paid_by(group, command["account"], command["margin"], before=command["sequence"])
            differences += _unjustified(command, group, marks, parameters)
    return differences


def _unjustified(command: Any, group: ReferenceGroup, marks: "_MarksAsOf", parameters: ParameterLog) -> Iterator[str]:
    name, evidence = command["command_id"], command["evidence"]
    seen, time_us = marks.at(evidence["marks_offset"])
    rules = parameters.as_of(evidence["parameters_version"])
    needed = symbols_needed(group, rules, seen)
    bounded = evidence.get("stale_bounds", {}).keys()
    if missing := needed - seen.keys() - bounded:
        yield f"{name}: no marks of {sorted(missing)} at offset {evidence['marks_offset']}"
        return
    if traded := bounded & {order["symbol"] for order in command.get("orders", ())}:
        yield f"{name}: orders in {sorted(traded)}, whose marks were not live"
    for symbol in sorted(needed & seen.keys()):
        mark = seen[symbol]
        is_old = time_us - mark.publish_time > rules.max_age_us(symbol)
        if symbol not in bounded and (mark.status != "live" or is_old):
            yield f"{name}: the mark of {symbol} was not live"
        if Decimal(evidence["marks"].get(symbol, "0")) != mark.price:
            yield f"{name}: evidence says {symbol} at {evidence['marks'].get(symbol)}, the log has {mark.price}"
    verdict = evaluate(group, {symbol: mark.price for symbol, mark in seen.items()}, rules, bounded)
    if command.get("stage") == "withdrawn":
        if verdict.liquidatable or bounded or command.get("supersedes") is None or command["orders"]:
            yield f"{name}: withdrawn at equity {verdict.equity}, maintenance {verdict.maintenance}"
    elif not verdict.liquidatable:
        yield f"{name}: equity {verdict.equity} was not below maintenance {verdict.maintenance}"
    ratio = verdict.health_ratio or Decimal(0)
    figures = floor_18(verdict.equity), floor_18(verdict.maintenance), ratio, floor_18(verdict.debt)
    fields = ("equity", "maintenance_margin", "health_ratio", "debt")
    stated = tuple(Decimal(evidence.get(field, "0")) for field in fields)
    if figures != stated:
        yield f"{name}: evidence says {stated}, recomputed {figures}"


def nobody_is_left_liquidatable(records: RunRecords) -> Differences:
    """At the last marks no group is below maintenance without an open command, or a status that says why not."""
    parameters = _parameters(records)
    last = max((record.offset for record in records.of(topics.MARKS)), default=-1)
    seen, _ = _MarksAsOf(records, [last]).at(last)
    prices = {symbol: mark.price for symbol, mark in seen.items()}
    rules = parameters.as_of(LAST)
    transfers = [value for _, value in records.readable(topics.TRANSFERS)]
    ledger = ledger_of(rules, transfers, [value for _, value in records.readable(topics.TRADES)])
    under_command = {
        (account, group["margin"])
        for account, row in _rows(records).items()
        for group in row["groups"]
        if group["command"] is not None
        or group.get("retry_at")
        or row.get("held") is not None
        or group.get("status") in WITHOUT_ORDERS
    }
    differences = []
    for name, group in _fees(records).paid_by_all(ledger).items():
        if name in under_command:
            continue
        if missing := symbols_needed(group, rules, prices) - prices.keys():
            differences.append(f"{name}: no marks of {sorted(missing)}")
            continue
        verdict = evaluate(group, prices, rules)
        if verdict.liquidatable:
            differences.append(f"{name}: equity {verdict.equity} is below maintenance {verdict.maintenance}")
    return differences


def only_whom_poison_names_is_suspended(records: RunRecords) -> Differences:
    """Every event of the load can be applied; a transfer that cannot be read suspends its account, each once."""
    expected = Counter(
        NAMED_BY_POISON
        for record in records.of(topics.TRANSFERS)
        if record.is_poison and f'"{NAMED_BY_POISON}"'.encode() in (record.value or b"")
    )
    rows = _rows(records)
    return [
        f"{account}: {row['suspended_reason']}; {row['unapplied']} unapplied, must be {expected[account]}"
        for account, row in rows.items()
        if row["unapplied"] != expected[account]
    ] + [f"{account}: not suspended, it has no row" for account in expected if account not in rows]


# --- journal and tables ----------------------------------------------------------------------------------------------


def journal_is_contiguous(records: RunRecords) -> Differences:
    """Sequences rise by one, each record names the one before and goes on where it ended, under the last claim."""
    differences: Differences = []
    for shard in range(records.shards):
        before: tuple[int, Any] | None = None
        claim = -1
        for record, entry in records.readable(topics.JOURNAL, shard):
            where = f"{topics.JOURNAL}[{shard}] offset {record.offset}"
            if entry["kind"] == "claim":
                claim = record.offset
                if any(entry[name][0] != entry[name][1] for name in ("events", "marks", "parameters")):
                    differences.append(f"{where}: a claim that covers inputs")
            elif entry["claim"] != claim:
                differences.append(f"{where}: a commit under claim {entry['claim']}, superseded by {claim}")
            if before is not None:
                differences += [f"{where}: {fault}" for fault in _breaks(before, entry)]
            before = record.offset, entry
        if before is None:
            differences.append(f"{topics.JOURNAL}[{shard}] is empty")
    return differences


def _breaks(before: tuple[int, Any], entry: Any) -> Iterator[str]:
    offset, last = before
    if entry["sequence"] != last["sequence"] + 1:
        yield f"sequence {entry['sequence']} after {last['sequence']}"
    if entry["previous"] != offset:
        yield f"previous is {entry['previous']}, the record before is at {offset}"
    for name in ("events", "marks", "parameters"):
        first, end = entry[name]
        if first != last[name][1]:
            yield f"{name} from {first}, the record before ended at {last[name][1]}"
        if end < first:
            yield f"{name} end at {end} before their beginning at {first}"
    if not entry["marks"][0] <= entry["marks_before"] <= entry["marks"][1]:
        yield f"marks_before {entry['marks_before']} is not among {entry['marks']}"


def journal_accounts_for_every_row(records: RunRecords) -> Differences:
    """The changelog has as many rows as the journal says: none of a transaction that the journal does not know."""
    differences = []
    for shard in range(records.shards):
        journaled = sum(entry["accounts"] for _, entry in records.readable(topics.JOURNAL, shard))
        rows = len(records.of(topics.ACCOUNTS, shard))
        if journaled != rows:
            differences.append(f"shard {shard}: {rows} rows, the journal says {journaled}")
    return differences


def redis_equals_changelog(records: RunRecords) -> Differences:
    """Redis holds every account's last row byte for byte and nothing else, under the token of the last claim.

    Both have a row of an account in its shard only.
    """
    rows = records.rows_by_place()
    tables = {(shard, account): row for shard, table in records.tables.items() for account, row in table.items()}
    differences = [
        f"{account} in shard {shard}: Redis {tables.get((shard, account))!r:.200}, "
        f"changelog {rows.get((shard, account))!r:.200}"
        for shard, account in sorted({*rows, *tables})
        if rows.get((shard, account)) != tables.get((shard, account))
    ]
    differences += [
        f"{account}: shard {shard} has its row, and its shard is {home}"
        for shard, account in sorted({*rows, *tables})
        if shard != (home := records.home(account))
    ]
    for shard in range(records.shards):
        claims = [
            record.offset for record, entry in records.readable(topics.JOURNAL, shard) if entry["kind"] == "claim"
        ]
        meta = records.metas.get(shard, {})
        if not claims or meta.get("token") != str(claims[-1]):
            differences.append(f"shard {shard}: Redis has token {meta.get('token')}, the last claims are {claims[-2:]}")
        if "building" in meta or "writing" in meta:
            differences.append(f"shard {shard}: its table is being built or written: {meta}")
    return differences


def every_account_has_arrived(records: RunRecords) -> Differences:
    """No account is on its way to another shard, and the layouts came one after the other."""
    versions = [layout.spread.version for layout in records.layouts]
    differences = [f"the layouts have versions {versions}"] if versions != list(range(len(versions))) else []
    last = records.layouts[-1]
    return differences + ([f"accounts are still on their way: {last}"] if last.is_moving else [])


CHECKS: dict[str, Callable[[RunRecords], Differences]] = {
    check.__name__: check
    for check in (
        every_trade_is_routed_once,
        every_transfer_and_report_is_routed_once,
        ledger_equals_recomputation,
        poison_is_in_the_dead_letters,
        groups_have_read_everything,
        commands_are_unique_and_gapless,
        alerts_are_unique_and_gapless,
        fees_are_booked_once,
        every_command_is_justified,
        nobody_is_left_liquidatable,
        only_whom_poison_names_is_suspended,
        journal_is_contiguous,
        journal_accounts_for_every_row,
        redis_equals_changelog,
        every_account_has_arrived,
    )
}


@dataclass(frozen=True)
class Verdict:
    """``differences`` by check. ``lost`` and ``repeated`` count records that should be there and are not, or twice."""

    differences: dict[str, Differences]
    commands: int
    lost: int
    repeated: int

    @property
    def passed(self) -> bool:
        return not any(self.differences.values())


def judge(records: RunRecords) -> Verdict:
    """Every check's differences; a check that breaks down has found one."""
    differences = {}
    for name, check in CHECKS.items():
        try:
            differences[name] = check(records)
        except (KeyError, ValueError, ArithmeticError, TypeError) as error:
            differences[name] = [f"the records cannot be judged: {error!r}"]
    every = [text for texts in differences.values() for text in texts]
    return Verdict(
        differences,
        commands=len(records.of(topics.COMMANDS)),
        lost=sum("lost" in text for text in every),
        repeated=sum("repeated" in text for text in every),
    )


# --- what the checks stand on ----------------------------------------------------------------------------------------


class ShardLedger:
    """The ledger of one shard as its frames have made it up to an offset; a transfer that is not newer is dropped."""

    def __init__(self, records: RunRecords, shard: int, parameters: ParameterLog) -> None:
        self.ledger = ReferenceLedger(parameters.as_of(LAST))
        self._records, self._shard = list(first_rows(records.readable(topics.EVENTS, shard))), shard
        self._frames = iter(self._records)
        self._ahead = next(self._frames, None)
        self._come: set[tuple[str, int]] = set()

    def walk_to(self, offset: int) -> None:
        """Take in every frame up to and including ``offset``."""
        while self._ahead is not None and self._ahead[0].offset <= offset:
            frame = self._ahead[1]
            self.ledger.frame({"transfers": self._new_transfers(frame["transfers"]), "fills": frame["fills"]})
            self._ahead = next(self._frames, None)

    def group(self, command: Any) -> ReferenceGroup:
        """The group of a command at the offset of its evidence, without what was deferred then."""
        account, evidence = command["account"], command["evidence"]
        if not evidence.get("deferred"):
            return self.ledger.group(account, command["margin"])
        ledger, come = ReferenceLedger(self.ledger.rules), self._come
        self._come = set()
        for record, frame in self._records:
            if record.offset <= evidence["events_offset"]:
                kept = of_account(frame, account, set(evidence["deferred"]))
                ledger.frame({"transfers": self._new_transfers(kept["transfers"]), "fills": kept["fills"]})
        self._come = come
        return ledger.group(account, command["margin"])

    def _new_transfers(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        kept = []
        for index, number in enumerate(zip(columns["account"], columns["sequence"], strict=True)):
            if number not in self._come:
                self._come.add(number)
                kept.append(index)
        return {name: [column[index] for index in kept] for name, column in columns.items()}


def _frames(records: RunRecords) -> Iterator[tuple[TopicRecord, Any]]:
    """The frames of every shard without the rows that were told before.

    Where accounts have moved, rows are told again by another layout, and all are given.
    """
    for shard in range(records.shards):
        frames = records.readable(topics.EVENTS, shard)
        yield from frames if records.has_moved else first_rows(frames)


class _MarksAsOf:
    """The marks, and the time, as of some offsets of ``margin.marks.v1``."""

    def __init__(self, records: RunRecords, offsets: list[int]) -> None:
        log = MarkLog((record.offset, frame) for record, frame in records.readable(topics.MARKS))
        self._seen = {}
        for offset in offsets:
            log.walk_to(offset)
            self._seen[offset] = dict(log.marks), log.time_us

    def at(self, offset: int) -> tuple[dict[str, Any], int]:
        return self._seen[offset]


def _parameters(records: RunRecords) -> ParameterLog:
    return ParameterLog(
        [(record.offset, (record.key or b"").decode(), value) for record, value in records.readable(topics.PARAMETERS)]
    )


def _new_trades(records: RunRecords) -> Iterator[Any]:
    """The trades whose id is above all before it of their symbol: the others are repeats."""
    last: dict[str, int] = {}
    for _, trade in records.readable(topics.TRADES):
        if trade["trade_id"] > last.get(trade["symbol"], -1):
            last[trade["symbol"]] = trade["trade_id"]
            yield trade


def _fees(records: RunRecords) -> FeesTold:
    return FeesTold(alert for _, alert in records.readable(topics.ALERTS))


def _rows(records: RunRecords) -> dict[str, Any]:
    return {account: TopicRecord(0, 0, None, row).json() for account, row in records.rows().items()}


def _unequal(what: str, expected: Counter[Any], actual: Counter[Any]) -> Differences:
    lost = [f"{what} {name}: lost" for name in (expected - actual)]
    return lost + [f"{what} {name}: repeated or made up" for name in (actual - expected)]
