"""What a publisher follows and begins from, made with a factory of Kafka clients: the real one, or one in memory."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from schemas.messages import MarkFrame
from schemas.topics import PARAMETERS
from streams.broker.kafka import Kafka
from streams.broker.records import Record
from streams.feeds.journal import JournalFollower
from streams.feeds.marks import last_full_frame
from streams.feeds.parameters import ParameterFeed
from streams.machine_clock import MachineClock
from streams.oracle.clock import BrokerOffset
from streams.oracle.publisher import Publisher, Right


@contextmanager
def open_publisher(
    kafka: Kafka, right: Right, offset: BrokerOffset, on_progress: Callable[[], object] = lambda: None
) -> Iterator[Publisher]:
    """A publisher that follows parameters and journals, the parameters caught up with their topic.

    ``on_progress`` is called with every parameter record that is taken in.

    Raises:
        BrokerError: Kafka does not answer.
    """
    settings, app_id = kafka.settings, kafka.settings.oracle.app_id
    with (
        closing(JournalFollower(kafka, f"{app_id}-journals")) as journals,
        closing(ParameterFeed(kafka.follower(app_id, PARAMETERS))) as parameters,
    ):
        parameters.restart()

        def add(records: list[Record]) -> None:
            for record in records:
                on_progress()
                parameters.add(record)

        with kafka.log_reader(app_id, on_progress) as reader:
            parameters.catch_up(reader, add)
        yield Publisher(
            heartbeat_ms=settings.oracle.heartbeat_ms,
            shards=journals.shards,
            right=right,
            parameters=parameters,
            journals=journals,
            clock=MachineClock(kafka.runtime.time_ns),
            offset=offset,
            monotonic=kafka.runtime.monotonic,
        )


def read_last_frame(kafka: Kafka) -> MarkFrame | None:
    """The last full frame that is in force, for :meth:`Publisher.restore`.

    Raises:
        BrokerError: Kafka does not answer.
    """
    with kafka.log_reader(kafka.settings.oracle.app_id) as reader:
        return last_full_frame(reader)
