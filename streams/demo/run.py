"""The demo from beginning to end: stack, topics, roles, the market, the verdict.

One thread plays the exchange and its execution service against the clock; everything else is real processes.
"""

import secrets
import time
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from rich.console import Console

from infra.local.stack import LocalStack
from schemas.codec import Decoder
from schemas.messages import LiquidationCommand
from schemas.topics import COMMANDS, EVENTS
from streams.broker import config
from streams.broker.admin import admin_client, ensure_topics, partition_counts
from streams.broker.reader import poll_batch
from streams.demo.checks import Differences, run_checks
from streams.demo.display import Display, Latencies, latencies_of, show_result, summary_of, write_summary
from streams.demo.errors import DemoError
from streams.demo.evidence import Evidence, Starts, ends, read_evidence
from streams.demo.exchange import Exchange, now_us
from streams.demo.market import market_of
from streams.demo.population import draw_population
from streams.demo.recording import RecordedQuote, Recording, carried_recording, load_recording
from streams.demo.replaying import NAME as REPLAY
from streams.demo.replaying import Replaying
from streams.demo.roles import Roles
from streams.settings import Settings, load

QUIET_TIMEOUT_S = 20.0
OPENING_TIMEOUT_S = 60.0
_TICK_S = 0.001


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the command line may say. ``speed`` is market seconds a second; ``seconds`` plays only the beginning."""

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

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            DemoError: says which option and why.
        """
        if (self.trades is None) != (self.quotes is None):
            raise DemoError("--trades and --quotes belong together: give both or neither")
        if not self.speed > 0:
            raise DemoError(f"--speed {self.speed:g} must be above 0")
        if self.seconds is not None and not self.seconds > 0:
            raise DemoError(f"--seconds {self.seconds:g} must be above 0")
        if not 1 <= self.accounts <= 1_000_000:
            raise DemoError(f"--accounts {self.accounts} must be from 1 to 1,000,000")
        if not 1 <= self.engines <= 16:
            raise DemoError(f"--engines {self.engines} must be from 1 to 16")
        if self.summary is not None and not self.summary.resolve().parent.is_dir():
            raise DemoError(f"--summary {self.summary}: there is no such folder")


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
        self._decode = Decoder[LiquidationCommand](LiquidationCommand)

    def poll(self, timeout_s: float) -> list[LiquidationCommand]:
        """The commands of this run that have come, each once."""
        commands = []
        for message in poll_batch(self._consumer, timeout_s, 500):
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
    """
    options.check()
    console = console or Console()
    started = time.monotonic()
    recording = _recording(options)
    with Display(console) as display:
        stack = LocalStack.start(
            bootstrap_servers=options.bootstrap_servers, redis_url=options.redis_url, progress=display.say
        )
        with stack:
            display.say(f"Kafka {stack.bootstrap_servers}, Redis {stack.redis_url}")
            settings = _settings(stack)
            report = ensure_topics(settings)
            if report.wrong:
                raise DemoError("the topics are not as they must be: " + "; ".join(report.wrong))
            display.say(f"starting router, oracle and {options.engines} engines")
            found, feed, exchange, seconds = _play(options, recording, settings, stack.folder, display)
            # Not of a cluster that was given: it may hold a deployment's days.
            results = _judge(found, Replaying(settings) if stack.kafka is not None else None)
    latencies = latencies_of(found, feed.seen_us)
    return _conclude(options, console, found, feed, exchange, results, latencies, (seconds, time.monotonic() - started))


def _judge(found: Evidence, replaying: Replaying | None) -> dict[str, Differences]:
    """Every check's differences; those of the replay, which runs beside the others, last."""
    try:
        results = run_checks(found)
        if replaying is not None:
            results[REPLAY] = replaying.differences()
        return results
    finally:
        if replaying is not None:
            replaying.stop()


def _recording(options: DemoOptions) -> Recording:
    if options.trades is not None and options.quotes is not None:
        recording = load_recording(options.trades, options.quotes)
    else:
        recording = carried_recording()
    return recording if options.seconds is None else recording.first_seconds(options.seconds)


def _settings(stack: LocalStack) -> Settings:
    settings = load(overrides={"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url})
    shards = partition_counts(admin_client(settings), 30).get(EVENTS, settings.topics.shards)
    return load(
        overrides={
            "kafka.bootstrap_servers": stack.bootstrap_servers,
            "redis.url": stack.redis_url,
            "topics.shards": shards,
        }
    )


def _play(
    options: DemoOptions, recording: Recording, settings: Settings, folder: Path, display: Display
) -> tuple[Evidence, CommandFeed, Exchange, float]:
    market = market_of(recording)
    prefix = f"demo-{secrets.token_hex(3)}-"
    prices = {trade.symbol: Decimal(trade.price) for trade in reversed(recording.trades)}
    people = draw_population(market, prices, size=options.accounts, seed=options.seed, prefix=prefix)
    exchange = Exchange(settings, market, people, prices, options.seed)
    starts = ends(settings)
    feed = CommandFeed(settings, starts, prefix)
    try:
        with Roles(settings, options.engines, folder) as roles:
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
        found = read_evidence(settings, starts, prefix)
    finally:
        feed.close()
    return found, feed, exchange, seconds


def _open(exchange: Exchange, recording: Recording, roles: Roles) -> None:
    """Deposits before positions: an account must not look insolvent because its deposit is still on its way."""
    exchange.publish_deposits()
    roles.wait_for(lambda: roles.routed() and roles.applied(), "the deposits", OPENING_TIMEOUT_S)
    exchange.publish_openings()
    roles.wait_for(lambda: roles.routed() and roles.applied(), "the opening positions", OPENING_TIMEOUT_S)


def _replay(
    options: DemoOptions, recording: Recording, exchange: Exchange, feed: CommandFeed, roles: Roles, display: Display
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


def _serve(exchange: Exchange, feed: CommandFeed, timeout_s: float) -> int:
    commands = feed.poll(timeout_s)
    for command in commands:
        exchange.execute(command)
    return len(commands)


def _settle(exchange: Exchange, feed: CommandFeed, roles: Roles) -> bool:
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


def _conclude(
    options: DemoOptions,
    console: Console,
    found: Evidence,
    feed: CommandFeed,
    exchange: Exchange,
    results: dict[str, Differences],
    latencies: Latencies,
    seconds: tuple[float, float],
) -> int:
    summary = summary_of(found, exchange, feed.repeats, results, latencies)
    show_result(console, found, exchange, results, latencies, seconds)
    if options.summary is not None:
        write_summary(options.summary, summary)
    return 0 if summary["passed"] else 1
