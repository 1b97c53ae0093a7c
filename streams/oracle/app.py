"""The oracle's shell: a Faust app that feeds prices to the mark book and publishes what comes of it.

One agent, one timer, one table. An error in any of them stops the process with a non-zero exit code, because Faust
would acknowledge the record and go on. Only the process that holds the leadership starts its app; others stand by.
Every frame carries the epoch of its process, so what one sends after it was replaced is void.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterable, Awaitable, Sequence
from typing import Any

import faust
import msgspec
from faust.types import StreamT
from prometheus_client import Counter, Gauge

from schemas import headers
from schemas.codec import MESSAGE_BYTES_MAX, DecodeError, Decoder, encode
from schemas.messages import Mark, MarkFrame, OraclePrice
from schemas.topics import EVENTS, MARKS, ORACLE, PARAMETERS, PRICES, dead_letter_topic
from streams import probes
from streams.access import tls
from streams.broker.admin import require_topics
from streams.broker.kafka import Kafka
from streams.broker.reader import Follower, LogReader
from streams.broker.records import Record
from streams.errors import InputError
from streams.feeds.journal import JournalFollower
from streams.feeds.marks import last_full_frame
from streams.feeds.parameters import ParameterFeed
from streams.logs import event
from streams.machine_clock import MachineClock
from streams.oracle.clock import OFFSET_MS_MAX, BrokerOffset
from streams.oracle.leadership import Leadership
from streams.oracle.marks import HEARD, MarkBook, SymbolState
from streams.oracle.outcomes import OutcomeLog
from streams.oracle.scales import ScaleBook
from streams.settings import KafkaSettings, Settings
from streams.tables import faust_store
from streams.tables.faust_store import Store
from streams.watchdog import Watchdog

log = logging.getLogger(__name__)

FRAMES = Counter("margin_oracle_frames", "Mark frames published")
MARKS_LIVE = Gauge("margin_oracle_marks_live", "Marks that are live")
DEAD_LETTERS = Counter("margin_oracle_dead_letters", "Price records that could not be read")

_PRICE = Decoder[OraclePrice](OraclePrice)
_SYMBOL = Decoder[SymbolState](SymbolState)
_LEADERSHIP_POLL_S = 0.1
_STOP_TIMEOUT_S = 10.0
_HEART, _AGENT = "heart", "price agent"
_SILENCE_FAUST = ("faust", "mode", "aiokafka", "asyncio")


class Oracle:
    """One oracle process."""

    def __init__(self, settings: Settings, shards: int, watchdog: Watchdog | None = None) -> None:
        self._settings = settings
        self._kafka = Kafka(settings)
        self._watchdog = watchdog or Watchdog()
        self._leadership: Leadership | None = None
        self._epoch: int | None = None
        self._beaten: float | None = None
        self._shards = shards
        self._book = MarkBook()
        self._scales = ScaleBook(shards)
        self._outcomes = OutcomeLog()
        self._remembered: dict[str, int] = {}
        self._clock = MachineClock()
        self._offset = BrokerOffset()
        self._restored = False
        self._failure: BaseException | None = None
        self._stop = asyncio.Event()
        self._app = faust_app(settings)
        self._prices = self._app.topic(PRICES, value_type=bytes, key_type=bytes)
        self._marks = self._app.topic(MARKS, value_type=bytes)
        self._letters = self._app.topic(dead_letter_topic(PRICES), value_type=bytes, key_type=bytes)
        self._table = self._app.Table(
            "prices",
            key_type=bytes,
            value_type=bytes,
            changelog_topic=self._app.topic(ORACLE, value_type=bytes, key_type=bytes, compacting=True),
            options={faust_store.OPTION: settings.redis},
        )
        self._app.agent(self._prices, name="prices")(self._on_prices)

    async def run(self) -> int:
        """Stand by, publish, and leave when told to; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._watchdog.beat(_HEART, "starting")
        self._leadership = leadership = Leadership(self._kafka)
        self._journals = JournalFollower(self._kafka, f"{self._settings.oracle.app_id}-journals", self._shards)
        self._parameters = ParameterFeed(Follower(self._settings.kafka, self._settings.oracle.app_id, PARAMETERS))
        self._read_parameters_from_the_beginning()
        try:
            if await self._lead(leadership):
                await self._publish(leadership)
        except Exception as error:
            log.exception("oracle_broken")
            self._fail(error)
        finally:
            self._watchdog.beat(_HEART, "leaving the group")
            leadership.close()
            self._watchdog.forget(_HEART)
            self._parameters.close()
            self._journals.close()
        if self._failure is not None:
            event(log, logging.ERROR, "oracle_failed", reason=repr(self._failure))
            return 1
        event(log, logging.INFO, "oracle_stopped")
        return 0

    def readiness(self) -> list[probes.Condition]:
        """Whether it does its work now; may be asked from any thread at any time."""
        leadership, beaten, limit_ms = self._leadership, self._beaten, self._settings.service.ready_age_ms
        if leadership is None or self._epoch is None:
            waited_ms = None if leadership is None else round(1000 * leadership.age_s)
            return [probes.Condition("standing_by_age_ms", waited_ms, limit_ms)]
        age_ms = None if beaten is None else round(1000 * (time.monotonic() - beaten))
        conditions = [probes.Condition("heartbeat_age_ms", age_ms, limit_ms)]
        if (offset_ms := self._offset.offset_ms) is not None:
            conditions.append(probes.Condition("clock_offset_ms", abs(offset_ms), OFFSET_MS_MAX))
        return conditions

    async def _lead(self, leadership: Leadership) -> bool:
        """Wait for the leadership and claim it; False if told to stop before."""
        event(log, logging.INFO, "oracle_standing_by")
        while not leadership.poll():
            self._watchdog.beat(_HEART, "standing by")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _LEADERSHIP_POLL_S)
                return False
        self._watchdog.beat(_HEART, "claiming the leadership")
        self._epoch = leadership.claim()
        event(log, logging.INFO, "oracle_leads", epoch=self._epoch)
        return True

    async def _publish(self, leadership: Leadership) -> None:
        self._watchdog.beat(_HEART, "starting Faust")
        await self._app.start()
        heart = asyncio.create_task(self._beat(leadership))
        await self._stop.wait()
        heart.cancel()
        await asyncio.gather(heart, return_exceptions=True)
        self._watchdog.beat(_HEART, "stopping Faust")
        await asyncio.wait_for(self._app.stop(), _STOP_TIMEOUT_S)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._stop.set()

    # --- prices in, marks out ----------------------------------------------------------------------------------------

    async def _on_prices(self, stream: StreamT[bytes]) -> None:
        events: AsyncIterable[Any] = stream.events()
        async for found in events:
            try:
                self._watchdog.beat(_AGENT, "handling a price")
                self._restore()
                await self._on_price(found)
                self._watchdog.forget(_AGENT)
            except Exception as error:
                log.exception("price_failed")
                self._fail(error)
                self._watchdog.forget(_AGENT)
                await asyncio.Event().wait()  # never acknowledge what was not handled

    async def _on_price(self, found: Any) -> None:
        try:
            price = _PRICE(found.message.value)
        except DecodeError as error:
            await self._dead_letter(found.message, error)
            return
        clock = self._clock.now_us()
        outcome = self._book.accept(price, clock)
        self._outcomes.tell(price, outcome, clock)
        if outcome not in HEARD:
            return
        mark = self._book.form(price.symbol, clock)
        if mark is not None:
            await self._send(self._frame(clock, (mark,)))
        self._remember(price.symbol, clock, at_once=mark is not None and mark.status != "live")

    def _remember(self, symbol: str, clock: int, *, at_once: bool) -> None:
        """Write a symbol's state to the table, at most once a heartbeat: each write is a record of the changelog.

        After a crash the prices since the last write are read again, or forgotten; either way newer ones follow. The
        price that ended a live mark is written at once, because it may be the last one before a silence.
        """
        age = clock - self._remembered.get(symbol, 0)
        if at_once or not 0 <= age < 1000 * self._settings.oracle.heartbeat_ms:
            self._remembered[symbol] = clock
            state = msgspec.structs.replace(self._book.state(symbol), volatility=self._scales.volatility(symbol))
            self._table[symbol.encode()] = encode(state)

    async def _beat(self, leadership: Leadership) -> None:
        """Every heartbeat: rules, freshness, leadership, and a frame of all marks, until Kafka has it."""
        try:
            self._watchdog.beat(_HEART, "waiting for the table")
            tables: Any = self._app.tables
            await tables.recovery.completed.wait()
            period_s = self._settings.oracle.heartbeat_ms / 1000
            due = time.monotonic()
            while True:
                self._watchdog.beat(_HEART, "forming marks")
                self._restore()
                self._poll_parameters()
                if not leadership.poll():
                    raise RuntimeError("another oracle process publishes now")
                marks = self._book.form_all(clock := self._clock.now_us())
                MARKS_LIVE.set(sum(mark.status == "live" for mark in marks))
                self._scale(marks, clock)
                self._watchdog.beat(_HEART, "sending marks")
                frame = self._frame(
                    clock, marks, full=True, scales=self._scales.scales, uncounted=self._book.uncounted(clock)
                )
                appended = await (await self._send(frame))
                self._offset.observe(clock, self._clock.now_us(), appended.timestamp, appended.timestamp_type)
                self._beaten = time.monotonic()
                due = max(due + period_s, time.monotonic())
                await asyncio.sleep(due - time.monotonic())
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)

    def _scale(self, marks: Sequence[Mark], clock: int) -> None:
        for shard, quantities in self._journals.open_interest():
            self._scales.observe_open_interest(shard, quantities)
        self._scales.observe_marks(marks, clock)
        self._scales.step(marks, clock)

    def _frame(self, clock: int, marks: tuple[Mark, ...], **fields: Any) -> MarkFrame:
        assert self._epoch is not None
        return MarkFrame(time=clock, marks=marks, epoch=self._epoch, **fields)

    async def _send(self, frame: MarkFrame) -> Awaitable[Any]:
        """Hand a frame to the producer; what is returned waits until Kafka has it."""
        if self._leadership is None or self._leadership.lost:
            raise RuntimeError("another oracle process publishes now")
        sent: Awaitable[Any] = await self._marks.send(value=encoded_frame(frame), partition=0)
        FRAMES.inc()
        return sent

    async def _dead_letter(self, message: Any, error: DecodeError) -> None:
        DEAD_LETTERS.inc()
        event(log, logging.WARNING, "dead_letter", topic=PRICES, offset=message.offset, reason=str(error))
        about = headers.dead_letter(
            PRICES, message.partition, message.offset, int(message.timestamp * 1000), type(error).__name__, str(error)
        )
        await self._letters.send(key=message.key, value=message.value, headers=about)

    # --- what must be known before the first price -------------------------------------------------------------------

    def _restore(self) -> None:
        if self._restored:
            return
        self._restored = True
        for key, value in self._table.items():
            symbol = key.decode("utf-8", "replace")
            try:
                state = _SYMBOL(value)
            except DecodeError as error:  # what it said is heard again, and the mark's last price is in the frame
                event(log, logging.ERROR, "symbol_unreadable", symbol=symbol, reason=str(error))
                continue
            self._book.restore(symbol, state)
            if state.volatility is not None:
                self._scales.restore_volatility(symbol, state.volatility)
        with LogReader(self._settings.kafka, self._settings.oracle.app_id) as reader:
            frame = last_full_frame(reader)
        if frame is not None:
            self._scales.restore(frame.scales)
            for mark in frame.marks:
                self._book.remember(mark)
        event(log, logging.INFO, "oracle_publishing", symbols=sorted(self._parameters.rules.oracle))

    def _read_parameters_from_the_beginning(self) -> None:
        self._parameters.restart()
        with LogReader(self._settings.kafka, self._settings.oracle.app_id) as reader:
            self._parameters.catch_up(reader, self._add_parameters)
        self._set_rules()

    def _poll_parameters(self) -> None:
        records = self._parameters.poll()
        self._add_parameters(records)
        if records:
            self._set_rules()

    def _add_parameters(self, records: list[Record]) -> None:
        """Put records in force; to say what is wrong with one that is refused is the engine's business."""
        for record in records:
            self._parameters.add(record)

    def _set_rules(self) -> None:
        rules = self._parameters.rules
        priced = {asset.price_symbol for asset in rules.assets.values() if asset.price_symbol is not None}
        self._book.set_rules(rules.oracle, kept={*rules.instruments, *priced})
        self._scales.set_parameters(rules)


def encoded_frame(frame: MarkFrame) -> bytes:
    """The bytes of ``frame``, without what only explains its marks if a message could not hold that.

    Raises:
        InputError: even so it is larger than a message may be: there are too many symbols for one frame.
    """
    data = encode(frame)
    if len(data) <= MESSAGE_BYTES_MAX:
        return data
    event(log, logging.WARNING, "frame_without_sources", marks=len(frame.marks), bytes=len(data))
    bare = tuple(msgspec.structs.replace(mark, sources={}) for mark in frame.marks)
    data = encode(msgspec.structs.replace(frame, marks=bare, uncounted={}))
    if len(data) > MESSAGE_BYTES_MAX:
        raise InputError(
            f"a frame of {len(frame.marks):,} marks has {len(data):,} bytes, more than the {MESSAGE_BYTES_MAX:,} of a "
            "message: take oracle records of symbols that are not used any more out of risk.parameters.v1"
        )
    return data


class _App(faust.App):
    """Faust without its folders: it would make them in the working folder, and only its RocksDB store writes there."""

    def _create_directories(self) -> None:
        pass


def faust_app(settings: Settings) -> faust.App:
    """The app, told what every other client is told. Redis is none of its business: a table's options say where it is.

    Raises:
        SettingsError: a certificate or key cannot be used.
    """
    kafka = settings.kafka
    faust.stores.STORES.aliases.setdefault("redis", f"{Store.__module__}:{Store.__name__}")
    session_s = kafka.session_timeout_ms / 1000
    given = kafka.properties
    if given.tuning:
        event(log, logging.INFO, "options_of_librdkafka_alone", names=sorted(given.tuning))
    client: dict[str, Any] = {"broker_request_timeout": 90.0} | given.faust
    # Faust refuses a session that is longer than a request may take.
    client["broker_request_timeout"] = max(client["broker_request_timeout"], session_s)
    return _App(
        settings.oracle.app_id,
        env={},  # else BROKER_URL, TOPIC_PARTITIONS and their like in the environment go before what is given here
        broker=[f"aiokafka://{server}" for server in kafka.servers],
        broker_credentials=_credentials(kafka),
        store=faust_store.URL,
        key_serializer="raw",
        value_serializer="raw",
        web_enabled=bool(settings.oracle.web_port),
        web_port=settings.oracle.web_port or 6066,
        web_tables_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        producer_linger=0.0,
        producer_acks=-1,
        consumer_auto_offset_reset="latest",
        broker_commit_interval=1.0,
        broker_session_timeout=session_s,
        broker_heartbeat_interval=max(0.1, kafka.session_timeout_ms / 10_000),
        broker_max_poll_records=500,
        stream_wait_empty=False,
        autodiscover=False,
        **client,
    )


def _credentials(kafka: KafkaSettings) -> Any:
    """What Faust hands to aiokafka for every client of its own; None is PLAINTEXT."""
    context = None if kafka.tls is None else tls.context(kafka.tls)
    if kafka.sasl_mechanism:
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.sasl_password,
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context=context)


def run(settings: Settings) -> None:
    """Run one oracle process until SIGTERM or SIGINT; exits with code 1 on a failure."""
    counts = require_topics(settings)
    for name in _SILENCE_FAUST:
        logging.getLogger(name).setLevel(logging.WARNING)
    watchdog = Watchdog(settings.service.watchdog_ms / 1000)

    async def main() -> int:
        oracle = Oracle(settings, counts[EVENTS], watchdog)
        probes.serve(settings.service.metrics_port, watchdog, oracle.readiness)
        watchdog.start()
        code = await oracle.run()
        if code:
            logging.shutdown()
            os._exit(code)  # what Faust started may never stop by itself
        return code

    asyncio.run(main())
