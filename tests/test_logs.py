"""A line of the log is bounded whatever is quoted in it, and shows no part of a secret."""

import io
import logging
from collections.abc import Iterator

import orjson
import pytest

from streams import logs, redaction
from streams.errors import InputError
from streams.logs import NAMED_MAX, TEXT_CHARACTERS_MAX, TRACEBACK_CHARACTERS_MAX, event
from streams.settings import load

LINE_CHARACTERS_MAX = 60_000


@pytest.fixture(params=["json", "text"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is written to standard error in each form."""
    stream = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("INFO", request.param, "worker")
    yield stream
    root.handlers[:] = before[0]
    root.setLevel(before[1])


def test_a_line_is_bounded_whatever_it_quotes(written: io.StringIO) -> None:
    log = logging.getLogger("streams.test")
    huge = "x" * 10_000_000
    event(log, logging.ERROR, "quoting", reason=huge, names=[huge] * 3, number=10**5_000, text="\ud800")
    try:
        raise InputError(huge)
    except InputError:
        log.exception("broken")
    assert 0 < len(written.getvalue()) < 2 * LINE_CHARACTERS_MAX
    assert "quoting" in written.getvalue()
    assert "characters left out" in written.getvalue()
    assert "InputError" in written.getvalue()


@pytest.mark.parametrize("written", ["json"], indirect=True)
def test_lines_stay_json(written: io.StringIO) -> None:
    event(logging.getLogger("streams.test"), logging.INFO, "name", number=2**80, text="\ud800", many=list(range(5_000)))
    line = orjson.loads(written.getvalue())
    assert line["event"] == "name"
    assert len(line["many"]) < 5_000


@pytest.mark.parametrize("most", [TEXT_CHARACTERS_MAX, TRACEBACK_CHARACTERS_MAX])
def test_no_half_of_a_secret_is_left_where_a_text_is_cut(written: io.StringIO, most: int) -> None:
    with redaction.apart():
        load({"MARGIN_REDIS__PASSWORD": "Mrk9QzMrk9QzMrk9Qz"})
        for place in range(most // 2 - 20, most // 2 + 2):
            event(
                logging.getLogger("streams.test"),
                logging.INFO,
                "x",
                text="." * place + "Mrk9QzMrk9QzMrk9Qz" + "." * most,
            )
    assert "Mrk9" not in written.getvalue()


def test_a_library_that_says_the_same_all_the_time_is_cut_short(written: io.StringIO) -> None:
    library, ours = logging.getLogger("aiokafka.conn"), logging.getLogger("streams.test")
    for port in range(1_000):
        library.error("Unable connect to node with id %s: port %s", 1, port)
    library.error("Something else")
    for number in range(20):
        event(ours, logging.INFO, "of_ours", number=number)
    lines = written.getvalue().splitlines()
    said = {text: sum(text in line for line in lines) for text in ("Unable connect", "Something else", "of_ours")}
    assert said == {"Unable connect": NAMED_MAX, "Something else": 1, "of_ours": 20}
