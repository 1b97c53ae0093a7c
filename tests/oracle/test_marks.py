"""The rules of a mark, one by one, and what no price sequence may bring about."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Mark, OraclePrice
from schemas.parameters import OracleParameters
from streams.oracle.marks import MarkBook, weighted_median

T0 = 1_700_000_000_000_000
RULES = OracleParameters(
    symbol="X",
    sources={"a": "1", "b": "1", "c": "1"},
    minimum_sources=2,
    max_age_ms=5000,
    max_confidence_ratio="0.01",
    max_deviation="0.05",
    max_jump="0.10",
)


class Book:
    """A mark book with a clock that moves by hand."""

    def __init__(self, rules: OracleParameters = RULES) -> None:
        self.book = MarkBook()
        self.book.set_rules({rules.symbol: rules})
        self.clock = T0
        self.sequence = 0

    def price(
        self, source: str, price: str, *, age_ms: int = 0, sequence: int | None = None, confidence: str | None = None
    ) -> str:
        self.sequence += 1
        return self.book.accept(
            OraclePrice(
                source=source,
                symbol="X",
                price=price,
                confidence=confidence,
                sequence=self.sequence if sequence is None else sequence,
                publish_time=self.clock - age_ms * 1000,
            ),
            self.clock,
        )

    def prices(self, **prices: str) -> Mark:
        for source, price in prices.items():
            assert self.price(source, price) == "accepted"
        return self.mark()

    def mark(self) -> Mark:
        (mark,) = self.book.form_all(self.clock)
        return mark

    def wait(self, milliseconds: int) -> None:
        self.clock += milliseconds * 1000


def test_the_mark_is_the_median_of_the_sources() -> None:
    mark = Book().prices(a="100", b="101", c="103")
    assert (mark.price, mark.status) == ("101", "live")
    assert mark.sources == {"a": "100", "b": "101", "c": "103"}


def test_weights_move_the_median() -> None:
    assert weighted_median([(Decimal(1), Decimal(1)), (Decimal(2), Decimal(1)), (Decimal(3), Decimal(5))]) == 3
    assert weighted_median([(Decimal(2), Decimal(1)), (Decimal(1), Decimal(1))]) == 1


def test_too_few_sources_make_no_mark_and_then_a_stale_one() -> None:
    book = Book()
    book.price("a", "100")
    assert book.book.form_all(book.clock) == ()
    book.price("b", "100")
    assert book.mark().status == "live"
    book.wait(5001)
    stale = book.mark()
    assert (stale.price, stale.status) == ("100", "stale")


def test_an_old_price_does_not_count() -> None:
    book = Book()
    book.price("a", "100")
    book.price("b", "100", age_ms=6000)
    assert book.book.form_all(book.clock) == ()


def test_an_unsure_price_does_not_count() -> None:
    book = Book()
    book.prices(a="100", b="100")
    book.price("c", "104", confidence="1.05")
    assert "c" not in book.mark().sources
    book.price("c", "104", confidence="1.04")
    assert "c" in book.mark().sources


def test_a_source_far_from_the_median_is_dropped() -> None:
    mark = Book().prices(a="100", b="101", c="200")
    assert mark.sources == {"a": "100", "b": "101"}
    assert mark.price == "100"


def test_sources_that_do_not_agree_are_stale() -> None:
    book = Book()
    book.prices(a="100", b="100")
    book.wait(1)
    assert book.prices(a="100", b="120").status == "stale"


def test_a_jump_halts_until_the_new_level_has_lasted() -> None:
    book = Book()
    book.prices(a="100", b="100", c="100")
    halted = book.prices(a="115", b="115", c="115")
    assert (halted.price, halted.status) == ("100", "halted")
    book.wait(4000)
    assert book.prices(a="115", b="115", c="115").status == "halted"
    book.wait(1000)
    live = book.prices(a="115", b="115", c="115")
    assert (live.price, live.status) == ("115", "live")


def test_a_jump_that_returns_is_forgotten() -> None:
    book = Book()
    book.prices(a="100", b="100", c="100")
    book.prices(a="115", b="115", c="115")
    assert book.prices(a="101", b="101", c="101").price == "101"
    book.wait(4999)
    assert book.prices(a="115", b="115", c="115").status == "halted"


@pytest.mark.parametrize(
    ("source", "age_ms", "sequence", "outcome"),
    [
        ("nobody", 0, 9, "unknown_source"),
        ("a", 0, 1, "repeated"),
        ("a", 0, 0, "repeated"),
        ("a", -6000, 9, "from_the_future"),
    ],
)
def test_what_does_not_count_changes_nothing(source: str, age_ms: int, sequence: int, outcome: str) -> None:
    book = Book()
    before = book.prices(a="100", b="101")
    assert book.price(source, "109", age_ms=age_ms, sequence=sequence) == outcome
    assert book.mark() == before


def test_only_a_changed_mark_is_formed_between_heartbeats() -> None:
    book = Book()
    book.prices(a="100", b="100")
    book.price("a", "100")
    assert book.book.form("X", book.clock) is None
    book.price("a", "99")
    formed = book.book.form("X", book.clock)
    assert formed is not None
    assert formed.price == "99"


def test_a_restart_remembers_sequences_and_the_last_mark() -> None:
    old = Book()
    old.prices(a="100", b="100")
    new = Book()
    new.book.restore("X", old.book.state("X"))
    assert new.price("a", "90", sequence=1) == "repeated"
    new.sequence = 10
    assert new.prices(a="120", b="120").status == "halted", "a jump over the restart is a jump"


steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(90, 110), st.integers(0, 3000), st.integers(0, 20)), max_size=40
)


@given(steps)
def test_a_live_mark_lies_among_the_fresh_prices(walk: list[tuple[str, int, int, int]]) -> None:
    book = Book()
    last: dict[str, tuple[int, int]] = {}
    for source, price, wait, _ in walk:
        book.wait(wait)
        book.price(source, str(price))
        last[source] = (price, book.clock)
        marks = book.book.form_all(book.clock)
        if marks and marks[0].status == "live":
            fresh = [p for p, at in last.values() if book.clock - at <= 5_000_000]
            assert min(fresh) <= Decimal(marks[0].price) <= max(fresh)


@given(steps)
def test_repeats_and_late_prices_change_nothing(walk: list[tuple[str, int, int, int]]) -> None:
    once, twice = Book(), Book()
    for number, (source, price, wait, _) in enumerate(walk):
        for book in (once, twice):
            book.wait(wait)
            book.price(source, str(price), sequence=number)
        twice.price(source, str(price + 1), sequence=number)
        twice.price(source, "1", sequence=max(0, number - 5) - 1)
        assert once.book.form_all(once.clock) == twice.book.form_all(twice.clock)


@given(st.integers(1, 10**6))
def test_one_source_cannot_move_the_mark_beyond_the_others(price: int) -> None:
    book = Book(
        OracleParameters(symbol="X", sources={"a": "1", "b": "1", "c": "1"}, minimum_sources=3, max_deviation="1000000")
    )
    mark = book.prices(a="100", b="104", c=str(price))
    assert 100 <= Decimal(mark.price) <= 104
