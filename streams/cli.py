"""The command ``margin-clearing``: one sub-command a role or tool, all with the same settings.

Parsing and printing only: each command calls one function of the room that does the work. Errors raised on purpose are
printed in one line and end with exit code 2; everything else is a bug and shows its traceback.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.codec import DecodeError
from streams import logs
from streams.access.redis_address import holds_password
from streams.errors import MarginClearingError, SettingsError
from streams.redaction import redacted
from streams.settings import Loaded, Settings, describe, read, variable

app = typer.Typer(
    name="margin-clearing",
    help="Automated margin clearing beside Kafka: trades and prices in, liquidation commands out, exactly once.",
    epilog="Settings: MARGIN_SECTION__FIELD in the environment (see `margin-clearing settings`), then the flags.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(
    help="Measure parts of the pipeline on this machine.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(bench, name="bench")
console = Console()
T = TypeVar("T")

BootstrapServers = Annotated[
    str | None, typer.Option(help="Kafka's addresses, host:port,host:port [MARGIN_KAFKA__BOOTSTRAP_SERVERS]")
]
RedisUrl = Annotated[str | None, typer.Option(help="Redis or Valkey, redis://host:port/db [MARGIN_REDIS__URL]")]
InstanceId = Annotated[
    str | None,
    typer.Option(help="A name that survives restarts: static group membership [MARGIN_SERVICE__INSTANCE_ID]"),
]
MetricsPort = Annotated[
    int | None, typer.Option(help="Serve /metrics, /livez and /readyz here [MARGIN_SERVICE__METRICS_PORT]")
]
LogLevel = Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR [MARGIN_SERVICE__LOG_LEVEL]")]
LogFormat = Annotated[str | None, typer.Option(help="json or text [MARGIN_SERVICE__LOG_FORMAT]")]
Shards = Annotated[int | None, typer.Option(help="Partitions of margin.events.v1 [MARGIN_TOPICS__SHARDS]")]


_FLAGS = {
    "bootstrap_servers": "kafka.bootstrap_servers",
    "redis_url": "redis.url",
    "instance_id": "service.instance_id",
    "metrics_port": "service.metrics_port",
    "log_level": "service.log_level",
    "log_format": "service.log_format",
    "shards": "topics.shards",
    "partitions": "topics.partitions",
    "replication_factor": "topics.replication_factor",
}
"""The setting of each flag."""


def _settings(**flags: Any) -> Settings:
    return _read_settings(**flags).settings


def _read_settings(**flags: Any) -> Loaded:
    if flags.get("redis_url") and holds_password(flags["redis_url"]):
        raise SettingsError(
            "--redis-url holds a password, which every user of this machine can read in the list of processes: give "
            "it by MARGIN_REDIS__URL, MARGIN_REDIS__PASSWORD or MARGIN_REDIS__PASSWORD_FILE"
        )
    return read(
        overrides={_FLAGS[flag]: value for flag, value in flags.items()},
        flags={_FLAGS[flag]: f"--{flag.replace('_', '-')}" for flag in flags},
    )


def _role(run: Callable[[Settings], None], **flags: Any) -> None:
    settings = _settings(**flags)
    logs.configure(settings.service.log_level, settings.service.log_format, settings.worker_name)
    run(settings)


@app.command()
def router(
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    instance_id: InstanceId = None,
    metrics_port: MetricsPort = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run the router: trades, transfers and reports into frames by account shard, exactly once.

    Start as many as trades.v1 has partitions. SIGTERM finishes the batch in hand and leaves the group.
    """
    from streams.routing.router import run

    _role(
        run,
        bootstrap_servers=bootstrap_servers,
        redis_url=redis_url,
        instance_id=instance_id,
        metrics_port=metrics_port,
        log_level=log_level,
        log_format=log_format,
    )


@app.command()
def oracle(
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    instance_id: InstanceId = None,
    metrics_port: MetricsPort = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run the oracle: many sources' prices into one validated mark a symbol, and the heartbeat.

    One process publishes; a second one stands by and takes over when the first is gone.
    """
    from streams.oracle.app import run

    _role(
        run,
        bootstrap_servers=bootstrap_servers,
        redis_url=redis_url,
        instance_id=instance_id,
        metrics_port=metrics_port,
        log_level=log_level,
        log_format=log_format,
    )


@app.command()
def engine(
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    instance_id: InstanceId = None,
    metrics_port: MetricsPort = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run an engine: collateral state per account, and the liquidation commands.

    Start as many as you like up to the partition count of margin.events.v1: they share the shards. SIGTERM commits,
    hands the shards over and leaves.
    """
    from streams.clearing.engine import run

    _role(
        run,
        bootstrap_servers=bootstrap_servers,
        redis_url=redis_url,
        instance_id=instance_id,
        metrics_port=metrics_port,
        log_level=log_level,
        log_format=log_format,
    )


@app.command()
def topics(
    bootstrap_servers: BootstrapServers = None,
    shards: Shards = None,
    partitions: Annotated[
        int | None,
        typer.Option(help="Partitions of the exchange's topics, if created here [MARGIN_TOPICS__PARTITIONS]"),
    ] = None,
    replication_factor: Annotated[
        int | None, typer.Option(help="Replicas; -1 is the broker's default [MARGIN_TOPICS__REPLICATION_FACTOR]")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Create nothing, only compare")] = False,
) -> None:
    """Create the topics that are missing and verify the rest. Exit code 1 if anything is wrong.

    Nothing is ever altered or deleted.
    """
    from streams.broker.admin import ensure_topics

    settings = _settings(
        bootstrap_servers=bootstrap_servers, shards=shards, partitions=partitions, replication_factor=replication_factor
    )
    report = ensure_topics(settings, create=not verify)
    for name in report.created:
        console.print(f"created  {name}")
    for name in report.right:
        console.print(f"right    {name}")
    for fault in report.wrong:
        console.print(f"[red]wrong[/]    {fault}", highlight=False)
    if report.wrong:
        raise typer.Exit(1)


@app.command()
def account(
    account_id: Annotated[str, typer.Argument(metavar="ID", help="The account")],
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Show an account: balances, positions, equity, maintenance, health ratio, liquidation prices at current marks.

    The account and the marks come from Redis, the parameters from Kafka.
    """
    from streams.console.account import read_account, show_account

    view = read_account(_settings(bootstrap_servers=bootstrap_servers, redis_url=redis_url), account_id)
    if view is None:
        console.print(f"no account {account_id!r}: it has never had a transfer, a trade or a command", highlight=False)
        raise typer.Exit(1)
    if as_json:
        print(json.dumps(view.as_json(), indent=2))
    else:
        show_account(console, view)


@app.command()
def status(
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    shards: Shards = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Show how a running deployment is doing: who owns what, lags, marks, tables. Exit code 1 if anything is wrong.

    Read from Kafka and Redis only; nothing is written and no process is asked.
    """
    from streams.console.status import judge, read_status, show_status

    given = _settings(bootstrap_servers=bootstrap_servers, redis_url=redis_url, shards=shards)
    found = read_status(given)
    faults = judge(found, given)
    if as_json:
        print(json.dumps(found.as_json() | {"faults": faults}, indent=2))
    else:
        show_status(console, found, faults)
    if faults:
        raise typer.Exit(1)


@app.command()
def replay(
    shard: Annotated[int | None, typer.Option(help="The shard; every one if not given")] = None,
    first: Annotated[int | None, typer.Option("--from", help="Compare from this journal sequence on")] = None,
    last: Annotated[int | None, typer.Option("--to", help="Compare up to this journal sequence")] = None,
    bootstrap_servers: BootstrapServers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Run a shard's journal again from the logs and compare what was committed, byte for byte. Reads only.

    The journal says which events, marks and parameters each commit covered, in which order and where a new owner took
    the shard; the same code must give the same commands, alerts, account rows and journal records. Whatever differs is
    named with its place and field, and the exit code is 1.

    It begins where the logs still hold everything that follows, at the first commit of all if they can, and says so.
    Rows that compaction has removed are counted, not compared. What runs is this version's code: commits of one that
    decided otherwise differ rightly.
    """
    from streams.audit.log import KafkaLog
    from streams.audit.replay import replay_shards
    from streams.audit.show import progress_bar, show_replay

    if shard is None and (first is not None or last is not None):
        raise typer.BadParameter("sequences are those of one shard: give --shard as well")
    with KafkaLog(_settings(bootstrap_servers=bootstrap_servers).kafka) as log, progress_bar() as progress:
        results = replay_shards(log, shard, first=first, last=last, progress=progress)
    if as_json:
        print(json.dumps([result.as_json() for result in results], indent=2))
    else:
        for result in results:
            show_replay(console, result)
    if not all(result.findings.passed for result in results):
        raise typer.Exit(1)


@app.command()
def explain(
    command_id: Annotated[str, typer.Argument(metavar="COMMAND_ID", help="ACCOUNT:NUMBER, such as acct-17:3")],
    bootstrap_servers: BootstrapServers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Explain a liquidation command: the group as it was, every term of its equity and margin, the plan. Reads only.

    The account is set up as it was before the commit that issued the command, and that commit is run again from the
    logs. Shown are the marks with the source prices they were formed from, the parameter records in force, each balance
    and position with what it counted for, the shortage, and the orders. Exit code 1 if they do not give the command.
    """
    from streams.audit.explain import explain as explain_command
    from streams.audit.log import KafkaLog
    from streams.audit.show import progress_bar, show_explanation

    with KafkaLog(_settings(bootstrap_servers=bootstrap_servers).kafka) as log, progress_bar() as progress:
        found = explain_command(log, command_id, progress)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        show_explanation(console, found)
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def verify(
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Verify a deployment while it runs: topics, journals, commands, alerts, offsets, tables, money. Reads only.

    Topics are as the contract needs them; journals have no gaps; commands and alerts are numbered without gaps or
    repeats and are those that the journals and rows count; committed offsets are the journals'; Redis holds the
    changelog's rows; what the accounts hold is what the inputs brought, as far as these are still complete. Whatever
    differs is named with its place, and the exit code is 1. How far anything lags behind is told and no difference.
    """
    from streams.audit.show import progress_bar, show_findings
    from streams.audit.verify import verify_deployment

    settings = _settings(bootstrap_servers=bootstrap_servers, redis_url=redis_url)
    with progress_bar() as progress:
        findings = verify_deployment(settings, progress)
    if as_json:
        print(json.dumps(findings.as_json(), indent=2))
    else:
        show_findings(console, findings)
    if not findings.passed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    file: Annotated[Path | None, typer.Argument(help="JSON; standard input if not given", dir_okay=False)] = None,
) -> None:
    """Evaluate an account at given parameters and marks: equity, margins, liquidation prices and the plan.

    Input: {"parameters": [records of risk.parameters.v1], "marks": {symbol: price}, "account": {"account", "balances":
    {asset: amount}, "positions": [{"symbol", "quantity", "entry_price", "margin"?}]}}, or a list of such objects.
    The code is the engine's own.
    """
    from streams.margin.evaluate import evaluate_request

    try:
        data = sys.stdin.buffer.read() if file is None else file.read_bytes()
    except OSError as error:
        raise MarginClearingError(f"{file}: {error.strerror}") from None
    sys.stdout.buffer.write(evaluate_request(data) + b"\n")


@app.command()
def demo(
    trades: Annotated[Path | None, typer.Option(help="Recorded trades, CSV (.gz) as in the carried recording")] = None,
    quotes: Annotated[Path | None, typer.Option(help="Recorded quotes, CSV (.gz) as in the carried recording")] = None,
    speed: Annotated[float | None, typer.Option(help="Market seconds a second; 1 is real time")] = None,
    seconds: Annotated[float | None, typer.Option(help="Play only the first so many seconds of the market")] = None,
    accounts: Annotated[int | None, typer.Option(help="Size of the drawn population")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn")] = None,
    engines: Annotated[int | None, typer.Option(help="Engine processes")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write the summary as JSON here")] = None,
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
) -> None:
    """Replay a recorded market through the whole pipeline and check the result. Exit code 1 if a check fails.

    Starts a local Kafka and Valkey unless addresses are given. The quotes and trades are real; the accounts are drawn.
    """
    from streams.demo.run import DemoOptions, run_demo

    given: dict[str, Any] = {
        "trades": trades,
        "quotes": quotes,
        "speed": speed,
        "seconds": seconds,
        "accounts": accounts,
        "seed": seed,
        "engines": engines,
        "summary": summary,
        "bootstrap_servers": bootstrap_servers,
        "redis_url": redis_url,
    }
    raise typer.Exit(run_demo(DemoOptions(**{name: value for name, value in given.items() if value is not None})))


@app.command()
def local(
    kafka_port: Annotated[int, typer.Option(help="Port of Kafka; 0 takes a free one")] = 0,
    redis_port: Annotated[int, typer.Option(help="Port of Valkey; 0 takes a free one")] = 0,
    keep_data: Annotated[Path | None, typer.Option(help="Keep the data here and use it again next time")] = None,
) -> None:
    """Keep a local Kafka and Valkey up for development, with the topics created, until Ctrl-C."""
    from infra.local.stack import run_local

    run_local(kafka_port=kafka_port, redis_port=redis_port, keep_data=keep_data)


@bench.command()
def ticks(
    accounts: Annotated[int, typer.Option(min=1, help="Accounts, one margin group each")] = 100_000,
    positions: Annotated[int, typer.Option(min=1, help="Positions of each account, in as many symbols")] = 3,
    symbols: Annotated[int, typer.Option(min=1, help="Symbols, at least as many as positions")] = 50,
    calm_ticks: Annotated[int, typer.Option(min=1, help="Ticks of the calm walk")] = 5_000,
    seed: Annotated[int, typer.Option(help="Seed of the accounts and of the walk")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Time a new mark in the engine's arithmetic: the trigger index beside a full re-evaluation with NumPy.

    A calm walk (one symbol a tick, a basis point each), then a crash of 10 % of one symbol, then of all of them. All
    accounts are margined by tiers and hold USDC; a million of them need about 2 GiB and a minute.
    """
    from infra.bench.ticks import bench_ticks, show_ticks

    progress = Console(stderr=True)
    found = bench_ticks(
        accounts, positions, symbols, seed, calm_ticks, progress=lambda text: progress.print(text, highlight=False)
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        show_ticks(console, found)


@app.command()
def settings(
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    instance_id: InstanceId = None,
    metrics_port: MetricsPort = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    shards: Shards = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Show the settings in force and what set each: the default, a variable, the file it names, or a flag.

    Secrets are masked. The flags are those of the roles, to see what they would change.
    """
    found = _read_settings(
        bootstrap_servers=bootstrap_servers,
        redis_url=redis_url,
        instance_id=instance_id,
        metrics_port=metrics_port,
        log_level=log_level,
        log_format=log_format,
        shards=shards,
    )
    rows = {
        variable(section, field): {"value": value, "set_by": found.set_by[section, field]}
        for section, fields in describe(found.settings).items()
        for field, value in fields.items()
    }
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("variable", "value", "set by", box=None)
    for name, row in rows.items():
        table.add_row(*(Text(str(cell), overflow="fold") for cell in (name, row["value"], row["set_by"])))
    console.print(table)


def main() -> None:
    """The entry point of ``margin-clearing``."""
    logs.guard_output()
    try:
        app()
    except (MarginClearingError, DecodeError) as error:
        print(f"margin-clearing: {redacted(str(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
