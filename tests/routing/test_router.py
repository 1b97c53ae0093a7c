"""The router on a real broker: every record once, whatever fails; what cannot be read is kept beside."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import orjson
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from schemas.codec import Decoder
from schemas.messages import EventFrame
from schemas.partitioning import partition_of, shard_of
from schemas.topics import EVENTS, REPORTS, ROUTER, TRADES, TRANSFERS, Compression, dead_letter_topic
from streams.broker import config
from streams.broker.clients import Clients
from streams.broker.dead_letters import DEAD_LETTER_BYTES_MAX
from streams.broker.kafka import Kafka
from streams.broker.places import PlaceWatch
from streams.broker.producer import TransactionalProducer, group_metadata
from streams.broker.reader import Follower, LogReader, poll_batch
from streams.broker.records import Record
from streams.errors import BrokerError, ProducerFenced, TransactionAborted
from streams.routing import router as router_module
from streams.routing.committed_at import CommittedAt
from streams.routing.concerned import concerned
from streams.routing.router import Router
from streams.routing.trade_ids import memory_key
from streams.runtime import SystemRuntime
from streams.settings import Settings
from streams.watchdog import Watchdog

DEADLINE_S = 60.0
REASON = "what lies before is known"
_FRAME = Decoder[EventFrame](EventFrame)
_names = itertools.count(1)


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of ``condition``; fails with ``what`` after the deadline."""
    end = time.monotonic() + DEADLINE_S
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            pytest.fail(f"not within {DEADLINE_S:g} s: {what}")
        threading.Event().wait(0.02)


class TopicLog:
    """Everything committed to a topic since this was made."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._followers = []
        self._records: list[Any] = []
        with LogReader(settings.kafka, "test") as reader:
            for partition in range(reader.partitions(topic)):
                follower = Follower(settings.kafka, "test", topic, partition)
                follower.start(reader.watermarks(topic, partition)[1])
                self._followers.append(follower)

    def records(self) -> list[Any]:
        for follower in self._followers:
            while batch := follower.poll(0.01):
                self._records += batch
        return self._records

    def close(self) -> None:
        for follower in self._followers:
            follower.close()


class Exchange:
    """An exchange with a symbol and accounts of its own, and what the router made of its records."""

    def __init__(self, settings: Settings, records: Any, rows_of: Any) -> None:
        self.settings, self.records = settings, records
        self._rows_of = rows_of
        self.name = f"{os.getpid()}-{next(_names)}"
        self.symbol = f"R{self.name}-PERP"
        self.alice, self.bob = f"alice-{self.name}", f"bob-{self.name}"
        self._producer = Producer(config.producer(settings.kafka, "test"))
        self._logs: dict[str, TopicLog] = {}
        self._rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._seen: dict[str, int] = defaultdict(int)
        self._told: dict[tuple[str, int], dict[tuple[str, int], int]] = defaultdict(lambda: defaultdict(int))
        self._begun: dict[tuple[str, int], set[tuple[str, int]]] = defaultdict(set)
        self.log(EVENTS)

    def log(self, topic: str) -> TopicLog:
        if topic not in self._logs:
            self._logs[topic] = TopicLog(self.settings, topic)
        return self._logs[topic]

    def send(self, topic: str, value: Any, key: str | None = None) -> None:
        data = value if isinstance(value, bytes) or value is None else orjson.dumps(value)
        self._producer.produce(topic, data, key=key or self.symbol)

    def flush(self) -> None:
        assert self._producer.flush(30) == 0

    def trades(self, trade_ids: range | list[int]) -> None:
        """Trades of one unit each, Alice buying from Bob."""
        for trade_id in trade_ids:
            trade = self.records.trade(
                trade_id,
                symbol=self.symbol,
                quantity="1",
                taker=self.records.side(self.alice),
                maker=self.records.side(self.bob),
            )
            self.send(TRADES, trade)
        self.flush()

    def transfers(self, sequences: range) -> None:
        """Transfers of Alice's; unlike trades the router passes on whatever it reads, so a repeat would show."""
        for sequence in sequences:
            self.send(TRANSFERS, self.records.transfer(self.alice, sequence), key=self.alice)
        self.flush()

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The routed rows of these accounts, each on its shard, without those that a shard drops as repeats."""
        messages = self.log(EVENTS).records()
        for message in messages[self._seen[kind] :]:
            shard, told = message.partition(), self._told[kind, message.partition()]
            sources = orjson.loads(message.value())["sources"]
            had = [told[source["topic"], source["partition"]] for source in sources]
            for source in sources:
                place = source["topic"], source["partition"]
                assert source["first"] <= told[place] or place not in self._begun[kind, shard]
                self._begun[kind, shard].add(place)
                told[place] = max(told[place], source["next"])
            for _, row in self._rows_of([(shard, message.value())], kind):
                if row["account"].endswith(f"-{self.name}") and row["source_offset"] >= had[row.pop("source")]:
                    assert shard == shard_of(row["account"], self.settings.topics.shards)
                    self._rows[kind].append(row)
        self._seen[kind] = len(messages)
        return self._rows[kind]

    def ids(self, account: str) -> list[int]:
        return [row["trade_id"] for row in self.rows("fills") if row["account"] == account]

    def wait_for_trade(self, trade_id: int) -> None:
        eventually(lambda: trade_id in self.ids(self.alice) and trade_id in self.ids(self.bob), f"trade {trade_id}")

    def wait_for_transfer(self, sequence: int) -> None:
        eventually(lambda: sequence in [row["sequence"] for row in self.rows("transfers")], f"transfer {sequence}")

    def assert_routed_once(self, trade_ids: range, transfers: range = range(0)) -> None:
        assert self.ids(self.alice) == list(trade_ids)
        assert self.ids(self.bob) == list(trade_ids)
        assert [row["sequence"] for row in self.rows("transfers")] == list(transfers)

    def close(self) -> None:
        for log in self._logs.values():
            log.close()


@pytest.fixture
def exchange(settings: Settings, records: Any, rows_of: Any) -> Iterator[Exchange]:
    exchange = Exchange(settings, records, rows_of)
    yield exchange
    exchange.close()


class Process:
    """A router as a process of its own.

    ``CRASH="before commit 3"`` kills it (SIGKILL) just before its third commit; ``CRASH="frozen"`` stops it (SIGSTOP)
    with its first batch in hand, and lets it go on with that once the group has expelled it.
    """

    def __init__(self, settings: Settings, log: Path, **environment: str) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN],
                env={
                    **os.environ,
                    "MARGIN_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
                    "MARGIN_KAFKA__SESSION_TIMEOUT_MS": "6000",
                    **environment,
                },
                stdout=output,
                stderr=output,
            )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def refusal(self) -> str:
        """What it says that ends by itself."""
        assert self._process.wait(timeout=DEADLINE_S) == 1, self.log()
        return self.log()

    def wait_for_crash(self) -> None:
        assert self._process.wait(timeout=DEADLINE_S) == -signal.SIGKILL, self.log()

    def wait_until_frozen(self) -> None:
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), self.log()

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=DEADLINE_S)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


_MAIN = """
import itertools, os, signal, time
from streams import logs
from streams.broker.kafka import Kafka
from streams.broker.producer import IdempotentProducer, TransactionalProducer
from streams.routing.router import Router, run
from streams.settings import load

crash = os.environ.get("CRASH")
if crash == "frozen":
    collect, group_consumer, consumers = Router.collect, Kafka.group_consumer, []

    def kept(*arguments, **named):
        consumers.append(group_consumer(*arguments, **named))
        return consumers[-1]

    def frozen(self):
        batch = collect(self)
        if batch:
            Router.collect = collect
            os.kill(os.getpid(), signal.SIGSTOP)
            while consumers[-1].memberid():
                time.sleep(0.01)
        return batch

    Kafka.group_consumer, Router.collect = kept, frozen
elif crash:
    when, name, number = crash.split()
    owner = IdempotentProducer if name in ("produce", "flush") else TransactionalProducer
    calls, original = itertools.count(1), getattr(owner, name)

    def die(now):
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(*arguments, **named):
        last = next(calls) == int(number)
        die(last and when == "before")
        original(*arguments, **named)
        die(last)

    setattr(owner, name, dying)
settings = load()
logs.configure("INFO", "json", settings.worker_name)
run(settings)
"""


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts router processes, which end with the test."""
    started: list[Process] = []

    def process(**environment: str) -> Process:
        started.append(Process(settings, tmp_path / f"router-{len(started)}.log", **environment))
        return started[-1]

    yield process
    for one in started:
        one.close()


class InThread:
    """A router in a thread of the test's process."""

    def __init__(self, kafka: Kafka) -> None:
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._kafka = kafka
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            Router.build(self._kafka, self._stop, Watchdog()).run()
        except Exception as error:
            self._error = error

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def close(self) -> None:
        """Stop it; raises what ended it."""
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error


def in_small_batches(settings: Settings, records_max: int = 50) -> Settings:
    router = msgspec.structs.replace(settings.router, batch_records_max=records_max)
    return msgspec.structs.replace(settings, router=router)


@pytest.fixture
def run(settings: Settings) -> Iterator[Callable[..., InThread]]:
    """Runs routers in threads, which end with the test."""
    started: list[InThread] = []

    def thread(given: Settings | Kafka = settings) -> InThread:
        started.append(InThread(given if isinstance(given, Kafka) else Kafka(given)))
        return started[-1]

    yield thread
    for one in started:
        if not one.ended():
            one.close()


# --- what cannot be read ---------------------------------------------------------------------------------------------

Make = Callable[[Any], Any]
BAD: dict[str, dict[str, Make]] = {
    TRADES: {
        "no value": lambda _: None,
        "empty": lambda _: b"",
        "not JSON": lambda _: b"{",
        "not UTF-8": lambda _: b'{"trade_id":"\xff\xfe"}',
        "a list": lambda _: b"[]",
        "deeply nested": lambda _: b"[" * 100_000,
        "fields missing": lambda _: b'{"trade_id":1}',
        "a number for money": lambda r: r.trade(1, price=61800.5),
        "no quantity": lambda r: r.trade(1, quantity="0"),
        "an id too large": lambda r: r.trade(2**63),
        "an unknown side": lambda r: r.trade(1, aggressor_side="BUY"),
        "no maker": lambda r: r.trade(1, maker=None),
        "an account with a space": lambda r: r.trade(1, maker=r.side("a b")),
        "an unknown margin mode": lambda r: r.trade(1, maker=r.side("a", margin="both")),
        "too long": lambda _: b'"' + b"x" * 1_000_001 + b'"',
    },
    TRANSFERS: {
        "no value": lambda _: None,
        "not JSON": lambda _: b"nope",
        "nothing moved": lambda r: r.transfer("a", amount="0"),
        "a number for money": lambda r: r.transfer("a", amount=1),
        "a negative sequence": lambda r: r.transfer("a", -1),
        "an asset with a space": lambda r: r.transfer("a", asset="US DC"),
    },
    REPORTS: {
        "no value": lambda _: None,
        "not JSON": lambda _: b"\x00",
        "an unknown status": lambda r: r.report("a", status="maybe"),
        "a negative quantity": lambda r: r.report("a", filled_quantity="-1"),
        "a time that is no integer": lambda r: r.report("a", event_time="now"),
    },
}
CASES = [(topic, name) for topic, cases in BAD.items() for name in cases]


def bytes_of(value: Any) -> bytes | None:
    return value if isinstance(value, bytes) or value is None else orjson.dumps(value)


def test_what_cannot_be_read_is_kept_as_it_came_and_its_neighbours_are_routed(
    exchange: Exchange, records: Any, run: Callable[..., InThread]
) -> None:
    letters = {topic: exchange.log(dead_letter_topic(topic)) for topic in BAD}
    inputs = {topic: exchange.log(topic) for topic in BAD}
    exchange.trades([1])
    for number, (topic, name) in enumerate(CASES):
        exchange.send(topic, BAD[topic][name](records), key=f"{exchange.symbol}/{name}")
        exchange.trades([number + 2])
        exchange.send(TRANSFERS, records.transfer(exchange.alice, number + 1), key=exchange.alice)
        exchange.send(REPORTS, records.report(exchange.bob, number + 1), key=exchange.bob)
    exchange.flush()
    run()
    last = len(CASES) + 1
    exchange.wait_for_trade(last)
    exchange.wait_for_transfer(len(CASES))
    eventually(lambda: len(exchange.rows("reports")) >= len(CASES), "the reports")
    exchange.assert_routed_once(range(1, last + 1), range(1, len(CASES) + 1))
    assert [row["command_id"] for row in exchange.rows("reports")] == [
        f"{exchange.bob}:{n}" for n in range(1, len(CASES) + 1)
    ]
    for topic, cases in BAD.items():
        sent = {m.key(): m for m in inputs[topic].records() if m.key().startswith(exchange.symbol.encode() + b"/")}
        log = letters[topic]
        eventually(lambda: sent.keys() <= {m.key() for m in log.records()}, "the dead letters")  # noqa: B023
        dead_letters = [m for m in letters[topic].records() if m.key() in sent]
        assert Counter(m.key() for m in dead_letters) == Counter(dict.fromkeys(sent, 1))
        assert len(sent) == len(cases)
        for letter in dead_letters:
            original = sent[letter.key()]
            assert letter.value() == original.value()
            headers = dict(letter.headers())
            assert headers.pop("dlq.reason")
            whom = concerned(topic, original.key(), original.value())
            assert tuple(orjson.loads(headers.pop("dlq.suspended"))) == whom.accounts
            assert headers.pop("dlq.untold", None) == (None if whom.complete else b"1")
            assert headers == {
                "dlq.topic": topic.encode(),
                "dlq.partition": str(original.partition()).encode(),
                "dlq.offset": str(original.offset()).encode(),
                "dlq.timestamp": str(original.timestamp()[1]).encode(),
                "dlq.error": b"DecodeError",
            }


def test_a_record_that_no_dead_letter_topic_would_take_is_cut_and_says_so(
    exchange: Exchange, run: Callable[..., InThread]
) -> None:
    letters = exchange.log(dead_letter_topic(TRADES))
    value = os.urandom(1_048_000)
    exchange.send(TRADES, value)
    exchange.trades([1])
    run()
    exchange.wait_for_trade(1)
    (letter,) = (m for m in letters.records() if m.key() == exchange.symbol.encode())
    assert letter.value() == value[: DEAD_LETTER_BYTES_MAX - len(exchange.symbol)]
    assert dict(letter.headers())["dlq.cut"] == str(len(value) + len(exchange.symbol)).encode()


# --- exactly once ----------------------------------------------------------------------------------------------------


CRASHES = [
    "before produce 20",
    "after produce 20",
    "before flush 4",
    "after flush 5",
    "before send_offsets 3",
    "before commit 5",
    "after commit 4",
    "before begin 2",
]


def test_a_router_killed_at_any_point_neither_loses_nor_repeats(
    exchange: Exchange, settings: Settings, start: Callable[..., Process]
) -> None:
    """Killed at each point in turn; after each the exchange repeats everything that it ever sent, and sends more."""
    environment = {
        "MARGIN_SERVICE__INSTANCE_ID": exchange.symbol,
        "MARGIN_ROUTER__BATCH_RECORDS_MAX": "20",
        "MARGIN_ROUTER__COMMIT_MS": "1",
    }
    for number, crash in enumerate(CRASHES, start=1):
        exchange.transfers(range(50 * number - 49, 50 * number + 1))
        exchange.trades(range(1, 200 * number))
        start(CRASH=crash, **environment).wait_for_crash()
    last = 200 * len(CRASHES) + 200
    exchange.trades(range(1, last + 1))
    process = start(**environment)
    exchange.wait_for_trade(last)
    exchange.wait_for_transfer(50 * len(CRASHES))
    assert process.stop() == 0, process.log()
    exchange.assert_routed_once(range(1, last + 1), range(1, 50 * len(CRASHES) + 1))
    with LogReader(settings.kafka, "test") as reader:
        partition = partition_of(exchange.symbol.encode(), reader.partitions(TRADES))
        key = memory_key(partition, exchange.symbol)
        rows = [m for m in reader.read_range(ROUTER, partition, 0) if m.key() == key]
    assert orjson.loads(rows[-1].value() or b"")["last"] == last


def test_another_router_takes_over_from_a_killed_one(exchange: Exchange, start: Callable[..., Process]) -> None:
    """Other names: the open transaction of the dead one has to time out before its offsets are known."""
    environment = {
        "MARGIN_ROUTER__BATCH_RECORDS_MAX": "20",
        "MARGIN_ROUTER__COMMIT_MS": "1",
        "MARGIN_KAFKA__TRANSACTION_TIMEOUT_MS": "2000",
    }
    exchange.trades(range(1, 501))
    start(CRASH="before commit 10", **environment).wait_for_crash()
    exchange.trades(range(1, 601))
    process = start(**environment)
    exchange.wait_for_trade(600)
    assert process.stop() == 0, process.log()
    exchange.assert_routed_once(range(1, 601))


def test_routers_that_come_and_go_neither_lose_nor_repeat(exchange: Exchange, start: Callable[..., Process]) -> None:
    first = start(MARGIN_ROUTER__BATCH_RECORDS_MAX="20")
    exchange.trades(range(1, 1001))
    exchange.wait_for_trade(1000)
    second = start(MARGIN_ROUTER__BATCH_RECORDS_MAX="20")
    exchange.trades(range(1001, 2001))
    eventually(lambda: "partitions_assigned" in second.log(), "a share for the second router")
    exchange.trades(range(2001, 3001))
    assert first.stop() == 0, first.log()
    exchange.wait_for_trade(3000)
    assert second.stop() == 0, second.log()
    exchange.assert_routed_once(range(1, 3001))


def test_what_was_collected_of_a_partition_that_moves_is_left_to_its_new_owner(
    exchange: Exchange, run: Callable[..., InThread], start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka checks only that the group's member is a present one, so an old owner could commit what is not its own."""
    collect = Router.collect
    second: list[Process] = []

    def until_partitions_move(self: Router) -> list[Record]:
        batch = collect(self)
        if batch and not second:
            owned = len(self._ownership)
            second.append(start())
            while len(self._ownership) >= owned:
                batch += poll_batch(self._group.consumer, 0.05, 1000, PlaceWatch())
        return batch

    monkeypatch.setattr(Router, "collect", until_partitions_move)
    accounts = [f"{number}-{exchange.name}" for number in range(60)]
    for account in accounts:
        exchange.send(TRANSFERS, exchange.records.transfer(account), key=account)
        exchange.send(REPORTS, exchange.records.report(account), key=account)
    exchange.flush()
    first = run()
    eventually(lambda: {row["account"] for row in exchange.rows("transfers")} == set(accounts), "the transfers")
    eventually(lambda: {row["account"] for row in exchange.rows("reports")} == set(accounts), "the reports")
    first.close()
    assert second[0].stop() == 0, second[0].log()
    for kind in ("transfers", "reports"):
        assert Counter(row["account"] for row in exchange.rows(kind)) == Counter(accounts)


def test_what_a_router_that_the_group_has_expelled_writes_counts_once(
    exchange: Exchange, start: Callable[..., Process]
) -> None:
    """A process that was frozen learns of its loss only when it polls; until then it has a batch in hand."""
    exchange.transfers(range(1, 101))
    frozen = start(CRASH="frozen")
    frozen.wait_until_frozen()
    second = start()
    exchange.wait_for_transfer(100)
    frozen.thaw()
    eventually(lambda: frozen.log().count("partitions_assigned") > 1, "the return of the router that was frozen")
    exchange.transfers(range(101, 201))
    exchange.wait_for_transfer(200)
    assert frozen.stop() == 0, frozen.log()
    assert second.stop() == 0, second.log()
    exchange.assert_routed_once(range(0), range(1, 201))


def test_offsets_are_not_sent_without_a_membership() -> None:
    class Expelled:
        def consumer_group_metadata(self) -> bytes:
            return b"no id, no generation"

        def memberid(self) -> None:
            return None

    with pytest.raises(TransactionAborted, match="expelled"):
        group_metadata(cast(Consumer, Expelled()))


class FaultyProducer(TransactionalProducer):
    """Ends its transactions as its Kafka's ``script`` says, then well."""

    def __init__(self, script: Iterator[str], *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._script = script

    def send_offsets(self, *arguments: Any) -> None:
        self._outcome = next(self._script, "ok")
        if self._outcome == "no offsets":
            raise TransactionAborted("the group has moved on")
        super().send_offsets(*arguments)

    def commit(self) -> None:
        if self._outcome == "aborted":
            raise TransactionAborted("must abort")
        if self._outcome == "fenced":
            raise ProducerFenced("another took over")
        super().commit()
        if self._outcome == "unknown":
            raise ProducerFenced("no answer, but it did commit")


class FaultyKafka(Kafka):
    """A Kafka whose transactions end as ``script`` says."""

    def __init__(self, settings: Settings, script: Iterable[str]) -> None:
        super().__init__(settings)
        self._script = iter(script)

    def transactional_producer(self, transactional_id: str, *, compression: Compression = "none") -> FaultyProducer:
        return FaultyProducer(self._script, self.settings.kafka, transactional_id, compression=compression)


@pytest.mark.parametrize(
    "script",
    [
        ["aborted", "ok", "aborted", "aborted"],
        ["fenced", "ok", "fenced"],
        ["unknown", "unknown", "ok", "unknown"],
        ["no offsets", "aborted", "fenced", "unknown", "ok", "ok", "unknown", "aborted"],
    ],
    ids=" ".join,
)
def test_however_transactions_end_each_trade_is_routed_once(
    exchange: Exchange,
    settings: Settings,
    run: Callable[..., InThread],
    script: list[str],
) -> None:
    exchange.trades([*range(1, 301), *range(200, 501)])
    exchange.transfers(range(1, 201))
    router = run(FaultyKafka(in_small_batches(settings), script))
    exchange.wait_for_trade(500)
    exchange.wait_for_transfer(200)
    router.close()
    exchange.assert_routed_once(range(1, 501), range(1, 201))


def test_a_router_that_is_fenced_reads_the_log_again(
    exchange: Exchange, settings: Settings, run: Callable[..., InThread]
) -> None:
    router = run(in_small_batches(settings))
    exchange.trades(range(1, 101))
    exchange.wait_for_trade(100)
    thief = TransactionalProducer(settings.kafka, f"{settings.router.group_id}-{settings.worker_name}")
    thief.init()
    exchange.trades(range(101, 201))
    exchange.wait_for_trade(200)
    thief.close()
    router.close()
    exchange.assert_routed_once(range(1, 201))


def test_a_router_that_can_never_commit_gives_up_and_says_why(
    exchange: Exchange, settings: Settings, run: Callable[..., InThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_module, "_BACKOFF_MAX_S", 0.001)
    exchange.trades([1])
    router = run(FaultyKafka(settings, itertools.repeat("aborted")))
    eventually(router.ended, "the router's end")
    with pytest.raises(BrokerError, match="nothing could be routed in 10 attempts; the last: must abort"):
        router.close()
    run()
    exchange.wait_for_trade(1)


# --- starting and stopping -------------------------------------------------------------------------------------------


def test_the_clock_of_the_frames_never_goes_back(
    exchange: Exchange, settings: Settings, run: Callable[..., InThread]
) -> None:
    class Restless(SystemRuntime):
        times = itertools.cycle([1723161300000000_000, 1723161299000000_000])

        def time_ns(self) -> int:
            return next(self.times)

    run(Kafka(settings, Clients(Restless())))
    for trade_id in (1, 2, 3):
        exchange.trades([trade_id])
        exchange.wait_for_trade(trade_id)
    frames = [_FRAME(m.value()) for m in exchange.log(EVENTS).records()]
    times_us = [frame.time for frame in frames if exchange.alice in frame.fills.account]
    assert times_us == sorted(times_us)
    assert times_us[0] >= 1723161299000000


def test_gaps_and_repeats_are_logged_once_a_batch(
    exchange: Exchange, run: Callable[..., InThread], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "streams.routing.router")
    exchange.trades([1, 2, 2, 2, 7])
    run()
    exchange.wait_for_trade(7)

    def said() -> dict[str, Any]:
        return {record.getMessage(): record.fields for record in caplog.records if hasattr(record, "fields")}

    eventually(lambda: "trades_missing" in said(), "the line about the gap")
    assert said()["trades_repeated"] == {"count": 2}
    (gap,) = said()["trades_missing"]["gaps"]
    assert (gap.symbol, gap.trade_id, gap.missing) == (exchange.symbol, 7, 4)


# --- the memory of trades --------------------------------------------------------------------------------------------


def suspended(exchange: Exchange) -> dict[str, list[str]]:
    """The accounts of this exchange that the frames suspend, and why."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for message in exchange.log(EVENTS).records():
        for told in _FRAME(message.value()).suspensions:
            if told.account.endswith(f"-{exchange.name}"):
                reasons[told.account].append(told.reason)
    return reasons


def test_a_trade_that_contradicts_one_that_was_routed_suspends_its_accounts_over_a_restart(
    exchange: Exchange, start: Callable[..., Process]
) -> None:
    first = start()
    exchange.trades([1, 2, 3])
    exchange.wait_for_trade(3)
    assert first.stop() == 0, first.log()
    second = start()
    exchange.trades([1, 2, 3])
    exchange.send(
        TRADES,
        exchange.records.trade(
            2,
            symbol=exchange.symbol,
            quantity="7",
            taker=exchange.records.side(exchange.alice),
            maker=exchange.records.side(exchange.bob),
        ),
    )
    exchange.trades([4])
    exchange.wait_for_trade(4)
    assert second.stop() == 0, second.log()
    exchange.assert_routed_once(range(1, 5))
    assert {account: len(reasons) for account, reasons in suspended(exchange).items()} == {
        exchange.alice: 1,
        exchange.bob: 1,
    }
    assert "trade 2" in suspended(exchange)[exchange.alice][0]


def test_offsets_that_are_set_back_and_accepted_suspend_nobody(
    exchange: Exchange, settings: Settings, start: Callable[..., Process]
) -> None:
    first = start()
    exchange.trades(range(1, 201))
    exchange.wait_for_trade(200)
    assert first.stop() == 0, first.log()
    consumer = Consumer(config.consumer(settings.kafka, "test", settings.router.group_id))
    with LogReader(settings.kafka, "test") as reader:
        places = [
            TopicPartition(TRADES, partition, reader.watermarks(TRADES, partition)[0])
            for partition in range(reader.partitions(TRADES))
        ]
    eventually(lambda: moved(consumer, places), "the group's offsets")
    consumer.close()
    assert "was not committed by a router" in start().refusal()
    for place in places:
        accept(settings, place)
    second = start()
    exchange.trades([201])
    exchange.wait_for_trade(201)
    assert second.stop() == 0, second.log()
    exchange.assert_routed_once(range(1, 202))
    assert suspended(exchange) == {}


def moved(consumer: Consumer, places: list[TopicPartition]) -> bool:
    """Commit ``places`` for a group without members."""
    try:
        consumer.commit(offsets=places, asynchronous=False)
    except KafkaException:
        return False
    return True


def accept(settings: Settings, place: TopicPartition) -> None:
    """Say on the command line that routers go on at the offset of ``place``."""
    servers = settings.kafka.bootstrap_servers
    arguments = (place.topic, str(place.partition), str(place.offset), "--reason", REASON)
    command = [sys.executable, "-m", "streams.cli", "accept-offset", *arguments, "--bootstrap-servers", servers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"accepted  {place.topic}[{place.partition}]: the router goes on at {place.offset}" in done.stdout


def test_an_offset_that_is_moved_forward_by_hand_is_refused_until_it_is_accepted(
    exchange: Exchange, settings: Settings, start: Callable[..., Process]
) -> None:
    events = exchange.log(EVENTS)
    first = start()
    exchange.trades(range(1, 21))
    exchange.wait_for_trade(20)
    assert first.stop() == 0, first.log()
    exchange.trades(range(21, 41))
    with LogReader(settings.kafka, "test") as reader:
        partition = partition_of(exchange.symbol.encode(), reader.partitions(TRADES))
        place = TopicPartition(TRADES, partition, reader.watermarks(TRADES, partition)[1])
    consumer = Consumer(config.consumer(settings.kafka, "test", settings.router.group_id))
    (stood,) = consumer.committed([TopicPartition(TRADES, partition)], timeout=10)
    ids = Kafka(settings).topic_ids([TRADES, ROUTER])
    written = CommittedAt(ids[TRADES], 0, ids[ROUTER])
    assert CommittedAt.parse(stood.metadata) == written, "Kafka gives it back as it was written"
    eventually(lambda: moved(consumer, [place]), "the group's offset")
    consumer.close()
    seen = len(events.records())
    refusal = start().refusal()
    assert f"{TRADES}[{partition}]: the group's offset {place.offset} was not committed by a router" in refusal
    assert f"margin-clearing accept-offset {TRADES} {partition} {place.offset} --reason 'WHY'" in refusal
    accept(settings, place)
    second = start()
    exchange.trades(range(41, 61))

    def told() -> dict[int, list[tuple[int, int, str, list[int]]]]:
        """What each shard was told of the partition since: the range, why what is before it is lost, and the trades."""
        said = defaultdict(list)
        for message in events.records()[seen:]:
            frame = _FRAME(message.value())
            for number, source in enumerate(frame.sources):
                if (source.topic, source.partition) == (TRADES, partition):
                    of_it = zip(frame.fills.source, frame.fills.trade_id, strict=True)
                    ids = [trade_id for each, trade_id in of_it if each == number]
                    said[message.partition()].append((source.first, source.next, source.lost, ids))
        return said

    def routed() -> set[int]:
        return {trade_id for ranges in told().values() for _, _, _, ids in ranges for trade_id in ids}

    eventually(lambda: 60 in routed(), "the last trade")
    assert second.stop() == 0, second.log()
    assert routed() == set(range(41, 61))
    assert len(told()) == settings.topics.shards
    for ranges in told().values():
        assert ranges[0] == (place.offset, place.offset, REASON, [])
        assert [lost for _, _, lost, _ in ranges[1:]] == [""] * (len(ranges) - 1)
    third = start()
    exchange.trades([61])
    eventually(lambda: 61 in routed(), "the word is spent, and nobody is refused")
    assert third.stop() == 0, third.log()
    assert sum(lost == REASON for ranges in told().values() for _, _, lost, _ in ranges) == settings.topics.shards


def test_a_router_whose_partition_has_many_symbols_starts_again(
    exchange: Exchange, start: Callable[..., Process]
) -> None:
    """Options and prediction markets list thousands of symbols per month. In one row per partition the ids would
    outgrow what a message may have, and no router could start any more.

    Seen in: nautechsystems/nautilus_trader#4253, #3945 (short-lived markets accumulate);
    logstash-plugins/logstash-output-kafka#190.
    """
    symbols = [f"{exchange.name}-{number % 28 + 1}DEC26-{number}-C"[-32:] for number in range(45_000)]
    sides = {"taker": exchange.records.side(exchange.alice), "maker": exchange.records.side(exchange.bob)}
    for symbol in symbols:
        exchange.send(TRADES, exchange.records.trade(1, symbol=symbol, **sides), key=exchange.symbol)
    exchange.trades([5])
    first = start()
    exchange.wait_for_trade(5)
    assert first.stop() == 0, first.log()
    second = start()
    exchange.send(TRADES, exchange.records.trade(1, symbol=symbols[7], **sides), key=exchange.symbol)
    exchange.send(TRADES, exchange.records.trade(2, symbol=symbols[7], **sides), key=exchange.symbol)
    exchange.trades([6])
    exchange.wait_for_trade(6)
    assert second.stop() == 0, second.log()
    recalled = [orjson.loads(line) for line in second.log().splitlines() if "trade_ids_recalled" in line]
    assert max(entry["symbols"] for entry in recalled) >= len(symbols)
    of_one = [row["trade_id"] for row in exchange.rows("fills") if row["symbol"] == symbols[7]]
    assert of_one == [1, 1, 2, 2]
    assert suspended(exchange) == {}
