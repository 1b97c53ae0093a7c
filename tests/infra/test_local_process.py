"""A managed process ends with its owner, whatever way the owner ends, and its temporary folder with it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.local.errors import StartError, StillRunning
from infra.local.process import ManagedProcess, TemporaryFolder

Eventually = Callable[[Callable[[], object], str], None]
Owner = Callable[..., "subprocess.Popen[str]"]

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]

# Starts a process and a folder in a thread that has ended before the owner does, as a pool's would.
OWNER = """
import os, sys, threading, time
from infra.local.process import ManagedProcess, TemporaryFolder

def start():
    folder = TemporaryFolder()
    code = "import time; print('up', flush=True); time.sleep(600)"
    process = ManagedProcess([sys.executable, "-c", code], name="it", log_path=folder.path / "it.log", orphan_grace_s=1)
    while "up" not in process.log_tail():
        time.sleep(0.01)
    held.extend([folder, process])

held = []
thread = threading.Thread(target=start)
thread.start()
thread.join()
forked = 0
if sys.argv[1] == "fork":
    forked = os.fork()
    if forked == 0:
        os.close(1)
        time.sleep(600)
print(held[1].pid, held[0].path, forked, flush=True)
if sys.argv[1] == "pause":
    held[1].pause()
if sys.argv[1] == "exception":
    raise SystemError("on purpose")
if sys.argv[1] == "exit":
    os._exit(3)
time.sleep(600)
"""


NOHUP = """
import pathlib, sys
from infra.local.process import ManagedProcess
code = '''
import signal
left = signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}
print([int(n) for n in left if signal.getsignal(n) is signal.SIG_IGN], signal.pthread_sigmask(signal.SIG_BLOCK, []))
'''
process = ManagedProcess([sys.executable, "-c", code], name="it", log_path=pathlib.Path(sys.argv[1]) / "it.log")
assert process.wait(20) == 0
print(process.log_tail())
"""


def started(argv: list[str], folder: Path, eventually: Eventually, **options: float) -> ManagedProcess:
    process = ManagedProcess(argv, name="it", log_path=folder / "it.log", **options)  # type: ignore[arg-type]
    eventually(lambda: "up" in process.log_tail(), "the process is up")
    return process


def test_output_and_exit_code(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['WORD']); print('bad', file=sys.stderr); sys.exit(7)"
    process = ManagedProcess([sys.executable, "-c", code], name="it", log_path=tmp_path / "log", env={"WORD": "good"})
    assert process.wait(20) == 7
    assert set(process.log_tail().split()) == {"good", "bad"}
    assert process.poll() == 7
    process.signal(signal.SIGTERM)  # nothing is there any more: no error


def test_pid_is_the_commands_own(tmp_path: Path, eventually: Eventually) -> None:
    code = "import os, time; print(os.getpid(), 'up', flush=True); time.sleep(600)"
    with started([sys.executable, "-c", code], tmp_path, eventually) as process:
        assert process.log_tail().split() == [str(process.pid), "up"]
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(20) == 128 + signal.SIGKILL


def test_terminate_is_orderly_first(tmp_path: Path, eventually: Eventually) -> None:
    assert started(SLEEPER, tmp_path, eventually).terminate() == 128 + signal.SIGTERM


def test_terminate_kills_what_does_not_listen(
    tmp_path: Path, eventually: Eventually, ended: Callable[[int], bool]
) -> None:
    process = started(STUBBORN, tmp_path, eventually)
    with pytest.raises(StillRunning, match="is still running after 0 s"):
        process.wait(0)
    assert process.terminate(grace_s=0.1) == 128 + signal.SIGKILL
    assert ended(process.pid)


BUSY = """
import hashlib, threading
work = bytes(1 << 16)
def run():
    while True:
        hashlib.sha256(work)
for _ in range(16):
    threading.Thread(target=run).start()
print("up", flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux tells of every thread")
def test_nothing_of_a_paused_process_runs_any_more(tmp_path: Path, eventually: Eventually) -> None:
    """A thread that is stopped while it runs goes on until it has its turn again."""
    process = started([sys.executable, "-c", BUSY], tmp_path, eventually)
    for _ in range(20):
        process.pause()
        states = [
            (task / "stat").read_text().rpartition(")")[2].split()[0]
            for task in Path(f"/proc/{process.pid}/task").iterdir()
        ]
        assert len(states) >= 16
        assert set(states) == {"T"}
        process.resume()
    process.terminate()


def test_terminate_reaches_a_paused_process(tmp_path: Path, eventually: Eventually) -> None:
    process = started(SLEEPER, tmp_path, eventually)
    process.pause()
    assert process.poll() is None
    assert process.terminate() == 128 + signal.SIGTERM


def test_what_it_started_itself_ends_with_it(
    tmp_path: Path, eventually: Eventually, ended: Callable[[int], bool]
) -> None:
    code = "import subprocess, sys; print('up', subprocess.Popen(['sleep', '600']).pid, flush=True); input()"
    process = ManagedProcess(
        [sys.executable, "-c", code + "; import time; time.sleep(600)"], name="it", log_path=tmp_path / "log"
    )
    eventually(lambda: "EOFError" in process.log_tail(), "it has no input")
    grandchild = int(process.log_tail().split()[1])
    process.wait(20)
    eventually(lambda: ended(grandchild), "the grandchild has ended")


def test_it_starts_with_every_signal_whatever_the_owner_was_started_with(tmp_path: Path) -> None:
    """``nohup`` ignores SIGHUP, and a shell's background job SIGINT and SIGQUIT: programs inherit that."""

    def ignore() -> None:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    done = subprocess.run(
        [sys.executable, "-c", NOHUP, str(tmp_path)],
        preexec_fn=ignore,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[] set()"


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"it could not be started: .*no-such-program"):
        ManagedProcess(["/no-such-program"], name="it", log_path=tmp_path / "log")


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "exception", "exit", "pause", "fork"])
def test_nothing_outlives_the_owner(
    end: str, owner: Owner, eventually: Eventually, ended: Callable[[int], bool]
) -> None:
    process = owner(OWNER, end)
    assert process.stdout is not None
    pid, folder, forked = process.stdout.readline().split()
    if end not in ("exception", "exit"):
        assert os.path.isdir(folder)
        process.send_signal(signal.Signals[end] if end.startswith("SIG") else signal.SIGKILL)
    eventually(lambda: ended(int(pid)), f"the process ends with its owner ({end})")
    eventually(lambda: not os.path.exists(folder), "its folder is removed")
    if end == "fork":
        assert not ended(int(forked)), "the owner's fork lives, and did not keep the process"
        os.kill(int(forked), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child to its parent")
def test_it_ends_with_its_supervisor(tmp_path: Path, eventually: Eventually, ended: Callable[[int], bool]) -> None:
    process = started(STUBBORN, tmp_path, eventually)
    listed = subprocess.run(["ps", "-o", "ppid=", "-p", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(listed.stdout), signal.SIGKILL)
    assert process.wait(20) == 128 + signal.SIGKILL
    eventually(lambda: ended(process.pid), "the command ends with its supervisor")


def test_a_folder_is_removed_after_those_who_use_it(eventually: Eventually) -> None:
    with TemporaryFolder() as folder:
        process = started(SLEEPER, folder.path, eventually)
        assert process.kill() == 128 + signal.SIGKILL
    assert not folder.path.exists()
    folder.close()  # again: nothing to do
