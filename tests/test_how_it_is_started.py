"""The tests pass however they are started: no setting, signal, terminal, folder, umask or locale reaches them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

WITHOUT_KAFKA = (
    "tests/infra/test_local_process.py",
    "tests/test_cli.py::test_every_command_has_help_with_its_options",
    "tests/test_cli.py::test_settings_are_shown_without_secrets",
    "tests/test_how_it_is_started.py::test_what_is_started_has_every_signal",
    "tests/demo/test_recording_and_population.py",
)
"""Processes that are signalled, output for a person, files with every kind of content."""
REPRESENTATIVE = (
    *WITHOUT_KAFKA,
    "tests/infra/test_local_stack.py::test_run_local_keeps_data_and_ends_in_order",
    "tests/test_cli.py::test_topics_says_what_is_right_and_what_is_wrong",
)
"""A Kafka of the tests' own as well."""

SHOW_SIGNALS = """
import signal
ignored = [s.name for s in signal.Signals if s not in (signal.SIGPIPE, signal.SIGXFSZ) and
           signal.getsignal(s) is signal.SIG_IGN]
print(ignored, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
"""


def operators_shell() -> dict[str, str]:
    """Where another cluster is set up for, wrongly, and every setting of the kind that a deployment has."""
    return {
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "MARGIN_REDIS__URL": "redis://127.0.0.1:1/0",
        "MARGIN_TOPICS__SHARDS": "64",
        "MARGIN_ENGINE__GROUP_ID": "theirs",
        "MARGIN_SERVICE__INSTANCE_ID": "pod-0",
        "MARGIN_NO__SUCH_THING": "1",
        "BROKER_URL": "kafka://127.0.0.1:1",
        "FORCE_COLOR": "1",
        "COLUMNS": "20",
    }


def bare() -> dict[str, str]:
    """As little as a service manager gives."""
    return {"LANG": "C", "LC_ALL": "C", "TZ": "Pacific/Kiritimati"}


def ignore_signals() -> None:
    """As ``nohup`` and a shell's background jobs do, and more."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])


def closed_and_private() -> None:
    os.umask(0o077)
    os.close(0)


@pytest.mark.parametrize(
    ("part", "environment", "prepare", "folder"),
    [
        (WITHOUT_KAFKA, operators_shell, ignore_signals, ROOT),
        pytest.param(REPRESENTATIVE, operators_shell, ignore_signals, ROOT, marks=pytest.mark.long),
        pytest.param(REPRESENTATIVE, bare, closed_and_private, Path("/"), marks=pytest.mark.long),
    ],
)
def test_a_representative_part_passes(
    part: Sequence[str],
    environment: Callable[[], Mapping[str, str]],
    prepare: Callable[[], None],
    folder: Path,
    tmp_path: Path,
) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "XDG_CACHE_HOME", "JAVA_HOME") if name in os.environ}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")),
            *("--basetemp", str(tmp_path / "base"), *(str(ROOT / path) for path in part)),
        ],
        env={**kept, **environment()},
        cwd=folder,
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


def test_what_is_started_has_every_signal() -> None:
    shown = subprocess.run([sys.executable, "-c", SHOW_SIGNALS], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[] []"


def test_no_setting_is_there() -> None:
    assert not [name for name in os.environ if name.startswith("MARGIN_")]
