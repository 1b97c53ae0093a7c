"""What a person sees of the demo: progress while it runs, then the liquidations, the latency and the checks."""

import contextlib
import math
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from streams.demo.checks import Differences, booked_fees
from streams.demo.errors import DemoError
from streams.demo.exchange import Sent, SimulatedExchange
from streams.demo.run_records import RunRecords
from streams.terminal import cells, line

ROWS_SHOWN = 12
DIFFERENCES_SHOWN = 3


class Display:
    """Progress: a line for each step, and a bar while the market plays. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]market[/]"),
            BarColumn(bar_width=30),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(IndexError):  # a signal came while the bar was being put up: rich has half of it
            self._progress.stop()

    def say(self, text: str) -> None:
        """One step has begun."""
        if self._task is not None:
            self._progress.stop()
            self._task = None
        self._console.print(line((f"{time.monotonic() - self._began:5.1f} s", "dim"), f"  {text}"))

    def begin(self, seconds: float) -> None:
        """The market begins to play."""
        self.say(f"playing {seconds:.0f} s of recorded market")
        self._progress.start()
        self._task = self._progress.add_task("", total=seconds)

    def advance(self, second: float, sent: Sent, commands: int) -> None:
        """Where the market is."""
        if self._task is not None:
            text = f"{second:5.0f} s  {sent.trades:,} trades  {sent.prices:,} prices  {commands:,} commands"
            self._progress.update(self._task, completed=second, description=text)


@dataclass(frozen=True)
class Latencies:
    """Microseconds from a price's publication to the command it caused being visible, by command id.

    Only commands that a mark caused are counted: the rest were caused by fills.
    """

    by_command: dict[str, int]

    def quantile_ms(self, share: float) -> float | None:
        """The latency that ``share`` of the commands did not exceed."""
        if not self.by_command:
            return None
        ordered = sorted(self.by_command.values())
        return round(ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] / 1000, 3)


def latencies_of(records: RunRecords, seen_us: dict[str, int]) -> Latencies:
    """A command was caused by a mark if it was issued at the time of the mark frame that its evidence names."""
    frames = dict(records.marks)
    latencies = {}
    for command in records.commands:
        frame = frames.get(command["evidence"]["marks_offset"])
        if frame is None or frame["time"] != command["issued_at"] or command["command_id"] not in seen_us:
            continue
        published = [m["publish_time"] for m in frame["marks"] if m["symbol"] in command["evidence"]["marks"]]
        if published and not frame["full"]:
            latencies[command["command_id"]] = seen_us[command["command_id"]] - max(published)
    return Latencies(latencies)


def summary_of(
    records: RunRecords,
    exchange: SimulatedExchange,
    repeats: int,
    results: dict[str, Differences],
    latencies: Latencies,
) -> dict[str, Any]:
    """The run as JSON values."""
    checks = {name: not differences for name, differences in results.items()}
    return {
        "trades": exchange.sent.trades,
        "prices": exchange.sent.prices,
        "marks": sum(len(frame["marks"]) for _, frame in records.marks),
        "fills": records.fills,
        "liquidation_commands": len({command["command_id"] for command in records.commands}),
        "duplicate_commands": repeats,
        "accounts": len(records.rows),
        "latency_ms": {"p50": latencies.quantile_ms(0.5), "p99": latencies.quantile_ms(0.99)},
        "checks": checks,
        "passed": all(checks.values()) and not repeats,
    }


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write the summary.

    Raises:
        DemoError: the file cannot be written.
    """
    try:
        path.write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        raise DemoError(f"--summary {path}: {error.strerror}") from None


def show_result(
    console: Console,
    records: RunRecords,
    exchange: SimulatedExchange,
    results: dict[str, Differences],
    latencies: Latencies,
    seconds: tuple[float, float],
) -> None:
    """Print the liquidations, the figures and the checks."""
    if records.commands:
        console.print(_liquidations(records, latencies))
    stages = Counter(command["stage"] for command in records.commands)
    kinds = Counter(alert["kind"] for alert in records.alerts)
    sent = exchange.sent
    lines = [
        f"market        {sent.trades:,} trades ({sent.liquidation_trades:,} of them liquidations), "
        f"{sent.prices:,} prices in {seconds[0]:.1f} s; {seconds[1]:.1f} s in all",
        f"accounts      {len(records.rows):,}, {records.fills:,} fills",
        f"commands      {len(records.commands):,}: " + _counts(stages),
        f"alerts        {len(records.alerts):,}: " + _counts(kinds),
    ]
    if records.commands:
        lines.append(f"fees          {_fees_line(records)}")
    if scales := _highest_scales(records):
        lines.append("scales        " + ", ".join(f"{key} up to {scale}" for key, scale in sorted(scales.items())))
    if latencies.by_command:
        figures = ", ".join(
            f"{name} {latencies.quantile_ms(share):.1f} ms"
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        )
        lines.append(
            f"latency       {figures}  (price published to command visible, {len(latencies.by_command):,} commands)"
        )
    for text in lines:
        console.print(line(text), soft_wrap=True)
    for name, differences in results.items():
        console.print(line(("FAILED", "red") if differences else ("ok    ", "green"), f" {name}"))
        for difference in differences[:DIFFERENCES_SHOWN]:
            console.print(line(f"         {difference}"), soft_wrap=True)
        if len(differences) > DIFFERENCES_SHOWN:
            console.print(line(f"         and {len(differences) - DIFFERENCES_SHOWN} more"))


def _fees_line(records: RunRecords) -> str:
    """What liquidations have paid to each pool, of what was due."""
    paid: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    due: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for _, fees in booked_fees(records):
        place = fees["asset"], fees["pool"]
        paid[place] += Decimal(fees["liquidation_fee"]) + Decimal(fees["insurance_fee"])
        due[place] += Decimal(fees["due"])
    parts = [f"{paid[place]:,.2f} {place[0]} to pool {place[1]} of {due[place]:,.2f} due" for place in sorted(due)]
    return ", ".join(parts) or "none"


def _highest_scales(records: RunRecords) -> dict[str, Decimal]:
    """The highest scale of each parameter record that was scaled."""
    highest: dict[str, Decimal] = {}
    for _, frame in records.marks:
        for key, scale in frame.get("scales", {}).items():
            highest[key] = max(highest.get(key, Decimal(0)), Decimal(scale))
    return highest


def _liquidations(records: RunRecords, latencies: Latencies) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("command", "margin", "stage", "order", "mark", "health", "latency"):
        numeric = name in ("mark", "health", "latency")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    shown = records.commands[:ROWS_SHOWN]
    for command in shown:
        latency = latencies.by_command.get(command["command_id"])
        for order in command["orders"][:1]:
            table.add_row(
                *cells(
                    command["command_id"].removeprefix(records.prefix),
                    command["margin"],
                    command["stage"],
                    f"{order['order_side']} {order['quantity']} {order['symbol']}",
                    order["mark_price"],
                    command["evidence"]["health_ratio"][:6],
                    "by fill" if latency is None else f"{latency / 1000:.1f} ms",
                )
            )
    if len(records.commands) > len(shown):
        table.caption = f"the first {len(shown)} of {len(records.commands):,}"
    return table


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counter.most_common()) or "none"
