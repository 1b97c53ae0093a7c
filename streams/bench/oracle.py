"""How many prices one oracle process takes in, what each costs, and how long it is until its mark can be read.

A local Kafka and Valkey, an oracle as a process, three sources for each symbol. First all prices are there at once,
then they come at a pace. Processor time is that of the oracle's process with all its threads, heartbeats and commits.
The last mark of every symbol must be what the mark book makes of the same prices.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition
from msgspec import UNSET

from infra.local.stack import KAFKA_VARIABLE, REDIS_VARIABLE, LocalStack, child_environment
from schemas.codec import Decoder, encode
from schemas.messages import MarkFrame, OraclePrice
from schemas.parameters import OracleParameters
from schemas.topics import MARKS, PARAMETERS, PRICES
from streams.bench.bed import Progress
from streams.bench.cpu import processor_s
from streams.bench.errors import BenchDiffers, BenchError
from streams.broker import config
from streams.broker.admin import ensure_topics
from streams.oracle.marks import MarkBook
from streams.settings import Settings, load

SOURCES = ("a", "b", "c")
MAX_AGE_MS = 600_000
"""Nothing grows old while it waits: the last marks do not depend on how long it took."""
_STEP_S = 0.002
_WAIT_S = 120.0
_WARM_S = 3.0

_FRAME = Decoder[MarkFrame](MarkFrame)


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleTimes:
    """One load of prices: what it cost, and what came of it.

    ``load``: how the prices came. ``cpu_us_per_price``: microseconds of processor time. ``price_to_mark``: milliseconds
    from a price's publish time until its mark was read.
    """

    load: str
    symbols: int
    prices: int
    seconds: float
    prices_per_s: float
    cpu_us_per_price: float
    cores: float
    frames_per_s: float
    marks: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(slots=True)
class PriceWalk:
    """Prices that walk a little, source by source, and the marks that must come of them."""

    symbols: int
    drawn: random.Random = field(default_factory=lambda: random.Random(1))
    book: MarkBook = field(default_factory=MarkBook)
    sequence: int = 0
    ticks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.book.set_rules({self.name(number): self.rules(number) for number in range(self.symbols)})
        self.ticks = [1_000_000] * self.symbols

    @staticmethod
    def name(number: int) -> str:
        return f"S{number:04d}-PERP"

    @classmethod
    def rules(cls, number: int) -> OracleParameters:
        """The rules of a symbol."""
        return OracleParameters(
            symbol=cls.name(number), sources=dict.fromkeys(SOURCES, "1"), minimum_sources=2, max_age_ms=MAX_AGE_MS
        )

    def next(self) -> OraclePrice:
        """The next price: every source of every symbol in turn."""
        source, number = divmod(self.sequence % (self.symbols * len(SOURCES)), self.symbols)
        self.ticks[number] += self.drawn.randint(-50, 50)
        self.sequence += 1
        price = OraclePrice(
            source=SOURCES[source],
            symbol=self.name(number),
            price=f"{self.ticks[number] / 10_000:.4f}",
            sequence=self.sequence,
            publish_time=time.time_ns() // 1000,
        )
        self.book.accept(price, price.publish_time)
        return price

    def marks(self) -> dict[str, str]:
        """The price of every mark, as it must be by now."""
        return {mark.symbol: mark.price for mark in self.book.form_all(time.time_ns() // 1000)}


class MarkReader:
    """Reads the marks of a load: the last of each symbol, how many, and how old each was when it was read."""

    def __init__(self, settings: Settings) -> None:
        properties = config.reader(settings.kafka, "bench") | {"enable.partition.eof": False, "fetch.wait.max.ms": 10}
        self._consumer = Consumer(properties)
        self._consumer.assign([TopicPartition(MARKS, 0, 0)])
        self.last: dict[str, str] = {}
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self.frames, self.marks, self.full_frames = 0, 0, 0
        self.ages_ms: list[float] = []

    def read(self, seconds: float) -> None:
        """Read what comes within so many seconds."""
        for message in self._consumer.consume(500, seconds):
            assert message.error() is None, message.error()
            frame, now_us = _FRAME(message.value()), time.time_ns() // 1000
            self.last |= {mark.symbol: mark.price for mark in frame.marks if mark.status == "live"}
            if frame.full or frame.part is not UNSET:
                self.full_frames += 1
                continue
            self.frames += 1
            self.marks += len(frame.marks)
            self.ages_ms += [(now_us - mark.publish_time) / 1000 for mark in frame.marks]

    def close(self) -> None:
        self._consumer.close()


def bench_oracle(symbols: int, per_s: int, seconds: float, *, progress: Progress = lambda _: None) -> list[OracleTimes]:
    """Measure ``per_s * seconds`` prices that are all there at once, and as many at ``per_s``.

    Raises:
        BenchDiffers: a mark is not what the mark book makes of the prices.
        BenchError: it could not be run.
    """
    with LocalStack.start(progress=progress) as stack, tempfile.TemporaryDirectory() as folder:
        settings = load({}, {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url})
        ensure_topics(settings)
        producer, walk = Producer(config.producer(settings.kafka, "bench")), PriceWalk(symbols)
        for number in range(symbols):
            producer.produce(PARAMETERS, encode(walk.rules(number)), key=f"oracle:{walk.name(number)}")
        producer.flush()
        with _oracle(settings, Path(folder)) as process:
            reader = MarkReader(settings)
            bench = _Bench(process, producer, walk, reader)
            progress(f"{symbols:,} symbols of {len(SOURCES)} sources get their first marks")
            bench.warm_up()
            runs = []
            for name, pace in (("all at once", None), (f"{per_s:,}/s", per_s)):
                progress(f"{round(per_s * seconds):,} prices, {name}")
                runs.append(bench.measure(name, round(per_s * seconds), pace))
            reader.close()
    return runs


@contextmanager
def _oracle(settings: Settings, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    environment = child_environment(
        {KAFKA_VARIABLE: settings.kafka.bootstrap_servers, REDIS_VARIABLE: settings.redis.url}
    )
    path = folder / "oracle.log"
    with path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "streams.cli", "oracle"], env=environment, stderr=log)
    try:
        yield process
    except BenchError as error:
        raise BenchError(f"{error}\n{path.read_text()[-4000:]}") from error
    finally:
        process.terminate()
        process.wait(timeout=60)


@dataclass(frozen=True, slots=True)
class _Bench:
    process: "subprocess.Popen[bytes]"
    producer: Producer
    walk: PriceWalk
    reader: MarkReader

    def warm_up(self) -> None:
        """Send prices until every symbol has a mark: the oracle reads from the end that it finds, and only then."""
        deadline = time.monotonic() + _WAIT_S
        while len(self.reader.last) < self.walk.symbols:
            self._send(self.walk.symbols * len(SOURCES))
            self._read_until(lambda: len(self.reader.last) == self.walk.symbols, 5.0)
            if time.monotonic() > deadline:
                raise BenchError("not every symbol has a mark")
        self._read_until(lambda: False, _WARM_S)

    def measure(self, load: str, prices: int, per_s: int | None) -> OracleTimes:
        """Send so many prices and wait until all their marks are there.

        Raises:
            BenchDiffers: they are not.
        """
        self.reader.forget()
        started, cpu_s = time.perf_counter(), processor_s(self.process.pid)
        if per_s is None:
            self._send(prices)
        else:
            self._pace(prices, per_s)
        must = self.walk.marks()
        self._read_until(lambda: self.reader.last == must, _WAIT_S)
        took, cpu_s = time.perf_counter() - started, processor_s(self.process.pid) - cpu_s
        if self.reader.last != must:
            raise BenchDiffers(
                f"oracle, {load}",
                [
                    f"the mark of {symbol} is {self.reader.last.get(symbol)}, not {price}"
                    for symbol, price in must.items()
                    if self.reader.last.get(symbol) != price
                ],
            )
        ages, reader = sorted(self.reader.ages_ms) or [0.0], self.reader
        return OracleTimes(
            load=load,
            symbols=self.walk.symbols,
            prices=prices,
            seconds=took,
            prices_per_s=prices / took,
            cpu_us_per_price=1e6 * cpu_s / prices,
            cores=cpu_s / took,
            frames_per_s=(reader.frames + reader.full_frames) / took,
            marks=reader.marks,
            p50_ms=ages[len(ages) // 2],
            p99_ms=ages[int(0.99 * len(ages))],
            max_ms=ages[-1],
        )

    def _pace(self, prices: int, per_s: int) -> None:
        started, sent = time.monotonic(), 0
        while sent < prices:
            due = min(prices, round((time.monotonic() - started) * per_s))
            self._send(due - sent, flush=False)
            sent = due
            self.reader.read(_STEP_S)
        self.producer.flush()

    def _send(self, prices: int, *, flush: bool = True) -> None:
        for _ in range(prices):
            price = self.walk.next()
            self.producer.produce(PRICES, encode(price), key=price.symbol)
        self.producer.poll(0)
        if flush:
            self.producer.flush()

    def _read_until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise BenchError(f"the oracle ended with exit code {self.process.returncode}")
            self.reader.read(0.02)
