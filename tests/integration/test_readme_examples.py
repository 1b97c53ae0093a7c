"""The README's two examples, run as they are written there against a real Kafka."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from msgspec.structs import replace

from schemas.codec import Decoder, encode
from schemas.generate import samples
from schemas.messages import LiquidationCommand, Trade
from schemas.partitioning import partition_of
from schemas.topics import ACCOUNTS, COMMANDS, PARAMETERS, TRADES
from streams.broker import config
from streams.memory import Pipeline
from streams.settings import Settings
from tests.conftest import ROOT
from tests.integration.conftest import eventually, now_us
from tests.memory.market import PARAMETER_RECORDS

DEADLINE_S = 60.0
_COMMAND = Decoder[LiquidationCommand](LiquidationCommand)
_SAMPLES = {path.stem: _COMMAND(path.read_bytes()) for path in samples(COMMANDS)}
PLAIN, TAKEOVER = _SAMPLES[COMMANDS], _SAMPLES[f"{COMMANDS}.takeover"]
ACCOUNT = PLAIN.account


def example(called: str) -> Any:
    """The code of the README's example that stands behind the bold words ``called``, compiled."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(rf"^\*\*{called}\*\* .*?^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert match, f"README.md has no example of {called}"
    return compile(match[1], f"README.md: {called}", "exec")


# --- commands --------------------------------------------------------------------------------------------------------


def command(number: int, *, expires_in_s: float = 600.0, supersedes: str | None = None) -> LiquidationCommand:
    """Command ``number`` of the account, issued now."""
    like = PLAIN if supersedes is None else TAKEOVER
    name = f"{ACCOUNT}:{number}"
    issued_at = now_us()
    return replace(
        like,
        command_id=name,
        sequence=number,
        supersedes=supersedes,
        cancel_open_orders=supersedes is None,
        issued_at=issued_at,
        expires_at=issued_at + int(expires_in_s * 1e6),
        orders=tuple(
            replace(order, order_id=f"{name}:{n}", reduce_only=supersedes is not None)
            for n, order in enumerate(like.orders)
        ),
    )


class Venue:
    """An order entry that remembers what it was asked. It closes when it has been asked for ``last``."""

    def __init__(self, last: str) -> None:
        self.last = last
        self.asked: list[str] = []
        self.done: list[tuple[Any, ...]] = []
        self._known: set[str] = set()
        self._deadline = time.monotonic() + DEADLINE_S

    def is_open(self) -> bool:
        assert time.monotonic() < self._deadline, f"asked for {self.asked} in {DEADLINE_S:g} s"
        return self.last not in self.asked

    def has(self, command_id: str) -> bool:
        self.asked.append(command_id)
        return command_id in self._known

    @contextmanager
    def once(self, command_id: str) -> Iterator[None]:
        assert command_id not in self._known
        yield
        self._known.add(command_id)

    def cancel(self, command_id: str) -> None:
        self.done.append(("cancel", command_id))

    def cancel_open_orders(self, account: str, margin: str) -> None:
        self.done.append(("cancel open orders", account, margin))

    def place(self, command: dict[str, Any], order: dict[str, Any], *, reduce_only: bool, until_us: int) -> None:
        self.done.append(("place", command["account"], command["margin"], order["order_id"], reduce_only, until_us))

    def forget_what_was_asked(self) -> None:
        self.asked.clear()
        self.done.clear()


def publish_commands(settings: Settings, commands: list[LiquidationCommand], *, commit: bool = True) -> None:
    """In one transaction, as the engine does."""
    producer = Producer({**config.producer(settings.kafka, "test"), "transactional.id": "test"})
    producer.init_transactions(DEADLINE_S)
    producer.begin_transaction()
    for each in commands:
        producer.produce(COMMANDS, encode(each), key=each.account)
    assert producer.flush(DEADLINE_S) == 0  # in the log, whether it is committed or not
    if commit:
        producer.commit_transaction(DEADLINE_S)
    else:
        producer.abort_transaction(DEADLINE_S)


def test_the_execution_service_places_each_live_command_once_and_cancels_what_is_superseded(
    own_settings: Settings,
) -> None:
    void, expired, first = command(1), command(2, expires_in_s=-1.0), command(3)
    takeover = command(4, supersedes=first.command_id)
    publish_commands(own_settings, [void], commit=False)
    publish_commands(own_settings, [expired, first, takeover])
    names = {"brokers": own_settings.kafka.bootstrap_servers, "venue": Venue(takeover.command_id)}
    venue: Any = names["venue"]
    service = example("An execution service")

    exec(service, names)
    assert venue.asked == [expired.command_id, first.command_id, takeover.command_id]
    assert venue.done == [
        ("cancel open orders", ACCOUNT, first.margin),
        *(("place", ACCOUNT, first.margin, order.order_id, False, first.expires_at) for order in first.orders),
        ("cancel", first.command_id),
        *(("place", ACCOUNT, takeover.margin, order.order_id, True, takeover.expires_at) for order in takeover.orders),
    ]

    venue.forget_what_was_asked()
    last = command(5)
    publish_commands(own_settings, [last])
    venue.last = last.command_id
    exec(service, names)
    assert venue.asked == [last.command_id], "a service that is started again goes on where it was"

    venue.forget_what_was_asked()
    rewind(own_settings, "execution", COMMANDS)
    exec(service, names)
    assert venue.asked == [each.command_id for each in (expired, first, takeover, last)]
    assert venue.done == [("cancel", first.command_id)], "what is read again is not placed again"


def rewind(settings: Settings, group: str, topic: str) -> None:
    """Let ``group``, which has no members, begin anew: as if nothing had been committed before its service died."""
    consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": group})
    count = len(consumer.list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions)
    consumer.commit(offsets=[TopicPartition(topic, number, 0) for number in range(count)], asynchronous=False)
    consumer.close()


# --- trades ----------------------------------------------------------------------------------------------------------


def read_one(settings: Settings, topic: str) -> Message:
    """The only record of ``topic``."""
    consumer = Consumer(config.reader(settings.kafka, "test") | {"enable.partition.eof": True})
    count = len(consumer.list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, number, 0) for number in range(count)])
    messages: list[Message] = []
    ended: set[int | None] = set()

    def all_ended() -> bool:
        for message in consumer.consume(100, timeout=0.1):
            if message.error() is None:
                messages.append(message)
            else:
                ended.add(message.partition())
        return len(ended) == count

    eventually(all_ended, f"the end of {topic}")
    consumer.close()
    assert len(messages) == 1
    return messages[0]


def test_the_exchanges_trade_is_where_it_belongs_and_gives_both_accounts_their_positions(
    own_settings: Settings,
) -> None:
    begun = now_us()
    exec(example("An exchange"), {"brokers": own_settings.kafka.bootstrap_servers})
    record = read_one(own_settings, TRADES)
    value = record.value()
    trade = Decoder[Trade](Trade)(value)
    assert record.key() == trade.symbol.encode()
    assert record.partition() == partition_of(trade.symbol.encode(), own_settings.topics.partitions)
    assert begun <= trade.event_time <= now_us()

    with Pipeline(partitions=own_settings.topics.partitions) as pipeline:
        for parameters in PARAMETER_RECORDS:
            pipeline.send(PARAMETERS, parameters)
        pipeline.advance(100)
        pipeline.send(TRADES, value, key=trade.symbol, partition=record.partition())
        pipeline.advance(1_000)
        rows = {row.key: row.value for row in pipeline.records(ACCOUNTS)}
    held = {
        (account, group["margin"]): [(position["symbol"], position["quantity"]) for position in group["positions"]]
        for account, row in rows.items()
        for group in row["groups"]
        if group["positions"]
    }
    assert held == {
        (trade.maker.account, "cross"): [(trade.symbol, f"-{trade.quantity}")],
        (trade.taker.account, trade.symbol): [(trade.symbol, trade.quantity)],
    }
    assert all(row["status"] != "suspended" for row in rows.values())
