"""The rules of a mark, one by one: what is heard, what counts, and what a mark says."""

import pytest
from msgspec import structs

from schemas.codec import Decoder
from schemas.messages import Mark, MarkFrame, OraclePrice
from schemas.parameters import OracleParameters
from streams.oracle.frames import encoded_frame
from streams.oracle.marks import MarkBook, SymbolState

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


@pytest.mark.parametrize(
    ("weights", "mark"),
    [
        ("1 1 1", "101"),
        ("1 1 5", "103"),
        ("1 1 2", "102"),  # half of the weight is reached at 101, more than half at 103
        ("2 1 1", "100.5"),
        ("0.1 0.2 0.3", "102"),
        ("0.000000000000000001 0.1 0.1", "101"),
        ("3 1 1", "100"),
    ],
)
def test_the_mark_is_the_middle_of_the_lower_and_the_upper_weighted_median(weights: str, mark: str) -> None:
    rules = structs.replace(RULES, sources=dict(zip("abc", weights.split(), strict=True)))
    formed = Book(rules).prices(a="100", b="101", c="103")
    assert (formed.price, formed.status) == (mark, "live")


def test_the_mark_is_rounded_down_at_18_places() -> None:
    formed = Book().prices(a="0.000000000000000021", b="0.000000000000000022")
    assert (formed.price, formed.status) == ("0.000000000000000021", "live")
    formed = Book().prices(a="999999999999999999.999999999999999998", b="999999999999999999.999999999999999999")
    assert (formed.price, formed.status) == ("999999999999999999.999999999999999998", "live")


def test_the_mark_does_not_depend_on_how_a_price_is_written() -> None:
    assert Book().prices(a="100.00", b="100.0").price == "100"


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


def test_a_source_far_from_the_mark_is_none_of_its_sources() -> None:
    mark = Book().prices(a="100", b="101", c="200")
    assert mark.sources == {"a": "100", "b": "101"}
    assert mark.price == "101"


def test_sources_that_do_not_agree_are_stale() -> None:
    book = Book()
    book.prices(a="100", b="100")
    book.wait(1)
    assert book.prices(a="100", b="120").status == "stale"


def test_a_jump_halts_until_the_new_level_is_shown() -> None:
    book = Book()
    book.prices(a="100", b="100", c="100")
    halted = book.prices(a="115", b="115", c="115")
    assert (halted.price, halted.status) == ("100", "halted")
    book.wait(499)
    assert book.prices(a="115", b="115", c="115").status == "halted"
    book.wait(1)
    live = book.prices(a="115", b="115", c="115")
    assert (live.price, live.status) == ("115", "live")


def test_a_jump_that_returns_is_forgotten() -> None:
    book = Book()
    book.prices(a="100", b="100", c="100")
    book.prices(a="115", b="115", c="115")
    assert book.prices(a="101", b="101", c="101").price == "101"
    book.wait(499)
    assert book.prices(a="115", b="115", c="115").status == "halted"


@pytest.mark.parametrize(
    ("source", "age_ms", "sequence", "outcome"),
    [
        ("nobody", 0, 9, "unknown_source"),
        ("a", 0, 1, "repeated"),
        ("a", 0, 0, "repeated"),
        ("a", -5000, 0, "repeated"),
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
    assert formed.price == "99.5"


def test_a_restart_remembers_sequences_and_the_last_mark() -> None:
    old = Book()
    old.prices(a="100", b="100")
    new = Book()
    new.book.restore("X", old.book.state("X"))
    assert new.price("a", "90", sequence=1) == "repeated"
    new.sequence = 10
    assert new.prices(a="120", b="120").status == "halted", "a jump over the restart is a jump"


@pytest.mark.parametrize(
    ("age_ms", "sequence", "confidence", "outcome"),
    [
        (0, 91, None, "accepted"),
        (-5000, 91, None, "accepted"),
        (5000, 91, None, "accepted"),
        (5001, 91, None, "late"),
        (0, 91, "2", "unsure"),
        (0, 89, None, "restarted"),
        (5001, 90, None, "repeated"),
        (999, 90, None, "restarted"),
        (1000, 90, None, "repeated"),
    ],
)
def test_what_became_of_a_price_is_told(age_ms: int, sequence: int, confidence: str | None, outcome: str) -> None:
    book = Book()
    book.price("a", "100", sequence=90)
    book.wait(6000)
    assert book.price("a", "101", age_ms=age_ms, sequence=sequence, confidence=confidence) == outcome


def test_a_mark_is_published_by_its_newest_source_and_never_in_the_future() -> None:
    book = Book()
    book.price("a", "100", age_ms=300)
    book.price("b", "100", age_ms=200)
    book.price("c", "120")
    assert book.mark().publish_time == T0 - 200_000
    book.price("a", "100", age_ms=-4000)
    assert book.mark().publish_time == T0
    book.wait(6000)
    assert (book.mark().status, book.mark().publish_time) == ("stale", T0)


def test_a_last_price_of_a_host_whose_clock_was_ahead_holds_nobody_up() -> None:
    ahead = Book()
    ahead.wait(365 * 86_400_000)
    ahead.prices(a="100", b="100", c="100")
    ahead.prices(a="150", b="150")
    book = Book()
    book.book.restore("X", ahead.book.state("X"))
    assert book.mark().status == "stale"
    assert book.mark().publish_time <= book.clock
    assert [book.price(source, "150", sequence=1) for source in "abc"] == ["restarted"] * 3
    assert book.mark().status == "halted"
    book.wait(500)
    assert book.prices(a="150", b="150", c="150").status == "live"


def test_a_halt_of_a_host_whose_clock_was_ahead_ends_after_its_longest_time() -> None:
    ahead = Book()
    ahead.wait(3_000)
    ahead.prices(a="100", b="100", c="100")
    ahead.prices(a="150", b="150", c="150")
    book = Book()
    book.book.restore("X", ahead.book.state("X"))
    book.sequence = 100
    statuses = []
    for second in range(32):
        text = ("150", "200")[second % 2]
        statuses.append(book.prices(a=text, b=text, c=text).status)
        book.wait(1_000)
    assert statuses[:30] == ["halted"] * 30
    assert statuses[30] == "live"


def test_rules_that_are_taken_back_and_set_again_find_the_symbol_as_it_was() -> None:
    book = Book()
    before = book.prices(a="100", b="100")
    book.book.set_rules({})
    assert book.book.form_all(book.clock) == ()
    assert book.price("a", "101") == "unknown_symbol"
    book.book.set_rules({"X": RULES})
    assert book.mark() == before


def test_a_state_of_an_earlier_version_is_read() -> None:
    earlier = (
        b'{"sources":{"a":{"price":"100.0","confidence":null,"sequence":7,"publish_time":1699999999000000}},'
        b'"mark":{"price":"100.0","publish_time":1699999999000000,"jump_since":1699999999500000}}'
    )
    book = Book(structs.replace(RULES, minimum_sources=1))
    book.book.restore("X", Decoder[SymbolState](SymbolState)(earlier))
    assert book.price("a", "100", sequence=7) == "repeated"
    assert (book.mark().price, book.mark().status, book.mark().sources) == ("100", "live", {"a": "100.0"})


def test_who_does_not_count_is_named_with_the_reason() -> None:
    book = Book(structs.replace(RULES, sources=dict.fromkeys("abcdefgh", "1")))
    assert book.book.uncounted(book.clock) == {"X": dict.fromkeys("abcdefgh", "never")}
    for source in "abcdg":
        book.price(source, "100")
    book.price("h", "120")
    book.price("e", "100", age_ms=5001)
    book.price("f", "100", age_ms=-5001)
    book.price("g", "100", confidence="2")
    assert book.mark().status == "live"
    named = {"e": "late", "f": "from_the_future", "g": "unsure", "h": "apart"}
    assert book.book.uncounted(book.clock) == {"X": named}
    book.wait(4000)
    for source in "abd":
        book.price(source, "100")
        assert book.price(source, "100", sequence=1, age_ms=100) == "repeated"
    assert book.price("c", "100", sequence=1) == "repeated"
    book.wait(1001)
    assert book.mark().status == "live"
    assert book.book.uncounted(book.clock) == {"X": named | {"c": "repeated", "h": "silent"}}
    book.wait(5001)
    assert book.mark().status == "stale"
    silent = dict.fromkeys("abdh", "silent")
    assert book.book.uncounted(book.clock) == {"X": named | silent | {"c": "repeated"}}


def test_nobody_is_named_while_all_count() -> None:
    book = Book()
    book.prices(a="100", b="100", c="100")
    assert book.book.uncounted(book.clock) == {}
    book.book.set_rules({"X": RULES, "Y": structs.replace(RULES, symbol="Y")})
    assert book.book.uncounted(book.clock) == {"Y": dict.fromkeys("abc", "never")}


def test_no_more_are_named_than_a_frame_holds() -> None:
    book = MarkBook()
    sources = dict.fromkeys((f"source-{number}" for number in range(64)), "1")
    book.set_rules({f"S-{n}": structs.replace(RULES, symbol=f"S-{n}", sources=sources) for n in range(100)})
    assert sum(map(len, book.uncounted(T0).values())) == 960


# --- what is not forgotten -------------------------------------------------------------------------------------------


def test_a_symbol_without_rules_stays_at_its_last_price_while_something_is_priced_by_it() -> None:
    book = Book()
    book.prices(a="100", b="100")
    book.book.set_rules({}, kept={"X"})
    mark = book.mark()
    assert (mark.price, mark.status) == ("100", "stale")
    book.book.set_rules({})
    assert book.book.form_all(book.clock) == ()
    book.book.set_rules({"X": RULES})
    assert book.mark().status == "live"


def test_a_mark_of_the_last_frame_is_known_where_nothing_else_is() -> None:
    book = Book()
    published = Mark(symbol="X", price="100", status="live", publish_time=T0 - 1)
    book.book.remember(published)
    mark = book.mark()
    assert (mark.price, mark.status) == ("100", "stale")
    assert book.prices(a="101", b="101").status == "live"
    book.book.remember(published)
    assert book.mark().price == "101"


def test_a_frame_that_no_message_can_hold_loses_what_explains_its_marks() -> None:
    sources = {f"source-{number}": "61800.123456" for number in range(60)}
    marks = tuple(
        Mark(symbol=f"S{number}", price="61800.123456", status="live", publish_time=T0, sources=sources)
        for number in range(600)
    )
    frame = MarkFrame(time=T0, marks=marks, full=True)
    encoded = encoded_frame(frame)
    assert encoded.bare
    (message,) = encoded.messages
    written = Decoder[MarkFrame](MarkFrame)(message)
    assert [mark.symbol for mark in written.marks] == [mark.symbol for mark in marks]
    assert not any(mark.sources for mark in written.marks)
    small = MarkFrame(time=T0, marks=marks[:5])
    assert [Decoder[MarkFrame](MarkFrame)(message) for message in encoded_frame(small).messages] == [small]
