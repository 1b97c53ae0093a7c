"""The benches' figures as tables for a person."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from streams.bench.latency import LatencyTimes
    from streams.bench.pipeline import RateTimes

UNIT = "CPU: processor seconds per million trades, two fills each; noise: what others used of this machine's processors"


def table(title: str, caption: str = "") -> Table:
    """An empty table."""
    return Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=None, pad_edge=False)


def of_latencies(run: "LatencyTimes") -> Table:
    """One run: the quantiles of the whole and of its stages."""
    load = f"{run.trades_per_s:,.0f} trades/s" if run.trades_per_s else "nobody trades"
    made = table(
        f"{load}, {run.commands:,} commands, each by a {run.cause}; ms",
        f"the bench itself was {run.late_ms:.1f} ms late at most",
    )
    for heading in ("", "p50", "p99", "p99.9", "max"):
        made.add_column(heading, justify="right" if heading else "left")
    for name, stage in (
        (f"{run.cause} due to command visible", run.total),
        ("price due to mark", run.price_to_mark),
        ("mark to command produced", run.mark_to_produced),
        ("command produced to visible", run.produced_to_visible),
    ):
        if stage is None:
            continue
        made.add_row(name, *(f"{each:,.1f}" for each in (stage.p50, stage.p99, stage.p999, stage.max)))
    return made


def of_rates(title: str, runs: Sequence["RateTimes"]) -> Table:
    """A column for each rate."""
    made = table(title, UNIT)
    made.add_column("trades/s")
    for run in runs:
        made.add_column(f"{run.trades_per_s:,.0f}", justify="right")
    made.add_row("kept up with", *("yes" if run.is_sustained else "no" for run in runs))
    made.add_row("trades waiting at most", *(f"{run.backlog_max:,}" for run in runs))
    for name in ("router", "oracle", "engine", "broker", "valkey"):
        made.add_row(f"{name} CPU", *(f"{run.cpu_s_per_million_trades[name]:,.0f}" for run in runs))
    for name in ("router", "engine"):
        made.add_row(f"{name} commits/s", *(f"{run.transactions_per_s[name]:,.1f}" for run in runs))
    made.add_row("rows/s", *(f"{run.rows_per_s:,.0f}" for run in runs))
    made.add_row("noise", *(f"{run.others_share:.0%}" for run in runs))
    return made
