"""What an oracle does, without Faust, sockets or threads: records in, what must be sent out.

Owns the mark book, the scales, when a row of the prices table is written, and when a heartbeat is due. Whoever runs it
hands it the records of prices, sends what comes back in the order of its fields, and says when Kafka has a heartbeat:
:mod:`streams.oracle.app` with Faust in production, a run in memory without.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
from prometheus_client import Gauge

from schemas.codec import MESSAGE_BYTES_MAX, DecodeError, Decoder
from schemas.messages import Mark, MarkFrame, OraclePrice
from schemas.topics import PRICES
from streams.broker.dead_letters import DeadLetter, dead_letter
from streams.broker.records import Record
from streams.errors import LeadershipLost
from streams.logs import event
from streams.machine_clock import MachineClock
from streams.margin.parameters import RiskParameters
from streams.oracle.clock import BrokerOffset
from streams.oracle.frames import FrameLog, encoded_frame
from streams.oracle.marks import HEARD, MarkBook
from streams.oracle.outcomes import LetterLog, OutcomeLog
from streams.oracle.scales import ScaleBook
from streams.oracle.symbols import Outcome, SymbolState

log = logging.getLogger(__name__)

MARKS_LIVE = Gauge("margin_oracle_marks_live", "Marks that are live")

_encode = msgspec.json.Encoder().encode
_PRICE = Decoder[OraclePrice](OraclePrice)
_SYMBOL = Decoder[SymbolState](SymbolState)


class Right(Protocol):
    """The right to publish; :class:`streams.oracle.leadership.Leadership` is the one that Kafka gives."""

    @property
    def lost(self) -> bool:
        """Whether it was held and is gone."""
        ...

    @property
    def may_claim(self) -> bool:
        """Whether it is given to this process, if it has to be claimed again."""
        ...

    @property
    def given_to_another(self) -> bool:
        """Whether another process has it."""
        ...

    def poll(self) -> bool:
        """Whether it is held now; to be asked often."""
        ...

    def claim(self) -> int:
        """Claim it in the marks' log; the epoch, to be carried by every frame."""
        ...


class ParameterSource(Protocol):
    """The parameters in force; :class:`streams.feeds.parameters.ParameterFeed` follows those of the topic."""

    @property
    def parameters(self) -> RiskParameters:
        """Those that the records added so far form."""
        ...

    def poll(self) -> Sequence[Record]:
        """The records that have come, without waiting."""
        ...

    def add(self, record: Record) -> object:
        """Put a record in force, or refuse it."""
        ...


class OpenInterestSource(Protocol):
    """What the shards hold; :class:`streams.feeds.journal.JournalFollower` follows their journals."""

    def open_interest(self) -> Iterable[tuple[int, Mapping[str, str]]]:
        """(shard, quantity of long positions by symbol) of the records that have come, without waiting."""
        ...


class PriceRecord(msgspec.Struct, frozen=True):
    """A record of ``oracle.prices.v1``, its timestamp in milliseconds."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of the prices table: the key is a symbol, the value its :class:`SymbolState`."""

    key: bytes
    value: bytes


@dataclass(slots=True)
class BatchResult:
    """What comes of a batch of price records: mark frames and rows of the table, to be sent in this order, and dead
    letters, to be written before the batch is acknowledged.

    ``outcomes`` has one for each record, None where it is no price.
    """

    outcomes: list[Outcome | None] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    rows: list[TableRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A full mark frame, formed at ``time`` (microseconds of the machine's clock): the messages to send, in order."""

    frames: tuple[bytes, ...]
    time: int


class Publisher:
    """One oracle process's part of the work. Not thread-safe, but for ``epoch`` and ``heartbeat_age_s``.

    In order: :meth:`claim`, :meth:`restore`, then prices and heartbeats as they come. What is given stays the caller's,
    to be closed by it.

    Args:
        heartbeat_ms: the time from heartbeat to heartbeat.
        shards: so many shards tell their open interest.
        parameters: caught up with the topic; followed from there on with every heartbeat.
        clock: stamps the frames, and decides which prices are fresh.
        offset: is told how far that clock is from the broker's.
        monotonic: seconds since some moment, for the pace of the heartbeats.
    """

    def __init__(
        self,
        *,
        heartbeat_ms: int,
        shards: int,
        right: Right,
        parameters: ParameterSource,
        journals: OpenInterestSource,
        clock: MachineClock,
        offset: BrokerOffset,
        monotonic: Callable[[], float],
    ) -> None:
        self.epoch: int | None = None
        """The epoch of this process's frames; None before :meth:`claim`."""
        self._heartbeat_ms = heartbeat_ms
        self._right = right
        self._parameters = parameters
        self._journals = journals
        self._clock = clock
        self._offset = offset
        self._monotonic = monotonic
        self._book = MarkBook()
        self._scales = ScaleBook(shards)
        self._outcomes = OutcomeLog()
        self._frame_log = FrameLog()
        self._letter_log = LetterLog(monotonic)
        self._written: dict[str, int] = {}
        self._not_kept: set[str] = set()
        self._due: float | None = None
        self._acknowledged: float | None = None
        self._adopt_parameters()

    # --- before the first price --------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Claim the right to publish, once it is held.

        Raises:
            BrokerError: Kafka refuses the claim or does not answer. LeadershipLost: another one has had it meanwhile.
        """
        self.epoch = self._right.claim()
        event(log, logging.INFO, "oracle_leads", epoch=self.epoch)

    @property
    def is_unsure(self) -> bool:
        """Whether the right is lost for now: nothing may be published until :meth:`claim` has succeeded again."""
        return self._right.lost

    def may_claim(self) -> bool:
        """Whether the right has been given again to this process, which may claim it.

        Raises:
            LeadershipLost: another process has it.
        """
        self._right.poll()
        if self._right.given_to_another:
            raise LeadershipLost("another oracle process publishes now")
        return self._right.may_claim

    def restore(self, rows: Iterable[tuple[bytes, bytes]], last_frame: MarkFrame | None) -> None:
        """Go on from the prices table, and from the last full frame that is in force, if there is one."""
        for key, value in rows:
            symbol = key.decode("utf-8", "replace")
            try:
                state = _SYMBOL(value)
            except DecodeError as error:  # what it said is heard again, and the mark's last price is in the frame
                event(log, logging.ERROR, "symbol_unreadable", symbol=symbol, reason=str(error))
                continue
            self._book.restore(symbol, state)
            if state.volatility is not None:
                self._scales.restore_volatility(symbol, state.volatility)
        if last_frame is not None:
            self._scales.restore(last_frame.scales)
            for mark in last_frame.marks:
                self._book.remember(mark)
        event(log, logging.INFO, "oracle_publishing", symbols=sorted(self._parameters.parameters.oracle))

    # --- prices in, marks out ----------------------------------------------------------------------------------------

    def on_prices(self, records: Iterable[PriceRecord]) -> BatchResult:
        """Take in records of prices, each as if it had come alone; what must be sent is that of all of them.

        Of the marks of one symbol only the last is sent, but for one after which its status changes.

        Raises:
            LeadershipLost: their marks must not be published by this process any more. None may be acknowledged.
        """
        result = BatchResult()
        marks: dict[str, Mark] = {}
        rows: dict[str, None] = {}
        formed_at = 0
        for record in records:
            try:
                price = _PRICE(record.value)
            except DecodeError as error:
                self._letter_log.tell(record.partition, record.offset, str(error))
                result.letters.append(_dead_letter(record, error))
                result.outcomes.append(None)
                continue
            clock, symbol = self._clock.now_us(), price.symbol
            outcome = self._book.accept(price, clock)
            result.outcomes.append(outcome)
            if outcome != "accepted":
                self._outcomes.tell(price, outcome, clock)
            if outcome not in HEARD:
                continue
            mark = self._book.form(symbol, clock)
            if mark is not None:
                before = marks.get(symbol)
                if before is not None and before.status != mark.status:
                    result.frames += self._frame(formed_at, tuple(marks.values()))
                    marks.clear()
                marks[symbol], formed_at = mark, clock
            if self._is_row_due(symbol, clock, at_once=mark is not None and mark.status != "live"):
                rows[symbol] = None
        if marks:
            result.frames += self._frame(formed_at, tuple(marks.values()))
        result.rows = [row for symbol in rows if (row := self._row(symbol)) is not None]
        self._outcomes.accepted(result.outcomes.count("accepted"))
        return result

    def _is_row_due(self, symbol: str, clock: int, *, at_once: bool) -> bool:
        """Whether a symbol's state is to be written to the table: at most once a heartbeat.

        Each write is a record of the changelog. After a crash the prices since the last write are read again, or
        forgotten; either way newer ones follow. The price that ended a live mark is written at once, because it may be
        the last one before a silence.
        """
        age = clock - self._written.get(symbol, 0)
        if not at_once and 0 <= age < 1000 * self._heartbeat_ms:
            return False
        self._written[symbol] = clock
        return True

    def _row(self, symbol: str) -> TableRow | None:
        """The state of a symbol; None if it has had so many sources that no record holds it."""
        state = msgspec.structs.replace(self._book.state(symbol), volatility=self._scales.volatility(symbol))
        value = _encode(state)
        if len(value) <= MESSAGE_BYTES_MAX:
            return TableRow(symbol.encode(), value)
        if symbol not in self._not_kept:
            self._not_kept.add(symbol)
            event(log, logging.ERROR, "symbol_not_kept", symbol=symbol, sources=len(state.sources), bytes=len(value))
        return None

    def beat(self) -> Heartbeat:
        """Follow the parameters and the journals, and form a frame of all marks; the first one is due when asked for.

        Raises:
            LeadershipLost: another process publishes now.
            BrokerError: Kafka refuses for good.
        """
        if self._due is None:
            self._due = self._monotonic()
        self._letter_log.sum_up()
        self.follow_parameters()
        if not self._right.poll():
            raise LeadershipLost("another oracle process publishes now")
        marks = self._book.form_all(clock := self._clock.now_us())
        MARKS_LIVE.set(sum(mark.status == "live" for mark in marks))
        for shard, quantities in self._journals.open_interest():
            self._scales.observe_open_interest(shard, quantities)
        self._scales.observe_marks(marks, clock)
        self._scales.step(marks, clock)
        uncounted = self._book.uncounted(clock)
        return Heartbeat(self._frame(clock, marks, full=True, scales=self._scales.scales, uncounted=uncounted), clock)

    def acknowledge(self, heartbeat: Heartbeat, timestamp_ms: int | None, timestamp_type: int) -> None:
        """Kafka has ``heartbeat``, with this timestamp of this type; the next one is due a heartbeat after it was."""
        assert self._due is not None, "a heartbeat that was formed was due"
        self._offset.observe(heartbeat.time, self._clock.now_us(), timestamp_ms, timestamp_type)
        self._acknowledged = now = self._monotonic()
        self._due = max(self._due + self._heartbeat_ms / 1000, now)

    @property
    def wait_s(self) -> float:
        """Seconds until the next heartbeat is due."""
        return 0.0 if self._due is None else max(0.0, self._due - self._monotonic())

    @property
    def heartbeat_age_s(self) -> float | None:
        """Seconds since Kafka had the last heartbeat."""
        return None if self._acknowledged is None else self._monotonic() - self._acknowledged

    def follow_parameters(self) -> None:
        """Put the parameters that have come in force. To say what is wrong with one is the engine's business."""
        records = self._parameters.poll()
        for record in records:
            self._parameters.add(record)
        if records:
            self._adopt_parameters()

    def _adopt_parameters(self) -> None:
        parameters = self._parameters.parameters
        priced = {asset.price_symbol for asset in parameters.assets.values() if asset.price_symbol is not None}
        self._book.set_rules(parameters.oracle, kept={*parameters.instruments, *priced})
        self._scales.set_parameters(parameters)

    def _frame(self, clock: int, marks: Sequence[Mark], **fields: Any) -> tuple[bytes, ...]:
        assert self.epoch is not None, "a frame carries the epoch of a claim"
        if self._right.lost:
            raise LeadershipLost("another oracle process publishes now")
        frame = MarkFrame(time=clock, marks=tuple(marks), epoch=self.epoch, **fields)
        encoded = encoded_frame(frame)
        if frame.full:
            self._frame_log.tell(frame, encoded)
        return encoded.messages


def _dead_letter(record: PriceRecord, error: Exception) -> DeadLetter:
    return dead_letter(
        PRICES,
        record.partition,
        record.offset,
        record.timestamp_ms,
        record.key,
        record.value,
        type(error).__name__,
        str(error),
    )
