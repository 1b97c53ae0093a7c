"""What must be true after a run, judged from the records alone with the reference arithmetic.

Each check answers with the differences it found; none is a pass. It shares no code with the engine.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from decimal import ROUND_CEILING, Decimal
from typing import Any

import orjson

from streams.demo.frames import of_account
from streams.demo.reference import (
    FeesTold,
    MarkLog,
    ReferenceGroup,
    ReferenceLedger,
    Rules,
    evaluate,
    floor_18,
    ledger_of,
    symbols_needed,
)
from streams.demo.run_records import RunRecords

Differences = list[str]
WITHOUT_ORDERS = {"insolvent", "unsellable", "undecided"}
ORDER_FIELDS = {"order_id", "symbol", "position_side", "order_side", "quantity", "limit_price", "mark_price"}
EVIDENCE_FIELDS = {"equity", "maintenance_margin", "health_ratio", "shard", "events_offset", "marks_offset", "marks"}


def commands_once_and_complete(records: RunRecords) -> Differences:
    """Every command id once, sequences gapless from 1, every order complete and reported."""
    differences = [
        f"{command_id} came {count} times"
        for command_id, count in Counter(command["command_id"] for command in records.commands).items()
        if count > 1
    ]
    sequences: dict[str, list[int]] = defaultdict(list)
    for command in records.commands:
        sequences[command["account"]].append(command["sequence"])
        if command["command_id"] != f"{command['account']}:{command['sequence']}":
            differences.append(f"{command['command_id']} is not its account and sequence")
        is_withdrawn = command["stage"] == "withdrawn"
        if bool(command["orders"]) == is_withdrawn or not command["evidence"].keys() >= EVIDENCE_FIELDS:
            differences.append(f"{command['command_id']} lacks orders or evidence")
        if any(not order.keys() >= ORDER_FIELDS for order in command["orders"]):
            differences.append(f"{command['command_id']} has an order that lacks fields")
    for account, numbers in sequences.items():
        if sorted(set(numbers)) != list(range(1, max(numbers) + 1)):
            differences.append(f"{account}: command sequences {sorted(numbers)} have gaps")
    return differences + _unreported(records)


def _unreported(records: RunRecords) -> Differences:
    final = {r["order_id"]: Decimal(r["filled_quantity"]) for r in records.reports if r["status"] != "accepted"}
    filled: dict[str, Decimal] = defaultdict(Decimal)
    for trade in records.trades:
        filled[trade["taker"]["order_id"]] += Decimal(trade["quantity"])
    still_open = _open_commands(records)
    differences = []
    for command in records.commands:
        for order in command["orders"]:
            if order["order_id"] not in final:
                if command["command_id"] not in still_open:
                    differences.append(f"order {order['order_id']} has no final report")
            elif final[order["order_id"]] != filled.get(order["order_id"], Decimal(0)):
                differences.append(
                    f"order {order['order_id']}: reported {final[order['order_id']]}, "
                    f"traded {filled.get(order['order_id'], Decimal(0))}"
                )
    return differences


def fees_booked_once(records: RunRecords) -> Differences:
    """Every fill of a command's order has paid its fees, once: ceil(rate * notional) of each by the rates that the
    command states, or less, the insurance fee first, only if it was told that its group had no more."""
    orders = {order["order_id"]: order for command in records.commands for order in command["orders"]}
    rules = _rules(records)
    traded: Counter[tuple[str, str, str]] = Counter()
    for trade in records.trades:
        order = orders.get(trade["taker"]["order_id"], {})
        if any(Decimal(order.get(name, "0")) for name in ("liquidation_fee", "insurance_fee")):
            traded[trade["taker"]["order_id"], trade["price"], trade["quantity"]] += 1
    told: Counter[tuple[str, str, str]] = Counter()
    differences = []
    for alert, fees in booked_fees(records):
        told[fees["order_id"], fees["price"], fees["quantity"].removeprefix("-")] += 1
        if not _is_right(alert, fees, orders[fees["order_id"]], Decimal(1).scaleb(-rules.decimals(fees["asset"]))):
            differences.append(f"{alert['alert_id']}: {fees} are not the fees of {orders[fees['order_id']]}")
    return differences + [
        f"order {fill[0]}: {traded[fill]} fills of {fill[2]} at {fill[1]}, fees were booked {told[fill]} times"
        for fill in sorted({*traded, *told})
        if traded[fill] != told[fill]
    ]


def _is_right(alert: Any, fees: Any, order: Any, unit: Decimal) -> bool:
    """Whether the fees of one fill are what its order states, in ``unit`` of their asset, or what could be paid."""
    notional = abs(Decimal(fees["quantity"])) * Decimal(fees["price"])
    names = ("insurance_fee", "liquidation_fee")
    due = [(Decimal(order[name]) * notional).quantize(unit, rounding=ROUND_CEILING) for name in names]
    paid = [Decimal(fees[name]) for name in names]
    if Decimal(fees["due"]) != sum(due):
        return False
    if "not known" in alert["reason"]:
        return not any(paid)
    if "no more" not in alert["reason"]:
        return paid == due
    is_insurance_first = paid[0] == due[0] or not paid[1]
    return is_insurance_first and min(paid) >= 0 and sum(paid) < sum(due)


def booked_fees(records: RunRecords) -> Iterator[tuple[Any, Any]]:
    """The alerts that tell of fees, each with these, in the order of each account."""
    for alert in sorted(records.alerts, key=lambda alert: int(alert["alert_id"].rpartition(":")[2])):
        if alert["kind"] == "liquidation_fee":
            yield alert, alert["fees"]


def money_conserved(records: RunRecords) -> Differences:
    """Per asset, what all accounts hold in balances and position cash, and what waits to be applied to them, is what
    came in, less the fees, those of liquidations included."""
    rules = _rules(records)
    expected: dict[str, Decimal] = defaultdict(Decimal)
    for transfer in records.transfers:
        expected[transfer["asset"]] += Decimal(transfer["amount"])
    for trade in records.trades:
        expected[rules.settle_asset(trade["symbol"])] -= Decimal(trade["maker"]["fee"]) + Decimal(trade["taker"]["fee"])
    for _, fees in booked_fees(records):
        expected[fees["asset"]] -= Decimal(fees["liquidation_fee"]) + Decimal(fees["insurance_fee"])
    held: dict[str, Decimal] = defaultdict(Decimal)
    open_quantity: dict[str, Decimal] = defaultdict(Decimal)
    for data in records.rows.values():
        row = orjson.loads(data)
        for group in row["groups"]:
            for asset, amount in group["balances"].items():
                held[asset] += Decimal(amount)
            for position in group["positions"]:
                held[rules.settle_asset(position["symbol"])] += Decimal(position["cash"])
                open_quantity[position["symbol"]] += Decimal(position["quantity"])
        for parked in row.get("parked", []):
            held[parked["asset"]] += Decimal(parked["amount"])
        for fill in row.get("waiting_fills", []):
            quantity, price = Decimal(fill["quantity"]), Decimal(fill["price"])
            held[rules.settle_asset(fill["symbol"])] -= quantity * price + Decimal(fill["fee"])
            open_quantity[fill["symbol"]] += quantity
    differences = [
        f"{asset}: accounts hold {held[asset]}, transfers less fees are {expected[asset]}"
        for asset in sorted({*held, *expected})
        if held[asset] != expected[asset]
    ]
    return differences + [f"{s}: long and short differ by {q}" for s, q in open_quantity.items() if q]


def redis_equals_changelog(records: RunRecords) -> Differences:
    """Redis holds every account's last changelog row, byte for byte, and nothing else."""
    return [
        f"{account}: Redis {_short(records.tables.get(account))}, changelog {_short(records.rows.get(account))}"
        for account in sorted({*records.rows, *records.tables})
        if records.rows.get(account) != records.tables.get(account)
    ]


def changelog_equals_recomputation(records: RunRecords) -> Differences:
    """Balances and positions are those of a plain recomputation from trades and transfers, less the fees booked."""
    groups = FeesTold(records.alerts).paid_by_all(ledger_of(_rules(records), records.transfers, records.trades))
    expected = {name: contents for name, group in groups.items() if any(contents := group.contents())}
    actual = {}
    for account, row in records.rows.items():
        for group in orjson.loads(row)["groups"]:
            balances = {asset: Decimal(amount) for asset, amount in group["balances"].items()}
            held = {p["symbol"]: (Decimal(p["quantity"]), Decimal(p["cash"])) for p in group["positions"]}
            if balances or held:
                actual[account, group["margin"]] = (balances, held)
    return [
        f"{account} {margin}: changelog {actual.get((account, margin))}, recomputed {expected.get((account, margin))}"
        for account, margin in sorted({*expected, *actual})
        if expected.get((account, margin)) != actual.get((account, margin))
    ]


def nobody_healthy_liquidated(records: RunRecords) -> Differences:
    """At the offsets that a command's evidence names, its group was below maintenance, with the figures it says;
    that of one that is withdrawn was not."""
    differences: Differences = []
    fees = FeesTold(records.alerts)
    for shard, commands in _by_shard(records).items():
        ledger, marks = ReferenceLedger(_rules(records)), MarkLog(records.marks)
        frames = iter(records.frames.get(shard, []))
        ahead = next(frames, None)
        for command in commands:
            evidence = command["evidence"]
            while ahead is not None and ahead[0] <= evidence["events_offset"]:
                ledger.frame(ahead[1], records.prefix)
                ahead = next(frames, None)
            marks.walk_to(evidence["marks_offset"])
            rules = records.parameters.as_of(evidence["parameters_version"]).scaled(marks.scales)
            of = ledger
            if evidence.get("deferred"):
                of = _ledger_without(records, shard, command)
            account, margin = command["account"], command["margin"]
            group = fees.paid_by(of.group(account, margin), account, margin, before=command["sequence"])
            differences += _misjudged(command, group, marks, rules)
    return differences


def _ledger_without(records: RunRecords, shard: int, command: Any) -> ReferenceLedger:
    """The ledger of a command's account at the offset of its evidence, without what was deferred."""
    ledger, evidence = ReferenceLedger(_rules(records)), command["evidence"]
    for offset, frame in records.frames.get(shard, []):
        if offset <= evidence["events_offset"]:
            ledger.frame(of_account(frame, command["account"], set(evidence["deferred"])))
    return ledger


def _misjudged(command: Any, group: ReferenceGroup, marks: MarkLog, rules: Rules) -> Iterator[str]:
    name, evidence = command["command_id"], command["evidence"]
    needed = symbols_needed(group, rules, marks.marks)
    time_us, bounded = max(marks.time_us, command["issued_at"]), evidence.get("stale_bounds", {}).keys()
    not_live = {
        symbol
        for symbol in needed
        if symbol not in marks.marks
        or marks.marks[symbol].status != "live"
        or time_us - marks.marks[symbol].publish_time > rules.max_age_us(symbol)
    }
    if unbounded := not_live - bounded:
        yield f"{name}: marks of {sorted(unbounded)} were not live, and evidence bounds {sorted(bounded)}"
    if traded := (not_live | bounded) & {order["symbol"] for order in command["orders"]}:
        yield f"{name}: orders in {sorted(traded)}, whose marks were not live"
    known = needed & marks.marks.keys()
    if any(Decimal(evidence["marks"].get(symbol, "0")) != marks.marks[symbol].price for symbol in known):
        yield f"{name}: evidence names marks {evidence['marks']}, the log has others"
    if any(marks.scales.get(key) != Decimal(scale) for key, scale in evidence.get("scales", {}).items()):
        yield f"{name}: evidence names scales {evidence['scales']}, the log has others"
    verdict = evaluate(group, marks.prices(), rules, not_live | bounded)
    if command["stage"] == "withdrawn":
        if verdict.liquidatable or not verdict.bounded or not_live | bounded or command["supersedes"] is None:
            yield f"{name}: withdrawn at equity {verdict.equity}, maintenance {verdict.maintenance}"
    elif not verdict.liquidatable:
        yield f"{name}: equity {verdict.equity} was not below maintenance {verdict.maintenance}"
    figures = (
        floor_18(verdict.equity),
        floor_18(verdict.maintenance),
        verdict.health_ratio or Decimal(0),
        floor_18(verdict.debt),
    )
    stated = (
        *(Decimal(evidence[field]) for field in ("equity", "maintenance_margin", "health_ratio")),
        Decimal(evidence.get("debt", "0")),
    )
    unweighted = evidence.get("unweighted_equity")
    if unweighted is not None and Decimal(unweighted) != floor_18(verdict.unweighted):
        yield f"{name}: evidence says unweighted {unweighted}, recomputed {verdict.unweighted}"
    if figures != stated:
        yield f"{name}: evidence says {stated}, recomputed {figures}"


def nobody_liquidatable_left(records: RunRecords) -> Differences:
    """At the last live marks and the last scales no group is below maintenance without an open command.

    One that has nothing to trade has none, and says so in its status; one of whose last command nothing was filled
    waits for the next, and the verdict on one that is held waits for what was sent before.
    """
    marks = MarkLog(records.marks)
    marks.walk_to(2**62)
    rules = _rules(records).scaled(marks.scales)
    live: dict[str, Decimal] = {}
    for _, frame in records.marks:
        live |= {mark["symbol"]: Decimal(mark["price"]) for mark in frame["marks"] if mark["status"] == "live"}
    groups = FeesTold(records.alerts).paid_by_all(ledger_of(rules, records.transfers, records.trades))
    under_command = {
        (account, group["margin"])
        for account, row in ((account, orjson.loads(row)) for account, row in records.rows.items())
        for group in row["groups"]
        if group["command"] is not None
        or group.get("retry_at")
        or row.get("held") is not None
        or group.get("status") in WITHOUT_ORDERS
    }
    differences = []
    for name, group in groups.items():
        if name in under_command or not symbols_needed(group, rules, live) <= live.keys():
            continue
        verdict = evaluate(group, live, rules)
        if verdict.liquidatable:
            differences.append(f"{name}: equity {verdict.equity} is below maintenance {verdict.maintenance}")
    return differences


CHECKS: dict[str, Callable[[RunRecords], Differences]] = {
    "commands_once_and_complete": commands_once_and_complete,
    "fees_booked_once": fees_booked_once,
    "money_conserved": money_conserved,
    "redis_equals_changelog": redis_equals_changelog,
    "changelog_equals_recomputation": changelog_equals_recomputation,
    "nobody_healthy_liquidated": nobody_healthy_liquidated,
    "nobody_liquidatable_left": nobody_liquidatable_left,
}


def run_checks(records: RunRecords) -> dict[str, Differences]:
    """Every check's differences; a check that breaks down has found one."""
    results = {}
    for name, check in CHECKS.items():
        try:
            results[name] = check(records)
        except (KeyError, ValueError, ArithmeticError) as error:
            results[name] = [f"the records cannot be judged: {error!r}"]
    return results


def _rules(records: RunRecords) -> Rules:
    return records.parameters.as_of(2**62)


def _by_shard(records: RunRecords) -> dict[int, list[Any]]:
    shards: dict[int, list[Any]] = defaultdict(list)
    for command in records.commands:
        shards[command["evidence"]["shard"]].append(command)
    for commands in shards.values():
        commands.sort(key=lambda c: (c["evidence"]["events_offset"], c["evidence"]["marks_offset"]))
    return shards


def _open_commands(records: RunRecords) -> set[str]:
    return {
        group["command"]["command_id"]
        for row in records.rows.values()
        for group in orjson.loads(row)["groups"]
        if group["command"] is not None
    }


def _short(row: bytes | None) -> str:
    return "nothing" if row is None else row.decode("utf-8", "replace")[:200]
