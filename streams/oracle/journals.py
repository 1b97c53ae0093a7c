"""What the shards' journals say about open interest, for the oracle."""

from collections.abc import Iterator, Mapping

from confluent_kafka import Consumer, TopicPartition

from schemas.codec import DecodeError, Decoder
from schemas.messages import JournalRecord
from schemas.topics import JOURNAL
from streams.broker import config
from streams.broker.reader import LogReader, poll_batch
from streams.settings import Settings

_RECORD = Decoder[JournalRecord](JournalRecord)
_RECORDS_MAX = 1000


class JournalFollower:
    """Follows every partition of ``margin.journal.v1`` from its end on; never in a group."""

    def __init__(self, settings: Settings, shards: int) -> None:
        name = f"{settings.oracle.app_id}-journals"
        with LogReader(settings.kafka, name) as reader:
            places = [TopicPartition(JOURNAL, shard, reader.watermarks(JOURNAL, shard)[1]) for shard in range(shards)]
        properties = config.reader(settings.kafka, name) | {"enable.partition.eof": False}
        self._consumer = config.created(Consumer, properties)
        self._consumer.assign(places)

    def open_interest(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        """(shard, quantity of long positions by symbol) of the records that have come and tell it, without waiting.

        Raises:
            BrokerError: the broker refuses for good.
        """
        for message in poll_batch(self._consumer, 0, _RECORDS_MAX):
            try:
                record = _RECORD(message.value())
            except DecodeError:
                continue
            if record.open_interest is not None:
                yield record.shard, record.open_interest

    def close(self) -> None:
        self._consumer.close()
