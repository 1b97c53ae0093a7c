"""What a person sees of an audit: progress on standard error while it runs, then tables."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from streams.audit.decision import Decision, Term
from streams.audit.explain import Explanation
from streams.audit.findings import Findings
from streams.audit.progress import Progress
from streams.audit.replay import Replayed
from streams.margin.fixed_point import format_decimal
from streams.terminal import cells, line
from streams.visible import visible

_SHOW_EVERY_S = 0.1


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Something that shows progress on standard error, if that is a terminal, and leaves no trace."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("starting", total=None)
        shown_at = 0.0

        def show(what: str, done: int, total: int) -> None:
            nonlocal shown_at
            if time.monotonic() - shown_at > _SHOW_EVERY_S:
                bars.update(task, description=visible(what), completed=done, total=total or None)
                shown_at = time.monotonic()

        yield show


def show_replay(console: Console, result: Replayed) -> None:
    """Print what a replay found."""
    console.print(line((f"shard {result.shard}", "bold"), f"  sequences {result.first:,} to {result.last:,}"))
    show_findings(console, result.findings)


def show_findings(console: Console, findings: Findings) -> None:
    """Print counts, notes and differences, and the verdict."""
    for name, number in findings.counts.items():
        console.print(line(f"  {number:>12,}  {name}"))
    for fact in findings.facts:
        console.print(line(f"  {fact}"))
    for note in findings.notes:
        console.print(line("  ", ("note", "yellow"), f"  {note}"))
    for difference in findings.differences:
        text = f"{difference.place}  {difference.what}" if difference.place else difference.what
        console.print(line("  ", ("differs", "red"), f"  {text}"), soft_wrap=True)
    count, listed = findings.difference_count, len(findings.differences)
    if count > listed:
        console.print(line(f"  and {count - listed:,} differences more"))
    for sentence in findings.unreached:
        console.print(line("  ", ("out of reach", "red"), f"  {sentence}"))
    console.print(line("  ", (f"{count:,} differ", "red") if count else ("nothing differs", "green")))


def show_explanation(console: Console, explanation: Explanation) -> None:
    """Print why a command was issued, from the group to the orders."""
    command, evidence = explanation.command, explanation.command.evidence
    console.print(
        line(
            (command.command_id, "bold"),
            f"  {command.stage} of {command.account} {command.margin}, issued {_time(command.issued_at)}, expires "
            f"{_time(command.expires_at)}",
        )
    )
    console.print(line(f"  command       {explanation.topic}[{explanation.partition}]@{explanation.offset}"))
    journal = explanation.journal
    console.print(
        line(
            f"  commit        sequence {journal.sequence} of shard {journal.shard} by "
            f"{journal.worker or 'an engine'}, margin.journal.v1[{journal.shard}]@{explanation.journal_offset}"
        )
    )
    if command.supersedes is not None:
        why = "healthy at its target: nothing more of it is to be filled" if command.stage == "withdrawn" else "expired"
        console.print(line(f"  supersedes    {command.supersedes}, {why}"))
    if command.attempt:
        console.print(
            line(
                f"  attempt       {command.attempt + 1}: of the {command.attempt} before it next to nothing was filled"
            )
        )
    if explanation.decision is None:
        console.print(
            line(
                f"  evidence      equity {evidence.equity}, maintenance {evidence.maintenance_margin}, health "
                f"{evidence.health_ratio}, marks {evidence.marks}"
            )
        )
    else:
        _show_decision(console, explanation.decision, evidence.health_ratio, evidence.parameters_version)
    for note in explanation.notes:
        console.print(line("  ", ("note", "yellow"), f"  {note}"))
    for difference in explanation.differences:
        console.print(line("  ", ("differs", "red"), f"  {difference}"), soft_wrap=True)
    if explanation.decision is not None and explanation.passed:
        console.print(line("  ", ("the logs give this command, byte for byte", "green")))


def _show_decision(console: Console, decision: Decision, health_ratio: str, version: int) -> None:
    console.print(line(f"  decided on    {decision.input}, at {_time(decision.at_us)}"))
    marks = Table("mark", "price", "status", "age", "frame", "formed from", box=None, title_justify="left")
    for mark in decision.marks:
        limit = "" if mark.max_age_ms is None else f" of {mark.max_age_ms:,}"
        sources = ", ".join(f"{source} {price}" for source, price in mark.sources.items()) or "-"
        age = f"{mark.age_ms:,}{limit} ms"
        marks.add_row(*cells(mark.symbol, mark.price, mark.status, age, str(mark.offset), sources))
    parameters = Table("rules in force", "offset", "version", "scale", box=None)
    for parameter in decision.rules:
        place = "-" if parameter.offset is None else str(parameter.offset)
        parameters.add_row(*cells(parameter.key, place, str(parameter.record.get("version", 0)), parameter.scale))
    for table in (
        marks,
        parameters,
        _terms("equity", decision.equity_terms, format_decimal(decision.equity)),
        _terms(f"maintenance ({decision.model})", decision.maintenance_terms, format_decimal(decision.maintenance)),
    ):
        console.print()
        console.print(table)
    console.print()
    for text in (
        f"  debt          {format_decimal(decision.debt)}, unweighted equity "
        f"{format_decimal(decision.unweighted_equity)}",
        f"  health        {health_ratio} = (equity + debt) / (maintenance + debt); below 1 is liquidated (parameters "
        f"at {version})",
        f"  target        {format_decimal(decision.target)} = maintenance and the policy's buffer",
        f"  shortage      {format_decimal(decision.shortage)} = target - equity",
        f"  plan          {decision.stage}",
    ):
        console.print(line(text))
    if decision.stale_bounds:
        bounds = ", ".join(f"{symbol} (bound {bound})" for symbol, bound in decision.stale_bounds.items())
        console.print(
            line(
                f"  not live      {bounds}: anything from nothing to 1 + bound times the last price, here what is best "
                "for the account"
            )
        )
    orders = Table("side", "quantity", "symbol", "mark", "limit", box=None)
    for order in decision.orders:
        names = ("order_side", "quantity", "symbol", "mark_price", "limit_price")
        orders.add_row(*cells(*(order[name] for name in names)))
    console.print(orders)


def _terms(title: str, terms: list[Term], total: str) -> Table:
    table = Table(escape(title), "figures", "amount", box=None)
    table.columns[-1].justify = "right"
    for term in terms:
        figures = ", ".join(f"{name} {value}" for name, value in term.figures.items())
        table.add_row(*cells(term.name, figures, format_decimal(term.amount)))
    table.add_row(*cells("sum", "", total, style="bold"))
    return table


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"
