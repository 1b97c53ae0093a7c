"""The oracle's shell: a Faust app that feeds prices to the publisher and sends what comes of it.

One agent, one timer, one table. An error in any of them stops the process with a non-zero exit code, because Faust
would acknowledge the record and go on. Only the process that holds the leadership starts its app; others stand by.
Every frame carries the epoch of its process, so what one sends after it was replaced is void.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterable, Awaitable
from typing import Any

import faust
from faust.types import StreamT
from prometheus_client import Counter

from schemas.topics import EVENTS, MARKS, ORACLE, PRICES, dead_letter_topic
from streams import probes
from streams.broker.kafka import Kafka
from streams.logs import event
from streams.oracle import faust_store
from streams.oracle.clock import OFFSET_MS_MAX, BrokerOffset
from streams.oracle.faust_app import faust_app
from streams.oracle.leadership import Leadership
from streams.oracle.publisher import PriceRecord, PriceResult, Publisher, TableRow
from streams.oracle.wiring import open_publisher, read_last_frame
from streams.settings import Settings
from streams.watchdog import Watchdog

log = logging.getLogger(__name__)

FRAMES = Counter("margin_oracle_frames", "Mark frames published")

_LEADERSHIP_POLL_S = 0.1
_STOP_TIMEOUT_S = 10.0
_HEART, _AGENT = "heart", "price agent"
_SILENCE_FAUST = ("faust", "mode", "aiokafka", "asyncio")


class Oracle:
    """One oracle process: stands by, publishes, and ends when ``stop`` is set or anything fails.

    ``app`` is the Faust app, not started. The leadership is given up at the end; what else is given stays the caller's.
    """

    def __init__(
        self,
        app: faust.App,
        kafka: Kafka,
        publisher: Publisher,
        leadership: Leadership,
        offset: BrokerOffset,
        stop: asyncio.Event,
        watchdog: Watchdog,
    ) -> None:
        self._app = app
        self._kafka = kafka
        self._publisher = publisher
        self._leadership = leadership
        self._offset = offset
        self._stop = stop
        self._watchdog = watchdog
        self._restored = False
        self._failure: BaseException | None = None
        self._marks = app.topic(MARKS, value_type=bytes)
        self._letters = app.topic(dead_letter_topic(PRICES), value_type=bytes, key_type=bytes)
        self._table = app.Table(
            "prices",
            key_type=bytes,
            value_type=bytes,
            changelog_topic=app.topic(ORACLE, value_type=bytes, key_type=bytes, compacting=True),
            options={faust_store.OPTION: kafka.settings.redis},
        )
        app.agent(app.topic(PRICES, value_type=bytes, key_type=bytes), name="prices")(self._on_prices)

    async def run(self) -> int:
        """Stand by, publish, and leave when told to; the exit code."""
        try:
            if await self._lead():
                await self._publish()
        except Exception as error:
            log.exception("oracle_broken")
            self._fail(error)
        finally:
            self._watchdog.beat(_HEART, "leaving the group")
            self._leadership.close()
            self._watchdog.forget(_HEART)
        if self._failure is not None:
            event(log, logging.ERROR, "oracle_failed", reason=repr(self._failure))
            return 1
        event(log, logging.INFO, "oracle_stopped")
        return 0

    def readiness(self) -> list[probes.Condition]:
        """Whether it does its work now; may be asked from any thread at any time."""
        limit_ms = self._kafka.settings.service.ready_age_ms
        if self._publisher.epoch is None:
            return [_standing_by(round(1000 * self._leadership.age_s), limit_ms)]
        age_s = self._publisher.heartbeat_age_s
        age_ms = None if age_s is None else round(1000 * age_s)
        conditions = [probes.Condition("heartbeat_age_ms", age_ms, limit_ms)]
        if (offset_ms := self._offset.offset_ms) is not None:
            conditions.append(probes.Condition("clock_offset_ms", abs(offset_ms), OFFSET_MS_MAX))
        return conditions

    async def _lead(self) -> bool:
        """Wait for the leadership and claim it; False if told to stop before."""
        event(log, logging.INFO, "oracle_standing_by")
        while not self._leadership.poll():
            self._watchdog.beat(_HEART, "standing by")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _LEADERSHIP_POLL_S)
                return False
        self._watchdog.beat(_HEART, "claiming the leadership")
        self._publisher.claim()
        return True

    async def _publish(self) -> None:
        self._watchdog.beat(_HEART, "starting Faust")
        await self._app.start()
        heart = asyncio.create_task(self._beat())
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
                await self._send(self._publisher.on_price(_record(found.message)))
                self._watchdog.forget(_AGENT)
            except Exception as error:
                log.exception("price_failed")
                self._fail(error)
                self._watchdog.forget(_AGENT)
                await asyncio.Event().wait()  # never acknowledge what was not handled

    async def _beat(self) -> None:
        """Every heartbeat: rules, freshness, leadership, and a frame of all marks, until Kafka has it."""
        try:
            self._watchdog.beat(_HEART, "waiting for the table")
            tables: Any = self._app.tables
            await tables.recovery.completed.wait()
            while True:
                self._watchdog.beat(_HEART, "forming marks")
                self._restore()
                heartbeat = self._publisher.beat()
                self._watchdog.beat(_HEART, "sending marks")
                appended = await (await self._send_frame(heartbeat.frame))
                self._publisher.acknowledge(heartbeat, appended.timestamp, appended.timestamp_type)
                await asyncio.sleep(self._publisher.wait_s)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)

    def _restore(self) -> None:
        if not self._restored:
            self._restored = True
            self._publisher.restore(self._table.items(), read_last_frame(self._kafka))

    async def _send(self, result: PriceResult) -> None:
        if result.letter is not None:
            letter = result.letter
            await self._letters.send(key=letter.key, value=letter.value, headers=letter.headers)
        if result.frame is not None:
            await self._send_frame(result.frame)
        if result.row is not None:
            self._write_row(result.row)

    async def _send_frame(self, frame: bytes) -> Awaitable[Any]:
        """Hand a frame to the producer; what is returned waits until Kafka has it."""
        sent: Awaitable[Any] = await self._marks.send(value=frame, partition=0)
        FRAMES.inc()
        return sent

    def _write_row(self, row: TableRow) -> None:
        self._table[row.key] = row.value


def _record(message: Any) -> PriceRecord:
    timestamp_ms = int(message.timestamp * 1000)
    return PriceRecord(message.partition, message.offset, timestamp_ms, message.key, message.value)


def _standing_by(age_ms: int | None, limit_ms: int) -> probes.Condition:
    return probes.Condition("standing_by_age_ms", age_ms, limit_ms)


def run(settings: Settings) -> None:
    """Run one oracle process until SIGTERM or SIGINT; exits with code 1 on a failure."""
    kafka = Kafka(settings)
    shards = kafka.partition_counts()[EVENTS]
    for name in _SILENCE_FAUST:
        logging.getLogger(name).setLevel(logging.WARNING)
    asyncio.run(_run(kafka, shards))


async def _run(kafka: Kafka, shards: int) -> None:
    """The one place that gives an oracle signals, watchdog and probes."""
    settings = kafka.settings
    app = faust_app(settings)
    watchdog = Watchdog(settings.service.watchdog_ms / 1000)
    built: list[Oracle] = []

    def readiness() -> list[probes.Condition]:
        return built[0].readiness() if built else [_standing_by(None, settings.service.ready_age_ms)]

    probes.serve(settings.service.metrics_port, watchdog, readiness)
    watchdog.start()
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    watchdog.beat(_HEART, "starting")
    leadership, offset = Leadership(kafka), BrokerOffset()
    with open_publisher(kafka, leadership, shards, offset) as publisher:
        built.append(Oracle(app, kafka, publisher, leadership, offset, stop, watchdog))
        code = await built[0].run()
    if code:
        logging.shutdown()
        os._exit(code)  # what Faust started may never stop by itself
