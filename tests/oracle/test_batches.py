"""Prices that are taken in together end as they would one by one, and what is sent of them leaves no status out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec import encode
from schemas.messages import Mark, MarkFrame, OraclePrice
from schemas.parameters import OracleParameters
from streams.oracle.publisher import BatchResult, PriceRecord
from streams.oracle.symbols import Outcome
from tests.oracle.test_publisher import HEARTBEAT_MS, RULES, T0, Stage, decode_frame, decode_state
from tests.properties import examples

SYMBOLS = ("X", "Y", "Z")
PRICES = ("100", "100", "100.5", "104.5", "111", "150", "150.25")


@dataclass(frozen=True)
class Given:
    """A record of prices (None: one that holds no price), so long after the one before, and whether a batch ends."""

    wait_ms: int
    price: OraclePrice | None
    ends: bool


@st.composite
def given_prices(draw: st.DrawFn) -> list[Given]:
    """Sources of a few symbols that agree, jump, repeat themselves, are late, unsure or from the future."""
    steps: list[Given] = []
    now_us = T0
    for number in range(draw(st.integers(0, 60))):
        wait_ms = draw(st.sampled_from((0, 0, 0, 1, 100, HEARTBEAT_MS, 1000, 5001)))
        now_us += 1000 * wait_ms
        price = OraclePrice(
            source=draw(st.sampled_from(("a", "a", "b", "b", "c"))),
            symbol=draw(st.sampled_from((*SYMBOLS, "X", "X", "unknown"))),
            price=draw(st.sampled_from(PRICES)),
            confidence=draw(st.sampled_from((None, None, None, "0.5", "30"))),
            sequence=draw(st.sampled_from((number + 10, number + 10, number + 10, number))),
            publish_time=now_us - 1000 * draw(st.sampled_from((0, 0, 0, 10, 700, 5001, -6000))),
        )
        no_price = draw(st.integers(0, 15)) == 0
        steps.append(Given(wait_ms, None if no_price else price, draw(st.integers(0, 4)) == 0))
    return steps


@dataclass
class Run:
    """A publisher, what it sent, and the marks that a reader of its frames knows."""

    stage: Stage = field(default_factory=lambda: stage_of(SYMBOLS))
    results: list[BatchResult] = field(default_factory=list)

    def take(self, records: Sequence[PriceRecord]) -> None:
        self.results.append(self.stage.publisher.on_prices(records))

    @property
    def outcomes(self) -> list[Outcome | None]:
        return [outcome for result in self.results for outcome in result.outcomes]

    @property
    def frames(self) -> list[MarkFrame]:
        return [decode_frame(frame) for result in self.results for frame in result.frames]

    @property
    def marks(self) -> list[Mark]:
        return [mark for frame in self.frames for mark in frame.marks]

    @property
    def last(self) -> dict[str, Mark]:
        return {mark.symbol: mark for mark in self.marks}

    def statuses(self, symbol: str) -> list[str]:
        """The statuses that a reader saw the symbol in, one after the other."""
        seen: list[str] = []
        for mark in self.marks:
            if mark.symbol == symbol and seen[-1:] != [mark.status]:
                seen.append(mark.status)
        return seen


def stage_of(symbols: Sequence[str]) -> Stage:
    stage = Stage(rules=None)
    for symbol in symbols:
        stage.parameters.write(f"oracle:{symbol}", msgspec.structs.replace(RULES, symbol=symbol))
    stage.publisher.follow_parameters()
    return stage


def given_batches(steps: Sequence[Given]) -> Iterator[tuple[int, list[PriceRecord]]]:
    """(wait before it, records) of each batch: time passes between batches only."""
    batch: list[PriceRecord] = []
    wait_ms = 0
    for offset, step in enumerate(steps):
        wait_ms += step.wait_ms
        value = b"no json" if step.price is None else encode(step.price)
        batch.append(PriceRecord(0, offset, T0 // 1000, b"key", value))
        if step.ends:
            yield wait_ms, batch
            batch, wait_ms = [], 0
    yield wait_ms, batch


@settings(max_examples=examples(300), deadline=None)
@given(given_prices())
def test_a_batch_ends_as_its_prices_would_one_by_one(steps: list[Given]) -> None:
    single, batched = Run(), Run()
    for wait_ms, records in given_batches(steps):
        for run in (single, batched):
            run.stage.wait(wait_ms)
        for record in records:
            single.take([record])
        batched.take(records)
        assert batched.outcomes == single.outcomes
        assert batched.last == single.last, "what a reader knows after every batch"
    letters = [[letter for result in run.results for letter in result.letters] for run in (single, batched)]
    assert letters[0] == letters[1]
    for symbol in SYMBOLS:
        assert batched.statuses(symbol) == single.statuses(symbol)
    assert all(mark in single.marks for mark in batched.marks), "no mark that no price made"
    assert len(batched.frames) <= len(single.frames)
    rows = [{row.key: row.value for result in run.results for row in result.rows} for run in (single, batched)]
    assert rows[0].keys() == rows[1].keys()
    assert batched.stage.beat() == single.stage.beat()


@settings(max_examples=examples(100), deadline=None)
@given(given_prices())
def test_a_symbol_is_in_a_frame_and_in_the_rows_once(steps: list[Given]) -> None:
    run = Run()
    for wait_ms, records in given_batches(steps):
        run.stage.wait(wait_ms)
        run.take(records)
        keys = [row.key for row in run.results[-1].rows]
        assert len(keys) == len(set(keys))
    for frame in run.frames:
        symbols = [mark.symbol for mark in frame.marks]
        assert len(symbols) == len(set(symbols))
        assert all(mark.publish_time <= frame.time for mark in frame.marks)


def records(*prices: tuple[str, str]) -> list[PriceRecord]:
    """Prices of ``X`` by their sources."""
    return [
        PriceRecord(0, number, 0, b"X", encode(OraclePrice(
            source=source, symbol="X", price=price, sequence=number, publish_time=T0,
        )))
        for number, (source, price) in enumerate(prices, 1)
    ]  # fmt: skip


def sent(result: BatchResult) -> list[list[tuple[str, str]]]:
    return [[(mark.status, mark.price) for mark in decode_frame(frame).marks] for frame in result.frames]


def test_of_marks_of_one_status_the_last_is_sent() -> None:
    result = Stage().publisher.on_prices(records(("a", "100"), ("b", "100"), ("a", "101"), ("b", "102")))
    assert sent(result) == [[("live", "101.5")]]


def test_a_status_that_is_over_within_the_batch_is_sent() -> None:
    result = Stage().publisher.on_prices(records(("a", "100"), ("b", "100"), ("a", "130"), ("a", "100")))
    assert sent(result) == [[("live", "100")], [("stale", "100")], [("live", "100")]]


def test_a_jump_within_a_batch_is_judged_where_it_stands() -> None:
    rules = OracleParameters(symbol="X", sources={"a": "1", "b": "1"}, max_deviation="0.5")
    result = Stage(rules=rules).publisher.on_prices(records(("a", "100"), ("b", "100"), ("a", "125"), ("a", "100")))
    assert sent(result) == [[("live", "100")], [("halted", "100")], [("live", "100")]]


def test_the_row_of_a_symbol_is_its_state_after_the_batch() -> None:
    (row,) = Stage().publisher.on_prices(records(("a", "100"), ("b", "100"), ("a", "101"))).rows
    state = decode_state(row.value)
    assert {name: source.price for name, source in state.sources.items()} == {"a": "101", "b": "100"}


def test_a_letter_keeps_no_price_of_its_batch_back() -> None:
    result = Stage().publisher.on_prices(
        [*records(("a", "100")), PriceRecord(0, 5, 0, b"X", b"no json"), *records(("a", "100"), ("b", "101"))[1:]]
    )
    assert result.outcomes == ["accepted", None, "accepted"]
    assert [dict(letter.headers)["dlq.offset"] for letter in result.letters] == [b"5"]
    assert sent(result) == [[("live", "100.5")]]
