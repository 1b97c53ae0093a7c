"""Whether a partition may go on at what its group has committed: only where a router has committed it, or at a word.

An offset that was moved by hand loses or repeats records without a word, and so does one of a topic made anew. So a
router takes an offset only if it bears what a router writes beside it (:mod:`streams.routing.committed_at`) and the log
still holds what comes next. For all else there is the operator's word (:mod:`streams.feeds.accepted`). Pure.
"""

from dataclasses import dataclass

from schemas.messages import AcceptedOffset
from streams.errors import BrokerError
from streams.routing.committed_at import CommittedAt


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group has committed of a partition: an offset (negative: nothing) and the text beside it."""

    offset: int
    text: str | None


@dataclass(frozen=True, slots=True)
class Present:
    """A partition as it is: its topic's id, and the offsets of its first record and of the next to be written."""

    topic: str
    partition: int
    topic_id: str
    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"

    def holds(self, offset: int) -> bool:
        """Whether every record from ``offset`` on is there."""
        return self.low <= offset <= self.high


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a partition goes on. ``keeps_memory``: the memory of trade ids that is in Kafka is right there.

    ``leader_epoch`` is that of the last record before it, if it is known.
    """

    first: int
    keeps_memory: bool = True
    leader_epoch: int | None = None


def beginning(present: Present, committed: Committed, accepted: AcceptedOffset | None, servers: str) -> Beginning:
    """Where ``present`` goes on. ``accepted`` is the word about it, of its present topic; ``servers`` is for advice.

    Raises:
        BrokerError: nowhere. The text says what is the case, what it means and what to type.
    """
    known = CommittedAt.parse(committed.text)
    is_ours = known is not None and known.topic_id == present.topic_id and committed.offset >= 0
    if accepted is not None:
        if not present.holds(accepted.offset):
            raise BrokerError(_outlived(present, accepted, servers))
        was_routed = accepted.routed and accepted.offset == committed.offset
        return Beginning(accepted.offset, was_routed or (is_ours and committed.offset <= accepted.offset))
    if committed.offset < 0:
        return Beginning(present.low)
    if known is None:
        raise BrokerError(_moved(present, committed, servers))
    if not is_ours:
        raise BrokerError(_made_anew(present, committed, servers))
    if committed.offset < present.low:
        raise BrokerError(_gone(present, committed, servers))
    if committed.offset > present.high:
        raise BrokerError(_cut_off(present, committed, servers))
    return Beginning(committed.offset, leader_epoch=known.leader_epoch)


def command(present: Present, offset: int, servers: str) -> str:
    """What to type to let a partition go on at ``offset``."""
    return (
        f"margin-clearing accept-offset {present.topic} {present.partition} {offset} --reason 'WHY' "
        f"--bootstrap-servers {servers}"
    )


def _moved(present: Present, committed: Committed, servers: str) -> str:
    at = committed.offset
    offset = min(max(at, present.low), present.high)
    outside = "" if present.holds(at) else f" (the log holds {present.low} to {present.high}; {at} is outside)"
    return (
        f"{present}: the group's offset {at} was not committed by a router of this version: it was moved by hand or by "
        f"another tool, or an earlier version committed it{outside}; what lies between it and where routing stood "
        f"would be lost or routed again; to go on at {offset} type `{command(present, offset, servers)}`; after an "
        "upgrade, for all partitions at once: `margin-clearing accept-offset --all-committed --reason 'upgrade' "
        f"--bootstrap-servers {servers}`"
    )


def _made_anew(present: Present, committed: Committed, servers: str) -> str:
    return (
        f"{present}: the group's offset {committed.offset} is of another topic of this name: the topic was deleted and "
        "made anew, and what had not been routed of the old one is lost; to begin with the new one's first record type "
        f"`{command(present, present.low, servers)}`"
    )


def _gone(present: Present, committed: Committed, servers: str) -> str:
    return (
        f"{present}: the records from {committed.offset} to {present.low - 1} are gone before they were routed "
        "(retention or deletion), and the accounts they concern are wrong; to go on without them type "
        f"`{command(present, present.low, servers)}`"
    )


def _cut_off(present: Present, committed: Committed, servers: str) -> str:
    return (
        f"{present}: the group has committed {committed.offset} but the log ends at {present.high}: its last records "
        "are gone (an unclean election of a leader, or a copy that was behind) and the offsets up to "
        f"{committed.offset - 1} will be given to other records, which the shards take for repeats: publish those "
        f"again when the log has come beyond {committed.offset}; to go on at its end type "
        f"`{command(present, present.high, servers)}`"
    )


def _outlived(present: Present, accepted: AcceptedOffset, servers: str) -> str:
    nearest = min(max(accepted.offset, present.low), present.high)
    return (
        f"{present}: the offset {accepted.offset} was accepted ({accepted.reason}), and the log holds only what is "
        f"from {present.low} to {present.high} by now; to go on at {nearest} type "
        f"`{command(present, nearest, servers)}`"
    )
