"""The demo from beginning to end: stack, topics, roles, the market, the verdict.

One thread plays the exchange and its execution service against the clock; everything else is real processes. Where it
runs is said by its options alone: no setting is taken from the environment, in which an operator's cluster may stand.
"""

import contextlib
import math
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from rich.console import Console

from infra.local.stack import KAFKA_VARIABLE, REDIS_VARIABLE, LocalStack
from schemas.codec import Decoder
from schemas.messages import LiquidationCommand
from schemas.topics import COMMANDS
from streams.access.kafka_properties import sort_properties
from streams.broker import config
from streams.broker.admin import ensure_topics
from streams.broker.places import PlaceWatch
from streams.broker.reader import poll_batch
from streams.demo.checks import Differences, run_checks
from streams.demo.display import Display, latencies_of, show_result, summary_of, write_summary
from streams.demo.errors import DemoError
from streams.demo.exchange import SimulatedExchange, now_us
from streams.demo.footprint import Footprint
from streams.demo.market import market_of
from streams.demo.population import draw_population
from streams.demo.recording import RecordedQuote, Recording, carried_recording, load_recording
from streams.demo.replay_process import NAME as REPLAY
from streams.demo.replay_process import ReplayProcess
from streams.demo.roles import Roles
from streams.demo.run_records import RunRecords, Starts, ends, read_run_records
from streams.settings import PREFIX, SECRETS, Settings, describe, load
from streams.terminal import line

_ADDRESSES = {KAFKA_VARIABLE: "--bootstrap-servers", REDIS_VARIABLE: "--redis-url"}
QUIET_TIMEOUT_S = 20.0
OPENING_TIMEOUT_S = 60.0
_TICK_S = 0.001


_OPTIONS = f"{PREFIX}KAFKA__OPTIONS"
_SECRET_FIELDS = tuple(field for section, field in SECRETS if section == "kafka")


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the command line may say. ``speed`` is market seconds a second; ``seconds`` plays only the beginning.

    ``settings`` are further ones as ``MARGIN_SECTION__FIELD=VALUE``. ``into_this_cluster``: whatever is there.
    """

    trades: Path | None = None
    quotes: Path | None = None
    speed: float = 20.0
    seconds: float | None = None
    accounts: int = 4000
    seed: int = 7
    engines: int = 2
    summary: Path | None = None
    bootstrap_servers: str | None = None
    redis_url: str | None = None
    settings: tuple[str, ...] = ()
    into_this_cluster: bool = False

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            DemoError: says which option and why.
        """
        if (self.trades is None) != (self.quotes is None):
            raise DemoError("--trades and --quotes belong together: give both or neither")
        if not 0 < self.speed < math.inf:
            raise DemoError(f"--speed {self.speed:g} must be above 0, and a number")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise DemoError(f"--seconds {self.seconds:g} must be above 0, and a number")
        if not 1 <= self.accounts <= 1_000_000:
            raise DemoError(f"--accounts {self.accounts} must be from 1 to 1,000,000")
        if not 1 <= self.engines <= 16:
            raise DemoError(f"--engines {self.engines} must be from 1 to 16")
        if self.summary is not None:
            _check_summary(self.summary)
        for name, value in (("--bootstrap-servers", self.bootstrap_servers), ("--redis-url", self.redis_url)):
            if value is not None and not value.strip():
                raise DemoError(f"{name} is empty: give an address, or leave it away for one that the demo starts")
        if self.into_this_cluster and self.bootstrap_servers is None and self.redis_url is None:
            raise DemoError("--into-this-cluster goes with --bootstrap-servers or --redis-url")
        if self.bootstrap_servers is None and (secured := sorted(filter(_is_security, self.variables()))):
            raise DemoError(f"--setting {secured[0]}: the Kafka that the demo starts has no such thing")

    def given_settings(self) -> Settings:
        """The settings that were given, with the addresses among them: what can be said before anything is started.

        Raises:
            DemoError, SettingsError: they make no sense.
        """
        given = {KAFKA_VARIABLE: self.bootstrap_servers, REDIS_VARIABLE: self.redis_url}
        return load(self.variables() | {name: value for name, value in given.items() if value is not None})

    def variables(self) -> dict[str, str]:
        """The settings that were given, by the names of their variables.

        Raises:
            DemoError: one is malformed, says where to go (that has options of its own), or is a secret.
        """
        variables: dict[str, str] = {}
        for text in self.settings:
            name, separator, value = text.partition("=")
            if not separator or not name.startswith(PREFIX):
                told = f" {name}" if separator and re.fullmatch("[A-Z_]+", name) else ""
                raise DemoError(f"--setting{told}: must be {PREFIX}SECTION__FIELD=VALUE")
            if name in _ADDRESSES:
                raise DemoError(f"--setting {name}: give {_ADDRESSES[name]} instead")
            if tuple(name[len(PREFIX) :].lower().split("__")) in SECRETS:
                raise DemoError(f"--setting {name}: others would see a secret there; give {name}_FILE")
            if name == _OPTIONS and any(held in sort_properties(value, name).settings for held in _SECRET_FIELDS):
                raise DemoError(f"--setting {name}: others would see the secret in it; give its own setting's _FILE")
            if name in variables:
                raise DemoError(f"--setting {name} is given twice")
            variables[name] = value
        return variables


@dataclass
class CommandFeed:
    """Reads the commands as an execution service does, and notes when each became visible."""

    settings: Settings
    starts: Starts
    prefix: str
    seen_us: dict[str, int] = field(default_factory=dict)
    repeats: int = 0

    def __post_init__(self) -> None:
        self._consumer = Consumer(
            config.reader(self.settings.kafka, "margin-demo-execution")
            | {"enable.partition.eof": False, "fetch.wait.max.ms": 10}
        )
        self._consumer.assign([TopicPartition(*place, at) for place, at in self.starts.items() if place[0] == COMMANDS])
        self._watch = PlaceWatch()
        self._decode = Decoder[LiquidationCommand](LiquidationCommand)

    def poll(self, timeout_s: float) -> list[LiquidationCommand]:
        """The commands of this run that have come, each once."""
        commands = []
        for message in poll_batch(self._consumer, timeout_s, 500, self._watch):
            at = now_us()
            command = self._decode(message.value())
            if not command.account.startswith(self.prefix):
                continue
            if command.command_id in self.seen_us:
                self.repeats += 1
                continue
            self.seen_us[command.command_id] = at
            commands.append(command)
        return commands

    def close(self) -> None:
        self._consumer.close()


def run_demo(options: DemoOptions, console: Console | None = None) -> int:
    """Run the demo; 0 if every check held, else 1.

    Raises:
        MarginClearingError: it could not be run; says why.
        LocalStackError: a server of its own could not be had; says why.
    """
    options.check()
    console = console or Console()
    started = time.monotonic()
    recording = _recording(options)
    with _ended_in_order(), Display(console) as display:
        stack = LocalStack.start(
            bootstrap_servers=options.bootstrap_servers, redis_url=options.redis_url, progress=display.say
        )
        with stack:
            settings, variables = _settings(options, stack)
            described = describe(settings)
            display.say(f"Kafka {described['kafka']['bootstrap_servers']}, Redis {described['redis']['url']}")
            footprint = Footprint(settings, kafka=stack.kafka is None, tables=stack.valkey is None)
            if not options.into_this_cluster:
                footprint.require_own()
            report = ensure_topics(settings)
            if report.wrong:
                raise DemoError("the topics are not as they must be: " + "; ".join(report.wrong))
            display.say(f"starting router, oracle and {options.engines} engines")
            with contextlib.nullcontext() if options.into_this_cluster else _noted(footprint):
                records, feed, exchange, seconds = _play(options, recording, settings, variables, stack.folder, display)
            left_out: dict[str, str] = {}
            if options.into_this_cluster and stack.kafka is None:
                left_out[REPLAY] = "the logs here may hold more than the demo's; see `margin-clearing replay`"
            results = _judge(records, None if REPLAY in left_out else ReplayProcess(variables))
    latencies = latencies_of(records, feed.seen_us)
    summary = summary_of(records, exchange, feed.repeats, results, latencies) | {"left_out": left_out}
    show_result(console, records, exchange, results, latencies, (seconds, time.monotonic() - started))
    for name, reason in left_out.items():
        console.print(line(("left out", "yellow"), f" {name}: {reason}"), soft_wrap=True)
    if options.summary is not None:
        write_summary(options.summary, summary)
    return 0 if summary["passed"] else 1


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: with the processes stopped, the data removed, the note written.

    A signal that this process was started to ignore stays ignored; outside the main thread nothing changes.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _noted(footprint: Footprint) -> Iterator[None]:
    """What is done within is the demo's own, however it ends."""
    footprint.begin()
    try:
        yield
    finally:
        footprint.finish()


def _judge(records: RunRecords, replay: ReplayProcess | None) -> dict[str, Differences]:
    """Every check's differences; those of the replay, which runs beside the others, last."""
    try:
        results = run_checks(records)
        if replay is not None:
            results[REPLAY] = replay.differences()
        return results
    finally:
        if replay is not None:
            replay.stop()


def _recording(options: DemoOptions) -> Recording:
    if options.trades is not None and options.quotes is not None:
        recording = load_recording(options.trades, options.quotes)
    else:
        recording = carried_recording()
    return recording if options.seconds is None else recording.first_seconds(options.seconds)


def _settings(options: DemoOptions, stack: LocalStack) -> tuple[Settings, dict[str, str]]:
    """The settings of everything here, and the variables that give them to the processes."""
    variables = options.variables() | stack.environment
    return load(variables), variables


def _is_security(variable: str) -> bool:
    return variable.startswith((f"{PREFIX}KAFKA__SECURITY", f"{PREFIX}KAFKA__SASL", f"{PREFIX}KAFKA__SSL"))


def _check_summary(path: Path) -> None:
    folder = path.resolve().parent
    if not folder.is_dir():
        raise DemoError(f"--summary {path}: there is no such folder")
    if path.is_dir():
        raise DemoError(f"--summary {path}: is a folder; give the name of a file")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise DemoError(f"--summary {path}: cannot be written")


def _play(
    options: DemoOptions,
    recording: Recording,
    settings: Settings,
    variables: dict[str, str],
    folder: Path,
    display: Display,
) -> tuple[RunRecords, CommandFeed, SimulatedExchange, float]:
    market = market_of(recording)
    prefix = f"demo-{secrets.token_hex(3)}-"
    prices = {trade.symbol: Decimal(trade.price) for trade in reversed(recording.trades)}
    people = draw_population(market, prices, size=options.accounts, seed=options.seed, prefix=prefix)
    exchange = SimulatedExchange(settings, market, people, prices, options.seed)
    starts = ends(settings)
    feed = CommandFeed(settings, starts, prefix)
    try:
        with Roles(settings, variables, options.engines, folder) as roles:
            exchange.publish_parameters()
            roles.await_ready()
            display.say(f"{len(people.accounts):,} accounts deposit and open their positions")
            _open(exchange, recording, roles)
            display.begin(recording.seconds)
            began = time.monotonic()
            _replay(options, recording, exchange, feed, roles, display)
            seconds = time.monotonic() - began
            display.say("waiting until nothing is on its way")
            if not _settle(exchange, feed, roles):
                display.say(f"not quiet within {QUIET_TIMEOUT_S:g} s; the checks judge what there is")
        # Only now: while the roles run, scales that move on change accounts between one look and the next.
        display.say("reading everything back and checking it")
        records = read_run_records(settings, starts, prefix)
    finally:
        feed.close()
    return records, feed, exchange, seconds


def _open(exchange: SimulatedExchange, recording: Recording, roles: Roles) -> None:
    """Deposits before positions: an account must not look insolvent because its deposit is still on its way."""
    exchange.publish_deposits()
    roles.wait_for(lambda: roles.routed() and roles.applied(), "the deposits", OPENING_TIMEOUT_S)
    exchange.publish_openings()
    roles.wait_for(lambda: roles.routed() and roles.applied(), "the opening positions", OPENING_TIMEOUT_S)


def _replay(
    options: DemoOptions,
    recording: Recording,
    exchange: SimulatedExchange,
    feed: CommandFeed,
    roles: Roles,
    display: Display,
) -> None:
    """Send every row when its time has come, and trade the commands in between."""
    began = time.monotonic()
    checked = began
    for row in recording.rows:
        due = began + (row.time_us - recording.first_us) / 1e6 / options.speed
        while True:
            now = time.monotonic()
            _serve(exchange, feed, min(max(due - now, 0), _TICK_S))
            if time.monotonic() >= due:
                break
        if now - checked > 0.25:
            checked = now
            roles.check()
            exchange.expire()
            display.advance((row.time_us - recording.first_us) / 1e6, exchange.sent, len(feed.seen_us))
        if isinstance(row, RecordedQuote):
            exchange.publish_quote(row)
        else:
            exchange.publish_trade(row)
    exchange.flush()
    display.advance(recording.seconds, exchange.sent, len(feed.seen_us))


def _serve(exchange: SimulatedExchange, feed: CommandFeed, timeout_s: float) -> int:
    commands = feed.poll(timeout_s)
    for command in commands:
        exchange.execute(command)
    return len(commands)


def _settle(exchange: SimulatedExchange, feed: CommandFeed, roles: Roles) -> bool:
    """Go on trading commands until nothing is on its way; False if that takes too long."""
    deadline = time.monotonic() + QUIET_TIMEOUT_S
    calm = 0
    while calm < 3:
        if time.monotonic() > deadline:
            return False
        roles.check()
        exchange.expire()
        commands = _serve(exchange, feed, 0.1)
        exchange.flush()
        still = not commands and not exchange.open_orders and roles.routed() and roles.applied()
        calm = calm + 1 if still else 0
    return True
