"""What the logs of a shard hold, looked at before it is claimed: where it goes on if records that it needs are gone."""

from collections.abc import Mapping

from msgspec.structs import replace

from schemas.messages import AcceptedOffset, JournalRecord, LogGap, LogSeen
from schemas.topics import ACCOUNTS, ALERTS, JOURNAL, PARAMETERS
from streams.broker.reader import LogReader
from streams.errors import BrokerError
from streams.feeds.accepted import accepted_offsets
from streams.feeds.gaps import (
    PresentLog,
    find_gaps,
    gap_sentence,
    last_record,
    logs_as_of,
    present_logs,
    standing_after,
)


class LogSurvey:
    """Looks at the logs of shards.

    ``topic_ids`` are those of every topic of ``streams.feeds.gaps.KNOWN``, ``servers`` is for advice.
    """

    def __init__(self, reader: LogReader, topic_ids: Mapping[str, str], servers: str) -> None:
        self._reader = reader
        self._topic_ids = topic_ids
        self._servers = servers

    def stand(self, shard: int, last: JournalRecord | None, record: JournalRecord, *, marks_now: int) -> JournalRecord:
        """Where a shard goes on that would stand at ``record``; ``last`` is the last record of its journal that can be
        read, and ``marks_now`` where marks go on that cannot be had in order.

        Raises:
            BrokerError: rows of accounts are gone, which no operator has accepted; or Kafka does not answer.
        """
        present, known = present_logs(self._reader, shard, self._topic_ids), logs_as_of(self._reader, last)
        gaps = find_gaps(record, known, present, marks_now=marks_now)
        if last is None and (numbers := self._without_journal(shard, present[JOURNAL])) is not None:
            gap, sequence, alert_sequence = numbers
            gaps[JOURNAL] = gap
            record = replace(record, sequence=sequence, alert_sequence=alert_sequence)
        if (gap_of_rows := gaps.get(ACCOUNTS)) is not None:
            word = self._word(shard, present[ACCOUNTS])
            if word is None:
                raise BrokerError(self._refusal(shard, gap_of_rows, present[ACCOUNTS]))
            gaps[ACCOUNTS] = replace(gap_of_rows, accepted=word.reason)
        if gaps:
            record = standing_after(record, gaps, shard)
        seen = {topic: LogSeen(topic_id=log.topic_id, first=_kept(topic, log)) for topic, log in present.items()}
        return replace(record, logs=seen)

    def _without_journal(self, shard: int, journal: PresentLog) -> tuple[LogGap, int, int] | None:
        """That a shard without a journal has had one, and the numbers of commits and alerts below which it must give
        none; None if it may be new."""
        last = last_record(self._reader, ACCOUNTS, shard)
        if not journal.first and last is None:
            return None
        commit = "" if last is None else last.header("ce_id").split(":")[1:2]
        sequence = int(commit[0]) if commit and commit[0].isdigit() else 0
        alerts = sum(self._reader.watermarks(ALERTS, number)[1] for number in range(self._reader.partitions(ALERTS)))
        kind = "deleted" if journal.first else "absent"
        return LogGap(kind=kind, next=journal.first), sequence, alerts  # type: ignore[arg-type]

    def _word(self, shard: int, rows: PresentLog) -> AcceptedOffset | None:
        """The operator's word that a shard goes on with the rows that are left."""
        word = accepted_offsets(self._reader).words.get((ACCOUNTS, shard))
        return word if word is not None and (word.topic_id, word.offset) == (rows.topic_id, rows.first) else None

    def _refusal(self, shard: int, gap: LogGap, rows: PresentLog) -> str:
        return (
            f"{gap_sentence(ACCOUNTS, shard, gap)}. The shard is not taken, so that the tables in Redis stay as they "
            f"are: if they hold its accounts, publish those rows to {ACCOUNTS}[{shard}] again; to go on with what is "
            f"left, every account suspended, type `margin-clearing accept-offset {ACCOUNTS} {shard} {rows.first} "
            f"--reason 'WHY' --bootstrap-servers {self._servers}`"
        )


def _kept(topic: str, log: PresentLog) -> int:
    """What must be remembered of a log's first offset: that of a topic with a retention rises without a loss."""
    return log.first if topic in (ACCOUNTS, PARAMETERS) else 0
