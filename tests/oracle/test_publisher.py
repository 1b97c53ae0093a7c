"""What an oracle sends for what it is given: frames, rows of its table, dead letters, heartbeats, and when."""

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from schemas.codec import Decoder, encode
from schemas.headers import Headers
from schemas.messages import Mark, MarkFrame, OraclePrice
from schemas.parameters import (
    AssetParameters,
    InstrumentParameters,
    MarginTier,
    OracleParameters,
    PolicyParameters,
    Scale,
)
from schemas.topics import PARAMETERS
from streams.broker.dead_letters import DeadLetter
from streams.broker.records import Record
from streams.errors import LeadershipLost
from streams.feeds.parameters import ParameterFold
from streams.machine_clock import MachineClock
from streams.margin.parameters import RiskParameters
from streams.oracle.clock import BrokerOffset
from streams.oracle.publisher import BatchResult, PriceRecord, Publisher, TableRow
from streams.oracle.symbols import Outcome, SymbolState

T0 = 1_700_000_000_000_000
EPOCH = 41
HEARTBEAT_MS = 250
LOG_APPEND_TIME = 1
RULES = OracleParameters(symbol="X", sources={"a": "1", "b": "1"}, minimum_sources=2, max_age_ms=5000)

decode_frame = Decoder[MarkFrame](MarkFrame)
decode_state = Decoder[SymbolState](SymbolState)


@dataclass(frozen=True)
class PriceResult:
    """What comes of a record alone."""

    outcome: Outcome | None = None
    letter: DeadLetter | None = None
    frame: bytes | None = None
    row: TableRow | None = None

    @classmethod
    def of(cls, result: BatchResult) -> "PriceResult":
        letters, frames, rows = ([*sent, None] for sent in (result.letters, result.frames, result.rows))
        (outcome,) = result.outcomes
        assert max(len(letters), len(frames), len(rows)) <= 2, "one record, one of each at most"
        return cls(outcome, letters[0], frames[0], rows[0])


class Held:
    """A right to publish that the test gives and takes away."""

    def __init__(self) -> None:
        self.lost = False
        self.held = True

    def poll(self) -> bool:
        return self.held and not self.lost

    @property
    def may_claim(self) -> bool:
        return self.held

    @property
    def given_to_another(self) -> bool:
        return not self.held

    def claim(self) -> int:
        return EPOCH


class Message:
    """A parameter record as a client delivers it."""

    def __init__(self, offset: int, key: bytes, value: bytes | None) -> None:
        self._offset, self._key, self._value = offset, key, value

    def topic(self) -> str:
        return PARAMETERS

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def timestamp(self) -> tuple[int, int]:
        return LOG_APPEND_TIME, T0 // 1000

    def headers(self) -> Headers | None:
        return None


class Parameters:
    """Parameters that come when the test writes them."""

    def __init__(self) -> None:
        self._fold = ParameterFold()
        self._waiting: deque[Record] = deque()
        self._end = 0

    @property
    def parameters(self) -> RiskParameters:
        return self._fold.parameters

    def write(self, key: str, value: Any) -> None:
        self._waiting.append(Record(Message(self._end, key.encode(), None if value is None else encode(value))))
        self._end += 1

    def poll(self) -> list[Record]:
        come = list(self._waiting)
        self._waiting.clear()
        return come

    def add(self, record: Record) -> object:
        return self._fold.add(record)


class Journals:
    """The open interest that the shards have told since they were asked last."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Mapping[str, str]]] = []

    def open_interest(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        told, self.told = self.told, []
        return iter(told)


class Stage:
    """A publisher that has claimed, with a clock that moves by hand and rules for ``X``."""

    def __init__(self, *, shards: int = 1, rules: OracleParameters | None = RULES) -> None:
        self.now_us = T0
        self.right, self.parameters, self.journals, self.offset = Held(), Parameters(), Journals(), BrokerOffset()
        if rules is not None:
            self.parameters.write("oracle:X", rules)
            self.parameters.add(self.parameters.poll()[0])
        self.publisher = Publisher(
            heartbeat_ms=HEARTBEAT_MS,
            shards=shards,
            right=self.right,
            parameters=self.parameters,
            journals=self.journals,
            clock=MachineClock(lambda: 1000 * self.now_us),
            offset=self.offset,
            monotonic=lambda: self.now_us / 1e6,
        )
        self.publisher.claim()
        self._prices = 0

    def wait(self, milliseconds: float) -> None:
        self.now_us += round(1000 * milliseconds)

    def price(self, source: str, price: str, symbol: str = "X") -> PriceResult:
        self._prices += 1
        value = OraclePrice(source=source, symbol=symbol, price=price, sequence=self._prices, publish_time=self.now_us)
        return self.record(encode(value))

    def record(self, value: bytes | None) -> PriceResult:
        record = PriceRecord(3, 17, T0 // 1000, b"key", value)
        return PriceResult.of(self.publisher.on_prices([record]))

    def live(self, price: str = "100") -> PriceResult:
        self.price("a", price)
        return self.price("b", price)

    def pace(self) -> tuple[float, float | None]:
        """Seconds until the next heartbeat is due, and since Kafka had the last, to the millisecond."""
        age_s = self.publisher.heartbeat_age_s
        return round(self.publisher.wait_s, 3), None if age_s is None else round(age_s, 3)

    def beat(self) -> MarkFrame:
        """A heartbeat that Kafka has at once."""
        heartbeat = self.publisher.beat()
        self.publisher.acknowledge(heartbeat, heartbeat.time // 1000, LOG_APPEND_TIME)
        return decode_frame(heartbeat.frames[0])


# --- prices ----------------------------------------------------------------------------------------------------------


def test_a_price_that_changes_a_mark_makes_a_frame_of_that_mark_alone() -> None:
    stage = Stage()
    assert stage.price("a", "100").frame is None, "one source of two makes no mark"
    result = stage.price("b", "101")
    assert (result.outcome, result.letter) == ("accepted", None)
    frame = decode_frame(result.frame)
    assert (frame.epoch, frame.full, frame.scales, frame.uncounted) == (EPOCH, False, {}, {})
    (mark,) = frame.marks
    assert (mark.symbol, mark.price, mark.status) == ("X", "100.5", "live")
    assert stage.now_us <= frame.time <= stage.now_us + 1000


def test_a_price_that_changes_no_mark_makes_no_frame() -> None:
    stage = Stage()
    stage.live()
    result = stage.price("a", "100")
    assert (result.outcome, result.frame) == ("accepted", None)


@pytest.mark.parametrize(("source", "symbol", "outcome"), [("z", "X", "unknown_source"), ("a", "Y", "unknown_symbol")])
def test_a_price_that_nobody_asked_for_sends_nothing(source: str, symbol: str, outcome: str) -> None:
    assert Stage().price(source, "1", symbol) == PriceResult(outcome)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [b"no json", b'{"source":"a"}', None])
def test_a_record_that_is_no_price_becomes_a_dead_letter_that_says_where_it_stood(
    value: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    result = Stage().record(value)
    assert (result.outcome, result.frame, result.row) == (None, None, None)
    letter = result.letter
    assert letter is not None
    assert (letter.key, letter.value) == (b"key", value)
    about = dict(letter.headers)
    assert (about["dlq.topic"], about["dlq.partition"], about["dlq.offset"]) == (b"oracle.prices.v1", b"3", b"17")
    assert about["dlq.timestamp"] == str(T0 // 1000).encode()
    assert about["dlq.reason"]
    assert [record.getMessage() for record in caplog.records] == ["dead_letter"]


# --- the table -------------------------------------------------------------------------------------------------------


def test_a_symbol_is_written_to_the_table_at_most_once_a_heartbeat() -> None:
    stage = Stage()
    first = stage.price("a", "100").row
    assert first is not None
    assert first.key == b"X"
    assert set(decode_state(first.value).sources) == {"a"}
    assert stage.price("b", "100").row is None
    stage.wait(HEARTBEAT_MS - 1)
    assert stage.price("a", "100").row is None
    stage.wait(1)
    second = stage.price("b", "100.01").row
    assert second is not None
    assert set(decode_state(second.value).sources) == {"a", "b"}


def test_the_price_that_ends_a_live_mark_is_written_at_once() -> None:
    stage = Stage()
    stage.live()
    result = stage.price("b", "130")
    assert [mark.status for mark in decode_frame(result.frame).marks] == ["stale"]
    assert result.row is not None
    assert decode_state(result.row.value).sources["b"].price == "130"


def test_a_clock_that_was_set_back_does_not_keep_a_symbol_from_the_table() -> None:
    stage = Stage()
    assert stage.price("a", "100").row is not None
    stage.wait(-60_000)
    assert stage.price("b", "100").row is not None


def test_a_publisher_restored_from_the_table_goes_on_where_the_last_one_was() -> None:
    old = Stage()
    old.price("a", "100")
    old.wait(HEARTBEAT_MS)
    old.price("a", "100")
    row = old.price("b", "100").row or old.price("b", "130").row
    assert row is not None
    new = Stage()
    new.now_us = old.now_us
    new.publisher.restore([(row.key, row.value)], None)
    (mark,) = new.beat().marks
    assert (mark.symbol, mark.price, mark.status) == ("X", "100", "stale")
    assert new.price("a", "100").outcome == "repeated"


def test_what_the_table_does_not_hold_is_known_from_the_last_full_frame(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    published = Mark(symbol="X", price="99", status="live", publish_time=T0 - 1000)
    last = MarkFrame(time=T0 - 1000, marks=(published,), full=True, scales={"instrument:X": "2"})
    with caplog.at_level(logging.INFO):
        stage.publisher.restore([(b"X", b"no state")], last)
    assert [record.getMessage() for record in caplog.records] == ["symbol_unreadable", "oracle_publishing"]
    frame = stage.beat()
    assert [(mark.price, mark.status) for mark in frame.marks] == [("99", "stale")]
    assert frame.scales == {"instrument:X": "2"}


# --- heartbeats ------------------------------------------------------------------------------------------------------


def test_a_heartbeat_shows_every_mark_and_who_does_not_count() -> None:
    stage = Stage()
    assert stage.beat().uncounted == {"X": {"a": "never", "b": "never"}}
    stage.live()
    frame = stage.beat()
    assert (frame.full, frame.epoch) == (True, EPOCH)
    assert [(mark.symbol, mark.price, mark.status) for mark in frame.marks] == [("X", "100", "live")]
    assert frame.uncounted == {}
    stage.wait(5_001)
    frame = stage.beat()
    assert [(mark.price, mark.status) for mark in frame.marks] == [("100", "stale")]
    assert frame.uncounted == {"X": {"a": "silent", "b": "silent"}}


def test_parameters_are_in_force_from_the_next_heartbeat_or_as_soon_as_they_are_followed() -> None:
    stage = Stage(rules=None)
    stage.parameters.write("oracle:X", RULES)
    assert stage.price("a", "100").outcome == "unknown_symbol"
    stage.beat()
    assert stage.price("a", "100").outcome == "accepted"
    stage.parameters.write("oracle:X", None)
    stage.publisher.follow_parameters()
    assert stage.price("a", "100").outcome == "unknown_symbol"


def test_a_symbol_without_rules_stays_stale_in_the_heartbeats_while_an_asset_is_priced_by_it() -> None:
    stage = Stage()
    stage.live()
    priced = AssetParameters(asset="A", decimals=6, price_symbol="X")
    stage.parameters.write("asset:A", priced)
    stage.parameters.write("oracle:X", None)
    assert [(mark.price, mark.status) for mark in stage.beat().marks] == [("100", "stale")]
    stage.parameters.write("asset:A", None)
    assert stage.beat().marks == ()


def test_scales_follow_the_open_interest_once_every_shard_has_told_it() -> None:
    stage = Stage(shards=2)
    instrument = InstrumentParameters(
        symbol="X",
        settle_asset="USDC",
        price_increment="0.1",
        quantity_increment="0.001",
        margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.1", initial_rate="0.2"),),
        open_interest_scale=Scale(reference="1000", change_per_minute="60"),
    )
    stage.parameters.write("asset:USDC", AssetParameters(asset="USDC", decimals=6))
    stage.parameters.write("instrument:X", instrument)
    stage.parameters.write("policy:default", PolicyParameters(scale_interval_ms=1000))
    stage.live()
    stage.journals.told = [(0, {"X": "15"})]

    def scales_after_4_s() -> dict[str, str]:
        stage.wait(4000)
        stage.live()
        return stage.beat().scales

    assert [stage.beat().scales, scales_after_4_s(), scales_after_4_s()] == [{}, {}, {}]
    stage.journals.told = [(1, {"X": "5"})]
    assert scales_after_4_s() == {"instrument:X": "2"}


def test_heartbeats_are_due_in_a_steady_pace_and_a_late_one_is_not_made_up_for() -> None:
    stage = Stage()
    assert stage.pace() == (0, None)
    stage.wait(3_000)  # until the table is there
    heartbeat = stage.publisher.beat()
    stage.wait(40)
    stage.publisher.acknowledge(heartbeat, None, 0)
    assert stage.pace() == (0.210, 0)
    stage.wait(210)
    assert stage.pace() == (0, 0.210)
    heartbeat = stage.publisher.beat()
    stage.wait(900)
    stage.publisher.acknowledge(heartbeat, None, 0)
    assert stage.pace() == (0, 0), "it is overdue"
    stage.beat()
    assert stage.pace() == (0.250, 0), "one heartbeat, not three"


def test_an_acknowledgement_says_how_far_the_clock_is_off() -> None:
    stage = Stage()
    heartbeat = stage.publisher.beat()
    stage.publisher.acknowledge(heartbeat, heartbeat.time // 1000 - 90_000, LOG_APPEND_TIME)
    assert stage.offset.offset_ms == pytest.approx(90_000, abs=1)


# --- the right to publish --------------------------------------------------------------------------------------------


def test_a_heartbeat_asks_for_the_right_to_publish() -> None:
    stage = Stage()
    stage.beat()
    stage.right.held = False
    with pytest.raises(LeadershipLost, match="another oracle process publishes now"):
        stage.publisher.beat()


def test_no_frame_is_formed_after_the_right_is_known_to_be_lost() -> None:
    stage = Stage()
    stage.live()
    stage.right.lost = True
    assert stage.price("a", "100").frame is None
    assert stage.record(b"no json").letter is not None
    with pytest.raises(LeadershipLost):
        stage.price("a", "101")
    with pytest.raises(LeadershipLost):
        stage.publisher.beat()
