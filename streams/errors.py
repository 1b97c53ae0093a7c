"""Every error the pipeline raises on purpose.

    MarginClearingError
    ├── InputError                 an event that cannot be applied to an account
    │   ├── ContradictionError     an event with the number of another one and other content
    │   ├── RepairError            a repaired event in the place of none that its account lacks
    │   └── ParameterError         a parameter record that breaks a rule; the version in force stays
    ├── ShardError                 a shard's state and its log disagree
    ├── ScenarioError              a scenario that cannot be read or run
    ├── AuditError                 a log does not hold what an audit needs, or there is no such thing to audit
    ├── PricesMissed               source prices were gone before the oracle had read them
    ├── OperatorError              what an operator asks for cannot be done
    └── QuotingError               may quote a server or a setting: its text is masked
        ├── SettingsError          settings that are missing, malformed or contradict each other
        ├── TopicError             a topic is missing or not as the contract needs it
        ├── BrokerError            Kafka refused something and trying again will not help
        │   ├── UnreadableError    what a log holds at a place can be read at no time
        │   ├── LeadershipLost     another oracle process publishes marks now; this one must end
        │   ├── MembershipLost     a consumer is outside its group for good; a new one may join
        │   ├── NoAnswer           Kafka did not answer in time; it may answer later
        │   ├── TransactionAborted the transaction must be dropped; the producer is still good
        │   └── ProducerFenced     another process took over, or the outcome is unknown; the producer must be dropped
        └── TableError             Redis refused a write or holds something unexpected
            └── TableFenced        a newer owner of the shard has written; this one must stop

Messages say what was wrong, where, and what to do.
"""

from streams.redaction import redacted


class MarginClearingError(Exception):
    """Base of every error raised on purpose."""


class QuotingError(MarginClearingError):
    """Base of the errors that may quote a server or a setting: their text holds no secret.

    The others' texts get into records, which a replay must give again to the byte whatever its process knows.
    """

    def __str__(self) -> str:
        return redacted(super().__str__())


class SettingsError(QuotingError):
    """Settings that are missing, malformed or contradict each other."""


class TopicError(QuotingError):
    """A topic is missing or is not what the contract needs."""


class InputError(MarginClearingError):
    """An event that cannot be applied to an account: unknown symbol or asset, not a whole increment, out of range."""


class ContradictionError(InputError):
    """An event that has the number of one that was applied and says something else."""


class RepairError(InputError):
    """A repaired event in the place of none that its account lacks: it may have been repaired before."""


class ParameterError(InputError):
    """A parameter record that breaks a rule. The version in force stays in force."""


class BrokerError(QuotingError):
    """Kafka refused something and trying again will not help."""


class UnreadableError(BrokerError):
    """What a log holds at a place can be read at no time: no reader goes on there until an operator has seen to it.

    ``offset`` is the first of the batch that cannot be read.
    """

    def __init__(self, topic: str, partition: int, offset: int, cause: str) -> None:
        super().__init__(f"{topic}[{partition}] cannot be read at offset {offset}: {cause}")
        self.topic, self.partition, self.offset, self.cause = topic, partition, offset, cause


class LeadershipLost(BrokerError):
    """Another oracle process publishes marks now: this one must end."""


class MembershipLost(BrokerError):
    """A consumer is outside its group and will not come back by itself: a new one may join."""


class NoAnswer(BrokerError):
    """Kafka did not answer in time: whoever can wait may ask again."""


class OracleFailed(MarginClearingError):
    """An oracle process cannot go on; the next one begins where it was."""


class TransactionAborted(BrokerError):
    """The transaction was dropped as a whole; the producer can begin another."""


class NotDelivered(BrokerError):
    """A record outside a transaction may not have been written: take a new producer and write again what is needed."""


class ProducerFenced(BrokerError):
    """Another process took over or the outcome is unknown: drop this producer and read the log again."""


class TableError(QuotingError):
    """Redis refused a write or holds something unexpected."""


class TableFenced(TableError):
    """A newer owner of the shard has written to its table: this one must not write any more."""


class ShardError(MarginClearingError):
    """The state of a shard and its log disagree: it must be taken again from the log."""


class AuditError(MarginClearingError):
    """A log does not hold what an audit needs (any more), or there is no such thing to audit."""


class PricesMissed(MarginClearingError):
    """Source prices were gone before the oracle had read them; the marks go on from those that are there."""


class OperatorError(MarginClearingError):
    """What an operator asks for cannot be done; the text says why, and what can."""


class ScenarioError(MarginClearingError):
    """A scenario that cannot be read or run; the text names the line and the field."""
