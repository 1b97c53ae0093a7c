"""What no sequence of prices may bring about, and that the book does what the literal rules say."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec import Decoder, encode
from schemas.messages import Mark, OraclePrice
from schemas.parameters import OracleParameters
from streams.oracle.marks import HEARD, MarkBook, SymbolState
from tests.oracle.literal_marks import LiteralBook, Look, fraction
from tests.properties import examples

T0 = 1_700_000_000_000_000
_STATE = Decoder[SymbolState](SymbolState)

LEVELS = ("60", "95", "100", "104.5", "104.999999999999999999", "109", "111", "121", "150", "163", "166")


@dataclass(frozen=True)
class Step:
    """After a while these sources publish, one after the other, and the mark is looked at after each, or not."""

    wait_ms: int
    sources: str
    price: str
    age_ms: int
    sequence_step: int
    confidence: str | None
    look: bool


WEIGHTS = (
    {"a": "1"},
    {"a": "1", "b": "1"},
    {"a": "1", "b": "1", "c": "1"},
    {"a": "2", "b": "1", "c": "1"},
    {"a": "0.5", "b": "1.5", "c": "1", "d": "1"},
)


@st.composite
def rules_sets(draw: st.DrawFn) -> OracleParameters:
    sources = draw(st.sampled_from(WEIGHTS))
    return OracleParameters(
        symbol="X",
        sources=dict(sources),
        minimum_sources=draw(st.integers(1, min(2, len(sources)))),
        max_age_ms=draw(st.sampled_from((1000, 5000))),
        max_jump=draw(st.sampled_from(("0.10", "0.3"))),
        max_deviation=draw(st.sampled_from(("0.05", "0.2"))),
        jump_confirm_ms=draw(st.sampled_from((500, 100, 7000))),
        jump_halt_ms_max=draw(st.sampled_from((3000, 30_000))),
    )


rules_strategy = rules_sets()
steps_strategy = st.lists(
    st.builds(
        Step,
        wait_ms=st.sampled_from((0, 0, 1, 100, 100, 499, 500, 1000, 1001, 2500, 4999, 5000, 10_000, 29_000)),
        sources=st.sampled_from(("abcd", "abcd", "ab", "a", "b", "c", "d", "")),
        price=st.sampled_from(("100", "150", "150")) | st.sampled_from(LEVELS),
        age_ms=st.just(0) | st.sampled_from((1, 400, 3000, 5001, -400, -5000, -5001)),
        sequence_step=st.just(1) | st.sampled_from((5, 0, -3)),
        confidence=st.none() | st.sampled_from(("0.5", "3")),
        look=st.sampled_from((True, True, True, False)),
    ),
    max_size=35,
)


def prices(steps: Sequence[Step]) -> list[tuple[int, OraclePrice | None, bool]]:
    """(clock, price, whether the mark is looked at) of every step."""
    clock, sequences = T0, dict.fromkeys("abcd", 10)
    priced: list[tuple[int, OraclePrice | None, bool]] = []
    for step in steps:
        clock += 1000 * step.wait_ms
        if not step.sources:
            priced.append((clock, None, step.look))
        for source in step.sources:
            sequences[source] = max(0, sequences[source] + step.sequence_step)
            price = OraclePrice(
                source=source,
                symbol="X",
                price=step.price,
                confidence=step.confidence,
                sequence=sequences[source],
                publish_time=clock - 1000 * step.age_ms,
            )
            priced.append((clock, price, step.look))
    return priced


def book_of(rules: OracleParameters) -> MarkBook:
    book = MarkBook()
    book.set_rules({"X": rules})
    return book


def shown(book: MarkBook, clock: int) -> Mark | None:
    return next(iter(book.form_all(clock)), None)


@settings(max_examples=examples(400), deadline=None)
@given(rules_strategy, steps_strategy)
def test_the_book_does_what_the_literal_rules_say(rules: OracleParameters, steps: list[Step]) -> None:
    book, literal = book_of(rules), LiteralBook(rules)
    for clock, price, look in prices(steps):
        if price is not None:
            assert (book.accept(price, clock) in HEARD) == literal.accept(price, clock)
        if look:
            mark, expected = shown(book, clock), literal.look(clock)
            assert (
                None if mark is None else Look(mark.status, fraction(mark.price), frozenset(mark.sources))
            ) == expected


@settings(max_examples=examples(200), deadline=None)
@given(rules_strategy, steps_strategy, st.sets(st.integers(0, 35)))
def test_a_restart_changes_nothing(rules: OracleParameters, steps: list[Step], restarts: set[int]) -> None:
    book, restarted = book_of(rules), book_of(rules)
    for number, (clock, price, look) in enumerate(prices(steps)):
        if price is not None:
            assert book.accept(price, clock) == restarted.accept(price, clock)
        if look:
            assert shown(book, clock) == shown(restarted, clock)
        if number in restarts and price is not None and price.source in rules.sources:
            state = encode(restarted.state("X"))
            restarted = book_of(rules)
            restarted.restore("X", _STATE(state))
            assert encode(restarted.state("X")) == state


@settings(max_examples=examples(200), deadline=None)
@given(rules_strategy, steps_strategy)
def test_a_repeat_changes_nothing(rules: OracleParameters, steps: list[Step]) -> None:
    once, twice = book_of(rules), book_of(rules)
    for clock, price, _ in prices(steps):
        if price is not None and once.accept(price, clock) in HEARD:
            twice.accept(price, clock)
            for _ in range(2):
                assert twice.accept(price, clock) == "repeated"
        assert shown(once, clock) == shown(twice, clock)


@settings(max_examples=examples(100), deadline=None)
@given(rules_strategy, steps_strategy, st.tuples(*[st.sampled_from(LEVELS)] * 3), st.integers(0, 3000))
def test_the_order_of_different_sources_at_one_time_changes_nothing(
    rules: OracleParameters, steps: list[Step], last: tuple[str, ...], wait_ms: int
) -> None:
    priced = prices(steps)
    clock = (priced[-1][0] if priced else T0) + 1000 * wait_ms
    outcomes = set()
    for order in permutations(zip("abc", last, strict=True)):
        book = book_of(rules)
        for at, price, look in priced:
            if price is not None:
                book.accept(price, at)
            if look:
                book.form_all(at)
        for source, text in order:
            book.accept(OraclePrice(source=source, symbol="X", price=text, sequence=1_000, publish_time=clock), clock)
        outcomes.add(encode(book.form_all(clock)))
    assert len(outcomes) == 1


@settings(max_examples=examples(300), deadline=None)
@given(rules_strategy, steps_strategy)
def test_no_jump_is_live_at_first_sight(rules: OracleParameters, steps: list[Step]) -> None:
    """Between two live marks further apart than ``max_jump`` there is a halt of at least the shortest of the times."""
    book = book_of(rules)
    shortest = 1000 * min(rules.jump_confirm_ms, rules.max_age_ms, rules.jump_halt_ms_max)
    live: Mark | None = None
    halted: int | None = None
    for clock, price, _ in prices(steps):
        if price is not None:
            book.accept(price, clock)
        mark = shown(book, clock)
        if mark is None or mark.status == "stale":
            continue
        if mark.status == "halted":
            halted = clock if halted is None else halted
            continue
        if live is not None:
            before = fraction(live.price)
            if abs(fraction(mark.price) - before) > fraction(rules.max_jump) * before:
                assert halted is not None
                assert clock - halted >= shortest
        live, halted = mark, None


@settings(max_examples=examples(300), deadline=None)
@given(rules_strategy, steps_strategy)
def test_a_live_mark_is_the_majoritys(rules: OracleParameters, steps: list[Step]) -> None:
    """Its sources are fresh, lie around it, are enough, and nobody else who is fresh outweighs them."""
    book = book_of(rules)
    heard: dict[str, OraclePrice] = {}
    for clock, price, _ in prices(steps):
        if price is not None and book.accept(price, clock) in HEARD:
            heard[price.source] = price
        mark = shown(book, clock)
        if mark is None or mark.status != "live":
            assert mark is None or mark.sources == {}
            continue
        at = fraction(mark.price)
        assert len(mark.sources) >= rules.minimum_sources
        assert min(map(fraction, mark.sources.values())) <= at <= max(map(fraction, mark.sources.values()))
        fresh = {
            source: fraction(rules.sources[source])
            for source, last in heard.items()
            if clock - last.publish_time <= 1000 * rules.max_age_ms
        }
        assert mark.sources.keys() <= fresh.keys()
        for text in mark.sources.values():
            assert abs(fraction(text) - at) <= fraction(rules.max_deviation) * at
        assert clock - 1000 * rules.max_age_ms <= mark.publish_time <= clock


@given(st.integers(1, 10**6))
def test_one_source_cannot_move_the_mark_beyond_the_others(price: int) -> None:
    book = book_of(
        OracleParameters(symbol="X", sources={"a": "1", "b": "1", "c": "1"}, minimum_sources=3, max_deviation="1000000")
    )
    for source, text in zip("abc", ("100", "104", str(price)), strict=True):
        book.accept(OraclePrice(source=source, symbol="X", price=text, sequence=1, publish_time=T0), T0)
    mark = shown(book, T0)
    assert mark is not None
    assert 100 <= fraction(mark.price) <= 104


@settings(max_examples=examples(200), deadline=None)
@given(rules_strategy, steps_strategy)
def test_a_heartbeat_within_a_level_changes_nothing(rules: OracleParameters, steps: list[Step]) -> None:
    """A look at the time of a look finds the same, however often."""
    once, often = book_of(rules), book_of(rules)
    for clock, price, _ in prices(steps):
        for book in (once, often):
            if price is not None:
                book.accept(price, clock)
        mark = shown(once, clock)
        assert [shown(often, clock) for _ in range(3)] == [mark] * 3
        assert often.form("X", clock) is None
