"""Whatever text a record holds: who looks sees it for what it is, and nothing of it steers terminal or layout."""

import io
import json
import logging
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from schemas.messages import AccountRow, GroupRow
from streams import logs
from streams.audit.findings import Difference, Findings
from streams.audit.show import show_findings
from streams.broker.admin import ConsumerGroup
from streams.console.account import AccountView, GroupView, show_account
from streams.console.show import show_status
from streams.console.status import Status
from streams.visible import visible, visible_lines

HOSTILE = [
    "[/x]",
    "[bold red]x[/]",
    "instrument:[/x]",
    "a\\[b",
    "\\",
    "[link=http://x]a[/link]",
    ":smile:",
    "\x1b[2J\x1b]0;title\x07",
    "a\nwrong  all is lost",
    "a\rb",
    "\u202egpj.exe",
    "a\u2066b\u2069",
    "a\u200bb",
    "\x9b31m",
    "\ud800",
    "e\u0301\u0301\u0301",
    "\x00",
    "\x7f",
]
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(), max_size=40))
ANYTHING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def console(width: int = 10_000) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, width=width, force_terminal=False), written


def nobody(group: str) -> ConsumerGroup:
    return ConsumerGroup(group, "EMPTY", (), {})


@given(TEXTS)
def test_text_is_shown_in_one_line_of_what_can_be_seen(text: str) -> None:
    assert not ANYTHING.search(visible(text))
    assert "\n" not in visible(text)
    assert not ANYTHING.search(visible_lines(text))


@given(TEXTS, TEXTS)
def test_two_texts_are_never_shown_alike(one: str, other: str) -> None:
    assert (visible(one) == visible(other)) == (one == other)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="\\"), max_size=40))
def test_what_is_plain_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == text


@given(TEXTS)
def test_status_shows_a_fault_about_anything(name: str) -> None:
    out, written = console()
    groups = (nobody("engines"), nobody(name), nobody("oracles"))
    show_status(out, Status(*groups, (), (), None, {}, None), [f"a record of {name} is refused"], [f"see {name}"])
    lines = written.getvalue().splitlines()
    assert f"wrong  a record of {visible(name)} is refused" in lines
    assert f"look  see {visible(name)}" in lines
    assert f"{visible(name)}: empty, nobody" in lines
    assert not ANYTHING.search(written.getvalue())


@given(TEXTS, TEXTS)
def test_an_account_is_shown_whatever_its_names_are(name: str, symbol: str) -> None:
    out, written = console()
    group = GroupRow(margin=symbol, status="normal", balances={name: "1"}, positions=())
    row = AccountRow(
        account=name,
        status="normal",
        groups=(group,),
        liquidation_sequence=1,
        transfer_sequence=0,
        suspended_reason=symbol,
    )
    show_account(out, AccountView(row, (GroupView(group, None, {}, {name: symbol}, symbol),), {}))
    lines = written.getvalue().splitlines()
    assert lines[0].startswith(f"{visible(name)}  ")
    if symbol:
        assert f"suspended: {visible(symbol)}" in lines
    assert not ANYTHING.search(written.getvalue())


@given(TEXTS)
def test_an_audit_shows_what_it_found_about_anything(name: str) -> None:
    out, written = console()
    findings = Findings(
        counts=Counter({name: 1}),
        facts=[name],
        notes=[name],
        differences=[Difference(name)],
        difference_count=1,
        unreached=[name],
    )
    show_findings(out, findings)
    shown = visible(name)
    lines = written.getvalue().splitlines()
    assert f"  note  {shown}" in lines
    assert f"  out of reach  {shown}" in lines
    assert any(line.startswith("  differs  ") and shown in line for line in lines)
    assert not ANYTHING.search(written.getvalue())


@pytest.mark.parametrize("form", ["json", "text"])
@given(name=TEXTS)
def test_a_log_line_is_one_line_of_what_can_be_seen(form: str, name: str) -> None:
    line = logged(form, reason=name, names=[name], deep={name: {name: [[[[name]]]]}})
    assert line.count("\n") == 1
    assert not ANYTHING.search(line)
    if form == "json":
        # Half of a surrogate pair is no text, and stands there as Python writes it.
        assert json.loads(line)["reason"] == name.encode(errors="backslashreplace").decode()


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_log_line_is_bounded(form: str) -> None:
    big = "x" * 1_000_000
    line = logged(form, reason=big, names=[big] * 10_000, number=10**5000, by_name={str(n): big for n in range(500)})
    assert len(line) < 1_000_000
    assert "characters left out" in line


def logged(form: str, **fields: object) -> str:
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    written = io.StringIO()
    try:
        logs.configure("INFO", form, "w")
        handler = root.handlers[0]
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(written)
        logs.event(logging.getLogger("test"), logging.INFO, "happened", **fields)
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
    return written.getvalue()


def test_what_repeats_is_named_a_few_times_and_summed_up() -> None:
    now = 0.0
    told: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record)

    logger = logging.getLogger("test.repeated")
    logger.addHandler(handler := Handler())
    try:
        repeated = logs.Repeated(logger, lambda: now, named_max=3)
        named = sum(repeated.may_name("letter", "trades") for _ in range(100_000))
        assert named == 3
        assert repeated.may_name("letter", "transfers"), "each kind by itself"
        repeated.tell()
        assert not told
        now = 61.0
        repeated.tell()
        (record,) = told
        assert record.getMessage() == "letter_counted"
        assert record.fields["count"] == 99_997  # type: ignore[attr-defined]
        assert repeated.may_name("letter", "trades"), "a new minute"
    finally:
        logger.removeHandler(handler)
