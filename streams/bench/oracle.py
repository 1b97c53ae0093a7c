"""How many prices one oracle process takes in, what each costs, and how long it is until its mark can be read.

``python -m streams.bench.oracle [symbols] [prices per second] [seconds]`` starts a local Kafka and Valkey and an oracle
as a process, each symbol with three sources. First all prices are there at once, then they come at that pace. Processor
time is that of the oracle's process with all its threads, heartbeats and commits. The last mark of every symbol must be
what the mark book makes of the same prices; it ends with exit code 1 if one is not.
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

from infra.local.stack import KAFKA_VARIABLE, REDIS_VARIABLE, LocalStack, child_environment
from schemas.codec import Decoder, encode
from schemas.messages import MarkFrame, OraclePrice
from schemas.parameters import OracleParameters
from schemas.topics import MARKS, PARAMETERS, PRICES
from streams.bench.cpu import processor_s
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


@dataclass(frozen=True, slots=True)
class OracleMeasurement:
    """One load of prices: what it cost, and what came of it. ``wrong`` names symbols whose last mark is not as it must
    be. ``latency_ms``: from a price's publish time until its mark was read, of 50, 99 and all in a hundred marks."""

    load: str
    prices: int
    seconds: float
    cpu_seconds: float
    frames: int
    marks: int
    latency_ms: tuple[float, float, float]
    wrong: tuple[str, ...]

    def __str__(self) -> str:
        p50, p99, highest = self.latency_ms
        return (
            f"{self.load}: {self.prices:,} prices in {self.seconds:.1f} s, {self.prices / self.seconds:,.0f}/s, "
            f"{1e6 * self.cpu_seconds / self.prices:.0f} us of processor time each "
            f"({self.cpu_seconds / self.seconds:.0%} of a core); "
            f"{self.frames / self.seconds:,.0f} frames/s, {self.marks / max(1, self.frames):.1f} marks each; price to "
            f"mark p50 {p50:,.1f} ms, p99 {p99:,.1f} ms, max {highest:,.1f} ms; "
            + (f"WRONG: {len(self.wrong)} marks" if self.wrong else "every mark right")
        )


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
            if frame.full:
                self.full_frames += 1
                continue
            self.frames += 1
            self.marks += len(frame.marks)
            self.ages_ms += [(now_us - mark.publish_time) / 1000 for mark in frame.marks]

    def close(self) -> None:
        self._consumer.close()


def bench_oracle(symbols: int = 500, per_s: int = 10_000, seconds: float = 10.0) -> Iterator[OracleMeasurement]:
    """Measure ``per_s * seconds`` prices that are all there at once, and as many at ``per_s``."""
    with LocalStack.start() as stack, tempfile.TemporaryDirectory() as folder:
        settings = load({}, {"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url})
        ensure_topics(settings)
        producer, walk = Producer(config.producer(settings.kafka, "bench")), PriceWalk(symbols)
        for number in range(symbols):
            producer.produce(PARAMETERS, encode(walk.rules(number)), key=f"oracle:{walk.name(number)}")
        producer.flush()
        with _oracle(settings, Path(folder)) as process:
            reader = MarkReader(settings)
            bench = _Bench(process, producer, walk, reader)
            bench.warm_up()
            yield bench.measure("all at once", round(per_s * seconds), None)
            yield bench.measure(f"{per_s:,}/s", round(per_s * seconds), per_s)
            reader.close()


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
    except TimeoutError as error:
        raise RuntimeError(f"{error}\n{path.read_text()[-4000:]}") from error
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
                raise TimeoutError("not every symbol has a mark")
        self._read_until(lambda: False, _WARM_S)

    def measure(self, load: str, prices: int, per_s: int | None) -> OracleMeasurement:
        """Send so many prices and wait until all their marks are there."""
        self.reader.forget()
        started, cpu_s = time.perf_counter(), processor_s(self.process.pid)
        if per_s is None:
            self._send(prices)
        else:
            self._pace(prices, per_s)
        must = self.walk.marks()
        self._read_until(lambda: self.reader.last == must, _WAIT_S)
        ended, cpu_s = time.perf_counter(), processor_s(self.process.pid) - cpu_s
        wrong = tuple(symbol for symbol, price in must.items() if self.reader.last.get(symbol) != price)
        ages = sorted(self.reader.ages_ms) or [0.0]
        latency_ms = (ages[len(ages) // 2], ages[int(0.99 * len(ages))], ages[-1])
        reader = self.reader
        return OracleMeasurement(
            load, prices, ended - started, cpu_s, reader.frames + reader.full_frames, reader.marks, latency_ms, wrong
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
                raise TimeoutError(f"the oracle ended with exit code {self.process.returncode}")
            self.reader.read(0.02)


def main() -> int:
    """Measure and judge; the exit code."""
    symbols, per_s, seconds = (
        int(given) if given else default
        for given, default in zip(sys.argv[1:] + [""] * 3, (500, 10_000, 10), strict=False)
    )
    is_wrong = False
    for measurement in bench_oracle(symbols, per_s, seconds):
        print(measurement, flush=True)
        is_wrong = is_wrong or bool(measurement.wrong)
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main())
