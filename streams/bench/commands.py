"""The commands of ``margin-clearing bench`` that run real servers: parsing and printing only.

A run whose records are not right has no figure: it is said what differs, and the exit code is 1.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from streams.bench import show
from streams.bench.errors import BenchDiffers, BenchError
from streams.terminal import line

if TYPE_CHECKING:
    from streams.bench.latency import LatencyTimes
    from streams.bench.market import Drawn
    from streams.bench.peer_latency import PeerLatency

console = Console()
_progress = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON [default: tables for a person]", show_default=False)]
Accounts = Annotated[int, typer.Option(min=2, max=10_000_000, help="Accounts, at least two a symbol")]
Symbols = Annotated[int, typer.Option(min=1, max=1_000, help="Symbols, at least as many as positions")]
Positions = Annotated[int, typer.Option(min=1, max=100, help="Positions of each account, in as many symbols")]
Trades = Annotated[int, typer.Option(min=1, max=100_000_000, help="Trades that are measured, two fills each")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn")]
Shards = Annotated[
    list[int] | None,
    typer.Option(
        min=1,
        max=64,
        help="Shards, to which accounts belong by their names; may be repeated [default: 4]",
        show_default=False,
    ),
]
Engines = Annotated[
    list[int] | None,
    typer.Option(
        min=1,
        max=16,
        help="Engine processes, which share the shards; may be repeated [default: 1]",
        show_default=False,
    ),
]

Column = tuple[str, str, str]
"""Heading, field (of a field), format."""

_OF_FILLS: tuple[Column, ...] = (
    ("shards", "shards", "d"),
    ("engines", "engines", "d"),
    ("positions", "positions", ""),
    ("drawn", "drawn", ""),
    ("fills/s", "fills_per_s", ",.0f"),
    ("engine CPU", "engine_cpu_s_per_million_trades", ",.1f"),
    ("broker CPU", "broker_cpu_s_per_million_trades", ",.1f"),
    ("rows/s", "rows_per_s", ",.0f"),
    ("noise", "others_share", ".0%"),
)
_OF_PEERS: tuple[Column, ...] = (
    ("", "name", ""),
    ("promise", "promise", ""),
    ("workers", "workers", "d"),
    ("fills/s", "fills_per_s", ",.0f"),
    ("CPU", "cpu_s_per_million_trades", ",.1f"),
    ("broker CPU", "broker_cpu_s_per_million_trades", ",.1f"),
    ("states", "records", ",d"),
    ("seconds", "seconds", ",.2f"),
    ("noise", "others_share", ".0%"),
)


def add_to(bench: typer.Typer) -> None:
    """Add these commands to the group."""
    for command in (fills, router, latency, pipeline, oracle, peers, restore, rescale, memory):
        bench.command()(command)


def fills(
    accounts: Accounts = 10_000,
    symbols: Symbols = 20,
    positions: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=100, help="Positions of each account; may be repeated [default: 1, 3 and 10]", show_default=False
        ),
    ] = None,
    drawn: Annotated[
        list[str] | None,
        typer.Option(
            help="How often each account trades, uniform or zipf; may be repeated [default: both]", show_default=False
        ),
    ] = None,
    shards: Shards = None,
    engines: Engines = None,
    trades: Trades = 300_000,
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Measure engines: fills a second through a real Kafka, from frames that lie there to committed rows.

    Needs nothing: each run starts a Kafka and a Valkey of its own, and engine processes, and removes them. What may be
    repeated is run in every combination, but for those with more engines than shards, of which one would do nothing.
    The clock starts when every engine has its shards. Prints fills/s and rows/s of all shards together, and processor
    seconds per million trades, of all engines and of the broker apart; with --json also transactions/s and seconds. A
    run ends with a check: the rows of all accounts, over all shards, are what their records add up to.

    Engines and broker share this machine's processors: engines beyond those that are free for them add nothing.

    Exit codes: 0 measured, and every account is right; 1 one is not, and it is named; 2 a mistake in a flag, or a
    server that cannot be had.

    \b
    Example:
      margin-clearing bench fills --positions 3 --drawn zipf --shards 2 --shards 8 --engines 1 --engines 2
    """
    from streams.bench.fills import bench_fills
    from streams.bench.market import Traders

    shared = _shared(shards or [4], engines or [1])
    populations = [
        Traders(accounts, symbols, count, _drawn(how), seed)
        for count in positions or (1, 3, 10)
        for how in drawn or ("uniform", "zipf")
    ]
    with _checked(as_json):
        runs = [
            bench_fills(population, trades, shards=count, engines=members, progress=_say)
            for population in populations
            for count, members in shared
        ]
        title = f"engines, {accounts:,} accounts, {symbols} symbols, {trades:,} trades of two fills"
        _show(title, runs, _OF_FILLS, as_json)
        _say(f"ok     the rows of all accounts are what their records add up to, in each of {len(runs)} runs")


def router(
    accounts: Accounts = 10_000,
    symbols: Symbols = 20,
    positions: Positions = 3,
    trades: Trades = 300_000,
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Measure one router: fills a second from trades that lie in a real Kafka to frames by shard.

    Needs nothing: it starts a Kafka and a Valkey of its own, and a router process, and removes them. Prints fills/s and
    processor seconds per million trades of router and broker apart. The run ends with a check: the two fills of every
    trade are in the frames, each once, and no other.

    Exit codes: 0 measured, and the frames are right; 1 they are not, and it is said what differs; 2 a mistake in a
    flag, or a server that cannot be had.

    \b
    Example:
      margin-clearing bench router --trades 500000
    """
    from streams.bench.market import Traders
    from streams.bench.router import bench_router

    with _checked(as_json):
        run = bench_router(Traders(accounts, symbols, positions, seed=seed), trades, progress=_say)
        columns = (
            ("fills/s", "fills_per_s", ",.0f"),
            ("router CPU", "router_cpu_s_per_million_trades", ",.1f"),
            ("broker CPU", "broker_cpu_s_per_million_trades", ",.1f"),
            ("frames", "frames", ",d"),
            ("bytes/fill", "frame_bytes_per_fill", ",.0f"),
            ("seconds", "seconds", ",.2f"),
            ("noise", "others_share", ".0%"),
        )
        title = f"one router, {accounts:,} accounts, {symbols} symbols, {trades:,} trades of two fills"
        _show(title, [run], columns, as_json)
        _say(f"ok     two fills of each of {run.trades_checked:,} trades are in the frames, once")


def latency(
    accounts: Accounts = 10_000,
    symbols: Symbols = 20,
    positions: Positions = 3,
    probes: Annotated[
        int, typer.Option(min=1, max=20_000, help="Trades or prices of each run, and liquidation commands")
    ] = 1_000,
    probes_per_s: Annotated[float, typer.Option(min=0.1, max=1_000, help="How many of them are due a second")] = 20.0,
    trades_per_s: Annotated[
        float, typer.Option(min=0.1, max=100_000, help="Trades of others meanwhile, in the last run")
    ] = 2_000.0,
    streams_commit_ms: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=60_000,
            help="Measure Kafka Streams beside it, committing so often; may be repeated [default: not at all]",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Measure the time from the scheduled publication of a trade or a price to the liquidation command at its reader.

    Needs nothing: it starts a Kafka and a Valkey of its own, and router, oracle and engine, and removes them. An open
    loop: each trade or price is due at a time, lets exactly one account fall below its requirement, and counts from
    when it was due. First by trades, then by prices while nobody trades, then by prices while others trade. Prints p50,
    p99, p99.9 and the highest, of the whole and, by prices, of its stages: price to mark, mark to the broker's time of
    the command, and from there to a read_committed consumer. It ends with a check: one command for each cause and no
    other, and all accounts are what their records add up to.

    With --streams-commit-ms, Kafka Streams on a fresh Kafka of its own, from a trade to the state of its account at a
    read_committed consumer, which is the least that a command would take it (needs a JDK from 17 on).

    Exit codes: 0 measured, and everything is right; 1 something is not, and it is named; 2 a mistake in a flag, or a
    server that cannot be had.

    \b
    Example:
      margin-clearing bench latency --probes 500 --trades-per-s 1000 --streams-commit-ms 10
    """
    from streams.bench.latency import bench_latency
    from streams.bench.market import Traders
    from streams.bench.peer_latency import bench_peer_latency

    with _checked(as_json):
        population = Traders(accounts, symbols, positions, seed=seed)
        runs = bench_latency(population, probes, probes_per_s, trades_per_s, progress=_say)
        beside = [
            bench_peer_latency(commit_ms, probes, probes_per_s, progress=_say) for commit_ms in streams_commit_ms or ()
        ]
        _show_latencies(runs, beside, as_json)
        _say("ok     one command for each cause and no other, and the accounts are what their records add up to")


def pipeline(
    accounts: Accounts = 10_000,
    symbols: Symbols = 20,
    positions: Positions = 3,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            min=0.1,
            max=1_000_000,
            help="Trades a second; may be repeated, the lowest is first [default: 250, 1000, 2000 and 4000]",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="How long each rate is held")] = 30.0,
    backlog_s: Annotated[
        float, typer.Option(min=0.01, max=3_600, help="So many seconds of trades may wait at most")
    ] = 1.0,
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Measure the whole pipeline at steady rates of trades: what each costs, and which of them it keeps up with.

    Needs nothing: it starts a Kafka and a Valkey of its own, and router, oracle and engine, and removes them. Rates are
    tried from the lowest on, until the trades that wait are more than those of --backlog-s; that is said, and is no
    fault. Prints processor seconds per million trades by role and of the broker, commits/s and rows/s. It ends with a
    check: all accounts are what their records add up to.

    Exit codes: 0 measured, and every account is right; 1 one is not, and it is named; 2 a mistake in a flag, or a
    server that cannot be had.

    \b
    Example:
      margin-clearing bench pipeline --rate 250 --rate 2000 --seconds 20
    """
    from streams.bench.market import Traders
    from streams.bench.pipeline import bench_pipeline

    with _checked(as_json):
        population = Traders(accounts, symbols, positions, seed=seed)
        rates = rate or [250.0, 1_000.0, 2_000.0, 4_000.0]
        runs = bench_pipeline(population, rates, seconds, backlog_s, progress=_say)
        if as_json:
            _print_json(runs)
        else:
            console.print(show.of_rates(f"router, oracle and engine, {accounts:,} accounts, {symbols} symbols", runs))
        kept = [run.trades_per_s for run in runs if run.is_sustained]
        _say(f"highest of these rates that was kept up with: {f'{max(kept):,.0f} trades/s' if kept else 'none'}")
        _say("ok     all accounts are what their records add up to")


def peers(
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Which peer, kafka-streams, faust or quix; may be repeated [default: all three]", show_default=False
        ),
    ] = None,
    accounts: Accounts = 10_000,
    symbols: Symbols = 20,
    positions: Positions = 3,
    trades: Trades = 50_000,
    before: Annotated[
        int,
        typer.Option(min=0, max=100_000_000, help="Trades before the clock starts, beside those that open positions"),
    ] = 10_000,
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Measure the fills job as this pipeline does it beside Kafka Streams, Faust and Quix Streams.

    Needs nothing but a JDK from 17 on for Kafka Streams: what else is missing is brought once into the cache. Every
    contender splits the same trades into fills, sends them to their accounts and keeps each account's positions, in two
    processes or threads (Faust: one) on a fresh Kafka of its own; this pipeline also judges margin. A peer that cannot
    be had or does not get done is left out, and it is said why. Prints fills/s and processor seconds per million
    trades, of each and of its broker. It ends with a check of each: the states of all accounts are what the trades add
    up to.

    Exit codes: 0 measured, and every account is right; 1 one is not, and it is named; 2 a mistake in a flag, or a
    server that cannot be had.

    \b
    Example:
      margin-clearing bench peers --peer kafka-streams --trades 200000
    """
    from infra.bench.peers.launch import PEERS
    from streams.bench.market import Traders
    from streams.bench.peers import bench_peers

    names = list(PEERS) if peer is None else peer
    if unknown := [name for name in names if name not in PEERS]:
        raise BenchError(f"--peer {unknown[0]}: must be one of {', '.join(PEERS)}")
    with _checked(as_json):
        population = Traders(accounts, symbols, positions, seed=seed)
        compared = bench_peers(population, trades, before, names, progress=_say)
        if as_json:
            print(json.dumps(asdict(compared), indent=2))
        else:
            title = f"the fills job, {accounts:,} accounts, {symbols} symbols, {trades:,} trades of two fills"
            _show(title, compared.runs, _OF_PEERS, as_json)
        for name, reason in compared.left_out.items():
            _say(f"left out {name}: {reason}")
        _say(f"ok     all accounts are what the trades add up to, for each of {len(compared.runs)}")


def oracle(
    symbols: Annotated[int, typer.Option(min=1, max=5_000, help="Symbols, of three sources each")] = 500,
    per_s: Annotated[int, typer.Option(min=1, max=1_000_000, help="Prices a second, in the second run")] = 10_000,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="How long they come")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measure one oracle: what a price costs, how many it takes a second, and how long it is until its mark is read.

    Needs nothing: it starts a Kafka and a Valkey of its own, and an oracle process, and removes them. First as many
    prices as the second run has lie there at once, then they come at the pace. Prints processor time for each price,
    frames/s, and milliseconds from a price's publication to its mark at a reader. Each run ends with a check: the last
    mark of every symbol is what the same prices make without Kafka.

    Exit codes: 0 measured, and every mark is right; 1 one is not, and it is named; 2 a mistake in a flag, or a server
    that cannot be had.

    \b
    Example:
      margin-clearing bench oracle --per-s 20000 --seconds 8
    """
    from streams.bench.oracle import bench_oracle

    with _checked(as_json):
        runs = bench_oracle(symbols, per_s, seconds, progress=_say)
        columns = (
            ("prices", "load", ""),
            ("prices/s", "prices_per_s", ",.0f"),
            ("CPU us each", "cpu_us_per_price", ",.0f"),
            ("of a core", "cores", ".0%"),
            ("frames/s", "frames_per_s", ",.0f"),
            ("p50 ms", "p50_ms", ",.1f"),
            ("p99 ms", "p99_ms", ",.1f"),
            ("max ms", "max_ms", ",.1f"),
        )
        _show(
            f"one oracle, {symbols:,} symbols of three sources, {runs[0].prices:,} prices", runs, columns, as_json, ""
        )
        _say("ok     every mark is what the same prices make without Kafka")


def restore(
    accounts: Annotated[int, typer.Option(min=1, max=10_000_000, help="Accounts of the shard")] = 100_000,
    kafka_streams: Annotated[
        bool,
        typer.Option(
            "--kafka-streams",
            help="Let Kafka Streams restore as many states beside it [default: not]",
            show_default=False,
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how long an engine takes to restore a large shard, from the changelog and from Redis, and in what steps.

    Needs nothing: it starts a Kafka and a Valkey of its own, and removes them. Prints for each how long it took, and
    the longest cycle meanwhile, which is what other shards of the engine would wait at most. Each run ends with a
    check: the table in Redis holds every row as it was written. Kafka Streams, on a fresh Kafka of its own, needs a JDK
    from 17 on; it restores bytes into RocksDB, and reads a state when it is used.

    Exit codes: 0 measured, and every row is right; 1 one is not, and it is named; 2 a mistake in a flag, or a server
    that cannot be had.

    \b
    Example:
      margin-clearing bench restore --accounts 10000 --kafka-streams
    """
    from streams.bench.restore import bench_restore, bench_streams_restore

    with _checked(as_json):
        runs = bench_restore(accounts, progress=_say)
        if kafka_streams:
            runs.append(bench_streams_restore(accounts, progress=_say))
        columns = (
            ("from", "source", ""),
            ("seconds", "seconds", ",.2f"),
            ("cycles", "cycles", ",d"),
            ("longest, ms", "longest_ms", ",.0f"),
        )
        _show(f"a shard of {accounts:,} accounts", runs, columns, as_json, unit="")
        _say(f"ok     {accounts:,} rows are what was written, after each")


def rescale(
    accounts: Annotated[int, typer.Option(min=40, max=10_000_000, help="Accounts, of three positions each")] = 100_000,
    first: Annotated[int, typer.Option("--from", min=1, max=64, help="Shards at first")] = 4,
    target: Annotated[int, typer.Option("--to", min=1, max=64, help="Shards in the end")] = 7,
    trades_per_s: Annotated[int, typer.Option(min=10, max=100_000, help="Trades a second meanwhile")] = 500,
    as_json: AsJson = False,
) -> None:
    """Measure for how long accounts are not decided while they move to another number of shards.

    Needs nothing: it starts a Kafka and a Valkey of its own, a router and an engine, and removes them. Trades go on
    meanwhile. Prints for each pair of shards how many accounts went and the time from the commit with which the old one
    sends them away to that with which the new one has them, by the broker's clock, and how long all took. The
    run ends with a check: every account has one row, in the shard that it is in by then, with every trade in it.

    Exit codes: 0 measured, and every account is right; 1 one is not, and it is named; 2 a mistake in a flag, or a
    server that cannot be had.

    \b
    Example:
      margin-clearing bench rescale --accounts 20000 --from 4 --to 7
    """
    from streams.bench.rescale import bench_rescale

    with _checked(as_json):
        run = bench_rescale(accounts, first, target, trades_per_s=trades_per_s, progress=_say)
        columns = (
            ("step", "step", ",d"),
            ("from", "pair", ""),
            ("accounts", "accounts", ",d"),
            ("pause, ms", "pause_ms", ",.0f"),
        )
        title = f"{run.moved:,} of {accounts:,} accounts in {run.seconds:,.1f} s"
        _show(title, run.pauses, columns, as_json, unit="")
        _say(f"ok     {accounts:,} accounts are where they belong, with every trade")


def memory(
    seconds: Annotated[float, typer.Option(min=30, max=604_800, help="How long the load lasts")] = 300.0,
    new_accounts: Annotated[float, typer.Option(min=0, max=10_000, help="Accounts that come a second")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measure whether memory stays flat: the resident set of each role under steady load, every ten seconds.

    Needs nothing: it starts a Kafka and a Valkey of its own, and the three roles, and removes them. Prints the samples,
    and for each role how much it grew from a third of the time to the end. What an engine has of an account stays in
    its memory: each one that comes may take 2 KiB of it, and that is no growth.

    Exit codes: 0 no role grew by more than a tenth; 1 one did, and it is named; 2 a mistake in a flag, or a server that
    cannot be had.

    \b
    Example:
      margin-clearing bench memory --seconds 120 --new-accounts 100
    """
    from streams.bench.memory import GROWTH_MAX, bench_memory

    with _checked(as_json), contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        samples = bench_memory(seconds, new_accounts)
        growth = {role: samples.growth(role) for role in samples.kib}
    if as_json:
        plain: dict[str, object] = {role: {"kib": kib, "growth": growth[role]} for role, kib in samples.kib.items()}
        print(json.dumps(plain | {"accounts": samples.accounts}, indent=2))
    if samples.came:
        _say(f"{samples.came:,} accounts came from then on: {samples.bytes_an_account():,.0f} bytes of engine for each")
    for role, share in growth.items():
        _say(
            f"{'ok    ' if share <= GROWTH_MAX else 'FAILED'} {role}: {share:+.1%} from a third of the time to the end"
        )
    if max(growth.values()) > GROWTH_MAX:
        raise typer.Exit(1)


def _drawn(how: str) -> "Drawn":
    if how not in ("uniform", "zipf"):
        raise BenchError(f"--drawn {how}: must be uniform or zipf")
    return cast("Drawn", how)


def _shared(shards: Sequence[int], engines: Sequence[int]) -> list[tuple[int, int]]:
    """The combinations of shards and engines in which every engine has a shard."""
    shared = [(count, members) for count in shards for members in engines if members <= count]
    if not shared:
        raise BenchError(f"--engines {min(engines)}: an engine would have no shard, with --shards {max(shards)}")
    return shared


@contextlib.contextmanager
def _checked(as_json: bool) -> Iterator[None]:
    """Whatever differs ends with exit code 1. The clients' own words are in the error that a bench ends with."""
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        yield
    except BenchDiffers as error:
        if as_json:
            print(json.dumps({"run": error.run, "differences": error.differences}, indent=2))
        _progress.print(line(("FAILED", "red"), f" {error.run}: no figure, because"))
        for difference in error.differences[:20]:
            _progress.print(line(f"       {difference}"), soft_wrap=True)
        if len(error.differences) > 20:
            _progress.print(f"       and {len(error.differences) - 20:,} more")
        raise typer.Exit(1) from None


def _show(title: str, runs: Sequence[Any], columns: Iterable[Column], as_json: bool, unit: str = show.UNIT) -> None:
    if as_json:
        _print_json(runs)
        return
    table = show.table(title, unit)
    shown = list(columns)
    for heading, _, spec in shown:
        table.add_column(heading, justify="right" if spec else "left")
    for run in runs:
        table.add_row(*(format(attrgetter(field)(run), spec) for _, field, spec in shown))
    console.print(table)


def _show_latencies(runs: "Sequence[LatencyTimes]", beside: "Sequence[PeerLatency]", as_json: bool) -> None:
    if as_json:
        _print_json([*runs, *beside])
        return
    for run in runs:
        console.print(show.of_latencies(run))
    if beside:
        columns = (
            ("commit.interval.ms", "commit_ms", "d"),
            ("p50", "total.p50", ",.1f"),
            ("p99", "total.p99", ",.1f"),
            ("p99.9", "total.p999", ",.1f"),
            ("max", "total.max", ",.1f"),
        )
        _show(f"{beside[0].name}, trade due to state visible; ms", beside, columns, as_json, unit="")


def _print_json(runs: Sequence[Any]) -> None:
    print(json.dumps([asdict(run) for run in runs], indent=2))


def _say(text: str) -> None:
    _progress.print(line(text), soft_wrap=True)
