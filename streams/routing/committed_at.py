"""What a router commits beside an offset: of which topic it is, so that it can be told from one that was moved by hand.

Kafka keeps a short text with every committed offset and gives it back as it came. Ours is ``margin:1:TOPIC ID:EPOCH``;
the epoch is that of the partition's leader who gave the last record that was routed there, and is left out with its
colon where the client does not say. Of a partition of trades ``:m=TOPIC ID`` follows, of the topic that has the memory
of trade ids; earlier versions did not write it. Whatever else stands there was written by somebody else.
"""

import re
from dataclasses import dataclass

# librdkafka gives topic ids in base64 as it is, Kafka's own tools in the form for URLs.
_ID = r"[A-Za-z0-9+/=._\-]{1,100}"
_TEXT = re.compile(rf"margin:1:({_ID})(?::([0-9]{{1,10}}))?(?::m=({_ID}))?")


@dataclass(frozen=True, slots=True)
class CommittedAt:
    """The id of the topic that an offset is of, and the leader epoch of the last record before it, if it is known.

    ``memory_id`` is the id of the topic that has the memory of trade ids, if it is known.
    """

    topic_id: str
    leader_epoch: int | None = None
    memory_id: str = ""

    def text(self) -> str:
        """What is committed, of at most 223 characters."""
        epoch = "" if self.leader_epoch is None else f":{self.leader_epoch}"
        memory = f":m={self.memory_id}" if self.memory_id else ""
        return f"margin:1:{self.topic_id}{epoch}{memory}"

    @classmethod
    def parse(cls, text: str | None) -> "CommittedAt | None":
        """What :meth:`text` gave ``text`` of; None, and never an error, if a router did not write it."""
        ours = _TEXT.fullmatch(text or "")
        if ours is None:
            return None
        return cls(ours[1], None if ours[2] is None else int(ours[2]), ours[3] or "")
