"""Whether accounts that go from shard to shard get there: each in one shard, whole, and none lost on the way.

Each shard is looked at as of its own journal's end. So of two shards one may have been looked at before the accounts
went and the other after: then nothing that needs both is compared, and that is said.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from schemas.messages import JournalRecord, ShardLayout, ShardMoves, Spread
from schemas.partitioning import change_of, moves_at, place_of
from schemas.topics import ACCOUNTS, EVENTS, JOURNAL
from streams.audit.findings import Findings
from streams.audit.sent_frames import FrameName, SentFrame, SentFrames
from streams.broker.layout import require_layout
from streams.broker.records import Log
from streams.feeds.journal import journal_end
from streams.feeds.moves import Holding, holding_at


@dataclass(frozen=True, slots=True)
class ShardLook:
    """What was seen of a shard: its journal's last record, and the rows that it keeps of accounts it has sent."""

    record: JournalRecord | None
    kept: Mapping[str, bytes]

    @property
    def moves(self) -> ShardMoves | None:
        return None if self.record is None else self.record.moves or None


@dataclass(slots=True)
class InFlight:
    """What :class:`MoveCheck` found: by shard, the rows of accounts that it has sent and that are nowhere else yet;
    ``moved_meanwhile``: accounts went from shard to shard between the looks at those."""

    rows: dict[int, dict[str, bytes]]
    moved_meanwhile: bool = False


class MoveCheck:
    """The moves between ``looks``, by shard; what is wrong goes to ``findings``."""

    def __init__(
        self,
        log: Log,
        layout: ShardLayout,
        looks: Mapping[int, ShardLook],
        frames: SentFrames,
        findings: Findings,
    ) -> None:
        self._log, self._layout, self._looks, self._frames, self._findings = log, layout, looks, frames, findings
        self._spreads: dict[tuple[int, int, int], Spread] = {}
        """The newest of each change of the number of shards of which any shard knows."""
        for look in looks.values():
            if look.moves is not None:
                change = change_of(look.moves.spread)
                known = self._spreads.get(change)
                if known is None or known.version < look.moves.spread.version:
                    self._spreads[change] = look.moves.spread

    def run(self) -> InFlight:
        """Compare everything, once all journals and rows have been looked at."""
        in_flight = InFlight({})
        layout = require_layout(self._log)
        if (layout.version and not self._layout.version) or layout.shards_used != self._layout.shards_used:
            in_flight.moved_meanwhile = True
            self._findings.note("the number of shards began to be changed while this was looked at; look again")
        for look in self._looks.values():
            if look.moves is not None and look.moves.spread.version > layout.spread.version:
                self._findings.differ(
                    f"sequence {look.record.sequence if look.record else 0} follows layout version "
                    f"{look.moves.spread.version}, the last one that was written is {layout.spread.version}",
                    JOURNAL,
                    look.record.shard if look.record else None,
                )
        for spread in self._spreads.values():
            for step in range(1, spread.step + 1):
                for old, new in moves_at(step, spread):
                    if old in self._looks and new in self._looks:
                        self._look_at_pair(old, new, replace(spread, step=step), in_flight)
        self._look_at_frames()
        return in_flight

    # --- journals ----------------------------------------------------------------------------------------------------

    def _look_at_pair(self, old: int, new: int, spread: Spread, in_flight: InFlight) -> None:
        """The accounts of a step are in one of two shards."""
        holding = _holding(self._looks[old].moves, spread)
        has_come = _arrived(self._looks[new].moves, spread)
        what = f"the accounts of step {spread.step} of {spread.shards} to {spread.target} shards"
        if has_come and holding == "own":
            if _holding(self._moves_now(old), spread) != "own":
                self._note_moved(old, new, in_flight)
            else:
                self._findings.differ(f"shard {new} has {what}, and shard {old} has not sent them", JOURNAL, old)
        elif holding == "other" and not has_come:
            if _arrived(self._moves_now(new), spread):
                self._note_moved(old, new, in_flight)
            else:
                self._findings.differ(
                    f"shard {old} has given {what} away, and shard {new} has not got them", JOURNAL, new
                )
        elif holding == "kept" and not has_come:
            in_flight.rows[old] = self._rows_sent(old)

    def _rows_sent(self, shard: int) -> dict[str, bytes]:
        """The rows of the accounts that a shard has sent. Those that it keeps may be older."""
        moves = self._looks[shard].moves
        departure = None if moves is None else moves.departure
        rows: dict[str, bytes] = {}
        for sent in self._frames.by_sender.get(shard, []):
            if sent.arrival is not None and departure is not None and sent.name.spread == departure.spread:
                rows |= self._frames.rows_at(sent)
        return rows

    def _note_moved(self, old: int, new: int, in_flight: InFlight) -> None:
        in_flight.moved_meanwhile = True
        self._findings.note(
            f"accounts went from shard {old} to shard {new} while this was looked at: what needs both is not compared; "
            "look again"
        )

    def _moves_now(self, shard: int) -> ShardMoves | None:
        end = journal_end(self._log, shard)
        return None if end is None or end.record is None else end.record.moves or None

    # --- frames ------------------------------------------------------------------------------------------------------

    def _look_at_frames(self) -> None:
        """The accounts that have been sent, as they lie in the events of the shards that they go to."""
        whole: dict[FrameName, list[SentFrame]] = {}
        seen: dict[FrameName, SentFrame] = {}
        for sent in self._frames:
            for fault in self._faults(sent):
                self._findings.differ(f"{sent.name}: {fault}", EVENTS, sent.name.to, sent.offset)
            first = seen.setdefault(sent.name, sent)
            if first is not sent:
                content = "" if first.digest == sent.digest else ", with another content"
                self._findings.differ(
                    f"{sent.name}: it is there twice, first at offset {first.offset}{content}",
                    EVENTS,
                    sent.name.to,
                    sent.offset,
                )
            else:
                whole.setdefault(sent.name._replace(part=0), []).append(sent)
        for name, parts in whole.items():
            if name.kind == "arrival":
                self._look_at_arrival(name, parts)
            else:
                self._look_at_word(name, parts[0])
        for shard, look in self._looks.items():
            self._look_at_sent(shard, look, whole)

    def _faults(self, sent: SentFrame) -> Iterator[str]:
        spread = sent.name.spread
        for account in sent.rows:
            old, new, step = place_of(account, spread)
            if (old, new, step) != (sent.name.sender, sent.name.to, spread.step):
                yield f"account {account} goes from shard {old} to shard {new} with step {step}"

    def _look_at_arrival(self, name: FrameName, parts: Sequence[SentFrame]) -> None:
        arrivals = [sent.arrival for sent in parts if sent.arrival is not None]
        last, numbers = arrivals[-1], [arrival.part for arrival in arrivals]
        if self._frames.lows[name.to] <= 0 and numbers != list(range(last.parts)):
            self._findings.differ(f"{name}: of {last.parts} parts there are {numbers}", EVENTS, name.to)
        heads = [replace(arrival, part=0, incomplete=()) for arrival in arrivals]
        if any(head != heads[0] for head in heads):
            self._findings.differ(f"{name}: its parts say different things", EVENTS, name.to)
        accounts = [account for sent in parts for account in sent.rows]
        if len(accounts) > len(set(accounts)):
            self._findings.differ(f"{name}: some account is in two of its parts", EVENTS, name.to)
        look = self._looks.get(name.to)
        record = None if look is None else look.record
        is_behind = len(parts) == last.parts and record is not None and record.events.next > parts[-1].offset
        if record is not None and is_behind and not _arrived(record.moves or None, name.spread):
            self._findings.differ(
                f"{name}: sequence {record.sequence} of shard {name.to} has them behind it and has not taken the "
                "accounts in",
                JOURNAL,
                name.to,
            )

    def _look_at_word(self, name: FrameName, sent: SentFrame) -> None:
        look = self._looks.get(name.to)
        record = None if look is None else look.record
        if record is None or record.events.next <= sent.offset:
            return
        if _holding(record.moves or None, name.spread) != "other":
            self._findings.differ(
                f"{name}: sequence {record.sequence} of shard {name.to} has it behind it and keeps their rows",
                JOURNAL,
                name.to,
            )

    def _look_at_sent(self, shard: int, look: ShardLook, whole: Mapping[FrameName, Sequence[SentFrame]]) -> None:
        """What a shard has sent is in the events of the other one, account by account."""
        departure = None if look.moves is None else look.moves.departure
        if look.moves is None or departure is None or not look.moves.sent:
            return
        name = FrameName("arrival", departure.spread, shard, departure.to, 0)
        parts = whole.get(name, ())
        if not parts:
            if self._frames.lows[departure.to] <= 0:
                self._findings.differ(f"{name}: they are not there", EVENTS, departure.to)
            return
        sent = {account for part in parts for account in part.rows}
        for account in sorted(look.kept.keys() - sent):
            self._findings.differ(
                f"account {account}: its row is kept as if it had been sent to shard {departure.to}, and it was not",
                ACCOUNTS,
                shard,
            )


def _holding(moves: ShardMoves | None, spread: Spread) -> Holding:
    """What a shard still has of its accounts that go to another one with the step of ``spread``."""
    if moves is None or (moves.spread.version < spread.version and not _is_same(moves.spread, spread)):
        return "own"
    return holding_at(moves, spread.step) if _is_same(moves.spread, spread) else "other"


def _arrived(moves: ShardMoves | None, spread: Spread) -> bool:
    """Whether a shard has the accounts that come to it with the step of ``spread``."""
    if moves is None or (moves.spread.version < spread.version and not _is_same(moves.spread, spread)):
        return False
    return not _is_same(moves.spread, spread) or spread.step <= moves.arrived


def _is_same(one: Spread, other: Spread) -> bool:
    """Whether both are part of one change of the number of shards."""
    return change_of(one) == change_of(other)
