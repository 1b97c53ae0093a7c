"""When the records of one topic become visible to a read_committed consumer, by account."""

import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Self

from confluent_kafka import Consumer, TopicPartition

from streams.bench.background import Background
from streams.bench.bed import CLIENT, Bed
from streams.broker import config
from streams.broker.places import PlaceWatch
from streams.broker.reader import poll_batch
from streams.broker.records import Record

_LAST_S = 30.0


class Arrivals(Background):
    """Reads a topic as a service does, from its end on, and notes by account when the first record of each was there.

    ``arrived`` are seconds: of the broker's time of the record, and of this machine's clock when it was read.
    """

    def __init__(self, bed: Bed, topic: str, account_of: Callable[[Record], str]) -> None:
        super().__init__()
        self.arrived: dict[str, tuple[float, float]] = {}
        self._counts: Counter[str] = Counter()
        self._bed, self._topic, self._account_of = bed, topic, account_of
        self._watch = PlaceWatch()
        properties = config.reader(bed.settings.kafka, f"{CLIENT}-arrivals")
        self._consumer = Consumer(properties | {"enable.partition.eof": False, "fetch.wait.max.ms": 10})

    def __enter__(self) -> Self:
        ends = self._bed.ends(self._topic)
        self._consumer.assign([TopicPartition(self._topic, partition, end) for partition, end in enumerate(ends)])
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._consumer.close()

    def await_all(self, accounts: Collection[str]) -> None:
        """Wait until there is a record of each account, or it takes too long."""
        deadline = time.monotonic() + _LAST_S
        while not self.arrived.keys() >= set(accounts) and time.monotonic() < deadline:
            time.sleep(0.05)

    def missing(self, accounts: Collection[str]) -> list[str]:
        """Accounts without a record."""
        return [f"{account} has none in {self._topic}" for account in accounts if account not in self.arrived]

    def differences(self, accounts: Collection[str]) -> list[str]:
        """Where there is not one record for each account, and no other."""
        others = [f"{account} has one in {self._topic}" for account in self._counts.keys() - set(accounts)]
        more = [f"{account} has {count} in {self._topic}" for account, count in self._counts.items() if count > 1]
        return self.missing(accounts) + others + more

    def _run(self) -> None:
        while not self._stop.is_set():
            records = poll_batch(self._consumer, 0.05, 500, self._watch)
            seen = time.time()
            for record in records:
                account = self._account_of(record)
                self._counts[account] += 1
                self.arrived.setdefault(account, (record.timestamp()[1] / 1000, seen))
