"""The frames that shards write into the events of other shards: accounts that come, and the word that they have come.

They are found by who wrote them and for which layout; whatever is in them is kept as digests.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from msgspec import UNSET
from msgspec.structs import replace

from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import Arrival, EventFrame, ShardMoves, Spread
from schemas.partitioning import change_of
from schemas.topics import EVENTS
from streams.audit.findings import Findings, bytes_differ
from streams.audit.outputs import digest_of
from streams.broker.records import Log, Record
from streams.clearing.relocation import rows_in
from streams.feeds.moves import holding_at

_WORDS = (b'"arrival":', b'"arrived":')

_EVENT_FRAME = Decoder[EventFrame](EventFrame)


class FrameName(NamedTuple):
    """What tells one of these frames from all others: its kind, the step that it is of, its writer, the shard that it
    is for, and which part it is."""

    kind: str
    spread: Spread
    sender: int
    to: int
    part: int

    def __str__(self) -> str:
        step = f"step {self.spread.step} of layout version {self.spread.version}"
        if self.kind == "arrived":
            return f"the word of shard {self.sender} that it has the accounts of {step}"
        return f"part {self.part} of the accounts that shard {self.sender} sends with {step}"


@dataclass(frozen=True, slots=True)
class SentFrame:
    """A frame as it stands. ``arrival`` is what it says of accounts that come, without their rows: those are in
    ``rows`` as digests."""

    name: FrameName
    offset: int
    digest: bytes
    arrival: Arrival | None
    rows: Mapping[str, bytes]


def sent_frame(to: int, frame: EventFrame, offset: int, data: bytes) -> SentFrame | None:
    """What a frame for shard ``to`` says of accounts that come or have come; None if it is of routers."""
    if frame.arrival is not UNSET:
        arrival = frame.arrival
        name = FrameName("arrival", arrival.spread, arrival.origin, to, arrival.part)
        rows = {account: digest_of(row) for account, row in rows_in(arrival).items()}
        return SentFrame(name, offset, digest_of(data), replace(arrival, rows={}, packed={}), rows)
    if frame.arrived is not UNSET:
        name = FrameName("arrived", frame.arrived.spread, frame.arrived.shard, to, 0)
        return SentFrame(name, offset, digest_of(data), None, {})
    return None


class SentFrames:
    """The frames that shards have written for each other, of all shards; read as far as they go, whenever asked."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._next: list[int] = []
        self.lows: list[int] = []
        """Where the events of each shard begin: what was before is gone."""
        self.by_sender: dict[int, list[SentFrame]] = {}

    def read(self, shards: int) -> None:
        """Add what has come to the first ``shards`` since the last call."""
        for shard in range(len(self._next), shards):
            low, _ = self._log.watermarks(EVENTS, shard)
            self._next.append(low)
            self.lows.append(low)
        for shard in range(shards):
            end = self._log.watermarks(EVENTS, shard)[1]
            for sent in self._of(shard, self._next[shard], end):
                self.by_sender.setdefault(sent.name.sender, []).append(sent)
            self._next[shard] = max(end, self._next[shard])

    def __iter__(self) -> Iterator[SentFrame]:
        return (sent for frames in self.by_sender.values() for sent in frames)

    def value_at(self, sent: SentFrame) -> bytes | None:
        """The bytes of a frame."""
        place = sent.name.to, sent.offset, sent.offset + 1
        message: Record | None = next(self._log.read_range(EVENTS, *place), None)
        return None if message is None else message.value()

    def rows_at(self, sent: SentFrame) -> dict[str, bytes]:
        """The accounts' rows in a frame."""
        frame = _EVENT_FRAME(self.value_at(sent))
        return rows_in(frame.arrival) if frame.arrival else {}

    def _of(self, shard: int, first: int, end: int) -> Iterator[SentFrame]:
        for message in self._log.read_range(EVENTS, shard, first, end):
            data = message.value() or b""
            if not any(word in data for word in _WORDS):
                continue
            try:
                frame = _EVENT_FRAME(data)
            except DecodeError:
                continue  # it went to the dead letters as a whole
            if (sent := sent_frame(shard, frame, message.offset(), data)) is not None:
                yield sent


class FramesOfShard:
    """What one shard has written for others, ready to be compared with what a rerun gives."""

    def __init__(self, frames: SentFrames, shard: int) -> None:
        self._frames, self._shard = frames, shard
        self._read_count = 0
        self._unmatched: dict[FrameName, list[SentFrame]] = {}
        self._late: set[FrameName] = set()

    def read(self, shards: int, *, late: bool = False) -> None:
        """Read on; ``late``: it may be newer than the journal's end."""
        self._frames.read(shards)
        for sent in self._frames.by_sender.get(self._shard, [])[self._read_count :]:
            self._unmatched.setdefault(sent.name, []).append(sent)
            if late:
                self._late.add(sent.name)
            self._read_count += 1

    def compare(self, to: int, wanted: EventFrame, findings: Findings, known: set[str] | None) -> None:
        """Compare a frame with what it must be, and take it out of those that are left; of accounts that are not
        ``known`` (None: all are) nothing is compared."""
        expected = sent_frame(to, wanted, -1, encode(wanted))
        assert expected is not None
        if known is not None and expected.arrival is not None:
            self._compare_known(expected, findings, known)
            return
        there = self._unmatched.pop(expected.name, [])
        if not there:
            self._note_absent(expected.name, findings)
            return
        findings.counts["frames to other shards"] += 1
        if there[0].digest != expected.digest:
            differing = bytes_differ(encode(wanted), self._frames.value_at(there[0]))
            findings.differ(f"{expected.name}: {differing}", EVENTS, to, there[0].offset)
        self._name_repeats(there, findings)

    def _note_absent(self, name: FrameName, findings: Findings) -> None:
        if self._frames.lows[name.to]:
            findings.counts["frames to other shards that are gone"] += 1
        else:
            findings.differ(f"{name}: it is not in the topic", EVENTS, name.to)

    def _name_repeats(self, there: list[SentFrame], findings: Findings) -> None:
        for again in there[1:]:
            findings.differ(
                f"{again.name}: it is there twice, first at offset {there[0].offset}",
                EVENTS,
                again.name.to,
                again.offset,
            )

    def _compare_known(self, expected: SentFrame, findings: Findings, known: set[str]) -> None:
        """Compare the rows of the accounts that are known, in whatever parts they came."""
        assert expected.arrival is not None
        names = [name for name in self._unmatched if name._replace(part=0) == expected.name._replace(part=0)]
        there = [sent for name in names for sent in self._unmatched[name]]
        if expected.arrival.part + 1 == expected.arrival.parts:
            for name in names:
                self._unmatched.pop(name)
        if not there:
            self._note_absent(expected.name, findings)
            return
        findings.counts["frames to other shards"] += 1
        rows = {account: row for sent in there for account, row in sent.rows.items()}
        for account, row in expected.rows.items():
            if account in known and rows.get(account) != row:
                what = "is not in it" if account not in rows else "is another than at the shard that sent it"
                findings.differ(f"{expected.name}: the row of account {account} {what}", EVENTS, expected.name.to)

    def conclude(self, began: ShardMoves | None, findings: Findings) -> None:
        """Name what is left, though the rerun, which began with the moves ``began``, went over it."""
        for name, there in self._unmatched.items():
            if name not in self._late and not _is_before(name, began):
                findings.differ(f"{name}: it does not follow from the journal", EVENTS, name.to, there[0].offset)


def _is_before(name: FrameName, began: ShardMoves | None) -> bool:
    """Whether a shard had written a frame before its journal said ``began``."""
    if began is None or name.spread.version > began.spread.version:
        return False
    if change_of(name.spread) != change_of(began.spread):
        return True
    if name.kind == "arrived":
        return name.spread.step <= began.arrived
    return holding_at(began, name.spread.step) != "own"
