"""An operator's word where a partition goes on, as it stands in the first partition of ``margin.router.v1``.

It is written by ``margin-clearing accept-offset`` (:mod:`streams.routing.accepting`) under a key of its own, read by
the router that takes the partition, and deleted with the commit that first covers the place: it is spent once. Words
about ``margin.accounts.v1`` (rows are gone) and ``margin.router.v1`` (memory is gone) stay, as does what they tell of.
"""

from dataclasses import dataclass, field

from schemas.codec import DecodeError, Decoder
from schemas.messages import AcceptedOffset
from schemas.topics import ACCOUNTS, INPUTS, ROUTER
from streams.broker.records import Log

ACCEPTED_PARTITION = 0
"""The partition of ``margin.router.v1`` that holds the words about every topic and partition."""

_PREFIX = b"accepted:"
_DIGITS_MAX = 10
_DECODE = Decoder[AcceptedOffset](AcceptedOffset)


def accepted_key(topic: str, partition: int) -> bytes:
    """The key of the word about a partition."""
    return _PREFIX + f"{topic}:{partition}".encode()


_TOPICS = {topic.encode(): topic for topic in (*INPUTS, ACCOUNTS, ROUTER)}


@dataclass(slots=True)
class AcceptedOffsets:
    """The words that stand, by topic and partition. ``unread`` says of each that cannot be read why."""

    words: dict[tuple[str, int], AcceptedOffset] = field(default_factory=dict)
    unread: dict[tuple[str, int], str] = field(default_factory=dict)

    def take(self, key: bytes | None, value: bytes | None) -> bool:
        """Take in a record (without a value: the word was spent); whether its key is that of such a word."""
        if key is None or not key.startswith(_PREFIX):
            return False
        topic, _, number = key.removeprefix(_PREFIX).rpartition(b":")
        if topic not in _TOPICS or not number.isdigit() or len(number) > _DIGITS_MAX:
            return True
        place = _TOPICS[topic], int(number)
        self.words.pop(place, None)
        self.unread.pop(place, None)
        if value is not None:
            try:
                self.words[place] = _DECODE(value)
            except DecodeError as error:
                self.unread[place] = str(error)
        return True


def accepted_offsets(log: Log) -> AcceptedOffsets:
    """The words that stand.

    Raises:
        BrokerError: Kafka does not answer.
    """
    words = AcceptedOffsets()
    for record in log.read_range(ROUTER, ACCEPTED_PARTITION, 0):
        words.take(record.key(), record.value())
    return words
