"""What the oracle says of prices that do not count: each source once a reason, and never more names than a limit."""

import logging
from typing import Any

import pytest
from prometheus_client import REGISTRY

from schemas.messages import OraclePrice
from streams.oracle.marks import Outcome
from streams.oracle.outcomes import LETTERS_LOGGED_MAX, LETTERS_PERIOD_S, NAMES_MAX, LetterLog, OutcomeLog

T0 = 1_700_000_000_000_000


def price(source: str = "a", symbol: str = "X") -> OraclePrice:
    return OraclePrice(source=source, symbol=symbol, price="1", sequence=7, publish_time=T0 - 6_000_000)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    logged: dict[str, Any] = vars(record)["fields"]
    return logged


def test_each_source_is_told_once_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[Outcome] = ["late", "late", "unsure", "accepted", "late", "repeated", "restarted"]
    log = OutcomeLog()
    with caplog.at_level(logging.INFO):
        for outcome in outcomes:
            log.tell(price(), outcome, T0)
        log.tell(price("b"), "late", T0)
    assert [(record.levelname, record.getMessage(), fields(record)["reason"]) for record in caplog.records] == [
        ("WARNING", "price_does_not_count", "late"),
        ("WARNING", "price_does_not_count", "unsure"),
        ("INFO", "price_does_not_count", "repeated"),
        ("WARNING", "source_counts_anew", "restarted"),
        ("WARNING", "price_does_not_count", "late"),
    ]
    assert fields(caplog.records[0]) == {
        "reason": "late", "source": "a", "symbol": "X", "sequence": 7, "age_ms": 6000,
    }  # fmt: skip


def test_an_unknown_symbol_is_told_once_whoever_sends_it(caplog: pytest.LogCaptureFixture) -> None:
    log = OutcomeLog()
    with caplog.at_level(logging.INFO):
        for source, symbol in (("a", "X"), ("b", "X"), ("a", "Y")):
            log.tell(price(source, symbol), "unknown_symbol", T0)
    assert [(record.getMessage(), fields(record)["symbol"]) for record in caplog.records] == [
        ("price_of_unknown_symbol", "X"),
        ("price_of_unknown_symbol", "Y"),
    ]


def test_names_are_bounded_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    log = OutcomeLog()
    with caplog.at_level(logging.INFO):
        for number in range(NAMES_MAX + 10):
            log.tell(price(f"s-{number}"), "unknown_source", T0)
        log.tell(price("a"), "late", T0)
    assert len(caplog.records) == NAMES_MAX + 1


def test_every_price_is_counted_by_outcome() -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("margin_oracle_prices_total", {"outcome": "from_the_future"}) or 0.0

    before, log = counted(), OutcomeLog()
    for _ in range(3):
        log.tell(price(), "from_the_future", T0)
    assert counted() == before + 3


class Clock:
    """Seconds that pass by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_of_many_dead_letters_the_first_are_logged_and_the_others_summed_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = Clock()
    letters = LetterLog(now)
    counted = REGISTRY.get_sample_value("margin_oracle_dead_letters_total") or 0
    for offset in range(LETTERS_LOGGED_MAX + 5):
        letters.tell(3, offset, "no price")
    letters.sum_up()
    assert [record.getMessage() for record in caplog.records] == ["dead_letter"] * LETTERS_LOGGED_MAX
    now.now += LETTERS_PERIOD_S
    letters.sum_up()
    letters.sum_up()
    more = caplog.records[LETTERS_LOGGED_MAX:]
    assert [(record.getMessage(), record.__dict__["fields"]["count"]) for record in more] == [("dead_letters_more", 5)]
    assert more[0].__dict__["fields"]["last"] == f"oracle.prices.v1[3] offset {LETTERS_LOGGED_MAX + 4}: no price"
    letters.tell(3, 99, "no price")
    assert caplog.records[-1].getMessage() == "dead_letter", "a new period"
    assert REGISTRY.get_sample_value("margin_oracle_dead_letters_total") == counted + LETTERS_LOGGED_MAX + 6


def test_a_sender_of_nonsense_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now = Clock()
    letters = LetterLog(now)
    for offset in range(100_000):
        now.now += 0.01
        letters.tell(0, offset, "no price")
    assert len(caplog.records) <= (LETTERS_LOGGED_MAX + 1) * (1_000 / LETTERS_PERIOD_S + 1)
