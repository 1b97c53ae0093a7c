"""An operator's word that a suspended shard, or one account of one, may be liquidated again: ``resume``.

The word is a frame of ``margin.events.v1``, so a shard takes it in order with all else, and its journal and a replay
have it, too. It names the suspension that was there when it was given.
"""

from dataclasses import dataclass, field

from schemas.codec import encode
from schemas.messages import EventFrame, JournalRecord, Resumption
from schemas.partitioning import home_of
from schemas.topics import EVENTS
from schemas.types import is_identifier
from streams.broker.kafka import Kafka
from streams.broker.layout import require_layout
from streams.errors import OperatorError
from streams.feeds.gaps import standing
from streams.feeds.journal import journal_end
from streams.feeds.reasons import checked_reason
from streams.feeds.sources import missing_sentences

_CLIENT_ID = "margin-resume"


@dataclass(slots=True)
class Resumed:
    """What was done: a line for each shard that is told, for each that is not suspended, and for each that cannot be
    told yet."""

    told: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What a person is told."""
        advice = ["the engines do it within seconds: see `margin-clearing status`"] if self.told else []
        told = (("resumed ", self.told), ("as it is", self.needless), ("refused ", self.refused))
        return [f"{what}  {line}" for what, lines in told for line in lines] + advice


def resume(kafka: Kafka, account: str | None, reason: str) -> Resumed:
    """Say that ``account``, or every account of every suspended shard (None), is suspended with its shard no longer.

    Not of a shard of which it is known that it lacks records of the exchange: they come first, or are said to be lost.

    Raises:
        OperatorError: the reason is none or too long, there can be no such account, or accounts are moving from shard
            to shard, so that it is not known which has this one. Nothing is written.
        BrokerError: Kafka does not answer, or does not take it.
    """
    reason = checked_reason(reason, "they may be liquidated again")
    if account is not None and not is_identifier(account):
        raise OperatorError(f"{account!r} is no account")
    done, words = Resumed(), dict[int, Resumption]()
    time_us = kafka.runtime.time_ns() // 1000
    for shard, record in _last_records(kafka, account).items():
        suspension = None if record is None else standing(record.suspension)
        if record is None or suspension is None:
            done.needless.append(f"shard {shard} is not suspended")
            continue
        if record.missing:
            done.refused += missing_sentences(f"shard {shard}", record.missing, {})
            continue
        words[shard] = Resumption(account=account or "", suspension=suspension.number, reason=reason, time=time_us)
        who = "every account" if account is None else account
        done.told.append(f"shard {shard}, suspension {suspension.number}: {who} ({'; '.join(suspension.reasons)})")
    if words:
        producer = kafka.idempotent_producer(_CLIENT_ID, compression="lz4")
        try:
            for shard, word in words.items():
                producer.produce(EVENTS, encode(EventFrame(time=time_us, resumptions=(word,))), partition=shard)
            producer.flush()
        finally:
            producer.close()
    return done


def _last_records(kafka: Kafka, account: str | None) -> dict[int, JournalRecord | None]:
    """The last record of the journal of the account's shard, or of every shard."""
    with kafka.log_reader(_CLIENT_ID) as reader:
        layout = require_layout(reader)
        if account is not None and layout.is_moving:
            raise OperatorError(
                f"accounts are moving from {layout.shards} to {layout.target} shards, and {account} may be in either: "
                "resume it when that is done (margin-clearing status), or every account with --all"
            )
        chosen = range(layout.shards_used) if account is None else [home_of(account, layout.spread)]
        ends = {shard: journal_end(reader, shard) for shard in chosen}
    return {shard: None if end is None else end.record for shard, end in ends.items()}
