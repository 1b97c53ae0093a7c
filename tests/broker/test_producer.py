"""The transactional producer's outcomes, and its time limits, against a client that misbehaves."""

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from prometheus_client import REGISTRY

from streams.broker.clients import LEFT_BEHIND_MAX, Clients
from streams.broker.producer import TransactionalProducer
from streams.errors import BrokerError, ProducerFenced, TransactionAborted
from streams.settings import KafkaSettings

PLACES = [TopicPartition("t", 0, 1)]


class Own(Clients):
    """Makes the client of this test."""

    def producer(self, properties: Mapping[str, Any]) -> Producer:
        return cast(Producer, Client())


class Client:
    """A producer whose ``send_offsets_to_transaction`` does what the test says."""

    hang: ClassVar = threading.Event()
    failures: ClassVar[list[KafkaError]] = []
    aborted = 0
    commit_within_s = 0.0

    def begin_transaction(self) -> None:
        pass

    def send_offsets_to_transaction(self, *_: Any) -> None:
        if self.failures:
            raise KafkaException(self.failures.pop(0))
        Client.hang.wait(30)

    def abort_transaction(self, timeout_s: float) -> None:
        Client.aborted += 1

    def commit_transaction(self, timeout_s: float) -> None:
        Client.commit_within_s = timeout_s


@pytest.fixture
def producer() -> Iterator[TransactionalProducer]:
    Client.hang, Client.failures, Client.aborted = threading.Event(), [], 0
    new_producer = TransactionalProducer(KafkaSettings(transaction_timeout_ms=200), "test", clients=Own())
    new_producer.begin()
    yield new_producer
    Client.hang.set()


def test_offsets_that_are_never_answered_cost_the_producer_and_no_more_than_its_time(
    producer: TransactionalProducer,
) -> None:
    started = time.monotonic()
    with pytest.raises(ProducerFenced, match="does not return"):
        producer.send_offsets(PLACES, None)
    assert time.monotonic() - started < 5
    producer.close()
    assert Client.aborted == 0, "nothing more is asked of a producer that does not answer"


def test_offsets_and_commit_together_have_half_of_a_transactions_time() -> None:
    Client.hang, Client.failures = threading.Event(), []
    ending = TransactionalProducer(KafkaSettings(transaction_timeout_ms=60_000), "test", clients=Own())
    for waits_s in (0.05, 0.0):
        ending.begin()
        started = time.monotonic()
        threading.Timer(waits_s, Client.hang.set).start()
        ending.send_offsets(PLACES, None)
        waited_s = time.monotonic() - started
        ending.commit()
        assert 0 < Client.commit_within_s <= 30 - waits_s, "what the offsets took is the commit's no more"
        assert Client.commit_within_s > 30 - waited_s - 10, "and what the last transaction took is nobody's"
    ending.begin()
    ending.commit()
    assert 20 < Client.commit_within_s <= 30, "without offsets all of it is the commit's"


def test_a_process_ends_when_too_many_calls_do_not_return() -> None:
    Client.hang, clients = threading.Event(), Own()

    def hangs() -> None:
        hanging = TransactionalProducer(KafkaSettings(transaction_timeout_ms=200), "test", clients=clients)
        hanging.begin()
        with hanging.within(0.01):
            hanging.send_offsets(PLACES, None)

    def left_behind() -> float | None:
        return REGISTRY.get_sample_value("margin_calls_left_behind")

    for count in range(1, LEFT_BEHIND_MAX + 1):
        with pytest.raises(ProducerFenced, match="left behind"):
            hangs()
        assert left_behind() == count
    with pytest.raises(BrokerError, match=f"and {LEFT_BEHIND_MAX} calls before it have not either") as ended:
        hangs()
    assert not isinstance(ended.value, ProducerFenced), "which a role would mend with another producer"
    Client.hang.set()
    deadline = time.monotonic() + 30
    while any(thread.name == "send-offsets" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "they do not return"
        time.sleep(0.005)
    Client.hang = threading.Event()
    with pytest.raises(ProducerFenced):
        hangs()
    assert left_behind() == 1, "those that have returned do not count"
    Client.hang.set()


def test_a_shorter_limit_holds_for_offsets_too(producer: TransactionalProducer) -> None:
    with producer.within(0.01), pytest.raises(ProducerFenced):
        producer.send_offsets(PLACES, None)


def test_what_sending_offsets_raises_is_classified(producer: TransactionalProducer) -> None:
    Client.hang.set()
    Client.failures = [KafkaError(KafkaError._STATE, "again", retriable=True)]
    producer.send_offsets(PLACES, None)
    Client.failures = [KafkaError(KafkaError.UNKNOWN_MEMBER_ID, "gone", txn_requires_abort=True)]
    with pytest.raises(TransactionAborted, match="gone"):
        producer.send_offsets(PLACES, None)
    Client.failures = [KafkaError(KafkaError._FENCED, "fenced", fatal=True)]
    with pytest.raises(ProducerFenced, match="fenced"):
        producer.send_offsets(PLACES, None)
