"""Event frames that are deleted before a shard has had them: what its journal says, and what holds from then on."""

from schemas.messages import JournalRecord
from schemas.topics import EVENTS
from streams.memory.log import Partition
from tests.simulation.requirement import require


class EventsLost:
    """``gone``: the shard lacks some of its events, and its journal says so. Nothing is known of its accounts then."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.gone = False

    def see(self, journal: JournalRecord, last: JournalRecord | None, commands: int) -> None:
        """A commit that gives so many commands has been journaled behind ``last``."""
        if tells_loss(journal):
            is_so = self.gone or last is None or last.events.next < self._partition.start
            require(is_so, "nothing is said to be gone that is there", lambda: f"{journal} after {last}")
            self.gone = True
        if self.gone:
            require(bool(journal.suspension), "a shard that lacks events is suspended", journal.__str__)
            require(not commands, "nobody is commanded on a state that lacks events", journal.__str__)


def tells_loss(journal: JournalRecord) -> bool:
    """Whether a claim goes on without events that are gone."""
    return journal.kind == "claim" and EVENTS in (journal.gone or {})


def delete_events(partition: Partition, committed: int, beyond: int) -> None:
    """Let the events up to ``beyond`` offsets after the ``committed`` one be gone, as far as they are decided."""
    upto = min(partition.stable_end, committed + beyond)
    if upto > partition.start:
        partition.delete_before(upto)
