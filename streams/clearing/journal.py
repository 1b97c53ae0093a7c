"""Where a shard stands in its inputs and in its journal, and the journal records that say so.

A :class:`Cursor` holds what the next record of ``margin.journal.v1`` says beside the output of a commit. It writes the
three kinds of records (the first one of all, a claim, a commit) and stands again where one of them left off. Finding
records in the log is the business of ``streams.feeds.journal``.
"""

from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Any, Self

from msgspec import UNSET

from schemas.messages import Batch, JournalRecord, LogGap, LogSeen, Range, ShardSuspension, Turn
from streams.clearing.awaited import AwaitedMarks
from streams.clearing.clock import ShardClock
from streams.clearing.completeness import Completeness
from streams.clearing.unreached import Unreached
from streams.feeds import gaps
from streams.feeds.moves import Moves
from streams.feeds.sources import ALL_EVERY, Sources
from streams.margin.fixed_point import EXACT, format_decimal

COMMAND_NAMES_BYTES_MAX = 300_000
"""Most bytes of command ids in one journal record, which with everything else in it must stay a readable message."""


class Cursor:
    """The place of one shard.

    ``events_next``, ``marks_next``, ``parameters_next`` and ``progress_next`` are the offsets of the next input of each
    kind; ``rules_next`` is the offset after the newest parameter record in force, ``marks_full`` that of the last full
    mark frame applied (-1: none). ``claim`` is the offset of the claim in force, the shard's fencing token;
    ``sequence`` and ``previous`` are the number and the offset of the journal's last record. ``unread`` counts the
    records of the journal that could not be read, until a commit has told of them. ``sources`` is how far the frames
    have told what the exchange's partitions hold, ``completeness`` what is known of what the shard lacks;
    ``marks_now`` is the first mark that was not there when the shard was taken, ``held`` how many accounts were held at
    the last record. ``logs`` are the topics as the shard knows them, ``gone`` what it went on without of them and has
    not told of yet, ``suspension`` the last one of the shard as a whole. ``pools`` is what the shard has given to each
    pool of the fund ever since, by asset.
    """

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.events_next = 0
        self.marks_next = 0
        self.parameters_next = 0
        self.progress_next = 0
        self.rules_next = -1
        self.marks_full = -1
        self.clock = ShardClock()
        self.claim = -1
        self.sequence = 0
        self.previous = -1
        self.alert_sequence = 0
        self.unread = 0
        self.awaited = AwaitedMarks()
        self.unreached = Unreached()
        self.sources = Sources(moves=Moves(shard))
        self.marks_now = 0
        self.held = 0
        self.completeness = Completeness(shard)
        self.logs: dict[str, LogSeen] = {}
        self.gone: dict[str, LogGap] = {}
        self.suspension: ShardSuspension | None = None
        self.pools: dict[str, dict[str, Decimal]] = {}
        self._turns: list[Turn] = []
        self._batches: list[Batch] = []
        self._batch_after: tuple[int, int] | None = None
        self._tells_all = False
        self._committed = (0, 0, 0, 0)

    def resume(self, record: JournalRecord, offset: int = -1) -> Self:
        """Stand where ``record``, the last of the shard's journal, at ``offset`` of it, left off."""
        self.claim = offset if record.kind == "claim" else record.claim
        self.previous = offset
        self.sequence = record.sequence
        self.events_next = record.events.next
        self.marks_next = record.marks.next
        self.parameters_next = record.parameters.next
        self.progress_next = record.progress.next
        self.rules_next = record.rules_next
        self.marks_full = record.marks_full
        self.clock.resume(record.clock, record.skewed, is_journaled=record.clock > 0 and not record.unread)
        self.alert_sequence = record.alert_sequence
        self.awaited.resume(record.not_live, record.told_not_live)
        self.unreached.resume(record.unreached, record.unreached_notional)
        self.unread = record.unread
        self.completeness = Completeness(self.shard, record.behind)
        self.marks_now = record.marks_now
        self.held = record.held
        self.logs = dict(record.logs or {})
        self.gone = dict(record.gone or {})
        self.suspension = record.suspension or None
        self.resume_pools(record)
        self._committed = self._places()
        return self

    def suspends(self, resumed: int) -> bool:
        """Whether the shard is suspended, and with it an account for which its suspensions up to ``resumed`` have been
        lifted."""
        suspension = gaps.standing(self.suspension)
        return suspension is not None and resumed < suspension.number

    def suspend(self, reason: str) -> None:
        """Suspend the shard, for one reason more if it is suspended."""
        self.suspension = gaps.suspended(self.suspension, reason, self.clock.now_us)

    def resume_pools(self, record: JournalRecord) -> None:
        """Go on from what ``record`` says that the pools have been given."""
        self.pools = {
            pool: {asset: Decimal(amount) for asset, amount in held.items()}
            for pool, held in (record.pools or {}).items()
        }

    def give(self, pool: str, asset: str, amount: Decimal) -> None:
        """Note that the shard gives ``amount`` (> 0) to a pool."""
        held = self.pools.setdefault(pool, {})
        with localcontext(EXACT):
            held[asset] = held.get(asset, Decimal(0)) + amount

    def left_out_of(self, account: str) -> tuple[str, ...]:
        """The sources of which something is missing, or that nobody waits for any more, or of which rows of an account
        that is about to go come to another shard."""
        sources = self.sources
        left_out = {*sources.missing, *self.completeness.left_out, *sources.moves.elsewhere(account)}
        return tuple(sorted(left_out))

    def skip_marks(self, offset: int) -> None:
        """Count the mark record at ``offset`` and all before it as walked."""
        self.marks_next = max(self.marks_next, offset + 1)

    def note_turn(self, marks: int) -> None:
        """The marks below ``marks`` were walked before the progress that has been, and the others are after it."""
        turn = Turn(marks=marks, progress=self.progress_next)
        if not self._turns or self._turns[-1] != turn:
            self._turns.append(turn)

    @property
    def has_batches(self) -> bool:
        """Whether there have been events or parameters since the last record."""
        return self._batch_after is not None or bool(self._batches)

    def open_batch(self) -> None:
        """Events or parameters come now, after the marks and the progress that have been; they may be several."""
        if self._batch_after is None:
            self._batch_after = self.marks_next, self.progress_next

    def close_batch(self) -> None:
        """What has come since is decided together, and nothing that comes later."""
        if self._batch_after is not None:
            marks, progress = self._batch_after
            places = self.parameters_next, self.events_next
            self._batches.append(Batch(marks=marks, progress=progress, parameters=places[0], events=places[1]))
            self._batch_after = None

    def _places(self) -> tuple[int, int, int, int]:
        return self.events_next, self.marks_next, self.parameters_next, self.progress_next

    def claim_record(self, worker: str, progress_next: int, marks_now: int) -> JournalRecord:
        """The record with which ``worker`` claims the shard, which stands at the last record of its journal.

        What was known of progress is forgotten, and it is followed from ``progress_next`` on; the marks before
        ``marks_now`` are there already.
        """
        return JournalRecord(
            kind="claim",
            shard=self.shard,
            claim=-1,
            sequence=self.sequence + 1,
            previous=self.previous,
            events=_nothing(self.events_next),
            marks=_nothing(self.marks_next),
            parameters=_nothing(self.parameters_next),
            marks_before=self.marks_next,
            marks_full=self.marks_full,
            clock=self.clock.now_us,
            skewed=dict(sorted(self.clock.skewed.items())),
            rules_next=self.rules_next,
            worker=worker,
            alert_sequence=self.alert_sequence,
            not_live=self.awaited.since,
            told_not_live=self.awaited.told,
            unreached=dict(self.unreached.before),
            unreached_notional=self.unreached.notional,
            unread=self.unread,
            sources=self.sources.take_all(),
            progress=_nothing(progress_next),
            marks_now=max(marks_now, self.marks_next),
            behind=self.completeness.behind,
            missing=dict(sorted(self.sources.missing.items())),
            lost=dict(sorted(self.sources.lost.items())),
            logs=self.logs or UNSET,
            gone=self.gone or UNSET,
            **self._standing(),
        )

    def claimed(self, record: JournalRecord, offset: int) -> None:
        """The claim ``record`` stands in the journal at ``offset``."""
        self.progress_next = record.progress.next
        self.completeness = Completeness(self.shard, record.behind)
        self.marks_now = record.marks_now
        self._committed = self._places()
        self.claim = self.previous = self.sources.told_at = offset
        self.sequence = record.sequence

    def commit_record(
        self,
        worker: str,
        *,
        held: int,
        accounts: int,
        commands: Sequence[str],
        open_interest: dict[str, str] | None,
    ) -> JournalRecord:
        """The record of everything since the last one; the next one begins behind it.

        ``held`` is how many accounts are held, ``accounts`` how many rows changed, ``commands`` the ids of those given.
        """
        self.sequence += 1
        named = _first_names(commands)
        (events_first, marks_first, parameters_first, progress_first), self._committed = self._committed, self._places()
        self.close_batch()
        turns, batches = tuple(self._turns), tuple(self._batches)
        self._turns, self._batches, before = [], [], next(iter(batches), None)
        self.unread, self.gone, self.held = 0, {}, held
        self.sources.moves.forget_floors(self.sources.next)
        self._tells_all = self.sources.told_at < 0 or self.sequence % ALL_EVERY == 0
        return JournalRecord(
            kind="commit",
            shard=self.shard,
            claim=self.claim,
            sequence=self.sequence,
            previous=self.previous,
            events=Range(first=events_first, next=self.events_next),
            marks=Range(first=marks_first, next=self.marks_next),
            parameters=Range(first=parameters_first, next=self.parameters_next),
            marks_before=self.marks_next if before is None else before.marks,
            marks_full=self.marks_full,
            clock=self.clock.now_us,
            skewed=dict(sorted(self.clock.skewed.items())),
            rules_next=self.rules_next,
            accounts=accounts,
            commands=named,
            command_count=-1 if len(named) == len(commands) else len(commands),
            alert_sequence=self.alert_sequence,
            open_interest=open_interest,
            worker=worker,
            not_live=self.awaited.since,
            told_not_live=self.awaited.told,
            unreached=self.unreached.totals(),
            unreached_notional=self.unreached.notional,
            sources=self.sources.take_all() if self._tells_all else self.sources.take_moved(),
            sources_told_at=-1 if self._tells_all else self.sources.told_at,
            progress=Range(first=progress_first, next=self.progress_next),
            progress_before=self.progress_next if before is None else before.progress,
            turns=turns,
            batches=batches if len(batches) > 1 else (),
            behind=self.completeness.behind,
            held=held,
            missing=dict(sorted(self.sources.missing.items())),
            lost=dict(sorted(self.sources.lost.items())),
            logs=(self._tells_all and self.logs) or UNSET,
            **self._standing(),
        )

    def _standing(self) -> dict[str, Any]:
        """What a record says that goes on from one to the next, and is left out as long as there has been none."""
        pools = {
            pool: {asset: format_decimal(amount) for asset, amount in sorted(held.items())}
            for pool, held in sorted(self.pools.items())
        }
        moves = self.sources.moves.record()
        return {"suspension": self.suspension or UNSET, "moves": moves, "pools": pools or UNSET}

    def committed(self, offset: int) -> None:
        """The last record stands in the journal at ``offset``."""
        self.previous = offset
        if self._tells_all:
            self.sources.told_at = offset


def first_record(shard: int, *, events_next: int, marks_next: int, parameters_next: int) -> JournalRecord:
    """Where a shard starts that has no journal yet: nothing happened before now."""
    return JournalRecord(
        kind="claim",
        shard=shard,
        claim=-1,
        sequence=0,
        previous=-1,
        events=_nothing(events_next),
        marks=_nothing(marks_next),
        parameters=_nothing(parameters_next),
        rules_next=parameters_next,
    )


def _nothing(offset: int) -> Range:
    """No records, at ``offset``."""
    return Range(first=offset, next=offset)


def _first_names(names: Sequence[str]) -> tuple[str, ...]:
    """As many of ``names``, from the first on, as a journal record has room for."""
    room = COMMAND_NAMES_BYTES_MAX
    for index, name in enumerate(names):
        room -= len(name) + 3
        if room < 0:
            return tuple(names[:index])
    return tuple(names)
