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

_SHOW_EVERY_S = 0.1


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Something that shows progress on standard error, if that is a terminal, and leaves no trace."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("starting", total=None)
        shown_at = 0.0

        def show(what: str, done: int, total: int) -> None:
            nonlocal shown_at
            if time.monotonic() - shown_at > _SHOW_EVERY_S:
                bars.update(task, description=what, completed=done, total=total or None)
                shown_at = time.monotonic()

        yield show


def show_replay(console: Console, result: Replayed) -> None:
    """Print what a replay found."""
    console.print(f"[bold]shard {result.shard}[/]  sequences {result.first:,} to {result.last:,}", highlight=False)
    show_findings(console, result.findings)


def show_findings(console: Console, findings: Findings) -> None:
    """Print counts, notes and differences, and the verdict."""
    for name, number in findings.counts.items():
        console.print(f"  {number:>12,}  {name}", highlight=False)
    for fact in findings.facts:
        console.print(f"  {escape(fact)}", highlight=False)
    for note in findings.notes:
        console.print(f"  [yellow]note[/]  {escape(note)}", highlight=False)
    for difference in findings.differences:
        text = escape(f"{difference.place}  {difference.what}" if difference.place else difference.what)
        console.print(f"  [red]differs[/]  {text}", highlight=False, soft_wrap=True)
    count, listed = findings.difference_count, len(findings.differences)
    if count > listed:
        console.print(f"  and {count - listed:,} differences more", highlight=False)
    for sentence in findings.unreached:
        console.print(f"  [red]out of reach[/]  {sentence}", highlight=False)
    verdict = f"[red]{count:,} differ[/]" if count else "[green]nothing differs[/]"
    console.print(f"  {verdict}", highlight=False)


def show_explanation(console: Console, explanation: Explanation) -> None:
    """Print why a command was issued, from the group to the orders."""
    command, evidence = explanation.command, explanation.command.evidence
    console.print(
        f"[bold]{escape(command.command_id)}[/]  {command.stage} of {escape(command.account)} {command.margin}, issued "
        f"{_time(command.issued_at)}, expires {_time(command.expires_at)}",
        highlight=False,
    )
    console.print(f"  command       {explanation.topic}[{explanation.partition}]@{explanation.offset}", highlight=False)
    journal = explanation.journal
    console.print(
        f"  commit        sequence {journal.sequence} of shard {journal.shard} by "
        f"{escape(journal.worker or 'an engine')}, margin.journal.v1[{journal.shard}]@{explanation.journal_offset}",
        highlight=False,
    )
    if command.supersedes is not None:
        console.print(f"  supersedes    {escape(command.supersedes)}, which had expired", highlight=False)
    if explanation.decision is None:
        console.print(
            f"  evidence      equity {evidence.equity}, maintenance {evidence.maintenance_margin}, health "
            f"{evidence.health_ratio}, marks {evidence.marks}",
            highlight=False,
        )
    else:
        _show_decision(console, explanation.decision, evidence.health_ratio, evidence.parameters_version)
    for note in explanation.notes:
        console.print(f"  [yellow]note[/]  {escape(note)}", highlight=False)
    for difference in explanation.differences:
        console.print(f"  [red]differs[/]  {escape(difference)}", highlight=False, soft_wrap=True)
    if explanation.decision is not None and explanation.passed:
        console.print("  [green]the logs give this command, byte for byte[/]", highlight=False)


def _show_decision(console: Console, decision: Decision, health_ratio: str, version: int) -> None:
    console.print(f"  decided on    {decision.input}, at {_time(decision.at_us)}", highlight=False)
    marks = Table("mark", "price", "status", "age", "frame", "formed from", box=None, title_justify="left")
    for mark in decision.marks:
        limit = "" if mark.max_age_ms is None else f" of {mark.max_age_ms:,}"
        sources = ", ".join(f"{source} {price}" for source, price in mark.sources.items()) or "-"
        marks.add_row(mark.symbol, mark.price, mark.status, f"{mark.age_ms:,}{limit} ms", str(mark.offset), sources)
    parameters = Table("rules in force", "offset", "version", "scale", box=None)
    for parameter in decision.rules:
        place = "-" if parameter.offset is None else str(parameter.offset)
        parameters.add_row(parameter.key, place, str(parameter.record.get("version", 0)), parameter.scale)
    for table in (
        marks,
        parameters,
        _terms("equity", decision.equity_terms, format_decimal(decision.equity)),
        _terms(f"maintenance ({decision.model})", decision.maintenance_terms, format_decimal(decision.maintenance)),
    ):
        console.print()
        console.print(table)
    console.print(
        f"\n  debt          {format_decimal(decision.debt)}, unweighted equity "
        f"{format_decimal(decision.unweighted_equity)}\n"
        f"  health        {health_ratio} = (equity + debt) / (maintenance + debt); below 1 is liquidated (parameters "
        f"at {version})\n"
        f"  target        {format_decimal(decision.target)} = maintenance and the policy's buffer\n"
        f"  shortage      {format_decimal(decision.shortage)} = target - equity\n"
        f"  plan          {decision.stage}",
        highlight=False,
    )
    if decision.stale_bounds:
        bounds = ", ".join(f"{symbol} (bound {bound})" for symbol, bound in decision.stale_bounds.items())
        console.print(
            f"  not live      {bounds}: anything from nothing to 1 + bound times the last price, here what is best for "
            "the account",
            highlight=False,
        )
    orders = Table("side", "quantity", "symbol", "mark", "limit", box=None)
    for order in decision.orders:
        orders.add_row(
            order["order_side"], order["quantity"], order["symbol"], order["mark_price"], order["limit_price"]
        )
    console.print(orders)


def _terms(title: str, terms: list[Term], total: str) -> Table:
    table = Table(title, "figures", "amount", box=None)
    table.columns[-1].justify = "right"
    for term in terms:
        figures = ", ".join(f"{name} {value}" for name, value in term.figures.items())
        table.add_row(term.name, figures, format_decimal(term.amount))
    table.add_row("[bold]sum[/]", "", f"[bold]{total}[/]")
    return table


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"
