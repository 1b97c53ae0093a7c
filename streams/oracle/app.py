"""The oracle's shell: a Faust app that feeds prices to the publisher and sends what comes of it.

One agent, one timer, one table. An error in any of them stops the process with a non-zero exit code, because Faust
would acknowledge the record and go on. Only the process that holds the leadership starts its app; others stand by.
Every frame carries the epoch of its process, so what one sends after it was replaced is void.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from typing import Any, Self

from faust.types import StreamT
from prometheus_client import Counter

from schemas.topics import JOURNAL, MARKS, ORACLE, PARAMETERS, PRICES
from streams import probes
from streams.broker.kafka import Kafka
from streams.errors import BrokerError, LeadershipLost, OracleFailed
from streams.logs import event
from streams.oracle import faust_store
from streams.oracle.clock import OFFSET_MS_MAX, BrokerOffset
from streams.oracle.expulsion import LeaderWatch, expel_leader
from streams.oracle.faust_app import BatchApp, faust_app
from streams.oracle.faust_batches import BatchMessage, FoundRecord
from streams.oracle.fetch_watch import FetchWatch
from streams.oracle.leadership import Leadership
from streams.oracle.letters import LetterWriter
from streams.oracle.publisher import BatchResult, Heartbeat, PriceRecord, Publisher, TableRow
from streams.oracle.wiring import open_publisher, read_last_frame
from streams.runtime import Event
from streams.service import run_role
from streams.settings import Settings
from streams.watchdog import Watchdog

log = logging.getLogger(__name__)

FRAMES = Counter("margin_oracle_frames", "Mark frames published")

_POLL_S = 0.1  # how often a process looks whether it leads, or is told to stop
_STOP_TIMEOUT_S = 10.0
_READ_OTHERWISE_S = 2.0
_HEART, _AGENT = "heart", "price agent"
_SILENCE_FAUST = ("faust", "mode", "aiokafka", "asyncio")


class Oracle:
    """One oracle process: stands by, publishes, and ends when it is told to or anything fails."""

    def __init__(self, kafka: Kafka, stop: Event, watchdog: Watchdog) -> None:
        self._kafka = kafka
        self._stop = stop
        self._watchdog = watchdog
        self._leadership = Leadership(kafka)
        self._leader_watch = LeaderWatch(kafka, self._leadership.name)
        self._rebalances = 0
        topics = (MARKS, PARAMETERS, JOURNAL, PRICES, ORACLE)
        self._topics = kafka.topic_watch(f"{kafka.settings.oracle.app_id}-{kafka.worker}", topics)
        self._offset = BrokerOffset()
        self._publisher: Publisher | None = None
        self._app: PriceApp | None = None
        self._failure: BaseException | None = None
        self._replaced = False

    @classmethod
    def build(cls, kafka: Kafka, stop: Event, watchdog: Watchdog) -> Self:
        """An oracle of ``kafka``.

        Raises:
            TopicError: the topics are not as the contract has them. BrokerError: Kafka does not answer.
        """
        watchdog.beat(_HEART, "starting")
        kafka.topics(kafka.settings.oracle.app_id)
        return cls(kafka, stop, watchdog)

    def run(self) -> None:
        """Stand by, publish, and leave when told to.

        Raises:
            SettingsError: a certificate or key cannot be used. BrokerError: Kafka does not answer before it stands by.
            OracleFailed: what only a new process can mend. Threads of Faust may be left.
        """
        try:
            asyncio.run(self._run())
        finally:
            self._watchdog.forget(_HEART)  # not before: what Faust has left may never end
        if self._failure is not None:
            raise OracleFailed(f"the oracle cannot go on: {self._failure!r}") from self._failure
        event(log, logging.INFO, "oracle_stopped")

    def readiness(self) -> list[probes.Condition]:
        """Whether it does its work now; may be asked from any thread at any time."""
        limit_ms = self._kafka.settings.service.ready_age_ms
        if self._publisher is None or self._publisher.epoch is None:
            return [probes.Condition("standing_by_age_ms", round(1000 * self._leadership.age_s), limit_ms)]
        age_s = self._publisher.heartbeat_age_s
        age_ms = None if age_s is None else round(1000 * age_s)
        conditions = [probes.Condition("heartbeat_age_ms", age_ms, limit_ms), *self._kafka.places.conditions()]
        if (app := self._app) is not None:
            conditions.append(app.fetch_watch.condition(limit_ms))
        if (offset_ms := self._offset.offset_ms) is not None:
            conditions.append(probes.Condition("clock_offset_ms", abs(offset_ms), OFFSET_MS_MAX))
        return conditions

    async def _run(self) -> None:
        try:
            while not self._stop.is_set():
                await self._take_turn(faust_app(self._kafka.settings))  # belongs to the loop that runs it
        finally:
            self._watchdog.beat(_HEART, "leaving the group")
            self._leadership.close()
            self._topics.close()
            self._watchdog.beat(_HEART, "ending what Faust has left")

    async def _take_turn(self, app: BatchApp) -> None:
        """Stand by, publish, and end publishing when told to stop or when another process has the right."""
        self._replaced = False
        with open_publisher(
            self._kafka,
            self._leadership,
            self._offset,
            lambda: self._watchdog.beat(_HEART, "reading parameters"),
        ) as publisher:
            self._publisher = publisher
            try:
                if await self._lead(publisher):
                    self._app = PriceApp(app, self._kafka, publisher, self._watchdog, self._fail)
                    await self._publish(self._app)
            except Exception as error:
                log.exception("oracle_broken")
                self._fail(error)
            finally:
                self._publisher = self._app = None
        if self._replaced and not self._stop.is_set():
            self._leadership.stand_by()

    async def _lead(self, publisher: Publisher) -> bool:
        """Wait for the leadership and claim it; False if told to stop before. Nothing else runs in the loop then."""
        event(log, logging.INFO, "oracle_standing_by")
        unclaimed_since: float | None = None
        self._leader_watch.begin_anew()
        while True:
            self._watchdog.beat(_HEART, "standing by")
            self._topics.check()
            if self._leadership.poll():
                self._watchdog.beat(_HEART, "claiming the leadership")
                try:
                    publisher.claim()
                    return True
                except BrokerError as error:
                    now = self._kafka.runtime.monotonic()
                    unclaimed_since = now if unclaimed_since is None else unclaimed_since
                    event(log, logging.WARNING, "leadership_not_claimed", reason=str(error))
                    if now - unclaimed_since > self._kafka.settings.outside_group_s_max:
                        raise
            else:
                unclaimed_since = None
                await self._look_after_leader()
            if self._stop.wait(_POLL_S):
                return False

    async def _look_after_leader(self) -> None:
        """Expel whoever leads, if that is another process which publishes nothing."""
        if self._rebalances != self._leadership.rebalances:  # whoever leads since has had no time yet
            self._rebalances = self._leadership.rebalances
            self._leader_watch.begin_anew()
        if self._leadership.given_to_another and self._leader_watch.is_silent():
            await expel_leader(self._kafka.settings, self._leadership.name)
            self._leader_watch.begin_anew()

    async def _publish(self, app: "PriceApp") -> None:
        await app.start()
        while not self._stop.is_set() and not self._replaced:
            try:
                self._leadership.poll()  # also while a frame waits for its partition's leader
                self._topics.check()
            except BrokerError as error:
                self._fail(error)
            await asyncio.sleep(_POLL_S)
        await app.stop()

    def _fail(self, error: BaseException) -> None:
        """End the process; one that was replaced stands by again."""
        if isinstance(error, LeadershipLost):
            event(log, logging.WARNING, "oracle_replaced", reason=str(error))
            self._replaced = True
            return
        self._failure = self._failure or error
        self._stop.set()


class PriceApp:
    """The Faust app of the process that leads: prices in, marks out.

    ``on_failure`` is told what broke; the app goes on with nothing then, and is to be stopped.
    """

    def __init__(
        self,
        app: BatchApp,
        kafka: Kafka,
        publisher: Publisher,
        watchdog: Watchdog,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._app = app
        self._kafka = kafka
        self._publisher = publisher
        self._watchdog = watchdog
        self._on_failure = on_failure
        self._restored = False
        self._sure = asyncio.Event()  # clear while the right to publish is unsure: prices wait then
        self._sure.set()
        self._order = asyncio.Lock()  # marks are sent in the order in which they were formed
        self._heart: asyncio.Task[None] | None = None
        self._marks = app.topic(MARKS, value_type=bytes)
        self._letters = LetterWriter(
            kafka.idempotent_producer(
                f"{kafka.settings.oracle.app_id}-letters", timeout_s=kafka.settings.outside_group_s_max
            )
        )
        self._gaps: asyncio.Task[None] | None = None
        app.on_gap, app.read_records = self._letters.tell, self._read_records
        self.fetch_watch = FetchWatch(
            lambda: app.prices_fetched_at,
            lambda: app.rebalancing,
            watchdog,
            monotonic=kafka.runtime.monotonic,
            told_s=kafka.settings.service.ready_age_ms / 1000,
        )
        self._table = app.Table(
            "prices",
            key_type=bytes,
            value_type=bytes,
            changelog_topic=app.topic(ORACLE, value_type=bytes, key_type=bytes, compacting=True),
            options={faust_store.OPTION: kafka.settings.redis},
        )
        app.agent(app.topic(PRICES, value_type=bytes, key_type=bytes), name="prices")(self._on_prices)

    async def start(self) -> None:
        """Start Faust and the heartbeat."""
        self._watchdog.beat(_HEART, "starting Faust")
        await self._app.start()
        self._heart = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        """End the heartbeat and Faust.

        Raises:
            TimeoutError: Faust does not end.
        """
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        if self._gaps is not None:
            self._gaps.cancel()
        self.fetch_watch.end()
        self._watchdog.beat(_HEART, "stopping Faust")
        await asyncio.wait_for(self._app.stop(), _STOP_TIMEOUT_S)
        self._letters.close()

    async def _on_prices(self, stream: StreamT[bytes]) -> None:
        prices: Any = stream
        batches: AsyncIterable[Any] = prices.noack().events()
        async for batch in batches:
            try:
                result = await self._handle(batch.message)
                self._watchdog.forget(_AGENT)  # letters have a time of their own
                await self._letters.write(result.letters)  # or a process that ends now leaves them nowhere behind
                batch.ack()
            except Exception as error:
                log.exception("prices_failed")
                self._on_failure(error)
                self._watchdog.forget(_AGENT)
                await asyncio.Event().wait()  # never acknowledge what was not handled

    async def _handle(self, message: BatchMessage) -> BatchResult:
        """Handle prices once the right to publish is sure; the dead letters of the result are still to be written."""
        while True:
            await self._sure.wait()
            self._watchdog.beat(_AGENT, "handling prices")
            self._restore()
            async with self._order:
                if not self._publisher.is_unsure:
                    result = self._publisher.on_prices(_records(message))
                    await self._send(result)
                    return result
            self._watchdog.forget(_AGENT)
            await asyncio.sleep(_POLL_S)

    async def _beat(self) -> None:
        """Every heartbeat: parameters, freshness, leadership, and a frame of all marks, until Kafka has it."""
        try:
            self._watchdog.beat(_HEART, "waiting for the table")
            tables: Any = self._app.tables
            await tables.recovery.completed.wait()
            while True:
                if self._publisher.is_unsure:
                    await self._regain()
                self._watchdog.beat(_HEART, "forming marks")
                self._restore()
                self.fetch_watch.look()
                self._write_gaps()
                async with self._order:
                    heartbeat = self._form()
                    if heartbeat is None:
                        continue
                    self._watchdog.beat(_HEART, "sending marks")
                    sent = [await self._send_frame(frame) for frame in heartbeat.frames]
                for written in sent:
                    appended = await written
                self._publisher.acknowledge(heartbeat, appended.timestamp, appended.timestamp_type)
                await asyncio.sleep(self._publisher.wait_s)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._on_failure(error)

    def _write_gaps(self) -> None:
        """Begin to write what was told of missed prices; marks do not wait for it."""
        if self._letters.has_gaps and (self._gaps is None or self._gaps.done()):
            self._gaps = asyncio.create_task(self._letters.write())
            self._gaps.add_done_callback(self._gaps_written)

    def _gaps_written(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    def _form(self) -> Heartbeat | None:
        """The heartbeat that is due; None if the right to publish has just become unsure."""
        try:
            return self._publisher.beat()
        except LeadershipLost:
            if not self._publisher.is_unsure:
                raise
            return None

    async def _regain(self) -> None:
        """Wait until the right to publish is given again and claim it; nothing is published meanwhile.

        Raises:
            LeadershipLost: another process has it, or has had it.
            BrokerError: Kafka refuses for good, or has not answered for as long as one may be outside a group.
        """
        self._sure.clear()
        event(log, logging.WARNING, "leadership_unsure", epoch=self._publisher.epoch)
        monotonic, settings = self._kafka.runtime.monotonic, self._kafka.settings
        until = monotonic() + settings.outside_group_s_max
        while self._publisher.is_unsure:
            self._watchdog.beat(_HEART, "waiting for the leadership")
            try:
                if self._publisher.may_claim():
                    await asyncio.to_thread(self._publisher.claim)
                    break
            except LeadershipLost:
                raise
            except BrokerError as error:  # refused, because the group moves on, or no answer yet
                event(log, logging.WARNING, "leadership_not_claimed", reason=str(error))
                if monotonic() > until:
                    raise
            if monotonic() > until:
                raise BrokerError("nobody has been given the leadership for as long as one may be outside a group")
            await asyncio.sleep(_POLL_S)
        self._sure.set()

    def _restore(self) -> None:
        if not self._restored:
            self._restored = True
            self._publisher.restore(self._table.items(), read_last_frame(self._kafka))

    async def _send(self, result: BatchResult) -> None:
        """Hand frames and rows to the producer."""
        for frame in result.frames:
            await self._send_frame(frame)
        for row in result.rows:
            self._write_row(row)

    async def _send_frame(self, frame: bytes) -> Awaitable[Any]:
        """Hand a frame to the producer; what is returned waits until Kafka has it."""
        sent: Awaitable[Any] = await self._marks.send(value=frame, partition=0)
        FRAMES.inc()
        return sent

    def _write_row(self, row: TableRow) -> None:
        self._table[row.key] = row.value

    def _read_records(self, topic: str, partition: int, first: int, end: int) -> list[FoundRecord]:
        """Records of a partition as another client than aiokafka reads them; may be called in any thread.

        Raises:
            BrokerError: Kafka does not answer, or what is there is not committed yet.
        """
        with self._kafka.log_reader(self._kafka.settings.oracle.app_id) as reader:
            return [
                FoundRecord(topic, partition, record.offset(), stamp, kind, record.key(), record.value())
                for record in reader.read_range(topic, partition, first, end, timeout_s=_READ_OTHERWISE_S)
                for kind, stamp in (record.timestamp(),)
            ]


def _records(message: BatchMessage) -> Iterator[PriceRecord]:
    for record in message.records:
        timestamp_ms = -1 if record.timestamp is None else record.timestamp
        yield PriceRecord(record.partition, record.offset, timestamp_ms, record.key, record.value)


def run(settings: Settings) -> None:
    """Run one oracle process until SIGTERM or SIGINT; exits with code 1 on a failure.

    Raises:
        MarginClearingError: settings, Kafka or the topics are not as they have to be.
    """
    for name in _SILENCE_FAUST:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        run_role(settings, Oracle.build)
    except OracleFailed as error:
        event(log, logging.ERROR, "oracle_failed", reason=str(error))
        logging.shutdown()
        os._exit(1)  # what Faust started may never stop by itself
