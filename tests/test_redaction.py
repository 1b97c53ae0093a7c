"""What leaves a process as text holds no secret, whoever wrote it and however it is encoded."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import redaction
from streams.errors import InputError, TableError
from streams.redaction import hide, redacted

ROOT = Path(__file__).resolve().parents[1]
SECRET = "Mark\"er'\\ @/%é"


@pytest.fixture(autouse=True)
def _apart() -> Iterator[None]:
    with redaction.apart():
        yield


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        repr(SECRET),
        repr(SECRET.encode()),
        base64.b64encode(SECRET.encode()).decode(),
    ],
)
def test_a_secret_is_masked_in_every_form(form: str) -> None:
    hide(SECRET)
    assert redacted(f"ERR unknown command with args {form} and more").count("***") == 1
    assert "Mark" not in redacted(f"x{form}y")


def test_a_short_secret_is_masked_by_itself_only() -> None:
    hide("margin")
    assert redacted("margin.marks.v1 of margin-engine: 'margin' is refused") == (
        "margin.marks.v1 of margin-engine: '***' is refused"
    )


@given(st.text(min_size=8, max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_nothing_of_a_longer_secret_is_left(secret: str, before: str, after: str) -> None:
    with redaction.apart():
        hide(secret)
        text = redacted(before + secret + after)
    assert "***" in text
    assert text.count(secret) <= (before + "***" + after).count(secret)


def test_errors_are_masked_where_they_quote_a_server() -> None:
    hide("hunter2!")
    assert str(TableError("Redis: unknown command AUTH, with args 'hunter2!'")) == (
        "Redis: unknown command AUTH, with args '***'"
    )


def test_what_gets_into_records_does_not_depend_on_what_a_process_knows() -> None:
    hide("BTC-PERP")
    assert str(InputError("unknown symbol BTC-PERP")) == "unknown symbol BTC-PERP"


CODE = """
import asyncio, logging, sys, threading, warnings
from streams import logs
from streams.settings import load
settings = load()
secret = settings.redis.password
logs.guard_output()
if sys.argv[1] != "none":
    logs.configure("DEBUG", sys.argv[1], "worker")
logging.getLogger("any").warning("plain %s", secret)
logs.event(logging.getLogger("ours"), logging.ERROR, "event", secret=secret, nested={"a": [secret, secret.encode()]})
try:
    raise ValueError(secret)
except ValueError:
    logging.getLogger("any").exception("caught")
print(repr(settings), file=sys.stderr)
thread = threading.Thread(target=lambda: 1 / 0 if not secret else (_ for _ in ()).throw(KeyError(secret)))
thread.start()
thread.join()
class Unraisable:
    def __del__(self):
        raise RuntimeError(secret)
Unraisable()
raise RuntimeError(secret)
"""


@pytest.mark.parametrize("form", ["json", "text", "none"])
def test_nothing_that_is_printed_holds_a_secret(form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, form],
        env={**os.environ, "MARGIN_REDIS__PASSWORD": SECRET, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    for said in ("plain", "ValueError", "KeyError", "RuntimeError", "RedisSettings"):
        assert said in done.stderr
    assert done.stderr.count("***") >= 6
    assert "Mark" not in done.stderr + done.stdout
    if form == "json":
        assert any(json.loads(line)["event"] == "event" for line in done.stderr.splitlines() if line.startswith("{"))
