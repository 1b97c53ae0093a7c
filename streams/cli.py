"""The command ``margin-clearing``: one sub-command a role or tool, all with the same settings.

Parsing and printing only: each command calls one function of the room that does the work. Errors raised on purpose are
printed in one line and end with exit code 2; everything else is a bug and shows its traceback. Help is plain text: in a
markup its brackets and braces would be lost.
"""

import contextlib
import dataclasses
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Annotated, Any, Protocol, runtime_checkable

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.local.errors import LocalStackError
from schemas.codec import DecodeError
from streams import interruption, logs
from streams.access.redis_address import holds_password
from streams.bench import commands as benches
from streams.errors import MarginClearingError, SettingsError, TableError
from streams.redaction import hide_arguments, redacted
from streams.settings import DEFAULT, Loaded, Settings, describe, read, schema, variable
from streams.terminal import line
from streams.visible import visible, visible_lines

log = logging.getLogger(__name__)

_EXIT_CODES = (
    "Exit codes: 0 well, 1 something is wrong and named, 2 a mistake of yours or a server that cannot be reached, "
    "70 a role that hung and ended itself, 130 and 143 ended by Ctrl-C and SIGTERM."
)

app = typer.Typer(
    name="margin-clearing",
    help="Automated margin clearing beside Kafka: trades and prices in, liquidation commands out, exactly once.\n\n"
    "New here? `margin-clearing demo` shows all of it on this machine and needs nothing.\n\n" + _EXIT_CODES,
    epilog="Settings: MARGIN_SECTION__FIELD in the environment (see `margin-clearing settings`), then the flags.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
bench = typer.Typer(
    help="Measure parts of the pipeline on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(bench, name="bench")
benches.add_to(bench)
console = Console()
KAFKA = ("--bootstrap-servers", "MARGIN_KAFKA__BOOTSTRAP_SERVERS")
REDIS = ("--redis-url", "MARGIN_REDIS__URL")

_DEFAULTS = Settings()


def _set_by(path: str) -> Any:
    """The option of a setting; its help names the variable and the default that are in force without it."""
    section, field = path.split(".")
    default = getattr(getattr(_DEFAULTS, section), field)
    return typer.Option(help=_help(section, field, str(default) if default != "" else "none"))


def _told(path: str) -> Any:
    """The option of where a command writes, which has no default."""
    section, field = path.split(".")
    return typer.Option(help=_help(section, field, "none, it must be given"))


def _help(section: str, field: str, default: str) -> str:
    field_schema = schema(section, field)
    meaning = field_schema["description"].replace("`", "")
    choices = f": {', '.join(field_schema['enum'])}" if "enum" in field_schema else ""
    return f"{meaning[0].upper()}{meaning[1:]}{choices} [env: {variable(section, field)}; default: {default}]"


def _else(default: str, text: str, *names: str, **rules: Any) -> Any:
    """An option that may be left away; its help says what is so then."""
    return typer.Option(*names, help=f"{text} [default: {default}]", show_default=False, **rules)


def _which(name: str, text: str) -> Any:
    """An argument of a place, which is left away where a flag stands for all of them."""
    return typer.Argument(metavar=name, help=f"{text} [default: none, with --all-committed]", show_default=False)


BootstrapServers = Annotated[str | None, _set_by("kafka.bootstrap_servers")]
RedisUrl = Annotated[str | None, _set_by("redis.url")]
WriteTo = Annotated[str | None, _told("kafka.bootstrap_servers")]
WriteTables = Annotated[str | None, _told("redis.url")]
InstanceId = Annotated[str | None, _set_by("service.instance_id")]
MetricsPort = Annotated[int | None, _set_by("service.metrics_port")]
LogLevel = Annotated[str | None, _set_by("service.log_level")]
LogFormat = Annotated[str | None, _set_by("service.log_format")]
Shards = Annotated[int | None, _set_by("topics.shards")]
RecordedTrades = Annotated[
    Path | None, _else("the carried one", "Recorded trades, CSV (.gz) as in the carried recording")
]
RecordedQuotes = Annotated[
    Path | None, _else("the carried one", "Recorded quotes, CSV (.gz) as in the carried recording")
]
FurtherSettings = Annotated[
    list[str] | None, _else("none", "A further setting, MARGIN_SECTION__FIELD=VALUE; may be repeated")
]
IntoThisCluster = Annotated[
    bool, _else("refuse", "Run even if what was given holds what is not the demo's own", "--into-this-cluster")
]
AsJson = Annotated[bool, _else("tables for a person", "Print JSON", "--json")]


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


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"margin-clearing {version('margin-clearing')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


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


def _require_said(value: str | None, flag: str, variable: str) -> None:
    """Refuse to write to a place that nobody named: what answers on this machine may be a tunnel to somewhere else.

    Raises:
        SettingsError: neither the flag nor the variable (nor the one that names a file with it) is there.
    """
    if value is None and not (os.environ.get(variable) or os.environ.get(f"{variable}_FILE")):
        raise SettingsError(
            f"say where to write with {flag} or {variable}: a command that writes takes no default, "
            "not even this machine's"
        )


def _role(name: str, *, redis: bool, **flags: Any) -> None:
    """Start a role: once Kafka has answered, because a process that waits in silence helps nobody.

    A role is started again by whatever runs it. Redis is a copy: without it a role starts all the same, and says so.
    """
    settings = _settings(**flags)
    _require_said(flags["bootstrap_servers"], *KAFKA)
    if redis:
        _require_said(flags["redis_url"], *REDIS)
    logs.configure(settings.service.log_level, settings.service.log_format, settings.worker_name)
    with interruption.prompt():
        _reach(settings)
        if redis:
            try:
                _reach(settings, kafka=False, redis=True)
            except TableError as error:
                logs.event(log, logging.ERROR, "redis_unreachable", reason=str(error))
        run = _run_of(name)
    run(settings)


def _run_of(role: str) -> Callable[[Settings], None]:
    if role == "router":
        from streams.routing.router import run
    elif role == "oracle":
        from streams.oracle.app import run
    else:
        from streams.clearing.engine import run
    return run


@contextlib.contextmanager
def _tool(settings: Settings, *, redis: bool = False) -> Iterator[Settings]:
    """Run a tool that only reads: servers that answer, an end within half a second of Ctrl-C, and no log lines.

    What the clients have to say is in the error that the tool ends with.
    """
    logging.getLogger().addHandler(logging.NullHandler())
    with interruption.prompt():
        _reach(settings, redis=redis)
        yield settings


def _reach(settings: Settings, *, kafka: bool = True, redis: bool = False) -> None:
    if kafka:
        from streams.broker.connection import require_kafka

        require_kafka(settings.kafka)
    if redis:
        from streams.tables.reach import require_redis

        require_redis(settings.redis)


@app.command()
def router(
    bootstrap_servers: WriteTo = None,
    redis_url: RedisUrl = None,
    instance_id: InstanceId = None,
    metrics_port: MetricsPort = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run the router: trades, transfers and reports into frames by account shard, exactly once.

    Start as many as trades.v1 has partitions. SIGTERM finishes the batch in hand and leaves the group. Needs Kafka with
    the topics (see `margin-clearing topics`); it has no use for Redis. Logs go to standard error.

    Exit codes: 0 stopped by SIGTERM or Ctrl-C; 2 Kafka cannot be reached within 5 s, is not as it must be, or went
    away for good: start it again; 70 ended by its own watchdog: start it again.

    \b
    Example:
      margin-clearing router --bootstrap-servers kafka-1:9092,kafka-2:9092 --metrics-port 9100
    """
    _role(
        "router",
        redis=False,
        bootstrap_servers=bootstrap_servers,
        redis_url=redis_url,
        instance_id=instance_id,
        metrics_port=metrics_port,
        log_level=log_level,
        log_format=log_format,
    )


@app.command()
def oracle(
    bootstrap_servers: WriteTo = None,
    redis_url: WriteTables = None,
    instance_id: InstanceId = None,
    metrics_port: MetricsPort = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run the oracle: many sources' prices into one validated mark a symbol, and the heartbeat.

    One process publishes; a second one stands by and takes over when the first is gone. Needs Kafka with the topics
    (see `margin-clearing topics`); Redis may be away. Logs go to standard error.

    Exit codes: 0 stopped by SIGTERM or Ctrl-C; 1 broken, or replaced by another process: start it again; 2 Kafka
    cannot be reached within 5 s or is not as it must be: start it again; 70 ended by its own watchdog: start it again.

    \b
    Example:
      margin-clearing oracle --bootstrap-servers kafka-1:9092 --redis-url redis://redis:6379/0 --metrics-port 9100
    """
    _role(
        "oracle",
        redis=True,
        bootstrap_servers=bootstrap_servers,
        redis_url=redis_url,
        instance_id=instance_id,
        metrics_port=metrics_port,
        log_level=log_level,
        log_format=log_format,
    )


@app.command()
def engine(
    bootstrap_servers: WriteTo = None,
    redis_url: WriteTables = None,
    instance_id: InstanceId = None,
    metrics_port: MetricsPort = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run an engine: collateral state per account, and the liquidation commands.

    Start as many as you like up to the partition count of margin.events.v1: they share the shards. SIGTERM commits,
    hands the shards over and leaves. Needs Kafka with the topics (see `margin-clearing topics`); Redis may be away.
    Logs go to standard error.

    Exit codes: 0 stopped by SIGTERM or Ctrl-C; 2 Kafka cannot be reached within 5 s, is not as it must be, or went
    away for good: start it again; 70 ended by its own watchdog: start it again.

    \b
    Example:
      margin-clearing engine --bootstrap-servers kafka-1:9092 --redis-url redis://redis:6379/0 --metrics-port 9100
    """
    _role(
        "engine",
        redis=True,
        bootstrap_servers=bootstrap_servers,
        redis_url=redis_url,
        instance_id=instance_id,
        metrics_port=metrics_port,
        log_level=log_level,
        log_format=log_format,
    )


@app.command()
def topics(
    bootstrap_servers: WriteTo = None,
    shards: Shards = None,
    partitions: Annotated[int | None, _set_by("topics.partitions")] = None,
    replication_factor: Annotated[int | None, _set_by("topics.replication_factor")] = None,
    verify: Annotated[bool, _else("create what is missing", "Create nothing, only compare", "--verify")] = False,
) -> None:
    """Create the topics that are missing and verify the rest.

    Nothing is ever altered or deleted. Over how many shards accounts are spread is written once, to margin.layout.v1,
    and is no setting from then on: partitions may be added to the topics of the shards and are not used. Needs Kafka.
    Prints a line a topic: created, right, or wrong with what it is and must be, and the number of shards. A topic that
    this client is not authorised to see is said to be that.

    Exit codes: 0 all topics are right; 1 something is wrong; 2 Kafka cannot be reached, or a flag is wrong.

    \b
    Example:
      margin-clearing topics --bootstrap-servers kafka-1:9092 --shards 32 --replication-factor 3
    """
    from streams.broker.admin import ensure_topics
    from streams.broker.layout import spread_clauses

    given = _read_settings(
        bootstrap_servers=bootstrap_servers, shards=shards, partitions=partitions, replication_factor=replication_factor
    )
    if not verify:
        _require_said(bootstrap_servers, *KAFKA)
    with _tool(given.settings) as settings:
        report = ensure_topics(settings, create=not verify)
    asked, by = settings.topics.shards, given.set_by["topics", "shards"]
    if (layout := report.layout) is not None:
        console.print("; ".join(spread_clauses(layout)))
        if by != DEFAULT and asked != layout.shards:
            report.wrong.append(f"{by} asks for {asked} shards: accounts stay in the shards in which they are")
    for name in report.created:
        console.print(line(f"created  {name}"))
    for name in report.right:
        console.print(line(f"right    {name}"))
    for fault in report.wrong:
        console.print(line(("wrong", "red"), f"    {fault}"))
    if report.wrong:
        raise typer.Exit(1)


@app.command("accept-offset")
def accept_offset(
    reason: Annotated[str, typer.Option(help="Why, in up to 1,024 characters: every shard is told")],
    topic: Annotated[
        str | None,
        _which("TOPIC", "An input topic of the router, or one that is read whole"),
    ] = None,
    partition: Annotated[int | None, _which("PARTITION", "Its partition, from 0")] = None,
    offset: Annotated[int | None, _which("OFFSET", "The offset of the record that is routed next")] = None,
    all_committed: Annotated[
        bool,
        _else(
            "one partition",
            "Accept, for every partition whose offset an earlier version committed, exactly that offset",
            "--all-committed",
        ),
    ] = False,
    bootstrap_servers: WriteTo = None,
) -> None:
    """Let the router go on at an offset that it refuses by itself: moved by hand, or of records that are gone.

    A router takes an offset only if a router committed it and the log still holds what comes next; else it ends and
    says what to type here. The word is written to margin.router.v1 and taken, whatever the group has committed, by the
    router that next takes the partition; its first commit there deletes it. Every shard is told that what lies before
    and had not come is lost, with the reason. Does not touch the group's offsets. A router that runs goes on where it
    is until it is started again.

    Of margin.accounts.v1 and margin.router.v1, which are read whole, the first offset is accepted when what was before
    it is gone: the engine (which suspends every account of the shard) or the router then goes on without.

    Needs Kafka with the topics. Prints a line for each partition, with what it did.

    Exit codes: 0 done; 1 an offset that is committed cannot be accepted, and is named; 2 there is no such topic,
    partition or offset, or a flag is wrong (nothing is written then), or Kafka cannot be reached or does not take it.

    \b
    Example:
      margin-clearing accept-offset trades.v1 0 1200 --reason "retention went over us" --bootstrap-servers kafka-1:9092

    \b
    After an upgrade from a version that wrote nothing beside its offsets, while no router runs:
      margin-clearing accept-offset --all-committed --reason "upgrade" --bootstrap-servers kafka-1:9092
    """
    from streams.broker.kafka import Kafka
    from streams.routing import accepting

    given = _settings(bootstrap_servers=bootstrap_servers)
    _require_said(bootstrap_servers, *KAFKA)
    place = (topic, partition, offset)
    if all_committed and place != (None, None, None):
        raise typer.BadParameter("--all-committed is for all partitions: leave TOPIC, PARTITION and OFFSET away")
    if not all_committed and None in place:
        raise typer.BadParameter("say TOPIC, PARTITION and OFFSET, or --all-committed")
    with _tool(given) as settings:
        if topic is None or partition is None or offset is None:
            done = accepting.accept_committed(Kafka(settings), reason)
        else:
            done = accepting.accept_offset(Kafka(settings), topic, partition, offset, reason)
    print("\n".join(visible(done_line) for done_line in done.lines()))
    if done.refused:
        raise typer.Exit(1)


@app.command()
def rescale(
    shards: Annotated[int, typer.Option(help="How many shards there are to be, up to 1,024")],
    yes: Annotated[bool, _else("show the plan only", "Do it", "--yes")] = False,
    abort: Annotated[bool, _else("go on", "Call off what has been begun and has moved nobody yet", "--abort")] = False,
    bootstrap_servers: WriteTo = None,
) -> None:
    """Change the number of shards while everything runs. Shows the plan; with --yes it is done.

    Accounts move from shard to shard in steps, in each of which a shard sends accounts to one other and gets some from
    one other at most; those that keep their shard do not move. The topics of the shards get partitions if they have too
    few; none is made anew. Routers and engines go on meanwhile: an account is decided by its old shard until it leaves,
    and by the new one as soon as it has come, with its commands, numbers and all else that its row holds.

    May be ended at any time (Ctrl-C, kill): type it again and it goes on where it was. Until the first accounts have
    moved it can be called off (--abort). Roles of versions that do not know how to move accounts must not run: what is
    waited for is said, and nothing moves before every router has confirmed the new layout.

    Needs Kafka with the topics, and the right to alter margin.events.v1, margin.accounts.v1 and margin.journal.v1 and
    to write margin.layout.v1 and margin.events.v1. Reads every row once for the plan.

    Exit codes: 0 done, or the plan was shown, or there is nothing to do; 1 something stands against it (a suspended
    shard, records that are missing, another change under way) and is named; 2 a flag is wrong, or Kafka cannot be
    reached or refuses.

    \b
    Example:
      margin-clearing rescale --shards 7 --yes --bootstrap-servers kafka-1:9092
    """
    from streams.broker.kafka import Kafka
    from streams.rescaling import show as shown
    from streams.rescaling.rescaling import Rescaling

    given = _settings(bootstrap_servers=bootstrap_servers)
    _require_said(bootstrap_servers, *KAFKA)
    if yes and abort:
        raise typer.BadParameter("--abort calls it off: leave --yes away")
    with _tool(given) as settings, contextlib.closing(Rescaling(Kafka(settings), shards)) as rescaling:
        if abort:
            rescaling.abort()
            print("called off: no account has moved")
            return
        plan = rescaling.plan()
        print("\n".join(shown.plan_lines(plan, is_asked=not yes)))
        if plan.faults:
            raise typer.Exit(1)
        if yes and not rescaling.is_done:
            rescaling.begin(plan)
            shown.watch(rescaling, partial(print, flush=True))


@app.command()
def resume(
    reason: Annotated[str, typer.Option(help="Why, in up to 1,024 characters: it is kept in the journal")],
    account_id: Annotated[str | None, _which("ACCOUNT", "The account")] = None,
    all_accounts: Annotated[bool, _else("one account", "Every account of every suspended shard", "--all")] = False,
    bootstrap_servers: WriteTo = None,
) -> None:
    """Let accounts be liquidated again that are suspended because records are gone that their shard needed.

    Where records of a shard are gone (deleted before they were applied, said to be lost, or of a topic made anew),
    nobody knows what its accounts hold, and none is liquidated. Check them against the exchange's books first. The word
    is a frame of margin.events.v1, counts for the suspension that is in force now, and is in the shard's journal and an
    alert, with the reason. What suspends an account by itself (`margin-clearing account ID`) is not lifted.

    Needs Kafka with the topics. Prints a line for each shard.

    Exit codes: 0 done, or nothing is suspended; 1 a shard is known to lack records of the exchange, which must be
    routed or said to be lost before (`margin-clearing accept-offset`), and is named; 2 a flag is wrong, or Kafka cannot
    be reached or does not take it.

    \b
    Example:
      margin-clearing resume --all --reason "checked against the books" --bootstrap-servers kafka-1:9092
    """
    from streams.broker.kafka import Kafka
    from streams.clearing import resuming

    given = _settings(bootstrap_servers=bootstrap_servers)
    _require_said(bootstrap_servers, *KAFKA)
    if all_accounts == (account_id is not None):
        raise typer.BadParameter("say one ACCOUNT, or --all")
    with _tool(given) as settings:
        done = resuming.resume(Kafka(settings), account_id, reason)
    print("\n".join(done.lines()))
    if done.refused:
        raise typer.Exit(1)


@app.command()
def account(
    account_id: Annotated[str, typer.Argument(metavar="ID", help="The account")],
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show an account: balances, positions, equity, maintenance, health ratio, liquidation prices at current marks.

    Needs Redis, for the account and the marks, and Kafka, for the parameters. Prints a table for each margin group.

    Exit codes: 0 shown; 1 there is no such account; 2 Kafka or Redis cannot be reached, or Redis holds no tables.

    \b
    Example:
      margin-clearing account acct-17 --redis-url redis://redis:6379/0
    """
    from streams.console.account import read_account, show_account

    with _tool(_settings(bootstrap_servers=bootstrap_servers, redis_url=redis_url), redis=True) as settings:
        view = read_account(settings, account_id)
    if view is None:
        console.print(line(f"no account '{account_id}': it has never had a transfer, a trade or a command"))
        raise typer.Exit(1)
    if as_json:
        print(json.dumps(view.as_json(), indent=2))
    else:
        show_account(console, view)


@app.command()
def status(
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show how a running deployment is doing: who owns what, lags, marks, tables, dead letters.

    Needs Kafka; Redis away is one of the things it finds. Nothing is written and no process is asked. Prints the
    groups, a table of the shards, the last dead letters of each topic by error and reason, which of themselves are
    nothing wrong, and a sentence for whatever is wrong with what to do.

    Exit codes: 0 all is as it should be; 1 something is wrong; 2 Kafka cannot be reached, or a topic is missing.

    \b
    Example:
      margin-clearing status --bootstrap-servers kafka-1:9092 --json
    """
    from streams.console.judgement import advise, judge
    from streams.console.show import show_status
    from streams.console.status import read_status

    with _tool(_settings(bootstrap_servers=bootstrap_servers, redis_url=redis_url)) as settings:
        deployment = read_status(settings)
    faults, advice = judge(deployment, settings), advise(deployment, settings)
    if as_json:
        print(json.dumps(deployment.as_json() | {"advice": advice, "faults": faults}, indent=2))
    else:
        show_status(console, deployment, faults, advice)
    if faults:
        raise typer.Exit(1)


@app.command()
def replay(
    shard: Annotated[int | None, _else("every one", "The shard", min=0)] = None,
    first: Annotated[
        int | None,
        _else("the first that the logs still hold", "Compare from this journal sequence on", "--from", min=0),
    ] = None,
    last: Annotated[int | None, _else("the last", "Compare up to this journal sequence", "--to", min=0)] = None,
    bootstrap_servers: BootstrapServers = None,
    as_json: AsJson = False,
) -> None:
    """Run a shard's journal again from the logs and compare what was committed, byte for byte. Needs Kafka; reads only.

    The journal says which events, marks and parameters each commit covered, in which order and where a new owner took
    the shard; the same code must give the same commands, alerts, account rows and journal records. Whatever differs is
    named with its place and field.

    It begins where the logs still hold everything that follows, at the first commit of all if they can, and says so.
    Rows that compaction has removed are counted, not compared. What runs is this version's code: commits of one that
    decided otherwise differ rightly.

    Exit codes: 0 the same bytes; 1 something differs; 2 Kafka cannot be reached, or the logs hold too little.

    \b
    Example:
      margin-clearing replay --shard 3 --from 1000
    """
    from streams.audit.log import KafkaLog
    from streams.audit.replay import replay_shards
    from streams.audit.show import progress_bar, show_replay
    from streams.broker.kafka import Kafka

    if shard is None and (first is not None or last is not None):
        raise typer.BadParameter("sequences are those of one shard: give --shard as well")
    with (
        _tool(_settings(bootstrap_servers=bootstrap_servers)) as settings,
        KafkaLog(Kafka(settings)) as log,
        progress_bar() as progress,
    ):
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
    as_json: AsJson = False,
) -> None:
    """Explain a liquidation command: the group as it was, every term of its equity and margin, the plan.

    Needs Kafka; reads only. The account is set up as it was before the commit that issued the command, and that commit
    is run again from the logs. Shown are the marks with the source prices they were formed from, the parameter records
    in force, each balance and position with what it counted for, the shortage, and the orders.

    Exit codes: 0 the logs give the command; 1 they do not; 2 Kafka cannot be reached, or there is no such command.

    \b
    Example:
      margin-clearing explain acct-17:3
    """
    from streams.audit.explain import explain as explain_command
    from streams.audit.log import KafkaLog
    from streams.audit.show import progress_bar, show_explanation
    from streams.broker.kafka import Kafka

    with (
        _tool(_settings(bootstrap_servers=bootstrap_servers)) as settings,
        KafkaLog(Kafka(settings)) as log,
        progress_bar() as progress,
    ):
        explanation = explain_command(log, command_id, progress)
    if as_json:
        print(json.dumps(explanation.as_json(), indent=2))
    else:
        show_explanation(console, explanation)
    if not explanation.passed:
        raise typer.Exit(1)


@app.command()
def verify(
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    as_json: AsJson = False,
) -> None:
    """Verify a deployment while it runs: topics, journals, commands, alerts, offsets, tables, money.

    Needs Kafka and Redis; reads only. Topics are as the contract needs them; journals have no gaps; commands and alerts
    are numbered without gaps or repeats and are those that the journals and rows count; committed offsets are the
    journals'; Redis holds the changelog's rows; what the accounts hold is what the inputs brought, as far as these are
    still complete. Whatever differs is named with its place. How far anything lags behind, and what lies in the dead
    letters, is told and no difference, but for a record of margin.events.v1 there that is no frame.

    Exit codes: 0 nothing differs; 1 something does; 2 Kafka or Redis cannot be reached.

    \b
    Example:
      margin-clearing verify --bootstrap-servers kafka-1:9092 --redis-url redis://redis:6379/0
    """
    from streams.audit.show import progress_bar, show_findings
    from streams.audit.verify import verify_deployment

    given = _settings(bootstrap_servers=bootstrap_servers, redis_url=redis_url)
    with _tool(given, redis=True) as settings, progress_bar() as progress:
        findings = verify_deployment(settings, progress)
    if as_json:
        print(json.dumps(findings.as_json(), indent=2))
    else:
        show_findings(console, findings)
    if not findings.passed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    file: Annotated[
        Path | None, typer.Argument(help="JSON [default: standard input]", dir_okay=False, show_default=False)
    ] = None,
    example: Annotated[
        bool, _else("evaluate", "Print a whole document that this command reads, and end", "--example")
    ] = False,
) -> None:
    """Evaluate an account at given parameters and marks: equity, margins, liquidation prices and the plan.

    Needs no server: the code is the engine's own. Reads one JSON document, or a list of them:

    \b
      {
        "parameters": [ records of risk.parameters.v1 ],
        "marks": { symbol: price },
        "account": {
          "account": id,
          "balances": { asset: amount },
          "positions": [
            {"symbol", "quantity", "entry_price", "margin"?: "isolated", "isolated_balances"?: { asset: amount }}
          ]
        },
        "stale"?: [ symbols whose marks are not live ]
      }

    Numbers are decimal strings. Prints JSON: each margin group with equity, debt, margins, health ratio, its positions
    and collateral with liquidation and bankruptcy prices, and the plan if it is liquidatable. What needs a mark that is
    not live counts what it may be worth at best. --example prints a whole document to begin with.

    Exit codes: 0 evaluated; 2 the document is not one, and the field and the reason are named.

    \b
    Example:
      margin-clearing evaluate --example > account.json && margin-clearing evaluate account.json
    """
    from streams.margin.evaluate import evaluate_request
    from streams.margin.example import EXAMPLE

    if example:
        if file is not None:
            raise typer.BadParameter("--example reads no file")
        print(json.dumps(EXAMPLE, indent=2))
        return
    with interruption.prompt():
        sys.stdout.buffer.write(evaluate_request(_read(file)) + b"\n")


def _read(file: Path | None) -> bytes:
    try:
        return sys.stdin.buffer.read() if file is None else file.read_bytes()
    except OSError as error:
        raise MarginClearingError(f"{file}: {error.strerror}") from None


_SCENARIO_HELP = """\
Run a scenario: what is given to the pipeline when, what goes wrong when, and what the pipeline then writes.

Needs no server: production's routers, engines and mark formation run over a Kafka and a Redis in memory, on virtual
time. The same file gives the same bytes, on every machine; no setting is taken from the environment.

The file holds a JSON object per line, in order of at_ms (milliseconds since the beginning; at 0 every process runs
and there are no records). Blank lines and lines that begin with # say nothing.

\b
  {"at_ms":0,"topic":"risk.parameters.v1","value":{"type":"asset","asset":"USDC"}}
  {"at_ms":5,"topic":"oracle.prices.v1","value":{"source":"a","symbol":"BTC-PERP","price":"60000","sequence":1,"age_ms":2}}
  {"at_ms":9,"topic":"trades.v1","key":"BTC-PERP","partition":0,"bytes":"no JSON"}
  {"at_ms":10,"topic":"margin.marks.v1","value":{"marks":[{"symbol":"BTC-PERP","price":"60000","age_ms":20}]}}
  {"at_ms":20,"freeze":"router:1","for_ms":3000}
  {"at_ms":20,"kill":"engine:0"}
  {"at_ms":20,"clock":"router:0","ahead_ms":90000}

value is a message of the contract (null: a tombstone), bytes is text of any kind instead; key and partition are the
contract's if left out. Anywhere in value, event_time_ms, publish_time_ms and time_ms (since the beginning) and
age_ms (before this line) stand for the contract's times. Topics: those that the exchange and the oracle's sources
write, risk.parameters.v1, margin.events.v1, and margin.marks.v1, with which no oracle runs: the marks given are
repeated, growing older, every 250 ms. What is killed starts again a second later; a clock stays wrong until it is
set again.

Prints a JSON line for each record, in the order in which a reader of committed records sees them: at_ms, topic,
partition, key, value (bytes if it is not JSON), and headers if it has some.

Exit codes: 0 run to its end; 2 the file cannot be read or a flag is wrong: the line and the field are named.

\b
Example:
  margin-clearing scenario crash.jsonl --engines 2 --topics liquidation.commands.v1,margin.alerts.v1
"""


@app.command(help=_SCENARIO_HELP)
def scenario(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines; - reads standard input", show_default=False)],
    shards: Annotated[
        int, typer.Option(min=1, max=1024, help="Partitions of margin.events.v1")
    ] = _DEFAULTS.topics.shards,
    partitions: Annotated[
        int, typer.Option(min=1, max=1024, help="Partitions of the exchange's topics")
    ] = _DEFAULTS.topics.partitions,
    routers: Annotated[
        int | None, _else("as many as the file names, at least 1", "Router processes", min=1, max=64)
    ] = None,
    engines: Annotated[
        int | None, _else("as many as the file names, at least 1", "Engine processes", min=1, max=64)
    ] = None,
    until_ms: Annotated[
        int | None, _else("10 s after the last line", "End at this time; later lines are not given", min=0)
    ] = None,
    topics: Annotated[
        str | None, _else("commands, alerts, accounts and every dead-letter topic", "Print these topics, a,b")
    ] = None,
) -> None:
    """Run a scenario: ``_SCENARIO_HELP`` says how."""
    from streams.memory.scenario import SHOWN, ScenarioOptions, run_scenario

    options = ScenarioOptions(
        shards=shards,
        partitions=partitions,
        routers=routers,
        engines=engines,
        until_ms=until_ms,
        topics=SHOWN if topics is None else ScenarioOptions.shown_topics(topics),
    )
    with interruption.prompt():
        data = _read(None if file == "-" else Path(file))
        for record in run_scenario(data, "standard input" if file == "-" else file, options, _tell_broken):
            sys.stdout.buffer.write(record.line())


def _tell_broken(broken: Any) -> None:
    print(
        f"margin-clearing: a bug: {broken.worker} ended at {broken.at_ms} ms by {broken.error!r} and was started again",
        file=sys.stderr,
    )


@app.command()
def demo(
    trades: RecordedTrades = None,
    quotes: RecordedQuotes = None,
    speed: Annotated[float, typer.Option(help="Market seconds a second; 1 is real time")] = 20.0,
    seconds: Annotated[float | None, _else("all of it", "Play only the first so many seconds of the market")] = None,
    accounts: Annotated[int, typer.Option(help="Size of the drawn population")] = 4000,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn")] = 7,
    engines: Annotated[int, typer.Option(help="Engine processes")] = 2,
    summary: Annotated[Path | None, _else("nowhere", "Write the summary as JSON here")] = None,
    bootstrap_servers: Annotated[
        str | None, _else("one that the demo starts", "Use this Kafka, host:port,host:port")
    ] = None,
    redis_url: Annotated[str | None, _else("one that the demo starts", "Use this Redis, redis://host:port/db")] = None,
    setting: FurtherSettings = None,
    into_this_cluster: IntoThisCluster = False,
) -> None:
    """Replay a recorded market through the whole pipeline and check the result.

    Needs nothing: everything goes into a Kafka and a Valkey that it starts and removes. The quotes and trades are real;
    the accounts are drawn. Prints the first commands, figures of the run, and the outcome of each check.

    No setting is taken from the environment. Another Kafka or Redis is used only if its address is given here, and only
    if it holds nothing of the contract but what an earlier demo left, unless --into-this-cluster is given: with it the
    demo's parameters replace those in force there.

    Exit codes: 0 every check holds; 1 one does not; 2 a mistake in a flag, or a server that cannot be reached.

    \b
    Example:
      margin-clearing demo --seconds 60 --accounts 1000
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
        "settings": tuple(setting or ()),
        "into_this_cluster": into_this_cluster,
    }
    if redis_url is not None and holds_password(redis_url):
        raise SettingsError(
            "--redis-url holds a password, which every user of this machine can read in the list of processes: give it "
            "by --setting MARGIN_REDIS__PASSWORD_FILE=PATH"
        )
    options = DemoOptions(**{name: value for name, value in given.items() if value is not None})
    options.check()
    settings = options.given_settings()
    with interruption.prompt():
        _reach(settings, kafka=bootstrap_servers is not None, redis=redis_url is not None)
    raise typer.Exit(run_demo(options))


@app.command()
def local(
    kafka_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of Kafka; 0 takes a free one")] = 0,
    redis_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of Valkey; 0 takes a free one")] = 0,
    brokers: Annotated[int, typer.Option(min=1, max=3, help="Kafka brokers, each a process with its own data")] = 1,
    keep_data: Annotated[
        Path | None, _else("removed at the end", "Keep the data here and use it again next time")
    ] = None,
) -> None:
    """Keep a local Kafka and Valkey up for development, with the topics created, until Ctrl-C.

    Needs nothing that is not downloaded once, always starts its own, and takes no setting from the environment. Prints
    the addresses, as the variables that the other commands read.

    With --brokers 3 every topic has three replicas, of which two acknowledge (min.insync.replicas), and the ports are
    --kafka-port and those after it. The processes are printed, to be killed (kill -9) or stopped (kill -STOP): one that
    ended is started again 10 s later, on its data and port. They take about 1.2 GB.

    Exit codes: 0 ended by Ctrl-C or SIGTERM; 2 it cannot start, with the reason.

    \b
    Example:
      margin-clearing local --brokers 3 --kafka-port 9092 --redis-port 6379
    """
    from infra.local.stack import LocalStack, run_local
    from streams.broker.admin import ensure_topics
    from streams.settings import load

    def create_topics(stack: LocalStack) -> list[str]:
        """Create them by the stack's own settings: credentials or topics of another cluster do not belong here."""
        addresses = {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url}
        own = load({}, addresses | {"topics.replication_factor": brokers})
        return [f"wrong: {fault}" for fault in ensure_topics(own).wrong]

    run_local(create_topics, kafka_port=kafka_port, redis_port=redis_port, brokers=brokers, keep_data=keep_data)


@bench.command()
def ticks(
    accounts: Annotated[int, typer.Option(min=1, max=10_000_000, help="Accounts, one margin group each")] = 100_000,
    positions: Annotated[int, typer.Option(min=1, max=100, help="Positions of each account, in as many symbols")] = 3,
    symbols: Annotated[int, typer.Option(min=1, max=1_000, help="Symbols, at least as many as positions")] = 50,
    calm_ticks: Annotated[int, typer.Option(min=1, max=100_000_000, help="Ticks of the calm walk")] = 5_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the accounts and of the walk")] = 1,
    as_json: AsJson = False,
) -> None:
    """Time a new mark in the engine's arithmetic: the trigger index beside a full re-evaluation with NumPy.

    Needs no server. A calm walk (one symbol a tick, a basis point each), then a crash of 10 % of one symbol, then of
    all of them. All accounts are margined by tiers and hold USDC; a million of them need about 2 GiB and a minute.
    Prints a table.

    Exit codes: 0 measured; 2 a mistake in a flag.

    \b
    Example:
      margin-clearing bench ticks --accounts 1000000
    """
    from streams.bench.ticks import bench_ticks, show_ticks

    progress = Console(stderr=True)
    try:
        times = bench_ticks(
            accounts, positions, symbols, seed, calm_ticks, progress=lambda text: progress.print(line(text))
        )
    except MemoryError:
        raise MarginClearingError(
            f"{accounts:,} accounts over {symbols:,} symbols do not fit into this machine's memory"
        ) from None
    if as_json:
        print(json.dumps(dataclasses.asdict(times), indent=2))
    else:
        show_ticks(console, times)


@app.command()
def settings(
    bootstrap_servers: BootstrapServers = None,
    redis_url: RedisUrl = None,
    instance_id: InstanceId = None,
    metrics_port: MetricsPort = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    shards: Shards = None,
    as_json: AsJson = False,
) -> None:
    """Show the settings in force and what set each: the default, a variable, the file it names, or a flag.

    Needs no server. Prints every variable with its value, secrets masked. The flags are those of the roles, to see what
    they would change. Whatever is wrong with a setting is said in a line.

    Exit codes: 0 shown; 2 a setting is unknown, malformed or contradicts another.

    \b
    Example:
      MARGIN_TOPICS__SHARDS=32 margin-clearing settings --json
    """
    loaded = _read_settings(
        bootstrap_servers=bootstrap_servers,
        redis_url=redis_url,
        instance_id=instance_id,
        metrics_port=metrics_port,
        log_level=log_level,
        log_format=log_format,
        shards=shards,
    )
    rows = {
        variable(section, field): {"value": value, "set_by": loaded.set_by[section, field]}
        for section, fields in describe(loaded.settings).items()
        for field, value in fields.items()
    }
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("variable", "value", "set by", box=None)
    for name, row in rows.items():
        table.add_row(*(Text(visible(str(cell)), overflow="fold") for cell in (name, row["value"], row["set_by"])))
    console.print(table)


def _hold_standard_files() -> None:
    """Where standard input, output or error is closed, /dev/null: else a connection takes its place and gets logs."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


@runtime_checkable
class _Complaint(Protocol):
    """What the parser of arguments raises: it quotes them, and they may hold a secret."""

    exit_code: int

    def show(self, file: IO[str] | None = None) -> None: ...


def main() -> None:
    """The entry point of ``margin-clearing``."""
    _hold_standard_files()
    logs.guard_output()
    hide_arguments(sys.argv[1:])
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        sys.exit(1)
    except (MarginClearingError, DecodeError, LocalStackError) as error:
        print(f"margin-clearing: {visible_lines(redacted(str(error)))}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not isinstance(error, _Complaint):
            raise
        said = io.StringIO()
        error.show(said)
        sys.stderr.write(visible_lines(redacted(said.getvalue())))
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
