"""``margin-clearing scenario`` as a command: exit codes, streams and flags; its bytes are the file's alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scenarios.run import HERE

CRASH = HERE / "crash-liquidates-one.jsonl"
COMMANDS = ("--topics", "liquidation.commands.v1")


def run(*arguments: str, stdin: bytes = b"", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "streams.cli", "scenario", *arguments],
        input=stdin,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_the_same_bytes_whatever_is_around() -> None:
    arguments = (str(CRASH), "--until-ms", "5000")
    first = run(*arguments, PYTHONHASHSEED="1")
    assert (first.returncode, first.stderr) == (0, b"")
    assert first.stdout == CRASH.with_suffix(".expected.jsonl").read_bytes()
    other = run(*arguments, PYTHONHASHSEED="2", MARGIN_ENGINE__COMMIT_INTERVAL_MS="nonsense", TZ="Asia/Tokyo", LANG="C")
    assert other.stdout == first.stdout


def test_a_scenario_comes_from_standard_input_without_a_last_line_end() -> None:
    done = run("-", *COMMANDS, stdin=CRASH.read_bytes().rstrip(b"\n"))
    assert done.returncode == 0
    first = json.loads(done.stdout.splitlines()[0])
    assert (first["topic"], first["key"]) == ("liquidation.commands.v1", "ada")
    assert 1500 < first["at_ms"] < 2000


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (("-",), b"", "standard input line 1: the file is empty"),
        (("-",), b'{"at_ms":0,"topic":"trades.v1","value":{}}\n{', "standard input line 2: not JSON"),
        (("-",), b'{"at_ms":0,"kill":"engine:7"}', "field kill: no engine:7"),
        (("/nowhere.jsonl",), b"", "/nowhere.jsonl: No such file"),
        (("-", "--topics", "orders"), b"", "there is no topic 'orders'"),
        (("-", "--topics", ","), b"", "--topics"),
        (("-", "--shards", "0"), b"", "--shards"),
        (("-", "--engines", "0"), b"", "--engines"),
        (("-", "--until-ms", "-1"), b"", "--until-ms"),
        (("-", "--until-ms", "99999999999"), b'{"at_ms":0,"kill":"engine:0"}', "--until-ms"),
        ((), b"", "FILE"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_ends_with_2(arguments: tuple[str, ...], stdin: bytes, said: str) -> None:
    done = run(*arguments, *(("--engines", "1") if b"engine:7" in stdin else ()), stdin=stdin)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_lines_after_the_end_are_not_given() -> None:
    done = run(str(CRASH), "--until-ms", "1400", "--topics", "oracle.prices.v1")
    assert [b'"1500' in line for line in done.stdout.splitlines()] == [False, False]


def test_the_help_shows_lines_that_can_be_read(tmp_path: Path) -> None:
    lines = [line.strip() for line in run("--help", COLUMNS="200").stdout.decode().splitlines() if '{"at_ms"' in line]
    assert len(lines) >= 6
    file = tmp_path / "help.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    done = run(str(file), "--until-ms", "5000")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b'"topic":"trades.v1.dlq"' in done.stdout
