"""What the tests share: one real local stack a run, with the contract's topics.

The tests are the same however they are started: in an operator's shell, under ``nohup``, in the background, without a
terminal, from another folder. Whatever could reach them from there is set right below, before anything else.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.stack import LocalStack
from streams.broker.admin import ensure_topics
from streams.settings import Settings, load
from tests import properties

SHARDS = 4

ROOT = Path(__file__).resolve().parents[1]

_OF_A_TERMINAL = {
    "CLICOLOR_FORCE", "COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "LINES", "NO_COLOR", "PY_COLORS", "TERM",
    "TERMINAL_WIDTH", "TTY_COMPATIBLE", "TTY_INTERACTIVE",
}  # fmt: skip


def _stand_alone() -> None:
    """Keep from the tests, and from the processes that they start, how this process was started.

    - No setting of the pipeline, so that no test reaches a cluster that a shell is set up for.
    - No say of a terminal or of a CI system about colours and widths.
    - This tree first, so that ``python -m`` finds it from any folder.
    - Files that others may read, which not every umask allows.
    - No signal blocked, and none ignored in what is started: this process goes on ignoring those that it was told to,
      but by a handler, which a new program does not inherit.
    """
    for name in [name for name in os.environ if name.startswith("MARGIN_") or name in _OF_A_TERMINAL]:
        del os.environ[name]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    os.umask(0o022)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # those two Python ignores, here only
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


_stand_alone()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fresh", action="store_true", help="install the wheel with its own dependencies, from the package index"
    )
    parser.addoption(
        "--long", action="store_true", help="also run what takes minutes, and try properties with all their examples"
    )
    parser.addoption("--symbols", type=int, help="so many symbols in tests/integration/test_many_symbols.py, by hand")


def pytest_configure(config: pytest.Config) -> None:
    properties.load_profile(long=config.getoption("long"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not (config.getoption("long") or config.getoption("fresh")):
        for item in items:
            if item.get_closest_marker("long") is not None:
                item.add_marker(pytest.mark.skip(reason="takes long: runs with pytest --long"))


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalStack]:
    """A real Kafka and a real Valkey of the tests' own."""
    with LocalStack.start() as started:
        yield started


@pytest.fixture(scope="session")
def settings(stack: LocalStack) -> Settings:
    """Settings that point at the stack; every topic of the contract exists."""
    loaded = load(
        {},
        {
            "kafka.bootstrap_servers": stack.bootstrap_servers,
            "redis.url": stack.redis_url,
            "topics.shards": SHARDS,
            "topics.partitions": 3,
        },
    )
    report = ensure_topics(loaded)
    assert not report.wrong, report.wrong
    return loaded
