"""What the tests of the local stack share: waiting for a condition, and an owner process whose end can be chosen."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DEADLINE_S = 30.0


def _eventually(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {DEADLINE_S:g} s: {what}")
        time.sleep(0.01)


def _ended(pid: int) -> bool:
    """Whether no process ``pid`` is left, not even as a zombie of ours."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stated = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    # Where nothing reaps orphans, the zombie of a dead owner's child stays; it holds nothing any more.
    return stated.strip().startswith("Z") or not stated.strip()


@pytest.fixture
def eventually() -> Callable[[Callable[[], object], str], None]:
    """Wait until a condition holds, or fail with what was waited for."""
    return _eventually


@pytest.fixture
def ended() -> Callable[[int], bool]:
    return _ended


@pytest.fixture
def owner() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a Python process that runs code with arguments; killed and reaped after the test at the latest."""
    root = Path(__file__).resolve().parents[2]
    with contextlib.ExitStack() as owners:

        def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(root)},
            )
            owners.enter_context(process)
            owners.callback(process.kill)
            return process

        yield start
